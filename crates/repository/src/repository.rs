//! A repository that is open: what it is asked for, and the handles that read and write it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Bucket, ErrorKind, ListRequest, PutOptions};
use futures::{Stream, StreamExt, TryStreamExt};
use secrecy::SecretString;

use crate::cache::Cache;
use crate::chunker::Chunker;
use crate::config::Config;
use crate::crypto::MasterKey;
use crate::file::{self, FileKind};
use crate::index::{Index, IndexBuilder, mapped};
use crate::key::{KdfParams, KeyFile};
use crate::keys::key_file;
use crate::pack::{Opener, Sealer};
use crate::polynomial::Polynomial;
use crate::reader::{Buffers, Decoders};
use crate::sha256::Lanes;
use crate::store::{Inner, blocking, fetch, list};
use crate::{Error, Id, Lock, LockKind, Reader, Result, Snapshot, Time, Writer, lock, pack};

/// Most key files that are tried: each costs a good part of a second.
const MAX_KEYS: usize = 64;
/// Most work for all of them, as bytes mixed by scrypt: 64 keys of restic, which take half a second each.
const MAX_WORK: u64 = 32 << 30;

/// Who acts, as locks, keys and snapshots record it. Given by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of this machine; in a cluster it is unique per pod, because locks of dead processes on the same host
    /// are taken for stale by their process id.
    pub hostname: String,
    /// Name of the user.
    pub username: String,
    /// Process id.
    pub pid: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// How blobs are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Data is stored as it is; directories and the index are compressed all the same.
    Off,
    /// zstd's level 3, as restic's `auto`.
    #[default]
    Auto,
    /// Level 1: on text 28 % less CPU time than `Auto` for 15 % more space.
    Fastest,
    /// Level 12.
    Max,
    /// A level of zstd, −7 to 22.
    Level(i32),
}

impl Compression {
    /// zstd's level; none if data is not compressed.
    pub fn level(self) -> Option<i32> {
        match self {
            Compression::Off => None,
            Compression::Auto => Some(3),
            Compression::Fastest => Some(1),
            Compression::Max => Some(12),
            Compression::Level(level) => Some(level),
        }
    }
}

/// How a repository is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for copies of index files, snapshots and packs of directories; none keeps no copies.
    pub cache: Option<PathBuf>,
    /// The key file to try first.
    pub key_hint: Option<Id>,
    /// What a new key costs whoever opens the repository with it.
    pub kdf: KdfParams,
    /// Opens, decompresses and compares every blob that was just sealed, before it counts. On unless switched off.
    pub verify_writes: bool,
    /// How new blobs are compressed.
    pub compression: Compression,
    /// Threads that compute, 1 to 64; as many as the machine offers unless set.
    pub workers: usize,
    /// A pack is closed when it reaches this many bytes: 4 to 128 MiB, 16 MiB unless set.
    pub pack_size: u32,
    /// Bytes for the buffers of a writer, and of a reader: 96 MiB unless set, and 32 MiB more for every worker
    /// above two. A writer fills packs in them, but at least one more than it keeps open (3 to workers + 3), and has a
    /// quarter on top for what waits to be packed; a pack may pass its size by one blob, of 8 MiB at most.
    pub memory: usize,
    /// Requests to the bucket in flight; 8 unless set.
    pub connections: usize,
    /// Stored bytes of all index files above which the index is not held in memory but in a file of the cache that is
    /// mapped; 64 MiB unless set, which is about a million and a half blobs.
    pub index_in_memory: u64,
}

impl Default for Options {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(64));
        Options {
            cache: None,
            key_hint: None,
            kdf: KdfParams::default(),
            verify_writes: true,
            compression: Compression::Auto,
            workers,
            pack_size: pack::DEFAULT_SIZE,
            memory: (96 + 32 * workers.saturating_sub(2)) << 20,
            connections: 8,
            index_in_memory: 64 << 20,
        }
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        let refuse = |what, detail: String| Err(Error::BadParameter { what, detail: detail.into() });
        let mib = |size: u32| size << 20;
        if !(1..=64).contains(&self.workers) {
            return refuse("number of workers", format!("{}, 1 to 64 are possible", self.workers));
        }
        if !(mib(4)..=mib(128)).contains(&self.pack_size) {
            return refuse("pack size", format!("{} bytes, 4 to 128 MiB are possible", self.pack_size));
        }
        if !(1..=1024).contains(&self.connections) {
            return refuse("number of connections", format!("{}, 1 to 1024 are possible", self.connections));
        }
        if self.memory < 16 << 20 {
            return refuse("memory", format!("{} bytes, at least 16 MiB are needed", self.memory));
        }
        Ok(())
    }
}

