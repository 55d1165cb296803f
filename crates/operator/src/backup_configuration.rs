//! Keeps a BackupConfiguration: checks what it says and names, creates its Repositories and its schedules, and begins the
//! first backup.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cistern_api::condition::{self, Condition, Truth};
use cistern_api::kinds::backup_configuration::{
    Backend, BackendStatus, BackupConfiguration, BackupConfigurationPhase, BackupConfigurationStatus,
    RepositoryDeletionPolicy, RepositoryInfo, RepositoryInfoStatus, RetentionPolicyFound, Session,
    SessionStatus, StorageStatus,
};
use cistern_api::kinds::backup_storage::BackupStoragePhase;
use cistern_api::kinds::repository::RepositoryPhase;
use cistern_api::kinds::shared::{DeletionPolicy, ObjRef, ResourceFoundStatus};
use cistern_api::kinds::{Addon, BackupStorage, Repository, RepositorySpec, RetentionPolicy};
use cistern_api::lower::{self, schedule};
use cistern_api::problem::Problem;
use cistern_api::world::{Name, World};
use cistern_api::{labels, name, phase};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Resource, ResourceExt};
use serde_json::json;

use crate::backup_storage::storage_of;
use crate::context::{Cx, Kind, is_owned, news};
use crate::controller::{Failure, Reconcile, Requeue, Watches};
use crate::layout::clean;
use crate::trigger::{self, Trigger};
use crate::world;

/// How soon what is not there, and is not watched, is looked for again.
const WAIT: Duration = Duration::from_mins(1);

impl Reconcile for BackupConfiguration {
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches
            .owned::<CronJob>()
            .referred::<BackupStorage>(|this, storage| {
                names(this, |backend| backend.storage_ref.as_ref(), storage)
            })
            .referred::<RetentionPolicy>(|this, policy| {
                names(this, |backend| backend.retention_policy.as_ref(), policy)
            })
            .referred::<Repository>(|this, repository| {
                this.namespace() == repository.namespace()
                    && entries(this).any(|entry| entry.name == repository.name_any())
            })
    }

    async fn reconcile(&self, cx: &Cx) -> Result<Requeue, Failure> {
        if self.metadata.deletion_timestamp.is_some() {
            return delete(self, cx).await;
        }
        let this = cx.hold(self).await?;
        let documents = world::of_configuration(cx, &this).await?;
        let mut seen = observe(&this, &documents);
        let problems = lower::configuration(&this, &documents).err().unwrap_or_default();
        let wanted = lower(&this, &seen, &problems, cx);
        if let Ok(wanted) = &wanted {
            for repository in &wanted.repositories {
                let made = cx.create_once(repository).await?;
                seen.repositories.entry(made.name_any()).or_insert(made);
            }
            for wanted in &wanted.triggers {
                let outcome = ensure(cx, wanted).await;
                seen.scheduled.insert(wanted.cron.name_any(), outcome.map_err(|failure| failure.to_string()));
            }
            prune(&this, wanted, cx).await?;
        }
        let problems = wanted.err().unwrap_or_default();
        let mut status = decide(&this, &seen, &problems, cx.now());
        begin(&this, &seen, &mut status, cx).await?;
        cx.publish(&this, &status).await?;
        Ok(next_look(&this, &status, cx.now()))
    }
}

/// A backend with what it names.
struct SeenBackend {
    name: Option<String>,
    storage_ref: Option<ObjRef>,
    storage: Result<BackupStoragePhase, String>,
    policy_ref: Option<ObjRef>,
    policy: Result<(), String>,
    /// Whether the usage policies of both say yes, as far as they are there.
    admitted: bool,
}

/// What is seen of a configuration.
struct Seen {
    target: bool,
    backends: Vec<SeenBackend>,
    addons: Vec<(String, bool)>,
    /// Repositories of its namespace that it names, by name.
    repositories: BTreeMap<String, Repository>,
    /// Whether each CronJob is there, by name.
    scheduled: BTreeMap<String, Result<(), String>>,
}

/// What there is to be.
struct Wanted {
    repositories: Vec<Repository>,
    triggers: Vec<Trigger>,
}

