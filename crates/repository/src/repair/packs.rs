//! Saves what is whole in damaged packs: it is written into new packs, the damaged pack is kept aside as it is, and the
//! index forgets what is lost.

use std::collections::HashSet;
use std::sync::Arc;

use cistern_bucket::ErrorKind;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::{RepairListener, RepairProgress, RepairStage, is_damage, keep, kept, set};
use crate::check::{LONGEST, Problem, examine, whole};
use crate::file::FileKind;
use crate::index::{Index, PackNo};
use crate::listed::Listed;
use crate::pack::{self, Header, PackedBlob};
use crate::reader::{Scratch, is_local};
use crate::replace::{self, IndexFiles};
use crate::repository::Repository;
use crate::store::Inner;
use crate::writer::Import;
use crate::{BlobKind, Error, Id, Lock, Reader, Result, Writer};

/// What a repair of packs would do.
pub struct PacksPlan {
    index: Arc<Index>,
    /// Packs that are damaged.
    pub damaged: Vec<DamagedPack>,
    /// Packs that could not be judged, and why: they stay.
    pub unread: Vec<(Id, Error)>,
    /// Packs that were read.
    pub packs_read: u64,
}

/// A pack that is not what it was.
pub struct DamagedPack {
    /// The pack.
    pub id: Id,
    /// Its size; none if it does not exist.
    pub size: Option<u64>,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Blobs that are whole, and are written anew.
    whole: Vec<PackedBlob>,
    /// Blobs that are damaged here, and whole elsewhere.
    elsewhere: Vec<(BlobKind, Id)>,
    /// Blobs that are whole nowhere.
    pub lost: Vec<(BlobKind, Id)>,
}

impl DamagedPack {
    /// Blobs that are saved.
    pub fn saved(&self) -> usize {
        self.whole.len() + self.elsewhere.len()
    }
}

impl PacksPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.damaged.is_empty()
    }

    /// Blobs that are lost, each once.
    pub fn lost(&self) -> u64 {
        let lost: HashSet<_> = self.damaged.iter().flat_map(|pack| &pack.lost).collect();
        lost.len() as u64
    }
}

/// What a repair of packs did.
#[derive(Debug, Default)]
pub struct PacksRepaired {
    /// Packs that were kept aside and removed.
    pub packs_removed: u64,
    /// New packs.
    pub packs_written: u64,
    /// Blobs that were written anew.
    pub blobs_written: u64,
    /// Index files that were written.
    pub files_written: u64,
    /// Index files that were deleted.
    pub files_deleted: u64,
    /// Packs of which not all that was whole could be read again, and why: they stay as they are.
    pub failed: Vec<(Id, Error)>,
}

