//! A local directory as a bucket: files are objects, written whole and durably, read in ranges, listed in order.
//!
//! Every file appears under its name complete or not at all. Symbolic links are not objects and are never
//! followed, so nothing outside of the directory is read or written; a listing whose prefix leads through one is an
//! error rather than empty. That also holds for a repository, where restic follows a link in place of `data`: who can
//! write to a repository could lead us anywhere with one. A bind mount does what such a link is meant to do. Keys that are no relative paths
//! (`a//b`, `../x`, a component of 256 bytes) are refused by a put and are absent for every other verb.

mod files;
mod listing;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use rustix::fs::{Advice, AtFlags, Mode, OFlags, Stat, fadvise, fstat, fsync, openat, statat, unlinkat};
use rustix::io::Errno;

use self::files::Temporary;
use self::listing::Walk;
use crate::{
    Attributes, Body, Bucket, Capabilities, DeleteOutcome, Entry, Error, ErrorKind, Get, GetOptions, Key,
    Ledger, ListRequest, Page, PartId, Put, PutOptions, Result, Revision, Tags, Upload, Verb, memory,
};

/// Entries of one page.
const PAGE: usize = 1_000;

/// Bytes read at once; whatever is smaller is read in one go.
const PIECE: u64 = 1 << 20;
/// What is at most this long, in bytes, is read when it is opened.
const SMALL: u64 = 64 << 10;
/// Whoever asks for a range up to this long, in bytes, wants to hold all of it: it comes in one piece.
const RANGE: u64 = 8 << 20;

/// Listings that may rest between two of their pages; an older one is started anew where it was.
const RESTING: usize = 8;

/// Directories of which it is remembered that they were swept.
const SWEPT: usize = 4_096;

/// Whether a write survives a crash of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A confirmed write is on the disk: file, name and new directories; so is a confirmed removal.
    #[default]
    Fsync,
    /// A confirmed write is in the page cache.
    None,
}

/// A directory of the local file system as a bucket (Linux).
///
/// New files have mode 0400 and new directories 0700, as restic's. An object is described by size and
/// modification time, from which its [`Revision`] is made: a put always changes it.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    name: String,
    durable: bool,
    file_mode: Mode,
    directory_mode: Mode,
    ledger: Ledger,
    root: Mutex<Option<Arc<OwnedFd>>>,
    resting: Mutex<Vec<(String, Walk)>>,
    /// Directories in which the remains of earlier writes were looked for.
    swept: Mutex<HashSet<Box<[u8]>>>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

impl Directory {
    /// The directory at `path`, which need not exist before [`Bucket::create`].
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Directory::with(path, Durability::default())
    }

    /// The same with a choice of durability.
    pub fn with(path: impl Into<PathBuf>, durability: Durability) -> Self {
        let path = path.into();
        Directory {
            inner: Arc::new(Inner {
                name: path.display().to_string(),
                path,
                durable: durability == Durability::Fsync,
                file_mode: Mode::from_raw_mode(0o400),
                directory_mode: Mode::from_raw_mode(0o700),
                ledger: Ledger::default(),
                root: Mutex::default(),
                resting: Mutex::default(),
                swept: Mutex::default(),
            }),
        }
    }

    /// Runs file operations on a thread where they may block.
    async fn blocking<T: Send + 'static>(
        &self,
        verb: Verb,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => Err(self.inner.error(ErrorKind::Cancelled, verb).source(error)),
            },
        }
    }

    /// The bytes of a range, at once for whoever has the memory. A range that is not long comes in one piece.
    fn body(&self, key: &Key, file: OwnedFd, stat: Stat, range: Range<u64>, is_short: bool) -> Body {
        let (file, length) = (Arc::new(file), range.end - range.start);
        let pieces = (!is_short).then(|| self.pieces(key, file.clone(), stat, range.start, range.end));
        let (this, key) = (self.clone(), key.clone());
        let read = move |inner: &Inner, memory| {
            let bytes = inner.read(&key, &file, range.start, length as usize, memory)?;
            inner.unchanged(&key, &file, &stat)?;
            Ok(bytes)
        };
        let read =
            async move |memory: Vec<u8>| this.blocking(Verb::Get, move |inner| read(inner, memory)).await;
        let read = move |memory| read(memory).boxed();
        match pieces {
            None => Body::whole(length, read),
            Some(pieces) => Body::whole_or_pieces(length, read, pieces),
        }
    }

    fn pieces(
        &self,
        key: &Key,
        file: Arc<OwnedFd>,
        stat: Stat,
        start: u64,
        end: u64,
    ) -> BoxStream<'static, Result<Bytes>> {
        let _ = fadvise(&file, start, std::num::NonZeroU64::new(end - start), Advice::Sequential);
        let (this, key) = (self.clone(), key.clone());
        let offsets = (start..end).step_by(PIECE as usize);
        let again = (this.clone(), key.clone(), file.clone());
        let pieces = stream::iter(offsets).map(move |offset| {
            let (this, key, file) = (this.clone(), key.clone(), file.clone());
            async move {
                let length = (end - offset).min(PIECE) as usize;
                let read = move |inner: &Inner| inner.read(&key, &file, offset, length, Vec::new());
                this.blocking(Verb::Get, read).await.map(Bytes::from)
            }
        });
        // The file is looked at once more behind its last byte, in case somebody wrote into it.
        let check = stream::once(async move {
            let (this, key, file) = again;
            this.blocking(Verb::Get, move |inner| inner.unchanged(&key, &file, &stat)).await
        });
        let check = check.try_filter_map(|()| async { Ok(None) });
        pieces.buffered(2).chain(check).boxed()
    }
}

