//! Files of this machine as nodes of a tree, with everything that restic keeps of them.
//!
//! Everything is asked for relative to an open directory and without following links, so that nobody who
//! changes the tree meanwhile can lead a backup elsewhere.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use cistern_repository::node::mode;
use cistern_repository::{Id, Node, NodeKind, Time, Xattr};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::fidelity;

/// Names of users and groups, read once, as restic's release reads them: from `/etc/passwd` and `/etc/group`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Accounts {
    users: HashMap<u32, Box<str>>,
    groups: HashMap<u32, Box<str>>,
}

impl Accounts {
    /// The accounts of this machine; one that cannot be read has no names.
    pub fn load() -> Self {
        let read = |path: &str| std::fs::read(path).unwrap_or_default();
        Accounts { users: names(&read("/etc/passwd"), 6), groups: names(&read("/etc/group"), 3) }
    }

    fn user(&self, id: u32) -> Box<str> {
        self.users.get(&id).cloned().unwrap_or_default()
    }

    fn group(&self, id: u32) -> Box<str> {
        self.groups.get(&id).cloned().unwrap_or_default()
    }
}

/// Names by number from lines `name:password:number:…` with at least so many colons; the first line counts.
fn names(text: &[u8], colons: usize) -> HashMap<u32, Box<str>> {
    let mut names = HashMap::new();
    for line in text.split(|b| *b == b'\n') {
        let fields: Vec<&[u8]> = line.trim_ascii().split(|b| *b == b':').collect();
        // Lines of NIS begin with a sign.
        if fields.len() <= colons || fields[0].is_empty() || matches!(fields[0][0], b'+' | b'-' | b'#') {
            continue;
        }
        let (Ok(name), Some(id)) = (
            std::str::from_utf8(fields[0]),
            std::str::from_utf8(fields[2]).ok().and_then(|id| id.parse().ok()),
        ) else {
            continue;
        };
        names.entry(id).or_insert_with(|| name.into());
    }
    names
}

/// How nodes are made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Style {
    /// Names of owners.
    pub accounts: Accounts,
    /// Keeps access times; otherwise they are the time of modification.
    pub with_atime: bool,
    /// Leaves out inode and device, and keeps no time of change of its own: a mount of a bucket numbers its
    /// files anew each time (repository-format.md 3.8).
    pub without_inode: bool,
    /// Files and directories become the nodes that a bucket would give (rules.md 3.7).
    pub of_bucket: bool,
}

impl Style {
    /// The node of a file, without what is not in its status: extended attributes, target of a link, contents.
    pub fn node(&self, name: &[u8], stat: &Stat) -> Node {
        let mode = mode::from_unix(stat.st_mode);
        let kind = NodeKind::of_mode(mode);
        match kind {
            NodeKind::File if self.of_bucket => {
                return fidelity::file(name, size(stat), modified(stat).timestamp(), &[]);
            }
            // The tree follows when it is stored.
            NodeKind::Dir if self.of_bucket => return fidelity::directory(name, Id::of(b"")),
            _ => (),
        }
        let mtime = time(stat.st_mtime, stat.st_mtime_nsec);
        let mut node = Node {
            name: name.into(),
            kind,
            mode,
            mtime,
            atime: if self.with_atime { time(stat.st_atime, stat.st_atime_nsec) } else { mtime },
            ctime: mtime,
            uid: stat.st_uid,
            gid: stat.st_gid,
            user: self.accounts.user(stat.st_uid),
            group: self.accounts.group(stat.st_gid),
            ..Node::default()
        };
        if !self.without_inode {
            node.ctime = changed(stat);
            node.inode = inode(stat);
            node.device_id = device(stat);
        }
        match kind {
            NodeKind::File => {
                node.size = size(stat);
                node.links = wide(stat.st_nlink);
                node.content = Some(Box::default());
            }
            NodeKind::Symlink => node.links = wide(stat.st_nlink),
            NodeKind::Device | NodeKind::CharDevice => {
                node.links = wide(stat.st_nlink);
                node.device = wide(stat.st_rdev);
            }
            _ => (),
        }
        node
    }
}

