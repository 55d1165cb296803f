//! Lowers a BackupConfiguration: its sessions with their repositories, and the Job of each.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::parameters::Parameters;
use super::{BackupParameters, Claim, Credentials, LoweredTask, overlap, task};
use crate::backend;
use crate::document::is_label;
use crate::job::{BackupJob, BackupPlace, COMPONENT, Place};
use crate::kinds::backup_configuration::{
    Backend, BackupConfiguration, BackupConfigurationSpec, RepositoryInfo, Session,
};
use crate::kinds::backup_storage::Storage;
use crate::kinds::hook::HookInfo;
use crate::name::component_path;
use crate::problem::{Problem, Problems};
use crate::world::{Name, World};

/// A BackupConfiguration that can be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// Its name.
    pub name: Name,
    /// What is backed up.
    pub target: Claim,
    /// Its sessions, in order.
    pub sessions: Vec<LoweredSession>,
}

/// A session that can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredSession {
    /// Namespace of everything that belongs to it.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it runs: five fields of cron.
    pub schedule: String,
    /// Time for a run.
    pub timeout: Option<Duration>,
    /// What is backed up.
    pub target: Claim,
    /// Where to, in order.
    pub repositories: Vec<LoweredRepository>,
    /// What does it.
    pub task: LoweredTask,
    /// How.
    pub parameters: BackupParameters,
}

/// A repository that a session writes.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredRepository {
    /// Name of the Repository; its namespace is the session's.
    pub name: String,
    /// The BackupStorage that it lies in.
    pub storage: Name,
    /// Folder in the storage, without slashes at its ends.
    pub directory: String,
    /// What is kept in it.
    pub policy: Name,
    /// Where its credentials come from.
    pub credentials: Credentials,
    /// The restic repository of the session's one component.
    pub place: Place,
    /// Folder of the component, relative to the directory.
    pub path: String,
}

impl LoweredSession {
    /// The work of one run. `snapshots` has the name of the Snapshot of each repository, in order.
    ///
    /// # Panics
    /// There are fewer Snapshots than repositories.
    pub fn job(&self, snapshots: &[String], accept_shrink: bool, deadline: Option<Timestamp>) -> BackupJob {
        assert!(snapshots.len() >= self.repositories.len(), "each repository has a Snapshot");
        let parameters = self.parameters.clone();
        let place = |(repository, snapshot): (&LoweredRepository, &String)| BackupPlace {
            snapshot: snapshot.clone(),
            path: repository.path.clone(),
            place: repository.place.clone(),
        };
        BackupJob {
            namespace: self.namespace.clone(),
            component: COMPONENT.to_owned(),
            paths: parameters.paths,
            selection: parameters.selection,
            on_unreadable: parameters.on_unreadable,
            max_shrink: parameters.max_shrink,
            accept_shrink,
            allow_empty: parameters.allow_empty,
            mounted_bucket: self.target.mounted_bucket,
            enable_cache: parameters.enable_cache,
            repositories: self.repositories.iter().zip(snapshots).map(place).collect(),
            deadline,
        }
    }
}

/// A backend with its defaults filled in.
struct Known<'a> {
    name: &'a str,
    storage: Option<(Name, &'a Storage, Option<Name>)>,
    policy: Option<Name>,
}

/// Lowers a BackupConfiguration.
///
/// # Errors
/// Everything that is wrong with it, and everything that it names and that is not there.
pub fn configuration(document: &BackupConfiguration, world: &World) -> Result<Lowered, Vec<Problem>> {
    let mut problems = Problems::default();
    let namespace = document.metadata.namespace.clone().unwrap_or_default();
    let name = Name::new(&namespace, document.metadata.name.clone().unwrap_or_default());
    let spec = &document.spec;

    let target = match &spec.target {
        Some(target) => super::claim(target, &namespace, "spec.target", world, &mut problems),
        None => {
            problems.wrong("spec.target", "must be set");
            None
        }
    };
    let backends = backends(&spec.backends, &namespace, world, &mut problems);
    if spec.sessions.is_empty() {
        problems.wrong("spec.sessions", "sessions can not be empty");
    }
    let mut seen = BTreeSet::new();
    let mut sessions = Vec::new();
    for (number, session) in spec.sessions.iter().enumerate() {
        let path = format!("spec.sessions[{number}]");
        if !is_label(&session.name) {
            problems.wrong(format!("{path}.name"), "must be lower-case letters, digits and '-'");
        }
        if !seen.insert(&session.name) {
            problems.wrong(format!("{path}.name"), format!("there is another session {:?}", session.name));
        }
        let (target, backends) = (target.as_ref(), &backends);
        let lowered = lower_session(spec, session, &path, &namespace, target, backends, world, &mut problems);
        sessions.push((path, lowered));
    }
    shared_folders(&name, document, &backends, world, &mut problems);
    let sessions: Vec<_> = sessions.into_iter().filter_map(|(_, session)| session).collect();
    let whole = target.filter(|_| sessions.len() == spec.sessions.len());
    problems.finish(whole.map(|target| Lowered { name, target, sessions }))
}

