//! Mends a repository that was damaged, in three steps that build on each other: the index says again what packs hold,
//! damaged packs give back what is whole in them, snapshots do without what is lost.
//!
//! Each step is a plan, which changes nothing and says what is lost, and its execution under the exclusive lock under
//! which the plan was made. The order is that of a prune: new packs are durable before an index names them, a new index
//! is durable before an old one goes, packs go last, and a snapshot goes after the one that takes its place is durable.
//! What is removed although it could not be read is kept below `cistern/damaged/`, which restic does not look at.

mod headers;
mod index;
mod packs;
mod snapshots;
mod survey;
mod trees;

use std::collections::HashSet;

use cistern_bucket::{ErrorKind, Key, ListRequest};

pub use self::index::{IndexPlan, IndexRepaired, plan_repair_index, repair_index};
pub use self::packs::{DamagedPack, PacksPlan, PacksRepaired, plan_repair_packs, repair_packs};
pub use self::snapshots::{
    BrokenSnapshot, REPAIRED_TAG, Remedy, SnapshotsPlan, SnapshotsRepaired, plan_repair_snapshots,
    repair_snapshots,
};

pub use self::survey::Loss;

use crate::file::FileKind;
use crate::repository::Repository;
use crate::{Error, Id, Result};

/// What keys of copies of damaged files begin with.
const KEPT: &str = "cistern/damaged/";

/// How far a repair is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairProgress {
    /// What is being done.
    pub stage: RepairStage,
    /// How many of them are done.
    pub done: u64,
    /// How many there are.
    pub total: u64,
}

/// The steps of repairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepairStage {
    /// Index files are read.
    Index,
    /// Headers of packs are read.
    Headers,
    /// Packs are read whole.
    Packs,
    /// Snapshots with all their directories are read.
    Snapshots,
    /// What is whole is written anew: packs, or directories.
    Write,
    /// What was replaced is deleted.
    Delete,
}

/// Who listens to a repair.
pub type RepairListener<'a> = dyn Fn(RepairProgress) + Send + Sync + 'a;

/// Copies a file, as it is, to where damaged files are kept; one that does not exist is passed over.
///
/// # Errors
/// What the bucket says; [`Error::Damaged`] if the copy has another length.
async fn keep(repo: &Repository, kind: FileKind, id: &Id) -> Result<()> {
    let bucket = &repo.inner().bucket;
    let (from, to) = (kind.key(id), Key::from(format!("{KEPT}{id}")));
    let size = match bucket.head(&from).await {
        Ok((entry, _)) => entry.size,
        Err(error) if error.kind == ErrorKind::NoSuchKey => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    bucket.copy(&from, &to).await?;
    let copied = bucket.head(&to).await?.0.size;
    if copied != size {
        let detail = format!("the copy that is to be kept has {copied} bytes of {size}");
        return Err(Error::damaged(kind.as_str(), detail).named(*id));
    }
    Ok(())
}

/// Files of which copies were kept.
async fn kept(repo: &Repository) -> Result<HashSet<Id>> {
    let mut request = ListRequest { prefix: KEPT.into(), ..ListRequest::default() };
    let mut ids = HashSet::new();
    loop {
        let page = repo.inner().bucket.list(&request).await?;
        let names = page.entries.iter().filter_map(|entry| entry.key.strip_prefix(KEPT.as_bytes()));
        ids.extend(names.filter_map(|name| Id::from_hex(name).ok()));
        match page.next {
            None => return Ok(ids),
            token => request.token = token,
        }
    }
}

/// Whether an error says that what is stored is not what was written, and not that it cannot be reached now.
fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Damaged { .. } | Error::NoSuchBlob { .. })
}

/// Packs as a set that is quick to ask.
fn set(packs: impl IntoIterator<Item = Id>) -> HashSet<Id> {
    packs.into_iter().collect()
}
