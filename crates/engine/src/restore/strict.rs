//! Tests of the writers on targets that are stricter than any real one: a mount that takes nothing but files written in
//! order, and a disk that fills up.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Memory};
use cistern_repository::{Identity, KdfParams, NodeKind, Options, Repository, Time};
use rustix::fs::{Stat, StatFs};
use rustix::io::{Errno, Result};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use super::placer::{Name, Placer, System};
use super::{Job, Outcome, directory};
use crate::backup::session::Collector;
use crate::select::Select;
use crate::{
    Access, Backup, Cx, Error, ExceptionKind, Exceptions, Meter, Overwrite, Restore, Role, Selection, Silent,
    SnapshotSelector, TargetWriter, Task,
};

/// A target that hands on what its kind allows, and refuses the rest as the real one does.
#[derive(Default)]
struct Strict {
    system: System,
    /// Only create, append and close; what a file was given so far, by descriptor.
    sequential: bool,
    /// Existing files can be written anew.
    overwrite: bool,
    /// Bytes that are left; below nothing, the disk is full.
    room: Option<AtomicI64>,
    written: Mutex<HashMap<i32, u64>>,
    /// What was tried and is not allowed.
    refused: Mutex<Vec<&'static str>>,
}

impl Strict {
    fn only_disk(&self, what: &'static str) -> Result<()> {
        if !self.sequential {
            return Ok(());
        }
        self.refused.lock().unwrap().push(what);
        Err(Errno::PERM)
    }

    fn take(&self, bytes: usize) -> Result<()> {
        match &self.room {
            Some(room) if room.fetch_sub(bytes as i64, SeqCst) < bytes as i64 => Err(Errno::NOSPC),
            _ => Ok(()),
        }
    }
}

