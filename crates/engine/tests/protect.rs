//! What snapshots need is locked, whatever goes wrong on the way, and nothing else is.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use cistern_bucket::{Attributes, Bucket, ErrorKind, Key, Memory, Retention, Verb};
use cistern_engine::{Error, ExceptionKind, LockMode, Protect, ProtectReport, Report, Result, Task};
use cistern_testkit::{Fault, Faulty, Rule};
use jiff::{SignedDuration, Timestamp};
use support::{World, task};

/// A repository with one snapshot, in a bucket with locks that fails on cue.
async fn world() -> (Arc<Memory>, Arc<Faulty>, Arc<World>) {
    let source = Arc::new(Memory::new("s3://orders"));
    (0..60).for_each(|i| source.insert(format!("d/{i:02}"), format!("{i}"), Attributes::default()));
    let memory = Arc::new(Memory::new("s3://repository").object_lock());
    let faulty = Faulty::new(memory.clone());
    let world = World::with(source, faulty.clone()).await;
    world.backup(&task()).await.unwrap();
    (memory, faulty, world)
}

async fn run(world: &Arc<World>, task: &Protect) -> Result<ProtectReport> {
    match cistern_engine::run(&Task::Protect(task.clone()), &world.cx()).await? {
        Report::Protect(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

fn tomorrow() -> Protect {
    let until = Some(Timestamp::now() + SignedDuration::from_hours(24));
    Protect { until, ..Protect::new("s3://repository".parse().unwrap()) }
}

/// Keys that are locked now.
fn locked(memory: &Memory) -> Vec<Key> {
    let has_lock = |key: &Key| memory.stat(key).unwrap().1.retention.is_some();
    memory.keys().into_iter().filter(has_lock).collect()
}

#[tokio::test]
async fn a_run_that_broke_off_goes_on_where_it_ended() {
    let (memory, faulty, world) = world().await;
    let task = tomorrow();
    let all = memory.keys();
    let sets = || faulty.requests().iter().filter(|r| r.verb == Verb::Retention && r.write).count();
    let world = world.again(|world| world.concurrency = 1);
    for died_after in 0..3 {
        faulty.reset();
        faulty.inject(
            Rule::new(Fault::Error(ErrorKind::Unreachable)).verb(Verb::Retention).writes().range(1..u64::MAX),
        );
        let error = run(&world, &task).await.unwrap_err();
        assert!(matches!(error, Error::Repository(_)), "{error:?}");
        assert_eq!(locked(&memory).len(), died_after + 1);
    }
    faulty.reset();
    let report = run(&world, &task).await.unwrap();
    assert!(report.is_whole() && report.extended == report.needed - 3, "{report:?}");
    assert_eq!(sets() as u64, report.needed - 3);
    // All that was there but the lock, which is gone.
    assert_eq!(locked(&memory), all);
    assert_eq!(memory.keys(), all);
}

#[tokio::test]
async fn what_cannot_be_locked_is_named_and_the_rest_is_locked() {
    let (memory, faulty, world) = world().await;
    let snapshots = || Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Retention).prefix("snapshots/");
    faulty.inject(snapshots().writes());
    let report = run(&world, &tomorrow()).await.unwrap();
    assert_eq!((report.needed - report.covered, report.is_whole()), (1, false));
    assert_eq!(report.exceptions.count(ExceptionKind::Unprotected), 1);
    let named = &report.exceptions.first[0];
    assert!(named.key.starts_with("snapshots/") && named.detail.contains("denied"), "{named:?}");
    assert_eq!((report.kinds["snapshot"].covered, report.kinds["snapshot"].needed), (0, 1));
    assert_eq!(locked(&memory).len() as u64, report.covered);
    // A pack that is gone is not protected either.
    faulty.reset();
    let pack = memory.keys().into_iter().find(|key| key.to_string().starts_with("data/")).unwrap();
    memory.remove(&pack);
    let report = run(&world, &Protect::new("s3://repository".parse().unwrap())).await;
    assert!(report.is_err() || !report.unwrap().is_whole());
}

#[tokio::test]
async fn locks_of_others_are_neither_weakened_nor_made_longer_than_asked() {
    let (memory, _, world) = world().await;
    let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap();
    let lock =
        |mode: &str, hours| Retention { mode: mode.into(), until: now + SignedDuration::from_hours(hours) };
    let config = Key::from("config");
    memory.set_retention(&config, &lock("COMPLIANCE", 1)).await.unwrap();
    let key = memory.keys().into_iter().find(|key| key.to_string().starts_with("keys/")).unwrap();
    memory.set_retention(&key, &lock("GOVERNANCE", 99)).await.unwrap();
    let report = run(&world, &tomorrow()).await.unwrap();
    assert!(report.is_whole(), "{report:?}");
    let found = memory.retention(&config).await.unwrap().unwrap();
    assert_eq!((found.mode.as_str(), Some(found.until)), ("COMPLIANCE", report.until));
    assert_eq!(memory.retention(&key).await.unwrap(), Some(lock("GOVERNANCE", 99)));
    // This store, as S3, changes no mode without the right to override; each is named, and nothing changes.
    let strict = Protect { mode: LockMode::Compliance, ..tomorrow() };
    let report = run(&world, &strict).await.unwrap();
    assert_eq!((report.covered, report.is_whole()), (1, false));
    assert_eq!(memory.retention(&key).await.unwrap(), Some(lock("GOVERNANCE", 99)));
}
