//! How far the work of a Job is, as the Job and its pods show it.

use std::time::Duration;

use cistern_api::condition::{self, Condition, Truth};
use cistern_api::job::Outcome;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::context::Cx;
use crate::controller::Failure;

/// How far a Job is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Work {
    /// There is no Job.
    Absent,
    /// No pod runs yet.
    Waiting {
        /// Since when.
        since: Timestamp,
        /// What it waits for, for a person.
        why: String,
    },
    /// A pod runs.
    Running {
        /// Since when.
        since: Timestamp,
    },
    /// It is over.
    Ended {
        /// When.
        at: Timestamp,
        /// Why it failed, for a person; `None` is success.
        error: Option<String>,
        /// What its pod said at the end, if it said anything.
        outcome: Option<Outcome>,
    },
}

/// Looks at a Job and its pods.
///
/// # Errors
/// The API server does not answer.
pub(crate) async fn look(cx: &Cx, namespace: &str, name: &str) -> Result<Work, Failure> {
    let selector = format!("batch.kubernetes.io/job-name={name}");
    let (job, pods) =
        futures::try_join!(cx.get::<Job>(namespace, name), cx.list::<Pod>(namespace, &selector))?;
    let Some(job) = job else { return Ok(Work::Absent) };
    let mut work = judge(&job, &pods);
    if let (Work::Waiting { why, .. }, Some(pod)) = (&mut work, newest(&pods))
        && why.is_empty()
    {
        // What a volume lacks is told in events only.
        *why = last_warning(cx, namespace, &pod.name_any()).await.unwrap_or_default();
    }
    Ok(work)
}

/// The last warning about a pod; an answer that is refused is none.
async fn last_warning(cx: &Cx, namespace: &str, pod: &str) -> Option<String> {
    let params = ListParams::default().fields(&format!("involvedObject.name={pod},type=Warning")).limit(50);
    let events = cx.api::<Event>(namespace).list(&params).await.ok()?.items;
    let newest = events.into_iter().max_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
    newest?.message
}

/// What a Job and its pods show.
pub(crate) fn judge(job: &Job, pods: &[Pod]) -> Work {
    let status = job.status.clone().unwrap_or_default();
    let created = job.metadata.creation_timestamp.as_ref().map(|time| time.0).unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|one| one.type_ == kind && one.status == "True");
    let pod = newest(pods);
    if let Some(over) = condition("Complete").or_else(|| condition("Failed")) {
        let at = over.last_transition_time.as_ref().map_or(created, |time| time.0);
        let outcome = pod.and_then(outcome);
        let error = (over.type_ == "Failed").then(|| {
            let of_job = over.message.clone().or_else(|| over.reason.clone());
            let said = outcome.as_ref().and_then(of_everything);
            said.or_else(|| pod.and_then(death)).or(of_job).unwrap_or_else(|| "the Job failed".into())
        });
        return Work::Ended { at, error, outcome };
    }
    let Some(pod) = pod else {
        let suspended = job.spec.as_ref().and_then(|spec| spec.suspend).unwrap_or_default();
        let why = if suspended { "the Job is suspended" } else { "the Job has no pod yet" };
        return Work::Waiting { since: created, why: why.into() };
    };
    let of_pod = pod.status.clone().unwrap_or_default();
    match of_pod.phase.as_deref() {
        Some("Running") => {
            let since = of_pod.start_time.map_or(created, |time| time.0);
            Work::Running { since }
        }
        // The Job follows in a moment, with a condition or with another pod.
        Some("Succeeded" | "Failed") => Work::Running { since: created },
        _ => {
            let since = pod.metadata.creation_timestamp.as_ref().map_or(created, |time| time.0);
            Work::Waiting { since, why: waits_for(pod) }
        }
    }
}

fn newest(pods: &[Pod]) -> Option<&Pod> {
    pods.iter().max_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0))
}

/// What a pod that does not run waits for; empty if it does not say.
fn waits_for(pod: &Pod) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let unscheduled = status
        .conditions
        .unwrap_or_default()
        .into_iter()
        .find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(message) = unscheduled.and_then(|one| one.message.or(one.reason)) {
        return message;
    }
    let containers = status.init_container_statuses.into_iter().chain(status.container_statuses).flatten();
    let waiting = containers.filter_map(|container| container.state?.waiting);
    // These two are said of every pod that starts.
    let mut telling = waiting
        .filter(|one| !matches!(one.reason.as_deref(), None | Some("ContainerCreating" | "PodInitializing")));
    telling.next().map_or_else(String::new, |one| {
        [one.reason, one.message].into_iter().flatten().collect::<Vec<_>>().join(": ")
    })
}