impl Placer for Strict {
    fn open_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        self.system.open_dir(dir, name)
    }
    fn open(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        self.system.open(dir, name)
    }
    fn make_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<()> {
        self.system.make_dir(dir, name, mode)
    }
    fn create(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<OwnedFd> {
        self.system.create(dir, name, mode)
    }
    fn truncate(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<OwnedFd> {
        if !self.overwrite {
            self.only_disk("truncate")?;
        }
        self.system.truncate(dir, name)
    }
    fn append(&self, file: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
        self.take(bytes.len())?;
        *self.written.lock().unwrap().entry(file.as_raw_fd()).or_default() += bytes.len() as u64;
        self.system.append(file, bytes)
    }
    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], offset: u64) -> Result<()> {
        self.only_disk("write out of order")?;
        self.take(bytes.len())?;
        self.system.write_at(file, bytes, offset)
    }
    fn reserve(&self, _: BorrowedFd<'_>, _: u64) {}
    fn close(&self, file: OwnedFd) -> Result<()> {
        self.written.lock().unwrap().remove(&file.as_raw_fd());
        self.system.close(file)
    }
    fn stat(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Option<Stat>> {
        self.system.stat(dir, name)
    }
    fn stat_open(&self, file: BorrowedFd<'_>) -> Result<Stat> {
        self.system.stat_open(file)
    }
    fn set_owner(&self, file: BorrowedFd<'_>, uid: u32, gid: u32) -> Result<()> {
        self.only_disk("owner")?;
        self.system.set_owner(file, uid, gid)
    }
    fn set_mode(&self, file: BorrowedFd<'_>, mode: u32) -> Result<()> {
        self.only_disk("mode")?;
        self.system.set_mode(file, mode)
    }
    fn set_times(&self, file: BorrowedFd<'_>, accessed: Time, modified: Time) -> Result<()> {
        self.only_disk("times")?;
        self.system.set_times(file, accessed, modified)
    }
    fn set_xattr(&self, file: BorrowedFd<'_>, name: &str, value: &[u8]) -> Result<()> {
        self.only_disk("xattr")?;
        self.system.set_xattr(file, name, value)
    }
    fn set_link_owner(&self, dir: BorrowedFd<'_>, name: Name<'_>, uid: u32, gid: u32) -> Result<()> {
        self.only_disk("owner of a link")?;
        self.system.set_link_owner(dir, name, uid, gid)
    }
    fn set_link_times(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        accessed: Time,
        modified: Time,
    ) -> Result<()> {
        self.only_disk("times of a link")?;
        self.system.set_link_times(dir, name, accessed, modified)
    }
    fn set_link_mode(&self, dir: BorrowedFd<'_>, name: Name<'_>, mode: u32) -> Result<()> {
        self.only_disk("mode of a pipe")?;
        self.system.set_link_mode(dir, name, mode)
    }
    fn set_link_xattr(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        attribute: &str,
        value: &[u8],
    ) -> Result<()> {
        self.only_disk("xattr of a link")?;
        self.system.set_link_xattr(dir, name, attribute, value)
    }
    fn rename(&self, dir: BorrowedFd<'_>, from: Name<'_>, to: Name<'_>, replace: bool) -> Result<()> {
        self.only_disk("rename")?;
        self.system.rename(dir, from, to, replace)
    }
    fn link(&self, old: (BorrowedFd<'_>, Name<'_>), new: (BorrowedFd<'_>, Name<'_>)) -> Result<()> {
        self.only_disk("link")?;
        self.system.link(old, new)
    }
    fn symlink(&self, target: &[u8], dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        self.only_disk("symbolic link")?;
        self.system.symlink(target, dir, name)
    }
    fn make_node(
        &self,
        dir: BorrowedFd<'_>,
        name: Name<'_>,
        kind: NodeKind,
        mode: u32,
        device: u64,
    ) -> Result<()> {
        self.only_disk("special file")?;
        self.system.make_node(dir, name, kind, mode, device)
    }
    fn read_link(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<Vec<u8>> {
        self.system.read_link(dir, name)
    }
    fn remove(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        self.system.remove(dir, name)
    }
    fn remove_dir(&self, dir: BorrowedFd<'_>, name: Name<'_>) -> Result<()> {
        self.system.remove_dir(dir, name)
    }
    fn list(&self, dir: BorrowedFd<'_>, found: &mut dyn FnMut(&[u8], bool)) -> Result<()> {
        self.system.list(dir, found)
    }
    fn sync(&self, any: BorrowedFd<'_>) -> Result<()> {
        self.only_disk("sync")?;
        self.system.sync(any)
    }
    fn stat_fs(&self, any: BorrowedFd<'_>) -> Result<StatFs> {
        self.system.stat_fs(any)
    }
}

struct Way(Arc<dyn Bucket>);

#[async_trait]
impl Access for Way {
    async fn bucket(&self, _: &Address, _: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(self.0.clone())
    }

    async fn password(&self, _: &Address) -> crate::Result<SecretString> {
        Ok("secret".into())
    }

    fn options(&self, _: &Address) -> Options {
        Options { workers: 2, memory: 64 << 20, kdf: KdfParams::NONE, ..Options::default() }
    }
}

/// A source with files of none, one and many blobs, links and a pipe, saved.
struct Saved {
    temp: tempfile::TempDir,
    cx: Cx,
}

impl Saved {
    async fn new() -> Self {
        Saved::owned_by(|uid| uid).await
    }

    /// The files belong to somebody else in the snapshot, as `owner` says.
    async fn owned_by(owner: fn(u32) -> u32) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let source = temp.path().join("source");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        let mut random = cistern_testkit::Random::new(3);
        for (name, size) in [("empty", 0), ("small", 5_000), ("sub/large", 20 << 20), ("z", 3 << 20)] {
            let mut bytes = vec![0; size];
            random.fill(&mut bytes);
            std::fs::write(source.join(name), bytes).unwrap();
        }
        for i in 0..200 {
            std::fs::write(source.join(format!("sub/{i}")), vec![i as u8; 3_000]).unwrap();
        }
        std::fs::hard_link(source.join("small"), source.join("small-again")).unwrap();
        let bucket: Arc<dyn Bucket> = Arc::new(Memory::new("memory"));
        let identity = Identity {
            hostname: "h".into(),
            username: "u".into(),
            pid: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: 0,
        };
        let way = Way(bucket.clone());
        let options = way.options(&Address::Directory("x".into()));
        Repository::init(bucket, &"secret".into(), &identity, options).await.unwrap();
        let cx = Cx {
            access: Arc::new(way),
            progress: Arc::new(Silent),
            cancel: CancellationToken::new(),
            identity,
            concurrency: 4,
            lock_wait: Duration::ZERO,
        };
        let backup = Backup::new(Address::Directory(source), "s3://repository".parse().unwrap(), "h");
        crate::run(&Task::Backup(backup), &cx).await.unwrap();
        let saved = Saved { temp, cx };
        saved.give_away(owner).await;
        saved
    }

    /// Writes the snapshot once more, in which every node has another owner.
    async fn give_away(&self, owner: fn(u32) -> u32) {
        let way: Address = "s3://repository".parse().unwrap();
        let (repository, _) = crate::backup::session::open_repository(&way, &self.cx).await.unwrap();
        let (_, mut snapshot) = repository.snapshots().await.unwrap().remove(0);
        let index = repository.index().await.unwrap();
        let reader = repository.reader(index.clone());
        let lock = crate::backup::session::lock(&repository, &self.cx).await.unwrap();
        let writer = repository.writer(index, lock);
        // From the leaves to the root.
        let mut order = vec![snapshot.tree];
        let mut at = 0;
        while let Some(id) = order.get(at).copied() {
            order.extend(reader.tree(&id).await.unwrap().nodes().iter().filter_map(|node| node.subtree));
            at += 1;
        }
        let mut new = HashMap::new();
        for id in order.into_iter().rev() {
            let mut builder = cistern_repository::TreeBuilder::new();
            for node in reader.tree(&id).await.unwrap().nodes() {
                let mut node = node.clone();
                node.uid = owner(node.uid);
                node.subtree = node.subtree.map(|old| new[&old]);
                builder.add(&node).unwrap();
            }
            new.insert(id, writer.tree(builder.finish().unwrap()).unwrap());
        }
        snapshot.tree = new[&snapshot.tree];
        snapshot.time = Time::new(2_000_000_000, 0);
        writer.finish(vec![snapshot]).await.unwrap();
    }

    fn source(&self) -> std::path::PathBuf {
        self.temp.path().join("source")
    }

    fn out(&self) -> std::path::PathBuf {
        self.temp.path().join("out")
    }

    /// Restores what the source directory held to the target.
    async fn restore(
        &self,
        placer: Arc<Strict>,
        overwrite: Overwrite,
        writer: TargetWriter,
    ) -> (crate::Result<Outcome>, Exceptions) {
        let task = Restore {
            repository: "s3://repository".parse().unwrap(),
            snapshot: SnapshotSelector {
                name: format!("latest:{}", self.source().display()),
                ..SnapshotSelector::default()
            },
            target: Address::Directory(self.out()),
            selection: Selection::default(),
            remap: Vec::new(),
            overwrite,
            delete: false,
            dry_run: false,
            verify: false,
            writer,
            privileged: false,
        };
        let (repository, _) =
            crate::backup::session::open_repository(&task.repository, &self.cx).await.unwrap();
        let super::Source { run, reader, roots, covered, splits } =
            super::find(&repository, &task).await.unwrap();
        let meter = Arc::new(Meter::default());
        let collector = Arc::new(Collector::new(Arc::new(Silent), meter.clone()));
        let job = Arc::new(Job {
            select: Arc::new(Select::new(&task.selection).unwrap()),
            task,
            cx: self.cx.clone(),
            reader: Arc::new(reader),
            run,
            roots,
            covered,
            guarded: Vec::new(),
            escaped: 0.into(),
            splits,
            meter,
            collector: collector.clone(),
            stop: self.cx.cancel.child_token(),
        });
        let outcome = directory::restore_with(job, self.out(), placer).await;
        (outcome, collector.take())
    }
}

fn contents(root: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut all = std::collections::BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => {
                    let name = path.strip_prefix(root).unwrap().display().to_string();
                    all.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_takes_only_files_written_in_order_gets_them() {
    // As the superuser, who would give each file to its owner elsewhere; these are not ours.
    let mut saved = Saved::owned_by(|uid| uid + 4_242).await;
    saved.cx.identity.uid = 0;
    // Both where it is asked for, and where the probe finds out.
    for (writer, tried) in
        [(TargetWriter::Sequential, &[][..]), (TargetWriter::Auto, &["write out of order"][..])]
    {
        let _ = std::fs::remove_dir_all(saved.out());
        let placer = Arc::new(Strict { sequential: true, ..Strict::default() });
        let (outcome, exceptions) = saved.restore(placer.clone(), Overwrite::IfChanged, writer).await;
        let outcome = outcome.unwrap();
        assert_eq!(contents(&saved.source()), contents(&saved.out()));
        assert_eq!(outcome.written, 205, "{exceptions:?}");
        assert_eq!(*placer.refused.lock().unwrap(), tried, "nothing else was tried");
        assert!(placer.written.lock().unwrap().is_empty(), "every file was closed");
        // Once more: nothing is to be done, and nothing is tried.
        let (outcome, _) =
            saved.restore(placer.clone(), Overwrite::IfChanged, TargetWriter::Sequential).await;
        assert_eq!(outcome.unwrap().written, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_replaces_no_file_says_so_for_each() {
    let saved = Saved::new().await;
    std::fs::create_dir(saved.out()).unwrap();
    std::fs::write(saved.out().join("small"), "what was there").unwrap();
    let placer = Arc::new(Strict { sequential: true, ..Strict::default() });
    let (outcome, exceptions) =
        saved.restore(placer.clone(), Overwrite::Always, TargetWriter::Sequential).await;
    assert_eq!(outcome.unwrap().written, 204);
    assert_eq!(exceptions.count(ExceptionKind::Unwritable), 1);
    assert!(exceptions.first[0].detail.contains("allow-overwrite"), "{exceptions:?}");
    assert_eq!(std::fs::read(saved.out().join("small")).unwrap(), b"what was there");
    let placer = Arc::new(Strict { sequential: true, overwrite: true, ..Strict::default() });
    let (outcome, exceptions) = saved.restore(placer, Overwrite::Always, TargetWriter::Sequential).await;
    assert_eq!((outcome.unwrap().written, exceptions.total()), (205, 0));
    assert_eq!(contents(&saved.source()), contents(&saved.out()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_restore_and_leaves_no_part_of_a_file() {
    let saved = Saved::new().await;
    let whole = contents(&saved.source());
    for (sequential, room) in
        [(false, 0), (false, 2_000), (false, 300_000), (false, 10 << 20), (true, 300_000), (true, 10 << 20)]
    {
        let _ = std::fs::remove_dir_all(saved.out());
        std::fs::create_dir(saved.out()).unwrap();
        std::fs::write(saved.out().join("z"), "what was there").unwrap();
        let placer = Arc::new(Strict {
            sequential,
            overwrite: true,
            room: Some(AtomicI64::new(room)),
            ..Strict::default()
        });
        let (outcome, _) = saved.restore(placer, Overwrite::Always, TargetWriter::Auto).await;
        let error = outcome.err().expect("it does not fit");
        let Error::File { source, .. } = &error else { panic!("{error:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error:?}");
        for (name, bytes) in contents(&saved.out()) {
            let before = name == "z" && bytes == b"what was there";
            assert!(before || whole.get(&name) == Some(&bytes), "{name} has {} bytes", bytes.len());
        }
        if !sequential {
            let z = std::fs::read(saved.out().join("z")).unwrap();
            assert!(z == b"what was there" || z == whole["z"], "what is replaced is not lost before");
        }
    }
}

#[test]
fn a_name_is_one_entry_of_a_directory() {
    let temp = tempfile::tempdir().unwrap();
    for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0"] {
        assert!(Name::new(bad).is_err(), "{bad:?}");
    }
    let root = super::placer::open_root(temp.path()).unwrap();
    let name = |text: &'static str| Name::new(text.as_bytes()).unwrap();
    let system = System;
    system.symlink(b"/etc", root.as_fd(), name("link")).unwrap();
    assert!(matches!(system.open_dir(root.as_fd(), name("link")), Err(Errno::LOOP | Errno::NOTDIR)));
    assert!(system.open(root.as_fd(), name("link")).is_err());
    assert!(system.truncate(root.as_fd(), name("link")).is_err());
    assert!(matches!(system.create(root.as_fd(), name("link"), 0o600), Err(Errno::EXIST)));
    assert_eq!(system.set_owner(root.as_fd(), u32::MAX, 0), Err(Errno::INVAL));
    system.make_node(root.as_fd(), name("pipe"), NodeKind::Fifo, 0o600, 0).unwrap();
    system.open(root.as_fd(), name("pipe")).expect("a pipe without a writer does not stop us");
}
