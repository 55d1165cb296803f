//! Walks a directory with several threads: each takes the newest job, lists a directory or reads a large
//! file, and hands small files to the repository's workers. What comes out does not depend on who did what.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use cistern_bucket::Key;
use cistern_repository::{BlobKind, Contents, Id, Index, Node, NodeKind, Reader, Ticket, Writer};
use rustix::fs::Stat;
use tokio::runtime::Handle;

use super::frame::{Frame, Trees, is_same};
use super::list::Names;
use super::previous::Previous;
use super::read::{Batched, Broken, Found, Gathering, Grown, Held, LARGE, Reading, Wanted, read_large};
use crate::backup::session::{Collector, Counts, Tally};
use crate::posix::{XattrReader, changed, device, inode, kind, link_target, modified, size, status};
use crate::select::Select;
use crate::{Error, ExceptionKind, Meter, Result};

/// Batches and large files that a thread has handed over before it waits for the oldest.
const UNDER_WAY: usize = 4;
/// Open directories, of all threads together, above which a thread first settles what it has.
const HELD: usize = 256;
/// Extended attribute that holds what a bucket says of an object (buckets.md 3).
const OBJECT_XATTR: &str = "user.cistern.object";

/// What all threads of a walk share.
pub(super) struct Walk {
    /// The source, if it is a directory.
    pub root: Option<Arc<Held>>,
    /// Absolute path of the source, which patterns and messages begin with; empty for `/`.
    pub prefix: Box<[u8]>,
    /// The file system to stay on.
    pub only_device: Option<u64>,
    /// Device and inode of directories that are left out: the repository itself, its cache.
    pub skip: Vec<(u64, u64)>,
    pub select: Select,
    /// Files are compared by size and time of modification alone.
    pub ignore_inode: bool,
    pub reading: Arc<Reading>,
    pub reader: Reader,
    pub index: Arc<Index>,
    /// None in a dry run: changed files are counted, not read.
    pub writer: Option<Writer>,
    pub meter: Arc<Meter>,
    pub exceptions: Arc<Collector>,
    pub counts: Arc<Counts>,
    /// Whether the totals of the meter grow with what is found; otherwise they are an estimate already.
    pub count_totals: bool,
    pub runtime: Handle,
    pub held: Arc<AtomicUsize>,
    pub jobs: Mutex<Vec<Job>>,
    pub wake: Condvar,
    pub stop: AtomicBool,
    pub failure: Mutex<Option<Error>>,
    pub outcome: Mutex<Outcome>,
}

/// What a walk found out.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// The root of the snapshot, once everything is stored.
    pub root: Option<Id>,
    /// What the snapshot holds.
    pub tally: Tally,
    /// Entries of the source of any kind, below the source itself.
    pub entries: u64,
    /// Files among them.
    pub listed: u64,
    /// Files that the parent snapshot has as well.
    pub matched: u64,
    /// Files of the parent snapshot that are gone from a directory that is still there.
    pub files_gone: u64,
    /// Trees of directories that are gone.
    pub trees_gone: Vec<Id>,
}

/// Something to do.
pub(super) enum Job {
    /// Lists a directory of the source.
    Directory {
        above: Arc<Frame>,
        /// Path below the source.
        path: Box<[u8]>,
        /// Name in the snapshot; `None` is the snapshot's root itself.
        name: Option<Box<[u8]>>,
        owner: u32,
        passage: bool,
        previous: Option<Box<Node>>,
    },
    /// Reads a large file.
    File(Wanted),
}

impl Walk {
    /// Stops everything because of an error; the first one counts.
    pub fn fail(&self, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.stop();
    }

    /// Stops everything.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        drop(lock(&self.jobs));
        self.wake.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Absolute path of something below the source.
    fn absolute(&self, path: &[u8]) -> Vec<u8> {
        match path {
            b"" => self.prefix.to_vec(),
            path => [&self.prefix, &b"/"[..], path].concat(),
        }
    }

