//! Large files: pushed in order, cut by one worker at a time, stored by all of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::batch::Contents;
use super::budget::Permit;
use super::cutter::Cutter;
use super::queue::{Chunk, Job};
use super::{Core, Ticket};
use crate::{Error, Id, Result};

/// A file that is being written.
pub(crate) struct FileState {
    state: Mutex<State>,
    /// Only the worker that has the file's cut job takes it.
    cutter: Mutex<Cutter>,
}

#[derive(Default)]
struct State {
    pieces: Vec<(Bytes, Permit)>,
    /// A cut job is queued or running.
    scheduled: bool,
    /// Everything has been pushed.
    eof: bool,
    /// Everything has been cut.
    cut: bool,
    aborted: bool,
    /// By index; `None` until a worker has stored the blob.
    blobs: Vec<Option<Id>>,
    stored: usize,
    contents: Contents,
    answer: Option<oneshot::Sender<Contents>>,
}

impl FileState {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts all that has arrived; the blobs go to the queue.
    pub(super) fn cut(self: &Arc<Self>, core: &Core) {
        let mut cutter = self.cutter.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (pieces, last) = {
                let mut state = self.state();
                if state.aborted {
                    state.pieces.clear();
                    return;
                }
                let last = state.eof && !state.cut;
                if state.pieces.is_empty() && !last {
                    state.scheduled = false;
                    return;
                }
                (std::mem::take(&mut state.pieces), last)
            };
            for (piece, permit) in pieces {
                cutter.push(piece, |blob| self.enqueue(core, blob));
                // What is left waits for the next piece and must not keep anybody from sending it; the blobs
                // have permits of their own.
                drop(permit);
            }
            if last {
                cutter.finish(|blob| self.enqueue(core, blob));
                // Only now: a blob that is stored meanwhile must not be taken for the last.
                let mut state = self.state();
                state.cut = true;
                state.finish_if_done();
            }
        }
    }

    fn enqueue(self: &Arc<Self>, core: &Core, plain: Bytes) {
        let index = {
            let mut state = self.state();
            state.blobs.push(None);
            state.blobs.len() - 1
        };
        let permit = core.budget.force(plain.len());
        core.queue.push(Job::Chunks(vec![Chunk { file: self.clone(), index, plain, permit }]));
    }

    /// A blob is in a pack, or was in the repository.
    pub(super) fn stored(&self, index: usize, id: Id, length: usize, new: bool) {
        let mut state = self.state();
        state.blobs[index] = Some(id);
        state.stored += 1;
        state.contents.size += length as u64;
        if new {
            state.contents.new_bytes += length as u64;
            state.contents.new_blobs += 1;
        }
        state.finish_if_done();
    }
}

impl State {
    fn finish_if_done(&mut self) {
        if !self.cut || self.stored < self.blobs.len() {
            return;
        }
        if let Some(answer) = self.answer.take() {
            let mut contents = std::mem::take(&mut self.contents);
            contents.blobs = self.blobs.drain(..).flatten().collect();
            // Nobody may be waiting any more.
            let _ = answer.send(contents);
        }
    }
}

/// A large file, pushed in order; it is cut into blobs that all workers share. Dropping it discards the file.
///
/// Besides the writer's budget it holds what follows the last cut: at most 8 MiB, or the last piece pushed.
pub struct FileWriter {
    core: Arc<Core>,
    file: Arc<FileState>,
    answer: Option<oneshot::Receiver<Contents>>,
}

impl FileWriter {
    pub(super) fn new(core: Arc<Core>) -> Self {
        let (sender, receiver) = oneshot::channel();
        let state = State { answer: Some(sender), ..State::default() };
        let cutter = Mutex::new(Cutter::new(core.chunker.clone()));
        FileWriter {
            core,
            file: Arc::new(FileState { state: Mutex::new(state), cutter }),
            answer: Some(receiver),
        }
    }

    /// Appends `bytes`, as soon as the budget allows. Pieces of several MiB are used where they lie; smaller ones
    /// are copied together.
    ///
    /// # Errors
    /// The first error of the writer.
    pub async fn push(&mut self, bytes: Bytes) -> Result<()> {
        let permit = self.core.permit(bytes.len()).await?;
        self.enqueue(bytes, permit);
        Ok(())
    }

    /// As [`push`](Self::push), for plain threads.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_blocking(&mut self, bytes: Bytes) -> Result<()> {
        let permit = self.core.permit_blocking(bytes.len())?;
        self.enqueue(bytes, permit);
        Ok(())
    }

    fn enqueue(&self, bytes: Bytes, permit: Permit) {
        let mut state = self.file.state();
        state.pieces.push((bytes, permit));
        if !std::mem::replace(&mut state.scheduled, true) {
            drop(state);
            self.core.queue.push(Job::Cut(self.file.clone()));
        }
    }

    /// Everything has been pushed.
    pub fn finish(mut self) -> Ticket<Contents> {
        let mut state = self.file.state();
        state.eof = true;
        if !std::mem::replace(&mut state.scheduled, true) {
            drop(state);
            self.core.queue.push(Job::Cut(self.file.clone()));
        } else {
            drop(state);
        }
        let answer = self.answer.take().expect("a file is finished once");
        Ticket::new(answer, self.core.clone())
    }

    /// Discards the file; blobs of it that are stored already stay for others to find.
    pub fn abort(self) {}

    /// The error with which the writer has failed, if it has.
    pub fn error(&self) -> Option<Error> {
        self.core.failure()
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if self.answer.is_some() {
            let mut state = self.file.state();
            state.aborted = true;
            let pieces = std::mem::take(&mut state.pieces);
            drop(state);
            drop(pieces);
        }
    }
}

impl std::fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileWriter").finish_non_exhaustive()
    }
}
