//! Compares the contents of files with what the repository knows of them: hashes only, nothing is fetched.

use std::io::Read;
use std::sync::Arc;

use cistern_repository::sha256::{Job, Lanes, Stream};
use cistern_repository::{BlobKind, Reader};
use rustix::io::Errno;
use std::os::fd::AsFd;

use super::beneath::Dir;
use super::placer::{Name, kind};
use super::walk::Found;
use cistern_repository::NodeKind;

/// Files whose contents are compared by one task.
const BATCH: usize = 64;
/// Bytes that are compared by one task, unless one file is larger.
const BATCH_BYTES: u64 = 8 << 20;

/// A file to compare.
pub(crate) struct Question {
    /// Its place in whatever the asker counts.
    pub at: usize,
    /// The directory it is in.
    pub dir: Arc<Dir>,
    /// Its name there, if it is not the node's.
    pub name: Option<Box<[u8]>>,
    /// What it should hold.
    pub found: Found,
    /// How many bytes that is.
    pub size: u64,
}

/// Questions that are answered together.
#[derive(Default)]
pub(crate) struct Questions {
    list: Vec<Question>,
    bytes: u64,
}

impl Questions {
    /// Adds one, and yields them all if they are enough for a task.
    pub fn add(&mut self, question: Question) -> Option<Vec<Question>> {
        self.bytes += question.size;
        self.list.push(question);
        (self.list.len() >= BATCH || self.bytes >= BATCH_BYTES).then(|| self.take())
    }

    /// Yields what is left.
    pub fn take(&mut self) -> Vec<Question> {
        self.bytes = 0;
        std::mem::take(&mut self.list)
    }
}

/// Questions with their answers.
pub(crate) type Answers = Vec<(Question, Result<bool, Errno>)>;

/// The questions and whether each file holds what it should, or why it cannot be read.
pub(crate) fn answer(reader: &Reader, questions: Vec<Question>) -> Answers {
    let mut buffer = vec![0; 256 << 10];
    questions
        .into_iter()
        .map(|question| {
            let same = is_same(reader, &question, &mut buffer);
            (question, same)
        })
        .collect()
}

fn is_same(reader: &Reader, question: &Question, buffer: &mut [u8]) -> Result<bool, Errno> {
    if question.dir.site().is_stopped() {
        return Ok(false);
    }
    let node = question.found.node();
    let name = Name::new(question.name.as_deref().unwrap_or(&node.name)).map_err(|_| Errno::INVAL)?;
    let placer = &question.dir.site().placer;
    let file = placer.open(question.dir.fd()?.as_fd(), name)?;
    let stat = placer.stat_open(file.as_fd())?;
    if kind(&stat) != NodeKind::File || stat.st_size as u64 != question.size {
        return Ok(false);
    }
    let mut file = std::fs::File::from(file);
    let lanes = Lanes::off();
    for id in node.content.iter().flatten() {
        let Some(mut left) = reader.raw_length(BlobKind::Data, id).map(|length| length as usize) else {
            return Ok(false);
        };
        let mut hash = Stream::new();
        while left > 0 {
            let room = buffer.len().min(left);
            let n = match file.read(&mut buffer[..room]) {
                Ok(0) => return Ok(false),
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
            };
            lanes.run(&mut [Job::new(&mut hash, &buffer[..n])]);
            left -= n;
        }
        if hash.finish() != *id.as_bytes() {
            return Ok(false);
        }
    }
    Ok(matches!(file.read(&mut buffer[..1]), Ok(0)))
}
