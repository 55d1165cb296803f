//! Keeps a Repository: its file and its entry in the bucket, and what its Snapshots add up to.
//!
//! All numbers are computed from the Snapshots again and again: whoever may write a status cannot make them lie for long.
//! The restic repositories themselves are begun by the first backup.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cistern_api::condition::{self, Condition, Truth};
use cistern_api::kinds::backup_storage::{BackupStorage, BackupStoragePhase, StoredRepository};
use cistern_api::kinds::repository::{RecentSnapshot, Repository, RepositoryPhase, RepositoryStatus};
use cistern_api::kinds::shared::{DeletionPolicy, From};
use cistern_api::kinds::snapshot::{Component, Snapshot, SnapshotPhase};
use cistern_api::lower::overlap;
use cistern_api::{labels, phase, size, usage};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use crate::backup_storage::{ends, storage_of};
use crate::context::{Cx, warning};
use crate::controller::{Failure, Reconcile, Requeue, Watches};
use crate::layout::{BackendMeta, Layout, clean};
use crate::snapshot::of_repository;
use crate::world::name_of;

/// How many Snapshots the status lists.
const RECENT: usize = 5;

impl Reconcile for Repository {
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches.owned::<Snapshot>().referred::<BackupStorage>(|repository, storage| {
            // One that is ready does not wait for its storage.
            let waits =
                repository.status.as_ref().and_then(|status| status.phase) != Some(RepositoryPhase::Ready);
            waits && storage_of(repository) == name_of(storage)
        })
    }

    async fn reconcile(&self, cx: &Cx) -> Result<Requeue, Failure> {
        if self.metadata.deletion_timestamp.is_some() {
            return delete(self, cx).await;
        }
        if self.spec.paused == Some(true) {
            return Ok(Requeue::OnChange);
        }
        let repository = cx.hold(self).await?;
        let before = repository.status.clone().unwrap_or_default();
        let sum = summary(&of_repository(cx, &name_of(&repository)).await?);
        let kept = keep(cx, &repository, &sum).await;
        let status = decide(&kept, before, sum, repository.metadata.generation, cx.now());
        cx.publish(&repository, &status).await?;
        let layout = kept?;
        // The file says what the cluster says, but for the observations, which are the cluster's own.
        let mut filed = repository;
        filed.status = Some(RepositoryStatus { conditions: Vec::new(), ..status });
        layout.write_repository(&filed.spec.path, &filed).await?;
        Ok(Requeue::OnChange)
    }
}

/// Makes sure that the storage can be used and has the Repository in its list.
async fn keep(cx: &Cx, repository: &Repository, sum: &RepositoryStatus) -> Result<Layout, Failure> {
    let name = storage_of(repository);
    let storage = cx.get::<BackupStorage>(&name.namespace, &name.name).await?;
    let storage = storage
        .filter(|storage| storage.metadata.deletion_timestamp.is_none())
        .ok_or_else(|| Failure::Missing(format!("the BackupStorage {name} does not exist")))?;
    if !admitted(cx, &storage, &repository.namespace().unwrap_or_default()).await? {
        let why = format!("the usage policy of the BackupStorage {name} does not admit this namespace");
        return Err(Failure::Invalid(why));
    }
    let phase = storage.status.as_ref().and_then(|status| status.phase);
    if phase != Some(BackupStoragePhase::Ready) {
        return Err(Failure::Missing(format!("the BackupStorage {name} is not ready")));
    }
    let layout = Layout::open(cx, &storage).await?;
    let _one = layout.lock(cx).await;
    let mut metadata = layout.metadata().await?.unwrap_or_else(|| BackendMeta::new(cx.now()));
    if register(&mut metadata.repositories, repository, sum.size.clone()).map_err(Failure::Invalid)? {
        layout.write_metadata(&metadata).await?;
    }
    Ok(layout)
}

/// Whether a storage may be used by objects of this namespace.
pub(crate) async fn admitted(cx: &Cx, storage: &BackupStorage, namespace: &str) -> Result<bool, Failure> {
    let own = storage.namespace().unwrap_or_default();
    let policy = storage.spec.usage_policy.as_ref();
    let selects = policy.is_some_and(|policy| policy.allowed_namespaces.from == From::Selector);
    // Only a selector needs the labels, and whoever is confined to namespaces may not be able to read them.
    let found = if selects { cx.cluster::<Namespace>().get_opt(namespace).await? } else { None };
    let marks = found.and_then(|namespace| namespace.metadata.labels).unwrap_or_default();
    Ok(usage::admits(policy, &own, namespace, &marks))
}

