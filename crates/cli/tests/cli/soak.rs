//! Everybody at once on one repository: backups of both programs, forget and prune, with processes killed at any moment.
//!
//! What has to hold in the end: no snapshot is damaged, each that was reported as written is there and restores to what
//! was backed up, unless three newer ones of its kind are (that is the policy), nobody had to remove a lock by hand, and
//! every verb succeeds once it is alone. `cargo xtask soak` runs it for longer, or with another seed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use cistern_repository::{Identity, KdfParams, Options, Repository};
use cistern_testkit::{Random, Seed, tools};
use serde_json::Value;

use crate::home::{Home, Run};
use crate::s3::{block_on, connect, home_for};

/// Sources that are backed up, each by a worker of its own and under a host of its own.
const WORKERS: u64 = 4;
/// Newest snapshots that every forget of the soak keeps of each source.
const KEEP: usize = 3;
/// How long a process that is to be killed may live at most.
const LIFE: Duration = Duration::from_millis(1_500);
/// No verb takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(240);
/// "Somebody else has locked the repository", of both programs.
const LOCKED: i32 = 11;

/// A verb of the soak: how often it comes, whose it is, and its arguments behind the common ones.
struct Verb {
    weight: u64,
    program: Program,
    arguments: &'static [&'static str],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Program {
    Cistern,
    Restic,
}

/// All that anybody does; a verb that the program does not have (yet) is left out.
const VERBS: [Verb; 8] = [
    Verb { weight: 6, program: Program::Cistern, arguments: &["backup"] },
    Verb { weight: 3, program: Program::Restic, arguments: &["backup"] },
    Verb { weight: 2, program: Program::Cistern, arguments: &["forget", "--keep-last", "3"] },
    Verb { weight: 1, program: Program::Restic, arguments: &["forget", "--keep-last", "3"] },
    Verb { weight: 1, program: Program::Restic, arguments: &["prune", "--max-unused", "0"] },
    Verb { weight: 1, program: Program::Cistern, arguments: &["check"] },
    Verb { weight: 2, program: Program::Cistern, arguments: &["restore"] },
    Verb { weight: 2, program: Program::Cistern, arguments: &["prune"] },
];

/// Files of a source by name.
type Contents = BTreeMap<String, Vec<u8>>;

/// A snapshot that was reported as written.
struct Written {
    id: String,
    worker: u64,
    contents: Contents,
}

struct Soak {
    home: Home,
    restic: PathBuf,
    verbs: Vec<&'static Verb>,
    written: Mutex<Vec<Arc<Written>>>,
    /// How verbs ended, for whoever reads along.
    tally: Mutex<BTreeMap<String, u64>>,
}

/// How long the soak lasts: a good minute unless `CISTERN_SOAK_SECONDS` says otherwise.
fn length() -> Duration {
    let seconds = std::env::var("CISTERN_SOAK_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(60))
}

#[test]
fn everybody_at_once_and_some_are_killed() {
    let seed = cistern_testkit::seed(20_261_128);
    let minio = cistern_testkit::minio();
    let bucket = "soak";
    let soak = Soak::new(&minio, bucket);
    let (end, start) = (Instant::now() + length(), Barrier::new(WORKERS as usize));
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (soak, seed, start) = (&soak, &seed, &start);
            scope.spawn(move || {
                start.wait();
                soak.work(worker, seed, end);
            });
        }
    });
    eprintln!("{:#?}", soak.tally.lock().unwrap());
    let (restored, forgotten) = soak.everything_is_there(&minio, bucket);
    eprintln!(
        "of the snapshots that were written {restored} are there and whole, {forgotten} were forgotten"
    );
}

impl Soak {
    fn new(minio: &cistern_testkit::External, bucket: &str) -> Self {
        let (endpoint, id, secret) = (minio.endpoint(), minio.access_key(), minio.secret_key());
        let home = home_for(&endpoint, id, secret)
            .with("CISTERN_REPOSITORY", format!("s3://{bucket}"))
            .with("RESTIC_REPOSITORY", format!("s3:{endpoint}/{bucket}"))
            .with("RESTIC_PASSWORD", "geheim");
        // A key that costs nothing: the soak is about everything else.
        let store = Arc::new(connect((&endpoint, id, secret), bucket));
        let who = Identity { hostname: "soak".into(), username: "soak".into(), pid: 1, uid: 0, gid: 0 };
        let options = Options { kdf: KdfParams::NONE, ..Options::default() };
        block_on(Repository::init(store, &"geheim".into(), &who, options)).unwrap();
        let knows = |verb: &&Verb| {
            verb.program == Program::Restic || home.run(&[verb.arguments[0], "--help"]).code == 0
        };
        let verbs = VERBS.iter().filter(knows).collect();
        let restic = tools::restic().unwrap();
        Soak { home, restic, verbs, written: Mutex::default(), tally: Mutex::default() }
    }

