//! A table of the life of a BackupSession: what is seen, and what is done.

use serde_json::{Value, json};

use super::*;

fn time(minute: i64) -> Timestamp {
    "2026-01-01T10:00:00Z".parse::<Timestamp>().expect("a time") + SignedDuration::from_mins(minute)
}

fn made<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a document")
}

/// `+Name` is a condition that is true, `-Name` one that is false.
fn conditions(text: &str) -> Vec<Condition> {
    let condition = |word: &str| {
        let (sign, name) = word.split_at(1);
        let kind = condition::ALL.iter().find(|kind| kind.name == name).expect("a known condition");
        kind.is(sign == "+", "", time(0))
    };
    text.split_whitespace().map(condition).collect()
}

fn configuration(change: Value) -> BackupConfiguration {
    let mut document = json!({
        "metadata": { "name": "pvc" },
        "spec": { "sessions": [{ "name": "hourly", "retryConfig": { "maxRetry": 2, "delay": "5m" } }] },
        "status": { "phase": "Ready" },
    });
    for (path, value) in change.as_object().expect("changes") {
        *document.pointer_mut(path).expect("a member") = value.clone();
    }
    made(document)
}

/// A Snapshot whose one component is in this phase; `+` says that its file is uploaded.
fn snapshot(phase: &str, heard: Option<i64>) -> Tracked {
    let (phase, uploaded) = phase.strip_suffix('+').map_or((phase, false), |phase| (phase, true));
    let components = if phase.is_empty() { json!({}) } else { json!({ "dump": { "phase": phase } }) };
    let status: SnapshotStatus = made(json!({ "totalComponents": 1, "components": components }));
    let news = uploaded.then(|| condition::SNAPSHOT_METADATA_UPLOADED.is(true, "", time(0)));
    let reported =
        heard.map(|minute| json!([{ "manager": "job", "subresource": "status", "time": time(minute) }]));
    let metadata = json!({ "name": "repo-s", "managedFields": reported });
    Tracked {
        object: made(json!({ "metadata": metadata, "spec": { "repository": "repo" } })),
        status: crate::snapshot::observed(status, news, time(0)),
        taken_over: false,
    }
}

fn seen() -> Seen {
    Seen {
        session: made(json!({
            "metadata": { "name": "s" },
            "spec": { "invoker": { "kind": "BackupConfiguration", "name": "pvc" }, "session": "hourly", "retryLeft": 1 },
        })),
        status: BackupSessionStatus::default(),
        configuration: Some(configuration(json!({}))),
        rival: None,
        snapshots: Vec::new(),
        work: Work::Absent,
        cleanup: Work::Absent,
        start_limit: Duration::from_mins(15),
        stall_limit: Duration::from_hours(1),
    }
}

const STARTED: &str = "+SnapshotsEnsured +BackupExecutorEnsured";

/// A session that has begun.
fn running(phase: &str, work: Work) -> Seen {
    let mut seen = Seen { snapshots: vec![snapshot(phase, None)], work, ..seen() };
    seen.status.conditions = conditions(STARTED);
    seen
}

/// A session whose backup is done.
fn after(more: &str) -> Seen {
    let mut seen = running("Succeeded+", Work::Absent);
    seen.status.conditions.extend(conditions(more));
    seen
}

fn over(phase: BackupSessionPhase) -> Seen {
    let mut seen = after("+RetentionPolicyExecutorEnsured +SessionHistoryCleaned +MetricsPushed");
    seen.status.phase = Some(phase);
    seen
}

fn ended(error: Option<&str>) -> Work {
    Work::Ended { at: time(0), error: error.map(Into::into), outcome: None }
}

fn waiting(why: &str) -> Work {
    Work::Waiting { since: time(0), why: why.into() }
}

fn skip(why: &str) -> Step {
    Step::Skip("PreRequisitesNotSatisfied", why.into())
}

fn at(minute: i64) -> Requeue {
    Requeue::At(time(minute))
}

#[test]
fn a_session_is_run_or_skipped() {
    let with = |change: Value| Seen { configuration: Some(configuration(change)), ..seen() };
    let table = [
        (seen(), Step::Start),
        (Seen { configuration: None, ..seen() }, skip("the BackupConfiguration pvc does not exist")),
        (with(json!({ "/status/phase": "NotReady" })), skip("the BackupConfiguration pvc is NotReady")),
        (with(json!({ "/status": null })), skip("the BackupConfiguration pvc is not Ready yet")),
        (
            with(json!({ "/spec/sessions/0/name": "daily" })),
            skip("the BackupConfiguration pvc has no session \"hourly\""),
        ),
        (
            with(json!({ "/spec": { "paused": true, "sessions": [] } })),
            skip("the BackupConfiguration pvc is paused"),
        ),
        (
            Seen { rival: Some("older".into()), ..seen() },
            Step::Skip("AnotherBackupSessionRunning", "BackupSession older is running".into()),
        ),
        // What hinders it anyway is told first.
        (
            Seen { rival: Some("older".into()), configuration: None, ..seen() },
            skip("the BackupConfiguration pvc does not exist"),
        ),
    ];
    for (seen, step) in table {
        assert_eq!(decide(&seen, time(0)), step, "{seen:?}");
    }
}

