//! A bucket in memory: every key and attribute, the conditions and the confirmations of S3, exactly counted.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use md5::{Digest, Md5};

use crate::{
    Attributes, Body, Bucket, Capabilities, Checksums, DeleteOutcome, Entry, Error, ErrorKind, Get,
    GetOptions, Key, Ledger, ListRequest, Page, PartId, Put, PutOptions, Result, Retention, Revision, Tags,
    Upload, Verb,
};

/// Keys of one batch deletion, and entries of one page, as on S3.
const BATCH: usize = 1_000;

/// Where the times of new objects come from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The system's time in whole seconds, as S3 lists it.
    System,
    /// The same time for every write.
    Fixed(Timestamp),
    /// The first write at this time, each later one by so much later.
    Stepping(Timestamp, SignedDuration),
}

/// A bucket held in memory. It behaves as S3 does: bytewise order, pages, MD5 entity tags
/// (`md5-of-md5s-N` for multipart), conditions, attributes and tags.
///
/// It accepts any bytes as a key, also what is no UTF-8, up to 1,024 bytes unless told otherwise.
pub struct Memory {
    name: String,
    ledger: Arc<Ledger>,
    page_size: usize,
    max_key: usize,
    max_put: u64,
    min_part: u64,
    object_lock: bool,
    state: Mutex<State>,
}

struct State {
    exists: bool,
    objects: BTreeMap<Key, Arc<Object>>,
    uploads: BTreeMap<String, Pending>,
    begun: u64,
    clock: Clock,
}

struct Object {
    pieces: Vec<Bytes>,
    size: u64,
    modified: Timestamp,
    etag: Box<str>,
    attributes: Attributes,
    sha256: Option<[u8; 32]>,
}

struct Pending {
    key: Key,
    attributes: Attributes,
    parts: BTreeMap<u32, Part>,
}

