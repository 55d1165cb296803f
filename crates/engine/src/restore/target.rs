//! What a target bucket holds, read once in the order of its keys beside a walk over the snapshot.

use std::collections::VecDeque;
use std::sync::Arc;

use cistern_bucket::{Bucket, Entry, ErrorKind, Key, ListRequest};

use crate::backup::bucket::listing::Listing;
use crate::{Error, Result};

/// A listing that is asked for one key after the other.
///
/// Keys that are asked for in ascending order cost nothing but the listing. One that comes too late (a name in a
/// tree does not always tell where its key stands in a listing) costs a request of its own.
pub(crate) struct Target {
    bucket: Arc<dyn Bucket>,
    listing: Listing,
    page: VecDeque<Entry>,
    ended: bool,
    /// The last key that was asked for or passed.
    last: Option<Key>,
}

impl Target {
    /// Begins to list the keys that begin with `prefix`; `splits` cut the listing into ranges.
    pub fn new(bucket: Arc<dyn Bucket>, prefix: &Key, splits: impl IntoIterator<Item = Key>) -> Self {
        let listing = Listing::new(bucket.clone(), prefix, splits);
        Target { bucket, listing, page: VecDeque::new(), ended: false, last: None }
    }

    /// The object of this key, if there is one. `passed` is called with those that are listed before it.
    ///
    /// # Errors
    /// `Target`, with what the store says.
    pub async fn find(
        &mut self,
        key: &Key,
        mut passed: impl FnMut(&Entry) -> Result<()>,
    ) -> Result<Option<Entry>> {
        if self.last.as_ref().is_some_and(|last| key <= last) {
            return self.look_up(key).await;
        }
        while self.fill().await? {
            let Some(entry) = self.page.pop_front_if(|entry| entry.key <= *key) else { break };
            if entry.key == *key {
                self.last = Some(entry.key.clone());
                return Ok(Some(entry));
            }
            passed(&entry)?;
        }
        self.last = Some(key.clone());
        Ok(None)
    }

    /// Calls `passed` with everything that is left.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn rest(mut self, mut passed: impl FnMut(&Entry) -> Result<()>) -> Result<()> {
        while self.fill().await? {
            if let Some(entry) = self.page.pop_front() {
                passed(&entry)?;
            }
        }
        Ok(())
    }

    /// The next page of the listing; `None` at its end.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn page(&mut self) -> Result<Option<VecDeque<Entry>>> {
        Ok(self.fill().await?.then(|| std::mem::take(&mut self.page)))
    }

    /// Sees to it that an entry is there, unless the listing ended.
    async fn fill(&mut self) -> Result<bool> {
        while self.page.is_empty() && !self.ended {
            match self.listing.next().await.map_err(of_target)? {
                Some(page) => self.page = page.into(),
                None => self.ended = true,
            }
        }
        Ok(!self.page.is_empty())
    }

    /// Asks for one key: by listing, because some stores answer for a key that they list under another name.
    async fn look_up(&self, key: &Key) -> Result<Option<Entry>> {
        let request = ListRequest { prefix: key.clone(), limit: Some(1), ..ListRequest::default() };
        let page = match self.bucket.list(&request).await {
            // It cannot even be asked for, so that it is not there; whether it can be written, the writing tells.
            Err(error) if matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Invalid) => {
                return Ok(None);
            }
            page => page.map_err(Error::Target)?,
        };
        Ok(page.entries.into_iter().next().filter(|entry| entry.key == *key))
    }
}

/// The listing of a source says whose fault it was; here it is the target's.
fn of_target(error: Error) -> Error {
    match error {
        Error::Source(error) => Error::Target(error),
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use cistern_bucket::{Memory, PutOptions, Verb};

    use super::*;

    #[tokio::test]
    async fn keys_in_order_cost_one_listing_and_others_a_request_each() {
        let bucket = Memory::new("memory").page_size(2);
        for key in ["a", "a-b", "a/b", "b", "c", "z"] {
            bucket.put(&key.into(), &[Bytes::from_static(b"x")], &PutOptions::default()).await.unwrap();
        }
        let bucket: Arc<dyn Bucket> = Arc::new(bucket);
        let mut passed = Vec::new();
        let mut target = Target::new(bucket.clone(), &Key::default(), []);
        let mut found = Vec::new();
        for key in ["a-b", "a.c", "a/b", "a", "a!", "c", "d"] {
            let key = Key::from(key);
            let entry = target.find(&key, |entry| {
                passed.push(entry.key.to_string());
                Ok(())
            });
            found.push(entry.await.unwrap().is_some());
        }
        assert_eq!(found, [true, false, true, true, false, true, false]);
        let rest = target.rest(|entry| {
            passed.push(entry.key.to_string());
            Ok(())
        });
        rest.await.unwrap();
        assert_eq!(passed, ["a", "b", "z"]);
        assert_eq!(bucket.ledger().snapshot().count(Verb::List), 3 + 2);
    }
}
