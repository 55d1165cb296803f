//! An index as a file of the cache that is mapped: for repositories whose index would take much of the memory.
//!
//! The file is in the byte order of this machine, and sealed by a MAC under a key of the repository, so that the cache
//! is trusted no more than elsewhere. It holds names of blobs and packs in the clear, as the memory of a process does;
//! only its owner may read it.
//!
//! Layout: 16 numbers of 64 bits ([`Header`]); packs (32 bytes each); per index file its id (32), its numbers of blobs
//! and of packs, and those packs' numbers (4 each); for data and then for trees a column of ids (32 each) and one of
//! places (16 each), each from a multiple of 4,096 and with room for the rows that were read, some of which may have
//! been the same; the MAC (32).
#![expect(unsafe_code, reason = "a file is mapped")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::hmac;
use memmap2::Mmap;

use super::table::{Column, Place, RowId, Table};
use super::{Index, NamedIn, PackNo};
use crate::crypto::MasterKey;
use crate::{BlobKind, Error, Id, Result};

/// What authenticates a file.
pub(crate) type Key = hmac::Key;

const MAGIC: u64 = u64::from_be_bytes(*b"cistern1");
const MAC: usize = 32;
const PAGE: usize = 4096;
const NUMBERS: usize = 16;

/// The key under which mapped files of a repository are authenticated.
pub(crate) fn key(master: &MasterKey) -> Key {
    hmac::Key::new(hmac::HMAC_SHA256, &*master.derive(b"cistern mapped index"))
}

/// What stands where.
#[derive(Clone, Copy, Debug)]
struct Header {
    packs: usize,
    files: usize,
    /// Numbers of 32 bits about index files.
    numbers: usize,
    /// Rows by kind, and for how many there is room.
    rows: [usize; 2],
    room: [usize; 2],
}

/// Byte positions that follow from a [`Header`].
#[derive(Clone, Copy, Debug)]
struct Layout {
    packs: usize,
    files: usize,
    numbers: usize,
    ids: [usize; 2],
    places: [usize; 2],
    mac: usize,
}

impl Header {
    fn to_bytes(self) -> [u8; NUMBERS * 8] {
        let Header { packs, files, numbers, rows, room } = self;
        let mut all = [0u64; NUMBERS];
        let fields = [packs, files, numbers, rows[0], rows[1], room[0], room[1]];
        all[0] = MAGIC;
        for (number, field) in all[1..].iter_mut().zip(fields) {
            *number = field as u64;
        }
        bytemuck::cast(all)
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let all: [u64; NUMBERS] = bytemuck::pod_read_unaligned(bytes.get(..NUMBERS * 8)?);
        let number = |i: usize| usize::try_from(all[i]).ok();
        (all[0] == MAGIC).then_some(())?;
        Some(Header {
            packs: number(1)?,
            files: number(2)?,
            numbers: number(3)?,
            rows: [number(4)?, number(5)?],
            room: [number(6)?, number(7)?],
        })
    }

    /// Where everything lies; none for numbers that cannot be.
    fn layout(self) -> Option<Layout> {
        let behind = |start: usize, count: usize, size: usize| start.checked_add(count.checked_mul(size)?);
        let page = |at: usize| at.checked_next_multiple_of(PAGE);
        let packs = NUMBERS * 8;
        let files = behind(packs, self.packs, Id::LEN)?;
        let numbers = behind(files, self.files, Id::LEN)?;
        let mut at = behind(numbers, self.numbers, 4)?;
        let (mut ids, mut places) = ([0; 2], [0; 2]);
        for kind in 0..2 {
            ids[kind] = page(at)?;
            places[kind] = page(behind(ids[kind], self.room[kind], size_of::<RowId>())?)?;
            at = behind(places[kind], self.room[kind], size_of::<Place>())?;
        }
        let fits = self.rows.iter().zip(self.room).all(|(rows, room)| *rows <= room);
        fits.then_some(Layout { packs, files, numbers, ids, places, mac: at })
    }
}

/// A file that is being made; it goes unless it is finished.
pub(super) struct Writing {
    path: PathBuf,
    temporary: tempfile::TempPath,
    file: File,
    header: Header,
    layout: Layout,
}