/// Length in bytes.
pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Time of modification.
pub(crate) fn modified(stat: &Stat) -> Time {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

/// Time at which the inode changed.
pub(crate) fn changed(stat: &Stat) -> Time {
    time(stat.st_ctime, stat.st_ctime_nsec)
}

/// The file system.
pub(crate) fn device(stat: &Stat) -> u64 {
    wide(stat.st_dev)
}

/// Number within the file system.
pub(crate) fn inode(stat: &Stat) -> u64 {
    wide(stat.st_ino)
}

/// What kind of node a file is.
pub(crate) fn kind(stat: &Stat) -> NodeKind {
    NodeKind::of_mode(mode::from_unix(stat.st_mode))
}

/// The widths of a status's numbers differ between machines.
fn wide(number: impl TryInto<u64>) -> u64 {
    number.try_into().unwrap_or(0)
}

fn time(seconds: impl TryInto<i64>, nanoseconds: impl TryInto<u32>) -> Time {
    Time::new(seconds.try_into().unwrap_or(0), nanoseconds.try_into().unwrap_or(0))
}

/// Opens things as their reader: without touching their access times where that is allowed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opener {
    /// Whoever is neither owner nor privileged must not ask for it.
    user: u32,
}

impl Opener {
    /// For the user that this process acts as.
    pub fn new() -> Self {
        Opener { user: rustix::process::geteuid().as_raw() }
    }

    /// Opens a file for reading, of which `stat` was seen before. It never waits, follows no link, and is
    /// whatever now has the name: look at its status.
    pub fn file(self, directory: BorrowedFd<'_>, name: &[u8], owner: u32) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        self.quietly(owner, flags, |flags| rustix::fs::openat(directory, name, flags, Mode::empty()))
    }

    /// Opens the directory at an absolute path, the way to which may lead through links, but not its end.
    pub fn source(self, path: &Path, owner: u32) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.quietly(owner, flags, |flags| rustix::fs::open(path, flags, Mode::empty()))
    }

    /// Opens the directory that lies at `path` below `root`; an empty path is the root itself. No link is
    /// followed.
    pub fn directory(self, root: BorrowedFd<'_>, path: &[u8], owner: u32) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_empty() {
            return self.quietly(owner, flags, |flags| rustix::fs::openat(root, c".", flags, Mode::empty()));
        }
        // One call can take a path of 4,095 bytes; deeper directories take several.
        let mut from: Option<OwnedFd> = None;
        let mut rest = path;
        while rest.len() > 4_000 {
            let cut = rest[..4_000].iter().rposition(|b| *b == b'/').unwrap_or(rest.len());
            let base = from.as_ref().map_or(root, AsFd::as_fd);
            from = Some(step(base, &rest[..cut], OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?);
            rest = rest.get(cut + 1..).unwrap_or_default();
        }
        let base = from.as_ref().map_or(root, AsFd::as_fd);
        self.quietly(owner, flags, |flags| step(base, rest, flags))
    }

    /// Asks without touching the access time, and again if that is refused.
    fn quietly(
        self,
        owner: u32,
        flags: OFlags,
        open: impl Fn(OFlags) -> rustix::io::Result<OwnedFd>,
    ) -> io::Result<OwnedFd> {
        if self.user == 0 || self.user == owner {
            match open(flags | OFlags::NOATIME) {
                Err(Errno::PERM) => (),
                done => return Ok(done?),
            }
        }
        Ok(open(flags)?)
    }
}

