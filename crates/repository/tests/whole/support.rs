//! What the tests of the whole repository share: a model of a backup (paths and contents), written through the
//! writer and read back through the reader.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cistern_bucket::{Bucket, Directory, Durability};
use cistern_repository::{
    BlobKind, Contents, Id, Identity, KdfParams, Lock, LockKind, Node, NodeKind, Options, Reader, Repository,
    Result, Snapshot, Time, TreeBuilder, Writer, node::mode,
};
use cistern_testkit::Random;
use secrecy::SecretString;

/// Paths without a leading slash, and contents.
pub type Model = BTreeMap<String, Bytes>;

pub const PASSWORD: &str = "correct horse battery staple";

pub fn password() -> SecretString {
    PASSWORD.into()
}

pub fn who() -> Identity {
    let pid = std::process::id();
    Identity { hostname: "host-0".into(), username: "ann".into(), pid, uid: 1000, gid: 1000 }
}

pub fn options() -> Options {
    Options { workers: 2, kdf: KdfParams::NONE, ..Options::default() }
}

pub fn directory(path: &Path) -> Arc<dyn Bucket> {
    Arc::new(Directory::with(path, Durability::None))
}

pub async fn lock(repo: &Repository, kind: LockKind) -> Lock {
    repo.lock(kind, &who(), std::time::Duration::ZERO).await.unwrap()
}

/// Bytes that do not compress.
pub fn noise(random: &mut Random, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes.into()
}

/// Lines that compress well.
pub fn text(random: &mut Random, length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length + 100);
    while bytes.len() < length {
        let n = random.word();
        bytes.extend_from_slice(
            format!("2026-11-22 host-{} request {n:x} took {} us\n", n % 7, n % 9973).as_bytes(),
        );
    }
    bytes.truncate(length);
    bytes.into()
}

/// A hundred small files, some large ones, some empty, some equal.
pub fn model(random: &mut Random) -> Model {
    let mut model = Model::new();
    for i in 0..100u64 {
        let length = (random.word() % 20_000) as usize;
        let bytes = if i % 2 == 0 { noise(random, length) } else { text(random, length) };
        model.insert(format!("small/{}/file {i} <&>\u{2028}é", i % 7), bytes);
    }
    for (name, length) in [("a", 5 << 20), ("b", 512 << 10), ("c", (512 << 10) + 1), ("d", 11_000_000)] {
        model.insert(format!("large/{name}.bin"), noise(random, length));
        model.insert(format!("large/{name}.log"), text(random, length));
    }
    model.insert("large/zeros".into(), vec![0; 20 << 20].into());
    model.insert("empty".into(), Bytes::new());
    model.insert("one".into(), Bytes::from_static(b"1"));
    let twin = model["large/a.bin"].clone();
    model.insert("large/twin of a".into(), twin);
    model
}

/// The next day: something new, something changed, something gone.
pub fn change(model: &mut Model, random: &mut Random) {
    let keys: Vec<String> = model.keys().cloned().collect();
    for key in keys.iter().step_by(9) {
        model.remove(key);
    }
    for key in keys.iter().skip(1).step_by(9) {
        let mut bytes = model[key].to_vec();
        bytes.extend_from_slice(b"more");
        model.insert(key.clone(), bytes.into());
    }
    for i in 0..10 {
        let length = (random.word() % 300_000) as usize;
        model.insert(format!("new/{}/{i}", random.word() % 3), noise(random, length));
    }
}

enum Entry {
    File(Contents),
    Dir(BTreeMap<String, Entry>),
}

/// Writes a model: small files in batches, large ones as streams, then the directories.
pub async fn write(writer: &Writer, model: &Model) -> Result<Id> {
    let mut root: BTreeMap<String, Entry> = BTreeMap::new();
    let mut insert = |path: &str, contents| {
        let (mut directory, mut rest) = (&mut root, path);
        while let Some((first, behind)) = rest.split_once('/') {
            let entry = directory.entry(first.into()).or_insert_with(|| Entry::Dir(BTreeMap::new()));
            let Entry::Dir(below) = entry else { panic!("{path} is below a file") };
            (directory, rest) = (below, behind);
        }
        directory.insert(rest.into(), Entry::File(contents));
    };
    let (small, large): (Vec<_>, Vec<_>) = model.iter().partition(|(_, bytes)| bytes.len() < 512 << 10);
    let mut tickets = Vec::new();
    for files in small.chunks(16) {
        let permit = writer.permit(files.iter().map(|(_, bytes)| bytes.len()).sum()).await?;
        let contents: Vec<Bytes> = files.iter().map(|(_, bytes)| (*bytes).clone()).collect();
        let ticket = writer.batch(permit, move |batch| {
            for (i, bytes) in contents.into_iter().enumerate() {
                match i % 3 {
                    0 => batch.add(&bytes),
                    1 => batch.add_with(bytes.len(), |out| {
                        out.extend_from_slice(&bytes);
                        Ok(())
                    }),
                    _ => batch.add_bytes(bytes),
                }
            }
        });
        tickets.push((files, ticket));
    }
    for (path, bytes) in large {
        let mut file = writer.file();
        let mut rest = bytes.clone();
        let step = 1 + bytes.len() / 3;
        while !rest.is_empty() {
            file.push(rest.split_to(step.min(rest.len()))).await?;
        }
        insert(path, file.finish().await?);
    }
    for (files, ticket) in tickets {
        for ((path, _), contents) in files.iter().zip(ticket.await?) {
            insert(path, contents.unwrap());
        }
    }
    write_directory(writer, &root)
}

