//! The files of a BackupStorage beside the restic repositories: `metadata.yaml`, and of each Repository `repository.yaml` and
//! `snapshots/<name>.yaml`. They are what another cluster finds the backups by.
//!
//! What lies in a bucket was written by somebody: sizes are bounded before anything is read, and folders are clean paths.
//! `metadata.yaml` has one writer, whoever holds [`Layout::lock`]; of several operators only the one with the lease acts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cistern_api::backend::{self, Keys};
use cistern_api::kinds::backup_storage::{BackupStorage, StoredRepository};
use cistern_api::lower::directory;
use cistern_api::name::folder;
use cistern_bucket::{
    Address, Attributes, Bucket, ErrorKind, GetOptions, Key, ListRequest, Prefixed, PutOptions,
};
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::context::{Cx, Kind};
use crate::controller::Failure;

/// Name of the list of repositories, below the prefix of a storage.
const METADATA: &str = "metadata.yaml";
/// Name of the file of a Repository, in its folder.
const REPOSITORY: &str = "repository.yaml";
/// Most bytes of the list of repositories.
const MAX_METADATA: u64 = 8 << 20;
/// Most bytes of the file of a Repository or a Snapshot.
const MAX_FILE: u64 = 1 << 20;
/// How soon a Secret that is not there is looked for again: Secrets are not watched.
const SECRET: Duration = Duration::from_secs(15);
/// Most Snapshots of one Repository that are looked for.
const MAX_SNAPSHOTS: usize = 20_000;

/// The list of repositories in a storage: `metadata.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendMeta {
    /// `config.kubestash.com/v1alpha1`.
    #[serde(default)]
    pub api_version: String,
    /// `BackendMeta`.
    #[serde(default)]
    pub kind: String,
    /// When it was first written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Time>,
    /// Version of the operator that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_version: Option<String>,
    /// The repositories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<StoredRepository>,
}

impl BackendMeta {
    /// An empty list, written first at this time.
    pub fn new(now: Timestamp) -> BackendMeta {
        BackendMeta {
            api_version: "config.kubestash.com/v1alpha1".to_owned(),
            kind: "BackendMeta".to_owned(),
            creation_timestamp: Some(Time(now)),
            operator_version: Some(format!("v{}", env!("CARGO_PKG_VERSION"))),
            repositories: Vec::new(),
        }
    }
}

/// The files of one storage.
#[derive(Clone)]
pub struct Layout {
    /// What lies below the storage's prefix.
    bucket: Arc<dyn Bucket>,
    /// Name of the lock that writers of `metadata.yaml` hold.
    lock: String,
}

impl Layout {
    /// Opens the bucket of a storage, with the keys of the Secret that it names.
    ///
    /// # Errors
    /// The Secret is not there; the storage cannot be used from here.
    pub async fn open(cx: &Cx, storage: &BackupStorage) -> Result<Layout, Failure> {
        let keys = match storage.spec.storage.secret_name() {
            None => Keys::default(),
            Some(name) => {
                let namespace = storage.namespace().unwrap_or_default();
                let keys = cx.keys(&namespace, name).await?;
                keys.ok_or_else(|| Failure::Busy(format!("the Secret {name} does not exist"), SECRET))?
            }
        };
        Layout::with(storage, &keys, cx.settings().ambient.clone())
    }

    /// Opens the bucket of a storage with these keys.
    ///
    /// # Errors
    /// The storage cannot be used from here.
    pub fn with(
        storage: &BackupStorage,
        keys: &Keys,
        ambient: cistern_bucket::Credentials,
    ) -> Result<Layout, Failure> {
        let spec = &storage.spec.storage;
        if spec.provider == "local" {
            // The path is one of the pods that mount the volume, and none of ours.
            let why = "storages of the provider local are not supported by the operator yet";
            return Err(Failure::Invalid(why.to_owned()));
        }
        let place = backend::place(spec, "", "")?;
        let mut bucket = backend::open(&place, keys, ambient)?;
        if let Address::S3 { prefix, .. } = &place.address
            && let Some(prefix) = prefix.as_str().filter(|prefix| !prefix.is_empty())
        {
            bucket = Arc::new(Prefixed::new(bucket, format!("{prefix}/")));
        }
        Ok(Layout { bucket, lock: format!("metadata of {}", storage.uid().unwrap_or_default()) })
    }