/// Opens a path of several components, none of which may be a link.
fn step(base: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(base, path, flags, Mode::empty(), resolve) {
        // Older kernels, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => (),
        done => return done,
    }
    let mut from: Option<OwnedFd> = None;
    let (above, last) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    let passing = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    for name in above.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        let base = from.as_ref().map_or(base, AsFd::as_fd);
        from = Some(rustix::fs::openat(base, name, passing, Mode::empty())?);
    }
    let base = from.as_ref().map_or(base, AsFd::as_fd);
    rustix::fs::openat(base, last, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// The status of what has this name, itself and not what it may point at.
pub(crate) fn status(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    Ok(rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Where a symbolic link points.
pub(crate) fn link_target(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Box<[u8]>> {
    let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
    Ok(target.into_bytes().into())
}

/// Reads extended attributes; keeps its buffers from file to file.
#[derive(Debug)]
pub(crate) struct XattrReader {
    list: Vec<u8>,
    value: Vec<u8>,
    path: Vec<u8>,
    /// Whether the kernel's links to open files are there.
    has_proc: bool,
}

/// What can be asked for its attributes.
#[derive(Clone, Copy)]
enum Of<'a> {
    Open(BorrowedFd<'a>),
    Path(&'a [u8]),
}

impl XattrReader {
    /// A reader with empty buffers.
    pub fn new() -> Self {
        let has_proc = Path::new("/proc/self/fd").exists();
        XattrReader { list: vec![0; 1024], value: vec![0; 1024], path: Vec::new(), has_proc }
    }

    /// The attributes of an open file, in the order in which the file system lists them. An attribute that
    /// cannot be read is left out and given to `lost`.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn of_open(
        &mut self,
        file: BorrowedFd<'_>,
        lost: impl FnMut(&str, io::Error),
    ) -> io::Result<Vec<Xattr>> {
        read(Of::Open(file), &mut self.list, &mut self.value, lost)
    }

    /// The attributes of what has this name, itself and not what it may point at; otherwise as
    /// [`of_open`](Self::of_open). `hint` is its absolute path, if it is known.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn of_name(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &[u8],
        hint: Option<&[u8]>,
        lost: impl FnMut(&str, io::Error),
    ) -> io::Result<Vec<Xattr>> {
        // Most files have none, and by a plain path that is found out in less than half the time. Nobody gains
        // by leading that question elsewhere: only "none" is believed.
        if let Some(path) = hint {
            if let Ok(0) = rustix::fs::llistxattr(path, &mut self.list[..]) {
                return Ok(Vec::new());
            }
            if !self.has_proc {
                return read(Of::Path(path), &mut self.list, &mut self.value, lost);
            }
        }
        // There is no call that takes a directory and a name; the kernel's own link to the directory does.
        self.path.clear();
        self.path.extend_from_slice(b"/proc/self/fd/");
        self.path.extend_from_slice(directory.as_raw_fd().to_string().as_bytes());
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        read(Of::Path(&self.path), &mut self.list, &mut self.value, lost)
    }

    /// The attributes of what lies at `path`, itself and not what it may point at; otherwise as
    /// [`of_open`](Self::of_open).
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn of_path(&mut self, path: &Path, lost: impl FnMut(&str, io::Error)) -> io::Result<Vec<Xattr>> {
        use std::os::unix::ffi::OsStrExt;
        read(Of::Path(path.as_os_str().as_bytes()), &mut self.list, &mut self.value, lost)
    }
}

fn read(
    of: Of<'_>,
    list: &mut Vec<u8>,
    value: &mut Vec<u8>,
    mut lost: impl FnMut(&str, io::Error),
) -> io::Result<Vec<Xattr>> {
    let length = fitting(list, |list| match of {
        Of::Open(file) => rustix::fs::flistxattr(file, list),
        Of::Path(path) => rustix::fs::llistxattr(path, list),
    });
    let length = match length {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::NODATA) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut xattrs = Vec::new();
    for name in list[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let got = fitting(value, |value| match of {
            Of::Open(file) => rustix::fs::fgetxattr(file, name, value),
            Of::Path(path) => rustix::fs::lgetxattr(path, name, value),
        });
        let shown = String::from_utf8_lossy(name);
        let value = match got {
            Ok(length) => Some(value[..length].into()),
            Err(Errno::NOTSUP | Errno::NODATA) => None,
            Err(errno) => {
                lost(&shown, errno.into());
                continue;
            }
        };
        xattrs.push(Xattr { name: shown.into(), value });
    }
    Ok(xattrs)
}

/// Calls with a buffer that grows until the answer fits; the kernel's limit is 64 KiB.
fn fitting(
    buffer: &mut Vec<u8>,
    mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<usize> {
    loop {
        match call(buffer) {
            Err(Errno::RANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 8, 0),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn the_first_line_of_a_number_names_it() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n+nis:::::\n# x:x:5:0:::\nann:x:7:7:::\nbob:x:7:7:::\nshort:x:9\nbad:x:y:1:::\n";
        let names = names(passwd, 6);
        assert_eq!(names.get(&0).map(|n| &**n), Some("root"));
        assert_eq!(names.get(&7).map(|n| &**n), Some("ann"));
        assert_eq!(names.len(), 2);
    }

    fn open(path: &Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn a_directory_is_opened_below_the_root_and_through_no_link() {
        let temp = tempfile::tempdir().unwrap();
        let root = open(temp.path());
        let opener = Opener::new();
        std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("a", temp.path().join("link")).unwrap();
        for good in [&b""[..], b"a", b"a/b"] {
            opener.directory(root.as_fd(), good, u32::MAX).unwrap();
        }
        for bad in [&b"link"[..], b"link/b", b"a/../..", b"none", b"a/none"] {
            assert!(opener.directory(root.as_fd(), bad, 0).is_err(), "{}", bad.escape_ascii());
        }
        // Deeper than one path can say.
        let name = "n".repeat(200);
        let mut at = root.try_clone().unwrap();
        let mut path = Vec::new();
        for _ in 0..60 {
            rustix::fs::mkdirat(&at, &*name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &*name, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
            path.extend_from_slice(if path.is_empty() { b"" } else { b"/" });
            path.extend_from_slice(name.as_bytes());
        }
        let deep = opener.directory(root.as_fd(), &path, 0).unwrap();
        assert_eq!(rustix::fs::fstat(&deep).unwrap().st_ino, rustix::fs::fstat(&at).unwrap().st_ino);
    }

    #[test]
    fn attributes_of_a_name_are_those_of_the_file() {
        let temp = tempfile::tempdir().unwrap();
        let name = OsStr::from_bytes(b"odd \xff\nname");
        let path = temp.path().join(name);
        std::fs::write(&path, b"x").unwrap();
        let long = vec![7; 3_000];
        let flags = rustix::fs::XattrFlags::empty();
        for (key, value) in [("user.b", &b"1"[..]), ("user.a", &long), ("user.empty", b"")] {
            rustix::fs::setxattr(&path, key, value, flags).unwrap();
        }
        let root = open(temp.path());
        let mut reader = XattrReader::new();
        let lost = |name: &str, error: io::Error| panic!("{name}: {error}");
        let by_name = reader.of_name(root.as_fd(), name.as_bytes(), None, lost).unwrap();
        for hint in [path.as_os_str().as_bytes(), b"/none", b"/proc/version"] {
            let hinted = reader.of_name(root.as_fd(), name.as_bytes(), Some(hint), lost).unwrap();
            assert!(hinted == by_name || hint == b"/proc/version", "a wrong hint can hide, and nothing else");
        }
        let by_file = reader.of_open(open(&path).as_fd(), lost).unwrap();
        assert_eq!(by_name, by_file);
        let get = |name: &str| by_name.iter().find(|x| &*x.name == name).unwrap().value.clone().unwrap();
        assert_eq!((&*get("user.b"), &*get("user.a"), &*get("user.empty")), (&b"1"[..], &long[..], &b""[..]));
        assert!(reader.of_name(root.as_fd(), b"none", None, lost).is_err());
    }
}
