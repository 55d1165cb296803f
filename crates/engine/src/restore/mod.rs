//! Restore: a plan of what goes where, then the placing.
//!
//! A snapshot (all parts of its run) is walked twice in the same order. The first walk looks at the target,
//! decides about every file by the conflict policy, and counts; the plan that it yields is shown and approved.
//! The second walk places: it cuts the contents into windows, which the repository delivers from its packs, and
//! each blob is written from where it was decoded. Memory holds one directory per level, the windows in flight,
//! and two bits per file for the decisions.
//!
//! # What the target contains
//!
//! | Target | `latest` | `latest:/sub/path` |
//! |---|---|---|
//! | a directory | the full path in the snapshot, below it | what is below the path |
//! | a bucket or prefix | the key behind the root of the snapshot (`/<bucket>` of a bucket, else its path), behind the prefix | the key behind the path, behind the prefix |
//!
//! Patterns and new beginnings apply to paths below `/sub/path` if there is one, as in restic; in a target bucket
//! new beginnings apply to keys.
//!
//! # What a whole result is
//!
//! An object that could not be placed, or not under its own name, is an exception, and a restore with exceptions
//! ends with [`Error::Incomplete`] and its report. Attributes that a target cannot take are counted and do not
//! make it incomplete.

mod attributes;
mod beneath;
mod bucket;
mod compare;
mod confirm;
mod conflict;
mod cursor;
mod delete;
mod directory;
mod fill;
mod landing;
mod object;
mod place;
mod placer;
mod plan;
mod probe;
mod random;
mod sequential;
#[cfg(test)]
mod strict;
mod target;
mod walk;
mod window;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cistern_bucket::{Address, Key, LedgerSnapshot};
use cistern_repository::{Id, Node, NodeKind, Reader, Repository, Snapshot};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use self::delete::Covered;
use self::walk::{Order, Walk};
use crate::backup::session::{Collector, Ticker, lock, open_repository};
use crate::parts::{self, PartInfo};
use crate::select::{Select, clean};
use crate::snapshots::{self, Run};
use crate::{Cx, Error, ExceptionKind, Meter, Note, Phase, Plan, Restore, RestoreReport, Result};

/// What every target shares.
pub(crate) struct Job {
    pub task: Restore,
    pub cx: Cx,
    pub reader: Arc<Reader>,
    pub select: Arc<Select>,
    pub run: Run,
    /// Where to begin, one per part.
    pub roots: Vec<Root>,
    /// What the snapshots cover, if something is to be deleted.
    pub covered: Option<Covered>,
    /// Directories that are never swept.
    pub guarded: Vec<delete::Place>,
    /// Files that were placed under other names as no directory can hold theirs: exceptions, but no failures.
    pub escaped: AtomicU64,
    /// Keys that cut the snapshot's into ranges of about equal length.
    pub splits: Vec<Key>,
    pub meter: Arc<Meter>,
    pub collector: Arc<Collector>,
    /// Cancelled when nothing more is to be done: by the caller, or because the target failed.
    pub stop: CancellationToken,
}

/// Where a walk over one part begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    /// The tree.
    pub tree: Id,
    /// Its path in the snapshot, empty for the snapshot's own root; behind a colon, paths begin anew.
    pub path: Vec<u8>,
    /// The path that patterns see of it.
    pub base: Vec<u8>,
}

/// What was done, for the report.
#[derive(Default)]
pub(crate) struct Outcome {
    pub plan: Plan,
    pub written: u64,
    pub bytes: u64,
    pub deleted: u64,
    /// What was to be deleted stays, because something could not be restored.
    pub kept_doomed: bool,
    pub others: u64,
    pub verified: u64,
    pub requests: Option<LedgerSnapshot>,
}

impl Job {
    /// A walk over one part.
    pub fn walk(&self, root: &Root, order: Order) -> Walk {
        Walk::new(self.reader.clone(), self.select.clone(), order, root.tree, root.base.clone())
    }

    /// The path from where the walks begin to what the snapshots cover; empty if that is all of it.
    ///
    /// # Errors
    /// `Invalid` if they have nothing to do with each other.
    pub fn covered_path(&self, covered: &Covered) -> Result<Vec<u8>> {
        covered.below(self.roots.first().map_or(b"/", |root| &root.path))
    }

    /// A plan with what is known before the walk.
    pub fn plan(&self, target: String) -> Plan {
        let snapshots = self.run.parts.iter().map(|(id, _)| id.to_string()).collect();
        Plan { snapshots, target, ..Plan::default() }
    }

