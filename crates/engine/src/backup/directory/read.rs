//! Reads files: small ones on the workers that store them, many at a time; large ones piece by piece.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cistern_repository::{Contents, FileWriter, Node, NodeKind, Permit, Ticket, Writer};
use rustix::buffer::spare_capacity;

use super::frame::Frame;
use super::walk::below;
use crate::posix::{Opener, Style, XattrReader, kind};

/// Files of this many bytes and more are read piece by piece.
pub(super) const LARGE: u64 = 512 << 10;
/// Bytes of a piece of a large file.
const PIECE: usize = 1 << 20;
/// A batch has at most this many bytes and files, out of at most this many directories (each is an open file).
const BATCH_BYTES: u64 = 4 << 20;
const BATCH_FILES: usize = 512;
const BATCH_DIRECTORIES: usize = 32;
/// Bytes by which the files of one batch, all together, may have grown since they were found.
const GROWTH: usize = 1 << 20;

/// An open directory that others need, too; all of them are counted, for a process may have only so many.
pub(super) struct Held {
    fd: OwnedFd,
    count: Arc<AtomicUsize>,
}

impl Held {
    /// Counts an open directory in `count` for as long as somebody needs it.
    pub fn new(fd: OwnedFd, count: &Arc<AtomicUsize>) -> Arc<Held> {
        count.fetch_add(1, Relaxed);
        Arc::new(Held { fd, count: count.clone() })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A file that is to be read.
pub(super) struct Wanted {
    /// The repositories that want it, at least one.
    pub wants: Vec<Want>,
    /// The directory that it lies in.
    pub directory: Arc<Held>,
    /// Its name in there.
    pub name: Box<[u8]>,
    /// Its name in the snapshot; that of the source itself may differ.
    pub shown: Option<Box<[u8]>>,
    /// Its owner, who may read it without a trace.
    pub owner: u32,
    /// Its length when it was found.
    pub size: u64,
}

/// What one repository has to do with a file that is to be read.
#[derive(Clone)]
pub(super) struct Want {
    /// Number of the repository.
    pub side: usize,
    /// The directory of the snapshot that it belongs to.
    pub frame: Arc<Frame>,
    /// The parent snapshot's node.
    pub previous: Option<Box<Node>>,
}

impl Wanted {
    /// Its path below the source.
    pub fn path(&self) -> Vec<u8> {
        let above = self.wants.first().map_or(&b""[..], |want| &want.frame.path);
        below(above, &self.name, self.shown.as_deref())
    }

    /// The same for one repository alone.
    pub fn of(&self, side: usize) -> Wanted {
        Wanted {
            wants: self.wants.iter().filter(|want| want.side == side).cloned().collect(),
            directory: self.directory.clone(),
            name: self.name.clone(),
            shown: self.shown.clone(),
            ..*self
        }
    }
}

/// What is known of a file once it was opened.
pub(super) struct Found {
    pub node: Node,
    /// Extended attributes that could not be read, and why.
    pub lost: Vec<(String, io::Error)>,
}

/// Why a file that was to be read in one piece was not.
#[derive(Debug, thiserror::Error)]
#[error("the file has grown")]
pub(super) struct Grown;

/// Why a file was not read at all.
#[derive(Debug, thiserror::Error)]
#[error("it changed its type and is no file any more")]
struct NoFile;

/// What reading needs beside the file.
pub(super) struct Reading {
    pub opener: Opener,
    pub style: Style,
    pub pool: Arc<Pool>,
}

impl Reading {
    /// Opens a file and looks at it. The description is that of the open file, so that it fits the contents
    /// even if the name has another owner by now.
    fn open(&self, wanted: &Wanted, xattrs: &mut XattrReader) -> io::Result<(OwnedFd, Found)> {
        let file = self.opener.file(wanted.directory.as_fd(), &wanted.name, wanted.owner)?;
        let stat = rustix::fs::fstat(&file)?;
        if kind(&stat) != NodeKind::File {
            return Err(io::Error::other(NoFile));
        }
        let mut lost = Vec::new();
        let mut node = self.style.node(wanted.shown.as_ref().unwrap_or(&wanted.name), &stat);
        if self.style.of_bucket {
            return Ok((file, Found { node, lost }));
        }
        match xattrs.of_open(file.as_fd(), |name, error| lost.push((name.to_owned(), error))) {
            Ok(found) => node.xattrs = found,
            Err(error) => lost.push((String::new(), error)),
        }
        Ok((file, Found { node, lost }))
    }
}

/// A batch that is being gathered.
#[derive(Default)]
pub(super) struct Gathering {
    files: Vec<Wanted>,
    bytes: u64,
    directories: usize,
}

/// A batch that workers have.
pub(super) struct Batched {
    pub files: Arc<Vec<Wanted>>,
    pub found: Arc<Mutex<Vec<Option<Found>>>>,
    /// For each repository the numbers of the files that it stores, and its answer.
    pub tickets: Vec<(usize, Vec<usize>, Ticket<Vec<io::Result<Contents>>>)>,
}

/// A batch that was read for several repositories.
pub(super) struct InMemory {
    pub batched: Batched,
    bytes: Bytes,
    /// Where each file lies.
    spans: Vec<Range<usize>>,
}

impl Gathering {
    /// Adds a file.
    pub fn add(&mut self, wanted: Wanted) {
        self.bytes += wanted.size;
        let same = self.files.last().is_some_and(|last| Arc::ptr_eq(&last.directory, &wanted.directory));
        self.directories += usize::from(!same);
        self.files.push(wanted);
    }

    /// Whether it has to be sent before another file of this size is added.
    pub fn is_full_for(&self, size: u64) -> bool {
        self.bytes + size > BATCH_BYTES
            || self.files.len() >= BATCH_FILES
            || self.directories >= BATCH_DIRECTORIES
    }

    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Lets a worker of the one repository read and store what was gathered, as soon as the memory for it is free.
    pub fn send(self, writer: &Writer, reading: &Arc<Reading>) -> cistern_repository::Result<Batched> {
        let permit: Permit = writer.permit_blocking(self.bytes as usize)?;
        let files = Arc::new(self.files);
        let found = Arc::new(Mutex::new(Vec::new()));
        let (reading, to_read, to_fill) = (reading.clone(), files.clone(), found.clone());
        let ticket = writer.batch(permit, move |batch| {
            let mut xattrs = XattrReader::new();
            let mut found = Vec::with_capacity(to_read.len());
            let mut growth = GROWTH;
            for wanted in to_read.iter() {
                let mut seen = None;
                batch.add_with(wanted.size as usize + 1, |buffer| {
                    let (file, what) = reading.open(wanted, &mut xattrs)?;
                    seen = Some(what);
                    read_bounded(&file, buffer, wanted.size as usize, &mut growth)
                });
                found.push(seen);
            }
            *to_fill.lock().unwrap_or_else(PoisonError::into_inner) = found;
        });
        let tickets = vec![(0, (0..files.len()).collect(), ticket)];
        Ok(Batched { files, found, tickets })
    }

    /// Reads what was gathered into memory, from which several repositories can store it; yields what could not be read
    /// as well.
    pub fn read(self, reading: &Reading, xattrs: &mut XattrReader) -> (InMemory, Vec<(Wanted, io::Error)>) {
        let mut buffer = Vec::with_capacity(self.bytes as usize + self.files.len());
        let (mut files, mut found, mut spans) = (Vec::new(), Vec::new(), Vec::new());
        let mut failed = Vec::new();
        let mut growth = GROWTH;
        for wanted in self.files {
            let start = buffer.len();
            let read = reading.open(&wanted, xattrs).and_then(|(file, what)| {
                read_bounded(&file, &mut buffer, wanted.size as usize, &mut growth)?;
                Ok(what)
            });
            match read {
                Ok(what) => {
                    found.push(Some(what));
                    spans.push(start..buffer.len());
                    files.push(wanted);
                }
                Err(error) => {
                    buffer.truncate(start);
                    failed.push((wanted, error));
                }
            }
        }
        let (files, found) = (Arc::new(files), Arc::new(Mutex::new(found)));
        let batched = Batched { files, found, tickets: Vec::new() };
        (InMemory { batched, bytes: buffer.into(), spans }, failed)
    }
}

impl InMemory {
    /// Lets a worker of one of the repositories store what that repository wants, as soon as the memory for it is free.
    pub fn store(&mut self, side: usize, writer: &Writer) -> cistern_repository::Result<()> {
        let wants = |number: &usize| self.batched.files[*number].wants.iter().any(|want| want.side == side);
        let numbers: Vec<usize> = (0..self.batched.files.len()).filter(wants).collect();
        if numbers.is_empty() {
            return Ok(());
        }
        let spans = numbers.iter().map(|number| self.spans[*number].clone());
        let files: Vec<Bytes> = spans.map(|span| self.bytes.slice(span)).collect();
        let permit = writer.permit_blocking(files.iter().map(Bytes::len).sum())?;
        let ticket = writer.batch(permit, move |batch| {
            files.into_iter().for_each(|file| batch.add_bytes(file));
        });
        self.batched.tickets.push((side, numbers, ticket));
        Ok(())
    }
}

/// Appends a file that had `size` bytes when it was found. What it has grown by since is taken from `growth`, which all
/// files of a batch share: they were counted with the sizes that they had.
fn read_bounded(file: &OwnedFd, buffer: &mut Vec<u8>, size: usize, growth: &mut usize) -> io::Result<()> {
    let start = buffer.len();
    read_whole(file, buffer, size + *growth)?;
    *growth -= (buffer.len() - start).saturating_sub(size);
    Ok(())
}

/// Appends a file up to its end, unless it has become longer than `limit`.
fn read_whole(file: &OwnedFd, buffer: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let start = buffer.len();
    loop {
        if buffer.capacity() == buffer.len() {
            buffer.reserve(16 << 10);
        }
        match rustix::io::read(file, spare_capacity(buffer)) {
            Ok(0) => return Ok(()),
            Ok(_) if buffer.len() - start > limit => return Err(io::Error::other(Grown)),
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Why a large file was not read to its end.
pub(super) enum Broken {
    /// The file could not be read.
    File(io::Error),
    /// Somebody asked to stop, or nobody wants it any more.
    Stopped,
}

/// A repository that a large file is read into, until it fails.
pub(super) struct Out {
    /// Number of the repository.
    pub side: usize,
    pub file: cistern_repository::Result<FileWriter>,
}

/// Reads a large file to its end. `go_on` is asked, and told the number of bytes, before each piece.
pub(super) fn read_large(
    wanted: &Wanted,
    reading: &Reading,
    outs: &mut [Out],
    xattrs: &mut XattrReader,
    mut go_on: impl FnMut(u64) -> bool,
) -> Result<Found, Broken> {
    let (file, found) = reading.open(wanted, xattrs).map_err(Broken::File)?;
    loop {
        let mut piece = reading.pool.take();
        let mut end = false;
        while piece.len() < PIECE && !end {
            match rustix::io::read(&file, spare_capacity(&mut piece)) {
                Ok(read) => end = read == 0,
                Err(rustix::io::Errno::INTR) => (),
                Err(errno) => return Err(Broken::File(errno.into())),
            }
        }
        if !go_on(piece.len() as u64) {
            return Err(Broken::Stopped);
        }
        if !piece.is_empty() {
            let piece = reading.pool.lend(piece);
            for out in &mut *outs {
                if let Ok(file) = &mut out.file
                    && let Err(error) = file.push_blocking(piece.clone())
                {
                    out.file = Err(error);
                }
            }
        }
        if outs.iter().all(|out| out.file.is_err()) {
            return Err(Broken::Stopped);
        }
        if end {
            return Ok(found);
        }
    }
}

/// Buffers of [`PIECE`] bytes that come back when the last reader is done: the system would clear each fresh
/// one.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u8>>>);

struct Lent {
    buffer: Vec<u8>,
    pool: Arc<Pool>,
}

impl Pool {
    fn take(&self) -> Vec<u8> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(PIECE))
    }

    fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { buffer, pool: self.clone() })
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_file_that_became_a_large_one_is_not_held_in_memory() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        let limit = 2 * LARGE as usize;
        for (length, whole) in
            [(0, true), (70_000, true), (limit, true), (limit + 1, false), (8 << 20, false)]
        {
            std::fs::write(&path, vec![7; length]).unwrap();
            let mut buffer = b"before".to_vec();
            let read = read_whole(&std::fs::File::open(&path).unwrap().into(), &mut buffer, limit);
            match read {
                Ok(()) => assert!(whole && buffer.len() == 6 + length && buffer.starts_with(b"before")),
                Err(error) => assert!(!whole && error.get_ref().is_some_and(|e| e.is::<Grown>()), "{error}"),
            }
            assert!(buffer.len() < 4 << 20);
        }
    }

    #[test]
    fn files_that_grow_while_a_batch_waits_share_one_bound() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("f");
        std::fs::write(&path, vec![7; GROWTH / 2]).unwrap();
        let (mut buffer, mut growth) = (Vec::new(), GROWTH);
        let outcomes: Vec<bool> = (0..5)
            .map(|_| read_bounded(&std::fs::File::open(&path).unwrap().into(), &mut buffer, 10, &mut growth))
            .map(|outcome| outcome.is_ok())
            .collect();
        assert_eq!(outcomes, [true, true, false, false, false]);
        assert!(growth < 1 << 10);
    }

    #[test]
    fn lent_buffers_come_back() {
        let pool = Arc::new(Pool::default());
        let mut buffer = pool.take();
        buffer.extend_from_slice(b"abc");
        let at = buffer.as_ptr();
        let lent = pool.lend(buffer);
        let part = lent.slice(1..);
        drop(lent);
        let other = pool.take();
        assert_ne!(other.as_ptr(), at, "a part of it is still in use");
        drop(part);
        let back = pool.take();
        assert_eq!((back.as_ptr(), back.len()), (at, 0));
    }
}
