//! What a walk has to do with one of the repositories that it is for: each has its own parent, its own trees, its own
//! counts, and fails alone.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use cistern_bucket::Key;
use cistern_repository::{Id, Index, Node, Reader, Writer};

use super::frame::{Frame, Trees};
use super::previous::Previous;
use super::walk::{Walk, lock};
use crate::backup::session::{Collector, Counts, Session, Tally};
use crate::{Error, ExceptionKind, Meter, Result};

/// One repository that a walk is for.
pub(super) struct Destination {
    pub reader: Reader,
    pub index: Arc<Index>,
    /// None in a dry run: changed files are counted, not read.
    pub writer: Option<Writer>,
    pub meter: Arc<Meter>,
    pub exceptions: Arc<Collector>,
    pub counts: Arc<Counts>,
    /// Whether the totals of the meter grow with what is found; otherwise they are an estimate already.
    pub count_totals: bool,
    /// What all threads together have found out for it.
    pub outcome: Mutex<Outcome>,
    failure: Mutex<Option<Error>>,
    /// Everything is stored, or it has failed: nothing more is done for it.
    over: AtomicBool,
}

/// What a walk found out.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// The root of the snapshot, once everything is stored.
    pub root: Option<Id>,
    /// What the snapshot holds.
    pub tally: Tally,
    /// Entries of the source of any kind, below the source itself.
    pub entries: u64,
    /// Files among them.
    pub listed: u64,
    /// Files that the parent snapshot has as well.
    pub matched: u64,
    /// Files of the parent snapshot that are gone from a directory that is still there.
    pub files_gone: u64,
    /// Trees of directories that are gone.
    pub trees_gone: Vec<Id>,
}

impl Outcome {
    fn add(&mut self, mut other: Outcome) {
        self.root = self.root.or(other.root);
        self.tally.add(&other.tally);
        self.entries += other.entries;
        self.listed += other.listed;
        self.matched += other.matched;
        self.files_gone += other.files_gone;
        self.trees_gone.append(&mut other.trees_gone);
    }
}

impl Destination {
    /// The repository of a session.
    pub fn of(session: &Session, count_totals: bool) -> Destination {
        Destination {
            reader: session.reader.clone(),
            index: session.index.clone(),
            writer: session.writer.clone(),
            meter: session.meter.clone(),
            exceptions: session.exceptions.clone(),
            counts: session.counts.clone(),
            count_totals,
            outcome: Mutex::default(),
            failure: Mutex::default(),
            over: AtomicBool::new(false),
        }
    }

    /// Whether nothing more is done for it.
    pub fn is_over(&self) -> bool {
        self.over.load(Relaxed)
    }

    /// From now on nothing more is done for it; the first error counts.
    pub fn end(&self, outcome: Result<()>) {
        if let Err(error) = outcome {
            lock(&self.failure).get_or_insert(error);
        }
        self.over.store(true, Relaxed);
    }

    /// What all threads together have found out, once they have ended.
    ///
    /// # Errors
    /// Whatever ended it.
    pub fn take(&self) -> Result<Outcome> {
        match lock(&self.failure).take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut *lock(&self.outcome))),
        }
    }

    /// Tells of something that is missing from the snapshot. What vanished is counted and no exception.
    pub fn missing(&self, path: &Key, error: &io::Error) {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => {
                tracing::debug!(%path, "vanished while it was read");
                return Counts::add(&self.counts.vanished, 1);
            }
            io::ErrorKind::PermissionDenied => ExceptionKind::Denied,
            _ => ExceptionKind::Unreadable,
        };
        self.exceptions.add(kind, path, error);
    }

    /// Tells of an extended attribute that could not be read, or of all of them.
    pub fn lost(&self, path: &Key, attribute: &str, error: &io::Error) {
        let detail = match attribute {
            "" => format!("its extended attributes: {error}"),
            name => format!("its extended attribute {name}: {error}"),
        };
        self.exceptions.add(ExceptionKind::Unreadable, path, detail);
    }

    /// Tells of something in the repository that is not as it was written.
    pub fn damaged(&self, path: &Key, detail: impl std::fmt::Display) {
        self.exceptions.add(ExceptionKind::Damaged, path, detail);
    }
}

/// What one thread has to do with one repository.
pub(super) struct Side<'a> {
    walk: &'a Walk,
    number: usize,
    /// What this thread has found out for it.
    pub seen: Outcome,
}

impl<'a> Side<'a> {
    /// Of every repository of a walk.
    pub fn all(walk: &'a Walk) -> Vec<Side<'a>> {
        (0..walk.destinations.len()).map(|number| Side { walk, number, seen: Outcome::default() }).collect()
    }

    /// Adds what this thread has found out to what the others have.
    pub fn end(self) {
        lock(&self.walk.destinations[self.number].outcome).add(self.seen);
    }
}

impl Trees for Side<'_> {
    fn store(&mut self, tree: Vec<u8>) -> Result<Id> {
        match &self.walk.destinations[self.number].writer {
            Some(writer) => Ok(writer.tree(tree)?),
            None => Ok(Id::of(&tree)),
        }
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.seen.tally
    }

    fn root(&mut self, id: Id) {
        self.seen.root = Some(id);
        self.walk.end(self.number, Ok(()));
    }
}

/// A directory of the source that waits to be listed, as one repository has it.
pub(super) struct Place {
    /// Number of the repository.
    pub side: usize,
    /// The directory above.
    pub above: Arc<Frame>,
    /// The parent snapshot's node.
    pub previous: Option<Box<Node>>,
}

/// A directory of the source that is being listed, as one repository has it.
pub(super) struct Open {
    /// Number of the repository.
    pub side: usize,
    pub frame: Arc<Frame>,
    /// The parent snapshot's entries.
    pub past: Previous,
    /// The one of the name at work, and where its text lies.
    pub found: Option<(Node, Range<u32>)>,
    /// Whether the file at work is as it was.
    pub unchanged: bool,
}

impl Open {
    /// Nothing was listed yet.
    pub fn new(side: usize, frame: Arc<Frame>, past: Previous) -> Open {
        Open { side, frame, past, found: None, unchanged: false }
    }
}
