//! A scene for tests of restore: a repository that anybody may write, a target directory or bucket, and eyes to
//! compare with.

#![expect(dead_code, reason = "every test file uses a part of it")]
#![expect(clippy::unwrap_used, reason = "tests may panic: that is how they fail")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Directory, Durability, Key, Memory};
use cistern_engine::{
    Access, Backup, BackupReport, Cx, Error, Note, Overwrite, Plan, Progress, Report, Restore, RestoreReport,
    Result, Role, Selection, SnapshotSelector, Status, TargetWriter, Task,
};
use cistern_repository::{
    Id, Identity, KdfParams, LockKind, Node, NodeKind, Options, Repository, Snapshot, Time, TreeBuilder,
    Writer, node,
};
use secrecy::SecretString;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A repository, a bucket to save, a bucket to restore to, and a place for directories.
pub struct Scene {
    pub temp: TempDir,
    pub repository: Arc<dyn Bucket>,
    pub source: Arc<dyn Bucket>,
    pub target: Arc<dyn Bucket>,
    pub cancel: CancellationToken,
    pub listener: Arc<Listener>,
    pub uid: u32,
    opened: Mutex<Option<Repository>>,
}

/// Hears what a run tells, and answers whether its plan is approved.
#[derive(Default)]
pub struct Listener {
    pub plans: Mutex<Vec<Plan>>,
    pub notes: Mutex<Vec<String>>,
    pub refuse: std::sync::atomic::AtomicBool,
    /// Is called with the plan before it is answered.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

#[async_trait]
impl Progress for Listener {
    fn status(&self, _status: &Status) {}

    fn note(&self, note: Note) {
        self.notes.lock().unwrap().push(match note {
            Note::Info(text) => text,
            Note::Exception(exception) => {
                format!("{:?} {}: {}", exception.kind, exception.key, exception.detail)
            }
        });
    }

    async fn approve(&self, plan: &Plan) -> bool {
        self.plans.lock().unwrap().push(plan.clone());
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        !self.refuse.load(std::sync::atomic::Ordering::Relaxed)
    }
}

struct Way {
    repository: Arc<dyn Bucket>,
    source: Arc<dyn Bucket>,
    target: Arc<dyn Bucket>,
}

#[async_trait]
impl Access for Way {
    async fn bucket(&self, _address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(match role {
            Role::Repository => self.repository.clone(),
            Role::Source => self.source.clone(),
            Role::Target => self.target.clone(),
        })
    }

    async fn password(&self, _repository: &Address) -> Result<SecretString> {
        Ok(password())
    }

    fn options(&self, _repository: &Address) -> Options {
        options()
    }
}

pub fn password() -> SecretString {
    SecretString::from("secret")
}

fn options() -> Options {
    Options { workers: 2, memory: 64 << 20, kdf: KdfParams::NONE, ..Options::default() }
}

fn identity(uid: u32) -> Identity {
    Identity { hostname: "test".into(), username: "tester".into(), pid: std::process::id(), uid, gid: uid }
}

impl Scene {
    /// Nothing but empty places; the repository is a directory that does not exist.
    pub fn bare() -> Scene {
        let temp = tempfile::tempdir().unwrap();
        let repository = Arc::new(Directory::with(temp.path().join("repository"), Durability::None));
        Scene {
            temp,
            repository,
            source: Arc::new(Memory::new("s3://orders")),
            target: Arc::new(Memory::new("s3://copy")),
            cancel: CancellationToken::new(),
            listener: Arc::default(),
            uid: rustix::process::geteuid().as_raw(),
            opened: Mutex::default(),
        }
    }

    /// With an empty repository in memory.
    pub async fn in_memory() -> Scene {
        Scene { repository: Arc::new(Memory::new("s3://repository")), ..Scene::bare() }.init().await
    }

    /// With an empty repository in a directory, as stock restic can use it.
    pub async fn on_disk() -> Scene {
        Scene::bare().init().await
    }

    async fn init(self) -> Scene {
        self.create().await;
        self
    }

    /// Makes an empty repository.
    pub async fn create(&self) {
        let made =
            Repository::init(self.repository.clone(), &password(), &identity(0), options()).await.unwrap();
        *self.opened.lock().unwrap() = Some(made);
    }

    /// The same repository, with places of its own for everything else.
    pub fn again(&self) -> Scene {
        let opened = self.opened.lock().unwrap().clone();
        Scene { repository: self.repository.clone(), opened: Mutex::new(opened), ..Scene::bare() }
    }

    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.temp.path().join(below)
    }

