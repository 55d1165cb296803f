//! Keeps a BackupStorage: opens its bucket, finds what it holds already, and adds up what is stored in it.
//!
//! What a bucket held before is brought into the cluster once, when the storage is first opened (see [`discovery`]), so that
//! a Repository that is deleted later does not come back. Deleting a storage takes its Repositories out of the cluster, and
//! leaves the bucket alone unless its policy is `WipeOut`.

use std::time::Duration;

use cistern_api::condition::{self, Condition, Truth};
use cistern_api::kinds::backup_storage::{BackupStorage, BackupStorageStatus, StoredRepository};
use cistern_api::kinds::repository::{Repository, RepositoryPhase};
use cistern_api::kinds::shared::DeletionPolicy;
use cistern_api::world::Name;
use cistern_api::{backend, labels, phase, size};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;

use crate::context::{Cx, warning};
use crate::controller::{Failure, Reconcile, Requeue, Watches};
use crate::discovery;
use crate::layout::{BackendMeta, Layout};
use crate::world::name_of;

/// How often a storage is looked at when nothing happens.
const CHECK: Duration = Duration::from_mins(5);

impl Reconcile for BackupStorage {
    fn watches(watches: Watches<Self>) -> Watches<Self> {
        watches.on::<Repository>(|repository| {
            let storage = storage_of(repository);
            vec![(storage.namespace, storage.name)]
        })
    }

    async fn reconcile(&self, cx: &Cx) -> Result<Requeue, Failure> {
        if self.metadata.deletion_timestamp.is_some() {
            return delete(self, cx).await;
        }
        let storage = cx.hold(self).await?;
        let before = storage.status.clone().unwrap_or_default();
        let twin = twin(&storage, &cx.list_everywhere::<BackupStorage>("").await?);
        let opened = match twin {
            // The other one may go.
            Some(twin) => Err(Failure::Busy(
                format!(
                    "no two BackupStorage should point to the same directory of the same bucket: {twin} does as well"
                ),
                CHECK,
            )),
            None => Layout::open(cx, &storage).await,
        };
        let initialized = match opened {
            Ok(layout) => initialize(cx, &layout).await.map(|metadata| (layout, metadata)),
            Err(failure) => Err(failure),
        };
        let found = match &initialized {
            Ok((layout, metadata)) => discovery::sync(cx, &storage, layout, metadata, &before).await,
            Err(_) => None,
        };
        let repositories = repositories(cx, &storage).await?;
        let secret = match storage.spec.storage.secret_name() {
            None => None,
            // The bucket was opened with its keys.
            Some(_) if initialized.is_ok() => Some(true),
            Some(name) => Some(cx.keys(&storage.namespace().unwrap_or_default(), name).await?.is_some()),
        };
        let seen = Seen {
            secret,
            initialized: initialized.as_ref().err().map(ToString::to_string),
            repositories: repositories.iter().map(line).collect(),
            found,
        };
        let status = decide(&seen, before, storage.metadata.generation, cx.now());
        cx.publish(&storage, &status).await?;
        initialized.map(|_| Requeue::After(CHECK))
    }
}

/// What is seen of a storage.
struct Seen {
    /// Whether its Secret is there; `None` if it names none.
    secret: Option<bool>,
    /// Why the bucket cannot be used; `None` if it can.
    initialized: Option<String>,
    /// The Repositories in the cluster.
    repositories: Vec<StoredRepository>,
    /// What the bucket held that is not in the cluster, and why; `None` if nobody looked.
    found: Option<Vec<StoredRepository>>,
}

