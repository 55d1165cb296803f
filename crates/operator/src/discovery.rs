//! Brings Repositories and Snapshots that a bucket holds into the cluster.
//!
//! What lies in a bucket may have been written by anybody who can write there. Nothing that exists is changed; a fixed list
//! of fields is taken; where a Repository lies is where its file was found; owners, finalizers and foreign labels are dropped.
//! It comes into the storage's own namespace, or into the one that it was in if both sides agree: the storage's usage policy
//! admits the namespace, and the Namespace carries `cistern.dev/accept-from: <namespace>/<storage>`.

use std::collections::BTreeMap;

use cistern_api::condition::{self, Truth};
use cistern_api::kinds::backup_storage::{BackupStorage, BackupStorageStatus, StoredRepository};
use cistern_api::kinds::shared::{DeletionPolicy, ObjRef};
use cistern_api::kinds::snapshot::{SnapshotPhase, SnapshotStatus, VerificationStatus};
use cistern_api::kinds::{Repository, RepositorySpec, Snapshot, SnapshotSpec};
use cistern_api::world::Name;
use cistern_api::{labels, name, phase, usage};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::backup_storage::storage_of;
use crate::context::{Cx, owner};
use crate::controller::Failure;
use crate::layout::{BackendMeta, Layout, clean, is_ours};

/// An object in a file of a bucket: what we take of it. Everything else is not even read.
#[derive(Debug, Deserialize)]
struct Filed<S, T> {
    #[serde(default)]
    metadata: FiledMetadata,
    spec: S,
    #[serde(default = "none")]
    status: Option<T>,
}

fn none<T>() -> Option<T> {
    None
}

#[derive(Debug, Default, Deserialize)]
struct FiledMetadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

/// Brings what the bucket holds into the cluster: all of it when the storage is first opened, later what failed before.
/// Gives what is not in the cluster, and why; `None` if there was nothing to do.
pub async fn sync(
    cx: &Cx,
    storage: &BackupStorage,
    layout: &Layout,
    metadata: &BackendMeta,
    before: &BackupStorageStatus,
) -> Option<Vec<StoredRepository>> {
    let first = match condition::REPOSITORIES_SYNCED.in_list(&before.conditions) {
        Some(Truth::True) => return None,
        seen => seen.is_none(),
    };
    let failed = |line: &StoredRepository| {
        let mut known = before.repositories.iter();
        known.any(|old| {
            (&old.name, &old.namespace) == (&line.name, &line.namespace) && old.synced == Some(false)
        })
    };
    let mut strangers = Vec::new();
    for line in metadata.repositories.iter().filter(|line| first || failed(line)) {
        let error = match bring(cx, storage, layout, line).await {
            Ok(None) => continue,
            Ok(Some(error)) => error,
            Err(failure) => failure.to_string(),
        };
        let (name, path) = (line.name.chars().take(253).collect(), line.path.as_ref());
        let path = path.map(|path| path.chars().take(512).collect());
        let namespace = line.namespace.clone().filter(|name| is_name(name));
        strangers.push(StoredRepository {
            name,
            namespace,
            path,
            size: line.size.clone(),
            synced: Some(false),
            error: Some(error),
        });
    }
    Some(strangers)
}