/// What the world that the configuration names says of it.
fn observe(this: &BackupConfiguration, world: &World) -> Seen {
    let namespace = this.namespace().unwrap_or_default();
    let target = this.spec.target.as_ref();
    let claim = target.filter(|target| target.kind.as_deref() == Some("PersistentVolumeClaim"));
    let target = claim.is_some_and(|claim| world.claims.contains_key(&Name::new(&namespace, &claim.name)));
    let unnamed = [Backend::default()];
    let backends = match this.spec.backends.as_slice() {
        [] => &unnamed,
        backends => backends,
    };
    let backends = backends.iter().map(|backend| seen_backend(backend, &namespace, world)).collect();
    let addons: BTreeSet<_> =
        this.spec.sessions.iter().filter_map(|session| session.addon.as_ref()?.name.as_deref()).collect();
    let addons = addons.into_iter().filter(|name| !name.is_empty());
    let repositories = entries(this).filter_map(|entry| {
        let repository = world.repositories.get(&Name::new(&namespace, &entry.name))?;
        Some((entry.name.clone(), repository.clone()))
    });
    Seen {
        target,
        backends,
        addons: addons.map(|name| (name.to_owned(), world.addons.contains_key(name))).collect(),
        repositories: repositories.collect(),
        scheduled: BTreeMap::new(),
    }
}

fn seen_backend(backend: &Backend, namespace: &str, world: &World) -> SeenBackend {
    let reference = |name: &Name| ObjRef { name: name.name.clone(), namespace: Some(name.namespace.clone()) };
    let storage_ref = backend.storage_ref.clone().or_else(|| world.default_storage(namespace).map(reference));
    let policy_ref =
        backend.retention_policy.clone().or_else(|| world.default_policy(namespace).map(reference));
    let mut admitted = true;
    let storage = match &storage_ref {
        None => Err("no BackupStorage is named, and none is the default".to_owned()),
        Some(reference) => {
            let name = Name::of(reference, namespace);
            match world.storages.get(&name) {
                None => Err(format!("the BackupStorage {name} does not exist")),
                Some(storage) => {
                    admitted &= world.admits(storage.spec.usage_policy.as_ref(), &name.namespace, namespace);
                    let phase = storage.status.as_ref().and_then(|status| status.phase);
                    Ok(phase.unwrap_or(BackupStoragePhase::NotReady))
                }
            }
        }
    };
    let policy = match &policy_ref {
        None => Err("no RetentionPolicy is named, and none is the default".to_owned()),
        Some(reference) => {
            let name = Name::of(reference, namespace);
            match world.policies.get(&name) {
                None => Err(format!("the RetentionPolicy {name} does not exist")),
                Some(policy) => {
                    admitted &= world.admits(policy.spec.usage_policy.as_ref(), &name.namespace, namespace);
                    Ok(())
                }
            }
        }
    };
    SeenBackend { name: backend.name.clone(), storage_ref, storage, policy_ref, policy, admitted }
}

/// What there is to be, or everything that is wrong. What is only missing may come yet.
fn lower(
    this: &BackupConfiguration,
    seen: &Seen,
    problems: &[Problem],
    cx: &Cx,
) -> Result<Wanted, Vec<String>> {
    let wrong = problems.iter().filter(|problem| !problem.missing);
    let mut problems: Vec<String> = wrong.map(ToString::to_string).collect();
    let mut wanted = Wanted { repositories: Vec::new(), triggers: Vec::new() };
    for (i, session) in this.spec.sessions.iter().enumerate() {
        for (j, entry) in session.repositories.iter().enumerate() {
            let at = format!("spec.sessions[{i}].repositories[{j}]");
            match repository(this, entry, seen) {
                Ok(Some(made)) => wanted.repositories.push(made),
                Ok(None) => {}
                // What was said of this entry is not said twice.
                Err(_) if problems.iter().any(|problem| problem.starts_with(&at)) => {}
                Err(problem) => problems.push(format!("{at}.{problem}")),
            }
        }
        if let Some(scheduler) = &session.scheduler {
            match trigger::trigger(this, session, scheduler, cx.settings()) {
                Ok(made) => wanted.triggers.push(made),
                Err(failure) => problems.push(format!("spec.sessions[{i}].{failure}")),
            }
        }
    }
    wanted.repositories.dedup_by_key(|repository| repository.name_any());
    if problems.is_empty() { Ok(wanted) } else { Err(problems) }
}

