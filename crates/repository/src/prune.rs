//! Frees what no snapshot needs: a plan of what would go, then its execution in an order in which nothing is lost
//! wherever it stops.
//!
//! New packs are durable before an index names them, a new index is durable before an old one goes, and packs go last:
//! at every moment each blob that a snapshot needs lies in a pack that an index names. Whoever is stopped leaves work
//! that the next run recognises: blobs that were packed anew already lie in two packs, of which the one without waste
//! is kept.

mod decide;
mod execute;
mod plan;

use std::time::Duration;

use crate::Id;

pub use self::decide::{Amount, MaxUnused};
pub use self::execute::{Pruned, prune};
pub(crate) use self::plan::needed;
pub use self::plan::{PrunePlan, Requests, plan_prune};

/// What may go, and at what cost.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneOptions {
    /// How much that is unused may stay; 5 % of all that stays unless set, as in restic.
    pub max_unused: MaxUnused,
    /// Bytes of packs that are read to be packed anew, at most.
    pub max_repack: Option<u64>,
    /// Puts packs together that are smaller than 4/5 of the size of new ones.
    pub repack_small: bool,
    /// What keeps deletion safe.
    pub margins: Margins,
    /// Snapshots that are taken for removed. A plan that was made so is only to be looked at.
    pub without: Vec<Id>,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions {
            max_unused: MaxUnused::Share(0.05),
            max_repack: None,
            repack_small: false,
            margins: Margins::SAFE,
            without: Vec::new(),
        }
    }
}

/// Times that keep deletion safe beside others who may be at work, whatever locks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margins {
    /// A pack that no index names is deleted only when it is older: a writer whose lock was lost or removed, a run that
    /// goes on after a pause, and programs that mark packs in ways of their own may be about to name it. By the store's
    /// clock on both sides: now is when it took our lock.
    pub unnamed: Duration,
}

impl Margins {
    /// Whatever others do: a day, which no run leaves its packs unnamed for.
    pub const SAFE: Margins = Margins { unnamed: Duration::from_secs(24 * 60 * 60) };
    /// Nobody else writes to this repository, now or in the last half hour.
    pub const ALONE: Margins = Margins { unnamed: Duration::ZERO };
}

/// How far a prune is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneProgress {
    /// What is being done.
    pub stage: PruneStage,
    /// How many of them are done.
    pub done: u64,
    /// How many there are.
    pub total: u64,
}

/// The steps of a prune, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PruneStage {
    /// Index files are read.
    Index,
    /// Snapshots with all their directories are read.
    Snapshots,
    /// Packs are packed anew: in bytes.
    Repack,
    /// Index files are written anew.
    Rewrite,
    /// What nobody needs is deleted.
    Delete,
}

/// Who listens to a prune.
pub type Listener<'a> = dyn Fn(PruneProgress) + Send + Sync + 'a;