/// A repository that was opened with a password. Handles are cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

impl Repository {
    /// Creates a repository in `bucket`, which is created if it does not exist, and opens it.
    ///
    /// # Errors
    /// [`Error::AlreadyARepository`] if one is there; what the bucket says.
    pub async fn init(
        bucket: Arc<dyn Bucket>,
        password: &SecretString,
        who: &Identity,
        options: Options,
    ) -> Result<Self> {
        Repository::init_like(bucket, password, who, options, None).await
    }

    /// As [`init`](Self::init), cutting files as another repository does, so that data copied between the two is
    /// recognised.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub async fn init_like(
        bucket: Arc<dyn Bucket>,
        password: &SecretString,
        who: &Identity,
        options: Options,
        polynomial: Option<Polynomial>,
    ) -> Result<Self> {
        options.check()?;
        bucket.create().await?;
        let place = || bucket.name().into();
        let config_key = FileKind::Config.key(&Id::default());
        match bucket.head(&config_key).await {
            Ok(_) => return Err(Error::AlreadyARepository { place: place() }),
            Err(error) if error.kind == ErrorKind::NoSuchKey => (),
            Err(error) => return Err(error.into()),
        }
        let config = Config::create(polynomial)?;
        let (key_id, master, key_json) = match holds(&*bucket, FileKind::Key).await? {
            true => match unfinished(&*bucket, password).await? {
                Some((id, master)) => (id, Arc::new(master), None),
                // The config was lost, or somebody else is creating a repository right now.
                None => return Err(Error::AlreadyARepository { place: place() }),
            },
            false => {
                let (secret, user, host) = (password.clone(), who.username.clone(), who.hostname.clone());
                let kdf = options.kdf;
                let (master, file) = blocking(move || {
                    let (master, now) = (MasterKey::generate()?, Time::from(jiff::Timestamp::now()));
                    let file = KeyFile::create(&master, &secret, kdf, &user, &host, now)?;
                    Ok((master, file))
                })
                .await?;
                let json = file.to_json();
                (Id::of(&json), Arc::new(master), Some(json))
            }
        };
        let sealed =
            file::seal(&mut Sealer::new(master.clone(), None)?, FileKind::Config, &config.to_json())?;
        let create_only = bucket.capabilities().create_only;
        let put = async |key, bytes: Vec<u8>| {
            let sha256 = Some(*Id::of(&bytes).as_bytes());
            let options = PutOptions { create_only, sha256, ..PutOptions::default() };
            bucket.put(&key, &[bytes.into()], &options).await
        };
        let new_key = key_json.is_some();
        if let Some(json) = key_json {
            put(FileKind::Key.key(&key_id), json).await?;
        }
        match put(config_key, sealed.clone()).await {
            Ok(_) => Repository::assemble(bucket, master, key_id, config, options),
            Err(error) if error.kind == ErrorKind::AlreadyExists => {
                let there = fetch(&*bucket, FileKind::Config, &Id::default()).await?;
                if *there == *sealed {
                    // It is ours: the answer to an earlier attempt was lost.
                    return Repository::assemble(bucket, master, key_id, config, options);
                }
                let mut opener = Opener::new(master)?;
                if new_key && file::open(&mut opener, FileKind::Config, &Id::default(), there.into()).is_err()
                {
                    // Somebody else was faster: our key opens nothing.
                    bucket.delete(&FileKind::Key.key(&key_id)).await?;
                }
                Err(Error::AlreadyARepository { place: place() })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the repository in `bucket`. Each of its keys is tried with the password, which takes a good part of a
    /// second of one core; [`Options::key_hint`] says which one is tried first.
    ///
    /// # Errors
    /// [`Error::NotARepository`], [`Error::WrongPassword`], [`Error::UnsupportedVersion`]; what the bucket says.
    pub async fn open(bucket: Arc<dyn Bucket>, password: &SecretString, options: Options) -> Result<Self> {
        options.check()?;
        let none =
            |detail: &str| Error::NotARepository { place: bucket.name().into(), detail: detail.into() };
        let sealed = match fetch(&*bucket, FileKind::Config, &Id::default()).await {
            Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchKey => {
                return Err(match holds(&*bucket, FileKind::Key).await {
                    Ok(true) => none(
                        "it has a key but no config: creating it broke off, or the config was lost; \
                         init with the same password finishes what broke off",
                    ),
                    _ => none("it has no file named config"),
                });
            }
            Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchBucket => {
                return Err(none("the bucket does not exist"));
            }
            other => other?,
        };
        let (key_id, master) = open_master(&*bucket, password, options.key_hint).await?;
        let master = Arc::new(master);
        let mut opener = Opener::new(master.clone())?;
        let json = file::open(&mut opener, FileKind::Config, &Id::default(), sealed.into())?;
        let config = Config::parse(&json)?;
        Repository::assemble(bucket, master, key_id, config, options)
    }

    fn assemble(
        bucket: Arc<dyn Bucket>,
        master: Arc<MasterKey>,
        key_id: Id,
        config: Config,
        options: Options,
    ) -> Result<Self> {
        let chunker = Chunker::new(config.chunker_polynomial);
        let cache = options.cache.as_ref().map(|root| Cache::new(root, &config.id));
        let lanes = Lanes::detect();
        let decoders = Decoders::new(options.workers);
        let buffers = Buffers::default();
        let inner =
            Inner { bucket, master, key_id, config, options, chunker, lanes, cache, decoders, buffers };
        Ok(Repository { inner: Arc::new(inner) })
    }

    /// The same repository through another handle of its bucket, with other credentials or limits, without asking
    /// for the password again.
    ///
    /// # Errors
    /// [`Error::BadParameter`] for options that make no sense.
    pub fn through(&self, bucket: Arc<dyn Bucket>, options: Options) -> Result<Self> {
        options.check()?;
        let Inner { master, key_id, config, .. } = &*self.inner;
        Repository::assemble(bucket, master.clone(), *key_id, config.clone(), options)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// The repository's own id, which never changes.
    pub fn id(&self) -> Id {
        self.inner.config.id
    }

    /// Its config.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// The key file that the password opened: the next [`Options::key_hint`].
    pub fn key_id(&self) -> Id {
        self.inner.key_id
    }

    /// The bucket that it lies in.
    pub fn bucket(&self) -> &Arc<dyn Bucket> {
        &self.inner.bucket
    }

    /// How it is used.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// All snapshots, the oldest first.
    ///
    /// # Errors
    /// What the bucket says; a snapshot that cannot be read is an error that names it.
    pub async fn snapshots(&self) -> Result<Vec<(Id, Snapshot)>> {
        let files = self.inner.list(FileKind::Snapshot).await?;
        self.prune_cache(FileKind::Snapshot, &files).await;
        let loads = self.load_snapshots(files).map(|(id, snapshot)| Ok::<_, Error>((id, snapshot?)));
        let mut snapshots: Vec<(Id, Snapshot)> = loads.try_collect().await?;
        snapshots.sort_by_cached_key(|(id, snapshot)| (snapshot.time.instant(), *id));
        Ok(snapshots)
    }

    /// Snapshots by their files, several at once, each with what reading it said.
    pub(crate) fn load_snapshots(
        &self,
        files: Vec<(Id, u64)>,
    ) -> impl Stream<Item = (Id, Result<Snapshot>)> + Send {
        let loads =
            futures::stream::iter(files).map(move |(id, _)| async move { (id, self.snapshot(&id).await) });
        loads.buffer_unordered(self.inner.options.connections)
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::NoSuchSnapshot`]; [`Error::Damaged`]; what the bucket says.
    pub async fn snapshot(&self, id: &Id) -> Result<Snapshot> {
        match self.inner.load_json(FileKind::Snapshot, id).await {
            Ok(json) => Snapshot::parse(&json).map_err(|error| error.named(*id)),
            Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchKey => {
                Err(Error::NoSuchSnapshot { wanted: id.to_string().into() })
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a snapshot whose tree is in the repository already, under a lock that keeps it there.
    ///
    /// # Errors
    /// [`Error::LockLost`]; what the bucket says.
    pub async fn save_snapshot(&self, snapshot: &Snapshot, lock: &Lock) -> Result<Id> {
        lock.check()?;
        Ok(self.inner.save_json(FileKind::Snapshot, snapshot.to_json()).await?.0)
    }

    /// Removes a snapshot under an exclusive lock. What it names stays until it is pruned.
    ///
    /// # Errors
    /// [`Error::LockLost`]; what the bucket says.
    pub async fn remove_snapshot(&self, id: &Id, lock: &Lock) -> Result<()> {
        lock.check()?;
        self.inner.remove(FileKind::Snapshot, id).await?;
        if let Some(cache) = &self.inner.cache {
            cache.remove(FileKind::Snapshot, id).await;
        }
        Ok(())
    }

    /// The whole index. List snapshots before: then the index names everything that they need.
    ///
    /// # Errors
    /// What the bucket says; an index file that cannot be read is an error that names it.
    pub async fn index(&self) -> Result<Arc<Index>> {
        self.index_with_progress(&|_, _| ()).await
    }

    /// As [`index`](Self::index); `progress` hears how many index files of how many are read.
    pub(crate) async fn index_with_progress(
        &self,
        progress: &(dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Arc<Index>> {
        let mut attempts = 0..3;
        loop {
            match self.load_index(progress).await {
                // A prune without a lock replaced it between the listing and now.
                Err(Error::Bucket(error))
                    if error.kind == ErrorKind::NoSuchKey && attempts.next().is_some() =>
                {
                    tracing::debug!(%error, "an index file has gone while it was read: listing again");
                }
                outcome => return outcome,
            }
        }
    }

    async fn load_index(&self, progress: &(dyn Fn(u64, u64) + Send + Sync)) -> Result<Arc<Index>> {
        let files = self.inner.list(FileKind::Index).await?;
        let mut done = 0;
        let mut each = |_, read| {
            done += 1;
            progress(done, files.len() as u64);
            read
        };
        self.read_index(&files, &mut each).await
    }

    /// The index of these files. `each` is told how reading each of them went, and decides whether to go on.
    pub(crate) async fn read_index(
        &self,
        files: &[(Id, u64)],
        each: &mut (dyn FnMut(Id, Result<()>) -> Result<()> + Send),
    ) -> Result<Arc<Index>> {
        self.prune_cache(FileKind::Index, files).await;
        let stored: u64 = files.iter().map(|(_, length)| length).sum();
        let mut index = None;
        if let Some(cache) = self.inner.cache.as_ref().filter(|_| stored > self.inner.options.index_in_memory)
        {
            index = self.mapped_index(cache, files, each).await?;
        }
        let index = match index {
            Some(index) => index,
            None => self.build_index(IndexBuilder::new(), files, each).await?,
        };
        if let Some(cache) = &self.inner.cache {
            cache.keep(FileKind::Pack, index.packs().iter().copied().collect()).await;
        }
        Ok(index)
    }

    /// The index in a file of the cache, which is made if it is not there; none if the cache cannot take it.
    async fn mapped_index(
        &self,
        cache: &Cache,
        files: &[(Id, u64)],
        each: &mut (dyn FnMut(Id, Result<()>) -> Result<()> + Send),
    ) -> Result<Option<Arc<Index>>> {
        let Some(path) = cache.mapped_index(files).await else { return Ok(None) };
        let (inner, there) = (self.inner.clone(), path.clone());
        let opened = blocking(move || Ok(mapped::open(&there, &mapped::key(&inner.master)).map(Arc::new)));
        if let Some(index) = opened.await? {
            return Ok(Some(index));
        }
        // A file that lacks something must not be taken for the whole index the next time.
        let mut lacking = false;
        let builder = IndexBuilder::mapped(path.clone(), mapped::key(&self.inner.master));
        let mut each = |id, read: Result<()>| {
            lacking |= read.is_err();
            each(id, read)
        };
        let index = match self.build_index(builder, files, &mut each).await {
            Err(Error::Cache(error)) => {
                tracing::warn!(%error, "the index is kept in memory, because the cache cannot take it");
                return Ok(None);
            }
            index => index?,
        };
        if lacking {
            cache.remove_mapped_index(path).await;
        }
        Ok(Some(index))
    }

    async fn build_index(
        &self,
        mut builder: IndexBuilder,
        files: &[(Id, u64)],
        each: &mut (dyn FnMut(Id, Result<()>) -> Result<()> + Send),
    ) -> Result<Arc<Index>> {
        let mut loads = futures::stream::iter(files)
            .map(|(id, _)| async move { (*id, self.inner.load_json(FileKind::Index, id).await) })
            // Each may hold tens of MB of JSON.
            .buffer_unordered(self.inner.options.connections.min(4));
        while let Some((id, json)) = loads.next().await {
            let added = match json {
                Err(error) => Err(error),
                Ok(json) => {
                    let (back, added) = blocking(move || {
                        let added = builder.add_file(&id, &json);
                        Ok((builder, added))
                    })
                    .await?;
                    builder = back;
                    added
                }
            };
            match added {
                Err(error @ (Error::Cache(_) | Error::Cancelled)) => return Err(error),
                read => each(id, read.map_err(|error| error.named(id)))?,
            }
        }
        blocking(move || Ok(Arc::new(builder.finish()?))).await
    }

    async fn prune_cache(&self, kind: FileKind, files: &[(Id, u64)]) {
        if let Some(cache) = &self.inner.cache {
            cache.keep(kind, files.iter().map(|(id, _)| *id).collect()).await;
        }
    }

    /// Takes a lock, as restic does: several may hold a shared one, an exclusive one excludes all. Tries for as
    /// long as `wait` says.
    ///
    /// # Errors
    /// [`Error::Locked`] names the holder; what the bucket says.
    pub async fn lock(&self, kind: LockKind, who: &Identity, wait: Duration) -> Result<Lock> {
        lock::take(&self.inner, kind, who, wait).await
    }

    /// The way out, for blobs that `index` names.
    pub fn reader(&self, index: Arc<Index>) -> Reader {
        Reader::new(self, index)
    }

    /// The way in, under `lock`. Blobs that `index` names are not stored again. Called within tokio's runtime. What
    /// stands against writing ([`Error::ReadOnly`]: parameters of rustic's that we would ignore) is the error of
    /// the writer's first use. The lock is given back when the writer ends, unless the caller keeps a handle of it.
    pub fn writer(&self, index: Arc<Index>, lock: impl Into<Arc<Lock>>) -> Writer {
        Writer::start(self, index, lock.into())
    }
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.id())
            .field("bucket", &self.inner.bucket.name())
            .finish()
    }
}

/// Whether there is any file of a kind.
async fn holds(bucket: &dyn Bucket, kind: FileKind) -> Result<bool> {
    let request = ListRequest { prefix: kind.prefix().into(), limit: Some(1), ..ListRequest::default() };
    Ok(!bucket.list(&request).await?.entries.is_empty())
}

/// The key of a repository whose creation broke off before there was a config, if the password opens it. Where there
/// is anything else, the config was there and is lost: nothing is built upon that.
async fn unfinished(bucket: &dyn Bucket, password: &SecretString) -> Result<Option<(Id, MasterKey)>> {
    for kind in [FileKind::Pack, FileKind::Index, FileKind::Snapshot] {
        if holds(bucket, kind).await? {
            return Ok(None);
        }
    }
    match open_master(bucket, password, None).await {
        Ok(found) => Ok(Some(found)),
        Err(Error::Bucket(error)) if error.kind != ErrorKind::NoSuchKey => Err(Error::Bucket(error)),
        Err(_) => Ok(None),
    }
}

/// Tries the password on every key, the hinted one first.
async fn open_master(
    bucket: &dyn Bucket,
    password: &SecretString,
    hint: Option<Id>,
) -> Result<(Id, MasterKey)> {
    let mut keys: Vec<Id> = list(bucket, FileKind::Key).await?.into_iter().map(|(id, _)| id).collect();
    if keys.is_empty() {
        let detail = "it has no key".into();
        return Err(Error::NotARepository { place: bucket.name().into(), detail });
    }
    keys.sort_by_key(|id| Some(*id) != hint);
    let (mut unreadable, mut refused) = (None, false);
    let mut work = 0;
    for id in keys.iter().take(MAX_KEYS) {
        let parsed = match key_file(bucket, id).await {
            Ok(parsed) => parsed,
            // Another key may still open it.
            Err(error) => {
                unreadable.get_or_insert(error.named(*id));
                continue;
            }
        };
        work += parsed.work();
        if work > MAX_WORK {
            let detail = format!("its keys take more work than {MAX_WORK} bytes mixed").into();
            return Err(Error::BadParameter { what: "repository", detail });
        }
        let secret = password.clone();
        match blocking(move || parsed.open(&secret)).await {
            Ok(master) => return Ok((*id, master)),
            Err(Error::WrongPassword { .. }) => refused = true,
            Err(error) => drop(unreadable.get_or_insert(error.named(*id))),
        }
    }
    let wrong = Error::WrongPassword { keys: keys.len().min(MAX_KEYS) };
    Err(match unreadable {
        // A file that is no key of ours stands beside keys that are: the password is what does not fit.
        Some(Error::Damaged { .. } | Error::BadParameter { .. }) if refused => wrong,
        Some(error) => error,
        None => wrong,
    })
}
