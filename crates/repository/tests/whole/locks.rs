//! Locks over time: conflicts, refresh, staleness, loss; time is tokio's own, which passes at once.

use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Bucket, ErrorKind, Key, Memory, Verb};
use cistern_repository::file::{self, FileKind};
use cistern_repository::key::KeyFile;
use cistern_repository::pack::Sealer;
use cistern_repository::{Error, Id, LockFile, LockKind, Repository, Time};
use cistern_testkit::{Fault, Faulty, Rule, seed};
use jiff::{SignedDuration, Timestamp};

use crate::support::*;

const MINUTE: Duration = Duration::from_secs(60);

/// A bucket with a repository.
async fn new() -> (Arc<Memory>, Repository) {
    let memory = Arc::new(Memory::new("memory"));
    let repo = Repository::init(memory.clone(), &password(), &who(), options()).await.unwrap();
    (memory, repo)
}

fn locks(memory: &Memory) -> Vec<Key> {
    memory.keys().into_iter().filter(|key| key.as_bytes().starts_with(b"locks/")).collect()
}

#[tokio::test(start_paused = true)]
async fn shared_locks_share_and_exclusive_ones_do_not() {
    let (memory, repo) = new().await;
    let ann = who();
    let take = |kind| repo.lock(kind, &ann, Duration::ZERO);
    let first = take(LockKind::Shared).await.unwrap();
    let second = take(LockKind::Shared).await.unwrap();
    let error = take(LockKind::Exclusive).await.unwrap_err();
    assert!(
        error.to_string().contains(&format!("by ann@host-0, process {} since 2", std::process::id())),
        "{error}"
    );
    assert_eq!(locks(&memory).len(), 2);
    first.release().await;
    second.release().await;
    assert!(locks(&memory).is_empty());
    let exclusive = take(LockKind::Exclusive).await.unwrap();
    for kind in [LockKind::Shared, LockKind::Exclusive] {
        assert!(matches!(take(kind).await.unwrap_err(), Error::Locked { exclusive: true, .. }));
    }
    // Who waits gets it when it is given back.
    let waiting = repo.lock(LockKind::Exclusive, &ann, 10 * MINUTE);
    let releasing = async {
        tokio::time::sleep(2 * MINUTE).await;
        exclusive.release().await;
    };
    let (taken, ()) = futures::join!(waiting, releasing);
    taken.unwrap().release().await;
    assert!(locks(&memory).is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_those_who_come_at_once_at_most_one_gets_an_exclusive_lock() {
    let (memory, repo) = new().await;
    let identity = who();
    let take = || repo.lock(LockKind::Exclusive, &identity, Duration::ZERO);
    let taken = futures::future::join_all((0..5).map(|_| take())).await;
    assert!(taken.iter().filter(|lock| lock.is_ok()).count() <= 1);
    for lock in taken.into_iter().flatten() {
        lock.release().await;
    }
    assert!(locks(&memory).is_empty(), "those who did not get it leave nothing");
    // With patience everybody gets it in turn.
    let turns = futures::future::join_all((0..3).map(|_| async {
        let lock = repo.lock(LockKind::Exclusive, &identity, 20 * MINUTE).await.unwrap();
        assert_eq!(locks(&memory).len(), 1);
        lock.release().await;
    }));
    turns.await;
}

#[tokio::test(start_paused = true)]
async fn only_stale_locks_are_removed() {
    let (memory, repo) = new().await;
    let dead = 999_999_999;
    let alive = i64::from(std::process::id());
    // Age in minutes, host, process, whether it is stale.
    let cases = [
        (1, "host-0", alive, false),
        (29, "host-0", alive, false),
        (31, "host-0", alive, true),
        (1, "host-0", dead, true),
        (1, "elsewhere", dead, false),
        (31, "elsewhere", alive, true),
        (-5, "elsewhere", alive, false),
    ];
    for (age, hostname, pid, stale) in cases {
        let time = Time::from(Timestamp::now() - SignedDuration::from_mins(age));
        let lock = LockFile {
            time,
            exclusive: true,
            hostname: hostname.into(),
            username: "eve".into(),
            pid,
            uid: 0,
            gid: 0,
        };
        put(&repo, &memory, &lock);
        match repo.lock(LockKind::Shared, &who(), Duration::ZERO).await {
            Ok(lock) => {
                assert!(stale, "{age} {hostname} {pid}");
                assert_eq!(locks(&memory).len(), 1, "the stale one is removed");
                lock.release().await;
            }
            Err(error) => {
                assert!(
                    !stale && matches!(error, Error::Locked { exclusive: true, .. }),
                    "{age} {hostname} {pid}: {error}"
                );
                assert_eq!(locks(&memory).len(), 1, "it is left alone");
                assert!(memory.remove(&locks(&memory)[0]));
            }
        }
    }
}

/// Puts a lock file of somebody else in place.
fn put(repo: &Repository, memory: &Memory, lock: &LockFile) {
    let key = memory.content(&FileKind::Key.key(&repo.key_id())).unwrap();
    let master = KeyFile::parse(&key).unwrap().open(&password()).unwrap();
    let mut sealer = Sealer::new(Arc::new(master), None).unwrap();
    let stored = file::seal(&mut sealer, FileKind::Lock, &serde_json::to_vec(lock).unwrap()).unwrap();
    memory.insert(FileKind::Lock.key(&Id::of(&stored)), stored, Default::default());
}

#[tokio::test(start_paused = true)]
async fn locks_are_listed_and_exactly_the_one_that_is_meant_is_removed() {
    let (memory, repo) = new().await;
    let held = lock(&repo, LockKind::Shared).await;
    let mine = locks(&memory);
    let unreadable = Id::of(b"");
    memory.insert(FileKind::Lock.key(&unreadable), "", Default::default());
    let of = |age, hostname: &str, pid| LockFile {
        time: Time::from(Timestamp::now() - SignedDuration::from_mins(age)),
        exclusive: false,
        hostname: hostname.into(),
        username: "eve".into(),
        pid,
        uid: 0,
        gid: 0,
    };
    for (file, stale) in [(of(31, "elsewhere", 1), true), (of(1, "host-0", 999_999_999), true)] {
        put(&repo, &memory, &file);
        let found = repo.locks(&who()).await.unwrap();
        assert_eq!(found.len(), 3);
        for lock in &found {
            assert_eq!(lock.is_stale, lock.file.as_ref().is_ok_and(|file| file.username == "eve") && stale);
            assert_eq!(lock.file.is_err(), lock.id == unreadable);
        }
        let stale = found.iter().find(|lock| lock.is_stale).unwrap();
        repo.remove_lock(stale).await.unwrap();
        repo.remove_lock(stale).await.unwrap();
        let mut left = [&mine[..], &[FileKind::Lock.key(&unreadable)]].concat();
        left.sort();
        assert_eq!(locks(&memory), left);
    }
    held.check().unwrap();
    held.release().await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_looks_abandoned_is_told_apart() {
    for (age, late) in [(1, false), (9, false), (11, true), (29, true)] {
        let (memory, repo) = new().await;
        let time = Time::from(Timestamp::now() - SignedDuration::from_mins(age));
        let (hostname, username) = ("elsewhere".into(), "eve".into());
        put(&repo, &memory, &LockFile { time, exclusive: true, hostname, username, pid: 1, uid: 0, gid: 0 });
        let error = repo.lock(LockKind::Shared, &who(), Duration::ZERO).await.unwrap_err();
        assert!(matches!(&error, Error::Locked { abandoned, .. } if *abandoned == late), "{age}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_written_anew_every_five_minutes() {
    let (memory, repo) = new().await;
    let lock = lock(&repo, LockKind::Shared).await;
    let mut seen = vec![locks(&memory)];
    for _ in 0..4 {
        tokio::time::sleep(5 * MINUTE + Duration::from_secs(1)).await;
        seen.push(locks(&memory));
    }
    assert!(seen.iter().all(|locks| locks.len() == 1), "{seen:?}");
    seen.dedup();
    assert_eq!(seen.len(), 5, "each time another file");
    lock.check().unwrap();
    lock.release().await;
    tokio::time::sleep(30 * MINUTE).await;
    assert!(locks(&memory).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_cannot_be_refreshed_is_lost_and_its_writer_stops() {
    let (memory, repo) = new().await;
    let faulty = Faulty::new(memory.clone() as Arc<dyn Bucket>);
    let through = repo.through(faulty.clone(), options()).unwrap();
    for fault in [Fault::Error(ErrorKind::Unreachable), Fault::Hang] {
        faulty.reset();
        let held = lock(&through, LockKind::Shared).await;
        let lost = held.lost();
        let start = tokio::time::Instant::now();
        let writer = through.writer(through.index().await.unwrap(), held);
        faulty.inject(Rule::new(fault).verb(Verb::Put).prefix("locks/"));
        tokio::time::sleep(20 * MINUTE).await;
        drop(writer.permit(1).await.unwrap());
        assert!(matches!(lost.await, Error::LockLost { .. }));
        let minutes = start.elapsed().as_secs_f64() / 60.0;
        assert!((22.0..24.0).contains(&minutes), "{fault:?}: lost after {minutes} minutes");
        // The writer's own watch runs in a task of its own.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let error = writer.permit(1).await.unwrap_err();
        assert!(error.to_string().contains("lost"), "{error}");
        assert!(writer.finish(vec![]).await.is_err());
        assert!(locks(&memory).is_empty());
    }
    // One failure is no loss.
    faulty.reset();
    let held = lock(&through, LockKind::Shared).await;
    faulty
        .inject(Rule::new(Fault::Error(ErrorKind::Unreachable)).verb(Verb::Put).prefix("locks/").range(0..3));
    tokio::time::sleep(29 * MINUTE).await;
    held.check().unwrap();
    assert_eq!(locks(&memory).len(), 1);
    held.release().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_its_lock_removed_proves_that_everything_is_there() {
    let mut random = seed(70).random();
    let day =
        Model::from([("a".into(), noise(&mut random, 1 << 20)), ("b/c".into(), text(&mut random, 5000))]);
    for harmed in [false, true] {
        let (memory, repo) = new().await;
        backup(&repo, &day).await.unwrap();
        let packs: Vec<Key> =
            memory.keys().into_iter().filter(|key| key.as_bytes().starts_with(b"data/")).collect();
        let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
        let tree = write(&writer, &day).await.unwrap();
        for key in locks(&memory) {
            assert!(memory.remove(&key));
        }
        if harmed {
            packs.iter().for_each(|key| assert!(memory.remove(key)));
        }
        let outcome = writer.finish(vec![snapshot(tree, None)]).await;
        let snapshots = repo.snapshots().await.unwrap().len();
        match harmed {
            false => assert!(outcome.is_ok() && snapshots == 2, "{outcome:?}"),
            true => {
                assert!(matches!(outcome, Err(Error::LockLost { .. })) && snapshots == 1, "{outcome:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_does_not_hide_that_the_lock_was_removed() {
    let mut random = seed(71).random();
    let day = Model::from([("a".into(), noise(&mut random, 1 << 20))]);
    for harmed in [false, true] {
        let (memory, repo) = new().await;
        backup(&repo, &day).await.unwrap();
        let packs: Vec<Key> =
            memory.keys().into_iter().filter(|key| key.as_bytes().starts_with(b"data/")).collect();
        let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
        let tree = write(&writer, &day).await.unwrap();
        for key in locks(&memory) {
            assert!(memory.remove(&key));
        }
        if harmed {
            packs.iter().for_each(|key| assert!(memory.remove(key)));
        }
        for _ in 0..2 {
            tokio::time::sleep(5 * MINUTE + Duration::from_secs(1)).await;
            assert_eq!(locks(&memory).len(), 1, "it was written anew");
        }
        let outcome = writer.finish(vec![snapshot(tree, None)]).await;
        let snapshots = repo.snapshots().await.unwrap().len();
        match harmed {
            false => assert!(outcome.is_ok() && snapshots == 2, "{outcome:?}"),
            true => assert!(matches!(outcome, Err(Error::LockLost { .. })) && snapshots == 1, "{outcome:?}"),
        }
    }
}
