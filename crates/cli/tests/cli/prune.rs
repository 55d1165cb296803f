//! What snapshots no longer need goes; what is damaged is told, with the paths that it harms.

use std::fs;
use std::path::PathBuf;

use cistern_testkit::{seed, tools};

use crate::home::Home;

fn noise(seed_value: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    seed(seed_value).random().fill(&mut bytes);
    bytes
}

/// Three snapshots, each with something of its own.
fn three_snapshots() -> Home {
    let home = Home::new();
    let repository = home.path("repo").display().to_string();
    let home = home.with("RESTIC_REPOSITORY", repository).with("RESTIC_PASSWORD", "geheim");
    home.ok(&["init"]);
    for n in 0..3 {
        home.write("data/always", noise(1, 300_000));
        home.write("data/changes", noise(10 + n, 200_000));
        home.ok(&["backup", "data"]);
    }
    home
}

fn packs(home: &Home) -> Vec<PathBuf> {
    let folders = fs::read_dir(home.path("repo/data")).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

#[test]
fn space_is_freed_and_a_dry_run_announces_it() {
    let home = three_snapshots();
    let text = home.ok(&["prune", "--max-unused", "0"]).transcript();
    assert!(text.contains("nothing to prune"), "{text}");
    let before = packs(&home).len();
    // What it would be, before anything is removed.
    let dry =
        home.ok(&["forget", "--keep-last", "1", "--prune", "--max-unused", "0", "--dry-run"]).transcript();
    for part in ["1 kept, 2 would go", "unused      ", "that nobody needs", "dry run: nothing was changed"] {
        assert!(dry.contains(part), "{part}: {dry}");
    }
    assert_eq!(packs(&home).len(), before);
    let report = home.ok(&["forget", "--keep-last", "1", "--prune", "--max-unused", "0", "--json"]).summary();
    assert_eq!(report["removed"], 2);
    let pruned = &report["prune"];
    assert!(pruned["unused"]["count"].as_u64().unwrap() >= 6, "{pruned}");
    assert_eq!(pruned["done"]["packs_left"], 0, "{pruned}");
    assert!(pruned["bytes_freed"].as_u64().unwrap() > 390_000, "{pruned}");
    assert!(packs(&home).len() < before);
    home.ok(&["check", "--read-data"]);
    home.ok(&["restore", "latest", "--to", "out"]);
    assert_eq!(
        fs::read(home.path("out").join(home.path("data/changes").strip_prefix("/").unwrap())).unwrap(),
        noise(12, 200_000)
    );
    let restic = home.program(&tools::restic().unwrap(), &["check", "--read-data"]);
    assert!(restic.code == 0, "{}", restic.transcript());
    let text = home.ok(&["prune", "--repack-small"]).transcript();
    assert!(text.contains("nothing to prune") || text.contains("pruned"), "{text}");
}

#[test]
fn what_restic_left_is_pruned_as_well() {
    let home = three_snapshots();
    let restic = home.program(&tools::restic().unwrap(), &["forget", "--keep-last", "1"]);
    assert!(restic.code == 0, "{}", restic.transcript());
    let report = home.ok(&["prune", "--json"]).summary();
    assert_eq!(report["message_type"], "summary");
    assert!(report["done"]["packs_deleted"].as_u64().unwrap() > 0, "{report}");
    let requests = &report["repository_requests"];
    assert!(requests["delete"].as_u64().unwrap() > 0, "{requests}");
    home.ok(&["check", "--read-data"]);
}

#[test]
fn a_missing_pack_stops_a_prune_and_a_check_says_what_it_harms() {
    let home = three_snapshots();
    home.ok(&["forget", "latest~1"]);
    let largest = packs(&home).into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let kept = fs::read(&largest).unwrap();
    fs::remove_file(&largest).unwrap();
    let before = packs(&home).len();
    let run = home.run(&["prune"]);
    let text = run.transcript();
    assert!(run.code == 22 && text.contains("does not exist") && text.contains("hint:"), "{text}");
    assert_eq!(packs(&home).len(), before);
    let run = home.run(&["check"]);
    let text = run.transcript();
    assert!(run.code == 22 && text.contains("endangers snapshots"), "{text}");
    assert!(text.contains("/data/always"), "{text}");
    let findings = home.run(&["check", "--json"]).lines();
    let finding = findings.iter().find(|line| line["message_type"] == "finding").unwrap();
    assert_eq!(finding["kind"], "missing-pack");
    assert_eq!(finding["endangers"].as_array().unwrap().len(), 2);
    fs::write(&largest, kept).unwrap();
    home.ok(&["prune"]);
    home.ok(&["check"]);
}

#[test]
fn a_check_reads_the_part_that_it_is_told() {
    let home = three_snapshots();
    let damaged = packs(&home).into_iter().max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[1000] ^= 1;
    fs::remove_file(&damaged).unwrap();
    fs::write(&damaged, bytes).unwrap();
    home.ok(&["check"]);
    // Exactly one of the parts has it.
    let codes: Vec<_> =
        ["1/3", "2/3", "3/3"].map(|part| home.run(&["check", "--read-data-subset", part]).code).into();
    assert_eq!(codes.iter().filter(|code| **code == 22).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 2, "{codes:?}");
    assert_eq!(home.run(&["check", "--read-data-subset", "100%"]).code, 22);
    assert_eq!(home.run(&["check", "--read-data-subset", "1T"]).code, 22);
    let text = home.run(&["check", "--read-data"]).transcript();
    assert!(text.contains("/data/always") || text.contains("/data/changes"), "{text}");
}

#[test]
fn what_makes_no_sense_is_two() {
    let home = three_snapshots();
    for arguments in [
        &["prune", "--max-unused", "some"][..],
        &["prune", "--max-unused", "120%"],
        &["prune", "--grace=-1h"],
        &["check", "--read-data-subset", "4/3"],
        &["check", "--read-data-subset", "0%"],
        &["check", "--read-data", "--read-data-subset", "5%"],
    ] {
        let run = home.run(arguments);
        assert_eq!(run.code, 2, "{}", run.transcript());
    }
}
