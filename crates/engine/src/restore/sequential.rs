//! Writes a file from its beginning to its end and closes it, nothing else: what every mount can do.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::beneath::locked;
use super::landing::{Landing, Open};
use super::window::Receive;

/// A file whose blobs are still coming. Those that come too early wait in memory, of which the windows in
/// flight hold a bounded amount.
pub(crate) struct SequentialFile {
    landing: Landing,
    blobs: u32,
    size: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Blobs that were written.
    written: u32,
    open: Option<Open>,
    early: BTreeMap<u32, Box<[u8]>>,
    failed: bool,
}

impl SequentialFile {
    /// A file of `blobs` blobs and `size` bytes.
    pub fn new(landing: Landing, blobs: u32, size: u64) -> Self {
        SequentialFile { landing, blobs, size, state: Mutex::default() }
    }

    /// Writes the next blob, and those behind it that wait.
    fn write(&self, state: &mut State, contents: &[u8]) -> rustix::io::Result<()> {
        let open = match &state.open {
            Some(open) => open,
            None => state.open.insert(self.landing.open()?),
        };
        let placer = &self.landing.dir.site().placer;
        placer.append(open.fd(), contents)?;
        state.written += 1;
        while let Some(next) = state.early.remove(&state.written) {
            placer.append(open.fd(), &next)?;
            state.written += 1;
        }
        Ok(())
    }

    fn fail(&self, state: &mut State) {
        state.failed = true;
        state.early.clear();
        if let Some(open) = state.open.take() {
            self.landing.discard(open);
        }
    }
}

impl Receive for SequentialFile {
    fn piece(&self, number: u32, _offset: u64, contents: Result<&[u8], &cistern_repository::Error>) {
        if self.landing.is_stopped() {
            return;
        }
        let mut state = locked(&self.state);
        if state.failed {
            return;
        }
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => {
                self.fail(&mut state);
                return self.landing.lost(error);
            }
        };
        if number != state.written {
            state.early.insert(number, contents.into());
            return;
        }
        if let Err(error) = self.write(&mut state, contents) {
            self.fail(&mut state);
            return self.landing.refused(error);
        }
        if state.written == self.blobs
            && let Some(open) = state.open.take()
        {
            self.landing.finish(open, self.size);
        }
    }
}

impl Drop for SequentialFile {
    fn drop(&mut self) {
        // Not all came: the run was stopped.
        if let Some(open) = locked(&self.state).open.take() {
            self.landing.discard(open);
        }
    }
}
