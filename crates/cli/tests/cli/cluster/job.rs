//! Jobs that run to their end: backup, restore, forget, maintenance, with and without an API server.

use std::path::PathBuf;

use cistern_api::job::{
    BackupJob, BackupPlace, ForgetJob, ForgetPlace, JobTask, MaintainJob, Outcome, Place, RestoreJob,
    RestorePart,
};
use cistern_bucket::Class;
use cistern_engine::{OnUnreadable, Overwrite, Selection};
use cistern_testkit::Server;
use cistern_testkit::server::REGION;
use serde_json::Value;

use super::api_server::{ApiServer, kubeconfig};
use crate::home::{Home, Run};
use crate::s3::home_for;

/// A home with the volume `volume`, for Jobs whose repositories lie on this server.
pub fn home_of(server: &Server) -> Home {
    server.bucket("backups");
    let home = home_for(&server.endpoint(), Server::ACCESS_KEY, server.secret_key());
    home.write("volume/a", "one");
    home.write("volume/b/c", "two");
    home
}

/// The repository in this folder of the bucket, with a password; credentials lie in a folder of the same name.
pub fn place(home: &Home, server: &Server, name: &str, password: &str) -> Place {
    home.write(&format!("credentials/{name}/AWS_ACCESS_KEY_ID"), Server::ACCESS_KEY);
    home.write(&format!("credentials/{name}/AWS_SECRET_ACCESS_KEY"), server.secret_key());
    home.write(&format!("credentials/{name}/RESTIC_PASSWORD"), password);
    Place {
        credentials: name.to_owned(),
        address: address(server, name).parse().unwrap(),
        region: Some(REGION.to_owned()),
        insecure_tls: false,
        max_connections: None,
    }
}

fn address(server: &Server, name: &str) -> String {
    format!("s3:{}/backups/{name}", server.endpoint())
}

/// A backup of the volume into these places, reported in the Snapshots of the same names.
pub fn backup(places: Vec<Place>) -> BackupJob {
    let repositories = places.into_iter().map(|place| BackupPlace {
        snapshot: format!("snapshot-{}", place.credentials),
        path: "repository/v1/daily/dump".to_owned(),
        place,
    });
    BackupJob {
        namespace: "demo".to_owned(),
        component: "dump".to_owned(),
        paths: vec!["/kubestash-data".to_owned()],
        selection: Selection::default(),
        on_unreadable: OnUnreadable::Fail,
        max_shrink: 0.5,
        accept_shrink: false,
        allow_empty: false,
        mounted_bucket: true,
        enable_cache: true,
        repositories: repositories.collect(),
        deadline: None,
    }
}

fn restore(place: Place, snapshots: Vec<String>) -> RestoreJob {
    RestoreJob {
        namespace: "demo".to_owned(),
        restore_session: "bring-back".to_owned(),
        components: vec![RestorePart { component: "dump".to_owned(), snapshots, place }],
        selection: Selection::default(),
        overwrite: Overwrite::IfChanged,
        delete: false,
        mounted_bucket: false,
        enable_cache: false,
        deadline: None,
    }
}

/// The command line of a Job with this document.
pub fn arguments(home: &Home, task: &JobTask) -> Vec<String> {
    home.write("task.json", serde_json::to_vec(task).unwrap());
    let words = "job --task task.json --credentials credentials --data volume --termination-log ended \
                 --report-wait 20s --cache-dir cache";
    words.split(' ').map(str::to_owned).collect()
}

fn run(home: &Home, task: &JobTask) -> (Run, Outcome) {
    let run = home.run(&arguments(home, task));
    (run, outcome(home))
}

/// What the termination message says.
pub fn outcome(home: &Home) -> Outcome {
    serde_json::from_slice(&std::fs::read(home.path("ended")).unwrap()).unwrap()
}

fn code(class: Class) -> i32 {
    match class {
        Class::NotFound => 20,
        Class::Invalid => 2,
        _ => unreachable!(),
    }
}

