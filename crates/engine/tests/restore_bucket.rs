//! What comes out of a bucket's snapshot is what went in: every key, byte and attribute, in as few requests as can be.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Attributes, Bucket, Clock, ErrorKind, Key, Memory, PutOptions, Verb};
use cistern_engine::{Error, ExceptionKind, Overwrite};
use cistern_testkit::{Fault, Faulty, Rule, hostile, objects};
use scene::{Scene, incomplete};

type Objects = BTreeMap<Key, (Bytes, Attributes)>;

fn all(bucket: &Memory) -> Objects {
    let object = |key: Key| {
        let attributes = Attributes { tag_count: None, ..bucket.stat(&key).unwrap().1 };
        let content = bucket.content(&key).unwrap();
        (key, (content, attributes))
    };
    bucket.keys().into_iter().map(object).collect()
}

fn assert_equal(expected: &Objects, found: &Objects) {
    for (key, object) in expected {
        assert_eq!(found.get(key).map(|o| o.0.len()), Some(object.0.len()), "{key}");
        assert!(found.get(key) == Some(object), "{key}: {:?} {:?}", object.1, found[key].1);
    }
    let extra: Vec<_> = found.keys().filter(|key| !expected.contains_key(*key)).collect();
    assert!(extra.is_empty(), "{extra:?}");
}

/// A scene with two buckets in memory.
async fn scene() -> (Scene, Arc<Memory>, Arc<Memory>) {
    let mut scene = Scene::in_memory().await;
    let (source, target) = (Arc::new(Memory::new("s3://orders")), Arc::new(Memory::new("s3://copy")));
    scene.source = source.clone();
    scene.target = target.clone();
    (scene, source, target)
}

async fn put(bucket: &dyn Bucket, key: &str, text: &str) {
    put_bytes(bucket, key, text.as_bytes().to_vec().into()).await;
}

