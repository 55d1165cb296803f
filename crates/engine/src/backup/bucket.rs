//! Backs up a bucket: lists it, compares it with the last run, reads what is new, proves that nothing was missed.
//!
//! ```text
//! listing ──pages──▶ walk ──steps──▶ build ──▶ parts
//!                     │ ▲              │
//!             parent's trees     objects being read (content)
//! ```
//!
//! The walk runs ahead and begins reads; the builder takes them in the order of the keys. What lies between is
//! bounded in objects, requests and bytes.

mod build;
mod directory;
pub(crate) mod listing;
pub(crate) mod past;
mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cistern_bucket::{Address, Bucket, Class, Error as BucketError, ErrorKind, Key, Verb};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::build::{Builder, Needs};
use self::directory::Store;
use self::listing::Listing;
use self::past::{Past, PastPart, ordered};
use self::walk::{Walk, Walked};
use super::content::Objects;
use super::guard;
use super::session::{Sealed, Session, folder_of, repository_bucket};
use crate::fidelity::Layout;
use crate::select::Select;
use crate::snapshots::Run;
use crate::{Backup, BackupReport, Cx, Error, Note, Phase, Result, Role};

/// Objects that the walk may be ahead of the builder.
const AHEAD: usize = 1_024;

/// Backs up the bucket that the task names.
///
/// # Errors
/// Whatever kept it from being done; `Incomplete` carries the report of what was done.
pub(crate) async fn run(task: &Backup, cx: &Cx) -> Result<BackupReport> {
    let Address::S3 { bucket: name, prefix, .. } = &task.source else {
        return Err(Error::Invalid(format!("{} is not a bucket", task.source)));
    };
    let layout = Arc::new(Layout::new(task.root.as_deref(), name, prefix)?);
    let select = Select::new(&task.selection)?;
    let bucket = cx.access.bucket(&task.source, Role::Source).await.map_err(Error::Source)?;
    let before = bucket.ledger().snapshot();
    check_apart(task, cx, &*bucket).await?;
    let session = Session::open(task, cx).await?;
    let copied = cx.unless_cancelled(copy(&session, &bucket, layout, select)).await;
    match copied {
        Ok(parts) => session.finish(parts, Some((&*bucket, before))).await,
        Err(error) => {
            session.abort().await;
            Err(error)
        }
    }
}

async fn copy(
    session: &Session,
    bucket: &Arc<dyn Bucket>,
    layout: Arc<Layout>,
    select: Select,
) -> Result<Vec<Sealed>> {
    let task = &session.task;
    let Address::S3 { bucket: name, prefix, .. } = &task.source else {
        return Err(Error::Invalid(format!("{} is not a bucket", task.source)));
    };
    let (past, before) = earlier(session, &layout).await?;
    let past = Arc::new(past);
    let reader = session.reader.clone();
    let objects = session.writer.as_ref().map(|writer| {
        let tell = (session.exceptions.clone(), session.counts.clone(), session.meter.clone());
        Objects::new(bucket.clone(), writer.clone(), tell, session.cx.concurrency, task.tags_of_objects)
    });
    let walk = Walk {
        listing: Listing::new(
            bucket.clone(),
            layout.prefix(),
            splits(if past.is_empty() { &before.parts } else { &past }, &layout),
        ),
        past: Past::new(reader, past.clone()),
        ranges: before.parts.iter().map(|part| part.bounds.clone()).collect(),
        range: 0,
        layout: layout.clone(),
        select,
        objects,
        meter: session.meter.clone(),
    };
    let builder = Builder::new(Needs {
        bucket: bucket.clone(),
        layout,
        source: (name.clone(), prefix.clone()),
        store: Store { writer: session.writer.clone() },
        past: past.clone(),
        part_keys: task.part_keys as usize,
        exceptions: session.exceptions.clone(),
        counts: session.counts.clone(),
        meter: session.meter.clone(),
    });
    session.meter.enter(Phase::Copying);
    let (sender, steps) = mpsc::channel(AHEAD);
    let builder = AbortOnDropHandle::new(tokio::spawn(builder.run(steps)));
    // The walk's error is the cause where both fail: it ends the steps. The builder's ends the walk without one.
    let walked = walk.run(sender).await?;
    let parts = super::content::join(builder.await).flatten()?;
    check(session, &**bucket, &past, &before, &walked)?;
    Ok(parts)
}

/// What the source held when the last good run saw it.
struct Before {
    /// Objects.
    keys: u64,
    /// The run's parts in the order of their ranges; none if nobody can tell the ranges.
    parts: Vec<PastPart>,
}

