//! Random changes to a directory, one backup after each: every snapshot holds what was there, and no file is
//! read that did not change.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use cistern_testkit::{Random, seed};
use disk::{Disk, look, touch};

/// How restic tells whether a file is the same: inode, size, times of modification and of change.
type Stamp = (u64, u64, (i64, i64), (i64, i64));

/// The files below a directory with their stamps.
fn stamps(root: &Path) -> BTreeMap<PathBuf, Stamp> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_path_buf()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            if stat.is_dir() {
                open.push(path);
            } else if stat.is_file() {
                let (modified, changed) =
                    ((stat.mtime(), stat.mtime_nsec()), (stat.ctime(), stat.ctime_nsec()));
                found.insert(path, (stat.ino(), stat.size(), modified, changed));
            }
        }
    }
    found
}

/// Everything below a directory: directories, and the rest.
fn places(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut directories, mut others) = (vec![root.to_path_buf()], Vec::new());
    let mut at = 0;
    while at < directories.len() {
        for entry in std::fs::read_dir(&directories[at]).unwrap() {
            let path = entry.unwrap().path();
            match path.symlink_metadata().unwrap().is_dir() {
                true => directories.push(path),
                false => others.push(path),
            }
        }
        at += 1;
    }
    directories.sort();
    others.sort();
    (directories, others)
}

fn name(random: &mut Random) -> String {
    let all = ["a", "b", "c", "a-b", "a.b", "ä", "with space", "q\"uote", "x\ny", "Z", "0", "~"];
    format!("{}{}", random.pick(&all), random.below(4))
}

fn content(random: &mut Random) -> Vec<u8> {
    let bound = *[0, 1, 5_000, 700_000, 3_000_000].get(random.below(5) as usize).unwrap();
    let mut bytes = vec![0; random.below(bound + 1) as usize];
    random.fill(&mut bytes);
    bytes
}

/// One change somewhere; one that is not possible is none.
fn change(random: &mut Random, root: &Path) {
    let (directories, others) = places(root);
    let directory = &directories[random.below(directories.len() as u64) as usize];
    let fresh = directory.join(name(random));
    let other = (!others.is_empty()).then(|| &others[random.below(others.len() as u64) as usize]);
    let file = other.filter(|path| path.symlink_metadata().unwrap().is_file());
    match (random.below(12), other, file) {
        (0..=2, ..) if fresh.symlink_metadata().is_err() => std::fs::write(fresh, content(random)).unwrap(),
        (3, ..) => drop(std::fs::create_dir(fresh)),
        (4, ..) => drop(symlink("somewhere/else", fresh)),
        (5, Some(other), _) => std::fs::remove_file(other).unwrap(),
        (6, ..) if directory != root => std::fs::remove_dir_all(directory).unwrap(),
        (7, Some(other), _) if !fresh.is_dir() => drop(std::fs::rename(other, fresh)),
        (8, _, Some(file)) => std::fs::write(file, content(random)).unwrap(),
        (9, _, Some(file)) => {
            touch(file, 1_000_000_000 + random.below(1_000) as i64, random.below(1_000) as i64)
        }
        (10, _, Some(file)) => {
            let mode = 0o600 + random.below(0o100) as u32;
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        (11, _, Some(file)) => drop(std::fs::hard_link(file, fresh)),
        _ => (),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_snapshot_holds_what_was_there_and_only_what_changed_is_read() {
    for number in [11, 12, 13] {
        let seed = seed(number);
        let mut random = seed.random();
        let mut disk = Disk::new().await;
        let mut before: BTreeMap<PathBuf, Stamp> = BTreeMap::new();
        let mut snapshots = Vec::new();
        for step in 0..6 {
            for _ in 0..random.below(20) + 5 {
                change(&mut random, &disk.source());
            }
            disk.options.workers = 1 + random.below(3) as usize;
            let now = stamps(&disk.source());
            let task = disk.task(|task| (task.accept_shrink, task.allow_empty) = (true, true));
            let report = disk.run(&task).await.unwrap();
            let read: u64 =
                now.iter().filter(|(path, stamp)| before.get(*path) != Some(stamp)).map(|(_, s)| s.1).sum();
            let new = now.keys().filter(|path| !before.contains_key(*path)).count() as u64;
            let same = now.iter().filter(|(path, stamp)| before.get(*path) == Some(stamp)).count() as u64;
            let gone = before.keys().filter(|path| !now.contains_key(*path)).count() as u64;
            let said =
                (report.bytes_read, report.objects_new, report.objects_unchanged, report.objects_deleted);
            assert_eq!(said, (read, new, same, gone), "step {step}: {report:?}");
            assert_eq!(report.objects_listed, now.len() as u64);
            assert_eq!(report.objects_changed, now.len() as u64 - new - same);
            let links =
                look(&disk.source()).into_iter().filter(|(_, seen)| seen.mode & 0o170_000 != 0o040_000);
            let expected: BTreeMap<Vec<u8>, Vec<u8>> =
                links.map(|(path, seen)| (path, seen.content)).collect();
            snapshots.push((report.snapshots[0].clone(), expected));
            before = now;
        }
        for (snapshot, expected) in &snapshots {
            let found = disk.contents(snapshot).await;
            let names = |map: &BTreeMap<Vec<u8>, Vec<u8>>| {
                map.keys().map(|k| k.escape_ascii().to_string()).collect::<Vec<_>>()
            };
            assert_eq!(names(&found), names(expected));
            assert!(found == *expected, "contents differ");
        }
        let theirs = disk.restic_backup();
        let (last, _) = snapshots.last().unwrap();
        assert_eq!(disk.source_tree(last).await, disk.source_tree(&theirs.snapshot).await);
        disk.check();
        let restored = look(&disk.restic_restore(last));
        assert!(restored == look(&disk.source()), "what restic restores is what is there");
    }
}
