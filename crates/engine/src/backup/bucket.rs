//! Backs up a bucket: lists it, compares it with the last run, reads what is new, proves that nothing was missed.
//!
//! ```text
//! listing ──pages──▶ walk ──steps──▶ build ──▶ parts
//!                     │ ▲              │
//!             parent's trees     objects being read (content)
//! ```
//!
//! The walk runs ahead and begins reads; the builder takes them in the order of the keys. What lies between is
//! bounded in objects, requests and bytes. Where one run goes into several repositories, there is one listing, one walk
//! and one read of an object, and for each repository its own parent, builder and end.

mod build;
mod directory;
pub(crate) mod listing;
pub(crate) mod past;
mod walk;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cistern_bucket::{Address, Bucket, Class, Error as BucketError, ErrorKind, Key, LedgerSnapshot, Verb};
use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use self::build::{Builder, Needs};
use self::directory::Store;
use self::listing::Listing;
use self::past::{Past, PastPart, ordered};
use self::walk::{Destination, Step, Walk, Walked};
use super::content::{Objects, Sink};
use super::guard;
use super::session::{Sealed, Session, folder_of, repository_bucket};
use super::several::{Job, Refused};
use crate::fidelity::Layout;
use crate::select::Select;
use crate::snapshots::Run;
use crate::{Backup, BackupReport, Cx, Error, Note, Phase, Result, Role};

/// Objects that the walk may be ahead of the builder.
const AHEAD: usize = 1_024;

/// Backs up the bucket that the jobs name, which they have in common.
pub(super) async fn run(jobs: &[Job]) -> Vec<Result<BackupReport>> {
    let source = match Source::find(&jobs[0]).await {
        Ok(source) => source,
        Err(error) => return error.for_all(jobs.len()).into_iter().map(Err).collect(),
    };
    let opened = join_all(jobs.iter().map(|job| Opened::open(job, &source))).await;
    let (opened, refused) = Refused::sift(opened);
    refused.merge(copy(source, opened).await)
}

/// What is read.
struct Source {
    bucket: Arc<dyn Bucket>,
    /// What had been asked of it before.
    before: LedgerSnapshot,
    name: String,
    prefix: Key,
    layout: Arc<Layout>,
    select: Select,
}

impl Source {
    async fn find(Job { task, cx }: &Job) -> Result<Source> {
        let Address::S3 { bucket: name, prefix, .. } = &task.source else {
            return Err(Error::Invalid(format!("{} is not a bucket", task.source)));
        };
        let layout = Arc::new(Layout::new(task.root.as_deref(), name, prefix)?);
        let select = Select::new(&task.selection)?;
        let bucket = cx.access.bucket(&task.source, Role::Source).await.map_err(Error::Source)?;
        let before = bucket.ledger().snapshot();
        Ok(Source { bucket, before, name: name.clone(), prefix: prefix.clone(), layout, select })
    }
}

/// A repository that takes part.
struct Opened {
    session: Session,
    /// The parts of the run to compare with.
    past: Arc<Vec<PastPart>>,
    before: Before,
}

impl Opened {
    async fn open(Job { task, cx }: &Job, source: &Source) -> Result<Opened> {
        check_apart(task, cx, &*source.bucket).await?;
        let session = Session::open(task, cx).await?;
        match cx.unless_cancelled(earlier(&session, &source.layout)).await {
            Ok((past, before)) => Ok(Opened { session, past: Arc::new(past), before }),
            Err(error) => {
                session.abort().await;
                Err(error)
            }
        }
    }

    /// Where its parts were cut, and those of the last good run.
    fn splits(&self, layout: &Layout) -> Vec<Key> {
        splits(if self.past.is_empty() { &self.before.parts } else { &self.past }, layout)
    }