/// Brings one Repository with its Snapshots. Gives why not everything could be brought.
async fn bring(
    cx: &Cx,
    storage: &BackupStorage,
    layout: &Layout,
    line: &StoredRepository,
) -> Result<Option<String>, Failure> {
    let own = storage.namespace().unwrap_or_default();
    let recorded = line.namespace.clone().filter(|name| !name.is_empty()).unwrap_or_else(|| own.clone());
    if !is_name(&line.name) || !is_name(&recorded) {
        return Ok(Some("its name or namespace is none".to_owned()));
    }
    let Some(path) = line.path.as_deref().and_then(clean) else {
        return Ok(Some("its path names no folder below the prefix".to_owned()));
    };
    if recorded != own {
        if !cx.settings().covers(&recorded) {
            return Ok(Some(format!("the namespace {recorded} is not looked after by this operator")));
        }
        let namespace = cx.cluster::<Namespace>().get_opt(&recorded).await?;
        if let Some(why) = refused(storage, &own, &recorded, namespace.as_ref()) {
            return Ok(Some(why));
        }
    }
    let repository = match cx.get::<Repository>(&recorded, &line.name).await? {
        Some(present) => {
            let same = storage_of(&present) == Name::new(own, storage.name_any())
                && clean(&present.spec.path).as_ref() == Some(&path);
            if !same {
                return Ok(Some("another Repository of this name is there already".to_owned()));
            }
            present
        }
        None => {
            let Some(file) = layout.repository::<Filed<RepositorySpec, IgnoredAny>>(&path).await? else {
                return Ok(Some("its repository.yaml is missing".to_owned()));
            };
            cx.create_once(&repository(storage, &line.name, &recorded, &path, file)).await?
        }
    };
    let (files, broken) = layout.snapshots::<Filed<SnapshotSpec, SnapshotStatus>>(&path).await?;
    let mut left = broken;
    for file in files {
        let Some((wanted, status)) = snapshot(&repository, file, cx.now()) else {
            left += 1;
            continue;
        };
        let present = match cx.get::<Snapshot>(&recorded, &wanted.name_any()).await? {
            Some(present) => present,
            None => cx.create_once(&wanted).await?,
        };
        // One whose status could not be written when it was made is as good as new.
        if present.status.is_none() {
            cx.publish(&present, &status).await?;
        }
    }
    Ok((left > 0).then(|| format!("{left} of its snapshot files cannot be used")))
}

/// Why a Repository does not come into another namespace than its storage's.
fn refused(
    storage: &BackupStorage,
    own: &str,
    recorded: &str,
    namespace: Option<&Namespace>,
) -> Option<String> {
    let Some(namespace) = namespace else { return Some(format!("the namespace {recorded} does not exist")) };
    let policy = storage.spec.usage_policy.as_ref();
    if !usage::admits(policy, own, recorded, namespace.labels()) {
        return Some(format!(
            "the usage policy of the BackupStorage does not admit the namespace {recorded}"
        ));
    }
    let accepted = namespace.annotations().get(labels::ACCEPT_FROM).map(String::as_str).unwrap_or_default();
    let word = format!("{own}/{}", storage.name_any());
    let agreed = accepted.split(',').any(|one| one.trim() == word);
    (!agreed)
        .then(|| format!("the namespace {recorded} lacks the annotation {}: {word}", labels::ACCEPT_FROM))
}

/// The Repository as it comes into the cluster.
fn repository(
    storage: &BackupStorage,
    name: &str,
    namespace: &str,
    path: &str,
    file: Filed<RepositorySpec, IgnoredAny>,
) -> Repository {
    let spec = RepositorySpec {
        app_ref: file.spec.app_ref,
        storage_ref: ObjRef { name: storage.name_any(), namespace: storage.namespace() },
        path: path.to_owned(),
        // Nobody in this cluster asked for data to be deleted.
        deletion_policy: DeletionPolicy::Delete,
        encryption_secret: file.spec.encryption_secret,
        paused: None,
    };
    let mut repository = Repository::new(name, spec);
    repository.metadata.namespace = Some(namespace.to_owned());
    repository.metadata.labels = Some(ours(file.metadata.labels));
    repository
}

