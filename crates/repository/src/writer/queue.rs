//! What waits for a CPU worker. Every job holds its share of the byte budget, so the queue is bounded in bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::batch::BatchJob;
use super::budget::Permit;
use super::file::FileState;
use super::import::{BlobJob, ImportJob};

/// Blobs of one kind that a worker takes at once: as many as it hashes in one loop.
const LANES: usize = 3;

/// A blob of a large file.
pub(crate) struct Chunk {
    pub(crate) file: Arc<FileState>,
    /// Its place in the file.
    pub(crate) index: usize,
    pub(crate) plain: Bytes,
    pub(crate) permit: Permit,
}

/// Work for one worker.
pub(crate) enum Job {
    Batch(BatchJob),
    /// Cut what a large file has received.
    Cut(Arc<FileState>),
    Chunks(Vec<Chunk>),
    /// A blob whose name is known already and claimed.
    Blob(BlobJob),
    /// Blobs that are stored elsewhere already.
    Import(ImportJob),
}

/// What a worker does next.
pub(crate) enum Next {
    Job(Job),
    /// Nothing at the moment.
    Idle,
    /// There will be nothing any more.
    End,
}

pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Blobs that are cut already go first: they free memory.
    chunks: VecDeque<Chunk>,
    jobs: VecDeque<Job>,
    /// Workers that may still add to the queue.
    busy: usize,
    idle: usize,
    /// No more work comes from outside.
    closed: bool,
    /// Nothing is to be done any more.
    dead: bool,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Queue { state: Mutex::default(), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds work. A job that comes too late is dropped, which its ticket notices; false then.
    pub(crate) fn push(&self, job: Job) -> bool {
        let mut state = self.state();
        if state.dead || (state.closed && state.busy == 0) {
            drop(state);
            drop(job);
            return false;
        }
        match job {
            Job::Chunks(chunks) => state.chunks.extend(chunks),
            job => state.jobs.push_back(job),
        }
        drop(state);
        self.changed.notify_one();
        true
    }

    /// The next job, without waiting. The worker counts as busy until it calls [`rest`](Self::rest).
    pub(crate) fn try_next(&self) -> Next {
        let mut state = self.state();
        match state.take() {
            Some(job) => {
                state.busy += 1;
                Next::Job(job)
            }
            None if state.over() => Next::End,
            None => Next::Idle,
        }
    }

    /// The next job, as soon as there is one.
    pub(crate) fn next(&self) -> Next {
        let mut state = self.state();
        loop {
            if let Some(job) = state.take() {
                state.busy += 1;
                return Next::Job(job);
            }
            if state.over() {
                return Next::End;
            }
            state.idle += 1;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    /// The worker's job is done.
    pub(crate) fn rest(&self) {
        let mut state = self.state();
        state.busy -= 1;
        if state.over() {
            drop(state);
            self.changed.notify_all();
        }
    }

    /// No more work comes from outside; what is there is still done.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.changed.notify_all();
    }

    /// Throws everything away.
    pub(crate) fn kill(&self) {
        let mut state = self.state();
        state.dead = true;
        let dropped = (std::mem::take(&mut state.chunks), std::mem::take(&mut state.jobs));
        drop(state);
        self.changed.notify_all();
        // Jobs answer their tickets when dropped, which must not happen under the lock.
        drop(dropped);
    }
}

impl State {
    fn take(&mut self) -> Option<Job> {
        if self.dead {
            return None;
        }
        if !self.chunks.is_empty() {
            // Leave something for those who wait.
            let share = self.chunks.len() / (self.idle + 1);
            return Some(Job::Chunks(self.chunks.drain(..share.clamp(1, LANES)).collect()));
        }
        self.jobs.pop_front()
    }

    fn over(&self) -> bool {
        self.dead || (self.closed && self.busy == 0 && self.chunks.is_empty() && self.jobs.is_empty())
    }
}
