//! Copies a source into a repository.

pub(crate) mod bucket;
pub(crate) mod content;
mod directory;
mod guard;
pub(crate) mod session;

use cistern_bucket::Address;

use crate::snapshots::check_tags;
use crate::{Backup, BackupReport, Cx, Result};

/// Backs up what the task names.
///
/// # Errors
/// Whatever kept it from being done; `Incomplete` carries the report of what was done.
pub(crate) async fn run(task: &Backup, cx: &Cx) -> Result<BackupReport> {
    check_tags(&task.tags)?;
    match &task.source {
        Address::Directory(path) => directory::run(task, path, cx).await,
        Address::S3 { .. } => bucket::run(task, cx).await,
    }
}
