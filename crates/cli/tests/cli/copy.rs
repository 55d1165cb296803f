//! `cistern copy` between two repositories with passwords of their own, and the shell of a restic user who copies.

use cistern_testkit::tools;

use crate::home::{Home, Run};

/// A repository `old` with two snapshots, and the password and place of another one.
fn two_repositories() -> Home {
    let home = Home::new().with("CISTERN_PASSWORD", "anders").with("CISTERN_REPOSITORY", "old");
    home.ok(&["init"]);
    for contents in ["one", "two"] {
        home.write("data/a", contents);
        home.ok(&["backup", "data", "--tag", contents]);
    }
    home.write("anders.txt", "anders\n");
    home.with("CISTERN_PASSWORD", "geheim").with("CISTERN_REPOSITORY", "new")
}

/// Nothing that was printed holds a password.
fn silent(run: Run) -> Run {
    for secret in ["geheim", "anders"] {
        let hidden = run.transcript().replace("anders.txt", "");
        assert!(!hidden.contains(secret), "{hidden}");
    }
    run
}

const FROM: [&str; 4] = ["--from-repo", "old", "--from-password-file", "anders.txt"];

fn with_from<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().chain(&FROM).copied().collect()
}

#[test]
fn a_copy_says_what_it_did_and_the_second_one_that_there_is_nothing_to_do() {
    let home = two_repositories();
    silent(home.ok(&with_from(&["init", "--copy-chunker-params"])));
    let dry = silent(home.ok(&with_from(&["copy", "latest", "-n"]))).transcript();
    assert!(dry.contains("<short> would be copied") && dry.contains("dry run: 1 snapshot with"), "{dry}");
    let first = silent(home.ok(&with_from(&["copy", "latest"]))).transcript();
    assert!(first.contains("<short> copied as <short>\ncopied 1 snapshot with"), "{first}");
    assert!(!first.contains("cut files"), "{first}");
    let rest = silent(home.ok(&with_from(&["copy", "--json"]))).summary();
    assert_eq!((&rest["skipped"], rest["copied"].as_array().unwrap().len()), (&1.into(), 1), "{rest}");
    let again = silent(home.ok(&with_from(&["copy"]))).transcript();
    assert!(again.contains("2 snapshots there already\nnothing to copy"), "{again}");
    home.ok(&["check", "--read-data"]);
    // What is copied saves the next backup everything.
    let next = home.ok(&["backup", "data", "--json", "--force"]).summary();
    assert_eq!(next["stored"]["data_blobs"], 0, "{next}");
    home.ok(&["restore", "latest", "--to", "out"]);
    assert_eq!(
        std::fs::read(home.path("out").join(&home.path("data/a").display().to_string()[1..])).unwrap(),
        b"two"
    );
}

#[test]
fn the_shell_of_a_restic_user_who_copies_works_as_it_is() {
    let restic = tools::restic().unwrap();
    let home = two_repositories().without("CISTERN_REPOSITORY").without("CISTERN_PASSWORD");
    home.write("place.txt", "old\n");
    let home = home
        .with("RESTIC_REPOSITORY", "new")
        .with("RESTIC_PASSWORD", "geheim")
        .with("RESTIC_FROM_REPOSITORY_FILE", "place.txt")
        .with("RESTIC_FROM_PASSWORD_COMMAND", "cat anders.txt");
    silent(home.ok(&["init", "--copy-chunker-params"]));
    assert_eq!(silent(home.ok(&["copy", "--json"])).summary()["copied"].as_array().unwrap().len(), 2);
    let theirs = home.program(&restic, &["copy", "--json"]);
    assert_eq!(theirs.code, 0, "{}", theirs.transcript());
    assert_eq!(home.ok(&["snapshots", "--json"]).lines()[0].as_array().unwrap().len(), 2);
    assert_eq!(home.program(&restic, &["check", "--read-data"]).code, 0);
    // Our own variables come first, flags before them.
    let home = home.with("CISTERN_FROM_REPOSITORY", "absent");
    assert_eq!(silent(home.run(&["copy"])).code, 10);
    let home = home.with("CISTERN_FROM_PASSWORD", "wrong");
    let home = home.without("RESTIC_FROM_PASSWORD_COMMAND").without("RESTIC_FROM_REPOSITORY_FILE");
    assert_eq!(silent(home.run(&["copy", "--from-repo", "old"])).code, 12);
    assert_eq!(silent(home.ok(&with_from(&["copy", "--json"]))).summary()["skipped"], 2);
}

#[test]
fn what_people_do_wrong_is_named() {
    let home = two_repositories();
    home.ok(&["init"]);
    let wrong = |arguments: &[&str], code: i32, word: &str| {
        let run = silent(home.run(arguments));
        assert!(run.code == code && run.err.contains(word), "{word}: {}", run.transcript());
    };
    wrong(&["copy"], 2, "CISTERN_FROM_REPOSITORY");
    wrong(&["copy", "--from-repo", "old"], 2, "CISTERN_FROM_PASSWORD_FILE");
    wrong(&with_from(&["copy", "--repo", "old"]), 2, "into itself");
    wrong(&with_from(&["copy", "abcdef12"]), 20, "abcdef12");
    wrong(&with_from(&["copy", "--from-key-hint", "x"]), 2, "--from-key-hint x is no id");
    wrong(&with_from(&["init", "--repo", "third"]), 2, "--copy-chunker-params");
    let told = silent(home.ok(&with_from(&["copy"])));
    assert!(told.transcript().contains("--copy-chunker-params"), "{}", told.transcript());
}

#[test]
fn what_is_damaged_is_named_and_the_exit_code_is_3() {
    let home = two_repositories();
    home.ok(&["init"]);
    home.ok(&with_from(&["copy"]));
    // Everything of a third snapshot that the first two do not hold.
    let packs = || -> Vec<_> {
        let folders = std::fs::read_dir(home.path("old/data")).unwrap();
        let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
        files.map(|file| file.unwrap().path()).collect()
    };
    let before = packs();
    home.write("data/b", "three");
    let old = ["--repo", "old", "--password-file", "anders.txt"];
    home.ok(&[&["backup", "data"], &old[..]].concat());
    for pack in packs().into_iter().filter(|pack| !before.contains(pack)) {
        std::fs::remove_file(pack).unwrap();
    }
    let run = silent(home.run(&with_from(&["copy"])));
    let text = run.transcript();
    assert!(run.code == 3 && text.contains("<short> not copied: ") && text.contains("hint: "), "{text}");
    assert!(text.contains("one snapshot is damaged in the source, and was not copied"), "{text}");
    home.ok(&["check", "--read-data"]);
}
