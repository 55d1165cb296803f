//! Compares a snapshot with a directory, one directory at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use cistern_bucket::{Class, Key};
use cistern_repository::{Id, Node, NodeKind};
use rustix::fs::Stat;
use tokio::task::JoinSet;

use super::Job;
use super::content::{Blobs, Expectation};
use crate::backup::content::join;
use crate::fidelity::Description;
use crate::posix::{self, Opener};
use crate::select::Directory;
use crate::{Error, ExceptionKind, Result};

/// Files that are read at once.
const AT_ONCE: usize = 8;
/// Bytes of a file at a time.
const PIECE: usize = 1 << 20;

/// What a directory holds, by name.
type Names = BTreeMap<Vec<u8>, Stat>;

/// Compares everything below a directory.
///
/// # Errors
/// Whatever kept it from being compared.
pub(super) async fn compare(job: &Arc<Job>, path: &Path) -> Result<()> {
    let failed = |doing, path: &Path, source| Error::File { doing, path: path.display().to_string(), source };
    let absolute = std::path::absolute(path).map_err(|error| failed("finding", path, error))?;
    let wanted = job.wanted_root().map(String::into_bytes);
    let base = wanted.unwrap_or_else(|| crate::select::clean(absolute.as_os_str().as_bytes()));
    let mut trees = Vec::new();
    for (_, snapshot) in &job.selected.run.parts {
        trees.extend(job.descend(snapshot, &base).await?);
    }
    if trees.is_empty() {
        let base = Key::from(&base[..]);
        return Err(Error::NotFound(format!(
            "the snapshot holds no directory {base}; name the one to compare"
        )));
    }
    let opened = absolute.clone();
    let root = blocking(move || Opener::new().source(&opened, u32::MAX)).await?;
    let root = Arc::new(root.map_err(|error| failed("opening", &absolute, error))?);
    let base = if base == b"/" { Vec::new() } else { base };
    let mut walk = Walk {
        job: job.clone(),
        root,
        base,
        open: vec![(Vec::new(), trees)],
        running: JoinSet::new(),
        blobs: Blobs::new(job.clone()),
    };
    while let Some((path, trees)) = walk.open.pop() {
        walk.directory(&path, &trees).await?;
    }
    while !walk.running.is_empty() {
        walk.next().await?;
    }
    walk.blobs.flush().await
}

/// A file whose contents are the node's.
type Equal = (Key, Node);

struct Walk {
    job: Arc<Job>,
    root: Arc<OwnedFd>,
    /// Path of the root in the snapshot; empty for `/`.
    base: Vec<u8>,
    /// Directories to come: path below the root, and the trees that hold them in the parts.
    open: Vec<(Vec<u8>, Vec<Id>)>,
    running: JoinSet<Result<Option<Equal>>>,
    blobs: Blobs,
}

