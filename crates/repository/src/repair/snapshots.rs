//! Has snapshots do without what is lost: each that is not whole gets a twin that is, and goes itself only if that is
//! asked for.

use std::sync::Arc;

use futures::StreamExt;

use super::survey::{Loss, Survey};
use super::trees::Rewriter;
use super::{RepairListener, RepairProgress, RepairStage, keep};
use crate::file::FileKind;
use crate::index::Index;
use crate::listed::Listed;
use crate::replace;
use crate::repository::Repository;
use crate::{Error, Id, Lock, Result, Snapshot};

/// Tag of snapshots that take the place of damaged ones.
pub const REPAIRED_TAG: &str = "repaired";

/// What a repair of snapshots would do.
pub struct SnapshotsPlan {
    survey: Survey,
    index: Arc<Index>,
    /// Snapshots that are not whole, the oldest first; then those that cannot be read.
    pub broken: Vec<BrokenSnapshot>,
    /// Snapshots that were looked at.
    pub snapshots: u64,
}

/// A snapshot that is not whole.
#[derive(Debug)]
pub struct BrokenSnapshot {
    /// The snapshot.
    pub id: Id,
    /// What it says, if it can be read.
    pub snapshot: Option<Snapshot>,
    /// What helps.
    pub remedy: Remedy,
    /// What is lost.
    pub lost: Loss,
    /// Some paths of which something is lost.
    pub paths: Vec<Vec<u8>>,
}

/// What becomes of a snapshot that is not whole.
#[derive(Debug)]
pub enum Remedy {
    /// A new one is written without what is lost.
    Rewrite,
    /// An earlier repair has written that new one, which is whole.
    Rewritten(Id),
    /// Its root directory cannot be read: nothing is left of it.
    NothingLeft,
    /// The snapshot itself cannot be read, and why.
    Unreadable(Error),
}

impl SnapshotsPlan {
    /// Whether all snapshots are whole.
    pub fn is_empty(&self) -> bool {
        self.broken.is_empty()
    }
}

/// What a repair of snapshots did.
#[derive(Debug, Default)]
pub struct SnapshotsRepaired {
    /// New snapshots, with those in whose places they are.
    pub written: Vec<(Id, Id)>,
    /// Snapshots that were removed.
    pub removed: Vec<Id>,
}

/// Reads all directories of all snapshots. What an index names and a listing does not show is lost; data is not read:
/// [`repair_packs`](super::repair_packs) comes first.
///
/// # Errors
/// An index file that cannot be read: the index is repaired first; what concerns the bucket as a whole.
pub async fn plan_repair_snapshots(repo: &Repository, listen: &RepairListener<'_>) -> Result<SnapshotsPlan> {
    let mut snapshots: Vec<(Id, Snapshot)> = Vec::new();
    let mut unreadable: Vec<(Id, Error)> = Vec::new();
    let files = repo.inner().list(FileKind::Snapshot).await?;
    let mut loads = std::pin::pin!(repo.load_snapshots(files));
    while let Some((id, snapshot)) = loads.next().await {
        match snapshot {
            Ok(snapshot) => snapshots.push((id, snapshot)),
            Err(error @ Error::Damaged { .. }) => unreadable.push((id, error)),
            Err(error) => return Err(error),
        }
    }
    unreadable.sort_unstable_by_key(|(id, _)| *id);
    snapshots.sort_by_cached_key(|(id, snapshot)| (snapshot.time.instant(), *id));
    let loaded = |done, total| listen(RepairProgress { stage: RepairStage::Index, done, total });
    let index = repo.index_with_progress(&loaded).await?;
    let listed = Listed::new(repo, &index).await?;
    let mut survey = Survey::new(repo.reader(index.clone()), listed);
    let roots: Vec<Id> = snapshots.iter().map(|(_, snapshot)| snapshot.tree).collect();
    let total = roots.len() as u64;
    let looked = |done| listen(RepairProgress { stage: RepairStage::Snapshots, done, total });
    survey.look(&roots, &looked).await?;
    let mut broken = Vec::new();
    for (id, snapshot) in &snapshots {
        let Some(root) = survey.broken.get(&snapshot.tree) else { continue };
        let remedy = match twin(&snapshots, id, snapshot, &survey) {
            _ if root.unreadable => Remedy::NothingLeft,
            Some(twin) => Remedy::Rewritten(twin),
            None => Remedy::Rewrite,
        };
        let (lost, paths) = (root.lost, survey.paths(snapshot.tree));
        broken.push(BrokenSnapshot { id: *id, snapshot: Some(snapshot.clone()), remedy, lost, paths });
    }
    broken.extend(unreadable.into_iter().map(|(id, error)| BrokenSnapshot {
        id,
        snapshot: None,
        remedy: Remedy::Unreadable(error),
        lost: Loss::default(),
        paths: Vec::new(),
    }));
    Ok(SnapshotsPlan { survey, index, broken, snapshots: total })
}

