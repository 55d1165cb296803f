//! A world for tests: a source and a repository in memory, backups between them, and snapshots read back.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use cistern_bucket::{
    Address, Attributes, Bucket, GetOptions, Key, ListRequest, Memory, PutOptions, Revision,
};
use cistern_engine::fidelity::{self, Description};
use cistern_engine::parts::PartInfo;
use cistern_engine::{
    Access, Backup, BackupReport, Cx, Error, Report, Result, Role, Silent, Task, Verify, VerifyReport,
};
use cistern_repository::crypto::{MasterKey, Nonces};
use cistern_repository::key::KeyFile;
use cistern_repository::{
    BlobKind, Id, Identity, KdfParams, NodeKind, Options, Reader, Repository, Snapshot, Tree,
};
use secrecy::{ExposeSecret, SecretString};
use tokio_util::sync::CancellationToken;

/// A source, a repository, and nothing else.
pub struct World {
    pub source: Arc<dyn Bucket>,
    pub repository: Arc<dyn Bucket>,
    pub concurrency: usize,
    /// The repository as it was opened first: to look at it costs no key derivation.
    opened: Repository,
}

/// An object as a snapshot has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    pub content: Bytes,
    pub attributes: Attributes,
    pub revision: Option<Revision>,
    pub second: i64,
}

