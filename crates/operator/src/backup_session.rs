//! Carries one BackupSession from Pending to an outcome that never changes again.
//!
//! A pass reads what there is (`observe`), and then goes from step to step (`decide`) as far as it gets without waiting;
//! what was reached is written once at its end. Whatever a step makes has a derived name, so that a pass that was cut off
//! is repeated without harm.

use std::time::Duration;

use cistern_api::kinds::backup_session::{BackupSession, BackupSessionPhase};
use cistern_api::kinds::snapshot::Snapshot;
use cistern_api::{labels, name, phase};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;

use crate::context::Cx;
use crate::controller::{Failure, Reconcile, Requeue, Watches};
use crate::job;
use crate::snapshot;

mod act;
mod clean;
mod decide;
mod observe;
mod start;

use decide::{Seen, decide};

impl Reconcile for BackupSession {
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches.owned::<Job>().on::<Snapshot>(|snapshot| {
            let session = snapshot.spec.backup_session.clone();
            session.map(|name| (snapshot.namespace().unwrap_or_default(), name)).into_iter().collect()
        })
    }

    async fn reconcile(&self, cx: &Cx) -> Result<Requeue, Failure> {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        // Of two sessions of a configuration that begin together, one has begun when the other one looks.
        let turn = match is_new(self) {
            true => Some(cx.lock(&format!("begin {namespace}/{}", self.spec.invoker.name)).await),
            false => None,
        };
        // What woke us may be older than what we wrote last: then everything would be done twice, and written in vain.
        let Some(session) = cx.get::<BackupSession>(&namespace, &name).await? else {
            return Ok(Requeue::OnChange);
        };
        if session.metadata.deletion_timestamp.is_some() {
            return abandon(&session, cx).await;
        }
        let session = cx.hold(&session).await?;
        let mut seen = observe::observe(session, cx).await?;
        let outcome = loop {
            let step = decide(&seen, cx.now());
            match act::act(step, &mut seen, cx).await {
                Ok(None) => {}
                Ok(Some(requeue)) => break Ok(requeue),
                Err(failure) => break Err(failure),
            }
        };
        // What was reached is kept even if the next step failed.
        publish(&mut seen, cx).await?;
        drop(turn);
        outcome
    }
}

/// Whether nothing was done for a session yet.
fn is_new(session: &BackupSession) -> bool {
    session.status.as_ref().is_none_or(|status| status.conditions.is_empty())
}

/// Writes the Snapshots' statuses, then the session's.
async fn publish(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    let was_over =
        seen.session.status.as_ref().and_then(|status| status.phase).is_some_and(BackupSessionPhase::is_over);
    if !was_over {
        seen.list_snapshots();
        if !seen.status.phase.is_some_and(BackupSessionPhase::is_over) {
            seen.status.phase = Some(phase::backup_session(&seen.status));
        }
        let each = seen
            .snapshots
            .iter()
            .map(|one| snapshot::publish(cx, &one.object, one.status.clone(), one.taken_over));
        futures::future::try_join_all(each).await?;
    }
    cx.publish(&seen.session, &seen.status).await
}

/// The name of a session's Job, and of what belongs to it.
fn job_name(session: &BackupSession) -> String {
    name::joined(&session.name_any(), "", "")
}

/// The name of a session's retention Job.
fn retention_name(session: &BackupSession) -> String {
    name::retention(&session.name_any())
}

/// Ends a session that somebody deletes: its Jobs go, and what they were at has failed.
async fn abandon(session: &BackupSession, cx: &Cx) -> Result<Requeue, Failure> {
    if !session.finalizers().iter().any(|name| name == labels::FINALIZER) {
        return Ok(Requeue::OnChange);
    }
    let over =
        session.status.as_ref().and_then(|status| status.phase).is_some_and(BackupSessionPhase::is_over);
    if !over {
        let (backup, retention) = (job_name(session), retention_name(session));
        futures::try_join!(job::stop(cx, session, &backup), job::stop(cx, session, &retention))?;
        let mut seen = observe::observe(session.clone(), cx).await?;
        act::take_over(&mut seen, "the BackupSession was deleted", None, cx.now());
        for one in &seen.snapshots {
            snapshot::publish(cx, &one.object, one.status.clone(), one.taken_over).await?;
        }
    }
    cx.release(session).await?;
    Ok(Requeue::OnChange)
}

/// How long the file of a Snapshot is tried to be written after the Job last reported.
const UPLOAD_LIMIT: Duration = Duration::from_mins(10);
