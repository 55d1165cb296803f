//! Walks a directory with several threads: each takes the newest job, lists a directory or reads a large
//! file, and hands small files to the repository's workers. What comes out does not depend on who did what.
//!
//! Where one run goes into several repositories, everything is listed and looked at once, and each of them is told: what
//! its parent has, and what is to be read, is its own business (see [`destination`](super::destination)).

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cistern_bucket::Key;
use cistern_repository::{BlobKind, Id, Node, NodeKind};
use rustix::fs::Stat;
use tokio::runtime::Handle;

use super::destination::{Destination, Open, Place, Side};
use super::files::UnderWay;
use super::frame::Frame;
use super::list::Names;
use super::previous::Previous;
use super::read::{Gathering, Held, Reading, Wanted};
use crate::backup::session::Counts;
use crate::posix::{XattrReader, device, inode, kind, link_target, modified, size, status};
use crate::select::Select;
use crate::{Error, Result};

/// Open directories, of all threads together, above which a thread first settles what it has.
const HELD: usize = 256;

/// What all threads of a walk share.
pub(super) struct Walk {
    /// The source, if it is a directory.
    pub root: Option<Arc<Held>>,
    /// Absolute path of the source, which patterns and messages begin with; empty for `/`.
    pub prefix: Box<[u8]>,
    /// The file system to stay on.
    pub only_device: Option<u64>,
    /// Device and inode of directories that are left out: the repositories themselves, their caches.
    pub skip: Vec<(u64, u64)>,
    pub select: Select,
    /// Files are compared by size and time of modification alone.
    pub ignore_inode: bool,
    pub reading: Arc<Reading>,
    /// The repositories.
    pub destinations: Vec<Destination>,
    pub runtime: Handle,
    pub held: Arc<AtomicUsize>,
    pub jobs: Mutex<Vec<Job>>,
    pub wake: Condvar,
    pub stop: AtomicBool,
}

/// Something to do.
pub(super) enum Job {
    /// Lists a directory of the source.
    Directory {
        /// The repositories that wait for it.
        places: Vec<Place>,
        /// Path below the source.
        path: Box<[u8]>,
        /// Name in the snapshot; `None` is the snapshot's root itself.
        name: Option<Box<[u8]>>,
        owner: u32,
        passage: bool,
    },
    /// Reads a large file.
    File(Wanted),
}

/// An entry of a directory of the source.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The directory that it lies in.
    pub directory: &'a Arc<Held>,
    /// That directory's path below the source.
    pub above: &'a [u8],
    pub name: &'a [u8],
    /// Its name in the snapshot, if that is another one: then it is the source itself.
    pub shown: Option<&'a [u8]>,
    pub stat: &'a Stat,
}

impl Entry<'_> {
    /// Its path below the source.
    pub fn path(&self) -> Vec<u8> {
        below(self.above, self.name, self.shown)
    }
}

impl Walk {
    /// Stops everything because of an error.
    pub fn fail(&self, error: Error) {
        let left: Vec<_> = self.destinations.iter().filter(|one| !one.is_over()).collect();
        let errors = error.for_all(left.len());
        left.into_iter().zip(errors).for_each(|(destination, error)| destination.end(Err(error)));
        self.stop();
    }

    /// Nothing more is done for one of the repositories; when that is true of all of them, everything stops.
    pub fn end(&self, side: usize, outcome: Result<()>) {
        self.destinations[side].end(outcome);
        if self.destinations.iter().all(Destination::is_over) {
            self.stop();
        }
    }

    /// One of the repositories fails if this is an error; the others go on.
    pub fn contain(&self, side: usize, outcome: Result<()>) {
        if outcome.is_err() {
            self.end(side, outcome);
        }
    }

    /// Stops everything.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        drop(lock(&self.jobs));
        self.wake.notify_all();
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Absolute path of something below the source.
    pub fn absolute(&self, path: &[u8]) -> Vec<u8> {
        match path {
            b"" => self.prefix.to_vec(),
            path => [&self.prefix, &b"/"[..], path].concat(),
        }
    }

    /// The same, as it is shown to a person.
    pub fn shown(&self, path: &[u8]) -> Key {
        Key::new(self.absolute(path))
    }

    /// Tells these repositories of something that is missing from their snapshots.
    pub fn missing(&self, sides: impl Iterator<Item = usize>, path: &[u8], error: &io::Error) {
        let path = self.shown(path);
        sides.for_each(|side| self.destinations[side].missing(&path, error));
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread of a walk.
pub(super) struct Walker<'a> {
    pub(super) walk: &'a Walk,
    pub(super) sides: Vec<Side<'a>>,
    pub(super) gathering: Gathering,
    pub(super) under_way: VecDeque<UnderWay>,
    pub(super) xattrs: XattrReader,
    names: Names,
    /// Absolute path of the directory at work with a slash behind it, and its length; names come and go.
    path: Vec<u8>,
    path_above: usize,
}

impl<'a> Walker<'a> {
    pub fn new(walk: &'a Walk) -> Self {
        Walker {
            walk,
            sides: Side::all(walk),
            gathering: Gathering::default(),
            under_way: VecDeque::new(),
            xattrs: XattrReader::new(),
            names: Names::default(),
            path: Vec::new(),
            path_above: 0,
        }
    }

