//! What is wanted, as plain data without secrets: the contract between whoever asks and the engine.

use cistern_bucket::Address;
use cistern_repository::Margins;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::protect::LockMode;
use crate::retention::{GroupBy, Policy};

/// One job for [`run`](crate::run).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "task", deny_unknown_fields)]
pub enum Task {
    /// Copy a source into a repository.
    Backup(Backup),
    /// Copy a snapshot out of a repository.
    Restore(Restore),
    /// Compare a snapshot with a live source.
    Verify(Verify),
    /// Remove snapshots that are not to be kept.
    Forget(Forget),
    /// Free what no snapshot needs.
    Prune(Prune),
    /// Lock what the snapshots need against deletion.
    Protect(Protect),
    /// Change the tags of snapshots.
    Tag(crate::Tag),
    /// Copy snapshots from one repository into another.
    Copy(crate::CopySnapshots),
    /// Write snapshots anew without what is not wanted any more.
    Rewrite(crate::Rewrite),
}

/// Copies a bucket, a prefix of one, or a directory into a repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backup {
    /// What is backed up.
    pub source: Address,
    /// Where to.
    pub repository: Address,
    /// Host name that the snapshot carries; groups snapshots for parents and retention.
    pub host: String,
    /// Path in the snapshot below which the keys lie, relative to the source's prefix, such as
    /// `/kubestash-data`. `None`: `/<bucket>/<full key>` for a bucket, the absolute path for a directory.
    #[serde(default)]
    pub root: Option<String>,
    /// Tags of the snapshot.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Which objects or files are meant.
    #[serde(default)]
    pub selection: Selection,
    /// Time of the snapshot; `None` is the beginning of the run.
    #[serde(default)]
    pub time: Option<Timestamp>,
    /// Snapshot to compare with; `None` chooses the newest of the same paths, whatever its host.
    #[serde(default)]
    pub parent: Option<String>,
    /// Reads everything again, whatever the parent says.
    #[serde(default)]
    pub force: bool,
    /// What becomes of objects that cannot be read.
    #[serde(default)]
    pub on_unreadable: OnUnreadable,
    /// Share of keys (0 to 1) that may have vanished since the parent before the run is refused.
    #[serde(default = "default_max_shrink")]
    pub max_shrink: f64,
    /// The word that accepts a source that shrank.
    #[serde(default)]
    pub accept_shrink: bool,
    /// Accepts a source without any object.
    #[serde(default)]
    pub allow_empty: bool,
    /// Reads the objects' tags where the store says that there are some.
    #[serde(default = "yes")]
    pub tags_of_objects: bool,
    /// Keeps access times (directories only), as restic's `--with-atime`.
    #[serde(default)]
    pub with_atime: bool,
    /// Stays on the file system of the source directory.
    #[serde(default)]
    pub one_file_system: bool,
    /// Compares directories' files by size and modification time only (for mounts of buckets).
    #[serde(default)]
    pub ignore_inode: bool,
    /// The source directory is a mount of a bucket: its files become the nodes that the bucket itself would give, and are
    /// compared by size and time of modification, in whole seconds where one side has no more. What did not change keeps
    /// the attributes that the parent has of it.
    #[serde(default)]
    pub mount: bool,
    /// Lists and compares, but reads and writes nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Writes no snapshot if nothing changed since the parent.
    #[serde(default)]
    pub skip_if_unchanged: bool,
    /// At most this many keys in one directory of one part (see repository-format.md: a directory is one
    /// tree blob).
    #[serde(default = "default_part_keys")]
    pub part_keys: u32,
}

fn default_max_shrink() -> f64 {
    0.5
}

fn default_part_keys() -> u32 {
    40_000
}

fn yes() -> bool {
    true
}

