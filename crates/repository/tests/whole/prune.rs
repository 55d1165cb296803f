//! What nobody needs goes, everything else stays, wherever a prune stops; and restic finds nothing to complain about.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cistern_bucket::{Bucket, Memory, Verb};
use cistern_repository::file::FileKind;
use cistern_repository::{
    CheckOptions, Error, Id, LockKind, Margins, MaxUnused, Options, Problem, PruneOptions, PrunePlan, Pruned,
    ReadData, Repository, Result, check, plan_prune, prune,
};
use cistern_testkit::{Fault, Faulty, Rule, seed, tools};
use tokio::time::Instant;

use crate::support::*;

fn small() -> Options {
    Options { pack_size: 4 << 20, ..options() }
}

/// Whatever can go, goes.
const ALL: PruneOptions = PruneOptions {
    max_unused: MaxUnused::Bytes(0),
    max_repack: None,
    repack_small: false,
    margins: Margins::ALONE,
    without: Vec::new(),
};

/// Plans and prunes under a lock of its own.
async fn pruned(repo: &Repository, options: PruneOptions, until: Option<Instant>) -> Result<Pruned> {
    let lock = Arc::new(repo.lock(LockKind::Exclusive, &who(), Duration::ZERO).await?);
    let outcome = async {
        let plan = plan_prune(repo, &options, Some(&lock), &|_| ()).await?;
        prune(repo, plan, &lock, until, &|_| ()).await
    };
    let outcome = outcome.await;
    lock.release().await;
    outcome
}

async fn planned(repo: &Repository, options: &PruneOptions) -> PrunePlan {
    plan_prune(repo, options, None, &|_| ()).await.unwrap()
}

async fn forget(repo: &Repository, id: &Id) {
    let exclusive = lock(repo, LockKind::Exclusive).await;
    repo.remove_snapshot(id, &exclusive).await.unwrap();
    exclusive.release().await;
}

