//! Packs: sealed blobs one after the other, a sealed header that names them, and the header's length
//! (<https://restic.readthedocs.io/en/stable/100_references.html#pack-format>).

use std::ops::Range;
use std::sync::Arc;

use crate::compress::{Compressor, Decompressor};
use crate::crypto::{IV_LEN, MasterKey, Nonces, OVERHEAD};
use crate::index::{Location, PackNo};
use crate::sha256::{Job, Lanes, Stream};
use crate::{BlobKind, Error, Id, Result};

/// The sealed header's length stands in the last bytes of a pack.
pub const TRAILER: usize = 4;
/// Length of a sealed header above which restic refuses a pack.
pub const MAX_HEADER: usize = 16 << 20;
/// Entries that surely fit into a header.
pub const MAX_ENTRIES: usize = (MAX_HEADER - OVERHEAD) / COMPRESSED_ENTRY;
/// Where restic closes a pack by default.
pub const DEFAULT_SIZE: u32 = 16 << 20;

const PLAIN_ENTRY: usize = 37;
const COMPRESSED_ENTRY: usize = 41;

/// A blob within a pack: an entry of the pack's header, and of the index.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackedBlob {
    /// What the blob holds.
    pub kind: BlobKind,
    /// SHA-256 of the plain bytes.
    pub id: Id,
    /// First byte within the pack.
    pub offset: u32,
    /// Sealed length.
    pub length: u32,
    /// Plain length, if the blob is compressed.
    pub raw_length: Option<u32>,
}

impl PackedBlob {
    /// Plain length.
    pub fn plain_length(&self) -> u32 {
        self.raw_length.unwrap_or(self.length.saturating_sub(OVERHEAD as u32))
    }

    /// First byte behind the blob.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }

    /// Where it lies, in a pack of this number.
    pub(crate) fn at(&self, pack: PackNo) -> Location {
        Location { pack, offset: self.offset, length: self.length, raw_length: self.raw_length }
    }

    /// Bytes of the entry in a header.
    fn entry_length(&self) -> usize {
        if self.raw_length.is_some() { COMPRESSED_ENTRY } else { PLAIN_ENTRY }
    }
}

/// What one worker needs to turn plain bytes into stored ones.
pub struct Sealer {
    key: Arc<MasterKey>,
    nonces: Nonces,
    compressor: Compressor,
    compress_data: bool,
}

impl Sealer {
    /// A sealer that compresses at `level`; without one, blobs of data are stored uncompressed, and the rest is
    /// compressed at the default level, as restic's `--compression off` does.
    pub fn new(key: Arc<MasterKey>, level: Option<i32>) -> Result<Self> {
        let compressor = Compressor::new(level.unwrap_or(crate::compress::DEFAULT_LEVEL))?;
        Ok(Sealer { key, nonces: Nonces::new(), compressor, compress_data: level.is_some() })
    }

    /// Changes the level for the blobs to come.
    pub fn set_level(&mut self, level: i32) -> Result<()> {
        self.compressor.set_level(level)
    }

    /// Appends a sealed blob to `out`; yields its plain length if it was compressed. Data that does not become
    /// smaller is stored as it is.
    pub fn seal_blob(&mut self, kind: BlobKind, plain: &[u8], out: &mut Vec<u8>) -> Result<Option<u32>> {
        let too_long = || Error::BadParameter { what: "blob", detail: "it is longer than 4 GiB".into() };
        let raw_length = u32::try_from(plain.len()).map_err(|_| too_long())?;
        let start = out.len();
        if kind == BlobKind::Data && !self.compress_data {
            self.key.seal_into(&mut self.nonces, plain, out)?;
            return Ok(None);
        }
        out.extend_from_slice(&[0; IV_LEN]);
        self.compressor.append(plain, out)?;
        if kind == BlobKind::Data && out.len() - start - IV_LEN >= plain.len() {
            // Nothing is won, and whoever reads it would copy it once more.
            out.truncate(start);
            self.key.seal_into(&mut self.nonces, plain, out)?;
            return Ok(None);
        }
        self.key.seal_in_place(&mut self.nonces, out, start)?;
        Ok(Some(raw_length))
    }

    /// Appends sealed `plain`, uncompressed, to `out`.
    pub fn seal_plain(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        self.key.seal_into(&mut self.nonces, plain, out)
    }

