//! `cistern key`: what it prints, what it refuses, and that no password shows up anywhere.

use cistern_testkit::tools;

use crate::home::{Home, Run};

/// Nothing that was printed holds a password.
fn silent(run: &Run) {
    for secret in ["geheim", "anders", "dritte"] {
        assert!(!run.out.contains(secret) && !run.err.contains(secret), "{}", run.transcript());
    }
}

fn refused(run: &Run, code: i32, words: &[&str]) {
    assert_eq!(run.code, code, "{}", run.transcript());
    for word in words {
        assert!(run.err.contains(word), "{word:?} is missing in {}", run.transcript());
    }
    silent(run);
}

fn with_files() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    home.write("anders.txt", "anders\n");
    home.write("dritte.txt", "dritte\n");
    home.write("empty.txt", "\n");
    home
}

/// The keys as `key list --json` shows them.
fn keys(home: &Home) -> Vec<serde_json::Value> {
    home.ok(&["key", "list", "--json"]).lines()[0].as_array().unwrap().clone()
}

fn current(home: &Home) -> String {
    let current: Vec<_> = keys(home).into_iter().filter(|key| key["current"] == true).collect();
    assert_eq!(current.len(), 1, "{current:?}");
    current[0]["short_id"].as_str().unwrap().to_owned()
}

fn key_files(home: &Home) -> usize {
    std::fs::read_dir(home.path("repo/keys")).unwrap().count()
}

#[test]
fn transcripts_of_the_life_of_keys() {
    let home = with_files();
    let labels = ["--user", "ann", "--host", "laptop"];
    let mut life = String::new();
    let mut note = |run: Run| {
        silent(&run);
        life += &run.transcript();
    };
    note(home.run(&[&["key", "add", "--new-password-file", "anders.txt"], &labels[..]].concat()));
    let home = home.with("CISTERN_PASSWORD", "anders");
    note(home.run(&[&["key", "passwd", "--new-password-file", "dritte.txt"], &labels[..]].concat()));
    note(home.run(&["snapshots"]));
    let home = home.with("CISTERN_PASSWORD", "dritte");
    let listed = home.run(&["key", "list"]);
    assert_eq!(listed.code, 0, "{}", listed.transcript());
    silent(&listed);
    let lines: Vec<&str> = listed.out.lines().collect();
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!((words.as_slice(), lines.len()), (&["ID", "User", "Host", "Created"][..], 4));
    let mine = lines.iter().find(|line| line.starts_with('*')).unwrap();
    assert!(mine[1..].starts_with(&current(&home)) && mine.contains("  ann   laptop  20"), "{mine}");
    assert_eq!(lines[3], "2 keys");
    let other = keys(&home).into_iter().find(|key| key["current"] == false).unwrap();
    let shown = other["short_id"].as_str().unwrap();
    note(home.run(&["key", "remove", shown]));
    note(home.run(&["key", "remove", shown]));
    note(home.run(&["key", "remove", &current(&home)]));
    insta::assert_snapshot!(life);
    assert_eq!(key_files(&home), 1);
    refused(&home.with("CISTERN_PASSWORD", "geheim").run(&["key", "list"]), 12, &["password"]);
}

#[test]
fn json_says_which_keys() {
    let home = with_files();
    let first = &keys(&home)[0];
    for name in ["userName", "hostName", "created", "short_id"] {
        assert!(first[name].is_string(), "{first}");
    }
    let before = first["id"].as_str().unwrap().to_owned();
    let added =
        home.ok(&["key", "add", "--json", "--new-password-command", "cat anders.txt"]).lines().remove(0);
    assert_eq!(added["message_type"], "key_added");
    let home = home.with("CISTERN_PASSWORD", "anders");
    let changed =
        home.ok(&["key", "passwd", "--json", "--new-password-file", "dritte.txt"]).lines().remove(0);
    assert_eq!((&changed["message_type"], &changed["removed"]), (&"password_changed".into(), &added["id"]));
    let home = home.with("CISTERN_PASSWORD", "dritte");
    let removed = home.ok(&["key", "remove", &before, "--json"]).lines().remove(0);
    assert_eq!((&removed["message_type"], &removed["id"]), (&"key_removed".into(), &before.into()));
    assert_eq!(keys(&home)[0]["id"], changed["id"]);
}

