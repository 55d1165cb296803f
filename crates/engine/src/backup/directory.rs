//! Backs up a directory of this machine as restic does: absolute paths, every file's metadata, links as links.
//!
//! The bar is that stock restic, asked to save the same directory into the same repository, finds nothing
//! to add. What restic 0.19.1 does is therefore what this does, down to the order of attributes; where the
//! project's rules say otherwise (files that vanish, sources that shrink) rules.md wins.

mod destination;
mod files;
mod frame;
mod list;
mod previous;
mod read;
mod walk;

use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex};

use cistern_bucket::{Address, Class, Key};
use cistern_repository::node::mode;
use cistern_repository::{BlobKind, Id, Node, NodeKind, Snapshot, Time};
use futures::future::join_all;
use rustix::fs::{CWD, Mode, OFlags, Stat};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::destination::{Destination, Open, Outcome, Place};
use self::frame::Frame;
use self::previous::Previous;
use self::read::{Held, Reading};
use self::walk::{Entry, Job as Work, Walk, Walker, lock};
use crate::backup::guard;
use crate::backup::session::{Counts, Sealed, Session};
use crate::backup::several::{Job, Refused};
use crate::posix::{Accounts, Opener, Style, XattrReader, device, inode, kind, status};
use crate::select::{Select, clean};
use crate::snapshots::Run;
use crate::{Backup, BackupReport, Error, ExceptionKind, Part, Phase, Proof, Result};

/// Most threads that walk: more of them wait for each other more than for the disk.
const MOST_WALKERS: usize = 8;

/// Backs up the directory (or the one file) at `path`, which the jobs have in common.
pub(super) async fn run(jobs: &[Job], path: &Path) -> Vec<Result<BackupReport>> {
    let all = |error: Error| error.for_all(jobs.len()).into_iter().map(Err).collect();
    let task = &jobs[0].task;
    let (source, select) = match (Source::find(task, path), Select::new(&task.selection)) {
        (Ok(source), Ok(select)) => (source, select),
        (Err(error), _) | (_, Err(error)) => return all(error),
    };
    let reading = Reading {
        opener: Opener::new(),
        style: Style {
            accounts: Accounts::load(),
            with_atime: task.with_atime,
            without_inode: task.ignore_inode || task.mount,
            of_bucket: task.mount,
        },
        pool: Arc::default(),
    };
    let opened = join_all(jobs.iter().map(|job| Opened::open(job, &source, &reading.style))).await;
    let (opened, refused) = Refused::sift(opened);
    refused.merge(save(source, reading, select, opened).await)
}

/// What is backed up, and where it goes in the snapshot.
struct Source {
    /// Absolute, without `.` and `..`.
    path: PathBuf,
    /// Its own status, not that of what it may point at.
    stat: Stat,
    /// The names on the way from the snapshot's root to the source, its own one last.
    names: Vec<Box<[u8]>>,
    /// The directories of this machine that the names but the last stand for; none where the task names the
    /// root.
    above: Vec<Option<PathBuf>>,
}

impl Source {
    fn find(task: &Backup, path: &Path) -> Result<Source> {
        let failed = |source| Error::File { doing: "reading", path: shown(path), source };
        let absolute = std::path::absolute(path).map_err(failed)?;
        let path = PathBuf::from(std::ffi::OsString::from_vec(clean(absolute.as_os_str().as_bytes())));
        let stat = status(CWD, path.as_os_str().as_bytes()).map_err(|source| Error::File {
            doing: "reading",
            path: shown(&path),
            source,
        })?;
        let in_snapshot = match &task.root {
            Some(root) if !root.starts_with('/') => {
                return Err(Error::Invalid(format!("the root '{root}' does not begin with a slash")));
            }
            Some(root) => clean(root.as_bytes()),
            None => path.as_os_str().as_bytes().to_vec(),
        };
        let names: Vec<Box<[u8]>> =
            in_snapshot.split(|b| *b == b'/').filter(|name| !name.is_empty()).map(Into::into).collect();
        if names.is_empty() && kind(&stat) != NodeKind::Dir {
            return Err(Error::Invalid("only a directory can be the root of a snapshot".into()));
        }
        let mut above = Vec::new();
        for depth in 1..names.len() {
            above.push(task.root.is_none().then(|| {
                let names: Vec<&[u8]> = names[..depth].iter().map(|name| &**name).collect();
                PathBuf::from(std::ffi::OsString::from_vec([b"/", &*names.join(&b'/')].concat()))
            }));
        }
        Ok(Source { path, stat, names, above })
    }

