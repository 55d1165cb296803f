//! What snapshots have lost: which directories cannot be read or name something that is in no pack, and which others lie
//! above those.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use super::is_damage;
use super::trees::{Mended, mend};
use crate::index::Index;
use crate::listed::Listed;
use crate::marks::Marks;
use crate::reader::TreeWalk;
use crate::tree::TreeReader;
use crate::{BlobKind, Error, Id, Reader, Result};

/// Paths that are named for each snapshot.
pub(super) const PATHS: usize = 20;

/// Directories that are not whole, themselves or below.
pub(super) struct Survey {
    reader: Reader,
    listed: Listed,
    /// Those that cannot be read.
    unreadable: HashSet<Id>,
    /// Those with entries of their own that are not whole.
    own: HashSet<Id>,
    /// Those that were looked at in search of the ones below.
    seen: Marks,
    /// All that are not whole.
    pub(super) broken: HashMap<Id, Broken>,
}

/// What is not whole of a directory.
#[derive(Debug, Default)]
pub(super) struct Broken {
    /// Whether nothing of it can be read.
    pub(super) unreadable: bool,
    /// Names of files of which contents are lost; the first ones, and how many there are.
    names: Vec<Box<[u8]>>,
    /// Subdirectories that are not whole.
    pub(super) below: Vec<(Box<[u8]>, Id)>,
    /// Files and directories in it and below of which something is lost.
    pub(super) lost: Loss,
}

/// How many files and directories have lost something; the same one in several places counts for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Files that have lost contents.
    pub files: u64,
    /// Directories that are lost with all that was in them.
    pub directories: u64,
}

impl Loss {
    fn add(&mut self, other: Loss) {
        self.files = self.files.saturating_add(other.files);
        self.directories = self.directories.saturating_add(other.directories);
    }
}

impl Survey {
    /// Nothing is known yet.
    pub(super) fn new(reader: Reader, listed: Listed) -> Self {
        let seen = Marks::new(reader.index().entries());
        let (unreadable, own, broken) = Default::default();
        Survey { reader, listed, unreadable, own, seen, broken }
    }

    fn index(&self) -> &Arc<Index> {
        self.reader.index()
    }

    /// The plain length of a blob of data that may be whole somewhere.
    pub(super) fn length(&self, id: &Id) -> Option<u64> {
        let is_there = self.listed.has(self.index(), BlobKind::Data, id);
        is_there.then(|| self.reader.raw_length(BlobKind::Data, id).map(u64::from)).flatten()
    }

    /// Reads all directories below these roots, several at once, and then those above what is not whole.
    pub(super) async fn look(&mut self, roots: &[Id], done: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
        let found: Arc<Mutex<HashSet<Id>>> = Arc::default();
        // The walk's threads need what is looked up for as long as they run.
        let listed = Arc::new(std::mem::take(&mut self.listed));
        let visit = {
            let (found, listed, reader) = (found.clone(), listed.clone(), self.reader.clone());
            move |tree: &Id, node: &crate::Node| {
                let length = |id: &Id| match listed.has(reader.index(), BlobKind::Data, id) {
                    true => reader.raw_length(BlobKind::Data, id).map(u64::from),
                    false => None,
                };
                let lost_directory =
                    node.subtree.is_some_and(|id| !listed.has(reader.index(), BlobKind::Tree, &id));
                if lost_directory || !matches!(mend(node, length), Mended::Whole) {
                    found.lock().unwrap_or_else(PoisonError::into_inner).insert(*tree);
                }
            }
        };
        let mut walk = TreeWalk::new(self.reader.clone(), Arc::new(visit));
        for (number, root) in (1..).zip(roots) {
            if !listed.has(self.reader.index(), BlobKind::Tree, root) {
                self.unreadable.insert(*root);
            }
            let mut failed = |id, error: Error| match is_damage(&error) {
                true => {
                    self.unreadable.insert(id);
                    Ok(())
                }
                false => Err(error),
            };
            walk.below(*root, &mut failed).await?;
            done(number);
        }
        drop(walk);
        self.listed = Arc::into_inner(listed).ok_or(Error::Broken("somebody still looks up packs"))?;
        self.own = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.own.is_empty() || !self.unreadable.is_empty() {
            for root in roots {
                self.descend(*root).await?;
            }
        }
        Ok(())
    }

