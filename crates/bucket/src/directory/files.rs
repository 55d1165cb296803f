//! The system calls below a directory bucket: nothing here follows a symbolic link or leaves the root.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Stat, Timespec, Timestamps,
    fstat, fsync, futimens, linkat, mkdirat, openat, openat2, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::{Errno, Result};

/// Files that are being written begin with this; they are in no listing and no key can name them.
pub(super) const TEMPORARY: &[u8] = b".cistern-tmp-";

/// Most slices that one system call takes (`IOV_MAX` of Linux).
const SLICES: usize = 1_024;

/// Whether this kernel (or the sandbox around us) lacks openat2.
static WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// Opens `path`, relative and without `..`, below `root`, or the root itself if it is empty.
pub(super) fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let mut flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if !flags.contains(OFlags::PATH) {
        // A named pipe in the way must not make us wait; openat2 refuses what makes no sense with PATH.
        flags |= OFlags::NOCTTY | OFlags::NONBLOCK;
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    if !WITHOUT_OPENAT2.load(Relaxed) {
        match openat2(root, if path.is_empty() { b"." } else { path }, flags, Mode::empty(), resolve) {
            Err(errno) if is_lacking(errno, || openat2(root, ".", OFlags::PATH, Mode::empty(), resolve)) => {
                WITHOUT_OPENAT2.store(true, Relaxed);
            }
            answer => return answer,
        }
    }
    open_by_steps(root, path, flags)
}

/// Whether an error means that there is no openat2. A sandbox (seccomp) says EPERM, which a file can also mean: then
/// `probe`, which nothing but a sandbox refuses, tells.
fn is_lacking(errno: Errno, probe: impl FnOnce() -> Result<OwnedFd>) -> bool {
    errno == Errno::NOSYS || errno == Errno::PERM && matches!(probe(), Err(Errno::PERM | Errno::NOSYS))
}

/// Makes the names in a directory durable, on file systems that can (FUSE and CIFS often cannot).
pub(super) fn sync_directory(directory: impl AsFd) -> Result<()> {
    synced(fsync(directory))
}

fn synced(answer: Result<()>) -> Result<()> {
    match answer {
        Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => Ok(()),
        answer => answer,
    }
}

/// The same without openat2: one component after the other, none of which may be a link.
fn open_by_steps(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let (parent, name) = split(path.strip_suffix(b"/").unwrap_or(path));
    let name = if name.is_empty() { b"." } else { name };
    let above;
    let parent = if parent.is_empty() {
        root
    } else {
        above = step(root, parent, None)?;
        above.as_fd()
    };
    match openat(parent, name, flags, Mode::empty()) {
        // What O_DIRECTORY and O_NOFOLLOW together say about a symbolic link.
        Err(Errno::NOTDIR) if is_link(parent, name) => Err(Errno::LOOP),
        answer => answer,
    }
}

/// Opens the directory `path` and creates what is missing of it.
pub(super) fn make_directories(
    root: BorrowedFd<'_>,
    path: &[u8],
    mode: Mode,
    durable: bool,
) -> Result<OwnedFd> {
    step(root, path, Some((mode, durable)))
}

fn step(root: BorrowedFd<'_>, path: &[u8], create: Option<(Mode, bool)>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut current = openat(root, b".".as_slice(), flags, Mode::empty())?;
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        let next = match (openat(&current, name, flags, Mode::empty()), create) {
            (Err(Errno::NOENT), Some((mode, durable))) => {
                match mkdirat(&current, name, mode) {
                    // Somebody else made it at the same moment, but may not have made it durable yet.
                    Ok(()) | Err(Errno::EXIST) if durable => sync_directory(&current)?,
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                openat(&current, name, flags, Mode::empty())?
            }
            (Err(Errno::NOTDIR), _) if is_link(current.as_fd(), name) => return Err(Errno::LOOP),
            (answer, _) => answer?,
        };
        current = next;
    }
    Ok(current)
}

fn is_link(directory: BorrowedFd<'_>, name: &[u8]) -> bool {
    let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

/// Creates the directory that a bucket stands in, with all above it. Here links are the user's own and are followed.
pub(super) fn make_root(path: &Path, mode: Mode, durable: bool) -> Result<()> {
    let path = std::path::absolute(path).map_err(from_std)?;
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    std::fs::DirBuilder::new().recursive(true).mode(mode.as_raw_mode()).create(&path).map_err(from_std)?;
    for parent in missing.iter().filter(|_| durable).filter_map(|path| path.parent()) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        sync_directory(openat(CWD, parent, flags, Mode::empty())?)?;
    }
    Ok(())
}

