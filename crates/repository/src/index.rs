//! The index: which blob lies where; as files of JSON in the repository, and as a sorted table in memory.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use crate::idset::IdSet;
use crate::json::{self, Scanner};
use crate::pack::PackedBlob;
use crate::{BlobKind, Error, Id, Result};

/// Blobs after which restic closes an index file.
pub const BLOBS_PER_FILE: usize = 50_000;

/// An index file that is being written.
#[derive(Debug)]
pub struct IndexFile {
    json: Vec<u8>,
    blobs: usize,
    packs: usize,
}

impl IndexFile {
    /// An empty index file.
    pub fn new() -> Self {
        IndexFile { json: b"{\"packs\":[".to_vec(), blobs: 0, packs: 0 }
    }

    /// Adds a pack.
    pub fn add(&mut self, pack: &Id, blobs: &[PackedBlob]) {
        let out = &mut self.json;
        let text = |out: &mut Vec<u8>, text: &str| out.extend_from_slice(text.as_bytes());
        if self.packs > 0 {
            out.push(b',');
        }
        text(out, "{\"id\":\"");
        out.extend_from_slice(&pack.hex());
        text(out, "\",\"blobs\":[");
        for (i, blob) in blobs.iter().enumerate() {
            text(out, if i == 0 { "{\"id\":\"" } else { ",{\"id\":\"" });
            out.extend_from_slice(&blob.id.hex());
            text(out, "\",\"type\":\"");
            text(out, blob.kind.as_str());
            text(out, "\",\"offset\":");
            json::write_u64(blob.offset.into(), out);
            text(out, ",\"length\":");
            json::write_u64(blob.length.into(), out);
            if let Some(length) = blob.raw_length {
                text(out, ",\"uncompressed_length\":");
                json::write_u64(length.into(), out);
            }
            out.push(b'}');
        }
        text(out, "]}");
        self.packs += 1;
        self.blobs += blobs.len();
    }

    /// Number of blobs.
    pub fn len(&self) -> usize {
        self.blobs
    }

    /// Whether no pack is in it.
    pub fn is_empty(&self) -> bool {
        self.packs == 0
    }

    /// Whether it has as many blobs as one file should.
    pub fn is_full(&self) -> bool {
        self.blobs >= BLOBS_PER_FILE
    }

    /// The file's JSON.
    pub fn finish(mut self) -> Vec<u8> {
        self.json.extend_from_slice(b"]}\n");
        self.json
    }
}

impl Default for IndexFile {
    fn default() -> Self {
        IndexFile::new()
    }
}

/// Reads an index file: calls `found` for each blob with its pack's id.
pub fn parse(json: &[u8], mut found: impl FnMut(&Id, PackedBlob)) -> Result<()> {
    let mut blobs = Vec::new();
    let mut read = || {
        let mut scanner = Scanner::new(json);
        scanner.object(|scanner, key| match key {
            b"packs" if scanner.take_null() => Ok(()),
            b"packs" => scanner.array(|scanner| {
                let pack = read_pack(scanner, &mut blobs)?;
                blobs.drain(..).for_each(|blob| found(&pack, blob));
                Ok(())
            }),
            _ => scanner.skip().map(|_| ()),
        })?;
        scanner.end()
    };
    read().map_err(|error: json::JsonError| error.of("index"))
}

fn read_pack(scanner: &mut Scanner<'_>, blobs: &mut Vec<PackedBlob>) -> json::JsonResult<Id> {
    let mut pack = None;
    scanner.object(|scanner, key| {
        match key {
            b"id" => pack = Some(scanner.id()?),
            b"blobs" if scanner.take_null() => (),
            b"blobs" => scanner.array(|scanner| {
                blobs.push(read_blob(scanner)?);
                Ok(())
            })?,
            _ => drop(scanner.skip()?),
        }
        Ok(())
    })?;
    match pack {
        Some(id) => Ok(id),
        None => scanner.error("the pack's id"),
    }
}

