//! Snapshots are removed by name and by rule, and the reason is told.

use crate::home::Home;

fn three_snapshots() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    for contents in ["one", "two", "three"] {
        home.write("data/a", contents);
        home.ok(&["backup", "data", "--tag", contents]);
    }
    home
}

fn ids(home: &Home) -> Vec<String> {
    let all = home.ok(&["snapshots", "--json"]).lines();
    all[0].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn rules_say_why_and_a_dry_run_removes_nothing() {
    let home = three_snapshots();
    let before = ids(&home);
    let dry = home.ok(&["forget", "--keep-last", "1", "--keep-tag", "one", "--dry-run"]).transcript();
    for part in ["2 kept, 1 would go", "has tags [one]", "last snapshot", "would remove", "no rule keeps it"]
    {
        assert!(dry.contains(part), "{part}: {dry}");
    }
    assert!(dry.contains("dry run: nothing was removed"), "{dry}");
    assert_eq!(ids(&home), before);
    let report = home.ok(&["forget", "--keep-last", "1", "--keep-tag", "one", "--json"]).summary();
    assert_eq!((&report["removed"], &report["dry_run"]), (&1.into(), &false.into()), "{report}");
    let runs = report["groups"][0]["runs"].as_array().unwrap();
    let kept: Vec<_> = runs.iter().map(|run| run["keep"].as_bool().unwrap()).collect();
    assert_eq!(kept, [true, false, true]);
    assert_eq!(runs[1]["parts"][0], before[1]);
    assert_eq!(runs[2]["reasons"][0], "last snapshot");
    assert_eq!(ids(&home), [before[0].clone(), before[2].clone()]);
    let text = home.ok(&["forget", "latest"]).transcript();
    assert!(text.contains("it was named") && text.contains("removed 1 snapshot;"), "{text}");
    assert_eq!(ids(&home), [before[0].clone()]);
    home.ok(&["check", "--read-data"]);
}

#[test]
fn what_says_nothing_or_too_much_is_refused() {
    let home = three_snapshots();
    for (arguments, word) in [
        (&["forget"][..], "nothing says what to forget"),
        (&["forget", "--unsafe-allow-remove-all"], "say of which host"),
        (&["forget", "--keep-tag", "nope"], "keep no snapshot"),
        (&["forget", "--keep-daily", "many"], "unlimited"),
        (&["forget", "--keep-within", "3weeks"], "1y6m14d12h"),
        (&["forget", "--keep-last", "1", "--group-by", "size"], "host, paths and tags"),
        (&["forget", "latest:data"], "as a whole"),
    ] {
        let run = home.run(arguments);
        let text = run.transcript();
        assert!(run.code == 2 && text.contains(word), "{word}: {text}");
    }
    assert_eq!(home.run(&["forget", "abcdef12"]).code, 20);
    assert_eq!(ids(&home).len(), 3);
    let report = home.ok(&["forget", "--unsafe-allow-remove-all", "--tag", "two", "--json"]).summary();
    assert_eq!(report["removed"], 1);
}