/// The parts of the run to compare with, in the order of their ranges, and what the source is measured by.
async fn earlier(session: &Session, layout: &Layout) -> Result<(Vec<PastPart>, Before)> {
    let tell = |note: &str| session.cx.progress.note(Note::Info(note.into()));
    let parent = session.parent(layout.path())?;
    let mut parts = Vec::new();
    if let Some(run) = &parent {
        let (opened, whole) = open(session, run, layout).await?;
        parts = opened;
        if !whole {
            tell("the upper directories of the earlier run are damaged: everything is read");
        }
    }
    let baseline = session.baseline(layout.path());
    let measured = match &baseline {
        Some(run) if Some(run) != parent.as_ref() => open(session, run, layout).await?.0,
        Some(_) => parts.clone(),
        None => Vec::new(),
    };
    let keys = measured.iter().filter_map(PastPart::keys).sum();
    let before = Before { keys, parts: ordered(measured).unwrap_or_default() };
    if parts.iter().any(|part| part.root.is_none() && part.chain.is_empty()) {
        // Damaged, or without our root: nothing in it can be compared with.
        return Ok((Vec::new(), before));
    }
    let past = ordered(parts).unwrap_or_else(|| {
        tell("the parts of the earlier run overlap: everything is read");
        Vec::new()
    });
    Ok((past, before))
}

/// The parts of a run, and whether all of them could be opened.
async fn open(session: &Session, run: &Run, layout: &Layout) -> Result<(Vec<PastPart>, bool)> {
    let (mut parts, mut whole) = (Vec::with_capacity(run.parts.len()), true);
    for (id, snapshot) in &run.parts {
        parts.push(match PastPart::open(&session.reader, *id, snapshot, layout).await {
            Ok(part) => part,
            Err(error) if error.class() == Class::Damaged => {
                whole = false;
                PastPart::unopened(*id, snapshot)
            }
            Err(error) => return Err(error),
        });
    }
    Ok((parts, whole))
}

/// Keys that cut the listing into ranges: those that the parent's parts know.
pub(crate) fn splits(parts: &[PastPart], layout: &Layout) -> Vec<Key> {
    let mut splits = Vec::new();
    for part in parts {
        let within = part.info.iter().flat_map(|info| &info.splits);
        splits.extend(within.chain(&part.bounds.until).map(|below| layout.full(below.as_bytes())));
    }
    splits
}

/// Judges a walk that came to its end, before anything is made visible.
fn check(
    session: &Session,
    bucket: &dyn Bucket,
    past: &[PastPart],
    before: &Before,
    walked: &Walked,
) -> Result<()> {
    if walked.damaged > 0 {
        let note = format!("{} directories of the earlier run are damaged: read again", walked.damaged);
        session.cx.progress.note(Note::Info(note));
    }
    let ranges = before.parts.iter().map(|part| part.keys().unwrap_or(0)).zip(walked.in_part.iter().copied());
    let now = walked.listed;
    guard::check(&session.task, bucket.name(), before.keys, ranges, now, now == 0)?;
    if let Some(detail) = guard::too_many_vanished(&session.counts, walked.listed) {
        let error = BucketError::new(ErrorKind::NoSuchKey, Verb::Get, bucket.name());
        return Err(Error::Source(error.detail(detail)));
    }
    let files: u64 = past.iter().filter_map(|part| part.files.or(part.keys())).sum();
    session.counts.deleted.store(files.saturating_sub(walked.known), Relaxed);
    Ok(())
}

/// Refuses to back up the very repository that is written: each run would add what the last has written.
///
/// # Errors
/// `Invalid`; what the buckets say.
async fn check_apart(task: &Backup, cx: &Cx, source: &dyn Bucket) -> Result<()> {
    let (
        Address::S3 { endpoint: here, bucket, prefix },
        Address::S3 { endpoint: there, bucket: other, prefix: folder },
    ) = (&task.source, &task.repository)
    else {
        return Ok(());
    };
    let (prefix, folder) = (prefix.as_bytes(), folder_of(folder));
    if bucket != other || !(folder.starts_with(prefix) || prefix.starts_with(&folder)) {
        return Ok(());
    }
    let same = match (here, there) {
        (Some(here), Some(there)) if here == there => true,
        // Servers have several names: the config tells whether it is the same place, for it is unlike any other.
        _ => {
            let repository = repository_bucket(&task.repository, Role::Repository, &*cx.access).await?;
            let seen = source.head(&Key::new([&folder[..], b"config"].concat())).await;
            match (seen, repository.head(&Key::from("config")).await) {
                (Ok((here, _)), Ok((there, _))) => {
                    (here.size, &here.revision, here.modified)
                        == (there.size, &there.revision, there.modified)
                }
                _ => false,
            }
        }
    };
    match same {
        true => Err(Error::Invalid(format!(
            "the repository {} and the source {} lie within each other: a backup would contain itself; \
             choose another prefix or bucket for the repository",
            task.repository, task.source
        ))),
        false => Ok(()),
    }
}
