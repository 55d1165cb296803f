//! What becomes of components whose Job is dead, of a restore's end, and which backups have to wait.

use super::*;

fn time(second: i64) -> Timestamp {
    "2026-01-01T10:00:00Z".parse::<Timestamp>().expect("a time") + SignedDuration::from_secs(second)
}

fn made<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a document")
}

fn seen(components: Value, total: i32) -> Seen {
    let session: RestoreSession = made(json!({
        "metadata": { "name": "r", "namespace": "demo", "creationTimestamp": time(0) },
        "spec": { "dataSource": { "snapshot": "s" } },
        "status": { "components": components, "totalComponents": total },
    }));
    Seen {
        status: session.status.clone().expect("a status"),
        session,
        work: Work::Absent,
        taken_over: false,
        start_limit: WAIT,
        stall_limit: WAIT,
    }
}

#[test]
fn a_dead_job_s_components_have_failed_unless_it_said_otherwise() {
    let running = || json!({ "a": { "phase": "Succeeded" }, "b": { "phase": "Running" } });
    let phases = |seen: &Seen| -> Vec<_> {
        let all = seen.status.components.iter();
        all.map(|(name, part)| (name.clone(), part.phase.expect("a phase"), part.error.clone())).collect()
    };
    use RestorePhase::*;
    let mut silent = seen(running(), 2);
    take_over(&mut silent, "OOMKilled", None, time(1));
    assert_eq!(
        phases(&silent),
        [("a".into(), Succeeded, None), ("b".into(), Failed, Some("OOMKilled".into()))]
    );
    assert_eq!(condition::RESTORE_INCOMPLETE.in_list(&silent.status.conditions), Some(Truth::True));

    let mut unheard = seen(running(), 2);
    let outcome: Outcome = made(json!({ "results": [{ "name": "a" }, { "name": "b" }] }));
    take_over(&mut unheard, "no report", Some(&outcome), time(1));
    assert_eq!(phases(&unheard), [("a".into(), Succeeded, None), ("b".into(), Succeeded, None)]);
    assert_eq!(condition::RESTORE_INCOMPLETE.in_list(&unheard.status.conditions), None);
    finish(&mut unheard, time(49));
    assert_eq!((unheard.status.phase, unheard.status.duration.as_deref()), (Some(Succeeded), Some("49s")));

    let mut never = seen(json!({}), 1);
    take_over(&mut never, "its pod did not start", None, time(1));
    finish(&mut never, time(2));
    assert_eq!(never.status.phase, Some(Failed));
    assert_eq!(failure_of(&never.status), "its pod did not start");
}

#[test]
fn backups_of_the_same_claim_wait_for_a_restore() {
    let configuration = |target: Value| -> BackupConfiguration {
        made(
            json!({ "metadata": { "name": "c", "namespace": "demo" }, "spec": { "target": target, "sessions": [] } }),
        )
    };
    for (target, expected) in [
        (json!({ "kind": "PersistentVolumeClaim", "name": "pvc" }), true),
        (json!({ "kind": "PersistentVolumeClaim", "name": "pvc", "namespace": "demo" }), true),
        (json!({ "kind": "PersistentVolumeClaim", "name": "pvc", "namespace": "other" }), false),
        (json!({ "kind": "PersistentVolumeClaim", "name": "other" }), false),
        (json!({ "kind": "Deployment", "name": "pvc" }), false),
        (Value::Null, false),
    ] {
        assert_eq!(backs_up(&configuration(target.clone()), "pvc"), expected, "{target}");
    }
}
