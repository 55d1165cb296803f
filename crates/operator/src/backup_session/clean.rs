//! What is cleaned up after a backup: Snapshots that a policy does not keep, and old sessions.

use std::collections::{BTreeMap, BTreeSet};

use cistern_api::condition;
use cistern_api::job::{ForgetJob, JobTask, Outcome};
use cistern_api::kinds::backup_configuration::RepositoryInfo;
use cistern_api::kinds::backup_session::{
    BackupSession, BackupSessionPhase, RetentionPolicyLine, RetentionPolicyPhase,
};
use cistern_api::kinds::retention_policy::RetentionPolicy;
use cistern_api::kinds::shared::ObjRef;
use cistern_api::kinds::snapshot::Snapshot;
use cistern_api::world::Name;
use cistern_api::{labels, retention as policy};
use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;

use super::decide::Seen;
use super::retention_name;
use crate::context::{Cx, owner};
use crate::controller::Failure;
use crate::destination::{self, Destination};
use crate::job::{self, Plan, User, work};
use crate::retention::{self, FORGETS, MOST};
use crate::snapshot::{of_repository, restic_snapshots};

/// The Snapshots of one Repository that are no longer kept.
struct Stale {
    destination: Destination,
    snapshots: Vec<Snapshot>,
}

/// Finds what the policies do not keep. If it has data, a Job forgets it; what has none is removed at once.
pub(super) async fn retain(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    let now = cx.now();
    let mut stale = Vec::new();
    let mut lines = Vec::new();
    let repositories = seen.plan().map(|plan| plan.repositories.clone()).unwrap_or_default();
    for info in &repositories {
        let reference = policy_of(seen, info);
        let mut line = RetentionPolicyLine {
            ref_: reference.clone(),
            repository: Some(info.name.clone()),
            phase: Some(RetentionPolicyPhase::Applied),
            error: None,
        };
        match look(seen, &info.name, reference, cx).await {
            Ok(found) if found.snapshots.is_empty() => {}
            Ok(mut found) => {
                // Their names are to fit into one annotation.
                found.snapshots.truncate(MOST / repositories.len());
                line.phase = Some(RetentionPolicyPhase::Pending);
                stale.push(found);
            }
            Err(failure @ (Failure::Transient(_) | Failure::Busy(..))) => return Err(failure),
            Err(failure) => retention::note(&mut line, Some(failure.to_string())),
        }
        lines.push(line);
    }
    let has_data = stale.iter().flat_map(|one| &one.snapshots).any(|one| !restic_snapshots(one).is_empty());
    seen.status.retention_policy = lines;
    if has_data {
        let job = async { job::start(cx, &plan(seen, &stale, cx).await?).await };
        match job.await {
            Ok(job) => seen.cleanup = work::judge(&job, &[]),
            Err(failure @ (Failure::Transient(_) | Failure::Busy(..))) => return Err(failure),
            Err(failure) => settle(seen, &[], cx, |_| Some(failure.to_string())).await,
        }
    } else if !stale.is_empty() {
        // What failed before it wrote anything.
        let names = names(&stale);
        settle(seen, &names, cx, |_| None).await;
    }
    let done = "Retention policy executor has been ensured successfully.";
    seen.note(condition::RETENTION_POLICY_EXECUTOR_ENSURED.is(true, done, now));
    Ok(())
}

/// The policy of a repository's backend: as the configuration names it, or as its controller found the default one.
fn policy_of(seen: &Seen, info: &RepositoryInfo) -> Option<ObjRef> {
    let configuration = seen.configuration.as_ref()?;
    let number = configuration.spec.backend_of(info)?;
    let named = configuration.spec.backends.get(number).and_then(|one| one.retention_policy.clone());
    // The status has a line for each backend, in their order.
    let found = configuration.status.as_ref().and_then(|status| status.backends.get(number));
    named.or_else(|| found?.retention_policy.as_ref()?.ref_.clone())
}

