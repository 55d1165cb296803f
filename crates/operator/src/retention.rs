//! What a retention policy takes out of Repositories after a run: the plan for one Job, and the removal of what it forgot.
//!
//! Which Snapshots are stale is decided by [`cistern_api::retention`]. The Job that forgets their data carries their names
//! in an annotation, so that exactly those are removed afterwards, by whichever operator is there then.

use std::collections::BTreeMap;

use cistern_api::job::{ForgetPlace, Outcome};
use cistern_api::kinds::backup_session::{RetentionPolicyLine, RetentionPolicyPhase};
use cistern_api::kinds::snapshot::{Snapshot, SnapshotPhase};
use kube::ResourceExt;

use crate::controller::Failure;
use crate::destination::Destination;
use crate::snapshot::restic_snapshots;

/// Annotation of a retention Job: the Snapshots whose data it forgets, separated by commas.
pub(crate) const FORGETS: &str = "cistern.dev/forgets";
/// Most Snapshots that one Job forgets; the next run goes on. So their names fit into an annotation.
pub(crate) const MOST: usize = 500;
/// Words of the engine's error about a source that lost more than it may: a person has to look at it.
const SHRANK: &str = "shrank from";

/// Whether retention of a session's Snapshots has to wait: the newest one was refused because its source shrank, and the
/// older ones may be all that is left.
pub(crate) fn is_frozen(snapshots: &[Snapshot], session: Option<&str>) -> bool {
    newest_first(snapshots, session).first().is_some_and(|one| is_refused(one))
}

/// Whether a person's word accepts that the source shrank: it names a BackupSession that was refused since the last success.
pub(crate) fn accepts_shrink(snapshots: &[Snapshot], session: Option<&str>, named: &str) -> bool {
    let newest_first = newest_first(snapshots, session);
    let mut refused = newest_first.into_iter().take_while(|one| is_refused(one));
    refused.any(|one| one.spec.backup_session.as_deref() == Some(named))
}

/// The Snapshots of a session that are over.
fn newest_first<'a>(snapshots: &'a [Snapshot], session: Option<&str>) -> Vec<&'a Snapshot> {
    let phase = |one: &Snapshot| one.status.as_ref().and_then(|status| status.phase);
    let over = |one: &Snapshot| phase(one).is_some_and(SnapshotPhase::is_over);
    let mine = snapshots.iter().filter(|one| one.spec.session.as_deref() == session && over(one));
    let mut all: Vec<_> = mine.collect();
    all.sort_by_key(|one| std::cmp::Reverse(one.taken().map(|time| time.0)));
    all
}

fn is_refused(snapshot: &Snapshot) -> bool {
    let mut parts = snapshot.status.iter().flat_map(|status| status.components.values());
    parts.any(|part| part.error.as_deref().is_some_and(|error| error.contains(SHRANK)))
}

/// What is to be forgotten in a Repository, by folder of the component; `credentials` names the folder of its keys.
///
/// # Errors
/// The storage cannot be used.
pub(crate) fn places<'a>(
    destination: &Destination,
    stale: impl IntoIterator<Item = &'a Snapshot>,
    credentials: &str,
) -> Result<Vec<ForgetPlace>, Failure> {
    let mut all = BTreeMap::<String, Vec<String>>::new();
    for (path, ids) in stale.into_iter().flat_map(restic_snapshots) {
        all.entry(path).or_default().extend(ids);
    }
    let repository = destination.repository.name_any();
    let place = |(path, snapshots): (String, Vec<String>)| {
        let place = destination.place(&path, credentials)?;
        Ok(ForgetPlace { repository: repository.clone(), snapshots, place })
    };
    all.into_iter().map(place).collect()
}

/// Why each of these Repositories was not cleaned; `None` is success. `error` is why the Job failed.
pub(crate) fn verdict(repository: &str, error: Option<&str>, outcome: Option<&Outcome>) -> Option<String> {
    let lines = outcome.map(|outcome| outcome.results.as_slice()).unwrap_or_default();
    let mut mine = lines.iter().filter(|line| line.name == repository).peekable();
    match (mine.peek(), error) {
        (None, error) => error.map(str::to_owned),
        // The Job failed, and not necessarily because of this one.
        (Some(_), _) => mine.find_map(|line| line.error.clone()),
    }
}

