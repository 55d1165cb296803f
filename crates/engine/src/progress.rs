//! What the outside world may know while work goes on.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use async_trait::async_trait;
use serde::Serialize;

use crate::Exception;

/// What a run is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Phase {
    /// Opening repository, source and target.
    #[default]
    Opening,
    /// Finding out what there is to do.
    Planning,
    /// Reading and writing.
    Copying,
    /// Making what was written durable and visible.
    Sealing,
    /// Comparing what was written.
    Verifying,
    /// Nothing is left to do.
    Done,
}

/// The state of a run at one moment. Totals are 0 while they are not known.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// What the run is doing.
    pub phase: Phase,
    /// Objects (or files) that are done.
    pub objects_done: u64,
    /// Objects that there are, an estimate until the listing is complete.
    pub objects_total: u64,
    /// Bytes of contents that are done, read or found unchanged.
    pub bytes_done: u64,
    /// Bytes of contents that there are.
    pub bytes_total: u64,
    /// Whether the totals are final.
    pub totals_final: bool,
    /// The key or path at work.
    pub current: String,
    /// Exceptions so far.
    pub exceptions: u64,
}

/// Something that a person should know now and not only at the end.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// An object was skipped or is not as it should be.
    Exception(Exception),
    /// One line of information, such as which parent was chosen.
    Info(String),
}

/// What a restore is going to do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Snapshots (parts) that are restored.
    pub snapshots: Vec<String>,
    /// Target as a person names it.
    pub target: String,
    /// Objects to write.
    pub write: u64,
    /// Bytes to write.
    pub write_bytes: u64,
    /// Objects that are there already and stay.
    pub keep: u64,
    /// Objects that would be replaced.
    pub replace: u64,
    /// Objects to delete.
    pub delete: u64,
    /// The first keys to delete, at most 20.
    pub delete_first: Vec<String>,
    /// Requests to the repository's bucket that this needs, about.
    pub repository_requests: u64,
    /// Bytes to read from the repository, about.
    pub repository_bytes: u64,
    /// How files are going to be written.
    pub writer: String,
}

/// Receives what a run tells while it works. Called from several threads; must not block.
#[async_trait]
pub trait Progress: Send + Sync {
    /// The state of the run, several times a second.
    fn status(&self, status: &Status);

    /// Something worth a line.
    fn note(&self, note: Note);

    /// Asks whether a plan may be carried out.
    async fn approve(&self, _plan: &Plan) -> bool {
        true
    }
}

/// Nobody listens; every plan is approved.
#[derive(Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn status(&self, _status: &Status) {}
    fn note(&self, _note: Note) {}
}

/// The running counts of a run: cheap to update from any thread, read by a ticker that calls
/// [`Progress::status`].
#[derive(Debug, Default)]
pub struct Meter {
    phase: AtomicU8,
    /// Objects that are done.
    pub objects_done: AtomicU64,
    /// Objects known so far.
    pub objects_total: AtomicU64,
    /// Bytes that are done.
    pub bytes_done: AtomicU64,
    /// Bytes known so far.
    pub bytes_total: AtomicU64,
    /// Exceptions so far.
    pub exceptions: AtomicU64,
    totals_final: AtomicU8,
    current: Mutex<String>,
}

impl Meter {
    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Counts an object that is done, with its size in bytes.
    pub fn done(&self, bytes: u64) {
        self.objects_done.fetch_add(1, Relaxed);
        self.bytes_done.fetch_add(bytes, Relaxed);
    }

    /// Counts an object that there is, with its size in bytes.
    pub fn found(&self, bytes: u64) {
        self.objects_total.fetch_add(1, Relaxed);
        self.bytes_total.fetch_add(bytes, Relaxed);
    }

    /// From now on the totals are final.
    pub fn totals_final(&self) {
        self.totals_final.store(1, Relaxed);
    }

    /// Names the object at work; skipped when somebody else is naming one.
    pub fn current(&self, name: impl FnOnce() -> String) {
        if let Ok(mut current) = self.current.try_lock() {
            *current = name();
        }
    }

    /// The state as it is now.
    pub fn status(&self) -> Status {
        let phases =
            [Phase::Opening, Phase::Planning, Phase::Copying, Phase::Sealing, Phase::Verifying, Phase::Done];
        Status {
            phase: phases[usize::from(self.phase.load(Relaxed))],
            objects_done: self.objects_done.load(Relaxed),
            objects_total: self.objects_total.load(Relaxed),
            bytes_done: self.bytes_done.load(Relaxed),
            bytes_total: self.bytes_total.load(Relaxed),
            totals_final: self.totals_final.load(Relaxed) != 0,
            current: self.current.lock().map(|c| c.clone()).unwrap_or_default(),
            exceptions: self.exceptions.load(Relaxed),
        }
    }
}
