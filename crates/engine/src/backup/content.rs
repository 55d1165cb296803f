//! Reads objects in exactly the state in which they were listed, checks what came, and stores it.
//!
//! Objects up to [`LARGE`] are read in one request and stored in batches; larger ones in ranges, several at once,
//! pushed in order, and compared as a whole with the store's checksum. Requests in flight and bytes in memory are bounded, whatever the objects are. An object that was
//! replaced meanwhile is looked up again and read in its new state; one that is gone is gone; a body that is not what
//! the store says it is, is read again and then an error.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{
    Attributes, Body, Bucket, Checksums, Entry, Error as BucketError, ErrorKind, Get, GetOptions, Key,
    ListRequest, Revision, Tags, Verb, Verifier,
};
use cistern_repository::{Contents, Id, Writer};
use futures::future::{Either, select};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::session::{Collector, Counts};
use crate::{Error, ExceptionKind, Meter, Result};

/// Objects above this size in bytes are read in ranges.
pub(crate) const LARGE: u64 = 16 << 20;
/// Bytes of one range.
const RANGE: u64 = 8 << 20;
/// Ranges of one object in flight or in memory.
const RANGES: usize = 4;
/// Large objects that are read at once.
const LARGE_AT_ONCE: usize = 4;
/// Bytes of contents in memory between the source and the writer.
const MEMORY: usize = 40 << 20;
/// How often an object may change while it is read before we give up.
const MAX_CHANGES: u32 = 5;
/// How often an object is read again because what came was not what the store had announced.
const MAX_REPEATS: u32 = 2;
/// A batch holds at most so many objects and bytes.
const BATCH: (usize, usize) = (512, 4 << 20);
/// A batch that is not full waits so long for more.
const LINGER: Duration = Duration::from_millis(2);

/// What became of an object.
#[derive(Debug)]
pub(crate) enum Read {
    /// It is stored.
    Stored(Box<Stored>),
    /// It is gone.
    Vanished,
    /// It is there and cannot be read.
    Unreadable(ExceptionKind, String),
}

/// An object that is in the repository now.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The state that was read, which may be newer than the one that was listed.
    pub entry: Entry,
    /// Its attributes; `tags` is `None` if they could not be read.
    pub attributes: Attributes,
    /// The blobs of its contents.
    pub blobs: Vec<Id>,
}

/// A running read. Dropping it stops it.
pub(crate) type Reading = AbortOnDropHandle<Result<Read>>;

/// Running reads of the tags alone; `None` if they cannot be known.
pub(crate) type ReadingTags = AbortOnDropHandle<Result<Option<Tags>>>;

/// Reads objects of one bucket into one repository.
pub(crate) struct Objects {
    bucket: Arc<dyn Bucket>,
    writer: Writer,
    exceptions: Arc<Collector>,
    counts: Arc<Counts>,
    meter: Arc<Meter>,
    wants_tags: bool,
    /// Whether tags can be read at all, once somebody has tried.
    tags_readable: OnceCell<bool>,
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    large: Arc<Semaphore>,
    batches: mpsc::Sender<Piece>,
    _batcher: AbortOnDropHandle<()>,
}

/// What a read holds while it runs, taken in the order of the objects.
enum Admission {
    Small(OwnedSemaphorePermit, OwnedSemaphorePermit),
    Large(OwnedSemaphorePermit),
}

/// The body of an object on its way to the writer.
struct Piece {
    bytes: Bytes,
    memory: OwnedSemaphorePermit,
    answer: oneshot::Sender<Contents>,
}

/// A range of a large object.
struct Slice {
    bytes: Bytes,
    attributes: Attributes,
    checksums: Checksums,
    _memory: OwnedSemaphorePermit,
}

impl Objects {
    /// Reads with at most `concurrency` requests in flight.
    pub fn new(
        bucket: Arc<dyn Bucket>,
        writer: Writer,
        (exceptions, counts, meter): (Arc<Collector>, Arc<Counts>, Arc<Meter>),
        concurrency: usize,
        wants_tags: bool,
    ) -> Arc<Self> {
        let (batches, pieces) = mpsc::channel(BATCH.0);
        let batcher = tokio::spawn(batch(writer.clone(), pieces));
        Arc::new(Objects {
            bucket,
            writer,
            exceptions,
            counts,
            meter,
            wants_tags,
            tags_readable: OnceCell::new(),
            requests: Arc::new(Semaphore::new(concurrency.max(1))),
            memory: Arc::new(Semaphore::new(MEMORY)),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
            batches,
            _batcher: AbortOnDropHandle::new(batcher),
        })
    }