#[test]
fn each_repository_has_a_report_of_its_own() {
    let server = Server::start().unwrap();
    let api = ApiServer::start().object("snapshots", "snapshot-a").object("snapshots", "snapshot-b");
    let home = api.connect(home_of(&server));
    let (a, b) = (place(&home, &server, "a", "one secret"), place(&home, &server, "b", "another one"));
    let task = JobTask::Backup(backup(vec![a, b]));
    // The first reports are refused: the last one is made until it is heard.
    api.broken(2);
    let (first, ended) = run(&home, &task);
    assert_eq!(first.code, 0, "{}", first.transcript());
    for (line, name) in ended.results.iter().zip(["snapshot-a", "snapshot-b"]) {
        assert_eq!((line.name.as_str(), &line.error, line.snapshots.len()), (name, &None, 1));
        let states = api.states(name, "dump");
        let last = states.last().unwrap();
        assert_eq!(last["phase"], "Succeeded", "{last}");
        assert_eq!((&last["driver"], &last["path"]), (&"Restic".into(), &"repository/v1/daily/dump".into()));
        assert_eq!(last["integrity"], true);
        assert!(
            last["size"].as_str().unwrap().ends_with(" KiB")
                || last["size"].as_str().unwrap().ends_with(" B")
        );
        let summary = &last["resticStats"][0]["summary"];
        assert_eq!(summary["id"], line.snapshots[0].as_str());
        assert_eq!((&summary["hostPath"], &summary["size"]), (&"/kubestash-data".into(), &"6 B".into()));
        assert!(summary["startTime"].is_string() && summary["endTime"].is_string());
    }
    assert_eq!(api.states("snapshot-b", "dump")[0]["phase"], "Running");
    let shown = home.with("CISTERN_PASSWORD", "one secret");
    let listed = shown.ok(&["snapshots", "--json", "--repo", &address(&server, "a")]).lines();
    assert_eq!(
        (&listed[0][0]["paths"][0], &listed[0][0]["hostname"]),
        (&"/kubestash-data".into(), &"host-0".into())
    );

    // Now one of the passwords is wrong, and the other repository is backed up all the same.
    shown.write("credentials/a/RESTIC_PASSWORD", "a wrong one");
    let (second, ended) = run(&shown, &task);
    assert_eq!(second.code, 12, "{}", second.transcript());
    let states = api.states("snapshot-a", "dump");
    let failed = states.last().unwrap();
    assert_eq!(failed["phase"], "Failed");
    let said = failed["error"].as_str().unwrap();
    assert!(
        said.contains("password") && !said.contains("127.0.0.1") && !said.contains("a wrong one"),
        "{said}"
    );
    assert_eq!(failed.get("resticStats"), None);
    assert_eq!(ended.results[0].error.as_deref(), Some(said));
    assert_eq!(api.states("snapshot-b", "dump").last().unwrap()["phase"], "Succeeded");
    assert_eq!(ended.results[1].snapshots.len(), 1);
}

#[test]
fn an_empty_source_and_a_source_that_shrank_are_refused() {
    let server = Server::start().unwrap();
    let api = ApiServer::start().object("snapshots", "snapshot-a");
    let home = api.connect(home_of(&server));
    let mut job = backup(vec![place(&home, &server, "a", "geheim")]);
    std::fs::rename(home.path("volume"), home.path("away")).unwrap();
    std::fs::create_dir(home.path("volume")).unwrap();
    let (empty, ended) = run(&home, &JobTask::Backup(job.clone()));
    assert_eq!(empty.code, code(Class::Invalid), "{}", empty.transcript());
    assert!(ended.results[0].error.as_ref().unwrap().contains("holds nothing"));
    std::fs::remove_dir(home.path("volume")).unwrap();
    std::fs::rename(home.path("away"), home.path("volume")).unwrap();
    for i in 0..200 {
        home.write(&format!("volume/many/{i}"), "x");
    }
    assert_eq!(run(&home, &JobTask::Backup(job.clone())).0.code, 0);
    std::fs::remove_dir_all(home.path("volume/many")).unwrap();
    let (shrunk, ended) = run(&home, &JobTask::Backup(job.clone()));
    assert_eq!(shrunk.code, code(Class::Invalid), "{}", shrunk.transcript());
    assert!(ended.results[0].error.as_ref().unwrap().contains("shrank"), "{ended:?}");
    assert_eq!(api.states("snapshot-a", "dump").last().unwrap()["phase"], "Failed");
    job.accept_shrink = true;
    assert_eq!(run(&home, &JobTask::Backup(job)).0.code, 0);
}

