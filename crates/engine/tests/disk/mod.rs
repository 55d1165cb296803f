//! A world for tests of directories: a source, a repository beside it, stock restic, and eyes to compare with.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cistern_bucket::{
    Address, Attributes, Bucket, Capabilities, DeleteOutcome, Directory, Durability, Entry, Error, ErrorKind,
    Get, GetOptions, Key, Ledger, ListRequest, Page, PartId, Put, PutOptions, Tags, Upload, Verb,
};
use cistern_engine::{Access, Backup, BackupReport, Cx, Note, Progress, Report, Result, Role, Status, Task};
use cistern_repository::{
    BlobKind, Id, Identity, KdfParams, Node, NodeKind, Options, Reader, Repository, Snapshot,
};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A directory to save and a repository to save it into.
pub struct Disk {
    temp: TempDir,
    /// How the repository is opened.
    pub options: Options,
    /// The way to the repository, if it is not the plain one.
    pub bucket: Option<Arc<dyn Bucket>>,
    pub cancel: CancellationToken,
    /// The restic that judges: the newest, unless a test says otherwise.
    pub judge: PathBuf,
    notes: Arc<Notes>,
}

/// What a run told.
#[derive(Default)]
pub struct Notes(Mutex<Vec<String>>);

impl Progress for Notes {
    fn status(&self, _status: &Status) {}

    fn note(&self, note: Note) {
        self.0.lock().unwrap().push(match note {
            Note::Info(text) => text,
            Note::Exception(exception) => {
                format!("{:?} {}: {}", exception.kind, exception.key, exception.detail)
            }
        });
    }
}

struct Way {
    bucket: Arc<dyn Bucket>,
    options: Options,
}

#[async_trait]
impl Access for Way {
    async fn bucket(&self, _address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        assert_eq!(role, Role::Repository, "a directory is no bucket");
        Ok(self.bucket.clone())
    }

    async fn password(&self, _repository: &Address) -> Result<SecretString> {
        Ok(password())
    }

    fn options(&self, _repository: &Address) -> Options {
        self.options.clone()
    }
}

fn password() -> SecretString {
    SecretString::from("secret")
}

pub fn identity() -> Identity {
    Identity { hostname: "test".into(), username: "tester".into(), pid: std::process::id(), uid: 0, gid: 0 }
}

/// What restic says at the end of a backup.
#[derive(Debug)]
pub struct Said {
    pub snapshot: String,
    pub files_new: u64,
    pub files_changed: u64,
    pub files_unmodified: u64,
    pub data_blobs: u64,
    pub tree_blobs: u64,
}