#[derive(Clone)]
struct Part {
    bytes: Bytes,
    md5: [u8; 16],
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("name", &self.name)
            .field("objects", &self.len())
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// An empty bucket that a person sees as `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Memory {
            name: name.into(),
            ledger: Arc::default(),
            page_size: BATCH,
            max_key: 1_024,
            max_put: 5 << 30,
            min_part: 5 << 20,
            object_lock: false,
            state: Mutex::new(State {
                exists: true,
                objects: BTreeMap::new(),
                uploads: BTreeMap::new(),
                begun: 0,
                clock: Clock::System,
            }),
        }
    }

    /// The bucket does not exist until [`Bucket::create`].
    #[must_use]
    pub fn absent(self) -> Self {
        self.state().exists = false;
        self
    }

    /// Pages hold at most this many entries instead of 1,000.
    #[must_use]
    pub fn page_size(mut self, entries: usize) -> Self {
        self.page_size = entries.max(1);
        self
    }

    /// Keys may have any length.
    #[must_use]
    pub fn unlimited_keys(mut self) -> Self {
        self.max_key = usize::MAX;
        self
    }

    /// Objects above `max_put` bytes need a multipart upload, whose parts (but for the last) have at least
    /// `min_part` bytes; 5 GiB and 5 MiB unless set.
    #[must_use]
    pub fn sizes(mut self, max_put: u64, min_part: u64) -> Self {
        self.max_put = max_put;
        self.min_part = min_part;
        self
    }

    /// Objects can be locked, as in a bucket that was created with S3 Object Lock. Versions are not modelled: deleting or
    /// replacing a locked object succeeds, as it does on S3, but what was locked is gone here and is not there.
    #[must_use]
    pub fn object_lock(mut self) -> Self {
        self.object_lock = true;
        self
    }

    /// Takes the times of new objects from `clock`.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        self.state().clock = clock;
        self
    }

    /// Number of objects; not counted in the ledger.
    pub fn len(&self) -> usize {
        self.state().objects.len()
    }

    /// Whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all contents.
    pub fn size(&self) -> u64 {
        self.state().objects.values().map(|object| object.size).sum()
    }

    /// Every key in order; not counted in the ledger.
    pub fn keys(&self) -> Vec<Key> {
        self.state().objects.keys().cloned().collect()
    }

    /// Contents of an object, if there is one; not counted in the ledger.
    pub fn content(&self, key: &Key) -> Option<Bytes> {
        self.state().objects.get(key).map(|object| concat(&object.pieces))
    }

    /// Contents of an object as they lie here, if there is one; not counted in the ledger.
    pub fn pieces(&self, key: &Key) -> Option<Vec<Bytes>> {
        self.state().objects.get(key).map(|object| object.pieces.clone())
    }

    /// Description and attributes (with tags) of an object, if there is one; not counted in the ledger.
    pub fn stat(&self, key: &Key) -> Option<(Entry, Attributes)> {
        self.state().objects.get(key).map(|object| (object.entry(key), object.attributes.clone()))
    }

    /// Puts an object in place without a request.
    ///
    /// # Panics
    /// If this bucket cannot hold the key or the size.
    pub fn insert(&self, key: impl Into<Key>, content: impl Into<Bytes>, attributes: Attributes) {
        let options = PutOptions { attributes, ..PutOptions::default() };
        self.write(&key.into(), &[content.into()], &options).expect("the bucket holds what a test inserts");
    }

    /// Changes bytes of an object behind everybody's back: neither its entity tag nor its time moves.
    /// Tells whether the object was there.
    pub fn corrupt(&self, key: &Key, change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.state();
        let Some(object) = state.objects.get_mut(key) else { return false };
        let mut bytes = concat(&object.pieces).to_vec();
        change(&mut bytes);
        *object = Arc::new(Object {
            size: bytes.len() as u64,
            pieces: vec![bytes.into()],
            modified: object.modified,
            etag: object.etag.clone(),
            attributes: object.attributes.clone(),
            sha256: object.sha256,
        });
        true
    }

    /// Removes an object without a request; tells whether it was there.
    pub fn remove(&self, key: &Key) -> bool {
        self.state().objects.remove(key).is_some()
    }

    /// Removes every object and upload without a request.
    pub fn clear(&self) {
        let mut state = self.state();
        state.objects.clear();
        state.uploads.clear();
    }

    /// Number of multipart uploads that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// Replaces the tags of an object, which changes neither its entity tag nor its time.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchKey`], [`ErrorKind::NoSuchBucket`].
    pub fn set_tags(&self, key: &Key, tags: Tags) -> Result<()> {
        self.ledger.request(Verb::Tags);
        let mut state = self.open(Verb::Tags)?;
        let object = state.objects.get_mut(key).ok_or_else(|| self.missing(Verb::Tags, key))?;
        *object = Arc::new(object.with(with_tags(object.attributes.clone(), tags)));
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single insertion or removal: a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, kind: ErrorKind, verb: Verb) -> Error {
        Error::new(kind, verb, self.name.as_str())
    }

    fn missing(&self, verb: Verb, key: &Key) -> Error {
        self.error(ErrorKind::NoSuchKey, verb).key(key)
    }

    fn open(&self, verb: Verb) -> Result<MutexGuard<'_, State>> {
        let state = self.state();
        if !state.exists {
            return Err(self.error(ErrorKind::NoSuchBucket, verb));
        }
        Ok(state)
    }

    fn object(&self, verb: Verb, key: &Key) -> Result<Arc<Object>> {
        self.open(verb)?.objects.get(key).cloned().ok_or_else(|| self.missing(verb, key))
    }

    /// An object in a bucket that can lock it.
    fn lockable(&self, key: &Key) -> Result<Arc<Object>> {
        if !self.object_lock {
            let error = self.error(ErrorKind::Unsupported, Verb::Retention).key(key);
            return Err(error.detail("the bucket was made without Object Lock"));
        }
        self.object(Verb::Retention, key)
    }

    /// An object whose contents can be read: not one in an archive class.
    fn readable(&self, verb: Verb, key: &Key) -> Result<Arc<Object>> {
        let object = self.object(verb, key)?;
        if matches!(object.attributes.class.as_deref(), Some("GLACIER" | "DEEP_ARCHIVE")) {
            return Err(self.error(ErrorKind::Archived, verb).key(key));
        }
        Ok(object)
    }

    fn admit(&self, verb: Verb, key: &Key, size: u64) -> Result<()> {
        if key.is_empty() {
            return Err(self.error(ErrorKind::Invalid, verb).detail("the empty key names no object"));
        }
        if key.len() > self.max_key {
            let detail = format!("the key has more than {} bytes", self.max_key);
            return Err(self.error(ErrorKind::Unsupported, verb).key(key).detail(detail));
        }
        if size > self.max_put {
            let detail = format!("more than {} bytes in one piece", self.max_put);
            return Err(self.error(ErrorKind::Unsupported, verb).key(key).detail(detail));
        }
        Ok(())
    }

    fn insert_object(
        &self,
        verb: Verb,
        key: &Key,
        create_only: bool,
        make: impl FnOnce(Timestamp) -> Object,
    ) -> Result<Put> {
        let mut state = self.open(verb)?;
        if create_only && state.objects.contains_key(key) {
            return Err(self.error(ErrorKind::AlreadyExists, verb).key(key));
        }
        let object = make(state.clock.tick());
        let put = Put { revision: Revision::ETag(object.etag.clone()) };
        state.objects.insert(key.clone(), Arc::new(object));
        Ok(put)
    }

    fn write(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        let size = body.iter().map(|piece| piece.len() as u64).sum();
        self.admit(Verb::Put, key, size)?;
        if let Some(wanted) = options.sha256 {
            let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            body.iter().for_each(|piece| context.update(piece));
            if context.finish().as_ref() != wanted {
                let error = self.error(ErrorKind::Invalid, Verb::Put).key(key);
                return Err(error.detail("the contents do not have the announced SHA-256"));
            }
        }
        // One copy of its own: a piece may be a slice of a buffer that is a thousand times as large.
        let bytes = owned(body);
        let etag = hex::encode(Md5::digest(&bytes)).into_boxed_str();
        self.insert_object(Verb::Put, key, options.create_only, |modified| Object {
            pieces: if bytes.is_empty() { Vec::new() } else { vec![bytes] },
            size,
            modified,
            etag,
            attributes: normal(options.attributes.clone()),
            sha256: options.sha256,
        })
    }

    fn assemble(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put> {
        let error = |kind| self.error(kind, Verb::Multipart).key(&upload.key);
        let (chosen, attributes) = {
            let state = self.open(Verb::Multipart)?;
            let pending = state.uploads.get(&upload.id).filter(|pending| pending.key == upload.key);
            let pending = pending.ok_or_else(|| error(ErrorKind::NoSuchKey).detail("no such upload"))?;
            let mut chosen = Vec::with_capacity(parts.len());
            for (position, id) in parts.iter().enumerate() {
                if position > 0 && parts[position - 1].number >= id.number {
                    return Err(error(ErrorKind::Invalid).detail("parts are not in ascending order"));
                }
                match pending.parts.get(&id.number) {
                    Some(part) if hex::encode(part.md5) == id.etag.trim_matches('"') => {
                        chosen.push(part.clone())
                    }
                    _ => {
                        return Err(
                            error(ErrorKind::Invalid).detail(format!("part {} is not there", id.number))
                        );
                    }
                }
            }
            (chosen, pending.attributes.clone())
        };
        let Some((_, all_but_last)) = chosen.split_last() else {
            return Err(error(ErrorKind::Invalid).detail("no parts"));
        };
        if all_but_last.iter().any(|part| (part.bytes.len() as u64) < self.min_part) {
            return Err(error(ErrorKind::Invalid).detail("a part but for the last is too small"));
        }
        let sums: Vec<u8> = chosen.iter().flat_map(|part| part.md5).collect();
        let put =
            self.insert_object(Verb::Multipart, &upload.key, options.create_only, |modified| Object {
                size: chosen.iter().map(|part| part.bytes.len() as u64).sum(),
                etag: format!("{}-{}", hex::encode(Md5::digest(&sums)), chosen.len()).into_boxed_str(),
                pieces: chosen.into_iter().map(|part| part.bytes).collect(),
                modified,
                attributes,
                sha256: None,
            })?;
        self.state().uploads.remove(&upload.id);
        Ok(put)
    }

    fn delete_one(&self, key: &Key) -> Result<()> {
        self.open(Verb::Delete)?.objects.remove(key);
        Ok(())
    }
}

