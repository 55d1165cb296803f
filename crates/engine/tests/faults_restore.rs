//! Requests that fail while a restore runs: it ends with what was stored, or with a clear error, never with anything else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{ErrorKind, Key, Memory, PutOptions, Verb};
use cistern_engine::{Error, ExceptionKind, TargetWriter};
use cistern_testkit::{Fault, Faulty, Random, Request, Rule};
use scene::{Scene, assert_nothing_unfinished, incomplete, look};

fn files() -> BTreeMap<String, Vec<u8>> {
    let mut random = Random::new(5);
    let mut all = BTreeMap::new();
    for (name, size) in
        [("a/empty", 0), ("a/one", 10_000), ("b/large", 6 << 20), ("b/small", 100), ("c", 700_000)]
    {
        let mut bytes = vec![0; size];
        random.fill(&mut bytes);
        all.insert(name.to_owned(), bytes);
    }
    all
}

/// A repository in memory with the files as a directory and as a bucket, seen through faults.
async fn scene() -> (Scene, Arc<Memory>, Arc<Faulty>) {
    let memory = Arc::new(Memory::new("s3://repository"));
    let mut scene = Scene::bare();
    scene.repository = memory.clone();
    let source = scene.path("source");
    for (name, bytes) in files() {
        let path = source.join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &bytes).unwrap();
        let options = PutOptions::default();
        scene.source.put(&name.as_str().into(), &[Bytes::from(bytes)], &options).await.unwrap();
    }
    scene.create().await;
    scene.backup(&source).await;
    scene.backup_bucket().await;
    let faulty = Faulty::new(memory.clone());
    scene.repository = faulty.clone();
    (scene, memory, faulty)
}

/// What was placed is what was stored, file by file.
fn assert_no_wrong_file(scene: &Scene) -> usize {
    assert_nothing_unfinished(&scene.out());
    if !scene.out().exists() {
        return 0;
    }
    let files = files();
    let mut count = 0;
    for (path, seen) in look(&scene.out()) {
        if seen.mode & 0o170_000 == 0o100_000 {
            let name = String::from_utf8(path).unwrap();
            assert_eq!(files.get(&name), Some(&seen.content), "{name}");
            count += 1;
        }
    }
    count
}

