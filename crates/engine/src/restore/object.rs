//! One object on its way to a target bucket: put together in memory piece by piece, written, and confirmed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cistern_bucket::{
    Attributes, Bucket, Class, ErrorKind, GetOptions, Key, PartId, Put, PutOptions, Upload,
};
use futures::FutureExt;
use futures::future::BoxFuture;
use md5::{Digest, Md5};
use tokio::runtime::Handle;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::beneath::{Counts, locked};
use super::window::Receive;
use crate::backup::session::Collector;
use crate::{Error, ExceptionKind, Meter};

/// What all objects of a restore share.
pub(crate) struct Store {
    pub bucket: Arc<dyn Bucket>,
    pub collector: Arc<Collector>,
    pub meter: Arc<Meter>,
    pub counts: Counts,
    pub stop: CancellationToken,
    pub handle: Handle,
    /// Requests in flight.
    pub requests: Arc<Semaphore>,
    fatal: Mutex<Option<Error>>,
    /// Multipart uploads that are neither complete nor thrown away.
    uploads: Mutex<HashMap<String, Upload>>,
    /// Entity tags of this store were found not to be MD5 sums though they look so.
    opaque_tags: AtomicBool,
    /// Writing tags or a storage class is denied, writing without them is not.
    plain_only: AtomicBool,
    /// Objects that could not be written because access was denied.
    denied: AtomicU64,
    first_denied: Mutex<Option<cistern_bucket::Error>>,
}

/// If so many objects are denied and none is taken, all will be.
const DENIED: u64 = 16;

