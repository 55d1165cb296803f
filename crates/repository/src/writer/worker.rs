//! A CPU worker: a plain thread that cuts, hashes, compresses and seals, and never waits for the network but
//! when all pack buffers are on their way.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::mpsc::UnboundedSender;

use super::Core;
use super::batch::{Batch, BatchJob, Contents, Piece};
use super::import::{BlobJob, Content, Importer};
use super::queue::{Chunk, Job, Next};
use crate::chunker::MIN;
use crate::crypto::MasterKey;
use crate::pack::{ClosedPack, FinishedPack, Opener, PackBuilder, Sealer};
use crate::sha256::{self, Stream};
use crate::{BlobKind, Error, Id, Result};

/// An arena that grew beyond this is given back after the batch.
const ARENA: usize = 4 << 20;

const PANICKED: Error = Error::Broken("a worker of the writer panicked");

/// What belongs to one thread.
pub(super) struct Worker {
    core: Arc<Core>,
    sealer: Sealer,
    opener: Opener,
    arena: Vec<u8>,
    /// Packs with a header, of which the end is hashed together with the next blobs.
    closed: Vec<ClosedPack>,
    finished: UnboundedSender<FinishedPack>,
    pub(super) importer: Importer,
}

/// A blob that was looked at: its name, and whether it is new.
type Stored = (Id, bool);

impl Worker {
    pub(super) fn new(core: Arc<Core>, finished: UnboundedSender<FinishedPack>) -> Result<Self> {
        let inner = core.repo.inner();
        let sealer = inner.sealer()?;
        let opener = inner.opener()?;
        Ok(Worker {
            core,
            sealer,
            opener,
            arena: Vec::new(),
            closed: Vec::new(),
            finished,
            importer: Importer::default(),
        })
    }

    /// Works until the queue has ended; the last worker closes the open packs.
    pub(super) fn run(mut self) {
        let core = self.core.clone();
        let _end = Watch(&core);
        if let Err(error) = self.work() {
            core.fail(error);
        }
    }

    fn work(&mut self) -> Result<()> {
        let core = self.core.clone();
        loop {
            let next = match core.queue.try_next() {
                Next::Idle => {
                    self.flush_closed();
                    core.queue.next()
                }
                next => next,
            };
            match next {
                Next::Job(job) => {
                    self.handle(job);
                    core.queue.rest();
                }
                Next::Idle => {}
                Next::End => break,
            }
        }
        if core.is_failed() {
            return Ok(());
        }
        self.flush_closed();
        if core.workers_left.fetch_sub(1, std::sync::atomic::Ordering::AcqRel) == 1 {
            self.close_open_packs()?;
        }
        Ok(())
    }