/// The directory's snapshot, from the directory on.
fn directory(scene: &Scene) -> impl Fn(&mut cistern_engine::Restore) + use<> {
    let source = scene.path("source");
    move |task| {
        task.snapshot.name = format!("latest:{}", source.display());
        task.snapshot.paths = vec![source.display().to_string()];
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_to_the_repository_that_fails_ends_in_the_right_files_or_an_error() {
    let (scene, _, faulty) = scene().await;
    let change = directory(&scene);
    scene.restore(&change).await.unwrap();
    assert_eq!(assert_no_wrong_file(&scene), 5);
    let requests = faulty.count();
    let faults = [
        Fault::Error(ErrorKind::Unreachable),
        Fault::TruncatedBody(20),
        Fault::WrongBody(30),
        Fault::BrokenBody(10, ErrorKind::Unreachable),
    ];
    let (mut right, mut wrong) = (0, 0);
    for (at, fault) in (0..requests).flat_map(|at| faults.map(|fault| (at, fault))) {
        let _ = std::fs::remove_dir_all(scene.out());
        faulty.reset();
        faulty.inject(Rule::new(fault).nth(at));
        match scene.restore(&change).await {
            Ok(report) => {
                assert_eq!(assert_no_wrong_file(&scene), 5, "{fault:?} at {at}: {report:?}");
                right += 1;
            }
            Err(Error::Incomplete { .. }) => {
                assert!(assert_no_wrong_file(&scene) < 5, "{fault:?} at {at}");
                wrong += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert_no_wrong_file(&scene);
                wrong += 1;
            }
        }
    }
    assert!(right > 0 && wrong > 0, "{right} {wrong}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_pack_costs_its_files_and_no_others() {
    for writer in [TargetWriter::Auto, TargetWriter::Sequential] {
        let (mut scene, memory, _) = scene().await;
        let change = directory(&scene);
        // Within the blobs of one of the large files, which are most of a pack.
        let largest = memory.keys().into_iter().filter(|key| key.as_bytes().starts_with(b"data/"));
        let largest = largest.max_by_key(|key| memory.content(key).unwrap().len()).unwrap();
        assert!(memory.corrupt(&largest, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }));
        let report = scene.restore(|task| {
            change(task);
            task.writer = writer;
        });
        let report = incomplete(report.await);
        assert_eq!(report.exceptions.count(ExceptionKind::Damaged), 1, "{report:?}");
        assert_eq!(assert_no_wrong_file(&scene), 4);
        // Which of the large ones it is, the pack decides; it is not there at all.
        let named = &report.exceptions.first[0].key;
        assert!(!scene.out().join(named.trim_start_matches('/')).exists(), "{named}");
        let target = Arc::new(Memory::new("s3://copy"));
        scene.target = target.clone();
        let report = incomplete(
            scene.restore_to("s3://copy", |task| task.snapshot.paths = vec!["/orders".into()]).await,
        );
        assert_eq!(report.exceptions.count(ExceptionKind::Damaged), 1, "{report:?}");
        assert_eq!(target.keys().len(), 4);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_to_the_target_that_fails_is_an_error_or_an_exception() {
    let (mut scene, ..) = scene().await;
    let target = Arc::new(Memory::new("s3://copy"));
    let faulty = Faulty::new(target.clone());
    scene.target = faulty.clone();
    let change = |task: &mut cistern_engine::Restore| {
        task.target = "s3://copy".parse().unwrap();
        task.snapshot.paths = vec!["/orders".into()];
        task.verify = true;
    };
    scene.restore(change).await.unwrap();
    let requests = faulty.count();
    assert!(requests > 5);
    let faults = [
        Fault::Error(ErrorKind::Unreachable),
        Fault::Error(ErrorKind::Denied),
        Fault::Lost(ErrorKind::Unreachable),
        Fault::WrongBody(3),
    ];
    for at in 0..requests {
        for fault in faults {
            target.clear();
            faulty.reset();
            faulty.inject(Rule::new(fault).nth(at));
            let result = scene.restore(change).await;
            for key in target.keys() {
                let expected = &files()[key.as_str().unwrap()];
                assert_eq!(&target.content(&key).unwrap()[..], &expected[..], "{fault:?} at {at}: {key}");
            }
            match result {
                Ok(_) => assert_eq!(target.keys().len(), 5, "{fault:?} at {at}"),
                Err(Error::Target(_) | Error::Incomplete { .. }) => (),
                Err(error) => panic!("{fault:?} at {at}: {error:?}"),
            }
            assert_eq!(target.open_uploads(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_an_object_that_was_not_finished_are_thrown_away() {
    let (mut scene, ..) = scene().await;
    let large = Bytes::from(vec![7; 50 << 20]);
    scene.source.put(&"large".into(), &[large], &PutOptions::default()).await.unwrap();
    scene.backup_bucket().await;
    let target = Arc::new(Memory::new("s3://copy"));
    let faulty = Faulty::new(target.clone());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unreachable)).verb(Verb::Put).prefix("large").nth(1));
    scene.target = faulty;
    let result = scene.restore_to("s3://copy", |task| task.snapshot.paths = vec!["/orders".into()]).await;
    assert!(matches!(result, Err(Error::Target(_))), "{result:?}");
    assert_eq!(target.open_uploads(), 0);
    assert_eq!(target.content(&Key::from("large")), None);
}

/// An object of more parts than fit into memory at once gives up its memory when one of them is refused, so that the
/// others are restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_object_that_is_refused_holds_up_no_other() {
    let (mut scene, ..) = scene().await;
    let large = Bytes::from(vec![7; 300 << 20]);
    for name in ["large", "later"] {
        scene.source.put(&name.into(), std::slice::from_ref(&large), &PutOptions::default()).await.unwrap();
    }
    scene.backup_bucket().await;
    let (refused, missing) = (Fault::Error(ErrorKind::Invalid), Fault::Error(ErrorKind::Unsupported));
    for (fault, verb) in [(refused, Verb::Put), (missing, Verb::Multipart)] {
        let target = Arc::new(Memory::new("s3://copy"));
        let faulty = Faulty::new(target.clone());
        faulty.inject(Rule::new(fault).verb(verb).prefix("large"));
        scene.target = faulty;
        let restore = scene.restore_to("s3://copy", |task| task.snapshot.paths = vec!["/orders".into()]);
        let result =
            tokio::time::timeout(Duration::from_secs(120), restore).await.expect("it waits for ever");
        let report = incomplete(result);
        assert_eq!(report.exceptions.total(), 1, "{report:?}");
        assert_eq!(target.content(&Key::from("large")), None);
        assert!(target.content(&Key::from("later")).is_some_and(|later| later == large));
        assert_eq!(target.open_uploads(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_asks_to_stop_is_heard_and_nothing_half_written_stays() {
    for bucket in [false, true] {
        // From the n-th request for data on none is answered, until there are no more than n.
        for n in 0.. {
            let (mut scene, _, faulty) = scene().await;
            let target = Arc::new(Memory::new("s3://copy"));
            scene.target = target.clone();
            let asked = || {
                let is_data = |request: &&Request| {
                    request.verb == Verb::Get && request.key.as_bytes().starts_with(b"data/")
                };
                faulty.requests().iter().filter(is_data).count() as u64
            };
            let before = asked();
            faulty.inject(Rule::new(Fault::Hang).verb(Verb::Get).prefix("data/").range(n..u64::MAX));
            let change = directory(&scene);
            let cancel = scene.cancel.clone();
            let stuck = async {
                while asked() <= before + n {
                    tokio::task::yield_now().await;
                }
                cancel.cancel();
                std::future::pending::<()>().await;
            };
            let restore = scene.restore(|task| match bucket {
                true => {
                    task.target = "s3://copy".parse().unwrap();
                    task.snapshot.paths = vec!["/orders".into()];
                }
                false => change(task),
            });
            let result = tokio::time::timeout(Duration::from_secs(60), async {
                tokio::select! {
                    result = restore => result,
                    () = stuck => unreachable!("it waits for ever"),
                }
            });
            let result = result.await.expect("it ends at once");
            assert_eq!(target.open_uploads(), 0);
            if result.is_ok() {
                assert!(n > 1, "it asked for data {n} times");
                break;
            }
            assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
            assert_no_wrong_file(&scene);
        }
    }
}