fn read_blob(scanner: &mut Scanner<'_>) -> json::JsonResult<PackedBlob> {
    let start = scanner.clone();
    if let Some(blob) = read_blob_as_written(scanner) {
        return Ok(blob);
    }
    *scanner = start;
    let (mut id, mut kind, mut offset, mut length, mut raw_length) = (None, None, None, None, None);
    scanner.object(|scanner, key| {
        match key {
            b"id" => id = Some(scanner.id()?),
            b"type" => {
                kind = match &*scanner.string()? {
                    b"data" => Some(BlobKind::Data),
                    b"tree" => Some(BlobKind::Tree),
                    _ => return scanner.error("data or tree"),
                }
            }
            b"offset" => offset = Some(scanner.u32()?),
            b"length" => length = Some(scanner.u32()?),
            b"uncompressed_length" => raw_length = Some(scanner.u32()?).filter(|length| *length > 0),
            _ => drop(scanner.skip()?),
        }
        Ok(())
    })?;
    match (id, kind, offset, length) {
        (Some(id), Some(kind), Some(offset), Some(length)) if length >= crate::crypto::OVERHEAD as u32 => {
            Ok(PackedBlob { kind, id, offset, length, raw_length })
        }
        _ => scanner.error("id, type, offset and length of a blob"),
    }
}

/// [`read_blob`], if it is written exactly as restic, rustic and we write it.
fn read_blob_as_written(scanner: &mut Scanner<'_>) -> Option<PackedBlob> {
    let took = |scanner: &mut Scanner<'_>, text: &[u8]| scanner.take_literally(text).then_some(());
    took(scanner, b"{\"id\":\"")?;
    let id = scanner.rest_of_id()?;
    took(scanner, b",\"type\":\"")?;
    let kind = if scanner.take_literally(b"data\"") {
        BlobKind::Data
    } else {
        took(scanner, b"tree\"")?;
        BlobKind::Tree
    };
    took(scanner, b",\"offset\":")?;
    let offset = scanner.u32().ok()?;
    took(scanner, b",\"length\":")?;
    let length = scanner.u32().ok().filter(|length| *length >= crate::crypto::OVERHEAD as u32)?;
    let mut raw_length = None;
    if scanner.take_literally(b",\"uncompressed_length\":") {
        raw_length = Some(scanner.u32().ok()?).filter(|length| *length > 0);
    }
    took(scanner, b"}")?;
    Some(PackedBlob { kind, id, offset, length, raw_length })
}

/// The number of a pack within one [`Index`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct PackNo(u32);

impl PackNo {
    /// The number, from 0.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a blob lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Location {
    /// The pack, by its number in the index that answered.
    pub pack: PackNo,
    /// First byte within the pack.
    pub offset: u32,
    /// Sealed length.
    pub length: u32,
    /// Plain length, if the blob is compressed.
    pub raw_length: Option<u32>,
}

impl Location {
    /// The blob, as it stands in its pack.
    pub fn blob(&self, kind: BlobKind, id: Id) -> PackedBlob {
        PackedBlob { kind, id, offset: self.offset, length: self.length, raw_length: self.raw_length }
    }
}

/// A row of the table: 48 bytes. Rows of trees and of data are in tables of their own.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Row {
    id: Id,
    pack: u32,
    offset: u32,
    length: u32,
    /// 0 stands for "not compressed": an empty blob is never stored.
    raw_length: u32,
}

impl Row {
    fn location(&self) -> Location {
        Location {
            pack: PackNo(self.pack),
            offset: self.offset,
            length: self.length,
            raw_length: (self.raw_length > 0).then_some(self.raw_length),
        }
    }

    fn blob(&self, kind: BlobKind) -> PackedBlob {
        self.location().blob(kind, self.id)
    }
}

/// Everything that the index files say, sorted by id; it does not change.
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<Id>,
    data: Table,
    trees: Table,
}

/// Rows by id, and where to look: for each beginning of an id, the first row that has it. Ids are uniform, so
/// that each beginning has about eight rows; a hostile repository can make that more, which a binary search
/// takes well.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<Row>,
    starts: Box<[u32]>,
    /// How many bits of an id are no part of its beginning.
    shift: u32,
}

