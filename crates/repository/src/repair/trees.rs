//! Directories without what is lost: what stays is written byte for byte as it was.

use std::collections::{HashMap, HashSet};

use super::survey::Survey;
use crate::tree::{TreeBuilder, TreeReader};
use crate::{BlobKind, Error, Id, Node, NodeKind, Result, Writer};

/// What the names of files end with that have lost contents.
const SUFFIX: &[u8] = b".repaired";

/// What becomes of an entry of a directory, whatever is below it.
#[derive(Debug, PartialEq)]
pub(super) enum Mended {
    /// It stays as it is.
    Whole,
    /// All contents are there, and its size was not theirs.
    Resized(Box<Node>),
    /// A file that has lost contents: what is left of it, still under its name.
    Cut(Box<Node>),
    /// A directory that says nothing about what is in it.
    Hollow,
}

/// Mends an entry; `length` tells the plain length of a blob of data, or nothing if that is lost.
pub(super) fn mend(node: &Node, length: impl Fn(&Id) -> Option<u64>) -> Mended {
    if node.kind == NodeKind::Dir && node.subtree.is_none() {
        return Mended::Hollow;
    }
    if node.kind != NodeKind::File {
        return Mended::Whole;
    }
    let blobs = node.content.as_deref();
    let left: Vec<(Id, u64)> =
        blobs.unwrap_or_default().iter().filter_map(|id| Some((*id, length(id)?))).collect();
    let size = left.iter().fold(0u64, |sum, (_, length)| sum.saturating_add(*length));
    let is_cut = blobs.is_none_or(|blobs| blobs.len() != left.len());
    if !is_cut && size == node.size {
        return Mended::Whole;
    }
    let content = Some(left.into_iter().map(|(id, _)| id).collect());
    let mended = Box::new(Node { content, size, ..node.clone() });
    if is_cut { Mended::Cut(mended) } else { Mended::Resized(mended) }
}

/// A name for what is left of a file, which none of `taken` has.
fn other_name(name: &[u8], taken: &HashSet<Box<[u8]>>) -> Box<[u8]> {
    let first = [name, SUFFIX].concat().into_boxed_slice();
    let more = (2u64..).map(|n| [&first, format!("-{n}").as_bytes()].concat().into_boxed_slice());
    std::iter::once(first.clone()).chain(more).find(|name| !taken.contains(name)).unwrap_or(first)
}

/// Writes directories anew, children before parents.
pub(super) struct Rewriter<'a> {
    survey: &'a Survey,
    reader: crate::Reader,
    writer: &'a Writer,
    /// New directories by those in whose places they are.
    written: HashMap<Id, Id>,
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(survey: &'a Survey, reader: crate::Reader, writer: &'a Writer) -> Self {
        Rewriter { survey, reader, writer, written: HashMap::new() }
    }

    /// The new directory in the place of `root`, which is not whole.
    ///
    /// # Errors
    /// What was read for the plan cannot be read again; the first error of the writer.
    pub(super) async fn rewrite(&mut self, root: Id) -> Result<Id> {
        let mut stack = vec![(root, false)];
        while let Some((id, is_ready)) = stack.pop() {
            let (false, Some(broken)) = (self.written.contains_key(&id), self.survey.broken.get(&id)) else {
                continue;
            };
            if is_ready || broken.below.is_empty() {
                let new = match broken.unreadable {
                    true => self.writer.tree(TreeBuilder::new().finish()?)?,
                    false => self.directory(&id).await?,
                };
                self.written.insert(id, new);
            } else {
                stack.push((id, true));
                stack.extend(broken.below.iter().map(|(_, id)| (*id, false)));
            }
        }
        self.written.get(&root).copied().ok_or(Error::Broken("a directory that is whole was to be repaired"))
    }

    async fn directory(&self, id: &Id) -> Result<Id> {
        // Directories take their share of the budget without waiting: this waits until it is not overdrawn.
        drop(self.writer.permit(0).await?);
        let text = self.reader.blob(BlobKind::Tree, id).await?;
        let mut taken = taken(&text)?;
        let mut tree = TreeBuilder::new();
        let mut nodes = TreeReader::new(&text)?;
        while let Some((mut node, span)) = nodes.next_node()? {
            if let Some(new) = node.subtree.and_then(|id| self.written.get(&id)) {
                node.subtree = Some(*new);
                tree.add(&node)?;
                continue;
            }
            match mend(&node, |id| self.survey.length(id)) {
                Mended::Whole => tree.add_raw(&node.name, nodes.raw(&span))?,
                Mended::Resized(node) => tree.add(&node)?,
                Mended::Cut(mut node) => {
                    node.name = other_name(&node.name, &taken);
                    // What is left of an object must not be restored under that object's key, nor with its checksums.
                    node.xattrs.retain(|xattr| !xattr.name.starts_with("user.cistern."));
                    taken.insert(node.name.clone());
                    tree.add(&node)?;
                }
                Mended::Hollow => {
                    node.subtree = Some(self.writer.tree(TreeBuilder::new().finish()?)?);
                    tree.add(&node)?;
                }
            }
        }
        self.writer.tree(tree.finish()?)
    }
}

/// Names in a directory that the name of a repaired file could be.
fn taken(text: &[u8]) -> Result<HashSet<Box<[u8]>>> {
    let mut names = HashSet::new();
    let mut nodes = TreeReader::new(text)?;
    while let Some((node, _)) = nodes.next_node()? {
        if node.name.windows(SUFFIX.len()).any(|part| part == SUFFIX) {
            names.insert(node.name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Id {
        Id::of(&[n])
    }

    fn file(content: Option<&[u8]>, size: u64) -> Node {
        let content = content.map(|blobs| blobs.iter().map(|n| id(*n)).collect());
        Node { name: b"a".as_slice().into(), content, size, ..Node::default() }
    }

    #[test]
    fn what_is_left_of_an_entry_says_so() {
        // Blob n has n bytes; those above 9 are lost.
        let length = |blob: &Id| (0..10u8).find(|n| id(*n) == *blob).map(u64::from);
        let left = |blobs: &[u8], size| Box::new(file(Some(blobs), size));
        let table = [
            (file(Some(&[1, 2]), 3), Mended::Whole),
            (file(Some(&[]), 0), Mended::Whole),
            (file(Some(&[1, 2]), 4), Mended::Resized(left(&[1, 2], 3))),
            (file(Some(&[1, 10, 2]), 13), Mended::Cut(left(&[1, 2], 3))),
            (file(Some(&[10]), 0), Mended::Cut(left(&[], 0))),
            (file(None, 7), Mended::Cut(left(&[], 0))),
            (Node { kind: NodeKind::Dir, ..file(None, 0) }, Mended::Hollow),
            (Node { kind: NodeKind::Dir, subtree: Some(id(77)), ..file(None, 0) }, Mended::Whole),
            (Node { kind: NodeKind::Symlink, ..file(None, 0) }, Mended::Whole),
        ];
        for (node, expected) in table {
            assert_eq!(mend(&node, length), expected, "{node:?}");
        }
    }

    #[test]
    fn a_sibling_keeps_its_name() {
        let mut taken = HashSet::new();
        for expected in ["a.repaired", "a.repaired-2", "a.repaired-3"] {
            let name = other_name(b"a", &taken);
            assert_eq!(&*name, expected.as_bytes());
            taken.insert(name);
        }
        let text = b"{\"nodes\":[]}\n";
        assert!(super::taken(text).unwrap().is_empty());
    }
}
