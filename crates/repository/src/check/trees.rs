//! Every directory of every snapshot, each read once; and who needs what was found to be damaged.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Check, CheckStage, Lost, Problem, local};
use crate::index::Index;
use crate::tree::TreeReader;
use crate::{BlobKind, Id, Node, NodeKind, Reader, Result, Snapshot};

impl Check<'_> {
    /// Reads all directories, and looks up in the index what they name.
    pub(super) async fn trees(&mut self, snapshots: &[(Id, Snapshot)], index: &Arc<Index>) -> Result<()> {
        let reader = self.repo.reader(index.clone());
        let mut seen: HashSet<Id> = HashSet::new();
        let mut missing: HashSet<Id> = HashSet::new();
        for (done, (_, snapshot)) in snapshots.iter().enumerate() {
            self.report(CheckStage::Snapshots, done, snapshots.len());
            let mut stack = vec![snapshot.tree];
            while let Some(id) = stack.pop() {
                if !seen.insert(id) {
                    continue;
                }
                let read = each(&reader, &id, |node| {
                    for blob in node.content.iter().flatten() {
                        if !index.contains(BlobKind::Data, blob) && missing.insert(*blob) {
                            self.problems.push(Problem::MissingBlob { id: *blob });
                        }
                    }
                    if let Some(detail) = wrong(node, &reader) {
                        self.problems.push(Problem::Node { tree: id, name: node.name.clone(), detail });
                    }
                    stack.extend(node.subtree);
                })
                .await;
                if let Err(error) = read {
                    self.problems.push(Problem::Tree { id, error: local(error)? });
                }
            }
        }
        self.report(CheckStage::Snapshots, snapshots.len(), snapshots.len());
        Ok(())
    }

    /// For each problem, the snapshots that need what it takes away.
    pub(super) async fn endangered(
        &self,
        snapshots: &[(Id, Snapshot)],
        index: &Arc<Index>,
    ) -> Result<Vec<Vec<Id>>> {
        let mut endangered: Vec<Vec<Id>> = self
            .problems
            .iter()
            .map(|problem| match problem {
                Problem::Snapshot { id, .. } => vec![*id],
                _ => Vec::new(),
            })
            .collect();
        let lost = Lost::of(&self.problems, index);
        if lost.is_empty() {
            return Ok(endangered);
        }
        let reader = self.repo.reader(index.clone());
        let mut harmed = Harmed { lost: &lost, known: HashMap::new() };
        for (id, snapshot) in snapshots {
            for problem in harmed.problems(&reader, snapshot.tree).await? {
                endangered[problem].push(*id);
            }
        }
        Ok(endangered)
    }
}

/// Which directories are harmed, themselves or by one below.
struct Harmed<'a> {
    lost: &'a Lost,
    /// What harms a directory itself, and which harmed ones are below it; nothing for a directory that is whole.
    known: HashMap<Id, Option<Harm>>,
}

/// Problems of a directory itself, and its harmed subdirectories.
type Harm = (BTreeSet<usize>, Vec<Id>);

impl Harmed<'_> {
    /// The problems below `root`.
    async fn problems(&mut self, reader: &Reader, root: Id) -> Result<BTreeSet<usize>> {
        self.walk(reader, root).await?;
        let (mut problems, mut seen, mut stack) = (BTreeSet::new(), HashSet::new(), vec![root]);
        while let Some(id) = stack.pop() {
            if let Some(Some((own, below))) = self.known.get(&id)
                && seen.insert(id)
            {
                problems.extend(own);
                stack.extend(below);
            }
        }
        Ok(problems)
    }

    /// Judges all directories below `root` that are not known yet, children before parents.
    async fn walk(&mut self, reader: &Reader, root: Id) -> Result<()> {
        struct Open {
            id: Id,
            own: BTreeSet<usize>,
            children: Vec<Id>,
            next: usize,
        }
        let mut stack: Vec<Open> = Vec::new();
        let mut enter = Some(root);
        loop {
            if let Some(id) = enter.take()
                && !self.known.contains_key(&id)
            {
                let mut own = self.lost.trees.get(&id).cloned().unwrap_or_default();
                let mut children = Vec::new();
                let read = each(reader, &id, |node| {
                    let blobs = node.content.iter().flatten();
                    own.extend(blobs.filter_map(|blob| self.lost.data.get(blob)).flatten());
                    children.extend(node.subtree);
                })
                .await;
                if let Err(error) = read {
                    // It has been reported already.
                    local(error)?;
                }
                children.sort_unstable();
                children.dedup();
                stack.push(Open { id, own, children, next: 0 });
            }
            let Some(open) = stack.last_mut() else { return Ok(()) };
            if let Some(child) = open.children.get(open.next) {
                open.next += 1;
                enter = Some(*child);
            } else if let Some(Open { id, own, mut children, .. }) = stack.pop() {
                children.retain(|child| matches!(self.known.get(child), Some(Some(_))));
                let harmed = !own.is_empty() || !children.is_empty();
                self.known.insert(id, harmed.then_some((own, children)));
            }
        }
    }
}

/// Calls `found` for each entry of a directory, one in memory at a time.
async fn each(reader: &Reader, id: &Id, mut found: impl FnMut(&Node)) -> Result<()> {
    let mut nodes = TreeReader::new(reader.blob(BlobKind::Tree, id).await?)?;
    while let Some((node, _)) = nodes.next_node().map_err(|error| error.named(*id))? {
        found(&node);
    }
    Ok(())
}

/// What is wrong with an entry by itself, if anything is.
fn wrong(node: &Node, reader: &Reader) -> Option<&'static str> {
    if let Err(why) = Node::check_name(&node.name) {
        return Some(why);
    }
    match (node.kind, &node.content) {
        (NodeKind::Dir, _) if node.subtree.is_none() => Some("it is a directory without a tree"),
        (NodeKind::File, None) => Some("it is a file without a list of contents"),
        (NodeKind::File, Some(content)) => {
            let lengths = content.iter().map(|blob| reader.raw_length(BlobKind::Data, blob).map(u64::from));
            // A blob that is in no index has been reported.
            let sum = lengths.sum::<Option<u64>>();
            sum.is_some_and(|sum| sum != node.size).then_some("its size is not that of its contents")
        }
        _ => None,
    }
}