fn backends<'a>(
    said: &'a [Backend],
    namespace: &str,
    world: &'a World,
    problems: &mut Problems,
) -> Vec<Known<'a>> {
    static UNNAMED: Backend = Backend { name: None, storage_ref: None, retention_policy: None };
    let all: Vec<(String, &Backend)> = match said {
        [] => vec![("spec.backends".to_owned(), &UNNAMED)],
        some => some.iter().enumerate().map(|(i, one)| (format!("spec.backends[{i}]"), one)).collect(),
    };
    let mut known: Vec<Known<'a>> = Vec::new();
    for (path, backend) in all {
        let name = backend.name.as_deref().unwrap_or_default();
        if known.iter().any(|other| other.name == name) {
            problems.wrong(format!("{path}.name"), format!("there is another backend {name:?}"));
        }
        let storage = match &backend.storage_ref {
            Some(reference) => Some((Name::of(reference, namespace), format!("{path}.storageRef"))),
            None => world.default_storage(namespace).map(|name| (name.clone(), path.clone())),
        };
        if storage.is_none() {
            let message = "backend can not be empty: no BackupStorage is named, and there is no default one";
            problems
                .missing(if said.is_empty() { path.clone() } else { format!("{path}.storageRef") }, message);
        }
        let storage = storage.and_then(|(name, path)| {
            let storage = super::storage(&name, namespace, &path, world, problems)?;
            let secret = super::storage_secret(&name, storage);
            Some((name, &storage.spec.storage, secret))
        });
        let policy = match &backend.retention_policy {
            Some(reference) => Some(Name::of(reference, namespace)),
            None => world.default_policy(namespace).cloned(),
        };
        let path = format!("{path}.retentionPolicy");
        match policy.as_ref().map(|name| (name, world.policies.get(name))) {
            None => problems.missing(path, "no RetentionPolicy is named, and there is no default one"),
            Some((name, None)) => problems.missing(path, format!("there is no RetentionPolicy {name}")),
            Some((name, Some(policy)))
                if !world.admits(policy.spec.usage_policy.as_ref(), &name.namespace, namespace) =>
            {
                let text = format!(
                    "the usagePolicy of the RetentionPolicy {name} does not admit namespace {namespace}"
                );
                problems.wrong(path, text);
            }
            Some(_) => {}
        }
        known.push(Known { name, storage, policy });
    }
    known
}

