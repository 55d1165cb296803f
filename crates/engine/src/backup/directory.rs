//! Backs up a directory of this machine as restic does: absolute paths, every file's metadata, links as links.
//!
//! The bar is that stock restic, asked to save the same directory into the same repository, finds nothing
//! to add. What restic 0.19.1 does is therefore what this does, down to the order of attributes; where the
//! project's rules say otherwise (files that vanish, sources that shrink) rules.md wins.

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
use rustix::fs::{CWD, Mode, OFlags, Stat};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use self::frame::Frame;
use self::previous::Previous;
use self::read::{Held, Reading};
use self::walk::{Job, Outcome, Walk, Walker, lock};
use crate::backup::guard;
use crate::backup::session::{Counts, Sealed, Session};
use crate::posix::{Accounts, Opener, Style, XattrReader, device, inode, kind, status};
use crate::select::{Select, clean};
use crate::snapshots::Run;
use crate::{Backup, BackupReport, Cx, Error, ExceptionKind, Part, Phase, Proof, Result};

/// Most threads that walk: more of them wait for each other more than for the disk.
const MOST_WALKERS: usize = 8;

/// Backs up the directory (or the one file) at `path`.
///
/// # Errors
/// As [`backup::run`](crate::backup::run).
pub(super) async fn run(task: &Backup, path: &Path, cx: &Cx) -> Result<BackupReport> {
    let source = Source::find(task, path)?;
    let select = Select::new(&task.selection)?;
    let session = Session::open(task, cx).await?;
    match save(&session, source, select).await {
        Ok(sealed) => session.finish(vec![sealed], None).await,
        Err(error) => {
            session.abort().await;
            Err(error)
        }
    }
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

/// Walks the source, and says what its snapshot is to hold.
async fn save(session: &Session, source: Source, select: Select) -> Result<Sealed> {
    let root = source.root();
    let run = session.parent(&root)?;
    let baseline = session.baseline(&root);
    let parent = run.as_ref().map(|run| run.parts[0].clone());
    let reading = Reading {
        opener: Opener::new(),
        style: Style {
            accounts: Accounts::load(),
            with_atime: session.task.with_atime,
            without_inode: session.task.ignore_inode,
        },
        pool: Arc::default(),
    };
    let previous = previous_nodes(session, &source, parent.as_ref()).await;
    let above = frames_above(session, &source, &reading.style, &previous);
    let start = Start { above, previous: previous.into_iter().next_back().flatten(), source };
    let walk = Arc::new(prepare(session, &start.source, reading, select, parent.as_ref())?);
    let start = Arc::new(start);
    session.meter.enter(Phase::Copying);
    let outcome = work(session, walk, start.clone()).await?;
    session.meter.totals_final();
    let tree = outcome.root.ok_or_else(|| Error::Broken("the walk ended without a root".into()))?;
    let name = shown(&start.source.path);
    let known = files_in(session, &start.source, run.as_ref(), Some(&outcome)).await?;
    let before = match baseline == run {
        true => known,
        false => files_in(session, &start.source, baseline.as_ref(), None).await?,
    };
    let empty = start.source.is_directory() && outcome.entries == 0;
    guard::check(&session.task, &name, before, [], outcome.listed, empty)?;
    if let Some(detail) = guard::too_many_vanished(&session.counts, outcome.listed) {
        let source = std::io::Error::new(std::io::ErrorKind::NotFound, detail);
        return Err(Error::File { doing: "reading", path: name, source });
    }
    Counts::add(&session.counts.deleted, known.saturating_sub(outcome.matched));
    let proof = Proof { keys: outcome.listed, bytes: outcome.tally.bytes, ..Proof::default() };
    Ok(Sealed {
        tree,
        paths: vec![root],
        parent: parent.as_ref().map(|(id, _)| *id),
        parent_tree: parent.as_ref().map(|(_, snapshot)| snapshot.tree),
        tags: Vec::new(),
        tally: outcome.tally,
        part: Part { proof, ..Part::default() },
    })
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
fn prepare(
    session: &Session,
    source: &Source,
    reading: Reading,
    select: Select,
    parent: Option<&(Id, Snapshot)>,
) -> Result<Walk> {
    let mut skip = Vec::new();
    if let Address::Directory(path) = &session.task.repository {
        skip.push(path.clone());
    }
    skip.extend(session.repository.options().cache.clone());
    let skip: Vec<(u64, u64)> = skip
        .iter()
        .filter_map(|path| rustix::fs::stat(path).ok())
        .map(|stat| (device(&stat), inode(&stat)))
        .collect();
    if skip.contains(&(device(&source.stat), inode(&source.stat))) {
        return Err(Error::Invalid("the source is the repository itself, or its cache".into()));
    }
    let held = Arc::default();
    let root = match source.is_directory() {
        true => {
            let fd = reading.opener.source(&source.path, source.stat.st_uid);
            let failed = |error| Error::File { doing: "reading", path: shown(&source.path), source: error };
            Some(Held::new(fd.map_err(failed)?, &held))
        }
        false => None,
    };
    let estimate = parent.and_then(|(_, snapshot)| snapshot.summary.as_ref());
    if let Some(summary) = estimate {
        session.meter.objects_total.store(summary.total_files_processed, Relaxed);
        session.meter.bytes_total.store(summary.total_bytes_processed, Relaxed);
    }
    Ok(Walk {
        root,
        prefix: match source.path.as_os_str().as_bytes() {
            b"/" => Box::default(),
            path => path.into(),
        },
        only_device: session.task.one_file_system.then(|| device(&source.stat)),
        skip,
        select,
        ignore_inode: session.task.ignore_inode,
        reading: Arc::new(reading),
        reader: session.reader.clone(),
        index: session.index.clone(),
        writer: session.writer.clone(),
        meter: session.meter.clone(),
        exceptions: session.exceptions.clone(),
        counts: session.counts.clone(),
        count_totals: estimate.is_none(),
        runtime: Handle::current(),
        held,
        jobs: Mutex::default(),
        wake: Condvar::new(),
        stop: AtomicBool::new(false),
        failure: Mutex::default(),
        outcome: Mutex::default(),
    })
}

/// Where the walk begins.
struct Start {
    source: Source,
    above: Arc<Frame>,
    previous: Option<Box<Node>>,
}

impl Start {
    /// Gives the first job.
    fn begin(&self, walker: &mut Walker<'_>, walk: &Walk) -> Result<()> {
        let name = self.source.names.last();
        if self.source.is_directory() {
            lock(&walk.jobs).push(Job::Directory {
                above: self.above.clone(),
                path: Box::default(),
                name: name.cloned(),
                owner: self.source.stat.st_uid,
                passage: false,
                previous: self.previous.clone(),
            });
            return Ok(());
        }
        let path = &self.source.path;
        let failed = |source| Error::File { doing: "reading", path: shown(path), source };
        let (Some(above), Some(own), Some(name)) = (path.parent(), path.file_name(), name) else {
            return Err(Error::Broken("a file that lies in no directory".into()));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory =
            rustix::fs::open(above, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let directory = Held::new(directory, &walk.held);
        walker.only(
            &self.above,
            &directory,
            own.as_bytes(),
            name,
            &self.source.stat,
            self.previous.as_deref(),
        )
    }
}

/// Lets threads walk until everything is stored, something fails, or somebody asks to stop.
async fn work(session: &Session, walk: Arc<Walk>, start: Arc<Start>) -> Result<Outcome> {
    /// Threads must not outlive whoever wanted their work.
    struct StopOnDrop(Arc<Walk>);
    impl Drop for StopOnDrop {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    let walkers = session.repository.options().workers.clamp(1, MOST_WALKERS);
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
        let outcome = std::mem::take(&mut *lock(&walk.outcome));
        let failure = lock(&walk.failure).take();
        // The threads' own handles to the writer have to be gone before the writer can end.
        drop((walk, start));
        drop(done.send((outcome, failure)));
    };
    std::thread::Builder::new().name("cistern-walk".into()).spawn(threads).map_err(|source| Error::File {
        doing: "starting a thread for",
        path: "the walk".into(),
        source,
    })?;
    let mut cancelled = false;
    let over = tokio::select! {
        over = &mut over => over,
        () = session.cx.cancel.cancelled() => {
            cancelled = true;
            guard.0.stop();
            if let Some(writer) = &session.writer {
                // A thread may be waiting for memory that only an upload would give back.
                writer.clone().abort().await;
            }
            over.await
        }
    };
    let (outcome, failure) = over.map_err(|_| Error::Broken("a thread of the walk panicked".into()))?;
    match failure {
        _ if cancelled => Err(Error::Cancelled),
        Some(error) => Err(error),
        None => Ok(outcome),
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
