//! Makes the index say what packs hold: packs that it does not name are adopted, packs that are gone are forgotten, and
//! index files that cannot be read are replaced by what the packs themselves say.

use std::sync::Arc;

use futures::StreamExt;

use super::headers::Headers;
use super::{RepairListener, RepairProgress, RepairStage, keep};
use crate::check::expected_size;
use crate::file::FileKind;
use crate::index::{Index, IndexBuilder, PackNo};
use crate::listed::Listed;
use crate::reader::is_local;
use crate::replace::{self, IndexFiles};
use crate::repository::Repository;
use crate::{BlobKind, Error, Id, Lock, Result};

/// What a repair of the index would do. It holds the index as it is, and as much again of it as is read anew.
pub struct IndexPlan {
    index: Arc<Index>,
    /// What the headers that were read say.
    headers: Index,
    /// By pack number: entries that go, because the pack is gone or its header was read.
    outdated: Vec<bool>,
    /// Index files that cannot be read, and why: they are replaced.
    pub unreadable_files: Vec<(Id, Error)>,
    /// Packs that no index named, and that are named from now on.
    pub added: Vec<Id>,
    /// Packs of which the index says something else than they do.
    pub corrected: Vec<Id>,
    /// Packs that do not exist: the index forgets them.
    pub missing: Vec<Id>,
    /// Packs whose header cannot be read, and why. They stay, with what the index says about them, for
    /// [`repair_packs`](super::repair_packs).
    pub unreadable_packs: Vec<(Id, Error)>,
    /// Packs whose headers were read.
    pub headers_read: u64,
    /// Blobs that the index named, and that no pack has which exists.
    pub lost: u64,
}

impl IndexPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.unreadable_files.is_empty()
            && self.added.is_empty()
            && self.corrected.is_empty()
            && self.missing.is_empty()
    }
}

/// What a repair of the index did.
#[derive(Debug, Default)]
pub struct IndexRepaired {
    /// Index files that were written.
    pub files_written: u64,
    /// Index files that were deleted.
    pub files_deleted: u64,
}

/// Compares the index with the packs, and reads the headers of those that it does not know or that have another size
/// than it implies: of all with `read_all`.
///
/// # Errors
/// What concerns the bucket as a whole.
pub async fn plan_repair_index(
    repo: &Repository,
    read_all: bool,
    listen: &RepairListener<'_>,
) -> Result<IndexPlan> {
    let (index, unreadable_files) = readable(repo, listen).await?;
    let listed = Listed::new(repo, &index).await?;
    let by_pack = index.by_pack();
    let (mut missing, mut wanted) = (Vec::new(), Vec::new());
    let mut outdated = vec![false; index.packs().len()];
    for pack in index.pack_numbers() {
        let id = index.pack(pack);
        let blobs: Vec<_> = by_pack.of(pack).into_iter().map(|(_, blob)| blob).collect();
        match listed.size(pack) {
            None => {
                missing.push(id);
                outdated[pack.index()] = true;
            }
            Some(size) if read_all || expected_size(&blobs) != size => wanted.push((id, Some(pack), size)),
            Some(_) => (),
        }
    }
    wanted.extend(listed.unnamed.iter().map(|(id, size, _)| (*id, None, *size)));
    let mut plan = IndexPlan {
        headers: Index::empty(),
        outdated,
        unreadable_files,
        added: Vec::new(),
        corrected: Vec::new(),
        missing,
        unreadable_packs: Vec::new(),
        headers_read: wanted.len() as u64,
        lost: 0,
        index: index.clone(),
    };
    let headers = Headers::new(repo.inner());
    let mut builder = IndexBuilder::new();
    let mut reads = futures::stream::iter(wanted)
        .map(|(id, pack, size)| {
            let headers = &headers;
            async move { (id, pack, headers.read(&id, size).await) }
        })
        .buffer_unordered(repo.options().connections);
    let mut done = 0;
    while let Some((id, pack, header)) = reads.next().await {
        let known = || pack.map(|pack| by_pack.of(pack).into_iter().map(|(_, blob)| blob));
        match header {
            Ok(blobs) if known().is_some_and(|known| known.eq(blobs.iter().copied())) => (),
            Ok(blobs) => {
                for blob in &blobs {
                    builder.add(&id, blob)?;
                }
                match pack {
                    None => plan.added.push(id),
                    Some(pack) => {
                        plan.outdated[pack.index()] = true;
                        plan.corrected.push(id);
                    }
                }
            }
            Err(error) if is_local(&error) => plan.unreadable_packs.push((id, error)),
            Err(error) => return Err(error),
        }
        done += 1;
        listen(RepairProgress { stage: RepairStage::Headers, done, total: plan.headers_read });
    }
    plan.headers = builder.finish()?;
    plan.added.sort_unstable();
    plan.corrected.sort_unstable();
    plan.unreadable_packs.sort_unstable_by_key(|(id, _)| *id);
    plan.lost = lost(&plan);
    Ok(plan)
}