#[expect(clippy::too_many_arguments, reason = "a session with all that it may name")]
fn lower_session(
    of: &BackupConfigurationSpec,
    session: &Session,
    path: &str,
    namespace: &str,
    target: Option<&Claim>,
    backends: &[Known<'_>],
    world: &World,
    problems: &mut Problems,
) -> Option<LoweredSession> {
    hooks(session, path, problems);
    let schedule = match &session.scheduler {
        None => {
            problems.wrong(format!("{path}.scheduler"), "must be set");
            None
        }
        Some(scheduler) => {
            if let Err(message) = super::schedule(&scheduler.schedule) {
                problems.wrong(format!("{path}.scheduler.schedule"), message);
            }
            let policy = scheduler.concurrency_policy.as_deref().unwrap_or_default();
            if !matches!(policy, "" | "Allow" | "Forbid" | "Replace") {
                problems.wrong(
                    format!("{path}.scheduler.concurrencyPolicy"),
                    format!("must be one of Allow, Forbid, Replace, and is {policy:?}"),
                );
            }
            Some(scheduler.schedule.trim().to_owned())
        }
    };
    let timeout = super::timeout(session.backup_timeout.as_ref(), &format!("{path}.backupTimeout"), problems);
    if session.retry_config.as_ref().and_then(|retry| retry.delay).is_some_and(|delay| delay.is_negative()) {
        problems.wrong(format!("{path}.retryConfig.delay"), "must not be negative");
    }
    if session.repositories.is_empty() {
        problems.wrong(format!("{path}.repositories"), "must name a repository");
    }
    let mut seen = BTreeSet::new();
    let mut repositories = Vec::new();
    for (number, info) in session.repositories.iter().enumerate() {
        let path = format!("{path}.repositories[{number}]");
        if !seen.insert(&info.name) {
            problems.wrong(format!("{path}.name"), format!("there is another repository {:?}", info.name));
        }
        let backend = of.backend_of(info).and_then(|number| backends.get(number));
        if backend.is_none() {
            let there: Vec<_> = backends.iter().map(|one| one.name).collect();
            let text = match info.backend.as_deref().unwrap_or_default() {
                "" => format!("must name one of the backends: {}", there.join(", ")),
                name => format!("there is no backend {name:?}; there are {}", there.join(", ")),
            };
            problems.wrong(format!("{path}.backend"), text);
        }
        repositories.extend(repository(info, &path, session, namespace, backend, world, problems));
    }
    let found = task::find(session.addon.as_ref(), false, &format!("{path}.addon"), world, problems)?;
    let params = format!("{}.params", found.path);
    let parameters =
        Parameters::new(Some(found.task), found.reference.params.as_ref(), params, problems).backup();
    let target = target?;
    let task = found.lower(&target.name.name, world, problems)?;
    let whole = repositories.len() == session.repositories.len();
    whole.then_some(LoweredSession {
        namespace: namespace.to_owned(),
        name: session.name.clone(),
        schedule: schedule?,
        timeout,
        target: target.clone(),
        repositories,
        task,
        parameters,
    })
}

fn hooks(session: &Session, path: &str, problems: &mut Problems) {
    let Some(hooks) = &session.hooks else { return };
    let mut refuse = |name: &str, list: &[HookInfo]| {
        if !list.is_empty() {
            problems.unsupported(format!("{path}.hooks.{name}"), "hooks are");
        }
    };
    refuse("preBackup", &hooks.pre_backup);
    refuse("postBackup", &hooks.post_backup);
}

fn repository(
    info: &RepositoryInfo,
    path: &str,
    session: &Session,
    namespace: &str,
    backend: Option<&Known<'_>>,
    world: &World,
    problems: &mut Problems,
) -> Option<LoweredRepository> {
    if info.backup_verifier.is_some() {
        problems.unsupported(format!("{path}.backupVerifier"), "verifiers are");
    }
    let encryption = super::encryption_secret(
        info.encryption_secret.as_ref(),
        namespace,
        &format!("{path}.encryptionSecret"),
        world,
        problems,
    );
    let directory = match super::directory(info.directory.as_deref().unwrap_or_default()) {
        Ok(directory) => Some(directory),
        Err(message) => {
            problems.wrong(format!("{path}.directory"), message);
            None
        }
    };
    let (storage, spec, secret) = backend?.storage.as_ref()?;
    let component = component_path(&session.name, COMPONENT);
    let (directory, encryption, policy) = (directory?, encryption?, backend?.policy.clone()?);
    let place = match backend::place(spec, &format!("{directory}/{component}"), &info.name) {
        Ok(place) => place,
        Err(error) => {
            problems.wrong(format!("{path}.backend"), super::reason(&error));
            return None;
        }
    };
    Some(LoweredRepository {
        name: info.name.clone(),
        storage: storage.clone(),
        directory,
        policy,
        credentials: Credentials { place: info.name.clone(), storage: secret.clone(), encryption },
        place,
        path: component,
    })
}

/// Two repositories must not share a folder, nor may one lie in the other's: neither two of this configuration, nor one of
/// these and one that is there. A repository that several sessions name must be the same in all.
fn shared_folders(
    own: &Name,
    document: &BackupConfiguration,
    backends: &[Known<'_>],
    world: &World,
    problems: &mut Problems,
) {
    let mut seen: Vec<(&str, String, Name)> = Vec::new();
    for (i, session) in document.spec.sessions.iter().enumerate() {
        for (j, info) in session.repositories.iter().enumerate() {
            let path = format!("spec.sessions[{i}].repositories[{j}]");
            let Ok(directory) = super::directory(info.directory.as_deref().unwrap_or_default()) else {
                continue;
            };
            let backend = document.spec.backend_of(info).and_then(|number| backends.get(number));
            let Some((storage, ..)) = backend.and_then(|one| one.storage.as_ref()) else { continue };
            for (name, other, place) in &seen {
                if *name == info.name && (*other != directory || place != storage) {
                    let text = format!(
                        "the repository {name} is another one in another session: {other} in {place}"
                    );
                    problems.wrong(format!("{path}.name"), text);
                } else if *name != info.name && place == storage && overlap(other, &directory) {
                    let text = format!("shares a folder with the repository {name}, which has {other:?}");
                    problems.wrong(format!("{path}.directory"), text);
                }
            }
            for (name, other) in &world.repositories {
                against_existing(own, document, info, &directory, storage, (name, other), &path, problems);
            }
            seen.push((&info.name, directory, storage.clone()));
        }
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "one comparison of two repositories, each with its surroundings"
)]
fn against_existing(
    own: &Name,
    document: &BackupConfiguration,
    info: &RepositoryInfo,
    directory: &str,
    storage: &Name,
    (name, other): (&Name, &crate::kinds::Repository),
    path: &str,
    problems: &mut Problems,
) {
    let other_storage = Name::of(&other.spec.storage_ref, &name.namespace);
    let other_directory = super::directory(&other.spec.path).unwrap_or_default();
    if name.namespace == own.namespace && name.name == info.name {
        if other_storage != *storage || other_directory != directory {
            let text =
                format!("the Repository {name} is there already, at {other_directory:?} in {other_storage}");
            problems.wrong(format!("{path}.name"), text);
        }
        let same = match (&other.spec.app_ref, &document.spec.target) {
            (Some(a), Some(b)) => a.name == b.name && a.kind == b.kind,
            _ => true,
        };
        if !same {
            problems.wrong(
                format!("{path}.name"),
                format!("the Repository {name} is there already, and holds backups of another target"),
            );
        }
    } else if other_storage == *storage && overlap(&other_directory, directory) {
        problems.wrong(
            format!("{path}.directory"),
            format!("shares a folder with the Repository {name}, which has {other_directory:?}"),
        );
    }
}