impl Disk {
    /// An empty source, and no repository yet.
    pub fn bare() -> Disk {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("source")).unwrap();
        Disk {
            temp,
            options: Options { workers: 2, memory: 64 << 20, kdf: KdfParams::NONE, ..Options::default() },
            bucket: None,
            cancel: CancellationToken::new(),
            judge: cistern_testkit::tools::restic().unwrap(),
            notes: Arc::default(),
        }
    }

    /// An empty source and an empty repository of ours.
    pub async fn new() -> Disk {
        let disk = Disk::bare();
        Repository::init(disk.plain(), &password(), &identity(), disk.options.clone()).await.unwrap();
        disk
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.temp.path().join(below)
    }

    pub fn source(&self) -> PathBuf {
        self.path("source")
    }

    /// Something below the source.
    pub fn file(&self, below: impl AsRef<[u8]>) -> PathBuf {
        self.source().join(OsStr::from_bytes(below.as_ref()))
    }

    pub fn write(&self, below: impl AsRef<[u8]>, content: impl AsRef<[u8]>) {
        let path = self.file(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn repository_path(&self) -> PathBuf {
        self.path("repository")
    }

    pub fn plain(&self) -> Arc<dyn Bucket> {
        Arc::new(Directory::with(self.repository_path(), Durability::None))
    }

    /// A backup of the source, changed as wanted.
    pub fn task(&self, change: impl FnOnce(&mut Backup)) -> Backup {
        let directory = |path: PathBuf| Address::Directory(path);
        let mut task = Backup::new(directory(self.source()), directory(self.repository_path()), "test");
        change(&mut task);
        task
    }

    pub async fn run(&self, task: &Backup) -> Result<BackupReport> {
        let bucket = self.bucket.clone().unwrap_or_else(|| self.plain());
        let cx = Cx {
            access: Arc::new(Way { bucket, options: self.options.clone() }),
            progress: self.notes.clone(),
            cancel: self.cancel.clone(),
            identity: identity(),
            concurrency: 4,
            lock_wait: Duration::ZERO,
        };
        match cistern_engine::run(&Task::Backup(task.clone()), &cx).await? {
            Report::Backup(report) => Ok(report),
            other => panic!("{other:?}"),
        }
    }

    /// Backs the source up.
    pub async fn backup(&self) -> BackupReport {
        self.run(&self.task(|_| ())).await.unwrap()
    }

    /// What the runs told since the last time it was asked for.
    pub fn notes(&self) -> Vec<String> {
        std::mem::take(&mut *self.notes.0.lock().unwrap())
    }

    pub async fn open(&self) -> Repository {
        Repository::open(self.plain(), &password(), self.options.clone()).await.unwrap()
    }

    pub async fn snapshot(&self, id: &str) -> Snapshot {
        self.open().await.snapshot(&id.parse().unwrap()).await.unwrap()
    }

    /// The node at an absolute path of a snapshot; of `/`, one that has nothing but the tree.
    pub async fn node(&self, snapshot: &str, path: &Path) -> Node {
        let repository = self.open().await;
        let reader = repository.reader(repository.index().await.unwrap());
        let tree = repository.snapshot(&snapshot.parse().unwrap()).await.unwrap().tree;
        let mut node = Node { subtree: Some(tree), ..Node::default() };
        for name in path.as_os_str().as_bytes().split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let tree = reader.tree(&node.subtree.unwrap()).await.unwrap();
            node = tree.get(name).unwrap_or_else(|| panic!("{path:?} is in the snapshot")).clone();
        }
        node
    }

    /// The tree of the source in a snapshot.
    pub async fn source_tree(&self, snapshot: &str) -> Id {
        self.node(snapshot, &self.source()).await.subtree.unwrap()
    }

    /// Every file below the source in a snapshot with its contents, links with their targets.
    pub async fn contents(&self, snapshot: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let tree = self.source_tree(snapshot).await;
        let repository = self.open().await;
        let reader = repository.reader(repository.index().await.unwrap());
        let mut found = BTreeMap::new();
        let mut open = vec![(Vec::new(), tree)];
        while let Some((path, tree)) = open.pop() {
            for node in reader.tree(&tree).await.unwrap().nodes() {
                let mut path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(&node.name);
                match node.kind {
                    NodeKind::Dir => open.push((path, node.subtree.unwrap())),
                    NodeKind::File => drop(found.insert(path, content(&reader, node).await)),
                    _ => drop(found.insert(path, node.link_target.to_vec())),
                }
            }
        }
        found
    }

    /// A restic command on the repository, in UTC and without a cache.
    pub fn restic(&self, arguments: &[&OsStr]) -> Output {
        let temporary = self.path("restic-tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        Command::new(&self.judge)
            .args(["--no-cache", "--repo"])
            .arg(self.repository_path())
            .args(arguments)
            .env("RESTIC_PASSWORD", "secret")
            .env("TZ", "UTC")
            .env("TMPDIR", temporary)
            .output()
            .unwrap()
    }

    /// A restic command that has to succeed; yields what it printed.
    pub fn restic_ok(&self, arguments: &[&str]) -> String {
        let arguments: Vec<&OsStr> = arguments.iter().map(OsStr::new).collect();
        let output = self.restic(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "restic {arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// restic saves the source (or something else) itself.
    pub fn restic_backup_of(&self, path: &Path, options: &[&str]) -> Said {
        let mut arguments: Vec<&OsStr> = ["backup", "--json", "--host", "test"].map(OsStr::new).to_vec();
        arguments.extend(options.iter().map(OsStr::new));
        arguments.push(path.as_os_str());
        let output = self.restic(&arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "restic {arguments:?}: {error}");
        let printed = String::from_utf8(output.stdout).unwrap();
        let last = printed.lines().rfind(|line| line.contains("\"summary\"")).unwrap();
        let said: serde_json::Value = serde_json::from_str(last).unwrap();
        let number = |name: &str| said[name].as_u64().unwrap_or_else(|| panic!("{name} in {said}"));
        Said {
            snapshot: said["snapshot_id"].as_str().unwrap().into(),
            files_new: number("files_new"),
            files_changed: number("files_changed"),
            files_unmodified: number("files_unmodified"),
            data_blobs: number("data_blobs"),
            tree_blobs: number("tree_blobs"),
        }
    }

    pub fn restic_backup(&self) -> Said {
        self.restic_backup_of(&self.source(), &[])
    }

    /// restic finds the repository whole, with all its data.
    pub fn check(&self) {
        self.restic_ok(&["check", "--read-data"]);
    }

    /// restic restores a snapshot; yields where the source is now.
    pub fn restic_restore(&self, snapshot: &str) -> PathBuf {
        let target = self.path("restored");
        if target.exists() {
            std::fs::remove_dir_all(&target).unwrap();
        }
        self.restic_ok(&["restore", snapshot, "--target", target.to_str().unwrap()]);
        target.join(self.source().strip_prefix("/").unwrap())
    }

    /// The status of all directories above the source: what lies above changes with other tests.
    pub fn above(&self) -> Vec<(i64, i64, u64)> {
        let stamp = |path: &Path| {
            let seen = path.metadata().unwrap();
            (seen.ctime(), seen.ctime_nsec(), seen.ino())
        };
        self.source().ancestors().skip(1).map(stamp).collect()
    }
}

pub async fn content(reader: &Reader, node: &Node) -> Vec<u8> {
    let mut all = Vec::new();
    for id in node.content.as_deref().unwrap() {
        all.extend_from_slice(&reader.blob(BlobKind::Data, id).await.unwrap());
    }
    assert_eq!(all.len() as u64, node.size);
    all
}

/// Everything of a file that a restore brings back.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub device: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Everything below a directory, by path.
pub fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            let stat = path.symlink_metadata().unwrap();
            let kind = stat.file_type();
            let content = if kind.is_file() {
                std::fs::read(&path).unwrap()
            } else if kind.is_symlink() {
                std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                Vec::new()
            };
            if kind.is_dir() {
                open.push(path.clone());
            }
            let seen = Seen {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                modified: (stat.mtime(), stat.mtime_nsec()),
                device: stat.rdev(),
                content,
                xattrs: xattrs(&path),
            };
            found.insert(below, seen);
        }
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Sets the time of modification, of links too.
pub fn touch(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// A bucket that asks before each request; an answer is the error that the request ends with.
#[derive(Clone)]
pub struct Hooked {
    inner: Arc<dyn Bucket>,
    ask: Arc<dyn Fn(Verb, &Key) -> Option<ErrorKind> + Send + Sync>,
}

impl Hooked {
    pub fn new(
        inner: Arc<dyn Bucket>,
        ask: impl Fn(Verb, &Key) -> Option<ErrorKind> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Hooked { inner, ask: Arc::new(ask) })
    }

    fn asked(&self, verb: Verb, key: &Key) -> cistern_bucket::Result<&dyn Bucket> {
        match (self.ask)(verb, key) {
            None => Ok(&*self.inner),
            Some(kind) => Err(Error::new(kind, verb, "hooked").key(key)),
        }
    }
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl Bucket for Hooked {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    async fn probe(&self) -> cistern_bucket::Result<()> {
        self.asked(Verb::Bucket, &Key::default())?.probe().await
    }

    async fn create(&self) -> cistern_bucket::Result<()> {
        self.asked(Verb::Bucket, &Key::default())?.create().await
    }

    async fn list(&self, request: &ListRequest) -> cistern_bucket::Result<Page> {
        self.asked(Verb::List, &request.prefix)?.list(request).await
    }

    async fn head(&self, key: &Key) -> cistern_bucket::Result<(Entry, Attributes)> {
        self.asked(Verb::Head, key)?.head(key).await
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> cistern_bucket::Result<Get> {
        self.asked(Verb::Get, key)?.get(key, options).await
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> cistern_bucket::Result<Put> {
        self.asked(Verb::Put, key)?.put(key, body, options).await
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> cistern_bucket::Result<Upload> {
        self.asked(Verb::Multipart, key)?.begin_upload(key, options).await
    }

    async fn upload_part(
        &self,
        upload: &Upload,
        number: u32,
        body: &[Bytes],
    ) -> cistern_bucket::Result<PartId> {
        self.asked(Verb::Put, &upload.key)?.upload_part(upload, number, body).await
    }

    async fn complete_upload(
        &self,
        upload: &Upload,
        parts: &[PartId],
        options: &PutOptions,
    ) -> cistern_bucket::Result<Put> {
        self.asked(Verb::Multipart, &upload.key)?.complete_upload(upload, parts, options).await
    }

    async fn abort_upload(&self, upload: &Upload) -> cistern_bucket::Result<()> {
        self.asked(Verb::Multipart, &upload.key)?.abort_upload(upload).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> cistern_bucket::Result<Put> {
        self.asked(Verb::Copy, from)?.copy(from, to).await
    }

    async fn delete(&self, key: &Key) -> cistern_bucket::Result<()> {
        self.asked(Verb::Delete, key)?.delete(key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        self.inner.delete_many(keys).await
    }

    async fn tags(&self, key: &Key) -> cistern_bucket::Result<Tags> {
        self.asked(Verb::Tags, key)?.tags(key).await
    }
}