/// The Repository of an entry; `None` if its storage is not known yet.
fn repository(
    this: &BackupConfiguration,
    entry: &RepositoryInfo,
    seen: &Seen,
) -> Result<Option<Repository>, String> {
    let namespace = this.namespace().unwrap_or_default();
    let backend = this.spec.backend_of(entry).and_then(|number| seen.backends.get(number));
    let wanted = entry.backend.as_deref().unwrap_or_default();
    let backend = backend.ok_or_else(|| format!("backend: there is no backend {wanted:?}"))?;
    let Some(storage) = &backend.storage_ref else { return Ok(None) };
    let storage = Name::of(storage, &namespace);
    let mut app = this.spec.target.clone().unwrap_or_default();
    app.namespace = Some(app.namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| namespace.clone()));
    app.api_group = app.api_group.filter(|group| !group.is_empty());
    let directory = entry.directory.clone().unwrap_or_default();
    if let Some(present) = seen.repositories.get(&entry.name) {
        let theirs = present.spec.app_ref.clone().unwrap_or_default();
        let space = theirs.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(&namespace);
        if (&theirs.kind, theirs.name.as_str(), Some(space))
            != (&app.kind, &app.name, app.namespace.as_deref())
        {
            return Err(format!("name: the Repository {} is of another target", entry.name));
        }
        if storage_of(present) != storage {
            return Err(format!("name: the Repository {} lies in another BackupStorage", entry.name));
        }
        if clean(&present.spec.path) != clean(&directory) {
            return Err(format!("directory: the Repository {} lies in {:?}", entry.name, present.spec.path));
        }
        return Ok(None);
    }
    let policy = match entry.deletion_policy {
        Some(RepositoryDeletionPolicy::WipeOut) => DeletionPolicy::WipeOut,
        Some(RepositoryDeletionPolicy::Delete | RepositoryDeletionPolicy::Retain) | None => {
            DeletionPolicy::Delete
        }
    };
    let spec = RepositorySpec {
        app_ref: Some(app),
        storage_ref: ObjRef { namespace: Some(storage.namespace), name: storage.name },
        path: directory,
        deletion_policy: policy,
        encryption_secret: entry.encryption_secret.clone(),
        paused: None,
    };
    let mut made = Repository::new(&entry.name, spec);
    made.metadata.namespace = Some(namespace);
    let mut marks = trigger::marks(this, "");
    marks.remove(labels::SESSION_NAME);
    made.metadata.labels = Some(marks);
    Ok(Some(made))
}

/// Makes a schedule be there.
async fn ensure(cx: &Cx, wanted: &Trigger) -> Result<(), Failure> {
    if let Some(account) = &wanted.account {
        cx.apply(account).await?;
    }
    cx.apply(&wanted.role).await?;
    cx.apply(&wanted.binding).await?;
    cx.apply(&wanted.cron).await?;
    Ok(())
}

/// Removes schedules of sessions that are no more.
async fn prune(this: &BackupConfiguration, wanted: &Wanted, cx: &Cx) -> Result<(), Failure> {
    let namespace = this.namespace().unwrap_or_default();
    let selector = name::selector(labels::INVOKER_NAME, &this.name_any());
    let keep: BTreeSet<_> = wanted.triggers.iter().map(|trigger| trigger.cron.name_any()).collect();
    for cron in cx.list::<CronJob>(&namespace, &selector).await? {
        let name = cron.name_any();
        if !is_owned(&cron, this) || keep.contains(&name) {
            continue;
        }
        cx.delete_owned::<CronJob>(this, &name).await?;
        cx.delete_owned::<RoleBinding>(this, &name).await?;
        cx.delete_owned::<Role>(this, &name).await?;
        cx.delete_owned::<ServiceAccount>(this, &name).await?;
    }
    Ok(())
}