impl Object {
    /// The same contents with other attributes.
    fn with(&self, attributes: Attributes) -> Object {
        Object {
            pieces: self.pieces.clone(),
            size: self.size,
            modified: self.modified,
            etag: self.etag.clone(),
            attributes,
            sha256: self.sha256,
        }
    }

    fn entry(&self, key: &Key) -> Entry {
        Entry {
            key: key.clone(),
            size: self.size,
            modified: self.modified,
            revision: Revision::ETag(self.etag.clone()),
            class: self.attributes.class.as_deref().map(Into::into),
            attributes: None,
        }
    }

    /// The attributes as an answer carries them: the number of the tags, not the tags.
    fn answered(&self) -> Attributes {
        let count = self.attributes.tags.as_ref().map_or(0, |tags| tags.len() as u32);
        Attributes { tags: None, tag_count: Some(count), ..self.attributes.clone() }
    }

    fn is_in(&self, wanted: Option<&Revision>) -> bool {
        match wanted {
            None | Some(Revision::Unknown) => true,
            Some(wanted) => wanted.etag() == Some(&*self.etag),
        }
    }

    fn checksums(&self) -> Checksums {
        let mut checksums = Checksums::new();
        if let Some(sum) = self.sha256 {
            checksums.insert("sha256", Bytes::copy_from_slice(&sum));
        }
        // As on S3, the entity tag of what was put in one piece is its MD5.
        if let Ok(sum) = hex::decode(&*self.etag) {
            checksums.insert("md5", sum.into());
        }
        checksums
    }

