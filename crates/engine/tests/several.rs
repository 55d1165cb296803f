//! One run into several repositories: the source is read once, and each repository has its own verdict.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use cistern_bucket::{
    Address, Attributes, Bucket, Capabilities, Checksums, Class, DeleteOutcome, Entry, ErrorKind, Get,
    GetOptions, Key, Ledger, LedgerSnapshot, ListRequest, Memory, Page, PartId, Put, PutOptions, Revision,
    Tags, Upload, Verb,
};
use cistern_engine::{
    Access, Backup, BackupReport, Cx, Error, Note, Progress, Result, Role, Silent, Status, backup_to_several,
};
use cistern_repository::{CheckOptions, KdfParams, LockKind, Options, ReadData, check};
use cistern_testkit::{Fault, Faulty, Rule, seed};
use proptest::prelude::*;
use secrecy::SecretString;
use support::{World, attributes, expected, identity, task};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// One source, several repositories with keys and chunkers of their own, and ways to all of them.
struct Several {
    source: Arc<dyn Bucket>,
    worlds: Vec<Arc<World>>,
    ways: Vec<Arc<dyn Bucket>>,
    /// The one whose password nobody knows.
    forgotten: Option<usize>,
    options: Options,
    cancel: CancellationToken,
}

#[async_trait]
impl Access for Several {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(match role {
            Role::Repository => self.ways[number(address)].clone(),
            Role::Source | Role::Target => self.source.clone(),
        })
    }

    async fn password(&self, repository: &Address) -> Result<SecretString> {
        match self.forgotten == Some(number(repository)) {
            true => Ok(SecretString::from("something else")),
            false => Ok(support::password()),
        }
    }

    fn options(&self, _repository: &Address) -> Options {
        self.options.clone()
    }
}

fn number(address: &Address) -> usize {
    match address {
        Address::S3 { bucket, .. } => bucket.strip_prefix("repository-").unwrap().parse().unwrap(),
        other => panic!("{other}"),
    }
}

/// The `i`-th of the repositories.
fn into(i: usize) -> Backup {
    let mut task = task();
    task.repository = format!("s3://repository-{i}").parse().unwrap();
    task
}

impl Several {
    async fn new(source: Arc<dyn Bucket>, count: usize) -> Several {
        let mut worlds = Vec::new();
        for _ in 0..count {
            worlds.push(World::new(source.clone()).await);
        }
        let ways = worlds.iter().map(|world| world.repository.clone()).collect();
        let options = Options { workers: 2, memory: 64 << 20, kdf: KdfParams::NONE, ..Options::default() };
        Several { source, worlds, ways, forgotten: None, options, cancel: CancellationToken::new() }
    }

    async fn run(self: &Arc<Self>, tasks: &[Backup]) -> Vec<Result<BackupReport>> {
        let cx = Cx {
            access: self.clone(),
            progress: Arc::new(Silent),
            cancel: self.cancel.clone(),
            identity: identity(),
            concurrency: 16,
            lock_wait: Duration::ZERO,
        };
        let silent = |task: &Backup| (task.clone(), Arc::new(Silent) as Arc<dyn Progress>);
        let tasks: Vec<_> = tasks.iter().map(silent).collect();
        backup_to_several(&tasks, &cx).await
    }

    /// Into all of them.
    async fn run_all(self: &Arc<Self>) -> Vec<Result<BackupReport>> {
        let tasks: Vec<Backup> = (0..self.worlds.len()).map(into).collect();
        self.run(&tasks).await
    }

    /// Each of these repositories holds what the source holds, and nothing in it is damaged.
    async fn assert_whole(&self, i: usize, report: &BackupReport, source: &Memory) {
        let world = &self.worlds[i];
        assert!(world.kept(&report.snapshots).await == expected(source), "repository {i}");
        let options = CheckOptions { read_data: ReadData::All };
        let findings = check(&world.open(), options, &|_| ()).await.unwrap();
        assert!(findings.iter().all(|finding| finding.endangers.is_empty()), "{findings:?}");
    }

