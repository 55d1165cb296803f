//! Locks, as restic takes and honours them: files that say who works on the repository, refreshed every five
//! minutes, stale after thirty.
//!
//! There is no compare-and-swap in the format. Whoever wants a lock looks at the others', writes a file, waits
//! 200 ms and looks again; of two who do so at once at least one sees the other. What is safe without any lock
//! (all content is named by its hash, nothing is overwritten) does not depend on it; deleting does.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use cistern_bucket::ErrorKind;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::file::FileKind;
use crate::repository::{Identity, Repository};
use crate::store::Inner;
use crate::{Error, Id, Result, Time};

/// How often a lock is written anew.
const REFRESH: Duration = Duration::from_secs(5 * 60);
/// A lock older than this is stale for everybody.
const STALE: SignedDuration = SignedDuration::from_mins(30);
/// A holder that is alive has written its lock anew before that.
const LATE: SignedDuration = SignedDuration::from_mins(10);
/// Whoever could not refresh for so long stops writing, well before others take the lock for stale.
const LOST: Duration = Duration::from_secs(22 * 60 + 30);
/// Between writing a lock and looking whether somebody else has done so at the same time.
const SETTLE: Duration = Duration::from_millis(200);
/// Pause after a failed refresh.
const RETRY: Duration = Duration::from_secs(10);
/// Readings of a lock file that cannot be read, before it counts as a conflict.
const READINGS: u32 = 4;

/// Whether others may hold locks as well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockKind {
    /// For reading and for adding: any number at once.
    Shared,
    /// For deleting: only one, and no shared one.
    Exclusive,
}

/// A lock file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockFile {
    /// When it was written.
    pub time: Time,
    /// Whether it excludes all others.
    #[serde(default)]
    pub exclusive: bool,
    /// The holder's host.
    #[serde(default)]
    pub hostname: String,
    /// The holder.
    #[serde(default)]
    pub username: String,
    /// The holder's process.
    #[serde(default)]
    pub pid: i64,
    /// The holder's user id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// The holder's group id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl LockFile {
    fn new(kind: LockKind, who: &Identity) -> Self {
        LockFile {
            time: Time::from(Timestamp::now()),
            exclusive: kind == LockKind::Exclusive,
            hostname: who.hostname.clone(),
            username: who.username.clone(),
            pid: who.pid.into(),
            uid: who.uid,
            gid: who.gid,
        }
    }

    /// Whether nobody can be holding it any more: it is older than 30 minutes, or was taken on this host by a
    /// process that is not alive.
    pub fn is_stale(&self, now: Timestamp, hostname: &str, is_alive: impl FnOnce(i64) -> bool) -> bool {
        now.duration_since(self.time.timestamp()) > STALE
            || (!hostname.is_empty() && self.hostname == hostname && !is_alive(self.pid))
    }

    fn conflict(&self, id: Id) -> Error {
        Error::Locked {
            holder: format!("{}@{}, process {}", self.username, self.hostname, self.pid).into(),
            exclusive: self.exclusive,
            since: self.time.to_string().into(),
            lock: id,
            abandoned: Timestamp::now().duration_since(self.time.timestamp()) > LATE,
        }
    }
}

/// Whether a process of this machine exists, by `/proc`; without one, every process is taken for alive.
fn is_alive(pid: i64) -> bool {
    let proc = std::path::Path::new("/proc");
    pid > 0 && (!proc.join("self").exists() || proc.join(pid.to_string()).exists())
}

/// A lock that is held. Its own task writes it anew every five minutes; it is given back by
/// [`release`](Self::release), and as well as can be when it is dropped.
pub struct Lock {
    shared: Arc<Shared>,
    task: tokio::task::AbortHandle,
}

struct Shared {
    inner: Arc<Inner>,
    file: LockFile,
    state: Mutex<State>,
    /// True once the lock is lost.
    lost: watch::Sender<bool>,
    /// Somebody has removed the lock, at some time: what was there may have been removed as well.
    doubtful: AtomicBool,
}

struct State {
    /// Files that are ours: one, but for the moment between two.
    ids: Vec<Id>,
    /// When the newest was written: by the clock of the runtime, and by the wall, which goes on while the
    /// machine sleeps.
    refreshed: (Instant, SystemTime),
}