#[test]
fn what_people_do_wrong_changes_no_key() {
    let home = with_files();
    refused(&home.run(&["key", "add"]), 2, &["no new password", "--new-password-file"]);
    refused(&home.run(&["key", "passwd"]), 2, &["no new password", "--new-password-file"]);
    refused(&home.run(&["key", "add", "--new-password-file", "empty.txt"]), 2, &["empty"]);
    refused(&home.run(&["key", "passwd", "--new-password-command", "false"]), 2, &["false failed"]);
    refused(&home.run(&["key", "add", "--new-password-file", "absent"]), 20, &["absent"]);
    refused(&home.run(&["key", "remove", "zz"]), 20, &["no key zz", "key list"]);
    refused(&home.run(&["key", "remove", &current(&home)]), 2, &["opened", "another key"]);
    let both = ["key", "add", "--new-password-file", "x", "--new-password-command", "y"];
    refused(&home.run(&both), 2, &["cannot be used with"]);
    let typed = home.run(&["key", "add", "anders"]);
    assert_eq!(typed.code, 2, "a password is no argument");
    let wrong = home.with("CISTERN_PASSWORD", "anders");
    for verb in [&["key", "list"][..], &["key", "passwd", "--new-password-file", "dritte.txt"]] {
        refused(&wrong.run(verb), 12, &["password"]);
    }
    assert_eq!(key_files(&wrong), 1);
    wrong.with("CISTERN_PASSWORD", "geheim").ok(&["check"]);
}

#[test]
fn a_key_that_cannot_be_read_is_named_and_the_others_are_listed() {
    let home = with_files();
    let odd = "0".repeat(64);
    home.write(&format!("repo/keys/{odd}"), "no key");
    let run = home.run(&["key", "list"]);
    assert_eq!((run.code, run.out.lines().count()), (3, 4), "{}", run.transcript());
    assert!(run.out.contains("\n*") && run.out.contains("cannot be read"), "{}", run.transcript());
    assert!(run.err.contains("00000000") && run.err.contains("another hash"), "{}", run.transcript());
    let run = home.run(&["key", "list", "--json"]);
    let listed = run.lines().remove(0);
    let (bad, good): (Vec<_>, Vec<_>) =
        listed.as_array().unwrap().iter().partition(|key| key["error"].is_string());
    assert_eq!((run.code, bad.len(), good.len()), (3, 1, 1), "{listed}");
    home.ok(&["key", "remove", "0000"]);
    home.ok(&["key", "list"]);
}

#[test]
fn labels_do_not_steer_the_terminal() {
    let home = with_files();
    home.ok(&["key", "add", "--new-password-file", "anders.txt", "--user", "\u{1b}[2Jeve"]);
    let run = home.ok(&["key", "list"]);
    assert!(!run.out.contains('\u{1b}') && run.out.contains("eve"), "{:?}", run.out);
}

#[test]
fn restic_opens_with_the_new_password_and_not_with_the_old() {
    for restic in [tools::restic_debian().unwrap(), tools::restic().unwrap()] {
        let home = with_files().with("RESTIC_REPOSITORY", "repo");
        home.ok(&["key", "passwd", "--new-password-file", "anders.txt"]);
        let home = home.with("RESTIC_PASSWORD", "geheim");
        let old = home.program(&restic, &["snapshots"]);
        assert!(old.code != 0 && old.err.contains("wrong password"), "{}", old.transcript());
        let home = home.with("RESTIC_PASSWORD", "anders").without("CISTERN_PASSWORD");
        assert_eq!(home.program(&restic, &["check"]).code, 0);
        // restic's key, with restic's variables.
        let added =
            home.program(&restic, &["key", "add", "--new-password-file", "dritte.txt", "--user", "rita"]);
        assert_eq!(added.code, 0, "{}", added.transcript());
        let home = home.with("RESTIC_PASSWORD", "dritte");
        let mine = keys(&home).into_iter().find(|key| key["current"] == true).unwrap();
        assert_eq!(mine["userName"], "rita");
    }
}

#[test]
fn a_repository_in_a_bucket_has_keys_and_locks_like_any_other() {
    let server = cistern_testkit::Server::start().unwrap();
    server.bucket("backups");
    let home = Home::new()
        .with("AWS_ENDPOINT_URL", server.endpoint())
        .with("AWS_REGION", "us-east-1")
        .with("AWS_ACCESS_KEY_ID", cistern_testkit::Server::ACCESS_KEY)
        .with("AWS_SECRET_ACCESS_KEY", server.secret_key())
        .with("CISTERN_REPOSITORY", "s3://backups/orders");
    home.ok(&["init"]);
    home.write("anders.txt", "anders\n");
    home.write("dritte.txt", "dritte\n");
    let first = current(&home);
    home.ok(&["key", "add", "--new-password-file", "anders.txt"]);
    let home = home.with("CISTERN_PASSWORD", "anders");
    home.ok(&["key", "passwd", "--new-password-file", "dritte.txt"]);
    refused(&home.run(&["key", "list"]), 12, &["password"]);
    let home = home.with("CISTERN_PASSWORD", "dritte");
    home.ok(&["key", "remove", &first]);
    assert_eq!(keys(&home).len(), 1);
    assert_eq!(home.ok(&["unlock"]).out, "no locks\n", "every verb gave its lock back");
}
