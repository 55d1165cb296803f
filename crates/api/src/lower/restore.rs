//! Lowers a RestoreSession: which Snapshot, from where, into which claim, and the Job that does it.

use std::time::Duration;

use cistern_engine::Overwrite;
use jiff::Timestamp;

use super::parameters::Parameters;
use super::{Claim, Credentials, LoweredTask, RestoreParameters, not_allowed, task};
use crate::backend;
use crate::condition::{SOURCE_EXCEPTIONS, Truth};
use crate::job::{RestoreJob, RestorePart};
use crate::kinds::restore_session::{DataSource, RestoreSession};
use crate::kinds::snapshot::{Component, SnapshotPhase};
use crate::kinds::{Repository, Snapshot};
use crate::problem::{Problem, Problems};
use crate::usage::allows_from;
use crate::world::{Name, World};

/// A RestoreSession that can be done.
#[derive(Clone, Debug, PartialEq)]
pub struct LoweredRestore {
    /// Its name.
    pub name: Name,
    /// Where to.
    pub target: Claim,
    /// The Repository that the Snapshot is in.
    pub repository: Name,
    /// The Snapshot, also where `latest` is asked for.
    pub snapshot: Name,
    /// The components, in order of their names.
    pub components: Vec<RestorePart>,
    /// Where the credentials of all of them come from.
    pub credentials: Credentials,
    /// Time for the whole restore.
    pub timeout: Option<Duration>,
    /// What does it.
    pub task: LoweredTask,
    /// How.
    pub parameters: RestoreParameters,
}

impl LoweredRestore {
    /// The work.
    pub fn job(&self, deadline: Option<Timestamp>) -> RestoreJob {
        let parameters = self.parameters.clone();
        RestoreJob {
            namespace: self.name.namespace.clone(),
            restore_session: self.name.name.clone(),
            components: self.components.clone(),
            selection: parameters.selection,
            // The cache of a mount may show what is gone from the bucket.
            overwrite: parameters.overwrite.unwrap_or(match self.target.mounted_bucket {
                true => Overwrite::Always,
                false => Overwrite::default(),
            }),
            delete: parameters.delete,
            mounted_bucket: self.target.mounted_bucket,
            enable_cache: parameters.enable_cache,
            deadline,
        }
    }
}

/// Lowers a RestoreSession.
///
/// # Errors
/// Everything that is wrong with it, and everything that it names and that is not there.
pub fn restore(document: &RestoreSession, world: &World) -> Result<LoweredRestore, Vec<Problem>> {
    let mut problems = Problems::default();
    let namespace = document.metadata.namespace.clone().unwrap_or_default();
    let name = Name::new(&namespace, document.metadata.name.clone().unwrap_or_default());
    let spec = &document.spec;
    if let Some(hooks) = &spec.hooks {
        for (field, list) in [("preRestore", &hooks.pre_restore), ("postRestore", &hooks.post_restore)] {
            if !list.is_empty() {
                problems.unsupported(format!("spec.hooks.{field}"), "hooks are");
            }
        }
    }
    if spec.manifest_options.as_ref().is_some_and(|all| !all.is_empty()) {
        problems.unsupported("spec.manifestOptions", "manifests are");
    }
    let timeout = super::timeout(spec.restore_timeout.as_ref(), "spec.restoreTimeout", &mut problems);
    let found = task::find(spec.addon.as_ref(), true, "spec.addon", world, &mut problems);
    let (found, parameters) = match found {
        Some(found) => {
            let path = format!("{}.params", found.path);
            let said = found.reference.params.as_ref();
            let parameters = Parameters::new(Some(found.task), said, path, &mut problems).restore();
            (Some(found), Some(parameters))
        }
        None => (None, None),
    };

    let source = source(&spec.data_source, &namespace, world, &mut problems);
    let app = source.as_ref().and_then(|(_, snapshot, ..)| snapshot.spec.app_ref.as_ref());
    let target = match (&spec.target, app) {
        (Some(target), _) => super::claim(target, &namespace, "spec.target", world, &mut problems),
        (None, Some(app)) => super::claim(app, &namespace, "spec.target", world, &mut problems),
        (None, None) => {
            if source.is_some() {
                problems.wrong("spec.target", "must be set: the Snapshot does not say where it came from");
            }
            None
        }
    };
    let task = match (found, &target) {
        (Some(found), Some(target)) => found.lower(&target.name.name, world, &mut problems),
        _ => None,
    };
    let parts =
        source.as_ref().and_then(|source| parts(&spec.data_source, source, &namespace, world, &mut problems));
    if let (Some((_, snapshot, ..)), Some(true)) = (&source, parameters.as_ref().map(|p| p.delete)) {
        complete(snapshot, "spec.addon.tasks[0].params.delete", &mut problems);
    }
    let whole = (|| {
        let (repository, _, snapshot, _) = source?;
        let (components, credentials) = parts?;
        Some(LoweredRestore {
            name,
            target: target?,
            repository,
            snapshot,
            components,
            credentials,
            timeout,
            task: task?,
            parameters: parameters?,
        })
    })();
    problems.finish(whole)
}