    /// The path of the snapshot.
    fn root(&self) -> String {
        let names: Vec<_> = self.names.iter().map(|name| String::from_utf8_lossy(name)).collect();
        format!("/{}", names.join("/"))
    }

    fn is_directory(&self) -> bool {
        kind(&self.stat) == NodeKind::Dir
    }
}

fn shown(path: &Path) -> String {
    Key::new(path.as_os_str().as_bytes()).to_string()
}

/// A repository that takes part.
struct Opened {
    session: Session,
    /// The run to compare with.
    run: Option<Run>,
    /// The run that tells how much the source held.
    baseline: Option<Run>,
    /// The directory above the source.
    above: Arc<Frame>,
    /// What the parent has of the source itself.
    previous: Option<Box<Node>>,
    /// Device and inode of what must not be backed up: the repository itself, its cache.
    skip: Vec<(u64, u64)>,
}

impl Opened {
    async fn open(Job { task, cx }: &Job, source: &Source, style: &Style) -> Result<Opened> {
        let session = Session::open(task, cx).await?;
        match cx.unless_cancelled(Opened::prepare(&session, source, style)).await {
            Ok((run, baseline, above, previous, skip)) => {
                Ok(Opened { session, run, baseline, above, previous, skip })
            }
            Err(error) => {
                session.abort().await;
                Err(error)
            }
        }
    }

    async fn prepare(
        session: &Session,
        source: &Source,
        style: &Style,
    ) -> Result<(Option<Run>, Option<Run>, Arc<Frame>, Option<Box<Node>>, Vec<(u64, u64)>)> {
        let skip = places_of(session);
        if skip.contains(&(device(&source.stat), inode(&source.stat))) {
            return Err(Error::Invalid("the source is the repository itself, or its cache".into()));
        }
        let root = source.root();
        let run = session.parent(&root)?;
        let baseline = session.baseline(&root);
        let parent = run.as_ref().map(|run| &run.parts[0]);
        let previous = previous_nodes(session, source, parent).await;
        let above = frames_above(session, source, style, &previous);
        if let Some(summary) = parent.and_then(|(_, snapshot)| snapshot.summary.as_ref()) {
            session.meter.objects_total.store(summary.total_files_processed, Relaxed);
            session.meter.bytes_total.store(summary.total_bytes_processed, Relaxed);
        }
        session.meter.enter(Phase::Copying);
        Ok((run, baseline, above, previous.into_iter().next_back().flatten(), skip))
    }

    fn parent(&self) -> Option<&(Id, Snapshot)> {
        self.run.as_ref().map(|run| &run.parts[0])
    }

    /// Makes visible what the walk found, unless something is wrong.
    async fn finish(self, source: &Source, outcome: Result<Outcome>) -> Result<BackupReport> {
        let sealed = match outcome {
            Ok(outcome) => self.seal(source, outcome).await,
            Err(error) => Err(error),
        };
        match sealed {
            Ok(sealed) => self.session.finish(vec![sealed], None).await,
            Err(error) => {
                self.session.abort().await;
                Err(error)
            }
        }
    }

