//! Directories beneath the target: each is opened from its parent by one name, and gets its own attributes last.
//!
//! A [`Dir`] is held by everything that is still to be placed in it. When the last holder lets go, nothing in
//! it will change any more, and only then its times and permissions are set: from the leaves to the root.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cistern_bucket::Key;
use cistern_repository::NodeKind;
use rustix::fs::Stat;
use rustix::io::{Errno, Result};
use rustix::process::{Resource, getrlimit};
use tokio_util::sync::CancellationToken;

use super::attributes::{self, Rules};
use super::placer::{Name, Placer, kind};
use super::probe::Profile;
use super::walk::Found;
use crate::backup::session::Collector;
use crate::{Error, ExceptionKind, Meter};

/// What everything beneath one target shares.
pub(crate) struct Site {
    /// The calls that are made.
    pub placer: Arc<dyn Placer>,
    /// What the target can do.
    pub profile: Profile,
    /// Which attributes are wanted.
    pub rules: Rules,
    /// What could not be done.
    pub collector: Arc<Collector>,
    /// Counts for whoever watches.
    pub meter: Arc<Meter>,
    /// Counts for the report.
    pub counts: Counts,
    /// Files that are complete under another name and wait to take the place of what is there.
    pub waiting: Mutex<Vec<Waiting>>,
    stop: CancellationToken,
    stopped: AtomicBool,
    fatal: Mutex<Option<Error>>,
    /// Distinguishes this run's temporary names from those of others.
    tag: u32,
    names: AtomicU64,
    /// Directories in the order of opening, and how many are open.
    opened: Mutex<VecDeque<Weak<Dir>>>,
    open: AtomicUsize,
    most_open: usize,
}

/// Counts of what was done, updated from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Files that were written.
    pub written: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Directories, links and other nodes that were made.
    pub others: AtomicU64,
}

impl Counts {
    /// Adds to one of the counts.
    pub fn add(count: &AtomicU64, by: u64) {
        count.fetch_add(by, Relaxed);
    }
}

/// A file that is complete under a temporary name. Unless it is put in its place, it is removed.
pub(crate) struct Waiting {
    dir: Arc<Dir>,
    temporary: String,
    name: Box<[u8]>,
    size: u64,
    placed: bool,
}

/// The most files of a process that a restore keeps open: directories, and large files in a window.
pub(crate) fn open_limits() -> (usize, usize) {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20) as usize;
    ((files / 4).clamp(16, 1_024), (files / 16).clamp(4, 64))
}

impl Site {
    /// A target with these abilities. `stop` is cancelled when nothing more is to be done.
    pub fn new(
        placer: Arc<dyn Placer>,
        profile: Profile,
        rules: Rules,
        collector: Arc<Collector>,
        meter: Arc<Meter>,
        stop: CancellationToken,
    ) -> Self {
        use std::hash::{BuildHasher, RandomState};
        // Who cannot set permissions cannot give anything away either, and must not try.
        let rules = Rules { owners: rules.owners && profile.modes, ..rules };
        Site {
            placer,
            profile,
            rules,
            collector,
            meter,
            counts: Counts::default(),
            waiting: Mutex::default(),
            stop,
            stopped: AtomicBool::new(false),
            fatal: Mutex::default(),
            tag: RandomState::new().hash_one(0) as u32,
            names: AtomicU64::new(0),
            opened: Mutex::default(),
            open: AtomicUsize::new(0),
            most_open: open_limits().0,
        }
    }

    /// A name that nothing else has.
    pub fn temporary_name(&self) -> String {
        format!(".cistern-restore-{:08x}-{}", self.tag, self.names.fetch_add(1, Relaxed))
    }

    /// Whether nothing more should be done.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed) || self.stop.is_cancelled()
    }

    /// Ends the run: the target as a whole fails.
    pub fn fail(&self, error: Error) {
        locked(&self.fatal).get_or_insert(error);
        self.stopped.store(true, Relaxed);
        self.stop.cancel();
    }

    /// What ended the run.
    pub fn take_failure(&self) -> Option<Error> {
        locked(&self.fatal).take()
    }

    /// Notes that something could not be placed; ends the run if nothing else can be either.
    pub fn refused(&self, doing: &'static str, path: &[u8], errno: Errno) {
        match errno {
            Errno::NOSPC
            | Errno::DQUOT
            | Errno::ROFS
            | Errno::IO
            | Errno::NODEV
            | Errno::STALE
            | Errno::NOTCONN
            | Errno::NFILE
            | Errno::MFILE
            | Errno::NOMEM => {
                self.fail(Error::File { doing, path: self.show(path), source: errno.into() });
            }
            // The file system does not know such names, or not such long ones.
            Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => {
                self.collector.add(ExceptionKind::NameRefused, self.show(path), std::io::Error::from(errno));
            }
            _ => self.collector.add(ExceptionKind::Unwritable, self.show(path), self.explain(errno)),
        }
    }

    fn explain(&self, errno: Errno) -> String {
        let what = std::io::Error::from(errno);
        match errno {
            Errno::EXIST => {
                "something with this name appeared meanwhile, or the target does not tell two names apart"
                    .into()
            }
            Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP if !self.profile.rename => {
                format!("{what}; a mount of a bucket may need an option such as allow-overwrite")
            }
            _ => what.to_string(),
        }
    }

    /// A path as a person sees it.
    pub fn show(&self, path: &[u8]) -> String {
        Key::from(path).to_string()
    }

    /// Puts all waiting files in their places, once their contents are durable: what they replace is lost then.
    pub fn replace_waiting(&self) {
        let waiting = std::mem::take(&mut *locked(&self.waiting));
        let Some(first) = waiting.first() else { return };
        let synced = first.dir.fd().and_then(|fd| self.placer.sync(fd.as_fd()));
        if let Err(error) = synced {
            return self.refused("writing", &first.path(), error);
        }
        for mut file in waiting {
            if self.is_stopped() {
                return;
            }
            match file.place(self) {
                Ok(()) => {
                    Counts::add(&self.counts.written, 1);
                    Counts::add(&self.counts.bytes, file.size);
                    self.meter.done(file.size);
                }
                Err(error) => self.refused("replacing", &file.path(), error),
            }
        }
    }
}