    /// Files in a bucket of tests.
    #[cfg(test)]
    pub(crate) fn of(bucket: Arc<dyn Bucket>) -> Layout {
        Layout { bucket, lock: "test".to_owned() }
    }

    /// Makes this the one writer of `metadata.yaml`.
    pub async fn lock(&self, cx: &Cx) -> tokio::sync::OwnedMutexGuard<()> {
        cx.lock(&self.lock).await
    }

    /// Reads the list of repositories; `None` if there is none yet.
    ///
    /// # Errors
    /// The bucket does not give it, or it cannot be read.
    pub async fn metadata(&self) -> Result<Option<BackendMeta>, Failure> {
        self.read(METADATA, MAX_METADATA).await
    }

    /// Writes the list of repositories. The caller holds the lock since before it was read.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn write_metadata(&self, metadata: &BackendMeta) -> Result<(), Failure> {
        self.write(METADATA, yaml(metadata)?).await
    }

    /// Writes a Repository beside its backups, unless it is there as it is.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn write_repository(&self, path: &str, repository: &impl Kind) -> Result<(), Failure> {
        let key = folder(path, REPOSITORY);
        let text = yaml(&sanitized(repository)?)?;
        match self.bytes(&key, MAX_FILE).await {
            Ok(Some(present)) if present == text.as_bytes() => Ok(()),
            Ok(_) => self.write(&key, text).await,
            // What cannot be read is written anew.
            Err(Failure::Invalid(_)) => self.write(&key, text).await,
            Err(failure) => Err(failure),
        }
    }

    /// Reads the file of the Repository in this folder.
    ///
    /// # Errors
    /// The bucket does not give it, or it cannot be read.
    pub async fn repository<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Failure> {
        self.read(&folder(path, REPOSITORY), MAX_FILE).await
    }

    /// Writes a Snapshot beside the Repository in this folder.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn write_snapshot(&self, path: &str, snapshot: &impl Kind) -> Result<(), Failure> {
        let key = snapshot_file(path, &snapshot.name_any());
        self.write(&key, yaml(&sanitized(snapshot)?)?).await
    }

    /// Deletes the file of a Snapshot; one that is gone is no error.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn delete_snapshot(&self, path: &str, name: &str) -> Result<(), Failure> {
        Ok(self.bucket.delete(&Key::new(snapshot_file(path, name))).await?)
    }

    /// Reads the Snapshots of the Repository in this folder. What cannot be read is told, and left out.
    ///
    /// # Errors
    /// The bucket does not list or give them; there are too many.
    pub async fn snapshots<T: DeserializeOwned + Send>(
        &self,
        path: &str,
    ) -> Result<(Vec<T>, usize), Failure> {
        let prefix = Key::new(format!("{}/", folder(path, "snapshots")));
        let mut request = ListRequest { prefix, ..ListRequest::default() };
        let mut keys = Vec::new();
        loop {
            let page = self.bucket.list(&request).await?;
            let names = page.entries.iter().filter_map(|entry| entry.key.as_str());
            keys.extend(names.filter(|key| key.ends_with(".yaml")).map(str::to_owned));
            if keys.len() > MAX_SNAPSHOTS {
                return Err(Failure::Invalid(format!("there are more than {MAX_SNAPSHOTS} snapshot files")));
            }
            match page.next {
                Some(token) => request.token = Some(token),
                None => break,
            }
        }
        let read =
            futures::stream::iter(keys.into_iter().map(async |key| match self.read(&key, MAX_FILE).await {
                Err(Failure::Invalid(error)) => {
                    tracing::warn!(key, error, "the file of a snapshot cannot be read");
                    Ok(None)
                }
                answer => answer,
            }));
        let all: Vec<Option<T>> = read.buffered(8).try_collect().await?;
        let total = all.len();
        let all: Vec<T> = all.into_iter().flatten().collect();
        let broken = total - all.len();
        Ok((all, broken))
    }

    /// Deletes what belongs to the Repository in this folder: its file, its snapshots' and its restic repositories. Other
    /// objects stay.
    ///
    /// # Errors
    /// The path is none that a Repository can have; the bucket does not list, or does not delete.
    pub async fn wipe_repository(&self, path: &str) -> Result<(), Failure> {
        let path = clean(path).ok_or_else(|| Failure::Invalid(format!("{path:?} is no folder to delete")))?;
        // The list of snapshots goes last, so that what was begun can be found and ended.
        for part in ["repository", "snapshots"] {
            self.delete_below(&format!("{}/", folder(&path, part))).await?;
        }
        Ok(self.bucket.delete(&Key::new(folder(&path, REPOSITORY))).await?)
    }

    /// Deletes the list of repositories.
    ///
    /// # Errors
    /// As the bucket says.
    pub async fn delete_metadata(&self) -> Result<(), Failure> {
        Ok(self.bucket.delete(&Key::new(METADATA)).await?)
    }

    async fn delete_below(&self, prefix: &str) -> Result<(), Failure> {
        let mut request = ListRequest { prefix: Key::new(prefix), ..ListRequest::default() };
        loop {
            let page = self.bucket.list(&request).await?;
            let keys: Vec<Key> = page.entries.into_iter().map(|entry| entry.key).collect();
            for outcome in self.bucket.delete_many(&keys).await {
                outcome.result?;
            }
            match page.next {
                Some(token) => request.token = Some(token),
                None => return Ok(()),
            }
        }
    }

    async fn bytes(&self, key: &str, max: u64) -> Result<Option<Bytes>, Failure> {
        // A file that grew beyond what is allowed is not read to its end.
        match self.bucket.get(&Key::new(key), &GetOptions::default()).await {
            Ok(answer) if answer.entry.size > max => Err(Failure::Invalid(format!(
                "the file {key} has {} bytes, more than {max}",
                answer.entry.size
            ))),
            Ok(answer) => Ok(Some(answer.body.bytes().await?)),
            Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn read<T: DeserializeOwned>(&self, key: &str, max: u64) -> Result<Option<T>, Failure> {
        let Some(bytes) = self.bytes(key, max).await? else { return Ok(None) };
        let read = serde_saphyr::from_slice(&bytes);
        read.map(Some).map_err(|error| {
            let line = error.to_string().lines().next().unwrap_or_default().to_owned();
            Failure::Invalid(format!("the file {key} cannot be read: {line}"))
        })
    }

    async fn write(&self, key: &str, text: String) -> Result<(), Failure> {
        // Some servers refuse an upload without a type.
        let attributes =
            Attributes { content_type: Some("application/yaml".to_owned()), ..Attributes::default() };
        let options = PutOptions { attributes, ..PutOptions::default() };
        self.bucket.put(&Key::new(key), &[Bytes::from(text)], &options).await?;
        Ok(())
    }
}

fn snapshot_file(path: &str, name: &str) -> String {
    folder(path, &format!("snapshots/{name}.yaml"))
}

/// The folder of a Repository as it is compared and deleted; `None` if it names none, or leads out of the storage.
pub fn clean(path: &str) -> Option<String> {
    directory(path).ok()
}

fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(Failure::broken)
}