impl Writing {
    /// Begins with what is small; `room` is for rows by kind.
    pub(super) fn create(path: PathBuf, packs: &[Id], files: &[NamedIn], room: [usize; 2]) -> Result<Self> {
        let numbers: Vec<u32> = files
            .iter()
            .flat_map(|file| {
                let counts = [file.blobs as u32, file.packs.len() as u32];
                counts.into_iter().chain(file.packs.iter().map(|pack| pack.0))
            })
            .collect();
        let header =
            Header { packs: packs.len(), files: files.len(), numbers: numbers.len(), rows: [0; 2], room };
        let layout = header.layout().ok_or(Error::Broken("an index is larger than memory"))?;
        let create = || -> io::Result<_> {
            let name = format!(".{}.tmp", Id::random().map_err(io::Error::other)?.short());
            let temporary = path.with_file_name(name);
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create_new(true).mode(0o600).open(&temporary)?;
            let temporary = tempfile::TempPath::try_from_path(temporary)?;
            file.set_len((layout.mac + MAC) as u64)?;
            let mut out = io::BufWriter::new(&file);
            out.write_all(&header.to_bytes())?;
            packs.iter().try_for_each(|pack| out.write_all(pack.as_bytes()))?;
            files.iter().try_for_each(|file| out.write_all(file.id.as_bytes()))?;
            out.write_all(bytemuck::cast_slice(&numbers))?;
            out.flush()?;
            drop(out);
            Ok((temporary, file))
        };
        let (temporary, file) = create().map_err(Error::Cache)?;
        Ok(Writing { path, temporary, file, header, layout })
    }

    /// Adds rows behind those of the same kind.
    pub(super) fn append(&mut self, kind: BlobKind, ids: &[RowId], places: &[Place]) -> Result<()> {
        let rows = &mut self.header.rows[kind as usize];
        if *rows + ids.len() > self.header.room[kind as usize] {
            return Err(Error::Broken("an index has more rows than were counted"));
        }
        let at = |start: usize, size: usize| (start + *rows * size) as u64;
        let ids_at = at(self.layout.ids[kind as usize], size_of::<RowId>());
        let places_at = at(self.layout.places[kind as usize], size_of::<Place>());
        let written = self.file.write_all_at(bytemuck::cast_slice(ids), ids_at);
        written
            .and_then(|()| self.file.write_all_at(bytemuck::cast_slice(places), places_at))
            .map_err(Error::Cache)?;
        *rows += ids.len();
        Ok(())
    }

    /// Seals the file, gives it its name and maps it.
    pub(super) fn finish(self, key: &Key) -> Result<[Table; 2]> {
        let finish = || -> io::Result<_> {
            self.file.write_all_at(&self.header.to_bytes(), 0)?;
            let map = map(&self.file)?;
            let mac = hmac::sign(key, &map[..self.layout.mac]);
            self.file.write_all_at(mac.as_ref(), self.layout.mac as u64)?;
            self.temporary.persist(&self.path).map_err(|error| error.error)?;
            Ok(map)
        };
        let map = finish().map_err(Error::Cache)?;
        Ok(tables(&Arc::new(map), &self.header, &self.layout))
    }
}

/// The index in the file at `path`, if there is one and it is ours.
pub(crate) fn open(path: &Path, key: &Key) -> Option<Index> {
    let file = File::open(path).ok()?;
    let index = map(&file).ok().and_then(|map| read(map, key));
    if index.is_none() {
        tracing::info!(path = %path.display(), "removing a damaged file of the cache");
        let _ = fs::remove_file(path);
    }
    index
}

fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the file is in a directory of its owner's, who alone can write to it; no version of this program changes
    // a file that has its name, and removing it leaves the mapping as it is.
    unsafe { Mmap::map(file) }
}

fn read(map: Mmap, key: &Key) -> Option<Index> {
    let header = Header::parse(&map)?;
    let layout = header.layout()?;
    let mac = map.get(layout.mac..).filter(|mac| mac.len() == MAC)?;
    hmac::verify(key, &map[..layout.mac], mac).ok()?;
    let ids = |start: usize, count: usize| -> Vec<Id> {
        let ids = map[start..start + count * Id::LEN].as_chunks().0;
        ids.iter().map(|id| Id::from_bytes(*id)).collect()
    };
    let packs = ids(layout.packs, header.packs);
    let numbers = &map[layout.numbers..layout.numbers + header.numbers * 4];
    let mut numbers = numbers.as_chunks().0.iter().map(|number| u32::from_ne_bytes(*number));
    let mut files = Vec::with_capacity(header.files);
    for id in ids(layout.files, header.files) {
        let (blobs, count) = (numbers.next()?, numbers.next()?);
        let packs: Vec<PackNo> = numbers.by_ref().take(count as usize).map(PackNo).collect();
        files.push(NamedIn { id, packs, blobs: blobs as usize });
    }
    let [data, trees] = tables(&Arc::new(map), &header, &layout);
    Some(Index { packs, files, data, trees })
}

fn tables(map: &Arc<Mmap>, header: &Header, layout: &Layout) -> [Table; 2] {
    [0, 1].map(|kind| {
        let count = header.rows[kind];
        Table {
            ids: Column::Mapped { map: map.clone(), start: layout.ids[kind], count },
            places: Column::Mapped { map: map.clone(), start: layout.places[kind], count },
        }
    })
}