/// Reads these packs, or all that the index names if none is given, and finds out which are damaged and what of them is
/// whole.
///
/// # Errors
/// [`Error::BadParameter`] for a pack that nobody knows; an index file that cannot be read: the index is repaired first;
/// what concerns the bucket as a whole.
pub async fn plan_repair_packs(
    repo: &Repository,
    ids: &[Id],
    listen: &RepairListener<'_>,
) -> Result<PacksPlan> {
    let loaded = |done, total| listen(RepairProgress { stage: RepairStage::Index, done, total });
    let index = repo.index_with_progress(&loaded).await?;
    let listed = Listed::new(repo, &index).await?;
    let mut plan = PacksPlan { index: index.clone(), damaged: Vec::new(), unread: Vec::new(), packs_read: 0 };
    let by_pack = index.by_pack();
    let blobs_of = |pack: PackNo| by_pack.of(pack).into_iter().map(|(_, blob)| blob).collect::<Vec<_>>();
    let mut wanted: Vec<(Id, u64, Vec<PackedBlob>)> = Vec::new();
    let mut missing: Vec<(Id, Vec<PackedBlob>)> = Vec::new();
    for id in ids {
        let number = index.pack_numbers().find(|pack| index.pack(*pack) == *id);
        let unnamed = listed.unnamed.iter().find(|(other, ..)| other == id);
        match (number, number.and_then(|pack| listed.size(pack)), unnamed) {
            (Some(pack), Some(size), _) => wanted.push((*id, size, blobs_of(pack))),
            (Some(pack), None, _) => missing.push((*id, blobs_of(pack))),
            (None, _, Some((_, size, _))) => wanted.push((*id, *size, Vec::new())),
            (None, _, None) => {
                let detail = format!("there is no pack {id}").into();
                return Err(Error::BadParameter { what: "pack", detail });
            }
        }
    }
    if ids.is_empty() {
        // A run that was stopped has left packs that it had kept aside already.
        let kept = kept(repo).await?;
        let left = listed.unnamed.iter().filter(|(id, ..)| kept.contains(id));
        wanted.extend(left.map(|(id, size, _)| (*id, *size, Vec::new())));
    }
    let named = index.pack_numbers().filter(|_| ids.is_empty());
    let named = named.filter_map(|pack| Some((index.pack(pack), listed.size(pack)?, blobs_of(pack))));
    let total = match ids.is_empty() {
        true => (listed.sizes.iter().flatten().count() + wanted.len()) as u64,
        false => wanted.len() as u64,
    };
    let chosen = wanted.into_iter().chain(named);
    let reader = repo.reader(index.clone());
    let memory = repo.options().memory.clamp(1, u32::MAX as usize) as u32;
    let budget = Semaphore::new(memory as usize);
    let mut reads = futures::stream::iter(chosen)
        .map(|(id, size, blobs)| {
            let (budget, reader) = (&budget, &reader);
            async move {
                let share = u32::try_from(size).unwrap_or(memory).clamp(1, memory);
                let _held = budget.acquire_many(share).await.expect("the semaphore is never closed");
                (id, judge(repo, reader, id, size, blobs).await)
            }
        })
        .buffer_unordered(repo.options().connections);
    // Packs that are not proven to be what the index says.
    let mut doubtful: HashSet<Id> = set(missing.iter().map(|(id, _)| *id));
    while let Some((id, judged)) = reads.next().await {
        match judged {
            Ok(Judged::Whole) => (),
            Ok(Judged::Misnamed) => drop(doubtful.insert(id)),
            Ok(Judged::Damaged(pack)) => {
                doubtful.insert(id);
                plan.damaged.push(pack);
            }
            Err(error) if is_local(&error) => {
                doubtful.insert(id);
                plan.unread.push((id, error));
            }
            Err(error) => return Err(error),
        }
        plan.packs_read += 1;
        listen(RepairProgress { stage: RepairStage::Packs, done: plan.packs_read, total });
    }
    drop(reads);
    plan.damaged.extend(missing.into_iter().map(|(id, blobs)| DamagedPack {
        id,
        size: None,
        problems: vec![Problem::MissingPack { id, blobs: blobs.len() }],
        whole: Vec::new(),
        elsewhere: Vec::new(),
        lost: blobs.into_iter().map(|blob| (blob.kind, blob.id)).collect(),
    }));
    plan.damaged.sort_unstable_by_key(|pack| pack.id);
    // Where all was read, what lies in a pack that is whole needs not be written again.
    let is_proven = |kind, id: &Id| {
        let mut places = index.lookup_all(kind, id);
        ids.is_empty()
            && places
                .any(|place| listed.size(place.pack).is_some() && !doubtful.contains(&index.pack(place.pack)))
    };
    for pack in &mut plan.damaged {
        pack.whole.retain(|blob| !is_proven(blob.kind, &blob.id));
        let mut lost = Vec::new();
        for (kind, id) in std::mem::take(&mut pack.lost) {
            match reader.blob(kind, &id).await {
                _ if is_proven(kind, &id) => (),
                Ok(_) => pack.elsewhere.push((kind, id)),
                Err(error) if is_damage(&error) || is_local(&error) => lost.push((kind, id)),
                Err(error) => return Err(error),
            }
        }
        pack.lost = lost;
    }
    Ok(plan)
}

/// What a pack turned out to be.
enum Judged {
    Whole,
    /// It is what its name says, and the index says something else about it.
    Misnamed,
    Damaged(DamagedPack),
}

