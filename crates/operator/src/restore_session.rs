//! Carries one RestoreSession from Pending to an outcome that never changes again.
//!
//! As with a BackupSession, a pass reads, goes from step to step as far as it gets without waiting, and writes once.

use std::collections::BTreeMap;
use std::time::Duration;

use cistern_api::condition::{self, Truth};
use cistern_api::job::{JobTask, Outcome};
use cistern_api::kinds::backup_configuration::BackupConfiguration;
use cistern_api::kinds::restore_session::{RestorePhase, RestoreSession, RestoreSessionStatus};
use cistern_api::kinds::shared::{ResourceFoundStatus, TypedRef};
use cistern_api::lower::{self, LoweredRestore};
use cistern_api::world::World;
use cistern_api::{labels, name, phase, size};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::context::{Cx, news, owner, warning};
use crate::controller::{Failure, Reconcile, Requeue, Watches};
use crate::job::work::{self, Work, look};
use crate::job::{self, Plan, Reports, User};
use crate::snapshot::owns_components;
use crate::world::{self, refusal};

mod decide;

use decide::{Seen, Step, decide};

/// How long is waited for something that is not there.
const WAIT: Duration = Duration::from_secs(10);

impl Reconcile for RestoreSession {
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches.owned::<Job>()
    }

    async fn reconcile(&self, cx: &Cx) -> Result<Requeue, Failure> {
        let (namespace, name) = (self.namespace().unwrap_or_default(), self.name_any());
        // What woke us may be older than what we wrote last: then everything would be done twice, and written in vain.
        let Some(session) = cx.get::<RestoreSession>(&namespace, &name).await? else {
            return Ok(Requeue::OnChange);
        };
        if session.metadata.deletion_timestamp.is_some() {
            return abandon(&session, cx).await;
        }
        let session = cx.hold(&session).await?;
        let mut seen = observe(session, cx).await?;
        let outcome = loop {
            match act(decide(&seen, cx.now()), &mut seen, cx).await {
                Ok(None) => {}
                Ok(Some(requeue)) => break Ok(requeue),
                Err(failure) => break Err(failure),
            }
        };
        // What was reached is kept even if the next step failed.
        publish(&mut seen, cx).await?;
        outcome
    }
}

async fn observe(session: RestoreSession, cx: &Cx) -> Result<Seen, Failure> {
    let status = session.status.clone().unwrap_or_default();
    let namespace = session.namespace().unwrap_or_default();
    let has_job = condition::find(&status.conditions, condition::RESTORE_EXECUTOR_ENSURED).is_some();
    let is_over = status.phase.is_some_and(RestorePhase::is_over);
    let work = match has_job && !is_over {
        true => look(cx, &namespace, &job_name(&session)).await?,
        false => Work::Absent,
    };
    let limits = cx.settings();
    let (start_limit, stall_limit) = (limits.start_limit, limits.stall_limit);
    Ok(Seen { session, status, work, taken_over: false, start_limit, stall_limit })
}

/// Writes the status. Components are the Job's to write, unless they are taken over from a Job that is dead.
async fn publish(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    if !seen.status.phase.is_some_and(RestorePhase::is_over) {
        seen.status.phase = Some(phase::restore_session(&seen.status));
    }
    let mut status = seen.status.clone();
    if !seen.taken_over && !owns_components(&seen.session) {
        status.components.clear();
    }
    cx.publish(&seen.session, &status).await
}

/// The name of a restore's Job, and of what belongs to it.
fn job_name(session: &RestoreSession) -> String {
    name::joined(&session.name_any(), "", "")
}

