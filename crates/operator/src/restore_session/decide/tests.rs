//! A table of the life of a RestoreSession: what is seen, and what is done.

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;

fn time(minute: i64) -> Timestamp {
    "2026-01-01T10:00:00Z".parse::<Timestamp>().expect("a time") + SignedDuration::from_mins(minute)
}

fn seen(status: Value, work: Work) -> Seen {
    let session = json!({
        "metadata": { "name": "r", "generation": 1 },
        "spec": { "dataSource": { "repository": "repo", "snapshot": "latest" } },
        "status": status,
    });
    let session: RestoreSession = serde_json::from_value(session).expect("a session");
    Seen {
        status: session.status.clone().unwrap_or_default(),
        session,
        work,
        taken_over: false,
        start_limit: Duration::from_mins(15),
        stall_limit: Duration::from_hours(1),
    }
}

/// `+Name` is a condition that is true, `-Name` one that is false.
fn conditions(text: &str) -> Value {
    let condition = |word: &str| {
        let (sign, name) = word.split_at(1);
        let status = if sign == "+" { "True" } else { "False" };
        json!({ "type": name, "status": status, "lastTransitionTime": time(0), "observedGeneration": 1 })
    };
    text.split_whitespace().map(condition).collect()
}

const STARTED: &str = "+ValidationPassed +RestoreExecutorEnsured";

fn with(text: &str, components: &[&str], work: Work) -> Seen {
    let components: serde_json::Map<_, _> =
        components.iter().enumerate().map(|(n, phase)| (n.to_string(), json!({ "phase": phase }))).collect();
    let status = json!({
        "conditions": conditions(text), "components": components, "totalComponents": 2, "restoreDeadline": time(30),
    });
    seen(status, work)
}

#[test]
fn a_restore_goes_from_its_validation_to_its_end() {
    let run = || Work::Running { since: time(0) };
    let wait = || Work::Waiting { since: time(0), why: "no node".into() };
    let ended =
        |error: Option<&str>| Work::Ended { at: time(1), error: error.map(Into::into), outcome: None };
    let at = |minute| Step::Stay(Requeue::At(time(minute)));
    let stop = |reason: &'static str, why: &str| Step::Stop(reason, why.into());
    let take_over = |why: &str| Step::TakeOver(why.into(), None);
    let no_deadline = |work| seen(json!({ "conditions": conditions(STARTED), "totalComponents": 1 }), work);
    let phase = |phase: &str, text: &str, generation: i64| {
        let mut seen = seen(json!({ "phase": phase, "conditions": conditions(text) }), Work::Absent);
        seen.session.metadata.generation = Some(generation);
        seen
    };
    let table = [
        (seen(Value::Null, Work::Absent), 0, Step::Validate),
        (with("-RestoreTargetFound", &[], Work::Absent), 0, Step::Validate),
        (with("+ValidationPassed", &[], Work::Absent), 0, Step::Start),
        (
            with("+ValidationPassed", &[], Work::Absent),
            30,
            stop("DeadlineExceeded", "the time for the restore was over before it began"),
        ),
        (with(STARTED, &[], wait()), 0, at(1)),
        (with(STARTED, &[], wait()), 1, at(15)),
        (with(STARTED, &[], wait()), 15, stop("StartDeadlineExceeded", "its pod did not start: no node")),
        (with(STARTED, &["Running"], run()), 1, at(30)),
        (
            with(STARTED, &["Running"], run()),
            30,
            stop(
                "DeadlineExceeded",
                "the time for the restore is over; its pod runs and reports no progress",
            ),
        ),
        (no_deadline(run()), 1, at(60)),
        (no_deadline(run()), 60, stop("ProgressDeadlineExceeded", "its pod runs and reports no progress")),
        (with(STARTED, &["Succeeded", "Running"], run()), 1, at(30)),
        (with(STARTED, &["Succeeded", "Failed"], run()), 1, Step::Finish),
        (with(STARTED, &["Succeeded", "Running"], ended(Some("Evicted"))), 1, take_over("Evicted")),
        (with(STARTED, &[], ended(None)), 1, take_over("the Job ended without a report")),
        (with(STARTED, &[], Work::Absent), 1, take_over("the restore Job is gone")),
        (with("+ValidationPassed -RestoreExecutorEnsured", &[], Work::Absent), 1, Step::Finish),
        (
            with("+ValidationPassed +RestoreExecutorEnsured +RestoreIncomplete", &[], Work::Absent),
            1,
            Step::Finish,
        ),
        (with("+ValidationPassed +DeadlineExceeded", &[], Work::Absent), 1, Step::Finish),
        (phase("Succeeded", STARTED, 2), 99, Step::Rest),
        (phase("Failed", STARTED, 1), 99, Step::Rest),
        (phase("Invalid", "-ValidationPassed", 1), 99, Step::Rest),
        // Its user mended it.
        (phase("Invalid", "-ValidationPassed", 2), 99, Step::Validate),
    ];
    for (seen, minute, step) in table {
        assert_eq!(decide(&seen, time(minute)), step, "{minute}: {seen:?}");
    }
}