    /// Begins to read an object in the state that `entry` shows, as soon as requests and memory allow.
    pub async fn begin(self: &Arc<Self>, entry: Entry) -> Reading {
        let admission = self.admit(entry.size).await;
        let this = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move { this.read(entry, admission).await }))
    }

    /// Begins to read the tags of an object whose contents and other attributes are known, unless nobody wants them.
    pub fn begin_tags(self: &Arc<Self>, key: Key) -> Option<ReadingTags> {
        if !self.wants_tags || !self.bucket.capabilities().tags {
            return None;
        }
        let this = self.clone();
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut probed = None;
            if !this.tags_are_readable(&key, &mut probed).await? {
                return Ok(None);
            }
            match probed {
                Some(tags) => Ok(Some(tags)),
                None => match this.read_tags(&key).await {
                    Ok(tags) => Ok(Some(tags)),
                    // One that is gone is seen by the next listing.
                    Err(Error::Source(error)) if refused(&error) || error.kind == ErrorKind::NoSuchKey => {
                        Ok(None)
                    }
                    Err(error) => Err(error),
                },
            }
        })))
    }

    async fn admit(&self, size: u64) -> Admission {
        if size > LARGE {
            return Admission::Large(take(&self.large, 1).await);
        }
        let (request, memory) = self.permits(size).await;
        Admission::Small(request, memory)
    }

    /// One request and memory for its answer: always in this order, and everybody who holds memory gets on without
    /// another permit.
    async fn permits(&self, bytes: u64) -> (OwnedSemaphorePermit, OwnedSemaphorePermit) {
        let request = take(&self.requests, 1).await;
        (request, take(&self.memory, bytes.max(1) as usize).await)
    }

    async fn read(&self, mut entry: Entry, admission: Admission) -> Result<Read> {
        let mut admission = Some(admission);
        let (mut changes, mut repeats) = (0, 0);
        loop {
            let admitted = match admission.take() {
                Some(admitted) => admitted,
                None => self.admit(entry.size).await,
            };
            let outcome = match admitted {
                Admission::Small(request, memory) => self.small(&entry, request, memory).await,
                Admission::Large(_turn) => self.in_ranges(&entry).await,
            };
            let error = match outcome {
                Ok((attributes, blobs)) => return self.stored(entry, attributes, blobs).await,
                Err(Error::Source(error)) => error,
                Err(error) => return Err(error),
            };
            let kind = match error.kind {
                ErrorKind::NoSuchKey | ErrorKind::PreconditionFailed => {
                    changes += 1;
                    match self.look_again(&entry.key).await? {
                        None => return Ok(Read::Vanished),
                        Some(now) if changes < MAX_CHANGES => {
                            entry = now;
                            continue;
                        }
                        // The listing insists on an object that cannot be found.
                        Some(_) if error.kind == ErrorKind::NoSuchKey => ExceptionKind::Unreadable,
                        Some(_) => ExceptionKind::KeepsChanging,
                    }
                }
                ErrorKind::BadAnswer if repeats < MAX_REPEATS => {
                    repeats += 1;
                    continue;
                }
                ErrorKind::Archived => ExceptionKind::Archived,
                ErrorKind::CustomerKey => ExceptionKind::CustomerKey,
                ErrorKind::Denied => ExceptionKind::Denied,
                // The store lists it and refuses its key.
                ErrorKind::Invalid | ErrorKind::Unsupported => ExceptionKind::Unreadable,
                _ => return Err(Error::Source(error)),
            };
            return Ok(Read::Unreadable(kind, error.to_string()));
        }
    }

    /// The object as the store lists it now.
    async fn look_again(&self, key: &Key) -> Result<Option<Entry>> {
        let _request = take(&self.requests, 1).await;
        let request = ListRequest { prefix: key.clone(), limit: Some(1), ..ListRequest::default() };
        let page = self.bucket.list(&request).await.map_err(Error::Source)?;
        Ok(page.entries.into_iter().next().filter(|entry| entry.key == *key))
    }

    async fn small(
        &self,
        entry: &Entry,
        request: OwnedSemaphorePermit,
        memory: OwnedSemaphorePermit,
    ) -> Result<(Attributes, Vec<Id>)> {
        let Get { attributes, body, checksums, .. } = self.get(entry, None).await?;
        let bytes = self.body(entry, body, entry.size).await?;
        drop(request);
        if let Some(mut verifier) = Verifier::new(&checksums) {
            let given = bytes.clone();
            let check = move || {
                verifier.update(&given);
                verifier.finish()
            };
            // Up to 16 MiB of MD5 take long enough to keep other requests waiting.
            let right = match bytes.len() {
                0..=65_536 => check(),
                _ => join(tokio::task::spawn_blocking(check).await)?,
            };
            if !right {
                return Err(self.wrong(entry, "the contents do not have the store's checksum"));
            }
        }
        Counts::add(&self.counts.bytes_read, entry.size);
        if bytes.is_empty() {
            return Ok((attributes, Vec::new()));
        }
        let (answer, contents) = oneshot::channel();
        // If the writer has failed, the permit below says why.
        let _ = self.batches.send(Piece { bytes, memory, answer }).await;
        let contents = match contents.await {
            Ok(contents) => contents,
            Err(_) => {
                let _failed = self.writer.permit(0).await?;
                return Err(Error::Broken("a batch was lost".into()));
            }
        };
        self.meter.bytes_done.fetch_add(entry.size, Relaxed);
        self.whole(entry, contents).map(|blobs| (attributes, blobs))
    }

    async fn in_ranges(&self, entry: &Entry) -> Result<(Attributes, Vec<Id>)> {
        let mut file = self.writer.file();
        let mut starts = (0..entry.size).step_by(RANGE as usize);
        let mut next = None;
        let mut running: VecDeque<AbortOnDropHandle<Result<Slice>>> = VecDeque::new();
        let mut attributes = None;
        let mut verifier = None;
        let mut pushed = 0;
        let outcome = loop {
            if next.is_none() && running.len() < RANGES {
                next = starts.next().map(|start| {
                    let range = start..entry.size.min(start + RANGE);
                    Box::pin(async move { (self.permits(range.end - range.start).await, range) })
                });
            }
            // Ranges get memory in their order, and whoever waits for more goes on to use what came: two large
            // objects would otherwise wait for each other.
            let slice = match (&mut next, running.front_mut()) {
                (None, None) => break Ok(()),
                (Some(permitted), None) => Either::Left(permitted.await),
                (None, Some(first)) => Either::Right(first.await),
                (Some(permitted), Some(first)) => match select(permitted, first).await {
                    Either::Left((permitted, _)) => Either::Left(permitted),
                    Either::Right((slice, _)) => Either::Right(slice),
                },
            };
            let slice = match slice {
                Either::Left((permits, range)) => {
                    next = None;
                    running.push_back(self.begin_range(entry, range, permits));
                    continue;
                }
                Either::Right(slice) => slice,
            };
            running.pop_front();
            let slice = match join(slice).flatten() {
                Ok(slice) => slice,
                Err(error) => break Err(error),
            };
            if attributes.is_none() {
                attributes = Some(slice.attributes);
                verifier = match self.verifier(entry, slice.checksums).await {
                    Ok(verifier) => verifier,
                    Err(error) => break Err(error),
                };
            }
            let length = slice.bytes.len() as u64;
            if let Some(mut before) = verifier.take() {
                let given = slice.bytes.clone();
                let update = move || {
                    before.update(&given);
                    before
                };
                verifier = match join(tokio::task::spawn_blocking(update).await) {
                    Ok(verifier) => Some(verifier),
                    Err(error) => break Err(error),
                };
            }
            if let Err(error) = file.push(slice.bytes).await {
                break Err(error.into());
            }
            pushed += length;
            self.meter.bytes_done.fetch_add(length, Relaxed);
            Counts::add(&self.counts.bytes_read, length);
        };
        let outcome = outcome.and_then(|()| match verifier.is_none_or(Verifier::finish) {
            true => Ok(()),
            false => Err(self.wrong(entry, "the contents do not have the store's checksum")),
        });
        if let Err(error) = outcome {
            file.abort();
            self.meter.bytes_done.fetch_sub(pushed, Relaxed);
            return Err(error);
        }
        let contents = file.finish().await?;
        let blobs = self.whole(entry, contents)?;
        Ok((attributes.unwrap_or_default(), blobs))
    }

    /// What the contents of an object that is read in ranges are compared with: what the answers carry, or else what the
    /// store says when it is asked for it.
    async fn verifier(&self, entry: &Entry, carried: Checksums) -> Result<Option<Verifier>> {
        if let Some(verifier) = Verifier::new(&carried) {
            return Ok(Some(verifier));
        }
        match self.bucket.checksums(&entry.key, &entry.revision).await {
            Ok(checksums) => Ok(Verifier::new(&checksums)),
            // The contents may be read, and nothing else may be asked.
            Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::Unsupported) => Ok(None),
            Err(error) => Err(Error::Source(error)),
        }
    }

    fn begin_range(
        &self,
        entry: &Entry,
        range: Range<u64>,
        (request, memory): (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> AbortOnDropHandle<Result<Slice>> {
        let (bucket, entry) = (self.bucket.clone(), entry.clone());
        let length = range.end - range.start;
        AbortOnDropHandle::new(tokio::spawn(async move {
            let _request = request;
            let Get { attributes, body, checksums, .. } = get(&*bucket, &entry, Some(range)).await?;
            let bytes = bytes(&*bucket, &entry, body, length).await?;
            Ok(Slice { bytes, attributes, checksums, _memory: memory })
        }))
    }

    async fn get(&self, entry: &Entry, range: Option<Range<u64>>) -> Result<Get> {
        get(&*self.bucket, entry, range).await
    }

    async fn body(&self, entry: &Entry, body: Body, length: u64) -> Result<Bytes> {
        bytes(&*self.bucket, entry, body, length).await
    }

    fn wrong(&self, entry: &Entry, detail: &str) -> Error {
        wrong(&*self.bucket, entry, detail)
    }

    /// The writer has taken in as many bytes as the object has.
    fn whole(&self, entry: &Entry, contents: Contents) -> Result<Vec<Id>> {
        if contents.size == entry.size {
            return Ok(contents.blobs);
        }
        Err(Error::Broken(format!("{} bytes of {} were stored as {}", entry.size, entry.key, contents.size)))
    }

    /// Adds tags to what was stored.
    async fn stored(&self, entry: Entry, mut attributes: Attributes, blobs: Vec<Id>) -> Result<Read> {
        if attributes.missing_meta > 0 {
            let detail = format!("{} entries of its metadata cannot be expressed", attributes.missing_meta);
            self.exceptions.add(ExceptionKind::AttributeLost, &entry.key, detail);
        }
        if attributes.class.is_none() {
            attributes.class = entry.class.as_deref().map(Into::into);
        }
        attributes.tags = match self.tags(&entry.key, &attributes).await {
            Ok(tags) => tags,
            Err(Error::Source(error)) if error.kind == ErrorKind::NoSuchKey => return Ok(Read::Vanished),
            Err(error) => return Err(error),
        };
        attributes.tag_count = None;
        Ok(Read::Stored(Box::new(Stored { entry, attributes, blobs })))
    }

    /// The tags; `None` if they cannot be known.
    async fn tags(&self, key: &Key, attributes: &Attributes) -> Result<Option<Tags>> {
        if let Some(tags) = &attributes.tags {
            return Ok(Some(tags.clone()));
        }
        if attributes.tag_count == Some(0) || !self.bucket.capabilities().tags {
            return Ok(Some(Tags::new()));
        }
        if !self.wants_tags {
            return Ok(None);
        }
        if attributes.tag_count.is_none() {
            // Without the permission to read tags, the store says of no object that it has some: one object is asked.
            let mut probed = None;
            let readable = self.tags_are_readable(key, &mut probed).await?;
            return Ok(readable.then(|| probed.unwrap_or_default()));
        }
        match self.read_tags(key).await {
            Ok(tags) => Ok(Some(tags)),
            Err(Error::Source(error)) if refused(&error) => {
                self.exceptions.add(ExceptionKind::AttributeLost, key, error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether tags can be read at all: the first object that it depends on is asked for `its` own.
    async fn tags_are_readable(&self, key: &Key, its: &mut Option<Tags>) -> Result<bool> {
        let probe = async {
            match self.read_tags(key).await {
                Ok(tags) => {
                    *its = Some(tags);
                    Ok(true)
                }
                Err(Error::Source(error)) if refused(&error) => {
                    let detail = format!("tags cannot be read of any object: {error}");
                    self.exceptions.add(ExceptionKind::AttributeLost, key, detail);
                    Ok(false)
                }
                Err(error) => Err(error),
            }
        };
        Ok(*self.tags_readable.get_or_try_init(|| probe).await?)
    }

    async fn read_tags(&self, key: &Key) -> Result<Tags> {
        let _request = take(&self.requests, 1).await;
        self.bucket.tags(key).await.map_err(Error::Source)
    }
}

fn refused(error: &BucketError) -> bool {
    matches!(error.kind, ErrorKind::Denied | ErrorKind::Unsupported)
}

/// Asks for an object in the state that was listed, and makes sure that the answer is about that state.
async fn get(bucket: &dyn Bucket, entry: &Entry, range: Option<Range<u64>>) -> Result<Get> {
    let length = range.as_ref().map_or(entry.size, |range| range.end - range.start);
    let options = GetOptions { range, revision: Some(entry.revision.clone()) };
    let get = bucket.get(&entry.key, &options).await.map_err(Error::Source)?;
    let moved = match (&get.entry.revision, &entry.revision) {
        (Revision::Unknown, _) | (_, Revision::Unknown) => {
            get.entry.size != entry.size || get.entry.modified != entry.modified
        }
        (now, listed) => now != listed,
    };
    if moved {
        let error = BucketError::new(ErrorKind::PreconditionFailed, Verb::Get, bucket.name());
        return Err(Error::Source(error.key(&entry.key)));
    }
    if get.entry.size != entry.size || get.body.length() != length {
        let detail = format!("{} bytes were announced, {} come", length, get.body.length());
        return Err(wrong(bucket, entry, &detail));
    }
    Ok(get)
}

/// The whole body, which has `length` bytes.
async fn bytes(bucket: &dyn Bucket, entry: &Entry, body: Body, length: u64) -> Result<Bytes> {
    let bytes = body.bytes().await.map_err(|error| {
        // A stream of bytes does not know whose it is.
        let bucket = if error.bucket.is_empty() { bucket.name().into() } else { error.bucket.clone() };
        Error::Source(BucketError { bucket, ..error }.key(&entry.key))
    })?;
    match bytes.len() as u64 == length {
        true => Ok(bytes),
        false => Err(wrong(bucket, entry, "the body has another length than announced")),
    }
}

fn wrong(bucket: &dyn Bucket, entry: &Entry, detail: &str) -> Error {
    let error = BucketError::new(ErrorKind::BadAnswer, Verb::Get, bucket.name());
    Error::Source(error.key(&entry.key).detail(detail))
}

async fn take(semaphore: &Arc<Semaphore>, permits: usize) -> OwnedSemaphorePermit {
    let permits = u32::try_from(permits).unwrap_or(u32::MAX);
    semaphore.clone().acquire_many_owned(permits).await.expect("the semaphore is never closed")
}

/// The result of a task of ours: a panic goes on in whoever waits.
pub(crate) fn join<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T> {
    outcome.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Error::Cancelled,
    })
}

/// Waits for a read.
pub(crate) async fn finished(reading: Reading) -> Result<Read> {
    join(reading.await).flatten()
}

/// Gathers bodies into batches until nobody sends any more.
async fn batch(writer: Writer, mut pieces: mpsc::Receiver<Piece>) {
    while let Some(first) = pieces.recv().await {
        let mut bytes = first.bytes.len();
        let mut all = vec![first];
        let deadline = tokio::time::Instant::now() + LINGER;
        while all.len() < BATCH.0 && bytes < BATCH.1 {
            // The timer is asked only when nothing is there.
            let next = match pieces.try_recv() {
                Ok(piece) => Some(piece),
                Err(_) => tokio::time::timeout_at(deadline, pieces.recv()).await.ok().flatten(),
            };
            let Some(piece) = next else { break };
            bytes += piece.bytes.len();
            all.push(piece);
        }
        // Whoever waits for these pieces asks the writer why they were dropped.
        let Ok(permit) = writer.permit(bytes).await else { return };
        let (mut answers, mut bodies) = (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        for piece in all {
            answers.push(piece.answer);
            bodies.push((piece.bytes, piece.memory));
        }
        let ticket = writer.batch(permit, move |batch| {
            bodies.into_iter().for_each(|(bytes, _memory)| batch.add_bytes(bytes));
        });
        tokio::spawn(async move {
            let Ok(contents) = ticket.await else { return };
            for (answer, contents) in answers.into_iter().zip(contents) {
                if let Ok(contents) = contents {
                    let _ = answer.send(contents);
                }
            }
        });
    }
}