/// Takes a step. Gives when to look again, or nothing if the next step can be taken at once.
async fn act(step: Step, seen: &mut Seen, cx: &Cx) -> Result<Option<Requeue>, Failure> {
    let now = cx.now();
    let namespace = seen.session.namespace().unwrap_or_default();
    match step {
        Step::Rest => return Ok(Some(Requeue::OnChange)),
        Step::Stay(requeue) => {
            // A pod that runs waits no more.
            seen.status.conditions.retain(|one| one.type_ != condition::POD_PENDING.name);
            if let Some(told) = work::pending(&seen.work, now) {
                seen.note(told);
            }
            return Ok(Some(requeue));
        }
        Step::Validate => return validate(seen, cx).await.map(Some),
        Step::Start => start(seen, cx).await?,
        Step::TakeOver(why, outcome) => take_over(seen, &why, outcome.as_ref(), now),
        Step::Stop(reason, why) => {
            job::stop(cx, &seen.session, &job_name(&seen.session)).await?;
            seen.note(condition::DEADLINE_EXCEEDED.is(true, why.clone(), now).because(reason));
            take_over(seen, &why, None, now);
        }
        Step::Finish => {
            if seen.components_are_over() && !seen.taken_over {
                // Whoever is done waits no more.
                seen.status.conditions.retain(|one| one.type_ != condition::POD_PENDING.name);
            }
            resume(&seen.status, &namespace, cx).await?;
            cx.delete_owned::<Secret>(&seen.session, &job_name(&seen.session)).await?;
            finish(seen, now);
            let event = match seen.status.phase {
                Some(RestorePhase::Succeeded) => news("RestoreSucceeded", "Restore", "the restore is done"),
                _ => warning("RestoreFailed", "Restore", failure_of(&seen.status)),
            };
            cx.announce(&seen.session, event).await;
        }
    }
    Ok(None)
}

/// Why a restore failed, for a person.
fn failure_of(status: &RestoreSessionStatus) -> String {
    let of_conditions = condition::first_problem(&status.conditions);
    let mut of_components = status.components.values().filter_map(|part| part.error.as_deref());
    of_conditions.or_else(|| of_components.next()).unwrap_or("the restore failed").to_owned()
}

/// Finds out whether the restore can be done. What is wrong ends it; what is missing is waited for.
async fn validate(seen: &mut Seen, cx: &Cx) -> Result<Requeue, Failure> {
    let now = cx.now();
    // What was refused before is judged anew.
    seen.status.phase = None;
    let created = seen.session.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let world = world::of_restore(cx, &seen.session).await?;
    match lower::restore(&seen.session, &world) {
        Err(problems) if problems.iter().all(|problem| problem.missing) => {
            let text = refusal(&problems).to_string();
            seen.judge(Truth::Unknown, &text, now);
            if problems.iter().any(|problem| problem.path.starts_with("spec.target")) {
                seen.status.target_found = Some(false);
                seen.note(condition::RESTORE_TARGET_FOUND.is(false, text, now));
            }
            // It may be there before its time is over.
            if seen.status.restore_deadline.is_none() {
                let time = seen.session.spec.restore_timeout.map(Duration::from);
                seen.status.restore_deadline = later(created, time).map(Time);
            }
            Ok(Requeue::After(WAIT))
        }
        Err(problems) => {
            let text = refusal(&problems).to_string();
            seen.judge(Truth::False, &text, now);
            cx.announce(&seen.session, warning("InvalidSpec", "Restore", text)).await;
            Ok(Requeue::OnChange)
        }
        Ok(lowered) => {
            if let Err(why) = consent(&lowered, &world) {
                seen.judge(Truth::False, &why, now);
                return Ok(Requeue::OnChange);
            }
            seen.judge(Truth::True, "Validation has been passed successfully.", now);
            seen.status.target_found = Some(true);
            seen.note(condition::RESTORE_TARGET_FOUND.is(true, "The target is there.", now));
            seen.status.restore_deadline =
                seen.status.restore_deadline.take().or_else(|| later(now, lowered.timeout).map(Time));
            seen.status.total_components = i32::try_from(lowered.components.len()).ok();
            seen.status.dependencies = dependencies(&lowered);
            // They are written down before they are paused, so that they are resumed whatever happens.
            seen.status.paused_backups = to_pause(&seen.session, &lowered, cx).await?;
            Ok(Requeue::After(Duration::ZERO))
        }
    }
}

fn later(time: Timestamp, by: Option<Duration>) -> Option<Timestamp> {
    time.checked_add(SignedDuration::try_from(by?).ok()?).ok()
}

/// The keys of a storage come into the session's namespace: its policy must admit that one, whoever owns the Repository.
fn consent(lowered: &LoweredRestore, world: &World) -> Result<(), String> {
    let namespace = &lowered.name.namespace;
    for (name, storage) in &world.storages {
        if !world.admits(storage.spec.usage_policy.as_ref(), &name.namespace, namespace) {
            return Err(format!(
                "spec.dataSource.repository: the usagePolicy of the BackupStorage {name} does not admit namespace {namespace}"
            ));
        }
    }
    Ok(())
}