/// The index of those files that can be read, and the others.
async fn readable(repo: &Repository, listen: &RepairListener<'_>) -> Result<(Arc<Index>, Vec<(Id, Error)>)> {
    let files = repo.inner().list(FileKind::Index).await?;
    let (total, mut done, mut unreadable) = (files.len() as u64, 0, Vec::new());
    let mut each = |id, read| {
        match read {
            Ok(()) => (),
            Err(error @ (Error::Damaged { .. } | Error::BadParameter { .. })) => unreadable.push((id, error)),
            // It may be whole: it is not replaced.
            Err(error) => return Err(error),
        }
        done += 1;
        listen(RepairProgress { stage: RepairStage::Index, done, total });
        Ok(())
    };
    let index = repo.read_index(&files, &mut each).await?;
    Ok((index, unreadable))
}

/// Blobs that the index names now, and not any more.
fn lost(plan: &IndexPlan) -> u64 {
    if plan.missing.is_empty() && plan.corrected.is_empty() {
        return 0;
    }
    let mut last = None;
    let mut is_new = |blob: (BlobKind, Id)| last.replace(blob) != Some(blob);
    let blobs = plan.index.numbered().filter(|(_, _, blob)| is_new((blob.kind, blob.id)));
    let is_lost = |kind: BlobKind, id: &Id| {
        let mut places = plan.index.lookup_all(kind, id);
        places.all(|place| plan.outdated[place.pack.index()]) && !plan.headers.contains(kind, id)
    };
    blobs.filter(|(_, _, blob)| is_lost(blob.kind, &blob.id)).count() as u64
}

/// Writes what is new, then deletes the index files that it replaces, under the exclusive lock under which the plan was
/// made.
///
/// # Errors
/// [`Error::LockLost`]; what the bucket says. What was done by then is complete in itself.
pub async fn repair_index(
    repo: &Repository,
    plan: IndexPlan,
    lock: &Lock,
    listen: &RepairListener<'_>,
) -> Result<IndexRepaired> {
    lock.exclusive()?;
    if plan.is_empty() {
        return Ok(IndexRepaired::default());
    }
    let is_outdated = |pack: &PackNo| plan.outdated[pack.index()];
    let (mut old, mut stay) = replace::naming(&plan.index, |file| file.packs.iter().any(is_outdated));
    stay.retain(|pack| !is_outdated(pack));
    let mut files = IndexFiles::new(repo, lock);
    let (by_pack, by_header) = (plan.index.by_pack(), plan.headers.by_pack());
    let packs = stay
        .iter()
        .map(|pack| (plan.index.pack(*pack), by_pack.of(*pack)))
        .chain(plan.headers.pack_numbers().map(|pack| (plan.headers.pack(pack), by_header.of(pack))));
    let total = (stay.len() + plan.headers.packs().len()) as u64;
    for (done, (id, entries)) in (1..).zip(packs) {
        let blobs: Vec<_> = entries.into_iter().map(|(_, blob)| blob).collect();
        if files.add(&id, &blobs).await? {
            listen(RepairProgress { stage: RepairStage::Write, done, total });
        }
    }
    let files_written = files.finish().await?;
    for (id, _) in &plan.unreadable_files {
        keep(repo, FileKind::Index, id).await?;
        old.push(*id);
    }
    let total = old.len() as u64;
    let done = |done| listen(RepairProgress { stage: RepairStage::Delete, done, total });
    replace::delete(repo, lock, FileKind::Index, &old, &done).await?;
    Ok(IndexRepaired { files_written, files_deleted: total })
}
