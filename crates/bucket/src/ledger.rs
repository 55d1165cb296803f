//! Counts requests and bytes by kind, so that a run can say what it cost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The kinds of request that stores bill and limit separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    /// One page of a listing.
    List,
    /// Attributes of one object.
    Head,
    /// Contents of one object, or a range of them.
    Get,
    /// A whole object, or a part of a multipart upload.
    Put,
    /// Start, completion or abort of a multipart upload.
    Multipart,
    /// A copy within the store.
    Copy,
    /// Deletion of one object or of a batch.
    Delete,
    /// Reading or writing the tags of one object.
    Tags,
    /// Reading or setting how long one object is locked.
    Retention,
    /// Whatever concerns the bucket as a whole: probing it, its region, credentials.
    Bucket,
}

impl Verb {
    /// All kinds, in the order in which people read them.
    pub const ALL: [Verb; 10] = [
        Verb::List,
        Verb::Head,
        Verb::Get,
        Verb::Put,
        Verb::Multipart,
        Verb::Copy,
        Verb::Delete,
        Verb::Tags,
        Verb::Retention,
        Verb::Bucket,
    ];

    /// The kind as a word, as in the JSON output.
    pub fn name(self) -> &'static str {
        match self {
            Verb::List => "list",
            Verb::Head => "head",
            Verb::Get => "get",
            Verb::Put => "put",
            Verb::Multipart => "multipart",
            Verb::Copy => "copy",
            Verb::Delete => "delete",
            Verb::Tags => "tags",
            Verb::Retention => "retention",
            Verb::Bucket => "bucket",
        }
    }

    /// The beginning of the sentence "listing … failed".
    pub(crate) fn doing(self) -> &'static str {
        match self {
            Verb::List => "listing",
            Verb::Head => "looking at",
            Verb::Get => "reading",
            Verb::Put | Verb::Multipart => "writing",
            Verb::Copy => "copying",
            Verb::Delete => "deleting",
            Verb::Tags => "reading or writing the tags of",
            Verb::Retention => "reading or setting the retention of",
            Verb::Bucket => "opening",
        }
    }
}

/// Running counts of one bucket handle; shared by every clone of it.
#[derive(Debug, Default)]
pub struct Ledger {
    requests: [AtomicU64; Verb::ALL.len()],
    received: AtomicU64,
    sent: AtomicU64,
    retries: AtomicU64,
    throttled: AtomicU64,
}

impl Ledger {
    /// Counts one request that goes to the store (retries count as requests of their own).
    pub fn request(&self, verb: Verb) {
        self.requests[verb as usize].fetch_add(1, Relaxed);
    }

    /// Counts bytes of object bodies that came from the store.
    pub fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes of object bodies that went to the store.
    pub fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    /// Counts a request that is made again.
    pub fn retried(&self) {
        self.retries.fetch_add(1, Relaxed);
    }

    /// Counts an answer that asked for a lower rate.
    pub fn throttled(&self) {
        self.throttled.fetch_add(1, Relaxed);
    }

    /// The counts as they are now.
    pub fn snapshot(&self) -> LedgerSnapshot {
        LedgerSnapshot {
            requests: std::array::from_fn(|i| self.requests[i].load(Relaxed)),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            retries: self.retries.load(Relaxed),
            throttled: self.throttled.load(Relaxed),
        }
    }
}

/// The counts of a [`Ledger`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LedgerSnapshot {
    requests: [u64; Verb::ALL.len()],
    /// Bytes of object bodies received.
    pub received: u64,
    /// Bytes of object bodies sent.
    pub sent: u64,
    /// Requests that were made again.
    pub retries: u64,
    /// Answers that asked for a lower rate.
    pub throttled: u64,
}

impl LedgerSnapshot {
    /// Requests of one kind.
    pub fn count(&self, verb: Verb) -> u64 {
        self.requests[verb as usize]
    }

    /// Requests of all kinds.
    pub fn total(&self) -> u64 {
        self.requests.iter().sum()
    }

    /// What was counted since `earlier`.
    pub fn since(&self, earlier: &LedgerSnapshot) -> LedgerSnapshot {
        LedgerSnapshot {
            requests: std::array::from_fn(|i| self.requests[i] - earlier.requests[i]),
            received: self.received - earlier.received,
            sent: self.sent - earlier.sent,
            retries: self.retries - earlier.retries,
            throttled: self.throttled - earlier.throttled,
        }
    }
}
