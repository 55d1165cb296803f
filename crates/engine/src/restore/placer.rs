//! The few calls to the operating system that a restore makes, each on one name within an open directory.
//!
//! Nothing here takes a path: a name has no slash and is not `..`, and no call follows a symbolic link. So
//! nothing outside the target can be reached, whatever a repository says and whoever changes the target
//! meanwhile. [`Placer`] is a trait so that tests can stand in a target that refuses all but what the poorest
//! mount can do.

#![expect(unsafe_code, reason = "the result of close is the only word on whether a mount took a file")]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::Path;

use cistern_repository::{Node, NodeKind, Time};
use rustix::fs::{
    AtFlags, CWD, Dev, FallocateFlags, FileType, Gid, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Stat,
    StatFs, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::{Errno, Result};

/// A name that denotes an entry of one directory and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Takes a name, or says why it cannot be one.
    pub fn new(name: &'a [u8]) -> std::result::Result<Self, &'static str> {
        Node::check_name(name)?;
        Ok(Name(name))
    }

    /// The bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

/// A file system that files are placed in. Every name is taken literally; the last component is never followed.
pub(crate) trait Placer: Send + Sync {
    /// Opens a directory.
    fn open_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd>;
    /// Opens something to read it.
    fn open(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd>;
    /// Creates a directory.
    fn make_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<()>;
    /// Creates a file that must not exist yet.
    fn create(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<OwnedFd>;
    /// Opens a file that exists, with nothing in it.
    fn truncate(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd>;
    /// Writes at the end of what was written.
    fn append(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Result<()>;
    /// Writes at a position.
    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<()>;
    /// Gives a file this size, with room for all of it, where the file system can. It is written cheaper then, and in one
    /// piece.
    fn reserve(&self, file: BorrowedFd<'_>, size: u64);
    /// Closes a file that was written, and says whether the file system took it.
    fn close(&self, file: OwnedFd) -> Result<()>;
    /// Describes a name; `None` if there is nothing.
    fn stat(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Option<Stat>>;
    /// Describes what is open.
    fn stat_open(&self, file: BorrowedFd<'_>) -> Result<Stat>;
    /// Sets owner and group.
    fn set_owner(&self, file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()>;
    /// Sets the permissions, as `chmod` takes them.
    fn set_mode(&self, file: BorrowedFd<'_>, mode: u32) -> Result<()>;
    /// Sets access and modification time.
    fn set_times(&self, file: BorrowedFd<'_>, accessed: Time, modified: Time) -> Result<()>;
    /// Sets an extended attribute.
    fn set_xattr(&self, file: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()>;
    /// Sets owner and group of a symbolic link or special file.
    fn set_link_owner(&self, dir: BorrowedFd<'_>, name: Name<'_>, uid: u32, gid: u32) -> Result<()>;
    /// Sets the times of a symbolic link or special file.
    fn set_link_times(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        accessed: Time,
        modified: Time,
    ) -> Result<()>;
    /// Sets the permissions of a special file.
    fn set_link_mode(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<()>;
    /// Sets an extended attribute of a symbolic link or special file.
    fn set_link_xattr(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        attribute: &str,
        value: &[u8],
    ) -> Result<()>;
    /// Gives a file another name in the same directory, in place of what has that name or only if nothing has.
    fn rename(&self, dir: BorrowedFd<'_>, from: Name<'_>, to: Name<'_>, replace: bool) -> Result<()>;
    /// Gives a file a second name.
    fn link(&self, old: (BorrowedFd<'_>, Name<'_>), new: (BorrowedFd<'_>, Name<'_>)) -> Result<()>;
    /// Creates a symbolic link.
    fn symlink(&self, target: &[u8], dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()>;
    /// Creates a named pipe or a device.
    fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        kind: NodeKind,
        mode: u32,
        device: u64,
    ) -> Result<()>;
    /// Where a symbolic link points.
    fn read_link(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Vec<u8>>;
    /// Removes what is no directory.
    fn remove(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()>;
    /// Removes an empty directory.
    fn remove_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()>;
    /// Calls `found` with every name in a directory, but `.` and `..`, and whether it is a directory.
    fn list(&self, dir: BorrowedFd<'_>, found: &mut dyn FnMut(&[u8], bool)) -> Result<()>;
    /// Makes everything that was written to the file system durable.
    fn sync(&self, any: BorrowedFd<'_>) -> Result<()>;
    /// Describes the file system.
    fn stat_fs(&self, any: BorrowedFd<'_>) -> Result<StatFs>;
}

/// The operating system's own file systems.
#[derive(Debug, Default)]
pub(crate) struct System;

/// Opens the target directory itself: the one path that is resolved as the user wrote it, links and all.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

fn open_beneath(dir: BorrowedFd<'_>, name: Name<'_>, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(dir, name.0, flags, Mode::empty(), BENEATH) {
        // Kernels before 5.6 and some sandboxes have no openat2. One name that is not `..`, opened without
        // following it, cannot leave the directory either.
        Err(Errno::NOSYS | Errno::PERM) => rustix::fs::openat(dir, name.0, flags, Mode::empty()),
        // Somebody renamed something while the kernel looked.
        Err(Errno::AGAIN) => rustix::fs::openat2(dir, name.0, flags, Mode::empty(), BENEATH),
        result => result,
    }
}

fn times(accessed: Time, modified: Time) -> Timestamps {
    let spec = |t: Time| Timespec { tv_sec: t.seconds, tv_nsec: t.nanoseconds.into() };
    Timestamps { last_access: spec(accessed), last_modification: spec(modified) }
}

impl Placer for System {
    fn open_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        open_beneath(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn open(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        // A pipe without a writer must not stop us.
        open_beneath(dir, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
    }

    fn make_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<()> {
        rustix::fs::mkdirat(dir, name.0, Mode::from_raw_mode(mode))
    }

    fn create(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name.0, flags, Mode::from_raw_mode(mode))
    }

    fn truncate(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        // Looked at before it is emptied. Opened again by what is open, it cannot be anything else meanwhile; and some
        // mounts of buckets replace a file only if it is opened with this flag.
        let there = open_beneath(dir, name, OFlags::PATH)?;
        if kind(&self.stat_open(there.as_fd())?) != NodeKind::File {
            return Err(Errno::EXIST);
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let by_descriptor = descriptor_path(&there);
        match rustix::fs::openat(CWD, by_descriptor, flags | OFlags::TRUNC, Mode::empty()) {
            // There is no /proc.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let file = open_beneath(dir, name, flags)?;
                let (before, now) = (self.stat_open(there.as_fd())?, self.stat_open(file.as_fd())?);
                if (before.st_dev, before.st_ino) != (now.st_dev, now.st_ino) {
                    return Err(Errno::EXIST);
                }
                rustix::fs::ftruncate(&file, 0)?;
                Ok(file)
            }
            result => result,
        }
    }

    fn append(&self, file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(file, bytes) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::INTR) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write_at(&self, file: BorrowedFd<'_>, mut bytes: &[u8], mut offset: u64) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(file, bytes, offset) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(n) => {
                    bytes = &bytes[n..];
                    offset += n as u64;
                }
                Err(Errno::INTR) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn reserve(&self, file: BorrowedFd<'_>, size: u64) {
        // Not every file system can, and a full one says so again when something is written.
        let _ = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size);
    }

    fn close(&self, file: OwnedFd) -> Result<()> {
        // SAFETY: the descriptor is taken out of its owner, so nobody else closes it, and it is not used again.
        match unsafe { rustix::io::try_close(file.into_raw_fd()) } {
            // Linux has closed the descriptor all the same.
            Err(Errno::INTR) => Ok(()),
            result => result,
        }
    }

    fn stat(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Option<Stat>> {
        match rustix::fs::statat(dir, name.0, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn stat_open(&self, file: BorrowedFd<'_>) -> Result<Stat> {
        rustix::fs::fstat(file)
    }

    fn set_owner(&self, file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        rustix::fs::fchown(file, Some(uid), Some(gid))
    }

    fn set_mode(&self, file: BorrowedFd<'_>, mode: u32) -> Result<()> {
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
    }

    fn set_times(&self, file: BorrowedFd<'_>, accessed: Time, modified: Time) -> Result<()> {
        rustix::fs::futimens(file, &times(accessed, modified))
    }

    fn set_xattr(&self, file: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
        rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
    }

    fn set_link_owner(&self, dir: BorrowedFd<'_>, name: Name<'_>, uid: u32, gid: u32) -> Result<()> {
        let (uid, gid) = owner(uid, gid)?;
        rustix::fs::chownat(dir, name.0, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn set_link_times(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        accessed: Time,
        modified: Time,
    ) -> Result<()> {
        rustix::fs::utimensat(dir, name.0, &times(accessed, modified), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn set_link_mode(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<()> {
        let file = open_beneath(dir, name, OFlags::PATH)?;
        rustix::fs::chmod(descriptor_path(&file), Mode::from_raw_mode(mode))
    }

    fn set_link_xattr(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        attribute: &str,
        value: &[u8],
    ) -> Result<()> {
        // This call exists for paths only. The kernel's own name of what is open is the thing itself, not where
        // it points to.
        let file = rustix::fs::openat(
            dir,
            name.0,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        rustix::fs::setxattr(descriptor_path(&file), attribute, value, XattrFlags::empty())
    }

    fn rename(&self, dir: BorrowedFd<'_>, from: Name<'_>, to: Name<'_>, replace: bool) -> Result<()> {
        if replace {
            return rustix::fs::renameat(dir, from.0, dir, to.0);
        }
        match rustix::fs::renameat_with(dir, from.0, dir, to.0, RenameFlags::NOREPLACE) {
            // Not every file system knows the flag.
            Err(Errno::INVAL | Errno::NOSYS) => match self.stat(dir, to)? {
                Some(_) => Err(Errno::EXIST),
                None => rustix::fs::renameat(dir, from.0, dir, to.0),
            },
            result => result,
        }
    }

    fn link(&self, old: (BorrowedFd<'_>, Name<'_>), new: (BorrowedFd<'_>, Name<'_>)) -> Result<()> {
        rustix::fs::linkat(old.0, old.1.0, new.0, new.1.0, AtFlags::empty())
    }

    fn symlink(&self, target: &[u8], dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        rustix::fs::symlinkat(target, dir, name.0)
    }

    fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        kind: NodeKind,
        mode: u32,
        device: u64,
    ) -> Result<()> {
        let (kind, device) = match kind {
            NodeKind::Fifo => (FileType::Fifo, 0),
            NodeKind::Device => (FileType::BlockDevice, device),
            NodeKind::CharDevice => (FileType::CharacterDevice, device),
            _ => return Err(Errno::INVAL),
        };
        rustix::fs::mknodat(dir, name.0, kind, Mode::from_raw_mode(mode), device as Dev)
    }

    fn read_link(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Vec<u8>> {
        rustix::fs::readlinkat(dir, name.0, Vec::new()).map(|target| target.into_bytes())
    }

    fn remove(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        rustix::fs::unlinkat(dir, name.0, AtFlags::empty())
    }

    fn remove_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        rustix::fs::unlinkat(dir, name.0, AtFlags::REMOVEDIR)
    }

    fn list(&self, dir: BorrowedFd<'_>, found: &mut dyn FnMut(&[u8], bool)) -> Result<()> {
        // A descriptor of its own: the position of a listing belongs to the open directory.
        let own = rustix::fs::openat(
            dir,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut entries = RawDir::new(own, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => Name::new(name)
                    .ok()
                    .and_then(|name| self.stat(dir, name).ok().flatten())
                    .is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
                kind => kind == FileType::Directory,
            };
            found(name, is_dir);
        }
        Ok(())
    }

    fn sync(&self, any: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::syncfs(any)
    }

    fn stat_fs(&self, any: BorrowedFd<'_>) -> Result<StatFs> {
        rustix::fs::fstatfs(any)
    }
}

/// All ones means "leave it" to the operating system and is nobody's id.
fn owner(uid: u32, gid: u32) -> Result<(Uid, Gid)> {
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

/// A path by which the kernel reaches what is open, for calls that take no descriptor.
fn descriptor_path(file: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// What kind of thing a description describes.
pub(crate) fn kind(stat: &Stat) -> NodeKind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => NodeKind::File,
        FileType::Directory => NodeKind::Dir,
        FileType::Symlink => NodeKind::Symlink,
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        FileType::CharacterDevice => NodeKind::CharDevice,
        FileType::BlockDevice => NodeKind::Device,
        _ => NodeKind::Irregular,
    }
}

/// When a file was modified, as seconds and nanoseconds.
pub(crate) fn modified(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, stat.st_mtime_nsec as u32)
}
