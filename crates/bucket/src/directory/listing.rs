//! Walks a directory in the order of whole keys, a bounded number of names at a time.

use std::collections::BinaryHeap;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat, statat};
use rustix::io::{Errno, Result};

use super::files::{TEMPORARY, is_object, open};

/// Names of one directory held at a time; a directory with more is read once per so many names.
const WINDOW: usize = 1 << 16;

/// A listing under way: the directories between the root and the place that was reached.
pub(super) struct Walk {
    prefix: Vec<u8>,
    after: Option<Vec<u8>>,
    levels: Vec<Level>,
    window: usize,
    seen: Option<Found>,
}

struct Level {
    /// Path of the directory: empty, or ending in `/`.
    path: Vec<u8>,
    handle: Option<OwnedFd>,
    /// Names still to be visited, in descending order; those of directories end in `/`.
    names: Vec<Box<[u8]>>,
    /// The last name that was visited.
    last: Option<Box<[u8]>>,
    /// Whether there may be names behind those of the window.
    more: bool,
}

/// One file: its key and what the file system says.
pub(super) type Found = (Vec<u8>, Stat);

impl Walk {
    /// A walk through all files whose keys begin with `prefix` and come behind `after`.
    pub(super) fn new(prefix: &[u8], after: Option<&[u8]>) -> Self {
        Walk::with_window(prefix, after, WINDOW)
    }

    fn with_window(prefix: &[u8], after: Option<&[u8]>, window: usize) -> Self {
        let directory = prefix.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
        let odd = |name: &[u8]| matches!(name, b"" | b"." | b"..") || name.contains(&0);
        let mut components = prefix[..directory].split(|&byte| byte == b'/').rev().skip(1);
        let nothing = directory > 0 && components.any(odd);
        let levels = if nothing { Vec::new() } else { vec![Level::new(prefix[..directory].to_vec())] };
        Walk { prefix: prefix.to_vec(), after: after.map(<[u8]>::to_vec), levels, window, seen: None }
    }

    /// The prefix that was asked for.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Gives the open directories back; they are opened again when the walk goes on.
    pub(super) fn rest(&mut self) {
        self.levels.iter_mut().for_each(|level| level.handle = None);
    }

    /// Whether there are no more files.
    pub(super) fn is_over(&mut self, root: BorrowedFd<'_>) -> std::result::Result<bool, (Errno, Vec<u8>)> {
        self.seen = self.next(root)?;
        Ok(self.seen.is_none())
    }

    /// The next file. An error that stands beside a path was met there.
    pub(super) fn next(
        &mut self,
        root: BorrowedFd<'_>,
    ) -> std::result::Result<Option<Found>, (Errno, Vec<u8>)> {
        if let Some(found) = self.seen.take() {
            return Ok(Some(found));
        }
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.pop() else {
                if !level.more {
                    self.levels.pop();
                    continue;
                }
                let path = level.path.clone();
                self.fill(root).map_err(|error| (error, path))?;
                continue;
            };
            level.last = Some(name.clone());
            let key = [level.path.as_slice(), &name].concat();
            if name.ends_with(b"/") {
                // One open directory at a time: a deep tree must not use up the file descriptors.
                level.handle = None;
                self.levels.push(Level::new(key));
                continue;
            }
            match level.stat(root, &name) {
                Ok(stat) if is_object(&stat) => return Ok(Some((key, stat))),
                // Something else, or gone since its directory was read.
                Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err((error, key)),
            }
        }
        Ok(None)
    }

    /// Reads the next window of names of the innermost directory.
    fn fill(&mut self, root: BorrowedFd<'_>) -> Result<()> {
        let window = self.window;
        let level = self.levels.last_mut().expect("a walk fills the level that it stands on");
        level.more = false;
        let directory = match level.open(root) {
            Ok(directory) => directory,
            // Whether objects lie behind the prefix is unknown, which an empty listing would deny.
            Err(Errno::LOOP) if level.path.len() <= self.prefix.len() => return Err(Errno::LOOP),
            // Gone, or replaced by something that is no directory. The root itself has to be there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if !level.path.is_empty() => return Ok(()),
            // The prefix names what no file system can hold.
            Err(Errno::NAMETOOLONG) if level.path.len() <= self.prefix.len() => return Ok(()),
            Err(error) => return Err(error),
        };
        // What is left of the bounds inside of this directory.
        let wanted_prefix = self.prefix.strip_prefix(level.path.as_slice()).unwrap_or_default();
        let floor = match self.after.as_deref() {
            None => None,
            Some(after) => match after.strip_prefix(level.path.as_slice()) {
                Some(rest) => Some(rest),
                None if after < level.path.as_slice() => None,
                None => return Ok(()),
            },
        };
        let mut heap: BinaryHeap<Box<[u8]>> = BinaryHeap::new();
        let mut buffer = Vec::with_capacity(64 << 10);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        let mut name = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            name.clear();
            name.extend_from_slice(entry.file_name().to_bytes());
            let kind = match entry.file_type() {
                FileType::Unknown => match statat(&directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error),
                },
                known => known,
            };
            match kind {
                _ if name == b"." || name == b".." => continue,
                FileType::RegularFile if name.starts_with(TEMPORARY) => continue,
                FileType::RegularFile => {}
                FileType::Directory => name.push(b'/'),
                _ => continue,
            }
            let behind_floor = floor.is_none_or(|floor| {
                name.as_slice() > floor || kind == FileType::Directory && floor.starts_with(&name)
            });
            let behind_last = level.last.as_deref().is_none_or(|last| name.as_slice() > last);
            if !(name.starts_with(wanted_prefix) && behind_floor && behind_last) {
                continue;
            }
            if heap.len() == window {
                level.more = true;
                if heap.peek().is_some_and(|greatest| **greatest <= *name) {
                    continue;
                }
                heap.pop();
            }
            heap.push(name.as_slice().into());
        }
        level.names = heap.into_sorted_vec();
        level.names.reverse();
        level.handle = Some(directory);
        Ok(())
    }
}

