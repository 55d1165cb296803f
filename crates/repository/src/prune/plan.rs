//! What a prune would do: who needs which blob, and what becomes of which pack.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::decide::{Amount, Fate, PackUse, Rules, decide};
use super::{Listener, PruneOptions, PruneProgress, PruneStage};
use crate::check::expected_size;
use crate::index::{EntryNo, Index, PackNo};
use crate::listed::Listed;
use crate::marks::Marks;
use crate::pack::PackedBlob;
use crate::reader::TreeWalk;
use crate::repository::Repository;
use crate::{BlobKind, Error, Id, Lock, Result};

/// What a prune would do, in numbers for people, and in full for [`prune`](super::prune).
pub struct PrunePlan {
    pub(super) index: Arc<Index>,
    /// Entries from which blobs are to be had in the future.
    pub(super) chosen: Marks,
    /// By pack number.
    pub(super) fates: Vec<Fate>,
    /// Packs to pack anew, the most worthwhile first.
    pub(super) repack: Vec<PackNo>,
    /// Packs that no index names, and that are old enough to go.
    pub(super) unnamed: Vec<Id>,
    /// Whether snapshots that are there were taken for removed.
    pub(super) hypothetical: bool,
    /// Blobs that snapshots need, each once.
    pub used: Amount,
    /// Blobs that none needs.
    pub unused: Amount,
    /// Blobs that are stored once more than is needed.
    pub twice: Amount,
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs that go because nobody needs them, and their bytes.
    pub packs_deleted: Amount,
    /// Packs that are read, and their bytes.
    pub packs_repacked: Amount,
    /// Bytes of them that are written anew.
    pub repacked_bytes: u64,
    /// Packs that no index names and that go, and their bytes.
    pub unnamed_deleted: Amount,
    /// Packs that no index names and that are too young to go, and their bytes.
    pub unnamed_kept: Amount,
    /// Packs that do not exist, and that nobody needs: the index forgets them.
    pub packs_forgotten: u64,
    /// Bytes that nobody needs and that stay all the same.
    pub unused_left: u64,
}

impl PrunePlan {
    /// Bytes that are free afterwards.
    pub fn freed(&self) -> u64 {
        let gone = self.packs_deleted.bytes + self.packs_repacked.bytes + self.unnamed_deleted.bytes;
        gone.saturating_sub(self.repacked_bytes)
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.unnamed.is_empty() && self.fates.iter().all(|fate| *fate == Fate::Keep)
    }

    /// Requests that change or read the repository, about: to read ranges of packs, to write, to delete.
    pub fn requests(&self, pack_size: u32) -> Requests {
        let reads = self.packs_repacked.bytes.div_ceil(crate::reader::SPAN).max(self.packs_repacked.count);
        let deletes = self.packs_deleted.count + self.packs_repacked.count + self.unnamed_deleted.count;
        let writes = self.repacked_bytes.div_ceil(u64::from(pack_size));
        Requests { reads, writes, deletes }
    }
}

/// Requests by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// To read.
    pub reads: u64,
    /// To write.
    pub writes: u64,
    /// Files to delete, of which stores take many in one request.
    pub deletes: u64,
}