    /// Asks whether the plan may be carried out; `false` if it is only to be shown.
    ///
    /// # Errors
    /// `Refused`, `Cancelled`.
    pub async fn approved(&self, plan: &Plan) -> Result<bool> {
        self.meter.totals_final();
        if self.task.dry_run {
            return Ok(false);
        }
        let approved = tokio::select! {
            approved = self.cx.progress.approve(plan) => approved,
            () = self.cx.cancel.cancelled() => return Err(Error::Cancelled),
        };
        if approved { Ok(true) } else { Err(Error::Refused) }
    }

    /// Whether what was planned may be deleted now: not if anything of the snapshot is missing from the target.
    pub fn may_delete(&self) -> bool {
        let harmless = self.collector.count(ExceptionKind::AttributeLost) + self.escaped.load(Relaxed);
        if self.collector.total() <= harmless {
            return true;
        }
        let why = "nothing is deleted, because not everything could be restored";
        self.cx.progress.note(Note::Info(why.into()));
        false
    }

    /// Fails if nothing more is to be done.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check(&self) -> Result<()> {
        if self.stop.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

/// Does what the task says.
///
/// # Errors
/// What is wrong with repository or target; `Refused`; `Incomplete` if something could not be placed.
pub(crate) async fn run(task: &Restore, cx: &Cx) -> Result<RestoreReport> {
    let started = Timestamp::now();
    let select = Arc::new(Select::new(&task.selection)?);
    delete::check(task)?;
    let meter = Arc::new(Meter::default());
    let ticker = Ticker::start(meter.clone(), cx.progress.clone());
    let (repository, before) = cx.unless_cancelled(open_repository(&task.repository, cx)).await?;
    let guarded = delete::guarded(task, repository.options().cache.as_deref())?;
    let lock = match task.dry_run {
        true => None,
        false => lock_if_possible(&repository, cx).await?,
    };
    let found = cx.unless_cancelled(find(&repository, task)).await;
    let Source { run, reader, roots, covered, splits } = match found {
        Ok(found) => found,
        Err(error) => {
            release(lock).await;
            return Err(error);
        }
    };
    meter.enter(Phase::Planning);
    let collector = Arc::new(Collector::new(cx.progress.clone(), meter.clone()));
    let stop = cx.cancel.child_token();
    // If nobody waits for the restore any more, its threads stop too.
    let guard = stop.clone().drop_guard();
    let job = Arc::new(Job {
        task: task.clone(),
        cx: cx.clone(),
        reader: Arc::new(reader),
        select,
        run,
        roots,
        covered,
        guarded,
        escaped: AtomicU64::new(0),
        splits,
        meter: meter.clone(),
        collector: collector.clone(),
        stop,
    });
    let outcome = match &task.target {
        Address::Directory(path) => directory::restore(job.clone(), path.clone()).await,
        address => bucket::restore(job.clone(), address).await,
    };
    drop(guard);
    release(lock).await;
    let outcome = outcome?;
    meter.enter(Phase::Done);
    ticker.stop();
    let report = RestoreReport {
        snapshots: outcome.plan.snapshots.clone(),
        objects_written: outcome.written,
        bytes_written: outcome.bytes,
        objects_kept: outcome.plan.keep,
        objects_deleted: outcome.deleted,
        others_written: outcome.others,
        objects_verified: outcome.verified,
        target_requests: outcome.requests.map(Into::into).unwrap_or_default(),
        repository_requests: repository.bucket().ledger().snapshot().since(&before).into(),
        exceptions: collector.take(),
        plan: outcome.plan,
        started,
        ended: Timestamp::now(),
    };
    let missing = report.exceptions.total() - report.exceptions.count(ExceptionKind::AttributeLost);
    if missing == 0 {
        return Ok(report);
    }
    let mut why = match missing {
        1 => "one object could not be restored as it was".to_owned(),
        n => format!("{n} objects could not be restored as they were"),
    };
    if outcome.kept_doomed {
        why.push_str("; nothing was deleted");
    }
    Err(Error::Incomplete { why, report: Box::new(crate::Report::Restore(report)) })
}

/// A shared lock, so that nobody removes what is read; a repository that we may only read has to do without.
///
/// # Errors
/// As [`lock`].
pub(crate) async fn lock_if_possible(
    repository: &Repository,
    cx: &Cx,
) -> Result<Option<cistern_repository::Lock>> {
    match lock(repository, cx).await {
        Ok(lock) => Ok(Some(lock)),
        Err(Error::Repository(error)) if error.class() == cistern_bucket::Class::Denied => {
            let note = "the repository cannot be locked (no permission to write): going on without";
            cx.progress.note(Note::Info(note.into()));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn release(lock: Option<cistern_repository::Lock>) {
    if let Some(lock) = lock {
        lock.release().await;
    }
}

/// What is restored.
struct Source {
    run: Run,
    reader: Reader,
    roots: Vec<Root>,
    covered: Option<Covered>,
    splits: Vec<Key>,
}

/// The snapshots that the task names, and where to begin in each.
async fn find(repository: &Repository, task: &Restore) -> Result<Source> {
    let all = repository.snapshots().await?;
    let selected = snapshots::resolve(&all, &task.snapshot)?;
    let reader = repository.reader(repository.index().await?);
    // Each with the key that its part begins behind: a listing of the target goes by once, in the order of keys.
    let mut roots: Vec<(Option<Key>, Root)> = Vec::new();
    let mut splits = Vec::new();
    for (_, snapshot) in &selected.run.parts {
        let (root, part) = match (&task.target, selected.run.parts.len(), &selected.subpath) {
            (Address::Directory(_), ..) | (_, 1, Some(_)) => (None, None),
            _ => {
                let (root, part) = source_root(&reader, snapshot).await?;
                (Some(root), part)
            }
        };
        let after = part.as_ref().and_then(|part| part.bounds.after.clone());
        let root = match (&selected.subpath, root) {
            (Some(path), _) => {
                let path = clean(format!("/{path}").as_bytes());
                let found = descend(&reader, snapshot.tree, &path, false).await?;
                let Some((tree, ..)) = found else { continue };
                Root { tree, path, base: Vec::new() }
            }
            (None, Some(root)) => {
                if let Some(part) = part {
                    splits.extend(part.bounds.after);
                    splits.extend(part.splits);
                }
                root
            }
            (None, None) => Root { tree: snapshot.tree, path: Vec::new(), base: Vec::new() },
        };
        roots.push((after, root));
    }
    if let (Some(path), true) = (&selected.subpath, roots.is_empty()) {
        let path = Key::new(clean(format!("/{path}").as_bytes()));
        return Err(Error::NotFound(format!("the snapshot holds no directory {path}")));
    }
    roots.sort_by(|a, b| a.0.cmp(&b.0));
    let roots = roots.into_iter().map(|(_, root)| root).collect();
    let run = selected.run;
    let covered = match task.delete {
        true => Some(delete::prove(&reader, &run).await?),
        false => None,
    };
    Ok(Source { run, reader, roots, covered, splits })
}

/// Where the keys of a snapshot begin, and what the node there says of the part: the root directory of a bucket, or
/// the one path that was saved; the snapshot's own root if there are several.
async fn source_root(reader: &Reader, snapshot: &Snapshot) -> Result<(Root, Option<PartInfo>)> {
    let root = |tree, path: Vec<u8>| Root { tree, base: path.clone(), path };
    let whole = root(snapshot.tree, Vec::new());
    let Some(path) = snapshot.paths.first() else { return Ok((whole, None)) };
    let path = clean(path.as_bytes());
    let found = descend(reader, snapshot.tree, &path, true).await?;
    Ok(match found {
        Some((tree, at, Some(node))) => (root(tree, path[..at].to_vec()), PartInfo::of(&node)),
        Some((tree, _, None)) if snapshot.paths.len() == 1 && path != b"/" => (root(tree, path), None),
        _ => (whole, None),
    })
}

/// The tree of the directory of this path in a snapshot; if `source` says so, that of the first one on the way that is
/// a bucket's root directory, with its node. Also how much of the path leads there.
async fn descend(
    reader: &Reader,
    tree: Id,
    path: &[u8],
    source: bool,
) -> Result<Option<(Id, usize, Option<Node>)>> {
    let mut at = tree;
    let mut length = 0;
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let tree = reader.tree(&at).await?;
        let Some(node) = tree.get(name).filter(|node| node.kind == NodeKind::Dir) else { return Ok(None) };
        let Some(subtree) = node.subtree else { return Ok(None) };
        length += 1 + name.len();
        if source && node.xattrs.iter().any(|xattr| &*xattr.name == parts::ATTRIBUTE) {
            return Ok(Some((subtree, length, Some(node.clone()))));
        }
        at = subtree;
    }
    Ok(Some((at, path.len(), None)))
}

/// The counts of a target directory, for the outcome.
fn outcome(plan: Plan, counts: &beneath::Counts) -> Outcome {
    Outcome {
        plan,
        written: counts.written.load(Relaxed),
        bytes: counts.bytes.load(Relaxed),
        others: counts.others.load(Relaxed),
        ..Outcome::default()
    }
}