fn dependencies(lowered: &LoweredRestore) -> Vec<ResourceFoundStatus> {
    let found = |group: &str, kind: &str, namespace: Option<&str>, name: &str| ResourceFoundStatus {
        api_group: Some(group.into()),
        kind: Some(kind.into()),
        namespace: namespace.map(Into::into),
        name: name.into(),
        found: Some(true),
    };
    let snapshot = &lowered.snapshot;
    vec![
        found("storage.kubestash.com", "Snapshot", Some(&snapshot.namespace), &snapshot.name),
        found("addons.kubestash.com", "Addon", None, &lowered.task.addon),
    ]
}

/// The configurations that back the target up, and are not paused anyway.
async fn to_pause(
    session: &RestoreSession,
    lowered: &LoweredRestore,
    cx: &Cx,
) -> Result<Vec<TypedRef>, Failure> {
    let namespace = session.namespace().unwrap_or_default();
    let all = cx.list::<BackupConfiguration>(&namespace, "").await?;
    let mine =
        all.iter().filter(|one| backs_up(one, &lowered.target.name.name) && one.spec.paused != Some(true));
    Ok(mine
        .map(|one| TypedRef {
            api_group: Some("core.kubestash.com".into()),
            kind: Some("BackupConfiguration".into()),
            namespace: Some(namespace.clone()),
            name: one.name_any(),
        })
        .collect())
}

/// Whether a configuration backs up this claim of its own namespace.
fn backs_up(configuration: &BackupConfiguration, claim: &str) -> bool {
    configuration.spec.target.as_ref().is_some_and(|target| {
        let own = configuration.namespace();
        let elsewhere =
            target.namespace.as_ref().filter(|it| !it.is_empty()).is_some_and(|it| Some(it) != own.as_ref());
        target.kind.as_deref() == Some("PersistentVolumeClaim") && target.name == claim && !elsewhere
    })
}

/// Pauses the configurations that were written down, and makes the Job.
async fn start(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    let now = cx.now();
    let namespace = seen.session.namespace().unwrap_or_default();
    set_paused(&seen.status, &namespace, true.into(), cx).await?;
    let created = seen.session.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let limit = SignedDuration::try_from(seen.start_limit).unwrap_or_default();
    match begin(seen, cx).await {
        Ok(job) => {
            seen.work = match work::judge(&job, &[]) {
                Work::Waiting { why, .. } => Work::Waiting { since: now, why },
                work => work,
            };
            let done = "Restore Executor has been ensured successfully.";
            seen.note(condition::RESTORE_EXECUTOR_ENSURED.is(true, done, now));
        }
        Err(failure @ (Failure::Transient(_) | Failure::Busy(..))) if now.duration_since(created) < limit => {
            return Err(failure);
        }
        Err(failure) => {
            job::stop(cx, &seen.session, &job_name(&seen.session)).await?;
            seen.note(condition::RESTORE_EXECUTOR_ENSURED.is(false, failure.to_string(), now));
        }
    }
    Ok(())
}

async fn begin(seen: &Seen, cx: &Cx) -> Result<Job, Failure> {
    let mut session = seen.session.clone();
    // `latest` is what it was when it was looked up first.
    let resolved = seen.status.dependencies.iter().find(|one| one.kind.as_deref() == Some("Snapshot"));
    if let Some(snapshot) = resolved {
        session.spec.data_source.snapshot = Some(snapshot.name.clone());
    }
    let world = world::of_restore(cx, &session).await?;
    let lowered = lower::restore(&session, &world).map_err(|problems| refusal(&problems))?;
    consent(&lowered, &world).map_err(Failure::Invalid)?;
    let keys = world::keys(cx, &lowered.credentials).await?;
    let deadline = seen.status.restore_deadline.as_ref().map(|time| time.0);
    let local = world.storages.values().filter_map(|storage| storage.spec.storage.local.clone());
    let plan = plan(&session, &lowered, keys, local.collect(), deadline);
    job::start(cx, &plan).await
}

