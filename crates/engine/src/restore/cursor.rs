//! Follows a walk through the target: which directory of it something belongs in, looked up or made as needed.

use std::sync::Arc;

use rustix::io::Errno;

use super::beneath::{Counts, Dir};
use super::placer::Name;
use super::plan::Mapped;
use super::walk::Found;
use crate::ExceptionKind;

/// What a path of the target stands for.
#[derive(Clone)]
pub(crate) enum Ground {
    /// A directory.
    Here(Arc<Dir>),
    /// Nothing yet.
    Absent,
    /// Something that is in the way, or cannot be entered. It was reported.
    Blocked,
}

/// Whether directories are only looked up, or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing is changed.
    Look,
    /// What is missing is made.
    Make,
}

/// The way from the target to the directory where the last thing belonged.
pub(crate) struct Cursor {
    mode: Mode,
    /// What is no directory gives way to one; the attributes of directories that are there are set.
    replace: bool,
    root: Ground,
    path: Vec<u8>,
    /// Length of the path of each directory on the way, and what is there.
    levels: Vec<(usize, Ground)>,
    /// Directories of the snapshot on the way, by the length of their paths.
    entered: Vec<(usize, Found)>,
}

impl Cursor {
    /// At the target itself.
    pub fn new(mode: Mode, replace: bool, root: Ground) -> Self {
        Cursor { mode, replace, root, path: Vec::new(), levels: Vec::new(), entered: Vec::new() }
    }

    /// The walk enters a directory whose path is so long.
    pub fn enter(&mut self, length: usize, found: Found) {
        self.entered.push((length, found));
    }

    /// The walk leaves the directory that it entered last.
    pub fn leave(&mut self) {
        self.entered.pop();
    }

    /// Lets go of all directories.
    pub fn leave_all(&mut self) {
        self.entered.clear();
        self.path.clear();
        while self.levels.pop().is_some() {}
    }

    /// The directory of this path in the target, which begins with a slash unless it is empty.
    pub fn go(&mut self, to: &Mapped<'_>, end: usize) -> Ground {
        let path = &to.path[..end];
        if path != self.path {
            self.step(to, end);
        }
        self.levels.last().map_or(&self.root, |(_, ground)| ground).clone()
    }

    fn step(&mut self, to: &Mapped<'_>, end: usize) {
        let path = &to.path[..end];
        let reaches = |level: usize| {
            path.len() >= level
                && path[..level] == self.path[..level]
                && matches!(path.get(level), None | Some(b'/'))
        };
        let common = self.levels.iter().take_while(|(level, _)| reaches(*level)).count();
        // From the last to the first, so that each is settled before the one above it.
        while self.levels.len() > common {
            self.levels.pop();
        }
        self.path.truncate(self.levels.last().map_or(0, |(level, _)| *level));
        let mut at = self.path.len();
        self.path.extend_from_slice(&path[at..]);
        while at < end {
            let start = at + 1;
            at = path[start..].iter().position(|b| *b == b'/').map_or(end, |slash| start + slash);
            // Two slashes that a new beginning brought together mean one.
            let ground = if start == at { self.top() } else { self.down(&path[start..at], to, at) };
            self.levels.push((at, ground));
        }
    }

    fn top(&self) -> Ground {
        self.levels.last().map_or(&self.root, |(_, ground)| ground).clone()
    }

    fn down(&self, name: &[u8], to: &Mapped<'_>, end: usize) -> Ground {
        let parent = match self.top() {
            Ground::Here(parent) => parent,
            other => return other,
        };
        let site = parent.site();
        let Ok(name) = Name::new(name) else {
            site.collector.add(
                ExceptionKind::NameRefused,
                site.show(&to.path[..end]),
                "no directory can have it",
            );
            return Ground::Blocked;
        };
        let result = match self.mode {
            Mode::Look => parent.open(name).map(|dir| (dir, false)),
            Mode::Make => parent.make(name, self.replace),
        };
        match result {
            Ok((dir, made)) => {
                if self.mode == Mode::Make {
                    Counts::add(&site.counts.others, u64::from(made));
                    if (made || self.replace)
                        && let Some(found) = to.original(end).and_then(|length| self.entered(length))
                    {
                        dir.describe(found);
                    }
                }
                Ground::Here(dir)
            }
            Err(Errno::NOENT) if self.mode == Mode::Look => Ground::Absent,
            // It gives way when it comes to that.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) if self.mode == Mode::Look && self.replace => {
                Ground::Absent
            }
            Err(error) => {
                site.refused("entering", &to.path[..end], error);
                Ground::Blocked
            }
        }
    }

    fn entered(&self, length: usize) -> Option<Found> {
        let at = self.entered.binary_search_by_key(&length, |(length, _)| *length).ok()?;
        Some(self.entered[at].1.clone())
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.leave_all();
    }
}
