//! One mark per entry of an index, set from any thread: ten million take little more than a megabyte.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::index::EntryNo;

pub(crate) struct Marks(Box<[AtomicU64]>);

impl Marks {
    /// No marks, with room for so many entries.
    pub(crate) fn new(entries: usize) -> Self {
        Marks((0..entries.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Marks an entry; true for the first who does.
    pub(crate) fn set(&self, entry: EntryNo) -> bool {
        let (word, bit) = (entry.index() / 64, 1 << (entry.index() % 64));
        self.0[word].fetch_or(bit, Relaxed) & bit == 0
    }

    /// Takes all marks away.
    pub(crate) fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// Whether an entry is marked.
    pub(crate) fn has(&self, entry: EntryNo) -> bool {
        self.0[entry.index() / 64].load(Relaxed) & 1 << (entry.index() % 64) != 0
    }
}
