//! Runs that are interrupted or killed, and repositories that somebody else holds.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cistern_repository::{Identity, Lock, LockKind, Options, Repository};
use cistern_testkit::objects::{Texture, content};
use secrecy::SecretString;

use crate::home::Home;

/// A home with one small snapshot, and a source that takes a moment to back up.
fn with_work() -> Home {
    let home = Home::new();
    home.write("data/first", "kept");
    home.ok(&["init"]);
    home.ok(&["backup", "data"]);
    for i in 0..40 {
        home.write(&format!("data/noise{i:02}"), content(Texture::Random, i, 4 << 20));
    }
    home
}

/// Waits until the repository holds `n` packs, or the run has ended.
fn until_packs(home: &Home, n: usize, child: &mut Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while packs(home) < n && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no {n} packs after a minute");
        std::thread::yield_now();
    }
}

fn packs(home: &Home) -> usize {
    let folders = std::fs::read_dir(home.path("repo/data")).unwrap();
    folders.map(|folder| std::fs::read_dir(folder.unwrap().path()).map_or(0, Iterator::count)).sum()
}

fn locks(home: &Home) -> usize {
    std::fs::read_dir(home.path("repo/locks")).unwrap().count()
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn send(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn an_interrupt_is_heard_and_gives_the_lock_back() {
    let home = with_work();
    let before = packs(&home);
    let mut child = start(&mut home.command(&["backup", "data"]));
    until_packs(&home, before + 1, &mut child);
    send(&child, rustix::process::Signal::INT);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("stopping") && said.contains("cancelled"), "{said}");
    assert_eq!(locks(&home), 0);
    assert_eq!(home.ok(&["snapshots", "--json"]).lines()[0].as_array().unwrap().len(), 1);
    home.ok(&["check", "--read-data"]);
    home.ok(&["backup", "data"]);
}

#[test]
fn a_run_that_is_killed_leaves_the_last_snapshot_whole() {
    let home = with_work();
    for n in 1..=5 {
        let before = packs(&home);
        let mut child = start(&mut home.command(&["backup", "data", "--force"]));
        until_packs(&home, before + n, &mut child);
        child.kill().unwrap();
        child.wait().unwrap();
        home.ok(&["check", "--read-data"]);
        let out = format!("out{n}");
        home.ok(&["restore", "latest", "--to", &out]);
    }
    home.ok(&["backup", "data"]);
    home.ok(&["check", "--read-data"]);
    home.ok(&["verify", "latest", "data", "--content"]);
}

#[test]
fn a_repository_that_is_held_is_eleven_and_can_be_waited_for() {
    let home = Home::new();
    home.write("data/a", "one");
    home.ok(&["init"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lock: Lock = runtime.block_on(async {
        let bucket = std::sync::Arc::new(cistern_bucket::Directory::new(home.path("repo")));
        let password = SecretString::from("geheim");
        let repository = Repository::open(bucket, &password, Options::default()).await.unwrap();
        let identity =
            Identity { hostname: "elsewhere".into(), username: "somebody".into(), pid: 4711, uid: 0, gid: 0 };
        repository.lock(LockKind::Exclusive, &identity, Duration::ZERO).await.unwrap()
    });
    let run = home.run(&["backup", "data"]);
    assert_eq!(run.code, 11, "{}", run.transcript());
    assert!(run.err.contains("elsewhere") && run.err.contains("--retry-lock"), "{}", run.transcript());
    // Reading needs no lock.
    home.ok(&["snapshots"]);

    let mut child = start(&mut home.command(&["backup", "data", "--retry-lock", "60s"]));
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("waiting until the repository is free")));
    runtime.block_on(lock.release());
    let rest: Vec<String> = said.collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
}
