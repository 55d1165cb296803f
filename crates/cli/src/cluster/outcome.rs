//! How a Job ended: the line of each repository or component, and the termination message that they fit into.

use std::path::Path;

use cistern_api::job::{Outcome, OutcomeLine};

use super::public::{public, shortened};
use crate::failure::Failure;
use crate::ui::Ui;

/// What Kubernetes keeps of a termination message
/// (<https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/>).
const MOST: usize = 4096;

/// Bytes of an error in a status.
pub const MOST_OF_AN_ERROR: usize = 1024;

/// How one repository or component ended.
pub struct Done {
    /// Name of the Snapshot, Repository or component.
    pub name: String,
    /// The restic snapshots that were written.
    pub snapshots: Vec<String>,
    /// Why it failed.
    pub failure: Option<Failure>,
}

impl Done {
    /// One that wrote no snapshot.
    pub fn new(name: impl Into<String>, outcome: Result<(), Failure>) -> Self {
        Done { name: name.into(), snapshots: Vec::new(), failure: outcome.err() }
    }
}

/// The text of a failure that everybody may read.
pub fn shown(failure: &Failure) -> String {
    public(&failure.to_string(), MOST_OF_AN_ERROR)
}

/// Leaves how the Job ended where the kubelet looks for it.
pub fn leave(file: &Path, done: &[Done], ui: &Ui) {
    let line = |done: &Done| OutcomeLine {
        name: done.name.clone(),
        error: done.failure.as_ref().map(shown),
        snapshots: done.snapshots.clone(),
    };
    let text = message(Outcome { results: done.iter().map(line).collect() });
    if let Err(error) = std::fs::write(file, text) {
        ui.warn(format!("the termination message cannot be written to {}: {error}", file.display()));
    }
}

/// The outcome as JSON that fits: first errors become shorter, then ids are left out, then lines, from the end.
fn message(mut outcome: Outcome) -> String {
    let json = |outcome: &Outcome| serde_json::to_string(outcome).expect("an outcome has string keys");
    for most in [512, 256, 128, 64] {
        if json(&outcome).len() <= MOST {
            break;
        }
        for line in &mut outcome.results {
            line.error = line.error.take().map(|error| shortened(&error, most));
        }
    }
    while json(&outcome).len() > MOST
        && let Some(line) = outcome.results.iter_mut().rev().find(|line| !line.snapshots.is_empty())
    {
        line.snapshots.pop();
    }
    while json(&outcome).len() > MOST && outcome.results.pop().is_some() {}
    json(&outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(lines: usize, error: usize, snapshots: usize) -> Outcome {
        let line = |i: usize| OutcomeLine {
            name: format!("snapshot-{i}"),
            error: (error > 0).then(|| "\"".repeat(error)),
            snapshots: vec!["0".repeat(64); snapshots],
        };
        Outcome { results: (0..lines).map(line).collect() }
    }

    #[test]
    fn every_message_fits_and_can_be_read() {
        for (lines, error, snapshots) in [(1, 0, 1), (2, 1024, 0), (16, 1024, 4), (1, 10, 200), (200, 900, 3)]
        {
            let whole = outcome(lines, error, snapshots);
            let text = message(whole.clone());
            assert!(text.len() <= MOST, "{}", text.len());
            let read: Outcome = serde_json::from_str(&text).expect("it is whole");
            assert!(!read.results.is_empty());
            if lines < 20 {
                assert_eq!(read.results.len(), lines);
                assert!(read.results.iter().all(|line| line.error.is_some() == (error > 0)));
            }
        }
        let small = outcome(2, 10, 2);
        assert_eq!(serde_json::from_str::<Outcome>(&message(small.clone())).expect("it is whole"), small);
    }
}