/// The Snapshots of a Repository that the policy does not keep.
async fn look(seen: &Seen, repository: &str, reference: Option<ObjRef>, cx: &Cx) -> Result<Stale, Failure> {
    let namespace = seen.namespace();
    let reference = reference.ok_or_else(|| Failure::Missing("the backend has no RetentionPolicy".into()))?;
    let of = reference.namespace.as_deref().filter(|it| !it.is_empty()).unwrap_or(&namespace);
    let name = Name::new(&namespace, repository);
    let (policy, destination, mut snapshots) = futures::try_join!(
        cx.get::<RetentionPolicy>(of, &reference.name),
        destination::find(cx, &namespace, repository),
        of_repository(cx, &name),
    )?;
    let policy = policy.ok_or_else(|| {
        Failure::Missing(format!("the RetentionPolicy {of}/{} does not exist", reference.name))
    })?;
    // Those of this session are further than what was written of them.
    for one in &seen.snapshots {
        if let Some(same) = snapshots.iter_mut().find(|it| it.name_any() == one.object.name_any()) {
            same.status = Some(one.status.clone());
        }
    }
    snapshots.retain(|one| one.metadata.deletion_timestamp.is_none());
    let stale = policy::stale_snapshots(&policy.spec, &snapshots, cx.now());
    let stale = stale.map_err(|error| Failure::Invalid(error.to_string()))?;
    let sessions: BTreeSet<_> = snapshots.iter().map(|one| one.spec.session.clone()).collect();
    let frozen = |session: &Option<String>| retention::is_frozen(&snapshots, session.as_deref());
    let frozen: BTreeSet<_> = sessions.into_iter().filter(frozen).collect();
    let stale: BTreeSet<_> = stale.into_iter().map(|one| one.name).collect();
    snapshots.retain(|one| stale.contains(&one.name_any()) && !frozen.contains(&one.spec.session));
    Ok(Stale { destination, snapshots })
}

fn names(stale: &[Stale]) -> Vec<String> {
    stale.iter().flat_map(|one| one.snapshots.iter().map(ResourceExt::name_any)).collect()
}

/// The Job that forgets what is stale.
async fn plan(seen: &Seen, stale: &[Stale], cx: &Cx) -> Result<Plan, Failure> {
    let namespace = seen.namespace();
    let mut repositories = Vec::new();
    let mut keys = BTreeMap::new();
    let mut storages = Vec::new();
    for (number, one) in stale.iter().enumerate() {
        let credentials = format!("repository-{number}");
        repositories.extend(retention::places(&one.destination, &one.snapshots, &credentials)?);
        keys.insert(credentials, one.destination.keys(cx).await?);
        storages.extend(one.destination.volume()?);
    }
    storages.dedup();
    Ok(Plan {
        name: retention_name(&seen.session),
        owner: owner(&seen.session),
        component: labels::COMPONENT_RETENTION,
        labels: super::start::marks(&seen.session),
        task: JobTask::Forget(ForgetJob { repositories, deadline: None }),
        keys,
        volumes: Vec::new(),
        mounts: Vec::new(),
        read_only: true,
        storages,
        reports: None,
        user: User::Nobody,
        template: seen.plan().and_then(|plan| plan.addon.as_ref()?.job_template.clone()),
        annotations: [(FORGETS.to_owned(), names(stale).join(","))].into(),
        deadline: None,
        namespace,
    })
}

/// Removes what the retention Job forgot, and says what became of each policy.
pub(super) async fn remove(
    seen: &mut Seen,
    error: Option<String>,
    outcome: Option<Outcome>,
    cx: &Cx,
) -> Result<(), Failure> {
    let (namespace, name) = (seen.namespace(), retention_name(&seen.session));
    let job = cx.get::<Job>(&namespace, &name).await?;
    let forgotten = job.and_then(|job| job.annotations().get(FORGETS).cloned()).unwrap_or_default();
    let forgotten: Vec<_> = forgotten.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    settle(seen, &forgotten, cx, |repository| {
        retention::verdict(repository, error.as_deref(), outcome.as_ref())
    })
    .await;
    if let Some(error) = error {
        seen.note(condition::SNAPSHOT_CLEANUP_INCOMPLETE.is(true, error, cx.now()));
        job::stop(cx, &seen.session, &name).await?;
    }
    Ok(())
}

