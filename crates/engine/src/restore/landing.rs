//! One file on its way to the target: under which name it is written, and how it gets its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use cistern_repository::Node;
use rustix::io::{Errno, Result};

use super::attributes;
use super::beneath::{Counts, Dir, Waiting, locked, plain, put_in_place};
use super::placer::Name;
use super::walk::Found;
use crate::ExceptionKind;

/// A file that is to be placed.
pub(crate) struct Landing {
    /// The directory that it is placed in.
    pub dir: Arc<Dir>,
    /// What is known of it.
    pub found: Found,
    /// Its name, if it is not the node's.
    pub name: Option<Box<[u8]>>,
    /// Whether it takes the place of what has its name.
    pub replace: bool,
}

/// A file that is being written.
pub(crate) struct Open {
    file: OwnedFd,
    dir: Arc<OwnedFd>,
    /// Its name until it is complete; `None` if it is written under its own.
    temporary: Option<String>,
}

impl Open {
    /// The file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Whether it has another name than its own until it is complete.
    pub fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

impl Landing {
    /// The node.
    pub fn node(&self) -> &Node {
        self.found.node()
    }

    /// The name that it gets.
    pub fn name(&self) -> &[u8] {
        self.name.as_deref().unwrap_or(&self.node().name)
    }

    /// Its path from the target.
    pub fn path(&self) -> Vec<u8> {
        self.dir.path_of(self.name())
    }

    /// Whether nothing more should be done.
    pub fn is_stopped(&self) -> bool {
        self.dir.site().is_stopped()
    }

    /// Begins to write: under a temporary name if the target can rename.
    pub fn open(&self) -> Result<Open> {
        let site = self.dir.site();
        let dir = self.dir.fd()?;
        let mode = match site.profile.modes {
            true => site.rules.first_permissions(self.node()),
            // They cannot be set later.
            false => site.rules.permissions(self.node()) & 0o777,
        };
        if site.profile.rename {
            let temporary = site.temporary_name();
            let file = site.placer.create(dir.as_fd(), plain(&temporary), mode)?;
            return Ok(Open { file, dir, temporary: Some(temporary) });
        }
        let name = Name::new(self.name()).map_err(|_| Errno::INVAL)?;
        let file = match site.placer.create(dir.as_fd(), name, mode) {
            Err(Errno::EXIST) if self.replace => site.placer.truncate(dir.as_fd(), name)?,
            file => file?,
        };
        Ok(Open { file, dir, temporary: None })
    }

    /// Gives the complete file its attributes and its name.
    pub fn finish(&self, open: Open, size: u64) {
        let site = self.dir.site();
        let Open { file, dir, temporary } = open;
        attributes::set(site, file.as_fd(), self.node(), || self.path());
        let closed = site.placer.close(file);
        let placed = closed.and_then(|()| match &temporary {
            None => Ok(true),
            Some(temporary) if self.replace => {
                let waiting = Waiting::new(self.dir.clone(), temporary.clone(), self.name().into(), size);
                locked(&site.waiting).push(waiting);
                Ok(false)
            }
            Some(temporary) => {
                let name = Name::new(self.name()).map_err(|_| Errno::INVAL)?;
                site.placer.rename(dir.as_fd(), plain(temporary), name, false).map(|()| true)
            }
        });
        match placed {
            Ok(true) => {
                Counts::add(&site.counts.written, 1);
                Counts::add(&site.counts.bytes, size);
                site.meter.done(size);
                site.meter.current(|| site.show(&self.path()));
            }
            Ok(false) => (),
            Err(error) => {
                self.remove(&dir, temporary);
                self.refused(error);
            }
        }
    }

    /// Removes what was written so far.
    pub fn discard(&self, open: Open) {
        let Open { file, dir, temporary } = open;
        // What it says does not matter any more.
        let _ = self.dir.site().placer.close(file);
        self.remove(&dir, temporary);
    }

    fn remove(&self, dir: &OwnedFd, temporary: Option<String>) {
        let site = self.dir.site();
        let removed = match &temporary {
            Some(name) => site.placer.remove(dir.as_fd(), plain(name)),
            None => Name::new(self.name())
                .map_err(|_| Errno::INVAL)
                .and_then(|name| site.placer.remove(dir.as_fd(), name)),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => (),
            Err(error) if temporary.is_none() => {
                let detail =
                    format!("it is incomplete and could not be removed: {}", std::io::Error::from(error));
                site.collector.add(ExceptionKind::Unwritable, site.show(&self.path()), detail);
            }
            // Its name says what it is.
            Err(_) => (),
        }
    }

    /// Notes that the file could not be written.
    pub fn refused(&self, error: Errno) {
        self.dir.site().refused("writing", &self.path(), error);
    }

    /// Notes that its contents cannot be had. What concerns more than one blob ends the delivery instead.
    pub fn lost(&self, error: &cistern_repository::Error) {
        let site = self.dir.site();
        site.collector.add(ExceptionKind::Damaged, site.show(&self.path()), error);
    }

    /// Places a file that has nothing in it.
    pub fn empty(&self) {
        match self.open() {
            Ok(open) => self.finish(open, 0),
            Err(error) => self.refused(error),
        }
    }

    /// Places something that `make` makes under the name it is given, in one piece.
    pub fn make(&self, make: impl Fn(&OwnedFd, Name<'_>) -> Result<()>) -> Result<()> {
        let site = self.dir.site();
        let dir = self.dir.fd()?;
        let name = Name::new(self.name()).map_err(|_| Errno::INVAL)?;
        if !self.replace {
            return make(&dir, name);
        }
        let temporary = site.temporary_name();
        make(&dir, plain(&temporary))?;
        put_in_place(&*site.placer, &dir, &temporary, self.name()).inspect_err(|_| {
            // What went wrong is said already.
            let _ = site.placer.remove(dir.as_fd(), plain(&temporary));
        })
    }
}
