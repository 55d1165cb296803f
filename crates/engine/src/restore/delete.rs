//! Deletes what the target holds and the snapshot does not: only what a plan has named, only where the snapshot is
//! proven to be complete (rules.md 1.5).

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use cistern_bucket::{Address, Key};
use cistern_repository::{Id, NodeKind, Reader, Tree};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::beneath::Dir;
use super::directory::failed;
use super::placer::{Name, Placer, kind, open_root};
use super::{Job, source_root};
use crate::backup::session::folder_of;
use crate::select::{Directory, clean};
use crate::snapshots::{PARTIAL_TAG, Run};
use crate::{Error, Restore, Result};

/// Most objects that one restore deletes: what was planned is remembered, eight bytes each.
const MOST: usize = 4 << 20;
/// Names that a plan shows.
const SHOWN: usize = 20;
/// Directories of the target deeper than this are left alone.
const MAX_DEPTH: usize = 4_096;

/// Refuses tasks for which nobody could say what is to be deleted.
///
/// # Errors
/// `Invalid`.
pub(crate) fn check(task: &Restore) -> Result<()> {
    if !task.delete {
        return Ok(());
    }
    let refuse = |why: &str| Err(Error::Invalid(format!("with delete, {why}")));
    if !task.remap.is_empty() {
        return refuse("beginnings of keys cannot be replaced");
    }
    if task.selection.max_size.is_some() || task.selection.modified_since.is_some() {
        return refuse("objects cannot be selected by size or time");
    }
    Ok(())
}

/// A directory by device and inode.
pub(crate) type Place = (u64, u64);

/// The directories that are never swept: the repository that is read, and its cache.
///
/// # Errors
/// `Invalid` if the target lies within the repository; of buckets, also if the repository lies below the target.
pub(crate) fn guarded(task: &Restore, cache: Option<&Path>) -> Result<Vec<Place>> {
    use std::os::unix::fs::MetadataExt;
    let refuse = |why: &str| Err(Error::Invalid(format!("nothing can be restored there: {why}")));
    let place = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let repository = match &task.repository {
        Address::Directory(path) => Some(path.as_path()),
        Address::S3 { .. } => None,
    };
    let guarded: Vec<Place> = [repository, cache].into_iter().flatten().filter_map(place).collect();
    match (&task.target, &task.repository) {
        (Address::Directory(path), _) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            // What is not there yet lies in the first directory above that is.
            let there = path.ancestors().find_map(|path| std::fs::canonicalize(path).ok());
            let mut above = there.iter().flat_map(|path| path.ancestors()).filter_map(place);
            if above.any(|place| guarded.contains(&place)) {
                return refuse("the target lies in the repository or its cache");
            }
        }
        (
            Address::S3 { endpoint, bucket, prefix },
            Address::S3 { endpoint: their_endpoint, bucket: their_bucket, prefix: their_prefix },
        ) if (endpoint, bucket) == (their_endpoint, their_bucket) => {
            let (target, repository) = (folder_of(prefix), folder_of(their_prefix));
            if target.starts_with(&repository) {
                return refuse("the target lies in the repository");
            }
            if repository.starts_with(&target) {
                return refuse("the repository lies below the target");
            }
        }
        _ => (),
    }
    Ok(guarded)
}

/// What a complete snapshot covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Covered {
    /// Path of the source in the snapshot.
    path: Vec<u8>,
    /// Whether it is a bucket that was listed to its end, rather than a directory.
    pub bucket: bool,
}

impl Covered {
    /// The part of what lies below `base` that the snapshot covers, as the path from there; empty for all of it.
    ///
    /// # Errors
    /// `Invalid` if they have nothing to do with each other.
    pub fn below(&self, base: &[u8]) -> Result<Vec<u8>> {
        if self.path == base || is_below(base, &self.path) {
            return Ok(Vec::new());
        }
        if is_below(&self.path, base) {
            let skip = if base == b"/" { 1 } else { base.len() + 1 };
            return Ok(self.path[skip..].to_vec());
        }
        Err(Error::Invalid("nothing can be deleted: the snapshot does not cover this path".into()))
    }
}

fn is_below(path: &[u8], above: &[u8]) -> bool {
    above == b"/" || above.is_empty() || path.strip_prefix(above).is_some_and(|rest| rest.starts_with(b"/"))
}

