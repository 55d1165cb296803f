//! Stock restic is the judge of backups of buckets: it finds them whole, restores every byte, and whatever it does to the
//! repository, the next run goes on from there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Attributes, Bucket, Directory, Durability, ErrorKind, Key, Memory, Verb};
use cistern_engine::{Backup, Error, ExceptionKind, Report, Restore, Task};
use cistern_repository::{BlobKind, NodeKind};
use cistern_testkit::{Fault, Faulty, Rule, hostile, seed, tools};
use support::{World, attributes, expected, task};
use tempfile::TempDir;

/// Keys that no file system would take as they are, and attributes that need a side file.
fn plant() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders"));
    // Whole paths are longer than keys: restic could not make those of keys that are slashes for the most part.
    let fits = |key: &Key| key.as_bytes().iter().filter(|byte| **byte == b'/').count() < 100;
    for (i, key) in hostile::keys(seed(60).value(), 300).into_iter().filter(fits).enumerate() {
        bucket.insert(key.clone(), format!("{i} {key}"), attributes(i));
    }
    for i in 0..120 {
        bucket.insert(format!("flat/{i:03}"), format!("{i}"), attributes(i));
    }
    let large: Attributes =
        Attributes { meta: (0..40).map(|i| (format!("n{i}"), "é".repeat(100))).collect(), ..attributes(3) };
    for key in ["large", "large/x", "dir//", "dir//y", "dir/.."] {
        bucket.insert(key, "x", large.clone());
    }
    bucket.insert("denied", "for a while", Attributes::default());
    bucket
}

struct Place {
    temp: TempDir,
    program: PathBuf,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn bucket(&self, name: &str) -> Arc<dyn Bucket> {
        Arc::new(Directory::with(self.path(name), Durability::None))
    }

    /// Runs restic on a repository; it must succeed.
    #[track_caller]
    fn restic(&self, repository: &str, arguments: &[&str]) -> String {
        let output = Command::new(&self.program)
            .env_clear()
            .env("TZ", "UTC")
            .env("RESTIC_PASSWORD", "secret")
            .env("RESTIC_FROM_PASSWORD", "secret")
            .args(["--no-cache", "--repo"])
            .arg(self.path(repository))
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{} {arguments:?}:\n{out}\n{err}", self.program.display());
        out
    }

    /// restic restores snapshots into one place: every byte as we read it.
    async fn restores(&self, world: &World, snapshots: &[String]) {
        let target = self.path("restored");
        for id in snapshots {
            self.restic("repository", &["restore", id, "--target", target.to_str().unwrap()]);
        }
        let mut restored = BTreeMap::new();
        collect(&target, &mut Vec::new(), &mut restored);
        let saved = paths(world, snapshots).await;
        assert_eq!(restored.len(), saved.len());
        for (path, content) in &saved {
            assert!(restored.get(path) == Some(content), "{}", String::from_utf8_lossy(path));
        }
        std::fs::remove_dir_all(target).unwrap();
    }
}

/// Files below a directory, by their paths.
fn collect(directory: &Path, above: &mut Vec<u8>, found: &mut BTreeMap<Vec<u8>, Bytes>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let length = above.len();
        above.push(b'/');
        above.extend_from_slice(entry.file_name().as_bytes());
        match entry.file_type().unwrap().is_dir() {
            true => collect(&entry.path(), above, found),
            false => {
                let content = std::fs::read(directory.join(OsStr::from_bytes(entry.file_name().as_bytes())));
                assert!(found.insert(above.clone(), content.unwrap().into()).is_none());
            }
        }
        above.truncate(length);
    }
}

/// Files of snapshots by their paths, side files included; no path is there twice.
async fn paths(world: &World, snapshots: &[String]) -> BTreeMap<Vec<u8>, Bytes> {
    let repository = world.open();
    let reader = repository.reader(repository.index().await.unwrap());
    let mut found = BTreeMap::new();
    for id in snapshots {
        let tree = repository.snapshot(&id.parse().unwrap()).await.unwrap().tree;
        let mut open = vec![(Vec::new(), tree)];
        while let Some((above, tree)) = open.pop() {
            for node in reader.tree(&tree).await.unwrap().nodes() {
                let path = [&above[..], b"/", &node.name].concat();
                if node.kind == NodeKind::Dir {
                    open.push((path, node.subtree.unwrap()));
                    continue;
                }
                let mut content = Vec::new();
                for blob in node.content.as_deref().unwrap() {
                    content.extend_from_slice(&reader.blob(BlobKind::Data, blob).await.unwrap());
                }
                assert!(found.insert(path, content.into()).is_none());
            }
        }
    }
    found
}

