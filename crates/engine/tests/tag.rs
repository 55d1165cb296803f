//! Tags change as restic changes them, a run at a time, and no snapshot is lost on the way.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Attributes, Memory};
use cistern_engine::{Error, Report, Result, SnapshotSelector, Tag, TagChange, TagReport, Task, runs};
use cistern_repository::{CheckOptions, Id, LockKind, ReadData, Snapshot, check};
use cistern_testkit::{Fault, Faulty, Rule};
use support::{World, identity, task};

fn own(tags: &[&str]) -> Vec<String> {
    tags.iter().map(ToString::to_string).collect()
}

fn tag(snapshots: &[&str], change: TagChange) -> Tag {
    Tag {
        repository: "s3://repository".parse().unwrap(),
        snapshots: own(snapshots),
        filter: SnapshotSelector::default(),
        change,
        dry_run: false,
    }
}

fn add(tags: &[&str]) -> TagChange {
    TagChange::Edit { add: own(tags), remove: Vec::new() }
}

async fn run(world: &Arc<World>, task: &Tag) -> Result<TagReport> {
    match cistern_engine::run(&Task::Tag(task.clone()), &world.cx()).await? {
        Report::Tag(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

fn bucket() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders"));
    (0..60).for_each(|i| bucket.insert(format!("d/{i:02}"), format!("{i}"), Attributes::default()));
    bucket
}

/// A run of several parts.
async fn parts(world: &Arc<World>, host: &str) -> usize {
    let mut backup = task();
    (backup.part_keys, backup.host, backup.force) = (20, host.into(), true);
    world.backup(&backup).await.unwrap().snapshots.len()
}

/// Snapshots without what a change of tags may change.
fn bare(snapshots: &[(Id, Snapshot)]) -> BTreeMap<String, Snapshot> {
    let bare = snapshots.iter().map(|(id, snapshot)| {
        let original = snapshot.original.unwrap_or(*id);
        (original.to_string(), Snapshot { tags: Vec::new(), original: None, ..snapshot.clone() })
    });
    bare.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_tagged_as_a_whole_and_what_it_says_of_itself_stays() {
    let world = World::new(bucket()).await;
    let number = parts(&world, "a").await;
    parts(&world, "b").await;
    assert!(number >= 3);
    let before = world.snapshots().await;
    let part = before.iter().find(|(_, snapshot)| snapshot.hostname == "a").unwrap().0.to_string();
    let mut named = tag(&[&part, &part], TagChange::Set(own(&["x", "y"])));
    named.dry_run = true;
    let dry = run(&world, &named).await.unwrap();
    assert!(dry.changed.len() == number && dry.changed.iter().all(|changed| changed.new.is_none()));
    assert_eq!(world.snapshots().await, before);
    named.dry_run = false;
    let report = run(&world, &named).await.unwrap();
    assert_eq!((report.changed.len(), report.unchanged), (number, 0));
    let after = world.snapshots().await;
    assert_eq!(bare(&after), bare(&before));
    for (id, snapshot) in &after {
        let marks = snapshot.tags.iter().filter(|tag| tag.starts_with("run:") || tag.starts_with("parts:"));
        assert_eq!(marks.count(), 2, "{:?}", snapshot.tags);
        assert_eq!(snapshot.tags.contains(&"x".into()), snapshot.hostname == "a");
        assert_eq!(snapshot.original.is_some(), snapshot.hostname == "a");
        assert_eq!(before.iter().any(|(old, _)| old == id), snapshot.hostname == "b");
    }
    assert!(runs(&after).iter().all(|run| run.is_whole() && run.parts.len() == number));
    // What is as it should be is left alone; the filter chooses where no name does, and the first id stays.
    let mut rest = tag(&[], TagChange::Edit { add: own(&["z"]), remove: own(&["x"]) });
    rest.filter.tags = own(&["x"]);
    assert_eq!(run(&world, &rest).await.unwrap().changed.len(), number);
    assert_eq!(run(&world, &rest).await.unwrap(), TagReport::default());
    let again = run(&world, &tag(&[], add(&["z"]))).await.unwrap();
    assert_eq!((again.changed.len(), again.unchanged), (number, number as u64));
    assert_eq!(bare(&world.snapshots().await), bare(&before));
    assert_eq!(run(&world, &tag(&[], add(&["z"]))).await.unwrap().unchanged, 2 * number as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_changes_nothing() {
    let world = World::new(bucket()).await;
    world.backup(&task()).await.unwrap();
    let before = world.snapshots().await;
    for change in [
        add(&["run:1"]),
        TagChange::Set(own(&["incomplete"])),
        TagChange::Edit { add: vec![], remove: own(&["partial"]) },
        add(&[]),
        add(&["a,b"]),
    ] {
        let error = run(&world, &tag(&["latest"], change)).await.unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    for name in ["abcdef", "latest~9", "latest:/orders"] {
        run(&world, &tag(&["latest", name], add(&["a"]))).await.unwrap_err();
    }
    let lock = world.open().lock(LockKind::Shared, &identity(), Duration::ZERO).await.unwrap();
    let busy = run(&world, &tag(&["latest"], add(&["a"]))).await.unwrap_err();
    assert_eq!(busy.class(), cistern_bucket::Class::Busy, "{busy}");
    lock.release().await;
    assert_eq!(world.snapshots().await, before);
}

/// A process that dies at any write has lost no snapshot, and the next one leaves each of them once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_it_has_lost_no_snapshot() {
    for fault in [Fault::Die, Fault::DieAfter] {
        for n in 0.. {
            let repository = Arc::new(Memory::new("s3://repository"));
            let world = World::with(bucket(), repository.clone()).await;
            parts(&world, "a").await;
            let before = world.snapshots().await;
            let faulty = Faulty::new(repository.clone());
            faulty.inject(Rule::new(fault).writes().nth(n));
            let mortal = world.again(|world| world.repository = faulty.clone());
            let change = tag(&["latest"], add(&["x"]));
            let outcome = run(&mortal, &change).await;
            assert_eq!(bare(&world.snapshots().await), bare(&before), "write {n}");
            assert!(runs(&world.snapshots().await)[0].is_whole(), "write {n}");
            if !faulty.is_dead() {
                assert_eq!(outcome.unwrap().changed.len(), before.len());
                assert!(n as usize >= 2 * before.len(), "{n}");
                break;
            }
            // The lock of a process that is gone.
            for key in repository.keys().iter().filter(|key| key.as_bytes().starts_with(b"locks/")) {
                repository.remove(key);
            }
            run(&world, &change).await.unwrap();
            let after = world.snapshots().await;
            assert_eq!((after.len(), bare(&after)), (before.len(), bare(&before)), "write {n}");
            assert!(after.iter().all(|(_, snapshot)| snapshot.tags.contains(&"x".into())));
            let findings =
                check(&world.open(), CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
            assert!(findings.is_empty(), "{findings:?}");
        }
    }
}