impl Level {
    fn new(path: Vec<u8>) -> Self {
        Level { path, handle: None, names: Vec::new(), last: None, more: true }
    }

    fn open(&self, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        open(root, &self.path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn stat(&mut self, root: BorrowedFd<'_>, name: &[u8]) -> Result<Stat> {
        let handle = match self.handle.take() {
            Some(handle) => handle,
            None => self.open(root)?,
        };
        let stat = statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW);
        self.handle = Some(handle);
        stat
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use rustix::fs::{Mode, openat};

    use super::*;

    fn keys(directory: &Path, prefix: &str, after: Option<&str>, window: usize) -> Vec<String> {
        let root = openat(rustix::fs::CWD, directory, OFlags::PATH, Mode::empty()).unwrap();
        let mut walk = Walk::with_window(prefix.as_bytes(), after.map(str::as_bytes), window);
        let mut found = Vec::new();
        while let Some((key, _)) = walk.next(root.as_fd()).unwrap() {
            found.push(String::from_utf8(key).unwrap());
            walk.rest();
        }
        found
    }

    #[test]
    fn every_window_prefix_and_start_yields_the_sorted_set_of_keys() {
        let directory = tempfile::tempdir().unwrap();
        let mut all = [
            "a-b",
            "a.txt",
            "a/1",
            "a/2/x",
            "a/2-",
            "a/20",
            "a0",
            "b/c/d/e/f",
            "b/c/d/e.f",
            "b/c/d-",
            "z",
            "a/é",
            "A",
        ]
        .map(String::from);
        for key in &all {
            let path = directory.path().join(key);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, key).unwrap();
        }
        std::fs::create_dir_all(directory.path().join("empty/er")).unwrap();
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        all.sort();
        let bounds = [
            "",
            "a",
            "a-",
            "a/",
            "a/2",
            "a/2/",
            "a/2/x",
            "a/3",
            "b",
            "b/c/d",
            "b/c/d/e",
            "zz",
            "nothing/at/all",
            "/",
            "a//",
            "../",
        ];
        for window in [1, 2, 3, 100] {
            for prefix in bounds {
                for after in bounds {
                    let expected: Vec<_> = all
                        .iter()
                        .filter(|key| key.starts_with(prefix) && key.as_str() > after)
                        .cloned()
                        .collect();
                    let after = (!after.is_empty()).then_some(after);
                    assert_eq!(
                        keys(directory.path(), prefix, after, window),
                        expected,
                        "{prefix} {after:?} {window}"
                    );
                }
            }
        }
    }

    #[test]
    fn unfinished_writes_are_not_listed_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let old = directory.path().join(".cistern-tmp-1-2-3");
        let file = std::fs::File::create(&old).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(keys(directory.path(), "", None, 10), Vec::<String>::new());
        assert!(old.exists());
    }

    #[test]
    fn a_link_on_the_way_of_the_prefix_is_no_empty_listing() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("real/sub")).unwrap();
        std::os::unix::fs::symlink("real", directory.path().join("link")).unwrap();
        let root = openat(rustix::fs::CWD, directory.path(), OFlags::PATH, Mode::empty()).unwrap();
        for prefix in ["link/", "link/x", "link/sub/", "link/not/there/"] {
            let met = Walk::new(prefix.as_bytes(), None).next(root.as_fd()).map(drop);
            assert_eq!(met.unwrap_err().0, Errno::LOOP, "{prefix}");
        }
        for prefix in ["", "link", "real/", "not/there/"] {
            assert!(Walk::new(prefix.as_bytes(), None).next(root.as_fd()).unwrap().is_none(), "{prefix}");
        }
    }
}