    /// Appends sealed `mark` ‖ zstd frame of `plain` to `out`.
    pub fn seal_marked(&mut self, mark: u8, plain: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let start = out.len();
        out.extend_from_slice(&[0; IV_LEN]);
        out.push(mark);
        self.compressor.append(plain, out)?;
        self.key.seal_in_place(&mut self.nonces, out, start)
    }
}

/// Where the plain bytes of a blob lie.
#[derive(Debug)]
pub enum Plain<'a> {
    /// Where they were sealed.
    InPlace(&'a [u8]),
    /// In what was appended to.
    Appended(Range<usize>),
}

impl<'a> Plain<'a> {
    /// The bytes; `out` is what was appended to.
    pub fn bytes(self, out: &'a [u8]) -> &'a [u8] {
        match self {
            Plain::InPlace(bytes) => bytes,
            Plain::Appended(range) => &out[range],
        }
    }
}

/// What one worker needs to turn stored bytes into plain ones.
pub struct Opener {
    key: Arc<MasterKey>,
    decompressor: Decompressor,
    text: Vec<u8>,
    plain: Vec<u8>,
}

impl Opener {
    /// An opener.
    pub fn new(key: Arc<MasterKey>) -> Result<Self> {
        Ok(Opener { key, decompressor: Decompressor::new()?, text: Vec::new(), plain: Vec::new() })
    }

    /// Decrypts, authenticates and decompresses a blob; `sealed` is spent. What was compressed is appended to `out`.
    /// Whether the bytes are what `blob.id` names is left to the caller, who may hash several at once;
    /// [`open`](Self::open) does both.
    pub fn open_unverified<'a>(
        &mut self,
        blob: &PackedBlob,
        sealed: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Plain<'a>> {
        check_lengths(blob, sealed)?;
        let text = self.key.open_in_place(sealed).map_err(|error| error.named(blob.id))?;
        match blob.raw_length {
            None => Ok(Plain::InPlace(text)),
            Some(_) => self.expand(blob, text, out).map(Plain::Appended),
        }
    }

    /// Decrypts and authenticates a blob whose sealed bytes have to stay; what was sealed is appended to `out`.
    pub fn text(&mut self, blob: &PackedBlob, sealed: &[u8], out: &mut Vec<u8>) -> Result<Range<usize>> {
        check_lengths(blob, sealed)?;
        let start = out.len();
        self.key.open_copy(sealed, out).map_err(|error| error.named(blob.id))?;
        Ok(start..out.len())
    }

    /// Appends to `out` what the text of a blob was compressed from.
    pub fn expand(&mut self, blob: &PackedBlob, text: &[u8], out: &mut Vec<u8>) -> Result<Range<usize>> {
        let (start, length) = (out.len(), blob.plain_length() as usize);
        match self.decompressor.append(text, length, out) {
            Ok(()) => Ok(start..out.len()),
            Err(error) => {
                out.truncate(start);
                Err(error.named(blob.id))
            }
        }
    }

    /// As [`open_unverified`](Self::open_unverified), for callers who compare the hash before anything else looks at the
    /// bytes: a blob that is not compressed is not authenticated besides, which would prove nothing more.
    pub(crate) fn open_for_hash<'a>(
        &mut self,
        blob: &PackedBlob,
        sealed: &'a mut [u8],
        out: &mut Vec<u8>,
    ) -> Result<Plain<'a>> {
        if blob.raw_length.is_some() {
            return self.open_unverified(blob, sealed, out);
        }
        check_lengths(blob, sealed)?;
        self.key
            .decrypt_in_place(sealed)
            .map(|plain| Plain::InPlace(plain))
            .map_err(|error| error.named(blob.id))
    }

    /// As [`open_unverified`](Self::open_unverified), and checks that the bytes are those that the id names. `out` is
    /// cleared first.
    pub fn open<'a>(
        &mut self,
        blob: &PackedBlob,
        sealed: &'a mut [u8],
        out: &'a mut Vec<u8>,
    ) -> Result<&'a [u8]> {
        out.clear();
        let plain = self.open_unverified(blob, sealed, out)?.bytes(out);
        if Id::of(plain) != blob.id {
            return Err(Error::damaged("blob", "its content has another hash").named(blob.id));
        }
        Ok(plain)
    }

    /// Proves that a blob just sealed opens to `plain` again: a guard against a failing memory or compressor.
    pub fn prove(&mut self, sealed: &[u8], raw_length: Option<u32>, plain: &[u8]) -> Result<()> {
        self.text.clear();
        self.key.open_copy(sealed, &mut self.text)?;
        let same = match raw_length {
            None => self.text == plain,
            Some(length) => {
                self.decompressor.exactly(&self.text, length as usize, &mut self.plain)?;
                self.plain == plain
            }
        };
        if same {
            Ok(())
        } else {
            Err(Error::damaged("blob", "what was just sealed does not open to the same bytes"))
        }
    }

    /// Proves that a blob just sealed opens to `text` again.
    pub fn prove_text(&mut self, sealed: &[u8], text: &[u8]) -> Result<()> {
        self.prove(sealed, None, text)
    }

    /// Proves that the header of a pack just closed names the pack's blobs.
    pub fn prove_header(&self, pack: &ClosedPack) -> Result<()> {
        let PackBuilder { bytes, blobs, .. } = &pack.0;
        match read_header(&self.key, bytes.len() as u64, bytes)? {
            Header::Blobs(read) if read == *blobs => Ok(()),
            _ => Err(Error::damaged("pack header", "what was just sealed does not name the pack's blobs")),
        }
    }

    /// Opens a sealed text in place.
    pub fn open_plain<'a>(&self, sealed: &'a mut [u8]) -> Result<&'a mut [u8]> {
        self.key.open_in_place(sealed)
    }

    /// Decompresses a frame of unknown length to at most `limit` bytes.
    pub fn decompress(&mut self, frame: &[u8], limit: usize) -> Result<Vec<u8>> {
        self.decompressor.at_most(frame, limit)
    }
}

