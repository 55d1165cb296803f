//! What a read has to do with one of the repositories that it is for: the way in, the counts, and who waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{Entry, Key};
use cistern_repository::{Contents, Id, Writer};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::backup::session::{Collector, Counts, Session};
use crate::{Error, ExceptionKind, Meter, Result};

/// A batch holds at most so many objects and bytes.
const BATCH: (usize, usize) = (512, 4 << 20);
/// A batch that is not full waits so long for more.
const LINGER: Duration = Duration::from_millis(2);

/// One repository that objects are read into.
pub(crate) struct Sink {
    pub(super) writer: Writer,
    pub(super) counts: Arc<Counts>,
    pub(super) meter: Arc<Meter>,
    exceptions: Arc<Collector>,
    /// Whether somebody has said that no tags can be read.
    told_of_tags: AtomicBool,
    batches: mpsc::Sender<Piece>,
    _batcher: AbortOnDropHandle<()>,
}

/// The body of an object on its way to the writer.
struct Piece {
    bytes: Bytes,
    memory: Arc<OwnedSemaphorePermit>,
    answer: oneshot::Sender<Contents>,
}

impl Sink {
    /// Stores through the writer of a session; none in a dry run.
    pub fn of(session: &Session) -> Option<Sink> {
        let writer = session.writer.clone()?;
        let (batches, pieces) = mpsc::channel(BATCH.0);
        let batcher = tokio::spawn(batch(writer.clone(), pieces));
        Some(Sink {
            writer,
            counts: session.counts.clone(),
            meter: session.meter.clone(),
            exceptions: session.exceptions.clone(),
            told_of_tags: AtomicBool::new(false),
            batches,
            _batcher: AbortOnDropHandle::new(batcher),
        })
    }

    /// Stores a whole object. The memory is free again when nobody has anything left to do with it.
    pub(super) async fn store(
        &self,
        entry: &Entry,
        bytes: Bytes,
        memory: Arc<OwnedSemaphorePermit>,
    ) -> Result<Vec<Id>> {
        Counts::add(&self.counts.bytes_read, entry.size);
        if bytes.is_empty() {
            return Ok(Vec::new());
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
        whole(entry, contents)
    }

    /// Says that an attribute of an object is lost.
    pub(super) fn lost(&self, key: &Key, detail: &str) {
        self.exceptions.add(ExceptionKind::AttributeLost, key, detail);
    }

    /// Says once, of the first object that it is about, that no tags can be read.
    pub(super) fn without_tags(&self, key: &Key, why: &str) {
        if !self.told_of_tags.swap(true, Relaxed) {
            self.lost(key, &format!("tags cannot be read of any object: {why}"));
        }
    }
}

/// The writer has taken in as many bytes as the object has.
pub(super) fn whole(entry: &Entry, contents: Contents) -> Result<Vec<Id>> {
    if contents.size == entry.size {
        return Ok(contents.blobs);
    }
    Err(Error::Broken(format!("{} bytes of {} were stored as {}", entry.size, entry.key, contents.size)))
}

/// A running read, as one of those who wait for it has it. When the last of them drops it, it stops.
pub(crate) struct Reading<T> {
    answer: oneshot::Receiver<Result<T>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl<T: Send + 'static> Reading<T> {
    /// Begins something that `count` wait for, and that answers each of them as soon as it can.
    pub(super) fn begin<F: Future<Output = ()> + Send + 'static>(
        count: usize,
        work: impl FnOnce(Vec<Answer<T>>) -> F,
    ) -> Vec<Reading<T>> {
        let (answers, receivers): (Vec<_>, Vec<_>) = (0..count).map(|_| oneshot::channel()).unzip();
        let task = Arc::new(AbortOnDropHandle::new(tokio::spawn(work(answers))));
        receivers.into_iter().map(|answer| Reading { answer, _task: task.clone() }).collect()
    }

    /// What became of it.
    ///
    /// # Errors
    /// Its own.
    pub async fn finished(self) -> Result<T> {
        self.answer.await.unwrap_or_else(|_| Err(Error::Broken("a read ended without an answer".into())))
    }
}

/// Where one of those who wait for a read hears of it. One who has left does not mind.
pub(super) type Answer<T> = oneshot::Sender<Result<T>>;

/// Tells everybody the same.
pub(super) fn tell<T: Clone>(answers: Vec<Answer<T>>, outcome: Result<T>) {
    let outcomes = match outcome {
        Ok(outcome) => vec![outcome; answers.len()].into_iter().map(Ok).collect(),
        Err(error) => error.for_all(answers.len()).into_iter().map(Err).collect::<Vec<_>>(),
    };
    answers.into_iter().zip(outcomes).for_each(|(answer, outcome)| drop(answer.send(outcome)));
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
