//! What every backup shares, whatever its source: the repository, the parent, the counts, the end.
//!
//! A source opens a [`Session`], reads with its `reader`, writes with its `writer`, tells what it does to
//! `meter`, `exceptions` and `counts`, and at last hands over one [`Sealed`] per part. The session alone
//! decides what becomes of exceptions, of a dry run and of a source that did not change.

use std::collections::HashSet;
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cistern_bucket::{Address, Bucket, Key, LedgerSnapshot, Prefixed};
use cistern_repository::{
    Finished, Id, Index, Lock, LockKind, Reader, Repository, Snapshot, Summary, Time, Writer, WriterStats,
};
use jiff::Timestamp;
use tokio::task::JoinHandle;

use crate::parent::{Parent, baseline, choose};
use crate::snapshots::{INCOMPLETE_TAG, PARTIAL_TAG, PARTS_TAG, RUN_TAG, runs};
use crate::{
    Access, Backup, BackupReport, Cx, Error, Exception, ExceptionKind, Exceptions, Meter, Note, OnUnreadable,
    Part, Phase, Progress, Result, Role, Selection, Stored,
};

/// How often [`Progress::status`] is called.
const TICK: Duration = Duration::from_millis(200);

/// How long a request to stop waits for a lock that is being taken.
const LOCK_ON_ITS_WAY: Duration = Duration::from_secs(2);

/// A running backup.
pub(crate) struct Session {
    /// What is wanted.
    pub task: Backup,
    /// The outside world.
    pub cx: Cx,
    /// Where to.
    pub repository: Repository,
    /// Every snapshot of the repository when the run began, ascending by time.
    pub snapshots: Arc<Vec<(Id, Snapshot)>>,
    /// Every blob of the repository when the run began.
    pub index: Arc<Index>,
    /// The way out.
    pub reader: Reader,
    /// The way in; `None` in a dry run, which writes nothing.
    pub writer: Option<Writer>,
    /// Counts for whoever watches.
    pub meter: Arc<Meter>,
    /// What could not be read or kept.
    pub exceptions: Arc<Collector>,
    /// Counts for the report.
    pub counts: Arc<Counts>,
    /// Name of this run, which its parts are tagged with if there are several.
    pub run: String,
    started: Timestamp,
    before: LedgerSnapshot,
    ticker: Ticker,
}

/// Counts of a run that no part owns; updated from any thread.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Objects of the parent that are gone.
    pub deleted: AtomicU64,
    /// Objects that vanished between listing and reading.
    pub vanished: AtomicU64,
    /// Bytes of contents that were read from the source.
    pub bytes_read: AtomicU64,
    /// Things that the source holds and that were left out without anybody having asked for exactly that.
    pub left_out: AtomicU64,
}

impl Counts {
    /// Adds to one of the counts.
    pub fn add(count: &AtomicU64, by: u64) {
        count.fetch_add(by, Relaxed);
    }
}

/// Counts of one part, as a snapshot's summary has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Files that the parent does not hold.
    pub files_new: u64,
    /// Files that differ from the parent's.
    pub files_changed: u64,
    /// Files that are as in the parent.
    pub files_unchanged: u64,
    /// Directories that the parent does not hold.
    pub dirs_new: u64,
    /// Directories that differ from the parent's.
    pub dirs_changed: u64,
    /// Directories that are as in the parent.
    pub dirs_unchanged: u64,
    /// Bytes of contents in the part.
    pub bytes: u64,
}

impl Tally {
    /// Number of files.
    pub fn files(&self) -> u64 {
        self.files_new + self.files_changed + self.files_unchanged
    }

    /// Adds the counts of another part, or of another thread.
    pub fn add(&mut self, other: &Tally) {
        self.files_new += other.files_new;
        self.files_changed += other.files_changed;
        self.files_unchanged += other.files_unchanged;
        self.dirs_new += other.dirs_new;
        self.dirs_changed += other.dirs_changed;
        self.dirs_unchanged += other.dirs_unchanged;
        self.bytes += other.bytes;
    }
}

/// What the snapshots of a run say of it in tags.
#[derive(Clone, Copy, Debug)]
struct Marks {
    /// Objects could not be read, and that was not accepted.
    incomplete: bool,
    /// Something that the source holds may not be there.
    partial: bool,
}

