//! Writes snapshots anew without what matches a pattern: only directories are read and written, never data.
//!
//! What stays is written again byte by byte, so that everything that does not change keeps its id. The old snapshots stay
//! as well, unless they are to be forgotten: then they go when the new ones are durable. A run of several parts is
//! written anew as a whole and under another name, because the parts of the old one would be taken for parts of it.

mod tree;

use std::collections::HashMap;
use std::sync::Arc;

use cistern_bucket::Address;
use cistern_repository::{Id, Lock, LockKind, Repository, Snapshot, Writer};
use serde::{Deserialize, Serialize};

use self::tree::{Rewriter, Rewritten};
use crate::backup::session::{lock_as, open_repository, seal};
use crate::select::Select;
use crate::snapshots::{PARTIAL_TAG, RUN_TAG, Run, chosen};
use crate::{Cx, Error, Result, Selection, SnapshotSelector};

/// Tag of a snapshot that was written anew beside the old one, as restic gives it.
const REWRITE_TAG: &str = "rewrite";
/// Paths that are named for each snapshot.
const NAMED: usize = 1_000;

/// Writes those snapshots anew that are named, or that the filter accepts, without what the patterns match.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rewrite {
    /// The repository.
    pub repository: Address,
    /// The snapshots; none means all that the filter accepts. A part stands for its run.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// Runs of these hosts, paths and tags only; its name is not used.
    #[serde(default)]
    pub filter: SnapshotSelector,
    /// Patterns of what is left out, as in [`Selection`].
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The same, whatever the case of letters.
    #[serde(default)]
    pub exclude_any_case: Vec<String>,
    /// Removes the old snapshots.
    #[serde(default)]
    pub forget: bool,
    /// Writes and removes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a rewrite did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RewriteReport {
    /// Snapshots that were written anew.
    pub rewritten: Vec<RewrittenSnapshot>,
    /// Snapshots that hold nothing that the patterns match.
    pub unchanged: u64,
    /// Old snapshots that were removed.
    pub removed: u64,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
}

/// A snapshot that was written anew.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RewrittenSnapshot {
    /// The old id.
    pub old: String,
    /// The new id; none in a dry run.
    pub new: Option<String>,
    /// Files and directories that were left out, each directory once with all that it holds.
    pub left_out: u64,
    /// The paths of the first of them.
    pub first: Vec<String>,
}

/// What is left out.
struct Patterns([Select; 2]);

impl Patterns {
    fn new(task: &Rewrite) -> Result<Self> {
        let select = |exclude: &[String], ignore_case| {
            Select::new(&Selection { exclude: exclude.to_vec(), ignore_case, ..Selection::default() })
        };
        let all = [select(&task.exclude, false)?, select(&task.exclude_any_case, true)?];
        if all.iter().all(Select::takes_every_path) {
            return Err(Error::Invalid("nothing says what to leave out: give a pattern".into()));
        }
        Ok(Patterns(all))
    }

    fn exclude(&self, path: &[u8]) -> bool {
        self.0.iter().any(|select| select.excludes(path))
    }
}

/// Rewrites.
///
/// # Errors
/// Whatever kept it from being done. No old snapshot goes before its new one is durable.
pub(crate) async fn run(task: &Rewrite, cx: &Cx) -> Result<RewriteReport> {
    let patterns = Patterns::new(task)?;
    let repository = cx.unless_cancelled(open_repository(&task.repository, cx)).await?.0;
    if task.dry_run {
        return rewrite(task, &patterns, &repository, None, cx).await;
    }
    let kind = if task.forget { LockKind::Exclusive } else { LockKind::Shared };
    let lock = Arc::new(lock_as(&repository, kind, cx).await?);
    let outcome = rewrite(task, &patterns, &repository, Some(&lock), cx).await;
    lock.release().await;
    outcome
}

async fn rewrite(
    task: &Rewrite,
    patterns: &Patterns,
    repository: &Repository,
    lock: Option<&Arc<Lock>>,
    cx: &Cx,
) -> Result<RewriteReport> {
    let loading = async {
        let snapshots = repository.snapshots().await?;
        Ok::<_, Error>((snapshots, repository.index().await?))
    };
    let (snapshots, index) = cx.unless_cancelled(loading).await?;
    let runs = chosen(&snapshots, &task.snapshots, &task.filter)?;
    let writer = lock.map(|lock| repository.writer(index.clone(), lock.clone()));
    let rewriter = Rewriter::new(repository.reader(index), writer.clone(), |path| patterns.exclude(path));
    let changes = cx.unless_cancelled(changes(task, runs, rewriter)).await;
    match (changes, writer, lock) {
        (Err(error), Some(writer), _) => {
            writer.abort().await;
            Err(error)
        }
        (Err(error), ..) => Err(error),
        (Ok(changes), Some(writer), Some(lock)) => {
            carry_out(changes, &snapshots, writer, task.forget.then_some(&**lock), repository, cx).await
        }
        (Ok(changes), ..) => {
            let rewritten = changes.new.into_iter().map(|change| change.report(None)).collect();
            Ok(RewriteReport { rewritten, unchanged: changes.unchanged, removed: 0, dry_run: true })
        }
    }
}

