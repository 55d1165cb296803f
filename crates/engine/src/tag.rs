//! Changes the tags of snapshots.
//!
//! A file of the repository never changes: a snapshot with other tags is a new one, which is durable before the old one
//! goes, and which names the first of its ancestors as its `original`. The whole list is looked at under the exclusive
//! lock, which restic takes for this, too.

use std::collections::{BTreeSet, HashMap};

use cistern_bucket::Address;
use cistern_repository::{Id, Lock, LockKind, Repository, Snapshot};
use serde::{Deserialize, Serialize};

use crate::backup::session::{lock_as, open_repository};
use crate::snapshots::{Run, check_tags, chosen, is_reserved};
use crate::{Cx, Error, Result, SnapshotSelector};

/// Changes the tags of those snapshots that are named, or that the filter accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tag {
    /// The repository.
    pub repository: Address,
    /// The snapshots; none means all that the filter accepts. A part stands for its run.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// Runs of these hosts, paths and tags only; its name is not used.
    #[serde(default)]
    pub filter: SnapshotSelector,
    /// What becomes of the tags.
    pub change: TagChange,
    /// Changes nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What becomes of the tags of a snapshot. Those that say something about its run stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TagChange {
    /// These are in the place of all others.
    Set(Vec<String>),
    /// Some come, and then some go.
    Edit {
        /// Tags that are to be there.
        #[serde(default)]
        add: Vec<String>,
        /// Tags that are not.
        #[serde(default)]
        remove: Vec<String>,
    },
}

impl TagChange {
    fn check(&self) -> Result<()> {
        match self {
            TagChange::Set(tags) => check_tags(tags)?,
            TagChange::Edit { add, remove } => {
                check_tags(add)?;
                check_tags(remove)?;
                if add.is_empty() && remove.is_empty() {
                    return Err(Error::Invalid("no tag is set, added or removed".into()));
                }
            }
        }
        let (TagChange::Set(new) | TagChange::Edit { add: new, .. }) = self;
        match new.iter().find(|tag| tag.is_empty() || tag.contains(',')) {
            None => Ok(()),
            Some(tag) => {
                Err(Error::Invalid(format!("'{tag}' is no tag: it is empty, or there is a comma in it")))
            }
        }
    }

    /// The tags that a snapshot has afterwards; nothing if they stay the same.
    fn apply(&self, old: &[String]) -> Option<Vec<String>> {
        let mut new: Vec<String> = Vec::new();
        let mut push = |tag: &String| {
            if !new.contains(tag) {
                new.push(tag.clone());
            }
        };
        match self {
            TagChange::Set(tags) => {
                tags.iter().for_each(&mut push);
                old.iter().filter(|tag| is_reserved(tag)).for_each(push);
            }
            TagChange::Edit { add, remove } => {
                old.iter().chain(add).filter(|tag| !remove.contains(tag)).for_each(push);
            }
        }
        let set = |tags: &[String]| tags.iter().cloned().collect::<BTreeSet<_>>();
        (set(old) != set(&new)).then_some(new)
    }
}

/// What a change of tags did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TagReport {
    /// Snapshots whose tags changed.
    pub changed: Vec<Retagged>,
    /// Snapshots that had these tags already.
    pub unchanged: u64,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
}

/// A snapshot whose tags changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Retagged {
    /// Its id.
    pub old: String,
    /// The id of the snapshot that is in its place; none in a dry run.
    pub new: Option<String>,
    /// Its tags now.
    pub tags: Vec<String>,
}

/// Changes tags.
///
/// # Errors
/// Whatever kept it from being done. What was changed before an error stays changed; no snapshot is lost.
pub(crate) async fn run(task: &Tag, cx: &Cx) -> Result<TagReport> {
    task.change.check()?;
    let repository = cx.unless_cancelled(open_repository(&task.repository, cx)).await?.0;
    if task.dry_run {
        return retag(task, &repository, None, cx).await;
    }
    let lock = lock_as(&repository, LockKind::Exclusive, cx).await?;
    let outcome = retag(task, &repository, Some(&lock), cx).await;
    lock.release().await;
    outcome
}

/// Changes tags under `lock`; without one, tells what would change.
async fn retag(task: &Tag, repository: &Repository, lock: Option<&Lock>, cx: &Cx) -> Result<TagReport> {
    let snapshots = cx.unless_cancelled(repository.snapshots()).await?;
    // What an earlier call left beside its old snapshot because it broke off is not written a second time.
    let there: HashMap<Vec<u8>, Id> =
        snapshots.iter().map(|(id, snapshot)| (snapshot.to_json(), *id)).collect();
    let mut report = TagReport { dry_run: lock.is_none(), ..TagReport::default() };
    for run in chosen(&snapshots, &task.snapshots, &task.filter)? {
        if cx.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let changes = changes(&task.change, &run);
        report.unchanged += (run.parts.len() - changes.len()) as u64;
        let mut new = Vec::with_capacity(changes.len());
        for (_, snapshot) in &changes {
            new.push(match (there.get(&snapshot.to_json()), lock) {
                (Some(id), _) => Some(*id),
                (None, Some(lock)) => Some(repository.save_snapshot(snapshot, lock).await?),
                (None, None) => None,
            });
        }
        // Now all parts are there with their new tags.
        for ((old, snapshot), new) in changes.into_iter().zip(new) {
            if let Some(lock) = lock {
                repository.remove_snapshot(&old, lock).await?;
            }
            let new = new.filter(|_| lock.is_some()).map(|id| id.to_string());
            report.changed.push(Retagged { old: old.to_string(), new, tags: snapshot.tags });
        }
    }
    Ok(report)
}

/// The snapshots of a run whose tags change, as they are afterwards.
fn changes(change: &TagChange, run: &Run) -> Vec<(Id, Snapshot)> {
    let changed = run.parts.iter().filter_map(|(id, snapshot)| {
        let tags = change.apply(&snapshot.tags)?;
        let original = snapshot.original.or(Some(*id));
        Some((*id, Snapshot { tags, original, ..snapshot.clone() }))
    });
    changed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(tags: &[&str]) -> Vec<String> {
        tags.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tags_are_set_added_and_removed_as_restic_does() {
        let set = |tags: &[&str]| TagChange::Set(own(tags));
        let edit = |add: &[&str], remove: &[&str]| TagChange::Edit { add: own(add), remove: own(remove) };
        type Case = (TagChange, &'static [&'static str], Option<&'static [&'static str]>);
        let table: [Case; 10] = [
            (set(&["a"]), &["b"], Some(&["a"])),
            (set(&["a", "b", "a"]), &["b", "a"], None),
            (set(&[]), &["b"], Some(&[])),
            (set(&[]), &[], None),
            (set(&["a"]), &["run:1", "b", "parts:2", "partial"], Some(&["a", "run:1", "parts:2", "partial"])),
            (edit(&["a"], &[]), &["b"], Some(&["b", "a"])),
            (edit(&["b"], &[]), &["b"], None),
            (edit(&[], &["a", "c"]), &["a", "b"], Some(&["b"])),
            (edit(&["a"], &["b"]), &["b"], Some(&["a"])),
            (edit(&["a"], &["a"]), &["b"], None),
        ];
        for (change, old, new) in table {
            assert_eq!(change.apply(&own(old)), new.map(own), "{change:?} of {old:?}");
        }
        for refused in [set(&["run:1"]), edit(&[], &["partial"]), edit(&["a,b"], &[]), edit(&[], &[])] {
            assert!(matches!(refused.check(), Err(Error::Invalid(_))), "{refused:?}");
        }
        assert!(set(&[]).check().is_ok());
    }
}
