//! The only entry point: a task in, a report out.

use std::sync::Arc;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket};
use cistern_repository::{Identity, Options};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::{Error, Progress, Report, Result, Task};

/// What a bucket is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It is read.
    Source,
    /// It is written.
    Target,
    /// It holds a repository.
    Repository,
}

/// Supplies what a task only names: buckets with their credentials, passwords, settings.
#[async_trait]
pub trait Access: Send + Sync {
    /// The whole bucket that `address` lies in (its prefix is the engine's business), or the directory
    /// itself for a directory address.
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>>;

    /// The password of a repository.
    async fn password(&self, repository: &Address) -> Result<SecretString>;

    /// How a repository is opened: cache, memory, connections, compression.
    fn options(&self, repository: &Address) -> Options;
}

/// Everything a run needs from outside.
#[derive(Clone)]
pub struct Cx {
    /// Supplies buckets and passwords.
    pub access: Arc<dyn Access>,
    /// Hears what goes on.
    pub progress: Arc<dyn Progress>,
    /// Asks the run to stop; it ends with [`Error::Cancelled`](crate::Error::Cancelled) and leaves nothing half-written
    /// under a final name.
    pub cancel: CancellationToken,
    /// Who acts.
    pub identity: Identity,
    /// Requests in flight to source or target, at most.
    pub concurrency: usize,
    /// How long to wait for a repository that somebody else has locked.
    pub lock_wait: std::time::Duration,
}

impl Cx {
    /// What `work` yields, unless somebody asks to stop before: then it is dropped where it is.
    ///
    /// # Errors
    /// Those of `work`; `Cancelled`.
    pub(crate) async fn unless_cancelled<T, E: Into<Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T> {
        tokio::select! {
            outcome = work => outcome.map_err(Into::into),
            () = self.cancel.cancelled() => Err(Error::Cancelled),
        }
    }
}

/// Does what the task says.
///
/// # Errors
/// Whatever kept it from being done; [`Error::Incomplete`](crate::Error::Incomplete) carries the report of what was done.
pub async fn run(task: &Task, cx: &Cx) -> Result<Report> {
    match task {
        Task::Backup(backup) => crate::backup::run(backup, cx).await.map(Report::Backup),
        Task::Restore(restore) => crate::restore::run(restore, cx).await.map(Report::Restore),
        Task::Verify(verify) => crate::verify::run(verify, cx).await.map(Report::Verify),
        Task::Forget(forget) => crate::forget::run(forget, cx).await.map(Report::Forget),
        Task::Prune(prune) => crate::prune::run(prune, cx).await.map(Report::Prune),
        Task::Protect(protect) => crate::protect::run(protect, cx).await.map(Report::Protect),
        Task::Copy(copy) => crate::copy::run(copy, cx).await.map(Report::Copy),
        Task::Rewrite(rewrite) => crate::rewrite::run(rewrite, cx).await.map(Report::Rewrite),
        Task::Tag(tag) => crate::tag::run(tag, cx).await.map(Report::Tag),
    }
}