impl Waiting {
    /// A file in `dir` that is complete under a temporary name.
    pub fn new(dir: Arc<Dir>, temporary: String, name: Box<[u8]>, size: u64) -> Self {
        Waiting { dir, temporary, name, size, placed: false }
    }

    fn path(&self) -> Vec<u8> {
        self.dir.path_of(&self.name)
    }

    fn place(&mut self, site: &Site) -> Result<()> {
        let fd = self.dir.fd()?;
        put_in_place(&*site.placer, &fd, &self.temporary, &self.name)?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.placed
            && let Ok(fd) = self.dir.fd()
        {
            // Nobody can be told, and it bears a name that says what it is.
            let _ = self.dir.site.placer.remove(fd.as_fd(), plain(&self.temporary));
        }
    }
}

/// Renames a temporary file over what has its name; an empty directory is removed first, a full one stays.
pub(crate) fn put_in_place(placer: &dyn Placer, dir: &OwnedFd, temporary: &str, name: &[u8]) -> Result<()> {
    let name = Name::new(name).map_err(|_| Errno::INVAL)?;
    match placer.rename(dir.as_fd(), plain(temporary), name, true) {
        Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => {
            placer.remove_dir(dir.as_fd(), name)?;
            placer.rename(dir.as_fd(), plain(temporary), name, true)
        }
        result => result,
    }
}

/// A name that this program made up.
pub(crate) fn plain(name: &str) -> Name<'_> {
    Name::new(name.as_bytes()).expect("made-up names are plain words")
}

/// The value of a mutex: what it guards is whole at all times.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory beneath the target, or the target itself.
pub(crate) struct Dir {
    me: Weak<Dir>,
    site: Arc<Site>,
    parent: Option<Arc<Dir>>,
    name: Box<[u8]>,
    /// Open, unless too many others are.
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// Whose attributes it gets in the end.
    node: OnceLock<Found>,
    /// Permissions that were widened to write in it.
    mode_before: OnceLock<u32>,
    settled: bool,
}

impl Dir {
    /// The target itself.
    pub fn root(site: Arc<Site>, fd: OwnedFd) -> Arc<Self> {
        Arc::new_cyclic(|me| Dir {
            me: me.clone(),
            site,
            parent: None,
            name: Box::default(),
            fd: Mutex::new(Some(Arc::new(fd))),
            node: OnceLock::new(),
            mode_before: OnceLock::new(),
            settled: false,
        })
    }

    /// The directory of this name, if it is there.
    ///
    /// # Errors
    /// `NOTDIR` and `LOOP` if something else has the name; what the system says.
    pub fn open(self: &Arc<Self>, name: Name<'_>) -> Result<Arc<Self>> {
        let parent = self.fd()?;
        let fd = self.site.placer.open_dir(parent.as_fd(), name)?;
        let dir = Arc::new_cyclic(|me| Dir {
            me: me.clone(),
            site: self.site.clone(),
            parent: Some(self.clone()),
            name: name.as_bytes().into(),
            fd: Mutex::new(None),
            node: OnceLock::new(),
            mode_before: OnceLock::new(),
            settled: false,
        });
        dir.keep(Arc::new(fd));
        Ok(dir)
    }

    /// The permissions that a directory in this one is made with: those of its node at once where they cannot be set
    /// later, but always so that we can write in it.
    pub fn first_mode(&self, found: Option<&Found>) -> u32 {
        match found {
            None => 0o755,
            Some(_) if self.site.profile.modes => 0o700,
            Some(found) => self.site.rules.permissions(found.node()) & 0o777 | 0o700,
        }
    }

