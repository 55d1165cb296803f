//! Many small files at once, put by the caller into a worker's own memory.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::budget::Permit;
use crate::Id;

/// What a file's bytes became in the repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The blobs whose concatenation is the file, in order.
    pub blobs: Vec<Id>,
    /// Length of the file in bytes.
    pub size: u64,
    /// Plain bytes of those blobs that were not in the repository before.
    pub new_bytes: u64,
    /// Number of those blobs.
    pub new_blobs: u32,
}

impl Contents {
    /// Appends a blob of `length` plain bytes.
    pub(super) fn push(&mut self, id: Id, length: usize, new: bool) {
        self.blobs.push(id);
        self.size += length as u64;
        if new {
            self.new_bytes += length as u64;
            self.new_blobs += 1;
        }
    }
}

/// A closure that fills a batch on a worker.
pub(super) type Fill = Box<dyn FnOnce(&mut Batch) + Send>;

/// A batch that waits for a worker.
pub(crate) struct BatchJob {
    /// Taken by the worker.
    pub(super) fill: Option<Fill>,
    /// Freed when the batch is done.
    pub(super) _permit: Permit,
    /// Stays until there is an answer.
    pub(super) answer: Option<oneshot::Sender<Vec<io::Result<Contents>>>>,
}

/// The files of one batch, in the memory of the worker that will store them.
pub struct Batch {
    pub(super) arena: Vec<u8>,
    pub(super) pieces: Vec<Piece>,
}

/// One file of a batch.
pub(super) enum Piece {
    Arena(Range<usize>),
    Shared(Bytes),
    Failed(io::Error),
}

impl Batch {
    /// Adds a file by copying its bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        self.pieces.push(Piece::Arena(start..self.arena.len()));
    }

    /// Adds a file whose bytes lie in memory already, without copying them.
    pub fn add_bytes(&mut self, bytes: Bytes) {
        self.pieces.push(Piece::Shared(bytes));
    }

    /// Adds a file that `read` appends to the buffer, which has room for `size_hint` more bytes; what is in the
    /// buffer already must stay. An error takes back what was appended and becomes the file's result.
    pub fn add_with(&mut self, size_hint: usize, read: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) {
        let start = self.arena.len();
        self.arena.reserve(size_hint);
        let outcome = read(&mut self.arena);
        let piece = match outcome {
            Ok(()) if self.arena.len() >= start => Piece::Arena(start..self.arena.len()),
            Ok(()) => {
                // Earlier files would be cut short: refuse rather than store something else.
                self.arena.resize(start, 0);
                for piece in &mut self.pieces {
                    *piece =
                        Piece::Failed(io::Error::other("a reader of the same batch shortened the buffer"));
                }
                Piece::Failed(io::Error::other("the reader shortened the buffer"))
            }
            Err(error) => {
                self.arena.truncate(start);
                Piece::Failed(error)
            }
        };
        self.pieces.push(piece);
    }

    /// Number of files so far.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Whether there is no file yet.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("files", &self.len()).field("bytes", &self.arena.len()).finish()
    }
}
