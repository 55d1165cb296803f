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
    home.write("data/a", "one");
    home.write("data/deep/b", "two");
    let data = home.path("data").display().to_string();
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
    assert_eq!(theirs["data_blobs"], 0, "{theirs}");

    let check = home.program(&restic, &["check", "--read-data"]);
    assert_eq!(check.code, 0, "{}", check.transcript());
    home.ok(&["restore", "latest", "--to", "out"]);
    assert_eq!(std::fs::read(home.path("out").join(&data[1..]).join("deep/b")).unwrap(), b"two");
}