/// The Snapshot as it comes into the cluster, owned by its Repository; `None` if the file is none of a backup that is over.
fn snapshot(
    repository: &Repository,
    file: Filed<SnapshotSpec, SnapshotStatus>,
    now: Timestamp,
) -> Option<(Snapshot, SnapshotStatus)> {
    let old = file.status?;
    let over = old.phase.is_some_and(SnapshotPhase::is_over);
    let paths = old.components.values().filter_map(|component| component.path.as_deref());
    if !over
        || !is_name(&file.metadata.name)
        || !paths.into_iter().all(|path| clean(path).as_deref() == Some(path))
    {
        return None;
    }
    let spec = SnapshotSpec {
        repository: repository.name_any(),
        deletion_policy: DeletionPolicy::Delete,
        paused: None,
        snapshot_id: file.spec.snapshot_id,
        type_: file.spec.type_,
        session: file.spec.session,
        backup_session: file.spec.backup_session,
        version: file.spec.version,
        app_ref: file.spec.app_ref,
    };
    let mut snapshot = Snapshot::new(&file.metadata.name, spec);
    snapshot.metadata.namespace = repository.namespace();
    snapshot.metadata.owner_references = Some(vec![owner(repository)]);
    let mut marks = ours(file.metadata.labels);
    marks.insert(labels::REPO_NAME.to_owned(), name::label(&repository.name_any()));
    snapshot.metadata.labels = Some(marks);
    let mut status = SnapshotStatus {
        phase: None,
        // Nobody in this cluster verified it.
        verification_status: Some(VerificationStatus::NotVerified),
        verification_session: None,
        snapshot_time: old.snapshot_time,
        last_update_time: None,
        size: old.size,
        integrity: old.integrity,
        total_components: old.total_components,
        conditions: Vec::new(),
        components: old.components,
    };
    let uploaded = "The file of the Snapshot was found in the backend.";
    condition::set(&mut status.conditions, condition::SNAPSHOT_METADATA_UPLOADED.is(true, uploaded, now));
    if old.phase == Some(SnapshotPhase::Failed) && phase::snapshot(&status) != SnapshotPhase::Failed {
        let why = "The Snapshot had failed when its file was written.";
        condition::set(&mut status.conditions, condition::BACKUP_INCOMPLETE.is(true, why, now));
    }
    status.phase = Some(phase::snapshot(&status));
    Some((snapshot, status))
}

/// Our labels among those of a file, and that it is ours.
fn ours(labels: Option<BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut kept: BTreeMap<_, _> = labels
        .unwrap_or_default()
        .into_iter()
        .filter(|(name, value)| is_ours(name) && is_label(value))
        .collect();
    kept.insert(labels::MANAGED_BY.to_owned(), labels::MANAGER.to_owned());
    kept
}

/// Whether an object or a namespace can be called so.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=253).contains(&name.len())
        && name.chars().all(|c| plain(c) || matches!(c, '-' | '.'))
        && name.starts_with(plain)
        && name.ends_with(plain)
}