    /// Says what the snapshot is to hold.
    async fn seal(&self, source: &Source, outcome: Outcome) -> Result<Sealed> {
        let session = &self.session;
        session.meter.totals_final();
        let tree = outcome.root.ok_or_else(|| Error::Broken("the walk ended without a root".into()))?;
        let name = shown(&source.path);
        let known = files_in(session, source, self.run.as_ref(), Some(&outcome)).await?;
        let before = match self.baseline == self.run {
            true => known,
            false => files_in(session, source, self.baseline.as_ref(), None).await?,
        };
        let empty = source.is_directory() && outcome.entries == 0;
        guard::check(&session.task, &name, before, [], outcome.listed, empty)?;
        if let Some(detail) = guard::too_many_vanished(&session.counts, outcome.listed) {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, detail);
            return Err(Error::File { doing: "reading", path: name, source });
        }
        Counts::add(&session.counts.deleted, known.saturating_sub(outcome.matched));
        let proof = Proof { keys: outcome.listed, bytes: outcome.tally.bytes, ..Proof::default() };
        Ok(Sealed {
            tree,
            paths: vec![source.root()],
            parent: self.parent().map(|(id, _)| *id),
            parent_tree: self.parent().map(|(_, snapshot)| snapshot.tree),
            tags: Vec::new(),
            tally: outcome.tally,
            part: Part { proof, ..Part::default() },
        })
    }
}

/// Walks the source once for all of these repositories, and ends each of them.
async fn save(
    source: Source,
    reading: Reading,
    select: Select,
    opened: Vec<Opened>,
) -> Vec<Result<BackupReport>> {
    let outcomes = match prepare(&source, reading, select, &opened) {
        Ok(walk) => work(&source, walk, &opened).await,
        Err(error) => error.for_all(opened.len()).into_iter().map(Err).collect(),
    };
    join_all(opened.into_iter().zip(outcomes).map(|(one, outcome)| one.finish(&source, outcome))).await
}

/// The directories of this machine that a repository and its cache lie in.
fn places_of(session: &Session) -> Vec<(u64, u64)> {
    let mut places = Vec::new();
    if let Address::Directory(path) = &session.task.repository {
        places.push(path.clone());
    }
    places.extend(session.repository.options().cache.clone());
    let stats = places.iter().filter_map(|path| rustix::fs::stat(path).ok());
    stats.map(|stat| (device(&stat), inode(&stat))).collect()
}

/// The parent snapshot's nodes of the names on the way to the source, as far as it has them.
async fn previous_nodes(
    session: &Session,
    source: &Source,
    parent: Option<&(Id, Snapshot)>,
) -> Vec<Option<Box<Node>>> {
    let mut tree = parent.map(|(_, snapshot)| snapshot.tree);
    if source.names.is_empty() {
        // The source's tree is the snapshot's.
        let node = tree.map(|tree| Box::new(Node { subtree: Some(tree), ..Node::default() }));
        return vec![node];
    }
    let mut nodes = Vec::new();
    for name in &source.names {
        let mut found = None;
        if let Some(id) = tree.take() {
            let blob = session.reader.blob(BlobKind::Tree, &id).await;
            let node = blob.and_then(Previous::new).and_then(|mut previous| previous.find(name));
            match node {
                Ok(node) => found = node.map(|(node, _)| Box::new(node)),
                Err(error) => session.exceptions.add(
                    ExceptionKind::Damaged,
                    Key::new(&**name),
                    format_args!("the parent snapshot's tree: {error}"),
                ),
            }
        }
        tree = found.as_ref().and_then(|node| node.subtree);
        nodes.push(found);
    }
    nodes
}

