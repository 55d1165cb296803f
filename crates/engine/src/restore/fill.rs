//! The second walk of a restore to a bucket: puts objects together within bounded memory and has them written.

use std::sync::Arc;

use cistern_bucket::{Attributes, Capabilities, PutOptions, Tags};
use cistern_repository::{BlobKind, Id, NodeKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Job;
use super::bucket::{To, described, headers, next};
use super::conflict::{Decision, Decisions};
use super::object::{Held, Parts, Pieces, Store, Wanted, Whole};
use super::walk::{Found, Order, Step};
use super::window::{Limits, Receive, Window, lengths};
use crate::fidelity::{self, Description};
use crate::{Error, ExceptionKind, Result};

/// Larger objects are written in parts, where the store can.
const LARGEST_WHOLE: u64 = 16 << 20;
/// Length of a part, unless there would be too many.
const PART: u64 = 16 << 20;
/// Larger objects are taken by no store (S3: 5 TiB). Three parts of such a one are in memory: at most 1.6 GiB.
const LARGEST: u64 = 5 << 40;
/// Most parts of an object.
const MOST_PARTS: u64 = 10_000;
/// Bytes of objects and parts in memory.
const MEMORY: u64 = 64 << 20;
/// The unit in which memory is counted.
const UNIT: u64 = 1 << 10;
/// Windows that are delivered at once.
const WINDOWS: usize = 2;
/// Windows of this kind: what they hold is held again by the objects.
const LIMITS: Limits = Limits { bytes: 16 << 20, blobs: 4_096, open: usize::MAX };

/// The second walk: puts objects together and has them written.
pub(crate) async fn place(job: &Arc<Job>, to: &To, store: &Arc<Store>, decisions: &Decisions) -> Result<()> {
    let (alive, mut ended) = mpsc::channel(1);
    let mut place = Place {
        job,
        to,
        store,
        memory: Arc::new(Semaphore::new((MEMORY / UNIT) as usize)),
        memory_size: MEMORY,
        window: Window::default(),
        windows: JoinSet::new(),
        alive,
    };
    let mut result = place.all(decisions).await;
    if result.is_ok() {
        result = place.rest().await;
    }
    place.windows.abort_all();
    drop(place);
    // No thread and no task holds an object any more.
    ended.recv().await;
    store.abort_uploads().await;
    match store.take_failure() {
        Some(error) => Err(error),
        None => result.and_then(|()| job.check()),
    }
}

struct Place<'a> {
    job: &'a Arc<Job>,
    to: &'a To,
    store: &'a Arc<Store>,
    memory: Arc<Semaphore>,
    memory_size: u64,
    window: Window,
    windows: JoinSet<Result<()>>,
    alive: mpsc::Sender<()>,
}

