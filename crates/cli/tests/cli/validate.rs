//! `cistern validate`: one line for each thing that is wrong, and an exit code for scripts.

use std::io::Write;
use std::process::Stdio;

use crate::home::Home;

const CONFIGURATION: &str = r#"
apiVersion: core.kubestash.com/v1alpha1
kind: BackupConfiguration
metadata: {name: backup, namespace: demo}
spec:
  target: {kind: PersistentVolumeClaim, name: data}
  backends: [{name: s3, storageRef: {name: storage}, retentionPolicy: {name: policy}}]
  sessions:
    - name: hourly
      scheduler: {schedule: "0 * * * *"}
      repositories: [{name: repository, backend: s3, directory: /data, encryptionSecret: {name: secret}}]
      addon: {name: pvc-addon, tasks: [{name: logical-backup}]}
"#;

#[test]
fn the_examples_pass_and_say_what_they_lack() {
    let home = Home::new();
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/object-storage");
    let run = home.ok(&["validate", examples]);
    assert!(run.out.contains("nothing wrong"), "{}", run.transcript());
    assert!(run.err.contains("there is no Repository demo/orders-repository"), "{}", run.transcript());
    let strict = home.run(&["validate", "--strict", examples]);
    assert_eq!(strict.code, 2, "{}", strict.transcript());
}

#[test]
fn everything_that_is_wrong_is_one_line() {
    let home = Home::new();
    home.write("good.yaml", CONFIGURATION);
    home.write("bad/a.yaml", CONFIGURATION.replace("0 * * * *", "every hour").replace("hourly", "Hourly"));
    home.write("bad/b.yaml", "apiVersion: v1\nkind: [\n");
    home.write("bad/notes.txt", "not a manifest");
    home.ok(&["validate", "good.yaml"]);
    let run = home.run(&["validate", "bad", "good.yaml"]);
    assert_eq!(run.code, 2, "{}", run.transcript());
    let lines: Vec<_> = run.out.lines().collect();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("bad/a.yaml:1 BackupConfiguration/backup: spec.sessions[0].name: ")),
        "{}",
        run.transcript()
    );
    for start in
        ["bad/a.yaml:1 BackupConfiguration/backup: spec.sessions[0].scheduler.schedule: ", "bad/b.yaml:1: "]
    {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}: {}", run.transcript());
    }

    let json = home.run(&["validate", "--json", "bad", "good.yaml"]);
    assert_eq!(json.code, 2);
    let all = json.lines();
    let (last, rest) = all.split_last().unwrap();
    assert_eq!(last["message_type"], "summary");
    let problems: Vec<_> = rest.iter().filter(|line| line["message_type"] == "problem").collect();
    assert_eq!(last["problems"], problems.len());
    assert!(problems.iter().any(|one| one["path"] == "spec.sessions[0].scheduler.schedule"));
}

#[test]
fn standard_input_is_read() {
    let home = Home::new();
    let mut child = home
        .command(&["validate", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(CONFIGURATION.replace("/data,", "/,").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        out.starts_with("-:1 BackupConfiguration/backup: spec.sessions[0].repositories[0].directory: "),
        "{out}"
    );
}

#[test]
fn nothing_to_look_at_is_an_error() {
    let home = Home::new();
    home.write("other.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n");
    assert_eq!(home.run(&["validate", "other.yaml"]).code, 2);
    assert_eq!(home.run(&["validate", "--json", "other.yaml"]).code, 2);
    assert_eq!(home.run(&["validate", "none.yaml"]).code, 20);
    std::fs::create_dir(home.path("empty")).unwrap();
    assert_eq!(home.run(&["validate", "empty"]).code, 2);
    assert_eq!(home.run(&["validate"]).code, 2);
}