/// What the snapshots of a run cover, if they are proven to be complete.
///
/// # Errors
/// `Invalid`, saying what the proof lacks.
pub(crate) async fn prove(reader: &Reader, run: &Run) -> Result<Covered> {
    let refuse = |why: &str| Err(Error::Invalid(format!("nothing can be deleted: {why}")));
    if !run.succeeded() {
        return refuse("the snapshot is not complete");
    }
    if run.parts.iter().any(|(_, snapshot)| !snapshot.excludes.is_empty()) {
        return refuse("the snapshot was made with patterns that left things out");
    }
    if run.parts.iter().any(|(_, snapshot)| snapshot.tags.iter().any(|tag| tag == PARTIAL_TAG)) {
        return refuse("the snapshot does not hold everything that the source held");
    }
    if run.parts.iter().any(|(_, snapshot)| !snapshot.program_version.starts_with("cistern ")) {
        return refuse("the snapshot carries no proof that it is complete");
    }
    // Tags are a part of the proof, and another program could have taken one away.
    if run.parts.iter().any(|(_, snapshot)| snapshot.original.is_some()) {
        return refuse("the snapshot was changed since it was made");
    }
    let mut infos = Vec::new();
    for (_, snapshot) in &run.parts {
        infos.push(source_root(reader, snapshot).await?.1);
    }
    let Some((_, first)) = run.parts.first() else { return refuse("there is no snapshot") };
    let Some(path) = first.paths.first() else { return refuse("the snapshot names no path") };
    if run.parts.iter().any(|(_, snapshot)| snapshot.paths.first() != Some(path)) {
        return refuse("its parts are of several sources");
    }
    let path = clean(path.as_bytes());
    if infos.iter().all(Option::is_none) {
        return match &run.parts[..] {
            [(_, one)] if one.paths.len() == 1 => Ok(Covered { path, bucket: false }),
            _ => refuse("the snapshot carries no proof that it is complete"),
        };
    }
    let mut infos: Vec<_> = match infos.into_iter().collect::<Option<Vec<_>>>() {
        Some(infos) => infos,
        None => return refuse("a part carries no proof that it is complete"),
    };
    infos.sort_by(|a, b| a.bounds.after.cmp(&b.bounds.after));
    if infos.iter().any(|info| !info.proven) {
        return refuse("a part was changed after it was proven to be complete");
    }
    if infos.iter().any(|info| info.exceptions > 0) {
        return refuse("objects that the source held are not in the snapshot");
    }
    let joined = infos
        .windows(2)
        .all(|pair| pair[0].bounds.until.is_some() && pair[0].bounds.until == pair[1].bounds.after);
    let ends = infos.first().is_some_and(|info| info.bounds.after.is_none())
        && infos.last().is_some_and(|info| info.bounds.until.is_none());
    if !joined || !ends {
        return refuse("parts of the run are missing");
    }
    Ok(Covered { path, bucket: true })
}

/// What is going to be deleted: nothing else is, whatever appears meanwhile.
pub(crate) struct Doomed {
    /// How many.
    pub count: u64,
    /// The first, for the plan.
    pub first: Vec<String>,
    hashes: HashSet<u64>,
    hasher: RandomState,
}

impl Doomed {
    /// Nothing so far.
    pub fn new() -> Self {
        Doomed { count: 0, first: Vec::new(), hashes: HashSet::new(), hasher: RandomState::new() }
    }

    /// Adds something in a certain state.
    ///
    /// # Errors
    /// `Invalid` if it is too much for one restore.
    pub fn add(&mut self, name: &[u8], state: &str) -> Result<()> {
        if self.hashes.len() >= MOST {
            let why =
                format!("more than {MOST} objects would be deleted: restore to a smaller prefix at a time");
            return Err(Error::Invalid(why));
        }
        if self.hashes.insert(self.hasher.hash_one((name, state))) {
            self.count += 1;
            if self.first.len() < SHOWN {
                self.first.push(Key::from(name).to_string());
            }
        }
        Ok(())
    }

    /// Takes something out again.
    pub fn spare(&mut self, name: &[u8], state: &str) {
        if self.hashes.remove(&self.hasher.hash_one((name, state))) {
            self.count -= 1;
            let shown = Key::from(name).to_string();
            self.first.retain(|first| *first != shown);
        }
    }

