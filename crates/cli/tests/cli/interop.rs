//! A restic user's shell and repository, with Cistern in the middle.

use cistern_testkit::tools;

use crate::home::Home;

fn restic_home() -> Home {
    let home = Home::new().without("CISTERN_REPOSITORY").without("CISTERN_PASSWORD");
    let repository = home.path("repo").display().to_string();
    home.with("RESTIC_REPOSITORY", repository).with("RESTIC_PASSWORD", "geheim")
}

#[test]
fn the_shell_of_a_restic_user_works_as_it_is() {
    let restic = tools::restic().unwrap();
    let home = restic_home();
    // Trees hold the times of the directories above the source: not in the home, which restic itself writes to, and
    // not in /tmp, which everybody writes to.
    let place = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::create_dir_all(place.path().join("data/deep")).unwrap();
    std::fs::write(place.path().join("data/a"), "one").unwrap();
    std::fs::write(place.path().join("data/deep/b"), "two").unwrap();
    let data = place.path().join("data").display().to_string();
    assert_eq!(home.program(&restic, &["init"]).code, 0);
    assert_eq!(home.program(&restic, &["backup", &data]).code, 0);

    let ours = home.ok(&["backup", &data, "--json"]).summary();
    assert_eq!(ours["objects_unchanged"], 2, "{ours}");
    assert_eq!(
        (&ours["stored"]["data_blobs"], &ours["stored"]["tree_blobs"]),
        (&0.into(), &0.into()),
        "{ours}"
    );

    let run = home.program(&restic, &["backup", &data, "--json"]);
    let theirs: serde_json::Value = serde_json::from_str(run.out.lines().last().unwrap()).unwrap();
    assert_eq!((&theirs["data_blobs"], &theirs["tree_blobs"]), (&0.into(), &0.into()), "{theirs}");

    let check = home.program(&restic, &["check", "--read-data"]);
    assert_eq!(check.code, 0, "{}", check.transcript());
    home.ok(&["restore", "latest", "--to", "out"]);
    assert_eq!(std::fs::read(home.path("out").join(&data[1..]).join("deep/b")).unwrap(), b"two");
}

#[test]
fn a_password_file_means_the_same_to_both() {
    let restic = tools::restic().unwrap();
    let home = restic_home().without("RESTIC_PASSWORD");
    for (name, text) in [
        ("plain", &b"geheim"[..]),
        ("lines", b"two words\nand a line\r\n"),
        ("blanks", b"  geheim \n\n"),
        ("marked", b"\xef\xbb\xbfgeheim\n"),
    ] {
        let file = home.write(name, text).display().to_string();
        let repository = home.path(&format!("repo-{name}")).display().to_string();
        home.ok(&["init", "--repo", &repository, "--password-file", &file]);
        let check = home.program(&restic, &["--repo", &repository, "--password-file", &file, "check"]);
        assert_eq!(check.code, 0, "{name}: {}", check.transcript());
    }
}
