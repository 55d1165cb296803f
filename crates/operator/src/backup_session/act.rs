//! The steps of a BackupSession that change something.

use cistern_api::condition;
use cistern_api::job::{COMPONENT, Outcome};
use cistern_api::kinds::backup_session::{BackupSession, BackupSessionPhase};
use cistern_api::kinds::snapshot::{Component, ResticStats, ResticSummary, SnapshotPhase};
use cistern_api::{labels, name, phase, size};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::decide::{Seen, Step, Tracked, retry_at};
use super::{UPLOAD_LIMIT, clean, job_name, retention_name, start};
use crate::context::{Cx, news, owner, warning};
use crate::controller::{Failure, Requeue};
use crate::destination;
use crate::job;
use crate::snapshot::{heard, observed, parts_are_over};

/// Takes a step. Gives when to look again, or nothing if the next step can be taken at once.
pub(super) async fn act(step: Step, seen: &mut Seen, cx: &Cx) -> Result<Option<Requeue>, Failure> {
    let now = cx.now();
    match step {
        Step::Rest(requeue) => return Ok(Some(requeue)),
        Step::Stay(requeue) => {
            // A pod that runs waits no more.
            seen.status.conditions.retain(|one| one.type_ != condition::POD_PENDING.name);
            if let Some(told) = job::work::pending(&seen.work, now) {
                seen.note(told);
            }
            return Ok(Some(requeue));
        }
        Step::Skip(reason, why) => {
            cx.announce(&seen.session, news(reason, "Backup", why.clone())).await;
            seen.note(condition::BACKUP_SKIPPED.is(true, why, now).because(reason));
            finish(seen, now);
        }
        Step::Start => start::start(seen, cx).await?,
        Step::TakeOver(why, outcome) => take_over(seen, &why, outcome.as_ref(), now),
        Step::Stop(reason, why) => {
            job::stop(cx, &seen.session, &job_name(&seen.session)).await?;
            cx.announce(&seen.session, warning(reason, "Backup", why.clone())).await;
            seen.note(condition::DEADLINE_EXCEEDED.is(true, why.clone(), now).because(reason));
            take_over(seen, &why, None, now);
        }
        Step::Seal => {
            // Whoever is done waits no more.
            seen.status.conditions.retain(|one| one.type_ != condition::POD_PENDING.name);
            seal(seen, cx).await?;
        }
        Step::Retain => clean::retain(seen, cx).await?,
        Step::Remove(error, outcome) => clean::remove(seen, error, outcome, cx).await?,
        Step::Trim => {
            clean::trim(seen, cx).await?;
            seen.note(condition::SESSION_HISTORY_CLEANED.is(true, "Old sessions have been deleted.", now));
        }
        Step::Finish => {
            let jobs = [job_name(&seen.session), retention_name(&seen.session)];
            let secrets = jobs.iter().map(|name| cx.delete_owned::<Secret>(&seen.session, name));
            futures::future::try_join_all(secrets).await?;
            finish(seen, now);
            let event = match phase::backup_session_failure(&seen.status) {
                None => news("BackupSucceeded", "Backup", "the backup is done"),
                Some(why) => warning("BackupFailed", "Backup", why),
            };
            cx.announce(&seen.session, event).await;
        }
        Step::Retry(at) => {
            cx.create_once(&successor(seen, at)?).await?;
            seen.status.retried = Some(true);
        }
        Step::Sweep => {
            job::stop(cx, &seen.session, &job_name(&seen.session)).await?;
            seen.work = job::work::Work::Absent;
        }
    }
    Ok(None)
}

impl Seen {
    /// Namespace of the session and of all that belongs to it.
    pub fn namespace(&self) -> String {
        self.session.namespace().unwrap_or_default()
    }
}

/// Marks the end.
fn finish(seen: &mut Seen, now: Timestamp) {
    seen.note(condition::METRICS_PUSHED.is(true, "Metrics have been pushed successfully.", now));
    seen.list_snapshots();
    let phase = phase::backup_session(&seen.status);
    // Without a Snapshot there is nothing that could have succeeded.
    let phase = if phase.is_over() { phase } else { BackupSessionPhase::Failed };
    seen.status.phase = Some(phase);
    let began = seen.session.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let took = std::time::Duration::try_from(now.duration_since(began)).unwrap_or_default();
    seen.status.duration = Some(size::go_seconds(took));
    seen.status.next_retry = retry_at(seen).map(Time);
}