impl Store {
    /// A store that takes so many requests at once.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        collector: Arc<Collector>,
        meter: Arc<Meter>,
        stop: CancellationToken,
        requests: usize,
    ) -> Self {
        Store {
            bucket,
            collector,
            meter,
            counts: Counts::default(),
            stop,
            handle: Handle::current(),
            requests: Arc::new(Semaphore::new(requests.max(1))),
            fatal: Mutex::default(),
            uploads: Mutex::default(),
            opaque_tags: AtomicBool::new(false),
            plain_only: AtomicBool::new(false),
            denied: AtomicU64::new(0),
            first_denied: Mutex::default(),
        }
    }

    /// What ended the run, or kept all of it from being written.
    pub fn take_failure(&self) -> Option<Error> {
        let fatal = locked(&self.fatal).take();
        let denied = || locked(&self.first_denied).take().filter(|_| self.has_taken_nothing());
        fatal.or_else(|| denied().map(Error::Target))
    }

    fn has_taken_nothing(&self) -> bool {
        self.counts.written.load(Ordering::Relaxed) == 0
    }

    /// Throws the parts of unfinished uploads away.
    pub async fn abort_uploads(&self) {
        let uploads: Vec<Upload> = locked(&self.uploads).drain().map(|(_, upload)| upload).collect();
        for upload in uploads {
            // What went wrong is said already; a rule of the bucket can remove what stays.
            let _ = self.bucket.abort_upload(&upload).await;
        }
    }

    /// Notes that an object could not be written; ends the run if no other could be either.
    fn refused(&self, key: &Key, error: cistern_bucket::Error) {
        let kind = match error.kind {
            ErrorKind::Unsupported | ErrorKind::Invalid => ExceptionKind::NameRefused,
            ErrorKind::AlreadyExists => {
                let why = "something with this key appeared meanwhile, and stays";
                return self.collector.add(ExceptionKind::Unwritable, key, why);
            }
            ErrorKind::NoSuchBucket | ErrorKind::NoSpace => return self.fail(Error::Target(error)),
            ErrorKind::Denied if self.has_taken_nothing() => {
                let denied = self.denied.fetch_add(1, Ordering::Relaxed) + 1;
                if denied >= DENIED {
                    return self.fail(Error::Target(error));
                }
                self.collector.add(ExceptionKind::Denied, key, &error);
                locked(&self.first_denied).get_or_insert(error);
                return;
            }
            // What MinIO says of an object beside a folder of its name, however often it is asked.
            ErrorKind::Unreachable
                if error.detail.as_deref().is_some_and(|detail| detail.starts_with("IncompleteBody")) =>
            {
                ExceptionKind::Unwritable
            }
            // One key, perhaps by a rule of the bucket: others are taken.
            ErrorKind::Denied => ExceptionKind::Denied,
            _ => match error.class() {
                Class::Denied | Class::Throttled | Class::Unreachable | Class::Cancelled => {
                    return self.fail(Error::Target(error));
                }
                _ => ExceptionKind::Unwritable,
            },
        };
        self.collector.add(kind, key, error);
    }

    fn fail(&self, error: Error) {
        locked(&self.fatal).get_or_insert(error);
        self.stop.cancel();
    }

    /// Notes that the contents cannot be had. What concerns more than one blob ends the delivery instead.
    fn lost(&self, key: &Key, error: &cistern_repository::Error) {
        self.collector.add(ExceptionKind::Damaged, key, error);
    }

    /// Waits for its turn; `None` if the run is stopped.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            permit = self.requests.clone().acquire_owned() => permit.ok(),
        }
    }

    /// Tries `write` with all attributes, then with fewer and fewer, if the store takes those only.
    async fn with_attributes<'a, T>(
        &self,
        key: &Key,
        options: &PutOptions,
        write: impl Fn(PutOptions) -> BoxFuture<'a, cistern_bucket::Result<T>> + Send,
    ) -> cistern_bucket::Result<T> {
        let mut fewer = options.clone();
        let mut error = if self.plain_only.load(Ordering::Relaxed) && without_rights(&mut fewer.attributes) {
            let done = write(fewer.clone()).await?;
            self.collector.add(ExceptionKind::AttributeLost, key, DENIED_RIGHTS);
            return Ok(done);
        } else {
            match write(options.clone()).await {
                Err(error) if matches!(error.kind, ErrorKind::Unsupported | ErrorKind::Invalid) => error,
                // Tags and classes have permissions of their own.
                Err(error) if error.kind == ErrorKind::Denied && without_rights(&mut fewer.attributes) => {
                    let Ok(done) = write(fewer).await else { return Err(error) };
                    self.plain_only.store(true, Ordering::Relaxed);
                    self.collector.add(
                        ExceptionKind::AttributeLost,
                        key,
                        format!("{DENIED_RIGHTS}: {error}"),
                    );
                    return Ok(done);
                }
                result => return result,
            }
        };
        let mut lost = Vec::new();
        for step in [without_locks, without_class, without_tags, without_any] {
            let Some(what) = step(&mut fewer.attributes) else { continue };
            lost.push(what);
            match write(fewer.clone()).await {
                Ok(done) => {
                    let detail = format!("{}: {error}", lost.join(", "));
                    self.collector.add(ExceptionKind::AttributeLost, key, detail);
                    return Ok(done);
                }
                Err(next) if matches!(next.kind, ErrorKind::Unsupported | ErrorKind::Invalid) => error = next,
                Err(next) => return Err(next),
            }
        }
        Err(error)
    }

    /// Whether the store confirms that it holds these bytes.
    async fn confirm(
        &self,
        key: &Key,
        put: &Put,
        recorded: Option<&str>,
        body: &Bytes,
    ) -> cistern_bucket::Result<bool> {
        let Some(tag) = put.revision.etag() else { return Ok(true) };
        if !is_md5(tag) || recorded == Some(tag) || self.opaque_tags.load(Ordering::Relaxed) {
            return Ok(true);
        }
        if tag.eq_ignore_ascii_case(&md5(body)) {
            return Ok(true);
        }
        // Encryption with a managed key gives tags that only look like MD5 sums. Reading back tells.
        let options = GetOptions { revision: Some(put.revision.clone()), ..GetOptions::default() };
        let get = self.bucket.get(key, &options).await?;
        let same = get.body.length() == body.len() as u64 && get.body.bytes().await? == *body;
        if same {
            self.opaque_tags.store(true, Ordering::Relaxed);
        }
        Ok(same)
    }

    fn written(&self, key: &Key, size: u64) {
        Counts::add(&self.counts.written, 1);
        Counts::add(&self.counts.bytes, size);
        self.meter.done(size);
        self.meter.current(|| key.to_string());
    }
}

fn without_locks(attributes: &mut Attributes) -> Option<&'static str> {
    let had = attributes.retention.is_some() || attributes.legal_hold;
    (attributes.retention, attributes.legal_hold) = (None, false);
    had.then_some("locks")
}

const DENIED_RIGHTS: &str = "locks, tags and storage class: writing them is denied";

/// Takes away what needs rights of its own; whether there was any.
fn without_rights(attributes: &mut Attributes) -> bool {
    let steps = [without_locks, without_class, without_tags];
    // All of them, not up to the first that finds something.
    steps.iter().filter_map(|step| step(attributes)).count() > 0
}

fn without_class(attributes: &mut Attributes) -> Option<&'static str> {
    attributes.class.take().map(|_| "storage class")
}

fn without_tags(attributes: &mut Attributes) -> Option<&'static str> {
    attributes.tags.take().filter(|tags| !tags.is_empty()).map(|_| "tags")
}

fn without_any(attributes: &mut Attributes) -> Option<&'static str> {
    let before = std::mem::take(attributes);
    (before != Attributes::default()).then_some("headers and metadata")
}

/// Whether an entity tag looks like the MD5 of the contents.
pub(crate) fn is_md5(tag: &str) -> bool {
    tag.len() == 32 && tag.bytes().all(|b| b.is_ascii_hexdigit())
}