/// Why a pod died, in the words of its node: evicted, killed for memory.
fn death(pod: &Pod) -> Option<String> {
    let status = pod.status.clone().unwrap_or_default();
    if let Some(reason) = status.reason {
        return Some([Some(reason), status.message].into_iter().flatten().collect::<Vec<_>>().join(": "));
    }
    let containers = status.container_statuses.unwrap_or_default();
    let ended = containers.into_iter().find_map(|container| container.state?.terminated)?;
    match ended.reason.as_deref() {
        Some("Error" | "Completed") | None => {
            Some(format!("the program ended with code {}", ended.exit_code))
        }
        Some(reason) => Some(format!("{reason}, code {}", ended.exit_code)),
    }
}

/// What the program said at its end.
fn outcome(pod: &Pod) -> Option<Outcome> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ended = containers.iter().find_map(|container| container.state.as_ref()?.terminated.as_ref())?;
    serde_json::from_str(ended.message.as_deref()?).ok()
}

/// Why nothing was done at all: a program that could not begin says so under no name.
fn of_everything(outcome: &Outcome) -> Option<String> {
    outcome.results.iter().find(|line| line.name.is_empty())?.error.clone()
}

/// When work is given up that does not begin, or does not go on; `heard` is when it last reported.
pub(crate) fn given_up(
    work: &Work,
    heard: Option<Timestamp>,
    start_limit: Duration,
    stall_limit: Duration,
) -> Option<Timestamp> {
    let (from, limit) = match work {
        Work::Absent | Work::Ended { .. } => return None,
        Work::Waiting { since, .. } => (*since, start_limit),
        Work::Running { since } => (heard.map_or(*since, |heard| heard.max(*since)), stall_limit),
    };
    from.checked_add(SignedDuration::try_from(limit).ok()?).ok()
}

/// How long a pod may wait before people are told.
const PENDING_NOTICE: SignedDuration = SignedDuration::from_mins(1);

/// When work is looked at again, if nothing happens before; `limits` are those of [`given_up`].
///
/// # Errors
/// It is to be given up; the text says what it lags at.
pub(crate) fn next_look(
    work: &Work,
    heard: Option<Timestamp>,
    limits: (Duration, Duration),
    now: Timestamp,
) -> Result<Option<Timestamp>, String> {
    let limit = given_up(work, heard, limits.0, limits.1);
    if limit.is_some_and(|limit| limit <= now) {
        return Err(lags(work));
    }
    let notice = match work {
        Work::Waiting { since, .. } => Some(*since + PENDING_NOTICE).filter(|at| *at > now),
        _ => None,
    };
    Ok([limit, notice].into_iter().flatten().min())
}

/// Why work is given up, in one word.
pub(crate) fn reason(work: &Work) -> &'static str {
    match work {
        Work::Waiting { .. } => "StartDeadlineExceeded",
        _ => "ProgressDeadlineExceeded",
    }
}

/// What a Job that does not get on is at.
pub(crate) fn lags(work: &Work) -> String {
    match work {
        Work::Waiting { why, .. } if why.is_empty() => "its pod did not start".into(),
        Work::Waiting { why, .. } => format!("its pod did not start: {why}"),
        _ => "its pod runs and reports no progress".into(),
    }
}

