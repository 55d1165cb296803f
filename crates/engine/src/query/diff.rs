//! What changed between two trees, found by comparing only directories whose ids differ.

use std::cmp::Ordering;
use std::sync::Arc;

use cistern_repository::{Id, Node, NodeKind, Reader, Tree};
use serde::Serialize;

use super::walk::{Next, walk};
use crate::Result;

/// How a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    /// Only in the newer tree.
    Added,
    /// Only in the older tree.
    Removed,
    /// Contents differ.
    Modified,
    /// Contents are equal, attributes or times differ.
    Metadata,
    /// A file became a directory, or the like.
    TypeChanged,
}

impl ChangeKind {
    /// restic's letter for it.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => '+',
            ChangeKind::Removed => '-',
            ChangeKind::Modified => 'M',
            ChangeKind::Metadata => 'U',
            ChangeKind::TypeChanged => 'T',
        }
    }
}

/// One path that differs.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The path, a directory's without a slash at its end.
    pub path: &'a [u8],
    /// How it differs.
    pub kind: ChangeKind,
    /// The older node.
    pub old: Option<&'a Node>,
    /// The newer node.
    pub new: Option<&'a Node>,
}

/// Counts of a comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiffStats {
    /// Files with other contents.
    pub changed_files: u64,
    /// Files, links and the like that are new.
    pub added_files: u64,
    /// Files, links and the like that are gone.
    pub removed_files: u64,
    /// Directories that are new.
    pub added_dirs: u64,
    /// Directories that are gone.
    pub removed_dirs: u64,
    /// Bytes of new files, and of changed files as they are now.
    pub added_bytes: u64,
    /// Bytes of files that are gone, and of changed files as they were.
    pub removed_bytes: u64,
    /// Nodes whose attributes or times differ.
    pub metadata_changed: u64,
}

/// Compares the tree `old` with the tree `new` and calls `found` for every difference, in the order of paths.
///
/// # Errors
/// A tree that cannot be read; whatever `found` returns.
pub async fn diff(
    reader: &Reader,
    old: &Id,
    new: &Id,
    mut found: impl FnMut(&Change<'_>) -> Result<()> + Send,
) -> Result<DiffStats> {
    let mut stats = DiffStats::default();
    let mut tell = |stats: &mut DiffStats, change: Change<'_>| {
        stats.add(&change);
        found(&change)
    };
    let mut path = Vec::new();
    let mut stack = Vec::new();
    if old != new {
        stack.push(Pair::new(reader.tree(old).await?, reader.tree(new).await?, 0));
    }
    while let Some(pair) = stack.last_mut() {
        path.truncate(pair.path);
        let (Some(older), newer) = (pair.older(), pair.newer()) else {
            let Some(node) = pair.newer().cloned() else {
                stack.pop();
                continue;
            };
            pair.new_at += 1;
            only(reader, &mut path, &node, true, &mut stats, &mut tell).await?;
            continue;
        };
        let order = newer.map_or(Ordering::Less, |newer| older.name.cmp(&newer.name));
        match (order, newer) {
            (Ordering::Equal, Some(newer)) => {
                let (older, newer) = (older.clone(), newer.clone());
                pair.old_at += 1;
                pair.new_at += 1;
                path.push(b'/');
                path.extend_from_slice(&newer.name);
                if let Some(kind) = compare(&older, &newer) {
                    tell(&mut stats, Change { path: &path, kind, old: Some(&older), new: Some(&newer) })?;
                }
                let below = (older.kind == NodeKind::Dir).then_some(older.subtree).flatten();
                let beside = (newer.kind == NodeKind::Dir).then_some(newer.subtree).flatten();
                match (below, beside) {
                    (Some(a), Some(b)) if a != b => {
                        let next = Pair::new(reader.tree(&a).await?, reader.tree(&b).await?, path.len());
                        stack.push(next);
                    }
                    (Some(a), None) => all_below(reader, &path, &a, false, &mut stats, &mut tell).await?,
                    (None, Some(b)) => all_below(reader, &path, &b, true, &mut stats, &mut tell).await?,
                    _ => {}
                }
            }
            (Ordering::Less, _) => {
                let node = older.clone();
                pair.old_at += 1;
                only(reader, &mut path, &node, false, &mut stats, &mut tell).await?;
            }
            (_, newer) => {
                let node = newer.cloned().expect("an order other than Less has a newer node");
                pair.new_at += 1;
                only(reader, &mut path, &node, true, &mut stats, &mut tell).await?;
            }
        }
    }
    Ok(stats)
}

