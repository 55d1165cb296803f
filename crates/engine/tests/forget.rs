//! Snapshots are forgotten as restic would, a run at a time, and never by half.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Attributes, Bucket, Directory, Durability, Memory};
use cistern_engine::retention::{Age, Count, Period, Policy};
use cistern_engine::{Error, Forget, ForgetReport, Report, Result, SnapshotSelector, Task, runs};
use cistern_repository::{CheckOptions, LockKind, ReadData, check};
use cistern_testkit::{Fault, Faulty, Rule, seed, tools};
use jiff::Timestamp;
use serde_json::Value;
use support::{World, identity, task};

fn forget(policy: Policy) -> Forget {
    Forget {
        repository: "s3://repository".parse().unwrap(),
        snapshots: Vec::new(),
        filter: SnapshotSelector::default(),
        policy,
        group_by: Default::default(),
        allow_remove_all: false,
        dry_run: false,
    }
}

async fn run(world: &Arc<World>, task: &Forget) -> Result<ForgetReport> {
    match cistern_engine::run(&Task::Forget(task.clone()), &world.cx()).await? {
        Report::Forget(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

fn last(n: u32) -> Policy {
    Policy { counts: [(Period::Last, Count::Most(n))].into(), ..Policy::default() }
}

fn kept(report: &ForgetReport) -> BTreeSet<String> {
    let runs = report.groups.iter().flat_map(|group| &group.runs).filter(|run| run.verdict.keep);
    runs.flat_map(|run| run.parts.iter().map(|(id, _)| id.to_string())).collect()
}

async fn there(world: &World) -> BTreeSet<String> {
    world.snapshots().await.iter().map(|(id, _)| id.to_string()).collect()
}

/// One snapshot of a small bucket, made by `host` at `second` with `tags`.
async fn snapshot(world: &Arc<World>, host: &str, second: i64, tags: &[&str]) {
    let mut backup = task();
    backup.host = host.into();
    backup.time = Some(Timestamp::from_second(second).unwrap());
    backup.tags = tags.iter().map(ToString::to_string).collect();
    world.backup(&backup).await.unwrap();
}

fn bucket() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders"));
    (0..60).for_each(|i| bucket.insert(format!("d/{i:02}"), format!("{i}"), Attributes::default()));
    bucket
}

/// What restic keeps by these flags, or why it does nothing.
fn restic(program: &Path, repository: &Path, flags: &[String]) -> Result<BTreeSet<String>, String> {
    let output = Command::new(program)
        .env_clear()
        .env("TZ", "UTC")
        .env("RESTIC_PASSWORD", "secret")
        .args(["--no-cache", "--json", "--repo"])
        .arg(repository)
        .args(["forget", "--dry-run"])
        .args(flags)
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let groups: Vec<Value> = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let kept = groups.iter().flat_map(|group| group["keep"].as_array().unwrap());
    Ok(kept.map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_restic_would_keep_is_kept() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("repository");
    let repository: Arc<dyn Bucket> = Arc::new(Directory::with(&place, Durability::None));
    let world = World::with(bucket(), repository).await;
    let mut random = seed(80).random();
    // Steps of seconds, hours, days and months, so that every rule has something to decide.
    let mut second = 1_500_000_000;
    for i in 0..90 {
        second += match random.below(4) {
            0 => 1 + random.below(3_000),
            1 => 3_600 + random.below(20 * 3_600),
            2 => 86_400 + random.below(6 * 86_400),
            _ => random.below(90 * 86_400) + 1,
        } as i64;
        let tags: &[&str] = match random.below(5) {
            0 => &["a"],
            1 => &["a", "b"],
            _ => &[],
        };
        snapshot(&world, ["one", "two"][usize::from(i % 3 == 0)], second, tags).await;
    }
    let newest = tools::restic().unwrap();
    let mut refused = 0;
    for round in 0..60 {
        let mut policy = Policy::default();
        let mut flags = Vec::new();
        let periods =
            [Period::Last, Period::Hourly, Period::Daily, Period::Weekly, Period::Monthly, Period::Yearly];
        for period in periods {
            if random.below(3) == 0 {
                let count = random.below(9) as u32 + 1;
                let (count, text) = match count {
                    9 => (Count::All, "unlimited".to_owned()),
                    n => (Count::Most(n), n.to_string()),
                };
                policy.counts.insert(period, count);
                flags.extend([format!("--keep-{period}"), text]);
            }
            if period != Period::Last && random.below(6) == 0 {
                let age = Age {
                    months: random.below(30) as u16,
                    days: random.below(40) as u16,
                    hours: 7,
                    years: 0,
                };
                policy.periods_within.insert(period, age);
                flags.extend([format!("--keep-within-{period}"), age.to_string()]);
            }
        }
        if random.below(4) == 0 {
            let age =
                Age { years: 1, months: random.below(14) as u16, days: random.below(60) as u16, hours: 0 };
            policy.within = Some(age);
            flags.extend(["--keep-within".to_owned(), age.to_string()]);
        }
        if random.below(4) == 0 || policy.is_empty() {
            policy.tags = vec![vec!["a".into(), "b".into()]];
            flags.extend(["--keep-tag".to_owned(), "a,b".to_owned()]);
        }
        let mut task = forget(policy);
        task.dry_run = true;
        if round % 3 == 0 {
            task.group_by = "host,tags".parse().unwrap();
            flags.extend(["--group-by".to_owned(), "host,tags".to_owned()]);
        }
        let ours = run(&world, &task).await.map(|report| kept(&report)).map_err(|error| error.to_string());
        match restic(&newest, &place, &flags) {
            Ok(theirs) => assert_eq!(ours.unwrap(), theirs, "{flags:?}"),
            // Where only tags are kept, some groups keep none.
            Err(refusal) => {
                assert!(refusal.contains("refusing to delete last snapshot"), "{flags:?}: {refusal}");
                assert!(ours.unwrap_err().contains("keep no snapshot"), "{flags:?}");
                refused += 1;
            }
        }
    }
    assert!(refused < 20, "{refused} of 60 say little");
    let before = there(&world).await;
    let report = run(&world, &forget(last(3))).await.unwrap();
    let left = there(&world).await;
    assert_eq!(left, kept(&report));
    assert_eq!((left.len(), report.removed as usize), (6, before.len() - 6));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_with_all_its_parts_and_names_win_over_rules() {
    let world = World::new(bucket()).await;
    let mut parts = task();
    parts.part_keys = 20;
    for _ in 0..3 {
        parts.force = true;
        world.backup(&parts).await.unwrap();
    }
    let all = runs(&world.snapshots().await);
    assert!(all.len() == 3 && all.iter().all(|run| run.parts.len() >= 3), "{all:?}");
    let mut dry = forget(last(1));
    dry.dry_run = true;
    let report = run(&world, &dry).await.unwrap();
    assert_eq!((report.removed, report.groups.len()), (0, 1));
    assert_eq!(there(&world).await.len(), all.iter().map(|run| run.parts.len()).sum::<usize>());
    // A part stands for its run; twice is once.
    let mut named = forget(Policy::default());
    named.snapshots = [0, 1].map(|i| all[1].parts[i].0.to_string()).to_vec();
    assert_eq!(run(&world, &named).await.unwrap().removed, all[1].parts.len() as u64);
    let report = run(&world, &forget(last(1))).await.unwrap();
    assert_eq!(report.removed, all[0].parts.len() as u64);
    assert_eq!(runs(&world.snapshots().await), [all[2].clone()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_removes_nothing() {
    let world = World::new(bucket()).await;
    for second in 1..4 {
        snapshot(&world, "a", second * 100_000, &["t"]).await;
    }
    let before = there(&world).await;
    let nothing = run(&world, &forget(Policy::default())).await.unwrap_err();
    assert!(matches!(nothing, Error::Invalid(_)), "{nothing}");
    let none = forget(Policy { tags: vec![vec!["other".into()]], ..Policy::default() });
    let error = run(&world, &none).await.unwrap_err().to_string();
    assert!(error.contains("keep no snapshot of host a, paths"), "{error}");
    for name in ["abcdef", "latest~9", "latest:/orders"] {
        let mut named = forget(last(1));
        named.snapshots = vec!["latest".into(), name.into()];
        run(&world, &named).await.unwrap_err();
    }
    // Somebody works with the repository.
    let lock = world.open().lock(LockKind::Shared, &identity(), Duration::ZERO).await.unwrap();
    let busy = run(&world, &forget(last(1))).await.unwrap_err();
    assert_eq!(busy.class(), cistern_bucket::Class::Busy, "{busy}");
    lock.release().await;
    assert_eq!(there(&world).await, before);
    let mut all = Forget { allow_remove_all: true, ..forget(Policy::default()) };
    let error = run(&world, &all).await.unwrap_err().to_string();
    assert!(error.contains("say of which host"), "{error}");
    all.filter.tags = vec!["u".into()];
    assert_eq!(run(&world, &all).await.unwrap().removed, 0);
    all.filter.tags = vec!["t".into()];
    assert_eq!(run(&world, &all).await.unwrap().removed, 3);
    assert!(there(&world).await.is_empty());
    assert_eq!(run(&world, &all).await.unwrap().groups, []);
}

/// A process that dies at any write leaves every snapshot that is kept, and the next one finishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_it_has_removed_nothing_that_is_kept() {
    for fault in [Fault::Die, Fault::DieAfter] {
        for n in 0.. {
            let repository = Arc::new(Memory::new("s3://repository"));
            let world = World::with(bucket(), repository.clone()).await;
            for second in 1..5 {
                snapshot(&world, "a", second * 100_000, &[]).await;
            }
            let all: Vec<String> = world.snapshots().await.iter().map(|(id, _)| id.to_string()).collect();
            let faulty = Faulty::new(repository.clone());
            faulty.inject(Rule::new(fault).writes().nth(n));
            let mortal = world.again(|world| world.repository = faulty.clone());
            let outcome = run(&mortal, &forget(last(2))).await;
            let left = there(&world).await;
            assert!(all[2..].iter().all(|id| left.contains(id)), "write {n}: {left:?}");
            if !faulty.is_dead() {
                assert_eq!(outcome.unwrap().removed, 2);
                assert!(n > 3);
                break;
            }
            // The lock of a process that is gone.
            for key in repository.keys().iter().filter(|key| key.as_bytes().starts_with(b"locks/")) {
                repository.remove(key);
            }
            run(&world, &forget(last(2))).await.unwrap();
            assert_eq!(there(&world).await, all[2..].iter().cloned().collect());
            let findings =
                check(&world.open(), CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
            assert!(findings.is_empty(), "{findings:?}");
        }
    }
}
