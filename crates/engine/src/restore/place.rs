//! The second walk: makes directories, links and empty files itself, and has contents delivered window by window.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use cistern_bucket::Key;
use cistern_repository::{BlobKind, Node, NodeKind};
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Job;
use super::attributes;
use super::beneath::{Counts, Dir, Site, open_limits};
use super::conflict::{Decision, Decisions};
use super::cursor::{Cursor, Ground, Mode};
use super::directory::{BLOCKED, next, split};
use super::landing::Landing;
use super::placer::{Name, kind};
use super::plan::{Links, Remap};
use super::random::RandomFile;
use super::sequential::SequentialFile;
use super::walk::{Found, Order, Step};
use super::window::{Limits, Receive, Window, lengths};
use crate::{Error, ExceptionKind, Result};

/// Windows that are delivered at once.
const WINDOWS: usize = 2;
/// Files that wait to replace others, at most, before they do.
const MOST_WAITING: usize = 1_024;

/// Places everything that was decided.
///
/// # Errors
/// `Cancelled`; what is wrong with the repository or the target as a whole. Nothing half-written is left under a final
/// name.
pub(crate) fn place(
    job: &Arc<Job>,
    root: &Arc<Dir>,
    remap: &Remap,
    decisions: &Decisions,
    handle: &Handle,
) -> Result<()> {
    let (alive, mut ended) = mpsc::channel(1);
    let random = root.site().profile.random;
    let (bytes, open) = if random { (24 << 20, open_limits().1) } else { (24 << 20, 4) };
    let mut place = Place {
        job,
        site: root.site().clone(),
        root,
        remap,
        handle,
        cursor: Cursor::new(Mode::Make, job.task.overwrite, Ground::Here(root.clone())),
        links: Links::default(),
        limits: Limits { bytes, blobs: 4_096, open },
        window: Window::default(),
        later: Vec::new(),
        windows: VecDeque::new(),
        alive,
    };
    let result = place.all(decisions).and_then(|()| place.rest());
    for (task, _) in place.windows.drain(..) {
        task.abort();
    }
    place.site.waiting.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    let site = place.site.clone();
    drop(place);
    // No thread holds a file any more: what was not finished has been removed.
    handle.block_on(ended.recv());
    match (site.take_failure(), result) {
        (Some(error), _) => Err(error),
        (None, result) => result.and_then(|()| job.check()),
    }
}

struct Place<'a> {
    job: &'a Arc<Job>,
    site: Arc<Site>,
    root: &'a Arc<Dir>,
    remap: &'a Remap,
    handle: &'a Handle,
    cursor: Cursor,
    links: Links,
    limits: Limits,
    window: Window,
    /// Links to files of this window or an earlier one.
    later: Vec<Link>,
    windows: VecDeque<(JoinHandle<Result<()>>, Vec<Link>)>,
    alive: mpsc::Sender<()>,
}

/// A directory, and the name in it if it is not the node's.
type Spot = (Arc<Dir>, Option<Box<[u8]>>);

/// Another name for a file that was placed before.
struct Link {
    landing: Landing,
    size: u64,
    first: Box<[u8]>,
}