    /// The directory of this name, which is made if it is not there, also in place of something else if that
    /// `gives_way`. Yields whether it was made.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn make(
        self: &Arc<Self>,
        name: Name<'_>,
        mode: u32,
        gives_way: impl Fn(&Stat) -> bool,
    ) -> Result<(Arc<Self>, bool)> {
        let parent = self.fd()?;
        let placer = &self.site.placer;
        let made = match placer.make_dir(parent.as_fd(), name, mode) {
            Ok(()) => true,
            Err(Errno::EXIST) => {
                let there = placer.stat(parent.as_fd(), name)?;
                match there.filter(|stat| kind(stat) != NodeKind::Dir && gives_way(stat)) {
                    Some(_) => self.make_instead(parent.as_fd(), name, mode)?,
                    None => false,
                }
            }
            Err(error) => return Err(error),
        };
        let dir = self.open(name)?;
        if !made {
            dir.make_writable();
        }
        Ok((dir, made))
    }

    /// Makes a directory in place of what is none. A directory cannot be renamed onto anything else: so what is there
    /// steps aside, and comes back if no directory can be made.
    fn make_instead(&self, parent: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<bool> {
        let placer = &self.site.placer;
        let aside = self.site.temporary_name();
        let aside = plain(&aside);
        placer.rename(parent, name, aside, false)?;
        if let Err(error) = placer.make_dir(parent, name, mode) {
            placer.rename(parent, aside, name, false)?;
            return Err(error);
        }
        placer.remove(parent, aside)?;
        Ok(true)
    }

    /// Lets ourselves in, if the directory is ours; the attributes are put right at the end.
    fn make_writable(&self) {
        if !self.site.profile.modes {
            return;
        }
        let Ok(fd) = self.fd() else { return };
        let Ok(stat) = self.site.placer.stat_open(fd.as_fd()) else { return };
        let mode = stat.st_mode & 0o7777;
        if mode & 0o700 != 0o700 && self.site.placer.set_mode(fd.as_fd(), mode | 0o700).is_ok() {
            let _ = self.mode_before.set(mode);
        }
    }

    /// The attributes that the directory gets when all is placed in it. The first word counts.
    pub fn describe(&self, node: Found) {
        let _ = self.node.set(node);
    }

    /// What all directories of the target share.
    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }

    /// The open directory.
    ///
    /// # Errors
    /// It was closed meanwhile and cannot be opened again.
    pub fn fd(&self) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = &*locked(&self.fd) {
            return Ok(fd.clone());
        }
        // Open the ancestors from the first one that is open: not by recursion, trees are deep.
        let mut closed = vec![self];
        let mut at = self;
        let mut fd = loop {
            let parent = at.parent.as_deref().expect("the root is always open");
            if let Some(fd) = &*locked(&parent.fd) {
                break fd.clone();
            }
            closed.push(parent);
            at = parent;
        };
        // All on the way are kept, as long as they are not too many: whoever comes from the depth needs them next.
        for dir in closed.into_iter().rev() {
            let name = Name::new(&dir.name).map_err(|_| Errno::INVAL)?;
            fd = Arc::new(self.site.placer.open_dir(fd.as_fd(), name)?);
            dir.keep(fd.clone());
        }
        Ok(fd)
    }

    /// Keeps the open directory, until too many others were opened after it.
    fn keep(&self, fd: Arc<OwnedFd>) {
        if self.me.strong_count() == 0 {
            // It is being settled: whoever asks has it, and nobody asks again.
            return;
        }
        let before = locked(&self.fd).replace(fd);
        if before.is_none() {
            self.site.open.fetch_add(1, Relaxed);
        }
        self.site.keep_few_open(self.me.clone());
    }

    /// Path from the target, beginning with a slash; that of the target itself is empty.
    pub fn path(&self) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(&*at.name);
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path
    }

    /// Path of an entry.
    pub fn path_of(&self, name: &[u8]) -> Vec<u8> {
        [&self.path(), &b"/"[..], name].concat()
    }

    /// Sets the attributes, now that nothing in it changes any more.
    fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        if let Some(found) = self.node.get() {
            match self.fd() {
                Ok(fd) => attributes::set(&self.site, fd.as_fd(), found.node(), || self.path()),
                Err(error) => self.site.refused("opening", &self.path(), error),
            }
        } else if let Some(mode) = self.mode_before.get()
            && let Ok(fd) = self.fd()
        {
            let _ = self.site.placer.set_mode(fd.as_fd(), *mode);
        }
        if locked(&self.fd).take().is_some() && self.parent.is_some() {
            self.site.open.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        self.settle();
        // The parents that nobody else holds, one after the other: not by recursion, trees are deep.
        let mut parent = self.parent.take();
        while let Some(mut dir) = parent.and_then(Arc::into_inner) {
            dir.settle();
            parent = dir.parent.take();
        }
    }
}

impl Site {
    /// Closes the directories that were opened first, if too many are open.
    fn keep_few_open(&self, dir: Weak<Dir>) {
        let mut opened = locked(&self.opened);
        opened.push_back(dir);
        while self.open.load(Relaxed) > self.most_open || opened.len() > 4 * self.most_open {
            let Some(first) = opened.pop_front() else { return };
            let Some(old) = first.upgrade() else { continue };
            if locked(&old.fd).take().is_some() {
                self.open.fetch_sub(1, Relaxed);
            }
            // Perhaps the last holder of the directory, which is settled here: without the lock.
            drop(opened);
            drop(old);
            opened = locked(&self.opened);
        }
    }
}