    /// Where directories are restored to.
    pub fn out(&self) -> PathBuf {
        self.path("out")
    }

    pub async fn open(&self) -> Repository {
        let opened = self.opened.lock().unwrap().clone();
        match opened {
            Some(repository) => repository,
            None => Repository::open(self.repository.clone(), &password(), options()).await.unwrap(),
        }
    }

    pub fn cx(&self) -> Cx {
        let way = Way {
            repository: self.repository.clone(),
            source: self.source.clone(),
            target: self.target.clone(),
        };
        Cx {
            access: Arc::new(way),
            progress: self.listener.clone(),
            cancel: self.cancel.clone(),
            identity: identity(self.uid),
            concurrency: 8,
            lock_wait: Duration::ZERO,
        }
    }

    /// Backs up a directory.
    pub async fn backup(&self, source: &Path) -> BackupReport {
        let task = Backup::new(Address::Directory(source.into()), "s3://repository".parse().unwrap(), "test");
        self.backup_task(task).await.unwrap()
    }

    /// Backs up the source bucket.
    pub async fn backup_bucket(&self) -> BackupReport {
        let task = Backup::new("s3://orders".parse().unwrap(), "s3://repository".parse().unwrap(), "test");
        self.backup_task(task).await.unwrap()
    }

    pub async fn backup_task(&self, task: Backup) -> Result<BackupReport> {
        match cistern_engine::run(&Task::Backup(task), &self.cx()).await? {
            Report::Backup(report) => Ok(report),
            other => panic!("{other:?}"),
        }
    }

    /// A restore of `latest` to the target directory, changed as wanted.
    pub fn task(&self, change: impl FnOnce(&mut Restore)) -> Restore {
        let mut task = Restore {
            repository: "s3://repository".parse().unwrap(),
            snapshot: SnapshotSelector { name: "latest".into(), ..SnapshotSelector::default() },
            target: Address::Directory(self.out()),
            selection: Selection::default(),
            remap: Vec::new(),
            overwrite: Overwrite::IfChanged,
            delete: false,
            dry_run: false,
            verify: false,
            writer: TargetWriter::Auto,
            privileged: false,
        };
        change(&mut task);
        task
    }

    pub async fn restore(&self, change: impl FnOnce(&mut Restore)) -> Result<RestoreReport> {
        let task = self.task(change);
        match cistern_engine::run(&Task::Restore(task), &self.cx()).await? {
            Report::Restore(report) => Ok(report),
            other => panic!("{other:?}"),
        }
    }

    /// To a bucket, as `s3://copy` or with a prefix.
    pub async fn restore_to(
        &self,
        address: &str,
        change: impl FnOnce(&mut Restore),
    ) -> Result<RestoreReport> {
        self.restore(|task| {
            task.target = address.parse().unwrap();
            change(task);
        })
        .await
    }

    /// A restic command on the repository, in UTC and without a cache.
    pub fn restic_of(&self, program: PathBuf, arguments: &[&OsStr]) -> Output {
        let temporary = self.path("restic-tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        Command::new(program)
            .args(["--no-cache", "--repo"])
            .arg(self.path("repository"))
            .args(arguments)
            .env("RESTIC_PASSWORD", "secret")
            .env("TZ", "UTC")
            .env("TMPDIR", temporary)
            .output()
            .unwrap()
    }

    /// The newest restic, which has to succeed.
    pub fn restic(&self, arguments: &[&OsStr]) {
        succeeded(self.restic_of(cistern_testkit::tools::restic().unwrap(), arguments));
    }

    /// Writes trees and a snapshot of `root` that no honest program would.
    pub async fn plant(&self, build: impl AsyncFnOnce(&mut Planter) -> Vec<Node>) -> Id {
        let repository = self.open().await;
        let index = repository.index().await.unwrap();
        let lock = repository.lock(LockKind::Shared, &identity(0), Duration::ZERO).await.unwrap();
        let mut planter = Planter { writer: repository.writer(index, lock) };
        let nodes = build(&mut planter).await;
        let tree = planter.tree(nodes);
        let mut snapshot = Snapshot::new(Time::new(1_800_000_000, 0), tree, vec!["/".into()]);
        snapshot.hostname = "hostile".into();
        planter.writer.finish(vec![snapshot]).await.unwrap().ids[0]
    }
}

pub fn succeeded(output: Output) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
}

/// Writes blobs and trees as they are given.
pub struct Planter {
    pub writer: Writer,
}