/// What a storage's status is, by what is seen.
fn decide(
    seen: &Seen,
    before: BackupStorageStatus,
    generation: Option<i64>,
    now: Timestamp,
) -> BackupStorageStatus {
    let is_synced = condition::REPOSITORIES_SYNCED.in_list(&before.conditions) == Some(Truth::True);
    let mut conditions = before.conditions;
    let mut set = |condition: Condition| {
        condition::set(&mut conditions, Condition { observed_generation: generation, ..condition });
    };
    if let Some(found) = seen.secret {
        let text = if found { "Backend secret exists." } else { "Backend secret does not exist." };
        set(condition::BACKEND_SECRET_FOUND.is(found, text, now));
    }
    set(match &seen.initialized {
        None => condition::BACKEND_INITIALIZED.is(true, "Successfully initialized backend.", now),
        Some(why) => condition::BACKEND_INITIALIZED.is(false, why, now),
    });
    // What was not looked at is as it was. Once all that the bucket held is in the cluster, nobody is a stranger: a line
    // that is not synced is then of a Repository that was not ready, and may have gone.
    let strangers = match &seen.found {
        Some(strangers) => strangers.clone(),
        None if is_synced => Vec::new(),
        None => before.repositories.into_iter().filter(|line| line.synced == Some(false)).collect(),
    };
    if seen.found.is_some() {
        let text = match strangers.len() {
            0 => "What the bucket held is in the cluster.".to_owned(),
            n => format!("{n} repositories of the bucket are not in the cluster; see status.repositories."),
        };
        set(condition::REPOSITORIES_SYNCED.is(strangers.is_empty(), text, now));
    }
    if seen.secret.is_none() {
        conditions.retain(|condition| condition.type_ != condition::BACKEND_SECRET_FOUND.name);
    }
    let mut repositories = seen.repositories.clone();
    let known = |line: &StoredRepository, all: &[StoredRepository]| {
        all.iter().any(|one| (&one.name, &one.namespace) == (&line.name, &line.namespace))
    };
    for line in strangers {
        if !known(&line, &repositories) {
            repositories.push(line);
        }
    }
    repositories.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    let total = repositories.iter().filter_map(|line| size::parse_size(line.size.as_deref()?)).sum();
    let mut status =
        BackupStorageStatus { phase: None, total_size: Some(size::size(total)), repositories, conditions };
    status.phase = Some(phase::backup_storage(&status));
    status
}

/// The line about a Repository of the cluster.
fn line(repository: &Repository) -> StoredRepository {
    let status = repository.status.clone().unwrap_or_default();
    let ready = status.phase == Some(RepositoryPhase::Ready);
    let refused = condition::find(&status.conditions, condition::REPOSITORY_INITIALIZED)
        .filter(|condition| condition.status == Truth::False)
        .and_then(|condition| condition.message.clone());
    StoredRepository {
        name: repository.name_any(),
        namespace: repository.namespace(),
        path: Some(repository.spec.path.clone()),
        size: status.size,
        synced: Some(ready),
        error: refused,
    }
}

/// The storage that a Repository lies in.
pub(crate) fn storage_of(repository: &Repository) -> Name {
    Name::of(&repository.spec.storage_ref, &repository.namespace().unwrap_or_default())
}

/// The Repositories that lie in a storage, in all namespaces that we look after.
async fn repositories(cx: &Cx, storage: &BackupStorage) -> Result<Vec<Repository>, Failure> {
    let name = name_of(storage);
    let mut all = cx.list_everywhere::<Repository>("").await?;
    all.retain(|repository| storage_of(repository) == name);
    Ok(all)
}

/// The older storage in the same place, if there is one.
fn twin(storage: &BackupStorage, all: &[BackupStorage]) -> Option<String> {
    let place = |storage: &BackupStorage| backend::place(&storage.spec.storage, "", "").ok();
    let mine = place(storage)?;
    if storage.spec.storage.provider == "local" {
        return None;
    }
    let age = |storage: &BackupStorage| {
        (storage.creation_timestamp().map(|time| time.0), storage.namespace(), storage.name_any())
    };
    let older = all.iter().filter(|other| other.uid() != storage.uid() && age(other) < age(storage));
    let mut same = older.filter(|other| place(other).is_some_and(|place| place.address == mine.address));
    same.next().map(|twin| format!("{}/{}", twin.namespace().unwrap_or_default(), twin.name_any()))
}

