//! What every kind of Job works with: its places, its reports, and when it has to stop.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use cistern_api::job::{DATA_DIR, Place};
use cistern_bucket::{Address, Class};
use cistern_engine::{Cx, Error, Progress, Report, Role, Task, lock_as, repository_bucket};
use cistern_repository::{Lock, LockKind, Repository};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::places::Places;
use super::report::Server;
use crate::commands::identity;
use crate::failure::Failure;
use crate::ui::Ui;
use crate::units::counted;

/// How long a report is tried when the kubelet is about to kill us.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The surroundings of a Job.
pub struct Pod {
    /// Its repositories.
    pub places: Arc<Places>,
    /// Where it reports.
    pub server: Arc<Server>,
    /// Its log.
    pub ui: Arc<Ui>,
    /// Where [`DATA_DIR`] is.
    pub data: PathBuf,
    /// Requests in flight to source or target.
    pub concurrency: usize,
    /// How long to wait for a repository that somebody else has locked.
    pub lock_wait: Duration,
    /// How long a result is offered.
    pub report_wait: Duration,
    /// When to stop.
    pub stop: Stop,
}

/// A check found so many errors, `first` among them.
pub fn damaged(errors: u64, first: &impl std::fmt::Display) -> Failure {
    let number = counted(errors, "error");
    Failure::new(Class::Damaged, format!("the repository has {number}, the first: {first}"))
}

/// Asks a Job to stop: a signal, or its deadline.
pub struct Stop {
    cancel: CancellationToken,
    is_late: Arc<AtomicBool>,
    deadline: Option<Timestamp>,
}

impl Stop {
    /// Stops when `signal` fires, and at the deadline.
    pub fn new(signal: &CancellationToken, deadline: Option<Timestamp>) -> Self {
        let cancel = signal.child_token();
        let is_late = Arc::new(AtomicBool::new(false));
        if let Some(deadline) = deadline {
            let left = Duration::try_from(deadline.duration_since(Timestamp::now())).unwrap_or_default();
            let (cancel, is_late) = (cancel.clone(), is_late.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(left) => {
                        is_late.store(true, Relaxed);
                        cancel.cancel();
                    }
                    () = cancel.cancelled() => (),
                }
            });
        }
        Stop { cancel, is_late, deadline }
    }

    fn failure(&self) -> Failure {
        let text = match (self.is_late.load(Relaxed), self.deadline) {
            (true, Some(deadline)) => format!("the deadline {deadline} passed before it was done"),
            _ => "terminated: the pod was asked to stop".to_owned(),
        };
        Failure::new(Class::Cancelled, text)
    }
}

impl Pod {
    /// The engine's surroundings.
    pub fn cx(&self, progress: Arc<dyn Progress>) -> Cx {
        Cx {
            access: self.places.clone(),
            progress,
            cancel: self.stop.cancel.clone(),
            identity: identity(),
            concurrency: self.concurrency,
            lock_wait: self.lock_wait,
        }
    }

    /// Runs one task.
    ///
    /// # Errors
    /// As the engine; that and why it was stopped.
    pub async fn run(&self, task: Task, progress: Arc<dyn Progress>) -> Result<Report, Failure> {
        cistern_engine::run(&task, &self.cx(progress)).await.map_err(|error| self.failure(error))
    }

    /// What an error of the engine means for this Job.
    pub fn failure(&self, error: Error) -> Failure {
        match error.class() {
            Class::Cancelled => self.stop.failure(),
            _ => error.into(),
        }
    }

    /// What `work` yields, unless the Job has to stop before.
    ///
    /// # Errors
    /// Those of `work`; that and why it was stopped.
    pub async fn unless_stopped<T, E: Into<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        tokio::select! {
            outcome = work => outcome.map_err(|error| self.failure(error.into())),
            () = self.stop.cancel.cancelled() => Err(self.stop.failure()),
        }
    }

    /// Whether the Job has to stop.
    pub fn is_stopped(&self) -> bool {
        self.stop.cancel.is_cancelled()
    }

    /// How long a result is offered now.
    pub fn patience(&self) -> Duration {
        if self.is_stopped() { self.report_wait.min(LAST_WORDS) } else { self.report_wait }
    }

    /// Opens a repository.
    ///
    /// # Errors
    /// No access, no repository, wrong password.
    pub async fn open(&self, place: &Place) -> Result<Repository, Failure> {
        use cistern_engine::Access;
        let address = &place.address;
        self.unless_stopped(async {
            let bucket = repository_bucket(address, Role::Repository, &*self.places).await?;
            let password = self.places.password(address).await?;
            Ok::<_, Error>(Repository::open(bucket, &password, self.places.options(address)).await?)
        })
        .await
    }

    /// Works on a repository under a shared lock, which keeps everybody from deleting.
    ///
    /// # Errors
    /// It is locked by somebody else; what the work says.
    pub async fn locked<T>(
        &self,
        repository: &Repository,
        progress: Arc<dyn Progress>,
        work: impl Future<Output = cistern_repository::Result<T>>,
    ) -> Result<T, Failure> {
        let lock: Lock = lock_as(repository, LockKind::Shared, &self.cx(progress))
            .await
            .map_err(|error| self.failure(error))?;
        let outcome = self.unless_stopped(work).await;
        lock.release().await;
        outcome
    }

    /// Where a path below [`DATA_DIR`] is.
    ///
    /// # Errors
    /// It is not below it.
    pub fn below_data(&self, path: &str) -> Result<Address, Failure> {
        use std::path::Component::Normal;
        let rest = Path::new(path).strip_prefix(DATA_DIR).ok();
        match rest.filter(|rest| rest.components().all(|part| matches!(part, Normal(_)))) {
            Some(rest) if rest.as_os_str().is_empty() => Ok(Address::Directory(self.data.clone())),
            Some(rest) => Ok(Address::Directory(self.data.join(rest))),
            None => Err(Failure::invalid(format!("{path} is not below {DATA_DIR}"))),
        }
    }
}
