//! Every request fails in turn: a run either succeeds, and is right, or says why not, and harms nothing.

use std::sync::Arc;

use cistern_bucket::{Attributes, Bucket, Class, ErrorKind, Key, Memory, Verb};
use cistern_repository::{CheckOptions, Error, Options, ReadData, Repository, check};
use cistern_testkit::{Fault, Faulty, Rule, seed};
use futures::StreamExt;

use crate::support::*;

fn small() -> Options {
    Options { pack_size: 4 << 20, ..options() }
}

/// Two days, the second of which is backed up, or restored, under faults.
fn days() -> (Model, Model) {
    let mut random = seed(50).random();
    let first = Model::from([
        ("a/noise".into(), noise(&mut random, 600 << 10)),
        ("a/text".into(), text(&mut random, 100_000)),
        ("b".into(), noise(&mut random, 10)),
    ]);
    let mut second = first.clone();
    second.insert("c/noise".into(), noise(&mut random, 5 << 20));
    second.insert("b".into(), noise(&mut random, 11));
    (first, second)
}

const FAULTS: &[Fault] = &[
    Fault::Error(ErrorKind::Unreachable),
    Fault::Error(ErrorKind::Denied),
    Fault::Error(ErrorKind::NoSpace),
    Fault::Lost(ErrorKind::Unreachable),
    Fault::Lost(ErrorKind::AlreadyExists),
    Fault::TruncatedBody(0),
    Fault::TruncatedBody(40),
    Fault::BrokenBody(7, ErrorKind::Unreachable),
    Fault::WrongBody(0),
    Fault::WrongBody(60),
    Fault::ShortListing(0),
    Fault::RepeatedEntry,
    Fault::UnsortedListing,
];