    fn slice(&self, range: Range<u64>) -> Vec<Bytes> {
        let mut offset = 0;
        let mut pieces = Vec::new();
        for piece in &self.pieces {
            let end = offset + piece.len() as u64;
            let (from, to) = (range.start.clamp(offset, end), range.end.clamp(offset, end));
            if from < to {
                pieces.push(piece.slice((from - offset) as usize..(to - offset) as usize));
            }
            offset = end;
        }
        pieces
    }
}

impl Clock {
    fn tick(&mut self) -> Timestamp {
        match self {
            Clock::System => Timestamp::from_second(Timestamp::now().as_second())
                .expect("whole seconds of a time are a time"),
            Clock::Fixed(time) => *time,
            Clock::Stepping(time, step) => {
                let now = *time;
                *time = now.saturating_add(*step).unwrap_or(now);
                now
            }
        }
    }
}

/// Attributes as they are kept: lower-case metadata names, tags always as a set, no counts.
fn normal(attributes: Attributes) -> Attributes {
    let tags = attributes.tags.clone().unwrap_or_default();
    let meta = attributes.meta.iter().map(|(name, value)| (name.to_lowercase(), value.clone())).collect();
    let class = attributes.class.clone().filter(|class| class != "STANDARD");
    with_tags(Attributes { meta, class, missing_meta: 0, ..attributes }, tags)
}

fn with_tags(attributes: Attributes, tags: Tags) -> Attributes {
    Attributes { tag_count: Some(tags.len() as u32), tags: Some(tags), ..attributes }
}

fn concat(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [one] => one.clone(),
        _ => owned(pieces),
    }
}