/// Reads the list of repositories, or begins one.
async fn initialize(cx: &Cx, layout: &Layout) -> Result<BackendMeta, Failure> {
    let _one = layout.lock(cx).await;
    if let Some(metadata) = layout.metadata().await? {
        return Ok(metadata);
    }
    let metadata = BackendMeta::new(cx.now());
    layout.write_metadata(&metadata).await?;
    Ok(metadata)
}

/// Takes the storage's Repositories out of the cluster, then deletes what is known of the data if the policy says so, and
/// lets the storage go.
async fn delete(storage: &BackupStorage, cx: &Cx) -> Result<Requeue, Failure> {
    if !storage.finalizers().iter().any(|name| name == labels::FINALIZER) {
        return Ok(Requeue::OnChange);
    }
    let repositories = repositories(cx, storage).await?;
    for repository in &repositories {
        if repository.metadata.deletion_timestamp.is_none() {
            cx.delete::<Repository>(&repository.namespace().unwrap_or_default(), &repository.name_any())
                .await?;
        }
    }
    if !repositories.is_empty() {
        // Each that is gone wakes us.
        return Ok(Requeue::After(Duration::from_secs(30)));
    }
    if storage.spec.deletion_policy == DeletionPolicy::WipeOut {
        match wipe(storage, cx).await {
            Ok(()) => {}
            Err(failure @ Failure::Transient(_)) if !ends(cx, storage).await => return Err(failure),
            Err(failure) => {
                let note = format!("the data is left where it is: {failure}");
                tracing::warn!(name = storage.name_any(), %failure, "a storage goes, and its data stays");
                cx.announce(storage, warning("DataLeft", "WipeOut", note)).await;
            }
        }
    }
    cx.release(storage).await?;
    Ok(Requeue::OnChange)
}

/// Deletes the registered repositories and the list of them.
async fn wipe(storage: &BackupStorage, cx: &Cx) -> Result<(), Failure> {
    if ends(cx, storage).await {
        return Err(Failure::Invalid("its namespace is being deleted".to_owned()));
    }
    let layout = Layout::open(cx, storage).await?;
    // Another storage of the same place keeps its data.
    if let Some(twin) = twin(storage, &cx.list_everywhere::<BackupStorage>("").await?) {
        return Err(Failure::Invalid(format!("{twin} points to the same directory")));
    }
    let _one = layout.lock(cx).await;
    for line in layout.metadata().await?.map(|metadata| metadata.repositories).unwrap_or_default() {
        match layout.wipe_repository(line.path.as_deref().unwrap_or_default()).await {
            // A list that names no folder of ours is no order to delete.
            Err(Failure::Invalid(why)) => {
                tracing::warn!(name = line.name, why, "a registered folder is left")
            }
            outcome => outcome?,
        }
    }
    layout.delete_metadata().await
}

/// Whether the namespace of an object is being deleted.
pub(crate) async fn ends(cx: &Cx, object: &impl kube::Resource) -> bool {
    let Some(namespace) = object.meta().namespace.as_deref() else { return false };
    let found = cx.cluster::<Namespace>().get_opt(namespace).await;
    matches!(found, Ok(Some(namespace)) if namespace.metadata.deletion_timestamp.is_some())
}

#[cfg(test)]
mod tests {
    use cistern_api::kinds::backup_storage::{BackupStoragePhase, BackupStorageSpec};
    use serde_json::json;

    use super::*;

    fn stored(name: &str, size: &str) -> StoredRepository {
        StoredRepository {
            name: name.into(),
            namespace: Some("demo".into()),
            size: Some(size.into()),
            synced: Some(true),
            ..StoredRepository::default()
        }
    }