/// Takes a lock, trying for as long as `wait` says.
pub(crate) async fn take(inner: &Arc<Inner>, kind: LockKind, who: &Identity, wait: Duration) -> Result<Lock> {
    let deadline = Instant::now() + wait;
    let mut pause = Duration::from_secs(1);
    loop {
        match try_take(inner, kind, who).await {
            Err(error @ Error::Locked { .. }) if Instant::now() + pause <= deadline => {
                tracing::warn!(%error, "waiting until the repository is free");
                // Two who collide must not do so again.
                sleep(pause.mul_f64(jitter())).await;
                pause = (pause * 2).min(Duration::from_secs(60));
            }
            outcome => return outcome,
        }
    }
}

/// Between 0.5 and 1.
fn jitter() -> f64 {
    let mut byte = [0];
    match crate::crypto::random(&mut byte) {
        Ok(()) => 0.5 + f64::from(byte[0]) / 512.0,
        Err(_) => 1.0,
    }
}

async fn try_take(inner: &Arc<Inner>, kind: LockKind, who: &Identity) -> Result<Lock> {
    check_others(inner, kind, who, None).await?;
    let file = LockFile::new(kind, who);
    let (id, _) = inner.save_json(FileKind::Lock, json(&file)).await?;
    // From here on the file is removed whatever happens, also when the caller is cancelled.
    let state = State { ids: vec![id], refreshed: (Instant::now(), SystemTime::now()) };
    let shared = Arc::new(Shared {
        inner: inner.clone(),
        file,
        state: Mutex::new(state),
        lost: watch::Sender::new(false),
        doubtful: AtomicBool::new(false),
    });
    let task = tokio::spawn(refresh(shared.clone())).abort_handle();
    let lock = Lock { shared, task };
    sleep(SETTLE).await;
    match check_others(inner, kind, who, Some(id)).await {
        Ok(()) => Ok(lock),
        Err(error) => {
            lock.release().await;
            Err(error)
        }
    }
}

fn json(file: &LockFile) -> Vec<u8> {
    serde_json::to_vec(file).expect("a lock has string keys only")
}

/// Fails if somebody holds a lock that conflicts. Stale ones are removed.
async fn check_others(inner: &Arc<Inner>, kind: LockKind, who: &Identity, mine: Option<Id>) -> Result<()> {
    for (id, _) in inner.list(FileKind::Lock).await? {
        if Some(id) == mine {
            continue;
        }
        let other = match read(inner, &id).await {
            Ok(Some(other)) => other,
            Ok(None) => continue,
            Err(Error::Damaged { detail, .. } | Error::BadParameter { detail, .. }) => {
                return Err(unreadable(id, &detail));
            }
            Err(error) => return Err(error),
        };
        if other.is_stale(Timestamp::now(), &who.hostname, is_alive) {
            tracing::info!(lock = %id, holder = %other.hostname, pid = other.pid, "removing a stale lock");
            inner.remove(FileKind::Lock, &id).await?;
        } else if other.exclusive || kind == LockKind::Exclusive {
            return Err(other.conflict(id));
        }
    }
    Ok(())
}

/// A lock that cannot be read is taken for an exclusive one.
fn unreadable(id: Id, detail: &str) -> Error {
    Error::Locked {
        holder: format!("somebody whose lock cannot be read ({detail})").into(),
        exclusive: true,
        since: "an unknown time".into(),
        lock: id,
        abandoned: true,
    }
}