    /// Judges all directories below `root` that are not judged yet, children before parents.
    async fn descend(&mut self, root: Id) -> Result<()> {
        let mut stack: Vec<Open> = Vec::new();
        let mut enter = Some(root);
        loop {
            if let Some(id) = enter.take()
                && self.is_new(&id)
            {
                stack.push(self.open(id).await?);
            }
            let Some(open) = stack.last_mut() else { return Ok(()) };
            if let Some((_, child)) = open.broken.below.get(open.next) {
                open.next += 1;
                enter = Some(*child);
            } else if let Some(Open { id, mut broken, is_own, .. }) = stack.pop() {
                broken.below.retain(|(_, child)| self.broken.contains_key(child));
                for (_, child) in &broken.below {
                    let below = self.broken[child].lost;
                    broken.lost.add(below);
                }
                if is_own || broken.unreadable || !broken.below.is_empty() {
                    self.broken.insert(id, broken);
                }
            }
        }
    }

    fn is_new(&self, id: &Id) -> bool {
        match self.index().entry(BlobKind::Tree, id) {
            Some(entry) => self.seen.set(entry),
            None => !self.broken.contains_key(id),
        }
    }

    async fn open(&self, id: Id) -> Result<Open> {
        let mut open = Open { id, broken: Broken::default(), is_own: self.own.contains(&id), next: 0 };
        let is_there = self.listed.has(self.index(), BlobKind::Tree, &id);
        if !is_there || self.unreadable.contains(&id) {
            open.broken.unreadable = true;
            open.broken.lost.directories = 1;
            return Ok(open);
        }
        let mut nodes = TreeReader::new(self.reader.blob(BlobKind::Tree, &id).await?)?;
        while let Some((node, _)) = nodes.next_node().map_err(|error| error.named(id))? {
            let lost = match mend(&node, |id| self.length(id)) {
                Mended::Cut(_) => Loss { files: 1, directories: 0 },
                Mended::Hollow => Loss { files: 0, directories: 1 },
                Mended::Whole | Mended::Resized(_) => Loss::default(),
            };
            if lost != Loss::default() {
                open.broken.lost.add(lost);
                if open.broken.names.len() < PATHS {
                    open.broken.names.push(node.name.clone());
                }
            }
            open.broken.below.extend(node.subtree.map(|id| (node.name, id)));
        }
        Ok(open)
    }

    /// Some paths below `root` of which something is lost.
    pub(super) fn paths(&self, root: Id) -> Vec<Vec<u8>> {
        let mut paths = Vec::new();
        let mut stack = vec![(Vec::new(), root)];
        while let Some((path, id)) = stack.pop()
            && paths.len() < PATHS
        {
            let Some(broken) = self.broken.get(&id) else { continue };
            let child = |name: &[u8]| [&path, &b"/"[..], name].concat();
            paths.extend(broken.names.iter().map(|name| child(name)).take(PATHS - paths.len()));
            if broken.unreadable {
                paths.push(if path.is_empty() { b"/".to_vec() } else { path.clone() });
            }
            let below = broken.below.iter().rev();
            stack.extend(below.filter(|(_, id)| self.has_lost(id)).map(|(name, id)| (child(name), *id)));
        }
        paths.truncate(PATHS);
        paths
    }

    fn has_lost(&self, id: &Id) -> bool {
        self.broken.get(id).is_some_and(|broken| broken.lost != Loss::default())
    }
}

/// A directory whose children are being judged.
struct Open {
    id: Id,
    broken: Broken,
    is_own: bool,
    next: usize,
}