impl Table {
    /// Sorts in place and drops what is said twice.
    fn new(mut rows: Vec<Row>) -> Self {
        rows.sort_unstable_by(|a, b| {
            (a.id.leading().cmp(&b.id.leading()))
                .then_with(|| a.id.cmp(&b.id))
                .then_with(|| (a.pack, a.offset).cmp(&(b.pack, b.offset)))
        });
        rows.dedup();
        let count = u32::try_from(rows.len()).expect("the builder takes fewer rows than 2^32");
        let bits = (count / 8).checked_ilog2().unwrap_or(0) + 1;
        let shift = u64::BITS - bits;
        let mut starts = Vec::with_capacity((1 << bits) + 1);
        for (row, at) in rows.iter().zip(0..) {
            let beginning = (row.id.leading() >> shift) as usize;
            if starts.len() <= beginning {
                starts.resize(beginning + 1, at);
            }
        }
        starts.resize((1 << bits) + 1, count);
        Table { rows, starts: starts.into(), shift }
    }

    /// The first row with this id.
    fn find(&self, id: &Id) -> Option<usize> {
        let beginning = (id.leading() >> self.shift) as usize;
        let (start, end) = (*self.starts.get(beginning)? as usize, *self.starts.get(beginning + 1)? as usize);
        let at = start + self.rows[start..end].partition_point(|row| row.id < *id);
        (self.rows.get(at)?.id == *id).then_some(at)
    }
}

/// Collects index files into an [`Index`].
#[derive(Default)]
pub struct IndexBuilder {
    packs: Vec<Id>,
    data: Vec<Row>,
    trees: Vec<Row>,
    numbers: HashMap<Id, u32, FirstBytes>,
    last: Option<(Id, u32)>,
}

impl IndexBuilder {
    /// Nothing yet.
    pub fn new() -> Self {
        IndexBuilder::default()
    }

    /// Adds the JSON of an index file. A pack that several files name is one pack.
    pub fn add_file(&mut self, json: &[u8]) -> Result<()> {
        let mut full = false;
        parse(json, |pack, blob| full |= self.add(pack, &blob).is_err())?;
        if full { Err(too_many()) } else { Ok(()) }
    }

    /// Adds one blob.
    pub fn add(&mut self, pack: &Id, blob: &PackedBlob) -> Result<()> {
        let number = match self.last {
            Some((last, number)) if last == *pack => number,
            _ => {
                let next = u32::try_from(self.packs.len()).map_err(|_| too_many())?;
                let number = *self.numbers.entry(*pack).or_insert(next);
                if number == next {
                    self.packs.push(*pack);
                }
                self.last = Some((*pack, number));
                number
            }
        };
        let PackedBlob { id, offset, length, .. } = *blob;
        let row = Row { id, pack: number, offset, length, raw_length: blob.raw_length.unwrap_or(0) };
        let rows = match blob.kind {
            BlobKind::Data => &mut self.data,
            BlobKind::Tree => &mut self.trees,
        };
        if rows.len() >= u32::MAX as usize {
            return Err(too_many());
        }
        rows.push(row);
        Ok(())
    }

    /// The index of everything added. Rows are sorted where they are.
    pub fn finish(self) -> Index {
        let IndexBuilder { packs, data, trees, .. } = self;
        Index { packs, data: Table::new(data), trees: Table::new(trees) }
    }
}

#[cold]
fn too_many() -> Error {
    Error::BadParameter { what: "index", detail: "it names more than 2^32 packs or blobs".into() }
}

impl Index {
    /// An index without blobs.
    pub fn empty() -> Self {
        Index::default()
    }

    /// Where a blob lies; any of several places.
    pub fn lookup(&self, kind: BlobKind, id: &Id) -> Option<Location> {
        let table = self.table(kind);
        table.find(id).map(|i| table.rows[i].location())
    }

    /// Everywhere a blob lies.
    pub fn lookup_all(&self, kind: BlobKind, id: &Id) -> impl Iterator<Item = Location> {
        let table = self.table(kind);
        let start = table.find(id).unwrap_or(table.rows.len());
        let id = *id;
        table.rows[start..].iter().take_while(move |row| row.id == id).map(Row::location)
    }