    /// Tells of something that is missing from the snapshot. What vanished is counted and no exception.
    fn missing(&self, path: &[u8], error: &io::Error) {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => {
                tracing::debug!(path = %Key::new(self.absolute(path)), "vanished while it was read");
                return Counts::add(&self.counts.vanished, 1);
            }
            io::ErrorKind::PermissionDenied => ExceptionKind::Denied,
            _ => ExceptionKind::Unreadable,
        };
        self.exceptions.add(kind, Key::new(self.absolute(path)), error);
    }

    fn lost(&self, path: &[u8], attribute: &str, error: &io::Error) {
        let detail = match attribute {
            "" => format!("its extended attributes: {error}"),
            name => format!("its extended attribute {name}: {error}"),
        };
        self.exceptions.add(ExceptionKind::Unreadable, Key::new(self.absolute(path)), detail);
    }

    fn damaged(&self, path: &[u8], detail: impl std::fmt::Display) {
        self.exceptions.add(ExceptionKind::Damaged, Key::new(self.absolute(path)), detail);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread of a walk.
pub(super) struct Walker<'a> {
    walk: &'a Walk,
    gathering: Gathering,
    under_way: VecDeque<UnderWay>,
    xattrs: XattrReader,
    names: Names,
    /// Absolute path of the directory at work with a slash behind it, and its length; names come and go.
    path: Vec<u8>,
    path_above: usize,
    seen: Outcome,
}

/// What was handed to the workers and is not settled yet.
enum UnderWay {
    Batch(Batched),
    File(Box<(Wanted, Found, Ticket<Contents>)>),
}

impl Trees for Walker<'_> {
    fn store(&mut self, tree: Vec<u8>) -> Result<Id> {
        match &self.walk.writer {
            Some(writer) => Ok(writer.tree(tree)?),
            None => Ok(Id::of(&tree)),
        }
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.seen.tally
    }

    fn root(&mut self, id: Id) {
        self.seen.root = Some(id);
        self.walk.stop();
    }
}

impl<'a> Walker<'a> {
    pub fn new(walk: &'a Walk) -> Self {
        Walker {
            walk,
            gathering: Gathering::default(),
            under_way: VecDeque::new(),
            xattrs: XattrReader::new(),
            names: Names::default(),
            path: Vec::new(),
            path_above: 0,
            seen: Outcome::default(),
        }
    }