/// Reads one pack; twice before it is believed to be damaged.
async fn judge(
    repo: &Repository,
    reader: &Reader,
    id: Id,
    size: u64,
    blobs: Vec<PackedBlob>,
) -> Result<Judged> {
    if size > LONGEST {
        let detail = format!("it has {size} bytes, at most {LONGEST} are read").into();
        return Err(Error::BadParameter { what: "pack", detail });
    }
    let blobs = Arc::new(blobs);
    let once = async || {
        let stored = whole(repo.inner(), &id, size).await?;
        let blobs = blobs.clone();
        let look = move |inner: &Inner, scratch: &mut Scratch| look(inner, scratch, id, stored, &blobs);
        reader.decode(look).await
    };
    match once().await? {
        Judged::Damaged(_) => once().await,
        judged => Ok(judged),
    }
}

/// Judges the bytes of a pack, of which the index knows some blobs, and the header, if it can be read, perhaps more.
fn look(
    inner: &Inner,
    scratch: &mut Scratch,
    id: Id,
    stored: Vec<u8>,
    indexed: &[PackedBlob],
) -> Result<Judged> {
    let size = stored.len() as u64;
    let header = match pack::read_header(&inner.master, size, &stored) {
        Ok(Header::Blobs(blobs)) => Some(blobs),
        _ => None,
    };
    let is_as_indexed = header.as_deref() == Some(indexed);
    let named = header.as_deref().unwrap_or(indexed);
    // What only the index says, which may be a lie about blobs that the header has elsewhere.
    let place = |blob: &PackedBlob| (blob.kind, blob.id, blob.offset, blob.length, blob.raw_length);
    let known: HashSet<_> = named.iter().map(place).collect();
    let more: Vec<PackedBlob> =
        indexed.iter().filter(|blob| !known.contains(&place(blob))).copied().collect();
    let again = (!more.is_empty()).then(|| stored.clone());
    let mut problems = examine(inner, scratch, vec![(id, stored, named.to_vec())])?;
    let (mut whole, mut broken) = divide(named, &problems);
    if header.is_some() && problems.is_empty() {
        return Ok(if is_as_indexed { Judged::Whole } else { Judged::Misnamed });
    }
    if let Some(stored) = again {
        let found = examine(inner, scratch, vec![(id, stored, more.clone())])?;
        let (more_whole, more_broken) = divide(&more, &found);
        whole.extend(more_whole);
        broken.extend(more_broken);
        problems.extend(found.into_iter().filter(|problem| matches!(problem, Problem::Blob { .. })));
    }
    let saved: HashSet<(BlobKind, Id)> = whole.iter().map(|blob| (blob.kind, blob.id)).collect();
    broken.retain(|blob| !saved.contains(blob));
    Ok(Judged::Damaged(DamagedPack {
        id,
        size: Some(size),
        problems,
        whole,
        elsewhere: Vec::new(),
        lost: broken,
    }))
}

/// Blobs that are whole, and those that are not.
fn divide(blobs: &[PackedBlob], problems: &[Problem]) -> (Vec<PackedBlob>, Vec<(BlobKind, Id)>) {
    let broken: HashSet<(BlobKind, Id)> = problems
        .iter()
        .filter_map(|problem| match problem {
            Problem::Blob { kind, id, .. } => Some((*kind, *id)),
            _ => None,
        })
        .collect();
    let whole = blobs.iter().filter(|blob| !broken.contains(&(blob.kind, blob.id))).copied().collect();
    (whole, broken.into_iter().collect())
}