    /// Does one job. If that fails, the writer fails before the job is dropped, which tells those who wait for it.
    fn handle(&mut self, mut job: Job) {
        let core = self.core.clone();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| match &mut job {
            Job::Batch(job) => self.batch(job),
            Job::Cut(file) => {
                file.cut(&core);
                Ok(())
            }
            Job::Chunks(chunks) => self.chunks(chunks),
            Job::Blob(BlobJob { kind, id, plain, .. }) => {
                let mut pack = None;
                self.put(*kind, &mut pack, *id, &Content::Plain(plain), plain.len())?;
                pack.into_iter().for_each(|pack| core.packs.put(pack));
                Ok(())
            }
            Job::Import(job) => self.import(job),
        }));
        if let Err(error) = outcome.unwrap_or(Err(PANICKED)) {
            core.fail(error);
        }
    }

    fn batch(&mut self, job: &mut BatchJob) -> Result<()> {
        let (Some(fill), Some(_)) = (job.fill.take(), &job.answer) else { return Ok(()) };
        let mut batch = Batch { arena: std::mem::take(&mut self.arena), pieces: Vec::new() };
        fill(&mut batch);
        let Batch { mut arena, pieces } = batch;

        // Every blob of every file, in order; files of 512 KiB and more may have several.
        let mut blobs: Vec<&[u8]> = Vec::with_capacity(pieces.len());
        let mut counts = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let mut rest: &[u8] = match piece {
                Piece::Arena(range) => &arena[range.clone()],
                Piece::Shared(bytes) => bytes,
                Piece::Failed(_) => &[],
            };
            let before = blobs.len();
            while rest.len() >= MIN {
                let Some(cut) = self.core.chunker.next_cut(rest, true) else { break };
                let (blob, behind) = rest.split_at(cut);
                blobs.push(blob);
                rest = behind;
            }
            if !rest.is_empty() {
                blobs.push(rest);
            }
            counts.push(blobs.len() - before);
        }
        let mut stored = self.store(&blobs)?.into_iter().zip(blobs.iter().map(|blob| blob.len()));
        let contents: Vec<Contents> = counts
            .into_iter()
            .map(|count| {
                let mut contents = Contents::default();
                stored.by_ref().take(count).for_each(|((id, new), length)| contents.push(id, length, new));
                contents
            })
            .collect();
        drop(stored);
        let answer: Vec<io::Result<Contents>> = pieces
            .into_iter()
            .zip(contents)
            .map(|(piece, contents)| match piece {
                Piece::Failed(error) => Err(error),
                Piece::Arena(_) | Piece::Shared(_) => Ok(contents),
            })
            .collect();
        arena.clear();
        if arena.capacity() > ARENA {
            arena.shrink_to(ARENA);
        }
        self.arena = arena;
        if let Some(sender) = job.answer.take() {
            // Nobody may be waiting any more.
            let _ = sender.send(answer);
        }
        Ok(())
    }

    fn chunks(&mut self, chunks: &mut Vec<Chunk>) -> Result<()> {
        let plains: Vec<&[u8]> = chunks.iter().map(|chunk| &chunk.plain[..]).collect();
        let stored = self.store(&plains)?;
        for (Chunk { file, index, plain, permit }, (id, new)) in chunks.drain(..).zip(stored) {
            file.stored(index, id, plain.len(), new);
            drop((plain, permit));
        }
        Ok(())
    }

    /// Hashes blobs of data together with what the packs have waiting, and stores the new ones.
    fn store(&mut self, plains: &[&[u8]]) -> Result<Vec<Stored>> {
        let mut pack = self.core.packs.take_open(BlobKind::Data);
        let ids = self.hash(plains, pack.as_mut());
        let mut stored = Vec::with_capacity(plains.len());
        for (id, plain) in ids.into_iter().zip(plains) {
            let new = self.core.live.claim(BlobKind::Data, &id);
            if new {
                if plain.len() >= MIN
                    && let Some(pack) = pack.take()
                {
                    // Another pack for each large blob: see `Packs`.
                    self.core.packs.put(pack);
                }
                self.put(BlobKind::Data, &mut pack, id, &Content::Plain(plain), plain.len())?;
            }
            stored.push((id, new));
        }
        if let Some(pack) = pack {
            self.core.packs.put(pack);
        }
        Ok(stored)
    }

    pub(super) fn take_open(&self, kind: BlobKind) -> Option<PackBuilder> {
        self.core.packs.take_open(kind)
    }

    pub(super) fn give_back(&self, pack: PackBuilder) {
        self.core.packs.put(pack);
    }

    /// Whether the blob is this worker's to store.
    pub(super) fn claim(&self, kind: BlobKind, id: &Id) -> bool {
        self.core.live.claim(kind, id)
    }

    pub(super) fn master(&self) -> &Arc<MasterKey> {
        &self.core.repo.inner().master
    }

    /// The names of blobs, hashed together with what the packs have waiting.
    pub(super) fn hash(&mut self, plains: &[&[u8]], pack: Option<&mut PackBuilder>) -> Vec<Id> {
        let mut streams: Vec<Stream> = plains.iter().map(|_| Stream::new()).collect();
        let mut jobs = Vec::with_capacity(plains.len() + 1 + self.closed.len());
        jobs.extend(self.closed.iter_mut().map(ClosedPack::hash_job));
        jobs.extend(pack.filter(|pack| pack.unhashed() > 0).map(PackBuilder::hash_job));
        jobs.extend(streams.iter_mut().zip(plains).map(|(stream, plain)| sha256::Job::last(stream, plain)));
        self.core.lanes.run(&mut jobs);
        drop(jobs);
        self.send_closed();
        streams.into_iter().map(|stream| Id::from_bytes(stream.finish())).collect()
    }

    /// Puts one new blob of `length` plain bytes at the end of `pack` or, without one, of any open pack, and proves it.
    /// What is left in `pack` is not full.
    pub(super) fn put(
        &mut self,
        kind: BlobKind,
        pack: &mut Option<PackBuilder>,
        id: Id,
        content: &Content<'_>,
        length: usize,
    ) -> Result<()> {
        let given = pack.is_some();
        let mut target = match pack.take().or_else(|| self.core.packs.try_take(kind)) {
            Some(target) => target,
            None => {
                self.flush_closed();
                self.core.packs.take(kind).ok_or(Error::Cancelled)?
            }
        };
        let blob = match *content {
            Content::Plain(plain) => target.add(&mut self.sealer, id, plain)?,
            Content::Text(text, raw_length) => target.add_text(&mut self.sealer, id, text, raw_length)?,
            Content::Sealed(sealed, raw_length) => target.add_sealed(id, sealed, raw_length)?,
        };
        if self.core.verify {
            let sealed = target.sealed(&blob);
            let proof = match *content {
                Content::Plain(plain) => self.opener.prove(sealed, blob.raw_length, plain),
                Content::Text(text, _) => self.opener.prove_text(sealed, text),
                Content::Sealed(original, _) if sealed == original => Ok(()),
                Content::Sealed(..) => Err(Error::damaged("blob", "what was just copied is not the same")),
            };
            proof.map_err(|error| error.named(id))?;
        }
        self.core.counters.blob(&blob, length);
        if target.is_full(self.core.pack_size) {
            self.close(target)?;
            self.core.packs.closed(kind);
        } else if kind == BlobKind::Data || given {
            *pack = Some(target);
        } else {
            self.core.packs.put(target);
        }
        Ok(())
    }

    /// Hashes the rest of the closed packs and sends them off.
    fn flush_closed(&mut self) {
        if !self.closed.is_empty() {
            let mut jobs: Vec<_> = self.closed.iter_mut().map(ClosedPack::hash_job).collect();
            self.core.lanes.run(&mut jobs);
            self.send_closed();
        }
    }

    /// Sends closed packs, which are hashed completely, to the bucket.
    fn send_closed(&mut self) {
        for closed in self.closed.drain(..) {
            let pack = closed.finish();
            self.core.counters.packs.fetch_add(1, Relaxed);
            // The receiver is gone only after a failure.
            let _ = self.finished.send(pack);
        }
    }

    /// Closes what is left, as few packs as possible: the fullest take in the emptiest.
    fn close_open_packs(&mut self) -> Result<()> {
        for kind in BlobKind::ALL {
            let mut packs: Vec<PackBuilder> = Vec::new();
            for pack in self.core.packs.drain(kind) {
                if pack.is_empty() {
                    continue;
                }
                match packs.iter_mut().find(|other| other.has_room_for(&pack, self.core.pack_size)) {
                    Some(other) => {
                        for blob in pack.blobs() {
                            other.add_sealed(blob.id, pack.sealed(blob), blob.raw_length)?;
                        }
                    }
                    None => packs.push(pack),
                }
            }
            for pack in packs {
                self.close(pack)?;
            }
        }
        self.flush_closed();
        Ok(())
    }

    /// Writes a pack's header and proves it like every blob: the packs' headers are what a lost index is made from.
    fn close(&mut self, pack: PackBuilder) -> Result<()> {
        let closed = pack.close(&mut self.sealer)?;
        if self.core.verify {
            self.opener.prove_header(&closed)?;
        }
        self.closed.push(closed);
        Ok(())
    }
}

/// Fails the writer if the thread panics, so that nobody waits for it.
struct Watch<'a>(&'a Core);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(PANICKED);
        }
    }
}
