//! Chooses the run that a backup is compared with.

use cistern_repository::{Id, Snapshot};

use crate::Result;
use crate::snapshots::{Run, by_id, runs};

/// The run to compare with, and its parts.
pub(crate) type Parent = Run;

/// The parent of a backup of `root`: the snapshot that `explicit` names (with the rest of its run), else the
/// newest run of the same host and path, else the newest of the same path whatever its host (rules.md 1.9).
/// A run whose parts are all there goes before one that broke off. Nothing newer than `until` counts, so that
/// a backup that is dated back has the parent of its time.
///
/// # Errors
/// `NotFound` or `Invalid` if `explicit` names no snapshot, or several.
pub(crate) fn choose(
    snapshots: &[(Id, Snapshot)],
    explicit: Option<&str>,
    host: &str,
    root: &str,
    until: (i64, u32),
) -> Result<Option<Parent>> {
    let runs = runs(snapshots);
    if let Some(name) = explicit {
        let (id, _) = by_id(snapshots, name)?;
        return Ok(runs.into_iter().find(|run| run.parts.iter().any(|(part, _)| part == id)));
    }
    // A part's first path is the root, its second the part's name; a snapshot by restic may have more roots,
    // among which ours is as good as alone.
    let is_ours = |snapshot: &Snapshot| snapshot.paths.iter().any(|path| path == root);
    let rank = |run: &Run| {
        let (_, first) = &run.parts[0];
        let alone = first.paths.first().is_some_and(|path| path == root);
        (first.hostname == host, run.is_whole(), alone, run.instant())
    };
    let candidates = runs.into_iter().filter(|run| is_ours(&run.parts[0].1) && run.instant() <= until);
    Ok(candidates.max_by_key(rank))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::tests::snapshot;

    #[test]
    fn the_newest_of_the_same_host_and_path_goes_first() {
        let all = [
            snapshot(1, 10, "a", &["/x"], &[]),
            snapshot(2, 20, "a", &["/x"], &["incomplete"]),
            snapshot(3, 30, "b", &["/x"], &[]),
            snapshot(4, 40, "a", &["/y"], &[]),
            snapshot(5, 50, "a", &["/w", "/z"], &[]),
            snapshot(6, 60, "c", &["/p", "part-1"], &["run:r", "parts:2"]),
            snapshot(7, 60, "c", &["/p", "part-2"], &["run:r", "parts:2"]),
            snapshot(8, 70, "c", &["/p", "part-1"], &["run:s", "parts:2"]),
        ];
        let parent = |host, root, explicit, until| {
            let run = choose(&all, explicit, host, root, (until, 0)).unwrap();
            run.map(|run| run.parts.iter().map(|(id, _)| id.as_bytes()[0]).collect::<Vec<_>>())
        };
        let now = i64::MAX;
        assert_eq!(parent("a", "/x", None, now), Some(vec![2]), "an incomplete run is a good parent");
        assert_eq!(parent("b", "/x", None, now), Some(vec![3]));
        assert_eq!(parent("other", "/x", None, now), Some(vec![3]), "whatever its host");
        assert_eq!(parent("a", "/x", None, 15), Some(vec![1]), "dated back");
        assert_eq!(parent("a", "/z", None, now), Some(vec![5]), "one of several paths");
        assert_eq!(parent("c", "/p", None, now), Some(vec![6, 7]), "all parts before a run that broke off");
        assert_eq!(parent("a", "/none", None, now), None);
        assert_eq!(parent("a", "/none", Some("0707"), now), Some(vec![6, 7]), "explicit, with its whole run");
        assert!(choose(&all, Some("99"), "a", "/x", (now, 0)).is_err());
    }
}
