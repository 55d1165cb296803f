//! Copies what snapshots need from one repository into another, as it is compressed.
//!
//! A [`Copier`] walks the trees of the source, all of them: a directory that the destination holds says nothing about
//! what is below it, because an earlier copy may have broken off. What the destination lacks is marked, a bit for each
//! entry of the source's index, and transferred pack by pack, data before directories. What is whole nowhere is marked,
//! too, and tells afterwards which trees must not become snapshots.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::index::Index;
use crate::marks::Marks;
use crate::reader::{TreeWalk, is_local, spans_of};
use crate::repository::Repository;
use crate::{BlobKind, Error, Id, Node, Reader, Result, Writer};

/// What the destination lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// Number of blobs.
    pub blobs: u64,
    /// Their bytes as they are stored.
    pub bytes: u64,
}

/// A stretch of a pack that was dealt with.
#[derive(Debug)]
pub struct Copied {
    /// Blobs that were wanted of it.
    pub blobs: u64,
    /// Their bytes as they are stored.
    pub bytes: u64,
    /// Bytes that were fetched.
    pub fetched: u64,
    /// Those of the blobs that are whole nowhere.
    pub failed: Vec<(Id, Error)>,
}

/// Copies the blobs of one repository into another.
pub struct Copier {
    from: Reader,
    needs: Arc<Needs>,
    walk: TreeWalk,
}

/// What is known of the blobs of the source, and of those of the destination.
struct Needs {
    from: Arc<Index>,
    to: Arc<Index>,
    /// What the destination lacks or lacked.
    known: Marks,
    /// What is to be transferred next.
    next: Marks,
    /// What is whole nowhere.
    bad: Marks,
    /// Whether anything is, or is in no index.
    harmed: AtomicBool,
    blobs: AtomicU64,
    bytes: AtomicU64,
}

impl Needs {
    fn add(&self, kind: BlobKind, id: &Id) {
        if self.to.contains(kind, id) {
            return;
        }
        match self.from.entry(kind, id) {
            None => self.harmed.store(true, Relaxed),
            Some(entry) if self.known.set(entry) => {
                self.next.set(entry);
                self.blobs.fetch_add(1, Relaxed);
                self.bytes.fetch_add(self.from.blob(entry).1.length.into(), Relaxed);
            }
            Some(_) => (),
        }
    }

    fn is_bad(&self, kind: BlobKind, id: &Id) {
        self.harmed.store(true, Relaxed);
        if let Some(entry) = self.from.entry(kind, id) {
            self.bad.set(entry);
        }
    }

    /// Why the destination cannot have a blob.
    fn harm(&self, kind: BlobKind, id: &Id) -> Option<Error> {
        if self.to.contains(kind, id) {
            return None;
        }
        match self.from.entry(kind, id) {
            None => Some(Error::NoSuchBlob { kind, id: *id }),
            Some(entry) if self.bad.has(entry) => {
                Some(Error::damaged("blob", "it is whole nowhere").named(*id))
            }
            Some(_) => None,
        }
    }
}

impl Copier {
    /// Copies from `source`, whose index is `from`, into a repository whose index was `to` before anything was copied.
    /// Snapshots that are to be copied are listed before `from` is loaded.
    pub fn new(source: &Repository, from: Arc<Index>, to: Arc<Index>) -> Self {
        let marks = || Marks::new(from.entries());
        let needs = Arc::new(Needs {
            known: marks(),
            next: marks(),
            bad: marks(),
            harmed: AtomicBool::new(false),
            blobs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            from: from.clone(),
            to,
        });
        let visit = {
            let needs = needs.clone();
            move |_: &Id, node: &Node| {
                node.content.iter().flatten().for_each(|blob| needs.add(BlobKind::Data, blob));
                node.subtree.iter().for_each(|tree| needs.add(BlobKind::Tree, tree));
            }
        };
        let from = source.reader(from);
        Copier { walk: TreeWalk::new(from.clone(), Arc::new(visit)), from, needs }
    }

    /// Finds out what the destination lacks of a tree and of everything below it, beside what is known already. Damage
    /// is no error here: see [`harm`](Self::harm).
    ///
    /// # Errors
    /// What the bucket says.
    pub async fn add(&mut self, root: Id) -> Result<()> {
        let needs = &self.needs;
        needs.add(BlobKind::Tree, &root);
        let mut failed = |id, error| match is_local(&error) {
            true => {
                needs.is_bad(BlobKind::Tree, &id);
                Ok(())
            }
            false => Err(error),
        };
        self.walk.below(root, &mut failed).await
    }

    /// Everything that was found to be lacking so far.
    pub fn needed(&self) -> Needed {
        Needed { blobs: self.needs.blobs.load(Relaxed), bytes: self.needs.bytes.load(Relaxed) }
    }

    /// Has `writer` take over what was found to be lacking since the last transfer. `done` is told of each stretch when
    /// the writer has all of it.
    ///
    /// # Errors
    /// What concerns the bucket as a whole; the first error of the writer.
    pub async fn transfer(&self, writer: &Writer, done: &mut (dyn FnMut(Copied) + Send)) -> Result<()> {
        let needs = &self.needs;
        let by_pack = needs.from.by_pack();
        for kind in BlobKind::ALL {
            let packs = needs.from.pack_numbers();
            let spans = packs.flat_map(|pack| spans_of(&by_pack, pack, kind, &needs.next));
            let mut each = |span: crate::reader::Transferred| {
                span.failed.iter().for_each(|(id, _)| needs.is_bad(kind, id));
                let (blobs, bytes, fetched) = (span.blobs, span.stored, span.fetched);
                done(Copied { blobs, bytes, fetched, failed: span.failed });
            };
            self.from.transfer(kind, spans, writer, &mut each).await?;
        }
        needs.next.clear();
        Ok(())
    }

    /// Why the destination cannot have all of a tree and of what is below it: one of the reasons; none if it can.
    ///
    /// # Errors
    /// What the bucket says.
    pub async fn harm(&self, root: Id) -> Result<Option<Error>> {
        if !self.needs.harmed.load(Relaxed) {
            return Ok(None);
        }
        let first: Arc<Mutex<Option<Error>>> = Arc::default();
        let keep = {
            let first = first.clone();
            move |error: Error| {
                first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        };
        let look = {
            let (needs, keep) = (self.needs.clone(), keep.clone());
            move |kind, id: &Id| needs.harm(kind, id).into_iter().for_each(&keep)
        };
        look(BlobKind::Tree, &root);
        let visit = move |_: &Id, node: &Node| {
            node.content.iter().flatten().for_each(|blob| look(BlobKind::Data, blob));
            node.subtree.iter().for_each(|tree| look(BlobKind::Tree, tree));
        };
        let mut failed = |_, error| match is_local(&error) {
            true => {
                keep(error);
                Ok(())
            }
            false => Err(error),
        };
        TreeWalk::new(self.from.clone(), Arc::new(visit)).below(root, &mut failed).await?;
        let found = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(found)
    }
}

impl std::fmt::Debug for Copier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Copier").field("needed", &self.needed()).finish_non_exhaustive()
    }
}
