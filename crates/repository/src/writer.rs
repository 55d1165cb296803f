//! The one way into a repository: bytes go in, names of blobs come out, and `finish` yields the snapshot.
//!
//! Two worlds meet here. Everything that computes (cut, hash, compress, seal, prove) happens on exactly
//! [`Options::workers`](crate::Options::workers) plain threads; everything that waits for the bucket happens in
//! tasks of tokio. Between them is a queue whose jobs hold shares of one byte budget, and a fixed number of
//! buffers in which packs are filled, closed and uploaded.
//!
//! The order is what makes a crash harmless: packs are durable before the index names them, the index before a
//! snapshot needs it. The first error of any part fails the writer: every permit, ticket and call gives it.

mod batch;
mod budget;
mod cutter;
mod file;
mod import;
mod packs;
mod queue;
mod seal;
mod upload;
mod worker;

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot, watch};

pub use self::batch::{Batch, Contents};
pub use self::budget::Permit;
pub use self::file::FileWriter;
pub(crate) use self::import::{Failed, Import};

use self::batch::BatchJob;
use self::budget::Budget;
use self::import::{BlobJob, ImportJob};
use self::packs::Packs;
use self::queue::{Job, Queue};
use self::worker::Worker;
use crate::chunker::Chunker;
use crate::index::{Index, LiveIndex};
use crate::pack::{FinishedPack, PackedBlob};
use crate::repository::Repository;
use crate::sha256::Lanes;
use crate::{BlobKind, Error, Id, Lock, Result, Snapshot};

/// What a writer has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// New blobs of files.
    pub data_blobs: u64,
    /// Their plain bytes.
    pub data_bytes: u64,
    /// Their bytes as stored.
    pub data_packed: u64,
    /// New directories.
    pub tree_blobs: u64,
    /// Their plain bytes.
    pub tree_bytes: u64,
    /// Their bytes as stored.
    pub tree_packed: u64,
    /// Packs closed.
    pub packs: u64,
    /// Index files written.
    pub index_files: u64,
    /// Bytes of packs, index files and snapshots that the bucket has confirmed.
    pub bytes_uploaded: u64,
}

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The snapshots' ids, in the order given.
    pub ids: Vec<Id>,
    /// What was written.
    pub stats: WriterStats,
}

#[derive(Default)]
pub(crate) struct Counters {
    blobs: [AtomicU64; 2],
    bytes: [AtomicU64; 2],
    packed: [AtomicU64; 2],
    packs: AtomicU64,
    index_files: AtomicU64,
    uploaded: AtomicU64,
}

impl Counters {
    fn blob(&self, blob: &PackedBlob, plain: usize) {
        let kind = blob.kind as usize;
        self.blobs[kind].fetch_add(1, Relaxed);
        self.bytes[kind].fetch_add(plain as u64, Relaxed);
        self.packed[kind].fetch_add(blob.length.into(), Relaxed);
    }

    fn stats(&self) -> WriterStats {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let (data, tree) = (BlobKind::Data as usize, BlobKind::Tree as usize);
        WriterStats {
            data_blobs: of(&self.blobs[data]),
            data_bytes: of(&self.bytes[data]),
            data_packed: of(&self.packed[data]),
            tree_blobs: of(&self.blobs[tree]),
            tree_bytes: of(&self.bytes[tree]),
            tree_packed: of(&self.packed[tree]),
            packs: of(&self.packs),
            index_files: of(&self.index_files),
            bytes_uploaded: of(&self.uploaded),
        }
    }
}

/// What the writer, its workers and its tasks share.
pub(crate) struct Core {
    repo: Repository,
    chunker: Arc<Chunker>,
    lanes: Lanes,
    live: LiveIndex,
    budget: Arc<Budget>,
    queue: Queue,
    packs: Arc<Packs>,
    pack_size: u32,
    verify: bool,
    counters: Counters,
    workers_left: AtomicUsize,
    failure: OnceLock<Arc<Error>>,
    /// True after a failure.
    failed: watch::Sender<bool>,
}

impl Core {
    /// Fails everything that waits or comes later with `error`, unless something has failed before.
    fn fail(&self, error: Error) {
        let error = match error {
            Error::Shared(error) => error,
            error => Arc::new(error),
        };
        if self.failure.set(error).is_ok() {
            self.failed.send_replace(true);
        }
        self.budget.close();
        self.queue.kill();
        self.packs.kill();
    }

    fn is_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    fn failure(&self) -> Option<Error> {
        self.failure.get().map(|error| Error::Shared(error.clone()))
    }

    /// The failure; if there is none, the writer was finished while somebody still used it.
    fn error(&self) -> Error {
        self.failure().unwrap_or(Error::Cancelled)
    }

    fn check(&self) -> Result<()> {
        self.failure().map_or(Ok(()), Err)
    }

    async fn permit(&self, bytes: usize) -> Result<Permit> {
        self.budget.take(bytes).await.ok_or_else(|| self.error())
    }

    fn permit_blocking(&self, bytes: usize) -> Result<Permit> {
        futures::executor::block_on(self.permit(bytes))
    }
}

