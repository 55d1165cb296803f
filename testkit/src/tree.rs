//! Compares two directory trees: names, kinds, contents, modes, times, links and extended attributes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

/// What is compared besides names, kinds, contents, modes and targets of symbolic links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    /// Modification times, in nanoseconds.
    pub times: bool,
    /// Users and groups.
    pub owners: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Which files are links to one another.
    pub hard_links: bool,
}

impl Default for Compare {
    fn default() -> Self {
        Compare { times: true, owners: true, xattrs: true, hard_links: true }
    }
}

/// The differences between two trees, one line each: first the path (relative to both), then what differs.
/// None means that they are the same in everything that [`Compare::default`] names.
///
/// # Errors
/// If one of the trees cannot be read.
pub fn tree_diff(a: &Path, b: &Path) -> io::Result<Vec<String>> {
    tree_diff_with(a, b, Compare::default())
}

/// [`tree_diff`] with a choice of what is compared.
///
/// # Errors
/// If one of the trees cannot be read.
pub fn tree_diff_with(a: &Path, b: &Path, compare: Compare) -> io::Result<Vec<String>> {
    let (left, right) = (walk(a, compare)?, walk(b, compare)?);
    let mut differences = Vec::new();
    for (path, node) in &left {
        let shown = path.as_os_str().as_bytes().escape_ascii();
        let Some(other) = right.get(path) else {
            differences.push(format!("{shown}: only in the first"));
            continue;
        };
        for ((what, one), (_, two)) in node.iter().zip(other).filter(|(one, two)| one != two) {
            differences.push(format!("{shown}: {what} is {one}, then {two}"));
        }
        if node[0] == other[0] && node[0].1 == "file" && !same_contents(&a.join(path), &b.join(path))? {
            differences.push(format!("{shown}: contents differ"));
        }
    }
    for path in right.keys().filter(|path| !left.contains_key(*path)) {
        differences.push(format!("{}: only in the second", path.as_os_str().as_bytes().escape_ascii()));
    }
    Ok(differences)
}

type Facts = Vec<(&'static str, String)>;

fn walk(root: &Path, compare: Compare) -> io::Result<BTreeMap<PathBuf, Facts>> {
    let mut found = BTreeMap::new();
    let mut linked: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    // Sorted, so that the first of several linked files is the same one in both trees.
    while let Some(path) = open.pop() {
        let full = root.join(&path);
        let mut facts = facts(&full, compare)?;
        let meta = std::fs::symlink_metadata(&full)?;
        if meta.is_dir() {
            let mut names: Vec<OsString> =
                std::fs::read_dir(&full)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<_>>()?;
            names.sort_by(|a, b| b.cmp(a));
            open.extend(names.into_iter().map(|name| path.join(name)));
        } else if compare.hard_links && meta.nlink() > 1 {
            let first = linked.entry((meta.dev(), meta.ino())).or_insert_with(|| path.clone());
            facts.push(("hard link", format!("{first:?}")));
        } else {
            facts.push(("hard link", "none".into()));
        }
        found.insert(path, facts);
    }
    Ok(found)
}

fn facts(path: &Path, compare: Compare) -> io::Result<Facts> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let name = match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "directory",
        () if kind.is_symlink() => "symbolic link",
        () if kind.is_fifo() => "pipe",
        () if kind.is_socket() => "socket",
        () if kind.is_block_device() => "block device",
        () => "character device",
    };
    let mut facts = vec![("kind", name.to_string()), ("mode", format!("{:o}", meta.mode()))];
    if kind.is_file() {
        facts.push(("size", meta.len().to_string()));
    }
    if kind.is_symlink() {
        facts.push(("target", format!("{:?}", std::fs::read_link(path)?)));
    }
    if kind.is_block_device() || kind.is_char_device() {
        facts.push(("device", meta.rdev().to_string()));
    }
    if compare.times {
        facts.push(("time", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec())));
    }
    if compare.owners {
        facts.push(("owner", format!("{}:{}", meta.uid(), meta.gid())));
    }
    if compare.xattrs {
        facts.push(("extended attributes", format!("{:?}", xattrs(path)?)));
    }
    Ok(facts)
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<OsString, Vec<u8>>> {
    let mut names = Vec::with_capacity(64 << 10);
    match llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) => {}
        Err(rustix::io::Errno::NOTSUP) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.into()),
    }
    let mut found = BTreeMap::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let mut value = Vec::with_capacity(64 << 10);
        lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        found.insert(OsStr::from_bytes(name).to_os_string(), value);
    }
    Ok(found)
}