    async fn assert_no_snapshot(&self, i: usize) {
        assert!(self.worlds[i].snapshots().await.is_empty(), "repository {i}");
        let locks = ListRequest { prefix: Key::from("locks/"), ..ListRequest::default() };
        let locks = self.worlds[i].repository.list(&locks).await.unwrap();
        assert!(locks.entries.is_empty(), "repository {i} is still locked");
    }
}

/// Sixty objects with attributes on pages of ten.
fn sixty() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders").page_size(10));
    for i in 0..60 {
        bucket.insert(format!("d{}/{i:02}", i % 4), format!("content {i}"), plain(i));
    }
    bucket
}

/// Attributes without tags, which cost requests of their own.
fn plain(i: usize) -> Attributes {
    Attributes { tags: None, ..attributes(i) }
}

/// What was asked of a bucket since then.
fn asked(bucket: &dyn Bucket, before: &LedgerSnapshot) -> (u64, u64) {
    let since = bucket.ledger().snapshot().since(before);
    (since.count(Verb::List), since.count(Verb::Get))
}

fn all(outcomes: Vec<Result<BackupReport>>) -> Vec<BackupReport> {
    outcomes.into_iter().map(|outcome| outcome.unwrap()).collect()
}

/// The class of the error, wherever it is.
fn class(outcome: &Result<BackupReport>) -> Option<Class> {
    outcome.as_ref().err().map(Error::class)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repositories_with_equal_parents_cost_the_requests_of_one() {
    let bucket = sixty();
    let mut large = vec![0; 20 << 20];
    seed(70).random().fill(&mut large);
    bucket.insert("large", large.clone(), plain(0));
    let several = Arc::new(Several::new(bucket.clone(), 3).await);
    let before = bucket.ledger().snapshot();
    let first = all(several.run_all().await);
    let ranges = (large.len() as u64).div_ceil(8 << 20);
    assert_eq!(asked(&*bucket, &before), (7, 60 + ranges));
    assert_eq!(bucket.ledger().snapshot().since(&before).received, bucket.size());
    for (i, report) in first.iter().enumerate() {
        several.assert_whole(i, report, &bucket).await;
        assert_eq!((report.objects_new, report.bytes_read), (61, bucket.size()));
        assert_eq!(report.parts[0].proof, first[0].parts[0].proof);
    }
    for i in [3, 17, 30, 44, 59] {
        bucket.insert(format!("d{}/{i:02}", i % 4), format!("changed {i}"), plain(i));
    }
    bucket.insert("new", "new", plain(1));
    bucket.remove(&Key::from("d0/00"));
    let before = bucket.ledger().snapshot();
    let second = all(several.run_all().await);
    assert_eq!(asked(&*bucket, &before), (7, 6), "as many as have changed, on the pages of one listing");
    for (i, report) in second.iter().enumerate() {
        several.assert_whole(i, report, &bucket).await;
        let counts = (report.objects_new, report.objects_changed, report.objects_unchanged);
        assert_eq!((counts, report.objects_deleted), ((1, 5, 55), 1));
        assert_eq!(report.parent.as_ref(), first[i].snapshots.first());
    }
    let before = bucket.ledger().snapshot();
    let third = all(several.run_all().await);
    assert_eq!(asked(&*bucket, &before), (7, 0));
    assert!(third.iter().all(|report| report.objects_unchanged == 61 && report.stored.data_blobs == 0));
    let trees = several.worlds[0].trees(&third[0].snapshots).await;
    assert_eq!(several.worlds[0].trees(&second[0].snapshots).await, trees);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repositories_with_other_parents_take_what_they_lack_and_nothing_is_read_twice() {
    let bucket = sixty();
    let several = Arc::new(Several::new(bucket.clone(), 3).await);
    all(several.run(&[into(0), into(1)]).await);
    for i in 0..10 {
        bucket.insert(format!("later/{i}"), format!("later {i}"), plain(i));
    }
    all(several.run(&[into(1)]).await);
    bucket.insert("d1/01", "changed", plain(1));
    let before = bucket.ledger().snapshot();
    let reports = all(several.run_all().await);
    assert_eq!(asked(&*bucket, &before), (7, 70), "the last repository has nothing");
    let counts =
        |report: &BackupReport| (report.objects_new, report.objects_changed, report.objects_unchanged);
    assert_eq!(reports.iter().map(counts).collect::<Vec<_>>(), [(10, 1, 59), (0, 1, 69), (70, 0, 0)]);
    for (i, report) in reports.iter().enumerate() {
        several.assert_whole(i, report, &bucket).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_fails_at_any_write_harms_no_other() {
    let bucket = sixty();
    for after_effect in [false, true] {
        let mut failed = 0;
        for n in 0.. {
            let mut several = Several::new(bucket.clone(), 2).await;
            let faulty = Faulty::new(several.worlds[1].repository.clone());
            faulty.die_at_write(n, after_effect);
            several.ways[1] = faulty.clone();
            let several = Arc::new(several);
            let outcomes = several.run_all().await;
            several.assert_whole(0, outcomes[0].as_ref().unwrap(), &bucket).await;
            if !faulty.is_dead() {
                several.assert_whole(1, outcomes[1].as_ref().unwrap(), &bucket).await;
                break;
            }
            failed += usize::from(outcomes[1].is_err());
            // The snapshot is there, or it is not; only its verdict may have been lost.
            let snapshots = several.worlds[1].snapshots().await;
            let ids: Vec<String> = snapshots.iter().map(|(id, _)| id.to_string()).collect();
            assert!(outcomes[1].is_err() || !ids.is_empty(), "{n}");
            if !ids.is_empty() {
                assert!(several.worlds[1].kept(&ids).await == expected(&bucket), "{n}");
            }
            assert!(n < 100, "it never ends");
        }
        assert!(failed >= 3, "{failed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_cannot_be_opened_has_its_verdict_and_the_others_go_on() {
    let bucket = sixty();
    let mut several = Several::new(bucket.clone(), 5).await;
    let locked = several.worlds[0].open();
    let lock = locked.lock(LockKind::Exclusive, &identity(), Duration::ZERO).await.unwrap();
    several.forgotten = Some(1);
    several.ways[2] = Arc::new(Memory::new("s3://empty"));
    let faulty = Faulty::new(several.worlds[4].repository.clone());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unreachable)));
    several.ways[4] = faulty;
    let several = Arc::new(several);
    let before = bucket.ledger().snapshot();
    let outcomes = several.run_all().await;
    assert_eq!(asked(&*bucket, &before), (6, 60));
    let classes: Vec<_> = outcomes.iter().map(class).collect();
    let expected = [Class::Busy, Class::Denied, Class::NotFound, Class::Unreachable].map(Some);
    assert_eq!((&classes[..3], classes[3], classes[4]), (&expected[..3], None, expected[3]));
    several.assert_whole(3, outcomes[3].as_ref().unwrap(), &bucket).await;
    lock.release().await;
    several.assert_no_snapshot(0).await;
    several.assert_no_snapshot(1).await;
    // One alone that fails, and none that is left.
    assert_eq!(several.run(&[into(1)]).await.iter().map(class).collect::<Vec<_>>(), [Some(Class::Denied)]);
    assert!(several.run(&[]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_fails_is_an_error_of_all_who_need_it() {
    let bucket = sixty();
    let faulty = Faulty::new(bucket.clone());
    let several = Arc::new(Several::new(faulty.clone(), 2).await);
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unreachable)).verb(Verb::List).nth(3));
    let outcomes = several.run_all().await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [Some(Class::Unreachable); 2]);
    for i in 0..2 {
        several.assert_no_snapshot(i).await;
    }
    faulty.reset();
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unreachable)).verb(Verb::Get).prefix("d2/30"));
    let outcomes = several.run_all().await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [Some(Class::Unreachable); 2]);
    // What one of them has already is read for the other alone, and so is the error.
    faulty.reset();
    all(several.run(&[into(0)]).await);
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unreachable)).verb(Verb::Get).prefix("d2/30"));
    let outcomes = several.run_all().await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [None, Some(Class::Unreachable)]);
    several.assert_whole(0, outcomes[0].as_ref().unwrap(), &bucket).await;
    several.assert_no_snapshot(1).await;
    // An object that cannot be read is missing everywhere, and everywhere it is said.
    faulty.reset();
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Get).prefix("d2/30"));
    let tasks = [0, 1].map(|i| Backup { force: true, ..into(i) });
    for outcome in several.run(&tasks).await {
        let (report, complete) = support::reported("denied", outcome).unwrap();
        assert_eq!((report.exceptions.total(), report.objects_listed, complete), (1, 59, false));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_to_stop_stops_all() {
    let bucket = sixty();
    let faulty = Faulty::new(bucket.clone());
    let several = Arc::new(Several::new(faulty.clone(), 2).await);
    faulty.inject(Rule::new(Fault::Hang).verb(Verb::Get).prefix("d3/59"));
    let stop = async {
        while !faulty.requests().iter().any(|request| request.key == Key::from("d3/59")) {
            tokio::task::yield_now().await;
        }
        several.cancel.cancel();
    };
    let (outcomes, ()) =
        tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(several.run_all(), stop) })
            .await
            .unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Cancelled))), "{outcomes:?}");
    for i in 0..2 {
        several.assert_no_snapshot(i).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_that_are_not_of_one_source_are_refused() {
    let several = Arc::new(Several::new(sixty(), 2).await);
    let other: [fn(&mut Backup); 6] = [
        |task| task.source = "s3://orders/below/".parse().unwrap(),
        |task| task.root = Some("/data".into()),
        |task| task.host = "other".into(),
        |task| task.selection.exclude = vec!["x".into()],
        |task| task.dry_run = true,
        |task| task.repository = "s3://repository-0".parse().unwrap(),
    ];
    for change in other {
        let mut tasks = [into(0), into(1)];
        change(&mut tasks[1]);
        let outcomes = several.run(&tasks).await;
        assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [Some(Class::Invalid); 2]);
    }
    let mut tasks = [into(0), into(1)];
    tasks[1].tags = vec!["incomplete".into()];
    let outcomes = several.run(&tasks).await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [None, Some(Class::Invalid)]);
    // What the repositories' own history is about may differ.
    let mut tasks = [into(0), into(1)];
    (tasks[1].tags, tasks[1].force, tasks[1].accept_shrink) = (vec!["t".into()], true, true);
    let reports = all(several.run(&tasks).await);
    assert_eq!((reports[0].objects_unchanged, reports[1].objects_new), (60, 60));
    assert_eq!(several.worlds[1].snapshots().await[0].1.tags, ["t"]);
    // One that shrank is refused by those whose history says so.
    let mut tasks = [into(0), into(1)];
    tasks[0].max_shrink = 0.0;
    several.source.delete(&Key::from("d0/00")).await.unwrap();
    let outcomes = several.run(&tasks).await;
    assert!(matches!(outcomes[0], Err(Error::SourceShrunk { .. })), "{outcomes:?}");
    assert_eq!(outcomes[1].as_ref().unwrap().objects_listed, 59);
}

