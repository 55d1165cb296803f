//! What the program says of itself: help, completions, the manual, the demo.

use crate::home::Home;

#[test]
fn the_help_lists_only_what_works() {
    let home = Home::new();
    insta::assert_snapshot!(home.ok(&["--help"]).transcript());
    insta::assert_snapshot!(home.ok(&["backup", "--help"]).transcript());
    insta::assert_snapshot!(home.ok(&["restore", "--help"]).transcript());
}

#[test]
fn completions_and_manual_are_generated() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(home.ok(&["completions", shell]).out.contains("cistern"));
    }
    let manual = home.ok(&["man"]).out;
    assert!(manual.starts_with(".ie") && manual.contains("CISTERN RESTORE"), "{}", &manual[..200]);
}

#[test]
fn transcripts_of_a_first_day() {
    let home = Home::new();
    let mut day = home.ok(&["init"]).transcript();
    home.write("data/a", "one");
    for command in [
        &["backup", "data"][..],
        &["backup", "data"],
        &["snapshots"],
        &["ls", "latest", "--long"],
        &["restore", "latest", "--to", "out", "--dry-run"],
        &["restore", "latest", "--to", "out"],
        &["check"],
        &["stats"],
        &["restore", "nope", "--to", "out"],
    ] {
        day += &home.run(command).transcript();
    }
    // How many bytes a repository takes depends on the time in its files; what lies above the home and how wide a
    // column is, on the machine.
    let unstable = ["stored ", "read ", "contents ", "unique "];
    let above = home.path("").parent().unwrap().display().to_string();
    let stable: Vec<&str> = day
        .lines()
        .filter(|line| !unstable.iter().any(|word| line.starts_with(word)))
        .filter(|line| line.rsplit(' ').next().is_none_or(|path| path.is_empty() || !above.starts_with(path)))
        .map(str::trim_end)
        .collect();
    let text = stable.join("\n").replace(&hostname(), "<host>");
    insta::assert_snapshot!(regex::Regex::new(" {2,}").unwrap().replace_all(&text, "  "));
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned()
}

#[test]
fn the_demo_ends_with_everything_equal() {
    let home = Home::new();
    let steps = home.ok(&["demo", "--json", "--objects", "400"]).lines();
    let unchanged = steps.iter().find(|s| s["step"] == "unchanged").unwrap();
    assert!(unchanged["requests"].get("get").is_none(), "{unchanged}");
    assert_eq!(steps.last().unwrap()["equal"], true);
}