/// Puts a Repository into the list; whether that changed it.
///
/// # Errors
/// Its folder is none, or belongs to another one: two that share a folder would delete each other's data.
fn register(
    list: &mut Vec<StoredRepository>,
    repository: &Repository,
    size: Option<String>,
) -> Result<bool, String> {
    let (name, namespace) = (repository.name_any(), repository.namespace());
    let path = clean(&repository.spec.path)
        .ok_or_else(|| "spec.path names no folder below the prefix of the storage".to_owned())?;
    let ours = |line: &StoredRepository| line.name == name && line.namespace == namespace;
    for other in list.iter().filter(|line| !ours(line)) {
        if other.path.as_deref().and_then(clean).is_some_and(|other| overlap(&other, &path)) {
            let (space, other_path) = (other.namespace.as_deref().unwrap_or_default(), other.path.as_deref());
            return Err(format!(
                "the directory {path:?} overlaps with {:?} of the Repository {space}/{}",
                other_path.unwrap_or_default(),
                other.name
            ));
        }
    }
    let wanted = StoredRepository {
        name: name.clone(),
        namespace: namespace.clone(),
        path: Some(path),
        size,
        synced: Some(true),
        error: None,
    };
    match list.iter_mut().find(|line| ours(line)) {
        Some(line) if line.path.as_deref().and_then(clean) != wanted.path => {
            Err(format!("this Repository lies in {:?} already", line.path.as_deref().unwrap_or_default()))
        }
        Some(line) if *line == wanted => Ok(false),
        Some(line) => {
            *line = wanted;
            Ok(true)
        }
        None => {
            list.push(wanted);
            Ok(true)
        }
    }
}