/// What people are told of a pod that waits for long.
pub(crate) fn pending(work: &Work, now: Timestamp) -> Option<Condition> {
    match work {
        Work::Waiting { since, .. } if now.duration_since(*since) >= PENDING_NOTICE => {
            Some(condition::POD_PENDING.is(Truth::Unknown, lags(work), now))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const T0: &str = "2026-01-01T00:00:00Z";

    fn time(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn job(condition: Value) -> Job {
        let conditions: Vec<_> = [condition].into_iter().filter(|one| !one.is_null()).collect();
        let job = json!({ "metadata": { "name": "j", "creationTimestamp": T0 }, "status": { "conditions": conditions } });
        serde_json::from_value(job).expect("a Job")
    }

    fn pod(status: Value) -> Vec<Pod> {
        let pod = json!({ "metadata": { "name": "p", "creationTimestamp": "2026-01-01T00:00:01Z" }, "status": status });
        vec![serde_json::from_value(pod).expect("a pod")]
    }

    fn ended(reason: &str, code: i32, message: &str) -> Vec<Pod> {
        let state = json!({ "terminated": { "reason": reason, "exitCode": code, "message": message } });
        let container = json!({ "name": "cistern", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        pod(json!({ "phase": "Failed", "containerStatuses": [container] }))
    }

    fn waiting(reason: &str, message: &str) -> Vec<Pod> {
        let state = json!({ "waiting": { "reason": reason, "message": message } });
        let container = json!({ "name": "cistern", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        pod(json!({ "phase": "Pending", "containerStatuses": [container] }))
    }

    #[test]
    fn jobs_and_pods_say_how_far_they_are() {
        let none = || job(Value::Null);
        let failed = || {
            job(json!({ "type": "Failed", "status": "True", "reason": "BackoffLimitExceeded",
                        "message": "the limit", "lastTransitionTime": "2026-01-01T00:01:00Z" }))
        };
        let complete =
            || json!({ "type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:01:00Z" });
        let unscheduled =
            json!([{ "type": "PodScheduled", "status": "False", "message": "0/3 nodes are available" }]);
        let wait = |since: &str, why: &str| Work::Waiting { since: time(since), why: why.into() };
        let end = |error: Option<&str>, outcome| Work::Ended {
            at: time("2026-01-01T00:01:00Z"),
            error: error.map(Into::into),
            outcome,
        };
        let created = "2026-01-01T00:00:01Z";
        let nothing = || {
            serde_json::from_str(r#"{"results":[{"name":"","error":"the task is not understood"}]}"#)
                .expect("an outcome")
        };
        let table = [
            (none(), vec![], wait(T0, "the Job has no pod yet")),
            (
                none(),
                pod(json!({ "phase": "Pending", "conditions": unscheduled })),
                wait(created, "0/3 nodes are available"),
            ),
            (
                none(),
                waiting("ImagePullBackOff", "no such image"),
                wait(created, "ImagePullBackOff: no such image"),
            ),
            (none(), waiting("ContainerCreating", ""), wait(created, "")),
            (
                none(),
                pod(json!({ "phase": "Running", "startTime": created })),
                Work::Running { since: time(created) },
            ),
            (none(), ended("OOMKilled", 137, ""), Work::Running { since: time(T0) }),
            (failed(), ended("OOMKilled", 137, ""), end(Some("OOMKilled, code 137"), None)),
            (
                failed(),
                ended("Error", 1, "{\"results\":[]}"),
                end(Some("the program ended with code 1"), Some(Outcome::default())),
            ),
            (
                failed(),
                ended("Error", 2, r#"{"results":[{"name":"","error":"the task is not understood"}]}"#),
                end(Some("the task is not understood"), Some(nothing())),
            ),
            (failed(), ended("Error", 1, "some log"), end(Some("the program ended with code 1"), None)),
            (
                failed(),
                pod(json!({ "phase": "Failed", "reason": "Evicted", "message": "low on memory" })),
                end(Some("Evicted: low on memory"), None),
            ),
            (failed(), vec![], end(Some("the limit"), None)),
            (job(complete()), vec![], end(None, None)),
        ];
        for (job, pods, expected) in table {
            assert_eq!(judge(&job, &pods), expected);
        }
    }

    #[test]
    fn people_are_told_of_a_pod_that_waits() {
        let waiting = Work::Waiting { since: time(T0), why: "no node".into() };
        let minute = time("2026-01-01T00:01:00Z");
        assert_eq!(pending(&waiting, time(T0)), None);
        let told = pending(&waiting, minute).expect("a condition");
        assert_eq!(
            (told.status, told.message.as_deref()),
            (Truth::Unknown, Some("its pod did not start: no node"))
        );
        assert_eq!(pending(&Work::Running { since: time(T0) }, minute), None);
    }

    #[test]
    fn work_that_does_not_begin_or_go_on_is_given_up() {
        let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
        let since = time(T0);
        let given_up = |work, heard: Option<&str>| given_up(&work, heard.map(time), minute, hour);
        assert_eq!(
            given_up(Work::Waiting { since, why: String::new() }, None),
            Some(time("2026-01-01T00:01:00Z"))
        );
        assert_eq!(given_up(Work::Running { since }, None), Some(time("2026-01-01T01:00:00Z")));
        assert_eq!(
            given_up(Work::Running { since }, Some("2026-01-01T00:30:00Z")),
            Some(time("2026-01-01T01:30:00Z"))
        );
        assert_eq!(given_up(Work::Absent, None), None);
    }
}
