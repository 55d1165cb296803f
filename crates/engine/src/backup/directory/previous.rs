//! The parent's tree of one directory, read in step with the directory's sorted names.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use cistern_repository::{Id, Node, NodeKind, Result, TreeReader};

use crate::fidelity::is_side;

/// A cursor over the nodes of a tree that the parent snapshot has for a directory.
#[derive(Default)]
pub(super) struct Previous {
    blob: Bytes,
    reader: Option<TreeReader<Bytes>>,
    /// The side files, wherever their names stand, once somebody has asked for one.
    sides: Option<HashMap<Box<[u8]>, (Node, Range<u32>)>>,
    next: Option<(Node, Range<u32>)>,
    /// Files that were passed over: the directory does not have them any more.
    pub files_gone: u64,
    /// Trees of directories that were passed over.
    pub trees_gone: Vec<Id>,
}

impl Previous {
    /// A cursor before the first node of a tree blob.
    ///
    /// # Errors
    /// The blob is no tree.
    pub fn new(blob: Bytes) -> Result<Self> {
        let reader = Some(TreeReader::new(blob.clone())?);
        let mut previous = Previous { blob, reader, ..Previous::default() };
        previous.advance()?;
        Ok(previous)
    }

    /// The node of this name and where its text lies. Names have to be asked for in ascending order.
    ///
    /// # Errors
    /// The tree is damaged from here on; every later question finds nothing.
    pub fn find(&mut self, name: &[u8]) -> Result<Option<(Node, Range<u32>)>> {
        while let Some((node, _)) = &self.next {
            match (*node.name).cmp(name) {
                std::cmp::Ordering::Less => self.pass()?,
                std::cmp::Ordering::Equal => {
                    let found = self.next.take();
                    self.advance()?;
                    return Ok(found);
                }
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// The node of a side file by its name, and where its text lies; it does not have to be asked for in order.
    ///
    /// # Errors
    /// The tree is damaged.
    pub fn side(&mut self, name: &[u8]) -> Result<Option<(Node, Range<u32>)>> {
        if self.sides.is_none() {
            let mut sides = HashMap::new();
            let mut reader = TreeReader::new(self.blob.clone())?;
            while let Some((node, span)) = reader.next_node()? {
                if is_side(&node) {
                    sides.insert(node.name.clone(), (node, span));
                }
            }
            self.sides = Some(sides);
        }
        Ok(self.sides.as_ref().and_then(|sides| sides.get(name).cloned()))
    }

    /// Passes over whatever is left.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub fn finish(&mut self) -> Result<()> {
        while self.next.is_some() {
            self.pass()?;
        }
        Ok(())
    }

    /// The text of a node that was found.
    pub fn raw(&self, span: &Range<u32>) -> &[u8] {
        self.reader.as_ref().map_or(&[], |reader| reader.raw(span))
    }

    fn pass(&mut self) -> Result<()> {
        if let Some((node, _)) = self.next.take() {
            match node.kind {
                NodeKind::File => self.files_gone += u64::from(!is_side(&node)),
                NodeKind::Dir => self.trees_gone.extend(node.subtree),
                _ => (),
            }
        }
        self.advance()
    }

    fn advance(&mut self) -> Result<()> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        self.next = reader.next_node()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cistern_repository::TreeBuilder;

    use super::*;

    fn tree() -> Bytes {
        let mut tree = TreeBuilder::new();
        for (name, kind) in
            [("a", NodeKind::File), ("b", NodeKind::Dir), ("c", NodeKind::File), ("e", NodeKind::Symlink)]
        {
            let subtree = (kind == NodeKind::Dir).then(|| Id::of(b"b"));
            tree.add(&Node { name: name.as_bytes().into(), kind, subtree, ..Node::default() }).unwrap();
        }
        tree.finish().unwrap().into()
    }

    #[test]
    fn names_are_joined_in_order_and_what_is_gone_is_counted() {
        let mut previous = Previous::new(tree()).unwrap();
        assert!(previous.find(b"0").unwrap().is_none());
        let (node, span) = previous.find(b"c").unwrap().unwrap();
        assert_eq!(&*node.name, b"c");
        assert!(previous.raw(&span).starts_with(b"{\"name\":\"c\""));
        assert!(previous.find(b"d").unwrap().is_none());
        previous.finish().unwrap();
        assert_eq!((previous.files_gone, &previous.trees_gone[..]), (1, &[Id::of(b"b")][..]));
    }

    #[test]
    fn damage_is_an_error_once_and_then_nothing_is_found() {
        let whole = tree();
        let cut = whole.slice(..whole.len() - 10);
        let mut previous = Previous::new(cut).unwrap();
        assert!(previous.find(b"z").is_err());
        assert!(previous.find(b"zz").unwrap().is_none());
        assert!(Previous::new(Bytes::from_static(b"no tree")).is_err());
    }
}
