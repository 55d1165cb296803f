//! A part of a bucket as a bucket of its own: every key lies under a prefix that the caller never sees.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    Attributes, Bucket, Capabilities, Checksums, DeleteOutcome, Entry, Error, ErrorKind, Get, GetOptions,
    Key, Ledger, ListRequest, Page, PartId, Put, PutOptions, Result, Retention, Revision, Tags, Upload, Verb,
};

/// A bucket that consists of those keys of another bucket that begin with a prefix, without it.
///
/// An object whose key is the prefix itself is not part of it, as it would have no name.
#[derive(Debug)]
pub struct Prefixed {
    inner: Arc<dyn Bucket>,
    prefix: Box<[u8]>,
    name: String,
}

impl Prefixed {
    /// What lies under `prefix` in `inner`. The prefix is taken as it is: one that means a folder ends in `/`.
    pub fn new(inner: Arc<dyn Bucket>, prefix: impl Into<Vec<u8>>) -> Self {
        let prefix = prefix.into().into_boxed_slice();
        let shown = Key::new(prefix.to_vec()).to_string();
        let name = format!("{}/{}", inner.name().trim_end_matches('/'), shown.trim_end_matches('/'));
        Prefixed { inner, prefix, name }
    }

    /// The key in the bucket below.
    fn outer(&self, verb: Verb, key: &Key) -> Result<Key> {
        if key.is_empty() {
            let error = Error::new(ErrorKind::Invalid, verb, self.name.as_str());
            return Err(error.detail("the empty key names no object"));
        }
        Ok(key.under(&self.prefix))
    }

    fn entry(&self, mut entry: Entry) -> Result<Entry> {
        match entry.key.strip_prefix(&self.prefix) {
            Some(rest) => {
                entry.key = Key::new(rest);
                Ok(entry)
            }
            None => {
                let error = Error::new(ErrorKind::BadAnswer, Verb::List, self.name.as_str()).key(&entry.key);
                Err(error.detail("the answer is about a key without the prefix"))
            }
        }
    }

    /// An error of the bucket below in the words of this one.
    fn error(&self, mut error: Error) -> Error {
        error.bucket = self.name.as_str().into();
        error.key = error.key.map(|key| key.strip_prefix(&self.prefix).map_or(key.clone(), Key::from));
        error
    }

    fn upload(&self, upload: &Upload) -> Upload {
        Upload { key: upload.key.under(&self.prefix), id: upload.id.clone() }
    }
}

#[async_trait]
impl Bucket for Prefixed {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    async fn probe(&self) -> Result<()> {
        self.inner.probe().await.map_err(|error| self.error(error))
    }

    async fn create(&self) -> Result<()> {
        self.inner.create().await.map_err(|error| self.error(error))
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        let request = ListRequest {
            prefix: request.prefix.under(&self.prefix),
            after: request.after.as_ref().map(|after| after.under(&self.prefix)),
            ..request.clone()
        };
        let page = self.inner.list(&request).await.map_err(|error| self.error(error))?;
        let entries = page.entries.into_iter().filter(|entry| entry.key.as_bytes() != &*self.prefix);
        let entries = entries.map(|entry| self.entry(entry)).collect::<Result<_>>()?;
        Ok(Page { entries, next: page.next })
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        let answer = self.inner.head(&self.outer(Verb::Head, key)?).await;
        let (entry, attributes) = answer.map_err(|error| self.error(error))?;
        Ok((self.entry(entry)?, attributes))
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        let get =
            self.inner.get(&self.outer(Verb::Get, key)?, options).await.map_err(|error| self.error(error))?;
        Ok(Get { entry: self.entry(get.entry)?, ..get })
    }

    async fn checksums(&self, key: &Key, revision: &Revision) -> Result<Checksums> {
        let key = self.outer(Verb::Head, key)?;
        self.inner.checksums(&key, revision).await.map_err(|error| self.error(error))
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        let key = self.outer(Verb::Put, key)?;
        self.inner.put(&key, body, options).await.map_err(|error| self.error(error))
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> Result<Upload> {
        let outer = self.outer(Verb::Multipart, key)?;
        let upload = self.inner.begin_upload(&outer, options).await.map_err(|error| self.error(error))?;
        Ok(Upload { key: key.clone(), id: upload.id })
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId> {
        self.inner.upload_part(&self.upload(upload), number, body).await.map_err(|error| self.error(error))
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put> {
        self.inner
            .complete_upload(&self.upload(upload), parts, options)
            .await
            .map_err(|error| self.error(error))
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        self.inner.abort_upload(&self.upload(upload)).await.map_err(|error| self.error(error))
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put> {
        let (from, to) = (self.outer(Verb::Copy, from)?, self.outer(Verb::Copy, to)?);
        self.inner.copy(&from, &to).await.map_err(|error| self.error(error))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(&self.outer(Verb::Delete, key)?).await.map_err(|error| self.error(error))
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        // An empty key would reach the object that is the prefix itself.
        let outer: Vec<Key> =
            keys.iter().filter(|key| !key.is_empty()).map(|key| key.under(&self.prefix)).collect();
        let mut outcomes = self.inner.delete_many(&outer).await.into_iter();
        let outcome = |key: &Key| {
            let result = match self.outer(Verb::Delete, key) {
                Ok(_) => match outcomes.next() {
                    Some(outcome) => outcome.result.map_err(|error| self.error(error)),
                    None => Err(Error::new(ErrorKind::BadAnswer, Verb::Delete, self.name.as_str()).key(key)),
                },
                Err(error) => Err(error),
            };
            DeleteOutcome { key: key.clone(), result }
        };
        keys.iter().map(outcome).collect()
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        self.inner.tags(&self.outer(Verb::Tags, key)?).await.map_err(|error| self.error(error))
    }

    async fn retention(&self, key: &Key) -> Result<Option<Retention>> {
        self.inner.retention(&self.outer(Verb::Retention, key)?).await.map_err(|error| self.error(error))
    }

    async fn set_retention(&self, key: &Key, retention: &Retention) -> Result<()> {
        let key = self.outer(Verb::Retention, key)?;
        self.inner.set_retention(&key, retention).await.map_err(|error| self.error(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;

    #[tokio::test]
    async fn only_what_lies_under_the_prefix_is_seen_or_touched() {
        let memory = Arc::new(Memory::new("s3://orders"));
        for key in ["2026", "2026/", "2026/a", "2026/b", "2026a", "2027/a"] {
            memory.insert(key, key.to_string(), Attributes::default());
        }
        let bucket = Prefixed::new(memory.clone(), "2026/");
        assert_eq!(bucket.name(), "s3://orders/2026");
        let page = bucket.list(&ListRequest::default()).await.unwrap();
        assert_eq!(page.entries.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>(), ["a", "b"]);
        let page =
            bucket.list(&ListRequest { after: Some("a".into()), ..ListRequest::default() }).await.unwrap();
        assert_eq!(page.entries.len(), 1);
        let error = bucket.head(&"c".into()).await.unwrap_err();
        assert_eq!(error.to_string(), "looking at c in s3://orders/2026: no such object");
        let outcomes = bucket.delete_many(&["a".into(), "".into(), "b".into()]).await;
        assert_eq!(
            outcomes.iter().map(|outcome| outcome.result.is_ok()).collect::<Vec<_>>(),
            [true, false, true]
        );
        assert!(bucket.delete(&"".into()).await.is_err());
        assert_eq!(memory.keys(), ["2026", "2026/", "2026a", "2027/a"].map(Key::from));
    }
}