/// Name of the Repository, the Snapshot, its name, the Repository.
type Source<'a> = (Name, &'a Snapshot, Name, &'a Repository);

/// The Snapshot that is meant, with its Repository. In another namespace the Repository has to allow it.
fn source<'a>(
    said: &DataSource,
    namespace: &str,
    world: &'a World,
    problems: &mut Problems,
) -> Option<Source<'a>> {
    let path = "spec.dataSource";
    if said.pitr.is_some() {
        problems.unsupported(format!("{path}.pitr"), "restoring a moment is");
        return None;
    }
    let text = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
    let Some(wanted) = text(&said.snapshot) else {
        problems.wrong(format!("{path}.snapshot"), "snapshot can not be empty");
        return None;
    };
    let home = text(&said.namespace).unwrap_or_else(|| namespace.to_owned());
    let (snapshot, repository) = match (wanted.as_str(), text(&said.repository)) {
        ("latest", None) => {
            problems.wrong(format!("{path}.repository"), "repository can not be empty for latest snapshot");
            return None;
        }
        ("latest", Some(repository)) => (None, Name::new(&home, repository)),
        (name, repository) => {
            let name = Name::new(&home, name);
            let Some(snapshot) = world.snapshots.get(&name) else {
                problems.missing(format!("{path}.snapshot"), format!("there is no Snapshot {name}"));
                return None;
            };
            let own = &snapshot.spec.repository;
            if let Some(other) = repository.filter(|other| other != own) {
                let text = format!("the Snapshot {name} is in the Repository {own}, not in {other}");
                problems.wrong(format!("{path}.repository"), text);
                return None;
            }
            (Some((name, snapshot)), Name::new(&home, own))
        }
    };
    let Some(there) = world.repositories.get(&repository) else {
        problems.missing(format!("{path}.repository"), format!("there is no Repository {repository}"));
        return None;
    };
    if home != namespace && !allows_from(there.metadata.annotations.as_ref(), namespace) {
        not_allowed(&format!("{path}.namespace"), "Repository", &repository, namespace, problems);
        return None;
    }
    let Some((name, snapshot)) = snapshot.or_else(|| latest(&repository, world)) else {
        let text = format!("no Snapshot of the Repository {repository} has succeeded");
        problems.missing(format!("{path}.snapshot"), text);
        return None;
    };
    Some((repository, snapshot, name, there))
}

/// The newest Snapshot of a Repository that succeeded.
pub(super) fn latest<'a>(repository: &Name, world: &'a World) -> Option<(Name, &'a Snapshot)> {
    let of_repository = world.snapshots.iter().filter(|(name, snapshot)| {
        name.namespace == repository.namespace && snapshot.spec.repository == repository.name
    });
    let timed = of_repository.filter_map(|(name, snapshot)| {
        let phase = snapshot.status.as_ref().and_then(|status| status.phase);
        Some((snapshot.taken()?.0, name, snapshot)).filter(|_| phase == Some(SnapshotPhase::Succeeded))
    });
    timed.max_by_key(|(time, name, _)| (*time, *name)).map(|(_, name, snapshot)| (name.clone(), snapshot))
}

