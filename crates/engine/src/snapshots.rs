//! Finds the snapshots that a name means: `latest`, `latest~2`, an id, `run:<id>`, each with `:path`.
//!
//! A run writes one snapshot, or several when its keys are spread over parts. Parts carry the tags
//! `run:<id>` and `parts:<number>`; `latest` is a run with all its parts that did not end incomplete.

use std::collections::HashMap;

use cistern_repository::{Id, Snapshot};

use crate::{Error, Result, SnapshotSelector};

/// Beginning of the tag that the parts of one run share.
pub const RUN_TAG: &str = "run:";
/// Beginning of the tag that tells how many parts a run has.
pub const PARTS_TAG: &str = "parts:";
/// Tag of the snapshots of a run that could not read everything.
pub const INCOMPLETE_TAG: &str = "incomplete";
/// Tag of the snapshots of a run that left something out: a selection, exceptions, objects that vanished.
pub const PARTIAL_TAG: &str = "partial";

/// The snapshots of one run of a backup.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The run's id, if it has several parts.
    pub id: Option<String>,
    /// Its snapshots, by path; at least one.
    pub parts: Vec<(Id, Snapshot)>,
}

impl Run {
    /// Whether every part is there: a run that broke off while it wrote its snapshots has fewer.
    pub fn is_whole(&self) -> bool {
        let counts = self.parts.iter().flat_map(|(_, snapshot)| &snapshot.tags);
        let counts = counts.filter_map(|tag| tag.strip_prefix(PARTS_TAG)?.parse::<usize>().ok());
        counts.max().is_none_or(|wanted| self.parts.len() >= wanted)
    }

    /// Whether nothing was missing when it ended.
    pub fn succeeded(&self) -> bool {
        let marked = |snapshot: &Snapshot| snapshot.tags.iter().any(|tag| tag == INCOMPLETE_TAG);
        self.is_whole() && !self.parts.iter().any(|(_, snapshot)| marked(snapshot))
    }

    /// Seconds and nanoseconds of the newest part.
    pub(crate) fn instant(&self) -> (i64, u32) {
        self.parts.iter().map(|(_, snapshot)| snapshot.time.instant()).max().unwrap_or((i64::MIN, 0))
    }
}

/// What a [`SnapshotSelector`] means.
#[derive(Clone, Debug, PartialEq)]
pub struct Selected {
    /// The snapshots.
    pub run: Run,
    /// The path behind the colon.
    pub subpath: Option<String>,
}