/// Two directories of the same path, walked by name.
struct Pair {
    old: Arc<Tree>,
    new: Arc<Tree>,
    old_at: usize,
    new_at: usize,
    path: usize,
}

impl Pair {
    fn new(old: Arc<Tree>, new: Arc<Tree>, path: usize) -> Self {
        Pair { old, new, old_at: 0, new_at: 0, path }
    }

    fn older(&self) -> Option<&Node> {
        self.old.nodes().get(self.old_at)
    }

    fn newer(&self) -> Option<&Node> {
        self.new.nodes().get(self.new_at)
    }
}

/// How two nodes of one name differ, what lies below directories left aside.
fn compare(old: &Node, new: &Node) -> Option<ChangeKind> {
    if old.kind != new.kind {
        return Some(ChangeKind::TypeChanged);
    }
    if old.content != new.content || old.link_target != new.link_target || old.device != new.device {
        return Some(ChangeKind::Modified);
    }
    let (mut a, mut b) = (old.clone(), new.clone());
    a.subtree = None;
    b.subtree = None;
    (a != b).then_some(ChangeKind::Metadata)
}

async fn only<F>(
    reader: &Reader,
    path: &mut Vec<u8>,
    node: &Node,
    added: bool,
    stats: &mut DiffStats,
    tell: &mut F,
) -> Result<()>
where
    F: FnMut(&mut DiffStats, Change<'_>) -> Result<()> + Send,
{
    path.push(b'/');
    path.extend_from_slice(&node.name);
    tell(stats, one_sided(path, node, added))?;
    if let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) {
        all_below(reader, path, &subtree, added, stats, tell).await?;
    }
    Ok(())
}

async fn all_below<F>(
    reader: &Reader,
    path: &[u8],
    tree: &Id,
    added: bool,
    stats: &mut DiffStats,
    tell: &mut F,
) -> Result<()>
where
    F: FnMut(&mut DiffStats, Change<'_>) -> Result<()> + Send,
{
    walk(reader, tree, path, |path, node| {
        tell(stats, one_sided(path, node, added))?;
        Ok(Next::Descend)
    })
    .await
}

fn one_sided<'a>(path: &'a [u8], node: &'a Node, added: bool) -> Change<'a> {
    match added {
        true => Change { path, kind: ChangeKind::Added, old: None, new: Some(node) },
        false => Change { path, kind: ChangeKind::Removed, old: Some(node), new: None },
    }
}

impl std::ops::AddAssign for DiffStats {
    fn add_assign(&mut self, other: DiffStats) {
        self.changed_files += other.changed_files;
        self.added_files += other.added_files;
        self.removed_files += other.removed_files;
        self.added_dirs += other.added_dirs;
        self.removed_dirs += other.removed_dirs;
        self.added_bytes += other.added_bytes;
        self.removed_bytes += other.removed_bytes;
        self.metadata_changed += other.metadata_changed;
    }
}

impl DiffStats {
    fn add(&mut self, change: &Change<'_>) {
        match change.kind {
            ChangeKind::Metadata => self.metadata_changed += 1,
            ChangeKind::Modified => {
                self.changed_files += 1;
                self.added_bytes += change.new.map_or(0, |n| n.size);
                self.removed_bytes += change.old.map_or(0, |n| n.size);
            }
            ChangeKind::Added | ChangeKind::Removed | ChangeKind::TypeChanged => {
                if let Some(node) = change.new {
                    match node.kind {
                        NodeKind::Dir => self.added_dirs += 1,
                        _ => self.added_files += 1,
                    }
                    self.added_bytes += node.size;
                }
                if let Some(node) = change.old {
                    match node.kind {
                        NodeKind::Dir => self.removed_dirs += 1,
                        _ => self.removed_files += 1,
                    }
                    self.removed_bytes += node.size;
                }
            }
        }
    }
}