impl Backup {
    /// A backup of `source` into `repository` with every setting at its default.
    pub fn new(source: Address, repository: Address, host: impl Into<String>) -> Self {
        Backup {
            source,
            repository,
            host: host.into(),
            root: None,
            tags: Vec::new(),
            selection: Selection::default(),
            time: None,
            parent: None,
            force: false,
            on_unreadable: OnUnreadable::Fail,
            max_shrink: default_max_shrink(),
            accept_shrink: false,
            allow_empty: false,
            tags_of_objects: true,
            with_atime: false,
            one_file_system: false,
            ignore_inode: false,
            mount: false,
            dry_run: false,
            skip_if_unchanged: false,
            part_keys: default_part_keys(),
        }
    }
}

/// What becomes of objects that cannot be read (archived, encrypted with a customer key, denied).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnreadable {
    /// The run is incomplete; what could be read is kept, restorable and named in the report.
    #[default]
    Fail,
    /// The user accepts that they are missing.
    Skip,
}

/// Which objects or files are meant, by patterns on the key or path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selection {
    /// Only what matches one of these; empty means everything. Patterns as restic's.
    #[serde(default)]
    pub include: Vec<String>,
    /// But nothing that matches one of these.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Patterns ignore upper and lower case.
    #[serde(default)]
    pub ignore_case: bool,
    /// Nothing larger than this many bytes.
    #[serde(default)]
    pub max_size: Option<u64>,
    /// Nothing modified before this time.
    #[serde(default)]
    pub modified_since: Option<Timestamp>,
}

/// Names a snapshot: `latest`, `latest~1`, an id or a unique beginning of one, `run:` and the id of a run, each with
/// `:path` for a subfolder. The id of a part means its whole run, if no part of that is missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SnapshotSelector {
    /// The name as above.
    pub name: String,
    /// Considers only snapshots of one of these hosts; empty means any.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Considers only snapshots with these paths.
    #[serde(default)]
    pub paths: Vec<String>,
    /// Considers only snapshots with all tags of one of these lists, whose tags are separated by commas; empty means
    /// any. The same as restic's `--tag`.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// Copies a snapshot, or a selection of it, to a bucket or a directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restore {
    /// Where from.
    pub repository: Address,
    /// Which snapshot.
    pub snapshot: SnapshotSelector,
    /// Where to.
    pub target: Address,
    /// Which objects or files are meant; patterns match paths in the snapshot.
    #[serde(default)]
    pub selection: Selection,
    /// Replaces the beginnings of keys: the first pair whose first half fits counts.
    #[serde(default)]
    pub remap: Vec<(String, String)>,
    /// What becomes of objects that are there already.
    #[serde(default)]
    pub overwrite: Overwrite,
    /// Deletes what is in the target's selected prefix but not in the snapshot (rules.md 1.5).
    #[serde(default)]
    pub delete: bool,
    /// Stops after the plan.
    #[serde(default)]
    pub dry_run: bool,
    /// Reads back what was written and compares it.
    #[serde(default)]
    pub verify: bool,
    /// How files are written.
    #[serde(default)]
    pub writer: Writer,
    /// Restores owners, set-uid bits and device nodes too (directories; needs privileges).
    #[serde(default)]
    pub privileged: bool,
}

impl Restore {
    /// A restore of the snapshot called `name` to `target` with every setting at its default.
    pub fn new(repository: Address, name: impl Into<String>, target: Address) -> Self {
        Restore {
            repository,
            snapshot: SnapshotSelector { name: name.into(), ..SnapshotSelector::default() },
            target,
            selection: Selection::default(),
            remap: Vec::new(),
            overwrite: Overwrite::default(),
            delete: false,
            dry_run: false,
            verify: false,
            writer: Writer::default(),
            privileged: false,
        }
    }
}

/// What becomes of objects that are there already, in restic's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overwrite {
    /// Writes every object.
    Always,
    /// Writes only objects whose contents or attributes differ, where equality can be known without trust
    /// in times; otherwise writes.
    #[default]
    IfChanged,
    /// Writes only objects that are newer in the snapshot.
    IfNewer,
    /// Leaves what is there alone.
    Never,
}

