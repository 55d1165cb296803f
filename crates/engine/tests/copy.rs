//! Snapshots are copied from one repository into another as restic copies them: whole or not at all, and nothing twice.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cistern_bucket::{Address, Attributes, Bucket, Class, Directory, Durability, Key, Memory, Verb};
use cistern_engine::{
    Access, CopyReport, CopySnapshots, Cx, Error, Exception, Note, Progress, Report, Result, Role,
    SnapshotSelector, Status, Task, runs,
};
use cistern_repository::{
    BlobKind, CheckOptions, Compression, Id, LockKind, Options, ReadData, Snapshot, check,
};
use cistern_testkit::{Fault, Faulty, Rule, seed, tools};
use secrecy::SecretString;
use serde_json::Value;
use support::{World, attributes, identity, task};

fn copy(names: &[&str]) -> CopySnapshots {
    CopySnapshots {
        from: "s3://from".parse().unwrap(),
        repository: "s3://repository".parse().unwrap(),
        snapshots: names.iter().map(ToString::to_string).collect(),
        filter: SnapshotSelector::default(),
        dry_run: false,
    }
}

/// Small packs without compression at the destination: what comes compressed must stay so.
struct Small(Arc<World>);

#[async_trait]
impl Access for Small {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        self.0.bucket(address, role).await
    }

    async fn password(&self, repository: &Address) -> Result<SecretString> {
        self.0.password(repository).await
    }

    fn options(&self, repository: &Address) -> Options {
        Options { pack_size: 4 << 20, compression: Compression::Off, ..self.0.options(repository) }
    }
}

#[derive(Default)]
struct Listener(Mutex<Vec<String>>);

impl Progress for Listener {
    fn status(&self, _status: &Status) {}

    fn note(&self, note: Note) {
        self.0.lock().unwrap().push(match note {
            Note::Info(text) => text,
            Note::Exception(Exception { key, detail, .. }) => format!("{key}: {detail}"),
        });
    }
}

async fn run_with(cx: &Cx, task: &CopySnapshots) -> Result<CopyReport> {
    match cistern_engine::run(&Task::Copy(task.clone()), cx).await? {
        Report::Copy(report) => Ok(report),
        other => panic!("{other:?}"),
    }
}

async fn run(world: &Arc<World>, task: &CopySnapshots) -> Result<CopyReport> {
    run_with(&Cx { access: Arc::new(Small(world.clone())), ..world.cx() }, task).await
}