fn plan(
    session: &RestoreSession,
    lowered: &LoweredRestore,
    keys: cistern_api::backend::Keys,
    storages: Vec<cistern_api::kinds::backup_storage::Local>,
    deadline: Option<Timestamp>,
) -> Plan {
    let namespace = session.namespace().unwrap_or_default();
    let marks = [
        (labels::INVOKER_NAME, name::label(&session.name_any())),
        (labels::INVOKER_NAMESPACE, namespace.clone()),
    ];
    Plan {
        name: job_name(session),
        namespace,
        owner: owner(session),
        component: labels::COMPONENT_RESTORE,
        labels: marks.map(|(label, value)| (label.to_owned(), value)).into(),
        task: JobTask::Restore(lowered.job(deadline)),
        keys: [(lowered.credentials.place.clone(), keys)].into(),
        volumes: lowered.task.volumes.clone(),
        mounts: lowered.task.mounts.clone(),
        read_only: false,
        storages,
        reports: Some(Reports {
            group: "core.kubestash.com",
            resource: "restoresessions",
            names: vec![session.name_any()],
        }),
        // A mounted bucket has no owners that could be given back.
        user: if lowered.target.mounted_bucket { User::Nobody } else { User::Owners },
        template: lowered.task.job.clone(),
        annotations: BTreeMap::new(),
        deadline,
    }
}

/// Pauses the configurations that were written down, or takes that back.
async fn set_paused(
    status: &RestoreSessionStatus,
    namespace: &str,
    value: Value,
    cx: &Cx,
) -> Result<(), Failure> {
    let api = cx.api::<BackupConfiguration>(namespace);
    for one in &status.paused_backups {
        let patch = Patch::Merge(json!({ "spec": { "paused": value } }));
        match api.patch(&one.name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            answer => drop(answer?),
        }
    }
    Ok(())
}

async fn resume(status: &RestoreSessionStatus, namespace: &str, cx: &Cx) -> Result<(), Failure> {
    set_paused(status, namespace, Value::Null, cx).await
}

/// Ends the components that a dead Job left open: by what its pod said at the end, else as failed.
fn take_over(seen: &mut Seen, why: &str, outcome: Option<&Outcome>, now: Timestamp) {
    let lines = outcome.map(|outcome| outcome.results.as_slice()).unwrap_or_default();
    let lines: Vec<_> = lines.iter().filter(|line| !line.name.is_empty()).collect();
    for line in &lines {
        let part = seen.status.components.entry(line.name.clone()).or_default();
        if !part.phase.is_some_and(RestorePhase::is_over) {
            let is_done = line.error.is_none();
            part.phase = Some(if is_done { RestorePhase::Succeeded } else { RestorePhase::Failed });
            part.error.clone_from(&line.error);
        }
    }
    for part in seen.status.components.values_mut() {
        if !part.phase.is_some_and(RestorePhase::is_over) {
            part.phase = Some(RestorePhase::Failed);
            part.error = Some(why.to_owned());
        }
    }
    let ended = i32::try_from(seen.status.components.len()).unwrap_or(i32::MAX);
    if ended < seen.status.total_components.unwrap_or(1) || lines.is_empty() {
        seen.note(condition::RESTORE_INCOMPLETE.is(true, why, now));
    }
    seen.taken_over = true;
}

/// Marks the end.
fn finish(seen: &mut Seen, now: Timestamp) {
    seen.note(condition::METRICS_PUSHED.is(true, "Metrics have been pushed successfully.", now));
    let phase = phase::restore_session(&seen.status);
    // Without a component there is nothing that could have succeeded.
    seen.status.phase = Some(if phase.is_over() { phase } else { RestorePhase::Failed });
    let began = seen.session.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let took = Duration::try_from(now.duration_since(began)).unwrap_or_default();
    seen.status.duration = Some(size::go_seconds(took));
}

/// Ends a session that somebody deletes: its Job goes, and what it paused is resumed.
async fn abandon(session: &RestoreSession, cx: &Cx) -> Result<Requeue, Failure> {
    if !session.finalizers().iter().any(|name| name == labels::FINALIZER) {
        return Ok(Requeue::OnChange);
    }
    let status = session.status.clone().unwrap_or_default();
    if !status.phase.is_some_and(RestorePhase::is_over) {
        let namespace = session.namespace().unwrap_or_default();
        job::stop(cx, session, &job_name(session)).await?;
        resume(&status, &namespace, cx).await?;
    }
    cx.release(session).await?;
    Ok(Requeue::OnChange)
}

#[cfg(test)]
mod tests;
