//! Every directory of every snapshot, each read once; and who needs what was found to be damaged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Check, CheckStage, Lost, Problem, local};
use crate::index::Index;
use crate::reader::TreeWalk;
use crate::repository::Repository;
use crate::tree::TreeReader;
use crate::{BlobKind, Id, Node, NodeKind, Reader, Result, Snapshot};

/// Paths that are named for each problem.
const PATHS: usize = 10;

impl Check<'_> {
    /// Reads all directories, and looks up in the index what they name.
    pub(super) async fn trees(&self, snapshots: &[(Id, Snapshot)], index: &Arc<Index>) -> Result<()> {
        let reader = self.repo.reader(index.clone());
        let visit = {
            let (reader, index, problems) = (reader.clone(), index.clone(), self.problems.clone());
            let missing: Mutex<HashSet<Id>> = Mutex::default();
            move |tree: &Id, node: &Node| {
                let push = |problem| problems.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
                for blob in node.content.iter().flatten() {
                    if !index.contains(BlobKind::Data, blob) {
                        let mut missing = missing.lock().unwrap_or_else(PoisonError::into_inner);
                        if missing.len() <= super::MOST && missing.insert(*blob) {
                            push(Problem::MissingBlob { id: *blob });
                        }
                    }
                }
                if let Some(detail) = wrong(node, &reader) {
                    push(Problem::Node { tree: *tree, name: node.name.clone(), detail });
                }
            }
        };
        let mut walk = TreeWalk::new(reader, Arc::new(visit));
        for (done, (_, snapshot)) in snapshots.iter().enumerate() {
            self.report(CheckStage::Snapshots, done, snapshots.len());
            let mut failed = |id, error| {
                self.push(Problem::Tree { id, error: local(error)? });
                Ok(())
            };
            walk.below(snapshot.tree, &mut failed).await?;
        }
        self.report(CheckStage::Snapshots, snapshots.len(), snapshots.len());
        Ok(())
    }
}

/// What a problem does: the snapshots that it makes incomplete, and some paths in the newest of them.
pub(super) type Harms = (Vec<Id>, Vec<Vec<u8>>);

/// For each problem, what needs what it takes away.
pub(super) async fn harms(
    repo: &Repository,
    problems: &[Problem],
    snapshots: &[(Id, Snapshot)],
    index: &Arc<Index>,
) -> Result<Vec<Harms>> {
    let mut harms: Vec<Harms> = problems
        .iter()
        .map(|problem| match problem {
            Problem::Snapshot { id, .. } => (vec![*id], Vec::new()),
            _ => (Vec::new(), Vec::new()),
        })
        .collect();
    let lost = Lost::of(problems, index);
    if lost.is_empty() {
        return Ok(harms);
    }
    let reader = repo.reader(index.clone());
    let mut harmed = Harmed { lost: &lost, known: HashMap::new() };
    for (id, snapshot) in snapshots.iter().rev() {
        let below = harmed.problems(&reader, snapshot.tree).await?;
        let unnamed: BTreeSet<usize> = below.iter().copied().filter(|i| harms[*i].0.is_empty()).collect();
        for problem in below {
            harms[problem].0.push(*id);
        }
        for (problem, paths) in harmed.paths(snapshot.tree, &unnamed) {
            harms[problem].1 = paths;
        }
    }
    for (endangered, _) in &mut harms {
        endangered.reverse();
    }
    Ok(harms)
}

/// Which directories are harmed, themselves or by one below.
struct Harmed<'a> {
    lost: &'a Lost,
    /// What harms a directory, and which harmed ones are in it; nothing for a directory that is whole.
    known: HashMap<Id, Option<Harm>>,
}

/// What harms a directory.
#[derive(Default)]
struct Harm {
    /// Problems of the directory itself or of files in it, with the names of some of these.
    own: BTreeMap<usize, Vec<Box<[u8]>>>,
    /// Harmed subdirectories.
    below: Vec<(Box<[u8]>, Id)>,
}

impl Harmed<'_> {
    /// The problems below `root`.
    async fn problems(&mut self, reader: &Reader, root: Id) -> Result<BTreeSet<usize>> {
        self.walk(reader, root).await?;
        let (mut problems, mut seen, mut stack) = (BTreeSet::new(), HashSet::new(), vec![root]);
        while let Some(id) = stack.pop() {
            if let Some(Some(harm)) = self.known.get(&id)
                && seen.insert(id)
            {
                problems.extend(harm.own.keys());
                stack.extend(harm.below.iter().map(|(_, id)| id));
            }
        }
        Ok(problems)
    }

    /// Some paths below `root` that each of these problems harms. Known directories only.
    fn paths(&self, root: Id, problems: &BTreeSet<usize>) -> BTreeMap<usize, Vec<Vec<u8>>> {
        let mut paths: BTreeMap<usize, Vec<Vec<u8>>> = BTreeMap::new();
        // The same directory may be in many places; each is looked at in a few of them.
        let mut seen: HashMap<Id, usize> = HashMap::new();
        let mut stack = vec![(Vec::new(), root)];
        while let Some((path, id)) = stack.pop() {
            let times = seen.entry(id).or_default();
            *times += 1;
            let Some(Some(harm)) = self.known.get(&id) else { continue };
            if *times > PATHS || problems.is_empty() {
                continue;
            }
            let child = |name: &[u8]| [&path, &b"/"[..], name].concat();
            for (problem, names) in harm.own.iter().filter(|(problem, _)| problems.contains(problem)) {
                let paths = paths.entry(*problem).or_default();
                let named = names.iter().map(|name| child(name));
                // The directory itself, if it is nothing in it.
                let itself =
                    names.is_empty().then(|| if path.is_empty() { b"/".to_vec() } else { path.clone() });
                paths.extend(named.chain(itself).take(PATHS - paths.len().min(PATHS)));
            }
            stack.extend(harm.below.iter().rev().map(|(name, id)| (child(name), *id)));
        }
        paths
    }

    /// Judges all directories below `root` that are not known yet, children before parents.
    async fn walk(&mut self, reader: &Reader, root: Id) -> Result<()> {
        struct Open {
            id: Id,
            harm: Harm,
            next: usize,
        }
        let mut stack: Vec<Open> = Vec::new();
        let mut enter = Some(root);
        loop {
            if let Some(id) = enter.take()
                && !self.known.contains_key(&id)
            {
                let own = self.lost.trees.get(&id).into_iter().flatten();
                let mut harm =
                    Harm { own: own.map(|problem| (*problem, Vec::new())).collect(), ..Harm::default() };
                let read = each(reader, &id, |node| {
                    let blobs = node.content.iter().flatten();
                    for problem in blobs.filter_map(|blob| self.lost.data.get(blob)).flatten() {
                        let names = harm.own.entry(*problem).or_default();
                        if names.len() < PATHS && names.last() != Some(&node.name) {
                            names.push(node.name.clone());
                        }
                    }
                    harm.below.extend(node.subtree.map(|id| (node.name.clone(), id)));
                })
                .await;
                if let Err(error) = read {
                    // It has been reported already.
                    local(error)?;
                }
                stack.push(Open { id, harm, next: 0 });
            }
            let Some(open) = stack.last_mut() else { return Ok(()) };
            if let Some((_, child)) = open.harm.below.get(open.next) {
                open.next += 1;
                enter = Some(*child);
            } else if let Some(Open { id, mut harm, .. }) = stack.pop() {
                harm.below.retain(|(_, child)| matches!(self.known.get(child), Some(Some(_))));
                let harmed = !harm.own.is_empty() || !harm.below.is_empty();
                self.known.insert(id, harmed.then_some(harm));
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