/// A lock file; none if it is gone. That it cannot be read is [`Error::Damaged`] or [`Error::BadParameter`].
async fn read(inner: &Arc<Inner>, id: &Id) -> Result<Option<LockFile>> {
    let mut reading = 1;
    loop {
        let outcome = inner.load_json(FileKind::Lock, id).await.and_then(|json| {
            serde_json::from_slice(&json)
                .map_err(|error| Error::damaged("lock", error.to_string()).named(*id))
        });
        match outcome {
            Ok(file) => return Ok(Some(file)),
            Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchKey => return Ok(None),
            // It may be about to appear completely.
            Err(Error::Damaged { .. } | Error::BadParameter { .. }) if reading < READINGS => {
                reading += 1;
                sleep(SETTLE).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A lock that lies in the repository, whoever holds it.
#[derive(Debug)]
pub struct HeldLock {
    /// The name of its file.
    pub id: Id,
    /// What the file holds, or why it cannot be read.
    pub file: Result<LockFile>,
    /// Whether nobody can be holding it any more. A file that cannot be read is never stale.
    pub is_stale: bool,
}

impl Repository {
    /// All locks, by id; `who` asks, because locks of dead processes of the same host are stale. A file that cannot
    /// be understood is listed with its error.
    ///
    /// # Errors
    /// What the bucket says.
    pub async fn locks(&self, who: &Identity) -> Result<Vec<HeldLock>> {
        let inner = self.inner();
        let files = inner.list(FileKind::Lock).await?;
        let mut reads = futures::stream::iter(files)
            .map(|(id, _)| async move { (id, read(inner, &id).await) })
            .buffered(inner.options.connections);
        let mut locks = Vec::new();
        while let Some((id, file)) = reads.next().await {
            let file = match file {
                Ok(None) => continue,
                Ok(Some(file)) => Ok(file),
                Err(error @ (Error::Damaged { .. } | Error::BadParameter { .. })) => Err(error),
                Err(error) => return Err(error),
            };
            let is_stale =
                file.as_ref().is_ok_and(|file| file.is_stale(Timestamp::now(), &who.hostname, is_alive));
            locks.push(HeldLock { id, file, is_stale });
        }
        Ok(locks)
    }

    /// Removes a lock, whoever holds it: the caller has seen that it is stale, or was told that nobody is at work.
    /// Only this file goes: a holder that is alive, and has written its lock anew since, keeps it. One that has gone
    /// meanwhile is no error.
    ///
    /// # Errors
    /// What the bucket says.
    pub async fn remove_lock(&self, lock: &HeldLock) -> Result<()> {
        self.inner().remove(FileKind::Lock, &lock.id).await
    }
}

/// Whether a lock file exists.
async fn is_file(inner: &Inner, id: &Id) -> Result<bool> {
    match inner.bucket.head(&FileKind::Lock.key(id)).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Writes the lock anew until it is lost or the task is aborted.
async fn refresh(shared: Arc<Shared>) {
    loop {
        let (refreshed, _) = shared.state().refreshed;
        sleep_until(refreshed + REFRESH).await;
        while let Err(error) = shared.renew().await {
            tracing::warn!(%error, "the lock on the repository could not be refreshed");
            if shared.age() >= LOST {
                shared.lost.send_replace(true);
                return;
            }
            sleep_until(Instant::now() + RETRY).await;
        }
        if shared.age() >= LOST {
            shared.lost.send_replace(true);
            return;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the last refresh, by whichever clock says more.
    fn age(&self) -> Duration {
        let (instant, wall) = self.state().refreshed;
        instant.elapsed().max(wall.elapsed().unwrap_or_default())
    }

    /// Writes a new file, then deletes the old ones. If the old one is not there any more, there was a time without a
    /// lock, which the new file must not hide.
    async fn renew(&self) -> Result<()> {
        if self.age() >= LOST {
            // Others have taken the lock for stale, or may at any moment.
            return Err(self.loss());
        }
        let begun = (Instant::now(), SystemTime::now());
        let file = LockFile { time: Time::from(Timestamp::now()), ..self.file.clone() };
        let left = LOST.saturating_sub(self.age());
        let late = || Error::LockLost { detail: "the bucket did not answer in time".into() };
        let saving = self.inner.save_json(FileKind::Lock, json(&file));
        let (id, _) = tokio::time::timeout(left, saving).await.map_err(|_| late())??;
        let last = {
            let mut state = self.state();
            state.ids.push(id);
            state.ids.first().copied()
        };
        // Only now: whoever looks from here on sees the new one.
        if let Some(last) = last.filter(|last| *last != id) {
            let looking = is_file(&self.inner, &last);
            let is_there = tokio::time::timeout(left, looking).await.map_err(|_| late())??;
            if !is_there {
                tracing::warn!(lock = %last, "somebody has removed the lock on the repository");
                self.doubtful.store(true, Relaxed);
            }
        }
        let old = {
            let mut state = self.state();
            state.refreshed = begun;
            std::mem::replace(&mut state.ids, vec![id])
        };
        for id in old.into_iter().filter(|old| *old != id) {
            if let Err(error) = self.inner.remove(FileKind::Lock, &id).await {
                tracing::warn!(%error, "an old lock of ours could not be removed");
                self.state().ids.push(id);
            }
        }
        Ok(())
    }

    fn loss(&self) -> Error {
        let minutes = self.age().as_secs() / 60;
        Error::LockLost { detail: format!("it could not be refreshed for {minutes} minutes").into() }
    }
}

impl Lock {
    /// Resolves when the lock could not be refreshed for 22.5 minutes: whoever writes has to stop.
    pub fn lost(&self) -> impl Future<Output = Error> + Send + 'static + use<> {
        let (mut lost, shared) = (self.shared.lost.subscribe(), Arc::downgrade(&self.shared));
        async move {
            let released = lost.wait_for(|lost| *lost).await.is_err();
            if released {
                // It cannot be lost any more.
                std::future::pending::<()>().await;
            }
            let gone = || Error::LockLost { detail: "it could not be refreshed in time".into() };
            shared.upgrade().map_or_else(gone, |shared| shared.loss())
        }
    }

    /// Whether it is still good.
    ///
    /// # Errors
    /// [`Error::LockLost`].
    pub fn check(&self) -> Result<()> {
        if *self.shared.lost.borrow() || self.shared.age() >= LOST { Err(self.shared.loss()) } else { Ok(()) }
    }

    /// Whether the lock file still exists and always did: others may have removed it.
    pub(crate) async fn was_always_there(&self) -> Result<bool> {
        // The second time because it may have been refreshed since we looked at its name.
        for _ in 0..2 {
            let ids = self.shared.state().ids.clone();
            for id in ids {
                if is_file(&self.shared.inner, &id).await? {
                    return Ok(!self.shared.doubtful.load(Relaxed));
                }
            }
        }
        Ok(false)
    }

    /// Whether others may hold locks as well.
    pub(crate) fn kind(&self) -> LockKind {
        if self.shared.file.exclusive { LockKind::Exclusive } else { LockKind::Shared }
    }

    /// Fails for a lock beside which there may be others.
    pub(crate) fn exclusive(&self) -> Result<()> {
        match self.kind() {
            LockKind::Exclusive => Ok(()),
            LockKind::Shared => {
                Err(Error::Broken("what others may need is deleted under an exclusive lock only"))
            }
        }
    }

    /// The time when it was last written, by the clock of the store.
    pub(crate) async fn taken_at(&self) -> Result<Timestamp> {
        // The second time because it may have been refreshed since we looked at its name.
        for _ in 0..2 {
            let id = self.shared.state().ids.last().copied();
            let id = id.ok_or(Error::Broken("a lock was given back while it was used"))?;
            match self.shared.inner.bucket.head(&FileKind::Lock.key(&id)).await {
                Ok((entry, _)) => return Ok(entry.modified),
                Err(error) if error.kind == ErrorKind::NoSuchKey => (),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::LockLost { detail: "somebody has removed it".into() })
    }

    /// That nobody else can have come in between: asked right before something is deleted.
    pub(crate) async fn still_excludes(&self) -> Result<()> {
        self.check()?;
        match self.was_always_there().await? {
            true => Ok(()),
            false => Err(Error::LockLost { detail: "somebody has removed it".into() }),
        }
    }

    /// Gives the lock back. A file that cannot be removed is stale in half an hour.
    pub async fn release(&self) {
        self.task.abort();
        let ids = std::mem::take(&mut self.shared.state().ids);
        remove_all(&self.shared.inner, ids).await;
    }
}

async fn remove_all(inner: &Arc<Inner>, ids: Vec<Id>) {
    for id in ids {
        if let Err(error) = inner.remove(FileKind::Lock, &id).await {
            tracing::warn!(%error, "a lock of ours could not be removed");
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.task.abort();
        let ids = std::mem::take(&mut self.shared.state().ids);
        if !ids.is_empty()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let inner = self.shared.inner.clone();
            runtime.spawn(async move { remove_all(&inner, ids).await });
        }
    }
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lock").field("exclusive", &self.shared.file.exclusive).finish_non_exhaustive()
    }
}