/// A part that is ready to become a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Sealed {
    /// The root tree, stored through the session's writer (of a dry run: what it would be).
    pub tree: Id,
    /// Paths of the snapshot.
    pub paths: Vec<String>,
    /// The snapshot that was compared with.
    pub parent: Option<Id>,
    /// Its root tree.
    pub parent_tree: Option<Id>,
    /// Tags beside those of the task.
    pub tags: Vec<String>,
    /// What the part holds.
    pub tally: Tally,
    /// Bounds and proof, for the report; the snapshot's id is filled in here.
    pub part: Part,
}

impl Session {
    /// Opens the repository, takes a shared lock (but for a dry run), lists the snapshots and then loads the
    /// index: in that order every blob of a listed snapshot is in the index.
    ///
    /// # Errors
    /// Whatever is wrong with the repository; `Cancelled`.
    pub async fn open(task: &Backup, cx: &Cx) -> Result<Session> {
        let started = Timestamp::now();
        let meter = Arc::new(Meter::default());
        let ticker = Ticker::start(meter.clone(), cx.progress.clone());
        let (repository, before) = cx.unless_cancelled(open_repository(&task.repository, cx)).await?;
        let lock = match task.dry_run {
            true => None,
            false => Some(lock(&repository, cx).await?),
        };
        let loading = async {
            let snapshots = repository.snapshots().await?;
            Ok::<_, Error>((Arc::new(snapshots), repository.index().await?))
        };
        let loaded = cx.unless_cancelled(loading).await;
        let (snapshots, index) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                if let Some(lock) = lock {
                    lock.release().await;
                }
                return Err(error);
            }
        };
        let reader = repository.reader(index.clone());
        let writer = lock.map(|lock| repository.writer(index.clone(), lock));
        meter.enter(Phase::Planning);
        Ok(Session {
            task: task.clone(),
            exceptions: Arc::new(Collector::new(cx.progress.clone(), meter.clone())),
            cx: cx.clone(),
            repository,
            snapshots,
            index,
            reader,
            writer,
            meter,
            counts: Arc::default(),
            run: Id::random()?.to_string()[..16].to_owned(),
            started,
            before,
            ticker,
        })
    }

    /// The run to compare with: the task's explicit parent, else the newest of the same `root` path (rules.md 1.9);
    /// none if the task says `force`.
    ///
    /// # Errors
    /// The explicit parent does not exist or is ambiguous.
    pub fn parent(&self, root: &str) -> Result<Option<Parent>> {
        let parent = match self.task.force {
            true => None,
            false => {
                let explicit = self.task.parent.as_deref();
                choose(&self.snapshots, explicit, &self.task.host, root, self.until())?
            }
        };
        self.cx.progress.note(Note::Info(match &parent {
            Some(parent) => format!("comparing with snapshot {}", parent.parts[0].0.short()),
            None => "there is no earlier snapshot of this source: everything is read".into(),
        }));
        Ok(parent)
    }

    /// The run that tells how much the source held: not always the parent, and there also if the task says `force`.
    pub fn baseline(&self, root: &str) -> Option<Parent> {
        baseline(&self.snapshots, &self.task.host, root, self.until())
    }

    /// Nothing newer is compared with.
    fn until(&self) -> (i64, u32) {
        self.task.time.map_or((i64::MAX, 0), |time| Time::from(time).instant())
    }

    /// Time of the snapshots.
    pub fn time(&self) -> Time {
        self.task.time.unwrap_or(self.started).into()
    }

    /// Fails if somebody asked to stop.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cx.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Makes the parts durable and visible, and says what was done. `source` is the bucket that was read,
    /// with its ledger as it was before the run.
    ///
    /// Parts that equal their parents in everything are left out if the task says so.
    ///
    /// # Errors
    /// `Incomplete` if objects could not be read and the task does not accept that: the snapshots are
    /// written nevertheless, and are marked.
    pub async fn finish(
        mut self,
        parts: Vec<Sealed>,
        source: Option<(&dyn Bucket, LedgerSnapshot)>,
    ) -> Result<BackupReport> {
        self.meter.enter(Phase::Sealing);
        let unreadable = self.exceptions.unreadable();
        let incomplete = unreadable > 0 && self.task.on_unreadable == OnUnreadable::Fail;
        let marks = Marks {
            incomplete,
            partial: unreadable > 0
                || self.task.selection != Selection::default()
                || self.counts.vanished.load(Relaxed) > 0
                || self.counts.left_out.load(Relaxed) > 0,
        };
        let mut report = self.report(&parts);
        let unchanged = self.task.skip_if_unchanged && self.is_unchanged(&parts, marks);
        if let Some(writer) = self.writer.take() {
            let finished = seal(writer, &self.cx, |stats| match unchanged {
                true => Vec::new(),
                false => self.drafts(&parts, marks, stats),
            });
            let finished = finished.await?;
            report.stored = Stored {
                data_blobs: finished.stats.data_blobs,
                tree_blobs: finished.stats.tree_blobs,
                bytes_added: finished.stats.data_bytes + finished.stats.tree_bytes,
                bytes_stored: finished.stats.data_packed + finished.stats.tree_packed,
                ..report.stored
            };
            report.snapshots = finished.ids.iter().map(ToString::to_string).collect();
        }
        for (i, sealed) in parts.into_iter().enumerate() {
            let snapshot = match sealed.parent {
                Some(parent) if unchanged => parent.to_string(),
                _ => report.snapshots.get(i).cloned().unwrap_or_default(),
            };
            report.parts.push(Part { snapshot, ..sealed.part });
        }
        report.exceptions = self.exceptions.take();
        report.repository_requests = self.repository.bucket().ledger().snapshot().since(&self.before).into();
        if let Some((bucket, before)) = source {
            report.source_requests = bucket.ledger().snapshot().since(&before).into();
        }
        report.ended = Timestamp::now();
        self.meter.enter(Phase::Done);
        self.ticker.stop();
        if !incomplete {
            return Ok(report);
        }
        let why = match unreadable {
            1 => "one object could not be read".to_owned(),
            n => format!("{n} objects could not be read"),
        };
        Err(Error::Incomplete { why, report: Box::new(crate::Report::Backup(report)) })
    }

    /// Stops: nothing is left but packs that no index names.
    pub async fn abort(mut self) {
        self.ticker.stop();
        if let Some(writer) = self.writer.take() {
            writer.abort().await;
        }
    }

    /// Whether a run that succeeded holds the same already, and says the same of it.
    fn is_unchanged(&self, parts: &[Sealed], marks: Marks) -> bool {
        let Some(parent) = parts.iter().find_map(|part| part.parent) else { return false };
        let mut runs = runs(&self.snapshots).into_iter();
        let Some(run) = runs.find(|run| run.parts.iter().any(|(id, _)| *id == parent)) else { return false };
        let says_the_same =
            |snapshot: &Snapshot| snapshot.tags.iter().any(|tag| tag == PARTIAL_TAG) == marks.partial;
        !marks.incomplete
            && run.succeeded()
            && run.parts.len() == parts.len()
            && run.parts.iter().all(|(_, snapshot)| says_the_same(snapshot))
            // Retention goes by the host: another one's snapshot may be gone tomorrow.
            && run.parts.iter().all(|(_, snapshot)| snapshot.hostname == self.task.host)
            && parts.iter().all(|part| part.parent_tree == Some(part.tree))
    }

    fn report(&self, parts: &[Sealed]) -> BackupReport {
        let mut tally = Tally::default();
        for part in parts {
            tally.add(&part.tally);
        }
        BackupReport {
            parent: parts.iter().find_map(|p| p.parent).map(|id| id.to_string()),
            objects_listed: tally.files(),
            bytes_listed: tally.bytes,
            objects_new: tally.files_new,
            objects_changed: tally.files_changed,
            objects_unchanged: tally.files_unchanged,
            objects_deleted: self.counts.deleted.load(Relaxed),
            objects_vanished: self.counts.vanished.load(Relaxed),
            bytes_read: self.counts.bytes_read.load(Relaxed),
            stored: Stored {
                dirs_new: tally.dirs_new,
                dirs_changed: tally.dirs_changed,
                dirs_unchanged: tally.dirs_unchanged,
                ..Stored::default()
            },
            started: self.started,
            ..BackupReport::default()
        }
    }

    /// One snapshot per part. What the run as a whole stored stands in the last one: blobs are shared
    /// between the parts, and readers add summaries up.
    fn drafts(&self, parts: &[Sealed], marks: Marks, stats: &WriterStats) -> Vec<Snapshot> {
        let end = Timestamp::now();
        let draft = |(i, part): (usize, &Sealed)| {
            let mut tags = self.task.tags.clone();
            tags.extend(part.tags.iter().cloned());
            if parts.len() > 1 {
                tags.push(format!("{RUN_TAG}{}", self.run));
                tags.push(format!("{PARTS_TAG}{}", parts.len()));
            }
            if marks.incomplete {
                tags.push(INCOMPLETE_TAG.into());
            }
            if marks.partial {
                tags.push(PARTIAL_TAG.into());
            }
            let mut summary = Summary {
                backup_start: self.started.into(),
                backup_end: end.into(),
                files_new: part.tally.files_new,
                files_changed: part.tally.files_changed,
                files_unmodified: part.tally.files_unchanged,
                dirs_new: part.tally.dirs_new,
                dirs_changed: part.tally.dirs_changed,
                dirs_unmodified: part.tally.dirs_unchanged,
                total_files_processed: part.tally.files(),
                total_bytes_processed: part.tally.bytes,
                ..Summary::default()
            };
            if i + 1 == parts.len() {
                summary.data_blobs = stats.data_blobs;
                summary.tree_blobs = stats.tree_blobs;
                summary.data_added = stats.data_bytes + stats.tree_bytes;
                summary.data_added_packed = stats.data_packed + stats.tree_packed;
            }
            Snapshot {
                parent: part.parent,
                hostname: self.task.host.clone(),
                username: self.cx.identity.username.clone(),
                uid: self.cx.identity.uid,
                gid: self.cx.identity.gid,
                excludes: self.task.selection.exclude.clone(),
                tags,
                program_version: concat!("cistern ", env!("CARGO_PKG_VERSION")).into(),
                summary: Some(summary),
                ..Snapshot::new(self.time(), part.tree, part.paths.clone())
            }
        };
        parts.iter().enumerate().map(draft).collect()
    }
}

