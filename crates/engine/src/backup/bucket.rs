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

use cistern_bucket::{Address, Bucket, Error as BucketError, ErrorKind, Key, Verb};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use self::build::{Builder, Needs};
use self::directory::Store;
use self::listing::Listing;
use self::past::{Past, PastPart, ordered};
use self::walk::{Walk, Walked, guard};
use super::content::Objects;
use super::session::{Sealed, Session};
use crate::fidelity::Layout;
use crate::parent::choose;
use crate::select::Select;
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
    let session = Session::open(task, cx).await?;
    let copied = tokio::select! {
        copied = copy(&session, &bucket, layout, select) => copied,
        () = cx.cancel.cancelled() => Err(Error::Cancelled),
    };
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
    let known = parent(session, &layout).await?;
    // A run that reads everything again has nothing to compare with, but the guard still has.
    let past = Arc::new(if task.force { Vec::new() } else { known.clone() });
    let reader = session.reader.clone();
    let objects = session.writer.as_ref().map(|writer| {
        let tell = (session.exceptions.clone(), session.counts.clone(), session.meter.clone());
        Objects::new(bucket.clone(), writer.clone(), tell, session.cx.concurrency, task.tags_of_objects)
    });
    let walk = Walk {
        listing: Listing::new(bucket.clone(), layout.prefix(), splits(&known, &layout)),
        past: Past::new(reader, past.clone()),
        ranges: known.iter().map(|part| part.bounds.clone()).collect(),
        range: 0,
        layout: layout.clone(),
        select,
        objects,
        meter: session.meter.clone(),
    };
    let builder = Builder::new(Needs {
        bucket: bucket.clone(),
        layout,
        store: Store { writer: session.writer.clone() },
        past,
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
    check(session, &**bucket, &known, &walked)?;
    Ok(parts)
}

/// The parts of the run to compare with, in the order of their ranges.
async fn parent(session: &Session, layout: &Layout) -> Result<Vec<PastPart>> {
    let run = match &session.task {
        // The guard needs to know the last run even where nothing is compared with it.
        task if task.force => choose(&session.snapshots, None, &task.host, layout.path(), (i64::MAX, 0))?,
        _ => session.parent(layout.path())?,
    };
    let Some(run) = run else { return Ok(Vec::new()) };
    let mut parts = Vec::with_capacity(run.parts.len());
    for (id, snapshot) in &run.parts {
        parts.push(PastPart::open(&session.reader, *id, snapshot, layout).await?);
    }
    Ok(ordered(parts).unwrap_or_else(|| {
        let note = "the parts of the earlier run overlap: everything is read";
        session.cx.progress.note(Note::Info(note.into()));
        Vec::new()
    }))
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
fn check(session: &Session, bucket: &dyn Bucket, known: &[PastPart], walked: &Walked) -> Result<()> {
    let task = &session.task;
    if walked.damaged > 0 {
        let note = format!("{} directories of the earlier run are damaged: read again", walked.damaged);
        session.cx.progress.note(Note::Info(note));
    }
    let before: Vec<Option<u64>> = known.iter().map(PastPart::keys).collect();
    guard(bucket.name(), &before, walked, (task.max_shrink, task.accept_shrink, task.allow_empty))?;
    let vanished = session.counts.vanished.load(Relaxed);
    if vanished * 10 > walked.listed {
        let detail = format!("{vanished} of {} objects vanished while they were read", walked.listed);
        let error = BucketError::new(ErrorKind::NoSuchKey, Verb::Get, bucket.name());
        return Err(Error::Source(error.detail(detail)));
    }
    let files: u64 = known.iter().filter_map(|part| part.files.or(part.keys())).sum();
    if !task.force {
        session.counts.deleted.store(files.saturating_sub(walked.known), Relaxed);
    }
    Ok(())
}