    /// Whether the blob is stored.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.table(kind).find(id).is_some()
    }

    /// Number of entries of a kind; a blob that is stored twice counts twice.
    pub fn len(&self, kind: BlobKind) -> usize {
        self.table(kind).rows.len()
    }

    /// Whether it names no blob.
    pub fn is_empty(&self) -> bool {
        self.data.rows.is_empty() && self.trees.rows.is_empty()
    }

    /// Packs by number.
    pub fn packs(&self) -> &[Id] {
        &self.packs
    }

    /// The pack of a number that this index gave.
    pub fn pack(&self, number: PackNo) -> Id {
        self.packs[number.index()]
    }

    /// All entries of a kind, by id.
    pub fn blobs(&self, kind: BlobKind) -> impl ExactSizeIterator<Item = (PackNo, PackedBlob)> {
        self.table(kind).rows.iter().map(move |row| (PackNo(row.pack), row.blob(kind)))
    }

    /// All entries by pack and offset; takes 12 bytes per blob while it is in use.
    pub fn by_pack(&self) -> ByPack<'_> {
        let mut order: Vec<(u32, bool, u32)> = Vec::new();
        order.reserve_exact(self.data.rows.len() + self.trees.rows.len());
        for (tree, table) in [(false, &self.data), (true, &self.trees)] {
            order.extend(table.rows.iter().enumerate().map(|(i, row)| (row.pack, tree, i as u32)));
        }
        order.sort_unstable_by_key(|(pack, tree, i)| (*pack, self.row(*tree, *i).offset));
        ByPack { index: self, order, at: 0 }
    }

    /// Stored bytes of all entries, without headers of packs.
    pub fn stored_bytes(&self) -> u64 {
        self.data.rows.iter().chain(&self.trees.rows).map(|row| u64::from(row.length)).sum()
    }

    /// Plain bytes of all entries.
    pub fn plain_bytes(&self) -> u64 {
        let kinds = BlobKind::ALL.into_iter();
        kinds.flat_map(|kind| self.blobs(kind)).map(|(_, blob)| u64::from(blob.plain_length())).sum()
    }

    fn row(&self, tree: bool, i: u32) -> &Row {
        if tree { &self.trees.rows[i as usize] } else { &self.data.rows[i as usize] }
    }

    fn table(&self, kind: BlobKind) -> &Table {
        match kind {
            BlobKind::Data => &self.data,
            BlobKind::Tree => &self.trees,
        }
    }
}

/// Packs with their blobs, by pack number.
pub struct ByPack<'a> {
    index: &'a Index,
    order: Vec<(u32, bool, u32)>,
    at: usize,
}

impl Iterator for ByPack<'_> {
    type Item = (PackNo, Vec<PackedBlob>);

    fn next(&mut self) -> Option<Self::Item> {
        let (pack, ..) = *self.order.get(self.at)?;
        let rest = &self.order[self.at..];
        let length = rest.partition_point(|(other, ..)| *other == pack);
        self.at += length;
        let kind = |tree: bool| if tree { BlobKind::Tree } else { BlobKind::Data };
        let blobs = rest[..length].iter().map(|(_, tree, i)| self.index.row(*tree, *i).blob(kind(*tree)));
        Some((PackNo(pack), blobs.collect()))
    }
}

/// Hashes an id by its first bytes, which are as random as any.
#[derive(Clone, Copy, Default, Debug)]
struct FirstBytes;

struct FirstBytesHasher(u64);

impl BuildHasher for FirstBytes {
    type Hasher = FirstBytesHasher;
    fn build_hasher(&self) -> FirstBytesHasher {
        FirstBytesHasher(0)
    }
}

impl Hasher for FirstBytesHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.0 = u64::from_ne_bytes(*first);
        }
    }
    fn write_usize(&mut self, _length: usize) {}
    fn finish(&self) -> u64 {
        self.0
    }
}

const SHARDS: usize = 64;

/// Which blobs this run has taken upon itself to store; shared by all workers.
pub struct Pending {
    shards: [[Mutex<IdSet>; SHARDS]; 2],
}

impl Pending {
    /// Nothing is claimed.
    pub fn new() -> Self {
        Pending { shards: std::array::from_fn(|_| std::array::from_fn(|_| Mutex::default())) }
    }

    /// Claims a blob: true for the first who asks, who then has to store it.
    pub fn claim(&self, kind: BlobKind, id: &Id) -> bool {
        self.shard(kind, id).lock().unwrap_or_else(PoisonError::into_inner).insert(id)
    }

    /// Whether a blob has been claimed.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.shard(kind, id).lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Number of blobs claimed.
    pub fn len(&self) -> usize {
        let shards = self.shards.iter().flatten();
        shards.map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    /// Whether nothing is claimed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, kind: BlobKind, id: &Id) -> &Mutex<IdSet> {
        // Not the bytes that the set goes by.
        &self.shards[kind as usize][id.as_bytes()[31] as usize % SHARDS]
    }
}