/// Refuses a blob that is longer than any reader takes, or than its sealed bytes.
fn check_lengths(blob: &PackedBlob, sealed: &[u8]) -> Result<()> {
    let bound = blob.kind.max_length();
    if blob.plain_length() > bound {
        let detail = format!("{} bytes, at most {bound} are taken", blob.plain_length()).into();
        return Err(Error::BadParameter { what: "blob", detail });
    }
    if sealed.len() != blob.length as usize {
        return Err(Error::damaged("blob", "it has another length than the index says").named(blob.id));
    }
    Ok(())
}

/// A pack that is being filled.
pub struct PackBuilder {
    kind: BlobKind,
    bytes: Vec<u8>,
    blobs: Vec<PackedBlob>,
    header_length: usize,
    hash: Stream,
    hashed: usize,
}

/// A complete pack, ready to be stored under its id.
#[derive(Debug)]
pub struct FinishedPack {
    /// SHA-256 of `bytes`.
    pub id: Id,
    /// What the pack's blobs hold: both kinds never share a pack.
    pub kind: BlobKind,
    /// The pack.
    pub bytes: Vec<u8>,
    /// What the index says about it.
    pub blobs: Vec<PackedBlob>,
}

impl PackBuilder {
    /// An empty pack for blobs of `kind` with room for `capacity` bytes.
    pub fn new(kind: BlobKind, capacity: usize) -> Self {
        PackBuilder::reuse(kind, Vec::with_capacity(capacity))
    }

    /// As [`new`](Self::new), in a buffer that an earlier pack has left.
    pub fn reuse(kind: BlobKind, mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        PackBuilder { kind, bytes, blobs: Vec::new(), header_length: 0, hash: Stream::new(), hashed: 0 }
    }

    /// What the blobs hold.
    pub fn kind(&self) -> BlobKind {
        self.kind
    }

    /// Length so far, without the header.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no blob yet.
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// The blobs so far.
    pub fn blobs(&self) -> &[PackedBlob] {
        &self.blobs
    }

    /// Whether the pack has reached `size` or as many blobs as a header takes.
    pub fn is_full(&self, size: u32) -> bool {
        self.bytes.len() >= size as usize || self.blobs.len() >= MAX_ENTRIES
    }

    /// Whether all blobs of another pack can be added without passing `size` or what a header takes.
    pub fn has_room_for(&self, other: &PackBuilder, size: u32) -> bool {
        self.bytes.len() + other.bytes.len() <= size as usize
            && self.blobs.len() + other.blobs.len() <= MAX_ENTRIES
    }

    /// Compresses and seals `plain`, whose name is `id`, at the end of the pack.
    pub fn add(&mut self, sealer: &mut Sealer, id: Id, plain: &[u8]) -> Result<PackedBlob> {
        let offset = self.bytes.len();
        let raw_length = sealer.seal_blob(self.kind, plain, &mut self.bytes)?;
        self.entry(id, offset, raw_length)
    }

