//! Backups of buckets, judged by what the snapshots hold and by the requests that they cost.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Attributes, Bucket, Clock, Key, Memory, Verb};
use cistern_engine::{Error, ExceptionKind};
use cistern_testkit::{hostile, seed};
use jiff::{SignedDuration, Timestamp};
use support::{World, attributes, expected, task};

fn counts(report: &cistern_engine::BackupReport) -> [u64; 5] {
    [
        report.objects_listed,
        report.objects_new,
        report.objects_changed,
        report.objects_unchanged,
        report.objects_deleted,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_keys_and_attributes_come_back_exactly() {
    let seed = seed(1);
    let bucket = Arc::new(Memory::new("s3://orders"));
    let mut keys = hostile::keys(seed.value(), 10_000);
    keys.extend(hostile::byte_keys(seed.value(), 1_000));
    for (i, key) in keys.into_iter().enumerate() {
        bucket.insert(key.clone(), format!("{i} {key}"), attributes(i));
    }
    // Attributes above 3,500 bytes go into a side file.
    let large: Attributes =
        Attributes { meta: (0..40).map(|i| (format!("n{i}"), "é".repeat(100))).collect(), ..attributes(3) };
    for key in ["large", "large/x", "dir//", "dir//y", "dir/.."] {
        bucket.insert(key, "x", large.clone());
    }
    let world = World::new(bucket.clone()).await;
    let report = world.backup(&task()).await.unwrap();
    let count = bucket.len() as u64;
    assert_eq!(counts(&report), [count, count, 0, 0, 0]);
    assert_eq!(report.exceptions.total(), 0, "{:?}", report.exceptions);
    assert_eq!(report.parts.len(), 1);
    let kept = world.kept(&report.snapshots).await;
    let expected = expected(&bucket);
    for (key, object) in &expected {
        assert_eq!(kept.get(key), Some(object), "{key}");
    }
    assert_eq!(kept.len(), expected.len());

    let before = bucket.ledger().snapshot();
    let again = world.backup(&task()).await.unwrap();
    let spent = bucket.ledger().snapshot().since(&before);
    assert_eq!(counts(&again), [count, 0, 0, count, 0]);
    assert_eq!((spent.count(Verb::Get), spent.count(Verb::Head), spent.count(Verb::Tags)), (0, 0, 0));
    let ranges = 1 + world.part(&report.snapshots[0]).await.splits.len() as u64;
    assert!((count.div_ceil(1_000)..count.div_ceil(1_000) + ranges).contains(&spent.count(Verb::List)));
    assert_eq!(world.trees(&report.snapshots).await, world.trees(&again.snapshots).await);
    assert_eq!((again.stored.tree_blobs, again.stored.data_blobs), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_changed_is_read() {
    let start = Timestamp::from_second(1_700_000_000).unwrap();
    let bucket = Memory::new("s3://orders").clock(Clock::Stepping(start, SignedDuration::from_secs(1)));
    let bucket = Arc::new(bucket);
    for i in 0..2_500 {
        bucket.insert(format!("{:02}/{i:04}", i % 20), format!("content {i}"), attributes(i));
    }
    let world = World::new(bucket.clone()).await;
    let first = world.backup(&task()).await.unwrap();

    // A key that sorts before all others, one that is replaced, one that goes.
    bucket.insert("00/", "first", attributes(0));
    bucket.insert("10/0010", "replaced", attributes(1));
    bucket.remove(&Key::from("19/2499"));
    let before = bucket.ledger().snapshot();
    let second = world.backup(&task()).await.unwrap();
    let spent = bucket.ledger().snapshot().since(&before);
    assert_eq!(counts(&second), [2_500, 1, 1, 2_498, 1]);
    assert_eq!((spent.count(Verb::Get), spent.count(Verb::List)), (2, 3));
    assert_eq!(second.bytes_read, 13);
    assert_eq!(second.parent.as_ref(), first.snapshots.first());
    assert_eq!(world.kept(&second.snapshots).await, expected(&bucket));
    assert_ne!(second.parts[0].proof.hash, first.parts[0].proof.hash);

    // Everything is read again on request, and nothing is stored.
    let mut force = task();
    force.force = true;
    let third = world.backup(&force).await.unwrap();
    assert_eq!(counts(&third), [2_500, 2_500, 0, 0, 0]);
    assert_eq!(third.stored.data_blobs, 0);
    assert_eq!(world.trees(&third.snapshots).await, world.trees(&second.snapshots).await);
}

#[tokio::test]
async fn an_overwrite_of_the_same_size_in_the_same_second_is_seen() {
    let clock = Clock::Fixed(Timestamp::from_second(1_700_000_000).unwrap());
    let bucket = Arc::new(Memory::new("s3://orders").clock(clock));
    bucket.insert("a", "one", Attributes::default());
    let world = World::new(bucket.clone()).await;
    world.backup(&task()).await.unwrap();
    bucket.insert("a", "two", Attributes::default());
    let report = world.backup(&task()).await.unwrap();
    assert_eq!(counts(&report), [1, 0, 1, 0, 0]);
    assert_eq!(world.kept(&report.snapshots).await, expected(&bucket));
}

#[tokio::test]
async fn an_object_and_a_directory_of_its_name_come_and_go() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let world = World::new(bucket.clone()).await;
    let large = Attributes { meta: [("m".to_string(), "x".repeat(3_480))].into(), ..Attributes::default() };
    bucket.insert("a", "1", attributes(5));
    bucket.insert("b//", "2", large.clone());
    bucket.insert("long", "3", large);
    world.backup(&task()).await.unwrap();
    for (key, add) in
        [("a/b", true), ("b//c", true), ("long/x", true), ("a/b", false), ("b//c", false), ("long/x", false)]
    {
        match add {
            true => bucket.insert(key, key, attributes(1)),
            false => {
                bucket.remove(&Key::from(key));
            }
        }
        let before = bucket.ledger().snapshot();
        let report = world.backup(&task()).await.unwrap();
        assert_eq!(world.kept(&report.snapshots).await, expected(&bucket), "{key}");
        let gets = bucket.ledger().snapshot().since(&before).count(Verb::Get);
        assert_eq!(gets, u64::from(add), "{key}: what is unchanged is renamed, not read");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_are_read_in_ranges_and_keep_their_bytes() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let mut random = seed(2).random();
    for (key, size) in
        [("l/1", (40 << 20) + 1), ("l/2", 16 << 20), ("l/3", (16 << 20) + 1), ("l/4", 600 << 10), ("l/5", 0)]
    {
        let mut content = vec![0; size];
        random.fill(&mut content);
        bucket.insert(key, content, Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    let before = bucket.ledger().snapshot();
    let report = world.backup(&task()).await.unwrap();
    // Six ranges, one request, three ranges, one each.
    assert_eq!(bucket.ledger().snapshot().since(&before).count(Verb::Get), 6 + 1 + 3 + 1 + 1);
    assert_eq!(report.bytes_read, report.bytes_listed);
    assert!(world.kept(&report.snapshots).await == expected(&bucket), "contents differ");
}

#[tokio::test]
async fn prefixes_and_roots_lay_keys_out() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["2025/x", "2026/", "2026/a", "2026/a/b", "2026x"] {
        bucket.insert(key, key, Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    let mut prefixed = task();
    prefixed.source = "s3://orders/2026/".parse().unwrap();
    let report = world.backup(&prefixed).await.unwrap();
    let keys: Vec<_> = world.kept(&report.snapshots).await.into_keys().collect();
    assert_eq!(keys, ["2026/", "2026/a", "2026/a/b"].map(Key::from));
    assert_eq!(world.snapshots().await[0].1.paths, ["/orders/2026"]);

    prefixed.root = Some("/kubestash-data".into());
    let report = world.backup(&prefixed).await.unwrap();
    let keys: Vec<_> = world.kept(&report.snapshots).await.into_keys().collect();
    assert_eq!(keys, ["", "a", "a/b"].map(Key::from));
    assert_eq!(report.parent, None, "another path is another lineage");
    for bad in ["data", "/", "/a/../b", "/a//b", ""] {
        prefixed.root = Some(bad.into());
        assert!(matches!(world.backup(&prefixed).await, Err(Error::Invalid(_))), "{bad}");
    }
}

#[tokio::test]
async fn a_selection_leaves_objects_out() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["keep/a.txt", "keep/b.tmp", "drop/a.txt", "big"] {
        bucket.insert(key, if key == "big" { "x".repeat(100) } else { key.into() }, Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    let mut some = task();
    some.selection.exclude = vec!["*.tmp".into(), "/orders/drop".into()];
    some.selection.max_size = Some(50);
    let before = bucket.ledger().snapshot();
    let report = world.backup(&some).await.unwrap();
    assert_eq!(
        world.kept(&report.snapshots).await.into_keys().collect::<Vec<_>>(),
        [Key::from("keep/a.txt")]
    );
    assert_eq!(bucket.ledger().snapshot().since(&before).count(Verb::Get), 1);
    assert_eq!(report.parts[0].proof.keys, 4, "the proof is about the listing");
    assert_eq!(world.part(&report.snapshots[0]).await.excluded, 3);
    assert_eq!(world.snapshots().await[0].1.tags, ["partial"]);
    let again = world.backup(&some).await.unwrap();
    assert_eq!(counts(&again), [1, 0, 0, 1, 0]);
}

#[tokio::test]
async fn a_source_that_shrank_or_is_empty_is_refused() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let world = World::new(bucket.clone()).await;
    assert!(matches!(world.backup(&task()).await, Err(Error::SourceEmpty { .. })));
    let mut empty = task();
    empty.allow_empty = true;
    assert_eq!(counts(&world.backup(&empty).await.unwrap()), [0; 5]);
    for i in 0..10 {
        bucket.insert(format!("{i}"), "x", Attributes::default());
    }
    world.backup(&task()).await.unwrap();
    for i in 0..6 {
        bucket.remove(&Key::from(format!("{i}")));
    }
    let snapshots = world.snapshots().await.len();
    let mut force = task();
    force.force = true;
    for refused in [task(), empty.clone(), force] {
        let error = world.backup(&refused).await.expect_err("six of ten are gone");
        assert!(matches!(error, Error::SourceShrunk { before: 10, now: 4, .. }), "{error}");
    }
    assert_eq!(world.snapshots().await.len(), snapshots, "nothing was made visible");
    let mut accept = task();
    accept.accept_shrink = true;
    assert_eq!(counts(&world.backup(&accept).await.unwrap()), [4, 0, 0, 4, 6]);
    bucket.clear();
    assert!(matches!(world.backup(&empty).await, Err(Error::SourceShrunk { before: 4, now: 0, .. })));
    assert_eq!(counts(&world.backup(&accept).await.unwrap()), [0, 0, 0, 0, 4]);
}

#[tokio::test]
async fn a_dry_run_reads_and_writes_nothing() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..5 {
        bucket.insert(format!("d/{i}"), "x", Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    let mut dry = task();
    dry.dry_run = true;
    let files = world.repository.ledger().snapshot().count(Verb::Put);
    let report = world.backup(&dry).await.unwrap();
    assert_eq!(counts(&report), [5, 5, 0, 0, 0]);
    assert_eq!((report.snapshots.len(), bucket.ledger().snapshot().count(Verb::Get)), (0, 0));
    assert_eq!(world.repository.ledger().snapshot().count(Verb::Put), files);
    world.backup(&task()).await.unwrap();
    bucket.insert("d/3", "y", Attributes::default());
    assert_eq!(counts(&world.backup(&dry).await.unwrap()), [5, 0, 1, 4, 0]);
    let mut skip = task();
    skip.skip_if_unchanged = true;
    let changed = world.backup(&skip).await.unwrap();
    let unchanged = world.backup(&skip).await.unwrap();
    assert_eq!((changed.snapshots.len(), unchanged.snapshots.len()), (1, 0));
    assert_eq!(unchanged.parts[0].snapshot, changed.snapshots[0]);
}

#[tokio::test]
async fn an_absent_bucket_is_an_error() {
    let world = World::new(Arc::new(Memory::new("s3://orders").absent())).await;
    let mut empty = task();
    empty.allow_empty = true;
    let error = world.backup(&empty).await.expect_err("no bucket");
    assert!(
        matches!(&error, Error::Source(e) if e.kind == cistern_bucket::ErrorKind::NoSuchBucket),
        "{error}"
    );
}

/// Keys in one flat directory of a bucket whose parts hold 40 entries each.
fn flat(bucket: &Memory, keys: impl IntoIterator<Item = u32>) {
    for i in keys {
        bucket.insert(format!("flat/{i:06}"), format!("{i}"), Attributes::default());
    }
}

fn small_parts() -> cistern_engine::Backup {
    let mut task = task();
    task.part_keys = 40;
    task
}

fn bounds(report: &cistern_engine::BackupReport) -> Vec<(Option<String>, Option<String>)> {
    report.parts.iter().map(|part| (part.after.clone(), part.until.clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_are_kept_from_run_to_run_and_move_only_where_they_must() {
    let bucket = Arc::new(Memory::new("s3://orders").page_size(7));
    flat(&bucket, (0..200).map(|i| i * 10));
    let world = World::new(bucket.clone()).await;
    let first = world.backup(&small_parts()).await.unwrap();
    let parts = bounds(&first);
    assert_eq!(parts.len(), 9, "{parts:?}");
    assert!(parts.windows(2).all(|pair| pair[0].1 == pair[1].0 && pair[0].1.is_some()), "{parts:?}");
    assert_eq!((&parts[0].0, &parts[8].1), (&None, &None));
    assert_eq!(world.kept(&first.snapshots).await, expected(&bucket));
    let snapshots = world.snapshots().await;
    assert_eq!(snapshots.len(), 9);
    let (_, snapshot) = &snapshots[0];
    assert_eq!((snapshot.paths.len(), &*snapshot.paths[0]), (2, "/orders"));
    assert!(snapshot.tags.iter().any(|tag| tag.starts_with("run:")), "{:?}", snapshot.tags);
    let mut paths: Vec<_> = snapshots.iter().map(|(_, snapshot)| snapshot.paths.clone()).collect();
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 9, "each part has a path of its own");

    // Nothing changes: no tree is written, every part is as it was.
    let before = bucket.ledger().snapshot();
    let second = world.backup(&small_parts()).await.unwrap();
    let spent = bucket.ledger().snapshot().since(&before);
    assert_eq!(bounds(&second), parts);
    assert_eq!(second.stored.tree_blobs, 0);
    assert_eq!(world.trees(&second.snapshots).await, world.trees(&first.snapshots).await);
    assert_eq!(spent.count(Verb::Get), 0);
    assert!(spent.count(Verb::List) <= 200u64.div_ceil(7) + 9, "{}", spent.count(Verb::List));

    // A key more in one part changes that part alone.
    flat(&bucket, [505]);
    let third = world.backup(&small_parts()).await.unwrap();
    assert_eq!(bounds(&third), parts);
    let (old, new) = (world.trees(&second.snapshots).await, world.trees(&third.snapshots).await);
    assert_eq!(old.iter().zip(&new).filter(|(old, new)| old != new).count(), 1);
    assert_eq!(world.kept(&third.snapshots).await, expected(&bucket));

    // A part that doubles is cut in two; its neighbours stay.
    flat(&bucket, 500..530);
    let fourth = world.backup(&small_parts()).await.unwrap();
    let grown = bounds(&fourth);
    assert_eq!(grown.len(), parts.len() + 1);
    assert_eq!(grown.iter().filter(|part| parts.contains(part)).count(), parts.len() - 1);
    assert_eq!(world.kept(&fourth.snapshots).await, expected(&bucket));

    // Parts that shrink to a few keys go into the next.
    for i in 0..30 {
        bucket.remove(&Key::from(format!("flat/{:06}", i * 10)));
    }
    let fifth = world.backup(&small_parts()).await.unwrap_err();
    assert!(matches!(fifth, Error::SourceShrunk { now: 0, .. }), "a whole range is empty: {fifth}");
    let mut accept = small_parts();
    accept.accept_shrink = true;
    let fifth = world.backup(&accept).await.unwrap();
    assert!(fifth.parts.len() < grown.len(), "{:?}", bounds(&fifth));
    assert_eq!(world.kept(&fifth.snapshots).await, expected(&bucket));
    let sixth = world.backup(&small_parts()).await.unwrap();
    assert_eq!(bounds(&sixth), bounds(&fifth));
    assert_eq!(sixth.stored.tree_blobs, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_never_separates_an_object_from_a_directory_of_its_name() {
    for directories_follow in [true, false] {
        let bucket = Arc::new(Memory::new("s3://orders"));
        // `a` < `a+00` < … < `a/x`: as long as they last, the directory `a` may come.
        bucket.insert("a", "object", Attributes::default());
        for i in 0..150 {
            bucket.insert(format!("a+{i:03}"), format!("{i}"), Attributes::default());
        }
        if directories_follow {
            bucket.insert("a/x", "below", Attributes::default());
            bucket.insert("a/y", "below", Attributes::default());
        }
        bucket.insert("b", "end", Attributes::default());
        let world = World::new(bucket.clone()).await;
        let mut last = Vec::new();
        for run in 0..3 {
            let report = world.backup(&small_parts()).await.unwrap();
            assert!(report.parts.len() > 2);
            assert_eq!(world.kept(&report.snapshots).await, expected(&bucket));
            // Restored into one place, no path may be there as a file and as a directory.
            let mut files = std::collections::BTreeSet::new();
            let mut folders = std::collections::BTreeSet::new();
            let repository = world.open();
            let reader = repository.reader(repository.index().await.unwrap());
            for id in &report.snapshots {
                let snapshot = repository.snapshot(&id.parse().unwrap()).await.unwrap();
                let top = reader.tree(&snapshot.tree).await.unwrap();
                let root = reader.tree(&top.nodes()[0].subtree.unwrap()).await.unwrap();
                for node in root.nodes() {
                    match node.subtree {
                        Some(_) => drop(folders.insert(node.name.clone())),
                        None => assert!(files.insert(node.name.clone())),
                    }
                }
            }
            assert_eq!(files.intersection(&folders).count(), 0);
            if run > 0 {
                assert_eq!((bounds(&report), report.stored.tree_blobs), (last, 0), "run {run}");
            }
            last = bounds(&report);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_goes_through_many_levels() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..300 {
        bucket.insert(format!("x/{}/{}/{i:03}/o", i / 100, i / 50), format!("{i}"), attributes(i));
        bucket.insert(format!("x/{}/{i:03}", i / 100), format!("{i}"), attributes(i));
    }
    let world = World::new(bucket.clone()).await;
    let first = world.backup(&small_parts()).await.unwrap();
    assert!(first.parts.len() > 3, "{}", first.parts.len());
    assert_eq!(world.kept(&first.snapshots).await, expected(&bucket));
    let second = world.backup(&small_parts()).await.unwrap();
    assert_eq!((bounds(&second), second.stored.tree_blobs), (bounds(&first), 0));
    assert_eq!(counts(&second), [600, 0, 0, 600, 0]);
    let keys: u64 = first.parts.iter().map(|part| part.proof.keys).sum();
    assert_eq!(keys, 600);
    // One part again, when directories may be larger.
    let whole = world.backup(&task()).await.unwrap();
    assert_eq!(counts(&whole), [600, 0, 0, 600, 0]);
    assert_eq!(world.kept(&whole.snapshots).await, expected(&bucket));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_bucket_is_listed_in_ranges_that_the_last_run_left() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..45_000 {
        bucket.insert(format!("{:03}/{i:05}", i / 100), Bytes::new(), Attributes::default());
    }
    let world = World::new(bucket.clone()).await;
    let first = world.backup(&task()).await.unwrap();
    assert_eq!(world.part(&first.snapshots[0]).await.splits.len(), 4);
    let before = bucket.ledger().snapshot();
    let second = world.backup(&task()).await.unwrap();
    let lists = bucket.ledger().snapshot().since(&before).count(Verb::List);
    assert!((45..=45 + 5).contains(&lists), "{lists}");
    assert_eq!(counts(&second), [45_000, 0, 0, 45_000, 0]);
    assert_eq!(world.trees(&second.snapshots).await, world.trees(&first.snapshots).await);
    assert_eq!(second.parts[0].proof.hash, first.parts[0].proof.hash);
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_the_rest_is_kept() {
    use cistern_bucket::ErrorKind;
    use cistern_engine::OnUnreadable;
    use cistern_testkit::{Fault, Faulty, Rule};
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["a", "cold", "denied", "mine", "z"] {
        bucket.insert(key, key, Attributes::default());
    }
    let faulty = Faulty::new(bucket.clone());
    let kinds = [
        ("cold", ErrorKind::Archived, ExceptionKind::Archived),
        ("denied", ErrorKind::Denied, ExceptionKind::Denied),
        ("mine", ErrorKind::CustomerKey, ExceptionKind::CustomerKey),
    ];
    for (key, error, _) in kinds {
        faulty.inject(Rule::new(Fault::Error(error)).verb(Verb::Get).prefix(key));
    }
    let world = World::new(faulty).await;
    let Err(Error::Incomplete { report, .. }) = world.backup(&task()).await else {
        panic!("three are missing")
    };
    let cistern_engine::Report::Backup(report) = *report else { panic!("a backup") };
    for (_, _, kind) in kinds {
        assert_eq!(report.exceptions.count(kind), 1);
    }
    let keys: Vec<_> = world.kept(&report.snapshots).await.into_keys().collect();
    assert_eq!(keys, ["a", "z"].map(Key::from));
    assert_eq!(world.part(&report.snapshots[0]).await.exceptions, 3);
    assert!(world.snapshots().await[0].1.tags.contains(&"incomplete".to_string()));
    let mut skip = task();
    skip.on_unreadable = OnUnreadable::Skip;
    let report = world.backup(&skip).await.unwrap();
    assert_eq!((report.exceptions.total(), report.objects_unchanged), (3, 2));
    assert_eq!(world.snapshots().await[1].1.tags, ["partial"]);
}

#[tokio::test]
async fn a_run_that_did_not_succeed_is_no_reason_to_write_nothing() {
    use cistern_bucket::ErrorKind;
    use cistern_engine::OnUnreadable;
    use cistern_testkit::{Fault, Faulty, Rule};
    let bucket = Arc::new(Memory::new("s3://orders"));
    for key in ["a", "denied"] {
        bucket.insert(key, key, Attributes::default());
    }
    let faulty = Faulty::new(bucket);
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Get).prefix("denied"));
    let world = World::new(faulty).await;
    let mut skip = task();
    skip.skip_if_unchanged = true;
    assert!(matches!(world.backup(&skip).await, Err(Error::Incomplete { .. })));
    skip.on_unreadable = OnUnreadable::Skip;
    for written in [1, 0] {
        assert_eq!(world.backup(&skip).await.unwrap().snapshots.len(), written);
    }
    let (first, second) = (&world.snapshots().await[0].1, &world.snapshots().await[1].1);
    assert_eq!(first.tree, second.tree, "only the tags tell them apart");
}

#[tokio::test]
async fn tags_that_say_something_about_a_run_are_refused() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    bucket.insert("a", "a", Attributes::default());
    let world = World::new(bucket).await;
    for tag in ["run:1", "parts:1", "incomplete", "partial"] {
        let mut tagged = task();
        tagged.tags = vec!["mine".into(), tag.into()];
        let error = world.backup(&tagged).await.expect_err(tag);
        assert!(matches!(error, Error::Invalid(_)) && error.to_string().contains(tag), "{error}");
    }
}

#[tokio::test]
async fn a_repository_within_its_source_is_refused() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    bucket.insert("a", "a", Attributes::default());
    // The same bucket under whatever name of its server: the config tells.
    let world = World::with(bucket.clone(), bucket.clone()).await;
    let mut inside = task();
    inside.repository = "s3://orders".parse().unwrap();
    for (source, repository) in [
        ("s3://orders", "s3://orders"),
        ("s3:https://one.example/orders", "s3:https://two.example/orders"),
        ("s3:https://one.example/orders", "s3:https://one.example/orders/backup"),
        ("s3:https://one.example/orders/backup/data", "s3:https://one.example/orders/backup"),
    ] {
        (inside.source, inside.repository) = (source.parse().unwrap(), repository.parse().unwrap());
        let error = world.backup(&inside).await.expect_err(source);
        assert!(matches!(error, Error::Invalid(_)), "{error}");
        assert!(error.to_string().contains("within each other"), "{error}");
    }
    // Another bucket of the same name, and a neighbour.
    let apart = World::new(bucket).await;
    for (source, repository) in [
        ("s3:https://one.example/orders", "s3:https://two.example/orders"),
        ("s3:https://one.example/orders", "s3:https://one.example/other"),
    ] {
        (inside.source, inside.repository) = (source.parse().unwrap(), repository.parse().unwrap());
        apart.backup(&inside).await.unwrap();
    }
}