fn owned(pieces: &[Bytes]) -> Bytes {
    let mut all = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all.freeze()
}

/// The bytes that a request for `range` of an object of `size` bytes yields, as HTTP has it: an end behind the
/// end is cut; a range that is empty or begins behind the end is refused.
pub(crate) fn satisfiable(range: Option<&Range<u64>>, size: u64) -> Option<Range<u64>> {
    match range {
        None => Some(0..size),
        Some(range) if range.start < range.end && range.start < size => {
            Some(range.start..range.end.min(size))
        }
        Some(_) => None,
    }
}

#[async_trait]
impl Bucket for Memory {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            list_after: true,
            attributes: true,
            tags: true,
            retention: self.object_lock,
            multipart: true,
            create_only: true,
            copy: true,
            max_put: self.max_put,
        }
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    async fn probe(&self) -> Result<()> {
        self.ledger.request(Verb::Bucket);
        self.open(Verb::Bucket).map(drop)
    }

    async fn create(&self) -> Result<()> {
        self.ledger.request(Verb::Bucket);
        self.state().exists = true;
        Ok(())
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.ledger.request(Verb::List);
        let after = match &request.token {
            Some(token) => match hex::decode(token) {
                Ok(bytes) => Some(Key::new(bytes)),
                Err(_) => return Err(self.error(ErrorKind::Invalid, Verb::List).detail("no such token")),
            },
            None => request.after.clone(),
        };
        let limit = request.limit.map_or(self.page_size, |limit| self.page_size.min(limit as usize));
        if limit == 0 {
            return Err(self.error(ErrorKind::Invalid, Verb::List).detail("a page of no entries"));
        }
        let start = match after {
            Some(after) if after >= request.prefix => Bound::Excluded(after),
            _ => Bound::Included(request.prefix.clone()),
        };
        let state = self.open(Verb::List)?;
        let mut objects = state
            .objects
            .range((start, Bound::Unbounded))
            .take_while(|(key, _)| key.as_bytes().starts_with(request.prefix.as_bytes()));
        let entries: Vec<Entry> =
            objects.by_ref().take(limit).map(|(key, object)| object.entry(key)).collect();
        let more = objects.next().is_some();
        let next = entries.last().filter(|_| more).map(|last| hex::encode(last.key.as_bytes()));
        Ok(Page { entries, next })
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        self.ledger.request(Verb::Head);
        let object = self.object(Verb::Head, key)?;
        Ok((object.entry(key), object.answered()))
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        self.ledger.request(Verb::Get);
        let object = self.readable(Verb::Get, key)?;
        if !object.is_in(options.revision.as_ref()) {
            return Err(self.error(ErrorKind::PreconditionFailed, Verb::Get).key(key));
        }
        let Some(range) = satisfiable(options.range.as_ref(), object.size) else {
            let detail = format!("no such range in {} bytes", object.size);
            return Err(self.error(ErrorKind::Invalid, Verb::Get).key(key).detail(detail));
        };
        let mut checksums = object.checksums();
        if options.range.is_some() {
            // As on S3.
            checksums.retain(|name, _| *name == "md5");
        }
        let ledger = self.ledger.clone();
        let pieces = futures::stream::iter(object.slice(range.clone()));
        let counted = pieces.map(move |piece| {
            ledger.received(piece.len() as u64);
            Ok(piece)
        });
        let body = Body::new(range.end - range.start, counted.boxed());
        Ok(Get { entry: object.entry(key), attributes: object.answered(), body, checksums })
    }

    async fn checksums(&self, key: &Key, revision: &Revision) -> Result<Checksums> {
        self.ledger.request(Verb::Head);
        let object = self.object(Verb::Head, key)?;
        if !object.is_in(Some(revision)) {
            return Err(self.error(ErrorKind::PreconditionFailed, Verb::Head).key(key));
        }
        Ok(object.checksums())
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        self.ledger.request(Verb::Put);
        self.ledger.sent(body.iter().map(|piece| piece.len() as u64).sum());
        self.write(key, body, options)
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> Result<Upload> {
        self.ledger.request(Verb::Multipart);
        self.admit(Verb::Multipart, key, 0)?;
        let mut state = self.open(Verb::Multipart)?;
        state.begun += 1;
        let id = format!("upload-{}", state.begun);
        let attributes = normal(options.attributes.clone());
        state.uploads.insert(id.clone(), Pending { key: key.clone(), attributes, parts: BTreeMap::new() });
        Ok(Upload { key: key.clone(), id })
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId> {
        self.ledger.request(Verb::Put);
        let size = body.iter().map(|piece| piece.len() as u64).sum();
        self.ledger.sent(size);
        self.admit(Verb::Put, &upload.key, size)?;
        if !(1..=10_000).contains(&number) {
            let error = self.error(ErrorKind::Invalid, Verb::Put).key(&upload.key);
            return Err(error.detail("part numbers run from 1 to 10,000"));
        }
        let bytes = owned(body);
        let md5: [u8; 16] = Md5::digest(&bytes).into();
        let mut state = self.open(Verb::Put)?;
        let pending = state.uploads.get_mut(&upload.id).filter(|pending| pending.key == upload.key);
        let pending = pending.ok_or_else(|| self.missing(Verb::Put, &upload.key).detail("no such upload"))?;
        pending.parts.insert(number, Part { bytes, md5 });
        Ok(PartId { number, etag: hex::encode(md5) })
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put> {
        self.ledger.request(Verb::Multipart);
        self.assemble(upload, parts, options)
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        self.ledger.request(Verb::Multipart);
        self.open(Verb::Multipart)?.uploads.remove(&upload.id);
        Ok(())
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put> {
        self.ledger.request(Verb::Copy);
        let object = self.readable(Verb::Copy, from)?;
        self.admit(Verb::Copy, to, object.size)?;
        let etag = if object.etag.contains('-') {
            // A copy is written in one piece, and is named as such.
            let mut sum = Md5::new();
            object.pieces.iter().for_each(|piece| sum.update(piece));
            hex::encode(sum.finalize()).into_boxed_str()
        } else {
            object.etag.clone()
        };
        self.insert_object(Verb::Copy, to, false, |modified| Object {
            pieces: object.pieces.clone(),
            size: object.size,
            modified,
            etag,
            attributes: object.attributes.clone(),
            sha256: object.sha256,
        })
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.ledger.request(Verb::Delete);
        self.delete_one(key)
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for batch in keys.chunks(BATCH) {
            self.ledger.request(Verb::Delete);
            let distinct: BTreeSet<&Key> = batch.iter().collect();
            let failed = distinct.into_iter().find_map(|key| self.delete_one(key).err());
            outcomes.extend(batch.iter().map(|key| DeleteOutcome {
                key: key.clone(),
                result: match &failed {
                    Some(error) => Err(self.error(error.kind, Verb::Delete).key(key)),
                    None => Ok(()),
                },
            }));
        }
        outcomes
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        self.ledger.request(Verb::Tags);
        Ok(self.object(Verb::Tags, key)?.attributes.tags.clone().unwrap_or_default())
    }

    async fn retention(&self, key: &Key) -> Result<Option<Retention>> {
        self.ledger.request(Verb::Retention);
        Ok(self.lockable(key)?.attributes.retention.clone())
    }

    async fn set_retention(&self, key: &Key, retention: &Retention) -> Result<()> {
        self.ledger.request(Verb::Retention);
        let object = self.lockable(key)?;
        let now = Timestamp::now();
        if retention.until <= now {
            let error = self.error(ErrorKind::Invalid, Verb::Retention).key(key);
            return Err(error.detail("the time to lock it for is over"));
        }
        let held = object.attributes.retention.as_ref().filter(|held| held.until > now);
        if held.is_some_and(|held| held.until > retention.until || held.mode != retention.mode) {
            let error = self.error(ErrorKind::Denied, Verb::Retention).key(key);
            return Err(error.detail("it is locked for longer, or in another mode"));
        }
        let attributes = Attributes { retention: Some(retention.clone()), ..object.attributes.clone() };
        self.open(Verb::Retention)?.objects.insert(key.clone(), Arc::new(object.with(attributes)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tagged() -> Attributes {
        Attributes {
            content_type: Some("text/plain".into()),
            meta: [("Owner".to_string(), "ada".to_string())].into(),
            tags: Some([("tier".to_string(), "gold".to_string())].into()),
            ..Attributes::default()
        }
    }

    #[tokio::test]
    async fn entity_tags_are_those_of_s3() {
        let bucket = Memory::new("memory").sizes(1 << 30, 1);
        let key = Key::from("a");
        let put = bucket.put(&key, &["hel".into(), "lo".into()], &PutOptions::default()).await.unwrap();
        assert_eq!(put.revision.etag(), Some("5d41402abc4b2a76b9719d911017c592"));
        let upload = bucket.begin_upload(&key, &PutOptions::default()).await.unwrap();
        let one = bucket.upload_part(&upload, 1, &["hello".into()]).await.unwrap();
        let two = bucket.upload_part(&upload, 2, &["world".into()]).await.unwrap();
        let put = bucket.complete_upload(&upload, &[one, two], &PutOptions::default()).await.unwrap();
        // md5(md5("hello") md5("world"))
        assert_eq!(put.revision.etag(), Some("065947336a2f2a95ba8899f3675c3be6-2"));
        assert_eq!(bucket.content(&key).unwrap(), "helloworld");
        assert_eq!(bucket.open_uploads(), 0);
        let copied = bucket.copy(&key, &Key::from("b")).await.unwrap();
        assert_eq!(copied.revision.etag(), Some("fc5e038d38a57032085441e7fe7010b0"));
    }

    #[tokio::test]
    async fn clocks_tick_as_told_and_attributes_are_kept() {
        let start = Timestamp::from_second(1_000).unwrap();
        let step = SignedDuration::from_secs(5);
        let bucket = Memory::new("memory").clock(Clock::Stepping(start, step));
        bucket.insert("a", "1", tagged());
        bucket.insert("b", "2", Attributes::default());
        let (entry, attributes) = bucket.head(&Key::from("b")).await.unwrap();
        assert_eq!(entry.modified, start + step);
        assert_eq!(attributes.tag_count, Some(0));
        let (_, attributes) = bucket.head(&Key::from("a")).await.unwrap();
        assert_eq!(attributes.meta["owner"], "ada");
        assert_eq!((attributes.tag_count, attributes.tags), (Some(1), None));
        assert_eq!(bucket.tags(&Key::from("a")).await.unwrap()["tier"], "gold");
        assert!(bucket.corrupt(&Key::from("a"), |bytes| bytes[0] ^= 1));
        assert_eq!(bucket.content(&Key::from("a")).unwrap(), "0");
        assert_eq!(bucket.stat(&Key::from("a")).unwrap().0.modified, start);
    }

    #[tokio::test]
    async fn the_ledger_counts_requests_and_the_bytes_that_were_taken() {
        let bucket = Memory::new("memory");
        let key = Key::from("a");
        bucket.put(&key, &["hello".into()], &PutOptions::default()).await.unwrap();
        let get = bucket.get(&key, &GetOptions { range: Some(1..3), revision: None }).await.unwrap();
        assert_eq!(bucket.ledger().snapshot().received, 0);
        assert_eq!(get.body.bytes().await.unwrap(), "el");
        bucket.delete_many(&vec![key; 1_001]).await;
        let counts = bucket.ledger().snapshot();
        assert_eq!((counts.received, counts.sent), (2, 5));
        assert_eq!([Verb::Put, Verb::Get, Verb::Delete].map(|verb| counts.count(verb)), [1, 1, 2]);
    }
}