/// Notes what became of the policy of a Repository.
pub(crate) fn note(line: &mut RetentionPolicyLine, error: Option<String>) {
    line.phase = Some(match error {
        None => RetentionPolicyPhase::Applied,
        Some(_) => RetentionPolicyPhase::FailedToApply,
    });
    line.error = error;
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(session: &str, hour: u32, phase: &str, error: Option<&str>) -> Snapshot {
        let component = json!({ "phase": phase, "error": error });
        let snapshot = json!({
            "metadata": { "name": format!("{session}-{hour}") },
            "spec": { "repository": "repo", "session": session },
            "status": { "phase": phase, "snapshotTime": format!("2026-01-01T{hour:02}:00:00Z"), "components": { "dump": component } },
        });
        serde_json::from_value(snapshot).expect("a Snapshot")
    }

    /// What the engine says.
    fn shrank() -> String {
        let source_name = "/kubestash-data".to_owned();
        cistern_engine::Error::SourceShrunk { source_name, before: 10, now: 4 }.to_string()
    }

    #[test]
    fn nothing_goes_while_a_shrunken_source_is_refused() {
        let shrank = shrank();
        let shrank = Some(shrank.as_str());
        let refused = snapshot("a", 2, "Failed", shrank);
        let older = snapshot("a", 1, "Succeeded", None);
        assert!(is_frozen(&[older.clone(), refused.clone()], Some("a")));
        assert!(!is_frozen(&[older.clone(), refused.clone()], Some("b")), "another session's data");
        assert!(
            !is_frozen(&[refused.clone(), snapshot("a", 3, "Succeeded", None)], Some("a")),
            "accepted since"
        );
        assert!(is_frozen(&[refused, snapshot("a", 3, "Running", None)], Some("a")), "not known yet");
        assert!(!is_frozen(&[older, snapshot("a", 2, "Failed", Some("no space"))], Some("a")));
        assert!(!is_frozen(&[], Some("a")));
    }

    #[test]
    fn a_word_accepts_the_refusal_that_it_names() {
        let shrank = shrank();
        let shrank = Some(shrank.as_str());
        let refused = |hour| {
            let mut snapshot = snapshot("a", hour, "Failed", shrank);
            snapshot.spec.backup_session = Some(format!("pvc-{hour}"));
            snapshot
        };
        let all = [snapshot("a", 1, "Succeeded", None), refused(2), refused(3)];
        assert!(accepts_shrink(&all, Some("a"), "pvc-3") && accepts_shrink(&all, Some("a"), "pvc-2"));
        assert!(!accepts_shrink(&all, Some("a"), "pvc-1") && !accepts_shrink(&all, Some("b"), "pvc-3"));
        let since = [all.as_slice(), &[snapshot("a", 4, "Succeeded", None)]].concat();
        assert!(!accepts_shrink(&since, Some("a"), "pvc-3"), "a word is good for one shrinking only");
    }

    #[test]
    fn each_repository_has_its_own_verdict() {
        let outcome: Outcome = serde_json::from_value(json!({ "results": [
            { "name": "a" }, { "name": "b", "error": "locked" }, { "name": "c" }, { "name": "c", "error": "denied" },
        ] })).expect("an outcome");
        let verdict = |repository, error| verdict(repository, error, Some(&outcome));
        assert_eq!(verdict("a", Some("code 1")), None);
        assert_eq!(verdict("b", Some("code 1")), Some("locked".into()));
        assert_eq!(verdict("c", Some("code 1")), Some("denied".into()));
        assert_eq!(verdict("d", Some("code 1")), Some("code 1".into()));
        assert_eq!(super::verdict("a", Some("OOMKilled"), None), Some("OOMKilled".into()));
        assert_eq!(super::verdict("a", None, None), None);
    }
}