/// Ends the components that a dead Job left open: by what its pod said at the end, else as failed.
pub(super) fn take_over(seen: &mut Seen, why: &str, outcome: Option<&Outcome>, now: Timestamp) {
    let session = seen.session.spec.session.clone().unwrap_or_default();
    for one in seen.snapshots.iter_mut().filter(|one| !parts_are_over(&one.status)) {
        let name = one.object.name_any();
        let said = outcome.and_then(|outcome| outcome.results.iter().find(|line| line.name == name));
        let mut part = one.status.components.remove(COMPONENT).unwrap_or_default();
        part.path.get_or_insert_with(|| name::component_path(&session, COMPONENT));
        part.driver.get_or_insert_with(|| "Restic".into());
        let error = match said {
            Some(line) => line.error.clone(),
            None => Some(why.to_owned()),
        };
        if let Some(line) = said.filter(|line| !line.snapshots.is_empty()) {
            part.restic_stats = line.snapshots.iter().map(|id| stats(id)).collect();
        }
        // Success without a restic snapshot is none.
        let succeeded = error.is_none() && !part.restic_stats.is_empty();
        part.phase = Some(if succeeded { SnapshotPhase::Succeeded } else { SnapshotPhase::Failed });
        part.error = if succeeded { None } else { error.or_else(|| Some(why.to_owned())) };
        let incomplete = said.is_none().then(|| condition::BACKUP_INCOMPLETE.is(true, why, now));
        end(one, part, incomplete, now);
    }
}

fn end(one: &mut Tracked, part: Component, news: Option<condition::Condition>, now: Timestamp) {
    one.status.components.insert(COMPONENT.into(), part);
    // The totals of what a Job promised and did not make are what there is.
    one.status = observed(std::mem::take(&mut one.status), news, now);
    one.taken_over = true;
}

fn stats(id: &str) -> ResticStats {
    let summary = ResticSummary { id: Some(id.to_owned()), ..ResticSummary::default() };
    ResticStats { summary: Some(summary), ..ResticStats::default() }
}

/// Writes the Snapshots beside their data, all at once.
async fn seal(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    let namespace = seen.namespace();
    let now = cx.now();
    let open = seen.snapshots.iter_mut().filter(|one| !one.is_sealed());
    let each = open.map(async |one: &mut Tracked| {
        let done = "Metadata uploaded to backend successfully";
        let uploaded = condition::SNAPSHOT_METADATA_UPLOADED.is(true, done, now);
        let sealed = observed(one.status.clone(), Some(uploaded), now);
        let mut file = one.object.clone();
        file.status = Some(sealed.clone());
        let written = async {
            let found = destination::find(cx, &namespace, &file.spec.repository).await?;
            found.layout(cx).await?.write_snapshot(&found.repository.spec.path, &file).await
        };
        match written.await {
            Ok(()) => one.status = sealed,
            Err(failure) => {
                let limit = SignedDuration::try_from(UPLOAD_LIMIT).unwrap_or_default();
                let is_late = heard(&one.object).is_none_or(|heard| now.duration_since(heard) > limit);
                if !is_late && matches!(failure, Failure::Transient(_) | Failure::Busy(..)) {
                    return Err(failure);
                }
                let failed = condition::SNAPSHOT_METADATA_UPLOADED.is(false, failure.to_string(), now);
                one.status = observed(std::mem::take(&mut one.status), Some(failed), now);
            }
        }
        Ok(())
    });
    futures::future::try_join_all(each).await.map(drop)
}

/// The session that tries again what this one failed at.
fn successor(seen: &Seen, at: Timestamp) -> Result<BackupSession, Failure> {
    let configuration = seen.configuration.as_ref();
    let configuration =
        configuration.ok_or_else(|| Failure::Broken("a retry without a configuration".into()))?;
    let invoker = &seen.session.spec.invoker.name;
    let mut spec = seen.session.spec.clone();
    let session = spec.session.clone().unwrap_or_default();
    spec.retry_left = spec.retry_left.map(|left| (left - 1).max(0));
    let mut next = BackupSession::new(&name::backup_session(invoker, &session, at.as_second()), spec);
    next.metadata.namespace = seen.session.namespace();
    next.metadata.owner_references = Some(vec![owner(configuration)]);
    let marks =
        [(labels::MANAGED_BY, labels::MANAGER.to_owned()), (labels::INVOKER_NAME, name::label(invoker))];
    next.metadata.labels = Some(marks.map(|(label, value)| (label.to_owned(), value)).into());
    Ok(next)
}

#[cfg(test)]
mod tests;
