//! Chooses the run that a backup is compared with.

use cistern_repository::{Id, Snapshot};

use crate::Result;
use crate::snapshots::{Run, by_id, runs};

/// The run to compare with, and its parts.
pub(crate) type Parent = Run;

/// The parent of a backup of `root`: the snapshot that `explicit` names (with the rest of its run), else the
/// newest run of the same path whatever its host (rules.md 1.9), which decides only among runs of one time. A run whose
/// parts are all there goes before one that broke off, and one of this path alone before one of several. Nothing
/// newer than `until` counts, so that a backup that is dated back has the parent of its time.
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
    if let Some(name) = explicit {
        let (id, _) = by_id(snapshots, name)?;
        return Ok(runs(snapshots).into_iter().find(|run| run.parts.iter().any(|(part, _)| part == id)));
    }
    let rank = |run: &Run| {
        let (_, first) = &run.parts[0];
        let alone = first.paths.first().is_some_and(|path| path == root);
        (run.is_whole(), alone, run.instant(), first.hostname == host)
    };
    Ok(of(snapshots, root, until).max_by_key(rank))
}

/// The run that tells how much the source held: the newest that succeeded (if none has, the newest whose parts are
/// there), of this host if it has one. Two machines that save their `/home` into one repository are no reason to
/// believe that either has lost anything.
pub(crate) fn baseline(
    snapshots: &[(Id, Snapshot)],
    host: &str,
    root: &str,
    until: (i64, u32),
) -> Option<Parent> {
    let whole = of(snapshots, root, until).filter(Run::is_whole);
    whole.max_by_key(|run| (run.succeeded(), run.parts[0].1.hostname == host, run.instant()))
}

/// The runs of `root`.
fn of(snapshots: &[(Id, Snapshot)], root: &str, until: (i64, u32)) -> impl Iterator<Item = Run> {
    // A part's first path is the root, its second the part's name; a snapshot by restic may have more roots,
    // among which ours is as good as alone.
    let is_ours = move |run: &Run| run.parts[0].1.paths.iter().any(|path| path == root);
    runs(snapshots).into_iter().filter(move |run| run.instant() <= until).filter(is_ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::tests::snapshot;

    #[test]
    fn the_newest_of_the_same_path_goes_first() {
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
        assert_eq!(parent("a", "/x", None, 25), Some(vec![2]), "an incomplete run is a good parent");
        assert_eq!(parent("a", "/x", None, now), Some(vec![3]), "whatever its host");
        assert_eq!(parent("other", "/x", None, now), Some(vec![3]));
        let tie = [snapshot(1, 10, "a", &["/x"], &[]), snapshot(2, 10, "b", &["/x"], &[])];
        for (host, id) in [("a", 1), ("b", 2)] {
            let run = choose(&tie, None, host, "/x", (now, 0)).unwrap().unwrap();
            assert_eq!(run.parts[0].0.as_bytes()[0], id, "the host breaks a tie");
        }
        let base = |host, root, until| {
            baseline(&all, host, root, (until, 0)).map(|run| run.parts[0].0.as_bytes()[0])
        };
        assert_eq!(base("a", "/x", now), Some(1), "the last that succeeded, of the same host");
        assert_eq!((base("b", "/x", now), base("other", "/x", now)), (Some(3), Some(3)));
        assert_eq!((base("c", "/p", now), base("a", "/none", now)), (Some(6), None));
        assert_eq!(parent("a", "/x", None, 15), Some(vec![1]), "dated back");
        assert_eq!(parent("a", "/z", None, now), Some(vec![5]), "one of several paths");
        assert_eq!(parent("c", "/p", None, now), Some(vec![6, 7]), "all parts before a run that broke off");
        assert_eq!(parent("a", "/none", None, now), None);
        assert_eq!(parent("a", "/none", Some("0707"), now), Some(vec![6, 7]), "explicit, with its whole run");
        assert!(choose(&all, Some("99"), "a", "/x", (now, 0)).is_err());
    }
}