/// The runs that these snapshots are, ascending by time.
pub fn runs(snapshots: &[(Id, Snapshot)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    for (id, snapshot) in snapshots {
        let part = (*id, snapshot.clone());
        let run = snapshot.tags.iter().find_map(|tag| tag.strip_prefix(RUN_TAG));
        match run.and_then(|run| by_id.get(run)) {
            Some(&i) => runs[i].parts.push(part),
            None => {
                if let Some(run) = run {
                    by_id.insert(run, runs.len());
                }
                runs.push(Run { id: run.map(str::to_owned), parts: vec![part] });
            }
        }
    }
    for run in &mut runs {
        run.parts.sort_by(|a, b| a.1.paths.cmp(&b.1.paths));
    }
    runs.sort_by_key(Run::instant);
    runs
}

/// Finds what a name means among these snapshots. Host, paths and tags narrow down `latest` only, as in
/// restic; an id says enough.
///
/// # Errors
/// `NotFound` if there is none, `Invalid` if the name is no name or the beginning of several ids.
pub fn resolve(snapshots: &[(Id, Snapshot)], selector: &SnapshotSelector) -> Result<Selected> {
    let name = selector.name.as_str();
    let (name, subpath) = match name.strip_prefix(RUN_TAG) {
        Some(rest) => match rest.split_once(':') {
            Some((run, path)) => (&name[..RUN_TAG.len() + run.len()], Some(path)),
            None => (name, None),
        },
        None => name.split_once(':').map_or((name, None), |(name, path)| (name, Some(path))),
    };
    let run = if let Some(id) = name.strip_prefix(RUN_TAG) {
        let found = runs(snapshots).into_iter().find(|run| run.id.as_deref() == Some(id));
        found.ok_or_else(|| Error::NotFound(format!("there is no run {id}")))?
    } else if let Some(back) = latest(name)? {
        newest(snapshots, selector, back)?
    } else {
        Run { id: None, parts: vec![by_id(snapshots, name)?.clone()] }
    };
    Ok(Selected { run, subpath: subpath.filter(|path| !path.is_empty()).map(str::to_owned) })
}

/// How many runs before the newest one `name` means; nothing if it is not about the newest.
fn latest(name: &str) -> Result<Option<usize>> {
    let Some(rest) = name.strip_prefix("latest") else { return Ok(None) };
    if rest.is_empty() {
        return Ok(Some(0));
    }
    let back = rest.strip_prefix('~').and_then(|digits| digits.parse().ok());
    back.map(Some)
        .ok_or_else(|| Error::Invalid(format!("'{name}' names no snapshot; expected latest~NUMBER")))
}

fn newest(snapshots: &[(Id, Snapshot)], selector: &SnapshotSelector, back: usize) -> Result<Run> {
    let wanted = |snapshot: &Snapshot| {
        selector.host.as_ref().is_none_or(|host| *host == snapshot.hostname)
            && selector.paths.iter().all(|path| snapshot.paths.contains(path))
            && selector.tags.iter().all(|tag| snapshot.tags.contains(tag))
    };
    let matching: Vec<_> = snapshots.iter().filter(|(_, snapshot)| wanted(snapshot)).cloned().collect();
    let (succeeded, other): (Vec<_>, Vec<_>) = runs(&matching).into_iter().partition(Run::succeeded);
    let count = succeeded.len();
    if let Some(run) = succeeded.into_iter().rev().nth(back) {
        return Ok(run);
    }
    let which = match (selector.host.is_some(), selector.paths.len() + selector.tags.len()) {
        (false, 0) => "",
        _ => " of that host, path or tag",
    };
    Err(Error::NotFound(match (count, other.len()) {
        (0, 0) => format!("there is no snapshot{which}"),
        (0, n) => format!("there is no complete snapshot{which}; {n} incomplete can be named by their ids"),
        (n, _) => format!("there are only {n} complete snapshots{which}"),
    }))
}

/// The snapshot whose id begins so.
pub(crate) fn by_id<'a>(snapshots: &'a [(Id, Snapshot)], prefix: &str) -> Result<&'a (Id, Snapshot)> {
    if prefix.is_empty() || prefix.len() > Id::HEX_LEN || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::Invalid(format!("'{prefix}' names no snapshot; expected an id or latest")));
    }
    let mut found = snapshots.iter().filter(|(id, _)| id.has_prefix(prefix));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        (None, _) => Err(Error::NotFound(format!("there is no snapshot {prefix}"))),
        (Some(_), Some(_)) => {
            Err(Error::Invalid(format!("several snapshots have an id that begins with {prefix}")))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use cistern_repository::Time;

    use super::*;

    /// A snapshot of `host` and `paths` at `second`, whose id begins with the byte `id`.
    pub(crate) fn snapshot(id: u8, second: i64, host: &str, paths: &[&str], tags: &[&str]) -> (Id, Snapshot) {
        let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut snapshot = Snapshot::new(Time::new(second, 0), Id::of(&[id]), own(paths));
        snapshot.hostname = host.into();
        snapshot.tags = own(tags);
        (Id::from_bytes([id; 32]), snapshot)
    }

    fn find(snapshots: &[(Id, Snapshot)], name: &str) -> Result<Vec<u8>, String> {
        let selector = SnapshotSelector { name: name.into(), ..SnapshotSelector::default() };
        let selected = resolve(snapshots, &selector).map_err(|error| error.to_string())?;
        Ok(selected.run.parts.iter().map(|(id, _)| id.as_bytes()[0]).collect())
    }

    fn some() -> Vec<(Id, Snapshot)> {
        vec![
            snapshot(0x11, 10, "a", &["/x"], &[]),
            snapshot(0x22, 30, "b", &["/x"], &["t"]),
            // A run of two parts, which come in any order.
            snapshot(0x34, 20, "a", &["/y", "part-b"], &["run:r1", "parts:2"]),
            snapshot(0x33, 20, "a", &["/y", "part-a"], &["run:r1", "parts:2"]),
            // One that broke off.
            snapshot(0x44, 40, "a", &["/y", "part-a"], &["run:r2", "parts:2"]),
            snapshot(0x55, 50, "a", &["/x"], &["incomplete"]),
        ]
    }

    #[test]
    fn a_name_means_a_run_with_all_its_parts() {
        let all = some();
        let table: [(&str, &[u8]); 9] = [
            ("latest", &[0x22]),
            ("latest~0", &[0x22]),
            ("latest~1", &[0x33, 0x34]),
            ("latest~2", &[0x11]),
            ("5", &[0x55]),
            ("3333", &[0x33]),
            ("run:r1", &[0x33, 0x34]),
            ("run:r1:/y", &[0x33, 0x34]),
            ("11:/x/z", &[0x11]),
        ];
        for (name, ids) in table {
            assert_eq!(find(&all, name).as_deref(), Ok(ids), "{name}");
        }
    }

    #[test]
    fn what_means_nothing_or_too_much_is_refused() {
        let table = [
            ("latest~3", "only 3 complete"),
            ("latest~x", "latest~NUMBER"),
            ("latestx", "latest~NUMBER"),
            ("3", "several"),
            ("66", "no snapshot 66"),
            ("zz", "names no snapshot"),
            ("", "names no snapshot"),
            ("run:r9", "no run r9"),
        ];
        for (name, part) in table {
            let error = find(&some(), name).expect_err(name);
            assert!(error.contains(part), "{name}: {error}");
        }
        assert_eq!(find(&[], "latest"), Err("there is no snapshot".into()));
        let only_broken = [snapshot(1, 1, "a", &["/x"], &["incomplete"])];
        assert!(find(&only_broken, "latest").expect_err("incomplete").contains("1 incomplete"));
    }

    #[test]
    fn filters_narrow_latest_down() {
        let all = some();
        let latest = |host: Option<&str>, path: &str, tag: &str| {
            let own = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
            let (host, paths, tags) = (host.map(str::to_owned), own(path), own(tag));
            let selector = SnapshotSelector { name: "latest:/sub".into(), host, paths, tags };
            let selected = resolve(&all, &selector).ok()?;
            assert_eq!(selected.subpath.as_deref(), Some("/sub"));
            Some(selected.run.parts[0].0.as_bytes()[0])
        };
        assert_eq!(latest(Some("a"), "", ""), Some(0x33));
        assert_eq!(latest(Some("a"), "/x", ""), Some(0x11));
        assert_eq!(latest(None, "/x", "t"), Some(0x22));
        assert_eq!(latest(Some("c"), "", ""), None);
        assert_eq!(latest(None, "", "u"), None);
    }
}
