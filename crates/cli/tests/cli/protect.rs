//! What snapshots need is locked against deletion, also by the owner of the bucket.

use cistern_bucket::{Bucket, Key, PutOptions};
use cistern_testkit::objects::{Texture, content};
use cistern_testkit::{External, Server, Version};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::home::Home;
use crate::s3::{block_on, connect, home_for};

fn in_hours(hours: i64) -> String {
    (Timestamp::now() + SignedDuration::from_hours(hours)).to_string()
}

fn numbers(report: &Value) -> [u64; 3] {
    ["needed", "covered", "extended"].map(|name| report[name].as_u64().unwrap())
}

fn asked(report: &Value) -> u64 {
    report["repository_requests"]["retention"].as_u64().unwrap()
}

/// Versions that hold something.
fn contents(server: &External, bucket: &str, prefix: &str) -> Vec<Version> {
    server.versions(bucket, prefix).into_iter().filter(|version| !version.is_marker).collect()
}

#[test]
fn what_snapshots_need_cannot_be_deleted_and_nothing_is_asked_twice() {
    let minio = cistern_testkit::minio();
    let bucket = "protected";
    minio.create_locked_bucket(bucket);
    let home = home_for(&minio.endpoint(), minio.access_key(), minio.secret_key())
        .with("CISTERN_REPOSITORY", format!("s3://{bucket}/repo"));
    home.ok(&["init"]);
    for i in 0..3 {
        home.write(&format!("data/{i}"), content(Texture::Random, i, 5 << 20));
    }
    home.ok(&["backup", "data", "--pack-size", "4"]);
    let unused = Key::from(format!("repo/data/ab/ab{}", "0".repeat(62)));
    let store = connect((&minio.endpoint(), minio.access_key(), minio.secret_key()), bucket);
    block_on(store.put(&unused, &["nobody needs this".into()], &PutOptions::default())).unwrap();

    let bare = home.run(&["protect", "--json"]);
    let report = bare.summary();
    let [needed, covered, _] = numbers(&report);
    assert_eq!((bare.code, covered, &report["earliest_end"]), (3, 0, &Value::Null), "{}", bare.transcript());
    assert_eq!(report["exceptions"]["counts"]["unprotected"], needed);
    let text = home.run(&["protect"]).transcript();
    assert!(text.contains("it is not locked") && text.contains("incomplete  0 of"), "{text}");

    let until = in_hours(24);
    let dry = home.ok(&["protect", "--until", &until, "--dry-run", "--json"]).summary();
    assert_eq!((numbers(&dry), asked(&dry)), ([needed, 0, needed], needed + 1));
    let run = home.ok(&["protect", "--until", &until, "--json"]).summary();
    assert_eq!((numbers(&run), asked(&run)), ([needed, needed, needed], 2 * needed + 1), "{run}");
    let again = home.ok(&["protect", "--until", &until, "--json"]).summary();
    assert_eq!((numbers(&again), asked(&again)), ([needed, needed, 0], needed + 1), "{again}");
    // Less is no reason to change anything, and what is locked now is covered.
    let less = home.ok(&["protect", "--until", &in_hours(1), "--json"]).summary();
    assert_eq!(numbers(&less), [needed, needed, 0]);
    let now = home.ok(&["protect", "--json"]).summary();
    assert_eq!((numbers(&now), &now["earliest_end"]), ([needed, needed, 0], &run["earliest_end"]));

    let mut locked = 0;
    for version in contents(&minio, bucket, "repo/") {
        let deleted = minio.delete_version(bucket, &version);
        let needs_none = version.key.contains("/locks/") || Key::from(&*version.key) == unused;
        assert_eq!(deleted.is_ok(), needs_none, "{version:?}: {deleted:?}");
        locked += u64::from(deleted.is_err());
    }
    assert_eq!(locked, needed);
    home.ok(&["check", "--read-data"]);

    home.write("data/0", content(Texture::Random, 9, 5 << 20));
    home.ok(&["backup", "data"]);
    let more = home.run(&["protect", "--json"]);
    let [now_needed, covered, _] = numbers(&more.summary());
    assert!(more.code == 3 && covered == needed && now_needed > needed, "{}", more.transcript());
    let rest = home.ok(&["protect", "--until", &until, "--json"]).summary();
    assert_eq!(numbers(&rest), [now_needed, now_needed, now_needed - needed]);
    assert_eq!(asked(&rest), now_needed + 1 + (now_needed - needed));

    hidden_but_there(home, &minio, bucket);
}

/// restic forgets and prunes: what was locked is hidden, and is there all the same.
fn hidden_but_there(home: Home, minio: &External, bucket: &str) {
    let before = contents(minio, bucket, "repo/data/");
    let restic = cistern_testkit::tools::restic().unwrap();
    let home = home
        .with("RESTIC_REPOSITORY", format!("s3:{}/{bucket}/repo", minio.endpoint()))
        .with("RESTIC_PASSWORD", "geheim");
    let forget = ["forget", "--keep-last", "1", "--prune", "--max-unused", "0"];
    let forgotten = home.program(&restic, &forget);
    assert_eq!(forgotten.code, 0, "{}", forgotten.transcript());
    let after = minio.versions(bucket, "repo/data/");
    assert!(after.iter().any(|version| version.is_marker), "{after:?}");
    assert!(before.iter().all(|version| after.contains(version)), "{after:?}");
    home.ok(&["check", "--read-data"]);
    // What was packed anew is not locked yet.
    let until = in_hours(24);
    let report = home.ok(&["protect", "--until", &until, "--json"]).summary();
    let [needed, covered, _] = numbers(&report);
    assert_eq!(needed, covered);
}

#[test]
fn a_store_without_locks_says_so_with_a_hint() {
    let server = Server::start().unwrap();
    server.bucket("backups");
    let bucket = home_for(&server.endpoint(), Server::ACCESS_KEY, server.secret_key());
    for home in [bucket, Home::new()] {
        home.ok(&["init"]);
        for arguments in [&["protect"][..], &["protect", "--for", "30d"]] {
            let run = home.run(arguments);
            let text = run.transcript();
            assert_eq!(run.code, 2, "{text}");
            assert!(text.contains("retention of config") && text.contains("Object Lock only"), "{text}");
        }
        home.ok(&["check"]);
    }
}

#[test]
fn a_time_that_makes_no_sense_is_refused() {
    let home = Home::new();
    home.ok(&["init"]);
    for (arguments, word) in [
        (&["protect", "--until", "2020-01-01"][..], "is over"),
        (&["protect", "--until", "2999-01-01"], "100 years"),
        (&["protect", "--for", "a while"], "1y6m14d12h"),
        (&["protect", "--for", "1d", "--until", "2999-01-01"], "cannot be used"),
        (&["protect", "--dry-run"], "required"),
    ] {
        let run = home.run(arguments);
        assert!(run.code == 2 && run.err.contains(word), "{}", run.transcript());
    }
}
