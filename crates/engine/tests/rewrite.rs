//! Snapshots are written anew without what matches, a run at a time; what stays is as it was.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use cistern_bucket::{Attributes, Class, Key, Memory, Verb};
use cistern_engine::{Report, Result, Rewrite, RewriteReport, SnapshotSelector, Task, runs};
use cistern_repository::{CheckOptions, Id, LockKind, ReadData, Snapshot, check};
use cistern_testkit::{Fault, Faulty, Rule, seed};
use support::{Kept, World, attributes, identity, task};

fn rewrite(exclude: &[&str]) -> Rewrite {
    Rewrite {
        repository: "s3://repository".parse().unwrap(),
        snapshots: Vec::new(),
        filter: SnapshotSelector::default(),
        exclude: exclude.iter().map(ToString::to_string).collect(),
        exclude_any_case: Vec::new(),
        forget: false,
        dry_run: false,
    }
}

async fn run(world: &Arc<World>, task: &Rewrite) -> Result<RewriteReport> {
    match cistern_engine::run(&Task::Rewrite(task.clone()), &world.cx()).await? {
        Report::Rewrite(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

/// Sixty objects, half of which are temporary; some have a side file.
fn bucket() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let large =
        Attributes { meta: (0..40).map(|i| (format!("n{i}"), "é".repeat(100))).collect(), ..attributes(3) };
    for i in 0..60 {
        let end = if i % 2 == 0 { "tmp" } else { "txt" };
        let attributes = if i % 20 < 2 { large.clone() } else { attributes(i) };
        bucket.insert(format!("d/{i:02}.{end}"), format!("{i}"), attributes);
    }
    bucket.insert("keep/x", "x", Attributes::default());
    bucket
}

async fn parts(world: &Arc<World>) {
    let mut backup = task();
    backup.part_keys = 20;
    world.backup(&backup).await.unwrap();
}

fn ids(parts: &[(Id, Snapshot)]) -> Vec<String> {
    parts.iter().map(|(id, _)| id.to_string()).collect()
}

fn without(kept: &BTreeMap<Key, Kept>, end: &str) -> BTreeMap<Key, Kept> {
    let stays = kept.iter().filter(|(key, _)| !key.as_bytes().ends_with(end.as_bytes()));
    stays.map(|(key, kept)| (key.clone(), kept.clone())).collect()
}

async fn assert_whole(world: &World) {
    let findings = check(&world.open(), CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
    assert!(findings.iter().all(|finding| finding.problem.is_hint()), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_written_anew_as_a_whole_without_reading_data() {
    let repository = Arc::new(Memory::new("s3://repository"));
    let world = World::with(bucket(), repository.clone()).await;
    parts(&world).await;
    let before = world.snapshots().await;
    assert!(before.len() >= 3);
    let all = world.kept(&ids(&before)).await;
    let index = world.open().index().await.unwrap();
    let data = |index: &cistern_repository::Index| index.len(cistern_repository::BlobKind::Data);
    let dry = run(&world, &Rewrite { dry_run: true, ..rewrite(&["*.tmp"]) }).await.unwrap();
    let listed: Vec<&String> = dry.rewritten.iter().flat_map(|one| &one.first).collect();
    assert!(listed.contains(&&"/orders/d/04.tmp".to_owned()), "{listed:?}");
    assert_eq!(world.snapshots().await, before);

    let faulty = Faulty::new(repository.clone());
    let watched = world.again(|world| world.repository = faulty.clone());
    let report = run(&watched, &rewrite(&["*.tmp"])).await.unwrap();
    assert_eq!((report.rewritten.len(), report.removed), (before.len(), 0));
    let data_packs: Vec<Key> = index
        .blobs(cistern_repository::BlobKind::Data)
        .map(|(pack, _)| cistern_repository::file::FileKind::Pack.key(&index.pack(pack)))
        .collect();
    let read = faulty.requests().into_iter().filter(|request| request.verb == Verb::Get);
    assert_eq!(read.filter(|request| data_packs.contains(&request.key)).count(), 0);
    assert_eq!(data(&world.open().index().await.unwrap()), data(&index), "no new data");

    // Two runs, each whole, and the old one as it was.
    let after = runs(&world.snapshots().await);
    assert!(after.len() == 2 && after.iter().all(|run| run.is_whole() && run.parts.len() == before.len()));
    let (old, new): (Vec<_>, Vec<_>) =
        after.iter().partition(|run| run.parts.iter().all(|(_, snapshot)| snapshot.original.is_none()));
    assert_eq!(world.kept(&ids(&old[0].parts)).await, all);
    let rest = without(&all, ".tmp");
    assert_eq!(world.kept(&ids(&new[0].parts)).await, rest);
    let mut files = 0;
    for (_, snapshot) in &new[0].parts {
        assert!(["partial", "rewrite"].iter().all(|tag| snapshot.tags.contains(&(*tag).to_owned())));
        files += snapshot.summary.as_ref().unwrap().total_files_processed;
    }
    assert_eq!(files as usize, rest.len());
    assert_whole(&world).await;

    // Again: the old run leads to what is there already, the new one holds nothing that matches.
    let again = run(&world, &rewrite(&["*.tmp"])).await.unwrap();
    assert_eq!(again.unchanged as usize, before.len());
    assert_eq!(runs(&world.snapshots().await), after);
    let none = run(&world, &rewrite(&["nothing"])).await.unwrap();
    assert_eq!((none.rewritten.len(), none.unchanged as usize), (0, 2 * before.len()));
    assert_eq!(run(&world, &rewrite(&[])).await.unwrap_err().class(), Class::Invalid);
    assert_eq!(run(&world, &rewrite(&["["])).await.unwrap_err().class(), Class::Invalid);
    let mut any_case = rewrite(&[]);
    any_case.exclude_any_case = vec!["*1.TXT".into()];
    any_case.snapshots = ids(&new[0].parts[..1]);
    let latest = run(&world, &any_case).await.unwrap();
    let new: Vec<String> = latest.rewritten.iter().map(|one| one.new.clone().unwrap()).collect();
    assert_eq!(world.kept(&new).await, without(&rest, "1.txt"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_rewrite_that_forgets_needs_the_repository_for_itself() {
    let world = World::new(bucket()).await;
    world.backup(&task()).await.unwrap();
    let lock = world.open().lock(LockKind::Shared, &identity(), Default::default()).await.unwrap();
    let forget = Rewrite { forget: true, ..rewrite(&["/orders/d"]) };
    assert_eq!(run(&world, &forget).await.unwrap_err().class(), Class::Busy);
    assert_eq!(run(&world, &rewrite(&["/orders/d"])).await.unwrap().rewritten.len(), 1);
    lock.release().await;
    let report = run(&world, &forget).await.unwrap();
    assert_eq!((report.rewritten.len(), report.removed, report.unchanged), (1, 1, 1));
    assert!(world.open().locks(&identity()).await.unwrap().is_empty());
    assert_whole(&world).await;
}

/// A process that dies at a write leaves each snapshot in its old or its new form, and the next one finishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_a_write_it_has_lost_no_snapshot() {
    let mut random = seed(97).random();
    let task = Rewrite { forget: true, ..rewrite(&["*.tmp"]) };
    let fresh = async || {
        let repository = Arc::new(Memory::new("s3://repository"));
        let world = World::with(bucket(), repository.clone()).await;
        parts(&world).await;
        let faulty = Faulty::new(repository.clone());
        let mortal = world.again(|world| world.repository = faulty.clone());
        (repository, world, faulty, mortal)
    };
    let (_, world, faulty, mortal) = fresh().await;
    run(&mortal, &task).await.unwrap();
    let number = world.snapshots().await.len();
    let contents = async |world: &World, parts: &[(Id, Snapshot)]| {
        let kept = world.kept(&ids(parts)).await.into_iter();
        kept.map(|(key, kept)| (key, kept.content)).collect::<BTreeMap<_, _>>()
    };
    let expected = contents(&world, &world.snapshots().await).await;
    let writes = faulty.writes();
    assert!(writes as usize >= 2 * number + 2);
    for _ in 0..12 {
        let (repository, world, faulty, mortal) = fresh().await;
        let fault = if random.one_in(2) { Fault::Die } else { Fault::DieAfter };
        let n = random.below(writes);
        faulty.inject(Rule::new(fault).writes().nth(n));
        let _ = run(&mortal, &task).await;
        assert!(faulty.is_dead());
        let left = runs(&world.snapshots().await);
        assert!(left.iter().any(|run| run.is_whole()), "write {n}");
        // The lock of a process that is gone.
        for key in repository.keys().iter().filter(|key| key.as_bytes().starts_with(b"locks/")) {
            repository.remove(key);
        }
        run(&world, &task).await.unwrap();
        let after = runs(&world.snapshots().await);
        let whole: Vec<_> = after.iter().filter(|run| run.is_whole()).collect();
        assert_eq!(whole.len(), 1, "write {n}: {after:?}");
        assert_eq!(contents(&world, &whole[0].parts).await, expected, "write {n}");
        assert_whole(&world).await;
    }
}