impl Walk {
    async fn directory(&mut self, path: &[u8], trees: &[Id]) -> Result<()> {
        let (root, below) = (self.root.clone(), path.to_vec());
        let mut there = match blocking(move || list(&root, &below)).await? {
            Ok(names) => names,
            Err(error) => {
                self.job.collector.add(ExceptionKind::Unreadable, Key::from(path), error);
                return Ok(());
            }
        };
        let mut below: BTreeMap<Vec<u8>, Vec<Id>> = BTreeMap::new();
        let mut damaged = false;
        for tree in trees {
            let tree = match self.job.reader.tree(tree).await {
                Ok(tree) => tree,
                Err(error) if error.class() == Class::Damaged => {
                    self.job.collector.add(ExceptionKind::Damaged, Key::from(path), error);
                    damaged = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for node in tree.nodes() {
                let child = joined(path, &node.name);
                let stat = there.remove(&*node.name);
                if let (NodeKind::Dir, Some(subtree)) = (node.kind, node.subtree) {
                    // Another part may hold the same directory: it is compared once, with all of them.
                    if below.contains_key(&child) || self.is_directory(&child, stat) {
                        below.entry(child).or_default().push(subtree);
                    }
                } else if self.is_meant(&child, node) {
                    self.file(child, node, stat).await?;
                }
            }
        }
        self.open.extend(below.into_iter().rev());
        if damaged {
            // Nobody knows what it held: what is there is neither more nor less.
            return Ok(());
        }
        for (name, stat) in there {
            let child = joined(path, &name);
            let shown = self.shown(&child);
            let meant = match posix::kind(&stat) {
                NodeKind::Dir => self.job.select.directory(&shown) == Directory::Included,
                _ => {
                    let modified = posix::modified(&stat).timestamp();
                    self.job.select.file(&shown)
                        && self.job.select.metadata(posix::size(&stat), Some(modified))
                }
            };
            if meant {
                let key = Key::new(child);
                self.job.collector.add(ExceptionKind::OnlyInSource, key, "the snapshot does not hold it");
            }
        }
        Ok(())
    }

    /// Whether the snapshot's directory is one in the source, too; if it is meant and is not, that has been told.
    fn is_directory(&self, path: &[u8], stat: Option<Stat>) -> bool {
        if self.job.select.directory(&self.shown(path)) == Directory::Excluded {
            return false;
        }
        let key = Key::from(path);
        match stat.map(|stat| posix::kind(&stat)) {
            Some(NodeKind::Dir) => return true,
            Some(_) => self.job.differs(key, "a directory in the snapshot, none in the source"),
            None => self.job.collector.add(ExceptionKind::OnlyInSnapshot, key, "the source does not hold it"),
        }
        false
    }

    fn is_meant(&self, path: &[u8], node: &Node) -> bool {
        let select = &self.job.select;
        select.file(&self.shown(path))
            && (node.kind != NodeKind::File || select.metadata(node.size, Some(node.mtime.timestamp())))
            && !Description::of(node).is_ok_and(|description| description.side)
    }

    async fn file(&mut self, path: Vec<u8>, node: &Node, stat: Option<Stat>) -> Result<()> {
        let key = Key::from(&path[..]);
        let Some(stat) = stat else {
            self.job.collector.add(ExceptionKind::OnlyInSnapshot, key, "the source does not hold it");
            return Ok(());
        };
        self.job.meter.found(node.size);
        self.job.meter.done(node.size);
        if posix::kind(&stat) != node.kind {
            self.job.differs(key, "another kind of file");
            return Ok(());
        }
        let content = self.job.task.content;
        let why = match node.kind {
            NodeKind::File if posix::size(&stat) != node.size => {
                Some(format!("{} bytes in the snapshot, {} in the source", node.size, posix::size(&stat)))
            }
            NodeKind::File if content => {
                return self.begin(path, node.clone(), stat).await;
            }
            NodeKind::File => {
                let (then, now) = (node.mtime.instant(), posix::modified(&stat).instant());
                let same = then.0 == now.0 && (then.1 == now.1 || then.1 == 0 || now.1 == 0);
                (!same).then(|| "another time of modification".into())
            }
            NodeKind::Symlink => {
                let (root, below) = (self.root.clone(), path.clone());
                let target = blocking(move || {
                    let (above, name) = split(&below);
                    posix::link_target(Opener::new().directory(root.as_fd(), above, u32::MAX)?.as_fd(), name)
                });
                match target.await? {
                    Ok(target) if target == node.link_target => None,
                    Ok(target) => Some(format!("a link to {}", Key::from(&*target))),
                    Err(error) => Some(error.to_string()),
                }
            }
            _ => None,
        };
        match why {
            Some(why) => self.job.differs(key, why),
            None => self.job.equal(node.size),
        }
        Ok(())
    }

    /// Begins to read a file.
    async fn begin(&mut self, path: Vec<u8>, node: Node, stat: Stat) -> Result<()> {
        while self.running.len() >= AT_ONCE {
            self.next().await?;
        }
        let key = Key::from(&path[..]);
        let Some(expectation) = Expectation::of(&node, &self.job.reader) else {
            self.job.collector.add(ExceptionKind::Damaged, key, "a blob of its contents is in no index");
            return Ok(());
        };
        let (root, job) = (self.root.clone(), self.job.clone());
        self.running.spawn_blocking(move || {
            Ok(match read(&root, &path, stat.st_uid, expectation) {
                Ok(true) => Some((key, node)),
                Ok(false) => {
                    job.differs(key, "the contents differ");
                    None
                }
                Err(error) => {
                    job.collector.add(ExceptionKind::Unreadable, key, error);
                    None
                }
            })
        });
        Ok(())
    }

    async fn next(&mut self) -> Result<()> {
        let Some(outcome) = self.running.join_next().await else { return Ok(()) };
        if let Some((key, node)) = join(outcome).flatten()? {
            self.blobs.add(key.to_string(), node.size, node.content.as_deref().unwrap_or_default()).await?;
        }
        Ok(())
    }

    /// A path below the root as patterns see it.
    fn shown(&self, path: &[u8]) -> Vec<u8> {
        [&self.base[..], b"/", path].concat()
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    join(tokio::task::spawn_blocking(work).await)
}

fn list(root: &OwnedFd, path: &[u8]) -> std::io::Result<Names> {
    let directory = Opener::new().directory(root.as_fd(), path, u32::MAX)?;
    let mut names = Names::new();
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name == b"." || name == b".." {
            continue;
        }
        match posix::status(directory.as_fd(), &name) {
            Ok(stat) => drop(names.insert(name, stat)),
            // It has gone since.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (),
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Whether a file's contents are what is expected.
fn read(root: &OwnedFd, path: &[u8], owner: u32, mut expectation: Expectation) -> std::io::Result<bool> {
    let (above, name) = split(path);
    let directory = Opener::new().directory(root.as_fd(), above, u32::MAX)?;
    let mut file = File::from(Opener::new().file(directory.as_fd(), name, owner)?);
    let mut buffer = vec![0; PIECE];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(expectation.finish()),
            length if !expectation.push(&buffer[..length]) => return Ok(false),
            _ => (),
        }
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