/// What the status is, by what is seen and what is wrong.
fn decide(
    this: &BackupConfiguration,
    seen: &Seen,
    problems: &[String],
    now: Timestamp,
) -> BackupConfigurationStatus {
    let before = this.status.clone().unwrap_or_default();
    let at = |condition: Condition| Condition { observed_generation: this.metadata.generation, ..condition };
    let mut conditions = before.conditions;
    let text = match problems {
        [] => "Validation has been passed successfully.".to_owned(),
        problems => problems.join("; ").chars().take(4096).collect(),
    };
    condition::set(&mut conditions, at(condition::VALIDATION_PASSED.is(problems.is_empty(), text, now)));
    let backends = seen.backends.iter().map(backend_status).collect();
    let mut repositories: Vec<RepositoryInfoStatus> = Vec::new();
    for entry in entries(this) {
        if repositories.iter().all(|one| one.name != entry.name) {
            repositories.push(repository_status(entry, seen.repositories.get(&entry.name)));
        }
    }
    let sessions = this.spec.sessions.iter().map(|session| {
        let old = before.sessions.iter().find(|old| old.name == session.name).cloned().unwrap_or_default();
        let mut conditions = old.conditions;
        let name = cistern_api::name::trigger(&this.name_any(), &session.name);
        match seen.scheduled.get(&name) {
            Some(Ok(())) => {
                let text = "Scheduler has been ensured successfully.";
                condition::set(&mut conditions, at(condition::SCHEDULER_ENSURED.is(true, text, now)));
            }
            Some(Err(why)) => {
                condition::set(&mut conditions, at(condition::SCHEDULER_ENSURED.is(false, why, now)));
            }
            // What was not looked at is as it was.
            None => {}
        }
        SessionStatus {
            name: session.name.clone(),
            next_schedule: next_run(this, session, now).map(|time| time.to_string()),
            conditions,
        }
    });
    let dependency = |(name, found): &(String, bool)| ResourceFoundStatus {
        api_group: Some(Addon::group(&()).into_owned()),
        kind: Some(Addon::kind(&()).into_owned()),
        namespace: None,
        name: name.clone(),
        found: Some(*found),
    };
    let mut status = BackupConfigurationStatus {
        phase: None,
        target_found: Some(seen.target),
        backends,
        repositories,
        dependencies: seen.addons.iter().map(dependency).collect(),
        sessions: sessions.collect(),
        conditions,
    };
    status.phase = Some(phase::backup_configuration(&this.spec, &status));
    status
}

fn backend_status(backend: &SeenBackend) -> BackendStatus {
    let ready =
        backend.storage == Ok(BackupStoragePhase::Ready) && backend.policy.is_ok() && backend.admitted;
    let reason = match &backend.storage {
        Ok(BackupStoragePhase::NotReady) => Some("the BackupStorage is not ready".to_owned()),
        outcome => outcome.as_ref().err().cloned(),
    };
    BackendStatus {
        name: backend.name.clone(),
        ready: Some(ready),
        storage: Some(StorageStatus {
            ref_: backend.storage_ref.clone(),
            phase: backend.storage.as_ref().ok().copied(),
            reason,
        }),
        retention_policy: Some(RetentionPolicyFound {
            ref_: backend.policy_ref.clone(),
            found: Some(backend.policy.is_ok()),
            reason: backend.policy.as_ref().err().cloned(),
        }),
    }
}

fn repository_status(entry: &RepositoryInfo, repository: Option<&Repository>) -> RepositoryInfoStatus {
    let status = repository.and_then(|repository| repository.status.as_ref());
    let refused = status
        .and_then(|status| condition::find(&status.conditions, condition::REPOSITORY_INITIALIZED))
        .filter(|condition| condition.status == Truth::False);
    let reason = match repository {
        None => Some("the Repository does not exist yet".to_owned()),
        Some(_) => refused.and_then(|condition| condition.message.clone()),
    };
    RepositoryInfoStatus {
        name: entry.name.clone(),
        phase: Some(status.and_then(|status| status.phase).unwrap_or(RepositoryPhase::NotReady)),
        reason,
        verification_configured: Some(entry.backup_verifier.is_some()),
    }
}

/// What is to be done about the first backup of a session.
#[derive(Debug, PartialEq)]
enum First {
    /// Nothing, or not yet.
    Wait,
    /// It begins.
    Begin,
    /// It never will: there are backups already.
    Never(String),
}