/// An object without what only its own cluster understands.
fn sanitized<K: Kind>(object: &K) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(object).map_err(Failure::broken)?;
    let labels: Map<String, Value> = object
        .labels()
        .iter()
        .filter(|(name, _)| is_ours(name))
        .map(|(name, value)| (name.clone(), value.clone().into()))
        .collect();
    let mut metadata = json!({ "name": object.name_any(), "namespace": object.namespace() });
    if !labels.is_empty() {
        metadata["labels"] = labels.into();
    }
    let members =
        value.as_object_mut().ok_or_else(|| Failure::Broken("an object that is none".to_owned()))?;
    members.insert("apiVersion".to_owned(), <K as Resource>::api_version(&()).into());
    members.insert("kind".to_owned(), K::kind(&()).into());
    members.insert("metadata".to_owned(), metadata);
    Ok(value)
}

/// Whether a label is one that we write.
pub fn is_ours(label: &str) -> bool {
    label.starts_with("kubestash.com/") || label == cistern_api::labels::MANAGED_BY
}

#[cfg(test)]
mod tests {
    use cistern_api::kinds::{Repository, RepositorySpec, Snapshot, SnapshotSpec};
    use cistern_bucket::Memory;

    use super::*;

    fn layout() -> (Arc<dyn Bucket>, Layout) {
        let bucket: Arc<dyn Bucket> = Arc::new(Memory::new("test"));
        (bucket.clone(), Layout::of(bucket))
    }

