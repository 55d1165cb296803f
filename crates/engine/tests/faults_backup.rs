//! Backups of buckets that fail, change, lie or die: success or a clear error, never a wrong snapshot.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cistern_bucket::{
    Attributes, Bucket, Capabilities, Checksums, DeleteOutcome, Entry, ErrorKind, Get, GetOptions, Key,
    Ledger, ListRequest, Memory, Page, PartId, Put, PutOptions, Result, Revision, Tags, Upload, Verb,
};
use cistern_engine::{BackupReport, Error, ExceptionKind, Report};
use cistern_repository::{CheckOptions, ReadData, check};
use cistern_testkit::{Fault, Faulty, Rule, seed};
use proptest::prelude::*;
use support::{Kept, World, again, attributes, expected, reported, task};

/// Every kind of request but ranges is made: pages, objects, tags, a side file.
fn small_bucket() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders").page_size(4));
    for i in 0..7 {
        bucket.insert(format!("d{}/{i}", i % 3), format!("content {i}"), attributes(i));
    }
    let side = Attributes { meta: [("m".to_string(), "x".repeat(4_000))].into(), ..attributes(1) };
    bucket.insert("side", "side", side);
    bucket
}

/// What a run may leave: what the source holds, but for objects that the report names.
async fn judge(
    world: &Arc<World>,
    what: &str,
    source: &BTreeMap<Key, Kept>,
    outcome: Result<BackupReport, Error>,
) {
    let Some((report, complete)) = reported(what, outcome) else { return };
    let kept = world.kept(&report.snapshots).await;
    for (key, object) in &kept {
        let right = source.get(key).is_some_and(|right| {
            // Tags that were refused are unknown, never empty.
            let attributes = Attributes { tags: object.attributes.tags.clone(), ..right.attributes.clone() };
            let tags = object.attributes.tags.is_none() || object.attributes.tags == right.attributes.tags;
            let lost = object.attributes.tags.is_none();
            let told = !lost || report.exceptions.count(ExceptionKind::AttributeLost) > 0;
            object.content == right.content && object.attributes == attributes && tags && told
        });
        assert!(right, "{what}: {key} is wrong");
    }
    let missing = source.len() - kept.len();
    if complete {
        assert_eq!(missing as u64, report.objects_vanished, "{what}: objects are missing without a word");
    } else {
        assert!(missing > 0 && report.exceptions.total() >= missing as u64, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_to_the_source_may_fail() {
    let faults = [
        Fault::Error(ErrorKind::Unreachable),
        Fault::Error(ErrorKind::Denied),
        Fault::Error(ErrorKind::NoSuchBucket),
        Fault::Error(ErrorKind::PreconditionFailed),
        Fault::Lost(ErrorKind::Unreachable),
        Fault::TruncatedBody(3),
        Fault::BrokenBody(3, ErrorKind::Unreachable),
        Fault::RepeatedEntry,
        Fault::UnsortedListing,
        Fault::Delay(Duration::from_millis(5)),
    ];
    fail_in_turn(small_bucket(), &faults).await;
    let bucket = small_bucket();
    let mut large = vec![0; (16 << 20) + 5];
    seed(7).random().fill(&mut large);
    bucket.insert("large", large, attributes(2));
    fail_in_turn(bucket, &[Fault::Error(ErrorKind::PreconditionFailed), Fault::TruncatedBody(3)]).await;
}

async fn fail_in_turn(bucket: Arc<Memory>, faults: &[Fault]) {
    let source = expected(&bucket);
    let faulty = Faulty::new(bucket.clone());
    let world = World::new(faulty.clone()).await;
    world.backup(&again()).await.unwrap();
    let requests = faulty.count();
    assert!(requests >= 15, "{requests}");
    for fault in faults {
        for n in 0..requests {
            faulty.reset();
            faulty.inject(Rule::new(*fault).nth(n));
            let outcome = world.backup(&again()).await;
            judge(&world, &format!("{fault:?} at {n}"), &source, outcome).await;
        }
    }
    faulty.reset();
    assert!(world.kept(&world.backup(&task()).await.unwrap().snapshots).await == source);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_or_short_body_is_read_again_and_then_an_error() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    bucket.insert("a", "the contents of a", Attributes::default());
    bucket.insert("b", "the contents of b", Attributes::default());
    let faulty = Faulty::new(bucket.clone());
    let world = World::new(faulty.clone()).await;
    for fault in [Fault::WrongBody(5), Fault::TruncatedBody(5)] {
        faulty.reset();
        faulty.inject(Rule::new(fault).verb(Verb::Get).prefix("b").range(0..2));
        let report = world.backup(&again()).await.unwrap();
        assert_eq!(world.kept(&report.snapshots).await, expected(&bucket));
        assert_eq!(faulty.requests().iter().filter(|request| request.key == Key::from("b")).count(), 3);
        let snapshots = world.snapshots().await.len();
        faulty.reset();
        faulty.inject(Rule::new(fault).verb(Verb::Get).prefix("b"));
        let error = world.backup(&again()).await.expect_err("always wrong");
        assert!(
            matches!(&error, Error::Source(e) if e.kind == ErrorKind::BadAnswer && e.key.is_some()),
            "{error}"
        );
        assert_eq!(world.snapshots().await.len(), snapshots);
    }
    // The store's own checksum no longer fits what it gives.
    faulty.reset();
    bucket.corrupt(&Key::from("a"), |bytes| bytes[0] ^= 1);
    let error = world.backup(&again()).await.expect_err("a is damaged in the store");
    assert!(matches!(&error, Error::Source(e) if e.kind == ErrorKind::BadAnswer), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_range_of_a_large_object_is_noticed_before_the_object_is_kept() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let mut content = vec![0; 20 << 20];
    seed(8).random().fill(&mut content);
    bucket.insert("large", content.clone(), Attributes::default());
    // One that was put in parts has no entity tag that is a checksum, but has others.
    let options = PutOptions { sha256: None, ..PutOptions::default() };
    let upload = bucket.begin_upload(&Key::from("parts"), &options).await.unwrap();
    let mut parts = Vec::new();
    for (number, piece) in content.chunks(10 << 20).enumerate() {
        let piece = [Bytes::copy_from_slice(piece)];
        parts.push(bucket.upload_part(&upload, number as u32 + 1, &piece).await.unwrap());
    }
    bucket.complete_upload(&upload, &parts, &options).await.unwrap();
    let faulty = Faulty::new(bucket.clone());
    let world = World::new(faulty.clone()).await;
    for n in 0..3 {
        faulty.reset();
        faulty.inject(Rule::new(Fault::WrongBody(5)).verb(Verb::Get).prefix("large").nth(n));
        let report = world.backup(&again()).await.unwrap();
        assert!(world.kept(&report.snapshots).await == expected(&bucket), "wrong range {n}");
        let gets =
            faulty.requests().iter().filter(|r| r.verb == Verb::Get && r.key == "large".into()).count();
        assert_eq!(gets, 6, "it was read again");
    }
    let snapshots = world.snapshots().await.len();
    faulty.reset();
    faulty.inject(Rule::new(Fault::WrongBody(5)).verb(Verb::Get).prefix("large"));
    let error = world.backup(&again()).await.expect_err("always wrong");
    assert!(matches!(&error, Error::Source(e) if e.kind == ErrorKind::BadAnswer), "{error}");
    assert_eq!(world.snapshots().await.len(), snapshots);
}

/// Does something to the bucket below at the first read (or at every read) of an object, before it is answered.
#[derive(Debug)]
struct Meddler {
    inner: Arc<Memory>,
    plan: Mutex<BTreeMap<Key, (u32, What)>>,
    writes: AtomicU64,
    /// The listing after which the next one panics.
    panic_after: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Replace,
    Grow,
    Remove,
}

impl Meddler {
    fn new(inner: Arc<Memory>, plan: &[(&str, u32, What)]) -> Arc<Self> {
        let plan = plan.iter().map(|(key, times, what)| (Key::from(*key), (*times, *what))).collect();
        Arc::new(Meddler {
            inner,
            plan: Mutex::new(plan),
            writes: AtomicU64::new(0),
            panic_after: AtomicU64::new(u64::MAX),
        })
    }

    fn meddle(&self, key: &Key) {
        let mut plan = self.plan.lock().unwrap();
        let Some((times @ 1.., what)) = plan.get_mut(key) else { return };
        *times -= 1;
        let n = self.writes.fetch_add(1, Relaxed);
        match what {
            What::Replace => self.inner.insert(key.clone(), format!("replaced {n}"), attributes(n as usize)),
            What::Grow => self.inner.insert(key.clone(), vec![n as u8; 17 << 20], attributes(n as usize)),
            What::Remove => {
                self.inner.remove(key);
            }
        }
    }
}

#[async_trait]
impl Bucket for Meddler {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    async fn probe(&self) -> Result<()> {
        self.inner.probe().await
    }

    async fn create(&self) -> Result<()> {
        self.inner.create().await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        assert_ne!(self.panic_after.fetch_sub(1, Relaxed), 0, "as if there were a bug");
        self.inner.list(request).await
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        self.meddle(key);
        self.inner.get(key, options).await
    }

    async fn checksums(&self, key: &Key, revision: &Revision) -> Result<Checksums> {
        self.inner.checksums(key, revision).await
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        self.inner.put(key, body, options).await
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> Result<Upload> {
        self.inner.begin_upload(key, options).await
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId> {
        self.inner.upload_part(upload, number, body).await
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put> {
        self.inner.complete_upload(upload, parts, options).await
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        self.inner.abort_upload(upload).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put> {
        self.inner.copy(from, to).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        self.inner.delete_many(keys).await
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        self.inner.tags(key).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_change_between_listing_and_reading_are_read_in_their_new_state() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..30 {
        bucket.insert(format!("k{i:02}"), format!("{i}"), attributes(i));
    }
    let plan = [
        ("k03", 1, What::Replace),
        ("k05", 3, What::Replace),
        ("k07", 1, What::Grow),
        ("k09", 1, What::Remove),
    ];
    let world = World::new(Meddler::new(bucket.clone(), &plan)).await;
    let report = world.backup(&task()).await.unwrap();
    assert_eq!((report.objects_vanished, report.exceptions.total()), (1, 0));
    assert!(world.kept(&report.snapshots).await == expected(&bucket));
    // What was read is what the next listing shows.
    let again = world.backup(&task()).await.unwrap();
    assert_eq!((again.objects_unchanged, again.objects_changed), (29, 0));

    let plan = [("k03", u32::MAX, What::Replace)];
    let restless = world.again(|world| world.source = Meddler::new(bucket.clone(), &plan));
    bucket.insert("k03", "once more", Attributes::default());
    let Err(Error::Incomplete { report, .. }) = restless.backup(&task()).await else {
        panic!("k03 never rests")
    };
    let Report::Backup(report) = *report else { panic!("a backup") };
    assert_eq!(report.exceptions.count(ExceptionKind::KeepsChanging), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_vanished_objects_are_an_error() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let keys: Vec<String> = (0..20).map(|i| format!("{i:02}")).collect();
    keys.iter().for_each(|key| bucket.insert(key.as_str(), "x", Attributes::default()));
    let plan: Vec<_> = keys.iter().take(3).map(|key| (key.as_str(), 1, What::Remove)).collect();
    let world = World::new(Meddler::new(bucket.clone(), &plan)).await;
    let error = world.backup(&task()).await.expect_err("3 of 20");
    assert!(error.class() == cistern_bucket::Class::NotFound, "{error}");
    assert_eq!(world.snapshots().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_that_falls_silent_has_not_come_to_its_end() {
    let bucket = Arc::new(Memory::new("s3://orders").page_size(5));
    (0..20).for_each(|i| bucket.insert(format!("{i:02}"), "x", Attributes::default()));
    let meddler = Meddler::new(bucket, &[]);
    let world = World::new(meddler.clone()).await;
    for after in 0..4 {
        meddler.panic_after.store(after, Relaxed);
        let error = world.backup(&task()).await.expect_err("the listing broke off");
        assert!(matches!(error, Error::Broken(_)), "{error}");
        assert_eq!(world.snapshots().await.len(), 0);
    }
    meddler.panic_after.store(u64::MAX, Relaxed);
    assert_eq!(world.backup(&task()).await.unwrap().objects_listed, 20);
}

#[tokio::test]
async fn a_damaged_earlier_run_is_no_parent_and_still_guards() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    (0..10).for_each(|i| bucket.insert(format!("{i}"), "x", Attributes::default()));
    let repository = Arc::new(Memory::new("s3://repository"));
    let world = World::with(bucket.clone(), repository.clone()).await;
    world.backup(&task()).await.unwrap();
    for pack in repository.keys().iter().filter(|key| key.as_bytes().starts_with(b"data/")) {
        assert!(repository.corrupt(pack, |bytes| bytes.iter_mut().for_each(|byte| *byte ^= 1)));
    }
    let report = world.backup(&task()).await.unwrap();
    assert_eq!((report.objects_new, report.objects_unchanged, report.parent), (10, 0, None));
    for i in 0..6 {
        bucket.remove(&Key::from(format!("{i}")));
    }
    let error = world.backup(&task()).await.expect_err("six of ten are gone");
    assert!(matches!(error, Error::SourceShrunk { before: 10, now: 4, .. }), "{error}");
}

#[tokio::test]
async fn tags_that_may_not_be_read_are_unknown_and_not_absent() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    bucket.insert("tagged", "x", attributes(2));
    bucket.insert("untagged", "x", attributes(3));
    let faulty = Faulty::new(bucket.clone());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Tags));
    let world = World::new(faulty.clone()).await;
    let report = world.backup(&task()).await.unwrap();
    assert_eq!(report.exceptions.count(ExceptionKind::AttributeLost), 1);
    let kept = world.kept(&report.snapshots).await;
    assert_eq!(kept[&Key::from("tagged")].attributes.tags, None);
    assert_eq!(kept[&Key::from("untagged")].attributes.tags, Some(Tags::new()));
    // As long as they may not be read, nothing changes; then only they are read.
    let still = world.backup(&task()).await.unwrap();
    assert_eq!((still.objects_unchanged, still.exceptions.count(ExceptionKind::AttributeLost)), (2, 1));
    assert_eq!(world.trees(&still.snapshots).await, world.trees(&report.snapshots).await);
    faulty.reset();
    for (changed, asked) in [(1, 1), (0, 0)] {
        let before = bucket.ledger().snapshot();
        let report = world.backup(&task()).await.unwrap();
        let spent = bucket.ledger().snapshot().since(&before);
        assert_eq!((report.objects_changed, report.objects_unchanged), (changed, 2 - changed));
        assert_eq!((spent.count(Verb::Get), spent.count(Verb::Tags)), (0, asked));
        assert!(world.kept(&report.snapshots).await == expected(&bucket));
    }
    let mut without = again();
    without.tags_of_objects = false;
    let before = bucket.ledger().snapshot();
    assert_eq!(world.backup(&without).await.unwrap().exceptions.total(), 0);
    assert_eq!(bucket.ledger().snapshot().since(&before).count(Verb::Tags), 0);
}

/// A process that dies at any write to the repository leaves the last snapshot whole, and the next run succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_the_last_snapshot_whole() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let repository = Arc::new(Memory::new("s3://repository"));
    (0..60).for_each(|i| bucket.insert(format!("d/{i:02}"), format!("first {i}"), attributes(i)));
    let world = World::with(bucket.clone(), repository.clone()).await;
    let mut parts = task();
    parts.part_keys = 20;
    let first = world.backup(&parts).await.unwrap();
    let before = expected(&bucket);
    assert!(first.parts.len() > 1);
    for after_effect in [false, true] {
        let mut reached = BTreeSet::new();
        for n in 0.. {
            bucket.insert("d/30", format!("{after_effect} {n}"), Attributes::default());
            bucket.insert(format!("d/30-{after_effect}-{n:02}"), "new", Attributes::default());
            let faulty = Faulty::new(repository.clone());
            faulty.die_at_write(n, after_effect);
            let dying = world.again(|world| world.repository = faulty.clone());
            let outcome = dying.backup(&parts).await;
            assert!(world.kept(&first.snapshots).await == before, "the first run has changed at {n}");
            // What died held a lock, of a process that is gone.
            let locks = repository.keys().into_iter().filter(|key| key.as_bytes().starts_with(b"locks/"));
            for lock in locks {
                repository.remove(&lock);
            }
            let next = world.backup(&parts).await.unwrap();
            assert!(world.kept(&next.snapshots).await == expected(&bucket), "the run after the crash at {n}");
            if !faulty.is_dead() {
                assert!(outcome.is_ok());
                break;
            }
            reached.insert(n);
            assert!(n < 100, "it never ends");
        }
        assert!(reached.len() >= 5, "{reached:?}");
    }
    let findings = check(&world.open(), CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
    assert!(findings.iter().all(|finding| finding.endangers.is_empty()), "{findings:?}");
}

/// What may happen to a bucket.
#[derive(Clone, Debug)]
enum Deed {
    Put(usize, u8),
    Delete(usize),
    Backup { part_keys: u32, force: bool },
}

/// Keys whose names are in each other's way.
const KEYS: [&str; 26] = [
    "a",
    "a/",
    "a//",
    "a/b",
    "a/b/c",
    "a-",
    "a-b",
    "a.txt",
    "a/b-",
    "b",
    "b/..",
    "b/.",
    "b/../c",
    ".cistern~o~a",
    ".cistern~c~",
    "/",
    "//",
    "x/1",
    "x/2",
    "x/3",
    "x/4",
    "x/5",
    "x/3/y",
    "x/3-",
    "y",
    "é",
];

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        6 => (0..KEYS.len(), any::<u8>()).prop_map(|(key, state)| Deed::Put(key, state)),
        3 => (0..KEYS.len()).prop_map(Deed::Delete),
        2 => (prop_oneof![Just(3u32), Just(6), Just(40_000)], prop::bool::weighted(0.1))
            .prop_map(|(part_keys, force)| Deed::Backup { part_keys, force }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The bucket is the model: after each backup the snapshot holds exactly it, and every earlier one what it held.
    #[test]
    fn any_sequence_of_changes_and_backups_is_kept(deeds in prop::collection::vec(deed(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let bucket = Arc::new(Memory::new("s3://orders").page_size(3));
            let world = World::new(bucket.clone()).await;
            let mut past: Vec<(Vec<String>, BTreeMap<Key, Kept>)> = Vec::new();
            for deed in deeds.into_iter().chain([Deed::Backup { part_keys: 3, force: false }]) {
                match deed {
                    Deed::Put(key, state) => {
                        bucket.insert(KEYS[key], format!("{state}"), attributes(usize::from(state % 8)));
                    }
                    Deed::Delete(key) => {
                        bucket.remove(&Key::from(KEYS[key]));
                    }
                    Deed::Backup { part_keys, force } => {
                        let mut task = task();
                        (task.part_keys, task.force) = (part_keys, force);
                        (task.accept_shrink, task.allow_empty) = (true, true);
                        let report = world.backup(&task).await.unwrap();
                        let now = expected(&bucket);
                        assert_eq!(world.kept(&report.snapshots).await, now);
                        assert_eq!(report.parts.iter().map(|part| part.proof.keys).sum::<u64>(), now.len() as u64);
                        past.push((report.snapshots, now));
                    }
                }
            }
            for (snapshots, then) in past {
                assert_eq!(world.kept(&snapshots).await, then);
            }
        });
    }
}