/// Judges the first backup of a session: it begins once, when the configuration and its Repositories are ready.
fn first(
    this: &BackupConfiguration,
    session: &Session,
    seen: &Seen,
    status: &BackupConfigurationStatus,
) -> First {
    let line = status.sessions.iter().find(|line| line.name == session.name);
    let judged = line
        .is_some_and(|line| condition::find(&line.conditions, condition::INITIAL_BACKUP_TRIGGERED).is_some());
    if judged || this.spec.paused == Some(true) || status.phase != Some(BackupConfigurationPhase::Ready) {
        return First::Wait;
    }
    for entry in &session.repositories {
        let known = seen.repositories.get(&entry.name).and_then(|repository| repository.status.as_ref());
        let Some(known) = known.filter(|known| known.phase == Some(RepositoryPhase::Ready)) else {
            return First::Wait;
        };
        if known.snapshot_count.unwrap_or(0) > 0 {
            return First::Never(format!(
                "The Repository {} holds backups already; the schedule begins the next one.",
                entry.name
            ));
        }
    }
    First::Begin
}

/// Begins the first backups that are due, and says so in the status.
async fn begin(
    this: &BackupConfiguration,
    seen: &Seen,
    status: &mut BackupConfigurationStatus,
    cx: &Cx,
) -> Result<(), Failure> {
    // The name is derived from the configuration's own time: to begin twice collides harmlessly.
    let unix = this.creation_timestamp().map_or_else(|| cx.now().as_second(), |time| time.0.as_second());
    for session in &this.spec.sessions {
        let condition = match first(this, session, seen, status) {
            First::Wait => continue,
            First::Never(why) => condition::INITIAL_BACKUP_TRIGGERED.is(false, why, cx.now()),
            First::Begin => match cx.create_once(&trigger::backup_session(this, session, unix)).await {
                Ok(begun) => {
                    let text = format!("Initial backup has been triggered: {}.", begun.name_any());
                    cx.announce(this, news("InitialBackupTriggered", "Trigger", text.as_str())).await;
                    condition::INITIAL_BACKUP_TRIGGERED.is(true, text, cx.now())
                }
                Err(failure @ (Failure::Invalid(_) | Failure::Broken(_))) => {
                    condition::INITIAL_BACKUP_TRIGGERED.is(false, failure.to_string(), cx.now())
                }
                Err(failure) => return Err(failure),
            },
        };
        if let Some(line) = status.sessions.iter_mut().find(|line| line.name == session.name) {
            condition::set(&mut line.conditions, condition);
        }
    }
    Ok(())
}

/// When a session runs next, by the clock of the cluster's controllers, which is UTC; `None` if it is suspended.
fn next_run(this: &BackupConfiguration, session: &Session, now: Timestamp) -> Option<Timestamp> {
    let scheduler = session.scheduler.as_ref()?;
    if this.spec.paused == Some(true) || scheduler.suspend == Some(true) {
        return None;
    }
    let cron = schedule(&scheduler.schedule).ok()?;
    cron.find_next_occurrence(&now.to_zoned(TimeZone::UTC), false).ok().map(|time| time.timestamp())
}

fn next_look(this: &BackupConfiguration, status: &BackupConfigurationStatus, now: Timestamp) -> Requeue {
    let missing =
        status.target_found != Some(true) || status.dependencies.iter().any(|one| one.found != Some(true));
    if missing || status.phase == Some(BackupConfigurationPhase::NotReady) {
        return Requeue::After(WAIT);
    }
    let next = this.spec.sessions.iter().filter_map(|session| next_run(this, session, now)).min();
    next.map_or(Requeue::OnChange, Requeue::At)
}