fn md5(body: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(32);
    for byte in Md5::digest(body) {
        write!(text, "{byte:02x}").expect("a string takes all");
    }
    text
}

/// What is written under which key.
pub(crate) struct Wanted {
    /// The key in the target.
    pub key: Key,
    /// Headers, metadata, tags, class, and the SHA-256 if it is known.
    pub options: PutOptions,
    /// The entity tag that the object had in the source.
    pub recorded: Option<Box<str>>,
    /// Length of the contents.
    pub size: u64,
}

/// An object that is written in one piece.
pub(crate) struct Whole {
    store: Arc<Store>,
    wanted: Mutex<Option<(Wanted, Vec<u8>, Held)>>,
    missing: AtomicU32,
}

/// Memory, and the sign that somebody still works.
pub(crate) struct Held {
    _memory: OwnedSemaphorePermit,
    _alive: mpsc::Sender<()>,
}

impl Held {
    /// Bytes of the budget, and what is dropped at the end.
    pub fn new(memory: OwnedSemaphorePermit, alive: mpsc::Sender<()>) -> Self {
        Held { _memory: memory, _alive: alive }
    }
}

impl Whole {
    /// An object whose contents come in so many blobs.
    pub fn new(store: Arc<Store>, wanted: Wanted, blobs: u32, held: Held) -> Self {
        let buffer = Vec::with_capacity(wanted.size as usize);
        Whole { store, wanted: Mutex::new(Some((wanted, buffer, held))), missing: AtomicU32::new(blobs) }
    }

    /// Writes an object without contents.
    pub fn empty(store: Arc<Store>, wanted: Wanted, held: Held) {
        let handle = store.handle.clone();
        handle.spawn(put(store, wanted, Bytes::new(), held));
    }
}

impl Receive for Whole {
    fn piece(&self, _number: u32, offset: u64, contents: Result<&[u8], &cistern_repository::Error>) {
        let mut state = locked(&self.wanted);
        let Some((wanted, buffer, _)) = &mut *state else { return };
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => {
                self.store.lost(&wanted.key, error);
                *state = None;
                return;
            }
        };
        let (start, end) = (offset as usize, offset as usize + contents.len());
        if buffer.len() == start {
            buffer.extend_from_slice(contents);
        } else {
            if buffer.len() < end {
                buffer.resize(end, 0);
            }
            buffer[start..end].copy_from_slice(contents);
        }
        if self.missing.fetch_sub(1, Ordering::Relaxed) == 1
            && let Some((wanted, buffer, held)) = state.take()
        {
            self.store.handle.spawn(put(self.store.clone(), wanted, buffer.into(), held));
        }
    }
}