async fn put_bytes(bucket: &dyn Bucket, key: &str, body: Bytes) {
    let attributes = Attributes {
        content_type: Some("text/plain".into()),
        meta: BTreeMap::from([("owner".into(), key.to_uppercase())]),
        ..Attributes::default()
    };
    let options = PutOptions { attributes, ..PutOptions::default() };
    bucket.put(&key.into(), &[body], &options).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_key_byte_and_attribute_comes_back() {
    let (scene, source, target) = scene().await;
    objects::fill(&*source, objects::natural(1, 300)).await.unwrap();
    objects::fill(&*source, objects::odd(2, 300)).await.unwrap();
    objects::fill(&*source, objects::large(3, 2, 40 << 20)).await.unwrap();
    for (i, key) in hostile::keys(4, 2_000).into_iter().enumerate() {
        let body = Bytes::from(format!("hostile {i}"));
        source.put(&key, &[body], &PutOptions::default()).await.unwrap();
    }
    scene.backup_bucket().await;
    let expected = all(&source);
    let report = scene.restore_to("s3://copy", |task| task.verify = true).await.unwrap();
    assert_equal(&expected, &all(&target));
    assert_eq!(report.objects_written as usize, expected.len());
    assert_eq!(report.objects_verified as usize, expected.len());
    assert_eq!(report.plan.write_bytes, report.bytes_written);
    let counts = target.ledger().snapshot();
    assert!(counts.count(Verb::Multipart) >= 4, "large objects go in parts");
    assert_eq!(target.open_uploads(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_equal_is_left_alone_and_costs_no_request_of_its_own() {
    let (mut scene, _, target) = scene().await;
    // No two writes within one second, whose times nobody could tell apart.
    let clock = Clock::Stepping("2026-01-01T00:00:00Z".parse().unwrap(), jiff::SignedDuration::from_secs(1));
    let source = Arc::new(Memory::new("s3://orders").clock(clock));
    scene.source = source.clone();
    for i in 0..50 {
        put(&*source, &format!("k{i:02}"), &format!("text {i}")).await;
    }
    scene.backup_bucket().await;
    // Back into the same bucket, where two were changed and one is gone.
    let expected = all(&source);
    put(&*source, "k03", "other").await;
    let options = PutOptions::default();
    source.put(&"k04".into(), &[Bytes::from_static(b"text 4")], &options).await.unwrap();
    source.delete(&"k05".into()).await.unwrap();
    scene.target = source.clone();
    let before = source.ledger().snapshot();
    let report = scene.restore_to("s3://orders", |_| ()).await.unwrap();
    assert_equal(&expected, &all(&source));
    assert_eq!((report.objects_written, report.objects_kept, report.plan.replace), (3, 47, 2));
    let counts = source.ledger().snapshot().since(&before);
    assert_eq!((counts.count(Verb::List), counts.count(Verb::Put), counts.count(Verb::Get)), (1, 3, 0));
    assert!(counts.count(Verb::Head) <= 2, "only where contents are equal and the time is not");
    // Into another bucket, twice: the second time attributes are compared.
    scene.target = target.clone();
    scene.restore_to("s3://copy", |_| ()).await.unwrap();
    let before = target.ledger().snapshot();
    let report = scene.restore_to("s3://copy", |_| ()).await.unwrap();
    assert_eq!((report.objects_written, report.objects_kept), (0, 50));
    assert_eq!(target.ledger().snapshot().since(&before).count(Verb::Put), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_decides_about_what_is_there() {
    let table = [
        (Overwrite::Always, "snapshot", "same"),
        (Overwrite::IfChanged, "snapshot", "same"),
        (Overwrite::IfNewer, "target", "same"),
        (Overwrite::Never, "target", "same"),
    ];
    for (overwrite, different, same) in table {
        let (scene, source, target) = scene().await;
        put(&*source, "different", "snapshot").await;
        put(&*source, "same", "same").await;
        put(&*source, "new", "new").await;
        scene.backup_bucket().await;
        put(&*target, "different", "target").await;
        put(&*target, "same", "same").await;
        scene.restore_to("s3://copy", |task| task.overwrite = overwrite).await.unwrap();
        let text = |key: &str| String::from_utf8(target.content(&key.into()).unwrap().to_vec()).unwrap();
        assert_eq!(
            (text("different"), text("same"), text("new")),
            (different.into(), same.into(), "new".into())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_patterns_and_new_beginnings_say_which_keys() {
    let (scene, source, _) = scene().await;
    for key in ["2026/a", "2026/b/c.log", "2026//odd", "2027/d", "top"] {
        put(&*source, key, key).await;
    }
    scene.backup_bucket().await;
    type Change = fn(&mut cistern_engine::Restore);
    let table: [(&str, Change, &[&str]); 6] = [
        ("s3://copy", |_| (), &["2026//odd", "2026/a", "2026/b/c.log", "2027/d", "top"]),
        ("s3://copy/in", |t| t.selection.include = vec!["*.log".into()], &["in/2026/b/c.log"]),
        ("s3://copy/in/", |t| t.selection.exclude = vec!["/orders/2026".into()], &["in/2027/d", "in/top"]),
        ("s3://copy", |t| t.snapshot.name = "latest:/orders/2026".into(), &["/odd", "a", "b/c.log"]),
        (
            "s3://copy/x",
            |t| t.remap = vec![("2026/".into(), "old-".into())],
            &["x/2027/d", "x/old-/odd", "x/old-a", "x/old-b/c.log", "x/top"],
        ),
        ("s3://copy", |t| t.dry_run = true, &[]),
    ];
    for (address, change, expected) in table {
        let mut scene = scene.again();
        let target = Arc::new(Memory::new("s3://copy"));
        scene.target = target.clone();
        scene.restore_to(address, change).await.unwrap();
        let found: Vec<_> = target.keys().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_plan_named_is_deleted() {
    let (scene, source, target) = scene().await;
    for key in ["a", "b//odd", "b/x", "keep.me"] {
        put(&*source, key, key).await;
    }
    scene.backup_bucket().await;
    for key in ["in/a", "in/b/stranger", "in/b//stranger", "in/z", "in/z/keep.me", "other"] {
        put(&*target, key, "target").await;
    }
    let delete = |task: &mut cistern_engine::Restore| {
        task.delete = true;
        task.selection.exclude = vec!["keep.me".into()];
    };
    let late = target.clone();
    *scene.listener.meanwhile.lock().unwrap() = Some(Box::new(move || {
        futures::executor::block_on(put(&*late, "in/late", "late"));
    }));
    let report = scene.restore_to("s3://copy/in", delete).await.unwrap();
    assert_eq!((report.plan.delete, report.objects_deleted), (3, 3));
    assert_eq!(report.plan.delete_first.len(), 3);
    let found: Vec<_> = target.keys().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["in/a", "in/b//odd", "in/b/x", "in/late", "in/z/keep.me", "other"]);
    // A directory's snapshot may hide keys.
    let directory = scene.path("source");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("a"), "a").unwrap();
    scene.backup(&directory).await;
    let refused = scene.restore_to("s3://copy/in", |task| task.delete = true).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(target.keys().len(), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_goes_into_a_bucket_as_far_as_it_can() {
    let (scene, _, target) = scene().await;
    let source = scene.path("source");
    std::fs::create_dir_all(source.join("sub/empty")).unwrap();
    std::fs::write(source.join("a"), "1").unwrap();
    std::fs::write(source.join("sub/b"), "2").unwrap();
    std::fs::hard_link(source.join("a"), source.join("c")).unwrap();
    std::os::unix::fs::symlink("a", source.join("link")).unwrap();
    scene.backup(&source).await;
    let report = incomplete(scene.restore_to("s3://copy/x", |_| ()).await);
    let found: Vec<_> = target.keys().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["x/a", "x/c", "x/sub/b"]);
    assert_eq!(report.exceptions.count(ExceptionKind::Unwritable), 1);
    assert_eq!(report.exceptions.total(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_store_refuses_is_named_and_the_rest_goes_on() {
    let (mut scene, source, target) = scene().await;
    for key in ["bad", "class", "good"] {
        put(&*source, key, key).await;
    }
    scene.backup_bucket().await;
    let faulty = Faulty::new(target.clone());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unsupported)).verb(Verb::Put).prefix("bad"));
    // Taken without some of its attributes.
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unsupported)).verb(Verb::Put).prefix("class").nth(0));
    scene.target = faulty;
    let report = incomplete(scene.restore_to("s3://copy", |_| ()).await);
    assert_eq!(report.exceptions.count(ExceptionKind::NameRefused), 1, "{report:?}");
    assert_eq!(report.exceptions.count(ExceptionKind::AttributeLost), 1, "{report:?}");
    let found: Vec<_> = target.keys().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["class", "good"]);
    assert_eq!(target.content(&"class".into()).unwrap(), "class");
}