    /// Builds the trees of what the walk finds, and makes them visible unless something is wrong.
    async fn finish(
        self,
        source: &Source,
        steps: mpsc::Receiver<Step>,
        verdict: oneshot::Receiver<Result<Walked>>,
    ) -> Result<BackupReport> {
        let Opened { session, past, before } = self;
        let building = async {
            let (walked, parts) = build(&session, source, &past, steps, verdict).await?;
            check(&session, &*source.bucket, &past, &before, &walked)?;
            Ok::<_, Error>(parts)
        };
        match session.cx.unless_cancelled(building).await {
            Ok(parts) => session.finish(parts, Some((&*source.bucket, source.before))).await,
            Err(error) => {
                session.abort().await;
                Err(error)
            }
        }
    }
}

/// Lists and reads the source once, for all of these repositories.
async fn copy(source: Source, opened: Vec<Opened>) -> Vec<Result<BackupReport>> {
    let Some(first) = opened.first() else { return Vec::new() };
    // All of them list the whole: where it is cut is a matter of speed alone.
    let splits = opened.iter().map(|one| one.splits(&source.layout)).max_by_key(Vec::len);
    let sinks: Vec<Sink> = opened.iter().filter_map(|one| Sink::of(&one.session)).collect();
    let objects = (!sinks.is_empty()).then(|| {
        let (concurrency, tags) = (first.session.cx.concurrency, first.session.task.tags_of_objects);
        Objects::new(source.bucket.clone(), sinks, concurrency, tags)
    });
    let mut destinations = Vec::new();
    let mut finishing = Vec::new();
    for one in opened {
        let (steps, receiver) = mpsc::channel(AHEAD);
        let (verdict, heard) = oneshot::channel();
        let ranges: Vec<_> = one.before.parts.iter().map(|part| part.bounds.clone()).collect();
        destinations.push(Some(Destination {
            past: Past::new(one.session.reader.clone(), one.past.clone()),
            walked: Walked { in_part: vec![0; ranges.len()], ..Walked::default() },
            ranges,
            range: 0,
            meter: one.session.meter.clone(),
            steps,
            verdict,
        }));
        one.session.meter.enter(Phase::Copying);
        finishing.push(one.finish(&source, receiver, heard));
    }
    let walk = Walk {
        listing: Listing::new(source.bucket.clone(), source.layout.prefix(), splits.unwrap_or_default()),
        layout: source.layout.clone(),
        select: source.select.clone(),
        objects,
        destinations,
    };
    // It ends with the last of those who want to know what it finds.
    let _walking = AbortOnDropHandle::new(tokio::spawn(walk.run()));
    join_all(finishing).await
}

/// Takes the steps of the walk to their end; yields what the walk knows, and the parts.
async fn build(
    session: &Session,
    source: &Source,
    past: &Arc<Vec<PastPart>>,
    steps: mpsc::Receiver<Step>,
    mut verdict: oneshot::Receiver<Result<Walked>>,
) -> Result<(Walked, Vec<Sealed>)> {
    let builder = Builder::new(Needs {
        bucket: source.bucket.clone(),
        layout: source.layout.clone(),
        source: (source.name.clone(), source.prefix.clone()),
        store: Store { writer: session.writer.clone() },
        past: past.clone(),
        part_keys: session.task.part_keys as usize,
        exceptions: session.exceptions.clone(),
        counts: session.counts.clone(),
        meter: session.meter.clone(),
    });
    let mut building = AbortOnDropHandle::new(tokio::spawn(builder.run(steps)));
    let broken = || Error::Broken("the walk ended without a word".into());
    // The walk's error is the cause where both fail: it ends the steps. The builder's ends the walk without one.
    let built = tokio::select! {
        biased;
        walked = &mut verdict => {
            let walked = walked.map_err(|_| broken())??;
            return Ok((walked, super::content::join(building.await).flatten()?));
        }
        built = &mut building => super::content::join(built).flatten(),
    };
    match verdict.try_recv() {
        Ok(Err(error)) => Err(error),
        Ok(Ok(walked)) => Ok((walked, built?)),
        Err(_) => built.and(Err(broken())),
    }
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
