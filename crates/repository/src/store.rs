//! Files of an open repository on its bucket: listed, read with their names verified, written, removed.

use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Bucket, ErrorKind, GetOptions, Key, ListRequest, PutOptions};
use jiff::Timestamp;

use crate::cache::Cache;
use crate::chunker::Chunker;
use crate::config::Config;
use crate::crypto::MasterKey;
use crate::file::{self, FileKind};
use crate::pack::{Opener, Sealer};
use crate::reader::{Buffers, Decoders};
use crate::repository::Options;
use crate::sha256::Lanes;
use crate::{Error, Id, Result};

/// What all handles of one open repository share.
pub(crate) struct Inner {
    pub(crate) bucket: Arc<dyn Bucket>,
    pub(crate) master: Arc<MasterKey>,
    pub(crate) key_id: Id,
    pub(crate) config: Config,
    pub(crate) options: Options,
    pub(crate) chunker: Arc<Chunker>,
    pub(crate) lanes: Lanes,
    pub(crate) cache: Option<Cache>,
    pub(crate) decoders: Decoders,
    pub(crate) buffers: Buffers,
}

impl Inner {
    pub(crate) fn sealer(&self) -> Result<Sealer> {
        Sealer::new(self.master.clone(), self.options.compression.level())
    }

    pub(crate) fn opener(&self) -> Result<Opener> {
        Opener::new(self.master.clone())
    }

    /// All files of a kind with their stored sizes, by id. Keys that are no such files are passed over.
    pub(crate) async fn list(&self, kind: FileKind) -> Result<Vec<(Id, u64)>> {
        list(&*self.bucket, kind).await
    }

    /// As [`list`](Self::list), with the times at which the files were stored.
    pub(crate) async fn list_entries(&self, kind: FileKind) -> Result<Vec<(Id, u64, Timestamp)>> {
        list_entries(&*self.bucket, kind).await
    }

    /// The JSON of a file. What the cache holds is verified like what the bucket gives; a damaged answer is asked
    /// for once more.
    pub(crate) async fn load_json(self: &Arc<Self>, kind: FileKind, id: &Id) -> Result<Vec<u8>> {
        let cached =
            matches!(kind, FileKind::Index | FileKind::Snapshot).then_some(self.cache.as_ref()).flatten();
        if let Some(cache) = cached
            && let Some(stored) = cache.read(kind, id).await
        {
            match self.open(kind, id, stored.into()).await {
                Ok(json) => return Ok(json),
                Err(_) => cache.remove(kind, id).await,
            }
        }
        let mut stored = fetch(&*self.bucket, kind, id).await?;
        let json = match self.open(kind, id, stored.clone()).await {
            Err(Error::Damaged { .. }) => {
                stored = fetch(&*self.bucket, kind, id).await?;
                self.open(kind, id, stored.clone()).await?
            }
            other => other?,
        };
        if let Some(cache) = cached {
            cache.write(kind, id, stored).await;
        }
        Ok(json)
    }

    async fn open(self: &Arc<Self>, kind: FileKind, id: &Id, stored: Bytes) -> Result<Vec<u8>> {
        let (inner, id) = (self.clone(), *id);
        blocking(move || file::open(&mut inner.opener()?, kind, &id, stored.into())).await
    }

    /// Seals `json` and stores it under the name that results; yields the name and the stored length.
    pub(crate) async fn save_json(self: &Arc<Self>, kind: FileKind, json: Vec<u8>) -> Result<(Id, u64)> {
        let inner = self.clone();
        let (id, stored) = blocking(move || {
            let stored = file::seal(&mut inner.sealer()?, kind, &json)?;
            if inner.options.verify_writes {
                let opened = file::open(&mut inner.opener()?, kind, &Id::of(&stored), stored.clone())?;
                if opened != json {
                    return Err(Error::damaged(
                        kind.as_str(),
                        "what was just sealed does not open to the same bytes",
                    ));
                }
            }
            Ok((Id::of(&stored), Bytes::from(stored)))
        })
        .await?;
        self.put(kind, &id, stored.clone()).await?;
        let length = stored.len() as u64;
        if matches!(kind, FileKind::Index | FileKind::Snapshot)
            && let Some(cache) = &self.cache
        {
            cache.write(kind, &id, stored).await;
        }
        Ok((id, length))
    }

    /// Stores a file under its name, the hash of its bytes. That it is there already is success: an earlier
    /// attempt, whose answer was lost, has stored it.
    pub(crate) async fn put(&self, kind: FileKind, id: &Id, bytes: Bytes) -> Result<()> {
        let (key, length) = (kind.key(id), bytes.len() as u64);
        let options = PutOptions {
            create_only: self.bucket.capabilities().create_only,
            sha256: Some(*id.as_bytes()),
            ..PutOptions::default()
        };
        match self.bucket.put(&key, &[bytes], &options).await {
            Ok(_) => Ok(()),
            Err(error) if error.kind == ErrorKind::AlreadyExists => {
                let (entry, _) = self.bucket.head(&key).await?;
                if entry.size == length {
                    return Ok(());
                }
                let detail = format!("{} bytes are stored under the name of {length} others", entry.size);
                Err(Error::damaged(kind.as_str(), detail).named(*id))
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn remove(&self, kind: FileKind, id: &Id) -> Result<()> {
        Ok(self.bucket.delete(&kind.key(id)).await?)
    }
}

/// As [`Inner::list`], for a repository that is not open yet.
pub(crate) async fn list(bucket: &dyn Bucket, kind: FileKind) -> Result<Vec<(Id, u64)>> {
    let entries = list_entries(bucket, kind).await?;
    Ok(entries.into_iter().map(|(id, size, _)| (id, size)).collect())
}

async fn list_entries(bucket: &dyn Bucket, kind: FileKind) -> Result<Vec<(Id, u64, Timestamp)>> {
    let mut request = ListRequest { prefix: Key::from(kind.prefix()), ..ListRequest::default() };
    let mut files = Vec::new();
    loop {
        let page = bucket.list(&request).await?;
        let entries = page.entries.iter();
        files.extend(
            entries.filter_map(|entry| Some((kind.id_of(entry.key.as_bytes())?, entry.size, entry.modified))),
        );
        match page.next {
            None => break,
            token => request.token = token,
        }
    }
    files.sort_unstable();
    files.dedup_by_key(|(id, ..)| *id);
    Ok(files)
}

/// The stored bytes of a whole file, of bounded length.
pub(crate) async fn fetch(bucket: &dyn Bucket, kind: FileKind, id: &Id) -> Result<Bytes> {
    let got = bucket.get(&kind.key(id), &GetOptions::default()).await?;
    let (length, bound) = (got.body.length(), kind.max_length() as u64);
    if length > bound {
        let detail = format!("it has {length} bytes, at most {bound} are taken").into();
        return Err(Error::BadParameter { what: kind.as_str(), detail });
    }
    Ok(got.body.bytes().await?)
}

/// Runs `work` where it does not keep tasks from running.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_cancelled() => Err(Error::Cancelled),
        Err(_) => Err(Error::Broken("a computation panicked")),
    }
}