/// An error that comes out has a reason that a reader can act upon.
fn assert_clear(error: &Error) {
    assert!(!matches!(error.class(), Class::Broken | Class::Cancelled), "{error:?}");
    assert!(!error.to_string().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_faults_succeeds_or_says_why_and_never_writes_a_wrong_snapshot() {
    let (first, second) = days();
    let empty = Arc::new(Memory::new("empty"));
    let opened = Repository::init(empty.clone(), &password(), &who(), small()).await.unwrap();

    // One run meets request `n` with a fault; tells whether it succeeded, or that there was no such request.
    let run = async |fault: Fault, n: u64| {
        let repo = opened.through(copy(&empty), small()).unwrap();
        backup(&repo, &first).await.unwrap();
        let faulty = Faulty::new(repo.bucket().clone());
        faulty.inject(Rule::new(fault).nth(n));
        let outcome = backup(&repo.through(faulty.clone(), small()).unwrap(), &second).await;
        let met = faulty.count() > n;
        if let Err(error) = &outcome {
            assert!(met, "{fault:?} at {n}: {error}");
            assert_clear(error);
        }

        let snapshots = repo.snapshots().await.unwrap();
        assert!(outcome.is_err() || snapshots.len() == 2, "{fault:?} at {n}");
        let reader = repo.reader(repo.index().await.unwrap());
        for ((_, snapshot), expected) in snapshots.iter().zip([&first, &second]) {
            assert_same(&read(&reader, snapshot.tree).await.unwrap(), expected);
        }
        let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
        assert!(findings.iter().all(|finding| finding.problem.is_hint()), "{fault:?} at {n}: {findings:?}");
        if outcome.is_err() {
            backup(&repo, &second).await.unwrap();
        }
        met.then_some(outcome.is_ok())
    };
    let (mut failures, mut successes) = (0, 0);
    for fault in FAULTS {
        // Most of a run is waiting for its lock: several go on at once.
        let mut runs = futures::stream::iter(0..).map(|n| run(*fault, n)).buffered(8);
        let mut requests = 0;
        while let Some(succeeded) = runs.next().await.flatten() {
            *if succeeded { &mut successes } else { &mut failures } += 1;
            requests += 1;
        }
        assert!(requests > 10, "a backup makes more requests");
    }
    assert!(failures > 50 && successes > 50, "{failures} failures, {successes} successes");
}

#[tokio::test]
async fn a_restore_under_faults_is_right_or_fails() {
    let (_, day) = days();
    let inner: Arc<dyn Bucket> = Arc::new(Memory::new("memory"));
    let repo = Repository::init(inner.clone(), &password(), &who(), small()).await.unwrap();
    backup(&repo, &day).await.unwrap();
    for fault in FAULTS {
        let mut n = 0;
        loop {
            let faulty = Faulty::new(inner.clone());
            faulty.inject(Rule::new(*fault).nth(n));
            let outcome = async {
                let repo = repo.through(faulty.clone(), small())?;
                let snapshots = repo.snapshots().await?;
                let Some((_, snapshot)) = snapshots.last() else { return Ok(None) };
                read(&repo.reader(repo.index().await?), snapshot.tree).await.map(Some)
            };
            match outcome.await {
                Ok(Some(model)) => {
                    assert_same(&model, &day);
                }
                // A listing that hides the only snapshot cannot be told from one without it.
                Ok(None) => assert!(matches!(fault, Fault::ShortListing(_)), "{fault:?} at {n}"),
                Err(error) => {
                    assert_clear(&error);
                    let heals = matches!(fault, Fault::WrongBody(_));
                    let key = &faulty.requests()[n as usize].key;
                    let unnamed = key.as_str().is_some_and(|key| key == "config" || key.starts_with("keys/"));
                    assert!(
                        !heals || unnamed,
                        "{fault:?} at {n}, {key}: a second reading would have helped: {error}"
                    );
                }
            }
            if faulty.count() <= n {
                break;
            }
            n += 1;
        }
        assert!(n > 5, "a restore makes more requests");
    }
}

#[tokio::test]
async fn opening_and_creating_under_faults_succeeds_or_says_why() {
    for fault in FAULTS {
        let memory = Arc::new(Memory::new("memory"));
        for n in 0..8 {
            let faulty = Faulty::new(memory.clone());
            faulty.inject(Rule::new(*fault).nth(n));
            if let Err(error) = Repository::init(faulty, &password(), &who(), small()).await {
                assert_clear(&error);
            }
            if memory.keys().iter().any(|key| key.as_bytes() == b"config") {
                break;
            }
            // A key without a config is not mistaken for a repository.
            memory.keys().iter().for_each(|key| assert!(memory.remove(key)));
        }
        Repository::open(memory.clone(), &password(), small()).await.unwrap();
        for n in 0..3 {
            let faulty = Faulty::new(memory.clone());
            faulty.inject(Rule::new(*fault).nth(n));
            if let Err(error) = Repository::open(faulty, &password(), small()).await {
                assert_clear(&error);
            }
        }
    }
}

#[tokio::test]
async fn creating_that_was_killed_is_finished_by_whoever_knows_the_password() {
    let config = Key::from("config");
    for after_effect in [false, true] {
        let memory = Arc::new(Memory::new("memory"));
        let faulty = Faulty::new(memory.clone());
        // Bucket, key, config.
        faulty.die_at_write(2, after_effect);
        Repository::init(faulty, &password(), &who(), small()).await.unwrap_err();
        let keys = memory.keys();
        assert_eq!(keys.contains(&config), after_effect);
        if after_effect {
            // Only the answer was lost.
            Repository::open(memory, &password(), small()).await.unwrap();
            continue;
        }
        let error = Repository::open(memory.clone(), &password(), small()).await.unwrap_err();
        assert!(error.to_string().contains("a key but no config"), "{error}");
        let other = Repository::init(memory.clone(), &"another".into(), &who(), small()).await;
        assert!(matches!(other, Err(Error::AlreadyARepository { .. })), "{other:?}");
        // Where there was more, the config was lost: another one would cut files in another way.
        memory.insert("snapshots/x", "x", Attributes::default());
        let lost = Repository::init(memory.clone(), &password(), &who(), small()).await;
        assert!(matches!(lost, Err(Error::AlreadyARepository { .. })), "{lost:?}");
        memory.remove(&Key::from("snapshots/x"));
        Repository::init(memory.clone(), &password(), &who(), small()).await.unwrap();
        Repository::open(memory.clone(), &password(), small()).await.unwrap();
        assert_eq!(memory.keys().len(), keys.len() + 1, "the same key and a config");
        let again = Repository::init(memory, &password(), &who(), small()).await;
        assert!(matches!(again, Err(Error::AlreadyARepository { .. })), "{again:?}");
    }
}

#[tokio::test]
async fn a_config_whose_answer_was_lost_is_ours_and_keeps_its_key() {
    let memory = Arc::new(Memory::new("memory"));
    let faulty = Faulty::new(memory.clone());
    faulty.inject(Rule::new(Fault::Lost(ErrorKind::AlreadyExists)).verb(Verb::Put).prefix("config"));
    Repository::init(faulty, &password(), &who(), small()).await.unwrap();
    Repository::open(memory.clone(), &password(), small()).await.unwrap();

    // Somebody else's config stays, and so does their key.
    let theirs = copy(&memory);
    let ours = Arc::new(Memory::new("memory"));
    let faulty = Faulty::new(ours.clone());
    let config = theirs.content(&Key::from("config")).unwrap();
    ours.insert("config", config, Attributes::default());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::NoSuchKey)).verb(Verb::Head).prefix("config"));
    let error = Repository::init(faulty, &password(), &who(), small()).await.unwrap_err();
    assert!(matches!(error, Error::AlreadyARepository { .. }), "{error}");
    assert_eq!(ours.keys(), [Key::from("config")], "our key opens nothing and is gone");
}

#[tokio::test]
async fn a_file_that_is_no_key_beside_good_keys_does_not_hide_a_wrong_password() {
    let memory = Arc::new(Memory::new("memory"));
    Repository::init(memory.clone(), &password(), &who(), small()).await.unwrap();
    memory.insert(format!("keys/{}", "0".repeat(64)), "{}", Attributes::default());
    let error = Repository::open(memory.clone(), &"another".into(), small()).await.unwrap_err();
    assert!(matches!(error, Error::WrongPassword { .. }), "{error}");
    Repository::open(memory, &password(), small()).await.unwrap();
}

/// A bucket with the same objects.
fn copy(from: &Memory) -> Arc<Memory> {
    let to = Memory::new("copy");
    for key in from.keys() {
        to.insert(key.clone(), from.content(&key).unwrap(), Attributes::default());
    }
    Arc::new(to)
}