impl Place<'_> {
    async fn all(&mut self, decisions: &Decisions) -> Result<()> {
        let job = self.job;
        let mut at = 0;
        for root in &job.roots {
            let mut walk = job.walk(root, Order::Key);
            while let Some(step) = next(job, &mut walk).await? {
                let decision = decisions.get(at);
                match step {
                    Step::Enter { .. } if decision == Decision::Write => at += 1,
                    Step::Lost(_) if decision == Decision::Leave => at += 1,
                    Step::Enter { .. } | Step::Lost(_) => {
                        let why = "a directory could be read in one walk and not in the other";
                        return Err(Error::Repository(cistern_repository::Error::damaged("tree", why)));
                    }
                    Step::Node(found) if found.node().kind == NodeKind::File => {
                        at += 1;
                        match decision {
                            Decision::Leave => (),
                            Decision::Same => job.meter.done(found.node().size),
                            Decision::Write => self.object(found, walk.path(), true).await?,
                            Decision::Replace => self.object(found, walk.path(), false).await?,
                        }
                    }
                    _ => (),
                }
            }
        }
        Ok(())
    }

    /// Waits until all contents are delivered.
    async fn rest(&mut self) -> Result<()> {
        self.submit().await?;
        while !self.windows.is_empty() {
            self.delivered().await?;
        }
        Ok(())
    }

    /// An object that is `new` was not there when the target was listed: what appeared since is not replaced.
    async fn object(&mut self, found: Found, path: &[u8], new: bool) -> Result<()> {
        let node = found.node();
        let (key, description) = self.to.key(node, path);
        let Ok(size) = lengths(&self.job.reader, node) else { return Ok(()) };
        let (description, recorded) = match description {
            Ok(description) => {
                let recorded = description.revision.as_ref().and_then(|r| r.etag()).map(Into::into);
                let whole = described(self.job, &found, description.clone()).await;
                let whole = whole.unwrap_or_else(|why| {
                    self.job.collector.add(ExceptionKind::AttributeLost, &key, why);
                    description
                });
                (whole, recorded)
            }
            Err(_) => (Description::default(), None),
        };
        let can = self.to.bucket.capabilities();
        let largest = if can.multipart { LARGEST } else { MEMORY };
        if size > largest {
            let why = format!("it has {size} bytes, the target takes at most {largest}");
            self.job.collector.add(ExceptionKind::Unwritable, &key, why);
            return Ok(());
        }
        let (attributes, mut lost) = acceptable(description.attributes, &can);
        if node.xattrs.iter().any(|xattr| &*xattr.name != fidelity::ATTRIBUTE) {
            lost = lost.or(Some("a bucket holds no extended attributes"));
        }
        if let Some(what) = lost {
            self.job.collector.add(ExceptionKind::AttributeLost, &key, what);
        }
        let ids = node.content.as_deref().unwrap_or_default();
        let sha256 = match ids {
            [one] => Some(*one.as_bytes()),
            _ => None,
        };
        let options = PutOptions { attributes, create_only: new && can.create_only, sha256 };
        let wanted = Wanted { key, options, recorded, size };
        if size == 0 {
            // Not too many at once: each is a task.
            let memory = self.reserve(UNIT).await?;
            Whole::empty(self.store.clone(), wanted, Held::new(memory, self.alive.clone()));
            return Ok(());
        }
        if size <= LARGEST_WHOLE || !can.multipart {
            return self.whole(wanted, ids).await;
        }
        self.parts(wanted, ids).await
    }

    async fn whole(&mut self, wanted: Wanted, ids: &[Id]) -> Result<()> {
        let memory = self.reserve(wanted.size.max(UNIT)).await?;
        let held = Held::new(memory, self.alive.clone());
        let object = Whole::new(self.store.clone(), wanted, ids.len() as u32, held);
        self.window.file(Arc::new(object), false);
        let mut offset = 0;
        for (number, id) in (0..).zip(ids) {
            let length = self.job.reader.raw_length(BlobKind::Data, id).unwrap_or_default();
            // A window may become a little larger: the object's memory is there already.
            self.window.blob(number, offset, *id, length);
            offset += u64::from(length);
        }
        if self.window.is_full(&LIMITS) { self.submit().await } else { Ok(()) }
    }

    async fn parts(&mut self, wanted: Wanted, ids: &[Id]) -> Result<()> {
        let least = wanted.size.div_ceil(MOST_PARTS).next_multiple_of(1 << 20);
        let part_size = PART.max(least);
        // Two parts have to fit: a blob may belong to both.
        let needed = 3 * part_size;
        if needed > self.memory_size {
            self.memory.add_permits(((needed - self.memory_size) / UNIT) as usize);
            self.memory_size = needed;
        }
        let object = Parts::new(self.store.clone(), wanted, part_size, self.alive.clone());
        let receiver: Arc<dyn Receive> = Arc::new(Pieces(object.clone()));
        self.window.file(receiver.clone(), true);
        let (mut offset, mut begun) = (0u64, 0);
        for (number, id) in (0..).zip(ids) {
            if object.has_failed() {
                // What is left of it need not be read.
                break;
            }
            let length = self.job.reader.raw_length(BlobKind::Data, id).unwrap_or_default();
            let end = offset + u64::from(length);
            while u64::from(begun) * part_size < end {
                let memory = match self.try_reserve(object.length(begun)) {
                    Some(memory) => memory,
                    None => {
                        // What is asked for already frees memory, so that this is not waited for in vain.
                        self.submit().await?;
                        let memory = self.reserve(object.length(begun)).await?;
                        self.window.file(receiver.clone(), true);
                        memory
                    }
                };
                object.begin(begun, memory);
                begun += 1;
            }
            if self.window.is_full(&LIMITS) {
                self.submit().await?;
                self.window.file(receiver.clone(), true);
            }
            self.window.blob(number, offset, *id, length);
            offset = end;
        }
        Ok(())
    }

    fn try_reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        self.memory.clone().try_acquire_many_owned(units(bytes)).ok()
    }

    /// Waits for memory. What was asked for so far is sent off first, because it may be what frees some.
    async fn reserve(&mut self, bytes: u64) -> Result<OwnedSemaphorePermit> {
        if let Some(memory) = self.try_reserve(bytes) {
            return Ok(memory);
        }
        self.submit().await?;
        loop {
            tokio::select! {
                memory = self.memory.clone().acquire_many_owned(units(bytes)) => {
                    return memory.map_err(|_| Error::Broken("the memory's semaphore was closed".into()));
                }
                () = self.job.stop.cancelled() => return Err(Error::Cancelled),
                Some(done) = self.windows.join_next() => judge(done)?,
            }
        }
    }

    /// Sends the window off, and waits until there is room for the next one.
    async fn submit(&mut self) -> Result<()> {
        let window = std::mem::take(&mut self.window);
        if !window.is_empty() {
            self.windows.spawn(window.deliver(self.job.reader.clone(), self.alive.clone()));
        }
        while self.windows.len() > WINDOWS {
            self.delivered().await?;
        }
        Ok(())
    }

    async fn delivered(&mut self) -> Result<()> {
        tokio::select! {
            Some(done) = self.windows.join_next() => judge(done),
            () = self.job.stop.cancelled() => Err(Error::Cancelled),
        }
    }
}

fn units(bytes: u64) -> u32 {
    bytes.div_ceil(UNIT).min(u64::from(u32::MAX)) as u32
}

fn judge(done: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    done.map_err(|error| Error::Broken(format!("a delivery ended: {error}")))?
}

/// Attributes as far as the store can hold any, and what it cannot.
fn acceptable(attributes: Attributes, can: &Capabilities) -> (Attributes, Option<&'static str>) {
    let mut lost = None;
    let mut kept = attributes;
    kept.tag_count = None;
    kept.missing_meta = 0;
    if !can.tags && kept.tags.take().is_some_and(|tags: Tags| !tags.is_empty()) {
        lost = Some("the target holds no tags");
    }
    if !can.attributes && headers(&kept) != Attributes::default() {
        let tags = kept.tags.take();
        kept = Attributes { tags, ..Attributes::default() };
        lost = Some("the target holds neither headers nor metadata");
    }
    (kept, lost)
}