impl Inner {
    fn error(&self, kind: ErrorKind, verb: Verb) -> Error {
        Error::new(kind, verb, self.name.as_str())
    }

    fn failed(&self, verb: Verb, errno: Errno) -> Error {
        let kind = match errno {
            Errno::NOENT => ErrorKind::NoSuchKey,
            Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => ErrorKind::Denied,
            Errno::NAMETOOLONG | Errno::NOTDIR | Errno::ISDIR | Errno::LOOP | Errno::ILSEQ | Errno::FBIG => {
                ErrorKind::Unsupported
            }
            Errno::EXIST => ErrorKind::AlreadyExists,
            _ => ErrorKind::Unreachable,
        };
        self.error(kind, verb).source(std::io::Error::from(errno))
    }

    fn missing(&self, verb: Verb, key: &Key) -> Error {
        self.error(ErrorKind::NoSuchKey, verb).key(key)
    }

    /// The open root. A root that was removed is looked for again under its path.
    fn root(&self, verb: Verb) -> Result<Arc<OwnedFd>> {
        let mut cached = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(root) = cached.as_ref()
            && fstat(root).is_ok_and(|stat| stat.st_nlink > 0)
        {
            return Ok(root.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(rustix::fs::CWD, &self.path, flags, Mode::empty()) {
            Ok(root) => Ok(cached.insert(Arc::new(root)).clone()),
            Err(errno @ (Errno::NOENT | Errno::NOTDIR)) => {
                *cached = None;
                Err(self.error(ErrorKind::NoSuchBucket, verb).source(std::io::Error::from(errno)))
            }
            Err(errno) => Err(self.failed(verb, errno)),
        }
    }

    /// Opens an object that is there, and describes it.
    fn open(&self, verb: Verb, key: &Key, flags: OFlags) -> Result<(OwnedFd, Stat)> {
        let root = self.root(verb)?;
        if refusal(key).is_some() {
            return Err(self.missing(verb, key));
        }
        let opened = files::open(root.as_fd(), key.as_bytes(), flags).and_then(|file| {
            let stat = fstat(&file)?;
            Ok((file, stat))
        });
        match opened {
            Ok((file, stat)) if files::is_object(&stat) => Ok((file, stat)),
            // Directories, links, sockets and what lies behind them are no objects.
            Ok(_) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO) => {
                Err(self.missing(verb, key))
            }
            Err(errno) => Err(self.failed(verb, errno).key(key)),
        }
    }

    fn read(
        &self,
        key: &Key,
        file: &OwnedFd,
        offset: u64,
        length: usize,
        memory: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let bytes = files::read(file.as_fd(), offset, length, memory)
            .map_err(|errno| self.failed(Verb::Get, errno).key(key))?;
        self.ledger.received(bytes.len() as u64);
        Ok(bytes)
    }

    fn unchanged(&self, key: &Key, file: &OwnedFd, stat: &Stat) -> Result<()> {
        let now = fstat(file).map_err(|errno| self.failed(Verb::Get, errno).key(key))?;
        if revision(&now) != revision(stat) {
            let error = self.error(ErrorKind::PreconditionFailed, Verb::Get).key(key);
            return Err(error.detail("the file was written to while it was read"));
        }
        Ok(())
    }

    /// Writes a file under a private name, then gives it that of `key`.
    fn place(
        &self,
        verb: Verb,
        key: &Key,
        create_only: bool,
        write: impl FnOnce(&Temporary) -> rustix::io::Result<()>,
    ) -> Result<Put> {
        let failed = |errno| self.failed(verb, errno).key(key);
        let root = self.root(verb)?;
        if let Some((kind, why)) = refusal(key) {
            return Err(self.error(kind, verb).key(key).detail(why));
        }
        let (path, name) = files::split(key.as_bytes());
        let file = self.temporary(&root, path).map_err(|errno| match errno {
            Errno::NOENT => self.error(ErrorKind::NoSuchBucket, verb),
            Errno::NOTDIR => failed(errno).detail("a part of the key is the name of another object"),
            Errno::LOOP => failed(errno).detail("a symbolic link is in the way"),
            _ => failed(errno),
        })?;
        let old = match statat(&file.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(old) if files::is_object(&old) && create_only => return Err(failed(Errno::EXIST)),
            Ok(old) if files::is_object(&old) => Some(old),
            // Directories stay behind when their last object goes.
            Ok(_) => {
                files::remove_empty(file.directory.as_fd(), name).map_err(|errno| {
                    let error =
                        self.error(ErrorKind::Unsupported, verb).key(key).source(std::io::Error::from(errno));
                    error.detail("something that is no object has this name")
                })?;
                None
            }
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(failed(errno)),
        };
        let finish = || {
            write(&file)?;
            let stat = match &old {
                Some(old) => file.differ_from(old)?,
                None => fstat(&file.file)?,
            };
            if self.durable {
                fsync(&file.file)?;
            }
            Ok(stat)
        };
        let stat = finish().map_err(failed)?;
        file.publish(name, create_only, self.durable).map_err(failed)?;
        Ok(Put { revision: revision(&stat) })
    }

    /// A file without a name in the directory `path`, which is made if it is not there.
    fn temporary(&self, root: &OwnedFd, path: &[u8]) -> rustix::io::Result<Temporary> {
        // A directory can go between two of these steps, as one that is empty gives way to an object. Many
        // times in a row that is not possible.
        let mut tries = 0;
        loop {
            let directory = match files::open(root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    files::make_directories(root.as_fd(), path, self.directory_mode, self.durable)
                }
                answer => answer,
            };
            if let Ok(directory) = &directory {
                self.sweep_once(directory, path);
            }
            match directory.and_then(|directory| Temporary::create(directory, self.file_mode)) {
                Err(Errno::NOENT) if tries < 100 => tries += 1,
                answer => return answer,
            }
        }
    }

