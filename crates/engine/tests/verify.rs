//! Comparisons of snapshots with live sources: every kind of difference is found, and nothing else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use cistern_bucket::{Attributes, Bucket, Key, Memory, Verb};
use cistern_engine::{Error, ExceptionKind, Verify, VerifyReport};
use cistern_repository::BlobKind;
use cistern_testkit::hostile;
use support::{World, attributes, task};

fn found(report: &VerifyReport) -> BTreeMap<String, ExceptionKind> {
    report.exceptions.first.iter().map(|exception| (exception.key.clone(), exception.kind)).collect()
}

fn pairs(pairs: &[(&str, ExceptionKind)]) -> BTreeMap<String, ExceptionKind> {
    pairs.iter().map(|(key, kind)| (key.to_string(), *kind)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_equals_its_source_until_the_source_changes() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for (i, key) in hostile::keys(3, 1_500).into_iter().enumerate() {
        bucket.insert(key.clone(), format!("{i} {key}"), attributes(i));
    }
    let large = Attributes { meta: [("m".to_string(), "x".repeat(4_000))].into(), ..Attributes::default() };
    for key in ["d/a", "d/a/b", "d/gone", "d/other", "gone/x", "gone/y/z", "same"] {
        bucket.insert(key, key, large.clone());
    }
    let world = World::new(bucket.clone()).await;
    world.backup(&task()).await.unwrap();
    let before = bucket.ledger().snapshot();
    let report = world.verify(false).await.unwrap();
    assert_eq!(found(&report), BTreeMap::new());
    assert_eq!(report.objects_equal, bucket.len() as u64);
    assert_eq!(report.bytes_equal, bucket.size());
    assert_eq!(bucket.ledger().snapshot().since(&before).count(Verb::Get), 0);
    let report = world.verify(true).await.unwrap();
    assert_eq!((found(&report), report.objects_equal), (BTreeMap::new(), bucket.len() as u64));

    bucket.insert("d/new", "new", Attributes::default());
    bucket.insert("d/other", "D/OTHER", large.clone());
    for key in ["d/gone", "gone/x", "gone/y/z"] {
        bucket.remove(&Key::from(key));
    }
    let mut expected = pairs(&[
        ("d/new", ExceptionKind::OnlyInSource),
        ("d/other", ExceptionKind::Differs),
        ("d/gone", ExceptionKind::OnlyInSnapshot),
        ("gone/x", ExceptionKind::OnlyInSnapshot),
        ("gone/y/z", ExceptionKind::OnlyInSnapshot),
    ]);
    let report = world.verify(false).await.unwrap();
    assert_eq!(found(&report), expected);
    assert_eq!(report.objects_equal, bucket.len() as u64 - 2);

    // What no listing shows, contents do: other bytes, other attributes.
    bucket.corrupt(&Key::from("same"), |bytes| bytes[0] ^= 1);
    bucket.insert("d/a", "d/a", attributes(1));
    assert_eq!(found(&world.verify(false).await.unwrap()), expected);
    expected.insert("same".into(), ExceptionKind::Differs);
    expected.insert("d/a".into(), ExceptionKind::Differs);
    assert_eq!(found(&world.verify(true).await.unwrap()), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_compared_as_one_also_by_the_id_of_any() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..200 {
        bucket.insert(format!("flat/{i:03}"), format!("{i}"), Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    let mut parts = task();
    parts.part_keys = 40;
    let report = world.backup(&parts).await.unwrap();
    assert_eq!(report.parts.len(), 9);
    bucket.insert("flat/100", "other", Attributes::default());
    bucket.remove(&Key::from("flat/199"));
    let all = world.verify(false).await.unwrap();
    let expected =
        pairs(&[("flat/100", ExceptionKind::Differs), ("flat/199", ExceptionKind::OnlyInSnapshot)]);
    assert_eq!((found(&all), all.objects_equal, all.snapshots.len()), (expected.clone(), 198, 9));
    // A part that was meant alone would be a snapshot with most of it missing.
    let mut one = verify_task();
    one.snapshot.name = report.snapshots[0].clone();
    let one = world.verify_task(&one).await.unwrap();
    assert_eq!((found(&one), one.objects_equal, one.snapshots.len()), (expected, 198, 9));
}

fn verify_task() -> Verify {
    Verify {
        repository: "s3://repository".parse().unwrap(),
        snapshot: Default::default(),
        source: "s3://orders".parse().unwrap(),
        root: None,
        selection: Default::default(),
        content: false,
    }
}

#[tokio::test]
async fn prefixes_selections_and_copies_are_compared() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["a/1", "a/2", "b/1"] {
        bucket.insert(key, key, Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    world.backup(&task()).await.unwrap();
    let named = |change: &dyn Fn(&mut Verify)| {
        let mut task = verify_task();
        task.snapshot.name = "latest".into();
        change(&mut task);
        task
    };
    let prefix =
        world.verify_task(&named(&|task| task.source = "s3://orders/a/".parse().unwrap())).await.unwrap();
    assert_eq!((found(&prefix), prefix.objects_equal), (BTreeMap::new(), 2));
    let copy = world.verify_task(&named(&|task| task.source = "s3://copy".parse().unwrap())).await.unwrap();
    assert_eq!((found(&copy), copy.objects_equal), (BTreeMap::new(), 3));
    bucket.remove(&Key::from("a/1"));
    let some =
        world.verify_task(&named(&|task| task.selection.exclude = vec!["/orders/a".into()])).await.unwrap();
    assert_eq!((found(&some), some.objects_equal), (BTreeMap::new(), 1));
    let missing = world.verify_task(&named(&|task| task.root = Some("/nothing".into()))).await;
    assert!(matches!(missing, Err(Error::NotFound(_))));
    let missing = world.verify_task(&named(&|task| task.snapshot.name = "latest~7".into())).await;
    assert!(matches!(missing, Err(Error::NotFound(_))));
}

#[tokio::test]
async fn stored_contents_that_are_damaged_are_found() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..5 {
        bucket.insert(format!("{i}"), format!("content {i}"), Attributes::default());
    }
    let repository = Arc::new(Memory::new("s3://repository"));
    let world = World::with(bucket.clone(), repository.clone()).await;
    world.backup(&task()).await.unwrap();
    let index = world.open().index().await.unwrap();
    for (pack, blob) in index.blobs(BlobKind::Data) {
        let pack = index.pack(pack).to_string();
        let key = Key::from(format!("data/{}/{pack}", &pack[..2]));
        assert!(repository.corrupt(&key, |bytes| bytes[blob.offset as usize + 20] ^= 1));
    }
    assert_eq!(world.verify(false).await.unwrap().objects_equal, 5, "a listing does not read contents");
    let report = world.verify(true).await.unwrap();
    assert_eq!((report.exceptions.count(ExceptionKind::Damaged), report.objects_equal), (5, 0));
}

#[tokio::test]
async fn a_directory_whose_tree_is_damaged_is_named_and_the_others_are_compared() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["a/1", "bad/1", "bad/2", "c/1"] {
        bucket.insert(key, key, Attributes::default());
    }
    let repository = Arc::new(Memory::new("s3://repository"));
    let world = World::with(bucket.clone(), repository.clone()).await;
    world.backup(&task()).await.unwrap();
    let opened = world.open();
    let (_, snapshot) = opened.snapshots().await.unwrap().remove(0);
    let index = opened.index().await.unwrap();
    let reader = opened.reader(index.clone());
    let root = reader.tree(&snapshot.tree).await.unwrap().get(b"orders").unwrap().subtree.unwrap();
    let bad = reader.tree(&root).await.unwrap().get(b"bad").unwrap().subtree.unwrap();
    let place = index.lookup(BlobKind::Tree, &bad).unwrap();
    let pack = index.pack(place.pack).to_string();
    let key = Key::from(format!("data/{}/{pack}", &pack[..2]));
    assert!(repository.corrupt(&key, |bytes| bytes[place.offset as usize + 20] ^= 1));
    let folder = tempfile::tempdir().unwrap();
    for key in ["a/1", "bad/1", "bad/3", "c/1"] {
        std::fs::create_dir_all(folder.path().join(key).parent().unwrap()).unwrap();
        std::fs::write(folder.path().join(key), key).unwrap();
    }
    let mut task = verify_task();
    task.source = cistern_bucket::Address::Directory(folder.path().into());
    task.snapshot.name = "latest".into();
    task.root = Some("/orders".into());
    task.content = true;
    let report = world.verify_task(&task).await.unwrap();
    assert_eq!((found(&report), report.objects_equal), (pairs(&[("bad", ExceptionKind::Damaged)]), 2));
    // Only in the snapshot, as far as anybody can tell.
    for key in ["bad/1", "bad/2"] {
        assert!(bucket.remove(&Key::from(key)));
    }
    let report = world.verify(false).await.unwrap();
    assert!(report.exceptions.count(ExceptionKind::Damaged) >= 1, "{report:?}");
    assert_eq!(report.objects_equal, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_compared_with_a_snapshot_of_a_bucket() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["a/1", "a/2", "b/c/1", "top"] {
        bucket.insert(key, key, Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    world.backup(&task()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in [("a/1", "a/1"), ("a/2", "A/2"), ("extra", "x"), ("top", "longer")] {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let mut task = verify_task();
    task.snapshot.name = "latest".into();
    task.source = cistern_bucket::Address::Directory(folder.path().into());
    task.content = true;
    assert!(
        matches!(world.verify_task(&task).await, Err(Error::NotFound(_))),
        "its own path is not in the snapshot"
    );
    task.root = Some("/orders".into());
    let report = world.verify_task(&task).await.unwrap();
    let expected = pairs(&[
        ("a/2", ExceptionKind::Differs),
        ("b", ExceptionKind::OnlyInSnapshot),
        ("extra", ExceptionKind::OnlyInSource),
        ("top", ExceptionKind::Differs),
    ]);
    assert_eq!((found(&report), report.objects_equal, report.bytes_equal), (expected, 1, 3));
    task.selection.exclude = vec!["extra".into(), "b".into(), "/orders/a/2".into(), "top".into()];
    assert_eq!(found(&world.verify_task(&task).await.unwrap()), BTreeMap::new());
}
