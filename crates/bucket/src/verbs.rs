//! The verbs that every store speaks, and their parameters and answers.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt};

use crate::{Attributes, Entry, Error, ErrorKind, Key, Ledger, Result, Retention, Revision, Tags, Verb};

/// What a store can do; asked for, never inferred from its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// A listing can begin behind any key, so that a bucket can be read as several ranges at once.
    pub list_after: bool,
    /// Objects carry headers and user metadata.
    pub attributes: bool,
    /// Objects carry tags.
    pub tags: bool,
    /// Objects can be locked for a time; on S3 a bucket has to be created for it, which only its first answer tells.
    pub retention: bool,
    /// Large objects can be written as parts, concurrently.
    pub multipart: bool,
    /// A put can be made to fail if the key exists.
    pub create_only: bool,
    /// The store copies objects by itself.
    pub copy: bool,
    /// Objects larger than this many bytes cannot be put in one piece.
    pub max_put: u64,
}

/// Which part of a listing is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Only keys that begin with these bytes.
    pub prefix: Key,
    /// Only keys behind this one (exclusive).
    pub after: Option<Key>,
    /// Goes on where the page that carried this token ended; overrides `after`.
    pub token: Option<String>,
    /// At most this many entries; the store may return fewer.
    pub limit: Option<u32>,
}

/// One page of a listing, in ascending order of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Where the next page begins; `None` proves that the listing reached its end.
    pub next: Option<String>,
}

/// What part of which state of an object is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Half-open range of bytes; `None` is everything.
    pub range: Option<Range<u64>>,
    /// Only if the object is still in this state, else [`ErrorKind::PreconditionFailed`].
    pub revision: Option<Revision>,
}

/// Checksums of a whole object by algorithm (`crc64nvme`, `crc32c`, `crc32`, `sha256`, `sha1`, `md5`), as raw bytes;
/// [`Verifier::new`](crate::Verifier::new) takes the cheapest. An empty map means that the store offers nothing to
/// compare contents with.
pub type Checksums = BTreeMap<&'static str, Bytes>;

/// The answer to a get: the object's description and its contents as a stream.
#[derive(Debug)]
pub struct Get {
    /// The object as the answer describes it; `size` is that of the whole object.
    pub entry: Entry,
    /// The attributes that came with the answer.
    pub attributes: Attributes,
    /// Contents, or the range asked for.
    pub body: Body,
    /// Checksums of the *whole* object that came with the answer, also where a range was asked for: whoever reads
    /// an object in ranges feeds one [`Verifier`](crate::Verifier) with all of them in order. The answer to a range
    /// carries fewer than [`Bucket::checksums`] gives.
    pub checksums: Checksums,
}

/// A stream of bytes of known length.
pub struct Body {
    length: u64,
    source: Source,
}

enum Source {
    Pieces(BoxStream<'static, Result<Bytes>>),
    /// Everything at once, or these pieces for whoever does not want that.
    Whole(Whole, Option<BoxStream<'static, Result<Bytes>>>),
}

/// Reads everything into memory that it is given: it takes the place of what that holds.
type Whole = Box<dyn FnOnce(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>>> + Send>;

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("length", &self.length).finish_non_exhaustive()
    }
}

const TOO_LONG: &str = "the body is longer than announced";
const TOO_SHORT: &str = "the body ended early";

fn wrong(what: &'static str) -> Error {
    Error::new(ErrorKind::BadAnswer, Verb::Get, "").detail(what)
}

impl Body {
    /// A body of `length` bytes; a stream that ends early or late yields an error at its end.
    pub fn new(length: u64, stream: BoxStream<'static, Result<Bytes>>) -> Self {
        Body { length, source: Source::Pieces(stream) }
    }