    /// Seals `text`, which is compressed already if `raw_length` says from what length, at the end of the pack.
    pub fn add_text(
        &mut self,
        sealer: &mut Sealer,
        id: Id,
        text: &[u8],
        raw_length: Option<u32>,
    ) -> Result<PackedBlob> {
        let offset = self.bytes.len();
        sealer.seal_plain(text, &mut self.bytes)?;
        self.entry(id, offset, raw_length)
    }

    /// Copies a blob that is sealed already, as a repack does.
    pub fn add_sealed(&mut self, id: Id, sealed: &[u8], raw_length: Option<u32>) -> Result<PackedBlob> {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(sealed);
        self.entry(id, offset, raw_length)
    }

    fn entry(&mut self, id: Id, offset: usize, raw_length: Option<u32>) -> Result<PackedBlob> {
        let length = self.bytes.len() - offset;
        let (Ok(offset), Ok(length), true) = (
            u32::try_from(offset),
            u32::try_from(length),
            u32::try_from(self.bytes.len() + MAX_HEADER + TRAILER).is_ok() && self.blobs.len() < MAX_ENTRIES,
        ) else {
            self.bytes.truncate(offset);
            return Err(Error::Broken("a pack was filled beyond its limits"));
        };
        let blob = PackedBlob { kind: self.kind, id, offset, length, raw_length };
        self.header_length += blob.entry_length();
        self.blobs.push(blob);
        Ok(blob)
    }

    /// The sealed bytes of a blob of this pack.
    pub fn sealed(&self, blob: &PackedBlob) -> &[u8] {
        &self.bytes[blob.offset as usize..blob.end() as usize]
    }

    /// The part of the pack that is not hashed yet, as a job that rides along with other hashing.
    pub fn hash_job(&mut self) -> Job<'_> {
        let data = &self.bytes[self.hashed..];
        self.hashed = self.bytes.len();
        Job::new(&mut self.hash, data)
    }

    /// Bytes that [`hash_job`](Self::hash_job) would hash.
    pub fn unhashed(&self) -> usize {
        self.bytes.len() - self.hashed
    }

    /// Writes the header; what is not hashed yet is left to [`ClosedPack::finish`].
    pub fn close(mut self, sealer: &mut Sealer) -> Result<ClosedPack> {
        let mut header = Vec::with_capacity(self.header_length);
        for blob in &self.blobs {
            let kind = u8::from(blob.kind == BlobKind::Tree) | if blob.raw_length.is_some() { 2 } else { 0 };
            header.push(kind);
            header.extend_from_slice(&blob.length.to_le_bytes());
            if let Some(length) = blob.raw_length {
                header.extend_from_slice(&length.to_le_bytes());
            }
            header.extend_from_slice(blob.id.as_bytes());
        }
        let start = self.bytes.len();
        sealer.seal_plain(&header, &mut self.bytes)?;
        let length = (self.bytes.len() - start) as u32;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        Ok(ClosedPack(self))
    }

    /// Writes the header and hashes the rest.
    pub fn finish(self, sealer: &mut Sealer, lanes: Lanes) -> Result<FinishedPack> {
        let mut closed = self.close(sealer)?;
        lanes.run(&mut [closed.hash_job()]);
        Ok(closed.finish())
    }
}

/// A pack with its header, whose name is not known before all of it is hashed.
pub struct ClosedPack(PackBuilder);

impl ClosedPack {
    /// As [`PackBuilder::hash_job`].
    pub fn hash_job(&mut self) -> Job<'_> {
        self.0.hash_job()
    }

    /// The pack and its name.
    pub fn finish(mut self) -> FinishedPack {
        if self.0.unhashed() > 0 {
            Lanes::off().run(&mut [self.hash_job()]);
        }
        let PackBuilder { kind, bytes, blobs, hash, .. } = self.0;
        FinishedPack { id: Id::from_bytes(hash.finish()), kind, bytes, blobs }
    }
}

/// How many bytes of a pack's end hold its header, by its last four bytes: the sealed header and the trailer.
pub fn header_length(pack_length: u64, trailer: [u8; TRAILER]) -> Result<usize> {
    let length = u32::from_le_bytes(trailer) as usize;
    if !(OVERHEAD + PLAIN_ENTRY..=MAX_HEADER).contains(&length) {
        return Err(Error::damaged("pack", format!("its header would have {length} bytes")));
    }
    let length = length + TRAILER;
    if length as u64 > pack_length {
        return Err(Error::damaged("pack", format!("its header is longer than its {pack_length} bytes")));
    }
    Ok(length)
}