impl Default for Pending {
    fn default() -> Self {
        Pending::new()
    }
}

/// What is stored already, and what this run is storing: whom a writer asks whether a blob is new.
pub struct LiveIndex {
    stored: Arc<Index>,
    pending: Pending,
}

impl LiveIndex {
    /// Upon what the repository holds.
    pub fn new(stored: Arc<Index>) -> Self {
        LiveIndex { stored, pending: Pending::new() }
    }

    /// Whether the caller has to store the blob: it is in no index, and nobody else of this run has claimed it.
    pub fn claim(&self, kind: BlobKind, id: &Id) -> bool {
        !self.stored.contains(kind, id) && self.pending.claim(kind, id)
    }

    /// Whether the blob is stored or claimed.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.stored.contains(kind, id) || self.pending.contains(kind, id)
    }

    /// What the repository held when the run began.
    pub fn stored(&self) -> &Arc<Index> {
        &self.stored
    }

    /// What this run has claimed.
    pub fn pending(&self) -> &Pending {
        &self.pending
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Pack, offset, length and plain length.
    type Place = (Id, u32, u32, Option<u32>);

    fn blob(kind: BlobKind, n: u32, offset: u32) -> PackedBlob {
        let raw_length = (!n.is_multiple_of(3)).then_some(n + 1);
        PackedBlob { kind, id: Id::of(&n.to_le_bytes()), offset, length: 32 + n % 100, raw_length }
    }

    fn file(packs: &[(u32, Vec<PackedBlob>)]) -> Vec<u8> {
        let mut file = IndexFile::new();
        packs.iter().for_each(|(pack, blobs)| file.add(&Id::of(&[*pack as u8, 9]), blobs));
        file.finish()
    }

    fn load(files: &[Vec<u8>]) -> Index {
        let mut builder = IndexBuilder::new();
        files.iter().for_each(|file| builder.add_file(file).unwrap());
        builder.finish()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn the_index_is_a_map_from_kind_and_id_to_places(
            packs in prop::collection::vec((0u32..40, prop::collection::vec((any::<bool>(), 0u32..500), 0..60)), 0..30),
            split in 0usize..30,
        ) {
            let packs: Vec<(u32, Vec<PackedBlob>)> = packs.into_iter().map(|(pack, blobs)| {
                let kind = |tree| if tree { BlobKind::Tree } else { BlobKind::Data };
                (pack, blobs.into_iter().zip(0..).map(|((tree, n), at)| blob(kind(tree), n, at * 200)).collect())
            }).collect();
            let (first, second) = packs.split_at(split.min(packs.len()));
            // The second file comes twice, as after a repair.
            let index = load(&[file(first), file(second), file(second)]);
            let mut expected: HashMap<(BlobKind, Id), HashSet<Place>> = HashMap::new();
            for (pack, blobs) in &packs {
                for blob in blobs {
                    let place = (Id::of(&[*pack as u8, 9]), blob.offset, blob.length, blob.raw_length);
                    expected.entry((blob.kind, blob.id)).or_default().insert(place);
                }
            }
            for n in 0..600u32 {
                for kind in BlobKind::ALL {
                    let id = Id::of(&n.to_le_bytes());
                    let places: Vec<_> = index
                        .lookup_all(kind, &id)
                        .map(|place| (index.pack(place.pack), place.offset, place.length, place.raw_length))
                        .collect();
                    let wanted = expected.get(&(kind, id)).cloned().unwrap_or_default();
                    prop_assert_eq!(places.len(), wanted.len());
                    prop_assert_eq!(places.into_iter().collect::<HashSet<_>>(), wanted.clone());
                    prop_assert_eq!(index.contains(kind, &id), !wanted.is_empty());
                    prop_assert_eq!(index.lookup(kind, &id), index.lookup_all(kind, &id).next());
                }
            }
            let rows: usize = expected.values().map(HashSet::len).sum();
            prop_assert_eq!(index.len(BlobKind::Data) + index.len(BlobKind::Tree), rows);
            let mut seen = HashSet::new();
            let mut by_pack = 0;
            for (pack, blobs) in index.by_pack() {
                prop_assert!(seen.insert(pack));
                prop_assert!(blobs.is_sorted_by_key(|blob| blob.offset));
                by_pack += blobs.len();
                for blob in blobs {
                    let place = (index.pack(pack), blob.offset, blob.length, blob.raw_length);
                    prop_assert!(expected[&(blob.kind, blob.id)].contains(&place));
                }
            }
            prop_assert_eq!(by_pack, rows);
        }
    }

    #[test]
    fn ids_that_are_all_alike_are_found() {
        let id = |n: u16| {
            let mut bytes = [0xab; 32];
            bytes[30..].copy_from_slice(&n.to_be_bytes());
            Id::from_bytes(bytes)
        };
        let mut builder = IndexBuilder::new();
        for n in (0..20_000).step_by(2) {
            builder.add(&Id::of(b"pack"), &PackedBlob { id: id(n), ..blob(BlobKind::Data, 1, 0) }).unwrap();
        }
        let index = builder.finish();
        assert!((0..20_000).all(|n| index.contains(BlobKind::Data, &id(n)) == (n % 2 == 0)));
        for end in [[0; 32], [0xff; 32]] {
            assert!(!index.contains(BlobKind::Data, &Id::from_bytes(end)));
        }
    }

    #[test]
    fn what_others_write_is_read() {
        let id = Id::of(b"");
        let json = r#" {"supersedes":["ID"],"packs":[{"id":"ID","time":"2026-01-01T00:00:00Z","size":7,"blobs":[
            {"type":"tree","id":"ID","uncompressed_length":0,"length":40,"offset":0},
            {"id":"ID","type":"data","offset":40,"length":50,"uncompressed_length":9,"later":{"a":[null,true,-1.5e3,"x\""]}}
            ]},{"id":"ID","blobs":null}],"packs_to_delete":[{"id":"ID","blobs":[]}]} "#
            .replace("ID", &id.to_string());
        let mut found = Vec::new();
        parse(json.as_bytes(), |pack, blob| found.push((*pack, blob))).unwrap();
        let first = PackedBlob { kind: BlobKind::Tree, id, offset: 0, length: 40, raw_length: None };
        let second =
            PackedBlob { kind: BlobKind::Data, offset: 40, length: 50, raw_length: Some(9), ..first };
        assert_eq!(found, [(id, first), (id, second)]);
        for empty in ["{}", r#"{"packs":null}"#, r#"{"packs":[]}"#] {
            parse(empty.as_bytes(), |_, _| panic!("there is none")).unwrap();
        }
    }

    #[test]
    fn damage_is_an_error_and_no_panic() {
        let json = file(&[(1, vec![blob(BlobKind::Data, 1, 0), blob(BlobKind::Tree, 2, 200)])]);
        let mut builder = IndexBuilder::new();
        for end in 0..json.len() - 1 {
            assert!(builder.add_file(&json[..end]).is_err(), "{end}");
        }
        let text = String::from_utf8(json).unwrap();
        for (from, to) in [
            ("\"offset\":0", "\"offset\":4294967296"),
            ("\"offset\":0", "\"offset\":-1"),
            ("\"offset\":0", "\"offset\":0.5"),
            ("\"length\":33", "\"length\":31"),
            (",\"length\":33", ""),
            ("\"data\"", "\"date\""),
            ("packs\":[{\"id", "packs\":[{\"di"),
        ] {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text);
            assert!(builder.add_file(bad.as_bytes()).is_err(), "{bad}");
        }
        let deep = format!("{{\"x\":{}", "[".repeat(1_000_000));
        assert!(builder.add_file(deep.as_bytes()).is_err());
    }

    #[test]
    fn one_of_many_workers_wins_each_claim() {
        let mut builder = IndexBuilder::new();
        builder.add(&Id::of(b"pack"), &blob(BlobKind::Data, 0, 0)).unwrap();
        let live = LiveIndex::new(Arc::new(builder.finish()));
        let id = |n: u32| Id::of(&n.to_le_bytes());
        let won: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..5000).filter(|n| live.claim(BlobKind::Data, &id(*n))).count()))
                .collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(won, 4999);
        assert_eq!(live.pending().len(), 4999);
        assert!(live.contains(BlobKind::Data, &id(0)) && live.contains(BlobKind::Data, &id(4999)));
        assert!(!live.contains(BlobKind::Tree, &id(1)) && live.claim(BlobKind::Tree, &id(0)));
    }
}
