//! `cistern repair`: what each step shows, what it asks for, and what is left afterwards.

use std::path::PathBuf;

use crate::home::Home;

/// A home with a repository of three files that do not compress: the largest pack is theirs.
fn with_repository() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    for (name, seed) in [("data/a", 1u32), ("data/b", 2), ("data/c", 3)] {
        let numbers = std::iter::successors(Some(seed), |n| {
            Some(n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
        });
        home.write(name, numbers.map(|n| (n >> 24) as u8).take(9000).collect::<Vec<_>>());
    }
    home.ok(&["backup", "data"]);
    home
}

fn files(home: &Home, directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut stack = vec![home.path(directory)];
    while let Some(path) = stack.pop() {
        for entry in std::fs::read_dir(path).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { stack.push(path) } else { files.push(path) }
        }
    }
    files.sort_by_key(|path| std::cmp::Reverse(std::fs::metadata(path).unwrap().len()));
    files
}

/// A wrong bit in the first blob of the largest pack: one of the files.
fn spoil(home: &Home) -> String {
    let pack = files(home, "repo/data").remove(0);
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes[40] ^= 1;
    std::fs::remove_file(&pack).unwrap();
    std::fs::write(&pack, bytes).unwrap();
    pack.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn transcripts_of_a_repair_of_the_index() {
    let home = with_repository();
    let mut text = home.ok(&["repair", "index"]).transcript();
    for index in files(&home, "repo/index") {
        std::fs::remove_file(index).unwrap();
    }
    assert_eq!(home.run(&["check", "--no-cache"]).code, 22);
    text += &home.ok(&["repair", "index", "--dry-run"]).transcript();
    assert_eq!(files(&home, "repo/index").len(), 0);
    text += &home.ok(&["repair", "index"]).transcript();
    home.ok(&["check", "--read-data"]);
    let spared = std::fs::read(files(&home, "repo/data").remove(0)).unwrap();
    let pack = files(&home, "repo/data").remove(0);
    std::fs::remove_file(&pack).unwrap();
    text += &home.run(&["repair", "index", "--dry-run"]).transcript();
    let summary = home.run(&["repair", "index", "--json"]).summary();
    assert_eq!(
        (&summary["blobs_lost"], &summary["index_files_removed"]),
        (&3.into(), &1.into()),
        "{summary}"
    );
    // It is there again: its header says what is in it.
    std::fs::write(&pack, spared).unwrap();
    text += &home.ok(&["repair", "index", "--read-all-packs"]).transcript();
    home.ok(&["check", "--read-data"]);
    insta::assert_snapshot!(text);
}

#[test]
fn transcripts_of_a_repair_of_packs_and_snapshots() {
    let home = with_repository();
    let mut text = home.ok(&["repair", "packs"]).transcript();
    let pack = spoil(&home);
    assert_eq!(home.run(&["check", "--read-data"]).code, 22);
    text += &home.run(&["repair", "packs", "--dry-run"]).transcript();
    // It loses something, and nobody can be asked.
    text += &home.run(&["repair", "packs", &pack]).transcript();
    assert!(files(&home, "repo/data").iter().any(|file| file.ends_with(&pack)));
    text += &home.run(&["repair", "packs", &pack, "--yes"]).transcript();
    assert!(!files(&home, "repo/data").iter().any(|file| file.ends_with(&pack)));
    assert!(home.path("repo/cistern/damaged").join(&pack).exists());
    text += &home.run(&["repair", "packs", "12"]).transcript();
    text += &home.run(&["repair", "snapshots", "--dry-run"]).transcript();
    text += &home.run(&["repair", "snapshots"]).transcript();
    text += &home.run(&["repair", "snapshots", "--forget"]).transcript();
    text += &home.run(&["repair", "snapshots", "--forget", "--yes"]).transcript();
    text += &home.ok(&["repair", "snapshots"]).transcript();
    home.ok(&["check", "--read-data"]);
    let listed = home.ok(&["ls", "latest"]).out;
    assert_eq!(listed.matches(".repaired").count(), 1, "{listed}");
    let snapshots = &home.ok(&["snapshots", "--json"]).lines()[0];
    assert_eq!(snapshots.as_array().unwrap().len(), 1);
    assert_eq!(snapshots[0]["tags"], serde_json::json!(["repaired", "partial"]));
    // Which of the files is lost depends on the order of the blobs.
    insta::assert_snapshot!(regex::Regex::new("/[abc]\n").unwrap().replace_all(&text, "/<file>\n"));
}

#[test]
fn repairs_speak_json() {
    let home = with_repository();
    let pack = spoil(&home);
    let run = home.run(&["repair", "packs", "--json", "--yes"]);
    assert_eq!(run.code, 3, "{}", run.transcript());
    let lines = run.lines();
    let of = |kind: &str| lines.iter().find(|line| line["message_type"] == kind).unwrap();
    assert_eq!((&of("pack")["id"], &of("pack")["blobs_saved"]), (&pack.into(), &2.into()));
    assert_eq!(of("pack")["lost"][0]["type"], "data");
    assert_eq!((&run.summary()["packs_removed"], &run.summary()["blobs_lost"]), (&1.into(), &1.into()));
    let run = home.run(&["repair", "snapshots", "--json"]);
    assert_eq!(run.code, 3, "{}", run.transcript());
    let lines = run.lines();
    let broken = lines.iter().find(|line| line["message_type"] == "snapshot").unwrap();
    assert_eq!((&broken["remedy"], &broken["files_lost"]), (&"rewrite".into(), &1.into()));
    assert_eq!(run.summary()["written"][0]["original"], broken["id"]);
    assert_eq!(home.ok(&["snapshots", "--json"]).lines()[0].as_array().unwrap().len(), 2);
}