/// Nothing is wrong, and nothing is there that nobody needs.
async fn assert_clean(repo: &Repository) {
    let findings = check(repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
    assert!(findings.is_empty(), "{findings:#?}");
}

async fn assert_holds(repo: &Repository, id: &Id, model: &Model) {
    let reader = repo.reader(repo.index().await.unwrap());
    let tree = repo.snapshot(id).await.unwrap().tree;
    assert_same(&read(&reader, tree).await.unwrap(), model);
}

/// Packs in a repository that lies in memory.
fn packs(memory: &Memory) -> Vec<(Id, u64)> {
    let keys = memory.keys().into_iter();
    let packs = keys.filter_map(|key| {
        let id = key.as_bytes().starts_with(b"data/").then(|| FileKind::Pack.id_of(key.as_bytes()))??;
        Some((id, memory.content(&key).unwrap().len() as u64))
    });
    packs.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_snapshot_needs_goes_and_restic_has_nothing_left_to_do() {
    for (case, program) in [tools::restic_debian().unwrap(), tools::restic().unwrap()].into_iter().enumerate()
    {
        let temp = tempfile::tempdir().unwrap();
        let mut random = seed(70 + case as u64).random();
        let place = temp.path().join("repo");
        let repo = Repository::init(directory(&place), &password(), &who(), small()).await.unwrap();
        let mut day = model(&mut random);
        let mut days = Vec::new();
        for _ in 0..3 {
            days.push((backup(&repo, &day).await.unwrap(), day.clone()));
            change(&mut day, &mut random);
        }
        assert!(planned(&repo, &ALL).await.is_empty(), "all is needed");
        let without = PruneOptions { without: vec![days[0].0, days[1].0], ..ALL };
        let announced = planned(&repo, &without).await;
        forget(&repo, &days[0].0).await;
        forget(&repo, &days[1].0).await;
        let plan = planned(&repo, &ALL).await;
        assert_eq!((announced.freed(), announced.unused), (plan.freed(), plan.unused));
        assert!(!plan.is_empty() && plan.unused.bytes > 1 << 20, "{:?}", plan.unused);
        assert_eq!((plan.twice.count, plan.unused_left), (0, 0));
        let bytes = || -> u64 {
            let packs = fs::read_dir(place.join("data")).unwrap();
            let packs = packs.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
            packs.map(|file| file.unwrap().metadata().unwrap().len()).sum()
        };
        let (before, planned_free) = (bytes(), plan.freed());
        let done = pruned(&repo, ALL, None).await.unwrap();
        assert!(done.damaged.is_empty() && done.packs_left == 0, "{done:?}");
        assert_eq!(done.packs_repacked, plan.packs_repacked.count);
        assert_eq!(done.packs_deleted, plan.packs_repacked.count + plan.packs_deleted.count);
        // Headers of new packs are all that a plan cannot know.
        let freed = before - bytes();
        assert!(freed.abs_diff(planned_free) < 64 << 10, "{freed} were freed, {planned_free} planned");
        assert_clean(&repo).await;
        assert_holds(&repo, &days[2].0, &days[2].1).await;
        assert!(planned(&repo, &ALL).await.is_empty(), "nothing is left to do");

        let restic = Restic { program, repo: place, cache: temp.path().join("cache") };
        restic.run(&["check", "--read-data"]);
        let said = restic.run(&["prune", "--dry-run", "--max-unused", "0"]);
        let nothing = |what: &str| {
            let line = said.lines().find(|line| line.starts_with(what));
            line.unwrap_or_else(|| panic!("no {what} in {said}")).contains(" 0 blobs")
        };
        assert!(nothing("to repack:") && nothing("total prune:"), "{said}");
        let target = temp.path().join("restored");
        restic.run(&["restore", &days[2].0.to_string(), "--target", target.to_str().unwrap()]);
        assert_same(&read_directory(&target), &days[2].1);
        // And the repository goes on.
        backup(&repo, &day).await.unwrap();
        restic.run(&["check", "--read-data"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_restic_left_is_pruned_and_what_it_needs_stays() {
    let temp = tempfile::tempdir().unwrap();
    let mut random = seed(72).random();
    let restic = Restic {
        program: tools::restic().unwrap(),
        repo: temp.path().join("repo"),
        cache: temp.path().join("cache"),
    };
    restic.run(&["init"]);
    let (files, mut day) = (temp.path().join("files"), model(&mut random));
    let mut ids = Vec::new();
    for _ in 0..2 {
        write_files(&files, &day);
        restic.run(&["backup", "--host", "h", files.to_str().unwrap()]);
        ids.push(day.clone());
        change(&mut day, &mut random);
        fs::remove_dir_all(&files).unwrap();
    }
    restic.run(&["forget", "--keep-last", "1"]);
    let repo = Repository::open(directory(&restic.repo), &password(), small()).await.unwrap();
    let done = pruned(&repo, ALL, None).await.unwrap();
    assert!(done.packs_repacked > 0, "{done:?}");
    assert_clean(&repo).await;
    restic.run(&["check", "--read-data"]);
    let target = temp.path().join("restored");
    restic.run(&["restore", "latest", "--target", target.to_str().unwrap()]);
    let inside = target.join(files.strip_prefix("/").unwrap());
    assert_same(&read_directory(&inside), &ids[1]);
}

/// Two snapshots in memory, of which the first is forgotten: packs to delete, to pack anew, and to keep.
async fn with_waste(bucket: Arc<dyn Bucket>) -> (Repository, Id, Model) {
    let mut random = seed(73).random();
    let mut day = Model::from([
        ("a".into(), noise(&mut random, 9 << 20)),
        ("b/text".into(), text(&mut random, 300_000)),
    ]);
    for i in 0..60 {
        day.insert(format!("c/{i}"), noise(&mut random, 200_000));
    }
    let repo = Repository::init(bucket, &password(), &who(), small()).await.unwrap();
    let first = backup(&repo, &day).await.unwrap();
    day.retain(|path, _| path != "a" && !path.ends_with('7'));
    day.insert("d".into(), noise(&mut random, 5 << 20));
    let second = backup(&repo, &day).await.unwrap();
    forget(&repo, &first).await;
    (repo, second, day)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_leave_the_rest_to_the_next_run() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, id, day) = with_waste(memory.clone()).await;
    let whole = planned(&repo, &ALL).await;
    assert!(whole.packs_repacked.count >= 2 && whole.packs_deleted.count >= 1, "{:?}", whole.packs_repacked);

    let none = PruneOptions { max_unused: MaxUnused::Unlimited, ..ALL };
    assert_eq!(planned(&repo, &none).await.packs_repacked.count, 0);
    let one = PruneOptions { max_repack: Some(8 << 20), ..ALL };
    let plan = planned(&repo, &one).await;
    assert!(plan.packs_repacked.bytes <= 8 << 20 && plan.unused_left > 0);

    // Time is up before it began: packs that nobody needs go all the same.
    let done = pruned(&repo, ALL, Some(Instant::now())).await.unwrap();
    assert_eq!((done.packs_repacked, done.packs_left), (0, whole.packs_repacked.count));
    assert_eq!(done.packs_deleted, whole.packs_deleted.count);
    assert_clean(&repo).await;
    // In bytes, some in each run.
    let mut runs = 0;
    while !planned(&repo, &ALL).await.is_empty() {
        let done = pruned(&repo, one.clone(), None).await.unwrap();
        assert!(done.packs_repacked > 0 && done.bytes_read <= 8 << 20, "{done:?}");
        assert_clean(&repo).await;
        runs += 1;
    }
    assert!(runs >= 2, "{runs}");
    assert_holds(&repo, &id, &day).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_writes_nothing_and_a_prune_asks_for_what_it_announced() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ..) = with_waste(memory.clone()).await;
    let before = memory.ledger().snapshot();
    let plan = planned(&repo, &ALL).await;
    let after = memory.ledger().snapshot();
    for verb in [Verb::Put, Verb::Delete] {
        assert_eq!(before.count(verb), after.count(verb), "{verb:?}");
    }
    let expected = plan.requests(repo.options().pack_size);
    assert_eq!(expected.deletes, plan.packs_deleted.count + plan.packs_repacked.count);
    let done = pruned(&repo, ALL, None).await.unwrap();
    assert!(done.packs_written <= expected.writes + 2, "{done:?} {expected:?}");
    assert_eq!(packs(&memory).len() as u64, plan.packs_kept + done.packs_written);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_packs_and_small_index_files_are_put_together() {
    let memory = Arc::new(Memory::new("memory"));
    let repo = Repository::init(memory.clone(), &password(), &who(), small()).await.unwrap();
    let mut random = seed(74).random();
    let mut day = Model::new();
    let mut last = None;
    for i in 0..9 {
        day.insert(format!("{i}"), noise(&mut random, 20_000));
        last = Some(backup(&repo, &day).await.unwrap());
    }
    let indexes = || memory.keys().iter().filter(|key| key.as_bytes().starts_with(b"index/")).count();
    assert_eq!((packs(&memory).len(), indexes()), (18, 9));
    let done = pruned(&repo, PruneOptions { repack_small: true, ..ALL }, None).await.unwrap();
    assert_eq!((done.packs_repacked, done.packs_written), (18, 2), "{done:?}");
    assert_eq!((packs(&memory).len(), indexes()), (2, 1));
    assert_clean(&repo).await;
    assert_holds(&repo, &last.unwrap(), &day).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_that_no_index_names_go_only_when_they_are_old() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("repo");
    let (repo, id, day) = with_waste(directory(&place)).await;
    pruned(&repo, ALL, None).await.unwrap();
    let orphan = |byte: u8, age: Duration| {
        let content = vec![byte; 1000];
        let file = place.join(FileKind::Pack.key(&Id::of(&content)).to_string());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content).unwrap();
        let file_again = fs::File::options().write(true).open(&file).unwrap();
        file_again.set_modified(SystemTime::now() - age).unwrap();
        file
    };
    let young = orphan(1, Duration::from_secs(23 * 60 * 60));
    let old = orphan(2, Duration::from_secs(25 * 60 * 60));
    let safe = PruneOptions { margins: Margins::SAFE, ..ALL };
    let plan = planned(&repo, &safe).await;
    assert_eq!((plan.unnamed_deleted.count, plan.unnamed_kept.count), (1, 1));
    assert_eq!((plan.unnamed_deleted.bytes, plan.freed()), (1000, 1000));
    let done = pruned(&repo, safe.clone(), None).await.unwrap();
    assert_eq!((done.packs_deleted, done.index_files_deleted), (1, 0));
    let exist = |files: [&PathBuf; 2]| files.map(|file| file.exists());
    assert_eq!(exist([&young, &old]), [true, false]);
    pruned(&repo, ALL, None).await.unwrap();
    assert_eq!(exist([&young, &old]), [false, false]);
    assert_clean(&repo).await;
    assert_holds(&repo, &id, &day).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_twice_is_kept_once() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, id, day) = with_waste(memory.clone()).await;
    // A writer that sees no index stores everything again.
    let writer = repo.writer(Arc::default(), lock(&repo, LockKind::Shared).await);
    let tree = write(&writer, &day).await.unwrap();
    let again = writer.finish(vec![snapshot(tree, None)]).await.unwrap().ids[0];
    let findings = check(&repo, CheckOptions::default(), &|_| ()).await.unwrap();
    assert!(findings.iter().any(|finding| matches!(finding.problem, Problem::Twice { .. })), "{findings:#?}");
    let plan = planned(&repo, &ALL).await;
    assert!(plan.twice.count >= 50, "{:?}", plan.twice);
    pruned(&repo, ALL, None).await.unwrap();
    assert_clean(&repo).await;
    for id in [id, again] {
        assert_holds(&repo, &id, &day).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_when_something_that_is_needed_is_not_there() {
    type Damage = fn(&Memory, &cistern_bucket::Key);
    let damages: [(&str, Damage); 2] = [
        ("missing", |memory, key| assert!(memory.remove(key))),
        ("cut short", |memory, key| assert!(memory.corrupt(key, |bytes| bytes.truncate(100)))),
    ];
    for (name, damage) in damages {
        let memory = Arc::new(Memory::new("memory"));
        let (repo, id, _) = with_waste(memory.clone()).await;
        let tree = repo.snapshot(&id).await.unwrap().tree;
        let index = repo.index().await.unwrap();
        let pack = FileKind::Pack
            .key(&index.pack(index.lookup(cistern_repository::BlobKind::Tree, &tree).unwrap().pack));
        damage(&memory, &pack);
        let before = memory.keys();
        let error = pruned(&repo, ALL, None).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. } | Error::Bucket(_)), "{name}: {error:?}");
        assert_eq!(memory.keys(), before, "{name}");
    }
    // A snapshot that cannot be read may need anything.
    let memory = Arc::new(Memory::new("memory"));
    let (repo, id, _) = with_waste(memory.clone()).await;
    assert!(memory.corrupt(&FileKind::Snapshot.key(&id), |bytes| bytes[30] ^= 1));
    let before = memory.keys();
    pruned(&repo, ALL, None).await.unwrap_err();
    assert_eq!(memory.keys(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_with_a_damaged_blob_stays_and_is_named() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, id, day) = with_waste(memory.clone()).await;
    let index = repo.index().await.unwrap();
    // A file of one blob, in a pack with waste.
    let lost = Id::of(&day["c/30"]);
    let place = index.lookup(cistern_repository::BlobKind::Data, &lost).unwrap();
    let pack = index.pack(place.pack);
    assert!(memory.corrupt(&FileKind::Pack.key(&pack), |bytes| bytes[place.offset as usize + 50] ^= 1));
    let done = pruned(&repo, ALL, None).await.unwrap();
    assert_eq!(done.damaged.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [lost]);
    assert!(packs(&memory).iter().any(|(id, _)| *id == pack));
    // Only that one is lost, and a backup of the same stores it again.
    let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
    let harmful: Vec<_> = findings.iter().filter(|finding| !finding.endangers.is_empty()).collect();
    assert!(harmful.iter().all(|finding| finding.problem.pack() == Some(pack)), "{harmful:#?}");
    assert!(harmful.iter().any(|finding| finding.endangers == [id] && finding.paths == [b"/c/30".to_vec()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_nothing_is_lost_and_the_next_run_finishes() {
    // Uploads overtake each other, so writes are counted for each kind of file.
    for kind in ["locks/", "data/", "index/"] {
        let mut deaths = 0;
        for (n, after_effect) in (0..).flat_map(|n| [(n, false), (n, true)]) {
            let temp = tempfile::tempdir().unwrap();
            let place = temp.path().join("repo");
            let inner = directory(&place);
            let (_, id, day) = with_waste(inner.clone()).await;
            let faulty = Faulty::new(inner.clone());
            let fault = if after_effect { Fault::DieAfter } else { Fault::Die };
            faulty.inject(Rule::new(fault).writes().prefix(kind).nth(n));
            let mortal = Repository::open(faulty.clone(), &password(), small()).await.unwrap();
            let doomed = cistern_repository::Identity { pid: 999_999_999, ..who() };
            let outcome = async {
                let lock = Arc::new(mortal.lock(LockKind::Exclusive, &doomed, Duration::ZERO).await?);
                let plan = plan_prune(&mortal, &ALL, Some(&lock), &|_| ()).await?;
                let done = prune(&mortal, plan, &lock, None, &|_| ()).await;
                lock.release().await;
                done
            };
            let outcome = outcome.await;
            drop(mortal);
            if !faulty.is_dead() {
                outcome.unwrap();
                break;
            }
            deaths += 1;
            let repo = Repository::open(inner, &password(), small()).await.unwrap();
            let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
            assert!(findings.iter().all(|finding| finding.problem.is_hint()), "{kind} {n}: {findings:#?}");
            assert_holds(&repo, &id, &day).await;
            let restic =
                Restic { program: tools::restic().unwrap(), repo: place, cache: temp.path().join("cache") };
            let read_data: &[&str] = &["check", "--read-data", "--no-lock"];
            restic.run(read_data);
            // What the dead process has begun is finished, and not begun again.
            pruned(&repo, ALL, None).await.unwrap();
            assert_clean(&repo).await;
            assert_holds(&repo, &id, &day).await;
            restic.run(read_data);
        }
        assert!(deaths > 0, "{kind} never died");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_was_done_before_a_death_is_not_done_again() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ..) = with_waste(memory.clone()).await;
    let plan = planned(&repo, &ALL).await;
    assert!(plan.packs_repacked.bytes > 0);
    // Dies when all new packs and their index are durable.
    let faulty = Faulty::new(memory.clone());
    faulty.inject(Rule::new(Fault::DieAfter).writes().prefix("index/").nth(0));
    let mortal = repo.through(faulty.clone(), small()).unwrap();
    pruned(&mortal, ALL, None).await.unwrap_err();
    assert!(faulty.is_dead());
    for lock in repo.locks(&who()).await.unwrap() {
        repo.remove_lock(&lock).await.unwrap();
    }
    let rest = planned(&repo, &ALL).await;
    assert_eq!((rest.packs_repacked.count, rest.repacked_bytes), (0, 0));
    let done = pruned(&repo, ALL, None).await.unwrap();
    assert_eq!((done.bytes_read, done.packs_written), (0, 0));
    assert_clean(&repo).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deleted_once_the_lock_is_gone() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, id, day) = with_waste(memory.clone()).await;
    let lock = Arc::new(repo.lock(LockKind::Exclusive, &who(), Duration::ZERO).await.unwrap());
    let plan = plan_prune(&repo, &ALL, Some(&lock), &|_| ()).await.unwrap();
    for held in repo.locks(&who()).await.unwrap() {
        repo.remove_lock(&held).await.unwrap();
    }
    let before = packs(&memory);
    let error = prune(&repo, plan, &lock, None, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error:?}");
    let after = packs(&memory);
    assert!(before.iter().all(|pack| after.contains(pack)), "a pack is gone");
    assert_holds(&repo, &id, &day).await;
    // A plan that takes a snapshot for removed is only to be looked at.
    let exclusive = Arc::new(self::lock(&repo, LockKind::Exclusive).await);
    let plan = planned(&repo, &PruneOptions { without: vec![id], ..ALL }).await;
    assert!(matches!(prune(&repo, plan, &exclusive, None, &|_| ()).await, Err(Error::Broken(_))));
    exclusive.release().await;
    // A shared lock is none to prune under.
    let shared = Arc::new(self::lock(&repo, LockKind::Shared).await);
    let plan = planned(&repo, &ALL).await;
    prune(&repo, plan, &shared, None, &|_| ()).await.unwrap_err();
}
