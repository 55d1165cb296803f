//! A read-only bucket of any number of objects of any size, none of which is held anywhere.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use cistern_bucket::{
    Attributes, Body, Bucket, Capabilities, DeleteOutcome, Entry, Error, ErrorKind, Get, GetOptions, Key,
    Ledger, ListRequest, Page, PartId, Put, PutOptions, Result, Revision, Tags, Upload, Verb,
};
use futures::{StreamExt, stream};
use jiff::Timestamp;

use crate::seed::mix;

/// Entries of one page.
const PAGE: u64 = 1_000;

/// Bytes of a body at a time.
const PIECE: u64 = 256 << 10;

/// When the objects were written, in seconds; changed ones later.
const WRITTEN: i64 = 1_780_000_000;

/// A bucket whose listing and contents are computed: the contents of an object are random bytes that belong to
/// its key and its generation. It cannot be written to.
#[derive(Debug)]
pub struct Synthetic {
    name: String,
    count: u64,
    size: u64,
    per_folder: u64,
    changed: BTreeSet<u64>,
    ledger: Arc<Ledger>,
}

impl Synthetic {
    /// `count` objects of `size` bytes, 1,000 to a folder: `00000000/000.bin` and so on.
    pub fn new(name: impl Into<String>, count: u64, size: u64) -> Self {
        Synthetic {
            name: name.into(),
            count,
            size,
            per_folder: 1_000,
            changed: BTreeSet::new(),
            ledger: Arc::default(),
        }
    }

    /// All objects in one folder.
    #[must_use]
    pub fn flat(mut self) -> Self {
        self.per_folder = self.count.max(1);
        self
    }

    /// These objects (by position in the listing, from 0) have been replaced: other contents, later time.
    #[must_use]
    pub fn changed(mut self, positions: impl IntoIterator<Item = u64>) -> Self {
        self.changed = positions.into_iter().collect();
        self
    }

    /// The key of the object at a position of the listing.
    pub fn key(&self, position: u64) -> Key {
        let (folder, file) = (position / self.per_folder, position % self.per_folder);
        let width = if self.per_folder == 1_000 { 3 } else { 12 };
        Key::from(format!("{folder:08}/{file:0width$}.bin"))
    }

    /// Contents of an object in a piece that the caller knows to be small enough.
    pub fn content(&self, position: u64) -> Bytes {
        self.bytes(position, 0, self.size)
    }

    fn error(&self, kind: ErrorKind, verb: Verb) -> Error {
        Error::new(kind, verb, self.name.as_str())
    }

    fn read_only<T>(&self, verb: Verb) -> Result<T> {
        Err(self.error(ErrorKind::Unsupported, verb).detail("a synthetic bucket is read-only"))
    }