impl Planter {
    /// Stores contents in blobs of the lengths that `cut` gives.
    pub async fn blob(&self, bytes: &[u8]) -> Id {
        let permit = self.writer.permit(bytes.len().max(1)).await.unwrap();
        let bytes = bytes.to_vec();
        let ticket = self.writer.batch(permit, move |batch| batch.add(&bytes));
        ticket.await.unwrap().remove(0).unwrap().blobs[0]
    }

    /// A file of one blob.
    pub async fn file(&self, name: &[u8], bytes: &[u8]) -> Node {
        let content = if bytes.is_empty() { vec![] } else { vec![self.blob(bytes).await] };
        Node {
            content: Some(content.into()),
            size: bytes.len() as u64,
            mode: 0o644,
            ..base(name, NodeKind::File)
        }
    }

    pub fn dir(&self, name: &[u8], nodes: Vec<Node>) -> Node {
        let subtree = Some(self.tree(nodes));
        Node { subtree, mode: node::mode::DIR | 0o755, ..base(name, NodeKind::Dir) }
    }

    pub fn link(&self, name: &[u8], target: &[u8]) -> Node {
        let mode = node::mode::SYMLINK | 0o777;
        Node { link_target: target.into(), mode, ..base(name, NodeKind::Symlink) }
    }

    /// A tree, whatever the names are; in the order of names.
    pub fn tree(&self, nodes: Vec<Node>) -> Id {
        let mut builder = TreeBuilder::new();
        for node in &nodes {
            builder.add(node).unwrap();
        }
        self.writer.tree(builder.finish().unwrap()).unwrap()
    }
}

/// A node with times, as ours.
pub fn base(name: &[u8], kind: NodeKind) -> Node {
    let time = Time::new(1_600_000_000, 5);
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    Node { name: name.into(), kind, mtime: time, atime: time, ctime: time, uid, gid, ..Node::default() }
}

/// One thing in a directory, with everything that a restore can bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub device: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path that is the same file.
    pub same_as: Option<Vec<u8>>,
}

/// Everything below a directory, by path.
pub fn look(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut first: BTreeMap<(u64, u64), Vec<u8>> = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    let mut paths = Vec::new();
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                open.push(path.clone());
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let found = path.symlink_metadata().unwrap();
        let kind = found.file_type();
        let below = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let content = if kind.is_file() {
            std::fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
        } else if kind.is_symlink() {
            std::fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let same_as = if kind.is_dir() {
            None
        } else {
            Some(first.entry((found.dev(), found.ino())).or_insert_with(|| below.clone()).clone())
        };
        let seen = Seen {
            mode: found.mode(),
            owner: (found.uid(), found.gid()),
            modified: (found.mtime(), found.mtime_nsec()),
            device: found.rdev(),
            content,
            xattrs: xattrs(&path),
            same_as,
        };
        all.insert(below, seen);
    }
    all
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else { return BTreeMap::new() };
    let mut all = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        all.insert(name.to_vec(), value[..length].to_vec());
    }
    all
}

/// Tells where two directories differ, in a few lines.
pub fn assert_same(expected: &BTreeMap<Vec<u8>, Seen>, found: &BTreeMap<Vec<u8>, Seen>) {
    let mut lines = Vec::new();
    for path in expected.keys().chain(found.keys().filter(|path| !expected.contains_key(*path))) {
        let (a, b) = (expected.get(path), found.get(path));
        if a != b {
            let short = |seen: Option<&Seen>| {
                seen.map(|seen| Seen {
                    content: seen.content[..seen.content.len().min(20)].to_vec(),
                    ..seen.clone()
                })
            };
            lines.push(format!("{}:\n  {:?}\n  {:?}", Key::from(&path[..]), short(a), short(b)));
        }
    }
    assert!(lines.is_empty(), "{} differ:\n{}", lines.len(), lines[..lines.len().min(5)].join("\n"));
}

/// The report of a restore that could not do everything.
pub fn incomplete(result: Result<RestoreReport>) -> RestoreReport {
    match result {
        Err(Error::Incomplete { report, .. }) => match *report {
            Report::Restore(report) => report,
            other => panic!("{other:?}"),
        },
        other => panic!("expected an incomplete restore, got {other:?}"),
    }
}

/// No file bears a name that only an unfinished one has.
pub fn assert_nothing_unfinished(root: &Path) {
    if root.exists() {
        let left: Vec<_> =
            look(root).into_keys().filter(|path| path.windows(9).any(|w| w == b".cistern-")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