#[test]
fn what_was_backed_up_comes_back() {
    let server = Server::start().unwrap();
    let api = ApiServer::start().object("snapshots", "snapshot-a").object("restoresessions", "bring-back");
    let home = api.connect(home_of(&server));
    let a = place(&home, &server, "a", "geheim");
    let (_, ended) = run(&home, &JobTask::Backup(backup(vec![a.clone()])));
    let ids = ended.results[0].snapshots.clone();
    std::fs::remove_dir_all(home.path("volume/b")).unwrap();
    home.write("volume/a", "changed");
    home.write("volume/new", "stays");
    let (brought, ended) = run(&home, &JobTask::Restore(restore(a.clone(), ids)));
    assert_eq!(brought.code, 0, "{}", brought.transcript());
    let read = |name: &str| std::fs::read_to_string(home.path("volume").join(name)).unwrap();
    assert_eq!((read("a"), read("b/c"), read("new")), ("one".into(), "two".into(), "stays".into()));
    assert!(!home.path("volume/kubestash-data").exists());
    let states = api.states("bring-back", "dump");
    assert_eq!(states[0]["phase"], "Running");
    let last = states.last().unwrap();
    assert_eq!(
        (&last["phase"], &last["progress"]["percentDone"]),
        (&"Succeeded".into(), &"100.00%".into()),
        "{last}"
    );
    assert_eq!((ended.results[0].name.as_str(), &ended.results[0].error), ("dump", &None));

    let (none, ended) = run(&home, &JobTask::Restore(restore(a, vec!["0".repeat(64)])));
    assert_eq!(none.code, code(Class::NotFound), "{}", none.transcript());
    assert_eq!(api.states("bring-back", "dump").last().unwrap()["phase"], "Failed");
    assert!(ended.results[0].error.as_ref().unwrap().contains("no snapshot"));
}

#[test]
fn snapshots_that_are_gone_already_are_forgotten_and_space_is_freed() {
    let api = ApiServer::start().object("snapshots", "snapshot-disk");
    let home = api.connect(Home::new());
    home.write("volume/a", "one");
    let place = disk(&home);
    let maintain = |prune| {
        JobTask::Maintain(MaintainJob {
            prune,
            check_share: 1,
            repositories: vec![place.clone()],
            deadline: None,
        })
    };
    assert_eq!(run(&home, &maintain(true)).0.code, 0, "there is no repository yet");
    let task = JobTask::Backup(backup(vec![place.clone()]));
    let first = run(&home, &task).1.results[0].snapshots.clone();
    home.write("volume/a", "other contents: nothing of the first run is needed any more");
    let second = run(&home, &task).1.results[0].snapshots.clone();
    let named = [first, vec!["0".repeat(64)]].concat();
    let forget = JobTask::Forget(ForgetJob {
        repositories: vec![ForgetPlace {
            repository: "repo-a".to_owned(),
            snapshots: named,
            place: place.clone(),
        }],
        deadline: None,
    });
    let (gone, ended) = run(&home, &forget);
    assert_eq!(gone.code, 0, "{}", gone.transcript());
    assert!(gone.out.contains("1 snapshot removed"), "{}", gone.transcript());
    assert_eq!(ended.results[0].name, "repo-a");
    assert!(run(&home, &forget).0.out.contains("nothing to remove"));
    let listed = home.ok(&["snapshots", "--json"]).lines();
    assert_eq!(listed[0].as_array().unwrap().len(), 1);
    assert_eq!(listed[0][0]["id"], second[0].as_str());

    let before = packs(&home).len();
    let (kept, ended) = run(&home, &maintain(true));
    assert_eq!((kept.code, &ended.results[0].error), (0, &None), "{}", kept.transcript());
    assert!(packs(&home).len() < before, "{}", kept.transcript());

    // The share that is read is damaged: the Job says so.
    for pack in packs(&home) {
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[0] ^= 1;
        std::fs::remove_file(&pack).unwrap();
        std::fs::write(&pack, bytes).unwrap();
    }
    let (damaged, ended) = run(&home, &maintain(false));
    assert_eq!(damaged.code, 22, "{}", damaged.transcript());
    assert!(ended.results[0].error.as_ref().unwrap().contains("damaged"), "{ended:?}");
}