/// Finds out what may go. For more than looking, `lock` is an exclusive one, under which nothing changes until
/// [`prune`](super::prune) is done.
///
/// # Errors
/// What snapshots need is missing or damaged ([`Error::Damaged`], [`Error::NoSuchBlob`], …): nothing may go then; what
/// the bucket says.
pub async fn plan_prune(
    repo: &Repository,
    options: &PruneOptions,
    lock: Option<&Lock>,
    listen: &Listener<'_>,
) -> Result<PrunePlan> {
    // Snapshots are listed before the index: then the index names everything that they need.
    let mut snapshots = repo.snapshots().await?;
    snapshots.retain(|(id, _)| !options.without.contains(id));
    let loaded = |done, total| listen(PruneProgress { stage: PruneStage::Index, done, total });
    let index = repo.index_with_progress(&loaded).await?;
    let needed = needed(repo, &index, snapshots.iter().map(|(_, snapshot)| snapshot.tree), listen).await?;
    let now = match lock {
        Some(lock) => lock.taken_at().await?,
        None => Timestamp::now(),
    };
    let listed = Listed::new(repo, &index).await?;
    let (uses, chosen) = choose(&index, &listed, &needed)?;
    check_sizes(&index, &listed, &uses)?;
    let rules = Rules {
        max_unused: options.max_unused,
        max_repack: options.max_repack.unwrap_or(u64::MAX),
        small: options.repack_small.then(|| u64::from(repo.options().pack_size) * 4 / 5),
    };
    let (fates, repack) = decide(&uses, &rules);
    let sum = |of: fn(&PackUse) -> Amount| uses.iter().map(of).fold(Amount::default(), Amount::and);
    let mut plan = PrunePlan {
        used: sum(|pack| pack.used),
        unused: sum(|pack| pack.unused),
        twice: sum(|pack| pack.twice),
        packs_kept: 0,
        packs_deleted: Amount::default(),
        packs_repacked: Amount::default(),
        repacked_bytes: 0,
        unnamed_deleted: Amount::default(),
        unnamed_kept: Amount::default(),
        packs_forgotten: 0,
        unused_left: 0,
        unnamed: Vec::new(),
        hypothetical: !options.without.is_empty(),
        repack: Vec::new(),
        fates,
        chosen,
        index,
    };
    for (pack, fate) in uses.iter().zip(&plan.fates) {
        let size = pack.size.unwrap_or(0);
        match fate {
            Fate::Keep => {
                plan.packs_kept += 1;
                plan.unused_left += pack.unused.bytes + pack.twice.bytes;
            }
            Fate::Repack => {
                plan.packs_repacked.add(size);
                plan.repacked_bytes += pack.used.bytes;
            }
            Fate::Delete => plan.packs_deleted.add(size),
            Fate::Forget => plan.packs_forgotten += 1,
        }
    }
    let numbers: Vec<PackNo> = plan.index.pack_numbers().collect();
    plan.repack = repack.into_iter().map(|i| numbers[i]).collect();
    for (id, size, modified) in listed.unnamed {
        if is_older(modified, now, options.margins.unnamed) {
            plan.unnamed.push(id);
            plan.unnamed_deleted.add(size);
        } else {
            plan.unnamed_kept.add(size);
        }
    }
    Ok(plan)
}

fn is_older(modified: Timestamp, now: Timestamp, margin: Duration) -> bool {
    let age = now.duration_since(modified);
    age.is_zero() && margin.is_zero() || Duration::try_from(age).is_ok_and(|age| age >= margin)
}

/// Marks the first entry of each blob that is below these roots.
pub(crate) async fn needed(
    repo: &Repository,
    index: &Arc<Index>,
    roots: impl ExactSizeIterator<Item = Id>,
    listen: &Listener<'_>,
) -> Result<Marks> {
    let marks = Arc::new(Marks::new(index.entries()));
    let missing: Arc<Mutex<Option<Id>>> = Arc::default();
    let visit = {
        let (index, marks, missing) = (index.clone(), marks.clone(), missing.clone());
        let mark = move |kind, id: &Id| match index.entry(kind, id) {
            Some(entry) => drop(marks.set(entry)),
            None => drop(missing.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(*id)),
        };
        Arc::new(move |_: &Id, node: &crate::Node| {
            node.content.iter().flatten().for_each(|blob| mark(BlobKind::Data, blob));
            node.subtree.iter().for_each(|tree| mark(BlobKind::Tree, tree));
        })
    };
    let mut walk = TreeWalk::new(repo.reader(index.clone()), visit);
    let total = roots.len() as u64;
    for (done, root) in (0..).zip(roots) {
        listen(PruneProgress { stage: PruneStage::Snapshots, done, total });
        if let Some(entry) = index.entry(BlobKind::Tree, &root) {
            marks.set(entry);
        }
        walk.below(root, &mut |_, error| Err(error)).await?;
        if let Some(id) = *missing.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(Error::NoSuchBlob { kind: BlobKind::Data, id });
        }
    }
    listen(PruneProgress { stage: PruneStage::Snapshots, done: total, total });
    drop(walk);
    Arc::into_inner(marks).ok_or(Error::Broken("somebody still marks what is needed"))
}