/// What a run told about itself.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Progress for Told {
    fn status(&self, _status: &Status) {}

    fn note(&self, note: Note) {
        if let Note::Info(text) = note {
            self.0.lock().unwrap().push(text);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_repository_tells_its_own_progress() {
    let several = Arc::new(Several::new(sixty(), 2).await);
    all(several.run(&[into(1)]).await);
    let told = [Arc::new(Told::default()), Arc::new(Told::default())];
    let tasks: Vec<_> = (0..2).map(|i| (into(i), told[i].clone() as Arc<dyn Progress>)).collect();
    let cx = Cx {
        access: several.clone(),
        progress: Arc::new(Silent),
        cancel: CancellationToken::new(),
        identity: identity(),
        concurrency: 4,
        lock_wait: Duration::ZERO,
    };
    all(backup_to_several(&tasks, &cx).await);
    let first = |told: &Told| told.0.lock().unwrap()[0].clone();
    assert!(first(&told[0]).starts_with("there is no earlier"), "{}", first(&told[0]));
    assert!(first(&told[1]).starts_with("comparing with snapshot"), "{}", first(&told[1]));
}

/// A bucket that counts how many bytes of bodies that it gave are still in memory, or that keeps whoever writes waiting.
#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Bucket>,
    alive: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    /// Nothing is written below `data/` before it is open.
    gate: Semaphore,
}

struct Counted(Bytes, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_sub(self.0.len(), Relaxed);
    }
}