    /// A body that `read` reads at once, when it is wanted, into memory that it is given.
    pub fn whole(
        length: u64,
        read: impl FnOnce(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>>> + Send + 'static,
    ) -> Self {
        Body { length, source: Source::Whole(Box::new(read), None) }
    }

    /// A body that `read` reads at once for whoever has the memory, and that comes in `pieces` otherwise.
    pub fn whole_or_pieces(
        length: u64,
        read: impl FnOnce(Vec<u8>) -> BoxFuture<'static, Result<Vec<u8>>> + Send + 'static,
        pieces: BoxStream<'static, Result<Bytes>>,
    ) -> Self {
        Body { length, source: Source::Whole(Box::new(read), Some(pieces)) }
    }

    /// A body that is in memory already.
    pub fn from_bytes(bytes: Bytes) -> Self {
        Body::new(bytes.len() as u64, futures::stream::iter([Ok(bytes)]).boxed())
    }

    /// The number of bytes that a complete stream yields.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The next piece; `None` at the end, which comes only after exactly [`length`](Self::length) bytes.
    ///
    /// # Errors
    /// What the backend met; [`ErrorKind::BadAnswer`] when the stream is longer or shorter than promised.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        if let Source::Whole(..) = self.source {
            let nothing = Source::Pieces(futures::stream::empty().boxed());
            if let Source::Whole(read, pieces) = std::mem::replace(&mut self.source, nothing) {
                let at_once = || futures::stream::once(read(Vec::new()).map_ok(Bytes::from)).boxed();
                self.source = Source::Pieces(pieces.unwrap_or_else(at_once));
            }
        }
        let Source::Pieces(stream) = &mut self.source else { return None };
        match stream.next().await {
            Some(Ok(bytes)) if bytes.len() as u64 > self.length => {
                *self = Body::new(0, futures::stream::empty().boxed());
                Some(Err(wrong(TOO_LONG)))
            }
            Some(Ok(bytes)) => {
                self.length -= bytes.len() as u64;
                Some(Ok(bytes))
            }
            Some(Err(error)) => {
                *self = Body::new(0, futures::stream::empty().boxed());
                Some(Err(error))
            }
            None if self.length > 0 => {
                self.length = 0;
                Some(Err(wrong(TOO_SHORT)))
            }
            None => None,
        }
    }

    /// Everything, in `memory`, which is used again for it. The caller bounds the length before.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn read_into(mut self, mut memory: Vec<u8>) -> Result<Vec<u8>> {
        match self.source {
            Source::Whole(read, _) => {
                let bytes = read(memory).await?;
                match (bytes.len() as u64).cmp(&self.length) {
                    Ordering::Less => Err(wrong(TOO_SHORT)),
                    Ordering::Equal => Ok(bytes),
                    Ordering::Greater => Err(wrong(TOO_LONG)),
                }
            }
            Source::Pieces(_) => {
                memory.clear();
                memory.reserve_exact(self.length as usize);
                while let Some(piece) = self.next().await {
                    memory.extend_from_slice(&piece?);
                }
                Ok(memory)
            }
        }
    }

    /// Everything, in one piece. The caller bounds the length before.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn bytes(mut self) -> Result<Bytes> {
        let mut first = match self.next().await {
            None => return Ok(Bytes::new()),
            Some(first) => first?,
        };
        if self.length == 0 {
            while let Some(more) = self.next().await {
                more?;
            }
            return Ok(std::mem::take(&mut first));
        }
        let mut all = BytesMut::with_capacity(first.len() + self.length as usize);
        all.extend_from_slice(&first);
        while let Some(more) = self.next().await {
            all.extend_from_slice(&more?);
        }
        Ok(all.freeze())
    }
}

/// How an object is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Headers, metadata and tags to store with it; a store without attributes ignores them (see
    /// [`Capabilities::attributes`]).
    pub attributes: Attributes,
    /// Fails with [`ErrorKind::AlreadyExists`] if the key exists, on stores that can
    /// ([`Capabilities::create_only`]); ignored elsewhere.
    pub create_only: bool,
    /// The SHA-256 of the contents, if it is known already.
    pub sha256: Option<[u8; 32]>,
}

/// The confirmation of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// The new state of the object.
    pub revision: Revision,
}

/// A multipart upload that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The object that will appear when it is completed.
    pub key: Key,
    /// The store's name for the upload.
    pub id: String,
}

/// One uploaded part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartId {
    /// Number of the part, from 1.
    pub number: u32,
    /// The store's confirmation.
    pub etag: String,
}

/// What became of one key of a batch deletion.
#[derive(Debug)]
pub struct DeleteOutcome {
    /// The key.
    pub key: Key,
    /// A key that did not exist counts as deleted.
    pub result: Result<()>,
}