    /// Whoever writes here also cleans up, once; whoever only reads changes nothing.
    fn sweep_once(&self, directory: &OwnedFd, path: &[u8]) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.len() < SWEPT && swept.insert(path.into()) {
            drop(swept);
            files::sweep(directory.as_fd());
        }
    }

    /// Removes objects, and makes that durable once per directory.
    fn remove_all(&self, keys: &[Key]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = keys.iter().map(|key| self.remove(key)).collect();
        if !self.durable {
            return results;
        }
        let mut synced: HashMap<&[u8], rustix::io::Result<()>> = HashMap::new();
        for (key, result) in keys.iter().zip(&mut results) {
            let (path, _) = files::split(key.as_bytes());
            if result.is_err() || refusal(key).is_some() {
                continue;
            }
            let answer = synced.entry(path).or_insert_with(|| self.sync(path));
            if let Err(errno) = answer {
                *result = Err(self.failed(Verb::Delete, *errno).key(key));
            }
        }
        results
    }

    /// Makes the names in a directory durable, if it is there.
    fn sync(&self, path: &[u8]) -> rustix::io::Result<()> {
        let Ok(root) = self.root(Verb::Delete) else { return Ok(()) };
        match files::open(root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => files::sync_directory(directory),
            // Gone, or without permission to read it, which no removal needs.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn remove(&self, key: &Key) -> Result<()> {
        let root = self.root(Verb::Delete)?;
        if refusal(key).is_some() {
            return Ok(());
        }
        let (path, name) = files::split(key.as_bytes());
        let removed =
            files::open(root.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY).and_then(|directory| {
                if files::is_object(&statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?) {
                    unlinkat(&directory, name, AtFlags::empty())?;
                }
                Ok(())
            });
        match removed {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => Ok(()),
            Err(errno) => Err(self.failed(Verb::Delete, errno).key(key)),
        }
    }

    /// The listing that a token continues.
    fn resume(&self, request: &ListRequest) -> Result<Walk> {
        let prefix = request.prefix.as_bytes();
        let Some(token) = &request.token else {
            return Ok(Walk::new(prefix, request.after.as_ref().map(Key::as_bytes)));
        };
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = resting.iter().position(|(name, walk)| name == token && walk.prefix() == prefix)
        {
            return Ok(resting.remove(found).1);
        }
        let after = hex::decode(token).map_err(|error| {
            self.error(ErrorKind::Invalid, Verb::List).detail("no such token").source(error)
        })?;
        Ok(Walk::new(prefix, Some(&after)))
    }

    fn page(&self, request: &ListRequest) -> Result<Page> {
        let limit = request.limit.map_or(PAGE, |limit| PAGE.min(limit as usize));
        if limit == 0 {
            return Err(self.error(ErrorKind::Invalid, Verb::List).detail("a page of no entries"));
        }
        let root = self.root(Verb::List)?;
        let mut walk = self.resume(request)?;
        let failed = |(errno, path)| match errno {
            Errno::NOENT => self.error(ErrorKind::NoSuchBucket, Verb::List),
            _ => self.failed(Verb::List, errno).key(&Key::new(path)),
        };
        let mut entries = Vec::with_capacity(limit);
        while entries.len() < limit {
            match walk.next(root.as_fd()).map_err(failed)? {
                Some((key, stat)) => entries.push(entry(Key::new(key), &stat)),
                None => return Ok(Page { entries, next: None }),
            }
        }
        if walk.is_over(root.as_fd()).map_err(failed)? {
            return Ok(Page { entries, next: None });
        }
        walk.rest();
        let next = entries.last().map(|last: &Entry| hex::encode(last.key.as_bytes()));
        if let Some(token) = &next {
            let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
            if resting.len() == RESTING {
                resting.remove(0);
            }
            resting.push((token.clone(), walk));
        }
        Ok(Page { entries, next })
    }
}

