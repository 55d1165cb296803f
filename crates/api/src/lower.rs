//! Lowering: from documents and the world that they name to what is done, with everything that is wrong named at once.
//!
//! The operator and the standalone mode build from the same results. What a field asks for is done, or the field is refused
//! by its path: none is ignored. Whatever names an object of another namespace needs the consent of that object.

mod configuration;
mod object;
mod parameters;
mod restore;
mod schedule;
mod task;

pub use configuration::{Lowered, LoweredRepository, LoweredSession, configuration};
pub use object::check;
pub use parameters::{BackupParameters, RestoreParameters};
pub use restore::{LoweredRestore, restore};
pub use schedule::schedule;
pub use task::LoweredTask;

use std::time::Duration;

use crate::backend::PASSWORD;
use crate::kinds::BackupStorage;
use crate::kinds::shared::{ObjRef, TypedRef};
use crate::problem::Problems;
use crate::usage::allows_from;
use crate::world::{Name, World};

/// Where the credentials of a [`Place`](crate::job::Place) come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the folder of credentials: the place's.
    pub place: String,
    /// The Secret with the keys of the bucket; without one, the Job's own identity is used.
    pub storage: Option<Name>,
    /// The Secret with the password of the restic repository.
    pub encryption: Name,
}

/// A folder of a storage as one clean path, or why it is none. Slashes at the ends and in a row mean nothing.
///
/// # Errors
/// It is the storage itself, or would leave it.
pub fn directory(text: &str) -> Result<String, &'static str> {
    let clean = crate::name::folder("", text);
    if clean.is_empty() {
        Err("directory can not be empty")
    } else if clean.split('/').any(|part| matches!(part, "." | "..")) {
        Err("must not hold '.' or '..'")
    } else if clean.chars().any(char::is_control) {
        Err("must not hold control characters")
    } else {
        Ok(clean)
    }
}

/// Whether one folder lies in the other, or is it.
pub fn overlap(a: &str, b: &str) -> bool {
    let below =
        |a: &str, b: &str| a.strip_prefix(b).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    below(a, b) || below(b, a)
}

/// The Secret with the password of a repository: it must be there, have the key, and be the namespace's own or let it in.
fn encryption_secret(
    reference: Option<&ObjRef>,
    namespace: &str,
    path: &str,
    world: &World,
    problems: &mut Problems,
) -> Option<Name> {
    let Some(reference) = reference else {
        problems.wrong(path, format!("must name a Secret with the key {PASSWORD}"));
        return None;
    };
    let name = Name::of(reference, namespace);
    let Some(secret) = world.secrets.get(&name) else {
        problems.missing(path, format!("there is no Secret {name}"));
        return None;
    };
    if name.namespace != namespace && !allows_from(Some(&secret.annotations), namespace) {
        not_allowed(path, "Secret", &name, namespace, problems);
        return None;
    }
    if !secret.keys.contains(PASSWORD) {
        problems.wrong(path, format!("the Secret {name} lacks the key {PASSWORD}"));
        return None;
    }
    Some(name)
}

/// An object of another namespace did not say that this one may refer to it.
fn not_allowed(path: &str, kind: &str, name: &Name, namespace: &str, problems: &mut Problems) {
    let annotation = crate::labels::ALLOW_FROM;
    problems.wrong(
        path,
        format!("the {kind} {name} lies in another namespace and does not allow it: its annotation {annotation} must list {namespace}"),
    );
}

/// A storage that may be used from the namespace, and whose provider we know.
fn storage<'a>(
    name: &Name,
    namespace: &str,
    path: &str,
    world: &'a World,
    problems: &mut Problems,
) -> Option<&'a BackupStorage> {
    let Some(storage) = world.storages.get(name) else {
        problems.missing(path, format!("there is no BackupStorage {name}"));
        return None;
    };
    if !world.admits(storage.spec.usage_policy.as_ref(), &name.namespace, namespace) {
        problems.wrong(
            path,
            format!("the usagePolicy of the BackupStorage {name} does not admit namespace {namespace}"),
        );
        return None;
    }
    if let Err(error) = crate::backend::place(&storage.spec.storage, "", "") {
        problems.wrong(path, format!("the BackupStorage {name} cannot be used: {}", reason(&error)));
        return None;
    }
    Some(storage)
}

/// What a bucket's error says of a storage, without what it was about.
fn reason(error: &cistern_bucket::Error) -> String {
    error.detail.as_deref().map_or_else(|| error.to_string(), ToOwned::to_owned)
}

/// The Secret that a storage names, in its own namespace.
fn storage_secret(name: &Name, storage: &BackupStorage) -> Option<Name> {
    // Storages of other providers are refused before their Secrets count.
    storage.spec.storage.s3.as_ref()?;
    storage.spec.storage.secret_name().map(|secret| Name::new(&name.namespace, secret))
}

/// The claim that is meant by a target. Other kinds are named as not supported.
fn claim(
    target: &TypedRef,
    namespace: &str,
    path: &str,
    world: &World,
    problems: &mut Problems,
) -> Option<Claim> {
    let group = target.api_group.as_deref().unwrap_or_default();
    let kind = target.kind.as_deref().unwrap_or_default();
    if !matches!((group, kind), ("" | "v1" | "core", "PersistentVolumeClaim")) {
        let what =
            if kind.is_empty() { "a target without a kind is" } else { &format!("a {kind} as target is") };
        problems.unsupported(format!("{path}.kind"), what);
        return None;
    }
    let other = target.namespace.as_deref().filter(|text| !text.is_empty());
    if let Some(other) = other.filter(|other| *other != namespace) {
        problems.wrong(
            format!("{path}.namespace"),
            format!("a claim is mounted in its own namespace only: this object must lie in {other}, too"),
        );
        return None;
    }
    let name = Name::new(namespace, &target.name);
    let Some(facts) = world.claims.get(&name) else {
        problems.missing(path, format!("there is no PersistentVolumeClaim {name}"));
        return None;
    };
    Some(Claim { name, mounted_bucket: facts.is_mounted_bucket() })
}

/// A claim that is backed up or restored into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: Name,
    /// Whether its volume is a mounted bucket.
    pub mounted_bucket: bool,
}

/// Time for a run.
fn timeout(said: Option<&kube::core::Duration>, path: &str, problems: &mut Problems) -> Option<Duration> {
    let time = *said?;
    if time.is_negative() || Duration::from(time).is_zero() {
        problems.wrong(path, "must be longer than nothing");
        return None;
    }
    Some(time.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_overlap_by_parts_and_not_by_letters() {
        assert!(overlap("a", "a") && overlap("a", "a/b") && overlap("a/b/c", "a/b"));
        assert!(!overlap("a", "ab") && !overlap("a/b", "a/c"));
    }
}