fn write_directory(writer: &Writer, entries: &BTreeMap<String, Entry>) -> Result<Id> {
    let mut tree = TreeBuilder::new();
    for (name, entry) in entries {
        let time = Time::new(1_700_000_000, 0);
        let mut node =
            Node { name: name.as_bytes().into(), mtime: time, atime: time, ctime: time, ..Node::default() };
        match entry {
            Entry::File(contents) => {
                node.mode = 0o644;
                node.size = contents.size;
                node.content = Some(contents.blobs.clone().into());
            }
            Entry::Dir(below) => {
                node.kind = NodeKind::Dir;
                node.mode = mode::DIR | 0o755;
                node.subtree = Some(write_directory(writer, below)?);
            }
        }
        tree.add(&node)?;
    }
    writer.tree(tree.finish()?)
}

pub fn snapshot(tree: Id, parent: Option<Id>) -> Snapshot {
    let mut snapshot = Snapshot::new(Time::from(jiff::Timestamp::now()), tree, vec!["/data".into()]);
    snapshot.parent = parent;
    snapshot.hostname = "host-0".into();
    snapshot.username = "ann".into();
    snapshot
}

/// A whole run: lock, index, writer, snapshot.
pub async fn backup(repo: &Repository, model: &Model) -> Result<Id> {
    backup_as(repo, model, &who()).await
}

pub async fn backup_as(repo: &Repository, model: &Model, who: &Identity) -> Result<Id> {
    let lock = repo.lock(LockKind::Shared, who, std::time::Duration::ZERO).await?;
    let parent = repo.snapshots().await?.last().map(|(id, _)| *id);
    let writer = repo.writer(repo.index().await?, lock);
    match write(&writer, model).await {
        Ok(tree) => Ok(writer.finish(vec![snapshot(tree, parent)]).await?.ids[0]),
        Err(error) => {
            writer.abort().await;
            Err(error)
        }
    }
}

/// Everything below a directory, through bulk delivery.
pub async fn read(reader: &Reader, root: Id) -> Result<Model> {
    let mut files: Vec<(String, Vec<Id>)> = Vec::new();
    let mut stack = vec![(String::new(), root)];
    while let Some((path, id)) = stack.pop() {
        for node in reader.tree(&id).await?.nodes() {
            let name = String::from_utf8(node.name.to_vec()).unwrap();
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            match node.kind {
                NodeKind::Dir => stack.push((path, node.subtree.unwrap())),
                NodeKind::File => files.push((path, node.content.clone().unwrap().into())),
                _ => (),
            }
        }
    }
    let wanted: Vec<Id> = files.iter().flat_map(|(_, blobs)| blobs.iter().copied()).collect();
    let pieces: Arc<Mutex<Vec<Option<Result<Vec<u8>, String>>>>> =
        Arc::new(Mutex::new(vec![None; wanted.len()]));
    let sink = pieces.clone();
    let deliver = reader.deliver(
        wanted,
        Arc::new(move |i, piece| {
            let old = sink.lock().unwrap()[i].replace(piece.map(<[u8]>::to_vec).map_err(ToString::to_string));
            assert!(old.is_none(), "position {i} came twice");
        }),
    );
    deliver.await?;
    let mut pieces = std::mem::take(&mut *pieces.lock().unwrap()).into_iter();
    let mut model = Model::new();
    for (path, blobs) in files {
        let mut bytes = Vec::new();
        for id in &blobs {
            match pieces.next().unwrap().expect("every position is called") {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(_) => bytes.extend_from_slice(&reader.blob(BlobKind::Data, id).await?),
            }
        }
        model.insert(path, bytes.into());
    }
    Ok(model)
}

/// Compares without printing megabytes.
#[track_caller]
pub fn assert_same(actual: &Model, expected: &Model) {
    let names = |model: &Model| model.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(actual), names(expected));
    for (path, bytes) in expected {
        assert!(actual[path] == bytes, "{path} differs");
    }
}

/// What restic shows of a directory that was restored.
pub fn read_directory(root: &Path) -> Model {
    let mut model = Model::new();
    let mut stack = vec![root.to_owned()];
    while let Some(directory) = stack.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                stack.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                model.insert(path, std::fs::read(entry.path()).unwrap().into());
            }
        }
    }
    model
}

/// Writes a model below a directory.
pub fn write_files(root: &Path, model: &Model) {
    for (path, bytes) in model {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// A stock restic of one version on one repository, with nothing of the user's environment.
pub struct Restic {
    pub program: std::path::PathBuf,
    pub repo: std::path::PathBuf,
    pub cache: std::path::PathBuf,
}

impl Restic {
    /// Runs it; it must succeed.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let (status, out, err) = self.attempt(arguments);
        assert!(status, "{} {arguments:?} failed:\n{out}\n{err}", self.program.display());
        out
    }

    /// Runs it; whether it succeeded, and what it said.
    pub fn attempt(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            // Its `repair packs` leaves copies of the damaged packs where it is run.
            .current_dir(self.repo.parent().unwrap())
            .env_clear()
            .env("TZ", "UTC")
            .env("RESTIC_PASSWORD", PASSWORD)
            .arg("--repo")
            .arg(&self.repo)
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(arguments);
        command
    }
}