/// The report of a copy to which the source did not give everything.
fn in_part(outcome: Result<CopyReport>) -> CopyReport {
    match outcome {
        Err(Error::Incomplete { why, report }) => match *report {
            Report::Copy(report) => {
                assert!(why.contains("damaged in the source"), "{why}");
                report
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn noise(random: &mut cistern_testkit::Random, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// A source with a run of several parts and two single snapshots of different hosts.
async fn filled(repository: Arc<dyn Bucket>) -> Arc<World> {
    let mut random = seed(90).random();
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..60 {
        bucket.insert(format!("d/{i:02}"), format!("{i} ").repeat(i * 100), attributes(i));
    }
    bucket.insert("noise", noise(&mut random, 3 << 20), Attributes::default());
    let world = World::with(bucket.clone(), repository).await;
    let mut backup = task();
    (backup.host, backup.tags) = ("one".into(), vec!["a".into(), "b".into()]);
    world.backup(&backup).await.unwrap();
    bucket.insert("d/more", "more", Attributes::default());
    bucket.insert("other", noise(&mut random, 1 << 20), Attributes::default());
    world.backup(&backup).await.unwrap();
    (backup.host, backup.part_keys, backup.force) = ("two".into(), 20, true);
    bucket.insert("new", noise(&mut random, 600 << 10), Attributes::default());
    world.backup(&backup).await.unwrap();
    world
}

fn ids(snapshots: &[(Id, Snapshot)]) -> Vec<String> {
    snapshots.iter().map(|(id, _)| id.to_string()).collect()
}

/// Snapshots by the id that they had first, without what a copy changes.
fn bare(snapshots: &[(Id, Snapshot)]) -> BTreeMap<Id, Snapshot> {
    let bare = |(id, snapshot): &(Id, Snapshot)| {
        let original = snapshot.original.unwrap_or(*id);
        (original, Snapshot { original: None, parent: None, ..snapshot.clone() })
    };
    snapshots.iter().map(bare).collect()
}

/// Stored length, plain length: what would differ if anything had been compressed anew.
async fn blobs(world: &World) -> BTreeMap<(BlobKind, Id), (u32, Option<u32>)> {
    let index = world.open().index().await.unwrap();
    let of = |kind| {
        let blobs = index.blobs(kind).map(move |(_, blob)| ((kind, blob.id), (blob.length, blob.raw_length)));
        blobs.collect::<Vec<_>>()
    };
    BlobKind::ALL.into_iter().flat_map(of).collect()
}

async fn assert_whole(world: &World) {
    let findings = check(&world.open(), CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
    assert!(findings.iter().all(|finding| finding.problem.is_hint()), "{findings:?}");
}

/// Objects of each run, by the time of the run.
async fn contents(world: &World) -> Vec<BTreeMap<Key, support::Kept>> {
    let mut all = Vec::new();
    for run in runs(&world.snapshots().await) {
        all.push(world.kept(&ids(&run.parts)).await);
    }
    all
}

fn gets_of(faulty: &Faulty, prefix: &str) -> usize {
    let requests = faulty.requests().into_iter();
    requests.filter(|r| r.verb == Verb::Get && r.key.as_bytes().starts_with(prefix.as_bytes())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_as_it_is_and_a_second_copy_reads_no_pack() {
    let from = filled(Arc::new(Memory::new("s3://from"))).await;
    let faulty = Faulty::new(from.repository.clone());
    let to = World::new(faulty.clone()).await;
    let before = from.snapshots().await;
    let dry = run(&to, &CopySnapshots { dry_run: true, ..copy(&[]) }).await.unwrap();
    assert!(dry.copied.len() == before.len() && dry.blobs > 60 && dry.bytes > 4 << 20, "{dry:?}");
    assert!(to.snapshots().await.is_empty() && faulty.writes() == 0);

    let listener = Arc::new(Listener::default());
    let cx = Cx { access: Arc::new(Small(to.clone())), progress: listener.clone(), ..to.cx() };
    let report = run_with(&cx, &copy(&[])).await.unwrap();
    assert_eq!((report.blobs, report.bytes, report.skipped), (dry.blobs, dry.bytes, 0));
    assert_eq!((report.copied.len(), report.failed.len()), (before.len(), 0));
    let notes = listener.0.lock().unwrap().clone();
    let hints = notes.iter().filter(|note| note.contains("--copy-chunker-params")).count();
    assert_eq!((hints, notes.len()), (1, 1), "{notes:?}");
    let after = to.snapshots().await;
    assert_eq!(bare(&after), bare(&before));
    for (_, snapshot) in &after {
        assert!(
            snapshot.parent.is_none() && snapshot.original.is_some_and(|id| bare(&before).contains_key(&id))
        );
    }
    let copied = blobs(&to).await;
    assert_eq!(copied, blobs(&from).await, "as it was compressed");
    assert_eq!(copied.len() as u64, report.blobs);
    assert_eq!(contents(&to).await, contents(&from).await);
    assert!(runs(&after).iter().all(|run| run.is_whole()));
    assert_whole(&to).await;

    faulty.reset();
    let again = run(&to, &copy(&[])).await.unwrap();
    assert_eq!((again.skipped, again.blobs, again.copied.len()), (before.len() as u64, 0, 0));
    assert_eq!(gets_of(&faulty, "data/"), 0);
    assert_eq!(to.snapshots().await, after);
    // Nor is anything copied back.
    let back = from.again(|world| world.source = to.repository.clone());
    assert_eq!(run(&back, &copy(&[])).await.unwrap().skipped, before.len() as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_and_filters_choose_runs_and_only_what_is_missing_is_fetched() {
    let from = filled(Arc::new(Memory::new("s3://from"))).await;
    let faulty = Faulty::new(from.repository.clone());
    let to = World::new(faulty.clone()).await;
    let mut first = copy(&[]);
    first.filter.hosts = vec!["one".into()];
    assert_eq!(run(&to, &first).await.unwrap().copied.len(), 2);
    let all = runs(&from.snapshots().await);
    // A part stands for its run, whose new data is one small file.
    let part = all[2].parts[1].0.to_string();
    let report = run(&to, &copy(&[&part, &part])).await.unwrap();
    assert_eq!(report.copied.len(), all[2].parts.len());
    assert!((600 << 10..700 << 10).contains(&report.bytes), "{report:?}");
    assert!(runs(&to.snapshots().await).iter().all(|run| run.is_whole()));
    assert_eq!(contents(&to).await, contents(&from).await);
    for (names, class) in [(&["abcdef"][..], Class::NotFound), (&["latest:/orders"], Class::Invalid)] {
        assert_eq!(run(&to, &copy(names)).await.unwrap_err().class(), class);
    }
    let itself = CopySnapshots { from: "s3://repository".parse().unwrap(), ..copy(&[]) };
    assert_eq!(run(&to, &itself).await.unwrap_err().class(), Class::Invalid);
    // Either repository may be busy; neither stays locked.
    for world in [&from, &to] {
        let lock = world.open().lock(LockKind::Exclusive, &identity(), Default::default()).await.unwrap();
        assert_eq!(run(&to, &copy(&[])).await.unwrap_err().class(), Class::Busy);
        lock.release().await;
    }
    for world in [&from, &to] {
        assert!(world.open().locks(&identity()).await.unwrap().is_empty());
    }
}

/// A copy that is interrupted leaves nothing half-written and no lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_is_heard() {
    let from = filled(Arc::new(Memory::new("s3://from"))).await;
    let faulty = Faulty::new(from.repository.clone());
    faulty.inject(Rule::new(Fault::Hang).verb(Verb::Get).prefix("data/").nth(1));
    let to = World::new(faulty.clone()).await;
    let cx = Cx { access: Arc::new(Small(to.clone())), ..to.cx() };
    let cancel = cx.cancel.clone();
    let watch = tokio::spawn(async move {
        while gets_of(&faulty, "data/") < 2 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    });
    assert_eq!(run_with(&cx, &copy(&[])).await.unwrap_err().class(), Class::Cancelled);
    watch.await.unwrap();
    assert!(to.snapshots().await.is_empty());
    for world in [&from, &to] {
        assert!(world.open().locks(&identity()).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_a_batch_are_there_before_the_next_batch_is_begun() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    let from = World::with(bucket.clone(), Arc::new(Memory::new("s3://from"))).await;
    let mut backup = task();
    backup.accept_shrink = true;
    for i in 0..7 {
        // The last is as the first was.
        let name = format!("{}", i % 6);
        bucket.clear();
        bucket.insert("same", "same", Attributes::default());
        let mut random = seed(92 + i % 6).random();
        bucket.insert(name, noise(&mut random, 9 << 20), Attributes::default());
        from.backup(&backup).await.unwrap();
    }
    let faulty = Faulty::new(Arc::new(Memory::new("s3://repository")));
    let to = World::with(from.repository.clone(), faulty.clone()).await;
    faulty.reset();
    let report = run(&to, &copy(&[])).await.unwrap();
    assert_eq!(report.copied.len(), 7);
    let writes: Vec<_> = faulty.requests().into_iter().filter(|request| request.write).collect();
    let position = |prefix: &str, last: bool| {
        let is_one =
            |request: &cistern_testkit::Request| request.key.as_bytes().starts_with(prefix.as_bytes());
        if last { writes.iter().rposition(is_one) } else { writes.iter().position(is_one) }.unwrap()
    };
    assert!(position("snapshots/", false) < position("data/", true));
    assert!(position("index/", true) < position("snapshots/", true));
    assert_eq!(bare(&to.snapshots().await), bare(&from.snapshots().await));
    assert_eq!(contents(&to).await, contents(&from).await);
    assert_whole(&to).await;
}

fn corrupt(bucket: &Memory, key: &Key) {
    assert!(bucket.corrupt(key, |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_damaged_is_named_and_the_others_are_copied() {
    for (kind, lost) in [(BlobKind::Data, false), (BlobKind::Data, true), (BlobKind::Tree, false)] {
        let repository = Arc::new(Memory::new("s3://from"));
        let from = filled(repository.clone()).await;
        let all = runs(&from.snapshots().await);
        // A pack that the first run does not need.
        let first: BTreeSet<Key> = {
            let early = World::with(repository.clone(), Arc::new(Memory::new("s3://early"))).await;
            run(&early, &copy(&[&all[0].parts[0].0.to_string()])).await.unwrap();
            let needed = blobs(&early).await;
            let index = from.open().index().await.unwrap();
            let packs = BlobKind::ALL.into_iter().flat_map(|kind| index.blobs(kind).collect::<Vec<_>>());
            let packs = packs.filter(|(_, blob)| needed.contains_key(&(blob.kind, blob.id)));
            packs.map(|(pack, _)| cistern_repository::file::FileKind::Pack.key(&index.pack(pack))).collect()
        };
        let index = from.open().index().await.unwrap();
        let victim = index.blobs(kind).map(|(pack, _)| index.pack(pack));
        let victim = victim.map(|pack| cistern_repository::file::FileKind::Pack.key(&pack));
        let victim = victim.into_iter().find(|key| !first.contains(key)).unwrap();
        if lost {
            assert!(repository.remove(&victim))
        } else {
            corrupt(&repository, &victim)
        };

        let to = World::new(repository.clone()).await;
        let listener = Arc::new(Listener::default());
        let cx = Cx { access: Arc::new(Small(to.clone())), progress: listener.clone(), ..to.cx() };
        let report = in_part(run_with(&cx, &copy(&[])).await);
        let before = from.snapshots().await;
        assert_eq!(report.copied.len() + report.failed.len(), before.len());
        assert!(report.copied.iter().any(|copied| copied.source == all[0].parts[0].0.to_string()));
        assert!(!report.failed.is_empty() && report.exceptions.total() > 0, "{report:?}");
        let notes = listener.0.lock().unwrap().join("\n");
        for failed in &report.failed {
            assert!(
                notes.contains(&format!("snapshot {}: it is not copied", &failed.source[..8])),
                "{notes}"
            );
        }
        let after = to.snapshots().await;
        assert_eq!(after.len(), report.copied.len());
        assert_whole(&to).await;
        // A part that is damaged does not make a run that looks whole.
        for run in runs(&after) {
            let all =
                all.iter().find(|other| other.id == run.id && other.parts[0].1.time == run.parts[0].1.time);
            assert_eq!(run.is_whole(), run.parts.len() == all.unwrap().parts.len());
        }
        // What is damaged stays so, and nothing is written twice.
        let again = in_part(run(&to, &copy(&[])).await);
        assert_eq!((again.copied.len(), again.failed.len()), (0, report.failed.len()));
        assert_eq!(to.snapshots().await, after);
    }
}

fn directory(path: &Path) -> Arc<dyn Bucket> {
    Arc::new(Directory::with(path, Durability::None))
}

struct Place {
    temp: tempfile::TempDir,
    program: PathBuf,
}

impl Place {
    fn new(program: PathBuf) -> Self {
        Place { temp: tempfile::tempdir().unwrap(), program }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Runs restic on a repository; it must succeed.
    #[track_caller]
    fn restic(&self, repository: &str, arguments: &[&str]) -> String {
        let output = Command::new(&self.program)
            .env_clear()
            .env("TZ", "UTC")
            .env("RESTIC_PASSWORD", "secret")
            .env("RESTIC_FROM_PASSWORD", "secret")
            .current_dir(self.temp.path())
            .args(["--no-cache", "--repo", repository])
            .args(arguments)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{} {arguments:?}:\n{out}\n{err}", self.program.display());
        out
    }

    /// Snapshots as restic sees them, without ids.
    fn snapshots(&self, repository: &str) -> BTreeSet<String> {
        let all: Vec<Value> =
            serde_json::from_str(&self.restic(repository, &["snapshots", "--json"])).unwrap();
        let bare = all.into_iter().map(|mut snapshot| {
            for id in ["id", "short_id"] {
                snapshot.as_object_mut().unwrap().remove(id);
            }
            snapshot.to_string()
        });
        bare.collect()
    }

    /// What restic restores of all snapshots of a repository, by snapshot's time.
    fn restored(&self, repository: &str) -> BTreeMap<String, BTreeMap<PathBuf, Vec<u8>>> {
        let all: Vec<Value> =
            serde_json::from_str(&self.restic(repository, &["snapshots", "--json"])).unwrap();
        let mut restored = BTreeMap::new();
        for snapshot in all {
            let target = self.path("restored");
            let id = snapshot["id"].as_str().unwrap();
            self.restic(repository, &["restore", id, "--target", target.to_str().unwrap()]);
            restored.insert(format!("{}{}", snapshot["time"], snapshot["paths"]), files(&target));
            std::fs::remove_dir_all(&target).unwrap();
        }
        restored
    }
}

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap().is_dir() {
                true => todo.push(entry.path()),
                false => {
                    let name = entry.path().strip_prefix(root).unwrap().to_owned();
                    found.insert(name, std::fs::read(entry.path()).unwrap());
                }
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_reads_what_we_copy_and_knows_it_for_a_copy() {
    let place = Place::new(tools::restic().unwrap());
    // Ours to ours.
    let from = filled(directory(&place.path("from"))).await;
    let to = World::with(directory(&place.path("from")), directory(&place.path("to"))).await;
    run(&to, &copy(&[])).await.unwrap();
    assert!(place.restic("to", &["check", "--read-data"]).contains("no errors were found"));
    assert_eq!(place.restored("to"), place.restored("from"));
    let old = Place { program: tools::restic_debian().unwrap(), temp: place.temp };
    old.restic("to", &["check", "--read-data"]);
    let place = Place { program: tools::restic().unwrap(), temp: old.temp };
    // restic has nothing to add, in either direction.
    let there = to.snapshots().await;
    place.restic("to", &["copy", "--from-repo", "from"]);
    place.restic("from", &["copy", "--from-repo", "to"]);
    assert_eq!((to.snapshots().await, from.snapshots().await.len()), (there.clone(), there.len()));
    // And its copies are ours.
    place.restic("theirs", &["init", "--from-repo", "from", "--copy-chunker-params"]);
    place.restic("theirs", &["copy", "--from-repo", "from"]);
    assert_eq!(place.snapshots("theirs"), place.snapshots("to"));
    let theirs = to.made_by_others(directory(&place.path("theirs"))).await;
    let theirs = theirs.again(|world| world.source = from.repository.clone());
    assert_eq!(run(&theirs, &copy(&[])).await.unwrap().skipped, there.len() as u64);
    // A snapshot that was tagged since counts as another one, to restic as to us.
    place.restic("from", &["tag", "--add", "later", "--host", "one"]);
    let more = run(&theirs, &copy(&[])).await.unwrap();
    assert_eq!((more.copied.len(), more.blobs), (2, 0));
    place.restic("to", &["copy", "--from-repo", "from"]);
    assert_eq!(place.snapshots("theirs"), place.snapshots("to"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_of_restic_is_copied_into_ours_and_ours_into_one_of_restic() {
    for program in [tools::restic_debian().unwrap(), tools::restic().unwrap()] {
        let place = Place::new(program);
        let mut random = seed(93).random();
        place.restic("theirs", &["init"]);
        for name in ["a", "b"] {
            std::fs::create_dir_all(place.path("files/deep")).unwrap();
            std::fs::write(place.path("files").join(name), noise(&mut random, 3 << 20)).unwrap();
            std::fs::write(place.path("files/deep/text"), name.repeat(100_000)).unwrap();
            place.restic("theirs", &["backup", "--tag", name, "files"]);
        }
        let source = directory(&place.path("theirs"));
        let ours = World::with(source.clone(), directory(&place.path("ours"))).await;
        let theirs = ours.made_by_others(source).await;
        assert_eq!(run(&ours, &copy(&[])).await.unwrap().copied.len(), 2);
        assert_eq!(bare(&ours.snapshots().await), bare(&theirs.snapshots().await));
        place.restic("ours", &["check", "--read-data"]);
        assert_eq!(place.restored("ours"), place.restored("theirs"));
        // What we back up there goes to another one that restic made.
        let bucket = Arc::new(Memory::new("s3://orders"));
        bucket.insert("x", noise(&mut random, 1 << 20), Attributes::default());
        ours.again(|world| world.source = bucket).backup(&task()).await.unwrap();
        place.restic("second", &["init"]);
        let second = ours.made_by_others(directory(&place.path("second"))).await;
        let second = second.again(|world| world.source = ours.repository.clone());
        assert_eq!(run(&second, &copy(&[])).await.unwrap().copied.len(), 3);
        place.restic("second", &["check", "--read-data"]);
        assert_eq!(place.restored("second"), place.restored("ours"));
        // And the files go on from there.
        place.restic("second", &["backup", "files"]);
        place.restic("second", &["prune"]);
        place.restic("second", &["check", "--read-data"]);
    }
}

/// Killed at writes that a committed seed chooses: restic finds nothing wrong, and the next run finishes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_a_write_it_has_harmed_nothing_and_the_next_run_finishes() {
    let mut random = seed(94).random();
    let place = Place::new(tools::restic().unwrap());
    let from = filled(Arc::new(Memory::new("s3://from"))).await;
    let expected = bare(&from.snapshots().await);
    for kind in ["locks/", "data/", "index/", "snapshots/"] {
        let prepared = async |name: &str| {
            let plain = directory(&place.path(name));
            let to = World::with(from.repository.clone(), plain.clone()).await;
            let faulty = Faulty::new(plain);
            (to.again(|world| world.repository = faulty.clone()), to, faulty)
        };
        let (mortal, _, faulty) = prepared(&format!("{}-all", &kind[..3])).await;
        run(&mortal, &copy(&[])).await.unwrap();
        let requests = faulty.requests().into_iter();
        let writes = requests.filter(|r| r.write && r.key.as_bytes().starts_with(kind.as_bytes())).count();
        for case in 0..3 {
            let n = random.below(writes as u64);
            let name = format!("{}-{case}", &kind[..3]);
            let (mortal, to, faulty) = prepared(&name).await;
            let fault = if random.one_in(2) { Fault::Die } else { Fault::DieAfter };
            faulty.inject(Rule::new(fault).writes().prefix(kind).nth(n));
            let outcome = run(&mortal, &copy(&[])).await;
            assert!(faulty.is_dead(), "{kind} {n} of {writes}");
            assert!(outcome.is_err() || kind == "locks/");
            // The lock of a process that is gone.
            let root = place.path(&name);
            for name in files(&root).keys().filter(|name| name.starts_with("locks")) {
                std::fs::remove_file(root.join(name)).unwrap();
            }
            place.restic(&name, &["check", "--read-data"]);
            let there = to.snapshots().await;
            assert!(bare(&there).iter().all(|(id, snapshot)| expected.get(id) == Some(snapshot)));
            let report = run(&to, &copy(&[])).await.unwrap();
            assert_eq!(report.copied.len() + there.len(), expected.len());
            let after = to.snapshots().await;
            assert_eq!((after.len(), bare(&after)), (expected.len(), expected.clone()), "{kind} {n}");
            place.restic(&name, &["check", "--read-data"]);
        }
    }
}
