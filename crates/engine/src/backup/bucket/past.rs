//! What an earlier run holds, read tree by tree in step with a listing: never a map of all paths.
//!
//! Keys come in ascending order. For each, the directories on its way are entered by the names that they must have
//! ([`fidelity`](crate::fidelity)), so that the order of names within a tree, which differs from that of keys,
//! does not matter.

use std::sync::Arc;

use cistern_bucket::Class;
use cistern_repository::{BlobKind, Id, Node, NodeKind, Reader, Snapshot, Tree};

use crate::fidelity::{Layout, name, object_name};
use crate::parts::{Bounds, PartInfo};
use crate::{Error, Result};

/// A snapshot as far as its root directory.
#[derive(Clone, Debug)]
pub(crate) struct PastPart {
    /// The snapshot.
    pub snapshot: Id,
    /// Its root tree.
    pub tree: Id,
    /// The trees from below `/` down to the root directory, as far as they exist.
    pub chain: Vec<Id>,
    /// The root directory's tree, if there is one.
    pub root: Option<Id>,
    /// What its node says.
    pub info: Option<PartInfo>,
    /// Range of keys below the root.
    pub bounds: Bounds,
    /// Objects in the snapshot, if it says so.
    pub files: Option<u64>,
}

impl PastPart {
    /// Descends to the root directory of a snapshot.
    ///
    /// # Errors
    /// As the repository says.
    pub async fn open(reader: &Reader, id: Id, snapshot: &Snapshot, layout: &Layout) -> Result<PastPart> {
        let mut part = PastPart::unopened(id, snapshot);
        let mut tree = snapshot.tree;
        for name in layout.names() {
            let parent = reader.tree(&tree).await?;
            let Some(node) = parent.get(name).filter(|node| node.kind == NodeKind::Dir) else {
                return Ok(part);
            };
            let Some(subtree) = node.subtree else { return Ok(part) };
            part.chain.push(subtree);
            part.info = PartInfo::of(node);
            tree = subtree;
        }
        part.root = Some(tree);
        part.bounds = part.info.as_ref().map(|info| info.bounds.clone()).unwrap_or_default();
        Ok(part)
    }

    /// What is known of a snapshot whose upper trees are damaged: how much it holds.
    pub fn unopened(id: Id, snapshot: &Snapshot) -> PastPart {
        PastPart {
            snapshot: id,
            tree: snapshot.tree,
            chain: Vec::new(),
            root: None,
            info: None,
            bounds: Bounds::default(),
            files: snapshot.summary.as_ref().map(|summary| summary.total_files_processed),
        }
    }

    /// Objects that the source held, by the part's proof or else by what the snapshot says.
    pub fn keys(&self) -> Option<u64> {
        self.info.as_ref().map(|info| info.proof.keys).or(self.files)
    }
}

/// Sorts parts by their ranges. `None` if ranges overlap, so that nobody can tell which part a key belongs to.
pub(crate) fn ordered(mut parts: Vec<PastPart>) -> Option<Vec<PastPart>> {
    parts.sort_by(|a, b| a.bounds.after.cmp(&b.bounds.after));
    let apart = |pair: &[PastPart]| match (&pair[0].bounds.until, &pair[1].bounds.after) {
        (Some(until), Some(after)) => until <= after,
        _ => false,
    };
    parts.windows(2).all(apart).then_some(parts)
}

/// A node of an earlier run: a position in a tree.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The directory.
    pub tree: Arc<Tree>,
    /// Number of the node in it.
    pub at: usize,
}

impl Place {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.tree.nodes()[self.at]
    }
}

/// An earlier run, open at the directory of the last key that was asked for.
pub(crate) struct Past {
    reader: Reader,
    parts: Arc<Vec<PastPart>>,
    part: usize,
    opened: bool,
    /// The open directories, each with a slash behind it.
    path: Vec<u8>,
    levels: Vec<Level>,
    /// What was left behind unseen, if somebody wants to know.
    unseen: Option<Vec<Unseen>>,
    damaged: u64,
}

struct Level {
    /// Length of the path down to here.
    length: usize,
    /// The tree, unless there is none of that name (or it is damaged).
    tree: Option<Arc<Tree>>,
    id: Option<Id>,
    /// Where the next node is likely.
    next: usize,
    /// Whether names of objects beside directories are there.
    has_objects: bool,
    /// One bit per node that was found; empty unless somebody wants to know.
    seen: Vec<u64>,
}

/// Nodes of a directory that no key asked for.
pub(crate) struct Unseen {
    /// The directory below the root, with a slash behind it unless it is the root.
    pub path: Vec<u8>,
    /// The nodes.
    pub places: Vec<Place>,
}

impl Past {
    /// The parts in the order of their ranges.
    pub fn new(reader: Reader, parts: Arc<Vec<PastPart>>) -> Self {
        Past {
            reader,
            parts,
            part: 0,
            opened: false,
            path: Vec::new(),
            levels: Vec::new(),
            unseen: None,
            damaged: 0,
        }
    }

    /// Remembers nodes that no key asked for, for [`unseen`](Self::unseen).
    pub fn watch_unseen(mut self) -> Self {
        self.unseen = Some(Vec::new());
        self
    }