/// What a Repository's status is, by whether it was kept and what its Snapshots add up to.
fn decide(
    kept: &Result<Layout, Failure>,
    before: RepositoryStatus,
    sum: RepositoryStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> RepositoryStatus {
    let mut conditions = before.conditions;
    let was = condition::REPOSITORY_INITIALIZED.in_list(&conditions) == Some(Truth::True);
    let condition = match kept {
        Ok(_) => Some(condition::REPOSITORY_INITIALIZED.is(true, "Successfully initialized repository", now)),
        // What was there does not vanish because it cannot be looked at just now.
        Err(Failure::Missing(_) | Failure::Busy(..) | Failure::Transient(_)) if was => None,
        Err(failure) => Some(condition::REPOSITORY_INITIALIZED.is(false, failure.to_string(), now)),
    };
    if let Some(condition) = condition {
        condition::set(&mut conditions, Condition { observed_generation: generation, ..condition });
    }
    let mut status = RepositoryStatus { conditions, ..sum };
    status.phase = Some(phase::repository(&status));
    status
}

/// What Snapshots add up to. Nothing is said of a Repository that has none.
fn summary(snapshots: &[Snapshot]) -> RepositoryStatus {
    let time = |snapshot: &Snapshot| snapshot.taken().cloned();
    let mut all: Vec<&Snapshot> =
        snapshots.iter().filter(|snapshot| snapshot.metadata.deletion_timestamp.is_none()).collect();
    if all.is_empty() {
        return RepositoryStatus::default();
    }
    let order = |snapshot: &Snapshot| (time(snapshot).map(|time| time.0), snapshot.name_any());
    all.sort_by_key(|snapshot| std::cmp::Reverse(order(snapshot)));
    let phase = |snapshot: &Snapshot| snapshot.status.as_ref().and_then(|status| status.phase);
    // Of each restic repository, what was said last: the newest Snapshot comes first.
    let mut parts: BTreeMap<String, &Component> = BTreeMap::new();
    let mut paths = BTreeSet::new();
    for component in
        all.iter().filter_map(|one| one.status.as_ref()).flat_map(|status| status.components.values())
    {
        let Some(path) = component.path.clone() else { continue };
        paths.insert(path.clone());
        if component.integrity.is_some() || component.size.is_some() {
            parts.entry(path).or_insert(component);
        }
    }
    let sizes: Vec<u64> = parts.values().filter_map(|part| size::parse_size(part.size.as_deref()?)).collect();
    let whole: Vec<bool> = parts.values().filter_map(|part| part.integrity).collect();
    let succeeded = all.iter().find(|one| phase(one) == Some(SnapshotPhase::Succeeded));
    RepositoryStatus {
        phase: None,
        last_backup_time: succeeded.and_then(|one| time(one)),
        integrity: (!whole.is_empty()).then(|| whole.iter().all(|whole| *whole)),
        snapshot_count: i32::try_from(all.len()).ok(),
        size: (!sizes.is_empty()).then(|| size::size(sizes.iter().sum())),
        recent_snapshots: all.iter().take(RECENT).map(|one| recent(one, time(one))).collect(),
        component_paths: paths.into_iter().collect(),
        conditions: Vec::new(),
    }
}

fn recent(
    snapshot: &Snapshot,
    time: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
) -> RecentSnapshot {
    let status = snapshot.status.as_ref();
    RecentSnapshot {
        name: snapshot.name_any(),
        phase: Some(status.and_then(|status| status.phase).unwrap_or_default()),
        session: snapshot.spec.session.clone(),
        size: status.and_then(|status| status.size.clone()),
        snapshot_time: time,
    }
}

/// Takes the Snapshots out of the cluster, then deletes the data if the policy says so, and lets the Repository go.
async fn delete(repository: &Repository, cx: &Cx) -> Result<Requeue, Failure> {
    if !repository.finalizers().iter().any(|name| name == labels::FINALIZER) {
        return Ok(Requeue::OnChange);
    }
    let namespace = repository.namespace().unwrap_or_default();
    let snapshots = of_repository(cx, &name_of(repository)).await?;
    for snapshot in snapshots.iter().filter(|snapshot| snapshot.metadata.deletion_timestamp.is_none()) {
        cx.delete::<Snapshot>(&namespace, &snapshot.name_any()).await?;
    }
    if !snapshots.is_empty() {
        // Each that is gone wakes us.
        return Ok(Requeue::After(Duration::from_secs(30)));
    }
    if repository.spec.deletion_policy == DeletionPolicy::WipeOut {
        match wipe(repository, cx).await {
            Ok(()) => {}
            Err(failure @ Failure::Transient(_)) if !ends(cx, repository).await => return Err(failure),
            Err(failure) => {
                tracing::warn!(namespace, name = repository.name_any(), %failure, "a Repository goes, and its data stays");
                let note = format!("the data is left where it is: {failure}");
                cx.announce(repository, warning("DataLeft", "WipeOut", note)).await;
            }
        }
    }
    cx.release(repository).await?;
    Ok(Requeue::OnChange)
}

/// Deletes what belongs to the Repository, and its entry in the list.
async fn wipe(repository: &Repository, cx: &Cx) -> Result<(), Failure> {
    if ends(cx, repository).await {
        return Err(Failure::Invalid("its namespace is being deleted".to_owned()));
    }
    let name = storage_of(repository);
    let storage = cx.get::<BackupStorage>(&name.namespace, &name.name).await?;
    let storage =
        storage.ok_or_else(|| Failure::Missing(format!("the BackupStorage {name} does not exist")))?;
    if storage.metadata.deletion_timestamp.is_some() {
        // The storage's own policy decides, and it deletes what it lists itself.
        return match storage.spec.deletion_policy {
            DeletionPolicy::WipeOut => Ok(()),
            DeletionPolicy::Delete => {
                Err(Failure::Invalid("its BackupStorage is being deleted, and keeps it".to_owned()))
            }
        };
    }
    let layout = Layout::open(cx, &storage).await?;
    let _one = layout.lock(cx).await;
    let Some(mut metadata) = layout.metadata().await? else { return Ok(()) };
    let ours = |line: &StoredRepository| {
        line.name == repository.name_any() && line.namespace == repository.namespace()
    };
    // What is not registered as ours is not ours to delete.
    let Some(line) = metadata.repositories.iter().find(|line| ours(line)) else { return Ok(()) };
    if line.path.as_deref().and_then(clean) != clean(&repository.spec.path) {
        return Err(Failure::Invalid(format!(
            "{:?} is not registered as its directory",
            repository.spec.path
        )));
    }
    layout.wipe_repository(&repository.spec.path).await?;
    metadata.repositories.retain(|line| !ours(line));
    layout.write_metadata(&metadata).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cistern_api::kinds::RepositorySpec;
    use serde_json::json;

    use super::*;

    fn snapshot(
        name: &str,
        time: &str,
        phase: &str,
        size: Option<&str>,
        integrity: Option<bool>,
    ) -> Snapshot {
        let object = json!({
            "metadata": { "name": name, "namespace": "demo" },
            "spec": { "repository": "repo", "session": "s" },
            "status": {
                "phase": phase, "snapshotTime": time, "size": size,
                "components": { "dump": { "path": "repository/v1/s/dump", "size": size, "integrity": integrity } },
            },
        });
        serde_json::from_value(object).expect("a Snapshot")
    }

    #[test]
    fn snapshots_add_up() {
        let all = [
            snapshot("a", "2026-01-01T00:00:00Z", "Succeeded", Some("1.000 KiB"), Some(true)),
            snapshot("c", "2026-01-03T00:00:00Z", "Failed", None, None),
            snapshot("b", "2026-01-02T00:00:00Z", "Succeeded", Some("2.000 KiB"), Some(true)),
            snapshot("d", "2026-01-04T00:00:00Z", "Running", None, None),
        ];
        let sum = summary(&all);
        assert_eq!(sum.snapshot_count, Some(4));
        assert_eq!(sum.size.as_deref(), Some("2.000 KiB"), "of one restic repository, what was said last");
        assert_eq!(sum.integrity, Some(true));
        assert_eq!(sum.last_backup_time.expect("one succeeded").0.to_string(), "2026-01-02T00:00:00Z");
        assert_eq!(sum.component_paths, ["repository/v1/s/dump"]);
        let names: Vec<_> = sum.recent_snapshots.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["d", "c", "b", "a"]);
        let many: Vec<_> = (1..=9)
            .map(|n| snapshot(&format!("s{n}"), &format!("2026-01-0{n}T00:00:00Z"), "Succeeded", None, None))
            .collect();
        assert_eq!(summary(&many).recent_snapshots.len(), 5);
        assert_eq!(
            summary(&[]),
            RepositoryStatus::default(),
            "nothing is said of a Repository without Snapshots"
        );
        let broken = snapshot("e", "2026-01-05T00:00:00Z", "Succeeded", Some("2.000 KiB"), Some(false));
        assert_eq!(summary(&[all[0].clone(), broken]).integrity, Some(false));
    }

    fn repository(name: &str, path: &str) -> Repository {
        let mut repository =
            Repository::new(name, RepositorySpec { path: path.into(), ..RepositorySpec::default() });
        repository.metadata.namespace = Some("demo".into());
        repository
    }

    #[test]
    fn a_folder_belongs_to_one_repository() {
        let mut list = Vec::new();
        assert_eq!(register(&mut list, &repository("a", "/x/y"), None), Ok(true));
        assert_eq!(register(&mut list, &repository("a", "x/y/"), None), Ok(false), "it is there already");
        assert_eq!(
            register(&mut list, &repository("a", "x/y"), Some("1 B".into())),
            Ok(true),
            "its size changed"
        );
        for path in ["x", "x/y", "/x//y/z", "", "..", "/"] {
            assert!(register(&mut list, &repository("b", path), None).is_err(), "{path:?}");
        }
        assert!(register(&mut list, &repository("a", "z"), None).is_err(), "it does not move");
        assert_eq!(register(&mut list, &repository("b", "x/yz"), None), Ok(true));
        assert_eq!(list.len(), 2);
    }

    #[test]
    fn what_was_ready_stays_so_while_its_bucket_is_away() {
        let now = Timestamp::UNIX_EPOCH;
        let layout = || Ok(Layout::of(Arc::new(cistern_bucket::Memory::new("test"))));
        let decide = |kept: Result<Layout, Failure>, before| {
            decide(&kept, before, RepositoryStatus::default(), None, now)
        };
        let fresh = decide(Err(Failure::Missing("no storage".into())), RepositoryStatus::default());
        assert_eq!(fresh.phase, Some(RepositoryPhase::NotReady));
        let ready = decide(layout(), fresh);
        assert_eq!(ready.phase, Some(RepositoryPhase::Ready));
        let away = decide(Err(Failure::Transient("time-out".into())), ready.clone());
        assert_eq!(away.phase, Some(RepositoryPhase::Ready));
        let refused = decide(Err(Failure::Invalid("not admitted".into())), ready);
        assert_eq!(refused.phase, Some(RepositoryPhase::NotReady));
    }
}