/// Backs up what has not changed since; nothing but `reads` objects is read. Then restores and compares.
async fn goes_on(world: &Arc<World>, bucket: &Memory, task: &Backup, reads: u64) -> Vec<String> {
    let before = bucket.ledger().snapshot();
    let report = world.backup(task).await.unwrap();
    let spent = bucket.ledger().snapshot().since(&before);
    assert_eq!((spent.count(Verb::Get), spent.count(Verb::Head)), (reads, 0));
    assert!(world.kept(&report.snapshots).await == expected(bucket));

    let target = Arc::new(Memory::new("s3://orders"));
    let restored = world.again(|world| world.source = target.clone());
    let restore = Restore::new(task.repository.clone(), "latest", task.source.clone());
    let outcome = cistern_engine::run(&Task::Restore(restore), &restored.cx()).await;
    let Report::Restore(_) = outcome.unwrap() else { panic!("a restore") };
    assert_eq!(target.keys(), bucket.keys());
    assert!(bucket.keys().iter().all(|key| target.content(key) == bucket.content(key)));
    assert_eq!(world.verify(true).await.unwrap().exceptions.total(), 0);
    report.snapshots
}

async fn judged_by(program: PathBuf, part_keys: u32, rewrites: bool) {
    let place = Place { temp: tempfile::tempdir().unwrap(), program };
    let bucket = plant();
    let faulty = Faulty::new(bucket.clone());
    let world = World::with(faulty.clone(), place.bucket("repository")).await;
    let task = Backup { part_keys, ..task() };
    let first = world.backup(&task).await.unwrap();
    assert_eq!(first.parts.len() > 1, part_keys < 1_000);

    // A day on which something cannot be read.
    bucket.insert("flat/050", "another", attributes(2));
    bucket.insert("denied", "now", Attributes::default());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Get).prefix("denied"));
    let Err(Error::Incomplete { report, .. }) = world.backup(&task).await else { panic!("one is missing") };
    let Report::Backup(incomplete) = *report else { panic!("a backup") };
    assert_eq!(incomplete.exceptions.count(ExceptionKind::Denied), 1);
    faulty.reset();

    place.restic("repository", &["check", "--read-data"]);
    place.restores(&world, &first.snapshots).await;
    place.restores(&world, &incomplete.snapshots).await;

    let whole = goes_on(&world, &bucket, &task, 1).await;
    let mut gone: Vec<&str> = vec!["forget", "--prune", "--max-unused", "0"];
    gone.extend(first.snapshots.iter().chain(&incomplete.snapshots).map(String::as_str));
    place.restic("repository", &gone);
    place.restic("repository", &["check", "--read-data"]);
    place.restores(&world, &whole).await;
    goes_on(&world, &bucket, &task, 0).await;

    let from = place.path("repository");
    let from = ["--from-repo", from.to_str().unwrap(), "--from-password-file"];
    let password = place.path("password");
    std::fs::write(&password, "secret").unwrap();
    let from = [&from[..], &[password.to_str().unwrap()]].concat();
    place.restic("copy", &[&["init", "--copy-chunker-params"], &from[..]].concat());
    place.restic("copy", &[&["copy"], &from[..]].concat());
    let copied = world.made_by_others(place.bucket("copy")).await;
    goes_on(&copied, &bucket, &task, 0).await;
    place.restic("copy", &["check", "--read-data"]);

    if rewrites {
        place.restic("repository", &["rewrite", "--exclude", "/orders/flat/1*", "--forget"]);
        goes_on(&world, &bucket, &task, 20).await;
        place.restic("repository", &["check", "--read-data"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_s_restic_and_one_part() {
    judged_by(tools::restic_debian().unwrap(), 40_000, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debian_s_restic_and_several_parts() {
    judged_by(tools::restic_debian().unwrap(), 60, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_restic_and_one_part() {
    judged_by(tools::restic().unwrap(), 40_000, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_restic_and_several_parts() {
    judged_by(tools::restic().unwrap(), 60, true).await;
}