/// Lets the Repositories go as each entry says, then the configuration.
async fn delete(this: &BackupConfiguration, cx: &Cx) -> Result<Requeue, Failure> {
    if !this.finalizers().iter().any(|name| name == labels::FINALIZER) {
        return Ok(Requeue::OnChange);
    }
    let namespace = this.namespace().unwrap_or_default();
    let others = cx.list::<BackupConfiguration>(&namespace, "").await?;
    for entry in entries(this) {
        // Without a word everything stays.
        let wipe = match entry.deletion_policy.unwrap_or(RepositoryDeletionPolicy::Retain) {
            RepositoryDeletionPolicy::Retain => continue,
            RepositoryDeletionPolicy::Delete => false,
            RepositoryDeletionPolicy::WipeOut => true,
        };
        let shared = others
            .iter()
            .filter(|other| other.uid() != this.uid() && other.metadata.deletion_timestamp.is_none())
            .any(|other| entries(other).any(|theirs| theirs.name == entry.name));
        let Some(repository) = cx.get::<Repository>(&namespace, &entry.name).await? else { continue };
        // A Repository of the same name that is not what this entry means is somebody else's.
        let mut same = clean(&repository.spec.path) == entry.directory.as_deref().and_then(clean);
        if let (Some(theirs), Some(ours)) = (&repository.spec.app_ref, &this.spec.target) {
            same &= theirs.name == ours.name && theirs.kind == ours.kind;
        }
        if let Some(storage) = storage_of_entry(this, entry) {
            same &= storage_of(&repository) == storage;
        }
        if shared || !same || repository.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let policy = if wipe { DeletionPolicy::WipeOut } else { DeletionPolicy::Delete };
        if repository.spec.deletion_policy != policy {
            let patch = json!({ "spec": { "deletionPolicy": policy } });
            let patch = kube::api::Patch::Merge(&patch);
            let params = kube::api::PatchParams {
                field_manager: Some(crate::context::MANAGER.to_owned()),
                ..Default::default()
            };
            cx.api::<Repository>(&namespace).patch(&entry.name, &params, &patch).await?;
        }
        cx.delete::<Repository>(&namespace, &entry.name).await?;
    }
    cx.release(this).await?;
    Ok(Requeue::OnChange)
}

/// The storage of an entry's backend: as the backend names it, or as the default one was found.
fn storage_of_entry(this: &BackupConfiguration, entry: &RepositoryInfo) -> Option<Name> {
    let number = this.spec.backend_of(entry)?;
    let named = this.spec.backends.get(number).and_then(|backend| backend.storage_ref.clone());
    // The status has a line for each backend, in their order.
    let found = this.status.as_ref().and_then(|status| status.backends.get(number));
    let reference = named.or_else(|| found?.storage.as_ref()?.ref_.clone())?;
    Some(Name::of(&reference, &this.namespace().unwrap_or_default()))
}

/// All entries for repositories, of all sessions.
fn entries(this: &BackupConfiguration) -> impl Iterator<Item = &RepositoryInfo> {
    this.spec.sessions.iter().flat_map(|session| &session.repositories)
}