#[async_trait]
impl Access for World {
    async fn bucket(&self, _address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(match role {
            Role::Repository => self.repository.clone(),
            Role::Source | Role::Target => self.source.clone(),
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

pub fn identity() -> Identity {
    Identity { hostname: "test".into(), username: "tester".into(), pid: 1, uid: 0, gid: 0 }
}

/// A task with every setting at its default, from `s3://orders`.
pub fn task() -> Backup {
    Backup::new("s3://orders".parse().unwrap(), "s3://repository".parse().unwrap(), "test")
}

impl World {
    /// An empty repository beside a source.
    pub async fn new(source: Arc<dyn Bucket>) -> Arc<Self> {
        World::with(source, Arc::new(Memory::new("s3://repository"))).await
    }

    /// A new repository in a bucket of the test's own.
    pub async fn with(source: Arc<dyn Bucket>, repository: Arc<dyn Bucket>) -> Arc<Self> {
        let opened = Repository::init(repository.clone(), &password(), &identity(), options()).await.unwrap();
        cheapen(&*repository).await;
        Arc::new(World { source, repository, concurrency: 32, opened })
    }

    /// The same with another source, or another way to the repository.
    pub fn again(self: &Arc<Self>, change: impl FnOnce(&mut World)) -> Arc<Self> {
        let mut world = World {
            source: self.source.clone(),
            repository: self.repository.clone(),
            concurrency: self.concurrency,
            opened: self.opened.clone(),
        };
        change(&mut world);
        Arc::new(world)
    }

    /// The same source and another repository, which the run reaches by `way`; it has a copy of this one's keys.
    pub fn on(self: &Arc<Self>, way: Arc<dyn Bucket>, plain: Arc<dyn Bucket>) -> Arc<Self> {
        let opened = self.opened.through(plain, options()).unwrap();
        Arc::new(World {
            source: self.source.clone(),
            repository: way,
            concurrency: self.concurrency,
            opened,
        })
    }

    /// The same source and a repository that somebody else has made with our password.
    pub async fn made_by_others(self: &Arc<Self>, repository: Arc<dyn Bucket>) -> Arc<Self> {
        cheapen(&*repository).await;
        let opened = Repository::open(repository.clone(), &password(), options()).await.unwrap();
        Arc::new(World { source: self.source.clone(), repository, concurrency: self.concurrency, opened })
    }

    pub fn cx(self: &Arc<Self>) -> Cx {
        Cx {
            access: self.clone(),
            progress: Arc::new(Silent),
            cancel: CancellationToken::new(),
            identity: identity(),
            concurrency: self.concurrency,
            lock_wait: Duration::ZERO,
        }
    }

    pub async fn backup(self: &Arc<Self>, task: &Backup) -> Result<BackupReport> {
        match cistern_engine::run(&Task::Backup(task.clone()), &self.cx()).await? {
            Report::Backup(report) => Ok(report),
            other => panic!("{other:?}"),
        }
    }

    pub async fn verify(self: &Arc<Self>, content: bool) -> Result<VerifyReport> {
        let mut task = Verify {
            repository: "s3://repository".parse().unwrap(),
            snapshot: Default::default(),
            source: "s3://orders".parse().unwrap(),
            root: None,
            selection: Default::default(),
            content,
        };
        task.snapshot.name = "latest".into();
        self.verify_task(&task).await
    }

    pub async fn verify_task(self: &Arc<Self>, task: &Verify) -> Result<VerifyReport> {
        match cistern_engine::run(&Task::Verify(task.clone()), &self.cx()).await? {
            Report::Verify(report) => Ok(report),
            other => panic!("{other:?}"),
        }
    }

    pub fn open(&self) -> Repository {
        self.opened.clone()
    }

    /// Every snapshot, in the order of time.
    pub async fn snapshots(&self) -> Vec<(Id, Snapshot)> {
        self.open().snapshots().await.unwrap()
    }

    /// The objects of some snapshots together, by key below the root; a key that is there twice is an error of the test.
    pub async fn kept(&self, snapshots: &[String]) -> BTreeMap<Key, Kept> {
        let repository = self.open();
        let reader = repository.reader(repository.index().await.unwrap());
        let mut all = BTreeMap::new();
        for id in snapshots {
            let snapshot = repository.snapshot(&id.parse().unwrap()).await.unwrap();
            for (names, kept) in walk(&reader, &snapshot.tree).await {
                let description = Description::of(&names.1).unwrap();
                let path: Vec<&[u8]> = names.0[1..].iter().map(|name| &name[..]).collect();
                let key = fidelity::key(&path, description.key.as_ref());
                assert_eq!(all.insert(key.clone(), kept), None, "{key} is there twice");
            }
        }
        all
    }

    /// What the root directory of a snapshot says of its part.
    pub async fn part(&self, snapshot: &str) -> PartInfo {
        let repository = self.open();
        let reader = repository.reader(repository.index().await.unwrap());
        let snapshot = repository.snapshot(&snapshot.parse().unwrap()).await.unwrap();
        let tree = reader.tree(&snapshot.tree).await.unwrap();
        PartInfo::of(&tree.nodes()[0]).expect("a part says so")
    }

    /// The tree of each snapshot.
    pub async fn trees(&self, snapshots: &[String]) -> Vec<Id> {
        let repository = self.open();
        let mut trees = Vec::new();
        for id in snapshots {
            trees.push(repository.snapshot(&id.parse().unwrap()).await.unwrap().tree);
        }
        trees
    }
}

/// Replaces the key of a repository by one that opens at once: a test opens it a hundred times.
async fn cheapen(repository: &dyn Bucket) {
    let keys = ListRequest { prefix: Key::from("keys/"), ..ListRequest::default() };
    let old = repository.list(&keys).await.unwrap().entries.remove(0).key;
    let json = repository.get(&old, &GetOptions::default()).await.unwrap().body.bytes().await.unwrap();
    let mut file = KeyFile::parse(&json).unwrap();
    let master = file.open(&password()).unwrap();
    let parts = master.parts();
    let [encrypt, k, r] =
        [&parts.encrypt[..], &parts.k[..], &parts.r[..]].map(|secret| BASE64.encode(secret));
    let plain = format!(r#"{{"mac":{{"k":"{k}","r":"{r}"}},"encrypt":"{encrypt}"}}"#);
    (file.n, file.r, file.p) = (2, 1, 1);
    let mut derived = [0; 64];
    let params = scrypt::Params::new(1, 1, 1).unwrap();
    scrypt::scrypt(password().expose_secret().as_bytes(), &file.salt.0, &params, &mut derived).unwrap();
    file.data.0.clear();
    let derived = MasterKey::from_bytes(&derived).unwrap();
    derived.seal_into(&mut Nonces::new(), plain.as_bytes(), &mut file.data.0).unwrap();
    let json = file.to_json();
    let key = Key::from(format!("keys/{}", Id::of(&json)));
    repository.put(&key, &[json.into()], &PutOptions::default()).await.unwrap();
    repository.delete(&old).await.unwrap();
}

type Path = (Vec<Vec<u8>>, cistern_repository::Node);

/// Every object below a tree, with the names on its way and its node, attributes of side files added.
async fn walk(reader: &Reader, root: &Id) -> Vec<(Path, Kept)> {
    let mut found = Vec::new();
    let mut open: Vec<(Vec<Vec<u8>>, Arc<Tree>)> = vec![(Vec::new(), reader.tree(root).await.unwrap())];
    while let Some((path, tree)) = open.pop() {
        for node in tree.nodes() {
            assert!(node.name.len() <= 255 && cistern_repository::Node::check_name(&node.name).is_ok());
            let mut names = path.clone();
            names.push(node.name.to_vec());
            if node.kind == NodeKind::Dir {
                let subtree = reader.tree(&node.subtree.unwrap()).await.unwrap();
                assert!(!subtree.nodes().is_empty() || path.is_empty(), "an empty directory");
                open.push((names, subtree));
                continue;
            }
            let mut description = Description::of(node).unwrap();
            if description.side {
                continue;
            }
            if let Some(side) = &description.more {
                let side = tree.get(side.as_bytes()).expect("the side file is there");
                assert!(Description::of(side).unwrap().side);
                description = description.clone().with_side(&content(reader, side).await).unwrap();
            }
            let content = content(reader, node).await;
            assert_eq!(content.len() as u64, node.size);
            let kept = Kept {
                content,
                attributes: description.attributes,
                revision: description.revision,
                second: node.mtime.seconds,
            };
            found.push(((names, node.clone()), kept));
        }
    }
    found
}

async fn content(reader: &Reader, node: &cistern_repository::Node) -> Bytes {
    let mut all = Vec::new();
    for id in node.content.as_deref().unwrap() {
        all.extend_from_slice(&reader.blob(BlobKind::Data, id).await.unwrap());
    }
    all.into()
}

/// What a bucket in memory holds, as a snapshot would have it.
pub fn expected(bucket: &Memory) -> BTreeMap<Key, Kept> {
    let object = |key: Key| {
        let (entry, attributes) = bucket.stat(&key).unwrap();
        let kept = Kept {
            content: bucket.content(&key).unwrap(),
            attributes: Attributes { tag_count: None, ..attributes },
            revision: Some(entry.revision),
            second: entry.modified.as_second(),
        };
        (key, kept)
    };
    bucket.keys().into_iter().map(object).collect()
}

/// Attributes of every kind.
pub fn attributes(i: usize) -> Attributes {
    Attributes {
        content_type: Some(format!("text/{i}")),
        cache_control: i.is_multiple_of(2).then(|| "no-cache".into()),
        content_disposition: i.is_multiple_of(3).then(|| "inline".into()),
        content_encoding: i.is_multiple_of(5).then(|| "gzip".into()),
        content_language: i.is_multiple_of(7).then(|| "de".into()),
        expires: i.is_multiple_of(11).then(|| "Thu, 01 Dec 1994 16:00:00 GMT".into()),
        website_redirect: i.is_multiple_of(13).then(|| "/other".into()),
        class: i.is_multiple_of(17).then(|| "STANDARD_IA".into()),
        meta: (0..i % 4).map(|n| (format!("name{n}"), format!("wört {n}"))).collect(),
        tags: Some((0..i % 3).map(|n| (format!("tag{n}"), format!("{i}"))).collect()),
        ..Attributes::default()
    }
}

/// A backup that reads everything again.
pub fn again() -> Backup {
    let mut task = task();
    task.force = true;
    task
}

/// What a run has done, and whether all of it; nothing if it ended with an error, which must be a clear one.
pub fn reported(what: &str, outcome: Result<BackupReport>) -> Option<(BackupReport, bool)> {
    match outcome {
        Ok(report) => Some((report, true)),
        Err(Error::Incomplete { report, .. }) => match *report {
            Report::Backup(report) => Some((report, false)),
            other => panic!("{what}: {other:?}"),
        },
        Err(error) => {
            assert!(!error.to_string().is_empty() && !matches!(error, Error::Broken(_)), "{what}: {error}");
            None
        }
    }
}
