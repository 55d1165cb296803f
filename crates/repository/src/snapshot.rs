//! Snapshots: who saved which paths when, and the tree that was saved
//! (<https://restic.readthedocs.io/en/stable/100_references.html#snapshots>).

use serde::{Deserialize, Serialize};

use crate::json::{JsonResult, Scanner};
use crate::node::keep;
use crate::time::Time;
use crate::{Error, Id, Result};

/// A snapshot, in the order and with the omissions of restic 0.17 and newer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// When the backup began.
    pub time: Time,
    /// The snapshot that unchanged files were compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Id>,
    /// The root directory.
    pub tree: Id,
    /// What was saved, as absolute paths.
    #[serde(default, deserialize_with = "or_null")]
    pub paths: Vec<String>,
    /// The host that was saved; retention and parents go by it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    /// Who saved it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub username: String,
    /// Their user id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// Their group id.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
    /// Patterns of what was left out.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub excludes: Vec<String>,
    /// Words to find it by.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// The first id, if the snapshot was tagged or rewritten since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Id>,
    /// The program that wrote it, since restic 0.16.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub program_version: String,
    /// What the backup did, since restic 0.17.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// Members of other programs, as JSON text separated by commas; written again as they are by
    /// [`to_json`](Self::to_json).
    #[serde(skip)]
    pub other: String,
}

/// Counts of a backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the names are restic's and say it all")]
pub struct Summary {
    pub backup_start: Time,
    pub backup_end: Time,
    pub files_new: u64,
    pub files_changed: u64,
    pub files_unmodified: u64,
    pub dirs_new: u64,
    pub dirs_changed: u64,
    pub dirs_unmodified: u64,
    pub data_blobs: u64,
    pub tree_blobs: u64,
    /// Plain bytes of new blobs.
    pub data_added: u64,
    /// Stored bytes of new blobs.
    pub data_added_packed: u64,
    pub total_files_processed: u64,
    pub total_bytes_processed: u64,
    /// Members of other programs, as in a snapshot.
    #[serde(skip)]
    pub other: String,
}

/// Members of a snapshot that this program knows.
const KNOWN: [&[u8]; 13] = [
    b"time",
    b"parent",
    b"tree",
    b"paths",
    b"hostname",
    b"username",
    b"uid",
    b"gid",
    b"excludes",
    b"tags",
    b"original",
    b"program_version",
    SUMMARY,
];
const SUMMARY: &[u8] = b"summary";
/// Members of a summary that this program knows.
const KNOWN_OF_SUMMARY: [&[u8]; 14] = [
    b"backup_start",
    b"backup_end",
    b"files_new",
    b"files_changed",
    b"files_unmodified",
    b"dirs_new",
    b"dirs_changed",
    b"dirs_unmodified",
    b"data_blobs",
    b"tree_blobs",
    b"data_added",
    b"data_added_packed",
    b"total_files_processed",
    b"total_bytes_processed",
];