#[test]
fn a_run_that_finds_a_pack_missing_has_failed() {
    let api = ApiServer::start().object("snapshots", "snapshot-disk");
    let home = api.connect(Home::new());
    home.write("volume/a", "one");
    let task = JobTask::Backup(backup(vec![disk(&home)]));
    assert_eq!(run(&home, &task).0.code, 0);
    assert_eq!(api.states("snapshot-disk", "dump").last().unwrap()["integrity"], true);
    home.write("volume/b", "two");
    let one = packs(&home).into_iter().max_by_key(|pack| std::fs::metadata(pack).unwrap().len()).unwrap();
    std::fs::OpenOptions::new().append(true).open(&one).unwrap().set_len(10_000).unwrap();
    let (found, ended) = run(&home, &task);
    assert_eq!(found.code, 22, "{}", found.transcript());
    let last = api.states("snapshot-disk", "dump").pop().unwrap();
    assert_eq!((&last["phase"], &last["integrity"]), (&"Failed".into(), &false.into()), "{last}");
    assert!(last["error"].as_str().unwrap().contains("10000 bytes"), "{last}");
    // What was written is there to be looked at.
    assert_eq!(last["resticStats"][0]["summary"]["id"], ended.results[0].snapshots[0].as_str());
}

/// The home's own repository as a place of a Job.
pub fn disk(home: &Home) -> Place {
    home.write("credentials/disk/RESTIC_PASSWORD", "geheim");
    Place {
        credentials: "disk".to_owned(),
        address: cistern_bucket::Address::Directory(home.path("repo")),
        region: None,
        insecure_tls: false,
        max_connections: None,
    }
}

fn packs(home: &Home) -> Vec<PathBuf> {
    let files = |path: PathBuf| std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    files(home.path("repo/data")).flat_map(files).collect()
}

#[test]
fn without_an_api_server_the_termination_message_says_it_all() {
    let server = Server::start().unwrap();
    // A port that nobody listens on: it was free a moment ago.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let home = kubeconfig(home_of(&server), &format!("http://127.0.0.1:{port}"));
    let (a, b) = (place(&home, &server, "a", "geheim"), place(&home, &server, "b", "geheim"));
    let mut line = arguments(&home, &JobTask::Backup(backup(vec![a, b])));
    for word in &mut line {
        if word == "20s" {
            *word = "1s".to_owned();
        }
    }
    let run = home.run(&line);
    assert_eq!(run.code, 0, "{}", run.transcript());
    assert!(run.err.contains("could not be written"), "{}", run.transcript());
    let ended = outcome(&home);
    assert!(ended.results.iter().all(|line| line.error.is_none() && line.snapshots.len() == 1), "{ended:?}");
}

#[test]
fn a_document_that_is_not_understood_is_said_to_be_so() {
    let server = Server::start().unwrap();
    let home = home_of(&server);
    home.write("task.json", r#"{"job":"backup","surprise":1}"#);
    let line = "job --task task.json --credentials credentials --data volume --termination-log ended";
    let run = home.run(&line.split(' ').collect::<Vec<_>>());
    assert_eq!(run.code, code(Class::Invalid), "{}", run.transcript());
    let ended = outcome(&home);
    assert!(ended.results[0].error.as_ref().unwrap().contains("surprise"), "{ended:?}");
    let lines: Value = serde_json::to_value(&ended).unwrap();
    assert_eq!(lines["results"].as_array().unwrap().len(), 1);
}