/// The directories above the source, each waiting for the next one; yields the last.
fn frames_above(
    session: &Session,
    source: &Source,
    style: &Style,
    previous: &[Option<Box<Node>>],
) -> Arc<Frame> {
    let mut frame = Arc::new(Frame::new(None, Box::default(), 0, None));
    let mut xattrs = XattrReader::new();
    for ((name, path), previous) in source.names.iter().zip(&source.above).zip(previous) {
        let mut lost = |attribute: &str, error: std::io::Error| {
            session.exceptions.add(
                ExceptionKind::Unreadable,
                Key::new(&**name),
                format_args!("its extended attribute {attribute}: {error}"),
            );
        };
        // Above the source, restic follows links: the way to the source is what counts.
        let seen = path.as_ref().and_then(|path| Some((path, rustix::fs::stat(path).ok()?)));
        let node = match seen {
            Some((path, stat)) => {
                let mut node = style.node(name, &stat);
                // What lies above the source may be out of bounds; that is no fault.
                node.xattrs = xattrs.of_path(path, &mut lost).unwrap_or_default();
                node
            }
            None => Node {
                name: name.clone(),
                kind: NodeKind::Dir,
                mode: mode::DIR | 0o755,
                mtime: Time::new(0, 0),
                atime: Time::new(0, 0),
                ctime: Time::new(0, 0),
                ..Node::default()
            },
        };
        frame =
            Arc::new(Frame::new(Some(frame), Box::default(), 0, Some(node)).with_previous(previous.clone()));
    }
    frame
}

/// Everything that the threads of the walk share.
fn prepare(source: &Source, reading: Reading, select: Select, opened: &[Opened]) -> Result<Walk> {
    let held = Arc::default();
    let root = match source.is_directory() {
        true => {
            let fd = reading.opener.source(&source.path, source.stat.st_uid);
            let failed = |error| Error::File { doing: "reading", path: shown(&source.path), source: error };
            Some(Held::new(fd.map_err(failed)?, &held))
        }
        false => None,
    };
    let destination = |one: &Opened| {
        let estimated = one.parent().is_some_and(|(_, snapshot)| snapshot.summary.is_some());
        Destination::of(&one.session, !estimated)
    };
    let task = opened.first().map(|one| &one.session.task);
    Ok(Walk {
        root,
        prefix: match source.path.as_os_str().as_bytes() {
            b"/" => Box::default(),
            path => path.into(),
        },
        only_device: task.is_some_and(|task| task.one_file_system).then(|| device(&source.stat)),
        skip: opened.iter().flat_map(|one| one.skip.clone()).collect(),
        select,
        ignore_inode: task.is_some_and(|task| task.ignore_inode || task.mount),
        reading: Arc::new(reading),
        destinations: opened.iter().map(destination).collect(),
        runtime: Handle::current(),
        held,
        jobs: Mutex::default(),
        wake: Condvar::new(),
        stop: AtomicBool::new(false),
    })
}

/// Where the walk begins.
struct Start {
    path: PathBuf,
    stat: Stat,
    /// Name in the snapshot; `None` is the snapshot's root itself.
    name: Option<Box<[u8]>>,
    places: Vec<Place>,
}