/// Whether a backend names the object, or means a default, which may be it.
fn names<K: Kind>(this: &BackupConfiguration, field: fn(&Backend) -> Option<&ObjRef>, object: &K) -> bool {
    let name = world::name_of(object);
    let own = this.namespace().unwrap_or_default();
    this.spec.backends.is_empty()
        || this
            .spec
            .backends
            .iter()
            .any(|backend| field(backend).is_none_or(|reference| Name::of(reference, &own) == name))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn configuration() -> BackupConfiguration {
        let object = json!({
            "metadata": { "name": "bc", "namespace": "demo", "uid": "u", "generation": 2, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": {
                "target": { "apiGroup": "", "kind": "PersistentVolumeClaim", "name": "fuse-pvc", "namespace": "demo" },
                "backends": [{ "name": "b", "storageRef": { "name": "s", "namespace": "store" }, "retentionPolicy": { "name": "p" } }],
                "sessions": [{
                    "name": "often", "scheduler": { "schedule": "*/5 * * * *" },
                    "addon": { "name": "pvc-addon", "tasks": [{ "name": "logical-backup" }] },
                    "repositories": [{ "name": "r", "backend": "b", "directory": "/d", "encryptionSecret": { "name": "e" }, "deletionPolicy": "Retain" }],
                }],
            },
        });
        serde_json::from_value(object).expect("a configuration")
    }

    fn seen() -> Seen {
        Seen {
            target: true,
            backends: vec![SeenBackend {
                name: Some("b".into()),
                storage_ref: Some(ObjRef { name: "s".into(), namespace: Some("store".into()) }),
                storage: Ok(BackupStoragePhase::Ready),
                policy_ref: Some(ObjRef { name: "p".into(), namespace: None }),
                policy: Ok(()),
                admitted: true,
            }],
            addons: vec![("pvc-addon".into(), true)],
            repositories: BTreeMap::new(),
            scheduled: [("trigger-bc-often".to_owned(), Ok(()))].into(),
        }
    }

    fn present(status: Value) -> Repository {
        let made = repository(&configuration(), &configuration().spec.sessions[0].repositories[0], &seen());
        let mut made = made.expect("it is right").expect("it is made");
        made.status = serde_json::from_value(status).expect("a status");
        made
    }

    #[test]
    fn a_configuration_is_ready_when_all_that_it_names_is() {
        use BackupConfigurationPhase::{Invalid, NotReady, Ready};
        let mut no_target = seen();
        no_target.target = false;
        let mut no_storage = seen();
        no_storage.backends[0].storage = Err("the BackupStorage store/s does not exist".into());
        let mut not_ready = seen();
        not_ready.backends[0].storage = Ok(BackupStoragePhase::NotReady);
        let mut no_policy = seen();
        no_policy.backends[0].policy = Err("it does not exist".into());
        let mut no_schedule = seen();
        no_schedule.scheduled = [("trigger-bc-often".to_owned(), Err("quota".to_owned()))].into();
        let table = [
            (seen(), vec![], Ready),
            (seen(), vec!["spec.target: x".to_owned()], Invalid),
            (no_target, vec![], NotReady),
            (no_storage, vec![], NotReady),
            (not_ready, vec![], NotReady),
            (no_policy, vec![], NotReady),
            (no_schedule, vec![], NotReady),
        ];
        for (row, (seen, problems, phase)) in table.into_iter().enumerate() {
            let status = decide(&configuration(), &seen, &problems, Timestamp::UNIX_EPOCH);
            assert_eq!(status.phase, Some(phase), "row {row}");
        }
        let status = decide(&configuration(), &seen(), &[], Timestamp::UNIX_EPOCH);
        assert_eq!(status.sessions[0].next_schedule.as_deref(), Some("1970-01-01T00:05:00Z"));
        let again = BackupConfiguration { status: Some(status.clone()), ..configuration() };
        assert_eq!(decide(&again, &seen(), &[], Timestamp::UNIX_EPOCH), status);
    }

    #[test]
    fn the_first_backup_begins_once_and_never_over_others() {
        let ready = present(json!({ "phase": "Ready" }));
        let used = present(json!({ "phase": "Ready", "snapshotCount": 1 }));
        let fresh = present(json!({ "phase": "NotReady" }));
        let judge = |repository: Option<Repository>, configuration: &BackupConfiguration| {
            let mut seen = seen();
            seen.repositories.extend(repository.map(|one| ("r".to_owned(), one)));
            let status = decide(configuration, &seen, &[], Timestamp::UNIX_EPOCH);
            first(configuration, &configuration.spec.sessions[0], &seen, &status)
        };
        assert_eq!(judge(None, &configuration()), First::Wait);
        assert_eq!(judge(Some(fresh), &configuration()), First::Wait);
        assert_eq!(judge(Some(ready.clone()), &configuration()), First::Begin);
        assert!(matches!(judge(Some(used), &configuration()), First::Never(_)));
        let mut paused = configuration();
        paused.spec.paused = Some(true);
        assert_eq!(judge(Some(ready.clone()), &paused), First::Wait);
        let mut done = decide(&configuration(), &seen(), &[], Timestamp::UNIX_EPOCH);
        condition::set(
            &mut done.sessions[0].conditions,
            condition::INITIAL_BACKUP_TRIGGERED.is(true, "", Timestamp::UNIX_EPOCH),
        );
        let done = BackupConfiguration { status: Some(done), ..configuration() };
        assert_eq!(judge(Some(ready), &done), First::Wait);
    }

    #[test]
    fn a_repository_of_something_else_is_not_taken() {
        let mut seen = seen();
        let made = present(json!(null));
        assert_eq!(made.spec.storage_ref, ObjRef { name: "s".into(), namespace: Some("store".into()) });
        assert_eq!(made.spec.deletion_policy, DeletionPolicy::Delete);
        let entry = configuration().spec.sessions[0].repositories[0].clone();
        let mut judge = |change: fn(&mut RepositorySpec)| {
            let mut present = made.clone();
            change(&mut present.spec);
            seen.repositories.insert("r".into(), present);
            repository(&configuration(), &entry, &seen).map(|made| made.is_some())
        };
        assert_eq!(judge(|_| {}), Ok(false));
        assert_eq!(judge(|spec| spec.path = "d/".into()), Ok(false));
        assert!(judge(|spec| spec.path = "e".into()).is_err());
        assert!(judge(|spec| spec.storage_ref.name = "t".into()).is_err());
        assert!(judge(|spec| spec.app_ref = None).is_err());
    }
}