    /// One verb after the other, until it is time.
    fn work(&self, worker: u64, seed: &Seed, end: Instant) {
        let mut random = Random::new(seed.value().wrapping_add(worker));
        let mut contents = Contents::new();
        while Instant::now() < end {
            let verb = self.choose(&mut random);
            if verb.arguments[0] == "backup" {
                self.change(worker, &mut contents, &mut random);
            }
            // The newest that this worker has written: nobody forgets that.
            let newest = self.newest(worker);
            if verb.arguments[0] == "restore" && newest.is_none() {
                continue;
            }
            let life = random.one_in(3).then(|| LIFE.mul_f64(random.below(1_000) as f64 / 1_000.0));
            let (status, run) = self.run(worker, verb, "5s", life, newest.as_deref());
            let how = match status.code() {
                None => "killed".to_owned(),
                Some(code) => {
                    assert!(code == 0 || code == LOCKED, "{}", run.transcript());
                    if code == 0 { "done".to_owned() } else { "locked".to_owned() }
                }
            };
            if how == "done" && verb.arguments[0] == "backup" {
                let (id, contents) = (written_id(&run), contents.clone());
                self.written.lock().unwrap().push(Arc::new(Written { id, worker, contents }));
            }
            if how == "done" && verb.arguments[0] == "restore" {
                self.restored(&newest.expect("a snapshot was restored"));
            }
            *self.tally.lock().unwrap().entry(format!("{} {how}", verb.name())).or_default() += 1;
        }
    }

    fn newest(&self, worker: u64) -> Option<Arc<Written>> {
        self.written.lock().unwrap().iter().rev().find(|one| one.worker == worker).cloned()
    }