/// Writes one object in one piece.
async fn put(store: Arc<Store>, wanted: Wanted, body: Bytes, held: Held) {
    let Some(_turn) = store.turn().await else { return };
    let Wanted { key, options, recorded, size } = &wanted;
    let pieces = [body.clone()];
    let write = |options: PutOptions| {
        let (bucket, pieces) = (&store.bucket, &pieces);
        async move { bucket.put(key, pieces, &options).await }.boxed()
    };
    let written = async {
        match store.with_attributes(key, options, write).await {
            Ok(put) => store.confirm(key, &put, recorded.as_deref(), &body).await,
            // An answer that was lost on its way: what is there is what was just written.
            Err(error) if error.kind == ErrorKind::AlreadyExists => match store.bucket.head(key).await {
                Ok((there, _)) if there.size == *size && there.revision.etag() == Some(&*md5(&body)) => {
                    Ok(true)
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    };
    let result = tokio::select! {
        biased;
        result = written => result,
        () = store.stop.cancelled() => return,
    };
    match result {
        Ok(true) => store.written(key, *size),
        Ok(false) => {
            store.collector.add(ExceptionKind::Differs, key, "the target holds other bytes than were written")
        }
        Err(error) => store.refused(key, error),
    }
    drop(held);
}

/// A part: what is there, how many bytes are missing, and the memory that it takes.
type Buffer = (Vec<u8>, u64, OwnedSemaphorePermit);

/// An object that is written in parts of equal length.
pub(crate) struct Parts {
    store: Arc<Store>,
    wanted: Wanted,
    part_size: u64,
    alive: mpsc::Sender<()>,
    upload: OnceCell<Upload>,
    /// Parts that are being put together, by number from 0.
    buffers: Mutex<HashMap<u32, Buffer>>,
    done: Mutex<Vec<PartId>>,
    missing: AtomicU64,
    failed: AtomicBool,
}

impl Parts {
    /// An object of at least one byte.
    pub fn new(store: Arc<Store>, wanted: Wanted, part_size: u64, alive: mpsc::Sender<()>) -> Arc<Self> {
        let parts = wanted.size.div_ceil(part_size);
        Arc::new(Parts {
            store,
            wanted,
            part_size,
            alive,
            upload: OnceCell::new(),
            buffers: Mutex::default(),
            done: Mutex::default(),
            missing: AtomicU64::new(parts),
            failed: AtomicBool::new(false),
        })
    }

    /// Length of a part.
    pub fn length(&self, part: u32) -> u64 {
        self.part_size.min(self.wanted.size - u64::from(part) * self.part_size)
    }

    /// Makes room for a part, before the first blob that it needs is asked for.
    pub fn begin(&self, part: u32, memory: OwnedSemaphorePermit) {
        let length = self.length(part);
        let mut buffers = locked(&self.buffers);
        // Nobody would fill it, and its memory would be missing to all others for ever.
        if !self.has_failed() {
            buffers.insert(part, (vec![0; length as usize], length, memory));
        }
    }

    /// Whether the object cannot be written any more.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn fail(&self, tell: impl FnOnce(&Store, &Key)) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            locked(&self.buffers).clear();
            tell(&self.store, &self.wanted.key);
        }
    }

    async fn upload(self: Arc<Self>, part: u32, body: Bytes, _memory: OwnedSemaphorePermit) {
        let _alive = self.alive.clone();
        let store = &self.store;
        let Some(_turn) = store.turn().await else { return };
        let write = async {
            let upload = self.upload.get_or_try_init(|| self.start()).await?;
            store.bucket.upload_part(upload, part + 1, &[body]).await
        };
        let result = tokio::select! {
            biased;
            result = write => result,
            () = store.stop.cancelled() => return,
        };
        match result {
            Ok(id) => locked(&self.done).push(id),
            Err(error) => self.fail(|store, key| store.refused(key, error)),
        }
        if self.missing.fetch_sub(1, Ordering::AcqRel) == 1 && !self.has_failed() {
            tokio::select! {
                biased;
                () = self.complete() => (),
                () = store.stop.cancelled() => (),
            }
        }
    }

    async fn start(&self) -> cistern_bucket::Result<Upload> {
        let (store, key) = (&self.store, &self.wanted.key);
        let begin =
            |options: PutOptions| async move { store.bucket.begin_upload(key, &options).await }.boxed();
        let upload = store.with_attributes(key, &self.wanted.options, begin).await?;
        locked(&store.uploads).insert(upload.id.clone(), upload.clone());
        Ok(upload)
    }

    async fn complete(&self) {
        let (store, key) = (&self.store, &self.wanted.key);
        let Some(upload) = self.upload.get() else { return };
        let mut parts = std::mem::take(&mut *locked(&self.done));
        parts.sort_unstable_by_key(|part| part.number);
        let completed = async {
            store.bucket.complete_upload(upload, &parts, &self.wanted.options).await?;
            locked(&store.uploads).remove(&upload.id);
            Ok(store.bucket.head(key).await?.0.size)
        };
        match completed.await {
            Ok(size) if size == self.wanted.size => store.written(key, size),
            Ok(size) => {
                let detail = format!("the target holds {size} bytes of {}", self.wanted.size);
                store.collector.add(ExceptionKind::Differs, key, detail);
            }
            Err(error) => self.fail(|store, key| store.refused(key, error)),
        }
    }
}

/// The window holds this as what takes the blobs of the object.
pub(crate) struct Pieces(pub Arc<Parts>);

impl Receive for Pieces {
    fn piece(&self, _number: u32, offset: u64, contents: Result<&[u8], &cistern_repository::Error>) {
        let parts = &self.0;
        if parts.has_failed() || parts.store.stop.is_cancelled() {
            return;
        }
        let contents = match contents {
            Ok(contents) => contents,
            Err(error) => return parts.fail(|store, key| store.lost(key, error)),
        };
        let mut at = 0;
        while at < contents.len() {
            let position = offset + at as u64;
            let part = (position / parts.part_size) as u32;
            let start = (position % parts.part_size) as usize;
            let mut buffers = locked(&parts.buffers);
            let Some((buffer, missing, _)) = buffers.get_mut(&part) else { return };
            let n = (buffer.len() - start).min(contents.len() - at);
            buffer[start..start + n].copy_from_slice(&contents[at..at + n]);
            *missing -= n as u64;
            at += n;
            let complete = if *missing == 0 { buffers.remove(&part) } else { None };
            drop(buffers);
            if let Some((buffer, _, memory)) = complete {
                let handle = parts.store.handle.clone();
                handle.spawn(parts.clone().upload(part, buffer.into(), memory));
            }
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // The buffers' memory returns to the budget before anybody hears that all is over.
        locked(&self.buffers).clear();
    }
}