    async fn keys(bucket: &dyn Bucket) -> Vec<String> {
        let page = bucket.list(&ListRequest::default()).await.expect("a listing");
        page.entries.iter().map(|entry| entry.key.to_string()).collect()
    }

    #[tokio::test]
    async fn what_is_written_is_read_again() {
        let (bucket, layout) = layout();
        assert_eq!(layout.metadata().await.expect("read"), None);
        let mut metadata = BackendMeta::new(Timestamp::UNIX_EPOCH);
        metadata.repositories.push(StoredRepository {
            name: "demo".into(),
            path: Some("a/b".into()),
            ..StoredRepository::default()
        });
        layout.write_metadata(&metadata).await.expect("written");
        assert_eq!(layout.metadata().await.expect("read"), Some(metadata));
        let (_, attributes) = bucket.head(&Key::new("metadata.yaml")).await.expect("it is there");
        assert_eq!(attributes.content_type.as_deref(), Some("application/yaml"));

        let mut repository =
            Repository::new("demo", RepositorySpec { path: "/a/b".into(), ..RepositorySpec::default() });
        repository.metadata.uid = Some("only here".into());
        repository.metadata.finalizers = Some(vec!["only.here/too".into()]);
        repository.metadata.labels = Some(
            [("foreign", "x"), (cistern_api::labels::REPO_NAME, "demo")]
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .into(),
        );
        layout.write_repository("/a/b", &repository).await.expect("written");
        let read: Repository = layout.repository("a/b/").await.expect("read").expect("it is there");
        assert_eq!((read.spec, read.metadata.uid, read.metadata.finalizers), (repository.spec, None, None));
        let labels = read.metadata.labels.expect("labels");
        assert_eq!(labels.keys().collect::<Vec<_>>(), [cistern_api::labels::REPO_NAME]);

        layout.write_snapshot("a/b", &Snapshot::new("one", SnapshotSpec::default())).await.expect("written");
        bucket
            .put(&Key::new("a/b/snapshots/two.yaml"), &[Bytes::from_static(b"]: no")], &PutOptions::default())
            .await
            .expect("put");
        let (all, broken) = layout.snapshots::<Snapshot>("a/b").await.expect("read");
        assert_eq!((all.len(), broken), (1, 1));
        layout.delete_snapshot("a/b", "one").await.expect("deleted");
        assert_eq!(keys(&*bucket).await, ["a/b/repository.yaml", "a/b/snapshots/two.yaml", "metadata.yaml"]);
    }

    #[tokio::test]
    async fn only_the_known_layout_is_wiped() {
        let (bucket, layout) = layout();
        let there = [
            "a/repository.yaml",
            "a/snapshots/x.yaml",
            "a/repository/v1/s/dump/config",
            "a/photo.jpg",
            "a/repository-of-mine/x",
            "ab/repository.yaml",
            "metadata.yaml",
        ];
        for key in there {
            bucket.put(&Key::new(key), &[], &PutOptions::default()).await.expect("put");
        }
        layout.wipe_repository("/a/").await.expect("wiped");
        assert_eq!(
            keys(&*bucket).await,
            ["a/photo.jpg", "a/repository-of-mine/x", "ab/repository.yaml", "metadata.yaml"]
        );
        for path in ["", "/", "..", "a/../..", "./"] {
            assert!(matches!(layout.wipe_repository(path).await, Err(Failure::Invalid(_))), "{path:?}");
        }
        assert_eq!(keys(&*bucket).await.len(), 4);
    }

    #[tokio::test]
    async fn a_file_that_is_too_large_is_not_read() {
        let (bucket, layout) = layout();
        let large = Bytes::from(vec![b' '; 1 + usize::try_from(MAX_FILE).expect("it fits")]);
        bucket.put(&Key::new("a/repository.yaml"), &[large], &PutOptions::default()).await.expect("put");
        let refused = layout.repository::<Repository>("a").await.expect_err("too large");
        assert!(matches!(&refused, Failure::Invalid(text) if text.contains("1048577 bytes")), "{refused}");
    }
}
