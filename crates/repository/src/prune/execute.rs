//! Carries out a plan: new packs, new index, then the old index goes, then the old packs.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::decide::Fate;
use super::{Listener, PrunePlan, PruneProgress, PruneStage};
use crate::file::FileKind;
use crate::index::{BLOBS_PER_FILE, ByPack, Index, NamedIn, PackNo};
use crate::reader::{Transferred, spans_of};
use crate::replace::{self, IndexFiles};
use crate::repository::Repository;
use crate::{BlobKind, Error, Id, Lock, Result};

/// Index files that are not half full are put together when there are so many of them.
const MANY_SMALL: usize = 8;

/// What a prune did.
#[derive(Debug, Default)]
pub struct Pruned {
    /// Packs that were deleted.
    pub packs_deleted: u64,
    /// Packs of which what was needed was packed anew; they are among those that were deleted.
    pub packs_repacked: u64,
    /// Packs that were to be packed anew and were not, because time was up: the next run goes on with them.
    pub packs_left: u64,
    /// New packs.
    pub packs_written: u64,
    /// Bytes that were fetched.
    pub bytes_read: u64,
    /// Stored bytes of blobs that were written anew.
    pub bytes_written: u64,
    /// Index files that were written.
    pub index_files_written: u64,
    /// Index files that were deleted.
    pub index_files_deleted: u64,
    /// Blobs that are whole nowhere, with the packs that they are in, which stay.
    pub damaged: Vec<(Id, Error)>,
}

/// Frees what the plan says, under the exclusive lock under which it was made. Packs that are to be packed anew are left to
/// the next run after `until`.
///
/// # Errors
/// [`Error::LockLost`]; what the bucket says. What was done by then is complete in itself.
pub async fn prune(
    repo: &Repository,
    plan: PrunePlan,
    lock: &Arc<Lock>,
    until: Option<Instant>,
    listen: &Listener<'_>,
) -> Result<Pruned> {
    lock.exclusive()?;
    if plan.hypothetical {
        return Err(Error::Broken("a plan without snapshots that are there is only to be looked at"));
    }
    let index = plan.index.clone();
    let by_pack = index.by_pack();
    let mut run = Run { repo, plan, lock, listen, done: Pruned::default() };
    run.repack(&by_pack, until).await?;
    run.finish(&by_pack).await?;
    Ok(run.done)
}

struct Run<'a> {
    repo: &'a Repository,
    plan: PrunePlan,
    lock: &'a Arc<Lock>,
    listen: &'a Listener<'a>,
    done: Pruned,
}