    fn choose(&self, random: &mut Random) -> &'static Verb {
        let mut left = random.below(self.verbs.iter().map(|verb| verb.weight).sum());
        let chosen = self.verbs.iter().find(|verb| {
            let hit = left < verb.weight;
            left = left.saturating_sub(verb.weight);
            hit
        });
        chosen.expect("the weights add up")
    }

    /// Changes, adds and removes some files of a source: some alike in all of them, so that they share blobs.
    fn change(&self, worker: u64, contents: &mut Contents, random: &mut Random) {
        for _ in 0..1 + random.below(3) {
            let name = format!("source-{worker}/folder-{}/file-{}", random.below(3), random.below(4));
            if random.one_in(4) && contents.len() > 1 {
                if contents.remove(&name).is_some() {
                    std::fs::remove_file(self.home.path(&name)).unwrap();
                }
                continue;
            }
            let mut bytes = vec![0; random.below(300_000) as usize];
            Random::new(random.below(40)).fill(&mut bytes);
            self.home.write(&name, &bytes);
            contents.insert(name, bytes);
        }
    }

    /// Runs a verb to its end, or kills it when its life is over.
    fn run(
        &self,
        worker: u64,
        verb: &Verb,
        wait: &str,
        life: Option<Duration>,
        newest: Option<&Written>,
    ) -> (ExitStatus, Run) {
        let out = newest.map(Written::target);
        let (host, source) = (format!("host-{worker}"), format!("source-{worker}"));
        let mut arguments = verb.arguments.to_vec();
        arguments.extend(["--json", "--retry-lock", wait]);
        if verb.arguments[0] == "backup" {
            arguments.extend(["--host", &host, &source]);
        }
        if let ("restore", Some(newest), Some(out)) = (verb.arguments[0], newest, &out) {
            // Whatever a restore that was killed has left.
            let _ = std::fs::remove_dir_all(self.home.path(out));
            arguments.extend([&*newest.id, "--to", out]);
        }
        let program = match verb.program {
            Program::Cistern => Path::new(env!("CARGO_BIN_EXE_cistern")),
            Program::Restic => &self.restic,
        };
        let said = ["out", "err"].map(|kind| self.home.path(&format!("said-{worker}-{kind}")));
        let [out, err] = said.each_ref().map(|path| File::create(path).unwrap());
        let mut command = self.home.command_of(program, &arguments);
        let mut child = command.stdout(out).stderr(err).spawn().unwrap();
        let status = ended(&mut child, life);
        let [out, err] = said.map(|path| std::fs::read_to_string(path).unwrap());
        (status, self.home.ran(program, &arguments, status.code(), out, err))
    }

    /// Alone again: every verb succeeds, nothing is damaged, and what was written is there.
    fn everything_is_there(&self, minio: &cistern_testkit::External, bucket: &str) -> (u64, u64) {
        for verb in &self.verbs {
            let (status, run) = self.run(0, verb, "0s", None, self.newest(0).as_deref());
            assert!(status.success(), "{}", run.transcript());
        }
        let locks = minio.versions(bucket, "locks/");
        assert!(locks.is_empty(), "{locks:?}");
        let check = self.home.program(&self.restic, &["check", "--read-data"]);
        assert_eq!(check.code, 0, "{}", check.transcript());
        self.home.ok(&["check", "--read-data"]);

        let listed = self.home.ok(&["snapshots", "--json"]).lines();
        let listed: Vec<(&str, &str)> = listed[0]
            .as_array()
            .unwrap()
            .iter()
            .map(|snapshot| (snapshot["id"].as_str().unwrap(), snapshot["hostname"].as_str().unwrap()))
            .collect();
        let written = self.written.lock().unwrap();
        let (mut restored, mut forgotten) = (0, 0);
        for worker in 0..WORKERS {
            let host = format!("host-{worker}");
            let there: Vec<&str> = listed.iter().filter(|(_, of)| *of == host).map(|(id, _)| *id).collect();
            let mine: Vec<&Arc<Written>> = written.iter().filter(|one| one.worker == worker).collect();
            // The newest first. A killed backup may have written one that nobody told of.
            for (newer, one) in mine.iter().rev().enumerate() {
                if there.contains(&&*one.id) {
                    self.home.ok(&["restore", &one.id, "--to", &one.target()]);
                    self.restored(one);
                    restored += 1;
                } else {
                    assert!(there.len() >= KEEP, "{} of {host} is gone: {there:?}", one.id);
                    assert!(newer >= 1, "the newest of {host} is gone: {there:?}");
                    forgotten += 1;
                }
            }
        }
        assert!(restored > 0 && written.len() > WORKERS as usize);
        (restored, forgotten)
    }

    /// Compares what was restored with what was backed up, and takes it away.
    fn restored(&self, one: &Written) {
        let out = one.target();
        let source = format!("source-{}", one.worker);
        // Cistern stores the whole path of a directory, restic the path that it was given.
        let whole = self.home.path(&out).join(self.home.path("").strip_prefix("/").unwrap());
        let root = if whole.exists() { whole } else { self.home.path(&out) };
        let mut found = Contents::new();
        read_below(&root, &root.join(source), &mut found);
        assert!(found == one.contents, "{} restores to something else", one.id);
        std::fs::remove_dir_all(self.home.path(&out)).unwrap();
    }
}

impl Written {
    /// The folder that it is restored to.
    fn target(&self) -> String {
        format!("restored-{}", &self.id[..8])
    }
}

impl Verb {
    fn name(&self) -> String {
        let program = if self.program == Program::Cistern { "cistern" } else { "restic" };
        format!("{program} {}", self.arguments[0])
    }
}

/// Waits for the end of a process, and kills it when its life is over.
fn ended(child: &mut Child, life: Option<Duration>) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if life.is_some_and(|life| started.elapsed() >= life) {
            child.kill().unwrap();
            return child.wait().unwrap();
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("a verb does not end");
        }
        // Nothing tells of the end of a process but asking.
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// The snapshot that a backup says it has written; both programs end with a summary.
fn written_id(run: &Run) -> String {
    let summary: Value = serde_json::from_str(run.out.lines().last().unwrap()).unwrap();
    let id = summary["snapshot_id"].as_str().or(summary["snapshots"][0].as_str());
    id.unwrap_or_else(|| panic!("{}", run.transcript())).to_owned()
}

fn read_below(root: &Path, folder: &Path, into: &mut Contents) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_below(root, &path, into);
        } else {
            let name = path.strip_prefix(root).unwrap().display().to_string();
            into.insert(name, std::fs::read(&path).unwrap());
        }
    }
}