/// What the end of a pack tells.
#[derive(Debug, PartialEq)]
pub enum Header {
    /// The blobs, in the pack's order.
    Blobs(Vec<PackedBlob>),
    /// The header is longer: this many of the last bytes are needed.
    Needs(usize),
}

/// Reads the header from a pack's last bytes, of which there may be more or fewer than needed.
pub fn read_header(key: &MasterKey, pack_length: u64, tail: &[u8]) -> Result<Header> {
    let Some(trailer) = tail.last_chunk::<TRAILER>() else {
        return Err(Error::damaged("pack", "it is shorter than its trailer"));
    };
    let length = header_length(pack_length, *trailer)?;
    let Some(start) = tail.len().checked_sub(length) else { return Ok(Header::Needs(length)) };
    let mut sealed = tail[start..tail.len() - TRAILER].to_vec();
    let plain = key.open_in_place(&mut sealed)?;
    parse_header(plain, pack_length - length as u64).map(Header::Blobs)
}

/// Reads a header in plain; the blobs have to fill the pack's first `data_length` bytes exactly.
pub fn parse_header(mut plain: &[u8], data_length: u64) -> Result<Vec<PackedBlob>> {
    let damaged = |detail| Error::damaged("pack header", detail);
    let mut blobs = Vec::with_capacity(plain.len() / PLAIN_ENTRY);
    let mut offset = 0u64;
    while let Some((mark, rest)) = plain.split_first() {
        let (kind, compressed) = match mark {
            0 => (BlobKind::Data, false),
            1 => (BlobKind::Tree, false),
            2 => (BlobKind::Data, true),
            3 => (BlobKind::Tree, true),
            _ => return Err(damaged("an entry is of an unknown type")),
        };
        let cut = || damaged("it ends within an entry");
        let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
        let (raw_length, rest) = match compressed {
            false => (None, rest),
            true => {
                let (length, rest) = rest.split_first_chunk().ok_or_else(cut)?;
                (Some(u32::from_le_bytes(*length)), rest)
            }
        };
        let (id, rest) = rest.split_first_chunk().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length);
        if (length as usize) < OVERHEAD {
            return Err(damaged("a blob is shorter than its seal"));
        }
        let at = u32::try_from(offset).map_err(|_| damaged("a blob begins behind 4 GiB"))?;
        blobs.push(PackedBlob { kind, id: Id::from_bytes(*id), offset: at, length, raw_length });
        offset += u64::from(length);
        plain = rest;
    }
    if offset != data_length {
        return Err(damaged("its blobs do not fill the pack"));
    }
    Ok(blobs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_packs_become_one_only_if_their_entries_fit_into_one_header() {
        let pack = |entries: usize| {
            let mut pack = PackBuilder::new(BlobKind::Data, 0);
            for _ in 0..entries {
                pack.add_sealed(Id::of(b"x"), &[0; OVERHEAD], Some(1)).unwrap();
            }
            pack
        };
        let (half, more) = (pack(MAX_ENTRIES / 2), pack(MAX_ENTRIES / 2 + 2));
        assert!(half.has_room_for(&half, 128 << 20));
        assert!(!half.has_room_for(&more, 128 << 20), "entries");
        assert!(!half.has_room_for(&half, DEFAULT_SIZE / 2), "bytes");
    }

    #[test]
    fn a_header_that_was_sealed_wrongly_is_noticed() {
        let key = key();
        let (mut sealer, opener) = (Sealer::new(key.clone(), Some(3)).unwrap(), Opener::new(key).unwrap());
        let closed = |sealer: &mut Sealer| {
            let mut pack = PackBuilder::new(BlobKind::Data, 1 << 10);
            pack.add(sealer, Id::of(b"one"), b"one").unwrap();
            pack.close(sealer).unwrap()
        };
        opener.prove_header(&closed(&mut sealer)).unwrap();
        let mut bit = closed(&mut sealer);
        let last = bit.0.bytes.len() - TRAILER - 1;
        bit.0.bytes[last] ^= 1;
        opener.prove_header(&bit).unwrap_err();
        let mut other = closed(&mut sealer);
        other.0.blobs[0].id = Id::of(b"two");
        opener.prove_header(&other).unwrap_err();
    }

    fn key() -> Arc<MasterKey> {
        Arc::new(MasterKey::generate().unwrap())
    }

    fn filled(key: &Arc<MasterKey>, level: Option<i32>) -> (FinishedPack, Vec<Vec<u8>>) {
        let mut sealer = Sealer::new(key.clone(), level).unwrap();
        let mut builder = PackBuilder::new(BlobKind::Data, 1000);
        let texts: Vec<Vec<u8>> = [1usize, 20, 5000, 300_000].iter().map(|n| vec![*n as u8; *n]).collect();
        let lanes = Lanes::detect();
        for text in &texts {
            builder.add(&mut sealer, Id::of(text), text).unwrap();
            lanes.run(&mut [builder.hash_job()]);
        }
        (builder.finish(&mut sealer, lanes).unwrap(), texts)
    }

    #[test]
    fn what_was_packed_is_found_by_the_header_and_opens() {
        for level in [None, Some(3)] {
            let key = key();
            let (pack, texts) = filled(&key, level);
            assert_eq!(Id::of(&pack.bytes), pack.id);
            let Header::Blobs(blobs) = read_header(&key, pack.bytes.len() as u64, &pack.bytes).unwrap()
            else {
                panic!("the whole pack is there")
            };
            assert_eq!(blobs, pack.blobs);
            let mut opener = Opener::new(key).unwrap();
            for (blob, text) in blobs.iter().zip(&texts) {
                assert_eq!(blob.plain_length() as usize, text.len());
                // One byte does not become smaller.
                assert_eq!(blob.raw_length.is_some(), level.is_some() && text.len() > 1);
                let mut sealed = pack.bytes[blob.offset as usize..blob.end() as usize].to_vec();
                opener.prove(&sealed, blob.raw_length, text).unwrap();
                assert!(opener.prove(&sealed, blob.raw_length, &text[1..]).is_err());
                assert_eq!(opener.open(blob, &mut sealed, &mut Vec::new()).unwrap(), text);
            }
        }
    }

    #[test]
    fn a_short_tail_names_what_it_needs() {
        let key = key();
        let (pack, _) = filled(&key, Some(1));
        let total = pack.bytes.len() as u64;
        let Header::Needs(needed) = read_header(&key, total, &pack.bytes[total as usize - 10..]).unwrap()
        else {
            panic!("ten bytes are no header")
        };
        assert_eq!(needed, PLAIN_ENTRY + 3 * COMPRESSED_ENTRY + OVERHEAD + TRAILER);
        let tail = &pack.bytes[pack.bytes.len() - needed..];
        assert!(matches!(read_header(&key, total, tail), Ok(Header::Blobs(blobs)) if blobs.len() == 4));
        assert!(read_header(&key, total + 1, tail).is_err());
    }

    #[test]
    fn lengths_that_lie_are_damage() {
        assert!(header_length(100, 0u32.to_le_bytes()).is_err());
        assert!(header_length(100, u32::MAX.to_le_bytes()).is_err());
        assert!(header_length(100, 97u32.to_le_bytes()).is_err());
        assert_eq!(header_length(100, 96u32.to_le_bytes()).unwrap(), 100);
        let entry = |mark: u8, length: u32| [&[mark][..], &length.to_le_bytes(), &[7; 32]].concat();
        assert_eq!(parse_header(&entry(0, 40), 40).unwrap()[0].plain_length(), 8);
        for (entry, data) in [(entry(0, 31), 31), (entry(4, 40), 40), (entry(2, 40), 40), (entry(0, 40), 41)]
        {
            assert!(parse_header(&entry, data).is_err());
        }
        let huge = [entry(0, u32::MAX), entry(0, 40), entry(0, 40)].concat();
        assert!(parse_header(&huge, u64::from(u32::MAX) + 80).is_err());
    }

    #[test]
    fn a_blob_that_is_not_what_its_id_says_is_damage() {
        let key = key();
        let (pack, _) = filled(&key, Some(1));
        let mut blob = pack.blobs[2];
        let sealed = || pack.bytes[blob.offset as usize..blob.end() as usize].to_vec();
        let (mut first, mut second, mut third) = (sealed(), sealed(), sealed());
        let mut opener = Opener::new(key).unwrap();
        blob.id = Id::of(b"another");
        assert!(opener.open(&blob, &mut first, &mut Vec::new()).is_err());
        blob.raw_length = Some(4999);
        assert!(opener.open_unverified(&blob, &mut second, &mut Vec::new()).is_err());
        blob.raw_length = Some(u32::MAX);
        let mut out = Vec::new();
        let refused = opener.open_unverified(&blob, &mut third, &mut out);
        assert!(matches!(refused, Err(Error::BadParameter { .. })));
    }
}