/// The one way in. Handles are cheap to clone and may be used from many threads and tasks.
///
/// When the last handle is dropped without [`finish`](Self::finish), the run is aborted: what is stored by then
/// are packs that no snapshot needs.
#[derive(Clone)]
pub struct Writer {
    core: Arc<Core>,
    guard: Arc<Guard>,
}

/// Threads and tasks of one writer; ends them when dropped.
struct Guard {
    core: Arc<Core>,
    /// Given back at the end, unless somebody else still holds it.
    lock: Arc<Lock>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    upload: Mutex<Option<tokio::task::JoinHandle<()>>>,
    watch: tokio::task::AbortHandle,
}

impl Writer {
    /// Starts threads and tasks. Called within tokio's runtime. What fails here fails the first use.
    pub(crate) fn start(repo: &Repository, index: Arc<Index>, lock: Arc<Lock>) -> Writer {
        let inner = repo.inner();
        let options = &inner.options;
        let packs =
            Arc::new(Packs::new(options.pack_size, options.workers, options.memory, options.connections));
        let rest = options.memory.saturating_sub(packs.memory(options.pack_size)).max(options.memory / 4);
        let core = Arc::new(Core {
            repo: repo.clone(),
            chunker: inner.chunker.clone(),
            lanes: inner.lanes,
            live: LiveIndex::new(index),
            budget: Budget::new(rest),
            queue: Queue::new(),
            packs,
            pack_size: options.pack_size,
            verify: options.verify_writes,
            counters: Counters::default(),
            workers_left: AtomicUsize::new(options.workers),
            failure: OnceLock::new(),
            failed: watch::Sender::new(false),
        });
        let (sender, receiver) = mpsc::unbounded_channel();
        let watch = tokio::spawn({
            let (core, lost) = (core.clone(), lock.lost());
            async move { core.fail(lost.await) }
        });
        let guard = Guard {
            core: core.clone(),
            lock,
            threads: Mutex::default(),
            upload: Mutex::default(),
            watch: watch.abort_handle(),
        };
        if let Err(error) = guard.start_threads(options.workers, &sender) {
            core.fail(error);
        }
        drop(sender);
        *held(&guard.upload) = Some(tokio::spawn(upload::run(core.clone(), receiver)));
        Writer { core, guard: Arc::new(guard) }
    }

    /// Waits until `bytes` fit into the memory budget, in the order of those who ask; more than the whole budget
    /// counts as the whole. A permit for nothing waits until the budget is not overdrawn.
    ///
    /// # Errors
    /// The first error of the writer: a failed upload, a lost lock, an abort.
    pub async fn permit(&self, bytes: usize) -> Result<Permit> {
        self.core.permit(bytes).await
    }

    /// As [`permit`](Self::permit), for plain threads outside the runtime.
    ///
    /// # Errors
    /// As [`permit`](Self::permit).
    pub fn permit_blocking(&self, bytes: usize) -> Result<Permit> {
        self.core.permit_blocking(bytes)
    }

    /// Hands a batch of small files to a worker, together about 4 MiB or 512 files, for which `permit` was taken.
    /// `fill` runs on the worker and puts the files into its memory; the answer has one result per file.
    pub fn batch(
        &self,
        permit: Permit,
        fill: impl FnOnce(&mut Batch) + Send + 'static,
    ) -> Ticket<Vec<std::io::Result<Contents>>> {
        let (answer, receiver) = oneshot::channel();
        let job = BatchJob { fill: Some(Box::new(fill)), _permit: permit, answer: Some(answer) };
        self.core.queue.push(Job::Batch(job));
        Ticket::new(receiver, self.core.clone())
    }

    /// A large file, pushed in order. Its blobs spread over the workers, so that one file uses all of them.
    pub fn file(&self) -> FileWriter {
        FileWriter::new(self.core.clone())
    }

    /// Stores a directory: the exact bytes of a tree blob. Its id is known at once; the rest happens on a worker.
    /// It takes its share of the budget without waiting: who stores many directories and nothing else asks for a
    /// permit of 0 bytes now and then.
    ///
    /// # Errors
    /// The first error of the writer; [`Error::BadParameter`] for a tree that is too long for readers, ours included.
    pub fn tree(&self, bytes: Vec<u8>) -> Result<Id> {
        self.core.check()?;
        if bytes.len() > BlobKind::Tree.max_length() as usize {
            let detail = format!("its tree has {} bytes, which no reader would take", bytes.len()).into();
            return Err(Error::BadParameter { what: "directory", detail });
        }
        let id = Id::of(&bytes);
        self.blob(BlobKind::Tree, id, bytes)?;
        Ok(id)
    }

    /// Stores a blob whose name was made from its bytes, as [`tree`](Self::tree) does.
    pub(crate) fn blob(&self, kind: BlobKind, id: Id, plain: Vec<u8>) -> Result<()> {
        if self.core.live.claim(kind, &id) {
            let permit = self.core.budget.force(plain.len());
            if !self.core.queue.push(Job::Blob(BlobJob { kind, id, plain, _permit: permit })) {
                // It is claimed, and will not be stored: nobody may name it.
                return Err(self.core.error());
            }
        }
        Ok(())
    }