/// The whole snapshot that an earlier repair wrote for this one.
fn twin(snapshots: &[(Id, Snapshot)], id: &Id, snapshot: &Snapshot, survey: &Survey) -> Option<Id> {
    let first = snapshot.original.unwrap_or(*id);
    let is_twin = |other: &Snapshot| {
        other.original == Some(first)
            && other.tags.iter().any(|tag| tag == REPAIRED_TAG)
            && (other.time, &other.paths, &other.hostname)
                == (snapshot.time, &snapshot.paths, &snapshot.hostname)
            && !survey.broken.contains_key(&other.tree)
    };
    snapshots.iter().find(|(other, snapshot)| other != id && is_twin(snapshot)).map(|(other, _)| *other)
}

/// Writes a new snapshot for each that is not whole, with the tag [`REPAIRED_TAG`] and these; with `forget`, removes the
/// old ones afterwards, and keeps copies of those that cannot be read. Under the exclusive lock under which the plan was
/// made.
///
/// # Errors
/// [`Error::LockLost`]; what the bucket says. What was done by then is complete in itself.
pub async fn repair_snapshots(
    repo: &Repository,
    plan: SnapshotsPlan,
    tags: &[&str],
    forget: bool,
    lock: &Arc<Lock>,
    listen: &RepairListener<'_>,
) -> Result<SnapshotsRepaired> {
    lock.exclusive()?;
    let mut done = SnapshotsRepaired::default();
    let broken = |wanted: fn(&Remedy) -> bool| plan.broken.iter().filter(move |one| wanted(&one.remedy));
    let rewrite: Vec<(Id, &Snapshot)> = broken(|remedy| matches!(remedy, Remedy::Rewrite))
        .filter_map(|one| Some((one.id, one.snapshot.as_ref()?)))
        .collect();
    if !rewrite.is_empty() {
        // It knows none of the directories that are stored: one of them may be damaged.
        let writer = repo.writer(Arc::new(Index::empty()), lock.clone());
        let mut rewriter = Rewriter::new(&plan.survey, repo.reader(plan.index.clone()), &writer);
        let mut new = Vec::with_capacity(rewrite.len());
        let total = rewrite.len() as u64;
        for (number, (id, snapshot)) in (1..).zip(&rewrite) {
            match rewriter.rewrite(snapshot.tree).await {
                Ok(tree) => new.push(successor(id, snapshot, tree, tags)),
                Err(error) => {
                    writer.abort().await;
                    return Err(error);
                }
            }
            listen(RepairProgress { stage: RepairStage::Write, done: number, total });
        }
        // Packs, then the index, then the snapshots.
        let ids = writer.finish(new).await?.ids;
        done.written = ids.into_iter().zip(rewrite.iter().map(|(id, _)| *id)).collect();
    }
    if forget {
        for one in broken(|remedy| matches!(remedy, Remedy::NothingLeft | Remedy::Unreadable(_))) {
            lock.check()?;
            keep(repo, FileKind::Snapshot, &one.id).await?;
        }
        done.removed = plan.broken.iter().map(|one| one.id).collect();
        let total = done.removed.len() as u64;
        let gone = |done| listen(RepairProgress { stage: RepairStage::Delete, done, total });
        replace::delete(repo, lock, FileKind::Snapshot, &done.removed, &gone).await?;
    }
    Ok(done)
}

/// The snapshot in the place of another one.
fn successor(id: &Id, snapshot: &Snapshot, tree: Id, tags: &[&str]) -> Snapshot {
    let mut new = snapshot.clone();
    new.tree = tree;
    new.original = Some(snapshot.original.unwrap_or(*id));
    for tag in std::iter::once(&REPAIRED_TAG).chain(tags) {
        if !new.tags.iter().any(|other| other == tag) {
            new.tags.push((*tag).to_owned());
        }
    }
    new
}
