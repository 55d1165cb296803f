//! An index that is mapped from a file of the cache is the one that memory would hold, and is trusted no more than any
//! other file there.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cistern_bucket::{Bucket, Memory, Verb};
use cistern_repository::{
    BlobKind, CheckOptions, Id, Index, LockKind, Margins, MaxUnused, Options, PruneOptions, ReadData,
    Repository, check, plan_prune, prune,
};
use cistern_testkit::seed;

use crate::support::*;

fn mapping(cache: &Path) -> Options {
    Options { cache: Some(cache.to_owned()), index_in_memory: 0, ..options() }
}

/// Everything that an index says, in an order that does not depend on how it was read.
fn contents(index: &Index) -> Vec<(BlobKind, Id, Id, u32, u32, Option<u32>)> {
    let blobs = BlobKind::ALL.into_iter().flat_map(|kind| index.blobs(kind));
    let mut all: Vec<_> = blobs
        .map(|(pack, blob)| (blob.kind, blob.id, index.pack(pack), blob.offset, blob.length, blob.raw_length))
        .collect();
    all.sort();
    all
}

/// Files below a directory whose names are ids, in directories of this name.
fn files(root: &Path, directory: &str) -> Vec<PathBuf> {
    let (mut found, mut stack) = (Vec::new(), vec![root.to_owned()]);
    while let Some(path) = stack.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten() {
            let entry = entry.unwrap().path();
            if entry.is_dir() {
                stack.push(entry);
            } else if path.ends_with(directory) {
                found.push(entry);
            }
        }
    }
    found
}

async fn three_days(memory: &Arc<Memory>) -> (Repository, Vec<Model>) {
    let mut random = seed(80).random();
    let repo = Repository::init(memory.clone(), &password(), &who(), options()).await.unwrap();
    let mut day: Model =
        model(&mut random).into_iter().filter(|(path, _)| !path.starts_with("large")).collect();
    let mut days = Vec::new();
    for _ in 0..3 {
        backup(&repo, &day).await.unwrap();
        days.push(day.clone());
        change(&mut day, &mut random);
    }
    (repo, days)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_index_is_the_same_and_is_made_once() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, days) = three_days(&memory).await;
    let expected = contents(&repo.index().await.unwrap());
    assert!(expected.len() > 100);
    let temp = tempfile::tempdir().unwrap();
    let gets = || memory.ledger().snapshot().count(Verb::Get);
    for (round, fetched) in [(0, true), (1, false)] {
        let mapped = repo.through(memory.clone(), mapping(temp.path())).unwrap();
        let before = gets();
        let index = mapped.index().await.unwrap();
        assert_eq!(gets() > before, fetched, "round {round}");
        assert_eq!(contents(&index), expected);
        assert_eq!(files(temp.path(), "mapped-index").len(), 1);
        let snapshots = mapped.snapshots().await.unwrap();
        for ((_, snapshot), day) in snapshots.iter().zip(&days) {
            assert_same(&read(&mapped.reader(index.clone()), snapshot.tree).await.unwrap(), day);
        }
    }
    // Another index takes its place; who has mapped the old one keeps it.
    let mapped = repo.through(memory.clone(), mapping(temp.path())).unwrap();
    let old = mapped.index().await.unwrap();
    let mut day = days[2].clone();
    day.insert("later".into(), noise(&mut seed(81).random(), 50_000));
    backup(&mapped, &day).await.unwrap();
    let new = mapped.index().await.unwrap();
    assert_eq!(files(temp.path(), "mapped-index").len(), 1);
    assert_eq!(contents(&old), expected);
    assert_eq!(contents(&new), contents(&repo.index().await.unwrap()));
    assert!(contents(&new).len() > expected.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapped_index_that_is_not_ours_is_made_anew() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, _) = three_days(&memory).await;
    let expected = contents(&repo.index().await.unwrap());
    let temp = tempfile::tempdir().unwrap();
    let mapped = repo.through(memory.clone(), mapping(temp.path())).unwrap();
    mapped.index().await.unwrap();
    let file = files(temp.path(), "mapped-index").pop().unwrap();
    let whole = fs::read(&file).unwrap();
    // A file of another repository with the same password would lie elsewhere, and has another key.
    type Damage = fn(&mut Vec<u8>);
    let damages: [Damage; 8] = [
        |bytes| bytes.clear(),
        |bytes| bytes.truncate(100),
        |bytes| bytes.truncate(bytes.len() - 1),
        |bytes| bytes.push(0),
        |bytes| bytes[10] ^= 1,
        |bytes| bytes[8..16].fill(0xff),
        |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        },
        |bytes| *bytes.last_mut().unwrap() ^= 1,
    ];
    for (case, damage) in damages.into_iter().enumerate() {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::remove_file(&file).unwrap();
        fs::write(&file, &bytes).unwrap();
        assert_eq!(contents(&mapped.index().await.unwrap()), expected, "case {case}");
        assert_eq!(fs::read(&file).unwrap().len(), whole.len(), "case {case}");
    }
    // Where no file can be made, memory takes the index.
    let blocked = temp.path().join("blocked");
    fs::write(&blocked, b"a file, not a directory").unwrap();
    let none = repo.through(memory.clone(), mapping(&blocked)).unwrap();
    assert_eq!(contents(&none.index().await.unwrap()), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_and_prune_work_on_a_mapped_index() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, days) = three_days(&memory).await;
    let temp = tempfile::tempdir().unwrap();
    let mapped = repo.through(memory.clone(), mapping(temp.path())).unwrap();
    let whole = CheckOptions { read_data: ReadData::All };
    assert!(check(&mapped, whole, &|_| ()).await.unwrap().is_empty());
    let snapshots = mapped.snapshots().await.unwrap();
    let lock = Arc::new(lock(&mapped, LockKind::Exclusive).await);
    for (id, _) in &snapshots[..2] {
        mapped.remove_snapshot(id, &lock).await.unwrap();
    }
    let options =
        PruneOptions { max_unused: MaxUnused::Bytes(0), margins: Margins::ALONE, ..PruneOptions::default() };
    let plan = plan_prune(&mapped, &options, Some(&lock), &|_| ()).await.unwrap();
    assert!(plan.unused.count > 0);
    prune(&mapped, plan, &lock, None, &|_| ()).await.unwrap();
    lock.release().await;
    assert!(check(&mapped, whole, &|_| ()).await.unwrap().is_empty());
    let reader = mapped.reader(mapped.index().await.unwrap());
    assert_same(&read(&reader, snapshots[2].1.tree).await.unwrap(), &days[2]);
}
