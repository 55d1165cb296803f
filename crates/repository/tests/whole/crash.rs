//! Killed at every write: the previous snapshot is whole, the next run succeeds, and restic finds nothing wrong.

use std::sync::Arc;

use cistern_bucket::Bucket;
use cistern_repository::{CheckOptions, Identity, LockKind, Options, Problem, ReadData, Repository, check};
use cistern_testkit::{Fault, Faulty, Rule, seed, tools};

use crate::support::*;

/// A process that is not alive any more when the next one looks at its lock.
fn doomed() -> Identity {
    Identity { pid: 999_999_999, ..who() }
}

fn small() -> Options {
    Options { pack_size: 4 << 20, ..options() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_write_the_last_snapshot_is_whole_and_the_next_run_succeeds() {
    let mut random = seed(40).random();
    let first = Model::from([
        ("a/noise".into(), noise(&mut random, 3 << 20)),
        ("a/text".into(), text(&mut random, 100_000)),
        ("b".into(), noise(&mut random, 10)),
    ]);
    let mut second = first.clone();
    second.insert("c/noise".into(), noise(&mut random, 9 << 20));
    second.insert("b".into(), noise(&mut random, 11));

    // Uploads overtake each other, so writes are counted for each kind of file: every kind has died for certain.
    for kind in ["locks/", "data/", "index/", "snapshots/"] {
        let mut deaths = 0;
        for (n, after_effect) in (0..).flat_map(|n| [(n, false), (n, true)]) {
            let temp = tempfile::tempdir().unwrap();
            let place = temp.path().join("repo");
            let inner = directory(&place);
            let repo = Repository::init(inner.clone(), &password(), &who(), small()).await.unwrap();
            let before = backup(&repo, &first).await.unwrap();

            let faulty = Faulty::new(inner.clone());
            let fault = if after_effect { Fault::DieAfter } else { Fault::Die };
            faulty.inject(Rule::new(fault).writes().prefix(kind).nth(n));
            let bucket: Arc<dyn Bucket> = faulty.clone();
            let mortal = Repository::open(bucket, &password(), small()).await.unwrap();
            let outcome = backup_as(&mortal, &second, &doomed()).await;
            drop(mortal);
            if !faulty.is_dead() {
                outcome.unwrap();
                break;
            }
            deaths += 1;

            // What the dead process has left: at most packs that nobody names, and its lock.
            let repo = Repository::open(inner, &password(), small()).await.unwrap();
            let exclusive = lock(&repo, LockKind::Exclusive).await;
            let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
            let only_unused =
                findings.iter().all(|finding| matches!(finding.problem, Problem::UnusedPack { .. }));
            assert!(only_unused, "{kind} {n}: {findings:?}");
            exclusive.release().await;
            let restic =
                Restic { program: tools::restic().unwrap(), repo: place, cache: temp.path().join("cache") };
            restic.run(&["check", "--read-data"]);
            let snapshots = repo.snapshots().await.unwrap();
            assert_eq!(snapshots[0].0, before);
            let reader = repo.reader(repo.index().await.unwrap());
            assert_same(&read(&reader, snapshots[0].1.tree).await.unwrap(), &first);
            if let Some((_, snapshot)) = snapshots.get(1) {
                // Only the lock's removal was left to do.
                assert_same(&read(&reader, snapshot.tree).await.unwrap(), &second);
            }

            let after = backup(&repo, &second).await.unwrap();
            let reader = repo.reader(repo.index().await.unwrap());
            let tree = repo.snapshot(&after).await.unwrap().tree;
            assert_same(&read(&reader, tree).await.unwrap(), &second);
            restic.run(&["check", "--read-data"]);
        }
        assert!(deaths > 0, "{kind} never died");
    }
}
