//! `cistern unlock`: stale locks go, others stay unless somebody says so.

use std::sync::Arc;

use cistern_repository::file::{self, FileKind};
use cistern_repository::key::KeyFile;
use cistern_repository::pack::Sealer;
use cistern_repository::{Id, LockFile, Time};
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;

use crate::home::Home;

/// A home with an empty repository.
fn with_repository() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    home
}

/// Puts a lock of somebody on another host in place.
fn put(home: &Home, minutes: i64, exclusive: bool, hostname: &str) -> String {
    let key = std::fs::read_dir(home.path("repo/keys")).unwrap().next().unwrap().unwrap().path();
    let key = KeyFile::parse(&std::fs::read(key).unwrap()).unwrap();
    let master = key.open(&SecretString::from("geheim")).unwrap();
    let time = Time::from(Timestamp::now() - SignedDuration::from_mins(minutes));
    let (hostname, username) = (hostname.to_owned(), "eve".to_owned());
    let lock = LockFile { time, exclusive, hostname, username, pid: 4711, uid: 0, gid: 0 };
    let mut sealer = Sealer::new(Arc::new(master), None).unwrap();
    let stored = file::seal(&mut sealer, FileKind::Lock, &serde_json::to_vec(&lock).unwrap()).unwrap();
    let id = Id::of(&stored).to_string();
    home.write(&format!("repo/locks/{id}"), stored);
    id
}

fn locks(home: &Home) -> Vec<String> {
    let names = std::fs::read_dir(home.path("repo/locks")).unwrap();
    let mut names: Vec<String> = names.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn stale_locks_go_and_others_stay() {
    let home = with_repository();
    let mut transcript = home.ok(&["unlock"]).transcript();
    put(&home, 45, true, "pod-1");
    transcript += &home.ok(&["unlock"]).transcript();
    let held = put(&home, 5, false, "pod-2");
    transcript += &home.ok(&["unlock"]).transcript();
    assert_eq!(locks(&home), std::slice::from_ref(&held));
    transcript += &home.run(&["unlock", "--all"]).transcript();
    assert_eq!(locks(&home), [held]);
    transcript += &home.ok(&["unlock", "--all", "--yes"]).transcript();
    assert!(locks(&home).is_empty());
    transcript += &home.ok(&["unlock", "--all"]).transcript();
    insta::assert_snapshot!(transcript);
}

#[test]
fn what_cannot_be_read_stays_unless_all_is_said() {
    let home = with_repository();
    let (odd, stale) = ("0".repeat(64), put(&home, 31, false, "pod-1"));
    home.write(&format!("repo/locks/{odd}"), "");
    let lines = home.ok(&["unlock", "--json"]).lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let of = |id: &str| lines.iter().find(|line| line["id"] == id).unwrap();
    assert_eq!((&of(&stale)["removed"], &of(&stale)["stale"]), (&true.into(), &true.into()));
    assert_eq!((&of(&stale)["username"], &of(&stale)["pid"]), (&"eve".into(), &4711.into()));
    assert!(of(&odd)["removed"] == false && of(&odd)["error"].is_string(), "{}", of(&odd));
    assert_eq!((&lines[2]["removed"], &lines[2]["stay"]), (&1.into(), &1.into()));
    assert_eq!(locks(&home), std::slice::from_ref(&odd));

    // Who is kept out by it is told how to get in.
    home.write("data/a", "one");
    let kept_out = home.run(&["backup", "data"]);
    assert_eq!(kept_out.code, 11, "{}", kept_out.transcript());
    assert!(kept_out.err.contains("cistern unlock --all"), "{}", kept_out.transcript());

    let refused = home.run(&["unlock", "--all", "--json"]);
    assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{}", refused.transcript());
    assert!(refused.err.contains("--yes"), "{}", refused.transcript());
    assert_eq!(home.run(&["unlock", "--all"]).code, 2);
    home.ok(&["unlock", "--all", "--yes", "--json"]);
    assert!(locks(&home).is_empty());
    home.ok(&["backup", "data"]);
}

#[test]
fn who_is_locked_out_learns_by_whom() {
    let home = with_repository();
    home.write("data/a", "one");
    for (minutes, hint) in [(1, "--retry-lock"), (20, "cistern unlock --all")] {
        put(&home, minutes, true, "pod-1");
        let run = home.run(&["backup", "data"]);
        assert_eq!(run.code, 11, "{}", run.transcript());
        for word in ["locked exclusively by eve@pod-1, process 4711 since 20", hint] {
            assert!(run.err.contains(word), "{word:?} is missing in {}", run.transcript());
        }
        home.ok(&["unlock", "--all", "--yes"]);
    }
    let wrong = home.with("CISTERN_PASSWORD", "falsch").run(&["unlock"]);
    assert_eq!(wrong.code, 12, "{}", wrong.transcript());
}
