//! Reads objects in exactly the state in which they were listed, checks what came, and stores it.
//!
//! Objects up to [`LARGE`] are read in one request and stored in batches; larger ones in ranges, several at once,
//! pushed in order, and compared as a whole with the store's checksum. What several repositories want is read once and
//! goes to all of them; one that fails is left out, one that is slow slows down all. Requests in flight and bytes in
//! memory are bounded, whatever the objects are. An object that was replaced meanwhile is looked up again and read in
//! its new state; one that is gone is gone; a body that is not what the store says it is, is read again and then an
//! error.

mod sink;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use cistern_bucket::{
    Attributes, Body, Bucket, Checksums, Entry, Error as BucketError, ErrorKind, Get, GetOptions, Key,
    ListRequest, Revision, Tags, Verb, Verifier,
};
use cistern_repository::{Contents, FileWriter, Id, Ticket};
use futures::FutureExt;
use futures::future::{Either, join_all, select};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::sink::{Reading, Sink};

use self::sink::{Answer, tell, whole};
use super::session::Counts;
use crate::{Error, ExceptionKind, Result};

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

/// What became of an object.
#[derive(Clone, Debug)]
pub(crate) enum Read {
    /// It is stored.
    Stored(Box<Stored>),
    /// It is gone.
    Vanished,
    /// It is there and cannot be read.
    Unreadable(ExceptionKind, String),
}

/// An object that is in the repository now.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// The state that was read, which may be newer than the one that was listed.
    pub entry: Entry,
    /// Its attributes; `tags` is `None` if they could not be read.
    pub attributes: Attributes,
    /// The blobs of its contents.
    pub blobs: Vec<Id>,
}

/// Reads objects of one bucket into one repository or several.
pub(crate) struct Objects {
    bucket: Arc<dyn Bucket>,
    sinks: Vec<Sink>,
    wants_tags: bool,
    /// Why no tags can be read, if they cannot, once somebody has tried.
    tags_refused: OnceCell<Option<String>>,
    requests: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

/// What a read holds while it runs, taken in the order of the objects.
enum Admission {
    Small(OwnedSemaphorePermit, OwnedSemaphorePermit),
    Large(OwnedSemaphorePermit),
}

/// The contents of an object, which are what the store says they are.
enum Fetched {
    /// Not stored yet.
    Small(Bytes, OwnedSemaphorePermit),
    /// On their way into each repository that wants them.
    Large(Vec<Result<Ticket<Contents>>>, OwnedSemaphorePermit),
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
    pub fn new(bucket: Arc<dyn Bucket>, sinks: Vec<Sink>, concurrency: usize, wants_tags: bool) -> Arc<Self> {
        Arc::new(Objects {
            bucket,
            sinks,
            wants_tags,
            tags_refused: OnceCell::new(),
            requests: Arc::new(Semaphore::new(concurrency.max(1))),
            memory: Arc::new(Semaphore::new(MEMORY)),
            large: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        })
    }

    /// Begins to read an object in the state that `entry` shows for the repositories with these numbers, as soon as
    /// requests and memory allow. There is one answer for each of them.
    pub async fn begin(self: &Arc<Self>, entry: Entry, wanted: Vec<usize>) -> Vec<Reading<Read>> {
        let admission = self.admit(entry.size).await;
        let this = self.clone();
        Reading::begin(wanted.len(), |answers| async move {
            this.read(entry, admission, &wanted, answers).await;
        })
    }

    /// Begins to read the tags of an object whose contents and other attributes are known, for the repositories with
    /// these numbers; none if nobody wants them. `None` if they cannot be known.
    pub fn begin_tags(self: &Arc<Self>, key: Key, wanted: Vec<usize>) -> Vec<Reading<Option<Tags>>> {
        if !self.wants_tags || !self.bucket.capabilities().tags {
            return Vec::new();
        }
        let this = self.clone();
        Reading::begin(wanted.len(), |answers| async move {
            tell(answers, this.later_tags(&key, &wanted).await);
        })
    }

