//! The life of a BackupSession: what is seen and the time decide what is done next. Nothing here asks anybody.

use std::time::Duration;

use cistern_api::condition::{self, Condition, ConditionKind, Truth};
use cistern_api::job::Outcome;
use cistern_api::kinds::backup_configuration::{BackupConfiguration, BackupConfigurationPhase, Session};
use cistern_api::kinds::backup_session::{
    BackupSession, BackupSessionPhase, BackupSessionStatus, RetentionPolicyPhase, SnapshotLine,
};
use cistern_api::kinds::snapshot::{Snapshot, SnapshotPhase, SnapshotStatus};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::controller::Requeue;
use crate::job::work::{Work, given_up, lags, next_look, reason};
use crate::snapshot::{heard, parts_are_over};

/// What is known of a session and of what belongs to it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The session as it was read.
    pub session: BackupSession,
    /// Its status as it is going to be.
    pub status: BackupSessionStatus,
    /// The configuration that it is a run of.
    pub configuration: Option<BackupConfiguration>,
    /// Another session of the configuration that runs, or goes first.
    pub rival: Option<String>,
    /// Its Snapshots.
    pub snapshots: Vec<Tracked>,
    /// Its Job.
    pub work: Work,
    /// Its retention Job.
    pub cleanup: Work,
    /// How long a pod may take to start.
    pub start_limit: Duration,
    /// How long a Job may be without progress.
    pub stall_limit: Duration,
}

/// A Snapshot as it was read, and its status as it is going to be.
#[derive(Clone, Debug)]
pub(crate) struct Tracked {
    /// As it was read.
    pub object: Snapshot,
    /// As it is going to be.
    pub status: SnapshotStatus,
    /// Whether its components are ours to write, because its Job is dead.
    pub taken_over: bool,
}

impl Tracked {
    /// Whether it was written beside its data, or that was given up.
    pub fn is_sealed(&self) -> bool {
        condition::find(&self.status.conditions, condition::SNAPSHOT_METADATA_UPLOADED).is_some()
    }
}

/// What is done next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing, until something happens or the time comes.
    Rest(Requeue),
    /// It is not run.
    Skip(&'static str, String),
    /// Snapshots and Job are made.
    Start,
    /// The Job is at work.
    Stay(Requeue),
    /// The Job has ended, and components are open.
    TakeOver(String, Option<Outcome>),
    /// The Job is stopped: reason and message.
    Stop(&'static str, String),
    /// The Snapshots are written beside the data.
    Seal,
    /// Retention is seen to.
    Retain,
    /// What the retention Job forgot is removed, or it is said why not.
    Remove(Option<String>, Option<Outcome>),
    /// Old sessions are deleted.
    Trim,
    /// The end is marked.
    Finish,
    /// It failed, and is run again under the name of this time.
    Retry(Timestamp),
    /// A Job that outlived its session is deleted.
    Sweep,
}

/// Where a session is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    New,
    Backup,
    Retention,
    Cleanup,
    History,
    End,
    Over,
}

/// What is done next.
pub(crate) fn decide(seen: &Seen, now: Timestamp) -> Step {
    match (seen.stage(), &seen.work, &seen.cleanup) {
        (Stage::Over, ..) => afterwards(seen, now), // Finished is finished.
        (Stage::New, ..) => match (obstacle(seen), &seen.rival) {
            (Some(why), _) => Step::Skip(condition::BACKUP_SKIPPED.yes, why),
            (_, Some(rival)) => {
                Step::Skip(condition::ANOTHER_SESSION_RUNNING, format!("BackupSession {rival} is running"))
            }
            _ => Step::Start,
        },
        (Stage::Backup, ..) if seen.snapshots.iter().all(|one| parts_are_over(&one.status)) => Step::Seal,
        (Stage::Backup, Work::Ended { error, outcome, .. }, _) => {
            let why = error.clone().unwrap_or_else(|| "the Job ended without a report".into());
            Step::TakeOver(why, outcome.clone())
        }
        // Somebody deleted our Job.
        (Stage::Backup, Work::Absent, _) => Step::TakeOver("the backup Job is gone".into(), None),
        (Stage::Backup, work, _) => match overdue(seen, work, seen.heard(), now) {
            Ok(next) => Step::Stay(next),
            Err((reason, why)) => Step::Stop(reason, why),
        },
        (Stage::Retention, ..) => Step::Retain,
        (Stage::Cleanup, _, Work::Ended { error, outcome, .. }) => {
            Step::Remove(error.clone(), outcome.clone())
        }
        (Stage::Cleanup, _, Work::Absent) => Step::Remove(Some("the retention Job is gone".into()), None),
        (Stage::Cleanup, _, cleanup) => match given_up(cleanup, None, seen.start_limit, seen.stall_limit) {
            Some(at) if at <= now => Step::Remove(Some(lags(cleanup)), None),
            at => Step::Stay(at.map_or(Requeue::OnChange, Requeue::At)),
        },
        (Stage::History, ..) => Step::Trim,
        (Stage::End, ..) => Step::Finish,
    }
}

