//! Finds out what a target directory can do, by trying it: a mount of a bucket refuses most of what a disk takes.
//!
//! The order matters. The first thing tried is to write at a position other than the end, which the poorest
//! mounts (Mountpoint) refuse by giving up the whole file: so the probe leaves no object behind there, where it
//! perhaps could not remove one.

use std::os::fd::{AsFd, BorrowedFd};

use cistern_repository::Time;
use rustix::io::Errno;

use super::placer::{Name, Placer};
use crate::TargetWriter;

/// What a target can do; nothing else is tried on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    /// Blobs can be written where they belong, in any order.
    pub random: bool,
    /// A file can be renamed, also onto another: so it is written under another name first.
    pub rename: bool,
    /// Permissions can be set.
    pub modes: bool,
    /// Times can be set.
    pub times: bool,
    /// Extended attributes in the name space `user` can be set.
    pub xattrs: bool,
    /// Links and special files can be tried.
    pub special: bool,
}

impl Profile {
    /// Everything, as a disk can.
    pub const FULL: Profile =
        Profile { random: true, rename: true, modes: true, times: true, xattrs: true, special: true };
    /// Create, write in order, close: nothing else.
    pub const SEQUENTIAL: Profile =
        Profile { random: false, rename: false, modes: false, times: false, xattrs: false, special: false };

    /// One line for the plan.
    pub fn describe(&self) -> String {
        let lacking: Vec<&str> = [
            (self.rename, "rename"),
            (self.modes, "permissions"),
            (self.times, "times"),
            (self.xattrs, "extended attributes"),
        ]
        .into_iter()
        .filter_map(|(has, what)| (!has).then_some(what))
        .collect();
        let kind = if self.random { "random" } else { "sequential" };
        if lacking.is_empty() { kind.to_owned() } else { format!("{kind}, without {}", lacking.join(", ")) }
    }
}

/// The number by which a file system in user space makes itself known.
const FUSE: u64 = 0x6573_5546;

/// What the target can do, as far as the task leaves it open. `name` is one that nobody else uses.
///
/// A file system in user space is written in order and under final names even if it could more: for a mount
/// of a bucket a rename is a copy, and a write out of order is another upload of the whole object (measured:
/// 3 to 23 times the data).
///
/// # Errors
/// The target takes no file at all.
pub(crate) fn probe(
    placer: &dyn Placer,
    root: BorrowedFd<'_>,
    wanted: TargetWriter,
    name: &str,
) -> rustix::io::Result<Profile> {
    if wanted == TargetWriter::Sequential {
        return Ok(Profile::SEQUENTIAL);
    }
    let probe = Name::new(name.as_bytes()).expect("the name of the probe is a plain word");
    let renamed = format!("{name}-2");
    let renamed = Name::new(renamed.as_bytes()).expect("the name of the probe is a plain word");
    let file = placer.create(root, probe, 0o600)?;
    let fd = file.as_fd();
    let mut profile = Profile::SEQUENTIAL;
    profile.random = match placer.write_at(fd, b"b", 1).and_then(|()| placer.write_at(fd, b"a", 0)) {
        Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::ROFS)) => {
            drop(file);
            // What went wrong is said already.
            let _ = placer.remove(root, probe);
            return Err(error);
        }
        result => result.is_ok(),
    };
    let mut at = probe;
    if profile.random {
        profile.modes = placer.set_mode(fd, 0o640).is_ok();
        profile.times = placer.set_times(fd, Time::new(1, 0), Time::new(1, 0)).is_ok();
        profile.xattrs = placer.set_xattr(fd, "user.cistern.probe", b"1").is_ok();
        profile.special = true;
    }
    let closed = placer.close(file);
    if profile.random {
        closed?;
        profile.rename = placer.rename(root, probe, renamed, true).is_ok();
        if profile.rename {
            at = renamed;
        }
    }
    // On the poorest mounts there is nothing to remove, or nothing can be removed.
    let _ = placer.remove(root, at);
    if wanted == TargetWriter::Auto && placer.stat_fs(root).is_ok_and(|fs| fs.f_type as u64 == FUSE) {
        profile.random = false;
        profile.rename = false;
    }
    // Asked for in words: whatever the probe says, the first file will tell.
    profile.random |= wanted == TargetWriter::Random;
    Ok(profile)
}