impl Place<'_> {
    fn all(&mut self, decisions: &Decisions) -> Result<()> {
        let job = self.job;
        let mut at = 0;
        let changed = || Error::Broken("a directory could be read in one walk and not in the other".into());
        for root in &job.roots {
            let mut walk = job.walk(root, Order::Name);
            while let Some(step) = next(job, &mut walk, self.handle)? {
                let path = walk.path();
                match step {
                    Step::Enter { found, included } => {
                        let decision = decisions.get(at);
                        if decision == Decision::Leave {
                            return Err(changed());
                        }
                        at += 1;
                        self.cursor.enter(path.len(), found);
                        if included && decision != BLOCKED {
                            let mapped = self.remap.map_directory(path);
                            self.cursor.go(&mapped, mapped.path.len());
                        }
                    }
                    Step::Leave => self.cursor.leave(),
                    Step::Lost(why) => {
                        if decisions.get(at) != Decision::Leave {
                            return Err(Error::Repository(cistern_repository::Error::damaged("tree", why)));
                        }
                        at += 1;
                    }
                    Step::Refused(_) => (),
                    Step::Node(found) if found.node().kind == NodeKind::File => {
                        self.file(found, path, decisions.get(at))?;
                        at += 1;
                    }
                    Step::Node(found) => {
                        self.other(found, path, decisions.get(at))?;
                        at += 1;
                    }
                }
            }
            self.cursor.leave_all();
        }
        Ok(())
    }

    /// Waits for everything that is under way.
    fn rest(&mut self) -> Result<()> {
        while !self.window.is_empty() || !self.later.is_empty() || !self.windows.is_empty() {
            self.submit();
            while !self.windows.is_empty() {
                self.finish_one()?;
            }
        }
        self.site.replace_waiting();
        Ok(())
    }

    /// The directory that a path of the snapshot belongs in, and its name there if it is another.
    fn ground(&mut self, found: &Found, path: &[u8]) -> Option<Spot> {
        let mapped = self.remap.map(path);
        let (end, name) = split(&mapped);
        match self.cursor.go(&mapped, end) {
            Ground::Here(dir) => Some((dir, (*name != *found.node().name).then(|| name.into()))),
            Ground::Absent | Ground::Blocked => {
                let detail = "its directory cannot be entered or made";
                self.job.collector.add(ExceptionKind::Unwritable, Key::from(path), detail);
                None
            }
        }
    }

    fn file(&mut self, found: Found, path: &[u8], decision: Decision) -> Result<()> {
        let replace = match decision {
            Decision::Leave => return Ok(()),
            Decision::Write => false,
            Decision::Replace => true,
            Decision::Same => {
                if let Some((dir, name)) = self.ground(&found, path) {
                    self.refresh(&Landing { dir, found, name, replace: true });
                }
                return Ok(());
            }
        };
        let Ok(size) = lengths(&self.job.reader, found.node()) else { return Ok(()) };
        let Some((dir, name)) = self.ground(&found, path) else { return Ok(()) };
        let landing = Landing { dir, found, name, replace };
        if self.site.profile.special && !landing.node().content.as_deref().unwrap_or_default().is_empty() {
            if let Some(first) = self.links.earlier(landing.node()) {
                self.later.push(Link { landing, size, first });
                if self.later.len() >= self.limits.blobs {
                    self.turn()?;
                }
                return Ok(());
            }
            if landing.node().links > 1 {
                self.links.placed(landing.node(), &landing.path());
            }
        }
        self.contents(landing, size)
    }

    /// Puts the contents of a file into windows.
    fn contents(&mut self, landing: Landing, size: u64) -> Result<()> {
        let found = landing.found.clone();
        let ids = found.node().content.as_deref().unwrap_or_default();
        if ids.is_empty() {
            landing.empty();
            return Ok(());
        }
        let blobs = ids.len() as u32;
        let file: Arc<dyn Receive> = match self.site.profile.random {
            true => Arc::new(RandomFile::new(landing, blobs, size)),
            false => Arc::new(SequentialFile::new(landing, blobs, size)),
        };
        self.window.file(file.clone(), blobs > 1);
        let mut offset = 0;
        for (number, id) in (0..).zip(ids) {
            let length = self.job.reader.raw_length(BlobKind::Data, id).unwrap_or_default();
            if self.window.is_full(&self.limits) {
                self.turn()?;
                self.window.file(file.clone(), blobs > 1);
            }
            self.window.blob(number, offset, *id, length);
            offset += u64::from(length);
        }
        drop(file);
        if self.window.is_full(&self.limits) { self.turn() } else { Ok(()) }
    }

    /// Sends the window off, and waits until there is room for the next one.
    fn turn(&mut self) -> Result<()> {
        self.submit();
        while self.windows.len() >= WINDOWS {
            self.finish_one()?;
        }
        if super::beneath::locked(&self.site.waiting).len() >= MOST_WAITING {
            self.site.replace_waiting();
        }
        self.job.check()
    }

    fn submit(&mut self) {
        let window = std::mem::take(&mut self.window);
        let later = std::mem::take(&mut self.later);
        if window.is_empty() && later.is_empty() {
            return;
        }
        let delivery = window.deliver(self.job.reader.clone(), self.alive.clone());
        self.windows.push_back((self.handle.spawn(delivery), later));
    }

    /// Waits for the window that was sent first, and makes the links that waited for it: all files before them
    /// are complete then.
    fn finish_one(&mut self) -> Result<()> {
        let Some((mut task, links)) = self.windows.pop_front() else { return Ok(()) };
        let stop = &self.job.stop;
        let delivered = self.handle.block_on(async {
            tokio::select! {
                delivered = &mut task => Some(delivered),
                () = stop.cancelled() => None,
            }
        });
        let Some(delivered) = delivered else {
            task.abort();
            return Err(Error::Cancelled);
        };
        delivered.map_err(|error| Error::Broken(format!("the delivery ended: {error}")))??;
        if links.is_empty() {
            return Ok(());
        }
        self.site.replace_waiting();
        for link in links {
            self.link(link)?;
        }
        Ok(())
    }

    fn link(&mut self, Link { landing, size, first }: Link) -> Result<()> {
        // If the first could not be placed, something else may have its name.
        if self.job.collector.has_told(self.site.show(&first)) != Some(false) {
            return self.contents(landing, size);
        }
        let placer = &self.site.placer;
        let linked = self.open_parent(&first).and_then(|(dir, old)| {
            let old = Name::new(old).map_err(|_| Errno::INVAL)?;
            landing.make(|new_dir, new| placer.link((dir.as_fd(), old), (new_dir.as_fd(), new)))
        });
        match linked {
            Ok(()) => {
                Counts::add(&self.site.counts.written, 1);
                self.site.meter.done(size);
                Ok(())
            }
            // The target has no links, or not that many: the file is written once more.
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::OPNOTSUPP | Errno::NOENT) => {
                self.contents(landing, size)
            }
            Err(error) => {
                landing.refused(error);
                Ok(())
            }
        }
    }

    /// The directory of a path in the target, and the name in it.
    fn open_parent<'p>(&self, path: &'p [u8]) -> rustix::io::Result<(Arc<OwnedFd>, &'p [u8])> {
        let mut dir = self.root.fd()?;
        let mut names = path.split(|b| *b == b'/').skip(1).peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Ok((dir, name));
            }
            let name = Name::new(name).map_err(|_| Errno::INVAL)?;
            dir = Arc::new(self.site.placer.open_dir(dir.as_fd(), name)?);
        }
        Err(Errno::NOENT)
    }

    /// Sets the attributes of a file whose contents are there already, if they differ.
    fn refresh(&self, landing: &Landing) {
        let placer = &self.site.placer;
        let path = || landing.path();
        let result = landing.dir.fd().and_then(|dir| {
            let name = Name::new(landing.name()).map_err(|_| Errno::INVAL)?;
            let Some(stat) = placer.stat(dir.as_fd(), name)? else { return Err(Errno::NOENT) };
            if attributes::differ(&self.site, &stat, landing.node()) {
                let file = placer.open(dir.as_fd(), name)?;
                let opened = placer.stat_open(file.as_fd())?;
                if kind(&opened) != NodeKind::File
                    || (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino)
                {
                    // Somebody has put something else there since.
                    return Err(Errno::BUSY);
                }
                attributes::set(&self.site, file.as_fd(), landing.node(), path);
            }
            Ok(())
        });
        match result {
            Ok(()) => self.site.meter.done(landing.node().size),
            // Contents are what counts; they are there.
            Err(error) => {
                let detail = format!("attributes: {}", std::io::Error::from(error));
                self.job.collector.add(ExceptionKind::AttributeLost, self.site.show(&path()), detail);
            }
        }
    }

    /// Places a link or a special file.
    fn other(&mut self, found: Found, path: &[u8], decision: Decision) -> Result<()> {
        self.job.check()?;
        let replace = match decision {
            Decision::Leave | Decision::Same => return Ok(()),
            Decision::Write => false,
            Decision::Replace => true,
        };
        if !self.site.profile.special {
            let why = "the target takes neither links nor special files";
            self.job.collector.add(ExceptionKind::Unwritable, Key::from(path), why);
            return Ok(());
        }
        let Some((dir, name)) = self.ground(&found, path) else { return Ok(()) };
        let landing = Landing { dir, found, name, replace };
        match self.make_other(&landing) {
            Ok(()) => Counts::add(&self.site.counts.others, 1),
            Err(error) => landing.refused(error),
        }
        Ok(())
    }

    fn make_other(&self, landing: &Landing) -> rustix::io::Result<()> {
        let (placer, node): (_, &Node) = (&self.site.placer, landing.node());
        landing.make(|dir, name| {
            match node.kind {
                NodeKind::Symlink => placer.symlink(&node.link_target, dir.as_fd(), name)?,
                kind => placer.make_node(dir.as_fd(), name, kind, 0o600, node.device)?,
            }
            attributes::set_link(&self.site, dir.as_fd(), name, node, || landing.path());
            Ok(())
        })
    }
}