    /// Works until the root is stored, or until somebody stops the walk.
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
        let mut outcome = lock(&self.walk.outcome);
        outcome.root = outcome.root.or(self.seen.root);
        outcome.tally.add(&self.seen.tally);
        outcome.entries += self.seen.entries;
        outcome.listed += self.seen.listed;
        outcome.matched += self.seen.matched;
        outcome.files_gone += self.seen.files_gone;
        outcome.trees_gone.append(&mut self.seen.trees_gone);
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
            Job::Directory { above, path, name, owner, passage, previous } => {
                if let Some(writer) = &self.walk.writer {
                    // Waits while the trees that were stored wait for the workers.
                    drop(writer.permit_blocking(0)?);
                }
                while self.walk.held.load(Relaxed) > HELD
                    && (!self.gathering.is_empty() || !self.under_way.is_empty())
                {
                    if !self.gathering.is_empty() {
                        self.send()?;
                    }
                    self.settle_oldest()?;
                }
                self.directory(above, path, name, owner, passage, previous)
            }
        }
    }

    /// Lists a directory and deals with each entry.
    fn directory(
        &mut self,
        above: Arc<Frame>,
        path: Box<[u8]>,
        name: Option<Box<[u8]>>,
        owner: u32,
        passage: bool,
        previous: Option<Box<Node>>,
    ) -> Result<()> {
        let walk = self.walk;
        walk.meter.current(|| Key::new(walk.absolute(&path)).to_string());
        let root = walk.root.as_ref().ok_or_else(|| Error::Broken("there is no directory to walk".into()))?;
        let opened = walk.reading.opener.directory(root.as_fd(), &path, owner).and_then(|fd| {
            let stat = rustix::fs::fstat(&fd)?;
            self.names.read(&fd)?;
            Ok((Held::new(fd, &walk.held), stat))
        });
        let (directory, stat) = match opened {
            Ok(opened) => opened,
            Err(source) if path.is_empty() => {
                let path = Key::new(walk.absolute(b"")).to_string();
                return Err(Error::File { doing: "reading the directory", path, source });
            }
            Err(error) => {
                walk.missing(&path, &error);
                if error.kind() == io::ErrorKind::NotFound {
                    let subtree = previous.as_ref().and_then(|node| node.subtree);
                    self.vanished(subtree, 1);
                }
                return above.settle(self);
            }
        };
        let mut past = self.previous(&path, previous.as_ref().and_then(|node| node.subtree));
        let frame = match name {
            // The snapshot's root is the source: the frame is there already.
            None => above,
            Some(name) => {
                let mut node = walk.reading.style.node(&name, &stat);
                let lost = |name: &str, error| walk.lost(&path, name, &error);
                match self.xattrs.of_open(directory.as_fd(), lost) {
                    Ok(xattrs) => node.xattrs = xattrs,
                    Err(error) => walk.lost(&path, "", &error),
                }
                let frame = Frame::new(Some(above), path, device(&stat), Some(node));
                Arc::new(frame.with_previous(previous).only_if_used(passage))
            }
        };
        self.path = walk.absolute(&frame.path);
        self.path.push(b'/');
        self.path_above = self.path.len();
        let names = std::mem::take(&mut self.names);
        // In reverse, as the newest job is taken first: directories are walked in the order of their names.
        let mut jobs = Vec::new();
        for (i, name) in names.sorted().enumerate() {
            if i % 256 == 255 && walk.stopped() {
                return Ok(());
            }
            self.entry(&frame, &directory, name, &mut past, &mut jobs)?;
        }
        self.names = names;
        self.finish_previous(&frame, past);
        if !jobs.is_empty() {
            jobs.reverse();
            // Files last, that is first: their directory is open, and another thread can do the rest.
            jobs.sort_by_key(|job| matches!(job, Job::File(_)));
            let many = jobs.len() > 1;
            lock(&walk.jobs).append(&mut jobs);
            if many { walk.wake.notify_all() } else { walk.wake.notify_one() }
        }
        frame.settle(self)
    }

    fn entry(
        &mut self,
        frame: &Arc<Frame>,
        directory: &Arc<Held>,
        name: &[u8],
        past: &mut Previous,
        jobs: &mut Vec<Job>,
    ) -> Result<()> {
        let walk = self.walk;
        let path = || below(frame, name, None);
        let every_path = walk.select.takes_every_path();
        let absolute = if every_path { Vec::new() } else { walk.absolute(&path()) };
        // Asked before anything else: what is excluded may be a mount that hangs.
        if !every_path && walk.select.excludes(&absolute) {
            return Ok(());
        }
        let stat = match status(directory.as_fd(), name) {
            Ok(stat) => stat,
            Err(error) => {
                walk.missing(&path(), &error);
                if error.kind() == io::ErrorKind::NotFound {
                    let previous = past.find(name).ok().flatten().map(|(node, _)| node);
                    let subtree = previous.as_ref().and_then(|node| node.subtree);
                    let was_file = previous.is_some_and(|node| node.kind == NodeKind::File);
                    self.seen.files_gone += u64::from(was_file);
                    self.vanished(subtree, 1);
                }
                return Ok(());
            }
        };
        let kind = kind(&stat);
        let on = device(&stat);
        if let Some(only) = walk.only_device
            && on != only
            && !(kind == NodeKind::Dir && frame.device == only)
        {
            Counts::add(&walk.counts.left_out, 1);
            return Ok(());
        }
        let mut passage = false;
        if kind == NodeKind::Dir {
            if walk.skip.contains(&(on, inode(&stat))) {
                Counts::add(&walk.counts.left_out, 1);
                tracing::info!(path = %Key::new(walk.absolute(&path())), "left out, as it holds the repository or its cache");
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
        self.seen.entries += 1;
        let previous = match past.find(name) {
            Ok(found) => found,
            Err(error) => {
                walk.damaged(&frame.path, error);
                None
            }
        };
        match kind {
            NodeKind::File => {
                let (previous, span) = previous.unzip();
                let raw = span.as_ref().map_or(&b""[..], |span| past.raw(span));
                self.file(frame, directory, name, None, &stat, previous, raw, jobs)
            }
            NodeKind::Dir => {
                frame.expect();
                jobs.push(Job::Directory {
                    above: frame.clone(),
                    path: path().into(),
                    name: Some(name.into()),
                    owner: stat.st_uid,
                    passage,
                    previous: previous.map(|(node, _)| Box::new(node)).filter(|node| node.kind == kind),
                });
                Ok(())
            }
            _ => self.other(frame, directory, name, None, &stat),
        }
    }

    /// Something vanished after it was listed, with everything that the parent snapshot has below it. `counted` things
    /// are counted as vanished already; those that are objects have been listed.
    fn vanished(&mut self, subtree: Option<Id>, counted: u64) {
        let mut files = 0;
        let mut trees: Vec<Id> = subtree.into_iter().collect();
        while let Some(id) = trees.pop() {
            let mut past = self.previous(b"", Some(id));
            if past.finish().is_ok() {
                files += past.files_gone;
                trees.append(&mut past.trees_gone);
            }
        }
        Counts::add(&self.walk.counts.vanished, files.saturating_sub(counted));
        self.seen.listed += files.max(counted);
        self.seen.trees_gone.extend(subtree);
    }

    /// The source, if it is no directory. `name` is its own, `shown` that in the snapshot.
    pub fn only(
        &mut self,
        frame: &Arc<Frame>,
        directory: &Arc<Held>,
        name: &[u8],
        shown: &[u8],
        stat: &Stat,
        previous: Option<&Node>,
    ) -> Result<()> {
        let mut jobs = Vec::new();
        match kind(stat) {
            NodeKind::File => {
                self.file(frame, directory, name, Some(shown), stat, previous.cloned(), b"", &mut jobs)?;
            }
            _ => self.other(frame, directory, name, Some(shown), stat)?,
        }
        lock(&self.walk.jobs).append(&mut jobs);
        frame.settle(self)
    }

    /// A regular file: as it was, or to be read.
    #[expect(clippy::too_many_arguments, reason = "one call, all of it about one file")]
    fn file(
        &mut self,
        frame: &Arc<Frame>,
        directory: &Arc<Held>,
        name: &[u8],
        shown: Option<&[u8]>,
        stat: &Stat,
        previous: Option<Node>,
        raw: &[u8],
        jobs: &mut Vec<Job>,
    ) -> Result<()> {
        let walk = self.walk;
        let previous = previous.filter(|node| node.kind == NodeKind::File);
        self.seen.listed += 1;
        self.seen.matched += u64::from(previous.is_some());
        if walk.count_totals {
            walk.meter.found(size(stat));
        }
        let previous = match previous {
            Some(previous) if self.is_unchanged(frame, name, shown, stat, &previous) => {
                return self.unchanged(frame, directory, name, shown, stat, previous, raw);
            }
            previous => previous.map(Box::new),
        };
        let Some(writer) = &walk.writer else {
            // A dry run: what the contents would become is not known.
            match previous {
                Some(_) => self.seen.tally.files_changed += 1,
                None => self.seen.tally.files_new += 1,
            }
            self.seen.tally.bytes += size(stat);
            walk.meter.done(size(stat));
            return frame.add(&walk.reading.style.node(shown.unwrap_or(name), stat));
        };
        frame.expect();
        let wanted = Wanted {
            frame: frame.clone(),
            directory: directory.clone(),
            name: name.into(),
            shown: shown.map(Into::into),
            owner: stat.st_uid,
            size: size(stat),
            previous,
        };
        if wanted.size >= LARGE {
            jobs.push(Job::File(wanted));
            return Ok(());
        }
        if self.gathering.is_full_for(wanted.size) {
            let batched = self.gathering.send(writer, &walk.reading)?;
            self.hand_over(UnderWay::Batch(batched))?;
        }
        self.gathering.add(wanted);
        Ok(())
    }

    /// Whether the contents are those that the parent snapshot has, as restic judges it.
    fn is_unchanged(
        &self,
        frame: &Frame,
        name: &[u8],
        shown: Option<&[u8]>,
        stat: &Stat,
        previous: &Node,
    ) -> bool {
        let walk = self.walk;
        if previous.size != size(stat) || previous.mtime.instant() != modified(stat).instant() {
            return false;
        }
        let same_inode =
            || previous.ctime.instant() == changed(stat).instant() && previous.inode == inode(stat);
        if !walk.ignore_inode && !same_inode() {
            return false;
        }
        let content = previous.content.as_deref().unwrap_or_default();
        if content.iter().all(|id| walk.index.contains(BlobKind::Data, id)) {
            return true;
        }
        let path = below(frame, name, shown);
        walk.damaged(
            &path,
            "blobs of the parent snapshot are missing from the index; the file is stored again",
        );
        false
    }

    #[expect(clippy::too_many_arguments, reason = "one call, all of it about one file")]
    fn unchanged(
        &mut self,
        frame: &Arc<Frame>,
        directory: &Arc<Held>,
        name: &[u8],
        shown: Option<&[u8]>,
        stat: &Stat,
        previous: Node,
        raw: &[u8],
    ) -> Result<()> {
        let walk = self.walk;
        let mut node = self.described(frame, directory, name, shown, stat);
        if walk.ignore_inode
            && let Some(kept) = previous.xattrs.iter().find(|xattr| &*xattr.name == OBJECT_XATTR)
            && !node.xattrs.iter().any(|xattr| &*xattr.name == OBJECT_XATTR)
        {
            node.xattrs.push(kept.clone());
        }
        self.seen.tally.files_unchanged += 1;
        self.seen.tally.bytes += previous.size;
        walk.meter.done(previous.size);
        node.content = previous.content.clone();
        match is_same(&mut node, &previous) && !raw.is_empty() {
            true => frame.add_raw(&node.name, raw),
            false => frame.add(&node),
        }
    }

    /// A link, a pipe, a device.
    fn other(
        &mut self,
        frame: &Arc<Frame>,
        directory: &Arc<Held>,
        name: &[u8],
        shown: Option<&[u8]>,
        stat: &Stat,
    ) -> Result<()> {
        let walk = self.walk;
        let path = below(frame, name, shown);
        let mut node = self.described(frame, directory, name, shown, stat);
        match node.kind {
            NodeKind::Symlink => match link_target(directory.as_fd(), name) {
                Ok(target) => node.link_target = target,
                Err(error) => {
                    walk.missing(&path, &error);
                    return Ok(());
                }
            },
            NodeKind::Irregular | NodeKind::Unknown => {
                walk.missing(&path, &io::Error::other("it is of a type that cannot be saved"));
                return Ok(());
            }
            _ => (),
        }
        frame.add(&node)
    }

    /// A node with its extended attributes.
    fn described(
        &mut self,
        frame: &Frame,
        directory: &Arc<Held>,
        name: &[u8],
        shown: Option<&[u8]>,
        stat: &Stat,
    ) -> Node {
        let walk = self.walk;
        let path = || below(frame, name, shown);
        let mut node = walk.reading.style.node(shown.unwrap_or(name), stat);
        let lost = |attribute: &str, error| walk.lost(&path(), attribute, &error);
        let hint = shown.is_none().then(|| {
            self.path.truncate(self.path_above);
            self.path.extend_from_slice(name);
            &self.path[..]
        });
        match self.xattrs.of_name(directory.as_fd(), name, hint, lost) {
            Ok(xattrs) => node.xattrs = xattrs,
            Err(error) => walk.lost(&path(), "", &error),
        }
        node
    }

    /// Reads a large file, and lets the workers store what was read.
    fn large(&mut self, wanted: Wanted) -> Result<()> {
        let walk = self.walk;
        let Some(writer) = &walk.writer else { return Ok(()) };
        let path = path_of(&wanted);
        walk.meter.current(|| Key::new(walk.absolute(&path)).to_string());
        let mut read = 0;
        let go_on = |bytes| {
            read += bytes;
            walk.meter.bytes_done.fetch_add(bytes, Relaxed);
            Counts::add(&walk.counts.bytes_read, bytes);
            !walk.stopped()
        };
        match read_large(&wanted, &walk.reading, writer, &mut self.xattrs, go_on) {
            Ok((found, ticket)) => self.hand_over(UnderWay::File(Box::new((wanted, found, ticket)))),
            Err(Broken::File(error)) => {
                walk.meter.bytes_done.fetch_sub(read, Relaxed);
                walk.missing(&path, &error);
                wanted.frame.settle(self)
            }
            Err(Broken::Repository(error)) => Err(error.into()),
            Err(Broken::Stopped) => Ok(()),
        }
    }

    fn send(&mut self) -> Result<()> {
        let Some(writer) = &self.walk.writer else { return Ok(()) };
        let batched = self.gathering.send(writer, &self.walk.reading)?;
        self.hand_over(UnderWay::Batch(batched))
    }

    fn hand_over(&mut self, one: UnderWay) -> Result<()> {
        self.under_way.push_back(one);
        while self.under_way.len() > UNDER_WAY {
            self.settle_oldest()?;
        }
        Ok(())
    }

    /// Waits for the workers to finish what was handed over first.
    fn settle_oldest(&mut self) -> Result<()> {
        match self.under_way.pop_front() {
            None => Ok(()),
            Some(UnderWay::File(one)) => {
                let (wanted, found, ticket) = *one;
                let contents = ticket.wait()?;
                self.walk.meter.objects_done.fetch_add(1, Relaxed);
                self.stored(&wanted, found, contents)
            }
            Some(UnderWay::Batch(batched)) => {
                let results = batched.ticket.wait()?;
                let found = std::mem::take(&mut *lock(&batched.found));
                if results.len() != batched.files.len() || found.len() != results.len() {
                    return Err(Error::Broken("a batch has another number of results than of files".into()));
                }
                for ((wanted, found), result) in batched.files.iter().zip(found).zip(results) {
                    self.small(wanted, found, result)?;
                }
                Ok(())
            }
        }
    }

    fn small(&mut self, wanted: &Wanted, found: Option<Found>, result: io::Result<Contents>) -> Result<()> {
        let walk = self.walk;
        match (result, found) {
            (Ok(contents), Some(found)) => {
                Counts::add(&walk.counts.bytes_read, contents.size);
                walk.meter.done(contents.size);
                self.stored(wanted, found, contents)
            }
            (Ok(_), None) => Err(Error::Broken("a file was stored that was never opened".into())),
            (Err(error), _) if error.get_ref().is_some_and(|error| error.is::<Grown>()) => {
                let again = Wanted {
                    frame: wanted.frame.clone(),
                    directory: wanted.directory.clone(),
                    name: wanted.name.clone(),
                    shown: wanted.shown.clone(),
                    previous: wanted.previous.clone(),
                    ..*wanted
                };
                self.large(again)
            }
            (Err(error), _) => {
                walk.missing(&path_of(wanted), &error);
                wanted.frame.settle(self)
            }
        }
    }

    /// The contents are in the repository: the node is complete.
    fn stored(&mut self, wanted: &Wanted, found: Found, contents: Contents) -> Result<()> {
        for (attribute, error) in &found.lost {
            self.walk.lost(&path_of(wanted), attribute, error);
        }
        let mut node = found.node;
        node.size = contents.size;
        node.content = Some(contents.blobs.into());
        let tally = &mut self.seen.tally;
        tally.bytes += contents.size;
        match &wanted.previous {
            None => tally.files_new += 1,
            Some(previous) if is_same(&mut node, previous) => tally.files_unchanged += 1,
            Some(_) => tally.files_changed += 1,
        }
        wanted.frame.add(&node)?;
        wanted.frame.settle(self)
    }

    /// The parent snapshot's tree of a directory. One that cannot be read is no parent: everything is read.
    fn previous(&self, path: &[u8], tree: Option<Id>) -> Previous {
        let Some(id) = tree else { return Previous::default() };
        let read = |blob: Bytes| Previous::new(blob);
        let blob = self.walk.runtime.block_on(self.walk.reader.blob(BlobKind::Tree, &id));
        blob.and_then(read).unwrap_or_else(|error| {
            self.walk.damaged(path, format_args!("the parent snapshot's tree: {error}"));
            Previous::default()
        })
    }

    fn finish_previous(&mut self, frame: &Frame, mut past: Previous) {
        if let Err(error) = past.finish() {
            self.walk.damaged(&frame.path, error);
        }
        self.seen.files_gone += past.files_gone;
        self.seen.trees_gone.append(&mut past.trees_gone);
    }
}

/// Path of an entry below the source. One that is shown under another name is the source itself.
fn below(frame: &Frame, name: &[u8], shown: Option<&[u8]>) -> Vec<u8> {
    match (&*frame.path, shown) {
        (_, Some(_)) => Vec::new(),
        (b"", None) => name.to_vec(),
        (above, None) => [above, b"/", name].concat(),
    }
}

fn path_of(wanted: &Wanted) -> Vec<u8> {
    below(&wanted.frame, &wanted.name, wanted.shown.as_deref())
}