    #[test]
    fn a_storage_is_ready_when_bucket_and_secret_are_there() {
        let table = [
            (None, None, BackupStoragePhase::Ready),
            (Some(true), None, BackupStoragePhase::Ready),
            (Some(false), Some("the Secret s does not exist"), BackupStoragePhase::NotReady),
            (Some(true), Some("access denied"), BackupStoragePhase::NotReady),
        ];
        for (secret, error, phase) in table {
            let seen =
                Seen { secret, initialized: error.map(str::to_owned), repositories: vec![], found: None };
            let status = decide(&seen, BackupStorageStatus::default(), Some(3), Timestamp::UNIX_EPOCH);
            assert_eq!(status.phase, Some(phase), "{secret:?} {error:?}");
            let initialized =
                condition::find(&status.conditions, condition::BACKEND_INITIALIZED).expect("it is there");
            assert_eq!(initialized.observed_generation, Some(3));
            assert!(error.is_none_or(|error| initialized.message.as_deref() == Some(error)));
        }
    }

    #[test]
    fn what_is_stored_is_added_up_and_strangers_stay_listed() {
        let stranger =
            StoredRepository { synced: Some(false), error: Some("why".into()), ..stored("old", "1.000 KiB") };
        let seen = |found| Seen {
            secret: None,
            initialized: None,
            repositories: vec![stored("b", "1.000 KiB"), stored("a", "512 B")],
            found,
        };
        let first =
            decide(&seen(Some(vec![stranger])), BackupStorageStatus::default(), None, Timestamp::UNIX_EPOCH);
        assert_eq!(first.total_size.as_deref(), Some("2.500 KiB"));
        assert_eq!(condition::REPOSITORIES_SYNCED.in_list(&first.conditions), Some(Truth::False));
        let names = |status: &BackupStorageStatus| {
            status.repositories.iter().map(|line| line.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&first), ["a", "b", "old"]);
        let later = decide(&seen(None), first.clone(), None, Timestamp::UNIX_EPOCH);
        assert_eq!(later, first, "nobody looked: nothing changes");
        let synced = decide(&seen(Some(vec![])), first, None, Timestamp::UNIX_EPOCH);
        assert_eq!(names(&synced), ["a", "b"]);
        assert_eq!(condition::REPOSITORIES_SYNCED.in_list(&synced.conditions), Some(Truth::True));

        // A Repository that went before it was ready is no stranger of the bucket.
        let waits = StoredRepository { synced: Some(false), ..stored("waits", "0 B") };
        let there = Seen { repositories: vec![waits], ..seen(None) };
        let with = decide(&there, synced, None, Timestamp::UNIX_EPOCH);
        assert_eq!(names(&with), ["waits"]);
        let gone = decide(&Seen { repositories: vec![], ..seen(None) }, with, None, Timestamp::UNIX_EPOCH);
        assert_eq!(names(&gone), [""; 0]);
    }

    #[test]
    fn of_two_storages_in_one_place_the_older_one_has_it() {
        let storage = |name: &str, prefix: &str, created: &str| {
            let spec: BackupStorageSpec = serde_json::from_value(json!({
                "storage": { "provider": "s3", "s3": { "bucket": "b", "prefix": prefix } }
            }))
            .expect("a spec");
            let mut storage = BackupStorage::new(name, spec);
            storage.metadata.namespace = Some("demo".into());
            storage.metadata.uid = Some(name.into());
            storage.metadata.creation_timestamp =
                Some(serde_json::from_value(json!(created)).expect("a time"));
            storage
        };
        let all = [
            storage("new", "/p/", "2026-01-02T00:00:00Z"),
            storage("old", "p", "2026-01-01T00:00:00Z"),
            storage("other", "q", "2026-01-01T00:00:00Z"),
        ];
        assert_eq!(twin(&all[0], &all).as_deref(), Some("demo/old"));
        assert_eq!(twin(&all[1], &all), None);
        assert_eq!(twin(&all[2], &all), None);
    }
}
