//! Reads what there is of a BackupSession: its configuration, its rivals, its Snapshots and its Jobs.

use cistern_api::kinds::backup_configuration::BackupConfiguration;
use cistern_api::kinds::backup_session::{BackupSession, BackupSessionPhase, BackupSessionStatus};
use cistern_api::kinds::snapshot::Snapshot;
use cistern_api::{labels, name};
use kube::ResourceExt;

use super::decide::{Seen, Tracked};
use super::{job_name, retention_name};
use crate::context::Cx;
use crate::controller::Failure;
use crate::job::work::{Work, look};
use crate::snapshot::observed;

/// Reads; nothing is changed.
pub(super) async fn observe(session: BackupSession, cx: &Cx) -> Result<Seen, Failure> {
    let namespace = session.namespace().unwrap_or_default();
    let status = session.status.clone().unwrap_or_default();
    let is_over = status.phase.is_some_and(BackupSessionPhase::is_over);
    let is_new = status.conditions.is_empty();
    let configuration = cx.get::<BackupConfiguration>(&namespace, &session.spec.invoker.name);
    let rivals = async {
        if !is_new {
            return Ok(Vec::new());
        }
        cx.list::<BackupSession>(&namespace, "").await
    };
    let snapshots = async {
        if is_over {
            return Ok(Vec::new());
        }
        let selector = name::selector(labels::INVOKER_NAME, &session.name_any());
        cx.list::<Snapshot>(&namespace, &selector).await
    };
    let (backup, retention) = (job_name(&session), retention_name(&session));
    let has_retention = !status.retention_policy.is_empty() && !is_over;
    let cleanup = async {
        match has_retention {
            true => look(cx, &namespace, &retention).await,
            false => Ok(Work::Absent),
        }
    };
    let work = look(cx, &namespace, &backup);
    let (configuration, rivals, snapshots, work, cleanup) =
        futures::try_join!(configuration, rivals, snapshots, work, cleanup)?;

    let name = session.name_any();
    let mine = |one: &Snapshot| one.spec.backup_session.as_deref() == Some(name.as_str());
    let track = |object: Snapshot| {
        let status = observed(object.status.clone().unwrap_or_default(), None, cx.now());
        Tracked { object, status, taken_over: false }
    };
    let limits = cx.settings();
    Ok(Seen {
        rival: rival(&session, &rivals),
        snapshots: snapshots.into_iter().filter(mine).map(track).collect(),
        session,
        status,
        configuration,
        work,
        cleanup,
        start_limit: limits.start_limit,
        stall_limit: limits.stall_limit,
    })
}

/// The session that keeps this one from running: one of the same configuration that has begun, or that is older and not
/// over. So of two that are created together exactly one is run.
fn rival(session: &BackupSession, all: &[BackupSession]) -> Option<String> {
    let age =
        |one: &BackupSession| (one.metadata.creation_timestamp.as_ref().map(|time| time.0), one.name_any());
    let rivals = all.iter().filter(|one| {
        let status = one.status.clone().unwrap_or_default();
        one.spec.invoker == session.spec.invoker
            && one.name_any() != session.name_any()
            && one.metadata.deletion_timestamp.is_none()
            && !status.phase.is_some_and(BackupSessionPhase::is_over)
            && (has_begun(&status) || age(one) < age(session))
    });
    rivals.min_by_key(|one| age(one)).map(ResourceExt::name_any)
}

fn has_begun(status: &BackupSessionStatus) -> bool {
    !status.conditions.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn session(name: &str, second: u32, invoker: &str, status: Value) -> BackupSession {
        let session = json!({
            "metadata": { "name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z") },
            "spec": { "invoker": { "kind": "BackupConfiguration", "name": invoker }, "session": "a" },
            "status": status,
        });
        serde_json::from_value(session).expect("a session")
    }

    #[test]
    fn of_sessions_that_begin_together_the_oldest_is_run() {
        let begun = json!({ "phase": "Pending", "conditions": [
            { "type": "SnapshotsEnsured", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" },
        ] });
        let over = json!({ "phase": "Failed" });
        let none = Value::Null;
        let all = [
            session("b", 1, "pvc", none.clone()),
            session("a", 1, "pvc", none.clone()),
            session("c", 2, "pvc", none.clone()),
        ];
        let rivals = all.each_ref().map(|one| rival(one, &all));
        assert_eq!(rivals, [Some("a".into()), None, Some("a".into())]);
        let one = session("b", 5, "pvc", none.clone());
        let with = |other: BackupSession| rival(&one, &[one.clone(), other]);
        assert_eq!(with(session("a", 1, "pvc", over)), None, "it is over");
        assert_eq!(with(session("a", 1, "other", none)), None, "another configuration");
        assert_eq!(with(session("c", 9, "pvc", begun)), Some("c".into()), "younger, and it has begun");
    }
}
