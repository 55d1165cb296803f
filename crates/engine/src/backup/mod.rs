//! Copies a source into a repository.

pub(crate) mod bucket;
pub(crate) mod content;
mod directory;
mod guard;
pub(crate) mod session;
pub(crate) mod several;

use cistern_bucket::Address;

use self::several::Job;
use crate::snapshots::check_tags;
use crate::{Backup, BackupReport, Cx, Error, Result};

/// Backs up what the task names.
///
/// # Errors
/// Whatever kept it from being done; `Incomplete` carries the report of what was done.
pub(crate) async fn run(task: &Backup, cx: &Cx) -> Result<BackupReport> {
    check_tags(&task.tags)?;
    let outcome = run_all(&[Job { task: task.clone(), cx: cx.clone() }]).await.pop();
    outcome.unwrap_or_else(|| Err(Error::Broken("a backup ended without a verdict".into())))
}

/// Backs up one source into the repositories of all of these jobs; one verdict for each.
async fn run_all(jobs: &[Job]) -> Vec<Result<BackupReport>> {
    match jobs.first().map(|job| &job.task.source) {
        None => Vec::new(),
        Some(Address::Directory(path)) => directory::run(jobs, path).await,
        Some(Address::S3 { .. }) => bucket::run(jobs).await,
    }
}
