//! Visits what a restore is to place, in one order every time, one directory in memory per level.
//!
//! The plan and the placing are two walks over the same trees. Directories that come next are fetched ahead,
//! so that a repository far away does not cost a round trip for each.

use std::collections::VecDeque;
use std::sync::Arc;

use cistern_bucket::Class;
use cistern_repository::{BlobKind, Id, Node, NodeKind, Reader, Tree};
use tokio::task::JoinHandle;

use crate::fidelity;
use crate::select::{Directory, Select};
use crate::{Error, Result};

/// Deeper trees are an attack: a path of the operating system has at most 2,048 components, a key at most 1,024.
const MAX_DEPTH: usize = 4_096;
/// Directories fetched ahead, over all levels.
const AHEAD: usize = 16;
/// Directories fetched ahead of one level.
const AHEAD_OF_LEVEL: usize = 8;
/// Larger directories are not fetched ahead, in bytes of the tree.
const AHEAD_LENGTH: u32 = 256 << 10;

/// A node, by the tree that it stands in.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    tree: Arc<Tree>,
    index: u32,
}

impl Found {
    /// The node.
    pub fn node(&self) -> &Node {
        &self.tree.nodes()[self.index as usize]
    }

    /// The directory that the node stands in.
    pub fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }
}

/// What a walk meets. [`Walk::path`] is its path.
#[derive(Debug)]
pub(crate) enum Step {
    /// A directory begins. If it is not `included`, only something below it may be.
    Enter { found: Found, included: bool },
    /// The directory that was entered last and not left yet ends.
    Leave,
    /// Anything else that is meant.
    Node(Found),
    /// A directory whose tree cannot be read.
    Lost(String),
    /// A node whose name is none.
    Refused(&'static str),
}

/// The order within a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// As in the tree: by name.
    Name,
    /// As a bucket lists the keys that the names stand for: a directory's name ends with a slash.
    Key,
}

/// A walk over one tree.
pub(crate) struct Walk {
    reader: Arc<Reader>,
    select: Arc<Select>,
    order: Order,
    root: Option<Id>,
    stack: Vec<Level>,
    path: Vec<u8>,
    /// Length of the path of the root.
    below: usize,
    /// The path in pieces of the key, as patterns see it, if they see other names than those in the tree.
    shown: Option<Vec<u8>>,
    ahead: usize,
}

struct Level {
    tree: Arc<Tree>,
    /// Positions in the tree in the order of the walk; `None` is the order of the tree.
    order: Option<Box<[u32]>>,
    next: usize,
    /// Length of the path of this directory.
    path: usize,
    /// Length of its path as patterns see it; nothing if it is not known.
    shown: Option<usize>,
    /// Subdirectories being fetched, by place in the order.
    ahead: VecDeque<(usize, JoinHandle<cistern_repository::Result<Arc<Tree>>>)>,
    /// Places before this one have been looked at for fetching ahead.
    scanned: usize,
}

impl Drop for Level {
    fn drop(&mut self) {
        self.ahead.iter().for_each(|(_, task)| task.abort());
    }
}

impl Level {
    fn at(&self, place: usize) -> Option<u32> {
        match &self.order {
            Some(order) => order.get(place).copied(),
            None => (place < self.tree.nodes().len()).then_some(place as u32),
        }
    }
}

impl Walk {
    /// A walk over everything below `root` that is selected. To patterns, the path of the root is `base`, which is empty
    /// or begins with a slash and ends with none.
    pub fn new(reader: Arc<Reader>, select: Arc<Select>, order: Order, root: Id, base: Vec<u8>) -> Self {
        let below = base.len();
        let shown = (order == Order::Key && !select.takes_every_path()).then(|| base.clone());
        Walk {
            reader,
            select,
            order,
            root: Some(root),
            stack: Vec::new(),
            path: base,
            below,
            shown,
            ahead: 0,
        }
    }

    /// Path of what [`next`](Self::next) met last, from the root of the walk; it begins with a slash.
    pub fn path(&self) -> &[u8] {
        &self.path[self.below..]
    }

    /// The next step; `None` at the end.
    ///
    /// # Errors
    /// The repository cannot be read at all, or its root tree cannot; a damaged directory is a step.
    pub async fn next(&mut self) -> Result<Option<Step>> {
        if let Some(root) = self.root.take() {
            let tree = self.reader.tree(&root).await?;
            let shown = self.shown.as_ref().map(Vec::len);
            self.push(tree, shown);
        }
        loop {
            let Some(level) = self.stack.last_mut() else { return Ok(None) };
            self.path.truncate(level.path);
            let place = level.next;
            let Some(index) = level.at(place) else {
                self.ahead -= level.ahead.len();
                self.stack.pop();
                return Ok((!self.stack.is_empty()).then_some(Step::Leave));
            };
            level.next += 1;
            let found = Found { tree: level.tree.clone(), index };
            let node = found.node();
            self.path.push(b'/');
            self.path.extend_from_slice(&node.name);
            if let Err(why) = Node::check_name(&node.name) {
                return Ok(Some(Step::Refused(why)));
            }
            match node.kind {
                NodeKind::Dir => {
                    let (meant, shown) = self.directory(node);
                    let included = match meant {
                        Directory::Excluded => continue,
                        Directory::Included => true,
                        Directory::Passage => false,
                    };
                    if self.stack.len() >= MAX_DEPTH {
                        return Ok(Some(Step::Lost("it is deeper than any source can be".into())));
                    }
                    let Some(subtree) = node.subtree else {
                        return Ok(Some(Step::Lost("the directory has no tree".into())));
                    };
                    match self.subtree(place, &subtree).await {
                        Ok(tree) => self.push(tree, shown),
                        Err(error) if error.class() == Class::Damaged => {
                            return Ok(Some(Step::Lost(error.to_string())));
                        }
                        Err(error) => return Err(Error::Repository(error)),
                    }
                    return Ok(Some(Step::Enter { found, included }));
                }
                NodeKind::File => {
                    if self.is_meant(node) && self.select.metadata(node.size, Some(node.mtime.timestamp())) {
                        return Ok(Some(Step::Node(found)));
                    }
                }
                _ => {
                    if self.is_meant(node) && self.select.metadata(0, Some(node.mtime.timestamp())) {
                        return Ok(Some(Step::Node(found)));
                    }
                }
            }
        }
    }