    /// What was left behind unseen since the last call.
    pub fn unseen(&mut self) -> Vec<Unseen> {
        self.unseen.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Trees that could not be read because they are damaged or missing; what they held counts as not there.
    pub fn damaged(&self) -> u64 {
        self.damaged
    }

    /// Trees of the directories on the way of the last key, from below the root.
    pub fn trail(&self) -> Vec<Option<Id>> {
        self.levels.iter().skip(1).map(|level| level.id).collect()
    }

    /// The file node of a key below the root, and whether the open directories have changed to find it. Keys ascend.
    ///
    /// # Errors
    /// Of the repository, unless a tree is merely damaged or missing.
    pub async fn find(&mut self, below: &[u8]) -> Result<(Option<Place>, bool)> {
        let moved = self.go_to(below).await?;
        let Some(level) = self.levels.last_mut() else { return Ok((None, moved)) };
        let Some(tree) = level.tree.clone() else { return Ok((None, moved)) };
        let piece = &below[self.path.len()..];
        let wanted = name(piece);
        let at = match tree.nodes().get(level.next) {
            Some(node) if *node.name == *wanted => Some(level.next),
            _ => tree.position(&wanted),
        };
        let at = match at {
            Some(at) if tree.nodes()[at].kind != NodeKind::Dir => Some(at),
            _ if level.has_objects => tree.position(&object_name(piece)),
            _ => None,
        };
        if let Some(at) = at {
            level.next = at + 1;
            level.see(at);
        }
        let place = at.map(|at| Place { tree: tree.clone(), at });
        Ok((place.filter(|place| place.node().kind == NodeKind::File), moved))
    }

    /// The node of a given name in the directory of the last key: a side file.
    pub fn beside(&mut self, name: &[u8]) -> Option<Place> {
        let level = self.levels.last_mut()?;
        let tree = level.tree.clone()?;
        let at = tree.position(name)?;
        level.see(at);
        let place = Place { tree, at };
        (place.node().kind == NodeKind::File).then_some(place)
    }

    /// Leaves everything: what was not asked for is now among the unseen.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn finish(&mut self) -> Result<()> {
        loop {
            self.leave(0);
            self.part += usize::from(self.opened);
            if self.part >= self.parts.len() || self.unseen.is_none() {
                return Ok(());
            }
            self.open_part().await?;
        }
    }

    async fn go_to(&mut self, below: &[u8]) -> Result<bool> {
        let mut moved = false;
        while !self.opened
            || (self.parts[self.part].bounds.is_behind(below) && self.part + 1 < self.parts.len())
        {
            if self.parts.is_empty() {
                return Ok(false);
            }
            self.leave(0);
            self.part += usize::from(self.opened);
            self.open_part().await?;
            moved = true;
        }
        let directory = below.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let directory = &below[..directory];
        if *directory == *self.path {
            return Ok(moved);
        }
        let stay = self.levels.iter().rposition(|level| {
            level.length <= directory.len() && self.path[..level.length] == directory[..level.length]
        });
        self.leave(stay.map_or(0, |level| level + 1));
        while self.path.len() < directory.len() {
            let rest = &directory[self.path.len()..];
            let piece = &rest[..rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len())];
            let id = self.levels.last_mut().and_then(|level| {
                let tree = level.tree.as_ref()?;
                let at = tree.position(&name(piece))?;
                let id = tree.nodes()[at].subtree.filter(|_| tree.nodes()[at].kind == NodeKind::Dir);
                if id.is_some() {
                    level.see(at);
                    level.next = at + 1;
                }
                id
            });
            let end = self.path.len() + piece.len() + 1;
            self.path.extend_from_slice(&directory[self.path.len()..end]);
            self.enter(id).await?;
        }
        Ok(true)
    }

    async fn open_part(&mut self) -> Result<()> {
        self.opened = true;
        let root = self.parts[self.part].root;
        self.enter(root).await
    }

    /// Opens the tree of the directory that the path names now.
    async fn enter(&mut self, id: Option<Id>) -> Result<()> {
        let tree = match id {
            None => None,
            Some(id) => match self.reader.tree(&id).await {
                Ok(tree) => Some(tree),
                Err(error) if error.class() == Class::Damaged => {
                    self.damaged += 1;
                    None
                }
                Err(error) => return Err(Error::Repository(error)),
            },
        };
        let has_objects = tree.as_ref().is_some_and(|tree| {
            let first = tree.nodes().partition_point(|node| *node.name < b".cistern~o"[..]);
            tree.nodes().get(first).is_some_and(|node| node.name.starts_with(b".cistern~o"))
        });
        let bits = match (&tree, &self.unseen) {
            (Some(tree), Some(_)) => tree.nodes().len().div_ceil(64),
            _ => 0,
        };
        let length = self.path.len();
        self.levels.push(Level { length, tree, id, next: 0, has_objects, seen: vec![0; bits] });
        Ok(())
    }

    /// Leaves all directories but the upper `stay`.
    fn leave(&mut self, stay: usize) {
        while self.levels.len() > stay {
            let Some(level) = self.levels.pop() else { break };
            self.path.truncate(level.length);
            if let (Some(unseen), Some(tree)) = (&mut self.unseen, &level.tree) {
                let left = (0..tree.nodes().len()).filter(|at| level.seen[at / 64] >> (at % 64) & 1 == 0);
                let places: Vec<_> = left.map(|at| Place { tree: tree.clone(), at }).collect();
                if !places.is_empty() {
                    unseen.push(Unseen { path: self.path.clone(), places });
                }
            }
            self.path.truncate(self.levels.last().map_or(0, |level| level.length));
        }
    }

    /// Whether every blob of a node is in the repository, and together they have the node's size.
    pub fn is_stored(&self, node: &Node) -> bool {
        let Some(content) = &node.content else { return false };
        let mut lengths = content.iter().map(|id| self.reader.raw_length(BlobKind::Data, id));
        let sum = lengths.try_fold(0u64, |sum, length| sum.checked_add(u64::from(length?)));
        sum == Some(node.size)
    }
}

impl Level {
    fn see(&mut self, at: usize) {
        if let Some(word) = self.seen.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }
}
