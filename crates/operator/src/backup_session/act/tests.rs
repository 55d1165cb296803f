//! What becomes of components whose Job is dead, of a session's end, and of a failure that is tried again.

use cistern_api::kinds::snapshot::SnapshotStatus;
use serde_json::{Value, json};

use super::*;
use crate::job::work::Work;

fn time(second: i64) -> Timestamp {
    "2026-01-01T10:00:00Z".parse::<Timestamp>().expect("a time") + SignedDuration::from_secs(second)
}

fn made<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a document")
}

fn snapshot(name: &str, components: Value) -> Tracked {
    let status: SnapshotStatus = made(json!({ "totalComponents": 1, "components": components }));
    Tracked {
        object: made(json!({ "metadata": { "name": name }, "spec": { "repository": name } })),
        status: observed(status, None, time(0)),
        taken_over: false,
    }
}

fn seen(snapshots: Vec<Tracked>) -> Seen {
    let minute = std::time::Duration::from_mins(1);
    Seen {
        session: made(json!({
            "metadata": { "name": "pvc-hourly-1767261600", "namespace": "demo", "creationTimestamp": time(0) },
            "spec": { "invoker": { "kind": "BackupConfiguration", "name": "pvc" }, "session": "hourly", "retryLeft": 2 },
        })),
        status: Default::default(),
        configuration: Some(made(json!({
            "metadata": { "name": "pvc", "namespace": "demo", "uid": "uid of the configuration" },
            "spec": { "sessions": [{ "name": "hourly", "retryConfig": { "maxRetry": 2, "delay": "1m30s" } }] },
        }))),
        rival: None,
        snapshots,
        work: Work::Absent,
        cleanup: Work::Absent,
        start_limit: minute,
        stall_limit: minute,
    }
}

#[test]
fn a_dead_job_s_components_have_failed_unless_it_said_otherwise() {
    let running = || json!({ "dump": { "phase": "Running", "path": "repository/v1/hourly/dump" } });
    let done = json!({ "dump": { "phase": "Succeeded", "integrity": true } });
    let mut seen = seen(vec![
        snapshot("silent", running()),
        snapshot("absent", json!({})),
        snapshot("refused", running()),
        snapshot("unheard", running()),
        snapshot("empty", running()),
        snapshot("done", done),
    ]);
    let outcome: Outcome = made(json!({ "results": [
        { "name": "refused", "error": "wrong password" }, { "name": "unheard", "snapshots": ["abc"] }, { "name": "empty" },
    ] }));
    take_over(&mut seen, "OOMKilled, code 137", Some(&outcome), time(9));
    let told: Vec<_> = seen
        .snapshots
        .iter()
        .map(|one| {
            let part = &one.status.components["dump"];
            let incomplete = condition::BACKUP_INCOMPLETE.in_list(&one.status.conditions);
            (one.object.name_any(), part.phase, part.error.as_deref(), incomplete.is_some(), one.taken_over)
        })
        .collect();
    use SnapshotPhase::*;
    assert_eq!(
        told,
        [
            ("silent".into(), Some(Failed), Some("OOMKilled, code 137"), true, true),
            ("absent".into(), Some(Failed), Some("OOMKilled, code 137"), true, true),
            ("refused".into(), Some(Failed), Some("wrong password"), false, true),
            ("unheard".into(), Some(Succeeded), None, false, true),
            ("empty".into(), Some(Failed), Some("OOMKilled, code 137"), false, true),
            ("done".into(), Some(Succeeded), None, false, false),
        ]
    );
    let absent = &seen.snapshots[1].status.components["dump"];
    assert_eq!(absent.path.as_deref(), Some("repository/v1/hourly/dump"));
    assert_eq!(seen.snapshots[3].status.components["dump"].restic_stats[0].snapshot(), Some("abc"));
}

#[test]
fn the_end_has_a_phase_a_duration_and_the_time_of_the_next_try() {
    let uploaded = |mut one: Tracked| {
        let news = condition::SNAPSHOT_METADATA_UPLOADED.is(true, "", time(0));
        one.status = observed(one.status, Some(news), time(0));
        one
    };
    let ended = |phase: &str| {
        let mut seen = seen(vec![uploaded(snapshot("a", json!({ "dump": { "phase": phase } })))]);
        finish(&mut seen, time(49));
        (
            seen.status.phase.expect("a phase"),
            seen.status.duration.clone(),
            seen.status.next_retry.map(|at| at.0),
        )
    };
    assert_eq!(ended("Succeeded"), (BackupSessionPhase::Succeeded, Some("49s".into()), None));
    assert_eq!(ended("Failed"), (BackupSessionPhase::Failed, Some("49s".into()), Some(time(139))));
    let mut nothing = seen(vec![]);
    nothing.note(condition::BACKUP_EXECUTOR_ENSURED.is(false, "no Addon", time(0)));
    finish(&mut nothing, time(1));
    assert_eq!(nothing.status.phase, Some(BackupSessionPhase::Failed));
    let mut skipped = seen(vec![]);
    skipped.note(condition::BACKUP_SKIPPED.is(true, "paused", time(0)));
    finish(&mut skipped, time(1));
    assert_eq!((skipped.status.phase, skipped.status.next_retry), (Some(BackupSessionPhase::Skipped), None));
}

#[test]
fn a_failure_is_tried_again_under_the_name_of_its_time() {
    let next = successor(&seen(vec![]), time(90)).expect("a session");
    assert_eq!(next.name_any(), "pvc-hourly-1767261690");
    assert_eq!(next.spec.retry_left, Some(1));
    assert_eq!(next.labels()[labels::INVOKER_NAME], "pvc");
    assert_eq!(next.owner_references()[0].uid, "uid of the configuration");
    assert_eq!(next.namespace().as_deref(), Some("demo"));
}