/// The restic snapshots of each component, with their places.
fn parts(
    said: &DataSource,
    (repository, snapshot, name, there): &Source<'_>,
    namespace: &str,
    world: &World,
    problems: &mut Problems,
) -> Option<(Vec<RestorePart>, Credentials)> {
    let storage_name = Name::of(&there.spec.storage_ref, &repository.namespace);
    let path = "spec.dataSource.repository";
    // The Repository was let in when it was made; who may read it is settled where it is named.
    let storage = super::storage(&storage_name, &repository.namespace, path, world, problems);
    let (secret, owner) = match &said.encryption_secret {
        Some(secret) => (Some(secret), namespace),
        None => (there.spec.encryption_secret.as_ref(), repository.namespace.as_str()),
    };
    let path = "spec.dataSource.encryptionSecret";
    let encryption = super::encryption_secret(secret, owner, path, world, problems);

    let status = snapshot.status.as_ref();
    let all = status.map(|status| &status.components);
    let path = "spec.dataSource.components";
    let mut wanted: Vec<(&String, &Component)> = Vec::new();
    for (number, one) in said.components.iter().enumerate() {
        match all.and_then(|all| all.get_key_value(one)) {
            Some(found) => wanted.push(found),
            None => problems
                .wrong(format!("{path}[{number}]"), format!("the Snapshot {name} has no component {one:?}")),
        }
    }
    if said.components.is_empty() {
        wanted.extend(all.into_iter().flatten());
    }
    let storage = storage?;
    let mut parts = Vec::new();
    for (component, found) in wanted {
        let ids: Vec<_> = found.restic_stats.iter().filter_map(|stats| stats.snapshot()).collect();
        let driver = found.driver.as_deref().unwrap_or("Restic");
        if driver != "Restic" {
            problems.unsupported(
                "spec.dataSource.snapshot",
                &format!("the driver {driver} of component {component} is"),
            );
            continue;
        }
        let Some(folder) = found.path.as_deref().filter(|_| !ids.is_empty()) else { continue };
        let directory = super::directory(&format!("{}/{folder}", there.spec.path));
        let place = directory.map_err(ToOwned::to_owned).and_then(|directory| {
            backend::place(&storage.spec.storage, &directory, &repository.name).map_err(|e| super::reason(&e))
        });
        match place {
            Ok(place) => parts.push(RestorePart {
                component: component.clone(),
                snapshots: ids.into_iter().map(ToOwned::to_owned).collect(),
                place,
            }),
            Err(message) => problems.wrong("spec.dataSource.snapshot", message),
        }
    }
    if parts.is_empty() {
        let text = format!("the Snapshot {name} holds no data that can be restored");
        problems.wrong("spec.dataSource.snapshot", text);
        return None;
    }
    let storage_secret = super::storage_secret(&storage_name, storage);
    let credentials =
        Credentials { place: repository.name.clone(), storage: storage_secret, encryption: encryption? };
    Some((parts, credentials))
}

/// Only what is known to be complete may tell what is to be deleted.
fn complete(snapshot: &Snapshot, path: &str, problems: &mut Problems) {
    let status = snapshot.status.as_ref();
    let succeeded = status.and_then(|status| status.phase) == Some(SnapshotPhase::Succeeded);
    let exceptions = status.and_then(|status| SOURCE_EXCEPTIONS.in_list(&status.conditions));
    if !succeeded || exceptions == Some(Truth::True) {
        problems.wrong(
            path,
            "needs a Snapshot that succeeded without exceptions: what it lacks may only have been unreadable",
        );
    }
}