fn from_std(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

/// Copies everything from one file to the other, inside of the kernel where it can. Yields the number of bytes.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<u64> {
    let [mut from, mut to] = [from, to].map(|file| file.try_clone().map(File::from));
    match (&mut from, &mut to) {
        (Ok(from), Ok(to)) => std::io::copy(from, to).map_err(from_std),
        _ => Err(Errno::MFILE),
    }
}

/// A path as its directory and its last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// Whether this describes a regular file: nothing else is an object.
pub(super) fn is_object(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Bytes `offset..offset + length` of a file, in `memory`; fewer only if it ends before.
pub(super) fn read(
    file: BorrowedFd<'_>,
    mut offset: u64,
    length: usize,
    mut memory: Vec<u8>,
) -> Result<Vec<u8>> {
    memory.resize(length, 0);
    let mut rest = memory.as_mut_slice();
    while !rest.is_empty() {
        match rustix::io::pread(file, &mut *rest, offset) {
            Ok(0) => break,
            Ok(count) => {
                rest = &mut rest[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    let missing = rest.len();
    memory.truncate(length - missing);
    Ok(memory)
}

/// A file that has no name of its own yet; it vanishes unless it is given one.
pub(super) struct Temporary {
    pub(super) directory: OwnedFd,
    pub(super) file: OwnedFd,
    name: Option<Vec<u8>>,
}

impl Temporary {
    pub(super) fn create(directory: OwnedFd, mode: Mode) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        loop {
            // Unique in this process; the time tells processes apart, whose ids repeat between machines.
            let number = NEXT.fetch_add(1, Relaxed);
            let now = jiff::Timestamp::now().as_nanosecond();
            let unique = format!("{:x}-{number:x}-{now:x}", std::process::id());
            let name = [TEMPORARY, unique.as_bytes()].concat();
            match openat(&directory, name.as_slice(), flags, mode) {
                Ok(file) => return Ok(Temporary { directory, file, name: Some(name) }),
                Err(Errno::EXIST | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all pieces, in as few system calls as there can be.
    pub(super) fn write(&self, body: &[Bytes]) -> Result<()> {
        for group in body.chunks(SLICES) {
            let mut slices: Vec<IoSlice<'_>> = group.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut rest = slices.as_mut_slice();
            IoSlice::advance_slices(&mut rest, 0);
            while !rest.is_empty() {
                match rustix::io::writev(&self.file, rest) {
                    Ok(0) => return Err(Errno::NOSPC),
                    Ok(count) => IoSlice::advance_slices(&mut rest, count),
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Makes sure that size and time together differ from those of the file that is about to be replaced:
    /// two writes within one tick of the file system's clock would look the same.
    pub(super) fn differ_from(&self, old: &Stat) -> Result<Stat> {
        let stat = fstat(&self.file)?;
        if (stat.st_size, stat.st_mtime, stat.st_mtime_nsec) != (old.st_size, old.st_mtime, old.st_mtime_nsec)
        {
            return Ok(stat);
        }
        let next = stat.st_mtime_nsec as i64 + 1;
        let time =
            Timespec { tv_sec: stat.st_mtime as i64 + next / 1_000_000_000, tv_nsec: next % 1_000_000_000 };
        futimens(&self.file, &Timestamps { last_access: time, last_modification: time })?;
        fstat(&self.file)
    }

    /// Gives the file its name, for good if `durable`.
    pub(super) fn publish(mut self, name: &[u8], create_only: bool, durable: bool) -> Result<()> {
        let own = self.name.take().expect("a file is given its name once");
        let at = self.directory.as_fd();
        let named = match create_only {
            false => renameat(at, own.as_slice(), at, name),
            true => match renameat_with(at, own.as_slice(), at, name, RenameFlags::NOREPLACE) {
                // Not every file system knows the flag; all that have hard links know this.
                Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                    let linked = linkat(at, own.as_slice(), at, name, AtFlags::empty());
                    discard(at, &own);
                    linked
                }
                answer => answer,
            },
        };
        named.inspect_err(|_| discard(at, &own))?;
        if durable { sync_directory(at) } else { Ok(()) }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            discard(self.directory.as_fd(), &name);
        }
    }
}

fn discard(directory: BorrowedFd<'_>, name: &[u8]) {
    // If this fails, the file is swept by a later write.
    let _ = unlinkat(directory, name, AtFlags::empty());
}

/// A file that is being written is swept when nobody has touched it for so long.
const ABANDONED: Duration = Duration::from_secs(24 * 3_600);

/// Removes from a directory the remains of writes whose process died; that they cannot be removed harms nobody.
pub(super) fn sweep(directory: BorrowedFd<'_>) {
    let mut buffer = Vec::with_capacity(64 << 10);
    // The descriptor's own position is left alone.
    let Ok(directory) =
        openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    else {
        return;
    };
    let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if !name.to_bytes().starts_with(TEMPORARY) {
            continue;
        }
        let Ok(stat) = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_mtime.try_into().unwrap_or(0));
        if is_object(&stat) && modified.elapsed().is_ok_and(|age| age > ABANDONED) {
            let _ = unlinkat(&directory, name, AtFlags::empty());
        }
    }
}

/// Removes `name` if it is a directory in which there are no files, however deep.
pub(super) fn remove_empty(directory: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    remove_empty_below(directory, name, 64)
}

fn remove_empty_below(directory: BorrowedFd<'_>, name: &[u8], depth: u32) -> Result<()> {
    match unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) if depth > 0 => {}
        answer => return answer,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = openat(directory, name, flags, Mode::empty())?;
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(8 << 10);
    let mut entries = RawDir::new(&inner, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    for name in names {
        remove_empty_below(inner.as_fd(), &name, depth - 1)?;
    }
    unlinkat(directory, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_open_refuse_links_and_find_files() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::fs::write(directory.path().join("a/b/c"), "hello").unwrap();
        std::os::unix::fs::symlink("b", directory.path().join("a/link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("out")).unwrap();
        let root = openat(CWD, directory.path(), OFlags::PATH, Mode::empty()).unwrap();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for path in ["a/b/c", "a/b/", "a/b", "", "a/link/c", "a/link", "out", "nothing", "a/b/c/d"] {
            let one = open(root.as_fd(), path.as_bytes(), flags).map(drop);
            let other = open_by_steps(root.as_fd(), path.as_bytes(), flags).map(drop);
            assert_eq!(one, other, "{path}");
            assert_eq!(
                one.is_ok(),
                path.is_empty() || path.starts_with("a/b") && !path.ends_with('d'),
                "{path}"
            );
        }
        assert_eq!(open(root.as_fd(), b"a/link/c", flags).map(drop), Err(Errno::LOOP));
        for path in ["a/link/", "out/", "a/link/x/"] {
            let flags = flags | OFlags::DIRECTORY;
            assert_eq!(open(root.as_fd(), path.as_bytes(), flags).map(drop), Err(Errno::LOOP), "{path}");
            assert_eq!(
                open_by_steps(root.as_fd(), path.as_bytes(), flags).map(drop),
                Err(Errno::LOOP),
                "{path}"
            );
        }
    }

    #[test]
    fn a_sandbox_is_told_from_a_file_that_may_not_be_opened() {
        let fine = || openat(CWD, "/", OFlags::PATH, Mode::empty());
        assert!(is_lacking(Errno::NOSYS, || unreachable!()));
        assert!(is_lacking(Errno::PERM, || Err(Errno::PERM)));
        assert!(!is_lacking(Errno::PERM, fine));
        assert!(!is_lacking(Errno::ACCESS, || unreachable!()));
    }

    #[test]
    fn a_file_system_that_cannot_sync_directories_is_no_failure() {
        for errno in [Errno::INVAL, Errno::NOTSUP, Errno::NOSYS] {
            assert_eq!(synced(Err(errno)), Ok(()));
        }
        assert_eq!(synced(Err(Errno::IO)), Err(Errno::IO));
    }

    #[test]
    fn a_file_that_gets_no_name_vanishes_and_a_name_is_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = openat(CWD, directory.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        let mode = Mode::from_raw_mode(0o400);
        let write = |content: &'static str, create_only| {
            let file = Temporary::create(root.try_clone().unwrap(), mode).unwrap();
            file.write(&[content.into(), Bytes::new(), "!".into()]).unwrap();
            file.publish(b"name", create_only, true)
        };
        assert_eq!(write("one", true), Ok(()));
        assert_eq!(write("two", true), Err(Errno::EXIST));
        assert_eq!(std::fs::read_to_string(directory.path().join("name")).unwrap(), "one!");
        assert_eq!(write("three", false), Ok(()));
        assert_eq!(std::fs::read_to_string(directory.path().join("name")).unwrap(), "three!");
        drop(Temporary::create(root, mode).unwrap());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn remains_of_writes_are_swept_after_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new, other] =
            [".cistern-tmp-1-2-3", ".cistern-tmp-1-2-4", "file"].map(|name| directory.path().join(name));
        for path in [&old, &new, &other] {
            std::fs::write(path, "").unwrap();
        }
        for path in [&old, &other] {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() - ABANDONED - Duration::from_secs(60)).unwrap();
        }
        let root = openat(CWD, directory.path(), OFlags::RDONLY, Mode::empty()).unwrap();
        sweep(root.as_fd());
        assert_eq!((old.exists(), new.exists(), other.exists()), (false, true, true));
    }
}
