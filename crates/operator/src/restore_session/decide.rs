//! The life of a RestoreSession: what is seen and the time decide what is done next. Nothing here asks anybody.

use std::time::Duration;

use cistern_api::condition::{self, Condition, Truth};
use cistern_api::job::Outcome;
use cistern_api::kinds::restore_session::{RestorePhase, RestoreSession, RestoreSessionStatus};
use jiff::Timestamp;

use crate::controller::Requeue;
use crate::job::work::{Work, lags, next_look, reason};
use crate::snapshot::heard;

/// What is known of a restore.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The session as it was read.
    pub session: RestoreSession,
    /// Its status as it is going to be.
    pub status: RestoreSessionStatus,
    /// Its Job.
    pub work: Work,
    /// Whether its components are ours to write, because its Job is dead.
    pub taken_over: bool,
    /// How long a pod may take to start.
    pub start_limit: Duration,
    /// How long a Job may be without progress.
    pub stall_limit: Duration,
}

/// What is done next.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing, until something happens.
    Rest,
    /// It is found out whether it can be done, and which backups have to wait for it.
    Validate,
    /// Those backups are paused, and the Job is made.
    Start,
    /// The Job is at work.
    Stay(Requeue),
    /// The Job has ended, and components are open.
    TakeOver(String, Option<Outcome>),
    /// The Job is stopped: reason and message.
    Stop(&'static str, String),
    /// The end is marked.
    Finish,
}

/// What is done next.
pub(crate) fn decide(seen: &Seen, now: Timestamp) -> Step {
    let deadline = seen.status.restore_deadline.as_ref().map(|time| time.0);
    let is_late = deadline.is_some_and(|deadline| deadline <= now);
    let has = |kind: condition::ConditionKind| kind.in_list(&seen.status.conditions).is_some();
    if seen.is_over() {
        return Step::Rest; // Finished is finished.
    }
    if has(condition::DEADLINE_EXCEEDED) || has(condition::RESTORE_INCOMPLETE) || seen.components_are_over() {
        return Step::Finish;
    }
    if !has(condition::RESTORE_EXECUTOR_ENSURED) {
        return match (is_late, is_true(seen, condition::VALIDATION_PASSED)) {
            (true, _) => {
                Step::Stop("DeadlineExceeded", "the time for the restore was over before it began".into())
            }
            (false, true) => Step::Start,
            (false, false) => Step::Validate,
        };
    }
    match &seen.work {
        _ if !is_true(seen, condition::RESTORE_EXECUTOR_ENSURED) => Step::Finish,
        Work::Ended { error, outcome, .. } => {
            let why = error.clone().unwrap_or_else(|| "the Job ended without a report".into());
            Step::TakeOver(why, outcome.clone())
        }
        // Somebody deleted our Job.
        Work::Absent => Step::TakeOver("the restore Job is gone".into(), None),
        work if is_late => {
            Step::Stop("DeadlineExceeded", format!("the time for the restore is over; {}", lags(work)))
        }
        work => {
            let limits = (seen.start_limit, seen.stall_limit);
            match next_look(work, heard(&seen.session), limits, now) {
                Ok(next) => {
                    let next = [next, deadline].into_iter().flatten().min();
                    Step::Stay(next.map_or(Requeue::OnChange, Requeue::At))
                }
                Err(why) => Step::Stop(reason(work), why),
            }
        }
    }
}

fn is_true(seen: &Seen, kind: condition::ConditionKind) -> bool {
    kind.in_list(&seen.status.conditions) == Some(Truth::True)
}

impl Seen {
    /// Whether nothing changes any more. What was refused is looked at again when it was changed.
    pub fn is_over(&self) -> bool {
        let phase = self.status.phase.unwrap_or_default();
        let judged = condition::find(&self.status.conditions, condition::VALIDATION_PASSED);
        let is_changed =
            judged.is_some_and(|one| one.observed_generation != self.session.metadata.generation);
        phase.is_over() && !(phase == RestorePhase::Invalid && is_changed)
    }

    /// Whether every component that there is to be has ended.
    pub fn components_are_over(&self) -> bool {
        let ended =
            self.status.components.values().filter(|part| part.phase.is_some_and(RestorePhase::is_over));
        let total = self.status.total_components.and_then(|total| usize::try_from(total).ok());
        total.is_some_and(|total| total > 0 && ended.count() >= total)
    }

    /// Notes whether it can be done as it is written now.
    pub fn judge(&mut self, truth: Truth, text: &str, now: Timestamp) {
        let mut judged = condition::VALIDATION_PASSED.is(truth, text, now);
        judged.observed_generation = self.session.metadata.generation;
        self.note(judged);
    }

    /// Notes an observation.
    pub fn note(&mut self, condition: Condition) {
        condition::set(&mut self.status.conditions, condition);
    }
}

#[cfg(test)]
mod tests;
