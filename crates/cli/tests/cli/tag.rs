//! Snapshots are tagged as restic tags them.

use std::collections::BTreeMap;

use cistern_testkit::tools;
use serde_json::Value;

use crate::home::Home;

fn two_snapshots() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    for contents in ["one", "two"] {
        home.write("data/a", contents);
        home.ok(&["backup", "data", "--tag", contents]);
    }
    home
}

fn tags(home: &Home) -> Vec<Value> {
    let all = home.ok(&["snapshots", "--json"]).lines().remove(0);
    all.as_array().unwrap().iter().map(|snapshot| snapshot["tags"].clone()).collect()
}

#[test]
fn what_changes_is_told() {
    let home = two_snapshots();
    let dry = home.ok(&["tag", "--add", "a,b", "--tag", "one", "--dry-run"]).transcript();
    assert!(dry.contains("<short> would change, with tags one,a,b"), "{dry}");
    assert!(dry.contains("dry run: 1 snapshot would change"), "{dry}");
    assert_eq!(tags(&home), [serde_json::json!(["one"]), serde_json::json!(["two"])]);
    let text = home.ok(&["tag", "latest", "--add", "a", "--remove", "two"]).transcript();
    assert!(text.contains("<short> is now <short>, with tags a\nchanged the tags of 1 snapshot"), "{text}");
    let lines = home.ok(&["tag", "--set", "", "--json"]).lines();
    assert_eq!((&lines[0]["message_type"], &lines[0]["tags"]), (&"changed".into(), &serde_json::json!([])));
    assert_eq!(lines[2]["changed_snapshots"], 2, "{lines:?}");
    assert!(home.ok(&["tag", "--set", ""]).out.contains("no tags to change"));
    assert_eq!(tags(&home), [Value::Null, Value::Null]);
    home.ok(&["check", "--read-data"]);
}

#[test]
fn what_says_nothing_or_too_much_is_refused() {
    let home = two_snapshots();
    for (arguments, word) in [
        (&["tag"][..], "--set"),
        (&["tag", "--set", "a", "--add", "b"], "cannot be used with"),
        (&["tag", "--add", ""], "no tag"),
        (&["tag", "--add", "run:1"], "reserved"),
        (&["tag", "--remove", "partial"], "reserved"),
        (&["tag", "latest:data", "--add", "a"], "as a whole"),
    ] {
        let run = home.run(arguments);
        assert!(run.code == 2 && run.transcript().contains(word), "{word}: {}", run.transcript());
    }
    assert_eq!(home.run(&["tag", "abcdef12", "--add", "a"]).code, 20);
}

/// The same changes on two copies of a repository.
#[test]
fn restic_and_we_leave_the_same_snapshots() {
    let restic = tools::restic().unwrap();
    let home = two_snapshots().with("RESTIC_PASSWORD", "geheim");
    let ids = home.ok(&["snapshots", "--json"]).lines().remove(0);
    let first = ids[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(home.program("/bin/cp".as_ref(), &["-r", "repo", "theirs"]).code, 0);
    let theirs = home.path("theirs").display().to_string();
    let see = |repository: &str| -> BTreeMap<String, Value> {
        let run = home.program(&restic, &["--no-cache", "--repo", repository, "snapshots", "--json"]);
        let all: Vec<Value> = serde_json::from_str(&run.out).unwrap();
        let bare = all.into_iter().map(|mut snapshot| {
            for id in ["id", "short_id"] {
                snapshot.as_object_mut().unwrap().remove(id);
            }
            // Their order means nothing.
            if let Some(tags) = snapshot.get_mut("tags").and_then(Value::as_array_mut) {
                tags.sort_by_key(Value::to_string);
            }
            (snapshot["time"].to_string(), snapshot)
        });
        bare.collect()
    };
    for arguments in [
        &["tag", &first, "--add", "v"][..],
        &["tag", "--set", "x,y", "--set", "z"],
        &["tag", "--add", "v,z", "--path", &home.path("data").display().to_string()],
        &["tag", "--remove", "y", "--add", "w", "--tag", "v"],
        &["tag", "latest", "--set", "only"],
    ] {
        let run = home.program(&restic, &[&["--no-cache", "--repo", &theirs], arguments].concat());
        assert_eq!(run.code, 0, "{}", run.transcript());
        home.ok(arguments);
        assert_eq!(see("repo"), see("theirs"), "{arguments:?}");
    }
    let check = home.program(&restic, &["--no-cache", "--repo", "repo", "check", "--read-data"]);
    assert_eq!(check.code, 0, "{}", check.transcript());
}