/// That packs which are needed have the size that the index implies: what is not as it was written is no reason to
/// delete anything.
fn check_sizes(index: &Index, listed: &Listed, uses: &[PackUse]) -> Result<()> {
    let by_pack = index.by_pack();
    for pack in index.pack_numbers().filter(|pack| uses[pack.index()].used.count > 0) {
        let Some(found) = listed.size(pack) else { continue };
        let blobs: Vec<PackedBlob> = by_pack.of(pack).into_iter().map(|(_, blob)| blob).collect();
        let expected = expected_size(&blobs);
        if expected != found {
            let detail = format!("it has {found} bytes, the index implies {expected}");
            return Err(Error::damaged("pack", detail).named(index.pack(pack)));
        }
    }
    Ok(())
}

/// Chooses for each blob that is needed the entry from which it is to be had.
fn choose(index: &Index, listed: &Listed, needed: &Marks) -> Result<(Vec<PackUse>, Marks)> {
    let mut uses: Vec<PackUse> =
        listed.sizes.iter().map(|size| PackUse { size: *size, ..PackUse::default() }).collect();
    let chosen = Marks::new(index.entries());
    let mut twice = Vec::new();
    each_blob(index, |entries| {
        let (first, _, blob) = entries[0];
        if !needed.has(first) {
            for (_, pack, blob) in entries {
                uses[pack.index()].unused.add(blob.length.into());
            }
            return Ok(());
        }
        let mut there = entries.iter().filter(|(_, pack, blob)| listed.reaches(*pack, blob.end()));
        match (there.next(), there.next()) {
            (None, _) => return Err(missing(index, listed, entries[0].1, &blob)),
            (Some((entry, pack, blob)), None) => {
                chosen.set(*entry);
                uses[pack.index()].used.add(blob.length.into());
                for (other, pack, blob) in entries.iter().filter(|(other, ..)| other != entry) {
                    debug_assert!(!chosen.has(*other));
                    uses[pack.index()].twice.add(blob.length.into());
                }
            }
            (Some(_), Some(_)) => twice.push(first),
        }
        Ok(())
    })?;
    // Only now is known which packs have waste of their own: the others are where blobs are kept.
    for first in twice {
        let (_, blob) = index.blob(first);
        let entries: Vec<(EntryNo, PackNo, u32, u64)> = index
            .entries_of(blob.kind, &blob.id)
            .map(|(entry, place)| {
                (entry, place.pack, place.length, u64::from(place.offset) + u64::from(place.length))
            })
            .collect();
        let there = entries
            .iter()
            .filter(|(_, pack, _, end)| uses[pack.index()].size.is_some_and(|size| *end <= size));
        let best = there.min_by_key(|(entry, pack, ..)| {
            let pack = &uses[pack.index()];
            (pack.unused.bytes, std::cmp::Reverse(pack.size), *entry)
        });
        let best = best.ok_or(Error::Broken("a blob that was there twice is not there"))?.0;
        for (entry, pack, length, _) in entries {
            let pack = &mut uses[pack.index()];
            if entry == best {
                chosen.set(entry);
                pack.used.add(length.into());
            } else {
                pack.twice.add(length.into());
            }
        }
    }
    for (_, pack, blob) in index.numbered() {
        uses[pack.index()].trees |= blob.kind == BlobKind::Tree;
    }
    Ok((uses, chosen))
}

fn missing(index: &Index, listed: &Listed, pack: PackNo, blob: &PackedBlob) -> Error {
    let detail = match listed.size(pack) {
        None => "it does not exist".to_owned(),
        Some(size) => {
            format!("it has {size} bytes, and {} blob {} ends at {}", blob.kind, blob.id, blob.end())
        }
    };
    Error::damaged("pack", detail).named(index.pack(pack))
}

/// Calls `each` with all entries of one blob after the other.
fn each_blob(
    index: &Index,
    mut each: impl FnMut(&[(EntryNo, PackNo, PackedBlob)]) -> Result<()>,
) -> Result<()> {
    let mut same: Vec<(EntryNo, PackNo, PackedBlob)> = Vec::new();
    for entry in index.numbered() {
        let is_same =
            same.last().is_some_and(|(_, _, last)| (last.kind, last.id) == (entry.2.kind, entry.2.id));
        if !is_same && !same.is_empty() {
            each(&same)?;
            same.clear();
        }
        same.push(entry);
    }
    if same.is_empty() { Ok(()) } else { each(&same) }
}