    /// Works until everything is stored, or until somebody stops the walk.
    pub fn run(mut self) {
        /// A thread that panics must not leave the others waiting for it.
        struct Panicked<'a>(&'a Walk);
        impl Drop for Panicked<'_> {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.stop();
                }
            }
        }
        let _panicked = Panicked(self.walk);
        if let Err(error) = self.work() {
            self.walk.fail(error);
        }
        self.sides.into_iter().for_each(Side::end);
    }

    fn work(&mut self) -> Result<()> {
        while !self.walk.stopped() {
            let job = lock(&self.walk.jobs).pop();
            match job {
                Some(job) => self.job(job)?,
                None if !self.gathering.is_empty() => self.send()?,
                None if !self.under_way.is_empty() => self.settle_oldest()?,
                None => self.wait(),
            }
        }
        Ok(())
    }

    /// Sleeps until there is a job, or nothing to do ever again.
    fn wait(&self) {
        let mut jobs = lock(&self.walk.jobs);
        while jobs.is_empty() && !self.walk.stopped() {
            jobs = self.walk.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::File(wanted) => self.large(wanted),
            Job::Directory { mut places, path, name, owner, passage } => {
                for (side, destination) in self.walk.destinations.iter().enumerate() {
                    if let Some(writer) = destination.writer.as_ref().filter(|_| !destination.is_over()) {
                        // Waits while the trees that were stored wait for the workers.
                        self.walk.contain(side, writer.permit_blocking(0).map(drop).map_err(Into::into));
                    }
                }
                while self.walk.held.load(Relaxed) > HELD
                    && (!self.gathering.is_empty() || !self.under_way.is_empty())
                {
                    if !self.gathering.is_empty() {
                        self.send()?;
                    }
                    self.settle_oldest()?;
                }
                places.retain(|place| !self.walk.destinations[place.side].is_over());
                if places.is_empty() {
                    return Ok(());
                }
                self.directory(places, path, name, owner, passage)
            }
        }
    }

    /// Lists a directory and deals with each entry.
    fn directory(
        &mut self,
        places: Vec<Place>,
        path: Box<[u8]>,
        name: Option<Box<[u8]>>,
        owner: u32,
        passage: bool,
    ) -> Result<()> {
        let walk = self.walk;
        for place in &places {
            walk.destinations[place.side].meter.current(|| walk.shown(&path).to_string());
        }
        let root = walk.root.as_ref().ok_or_else(|| Error::Broken("there is no directory to walk".into()))?;
        let opened = walk.reading.opener.directory(root.as_fd(), &path, owner).and_then(|fd| {
            let stat = rustix::fs::fstat(&fd)?;
            self.names.read(&fd)?;
            Ok((Held::new(fd, &walk.held), stat))
        });
        let (directory, stat) = match opened {
            Ok(opened) => opened,
            Err(source) if path.is_empty() => {
                let path = walk.shown(b"").to_string();
                return Err(Error::File { doing: "reading the directory", path, source });
            }
            Err(error) => {
                walk.missing(places.iter().map(|place| place.side), &path, &error);
                for Place { side, above, previous } in places {
                    if error.kind() == io::ErrorKind::NotFound {
                        self.vanished(side, previous.and_then(|node| node.subtree), 1);
                    }
                    walk.contain(side, above.settle(&mut self.sides[side]));
                }
                return Ok(());
            }
        };
        // The snapshot's root is the source: its frame is there already.
        let node = name.map(|name| {
            let mut node = walk.reading.style.node(&name, &stat);
            let lost = |attribute: &str, error: &io::Error| {
                for place in &places {
                    walk.destinations[place.side].lost(&walk.shown(&path), attribute, error);
                }
            };
            if !walk.reading.style.of_bucket {
                match self.xattrs.of_open(directory.as_fd(), |name, error| lost(name, &error)) {
                    Ok(xattrs) => node.xattrs = xattrs,
                    Err(error) => lost("", &error),
                }
            }
            node
        });
        let mut open = Vec::with_capacity(places.len());
        for Place { side, above, previous } in places {
            let past = self.previous(side, &path, previous.as_ref().and_then(|node| node.subtree));
            let frame = match &node {
                None => above,
                Some(node) => {
                    // A bucket has no directories but those on the way to an object.
                    let passage = passage || walk.reading.style.of_bucket && !path.is_empty();
                    let frame = Frame::new(Some(above), path.clone(), device(&stat), Some(node.clone()));
                    Arc::new(frame.with_previous(previous).only_if_used(passage))
                }
            };
            open.push(Open::new(side, frame, past));
        }
        self.path = walk.absolute(&path);
        self.path.push(b'/');
        self.path_above = self.path.len();
        let names = std::mem::take(&mut self.names);
        // In reverse, as the newest job is taken first: directories are walked in the order of their names.
        let mut jobs = Vec::new();
        for (i, name) in names.sorted().enumerate() {
            if i % 256 == 255 && walk.stopped() {
                return Ok(());
            }
            open.retain(|one| !walk.destinations[one.side].is_over());
            self.entry(&directory, &path, name, &mut open, &mut jobs)?;
        }
        self.names = names;
        for one in &mut open {
            self.finish_previous(one);
        }
        if !jobs.is_empty() {
            jobs.reverse();
            // Files last, that is first: their directory is open, and another thread can do the rest.
            jobs.sort_by_key(|job| matches!(job, Job::File(_)));
            let many = jobs.len() > 1;
            lock(&walk.jobs).append(&mut jobs);
            if many { walk.wake.notify_all() } else { walk.wake.notify_one() }
        }
        for one in open {
            walk.contain(one.side, one.frame.settle(&mut self.sides[one.side]));
        }
        Ok(())
    }

    fn entry(
        &mut self,
        directory: &Arc<Held>,
        above: &[u8],
        name: &[u8],
        open: &mut [Open],
        jobs: &mut Vec<Job>,
    ) -> Result<()> {
        let walk = self.walk;
        let path = || below(above, name, None);
        let Some(device_above) = open.first().map(|one| one.frame.device) else { return Ok(()) };
        let every_path = walk.select.takes_every_path();
        let absolute = if every_path { Vec::new() } else { walk.absolute(&path()) };
        // Asked before anything else: what is excluded may be a mount that hangs.
        if !every_path && walk.select.excludes(&absolute) {
            return Ok(());
        }
        let stat = match status(directory.as_fd(), name) {
            Ok(stat) => stat,
            Err(error) => {
                walk.missing(open.iter().map(|one| one.side), &path(), &error);
                if error.kind() == io::ErrorKind::NotFound {
                    for one in open {
                        let previous = one.past.find(name).ok().flatten().map(|(node, _)| node);
                        let subtree = previous.as_ref().and_then(|node| node.subtree);
                        let was_file = previous.is_some_and(|node| node.kind == NodeKind::File);
                        self.sides[one.side].seen.files_gone += u64::from(was_file);
                        self.vanished(one.side, subtree, 1);
                    }
                }
                return Ok(());
            }
        };
        let left_out = |open: &[Open]| {
            open.iter().for_each(|one| Counts::add(&walk.destinations[one.side].counts.left_out, 1));
        };
        let kind = kind(&stat);
        let on = device(&stat);
        if let Some(only) = walk.only_device
            && on != only
            && !(kind == NodeKind::Dir && device_above == only)
        {
            left_out(open);
            return Ok(());
        }
        let mut passage = false;
        if kind == NodeKind::Dir {
            if walk.skip.contains(&(on, inode(&stat))) {
                left_out(open);
                tracing::info!(path = %walk.shown(&path()), "left out, as it holds the repository or its cache");
                return Ok(());
            }
            if !every_path {
                match walk.select.directory(&absolute) {
                    crate::select::Directory::Excluded => return Ok(()),
                    crate::select::Directory::Included => (),
                    crate::select::Directory::Passage => passage = true,
                }
            }
        } else if !(every_path || walk.select.includes(&absolute))
            || !walk.select.metadata(size(&stat), Some(modified(&stat).timestamp()))
        {
            return Ok(());
        }
        if kind == NodeKind::Socket {
            return Ok(());
        }
        for one in &mut *open {
            self.sides[one.side].seen.entries += 1;
            one.found = match one.past.find(name) {
                Ok(found) => found,
                Err(error) => {
                    walk.destinations[one.side].damaged(&walk.shown(above), error);
                    None
                }
            };
        }
        let entry = Entry { directory, above, name, shown: None, stat: &stat };
        match kind {
            NodeKind::File => self.file(entry, open, jobs),
            NodeKind::Dir => {
                let place = |one: &mut Open| {
                    one.frame.expect();
                    let previous = one.found.take().map(|(node, _)| Box::new(node));
                    let previous = previous.filter(|node| node.kind == kind);
                    Place { side: one.side, above: one.frame.clone(), previous }
                };
                jobs.push(Job::Directory {
                    places: open.iter_mut().map(place).collect(),
                    path: path().into(),
                    name: Some(name.into()),
                    owner: stat.st_uid,
                    passage,
                });
                Ok(())
            }
            _ => {
                self.other(entry, open);
                Ok(())
            }
        }
    }

    /// Something vanished after it was listed, with everything that the parent snapshot has below it. `counted` things
    /// are counted as vanished already; those that are objects have been listed.
    fn vanished(&mut self, side: usize, subtree: Option<Id>, counted: u64) {
        let mut files = 0;
        let mut trees: Vec<Id> = subtree.into_iter().collect();
        while let Some(id) = trees.pop() {
            let mut past = self.previous(side, b"", Some(id));
            if past.finish().is_ok() {
                files += past.files_gone;
                trees.append(&mut past.trees_gone);
            }
        }
        Counts::add(&self.walk.destinations[side].counts.vanished, files.saturating_sub(counted));
        let seen = &mut self.sides[side].seen;
        seen.listed += files.max(counted);
        seen.trees_gone.extend(subtree);
    }

    /// The source, if it is no directory.
    pub fn only(&mut self, entry: Entry<'_>, open: &mut [Open]) -> Result<()> {
        let mut jobs = Vec::new();
        match kind(entry.stat) {
            NodeKind::File => self.file(entry, open, &mut jobs)?,
            _ => self.other(entry, open),
        }
        lock(&self.walk.jobs).append(&mut jobs);
        for one in open {
            self.walk.contain(one.side, one.frame.settle(&mut self.sides[one.side]));
        }
        Ok(())
    }

    /// A link, a pipe, a device.
    fn other(&mut self, entry: Entry<'_>, open: &[Open]) {
        let walk = self.walk;
        let sides = || open.iter().map(|one| one.side);
        let mut node = self.described(entry, sides());
        match node.kind {
            NodeKind::Symlink => match link_target(entry.directory.as_fd(), entry.name) {
                Ok(target) => node.link_target = target,
                Err(error) => return walk.missing(sides(), &entry.path(), &error),
            },
            NodeKind::Irregular | NodeKind::Unknown => {
                let error = io::Error::other("it is of a type that cannot be saved");
                return walk.missing(sides(), &entry.path(), &error);
            }
            _ => (),
        }
        open.iter().for_each(|one| walk.contain(one.side, one.frame.add(&node)));
    }

    /// A node with its extended attributes; these repositories are told of those that cannot be read.
    pub(super) fn described(&mut self, entry: Entry<'_>, sides: impl Iterator<Item = usize> + Clone) -> Node {
        let walk = self.walk;
        let Entry { directory, name, shown, stat, .. } = entry;
        let mut node = walk.reading.style.node(shown.unwrap_or(name), stat);
        if walk.reading.style.of_bucket {
            // A bucket's objects have no attributes but those that the parent may know.
            return node;
        }
        let lost = |attribute: &str, error: &io::Error| {
            for side in sides.clone() {
                walk.destinations[side].lost(&walk.shown(&entry.path()), attribute, error);
            }
        };
        let hint = shown.is_none().then(|| {
            self.path.truncate(self.path_above);
            self.path.extend_from_slice(name);
            &self.path[..]
        });
        match self.xattrs.of_name(directory.as_fd(), name, hint, |name, error| lost(name, &error)) {
            Ok(xattrs) => node.xattrs = xattrs,
            Err(error) => lost("", &error),
        }
        node
    }

    /// The parent snapshot's tree of a directory. One that cannot be read is no parent: everything is read.
    fn previous(&self, side: usize, path: &[u8], tree: Option<Id>) -> Previous {
        let Some(id) = tree else { return Previous::default() };
        let destination = &self.walk.destinations[side];
        let read = |blob: Bytes| Previous::new(blob);
        let blob = self.walk.runtime.block_on(destination.reader.blob(BlobKind::Tree, &id));
        blob.and_then(read).unwrap_or_else(|error| {
            destination.damaged(&self.walk.shown(path), format_args!("the parent snapshot's tree: {error}"));
            Previous::default()
        })
    }

    fn finish_previous(&mut self, open: &mut Open) {
        if let Err(error) = open.past.finish() {
            self.walk.destinations[open.side].damaged(&self.walk.shown(&open.frame.path), error);
        }
        let seen = &mut self.sides[open.side].seen;
        seen.files_gone += open.past.files_gone;
        seen.trees_gone.append(&mut open.past.trees_gone);
    }
}

/// Path of an entry below the source. One that is shown under another name is the source itself.
pub(super) fn below(above: &[u8], name: &[u8], shown: Option<&[u8]>) -> Vec<u8> {
    match (above, shown) {
        (_, Some(_)) => Vec::new(),
        (b"", None) => name.to_vec(),
        (above, None) => [above, b"/", name].concat(),
    }
}