    async fn later_tags(&self, key: &Key, wanted: &[usize]) -> Result<Option<Tags>> {
        let mut probed = None;
        if !self.tags_are_readable(key, wanted, &mut probed).await? {
            return Ok(None);
        }
        match probed {
            Some(tags) => Ok(Some(tags)),
            None => match self.read_tags(key).await {
                Ok(tags) => Ok(Some(tags)),
                // One that is gone is seen by the next listing.
                Err(Error::Source(error)) if refused(&error) || error.kind == ErrorKind::NoSuchKey => {
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
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

    /// Reads an object, in the state that it has at last, and answers everybody.
    async fn read(
        &self,
        mut entry: Entry,
        admission: Admission,
        wanted: &[usize],
        answers: Vec<Answer<Read>>,
    ) {
        match self.fetch(&mut entry, admission, wanted).await {
            Ok(Ok((attributes, fetched))) => self.store(entry, attributes, fetched, wanted, answers).await,
            Ok(Err(read)) => tell(answers, Ok(read)),
            Err(error) => tell(answers, Err(error)),
        }
    }

    /// The attributes and the contents of an object in the state that it has now, or why there are none.
    async fn fetch(
        &self,
        entry: &mut Entry,
        admission: Admission,
        wanted: &[usize],
    ) -> Result<Result<(Attributes, Fetched), Read>> {
        let mut admission = Some(admission);
        let (mut changes, mut repeats) = (0, 0);
        loop {
            let admitted = match admission.take() {
                Some(admitted) => admitted,
                None => self.admit(entry.size).await,
            };
            let outcome = match admitted {
                Admission::Small(request, memory) => self.small(entry, request, memory).await,
                Admission::Large(turn) => self.in_ranges(entry, turn, wanted).await,
            };
            let error = match outcome {
                Ok(fetched) => return Ok(Ok(fetched)),
                Err(Error::Source(error)) => error,
                Err(error) => return Err(error),
            };
            let kind = match error.kind {
                ErrorKind::NoSuchKey | ErrorKind::PreconditionFailed => {
                    changes += 1;
                    match self.look_again(&entry.key).await? {
                        None => return Ok(Err(Read::Vanished)),
                        Some(now) if changes < MAX_CHANGES => {
                            *entry = now;
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
            return Ok(Err(Read::Unreadable(kind, error.to_string())));
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
    ) -> Result<(Attributes, Fetched)> {
        let Get { attributes, body, checksums, .. } = get(&*self.bucket, entry, None).await?;
        let bytes = bytes(&*self.bucket, entry, body, entry.size).await?;
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
        Ok((attributes, Fetched::Small(bytes, memory)))
    }

    async fn in_ranges(
        &self,
        entry: &Entry,
        turn: OwnedSemaphorePermit,
        wanted: &[usize],
    ) -> Result<(Attributes, Fetched)> {
        let mut files: Vec<Result<FileWriter>> =
            wanted.iter().map(|sink| Ok(self.sinks[*sink].writer.file())).collect();
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
            for (file, sink) in files.iter_mut().zip(wanted) {
                let Ok(open) = file else { continue };
                if let Err(error) = open.push(slice.bytes.clone()).await {
                    *file = Err(error.into());
                    continue;
                }
                self.sinks[*sink].meter.bytes_done.fetch_add(length, Relaxed);
                Counts::add(&self.sinks[*sink].counts.bytes_read, length);
            }
            pushed += length;
            if files.iter().all(Result::is_err) {
                // Nobody wants the rest.
                let failed = files.into_iter().map(|file| file.map(FileWriter::finish)).collect();
                return Ok((Attributes::default(), Fetched::Large(failed, turn)));
            }
        };
        let outcome = outcome.and_then(|()| match verifier.is_none_or(Verifier::finish) {
            true => Ok(()),
            false => Err(self.wrong(entry, "the contents do not have the store's checksum")),
        });
        if let Err(error) = outcome {
            for (file, sink) in files.iter().zip(wanted) {
                if file.is_ok() {
                    self.sinks[*sink].meter.bytes_done.fetch_sub(pushed, Relaxed);
                }
            }
            return Err(error);
        }
        let tickets = files.into_iter().map(|file| file.map(FileWriter::finish)).collect();
        Ok((attributes.unwrap_or_default(), Fetched::Large(tickets, turn)))
    }

    /// Waits until the contents are in the repositories, and answers each when they are in its own.
    async fn store(
        &self,
        entry: Entry,
        mut attributes: Attributes,
        fetched: Fetched,
        wanted: &[usize],
        answers: Vec<Answer<Read>>,
    ) {
        if attributes.missing_meta > 0 {
            let detail = format!("{} entries of its metadata cannot be expressed", attributes.missing_meta);
            wanted.iter().for_each(|sink| self.sinks[*sink].lost(&entry.key, &detail));
        }
        if attributes.class.is_none() {
            attributes.class = entry.class.as_deref().map(Into::into);
        }
        let tags = async {
            match self.tags(&entry.key, &attributes, wanted).await {
                Ok(tags) => Ok(Some(tags)),
                Err(Error::Source(error)) if error.kind == ErrorKind::NoSuchKey => Ok(None),
                Err(error) => Err(Arc::new(error)),
            }
        };
        let tags = tags.shared();
        let (small, large, _turn) = match fetched {
            Fetched::Small(bytes, memory) => (Some((bytes, Arc::new(memory))), Vec::new(), None),
            Fetched::Large(tickets, turn) => (None, tickets, Some(turn)),
        };
        let mut large = large.into_iter();
        let each = wanted.iter().zip(answers).map(|(sink, answer)| {
            let (small, ticket) = (small.clone(), large.next());
            let (tags, entry, attributes) = (tags.clone(), &entry, &attributes);
            async move {
                let stored = async {
                    let blobs = match (small, ticket) {
                        (Some((bytes, memory)), _) => self.sinks[*sink].store(entry, bytes, memory).await?,
                        (None, Some(ticket)) => whole(entry, ticket?.await?)?,
                        (None, None) => return Err(Error::Broken("contents were lost".into())),
                    };
                    // Only now: whoever holds memory must not wait for a request.
                    let Some(tags) = tags.await.map_err(Error::of_all)? else { return Ok(Read::Vanished) };
                    let attributes = Attributes { tags, tag_count: None, ..attributes.clone() };
                    Ok(Read::Stored(Box::new(Stored { entry: entry.clone(), attributes, blobs })))
                };
                drop(answer.send(stored.await));
            }
        });
        let each: Vec<_> = each.collect();
        // The repositories alone have the contents now, and the last of them gives the memory back.
        drop((small, tags));
        join_all(each).await;
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

    fn wrong(&self, entry: &Entry, detail: &str) -> Error {
        wrong(&*self.bucket, entry, detail)
    }

    /// The tags; `None` if they cannot be known.
    async fn tags(&self, key: &Key, attributes: &Attributes, wanted: &[usize]) -> Result<Option<Tags>> {
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
            let readable = self.tags_are_readable(key, wanted, &mut probed).await?;
            return Ok(readable.then(|| probed.unwrap_or_default()));
        }
        match self.read_tags(key).await {
            Ok(tags) => Ok(Some(tags)),
            Err(Error::Source(error)) if refused(&error) => {
                wanted.iter().for_each(|sink| self.sinks[*sink].lost(key, &error.to_string()));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether tags can be read at all: the first object that it depends on is asked for `its` own.
    async fn tags_are_readable(&self, key: &Key, wanted: &[usize], its: &mut Option<Tags>) -> Result<bool> {
        let probe = async {
            match self.read_tags(key).await {
                Ok(tags) => {
                    *its = Some(tags);
                    Ok(None)
                }
                Err(Error::Source(error)) if refused(&error) => Ok(Some(error.to_string())),
                Err(error) => Err(error),
            }
        };
        let refused = self.tags_refused.get_or_try_init(|| probe).await?;
        if let Some(why) = refused {
            wanted.iter().for_each(|sink| self.sinks[*sink].without_tags(key, why));
        }
        Ok(refused.is_none())
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