/// How files are written to a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Writer {
    /// A probe of the target decides.
    #[default]
    Auto,
    /// Blobs are written where they belong, in any order.
    Random,
    /// Create, write in order, close: nothing else (Mountpoint and the like).
    Sequential,
}

/// Compares a snapshot with its live source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verify {
    /// The repository.
    pub repository: Address,
    /// Which snapshot.
    pub snapshot: SnapshotSelector,
    /// The live source; `None` is the one that the snapshot was taken from, which only the caller knows.
    pub source: Address,
    /// Path in the snapshot below which the keys lie, as in [`Backup::root`].
    #[serde(default)]
    pub root: Option<String>,
    /// Which objects are meant.
    #[serde(default)]
    pub selection: Selection,
    /// Reads the contents on both sides, too.
    #[serde(default)]
    pub content: bool,
}

/// Removes snapshots: those that are named, or those that a policy does not keep. What they hold stays in the repository
/// until it is pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Forget {
    /// The repository.
    pub repository: Address,
    /// Snapshots to remove, whatever the policy says; none has the policy decide. A part stands for its run.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// The policy looks at runs of these hosts, paths and tags only; its name is not used.
    #[serde(default)]
    pub filter: SnapshotSelector,
    /// What is kept.
    #[serde(default)]
    pub policy: Policy,
    /// The policy is applied to each group by itself.
    #[serde(default)]
    pub group_by: GroupBy,
    /// Without names and rules, removes all that the filter accepts. A policy that keeps nothing of a group is refused in
    /// any case.
    #[serde(default)]
    pub allow_remove_all: bool,
    /// Removes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// Frees what no snapshot needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prune {
    /// The repository.
    pub repository: Address,
    /// How much that is unused may stay.
    #[serde(default)]
    pub max_unused: Unused,
    /// Bytes of packs that are read to be packed anew, at most.
    #[serde(default)]
    pub max_repack: Option<u64>,
    /// Puts small packs together.
    #[serde(default)]
    pub repack_small: bool,
    /// No pack is begun to be packed anew after so many seconds; the next run goes on.
    #[serde(default)]
    pub time_limit: Option<u64>,
    /// Seconds for which a pack stays that no index names: somebody may be about to name it. A day unless set; none if
    /// nobody else writes to this repository.
    #[serde(default = "a_day")]
    pub grace: u64,
    /// Snapshots that count as removed already; in a dry run only.
    #[serde(default)]
    pub without: Vec<String>,
    /// Deletes and writes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl Prune {
    /// A prune of this repository with every setting at its default.
    pub fn new(repository: Address) -> Self {
        Prune {
            repository,
            max_unused: Unused::default(),
            max_repack: None,
            repack_small: false,
            time_limit: None,
            grace: a_day(),
            without: Vec::new(),
            dry_run: false,
        }
    }
}

fn a_day() -> u64 {
    Margins::SAFE.unnamed.as_secs()
}

/// How much that no snapshot needs may stay, to save the work of packing what lies around it anew.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unused {
    /// A share (0 to 1) of all that stays.
    Share(f64),
    /// So many bytes.
    Bytes(u64),
    /// Any amount.
    Unlimited,
}

impl Default for Unused {
    fn default() -> Self {
        Unused::Share(0.05)
    }
}

/// Locks everything that the snapshots of a repository need against deletion, for a time, where the bucket can.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Protect {
    /// The repository.
    pub repository: Address,
    /// Until when, at least; `None` asks only what is locked now.
    #[serde(default)]
    pub until: Option<Timestamp>,
    /// Who may take the locks away before.
    #[serde(default)]
    pub mode: LockMode,
    /// Locks nothing.
    #[serde(default)]
    pub dry_run: bool,
}

impl Protect {
    /// Asks what is locked now.
    pub fn new(repository: Address) -> Self {
        Protect { repository, until: None, mode: LockMode::default(), dry_run: false }
    }
}
