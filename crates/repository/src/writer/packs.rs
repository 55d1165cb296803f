//! The packs that are being filled, shared by the workers, and the buffers that packs live in.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::pack::{FinishedPack, PackBuilder};
use crate::{BlobKind, chunker, crypto};

/// Open packs and spare buffers. Two rules bound the memory: so many packs are open, and so many buffers exist.
pub(crate) struct Packs {
    state: Mutex<State>,
    changed: Condvar,
    /// Open packs at most, by kind.
    open: [usize; 2],
    buffers: usize,
    capacity: usize,
}

#[derive(Default)]
struct State {
    open: [Vec<PackBuilder>; 2],
    /// Open packs that a worker has.
    taken: [usize; 2],
    spare: Vec<Vec<u8>>,
    /// Buffers in use: in open packs, in closed ones, in uploads.
    used: usize,
    dead: bool,
}

impl Packs {
    /// Packs of `size` for so many workers in about `memory` bytes, with at most `uploads` packs on their way.
    pub(crate) fn new(size: u32, workers: usize, memory: usize, uploads: usize) -> Self {
        let size = size as usize;
        // One more than there are workers, so that each chooses among two when the others have theirs: that hides
        // the sizes of blobs in the sizes of packs.
        let data = (workers + 1).min((memory / 2 / size).max(2));
        let tree = workers.min(2);
        let open = data + tree;
        let buffers = (memory / size).clamp(open + 1, open + uploads.max(1));
        // Room for the blob that passes the size and for a header: no pack is ever moved.
        let capacity = size + chunker::MAX + (1 << 20);
        Packs { state: Mutex::default(), changed: Condvar::new(), open: [data, tree], buffers, capacity }
    }

    /// Bytes that all buffers together may take.
    pub(crate) fn memory(&self, size: u32) -> usize {
        self.buffers * size as usize
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pack that is open already, if there is one that nobody has.
    pub(crate) fn take_open(&self, kind: BlobKind) -> Option<PackBuilder> {
        self.state().take(kind)
    }

    /// An open pack, chosen at random, or a new one; `None` if all are taken or no buffer is left.
    pub(crate) fn try_take(&self, kind: BlobKind) -> Option<PackBuilder> {
        self.take_or_create(&mut self.state(), kind)
    }

    /// As [`try_take`](Self::try_take), waiting for other workers and uploads; `None` after [`kill`](Self::kill).
    /// Whoever waits must have neither an open pack nor a closed one.
    pub(crate) fn take(&self, kind: BlobKind) -> Option<PackBuilder> {
        let mut state = self.state();
        while !state.dead {
            match self.take_or_create(&mut state, kind) {
                Some(pack) => return Some(pack),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        None
    }

    fn take_or_create(&self, state: &mut State, kind: BlobKind) -> Option<PackBuilder> {
        let k = kind as usize;
        let choice = if kind == BlobKind::Data { 2 } else { 1 };
        let (free, all) = (state.open[k].len(), state.open[k].len() + state.taken[k]);
        if free < choice && all < self.open[k] && state.used < self.buffers {
            state.used += 1;
            let buffer = state.spare.pop().unwrap_or_else(|| Vec::with_capacity(self.capacity));
            state.open[k].push(PackBuilder::reuse(kind, buffer));
        }
        state.take(kind)
    }

    /// Gives back a pack that is not full.
    pub(crate) fn put(&self, pack: PackBuilder) {
        let mut state = self.state();
        let k = pack.kind() as usize;
        state.taken[k] -= 1;
        state.open[k].push(pack);
        drop(state);
        self.changed.notify_all();
    }

    /// A pack that was taken is closed: another may be opened.
    pub(crate) fn closed(&self, kind: BlobKind) {
        self.state().taken[kind as usize] -= 1;
        self.changed.notify_all();
    }

    /// Takes all open packs of a kind, the fullest first.
    pub(crate) fn drain(&self, kind: BlobKind) -> Vec<PackBuilder> {
        let mut packs = std::mem::take(&mut self.state().open[kind as usize]);
        packs.sort_by_key(|pack| std::cmp::Reverse(pack.len()));
        packs
    }

    /// The buffer of a pack that is stored.
    pub(crate) fn recycle(&self, mut buffer: Vec<u8>) {
        let mut state = self.state();
        state.used -= 1;
        if buffer.capacity() <= self.capacity && !state.dead {
            buffer.clear();
            state.spare.push(buffer);
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Wakes all who wait, now or later.
    pub(crate) fn kill(&self) {
        let mut state = self.state();
        state.dead = true;
        let dropped = (std::mem::take(&mut state.open), std::mem::take(&mut state.spare));
        drop(state);
        self.changed.notify_all();
        drop(dropped);
    }
}

impl State {
    fn take(&mut self, kind: BlobKind) -> Option<PackBuilder> {
        let open = &mut self.open[kind as usize];
        let chosen = match open.len() {
            0 => return None,
            1 => 0,
            many => random_below(many),
        };
        self.taken[kind as usize] += 1;
        Some(open.swap_remove(chosen))
    }
}

/// A random number below `bound`, which is small; where the generator fails, sealing will say so.
fn random_below(bound: usize) -> usize {
    let mut bytes = [0; 4];
    match crypto::random(&mut bytes) {
        Ok(()) => u32::from_ne_bytes(bytes) as usize % bound,
        Err(_) => 0,
    }
}

/// The bytes of a finished pack on their way to the bucket; the buffer comes back when the last user is done.
pub(crate) struct PackBytes {
    bytes: Vec<u8>,
    packs: std::sync::Arc<Packs>,
}

impl PackBytes {
    /// Takes the bytes out of a finished pack.
    pub(crate) fn of(pack: &mut FinishedPack, packs: std::sync::Arc<Packs>) -> bytes::Bytes {
        let bytes = std::mem::take(&mut pack.bytes);
        bytes::Bytes::from_owner(PackBytes { bytes, packs })
    }
}

impl AsRef<[u8]> for PackBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PackBytes {
    fn drop(&mut self) {
        self.packs.recycle(std::mem::take(&mut self.bytes));
    }
}
