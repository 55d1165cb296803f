//! A directory on its way into the repository: it is settled when everything in it is.

use std::sync::atomic::{AtomicUsize, Ordering::AcqRel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cistern_bucket::Key;
use cistern_repository::{BlobKind, Id, Node, TreeBuilder};

use crate::backup::session::Tally;
use crate::{Error, Result};

/// A directory whose tree is being put together, by several threads.
pub(super) struct Frame {
    /// The directory above; none for the root of the snapshot.
    above: Option<Arc<Frame>>,
    /// Path below the source, without a slash at either end; that of the source itself is empty.
    pub path: Box<[u8]>,
    /// The file system that it is on.
    pub device: u64,
    /// Whether it is kept only if something in it is: patterns include something below it, perhaps.
    passage: bool,
    /// The parent snapshot's node of this directory.
    previous: Option<Box<Node>>,
    /// Bytes that its tree may have at most.
    limit: usize,
    /// How many things in it are not settled yet, its own reading included.
    open: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// The directory's own node; none for the root of the snapshot.
    node: Option<Node>,
    tree: TreeBuilder,
}

/// What [`Frame::settle`] needs to store trees and to tell what became of them.
pub(super) trait Trees {
    /// Stores a tree and names it.
    fn store(&mut self, tree: Vec<u8>) -> Result<Id>;
    /// The counts to add to.
    fn tally(&mut self) -> &mut Tally;
    /// The tree of the snapshot's root is stored.
    fn root(&mut self, id: Id);
}

impl Frame {
    /// The root of a snapshot, or a directory that lies in `above`. It is open until it is settled once.
    pub fn new(above: Option<Arc<Frame>>, path: Box<[u8]>, device: u64, node: Option<Node>) -> Frame {
        let state = Mutex::new(State { node, tree: TreeBuilder::new() });
        let limit = BlobKind::Tree.max_length() as usize;
        Frame { above, path, device, passage: false, previous: None, limit, open: AtomicUsize::new(1), state }
    }

    /// The same, to be compared with the parent snapshot's node.
    pub fn with_previous(mut self, previous: Option<Box<Node>>) -> Frame {
        self.previous = previous;
        self
    }

    /// The same, kept only if something in it is.
    pub fn only_if_used(mut self, passage: bool) -> Frame {
        self.passage = passage;
        self
    }

    /// One more thing has to be settled before this directory is.
    pub fn expect(&self) {
        self.open.fetch_add(1, AcqRel);
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// The directory has become too large to be read again.
    pub fn add(&self, node: &Node) -> Result<()> {
        let mut state = self.state();
        state.tree.add(node)?;
        self.check(&state.tree)
    }

    /// Adds an entry as the parent snapshot has it.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_raw(&self, name: &[u8], raw: &[u8]) -> Result<()> {
        let mut state = self.state();
        state.tree.add_raw(name, raw)?;
        self.check(&state.tree)
    }

    /// A directory is one blob, which every reader holds in memory: there has to be an end.
    fn check(&self, tree: &TreeBuilder) -> Result<()> {
        if tree.byte_len() <= self.limit {
            return Ok(());
        }
        let (path, limit) = (Key::new(&*self.path), self.limit >> 20);
        Err(Error::Invalid(format!(
            "the directory '{path}' of the source holds too many entries: as one tree they take more than \
             {limit} MiB; exclude it, or spread them over several directories"
        )))
    }

    /// One thing is settled. The last one stores the tree, and settles this directory in the one above.
    pub fn settle(self: &Arc<Frame>, trees: &mut impl Trees) -> Result<()> {
        let mut frame = self.clone();
        while frame.open.fetch_sub(1, AcqRel) == 1 {
            let (tree, node) = {
                let mut state = frame.state();
                (std::mem::take(&mut state.tree), state.node.take())
            };
            let empty = tree.is_empty();
            let Some(above) = frame.above.clone() else {
                let id = trees.store(tree.finish()?)?;
                trees.root(id);
                return Ok(());
            };
            if let Some(mut node) = node
                && !(frame.passage && empty)
            {
                node.subtree = Some(trees.store(tree.finish()?)?);
                let tally = trees.tally();
                match &frame.previous {
                    None => tally.dirs_new += 1,
                    Some(previous) if is_same(&mut node, previous) => tally.dirs_unchanged += 1,
                    Some(_) => tally.dirs_changed += 1,
                }
                above.add(&node)?;
            }
            frame = above;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether two nodes say the same. Times are compared as points in time, and those that are equal are taken
/// over as they are written: a snapshot that was made in another time zone is no reason to write every tree
/// again.
pub(super) fn is_same(node: &mut Node, previous: &Node) -> bool {
    for (time, before) in [
        (&mut node.mtime, previous.mtime),
        (&mut node.atime, previous.atime),
        (&mut node.ctime, previous.ctime),
    ] {
        if time.instant() == before.instant() {
            *time = before;
        }
    }
    node == previous
}

#[cfg(test)]
mod tests {
    use cistern_repository::{NodeKind, Time, Tree};

    use super::*;

    #[derive(Default)]
    struct Store {
        trees: Vec<Vec<u8>>,
        tally: Tally,
        root: Option<Id>,
    }

    impl Trees for Store {
        fn store(&mut self, tree: Vec<u8>) -> Result<Id> {
            let id = Id::of(&tree);
            self.trees.push(tree);
            Ok(id)
        }
        fn tally(&mut self) -> &mut Tally {
            &mut self.tally
        }
        fn root(&mut self, id: Id) {
            self.root = Some(id);
        }
    }

    fn node(name: &str, kind: NodeKind) -> Node {
        Node { name: name.as_bytes().into(), kind, ..Node::default() }
    }

    #[test]
    fn a_directory_is_stored_when_the_last_thing_in_it_is_settled() {
        let mut store = Store::default();
        let root = Arc::new(Frame::new(None, Box::default(), 0, None));
        let child = |name: &str| {
            root.expect();
            Frame::new(Some(root.clone()), Box::default(), 0, Some(node(name, NodeKind::Dir)))
        };
        let dir = Arc::new(child("dir"));
        let passage = Arc::new(child("passage").only_if_used(true));
        root.settle(&mut store).unwrap();
        dir.expect();
        dir.settle(&mut store).unwrap();
        assert!(store.trees.is_empty(), "a file is still being read");
        dir.add(&node("file", NodeKind::File)).unwrap();
        dir.settle(&mut store).unwrap();
        assert_eq!(store.trees.len(), 1);
        passage.settle(&mut store).unwrap();
        let root = Tree::parse(store.trees.pop().unwrap()).unwrap();
        assert_eq!(root.nodes().len(), 1, "an empty passage is left out");
        assert_eq!(root.nodes()[0].subtree, Some(Id::of(&store.trees[0])));
        assert_eq!((store.root.is_some(), store.tally.dirs_new), (true, 1));
    }

    #[test]
    fn a_directory_that_nobody_could_read_again_is_named_before_it_takes_all_memory() {
        let frame = Frame { limit: 1 << 10, ..Frame::new(None, (*b"a/b").into(), 0, None) };
        let outcome = (0..100).try_for_each(|i| frame.add(&node(&i.to_string(), NodeKind::File)));
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("'a/b'"), "{error}");
        assert!(frame.state().tree.byte_len() < 2 << 10);
    }

    #[test]
    fn the_same_moment_in_another_zone_is_the_same() {
        let at =
            |offset| Node { mtime: Time { seconds: 7, nanoseconds: 1, offset }, ..node("x", NodeKind::File) };
        let mut now = at(0);
        assert!(is_same(&mut now, &at(60)));
        assert_eq!(now.mtime.offset, 60);
        let mut later = Node { mtime: Time::new(8, 1), ..at(0) };
        assert!(!is_same(&mut later, &at(60)));
        assert_eq!(later.mtime.offset, 0);
    }
}
