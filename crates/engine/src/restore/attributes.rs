//! Gives a file or directory the owner, extended attributes, permissions and times of its node, with the fewest calls.

use std::os::fd::BorrowedFd;

use cistern_repository::node::mode;
use cistern_repository::{Node, NodeKind, Xattr};
use rustix::fs::Stat;
use rustix::io::Errno;

use super::beneath::Site;
use super::placer::Name;
use crate::ExceptionKind;

/// Which attributes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Owners and groups: asked for, or possible because we are the superuser.
    pub owners: bool,
    /// Set-user-id, set-group-id and sticky bits of files, devices, and extended attributes that give power.
    pub privileged: bool,
}

impl Rules {
    /// The permissions that a node gets, as `chmod` takes them.
    ///
    /// Unless asked for, a file gets no set-id or sticky bit and a directory no set-user-id bit: nobody becomes
    /// powerful by a restore. That a directory hands its group down, or protects its entries, harms nobody.
    pub fn permissions(self, node: &Node) -> u32 {
        let wanted = mode::to_unix_permissions(node.mode);
        match (self.privileged, node.kind) {
            (true, _) => wanted,
            (false, NodeKind::Dir) => wanted & 0o3777,
            (false, _) => wanted & 0o777,
        }
    }

    /// The permissions that a file is created with: never more than it gets in the end, and nothing for a group
    /// that is not its own yet.
    pub fn first_permissions(self, node: &Node) -> u32 {
        let wanted = self.permissions(node) & 0o777;
        if !node.xattrs.is_empty() {
            // Without the right to write, attributes cannot be set.
            return 0o600;
        }
        let others = wanted & 0o007;
        if self.owners { wanted & (0o707 | others << 3) } else { wanted }
    }

    /// Whether an extended attribute is wanted at all.
    fn wants(self, xattr: &Xattr) -> bool {
        let name = &*xattr.name;
        self.privileged || name.starts_with("user.") || name.starts_with("system.posix_acl_")
    }
}

/// What could not be set, with the first reason.
#[derive(Debug, Default)]
struct Lost {
    what: Vec<&'static str>,
    why: Option<Errno>,
}

impl Lost {
    fn note(&mut self, what: &'static str, result: Result<(), Errno>) {
        if let Err(error) = result {
            if !self.what.contains(&what) {
                self.what.push(what);
            }
            self.why.get_or_insert(error);
        }
    }

    fn report(self, site: &Site, path: impl Fn() -> Vec<u8>) {
        if self.what.is_empty() {
            return;
        }
        let why = self
            .why
            .map_or_else(|| "only with privileges".to_owned(), |e| std::io::Error::from(e).to_string());
        let detail = format!("{}: {why}", self.what.join(", "));
        site.collector.add(ExceptionKind::AttributeLost, site.show(&path()), detail);
    }
}

/// Sets the attributes of what is open. What the target cannot take is counted; only then the path is asked for.
pub(crate) fn set(site: &Site, file: BorrowedFd<'_>, node: &Node, path: impl Fn() -> Vec<u8>) {
    let (placer, profile, rules) = (&*site.placer, &site.profile, site.rules);
    let mut lost = Lost::default();
    if profile.modes || rules.owners {
        match placer.stat_open(file) {
            Ok(stat) => {
                let mut mode = stat.st_mode & 0o7777;
                if rules.owners && (stat.st_uid, stat.st_gid) != (node.uid, node.gid) {
                    lost.note("owner", placer.set_owner(file, node.uid, node.gid));
                    // The system takes set-id bits away from a file that changes hands.
                    mode &= !0o6000;
                }
                let xattrs = set_xattrs(site, file, node, &mut lost);
                let wanted = rules.permissions(node);
                // An access control list may have changed the permissions with it.
                if profile.modes && (mode != wanted || xattrs) {
                    lost.note("permissions", placer.set_mode(file, wanted));
                }
            }
            Err(error) => lost.note("owner, permissions", Err(error)),
        }
    } else {
        set_xattrs(site, file, node, &mut lost);
    }
    if !rules.privileged && mode::to_unix_permissions(node.mode) != rules.permissions(node) {
        lost.what.push("set-id or sticky bit");
    }
    if profile.times {
        lost.note("times", placer.set_times(file, node.atime, node.mtime));
    }
    lost.report(site, path);
}

/// Sets extended attributes, and says whether there were any.
fn set_xattrs(site: &Site, file: BorrowedFd<'_>, node: &Node, lost: &mut Lost) -> bool {
    let mut any = false;
    for xattr in &node.xattrs {
        if !site.rules.wants(xattr) {
            lost.what.push("privileged extended attribute");
        } else if !site.profile.xattrs {
            lost.note("extended attribute", Err(Errno::OPNOTSUPP));
        } else {
            let value = xattr.value.as_deref().unwrap_or_default();
            lost.note("extended attribute", site.placer.set_xattr(file, &xattr.name, value));
            any = true;
        }
    }
    any
}

/// Sets what a symbolic link or special file can have: owner and times, and permissions of the latter.
pub(crate) fn set_link(
    site: &Site,
    dir: BorrowedFd<'_>,
    name: Name<'_>,
    node: &Node,
    path: impl Fn() -> Vec<u8>,
) {
    let mut lost = Lost::default();
    if site.rules.owners {
        lost.note("owner", site.placer.set_link_owner(dir, name, node.uid, node.gid));
    }
    for xattr in &node.xattrs {
        if site.rules.wants(xattr) {
            let value = xattr.value.as_deref().unwrap_or_default();
            lost.note("extended attribute", site.placer.set_link_xattr(dir, name, &xattr.name, value));
        } else {
            lost.what.push("privileged extended attribute");
        }
    }
    if node.kind != NodeKind::Symlink && site.profile.modes {
        lost.note("permissions", site.placer.set_link_mode(dir, name, site.rules.permissions(node)));
    }
    if site.profile.times {
        lost.note("times", site.placer.set_link_times(dir, name, node.atime, node.mtime));
    }
    lost.report(site, path);
}

/// Whether what is there has other permissions, owner or times than its node.
pub(crate) fn differ(site: &Site, stat: &Stat, node: &Node) -> bool {
    let modes = site.profile.modes && stat.st_mode & 0o7777 != site.rules.permissions(node);
    let owners = site.rules.owners && (stat.st_uid, stat.st_gid) != (node.uid, node.gid);
    let times = site.profile.times && super::placer::modified(stat) != node.mtime.instant();
    modes || owners || times || !node.xattrs.is_empty()
}