/// A snapshot that changes.
struct Change {
    old: Id,
    new: Snapshot,
    left_out: u64,
    first: Vec<String>,
}

impl Change {
    fn report(self, new: Option<Id>) -> RewrittenSnapshot {
        let new = new.map(|id| id.to_string());
        RewrittenSnapshot { old: self.old.to_string(), new, left_out: self.left_out, first: self.first }
    }
}

#[derive(Default)]
struct Changes {
    new: Vec<Change>,
    unchanged: u64,
}

/// Writes the directories of all runs anew, and says which snapshots change.
async fn changes(
    task: &Rewrite,
    runs: Vec<Run>,
    mut rewriter: Rewriter<impl Fn(&[u8]) -> bool>,
) -> Result<Changes> {
    let mut changes = Changes::default();
    for run in runs {
        let mut parts = Vec::with_capacity(run.parts.len());
        for (id, snapshot) in run.parts {
            let rewritten = rewriter.root(snapshot.tree, NAMED).await?;
            parts.push((id, snapshot, rewritten));
        }
        if parts.iter().all(|(_, snapshot, rewritten)| rewritten.tree == snapshot.tree) {
            changes.unchanged += parts.len() as u64;
            continue;
        }
        let name = name(parts.iter().map(|(id, _, rewritten)| (*id, rewritten.tree)));
        changes.new.extend(parts.into_iter().map(|(old, snapshot, rewritten)| {
            let new = anew(&old, &snapshot, &rewritten, &name, task.forget);
            Change { old, new, left_out: rewritten.left_out, first: rewritten.first }
        }));
    }
    Ok(changes)
}

/// The name of the run that stands for another one: the same whenever it is made of the same.
fn name(parts: impl Iterator<Item = (Id, Id)>) -> String {
    let mut text = Vec::new();
    for (old, tree) in parts {
        text.extend_from_slice(old.as_bytes());
        text.extend_from_slice(tree.as_bytes());
    }
    Id::of(&text).to_string()[..16].to_owned()
}

/// The new snapshot.
fn anew(id: &Id, old: &Snapshot, rewritten: &Rewritten, run: &str, forget: bool) -> Snapshot {
    let mut new = Snapshot { tree: rewritten.tree, original: Some(*id), ..old.clone() };
    for tag in new.tags.iter_mut().filter(|tag| tag.starts_with(RUN_TAG)) {
        *tag = format!("{RUN_TAG}{run}");
    }
    let marks = [PARTIAL_TAG].into_iter().chain((!forget).then_some(REWRITE_TAG));
    for mark in marks {
        if !new.tags.iter().any(|tag| tag == mark) {
            new.tags.push(mark.to_owned());
        }
    }
    if let Some(summary) = &mut new.summary {
        summary.total_files_processed = rewritten.files;
        summary.total_bytes_processed = rewritten.bytes;
    }
    new
}

/// Makes the new snapshots durable, and lets the old ones go under an exclusive lock.
async fn carry_out(
    changes: Changes,
    there: &[(Id, Snapshot)],
    writer: Writer,
    forget: Option<&Lock>,
    repository: &Repository,
    cx: &Cx,
) -> Result<RewriteReport> {
    // What an earlier call that broke off has written already is not written a second time.
    let there: HashMap<Vec<u8>, Id> = there.iter().map(|(id, snapshot)| (snapshot.to_json(), *id)).collect();
    let known: Vec<Option<Id>> =
        changes.new.iter().map(|change| there.get(&change.new.to_json()).copied()).collect();
    let missing = changes.new.iter().zip(&known).filter(|(_, known)| known.is_none());
    let drafts = missing.map(|(change, _)| change.new.clone()).collect();
    let mut written = seal(writer, cx, |_| drafts).await?.ids.into_iter();
    let mut report = RewriteReport { unchanged: changes.unchanged, ..RewriteReport::default() };
    for (change, known) in changes.new.into_iter().zip(known) {
        let new = known.or_else(|| written.next());
        if let (Some(lock), Some(_)) = (forget, new) {
            repository.remove_snapshot(&change.old, lock).await?;
            report.removed += 1;
        }
        report.rewritten.push(change.report(new));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::tests::snapshot;

    #[test]
    fn the_new_snapshot_says_what_it_is() {
        let (id, old) = snapshot(0x11, 10, "a", &["/x"], &["t", "run:r1", "parts:2"]);
        let rewritten = Rewritten { tree: Id::of(b"new"), ..Rewritten::default() };
        let beside = anew(&id, &old, &rewritten, "r2", false);
        assert_eq!(beside.tags, ["t", "run:r2", "parts:2", "partial", "rewrite"]);
        assert_eq!((beside.original, beside.tree, beside.time), (Some(id), rewritten.tree, old.time));
        let instead = anew(&id, &old, &rewritten, "r2", true);
        assert_eq!(instead.tags, ["t", "run:r2", "parts:2", "partial"]);
    }
}
