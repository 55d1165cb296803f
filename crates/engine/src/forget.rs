//! Removes snapshots by name or by policy.
//!
//! Nothing is decided on a list that somebody else may be changing: the snapshots are listed under the exclusive lock,
//! which restic takes for this, too.

use cistern_repository::{Id, Lock, LockKind, Repository, Snapshot};
use jiff::Timestamp;
use serde::Serialize;

use crate::backup::session::{lock_as, open_repository};
use crate::retention::{Group, Verdict, apply, groups};
use crate::snapshots::chosen;
use crate::{Cx, Error, Forget, Result};

/// What a removal of snapshots did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ForgetReport {
    /// What was judged by the policy, or named.
    pub groups: Vec<ForgottenGroup>,
    /// Snapshots that were removed: none in a dry run.
    pub removed: u64,
    /// Whether nothing was to be removed.
    pub dry_run: bool,
}

/// Runs that were judged together.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ForgottenGroup {
    /// What they have in common.
    pub group: Group,
    /// The runs, the oldest first.
    pub runs: Vec<Judged>,
}

/// A run and what becomes of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judged {
    /// The snapshots of its parts.
    #[serde(serialize_with = "ids_only")]
    pub parts: Vec<(Id, Snapshot)>,
    /// Whether it is kept, and why.
    #[serde(flatten)]
    pub verdict: Verdict,
}

fn ids_only<S: serde::Serializer>(parts: &[(Id, Snapshot)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(parts.iter().map(|(id, _)| id.to_string()))
}

/// Judges and removes.
///
/// # Errors
/// Whatever kept it from being done; a policy that would leave nothing of a group. What was removed before an error
/// stays removed.
pub(crate) async fn run(task: &Forget, cx: &Cx) -> Result<ForgetReport> {
    let filter = &task.filter;
    let is_narrowed = !(filter.hosts.is_empty() && filter.paths.is_empty() && filter.tags.is_empty());
    if task.snapshots.is_empty() && task.policy.is_empty() && task.allow_remove_all && !is_narrowed {
        return Err(Error::Invalid("to remove all snapshots, say of which host, path or tag".into()));
    }
    if task.snapshots.is_empty() && task.policy.is_empty() && !task.allow_remove_all {
        return Err(Error::Invalid(
            "nothing says what to forget: neither a snapshot nor a rule of what to keep".into(),
        ));
    }
    let repository = cx.unless_cancelled(open_repository(&task.repository, cx)).await?.0;
    if task.dry_run {
        let listed = cx.unless_cancelled(repository.snapshots()).await?;
        return Ok(ForgetReport {
            groups: judge(task, listed, Timestamp::now())?,
            removed: 0,
            dry_run: true,
        });
    }
    let lock = lock_as(&repository, LockKind::Exclusive, cx).await?;
    let outcome = cx.unless_cancelled(remove(task, &repository, &lock)).await;
    lock.release().await;
    outcome
}

async fn remove(task: &Forget, repository: &Repository, lock: &Lock) -> Result<ForgetReport> {
    let groups = judge(task, repository.snapshots().await?, Timestamp::now())?;
    let mut removed = 0;
    for run in groups.iter().flat_map(|group| &group.runs).filter(|run| !run.verdict.keep) {
        for (id, _) in &run.parts {
            repository.remove_snapshot(id, lock).await?;
            removed += 1;
        }
    }
    Ok(ForgetReport { groups, removed, dry_run: false })
}

/// What becomes of which run.
fn judge(task: &Forget, snapshots: Vec<(Id, Snapshot)>, now: Timestamp) -> Result<Vec<ForgottenGroup>> {
    if !task.snapshots.is_empty() {
        return named(task, &snapshots);
    }
    let meant = chosen(&snapshots, &[], &task.filter)?;
    let mut judged = Vec::new();
    for (group, runs) in groups(meant, task.group_by) {
        let verdicts = match task.policy.is_empty() {
            true => vec![Verdict { keep: false, reasons: vec!["all are removed".into()] }; runs.len()],
            false => apply(&task.policy, &runs, now),
        };
        if !task.policy.is_empty() && !verdicts.iter().any(|verdict| verdict.keep) {
            return Err(Error::Invalid(format!(
                "the rules keep no snapshot of {group}: nothing was removed",
            )));
        }
        let runs = runs.into_iter().zip(verdicts).map(|(run, verdict)| Judged { parts: run.parts, verdict });
        judged.push(ForgottenGroup { group, runs: runs.collect() });
    }
    Ok(judged)
}

/// The runs that are named, each once.
fn named(task: &Forget, snapshots: &[(Id, Snapshot)]) -> Result<Vec<ForgottenGroup>> {
    let verdict = Verdict { keep: false, reasons: vec!["it was named".into()] };
    let runs = chosen(snapshots, &task.snapshots, &task.filter)?.into_iter();
    let runs = runs.map(|run| Judged { parts: run.parts, verdict: verdict.clone() }).collect();
    Ok(vec![ForgottenGroup { group: Group::default(), runs }])
}