    /// Whether it was planned to delete this in this state.
    pub fn contains(&self, name: &[u8], state: &str) -> bool {
        self.hashes.contains(&self.hasher.hash_one((name, state)))
    }
}

/// Finds what a target directory holds and the snapshot does not.
///
/// # Errors
/// A directory of the snapshot or of the target cannot be read.
pub(crate) fn doomed_files(
    job: &Job,
    path: &Path,
    site: Arc<super::beneath::Site>,
    handle: &Handle,
) -> Result<Doomed> {
    let mut doomed = Doomed::new();
    let root = match open_root(path) {
        Ok(fd) => Dir::root(site, fd),
        Err(Errno::NOENT) => return Ok(doomed),
        Err(error) => return Err(failed("opening", path, error.into())),
    };
    sweep(job, &root, handle, |dir, name, path| match standing(dir, name) {
        Some((state, _)) => doomed.add(path, &state),
        None => Ok(()),
    })?;
    Ok(doomed)
}

/// Deletes from a target directory what was planned. Yields how many were deleted.
///
/// # Errors
/// As [`doomed_files`]; what cannot be removed is reported.
pub(crate) fn delete_files(job: &Job, root: &Arc<Dir>, doomed: &Doomed, handle: &Handle) -> Result<u64> {
    let mut deleted = 0;
    let site = root.site().clone();
    sweep(job, root, handle, |dir, name, path| {
        // Looked at once more right before: what was changed since the plan is somebody's work.
        let Some((state, is_dir)) = standing(dir, name) else { return Ok(()) };
        if !doomed.contains(path, &state) {
            return Ok(());
        }
        let placer: &dyn Placer = &*site.placer;
        let removed = dir.fd().and_then(|fd| match is_dir {
            true => placer.remove_dir(fd.as_fd(), name),
            false => placer.remove(fd.as_fd(), name),
        });
        match removed {
            Ok(()) => deleted += 1,
            // Something in it stays, or appeared meanwhile.
            Err(Errno::NOTEMPTY | Errno::EXIST) if is_dir => (),
            Err(Errno::NOENT) => (),
            Err(error) => site.refused("deleting", path, error),
        }
        Ok(())
    })?;
    Ok(deleted)
}

/// The state of an entry as text, and whether it is a directory. What happens in a directory is no change of it: its
/// entries have states of their own, and only an empty one goes.
fn standing(dir: &Dir, name: Name<'_>) -> Option<(String, bool)> {
    let stat = dir.fd().and_then(|fd| dir.site().placer.stat(fd.as_fd(), name)).ok()??;
    let place = format!("{:?} {} {}", kind(&stat), stat.st_dev, stat.st_ino);
    if kind(&stat) == NodeKind::Dir {
        return Some((place, true));
    }
    let times = [stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64];
    Some((format!("{place} {} {times:?}", stat.st_size), false))
}

struct Level {
    dir: Arc<Dir>,
    /// The directory as the parts of the snapshot have it; empty if they have none.
    trees: Vec<Arc<Tree>>,
    names: Vec<(Box<[u8]>, bool)>,
    /// Whether the directory itself is to go when it has been swept.
    goes: bool,
    path: usize,
}