fn same_contents(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (std::fs::File::open(a)?, std::fs::File::open(b)?);
    let (mut one, mut two) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let count = a.read(&mut one)?;
        if count == 0 {
            return Ok(b.read(&mut two)? == 0);
        }
        match b.read_exact(&mut two[..count]) {
            Ok(()) if one[..count] == two[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, UNIX_EPOCH};

    fn tree(change: impl FnOnce(&Path)) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let path = root.path();
        fs::create_dir_all(path.join("a/b")).unwrap();
        for name in ["a/file", "a/other", "a/b/deep"] {
            fs::write(path.join(name), "hello").unwrap();
        }
        symlink("file", path.join("a/link")).unwrap();
        change(path);
        for name in ["a/file", "a/other", "a/b/deep", "a/b", "a", ""] {
            if let Ok(file) = fs::File::open(path.join(name)) {
                let time = file.metadata().unwrap().modified().unwrap();
                let odd = time == UNIX_EPOCH + Duration::from_nanos(1);
                file.set_modified(if odd { time } else { UNIX_EPOCH + Duration::from_secs(9) }).unwrap();
            }
        }
        let link = path.join("a/link");
        let time = rustix::fs::Timespec { tv_sec: 9, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &link, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        root
    }

    #[test]
    fn every_difference_is_found_and_nothing_else() {
        let base = tree(|_| {});
        let differences = |change: fn(&Path)| tree_diff(base.path(), tree(change).path()).unwrap();
        assert_eq!(differences(|_| {}), Vec::<String>::new());
        type Change = fn(&Path);
        let cases: [(Change, &str); 8] = [
            (|path| fs::remove_file(path.join("a/b/deep")).unwrap(), "a/b/deep: only in the first"),
            (|path| fs::write(path.join("new"), "").unwrap(), "new: only in the second"),
            (|path| fs::write(path.join("a/file"), "hellO").unwrap(), "a/file: contents differ"),
            (|path| fs::write(path.join("a/file"), "hell").unwrap(), "a/file: size is 5, then 4"),
            (
                |path| fs::set_permissions(path.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap(),
                "a/b: mode is 40755, then 40700",
            ),
            (
                |path| {
                    fs::remove_file(path.join("a/link")).unwrap();
                    symlink("other", path.join("a/link")).unwrap();
                },
                "a/link: target is \"file\", then \"other\"",
            ),
            (
                |path| {
                    let file = fs::File::open(path.join("a/other")).unwrap();
                    file.set_modified(UNIX_EPOCH + Duration::from_nanos(1)).unwrap();
                },
                "a/other: time is 9.000000000, then 0.000000001",
            ),
            (
                |path| {
                    fs::remove_file(path.join("a/other")).unwrap();
                    fs::hard_link(path.join("a/file"), path.join("a/other")).unwrap();
                },
                "a/other: hard link is none, then \"a/file\"",
            ),
        ];
        for (change, expected) in cases {
            let found = differences(change);
            assert!(found.iter().any(|line| line == expected), "{expected} is not in {found:?}");
        }
        let attribute = |path: &Path| {
            rustix::fs::setxattr(path.join("a/file"), "user.test", b"1", rustix::fs::XattrFlags::empty())
                .unwrap();
        };
        assert_eq!(differences(attribute).len(), 1);
    }
}