/// Writes anew what is whole, has the index forget the damaged packs, keeps copies of them and removes them, under the
/// exclusive lock under which the plan was made.
///
/// # Errors
/// [`Error::LockLost`]; what the bucket says. What was done by then is complete in itself.
pub async fn repair_packs(
    repo: &Repository,
    plan: PacksPlan,
    lock: &Arc<Lock>,
    listen: &RepairListener<'_>,
) -> Result<PacksRepaired> {
    lock.exclusive()?;
    let mut done = PacksRepaired::default();
    if plan.is_empty() {
        return Ok(done);
    }
    // It knows none of the blobs that are stored, so that each is stored again.
    let writer = repo.writer(Arc::new(Index::empty()), lock.clone());
    if let Err(error) = save(repo, &plan, &writer, &mut done, listen).await {
        writer.abort().await;
        return Err(error);
    }
    // Durable, and named by index files beside the old ones.
    let stats = writer.finish(Vec::new()).await?.stats;
    done.packs_written = stats.packs;
    done.blobs_written = stats.data_blobs + stats.tree_blobs;
    done.files_written = stats.index_files;
    let failed = set(done.failed.iter().map(|(id, _)| *id));
    let gone: Vec<&DamagedPack> = plan.damaged.iter().filter(|pack| !failed.contains(&pack.id)).collect();
    let ids = set(gone.iter().map(|pack| pack.id));
    let index = &plan.index;
    let goes = |pack: &PackNo| ids.contains(&index.pack(*pack));
    let (old, mut stay) = replace::naming(index, |file| file.packs.iter().any(goes));
    stay.retain(|pack| !goes(pack));
    let by_pack = index.by_pack();
    let mut files = IndexFiles::new(repo, lock);
    for pack in stay {
        let blobs: Vec<_> = by_pack.of(pack).into_iter().map(|(_, blob)| blob).collect();
        files.add(&index.pack(pack), &blobs).await?;
    }
    done.files_written += files.finish().await?;
    for pack in &gone {
        lock.check()?;
        keep(repo, FileKind::Pack, &pack.id).await?;
    }
    let packs: Vec<Id> = gone.iter().filter(|pack| pack.size.is_some()).map(|pack| pack.id).collect();
    let total = (old.len() + packs.len()) as u64;
    let report = |done| listen(RepairProgress { stage: RepairStage::Delete, done, total });
    replace::delete(repo, lock, FileKind::Index, &old, &report).await?;
    done.files_deleted = old.len() as u64;
    let report = |gone| report(old.len() as u64 + gone);
    replace::delete(repo, lock, FileKind::Pack, &packs, &report).await?;
    done.packs_removed = packs.len() as u64;
    Ok(done)
}

/// Gives to the writer what is whole of the damaged packs.
async fn save(
    repo: &Repository,
    plan: &PacksPlan,
    writer: &Writer,
    done: &mut PacksRepaired,
    listen: &RepairListener<'_>,
) -> Result<()> {
    let reader = repo.reader(plan.index.clone());
    let total = plan.damaged.len() as u64;
    for (number, pack) in (1..).zip(&plan.damaged) {
        if let Some(error) = save_pack(repo, &reader, pack, writer).await? {
            done.failed.push((pack.id, error));
        }
        listen(RepairProgress { stage: RepairStage::Write, done: number, total });
    }
    Ok(())
}

/// Why not all could be saved of a pack that the plan has found whole, if so.
async fn save_pack(
    repo: &Repository,
    reader: &Reader,
    pack: &DamagedPack,
    writer: &Writer,
) -> Result<Option<Error>> {
    let mut again: Vec<(BlobKind, Id)> = pack.elsewhere.clone();
    for kind in BlobKind::ALL {
        let blobs: Vec<PackedBlob> = pack.whole.iter().filter(|blob| blob.kind == kind).copied().collect();
        let (false, Some(size)) = (blobs.is_empty(), pack.size) else { continue };
        let permit = writer.permit(size as usize).await?;
        match whole(repo.inner(), &pack.id, size).await {
            Ok(stretch) => {
                let import = Import { key: repo.inner().master.clone(), stretch, start: 0, blobs };
                let failed = writer.import(permit, import).await?;
                again.extend(failed.into_iter().map(|(blob, _)| (blob.kind, blob.id)));
            }
            Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchKey => {
                return Ok(Some(error.into()));
            }
            Err(error) => return Err(error),
        }
    }
    for (kind, id) in again {
        let plain = match reader.blob(kind, &id).await {
            Ok(plain) => plain,
            Err(error) if is_local(&error) => return Ok(Some(error)),
            Err(error) => return Err(error),
        };
        // Not kept back by the budget: a permit for nothing waits until that is not overdrawn.
        drop(writer.permit(0).await?);
        writer.blob(kind, id, plain.into())?;
    }
    Ok(None)
}