/// A store of objects. Every backend, real or fake, passes `tests/conformance.rs`.
///
/// Backends retry by themselves what may succeed later; an error that comes out is final for this run.
/// All methods may be called concurrently, and a dropped future leaves no object half-written.
#[async_trait]
pub trait Bucket: Send + Sync + fmt::Debug + 'static {
    /// The bucket as a person names it (`s3://orders`, `/srv/backup`), without credentials.
    fn name(&self) -> &str;

    /// What this store can do.
    fn capabilities(&self) -> Capabilities;

    /// The requests made through this handle.
    fn ledger(&self) -> &Ledger;

    /// Makes sure that the bucket exists and can be listed.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchBucket`], [`ErrorKind::Denied`], or why it cannot be reached.
    async fn probe(&self) -> Result<()>;

    /// Creates the bucket (or directory) if it does not exist.
    ///
    /// # Errors
    /// As the store says.
    async fn create(&self) -> Result<()>;

    /// One page of the listing.
    ///
    /// # Errors
    /// Any error means that the range was not listed; there are no partial pages.
    async fn list(&self, request: &ListRequest) -> Result<Page>;

    /// The description and attributes of one object (tags are not read: see [`tags`](Self::tags)).
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchKey`] and the like.
    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)>;

    /// Contents of one object. A body that breaks off is resumed by the backend where it can be.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchKey`], [`ErrorKind::PreconditionFailed`], [`ErrorKind::Archived`], …
    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get>;

    /// The checksums of a whole object in the state `revision`, for readers of ranges.
    ///
    /// It costs a request (a HEAD on S3), which is worthwhile where the answers to the ranges carry none (objects
    /// that were put in parts), or only MD5, which takes a hundred times as long as a CRC. Not every object has one:
    /// then the map is empty, and the contents cannot be compared with anything. That is also what a bucket answers
    /// which does not implement this; one that wraps another passes the question on.
    ///
    /// ```
    /// # use cistern_bucket::{Bucket, Error, GetOptions, Key, Result, Verifier};
    /// # async fn read(bucket: &dyn Bucket, key: &Key) -> Result<bool> {
    /// let (entry, _) = bucket.head(key).await?;
    /// let mut verifier = Verifier::new(&bucket.checksums(key, &entry.revision).await?);
    /// for start in (0..entry.size).step_by(8 << 20) {
    ///     let range = start..entry.size.min(start + (8 << 20));
    ///     let options = GetOptions { range: Some(range), revision: Some(entry.revision.clone()) };
    ///     let mut body = bucket.get(key, &options).await?.body;
    ///     while let Some(bytes) = body.next().await {
    ///         if let Some(verifier) = &mut verifier {
    ///             verifier.update(&bytes?);
    ///         }
    ///     }
    /// }
    /// Ok(verifier.is_none_or(Verifier::finish))
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`head`](Self::head); [`ErrorKind::PreconditionFailed`] if the object is in another state.
    async fn checksums(&self, key: &Key, revision: &Revision) -> Result<Checksums> {
        let _ = (key, revision);
        Ok(Checksums::new())
    }

    /// Writes a whole object from pieces that lie in memory; it appears complete or not at all.
    ///
    /// # Errors
    /// As the store says; the object is then as it was before.
    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put>;

    /// Begins a multipart upload.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] without [`Capabilities::multipart`].
    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> Result<Upload>;

    /// Uploads one part (5 MiB to 5 GiB on S3, but for the last).
    ///
    /// # Errors
    /// As [`put`](Self::put).
    async fn upload_part(&self, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId>;

    /// Makes the object appear from its parts, which are in ascending order.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    async fn complete_upload(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put>;

    /// Throws the parts away.
    ///
    /// # Errors
    /// As the store says; an upload that is gone is no error.
    async fn abort_upload(&self, upload: &Upload) -> Result<()>;

    /// Copies an object within the bucket, with its attributes and tags.
    ///
    /// # Errors
    /// As [`put`](Self::put); [`ErrorKind::Unsupported`] without [`Capabilities::copy`].
    async fn copy(&self, from: &Key, to: &Key) -> Result<Put>;

    /// Deletes one object; a missing one is no error.
    ///
    /// # Errors
    /// As the store says.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Deletes many objects, in as few requests as the store allows. One outcome per key, same order.
    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome>;

    /// The tags of one object.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] without the permission; [`ErrorKind::Unsupported`] without
    /// [`Capabilities::tags`].
    async fn tags(&self, key: &Key) -> Result<Tags>;

    /// How long the current version of an object is locked; none if it never was. The time may be over.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchKey`]; [`ErrorKind::Denied`] without the permission; [`ErrorKind::Unsupported`] on a bucket
    /// without locks, and without [`Capabilities::retention`].
    async fn retention(&self, key: &Key) -> Result<Option<Retention>> {
        Err(no_retention(self.name(), key))
    }

    /// Locks the current version of an object for a time. What is locked can be locked for longer, not for less: the
    /// right to override a lock is never used.
    ///
    /// # Errors
    /// As [`retention`](Self::retention); how a store refuses to shorten a time is its own affair.
    async fn set_retention(&self, key: &Key, retention: &Retention) -> Result<()> {
        let _ = retention;
        Err(no_retention(self.name(), key))
    }
}

/// The answer of a store that locks nothing.
fn no_retention(bucket: &str, key: &Key) -> Error {
    Error::new(ErrorKind::Unsupported, Verb::Retention, bucket).key(key)
}