/// Why a directory cannot hold such a key.
fn refusal(key: &Key) -> Option<(ErrorKind, &'static str)> {
    let bytes = key.as_bytes();
    if bytes.is_empty() {
        return Some((ErrorKind::Invalid, "the empty key names no object"));
    }
    let why = if bytes.len() > 4_000 {
        "a path has at most 4,000 bytes"
    } else if bytes.contains(&0) {
        "a file name holds no NUL"
    } else {
        bytes.split(|&byte| byte == b'/').find_map(|name| match name {
            b"" => Some("a file name has at least one byte"),
            b"." | b".." => Some("`.` and `..` are no file names"),
            name if name.len() > 255 => Some("a file name has at most 255 bytes"),
            name if name.starts_with(files::TEMPORARY) => Some("such names belong to unfinished files"),
            _ => None,
        })?
    };
    Some((ErrorKind::Unsupported, why))
}

fn revision(stat: &Stat) -> Revision {
    Revision::ETag(
        format!("{:x}-{:x}.{:x}", stat.st_size, stat.st_mtime, stat.st_mtime_nsec).into_boxed_str(),
    )
}

fn entry(key: Key, stat: &Stat) -> Entry {
    // A time beyond jiff's range (the year 9999) is as good as its end; the revision has the exact one.
    let limit = if stat.st_mtime < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Entry {
        key,
        size: stat.st_size as u64,
        modified: Timestamp::new(stat.st_mtime, stat.st_mtime_nsec as i32).unwrap_or(limit),
        revision: revision(stat),
        class: None,
        attributes: None,
    }
}