impl Seen {
    fn stage(&self) -> Stage {
        let has = |kind: ConditionKind| kind.in_list(&self.status.conditions);
        let started = [condition::SNAPSHOTS_ENSURED, condition::BACKUP_EXECUTOR_ENSURED].map(has);
        if self.status.phase.is_some_and(BackupSessionPhase::is_over) {
            Stage::Over
        } else if started == [None, None] {
            Stage::New
        } else if self.snapshots.iter().any(|one| !one.is_sealed()) {
            Stage::Backup
        } else if !started.contains(&Some(Truth::False))
            && has(condition::RETENTION_POLICY_EXECUTOR_ENSURED).is_none()
        {
            Stage::Retention
        } else if self
            .status
            .retention_policy
            .iter()
            .any(|line| line.phase == Some(RetentionPolicyPhase::Pending))
        {
            Stage::Cleanup
        } else if has(condition::SESSION_HISTORY_CLEANED).is_none() {
            Stage::History
        } else {
            Stage::End
        }
    }

    /// When the Job last reported.
    fn heard(&self) -> Option<Timestamp> {
        self.snapshots.iter().filter_map(|one| heard(&one.object)).max()
    }

    /// What the configuration says of this session.
    pub fn plan(&self) -> Option<&Session> {
        let name = self.session.spec.session.as_deref()?;
        self.configuration.as_ref()?.spec.sessions.iter().find(|one| one.name == name)
    }

    /// Notes an observation.
    pub fn note(&mut self, condition: Condition) {
        condition::set(&mut self.status.conditions, condition);
    }

    /// Lists the Snapshots as they are now. One that somebody deleted has failed.
    pub fn list_snapshots(&mut self) {
        for line in &mut self.status.snapshots {
            let found = self.snapshots.iter().find(|one| one.object.name_any() == line.name);
            line.phase = found.map_or(Some(SnapshotPhase::Failed), |one| one.status.phase);
        }
        for one in &self.snapshots {
            let name = one.object.name_any();
            if self.status.snapshots.iter().all(|line| line.name != name) {
                self.status.snapshots.push(SnapshotLine {
                    name,
                    phase: one.status.phase,
                    app_ref: one.object.spec.app_ref.clone(),
                    repository: Some(one.object.spec.repository.clone()),
                });
            }
        }
    }
}

/// Why a session cannot be run.
fn obstacle(seen: &Seen) -> Option<String> {
    let name = &seen.session.spec.invoker.name;
    let Some(configuration) = &seen.configuration else {
        return Some(format!("the BackupConfiguration {name} does not exist"));
    };
    if configuration.metadata.deletion_timestamp.is_some() {
        return Some(format!("the BackupConfiguration {name} is being deleted"));
    }
    if configuration.spec.paused == Some(true) {
        return Some(format!("the BackupConfiguration {name} is paused"));
    }
    let phase = configuration.status.as_ref().and_then(|status| status.phase);
    if phase != Some(BackupConfigurationPhase::Ready) {
        let phase = phase.map_or("not Ready yet".to_owned(), |phase| format!("{phase:?}"));
        return Some(format!("the BackupConfiguration {name} is {phase}"));
    }
    if seen.plan().is_none() {
        let session = seen.session.spec.session.as_deref().unwrap_or_default();
        return Some(format!("the BackupConfiguration {name} has no session {session:?}"));
    }
    None
}

/// When work is looked at again; or why it is given up.
fn overdue(
    seen: &Seen,
    work: &Work,
    heard: Option<Timestamp>,
    now: Timestamp,
) -> Result<Requeue, (&'static str, String)> {
    let deadline = seen.status.backup_deadline.as_ref().map(|time| time.0);
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Err(("DeadlineExceeded", format!("the time for the backup is over; {}", lags(work))));
    }
    let next = next_look(work, heard, (seen.start_limit, seen.stall_limit), now);
    let next = next.map_err(|why| (reason(work), why))?;
    Ok([next, deadline].into_iter().flatten().min().map_or(Requeue::OnChange, Requeue::At))
}

/// What is done when a session is over: a failure may be tried again, and no Job stays behind.
fn afterwards(seen: &Seen, now: Timestamp) -> Step {
    if let Some(at) = retry_at(seen) {
        return if at <= now { Step::Retry(at) } else { Step::Rest(Requeue::At(at)) };
    }
    match given_up(&seen.work, None, seen.start_limit, seen.stall_limit) {
        Some(at) if at <= now => Step::Sweep,
        Some(at) => Step::Rest(Requeue::At(at)),
        None => Step::Rest(Requeue::OnChange),
    }
}

/// When a session that failed is tried again.
pub(crate) fn retry_at(seen: &Seen) -> Option<Timestamp> {
    let status = &seen.status;
    let is_due = status.phase == Some(BackupSessionPhase::Failed)
        && seen.session.spec.retry_left.unwrap_or(0) > 0
        && status.retried != Some(true);
    if !is_due || seen.configuration.is_none() {
        return None;
    }
    let end = condition::find(&status.conditions, condition::METRICS_PUSHED)?.last_transition_time.0;
    let delay = seen.plan()?.retry_config.as_ref().and_then(|config| config.delay).map(Duration::from);
    let fresh = || end.checked_add(SignedDuration::try_from(delay.unwrap_or_default()).ok()?).ok();
    status.next_retry.as_ref().map(|time| time.0).or_else(fresh)
}

#[cfg(test)]
mod tests;