/// Calls `found` with the directory, name and path of everything below what the snapshot covers that is selected
/// and that the snapshot does not hold: entries of a directory before the directory. The repository and its cache are
/// passed over.
fn sweep(
    job: &Job,
    root: &Arc<Dir>,
    handle: &Handle,
    mut found: impl FnMut(&Dir, Name<'_>, &[u8]) -> Result<()>,
) -> Result<()> {
    let Some(covered) = &job.covered else { return Ok(()) };
    let tree = |id: &Id| handle.block_on(job.reader.tree(id)).map_err(Error::Repository);
    let mut trees = job.roots.iter().map(|root| tree(&root.tree)).collect::<Result<Vec<_>>>()?;
    let mut dir = root.clone();
    let mut path = Vec::new();
    for name in job.covered_path(covered)?.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let below = trees.iter().filter_map(|tree| tree.get(name)).filter_map(|node| node.subtree.as_ref());
        trees = below.map(&tree).collect::<Result<_>>()?;
        path.push(b'/');
        path.extend_from_slice(name);
        let entered = Name::new(name).map_err(|_| Errno::INVAL).and_then(|name| dir.open(name));
        dir = match entered {
            Ok(dir) => dir,
            Err(_) => return Ok(()),
        };
    }
    let placer = root.site().placer.clone();
    let place = |dir: &Dir| {
        let stat = dir.fd().and_then(|fd| placer.stat_open(fd.as_fd()))?;
        Ok((stat.st_dev, stat.st_ino))
    };
    let list = |dir: &Dir| -> rustix::io::Result<Vec<(Box<[u8]>, bool)>> {
        let mut names = Vec::new();
        placer.list(dir.fd()?.as_fd(), &mut |name, is_dir| names.push((name.into(), is_dir)))?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    };
    let unreadable = |path: &[u8], error: Errno| Error::File {
        doing: "listing",
        path: root.site().show(path),
        source: error.into(),
    };
    let (home, _) = place(&dir).map_err(|error| unreadable(&path, error))?;
    let names = list(&dir).map_err(|error| unreadable(&path, error))?;
    let mut stack = vec![Level { dir, trees, names, goes: false, path: path.len() }];
    while let (depth, Some(level)) = (stack.len(), stack.last_mut()) {
        job.check()?;
        path.truncate(level.path);
        let Some((name, is_dir)) = level.names.pop() else {
            let done = stack.pop();
            if let (Some(done), Some(above)) = (done, stack.last())
                && done.goes
            {
                let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default().to_vec();
                let dir = above.dir.clone();
                drop(done);
                let name = Name::new(&name).map_err(|_| Error::Broken("a listed name is none".into()))?;
                found(&dir, name, &path)?;
            }
            continue;
        };
        let Ok(checked) = Name::new(&name) else { continue };
        path.push(b'/');
        path.extend_from_slice(&name);
        let held: Vec<_> = level.trees.iter().filter_map(|tree| tree.get(&name)).collect();
        if !is_dir {
            if held.is_empty() && job.select.file(&path) {
                found(&level.dir, checked, &path)?;
            }
            continue;
        }
        let meant = job.select.directory(&path);
        let subtrees: Vec<Id> =
            held.iter().filter(|node| node.kind == NodeKind::Dir).filter_map(|node| node.subtree).collect();
        let occupied = !held.is_empty() && subtrees.is_empty();
        if meant == Directory::Excluded || occupied || depth >= MAX_DEPTH {
            continue;
        }
        let goes = held.is_empty() && meant == Directory::Included;
        let dir = match level.dir.open(checked) {
            Ok(dir) => dir,
            // It is gone, or became something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
            Err(error) => return Err(unreadable(&path, error)),
        };
        // Another file system was mounted there: it is none of the snapshot's business.
        let at = place(&dir).map_err(|error| unreadable(&path, error))?;
        if at.0 != home || job.guarded.contains(&at) {
            // What it stands in stays with it.
            stack.iter_mut().for_each(|level| level.goes = false);
            continue;
        }
        let trees = subtrees.iter().map(&tree).collect::<Result<_>>()?;
        let names = list(&dir).map_err(|error| unreadable(&path, error))?;
        stack.push(Level { dir, trees, names, goes, path: path.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_snapshot_covers_can_be_deleted() {
        let covered = |path: &str, base: &str| {
            let covered = Covered { path: path.into(), bucket: true };
            covered.below(base.as_bytes()).ok().map(|path| String::from_utf8(path).unwrap())
        };
        let table = [
            ("/orders", "/orders", Some("")),
            ("/orders/2026", "/orders", Some("2026")),
            ("/orders/2026/a", "/", Some("orders/2026/a")),
            ("/orders/2026", "/orders/2026/a", Some("")),
            ("/orders/2026", "/orders/2027", None),
            ("/orders/2026", "/orders/20", None),
            ("/orders", "/orders-copy", None),
        ];
        for (path, base, expected) in table {
            assert_eq!(covered(path, base).as_deref(), expected, "{path} {base}");
        }
    }

    #[test]
    fn what_is_spared_is_not_doomed_any_more() {
        let mut doomed = Doomed::new();
        for name in ["a", "b", "b"] {
            doomed.add(name.as_bytes(), "1").unwrap();
        }
        doomed.spare(b"a", "1");
        doomed.spare(b"b", "2");
        assert_eq!((doomed.count, &doomed.first[..]), (1, &["b".to_owned()][..]));
        assert!(doomed.contains(b"b", "1") && !doomed.contains(b"b", "2") && !doomed.contains(b"a", "1"));
    }
}
