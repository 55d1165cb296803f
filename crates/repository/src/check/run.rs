//! Whether what a few snapshots need is whole, by listings, index and directories: the check that a run makes of itself.

use super::{Check, Problem, Progress, local};
use crate::repository::Repository;
use crate::{Error, Id, Result};

/// What a run finds out about itself.
#[derive(Debug)]
pub struct RunCheck {
    /// What is not as it should be, in the index, in its packs, or in the directories of the snapshots.
    pub problems: Vec<Problem>,
    /// Bytes of all blobs of the repository as they are stored, those that are stored twice counted twice.
    pub stored_bytes: u64,
}

/// Looks at these snapshots only: every blob that their directories name is in the index, and every pack of the index
/// exists with its size. No data is read. Take a lock before, shared: then nobody deletes meanwhile.
///
/// # Errors
/// What keeps the check from going on: the bucket cannot be listed, or cannot be reached any more.
pub async fn check_run(repo: &Repository, snapshots: &[Id], progress: &Progress<'_>) -> Result<RunCheck> {
    let check = Check { repo, progress, problems: Default::default() };
    let mut loaded = Vec::with_capacity(snapshots.len());
    for id in snapshots {
        match repo.snapshot(id).await {
            Ok(snapshot) => loaded.push((*id, snapshot)),
            Err(error @ Error::NoSuchSnapshot { .. }) => check.push(Problem::Snapshot { id: *id, error }),
            Err(error) => check.push(Problem::Snapshot { id: *id, error: local(error)? }),
        }
    }
    let index = check.index().await?;
    check.packs(&index).await?;
    check.trees(&loaded, &index).await?;
    let mut problems = std::mem::take(&mut *check.found()).list;
    problems.retain(|problem| !problem.is_hint());
    Ok(RunCheck { problems, stored_bytes: index.stored_bytes() })
}
