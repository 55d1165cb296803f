//! Watches a run, and tells at a low rate how far it is.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use cistern_engine::{Note, Plan, Progress, Status};
use futures::future::BoxFuture;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::ui::Ui;

/// When it is told first how far a run is, and how often then.
const FIRST: Duration = Duration::from_secs(2);
const THEN: Duration = Duration::from_secs(10);

/// Listens to a run: the state is kept for whoever asks, notes go to the log.
pub struct Watch {
    status: Mutex<Status>,
    ui: Arc<Ui>,
}

impl Watch {
    /// One whose notes go to `ui`.
    pub fn new(ui: Arc<Ui>) -> Arc<Self> {
        Arc::new(Watch { status: Mutex::default(), ui })
    }

    /// The state of the run as it was last told.
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Progress for Watch {
    fn status(&self, status: &Status) {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone_from(status);
    }

    fn note(&self, note: Note) {
        Progress::note(&*self.ui, note);
    }

    /// Whoever wrote the manifest has approved it.
    async fn approve(&self, _plan: &Plan) -> bool {
        true
    }
}

/// Tells how far a run is until it is stopped.
pub struct Pulse {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Pulse {
    /// Calls `tell` with the state of the run and the time since now.
    pub fn start(
        watch: Arc<Watch>,
        tell: impl Fn(Status, Duration) -> BoxFuture<'static, ()> + Send + 'static,
    ) -> Self {
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let began = Instant::now();
            let mut next = began + FIRST;
            loop {
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = sleep_until(next) => tell(watch.status(), began.elapsed()).await,
                }
                next = Instant::now() + THEN;
            }
        });
        Pulse { stop, task }
    }

    /// Ends when what is being told has been told.
    pub async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!("telling the progress failed: {error}");
        }
    }
}
