//! One run into several repositories: what they have to have in common, and a verdict for each.

use std::sync::Arc;

use crate::snapshots::check_tags;
use crate::{Backup, BackupReport, Cx, Error, Progress, Result};

/// A task for one repository, and the outside world as its session sees it.
pub(crate) struct Job {
    pub task: Backup,
    pub cx: Cx,
}

/// Backs up one source into several repositories, and reads it once: an object or file that several of them do not have
/// is asked for once, and the source is listed once for all.
///
/// The tasks name the same source, want the same of it and say the same of it; they may differ in the repository, the
/// parent, the tags, and in what is accepted of the repository's own history (`force`, `max_shrink`, `accept_shrink`,
/// `allow_empty`, `skip_if_unchanged`). Each has its own [`Progress`]; that of `cx` hears nothing.
///
/// There is one verdict per task, in their order. A repository that fails (locked, unreachable, full, wrong password)
/// is left out from then on, and the others go on; a slow one slows down all of them, as what was read is not kept for
/// it beyond a bounded number of bytes. What is wrong with the source is an error of all of them, as [`Error::Shared`].
/// Cancelling `cx` cancels all. [`BackupReport::source_requests`] are those of the whole run up to the end of that
/// repository. Each has buffers of its own ([`Options::memory`](cistern_repository::Options)), so that the whole takes
/// about as many times the memory of one.
pub async fn backup_to_several(tasks: &[(Backup, Arc<dyn Progress>)], cx: &Cx) -> Vec<Result<BackupReport>> {
    if let Err(error) = check_alike(tasks) {
        return error.for_all(tasks.len()).into_iter().map(Err).collect();
    }
    let jobs = tasks.iter().map(|(task, progress)| {
        check_tags(&task.tags)?;
        Ok(Job { task: task.clone(), cx: Cx { progress: progress.clone(), ..cx.clone() } })
    });
    let (jobs, refused) = Refused::sift(jobs);
    refused.merge(super::run_all(&jobs).await)
}

/// Refuses tasks that cannot be done by reading one source once.
fn check_alike(tasks: &[(Backup, Arc<dyn Progress>)]) -> Result<()> {
    let Some((first, _)) = tasks.first() else { return Ok(()) };
    for (i, (task, _)) in tasks.iter().enumerate() {
        if common(task) != common(first) {
            return Err(Error::Invalid(format!(
                "the backups into {} and {} do not want the same of the same source",
                first.repository, task.repository
            )));
        }
        if tasks[..i].iter().any(|(other, _)| other.repository == task.repository) {
            return Err(Error::Invalid(format!("the repository {} is named twice", task.repository)));
        }
    }
    Ok(())
}

/// A task without what may differ.
fn common(task: &Backup) -> Backup {
    let plain = Backup::new(task.source.clone(), task.source.clone(), "");
    Backup {
        repository: plain.repository,
        parent: plain.parent,
        tags: plain.tags,
        force: plain.force,
        max_shrink: plain.max_shrink,
        accept_shrink: plain.accept_shrink,
        allow_empty: plain.allow_empty,
        skip_if_unchanged: plain.skip_if_unchanged,
        ..task.clone()
    }
}

/// Those of several that have their verdict before the others begin.
pub(super) struct Refused(Vec<Option<Error>>);

impl Refused {
    /// Parts those that may go on from those that failed.
    pub fn sift<T>(outcomes: impl IntoIterator<Item = Result<T>>) -> (Vec<T>, Refused) {
        let mut on = Vec::new();
        let mut note = |outcome: Result<T>| outcome.map(|one| on.push(one)).err();
        let refused = outcomes.into_iter().map(&mut note).collect();
        (on, Refused(refused))
    }

    /// Puts the verdicts of those that went on between those of the others.
    pub fn merge<T>(self, outcomes: Vec<Result<T>>) -> Vec<Result<T>> {
        let mut outcomes = outcomes.into_iter();
        let verdict = |refused: Option<Error>| match refused {
            Some(error) => Err(error),
            None => outcomes.next().unwrap_or_else(|| Err(Error::Broken("a verdict is missing".into()))),
        };
        self.0.into_iter().map(verdict).collect()
    }
}