#[test]
fn a_backup_goes_on_until_its_components_are_over() {
    let take_over = |why: &str| Step::TakeOver(why.into(), None);
    let run = Work::Running { since: time(0) };
    let with_deadline = |work: &Work| {
        let mut seen = running("Running", work.clone());
        seen.status.backup_deadline = Some(made(json!(time(30))));
        seen
    };
    let heard =
        |minute| Seen { snapshots: vec![snapshot("Running", Some(minute))], ..running("", run.clone()) };
    let stop = |reason: &'static str, why: &str| Step::Stop(reason, why.into());
    let table = [
        (running("", waiting("")), 0, Step::Stay(at(1))),
        (running("", waiting("")), 1, Step::Stay(at(15))),
        (
            running("", waiting("0/3 nodes")),
            15,
            stop("StartDeadlineExceeded", "its pod did not start: 0/3 nodes"),
        ),
        (running("Running", run.clone()), 1, Step::Stay(at(60))),
        (
            running("Running", run.clone()),
            60,
            stop("ProgressDeadlineExceeded", "its pod runs and reports no progress"),
        ),
        (heard(40), 60, Step::Stay(at(100))),
        (with_deadline(&run), 29, Step::Stay(at(30))),
        (
            with_deadline(&run),
            30,
            stop("DeadlineExceeded", "the time for the backup is over; its pod runs and reports no progress"),
        ),
        (with_deadline(&waiting("no volume")), 0, Step::Stay(at(1))),
        (running("Running", ended(Some("OOMKilled, code 137"))), 1, take_over("OOMKilled, code 137")),
        (running("Running", ended(None)), 1, take_over("the Job ended without a report")),
        (running("Running", Work::Absent), 1, take_over("the backup Job is gone")),
        // What is done is done, whatever became of the Job and of the time.
        (running("Succeeded", run.clone()), 1, Step::Seal),
        (running("Succeeded", Work::Absent), 1, Step::Seal),
        (running("Failed", ended(Some("code 1"))), 1, Step::Seal),
        (running("Succeeded", run), 600, Step::Seal),
    ];
    for (seen, minute, step) in table {
        assert_eq!(decide(&seen, time(minute)), step, "{minute}: {seen:?}");
    }
}

#[test]
fn all_snapshots_are_waited_for() {
    let mut seen = running("Succeeded", Work::Running { since: time(0) });
    seen.snapshots.push(snapshot("Running", None));
    assert_eq!(decide(&seen, time(1)), Step::Stay(at(60)));
}

#[test]
fn after_the_backup_come_retention_history_and_the_end() {
    let retained = "+RetentionPolicyExecutorEnsured";
    let cleaning = |cleanup: Work| {
        let mut seen = Seen { cleanup, ..after(retained) };
        seen.status.retention_policy = vec![made(json!({ "phase": "Pending" }))];
        seen
    };
    let table = [
        (after(""), 1, Step::Retain),
        (cleaning(Work::Running { since: time(0) }), 1, Step::Stay(at(60))),
        (
            cleaning(Work::Running { since: time(0) }),
            60,
            Step::Remove(Some("its pod runs and reports no progress".into()), None),
        ),
        (cleaning(waiting("quota")), 15, Step::Remove(Some("its pod did not start: quota".into()), None)),
        (cleaning(ended(None)), 1, Step::Remove(None, None)),
        (cleaning(ended(Some("code 1"))), 1, Step::Remove(Some("code 1".into()), None)),
        (cleaning(Work::Absent), 1, Step::Remove(Some("the retention Job is gone".into()), None)),
        (after(retained), 1, Step::Trim),
        (after("+RetentionPolicyExecutorEnsured +SessionHistoryCleaned"), 1, Step::Finish),
    ];
    for (seen, minute, step) in table {
        assert_eq!(decide(&seen, time(minute)), step, "{minute}: {seen:?}");
    }
}

#[test]
fn a_session_that_could_not_begin_ends_without_retention() {
    let mut seen = seen();
    seen.status.conditions = conditions("-BackupExecutorEnsured");
    assert_eq!(decide(&seen, time(1)), Step::Trim);
    seen.status.conditions = conditions("-BackupExecutorEnsured +SessionHistoryCleaned");
    assert_eq!(decide(&seen, time(1)), Step::Finish);
}

#[test]
fn what_is_over_stays_over_and_a_failure_is_tried_again() {
    use BackupSessionPhase::*;
    let rest = || Step::Rest(Requeue::OnChange);
    let mut retried = over(Failed);
    retried.status.retried = Some(true);
    let mut exhausted = over(Failed);
    exhausted.session.spec.retry_left = Some(0);
    let table = [
        (over(Succeeded), 0, rest()),
        (over(Skipped), 0, rest()),
        (over(Failed), 0, Step::Rest(at(5))),
        (over(Failed), 5, Step::Retry(time(5))),
        (retried, 9, rest()),
        (exhausted, 9, rest()),
        (Seen { configuration: None, ..over(Failed) }, 9, rest()),
        (Seen { work: waiting("a Secret that is gone"), ..over(Succeeded) }, 1, Step::Rest(at(15))),
        (Seen { work: waiting("a Secret that is gone"), ..over(Succeeded) }, 15, Step::Sweep),
    ];
    for (seen, minute, step) in table {
        assert_eq!(decide(&seen, time(minute)), step, "{minute}: {seen:?}");
    }
}

#[test]
fn a_snapshot_that_somebody_deleted_has_failed() {
    let mut seen = running("Succeeded+", Work::Absent);
    seen.list_snapshots();
    assert_eq!(seen.status.snapshots[0].phase, Some(SnapshotPhase::Succeeded));
    seen.snapshots.clear();
    seen.list_snapshots();
    assert_eq!(
        (seen.status.snapshots.len(), seen.status.snapshots[0].phase),
        (1, Some(SnapshotPhase::Failed))
    );
}