impl Start {
    /// Gives the first job.
    fn begin(self, walker: &mut Walker<'_>, walk: &Walk) -> Result<()> {
        let Start { path, stat, name, places } = self;
        if kind(&stat) == NodeKind::Dir {
            let first =
                Work::Directory { places, path: Box::default(), name, owner: stat.st_uid, passage: false };
            lock(&walk.jobs).push(first);
            return Ok(());
        }
        let failed = |source| Error::File { doing: "reading", path: shown(&path), source };
        let (Some(above), Some(own), Some(name)) = (path.parent(), path.file_name(), name) else {
            return Err(Error::Broken("a file that lies in no directory".into()));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(above, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let directory = Held::new(directory, &walk.held);
        let open = |Place { side, above, previous }: Place| Open {
            found: previous.map(|node| (*node, 0..0)),
            ..Open::new(side, above, Previous::default())
        };
        let mut open: Vec<Open> = places.into_iter().map(open).collect();
        let (name, shown) = (own.as_bytes(), Some(&*name));
        walker.only(Entry { directory: &directory, above: b"", name, shown, stat: &stat }, &mut open)
    }
}

/// Lets threads walk until everything is stored, something fails, or somebody asks to stop.
async fn work(source: &Source, walk: Walk, opened: &[Opened]) -> Vec<Result<Outcome>> {
    /// Threads must not outlive whoever wanted their work.
    struct StopOnDrop(Arc<Walk>);
    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    let all = |error: Error| error.for_all(opened.len()).into_iter().map(Err).collect();
    let Some(Opened { session: first, .. }) = opened.first() else { return Vec::new() };
    let place = |(side, one): (usize, &Opened)| Place {
        side,
        above: one.above.clone(),
        previous: one.previous.clone(),
    };
    let start = Start {
        path: source.path.clone(),
        stat: source.stat,
        name: source.names.last().cloned(),
        places: opened.iter().enumerate().map(place).collect(),
    };
    let walk = Arc::new(walk);
    let walkers = first.repository.options().workers.clamp(1, MOST_WALKERS);
    let guard = StopOnDrop(walk.clone());
    let (done, mut over) = oneshot::channel();
    let threads = move || {
        std::thread::scope(|scope| {
            let mut first = Walker::new(&walk);
            if let Err(error) = start.begin(&mut first, &walk) {
                walk.fail(error);
            }
            for _ in 1..walkers {
                scope.spawn(|| Walker::new(&walk).run());
            }
            first.run();
        });
        let outcomes = walk.destinations.iter().map(Destination::take).collect();
        // The threads' own handles to the writers have to be gone before the writers can end.
        drop(walk);
        drop(done.send(outcomes));
    };
    let thread = std::thread::Builder::new().name("cistern-walk".into()).spawn(threads);
    if let Err(source) = thread {
        return all(Error::File { doing: "starting a thread for", path: "the walk".into(), source });
    }
    let mut cancelled = false;
    let over: Result<Vec<_>, _> = tokio::select! {
        over = &mut over => over,
        () = first.cx.cancel.cancelled() => {
            cancelled = true;
            guard.0.stop();
            // A thread may be waiting for memory that only an upload would give back.
            let writers = opened.iter().filter_map(|one| one.session.writer.clone());
            join_all(writers.map(|writer| writer.abort())).await;
            over.await
        }
    };
    match over {
        Err(_) => all(Error::Broken("a thread of the walk panicked".into())),
        Ok(_) if cancelled => all(Error::Cancelled),
        Ok(outcomes) => outcomes,
    }
}

/// How many files of the source a run holds, over all its parts: as the summaries say, or by looking. `outcome` is that
/// of the comparison with its first part, if there was one.
async fn files_in(
    session: &Session,
    source: &Source,
    run: Option<&Run>,
    outcome: Option<&Outcome>,
) -> Result<u64> {
    let Some(run) = run else { return Ok(0) };
    let mut files = 0;
    for (i, part) in run.parts.iter().enumerate() {
        // A summary counts all that its snapshot was taken of; parts of a run are of one path and a name.
        let alone = part.1.paths.len() == 1 || run.id.is_some();
        let (mut trees, found) = match (&part.1.summary, outcome) {
            (Some(summary), _) if alone => (Vec::new(), summary.total_files_processed),
            (_, Some(outcome)) if i == 0 => {
                (outcome.trees_gone.clone(), outcome.matched + outcome.files_gone)
            }
            _ => match previous_nodes(session, source, Some(part)).await.into_iter().next_back().flatten() {
                Some(node) if node.kind == NodeKind::File => (Vec::new(), 1),
                Some(node) => (node.subtree.into_iter().collect(), 0),
                None => (Vec::new(), 0),
            },
        };
        files += found;
        while let Some(id) = trees.pop() {
            session.check_cancelled()?;
            let previous = session.reader.blob(BlobKind::Tree, &id).await.and_then(Previous::new);
            let counted = previous.and_then(|mut previous| previous.finish().map(|()| previous));
            match counted {
                Ok(mut previous) => {
                    files += previous.files_gone;
                    trees.append(&mut previous.trees_gone);
                }
                // What is damaged cannot be counted; the check of the repository tells of it.
                Err(error) if error.class() == Class::Damaged => (),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(files)
}
