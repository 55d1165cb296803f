//! The one way out of a repository: blobs by name, every one authenticated, decompressed within the length that
//! the index gives, and compared with its name.
//!
//! Single blobs and directories are asked for one by one; a restore hands over everything that it wants next and
//! gets it in the order in which the packs hold it, with neighbours fetched together.

mod decoders;
mod deliver;
mod plan;
mod transfer;
mod trees;
mod walk;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cistern_bucket::{ErrorKind, GetOptions};
use tokio::sync::oneshot;

pub(crate) use self::decoders::{Decoders, Scratch};
pub use self::deliver::Sink;
pub(crate) use self::plan::spans_of;
pub(crate) use self::transfer::{SPAN, Transferred};
pub(crate) use self::walk::TreeWalk;

use self::trees::Trees;
use crate::file::FileKind;
use crate::index::{Index, Location, PackNo};
use crate::pack::{Opener, PackedBlob};
use crate::repository::Repository;
use crate::store::Inner;
use crate::{BlobKind, Error, Id, Result, Tree};

/// Reads what one index names. Handles are cheap to clone and share what they keep in memory.
#[derive(Clone)]
pub struct Reader {
    inner: Arc<Inner>,
    index: Arc<Index>,
    trees: Arc<Trees>,
    /// Packs that do not exist: nobody asks for them a second time.
    missing: Arc<Mutex<HashSet<PackNo>>>,
}

impl Reader {
    pub(crate) fn new(repo: &Repository, index: Arc<Index>) -> Self {
        Reader { inner: repo.inner().clone(), index, trees: Arc::default(), missing: Arc::default() }
    }

    /// The index whose blobs it reads.
    pub fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Plain length of a blob; none if it is not in the index.
    pub fn raw_length(&self, kind: BlobKind, id: &Id) -> Option<u32> {
        self.index.lookup(kind, id).map(|place| place.blob(kind, *id).plain_length())
    }

    /// Where a blob lies: for planning and for counting requests.
    pub fn locate(&self, kind: BlobKind, id: &Id) -> Option<Location> {
        self.index.lookup(kind, id)
    }

    /// One blob.
    ///
    /// # Errors
    /// [`Error::NoSuchBlob`]; [`Error::Damaged`] if no place has it whole; what the bucket says.
    pub async fn blob(&self, kind: BlobKind, id: &Id) -> Result<Bytes> {
        if kind == BlobKind::Tree {
            return self.trees.blob(self, id).await.map(Bytes::from);
        }
        self.blob_from_anywhere(kind, id).await.map(Bytes::from)
    }

    /// A directory. Some that were read last are kept in memory; packs of directories go through the cache.
    ///
    /// # Errors
    /// As [`blob`](Self::blob).
    pub async fn tree(&self, id: &Id) -> Result<Arc<Tree>> {
        self.trees.tree(self, id).await
    }