#[async_trait]
impl Bucket for Directory {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            list_after: true,
            attributes: false,
            tags: false,
            multipart: false,
            create_only: true,
            copy: true,
            retention: false,
            max_put: i64::MAX as u64,
        }
    }

    fn ledger(&self) -> &Ledger {
        &self.inner.ledger
    }

    async fn probe(&self) -> Result<()> {
        self.inner.ledger.request(Verb::Bucket);
        self.blocking(Verb::Bucket, |inner| {
            let root = inner.root(Verb::Bucket)?;
            let opened = files::open(root.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY);
            opened.map(drop).map_err(|errno| inner.failed(Verb::Bucket, errno))
        })
        .await
    }

    async fn create(&self) -> Result<()> {
        self.inner.ledger.request(Verb::Bucket);
        self.blocking(Verb::Bucket, |inner| {
            files::make_root(&inner.path, inner.directory_mode, inner.durable)
                .map_err(|errno| inner.failed(Verb::Bucket, errno))
        })
        .await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        self.inner.ledger.request(Verb::List);
        let request = request.clone();
        self.blocking(Verb::List, move |inner| inner.page(&request)).await
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        self.inner.ledger.request(Verb::Head);
        let key = key.clone();
        self.blocking(Verb::Head, move |inner| {
            let (_, stat) = inner.open(Verb::Head, &key, OFlags::PATH)?;
            Ok((entry(key, &stat), Attributes::default()))
        })
        .await
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        self.inner.ledger.request(Verb::Get);
        let (wanted, options, is_range) = (key.clone(), options.clone(), options.range.is_some());
        let (file, stat, range, small) = self
            .blocking(Verb::Get, move |inner| {
                let key = wanted;
                let (file, stat) = inner.open(Verb::Get, &key, OFlags::RDONLY)?;
                if options
                    .revision
                    .is_some_and(|wanted| wanted != Revision::Unknown && wanted != revision(&stat))
                {
                    return Err(inner.error(ErrorKind::PreconditionFailed, Verb::Get).key(&key));
                }
                let size = stat.st_size as u64;
                let range = memory::satisfiable(options.range.as_ref(), size).ok_or_else(|| {
                    let error = inner.error(ErrorKind::Invalid, Verb::Get).key(&key);
                    error.detail(format!("no such range in {size} bytes"))
                })?;
                let length = range.end - range.start;
                let small = if length <= SMALL {
                    let bytes = inner.read(&key, &file, range.start, length as usize, Vec::new())?;
                    inner.unchanged(&key, &file, &stat)?;
                    Some(Bytes::from(bytes))
                } else {
                    None
                };
                Ok((file, stat, range, small))
            })
            .await?;
        let length = range.end - range.start;
        let body = match small {
            Some(bytes) => Body::new(length, stream::iter([Ok(bytes)]).boxed()),
            None => self.body(key, file, stat, range, is_range && length <= RANGE),
        };
        let entry = entry(key.clone(), &stat);
        Ok(Get { entry, attributes: Attributes::default(), body, checksums: Default::default() })
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        self.inner.ledger.request(Verb::Put);
        self.inner.ledger.sent(body.iter().map(|piece| piece.len() as u64).sum());
        let (key, body, create_only) = (key.clone(), body.to_vec(), options.create_only);
        self.blocking(Verb::Put, move |inner| {
            inner.place(Verb::Put, &key, create_only, |file| file.write(&body))
        })
        .await
    }

    async fn begin_upload(&self, key: &Key, _: &PutOptions) -> Result<Upload> {
        Err(self.inner.error(ErrorKind::Unsupported, Verb::Multipart).key(key))
    }

    async fn upload_part(&self, upload: &Upload, _: u32, _: &[Bytes]) -> Result<PartId> {
        Err(self.inner.error(ErrorKind::Unsupported, Verb::Put).key(&upload.key))
    }

    async fn complete_upload(&self, upload: &Upload, _: &[PartId], _: &PutOptions) -> Result<Put> {
        Err(self.inner.error(ErrorKind::Unsupported, Verb::Multipart).key(&upload.key))
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        Err(self.inner.error(ErrorKind::Unsupported, Verb::Multipart).key(&upload.key))
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put> {
        self.inner.ledger.request(Verb::Copy);
        let (from, to) = (from.clone(), to.clone());
        self.blocking(Verb::Copy, move |inner| {
            let (source, stat) = inner.open(Verb::Copy, &from, OFlags::RDONLY)?;
            inner.place(Verb::Copy, &to, false, |file| {
                let copied = files::copy(&source, &file.file)?;
                if copied == stat.st_size as u64 { Ok(()) } else { Err(Errno::IO) }
            })
        })
        .await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.ledger.request(Verb::Delete);
        let key = key.clone();
        self.blocking(Verb::Delete, move |inner| inner.remove_all(&[key]).remove(0)).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        let mut outcomes = Vec::with_capacity(keys.len());
        for batch in keys.chunks(PAGE) {
            self.inner.ledger.request(Verb::Delete);
            let owned = batch.to_vec();
            let removed = self.blocking(Verb::Delete, move |inner| {
                Ok(inner.remove_all(&owned).into_iter().zip(owned).collect::<Vec<_>>())
            });
            match removed.await {
                Ok(removed) => {
                    outcomes.extend(removed.into_iter().map(|(result, key)| DeleteOutcome { key, result }));
                }
                Err(error) => outcomes.extend(batch.iter().map(|key| DeleteOutcome {
                    key: key.clone(),
                    result: Err(self.inner.error(error.kind, Verb::Delete).key(key)),
                })),
            }
        }
        outcomes
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        Err(self.inner.error(ErrorKind::Unsupported, Verb::Tags).key(key))
    }
}