    /// The first position whose key is not `before`, by bisection.
    fn first(&self, before: impl Fn(&Key) -> bool) -> u64 {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if before(&self.key(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }

    fn position(&self, verb: Verb, key: &Key) -> Result<u64> {
        let position = self.first(|other| other.cmp(key) == Ordering::Less);
        if position < self.count && self.key(position) == *key {
            return Ok(position);
        }
        Err(self.error(ErrorKind::NoSuchKey, verb).key(key))
    }

    fn state(&self, position: u64) -> u64 {
        mix(mix(position.wrapping_add(1)) ^ mix(self.size) ^ u64::from(self.changed.contains(&position)))
    }

    fn entry(&self, position: u64) -> Entry {
        let changed = self.changed.contains(&position);
        let second = WRITTEN + (position % 86_400) as i64 + if changed { 1_000_000 } else { 0 };
        let state = self.state(position);
        Entry {
            key: self.key(position),
            size: self.size,
            modified: Timestamp::from_second(second)
                .expect("the times of synthetic objects are near the present"),
            revision: Revision::ETag(format!("{state:016x}{:016x}", mix(state)).into_boxed_str()),
            class: None,
            attributes: None,
        }
    }

    fn bytes(&self, position: u64, start: u64, end: u64) -> Bytes {
        fill(self.state(position), start, end)
    }
}

/// Bytes `start..end` of the endless random sequence that belongs to `state`.
fn fill(state: u64, start: u64, end: u64) -> Bytes {
    let first = start / 8 * 8;
    let mut bytes = BytesMut::with_capacity((end - first) as usize + 8);
    for word in (first..end).step_by(8) {
        bytes.extend_from_slice(
            &mix(state.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes(),
        );
    }
    bytes.freeze().slice((start - first) as usize..(end - first) as usize)
}

#[async_trait]
impl Bucket for Synthetic {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            list_after: true,
            attributes: true,
            tags: true,
            retention: false,
            multipart: false,
            create_only: false,
            copy: false,
            max_put: 0,
        }
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    async fn probe(&self) -> Result<()> {
        self.ledger.request(Verb::Bucket);
        Ok(())
    }

    async fn create(&self) -> Result<()> {
        self.ledger.request(Verb::Bucket);
        Ok(())
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.ledger.request(Verb::List);
        let invalid = |detail| self.error(ErrorKind::Invalid, Verb::List).detail(detail);
        let prefix = request.prefix.as_bytes();
        let begin = self.first(|key| key.as_bytes() < prefix);
        let end = self.first(|key| key.as_bytes() < prefix || key.as_bytes().starts_with(prefix));
        let start = match (&request.token, &request.after) {
            (Some(token), _) => token.parse().map_err(|_| invalid("no such token"))?,
            (None, Some(after)) => self.first(|key| key <= after),
            (None, None) => begin,
        };
        let limit = request.limit.map_or(PAGE, |limit| PAGE.min(u64::from(limit)));
        if limit == 0 {
            return Err(invalid("a page of no entries"));
        }
        let start = start.max(begin).min(end);
        let stop = end.min(start + limit);
        let entries = (start..stop).map(|position| self.entry(position)).collect();
        Ok(Page { entries, next: (stop < end).then(|| stop.to_string()) })
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        self.ledger.request(Verb::Head);
        let position = self.position(Verb::Head, key)?;
        Ok((self.entry(position), Attributes { tag_count: Some(0), ..Attributes::default() }))
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        self.ledger.request(Verb::Get);
        let position = self.position(Verb::Get, key)?;
        let entry = self.entry(position);
        if options
            .revision
            .as_ref()
            .is_some_and(|wanted| *wanted != Revision::Unknown && *wanted != entry.revision)
        {
            return Err(self.error(ErrorKind::PreconditionFailed, Verb::Get).key(key));
        }
        let range = match &options.range {
            None => 0..self.size,
            Some(range) if range.start < range.end && range.start < self.size => {
                range.start..range.end.min(self.size)
            }
            Some(_) => {
                return Err(self.error(ErrorKind::Invalid, Verb::Get).key(key).detail("no such range"));
            }
        };
        let (state, end, ledger) = (self.state(position), range.end, self.ledger.clone());
        let pieces = stream::iter(range.clone().step_by(PIECE as usize)).map(move |start| {
            let bytes = fill(state, start, end.min(start + PIECE));
            ledger.received(bytes.len() as u64);
            Ok(bytes)
        });
        let body = Body::new(range.end - range.start, pieces.boxed());
        let attributes = Attributes { tag_count: Some(0), ..Attributes::default() };
        Ok(Get { entry, attributes, body, checksums: BTreeMap::new() })
    }

    async fn put(&self, _: &Key, _: &[Bytes], _: &PutOptions) -> Result<Put> {
        self.read_only(Verb::Put)
    }

    async fn begin_upload(&self, _: &Key, _: &PutOptions) -> Result<Upload> {
        self.read_only(Verb::Multipart)
    }

    async fn upload_part(&self, _: &Upload, _: u32, _: &[Bytes]) -> Result<PartId> {
        self.read_only(Verb::Put)
    }

    async fn complete_upload(&self, _: &Upload, _: &[PartId], _: &PutOptions) -> Result<Put> {
        self.read_only(Verb::Multipart)
    }

    async fn abort_upload(&self, _: &Upload) -> Result<()> {
        self.read_only(Verb::Multipart)
    }

    async fn copy(&self, _: &Key, _: &Key) -> Result<Put> {
        self.read_only(Verb::Copy)
    }

    async fn delete(&self, _: &Key) -> Result<()> {
        self.read_only(Verb::Delete)
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        keys.iter()
            .map(|key| DeleteOutcome { key: key.clone(), result: self.read_only(Verb::Delete) })
            .collect()
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        self.ledger.request(Verb::Tags);
        self.position(Verb::Tags, key).map(|_| Tags::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn keys(bucket: &Synthetic, mut request: ListRequest) -> Vec<Key> {
        let mut keys = Vec::new();
        loop {
            let page = bucket.list(&request).await.unwrap();
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
            request.token = page.next;
            if request.token.is_none() {
                return keys;
            }
        }
    }

    #[tokio::test]
    async fn listing_is_sorted_complete_and_begins_anywhere() {
        for bucket in [Synthetic::new("synthetic", 3_456, 10), Synthetic::new("synthetic", 3_456, 10).flat()]
        {
            let all = keys(&bucket, ListRequest::default()).await;
            assert_eq!(all.len(), 3_456);
            assert!(all.is_sorted());
            for (prefix, after) in
                [("00000001/", None), ("0000000", Some("00000000/999.bin")), ("x", None), ("", Some("z"))]
            {
                let after = after.map(Key::from);
                let request =
                    ListRequest { prefix: prefix.into(), after: after.clone(), ..ListRequest::default() };
                let expected: Vec<Key> = all
                    .iter()
                    .filter(|key| {
                        key.as_bytes().starts_with(prefix.as_bytes()) && Some(*key) > after.as_ref()
                    })
                    .cloned()
                    .collect();
                assert_eq!(keys(&bucket, request).await, expected, "{prefix} {after:?}");
            }
        }
    }

    #[tokio::test]
    async fn any_range_is_a_slice_of_the_whole_and_changes_are_seen() {
        let bucket = Synthetic::new("synthetic", 5, 2 * PIECE + 77);
        let changed = Synthetic::new("synthetic", 5, 2 * PIECE + 77).changed([3]);
        let whole = bucket.content(3);
        for range in [0..1, 1..9, 7..8, 5..PIECE + 3, PIECE - 1..2 * PIECE + 77, 0..u64::MAX] {
            let options = GetOptions { range: Some(range.clone()), revision: None };
            let get = bucket.get(&bucket.key(3), &options).await.unwrap();
            let end = range.end.min(whole.len() as u64) as usize;
            assert_eq!(get.body.bytes().await.unwrap(), whole[range.start as usize..end], "{range:?}");
        }
        assert_ne!(changed.content(3), whole);
        assert_eq!(changed.content(2), bucket.content(2));
        let pinned = GetOptions { range: None, revision: Some(bucket.entry(3).revision) };
        assert_eq!(
            changed.get(&bucket.key(3), &pinned).await.unwrap_err().kind,
            ErrorKind::PreconditionFailed
        );
        let huge = Synthetic::new("synthetic", 1, 20 << 30);
        let options = GetOptions { range: Some((20 << 30) - 5..20 << 30), revision: None };
        let get = huge.get(&huge.key(0), &options).await.unwrap();
        assert_eq!((get.entry.size, get.body.bytes().await.unwrap().len()), (20 << 30, 5));
    }
}
