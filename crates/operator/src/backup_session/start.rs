//! Begins a backup: lowers the configuration, makes the Snapshots, and the Job that fills them.

use std::collections::BTreeMap;

use cistern_api::backend::Keys;
use cistern_api::condition;
use cistern_api::job::JobTask;
use cistern_api::kinds::backup_configuration::BackupConfiguration;
use cistern_api::kinds::backup_session::BackupSession;
use cistern_api::kinds::backup_storage::Local;
use cistern_api::kinds::repository::Repository;
use cistern_api::kinds::snapshot::Snapshot;
use cistern_api::lower::{self, LoweredSession};
use cistern_api::world::{Name, World};
use cistern_api::{labels, name};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::decide::{Seen, Tracked};
use super::{act, job_name};
use crate::context::{Cx, owner};
use crate::controller::Failure;
use crate::job::work::Work;
use crate::job::{self, Plan, Reports, User};
use crate::retention;
use crate::snapshot::{self};
use crate::world::{self, refusal};

/// Begins. What cannot be done ends the session; what may work the next time is tried again, for as long as a pod may take
/// to start.
pub(super) async fn start(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    let now = cx.now();
    let created = seen.session.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let limit = SignedDuration::try_from(seen.start_limit).unwrap_or_default();
    match begin(seen, cx).await {
        Ok(()) => {
            let snapshots = "Snapshots have been ensured successfully.";
            seen.note(condition::SNAPSHOTS_ENSURED.is(true, snapshots, now));
            let executor = "Backup Executor has been ensured successfully.";
            seen.note(condition::BACKUP_EXECUTOR_ENSURED.is(true, executor, now));
        }
        Err(failure @ (Failure::Transient(_) | Failure::Busy(..))) if now.duration_since(created) < limit => {
            return Err(failure);
        }
        Err(failure) => {
            let why = failure.to_string();
            seen.note(condition::BACKUP_EXECUTOR_ENSURED.is(false, why.clone(), now));
            job::stop(cx, &seen.session, &job_name(&seen.session)).await?;
            act::take_over(seen, &why, None, now);
        }
    }
    Ok(())
}

async fn begin(seen: &mut Seen, cx: &Cx) -> Result<(), Failure> {
    let configuration = seen.configuration.as_ref();
    let configuration =
        configuration.ok_or_else(|| Failure::Broken("a start without a configuration".into()))?;
    let world = world::of_configuration(cx, configuration).await?;
    let lowered = lower(&seen.session, configuration, &world)?;
    let keys = lowered.repositories.iter().map(async |one| {
        let keys = world::keys(cx, &one.credentials).await?;
        Ok::<_, Failure>((one.credentials.place.clone(), keys))
    });
    let keys = futures::future::try_join_all(keys).await?;

    let now = cx.now();
    let deadline = seen.session.spec.backup_timeout.map(std::time::Duration::from).or(lowered.timeout);
    let deadline = deadline.and_then(|time| now.checked_add(SignedDuration::try_from(time).ok()?).ok());
    let deadline = seen.status.backup_deadline.as_ref().map(|time| time.0).or(deadline);
    let wanted: Vec<_> = lowered
        .repositories
        .iter()
        .map(|one| Ok(snapshot::wanted(&seen.session, repository(&world, &lowered.namespace, &one.name)?)))
        .collect::<Result<_, Failure>>()?;
    let accept_shrink = accepts_shrink(seen, configuration, cx).await?;
    let names: Vec<_> = wanted.iter().map(ResourceExt::name_any).collect();
    let task = JobTask::Backup(lowered.job(&names, accept_shrink, deadline));
    let plan = plan(seen, &lowered, &world, task, names, keys.into_iter().collect(), deadline);

    // The Job's pod takes longer to begin than a Snapshot takes to be there.
    let snapshots = futures::future::try_join_all(wanted.iter().map(async |one| cx.create_once(one).await));
    let taken = seen.session.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    for object in snapshots.await? {
        let status = object.status.clone().unwrap_or_else(|| snapshot::pending(taken));
        seen.snapshots.retain(|one| one.object.name_any() != object.name_any());
        seen.snapshots.push(Tracked { object, status, taken_over: false });
    }
    seen.status.total_snapshots = i32::try_from(seen.snapshots.len()).ok();
    seen.status.backup_deadline = deadline.map(Time);
    let job = job::start(cx, &plan).await?;
    seen.work = match job::work::judge(&job, &[]) {
        Work::Waiting { why, .. } => Work::Waiting { since: now, why },
        work => work,
    };
    Ok(())
}

fn repository<'a>(world: &'a World, namespace: &str, name: &str) -> Result<&'a Repository, Failure> {
    let found = world.repositories.get(&Name::new(namespace, name));
    found.ok_or_else(|| Failure::Missing(format!("the Repository {name} does not exist")))
}

/// What the configuration says of this session, in one piece.
fn lower(
    session: &BackupSession,
    configuration: &BackupConfiguration,
    world: &World,
) -> Result<LoweredSession, Failure> {
    let lowered = lower::configuration(configuration, world).map_err(|problems| refusal(&problems))?;
    let name = session.spec.session.as_deref().unwrap_or_default();
    let found = lowered.sessions.into_iter().find(|one| one.name == name);
    found.ok_or_else(|| Failure::Invalid(format!("the BackupConfiguration has no session {name:?}")))
}

/// The labels of everything that belongs to a session.
pub(super) fn marks(session: &BackupSession) -> BTreeMap<String, String> {
    let namespace = session.namespace().unwrap_or_default();
    let of = session.spec.session.clone().unwrap_or_default();
    let marks = [
        (labels::INVOKER_NAME, name::label(&session.name_any())),
        (labels::INVOKER_NAMESPACE, namespace),
        (labels::SESSION_NAME, name::label(&of)),
    ];
    marks.map(|(label, value)| (label.to_owned(), value)).into()
}

/// Whether the user accepts that the source shrank since the last backup.
async fn accepts_shrink(seen: &Seen, configuration: &BackupConfiguration, cx: &Cx) -> Result<bool, Failure> {
    let Some(named) = configuration.annotations().get(labels::ACCEPT_SHRINK) else { return Ok(false) };
    let session = seen.session.spec.session.as_deref();
    let selector = name::selector(labels::SESSION_NAME, session.unwrap_or_default());
    let all = cx.list::<Snapshot>(&seen.namespace(), &selector).await?;
    Ok(retention::accepts_shrink(&all, session, named))
}

/// The Job of a session.
fn plan(
    seen: &Seen,
    lowered: &LoweredSession,
    world: &World,
    task: JobTask,
    names: Vec<String>,
    keys: BTreeMap<String, Keys>,
    deadline: Option<Timestamp>,
) -> Plan {
    let mut storages: Vec<Local> = Vec::new();
    for one in &lowered.repositories {
        let local = world.storages.get(&one.storage).and_then(|one| one.spec.storage.local.clone());
        if let Some(local) = local.filter(|local| !storages.contains(local)) {
            storages.push(local);
        }
    }
    Plan {
        name: job_name(&seen.session),
        namespace: lowered.namespace.clone(),
        owner: owner(&seen.session),
        component: labels::COMPONENT_BACKUP,
        labels: marks(&seen.session),
        task,
        keys,
        volumes: lowered.task.volumes.clone(),
        mounts: lowered.task.mounts.clone(),
        read_only: true,
        storages,
        reports: Some(Reports { group: "storage.kubestash.com", resource: "snapshots", names }),
        user: User::Nobody,
        template: lowered.task.job.clone(),
        annotations: BTreeMap::new(),
        deadline,
    }
}
