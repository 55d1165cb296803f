//! A directory, backed up and restored from the shell.

use crate::home::Home;

#[test]
fn a_directory_goes_round() {
    let home = Home::new();
    home.ok(&["init"]);
    home.write("data/a.txt", "one");
    home.write("data/deep/b.txt", "two");
    std::os::unix::fs::symlink("a.txt", home.path("data/link")).unwrap();
    let first = home.ok(&["backup", "data", "--json"]).summary();
    assert_eq!((&first["objects_new"], &first["objects_unchanged"]), (&2.into(), &0.into()), "{first}");
    let second = home.ok(&["backup", "data", "--json"]).summary();
    assert_eq!((&second["objects_new"], &second["objects_unchanged"]), (&0.into(), &2.into()), "{second}");
    assert_eq!(second["bytes_read"], 0);
    assert_eq!(second["stored"]["data_blobs"], 0);

    home.write("data/a.txt", "changed");
    std::fs::remove_file(home.path("data/deep/b.txt")).unwrap();
    home.write("data/new", "new");
    let dry = home.ok(&["backup", "data", "--json", "--dry-run"]).summary();
    assert_eq!(dry["snapshot_ids"].as_array().or(dry["snapshots"].as_array()).unwrap().len(), 0);
    let third = home.ok(&["backup", "data", "--json", "--tag", "third"]).summary();
    let counts =
        ["objects_new", "objects_changed", "objects_unchanged", "objects_deleted"].map(|n| third[n].as_u64());
    assert_eq!(counts, [Some(1), Some(1), Some(0), Some(1)], "{third}");

    let all = home.ok(&["snapshots", "--json"]).lines();
    assert_eq!(all[0].as_array().unwrap().len(), 3);
    let tagged = home.ok(&["snapshots", "--json", "--tag", "third"]).lines();
    assert_eq!(tagged[0][0]["id"], third["snapshots"][0]);
    assert_eq!(tagged[0][0]["paths"][0], home.path("data").display().to_string());

    let diff = home.ok(&["diff", "latest~1", "latest"]).out;
    for line in ["M    ", "-    ", "+    "] {
        assert!(diff.lines().any(|l| l.starts_with(line)), "{diff}");
    }
    let found = home.ok(&["find", "b.txt"]).out;
    assert_eq!(found.matches("/deep/b.txt").count(), 2, "{found}");

    home.ok(&["restore", "latest~1", "--to", "old"]);
    let inside = home.path("old").join(home.path("data").strip_prefix("/").unwrap());
    assert_eq!(std::fs::read(inside.join("deep/b.txt")).unwrap(), b"two");
    assert_eq!(std::fs::read_link(inside.join("link")).unwrap().to_str(), Some("a.txt"));

    let sub = format!("latest:{}", home.path("data").display());
    home.ok(&["restore", &sub, "--to", "new"]);
    assert_eq!(std::fs::read(home.path("new/a.txt")).unwrap(), b"changed");
    home.ok(&["check", "--read-data"]);
    let stats = home.ok(&["stats", "--json"]).lines();
    assert_eq!(stats[0]["snapshots"], 3);
    home.ok(&["verify", "latest"]);
    home.write("data/new", "newer contents");
    let verify = home.run(&["verify", "latest"]);
    assert_eq!(verify.code, 3, "{}", verify.transcript());
}

#[test]
fn a_restore_without_a_terminal_deletes_only_with_yes() {
    let home = Home::new();
    home.ok(&["init"]);
    home.write("data/a", "one");
    home.ok(&["backup", "data"]);
    home.write("data/extra", "would go");
    let to = home.path("data").display().to_string();
    let from = format!("latest:{to}");
    let refused = home.run(&["restore", &from, "--to", &to, "--delete"]);
    assert_eq!(refused.code, 2, "{}", refused.transcript());
    assert!(home.path("data/extra").exists());
    home.ok(&["restore", &from, "--to", &to, "--delete", "--yes"]);
    assert!(!home.path("data/extra").exists());
    assert!(home.path("data/a").exists());
}

#[test]
fn excludes_are_read_from_files_too() {
    let home = Home::new();
    home.ok(&["init"]);
    home.write("data/keep.txt", "k");
    home.write("data/drop.tmp", "d");
    home.write("data/cache/x", "c");
    home.write("patterns", "# comment\n*.tmp\n\ncache\n");
    home.ok(&["backup", "data", "--exclude-file", "patterns"]);
    let listing = home.ok(&["ls", "latest"]).out;
    assert!(
        listing.contains("keep.txt") && !listing.contains("drop.tmp") && !listing.contains("cache"),
        "{listing}"
    );
}
