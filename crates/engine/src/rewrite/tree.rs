//! Directories without what is left out. What stays is written as it was read, but for the ids of directories that change.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use cistern_bucket::Key;
use cistern_repository::{Id, Node, NodeKind, Reader, Tree, TreeBuilder, Writer};

use crate::fidelity::Description;
use crate::{Error, Result};

/// Deeper trees are an attack, as everywhere.
const MAX_DEPTH: usize = 4_096;
/// Directories whose outcome is remembered: about 100 bytes each.
const MOST_KNOWN: usize = 1 << 18;

/// A directory without what is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rewritten {
    /// Its id now.
    pub tree: Id,
    /// Files that stay in it and below.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was left out, each directory once.
    pub left_out: u64,
    /// The paths of the first of these.
    pub first: Vec<String>,
}

/// Rewrites one tree after the other.
pub(super) struct Rewriter<F> {
    reader: Reader,
    /// None in a dry run: then only ids are computed.
    writer: Option<Writer>,
    exclude: F,
    /// Directories that hold nothing to be left out, by path and id: their files and bytes.
    known: HashMap<Id, (u64, u64)>,
}

/// A directory at work.
struct Level {
    tree: Arc<Tree>,
    id: Id,
    next: usize,
    /// Length of its path.
    path: usize,
    builder: TreeBuilder,
    changed: bool,
    /// Which of its nodes are left out.
    gone: Vec<bool>,
    files: u64,
    bytes: u64,
}

impl<F: Fn(&[u8]) -> bool> Rewriter<F> {
    pub fn new(reader: Reader, writer: Option<Writer>, exclude: F) -> Self {
        Rewriter { reader, writer, exclude, known: HashMap::new() }
    }

    /// The root of a snapshot without what is left out, stored through the writer; names up to `most` paths.
    ///
    /// # Errors
    /// A tree that cannot be read or is absurdly deep; the writer's first error.
    pub async fn root(&mut self, root: Id, most: usize) -> Result<Rewritten> {
        let mut out = Rewritten::default();
        let mut path = Vec::new();
        let mut stack = vec![self.level(root, &path).await?];
        loop {
            let level = stack.last_mut().ok_or_else(|| Error::Broken("a tree has no root".into()))?;
            path.truncate(level.path);
            let Some(node) = level.tree.nodes().get(level.next) else {
                let done = stack.pop().ok_or_else(|| Error::Broken("a tree has no root".into()))?;
                let (old, files, bytes) = (done.id, done.files, done.bytes);
                let tree = self.finish(done).await?;
                let Some(above) = stack.last_mut() else {
                    return Ok(Rewritten { tree, files, bytes, ..out });
                };
                above.put(Some((tree, files, bytes)))?;
                if tree == old && self.known.len() < MOST_KNOWN {
                    self.known.insert(at(&path, &old), (files, bytes));
                }
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(&node.name);
            if level.gone[level.next] {
                out.left_out += 1;
                if out.first.len() < most {
                    out.first.push(Key::from(&path[..]).to_string());
                }
                level.put(None)?;
                continue;
            }
            match node.subtree.filter(|_| node.kind == NodeKind::Dir) {
                None => {
                    let is_file = u64::from(node.kind == NodeKind::File && !is_side(node));
                    let bytes = if is_file == 1 { node.size } else { 0 };
                    level.put(Some((Id::default(), is_file, bytes)))?;
                }
                Some(below) => match self.known.get(&at(&path, &below)) {
                    Some((files, bytes)) => level.put(Some((below, *files, *bytes)))?,
                    None if stack.len() >= MAX_DEPTH => {
                        let detail = "it is deeper than any source can be";
                        return Err(cistern_repository::Error::damaged("tree", detail).into());
                    }
                    None => stack.push(self.level(below, &path).await?),
                },
            }
        }
    }

    /// The beginning of a directory at `path`.
    async fn level(&self, id: Id, path: &[u8]) -> Result<Level> {
        let tree = self.reader.tree(&id).await?;
        let mut gone = Vec::with_capacity(tree.nodes().len());
        // With an object goes what its side file says of it.
        let mut sides: HashSet<Box<str>> = HashSet::new();
        for node in tree.nodes() {
            let is_gone = (self.exclude)(&[path, b"/", &node.name].concat());
            if is_gone && let Ok(Description { more: Some(side), .. }) = Description::of(node) {
                sides.insert(side);
            }
            gone.push(is_gone);
        }
        for side in sides {
            if let Some(position) = tree.position(side.as_bytes()) {
                gone[position] |= is_side(&tree.nodes()[position]);
            }
        }
        let (path, builder) = (path.len(), TreeBuilder::new());
        Ok(Level { tree, id, next: 0, path, builder, changed: false, gone, files: 0, bytes: 0 })
    }

    /// Stores a directory if it changed; yields its id now.
    async fn finish(&self, level: Level) -> Result<Id> {
        if !level.changed {
            return Ok(level.id);
        }
        let text = level.builder.finish()?;
        Ok(match &self.writer {
            None => Id::of(&text),
            Some(writer) => {
                // Waits while too much is on its way.
                drop(writer.permit(0).await?);
                writer.tree(text)?
            }
        })
    }
}

impl Level {
    /// Goes on behind the next node, which is left out, or stays with this id of what is below it, and with so many files
    /// and bytes.
    fn put(&mut self, stays: Option<(Id, u64, u64)>) -> Result<()> {
        let (node, raw) = (&self.tree.nodes()[self.next], self.tree.raw(self.next));
        match stays {
            None => self.changed = true,
            Some((below, files, bytes)) => {
                match node.subtree {
                    Some(old) if old != below && node.kind == NodeKind::Dir => {
                        self.changed = true;
                        self.builder.add_raw(&node.name, &with_subtree(node, raw, below))?;
                    }
                    _ => self.builder.add_raw(&node.name, raw)?,
                }
                self.files += files;
                self.bytes += bytes;
            }
        }
        self.next += 1;
        Ok(())
    }
}

/// The text of a directory's node with another id in it; everything else stays byte by byte.
fn with_subtree(node: &Node, raw: &[u8], below: Id) -> Vec<u8> {
    let old = node.subtree.map(|old| format!("\"subtree\":\"{old}\"")).unwrap_or_default();
    let mut places = raw.windows(old.len().max(1)).enumerate().filter(|(_, text)| *text == old.as_bytes());
    match (places.next(), places.next()) {
        (Some((at, _)), None) => {
            let mut text = raw.to_vec();
            text.splice(at..at + old.len(), format!("\"subtree\":\"{below}\"").into_bytes());
            text
        }
        // Written by another program in another way.
        _ => {
            let mut text = Vec::with_capacity(raw.len());
            Node { subtree: Some(below), ..node.clone() }.write(&mut text);
            text
        }
    }
}

/// Names a directory at a path.
fn at(path: &[u8], id: &Id) -> Id {
    Id::of(&[path, b"\0", id.as_bytes()].concat())
}

/// Whether a node is a side file of an object, and no object.
fn is_side(node: &Node) -> bool {
    Description::of(node).is_ok_and(|description| description.side)
}
