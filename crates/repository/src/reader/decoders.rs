//! Threads that open, decompress and hash what readers have fetched.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What one thread owns.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Plain bytes of blobs that are hashed together.
    pub(crate) plain: Vec<u8>,
    pub(crate) opener: Option<crate::pack::Opener>,
}

/// Plain bytes that are held together; a buffer that had to grow beyond it for one large blob is given back after use.
pub(super) const KEEP: usize = 8 << 20;

type Work = Box<dyn FnOnce(&mut Scratch) + Send>;

/// Up to so many threads, started when there is work for them; they end with the repository's last handle.
pub(crate) struct Decoders {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    threads: usize,
    idle: usize,
    over: bool,
}

impl Decoders {
    pub(crate) fn new(limit: usize) -> Self {
        Decoders { shared: Arc::new(Shared { state: Mutex::default(), ready: Condvar::new(), limit }) }
    }

    /// Runs `work` on a thread; false if there is none and none can be started.
    pub(crate) fn submit(&self, work: Work) -> bool {
        let mut state = self.shared.state();
        state.work.push_back(work);
        if state.idle < state.work.len() && state.threads < self.shared.limit {
            let shared = self.shared.clone();
            let name = format!("cistern-read-{}", state.threads);
            if std::thread::Builder::new().name(name).spawn(move || shared.run()).is_ok() {
                state.threads += 1;
            } else if state.threads == 0 {
                state.work.clear();
                return false;
            }
        }
        drop(state);
        self.shared.ready.notify_one();
        true
    }
}

impl Drop for Decoders {
    /// The threads are not waited for: one of them may be what drops the last handle.
    fn drop(&mut self) {
        self.shared.state().over = true;
        self.shared.ready.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut scratch = Scratch::default();
        let mut state = self.state();
        loop {
            if let Some(work) = state.work.pop_front() {
                drop(state);
                // A sink is foreign code: its panic must not take a thread away. Whoever waits notices, because
                // the work is dropped without an answer.
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut scratch)));
                if outcome.is_err() {
                    scratch = Scratch::default();
                }
                scratch.plain.clear();
                if scratch.plain.capacity() > KEEP {
                    scratch.plain = Vec::new();
                }
                state = self.state();
            } else if state.over {
                return;
            } else {
                state.idle += 1;
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}