/// Ends the writer with these snapshots, or with none if somebody asks to stop before the first is written:
/// later, some of the parts would be there without the others.
///
/// # Errors
/// As [`Writer::finish_with`]; `Cancelled`.
pub(crate) async fn seal(
    writer: Writer,
    cx: &Cx,
    drafts: impl FnOnce(&WriterStats) -> Vec<Snapshot> + Send,
) -> Result<Finished> {
    let handle = writer.clone();
    let sealing = AtomicBool::new(false);
    let finishing = writer.finish_with(|stats| {
        sealing.store(true, Relaxed);
        drafts(stats)
    });
    {
        tokio::pin!(finishing);
        tokio::select! {
            biased;
            () = cx.cancel.cancelled() => if sealing.load(Relaxed) {
                return Ok(finishing.await?);
            },
            finished = &mut finishing => return Ok(finished?),
        }
    }
    handle.abort().await;
    Err(Error::Cancelled)
}

/// Takes a shared lock.
///
/// # Errors
/// As [`lock_as`].
pub(crate) async fn lock(repository: &Repository, cx: &Cx) -> Result<Lock> {
    lock_as(repository, LockKind::Shared, cx).await
}

/// Takes a lock. Whoever asks to stop meanwhile gets a lock that is on its way given back: one that
/// stays behind would keep others out for half an hour.
///
/// # Errors
/// As [`Repository::lock`]; `Cancelled`.
pub async fn lock_as(repository: &Repository, kind: LockKind, cx: &Cx) -> Result<Lock> {
    let (repository, identity, wait) = (repository.clone(), cx.identity.clone(), cx.lock_wait);
    let mut taking = tokio::spawn(async move { repository.lock(kind, &identity, wait).await });
    let broken = |_| Error::Broken("taking the lock panicked".into());
    tokio::select! {
        taken = &mut taking => Ok(taken.map_err(broken)??),
        () = cx.cancel.cancelled() => {
            if let Ok(Ok(Ok(lock))) = tokio::time::timeout(LOCK_ON_ITS_WAY, taking).await {
                lock.release().await;
            }
            Err(Error::Cancelled)
        }
    }
}

