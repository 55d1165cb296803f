//! Manifests: what is wrong with a bad one is named, all of it and with its field; what is right is taken as it is.
//!
//! `CISTERN_BLESS=1 cargo test -p cistern-api --test validate` writes the expected texts anew; read them before they stay.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use cistern_api::document::read;
use cistern_api::validate::{Validated, validate};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The YAML files of a folder, by name.
fn files(folder: &Path) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "yaml") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            all.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    all.sort();
    all
}

fn lines(found: &Validated) -> String {
    found.findings.iter().map(|finding| format!("{finding}\n")).collect()
}

/// The documents that the others refer to: a storage, a policy, Secrets, claims of two namespaces.
fn surroundings() -> (String, String) {
    ("world.yaml".into(), std::fs::read_to_string(folder("tests/world.yaml")).unwrap())
}

#[test]
fn the_surroundings_are_right() {
    let found = validate(&[surroundings()]);
    assert_eq!(lines(&found), "");
}

#[test]
fn whatever_is_wrong_is_named() {
    let bless = std::env::var_os("CISTERN_BLESS").is_some();
    let all = files(&folder("tests/invalid"));
    assert!(all.len() >= 40, "{} documents", all.len());
    let mut different = Vec::new();
    for (file, text) in all {
        let found = validate(&[surroundings(), (file.clone(), text)]);
        // Where two documents exclude each other, the other one is blamed, too.
        let said: String = lines(&found)
            .lines()
            .filter(|line| line.starts_with(&file))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(!said.is_empty(), "{file} is valid");
        let expected = folder("tests/invalid").join(&file).with_extension("err");
        if bless {
            std::fs::write(&expected, &said).unwrap();
        }
        let wanted = std::fs::read_to_string(&expected).unwrap_or_default();
        if said != wanted {
            different.push(format!("{file} says\n{said}and should say\n{wanted}"));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[test]
fn a_small_text_does_not_become_a_large_one() {
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (one, before) in "bcdefghij".chars().zip("abcdefghi".chars()) {
        bomb += &format!("{one}: &{one} [{}]\n", vec![format!("*{before}"); 10].join(", "));
    }
    let deep = "[".repeat(100_000);
    let documents = "---\na: 1\n".repeat(3);
    for (text, expected) in [(bomb.as_str(), 1), (deep.as_str(), 1), (documents.as_str(), 0)] {
        let started = std::time::Instant::now();
        let errors = read(text).iter().filter(|one| one.is_err()).count();
        assert_eq!(errors, expected);
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
    }
}

#[test]
fn what_follows_a_bad_document_is_looked_at() {
    let text = "a: 1\na: 2\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n";
    let all = read(text);
    assert_eq!(all.len(), 2);
    assert!(all[0].is_err() && all[1].as_ref().unwrap()["kind"] == "Namespace");
}

#[test]
fn a_list_is_what_it_holds() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- {kind: A}\n- {kind: B}\n";
    let all: Vec<Value> = read(text).into_iter().map(Result::unwrap).collect();
    assert_eq!(all, [serde_json::json!({ "kind": "A" }), serde_json::json!({ "kind": "B" })]);
}

#[test]
fn the_examples_are_right() {
    let mut examples = 0;
    for entry in std::fs::read_dir(folder("../../examples")).unwrap() {
        let found = validate(&files(&entry.unwrap().path()));
        // A restore names a Repository and a Snapshot that only a backup leaves behind.
        let wrong: Vec<_> = found.findings.iter().filter(|one| !one.problem.missing).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let missing: Vec<_> = found.findings.iter().map(|one| one.problem.path.as_str()).collect();
        assert_eq!(missing, ["spec.dataSource.repository"]);
        assert!(found.documents >= 4);
        examples += 1;
    }
    assert_eq!(examples, 1);
}

#[test]
fn published_manifests_are_taken_without_loss() {
    let all = files(&folder("tests/published"));
    assert_eq!(all.len(), 2);
    for (file, text) in all {
        let found = validate(&[(file.clone(), text.clone())]);
        let wrong: Vec<_> =
            found.findings.iter().filter(|one| !one.problem.missing).map(ToString::to_string).collect();
        // The one thing that is not there yet, where it is said and where it is used.
        assert!(!wrong.is_empty());
        for line in &wrong {
            assert!(line.contains("the provider gcs is not supported yet"), "{line}");
        }
        for value in read(&text).into_iter().map(Result::unwrap) {
            assert_eq!(round_trip(&value), value, "{file}");
        }
    }
}

/// The document as its Rust type holds it.
fn round_trip(value: &Value) -> Value {
    use cistern_api::kinds;
    fn through<T: serde::de::DeserializeOwned + serde::Serialize>(value: &Value) -> Value {
        let object: T = serde_json::from_value(value.clone()).unwrap();
        let mut after = serde_json::to_value(object).unwrap();
        without_defaults(&mut after, value);
        after
    }
    match value["kind"].as_str().unwrap() {
        "BackupStorage" => through::<kinds::BackupStorage>(value),
        "RetentionPolicy" => through::<kinds::RetentionPolicy>(value),
        "BackupConfiguration" => through::<kinds::BackupConfiguration>(value),
        "RestoreSession" => through::<kinds::RestoreSession>(value),
        _ => value.clone(),
    }
}

/// Takes away what the document did not say and a default filled in.
fn without_defaults(after: &mut Value, before: &Value) {
    match (after, before) {
        (Value::Object(after), Value::Object(before)) => {
            after.retain(|name, _| before.contains_key(name));
            for (name, value) in after.iter_mut() {
                without_defaults(value, &before[name]);
            }
        }
        (Value::Array(after), Value::Array(before)) => {
            after.iter_mut().zip(before).for_each(|(after, before)| without_defaults(after, before));
        }
        _ => {}
    }
}