/// The text of the members that are not `known`. `look` is called with the members that are, before their values.
fn others(
    scanner: &mut Scanner<'_>,
    known: &[&[u8]],
    mut look: impl FnMut(Scanner<'_>, &[u8]) -> JsonResult<()>,
) -> JsonResult<String> {
    let mut others = Vec::new();
    let mut before = scanner.position();
    scanner.object(|scanner, key| {
        if known.contains(&key) {
            look(scanner.clone(), key)?;
            scanner.skip()?;
        } else {
            scanner.skip()?;
            keep(&mut others, scanner.since(before));
        }
        before = scanner.position();
        Ok(())
    })?;
    // What is no UTF-8 is refused when the rest is read.
    Ok(String::from_utf8(others).unwrap_or_default())
}

impl Snapshot {
    /// A snapshot of `tree`, taken of `paths` at `time`, with nothing else said.
    pub fn new(time: Time, tree: Id, paths: Vec<String>) -> Self {
        Snapshot {
            time,
            parent: None,
            tree,
            paths,
            hostname: String::new(),
            username: String::new(),
            uid: 0,
            gid: 0,
            excludes: Vec::new(),
            tags: Vec::new(),
            original: None,
            program_version: String::new(),
            summary: None,
            other: String::new(),
        }
    }

    /// Reads a snapshot.
    pub fn parse(json: &[u8]) -> Result<Self> {
        let mut of_summary = String::new();
        let other = others(&mut Scanner::new(json), &KNOWN, |mut scanner, key| {
            if key == SUMMARY && !scanner.take_null() {
                of_summary = others(&mut scanner, &KNOWN_OF_SUMMARY, |_, _| Ok(()))?;
            }
            Ok(())
        });
        // Text is kept as it is, and never as values: those of a few bytes each would take many times as much memory.
        let mut snapshot: Snapshot =
            serde_json::from_slice(json).map_err(|error| Error::damaged("snapshot", error.to_string()))?;
        snapshot.other = other.map_err(|error| error.of("snapshot"))?;
        if let Some(summary) = &mut snapshot.summary {
            summary.other = of_summary;
        }
        Ok(snapshot)
    }

    /// The snapshot as JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec(self).expect("a snapshot has string keys only");
        let mut append = |others: &str, braces: usize| {
            if !others.is_empty() {
                json.truncate(json.len() - braces);
                json.push(b',');
                json.extend_from_slice(others.as_bytes());
                json.extend(std::iter::repeat_n(b'}', braces));
            }
        };
        // The summary is the last member.
        append(self.summary.as_ref().map_or("", |summary| &summary.other), 2);
        append(&self.other, 1);
        json
    }
}

fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Go writes an empty list as `null`.
fn or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_keeps_its_place_and_unknown_ones_are_not_lost() {
        let id = Id::of(b"tree");
        let json = r#"{"time":"2026-11-22T17:43:31.123456789+01:00","parent":"ID","tree":"ID","paths":["/data"],"hostname":"host-0","username":"root","uid":1000,"gid":100,"excludes":["*.tmp"],"tags":["a","b"],"original":"ID","program_version":"restic 0.19.1","summary":{"backup_start":"2026-11-22T17:43:31Z","backup_end":"2026-11-22T17:43:32Z","files_new":1,"files_changed":2,"files_unmodified":3,"dirs_new":4,"dirs_changed":5,"dirs_unmodified":6,"data_blobs":7,"tree_blobs":8,"data_added":9,"data_added_packed":10,"total_files_processed":11,"total_bytes_processed":12,"later":[1,2]},"delete":{"x":null},"description":"by another program"}"#
            .replace("ID", &id.to_string());
        let snapshot = Snapshot::parse(json.as_bytes()).unwrap();
        assert_eq!(snapshot.summary.as_ref().unwrap().data_added_packed, 10);
        assert_eq!(String::from_utf8(snapshot.to_json()).unwrap(), json);
    }

    #[test]
    fn what_is_empty_is_left_out() {
        let id = Id::of(b"tree");
        let snapshot = Snapshot::new(Time::new(0, 0), id, vec![]);
        let json = format!(r#"{{"time":"1970-01-01T00:00:00Z","tree":"{id}","paths":[]}}"#);
        assert_eq!(String::from_utf8(snapshot.to_json()).unwrap(), json);
        let nulls = format!(
            r#"{{"time":"1970-01-01T00:00:00Z","tree":"{id}","paths":null,"tags":null,"summary":null}}"#
        );
        assert_eq!(Snapshot::parse(nulls.as_bytes()).unwrap(), snapshot);
    }

    #[test]
    fn damage_is_named() {
        for json in ["", "[]", "{}", r#"{"time":"yesterday","tree":"00","paths":[]}"#] {
            assert!(
                Snapshot::parse(json.as_bytes())
                    .unwrap_err()
                    .to_string()
                    .starts_with("snapshot is damaged: ")
            );
        }
        // A million values take no more memory than their text.
        let id = Id::of(b"tree");
        let many = format!(
            r#"{{"time":"1970-01-01T00:00:00Z","tree":"{id}","paths":[],"x":[{}1]}}"#,
            "[],".repeat(1_000)
        );
        assert_eq!(Snapshot::parse(many.as_bytes()).unwrap().other.len(), 5 + 3 * 1_000 + 2);
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        assert!(Snapshot::parse(deep.as_bytes()).is_err());
    }
}