    /// Takes over blobs that are stored elsewhere, for which `permit` was taken; the answer names those that are not
    /// whole.
    pub(crate) fn import(&self, permit: Permit, import: Import) -> Ticket<Vec<Failed>> {
        let (answer, receiver) = oneshot::channel();
        let job = ImportJob { import, _permit: permit, answer: Some(answer) };
        self.core.queue.push(Job::Import(job));
        Ticket::new(receiver, self.core.clone())
    }

    /// Whether a blob is in the repository or on its way there.
    pub fn contains(&self, kind: BlobKind, id: &Id) -> bool {
        self.core.live.contains(kind, id)
    }

    /// What has been done so far.
    pub fn stats(&self) -> WriterStats {
        self.core.counters.stats()
    }

    /// Makes everything durable, packs before index before snapshots, and releases the lock. Tickets that are not
    /// answered by then are answered before; a [`FileWriter`] that is not finished is discarded.
    ///
    /// If the lock file was gone at some time (somebody has removed it as stale), others may have removed data: then
    /// all that the snapshots need is looked for first.
    ///
    /// # Errors
    /// The first error of the writer. No snapshot is written then.
    pub async fn finish(self, snapshots: Vec<Snapshot>) -> Result<Finished> {
        self.finish_with(|_| snapshots).await
    }

    /// As [`finish`](Self::finish), with snapshots that tell what was stored: `make` is called when packs and
    /// index are durable.
    ///
    /// # Errors
    /// As [`finish`](Self::finish).
    pub async fn finish_with(
        self,
        make: impl FnOnce(&WriterStats) -> Vec<Snapshot> + Send,
    ) -> Result<Finished> {
        let outcome = self.flush_and_seal(make).await;
        if let Err(error) = &outcome {
            // Nobody else may go on with this writer.
            self.core.fail(Error::Broken("the writer was finished"));
            tracing::debug!(%error, "a run ends without its snapshots");
        }
        self.end().await;
        outcome
    }

    async fn flush_and_seal(
        &self,
        make: impl FnOnce(&WriterStats) -> Vec<Snapshot> + Send,
    ) -> Result<Finished> {
        self.core.queue.close();
        let upload = held(&self.guard.upload).take();
        let upload = upload.ok_or(Error::Broken("a writer was finished twice"))?;
        upload.await.map_err(|_| Error::Broken("the uploading task panicked"))?;
        self.core.check()?;
        let ids = seal::snapshots(&self.core, &self.guard.lock, make(&self.stats())).await?;
        Ok(Finished { ids, stats: self.stats() })
    }

    /// Stops, releases the lock, and leaves nothing but packs that no snapshot needs.
    pub async fn abort(self) {
        self.core.fail(Error::Cancelled);
        self.end().await;
    }

    /// Waits for tasks and threads, and releases the lock.
    async fn end(self) {
        let (upload, threads) =
            (held(&self.guard.upload).take(), std::mem::take(&mut *held(&self.guard.threads)));
        // A panic of task or thread has failed the writer already.
        if let Some(upload) = upload {
            let _ = upload.await;
        }
        let _ = tokio::task::spawn_blocking(|| join(threads)).await;
        self.guard.watch.abort();
        if Arc::strong_count(&self.guard.lock) == 1 {
            self.guard.lock.release().await;
        }
    }
}

impl Guard {
    fn start_threads(&self, workers: usize, finished: &mpsc::UnboundedSender<FinishedPack>) -> Result<()> {
        self.core.repo.config().check_writable()?;
        for number in 0..workers {
            let worker = Worker::new(self.core.clone(), finished.clone())?;
            let thread = std::thread::Builder::new().name(format!("cistern-cpu-{number}"));
            let thread =
                thread.spawn(|| worker.run()).map_err(|_| Error::Broken("a thread could not be started"))?;
            held(&self.threads).push(thread);
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.watch.abort();
        let threads = std::mem::take(&mut *held(&self.threads));
        if !threads.is_empty() {
            self.core.fail(Error::Cancelled);
        }
        if let Some(upload) = held(&self.upload).take() {
            upload.abort();
        }
        join(threads);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // A panic has failed the writer already.
        drop(thread.join());
    }
}

/// What the mutex holds; no code panics while it changes it halfway.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// A result that a worker will give: a future, and [`wait`](Self::wait) for plain threads. It gives the writer's
/// first error if the writer has failed.
#[must_use = "the answer says what became of the bytes"]
pub struct Ticket<T> {
    answer: oneshot::Receiver<T>,
    core: Arc<Core>,
}

impl<T> Ticket<T> {
    fn new(answer: oneshot::Receiver<T>, core: Arc<Core>) -> Self {
        Ticket { answer, core }
    }

    /// Waits on a plain thread, outside the runtime.
    ///
    /// # Errors
    /// The first error of the writer.
    pub fn wait(self) -> Result<T> {
        futures::executor::block_on(self)
    }
}

impl<T> Future for Ticket<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| answer.map_err(|_| self.core.error()))
    }
}

impl<T> std::fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}