impl Run<'_> {
    fn report(&self, stage: PruneStage, done: u64, total: u64) {
        (self.listen)(PruneProgress { stage, done, total });
    }

    /// Packs anew what is needed of the packs that are to go. Afterwards each of them either may go, or has
    /// [`Fate::Keep`].
    async fn repack(&mut self, by_pack: &ByPack<'_>, until: Option<Instant>) -> Result<()> {
        if self.plan.repack.is_empty() {
            return Ok(());
        }
        // It knows none of the blobs that are stored, so that each is stored again.
        let writer = self.repo.writer(Arc::new(Index::empty()), self.lock.clone());
        let reader = self.repo.reader(self.plan.index.clone());
        let (chosen, listen) = (&self.plan.chosen, self.listen);
        let total = self.plan.packs_repacked.bytes;
        let mut read = 0;
        let mut failed: Vec<(Id, Error)> = Vec::new();
        let mut begun: HashSet<PackNo> = HashSet::new();
        for kind in BlobKind::ALL {
            // What was begun with blobs of one kind is finished with those of the other.
            let may_begin =
                |pack: &PackNo| begun.contains(pack) || until.is_none_or(|until| Instant::now() < until);
            let mut now = HashSet::new();
            let spans = self.plan.repack.iter().flat_map(|pack| {
                let spans = spans_of(by_pack, *pack, kind, chosen);
                if spans.is_empty() || !may_begin(pack) {
                    return Vec::new();
                }
                now.insert(*pack);
                spans
            });
            let mut done = |transferred: Transferred| {
                failed.extend(transferred.failed);
                read += transferred.fetched;
                listen(PruneProgress { stage: PruneStage::Repack, done: read, total: total.max(read) });
            };
            if let Err(error) = reader.transfer(kind, spans, &writer, &mut done).await {
                writer.abort().await;
                return Err(error);
            }
            begun.extend(now);
        }
        // Durable, and named by index files beside the old ones.
        let stats = writer.finish(Vec::new()).await?.stats;
        self.done.bytes_read = read;
        self.done.bytes_written = stats.data_packed + stats.tree_packed;
        self.done.packs_written = stats.packs;
        self.done.index_files_written = stats.index_files;
        // Packs with a blob that is whole nowhere keep what is left of it.
        let lost: HashSet<Id> = failed.iter().map(|(id, _)| *id).collect();
        for pack in self.plan.repack.clone() {
            let holds_lost =
                || by_pack.of(pack).iter().any(|(entry, blob)| chosen.has(*entry) && lost.contains(&blob.id));
            if !begun.contains(&pack) {
                self.plan.fates[pack.index()] = Fate::Keep;
                self.done.packs_left += 1;
            } else if !lost.is_empty() && holds_lost() {
                self.plan.fates[pack.index()] = Fate::Keep;
            } else {
                self.done.packs_repacked += 1;
            }
        }
        self.done.damaged = failed;
        Ok(())
    }

    /// Writes the index without the packs that go, and lets the old index and the packs go.
    async fn finish(&mut self, by_pack: &ByPack<'_>) -> Result<()> {
        let index = self.plan.index.clone();
        let goes = |pack: &PackNo| self.plan.fates[pack.index()] != Fate::Keep;
        let small: Vec<&NamedIn> =
            index.files().iter().filter(|file| file.blobs < BLOBS_PER_FILE / 2).collect();
        let small: HashSet<Id> = match small.len() >= MANY_SMALL {
            true => small.iter().map(|file| file.id).collect(),
            false => HashSet::new(),
        };
        // Everything about the packs that stay, also what is named elsewhere as well.
        let is_old = |file: &NamedIn| small.contains(&file.id) || file.packs.iter().any(goes);
        let (old, mut stay) = replace::naming(&index, is_old);
        stay.retain(|pack| !goes(pack));
        self.rewrite(by_pack, &stay).await?;
        let mut packs: Vec<Id> = index
            .pack_numbers()
            .filter(|pack| matches!(self.plan.fates[pack.index()], Fate::Delete | Fate::Repack))
            .map(|pack| index.pack(pack))
            .collect();
        packs.extend(self.plan.unnamed.iter().copied());
        let total = (old.len() + packs.len()) as u64;
        let deleted = self.delete(FileKind::Index, &old, 0, total).await?;
        self.done.index_files_deleted = deleted;
        self.done.packs_deleted = self.delete(FileKind::Pack, &packs, deleted, total).await?;
        Ok(())
    }

    async fn rewrite(&mut self, by_pack: &ByPack<'_>, packs: &[PackNo]) -> Result<()> {
        let total = packs.len() as u64;
        let mut files = IndexFiles::new(self.repo, self.lock);
        for (done, pack) in (1..).zip(packs) {
            let blobs: Vec<_> = by_pack.of(*pack).into_iter().map(|(_, blob)| blob).collect();
            if files.add(&self.plan.index.pack(*pack), &blobs).await? {
                self.report(PruneStage::Rewrite, done, total);
            }
        }
        self.done.index_files_written += files.finish().await?;
        self.report(PruneStage::Rewrite, total, total);
        Ok(())
    }

    /// Deletes files, as long as the lock excludes all others.
    async fn delete(&self, kind: FileKind, ids: &[Id], before: u64, total: u64) -> Result<u64> {
        let done = |gone| self.report(PruneStage::Delete, before + gone, total);
        replace::delete(self.repo, self.lock, kind, ids, &done).await?;
        Ok(ids.len() as u64)
    }
}