/// Removes forgotten Snapshots of each Repository whose data is gone, and notes what became of the policies; `verdict` says
/// why a Repository's data is still there.
async fn settle(seen: &mut Seen, forgotten: &[String], cx: &Cx, verdict: impl Fn(&str) -> Option<String>) {
    let namespace = seen.namespace();
    let mut lines = std::mem::take(&mut seen.status.retention_policy);
    for line in lines.iter_mut().filter(|line| line.phase == Some(RetentionPolicyPhase::Pending)) {
        let repository = line.repository.clone().unwrap_or_default();
        let mut why = verdict(&repository);
        if why.is_none() {
            let removed = wipe(cx, &namespace, &repository, forgotten).await;
            why = removed.err().map(|failure| failure.to_string());
        }
        retention::note(line, why);
    }
    seen.status.retention_policy = lines;
}

/// Removes the files and objects of forgotten Snapshots of a Repository.
async fn wipe(cx: &Cx, namespace: &str, repository: &str, forgotten: &[String]) -> Result<(), Failure> {
    let destination = destination::find(cx, namespace, repository).await?;
    let layout = destination.layout(cx).await?;
    for one in of_repository(cx, &Name::new(namespace, repository)).await? {
        let name = one.name_any();
        if forgotten.contains(&name) {
            layout.delete_snapshot(&destination.repository.spec.path, &name).await?;
            cx.delete::<Snapshot>(namespace, &name).await?;
        }
    }
    Ok(())
}

/// Deletes old sessions of the same kind, with their Jobs: those beyond the number that the configuration keeps.
pub(super) async fn trim(seen: &Seen, cx: &Cx) -> Result<(), Failure> {
    let Some(limit) = seen.plan().map(|plan| plan.session_history_limit) else { return Ok(()) };
    let namespace = seen.namespace();
    let all = cx.list::<BackupSession>(&namespace, "").await?;
    for name in surplus(&seen.session, all, limit) {
        cx.delete::<BackupSession>(&namespace, &name).await?;
    }
    Ok(())
}

/// The sessions that are over and too many, oldest first. This one counts, and stays.
fn surplus(session: &BackupSession, mut all: Vec<BackupSession>, limit: i32) -> Vec<String> {
    all.retain(|one| {
        one.spec.invoker == session.spec.invoker
            && one.spec.session == session.spec.session
            && one.name_any() != session.name_any()
            && one.metadata.deletion_timestamp.is_none()
            && one.status.as_ref().and_then(|status| status.phase).is_some_and(BackupSessionPhase::is_over)
    });
    all.sort_by_key(|one| (one.metadata.creation_timestamp.as_ref().map(|time| time.0), one.name_any()));
    let others = usize::try_from(limit).unwrap_or(0).saturating_sub(1);
    all.truncate(all.len().saturating_sub(others));
    all.iter().map(ResourceExt::name_any).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn session(name: &str, second: u32, phase: &str) -> BackupSession {
        let session = json!({
            "metadata": { "name": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z") },
            "spec": { "invoker": { "kind": "BackupConfiguration", "name": "pvc" }, "session": "hourly" },
            "status": { "phase": phase },
        });
        serde_json::from_value(session).expect("a session")
    }

    #[test]
    fn as_many_old_sessions_stay_as_the_configuration_says() {
        let this = session("this", 50, "Running");
        let mut other = session("other", 1, "Failed");
        other.spec.session = Some("daily".into());
        let all = vec![
            session("new", 3, "Succeeded"),
            session("old", 1, "Failed"),
            session("middle", 2, "Skipped"),
            session("runs", 0, "Running"),
            other,
            this.clone(),
        ];
        let surplus = |limit| surplus(&this, all.clone(), limit);
        assert_eq!(surplus(1), ["old", "middle", "new"]);
        assert_eq!(surplus(2), ["old", "middle"]);
        assert_eq!(surplus(4), [""; 0]);
        assert_eq!(surplus(0), ["old", "middle", "new"]);
    }
}
