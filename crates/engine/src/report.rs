//! What a run did, as numbers and bounded lists that a program can read.

use std::collections::BTreeMap;

use cistern_bucket::{LedgerSnapshot, Verb};
use jiff::Timestamp;
use serde::Serialize;

/// What a [`Task`](crate::Task) did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "task")]
pub enum Report {
    /// Of a backup.
    Backup(BackupReport),
    /// Of a restore.
    Restore(RestoreReport),
    /// Of a comparison.
    Verify(VerifyReport),
    /// Of a removal of snapshots.
    Forget(crate::ForgetReport),
    /// Of a prune.
    Prune(crate::PruneReport),
    /// Of locking what snapshots need.
    Protect(crate::ProtectReport),
    /// Of a change of tags.
    Tag(crate::TagReport),
    /// Of a copy of snapshots.
    Copy(crate::CopyReport),
    /// Of snapshots that were written anew.
    Rewrite(crate::RewriteReport),
}

/// Requests by kind, with bytes, of one bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Number of requests by kind; kinds without any are left out.
    #[serde(flatten)]
    pub by_kind: BTreeMap<&'static str, u64>,
    /// Bytes of object bodies received.
    pub bytes_received: u64,
    /// Bytes of object bodies sent.
    pub bytes_sent: u64,
    /// Requests that were made again.
    pub retries: u64,
}

impl From<LedgerSnapshot> for Requests {
    fn from(ledger: LedgerSnapshot) -> Self {
        Requests {
            by_kind: Verb::ALL
                .iter()
                .filter(|v| ledger.count(**v) > 0)
                .map(|v| (v.name(), ledger.count(*v)))
                .collect(),
            bytes_received: ledger.received,
            bytes_sent: ledger.sent,
            retries: ledger.retries,
        }
    }
}

/// What a backup did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct BackupReport {
    /// Snapshots (parts) that were written, in order of their ranges; empty for a dry run.
    pub snapshots: Vec<String>,
    /// The snapshot that was compared with, or the first of its parts.
    pub parent: Option<String>,
    /// Objects (or files) that the source holds.
    pub objects_listed: u64,
    /// Bytes of contents that the source holds.
    pub bytes_listed: u64,
    /// Objects that the parent does not hold.
    pub objects_new: u64,
    /// Objects that differ from the parent's.
    pub objects_changed: u64,
    /// Objects that are as in the parent.
    pub objects_unchanged: u64,
    /// Objects of the parent that are gone.
    pub objects_deleted: u64,
    /// Objects that vanished between listing and reading.
    pub objects_vanished: u64,
    /// Bytes of contents that were read from the source.
    pub bytes_read: u64,
    /// What the repository took.
    pub stored: Stored,
    /// Requests to the source.
    pub source_requests: Requests,
    /// Requests to the repository.
    pub repository_requests: Requests,
    /// One entry per part.
    pub parts: Vec<Part>,
    /// What could not be read or kept.
    pub exceptions: Exceptions,
    /// Start and end.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
}

/// What the repository took in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stored {
    /// New data blobs.
    pub data_blobs: u64,
    /// New tree blobs.
    pub tree_blobs: u64,
    /// Bytes of new blobs before compression.
    pub bytes_added: u64,
    /// Bytes of new blobs as stored.
    pub bytes_stored: u64,
    /// Directories that are new.
    pub dirs_new: u64,
    /// Directories that differ from the parent's.
    pub dirs_changed: u64,
    /// Directories that are as in the parent.
    pub dirs_unchanged: u64,
}

/// One part of a run: a contiguous range of keys in one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Part {
    /// Snapshot of the part.
    pub snapshot: String,
    /// Exclusive lower bound; `None` is the beginning.
    pub after: Option<String>,
    /// Inclusive upper bound; `None` is the end.
    pub until: Option<String>,
    /// The proof that the range was listed to its end.
    pub proof: Proof,
}

/// Evidence that a range of keys was listed from its first to its last bound without an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// Keys listed.
    pub keys: u64,
    /// Bytes listed.
    pub bytes: u64,
    /// Pages of the listing.
    pub pages: u64,
    /// SHA-256, in hex, over key, size and revision of every object in order.
    pub hash: String,
}

/// Why an object is not, or not wholly, in the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExceptionKind {
    /// In an archive tier.
    Archived,
    /// Encrypted with a customer's key.
    CustomerKey,
    /// Access denied.
    Denied,
    /// Could not be read for another reason.
    Unreadable,
    /// Vanished between listing and reading.
    Vanished,
    /// Kept changing while it was read.
    KeepsChanging,
    /// The target cannot hold this name.
    NameRefused,
    /// The target cannot hold an attribute.
    AttributeLost,
    /// Stored data is damaged.
    Damaged,
    /// Could not be written.
    Unwritable,
    /// Contents differ.
    Differs,
    /// Only in the snapshot.
    OnlyInSnapshot,
    /// Only in the source.
    OnlyInSource,
    /// Not locked for long enough.
    Unprotected,
}

/// One object that is not, or not wholly, in the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Exception {
    /// Why.
    pub kind: ExceptionKind,
    /// Key or path, as shown to a person.
    pub key: String,
    /// The cause in one line.
    pub detail: String,
}

/// Exceptions, counted by kind, with the first of each kind by name: bounded, however many there are.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Exceptions {
    /// How many of each kind.
    pub counts: BTreeMap<ExceptionKind, u64>,
    /// The first 20 of each kind.
    pub first: Vec<Exception>,
}

impl Exceptions {
    /// Counts one, and keeps it if it is among the first 20 of its kind.
    pub fn add(&mut self, exception: Exception) {
        let count = self.counts.entry(exception.kind).or_default();
        *count += 1;
        if *count <= 20 {
            self.first.push(exception);
        }
    }

    /// Number of exceptions of all kinds.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Number of exceptions of one kind.
    pub fn count(&self, kind: ExceptionKind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RestoreReport {
    /// Snapshots (parts) that were restored.
    pub snapshots: Vec<String>,
    /// What was planned.
    pub plan: crate::Plan,
    /// Objects that were written.
    pub objects_written: u64,
    /// Bytes that were written.
    pub bytes_written: u64,
    /// Objects that were there already and stayed.
    pub objects_kept: u64,
    /// Objects that were deleted.
    pub objects_deleted: u64,
    /// Directories, links and other nodes that were made.
    pub others_written: u64,
    /// Objects that were read back and found equal.
    pub objects_verified: u64,
    /// Requests to the target.
    pub target_requests: Requests,
    /// Requests to the repository.
    pub repository_requests: Requests,
    /// What the target could not take.
    pub exceptions: Exceptions,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
}

/// What a comparison found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Snapshots (parts) that were compared.
    pub snapshots: Vec<String>,
    /// Objects that are the same on both sides.
    pub objects_equal: u64,
    /// Bytes that are the same on both sides.
    pub bytes_equal: u64,
    /// Whether contents were read, too.
    pub content: bool,
    /// What differs.
    pub exceptions: Exceptions,
    /// Requests to the source.
    pub source_requests: Requests,
    /// Requests to the repository.
    pub repository_requests: Requests,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
}