/// Whether it can be the value of a label.
fn is_label(value: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric();
    value.len() <= 63
        && value.chars().all(|c| plain(c) || matches!(c, '-' | '.' | '_'))
        && (value.is_empty() || (value.starts_with(plain) && value.ends_with(plain)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn storage(policy: serde_json::Value) -> BackupStorage {
        let spec = json!({ "storage": { "provider": "s3", "s3": { "bucket": "b" } }, "usagePolicy": policy });
        let mut storage = BackupStorage::new("gcs-storage", serde_json::from_value(spec).expect("a spec"));
        storage.metadata.namespace = Some("demo".into());
        storage
    }

    #[test]
    fn both_sides_agree_before_anything_comes_into_another_namespace() {
        let namespace = |word: Option<&str>| {
            let mut namespace = Namespace::default();
            namespace.metadata.annotations =
                word.map(|word| [(labels::ACCEPT_FROM.to_owned(), word.to_owned())].into());
            namespace
        };
        let all = storage(json!({ "allowedNamespaces": { "from": "All" } }));
        let same = storage(json!(null));
        let judge = |storage: &BackupStorage, namespace: Option<&Namespace>| {
            refused(storage, "demo", "shop", namespace)
        };
        assert!(judge(&all, None).expect("refused").contains("does not exist"));
        assert!(
            judge(&all, Some(&namespace(None)))
                .expect("refused")
                .contains("cistern.dev/accept-from: demo/gcs-storage")
        );
        assert!(judge(&all, Some(&namespace(Some("demo/other")))).is_some());
        assert_eq!(judge(&all, Some(&namespace(Some("a/b, demo/gcs-storage")))), None);
        assert!(
            judge(&same, Some(&namespace(Some("demo/gcs-storage"))))
                .expect("refused")
                .contains("usage policy")
        );
    }

    #[test]
    fn of_a_file_a_fixed_list_of_fields_is_taken() {
        let file = json!({
            "metadata": {
                "name": "evil", "namespace": "kube-system", "finalizers": ["x/y"],
                "ownerReferences": [{ "kind": "Node", "name": "n", "uid": "u", "apiVersion": "v1" }],
                "labels": { "pod-security": "off", "kubestash.com/app-ref-name": "fuse-pvc" },
            },
            "spec": {
                "storageRef": { "name": "other", "namespace": "kube-system" }, "path": "../..",
                "deletionPolicy": "WipeOut", "appRef": { "name": "fuse-pvc", "kind": "PersistentVolumeClaim" }, "paused": true,
            },
            "status": { "phase": "Ready", "snapshotCount": 1, "conditions": [{ "type": "A" }] },
        });
        let file = serde_json::from_value(file).expect("a file");
        let made = repository(&storage(json!(null)), "gcs-repository", "demo", "a/b", file);
        assert_eq!(
            serde_json::to_value(&made).expect("JSON"),
            json!({
                "apiVersion": "storage.kubestash.com/v1alpha1", "kind": "Repository",
                "metadata": {
                    "name": "gcs-repository", "namespace": "demo",
                    "labels": { "app.kubernetes.io/managed-by": "kubestash.com", "kubestash.com/app-ref-name": "fuse-pvc" },
                },
                "spec": {
                    "storageRef": { "name": "gcs-storage", "namespace": "demo" }, "path": "a/b", "deletionPolicy": "Delete",
                    "appRef": { "name": "fuse-pvc", "kind": "PersistentVolumeClaim" },
                },
            })
        );
    }

    #[test]
    fn a_snapshot_comes_with_its_outcome_and_its_new_owner() {
        let mut repository = Repository::new("repo", RepositorySpec::default());
        repository.metadata.namespace = Some("demo".into());
        repository.metadata.uid = Some("new".into());
        let file = |phase: &str, path: &str| {
            let file = json!({
                "metadata": { "name": "repo-bc-s-1" },
                "spec": { "repository": "other", "deletionPolicy": "WipeOut", "snapshotID": "01KEC782WSDDTTPRZ6YDH9DMQ2" },
                "status": {
                    "phase": phase, "totalComponents": 1, "snapshotTime": "2026-01-01T00:00:00Z",
                    "components": { "dump": { "phase": phase, "path": path } },
                },
            });
            serde_json::from_value(file).expect("a file")
        };
        let now = Timestamp::UNIX_EPOCH;
        for (said, phase) in [("Succeeded", SnapshotPhase::Succeeded), ("Failed", SnapshotPhase::Failed)] {
            let (made, status) =
                snapshot(&repository, file(said, "repository/v1/s/dump"), now).expect("it is taken");
            assert_eq!(
                (made.spec.repository.as_str(), made.spec.deletion_policy),
                ("repo", DeletionPolicy::Delete)
            );
            assert_eq!(made.metadata.owner_references.expect("an owner")[0].uid, "new");
            assert_eq!(status.phase, Some(phase));
        }
        assert!(snapshot(&repository, file("Running", "repository/v1/s/dump"), now).is_none());
        assert!(snapshot(&repository, file("Succeeded", "../../other/repository/v1/s/dump"), now).is_none());
    }
}