/// Opens a repository where its address says, and tells what its bucket had been asked before.
///
/// # Errors
/// As the bucket and the repository say.
pub(crate) async fn open_repository(address: &Address, cx: &Cx) -> Result<(Repository, LedgerSnapshot)> {
    open_repository_as(address, Role::Repository, cx).await
}

/// As [`open_repository`], for a bucket in another role: the source of a copy.
///
/// # Errors
/// As [`open_repository`].
pub(crate) async fn open_repository_as(
    address: &Address,
    role: Role,
    cx: &Cx,
) -> Result<(Repository, LedgerSnapshot)> {
    let bucket = repository_bucket(address, role, &*cx.access).await?;
    let before = bucket.ledger().snapshot();
    let password = cx.access.password(address).await?;
    let repository = Repository::open(bucket, &password, cx.access.options(address)).await?;
    Ok((repository, before))
}

/// The bucket that a repository fills: an address's prefix is the folder that it lies in.
///
/// # Errors
/// As the bucket says.
pub async fn repository_bucket(
    address: &Address,
    role: Role,
    access: &dyn Access,
) -> Result<Arc<dyn Bucket>> {
    let bucket = access.bucket(address, role).await.map_err(cistern_repository::Error::from)?;
    Ok(match address {
        Address::S3 { prefix, .. } if !prefix.is_empty() => {
            Arc::new(Prefixed::new(bucket, folder_of(prefix)))
        }
        _ => bucket,
    })
}

