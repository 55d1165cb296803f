//! Whom a writer asks whether a blob is new: what is stored, and what this run is storing.

use std::sync::{Arc, Mutex, PoisonError};

use super::Index;
use crate::idset::IdSet;
use crate::{BlobKind, Id};

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
