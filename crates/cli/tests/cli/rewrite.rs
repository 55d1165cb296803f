//! Snapshots are written anew as restic writes them.

use cistern_testkit::tools;
use serde_json::Value;

use crate::home::Home;

fn with_snapshot() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    for name in ["a.tmp", "a.txt", "deep/b.TMP", "deep/c.tmp", "deep/er/d.txt", "gone/e.tmp", "ü <&>.txt"] {
        home.write(&format!("data/{name}"), name.repeat(10));
    }
    home.ok(&["backup", "data"]);
    home
}

fn trees(run: &crate::home::Run) -> Vec<(String, Value, Value)> {
    let all: Vec<Value> = serde_json::from_str(run.out.lines().last().unwrap()).unwrap();
    let mut trees: Vec<_> = all
        .iter()
        .map(|one| {
            let counts = &one["summary"];
            let counts =
                serde_json::json!([counts["total_files_processed"], counts["total_bytes_processed"]]);
            (one["tree"].as_str().unwrap().to_owned(), counts, one["original"].clone())
        })
        .collect();
    trees.sort_by_key(|(tree, ..)| tree.clone());
    trees
}

#[test]
fn restic_and_we_write_the_same_trees() {
    let restic = tools::restic().unwrap();
    let home = with_snapshot().with("RESTIC_PASSWORD", "geheim");
    home.write("patterns", "# comment\n*.tmp\n");
    let data = home.path("data").display().to_string();
    let gone = format!("{data}/gone");
    let ours_alone = home.path("ours").display().to_string();
    for arguments in [
        &["--exclude", "*.tmp"][..],
        &["--iexclude", "*.tmp", "--exclude", "ü*"],
        &["--exclude-file", "patterns", "--forget"],
        &["--exclude", "deep/*", "--exclude", "!deep/er"],
        &["--exclude", &gone, "--forget"],
        &["--exclude", "*"],
        &["--exclude", "nothing"],
    ] {
        for name in ["ours", "theirs"] {
            let _ = std::fs::remove_dir_all(home.path(name));
            assert_eq!(home.program("/bin/cp".as_ref(), &["-r", "repo", name]).code, 0);
        }
        let theirs = ["--no-cache", "--repo", "theirs", "rewrite"];
        let run = home.program(&restic, &[&theirs, arguments].concat());
        assert_eq!(run.code, 0, "{}", run.transcript());
        home.ok(&[&["rewrite", "--repo", &ours_alone], arguments].concat());
        let see = |repository| {
            trees(&home.program(&restic, &["--no-cache", "--repo", repository, "snapshots", "--json"]))
        };
        assert_eq!(see("ours"), see("theirs"), "{arguments:?}");
        let check = home.program(&restic, &["--no-cache", "--repo", "ours", "check", "--read-data"]);
        assert_eq!(check.code, 0, "{arguments:?}: {}", check.transcript());
    }
}

#[test]
fn what_is_left_out_is_told() {
    let home = with_snapshot();
    let dry = home.ok(&["rewrite", "--exclude", "*.tmp", "--dry-run"]).transcript();
    assert!(dry.contains("<short> would lose 3 paths") && dry.contains("~/data/deep/c.tmp"), "{dry}");
    assert!(dry.contains("dry run: 1 snapshot would be written anew"), "{dry}");
    let text = home.ok(&["rewrite", "--exclude", "*.tmp", "--forget"]).transcript();
    assert!(text.contains("<short> written anew as <short> without 3 paths"), "{text}");
    assert!(text.contains("until the repository is pruned"), "{text}");
    let report = home.ok(&["rewrite", "--exclude", "*.tmp", "--json"]).summary();
    assert_eq!((&report["unchanged"], &report["removed"]), (&1.into(), &0.into()), "{report}");
    let listed = home.ok(&["ls", "latest"]).out;
    assert!(listed.contains("b.TMP") && !listed.contains("c.tmp"), "{listed}");
    for (arguments, word) in [
        (&["rewrite"][..], "--exclude"),
        (&["rewrite", "--exclude", "["], "malformed"),
        (&["rewrite", "--exclude", ""], "nothing says"),
        (&["rewrite", "latest:/data", "--exclude", "x"], "as a whole"),
    ] {
        let run = home.run(arguments);
        assert!(run.code == 2 && run.transcript().contains(word), "{word}: {}", run.transcript());
    }
    home.ok(&["check", "--read-data"]);
}
