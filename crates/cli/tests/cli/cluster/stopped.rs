//! Jobs that are asked to stop: by the kubelet, and by their deadline.

use std::process::Stdio;
use std::time::{Duration, Instant};

use cistern_api::job::JobTask;
use cistern_testkit::objects::{Texture, content};
use cistern_testkit::{HttpFault, Rule, Server};
use jiff::Timestamp;

use super::api_server::ApiServer;
use super::job::{arguments, backup, disk, home_of, outcome, place};
use crate::home::Home;

fn locks(home: &Home) -> usize {
    std::fs::read_dir(home.path("repo/locks")).map_or(0, Iterator::count)
}

#[test]
fn a_pod_that_is_evicted_says_so_and_gives_the_lock_back() {
    let api = ApiServer::start().object("snapshots", "snapshot-disk");
    let home = api.connect(Home::new());
    for i in 0..60 {
        home.write(&format!("volume/noise{i:02}"), content(Texture::Random, i, 4 << 20));
    }
    let line = arguments(&home, &JobTask::Backup(backup(vec![disk(&home)])));
    let mut child = home.command(&line).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while locks(&home) == 0 && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no lock after a minute");
        std::thread::yield_now();
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert_eq!(locks(&home), 0);
    let states = api.states("snapshot-disk", "dump");
    let last = states.last().unwrap();
    assert_eq!((&states[0]["phase"], &last["phase"]), (&"Running".into(), &"Failed".into()));
    assert!(last["error"].as_str().unwrap().starts_with("terminated"), "{last}");
    assert!(outcome(&home).results[0].error.as_ref().unwrap().starts_with("terminated"));
}

#[test]
fn a_deadline_ends_a_run_that_hangs_and_progress_is_told_until_then() {
    let server = Server::start().unwrap();
    let api = ApiServer::start().object("snapshots", "snapshot-a");
    let home = api.connect(home_of(&server));
    server.inject(Rule::new(HttpFault::Stall).prefix("a/data/"));
    let mut job = backup(vec![place(&home, &server, "a", "geheim")]);
    job.deadline = Some(Timestamp::now() + Duration::from_secs(8));
    let run = home.run(&arguments(&home, &JobTask::Backup(job.clone())));
    assert_eq!(run.code, 130, "{}", run.transcript());
    let states = api.states("snapshot-a", "dump");
    let told = states.iter().find_map(|state| state["resticStats"][0].get("progress"));
    let progress = told.unwrap_or_else(|| panic!("no progress: {states:?}"));
    assert_eq!((&progress["totalFiles"], &progress["total"]), (&2.into(), &"6B".into()), "{progress}");
    let last = states.last().unwrap();
    assert_eq!(last["phase"], "Failed");
    assert!(last["error"].as_str().unwrap().contains("deadline"), "{last}");

    // One that is over already costs nothing.
    server.heal();
    server.clear_log();
    job.deadline = Some(Timestamp::now() - Duration::from_secs(1));
    let late = home.run(&arguments(&home, &JobTask::Backup(job)));
    assert_eq!(late.code, 130, "{}", late.transcript());
    assert!(outcome(&home).results[0].error.as_ref().unwrap().contains("deadline"));
    assert!(!server.log().iter().any(|seen| seen.request.write), "{:?}", server.log());
}