    /// What the patterns say of a directory of the last level, and the length of its path as they see it.
    fn directory(&mut self, node: &Node) -> (Directory, Option<usize>) {
        let Some(shown) = &mut self.shown else { return (self.select.directory(&self.path), None) };
        let above = self.stack.last().and_then(|level| level.shown);
        match above.zip(fidelity::piece(&node.name)) {
            Some((above, piece)) => {
                shown.truncate(above);
                shown.push(b'/');
                shown.extend_from_slice(&piece);
                (self.select.directory(shown), Some(shown.len()))
            }
            // Only the objects below it know their keys.
            None => (Directory::Passage, None),
        }
    }

    /// Whether the patterns mean this node of the last level.
    fn is_meant(&self, node: &Node) -> bool {
        if self.shown.is_none() {
            return self.select.file(&self.path);
        }
        let names: Vec<&[u8]> = self.path[self.below..].split(|b| *b == b'/').skip(1).collect();
        let attribute = fidelity::Description::of(node).ok().and_then(|description| description.key);
        let key = fidelity::key(&names, attribute.as_ref());
        self.select.object(&[&self.path[..self.below], b"/", key.as_bytes()].concat())
    }

    fn push(&mut self, tree: Arc<Tree>, shown: Option<usize>) {
        let order = (self.order == Order::Key).then(|| by_key(&tree)).flatten();
        let path = self.path.len();
        self.stack.push(Level { tree, order, next: 0, path, shown, ahead: VecDeque::new(), scanned: 0 });
    }

    /// The tree of the subdirectory at `place` of the last level, and more of them begun.
    async fn subtree(&mut self, place: usize, id: &Id) -> cistern_repository::Result<Arc<Tree>> {
        self.fetch_ahead(place + 1);
        let level = self.stack.last_mut().expect("a subdirectory has a level");
        // What is at the front for an earlier place was left out by the selection since.
        while level.ahead.front().is_some_and(|(at, _)| *at < place) {
            if let Some((_, task)) = level.ahead.pop_front() {
                task.abort();
                self.ahead -= 1;
            }
        }
        if let Some((_, task)) = level.ahead.pop_front_if(|(at, _)| *at == place) {
            self.ahead -= 1;
            if let Ok(result) = task.await {
                return result;
            }
        }
        self.reader.tree(id).await
    }

    fn fetch_ahead(&mut self, from: usize) {
        let Some(level) = self.stack.last_mut() else { return };
        level.scanned = level.scanned.max(from);
        while self.ahead < AHEAD && level.ahead.len() < AHEAD_OF_LEVEL {
            let Some(index) = level.at(level.scanned) else { return };
            let place = level.scanned;
            level.scanned += 1;
            let node = &level.tree.nodes()[index as usize];
            let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) else { continue };
            if self.reader.raw_length(BlobKind::Tree, &subtree).is_none_or(|length| length > AHEAD_LENGTH) {
                continue;
            }
            if !self.select.takes_every_path() && self.shown.is_none() {
                let path = [&self.path[..level.path], b"/", &node.name].concat();
                if self.select.directory(&path) == Directory::Excluded {
                    continue;
                }
            }
            let reader = self.reader.clone();
            level.ahead.push_back((place, tokio::spawn(async move { reader.tree(&subtree).await })));
            self.ahead += 1;
        }
    }
}

/// The piece of a key that a hashed name stands for, if the node tells; else its beginning, which is long enough that next
/// to no other key stands between the two.
fn hashed(node: &Node) -> Vec<u8> {
    let key = fidelity::Description::of(node).ok().and_then(|description| description.key);
    if let Some(piece) = key.as_ref().and_then(|key| key.as_bytes().rsplit(|b| *b == b'/').next()) {
        return piece.to_vec();
    }
    let name = &node.name;
    let coded = name.strip_prefix(b".cistern~").and_then(|rest| {
        let form = rest.iter().position(|b| *b == b'~')? + 1;
        // Behind it stand a tilde and the hash.
        rest.get(form..rest.len().checked_sub(65)?)
    });
    coded.and_then(fidelity::decoded).unwrap_or_else(|| name.to_vec())
}

/// The positions of a tree's nodes in the order in which a bucket lists their keys; `None` if it is the same.
fn by_key(tree: &Tree) -> Option<Box<[u32]>> {
    let key = |node: &Node| {
        let mut piece = fidelity::piece(&node.name).map_or_else(|| hashed(node), |piece| piece.into_owned());
        if node.kind == NodeKind::Dir {
            piece.push(b'/');
        }
        piece
    };
    let nodes = tree.nodes();
    let mut keys: Vec<(Vec<u8>, u32)> = nodes.iter().zip(0..).map(|(node, i)| (key(node), i)).collect();
    if keys.is_sorted() {
        return None;
    }
    keys.sort_unstable();
    Some(keys.into_iter().map(|(_, i)| i).collect())
}