/// What the keys of a repository begin with.
pub(crate) fn folder_of(prefix: &Key) -> Vec<u8> {
    let mut folder = prefix.as_bytes().to_vec();
    if !folder.is_empty() && !folder.ends_with(b"/") {
        folder.push(b'/');
    }
    folder
}

/// Keys of exceptions that are remembered, eight bytes each.
const MOST_TOLD: usize = 1 << 20;

/// Gathers exceptions from all threads, and tells each one at once.
pub(crate) struct Collector {
    exceptions: Mutex<Exceptions>,
    /// Hashes of the keys that exceptions other than lost attributes are about; the first [`MOST_TOLD`].
    told: Mutex<HashSet<u64>>,
    hasher: RandomState,
    progress: Arc<dyn Progress>,
    meter: Arc<Meter>,
}

impl Collector {
    /// An empty one, which tells `progress` and counts in `meter`.
    pub fn new(progress: Arc<dyn Progress>, meter: Arc<Meter>) -> Self {
        Collector {
            exceptions: Mutex::default(),
            told: Mutex::default(),
            hasher: RandomState::new(),
            progress,
            meter,
        }
    }

    /// Adds one. Only the first of each kind are told: a million lines help nobody.
    pub fn add(&self, kind: ExceptionKind, key: impl Display, detail: impl Display) {
        let exception = Exception { kind, key: key.to_string(), detail: detail.to_string() };
        if kind != ExceptionKind::AttributeLost {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.len() < MOST_TOLD {
                told.insert(self.hasher.hash_one(exception.key.as_str()));
            }
        }
        let tell = {
            let mut all = self.exceptions.lock().unwrap_or_else(PoisonError::into_inner);
            let kept = all.first.len();
            all.add(exception.clone());
            all.first.len() > kept
        };
        self.meter.exceptions.fetch_add(1, Relaxed);
        if tell {
            self.progress.note(Note::Exception(exception));
        }
    }

    /// Number of objects that are missing from the snapshot although the source holds them.
    pub fn unreadable(&self) -> u64 {
        use ExceptionKind::{Archived, CustomerKey, Denied, KeepsChanging, Unreadable};
        let all = self.exceptions.lock().unwrap_or_else(PoisonError::into_inner);
        [Archived, CustomerKey, Denied, Unreadable, KeepsChanging].iter().map(|kind| all.count(*kind)).sum()
    }

    /// Whether an exception other than a lost attribute was about this key; `None` if nobody knows any more.
    pub fn has_told(&self, key: impl Display) -> Option<bool> {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let known = told.contains(&self.hasher.hash_one(key.to_string().as_str()));
        (known || told.len() < MOST_TOLD).then_some(known)
    }

    /// Number of exceptions of one kind so far.
    pub fn count(&self, kind: ExceptionKind) -> u64 {
        self.exceptions.lock().unwrap_or_else(PoisonError::into_inner).count(kind)
    }

    /// Number of exceptions of all kinds so far.
    pub fn total(&self) -> u64 {
        self.exceptions.lock().unwrap_or_else(PoisonError::into_inner).total()
    }

    /// Hands over what was gathered.
    pub fn take(&self) -> Exceptions {
        std::mem::take(&mut *self.exceptions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Calls [`Progress::status`] until it is dropped.
pub(crate) struct Ticker {
    task: JoinHandle<()>,
    meter: Arc<Meter>,
    progress: Arc<dyn Progress>,
}

impl Ticker {
    pub fn start(meter: Arc<Meter>, progress: Arc<dyn Progress>) -> Self {
        let (m, p) = (meter.clone(), progress.clone());
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(TICK);
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                p.status(&m.status());
            }
        });
        Ticker { task, meter, progress }
    }

    /// Shows the last state and stops.
    pub fn stop(&self) {
        self.task.abort();
        self.progress.status(&self.meter.status());
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.task.abort();
    }
}