    /// A blob by a request of its own, from the first place that has it whole. Each is asked twice before it is
    /// believed to be damaged: a transfer can be, too.
    async fn blob_from_anywhere(&self, kind: BlobKind, id: &Id) -> Result<Vec<u8>> {
        let mut first = None;
        for place in self.index.lookup_all(kind, id) {
            for _ in 0..2 {
                match self.blob_at(place.pack, place.blob(kind, *id)).await {
                    // Whoever planned with another length would put what follows into the wrong place.
                    Ok(plain) if self.raw_length(kind, id) == u32::try_from(plain.len()).ok() => {
                        return Ok(plain);
                    }
                    Ok(_) => {
                        let detail = "the index gives it two lengths";
                        first.get_or_insert(Error::damaged("blob", detail).named(*id));
                    }
                    Err(error) if is_local(&error) => drop(first.get_or_insert(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        Err(first.unwrap_or(Error::NoSuchBlob { kind, id: *id }))
    }

    async fn blob_at(&self, pack: PackNo, blob: PackedBlob) -> Result<Vec<u8>> {
        check_length(&blob)?;
        let sealed = self.fetch(pack, blob.offset.into(), blob.end(), Vec::new()).await?;
        self.open(blob, sealed).await
    }

    /// Opens one blob on a decoding thread.
    async fn open(&self, blob: PackedBlob, mut sealed: Vec<u8>) -> Result<Vec<u8>> {
        self.decode(move |inner, scratch| {
            let Scratch { opener, plain: out } = scratch;
            opener_of(inner, opener)?.open(&blob, &mut sealed, out).map(<[u8]>::to_vec)
        })
        .await
    }

    /// Runs `work` on a decoding thread.
    pub(crate) async fn decode<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner, &mut Scratch) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let inner = self.inner.clone();
        let submitted = self.inner.decoders.submit(Box::new(move |scratch| {
            let outcome = work(&inner, scratch);
            // Before the answer: the last handle of the repository should not be this one.
            drop(inner);
            // Nobody may be waiting any more.
            let _ = sender.send(outcome);
        }));
        if !submitted {
            return Err(Error::Broken("no thread could be started"));
        }
        receiver.await.map_err(|_| Error::Broken("a decoding thread panicked"))?
    }

    /// A range of a pack, of exactly its length, in `memory`.
    async fn fetch(&self, pack: PackNo, start: u64, end: u64, memory: Vec<u8>) -> Result<Vec<u8>> {
        if self.missing().contains(&pack) {
            return Err(self.is_missing(pack));
        }
        match fetch_range(&self.inner, &self.index.pack(pack), start, end, memory).await {
            Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchKey => Err(self.is_missing(pack)),
            outcome => outcome,
        }
    }

    fn missing(&self) -> MutexGuard<'_, HashSet<PackNo>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that a pack does not exist, and says so.
    fn is_missing(&self, pack: PackNo) -> Error {
        self.missing().insert(pack);
        Error::damaged("pack", "it does not exist").named(self.index.pack(pack))
    }
}

/// The thread's opener, made at its first use.
pub(crate) fn opener_of<'a>(inner: &Inner, opener: &'a mut Option<Opener>) -> Result<&'a mut Opener> {
    // All work of one pool is for one repository, so that the key is always the same.
    match opener {
        Some(opener) => Ok(opener),
        None => Ok(opener.insert(inner.opener()?)),
    }
}

/// Refuses a blob that is longer than any that a peer writes, before it is fetched.
fn check_length(blob: &PackedBlob) -> Result<()> {
    let bound = blob.kind.max_length();
    let longest = blob.plain_length().max(blob.length.saturating_sub(1 << 20));
    if longest > bound {
        let detail = format!("{} has {longest} bytes, at most {bound} are taken", blob.id).into();
        return Err(Error::BadParameter { what: "blob", detail });
    }
    Ok(())
}

/// Whether an error is about one blob or pack, so that others may be whole.
pub(crate) fn is_local(error: &Error) -> bool {
    match error {
        Error::Bucket(error) => {
            matches!(
                error.kind,
                ErrorKind::NoSuchKey | ErrorKind::BadAnswer | ErrorKind::Invalid | ErrorKind::Archived
            )
        }
        Error::Damaged { .. } | Error::BadParameter { .. } | Error::NoSuchBlob { .. } => true,
        _ => false,
    }
}

/// Reads the range `start..end` of a pack into `memory`.
pub(crate) async fn fetch_range(
    inner: &Inner,
    pack: &Id,
    start: u64,
    end: u64,
    memory: Vec<u8>,
) -> Result<Vec<u8>> {
    let options = GetOptions { range: Some(start..end), ..GetOptions::default() };
    let body = inner.bucket.get(&FileKind::Pack.key(pack), &options).await?.body;
    if body.length() != end - start {
        let detail = format!("it ends before byte {end}, where the index sees a blob");
        return Err(Error::damaged("pack", detail).named(*pack));
    }
    Ok(body.read_into(memory).await?)
}

/// Memory that fetched ranges have left, by length: taking new pages for each costs as much as hashing a third of it.
#[derive(Default)]
pub(crate) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// Memory for `length` bytes: what held at least as many needs not be filled with zeros first.
    pub(crate) fn take(&self, length: u64) -> Vec<u8> {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = buffers.partition_point(|buffer| (buffer.len() as u64) < length);
        match buffers.len().checked_sub(1) {
            None => Vec::new(),
            Some(last) => buffers.remove(fitting.min(last)),
        }
    }

    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut buffers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = buffers.partition_point(|other| other.len() < buffer.len());
        buffers.insert(at, buffer);
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("packs", &self.index.packs().len()).finish_non_exhaustive()
    }
}
