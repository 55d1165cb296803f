//! Follows a walk through the target: which directory of it something belongs in, looked up or made as needed.

use std::sync::Arc;

use rustix::fs::Stat;
use rustix::io::Errno;

use super::beneath::{Counts, Dir};
use super::directory::look;
use super::placer::{Name, modified};
use super::plan::Mapped;
use super::walk::Found;
use crate::{ExceptionKind, Overwrite};

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
    /// Says when what is no directory gives way to one, and whether attributes of those that are there are set.
    policy: Overwrite,
    /// How many things gave way, or would, since somebody asked.
    giving_way: u64,
    root: Ground,
    path: Vec<u8>,
    /// Length of the path of each directory on the way, and what is there.
    levels: Vec<(usize, Ground)>,
    /// Directories of the snapshot on the way, by the length of their paths.
    entered: Vec<(usize, Found)>,
}

impl Cursor {
    /// At the target itself.
    pub fn new(mode: Mode, policy: Overwrite, root: Ground) -> Self {
        Cursor {
            mode,
            policy,
            giving_way: 0,
            root,
            path: Vec::new(),
            levels: Vec::new(),
            entered: Vec::new(),
        }
    }

    /// How many things give way to directories since this was asked last.
    pub fn take_giving_way(&mut self) -> u64 {
        std::mem::take(&mut self.giving_way)
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

    fn down(&mut self, name: &[u8], to: &Mapped<'_>, end: usize) -> Ground {
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
        let found = to.original(end).and_then(|length| self.entered(length));
        let mode = parent.first_mode(found.as_ref());
        let result = match self.mode {
            Mode::Look => parent.open(name).map(|dir| (dir, false)),
            Mode::Make => parent.make(name, mode, |stat| gives_way(self.policy, stat, found.as_ref())),
        };
        match result {
            Ok((dir, made)) => {
                if self.mode == Mode::Make {
                    Counts::add(&site.counts.others, u64::from(made));
                    if (made || self.policy != Overwrite::Never)
                        && let Some(found) = found
                    {
                        dir.describe(found);
                    }
                }
                Ground::Here(dir)
            }
            Err(Errno::NOENT) if self.mode == Mode::Look => Ground::Absent,
            // It gives way when it comes to that.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
                if self.mode == Mode::Look
                    && look(&parent, name.as_bytes()).is_ok_and(|stat| {
                        stat.is_some_and(|stat| gives_way(self.policy, &stat, found.as_ref()))
                    }) =>
            {
                self.giving_way += 1;
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

/// Whether what is no directory gives way to one, of which a node tells unless a new beginning has invented it.
fn gives_way(policy: Overwrite, stat: &Stat, found: Option<&Found>) -> bool {
    match policy {
        Overwrite::Always | Overwrite::IfChanged => true,
        Overwrite::IfNewer => found.is_some_and(|found| modified(stat) < found.node().mtime.instant()),
        Overwrite::Never => false,
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.leave_all();
    }
}