impl Watched {
    fn new(inner: Arc<dyn Bucket>) -> Arc<Watched> {
        let (alive, most) = (Arc::default(), Arc::default());
        Arc::new(Watched { inner, alive, most, gate: Semaphore::new(0) })
    }
}

#[async_trait]
impl Bucket for Watched {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { multipart: false, ..self.inner.capabilities() }
    }

    fn ledger(&self) -> &Ledger {
        self.inner.ledger()
    }

    async fn probe(&self) -> cistern_bucket::Result<()> {
        self.inner.probe().await
    }

    async fn create(&self) -> cistern_bucket::Result<()> {
        self.inner.create().await
    }

    async fn list(&self, request: &ListRequest) -> cistern_bucket::Result<Page> {
        self.inner.list(request).await
    }

    async fn head(&self, key: &Key) -> cistern_bucket::Result<(Entry, Attributes)> {
        self.inner.head(key).await
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> cistern_bucket::Result<Get> {
        let get = self.inner.get(key, options).await?;
        let bytes = Bytes::copy_from_slice(&get.body.bytes().await?);
        let now = self.alive.fetch_add(bytes.len(), Relaxed) + bytes.len();
        self.most.fetch_max(now, Relaxed);
        let body = cistern_bucket::Body::from_bytes(Bytes::from_owner(Counted(bytes, self.alive.clone())));
        Ok(Get { body, ..get })
    }

    async fn checksums(&self, key: &Key, revision: &Revision) -> cistern_bucket::Result<Checksums> {
        self.inner.checksums(key, revision).await
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> cistern_bucket::Result<Put> {
        if key.as_bytes().starts_with(b"data/") {
            drop(self.gate.acquire().await);
        }
        self.inner.put(key, body, options).await
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> cistern_bucket::Result<Upload> {
        self.inner.begin_upload(key, options).await
    }

    async fn upload_part(
        &self,
        upload: &Upload,
        number: u32,
        body: &[Bytes],
    ) -> cistern_bucket::Result<PartId> {
        self.inner.upload_part(upload, number, body).await
    }

    async fn complete_upload(
        &self,
        upload: &Upload,
        parts: &[PartId],
        options: &PutOptions,
    ) -> cistern_bucket::Result<Put> {
        self.inner.complete_upload(upload, parts, options).await
    }

    async fn abort_upload(&self, upload: &Upload) -> cistern_bucket::Result<()> {
        self.inner.abort_upload(upload).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> cistern_bucket::Result<Put> {
        self.inner.copy(from, to).await
    }

    async fn delete(&self, key: &Key) -> cistern_bucket::Result<()> {
        self.inner.delete(key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        self.inner.delete_many(keys).await
    }

    async fn tags(&self, key: &Key) -> cistern_bucket::Result<Tags> {
        self.inner.tags(key).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_repository_holds_the_others_back_instead_of_filling_the_memory() {
    /// Bodies between the source and the writers (40 MiB), and what the slow one's writer has taken in.
    const BOUND: usize = 72 << 20;
    let bucket = Arc::new(Memory::new("s3://orders"));
    let mut random = seed(71).random();
    for i in 0..56 {
        let mut content = vec![0; 2 << 20];
        random.fill(&mut content);
        bucket.insert(format!("{i:02}"), content, Attributes::default());
    }
    // As much again in one object, which goes by ranges.
    let mut content = vec![0; 48 << 20];
    random.fill(&mut content);
    bucket.insert("large", content, Attributes::default());
    let source = Watched::new(bucket.clone());
    let mut several = Several::new(source.clone(), 2).await;
    several.options.pack_size = 4 << 20;
    several.options.memory = 32 << 20;
    let slow = Watched::new(several.worlds[1].repository.clone());
    several.ways[1] = slow.clone();
    let several = Arc::new(several);
    let opening = async {
        // The slow one keeps what it cannot get rid of; then nothing more is read.
        let full = async {
            while source.alive.load(Relaxed) < 38 << 20 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), full).await.expect("the window fills");
        let read = || source.ledger().snapshot().received;
        let too_much = async {
            while read() < bucket.size() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_millis(500), too_much).await.expect_err("all was read at once");
        slow.gate.close();
    };
    let (outcomes, ()) = tokio::join!(several.run_all(), opening);
    let most = source.most.load(Relaxed);
    assert!(most <= BOUND, "{} MiB of {} in memory", most >> 20, bucket.size() >> 20);
    for (i, report) in all(outcomes).iter().enumerate() {
        several.assert_whole(i, report, &bucket).await;
    }
    assert_eq!(source.alive.load(Relaxed), 0);
}

/// What happens before a run of the model.
#[derive(Clone, Debug)]
enum Before {
    Write(u8, u8),
    Remove(u8),
}

/// A run: what happens before it, which repositories take part, and which of them dies at which write.
type Step = (Vec<Before>, [bool; 3], Option<(usize, u64)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let before = prop_oneof![
        3 => (0..24_u8, any::<u8>()).prop_map(|(key, content)| Before::Write(key, content)),
        1 => (0..24_u8).prop_map(Before::Remove),
    ];
    let step =
        (prop::collection::vec(before, 0..8), any::<[bool; 3]>(), prop::option::of((0..3_usize, 0..8_u64)));
    prop::collection::vec(step, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_fails_every_snapshot_is_whole_and_each_object_is_read_once(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(follow(steps));
    }
}

async fn follow(steps: Vec<Step>) {
    let bucket = Arc::new(Memory::new("s3://orders").page_size(5));
    bucket.insert("always", "there", Attributes::default());
    let mut several = Several::new(bucket.clone(), 3).await;
    let plain = several.ways.clone();
    // What each repository has, by key.
    let mut has: [BTreeMap<Key, Revision>; 3] = Default::default();
    for (before, takes_part, dies) in steps {
        for change in before {
            match change {
                Before::Write(key, content) => {
                    let key = format!("{}/{key}", key % 3);
                    bucket.insert(key, vec![content; 1 + usize::from(content)], Attributes::default());
                }
                Before::Remove(key) => {
                    bucket.remove(&Key::from(format!("{}/{key}", key % 3)));
                }
            }
        }
        several.ways = plain.clone();
        if let Some((i, n)) = dies {
            let faulty = Faulty::new(plain[i].clone());
            faulty.die_at_write(n, n % 2 == 0);
            several.ways[i] = faulty;
        }
        let now: BTreeMap<Key, Revision> = bucket
            .keys()
            .into_iter()
            .map(|key| (key.clone(), bucket.stat(&key).unwrap().0.revision))
            .collect();
        let mut tasks: Vec<Backup> = (0..3).filter(|i| takes_part[*i]).map(into).collect();
        tasks.iter_mut().for_each(|task| task.accept_shrink = true);
        let shared = Arc::new(several);
        let before = bucket.ledger().snapshot();
        let outcomes = shared.run(&tasks).await;
        let (_, gets) = asked(&*bucket, &before);
        let mut lacking = BTreeMap::new();
        for i in (0..3).filter(|i| takes_part[*i]) {
            lacking.extend(now.iter().filter(|(key, revision)| has[i].get(*key) != Some(revision)));
        }
        assert!(gets <= lacking.len() as u64, "{gets} reads of {} objects", lacking.len());
        for (i, outcome) in (0..3).filter(|i| takes_part[*i]).zip(outcomes) {
            match outcome {
                Ok(report) => {
                    assert!(shared.worlds[i].kept(&report.snapshots).await == expected(&bucket));
                    has[i] = now.clone();
                }
                Err(error) => {
                    assert_eq!(dies.map(|(dies, _)| dies), Some(i), "repository {i}: {error}");
                    let latest = shared.worlds[i].snapshots().await.pop();
                    if let Some((id, _)) = latest
                        && shared.worlds[i].kept(&[id.to_string()]).await == expected(&bucket)
                    {
                        has[i] = now.clone();
                    }
                }
            }
        }
        // What died held a lock, of a process that is gone.
        for world in &shared.worlds {
            let locks = ListRequest { prefix: Key::from("locks/"), ..ListRequest::default() };
            for lock in world.repository.list(&locks).await.unwrap().entries {
                world.repository.delete(&lock.key).await.unwrap();
            }
        }
        several = Arc::into_inner(shared).unwrap();
    }
}
