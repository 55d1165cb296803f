//! Collects index files into an [`Index`]: in memory, or through files on disk into one that is mapped.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;

use super::file::parse;
use super::mapped::{Key, Writing};
use super::table::{Place, RowId, Table, dedup, place, sort};
use super::{Index, Location, NamedIn, PackNo};
use crate::pack::PackedBlob;
use crate::{BlobKind, Error, Id, Result};

/// Rows that are numbered together have numbers of 32 bits.
const MOST: usize = u32::MAX as usize - 1;

/// Collects index files into an [`Index`].
#[derive(Default)]
pub struct IndexBuilder {
    packs: Vec<Id>,
    /// By [`BlobKind`].
    rows: [Rows; 2],
    count: usize,
    numbers: HashMap<Id, u32, FirstBytes>,
    last: Option<(Id, u32)>,
    files: Vec<NamedIn>,
    /// What a file names.
    scratch: Vec<(Id, PackedBlob)>,
    /// Where the table is made, if not in memory.
    target: Option<Target>,
}

/// The file that an index becomes.
struct Target {
    path: PathBuf,
    key: Key,
}

impl IndexBuilder {
    /// Nothing yet; what comes is kept in memory.
    pub fn new() -> Self {
        IndexBuilder::default()
    }

    /// Nothing yet; what comes is written to `path`, which appears at the end, and is mapped from there. Temporary files
    /// lie beside it.
    pub(crate) fn mapped(path: PathBuf, key: Key) -> Self {
        let rows =
            || Rows { spill: path.parent().map(|parent| Spill::new(parent.to_owned())), ..Rows::default() };
        let rows = [rows(), rows()];
        IndexBuilder { rows, target: Some(Target { path, key }), ..IndexBuilder::default() }
    }

    /// Adds the JSON of the index file `id`. A pack that several files name is one pack.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is no index file: then nothing of it is added; [`Error::BadParameter`] for more blobs
    /// than can be counted.
    pub fn add_file(&mut self, id: &Id, json: &[u8]) -> Result<()> {
        // What is read of a file before its damage must not be believed.
        let mut all = std::mem::take(&mut self.scratch);
        all.clear();
        parse(json, |pack, blob| all.push((*pack, blob)))?;
        let mut packs = Vec::new();
        for (pack, blob) in &all {
            let number = self.add(pack, blob)?;
            if packs.last() != Some(&number) {
                packs.push(number);
            }
        }
        self.files.push(NamedIn { id: *id, packs, blobs: all.len() });
        self.scratch = all;
        Ok(())
    }

    /// Adds one blob; yields its pack's number.
    ///
    /// # Errors
    /// [`Error::BadParameter`] for more blobs or packs than can be counted; [`Error::Cache`] if a file cannot be written.
    pub fn add(&mut self, pack: &Id, blob: &PackedBlob) -> Result<PackNo> {
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
        if self.count >= MOST {
            return Err(too_many());
        }
        self.count += 1;
        let PackedBlob { id, offset, length, raw_length, .. } = *blob;
        let location = Location { pack: PackNo(number), offset, length, raw_length };
        self.rows[blob.kind as usize].push(*id.as_bytes(), place(&location))?;
        Ok(PackNo(number))
    }

    /// The index of everything added.
    ///
    /// # Errors
    /// [`Error::Cache`] if its file cannot be made; never in memory.
    pub fn finish(self) -> Result<Index> {
        let IndexBuilder { packs, rows: [data, trees], files, target, .. } = self;
        let Some(Target { path, key }) = target else {
            let (data, trees) = (Table::new(data.ids, data.places), Table::new(trees.ids, trees.places));
            return Ok(Index { packs, files, data, trees });
        };
        let mut writing = Writing::create(path, &packs, &files, [data.count(), trees.count()])?;
        for (kind, rows) in BlobKind::ALL.into_iter().zip([data, trees]) {
            rows.write(&mut writing, kind)?;
        }
        let [data, trees] = writing.finish(&key)?;
        Ok(Index { packs, files, data, trees })
    }
}

#[cold]
fn too_many() -> Error {
    Error::BadParameter { what: "index", detail: "it names more than 2^32 packs or blobs".into() }
}

/// Blobs of one kind in the order in which they come.
#[derive(Default)]
struct Rows {
    ids: Vec<RowId>,
    places: Vec<Place>,
    /// Where they go, if they do not stay in memory.
    spill: Option<Spill>,
}

impl Rows {
    fn push(&mut self, id: RowId, place: Place) -> Result<()> {
        if let Some(spill) = &mut self.spill {
            return spill.push(id, place).map_err(Error::Cache);
        }
        if self.ids.len() == self.ids.capacity() {
            // By a quarter: columns that double would be half empty.
            let more = (self.ids.len() / 4).max(1024);
            self.ids.reserve_exact(more);
            self.places.reserve_exact(more);
        }
        self.ids.push(id);
        self.places.push(place);
        Ok(())
    }

    fn count(&self) -> usize {
        self.spill.as_ref().map_or(self.ids.len(), |spill| spill.count)
    }

    /// Writes all rows, sorted, one share of them in memory at a time.
    fn write(self, writing: &mut Writing, kind: BlobKind) -> Result<()> {
        for share in self.spill.into_iter().flat_map(|spill| spill.shares) {
            let (mut ids, mut places) = share.read().map_err(Error::Cache)?;
            sort(&mut ids, &mut places);
            let count = dedup(&mut ids, &mut places);
            writing.append(kind, &ids[..count], &places[..count])?;
        }
        Ok(())
    }
}

/// Rows are divided by the first bits of their ids into as many files.
const SHARES: usize = 64;
/// Rows of a share that are written together.
const TOGETHER: usize = 4096;
const ROW: usize = size_of::<RowId>() + size_of::<Place>();

struct Spill {
    directory: PathBuf,
    shares: Vec<Share>,
    count: usize,
}

#[derive(Default)]
struct Share {
    buffer: Vec<u8>,
    /// Without a name: whatever becomes of us, it goes.
    file: Option<File>,
}

impl Spill {
    fn new(directory: PathBuf) -> Self {
        Spill { directory, shares: (0..SHARES).map(|_| Share::default()).collect(), count: 0 }
    }

    fn push(&mut self, id: RowId, place: Place) -> io::Result<()> {
        self.count += 1;
        let share = &mut self.shares[usize::from(id[0]) * SHARES / 256];
        share.buffer.extend_from_slice(&id);
        share.buffer.extend_from_slice(bytemuck::bytes_of(&place));
        if share.buffer.len() >= TOGETHER * ROW {
            let file = match &mut share.file {
                Some(file) => file,
                none => none.insert(tempfile::tempfile_in(&self.directory)?),
            };
            file.write_all(&share.buffer)?;
            share.buffer.clear();
        }
        Ok(())
    }
}

impl Share {
    fn read(self) -> io::Result<(Vec<RowId>, Vec<Place>)> {
        let mut bytes = Vec::new();
        if let Some(mut file) = self.file {
            let length = file.metadata()?.len();
            bytes.reserve_exact(usize::try_from(length).unwrap_or(0) + self.buffer.len());
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            if bytes.len() as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        bytes.extend_from_slice(&self.buffer);
        drop(self.buffer);
        let rows = bytes.as_chunks::<ROW>().0;
        let split = |row: &[u8; ROW]| -> (RowId, Place) {
            let (id, place) = row.split_at(size_of::<RowId>());
            (bytemuck::pod_read_unaligned(id), bytemuck::pod_read_unaligned(place))
        };
        Ok(rows.iter().map(split).unzip())
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
