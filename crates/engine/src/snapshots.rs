//! Finds the snapshots that a name means: `latest`, `latest~2`, an id, `run:<id>`, each with `:path`.
//!
//! A run writes one snapshot, or several when its keys are spread over parts. Parts carry the tags
//! `run:<id>` and `parts:<number>`; `latest` is a run with all its parts that did not end incomplete. The id of a part
//! means its whole run; of a run that broke off, where parts are missing, it means that part alone, and `run:<id>`
//! all that there are.

use std::collections::{HashMap, HashSet};

use cistern_repository::{Id, Snapshot};

use crate::{Error, Result, SnapshotSelector};

/// Beginning of the tag that the parts of one run share.
pub const RUN_TAG: &str = "run:";
/// Beginning of the tag that tells how many parts a run has.
pub const PARTS_TAG: &str = "parts:";
/// Tag of the snapshots of a run that could not read everything.
pub const INCOMPLETE_TAG: &str = "incomplete";
/// Tag of the snapshots of a run that left something out: by its selection, because it could not be read or was gone,
/// or by itself (the repository within the source, other file systems). What such a snapshot does not hold may well
/// be in the source.
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
        let counts = self.parts.iter().filter_map(|(_, snapshot)| Some(run_of(snapshot)?.parts));
        // A part that was copied or tagged may be there twice.
        let paths: HashSet<_> = self.parts.iter().map(|(_, snapshot)| &snapshot.paths).collect();
        counts.max().is_none_or(|wanted| paths.len() >= wanted)
    }

    /// Whether nothing was missing when it ended.
    pub fn succeeded(&self) -> bool {
        let marked = |snapshot: &Snapshot| snapshot.tags.iter().any(|tag| tag == INCOMPLETE_TAG);
        self.is_whole() && !self.parts.iter().any(|(_, snapshot)| marked(snapshot))
    }

    /// The paths of the source: those of a part without what tells the parts apart.
    pub fn source_paths(&self) -> &[String] {
        let paths = &self.parts[0].1.paths;
        match self.id {
            Some(_) => &paths[..paths.len().min(1)],
            None => paths,
        }
    }

    /// Seconds and nanoseconds of the newest part.
    pub(crate) fn instant(&self) -> (i64, u32) {
        self.parts.iter().map(|(_, snapshot)| snapshot.time.instant()).max().unwrap_or((i64::MIN, 0))
    }
}

/// Whether a tag says something about a run, and not what a user wanted to say.
pub(crate) fn is_reserved(tag: &str) -> bool {
    tag.starts_with(RUN_TAG) || tag.starts_with(PARTS_TAG) || [INCOMPLETE_TAG, PARTIAL_TAG].contains(&tag)
}

/// Refuses tags that say something about a run, which only the run itself can know.
///
/// # Errors
/// `Invalid`.
pub(crate) fn check_tags(tags: &[String]) -> Result<()> {
    match tags.iter().find(|tag| is_reserved(tag)) {
        None => Ok(()),
        Some(tag) => {
            let names = format!("{RUN_TAG}…, {PARTS_TAG}…, {INCOMPLETE_TAG} and {PARTIAL_TAG}");
            Err(Error::Invalid(format!("the tag '{tag}' is reserved, as are {names}: choose another")))
        }
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

/// What a snapshot says of the run that it is a part of: all parts say the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct RunOf<'a> {
    id: &'a str,
    parts: usize,
    host: &'a str,
    root: Option<&'a String>,
}

fn run_of(snapshot: &Snapshot) -> Option<RunOf<'_>> {
    let mut tags = snapshot.tags.iter();
    let id = tags.clone().find_map(|tag| tag.strip_prefix(RUN_TAG))?;
    let parts = tags.find_map(|tag| tag.strip_prefix(PARTS_TAG)?.parse().ok())?;
    Some(RunOf { id, parts, host: &snapshot.hostname, root: snapshot.paths.first() })
}

/// The runs that these snapshots are, ascending by time.
pub fn runs(snapshots: &[(Id, Snapshot)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut known: HashMap<RunOf<'_>, usize> = HashMap::new();
    for (id, snapshot) in snapshots {
        let part = (*id, snapshot.clone());
        let run = run_of(snapshot);
        match run.and_then(|run| known.get(&run)) {
            Some(&i) => runs[i].parts.push(part),
            None => {
                if let Some(run) = run {
                    known.insert(run, runs.len());
                }
                runs.push(Run { id: run.map(|run| run.id.to_owned()), parts: vec![part] });
            }
        }
    }
    for run in &mut runs {
        run.parts.sort_by(|a, b| a.1.paths.cmp(&b.1.paths));
    }
    runs.sort_by_key(Run::instant);
    runs
}

impl SnapshotSelector {
    /// Whether host, paths and tags of a snapshot are among those that are wanted, whatever its name.
    pub fn accepts(&self, snapshot: &Snapshot) -> bool {
        let has = |tag: &str| tag.is_empty() || snapshot.tags.iter().any(|other| other == tag);
        (self.hosts.is_empty() || self.hosts.contains(&snapshot.hostname))
            && self.paths.iter().all(|path| snapshot.paths.contains(path))
            && (self.tags.is_empty() || self.tags.iter().any(|list| list.split(',').map(str::trim).all(has)))
    }
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
        let mut found = runs(snapshots).into_iter().filter(|run| run.id.as_deref() == Some(id));
        match (found.next(), found.next()) {
            (Some(run), None) => run,
            (None, _) => return Err(Error::NotFound(format!("there is no run {id}"))),
            (Some(_), Some(_)) => return Err(Error::Invalid(format!("several runs are called {id}"))),
        }
    } else if let Some(back) = latest(name)? {
        newest(snapshots, selector, back)?
    } else {
        let (id, snapshot) = by_id(snapshots, name)?;
        let mut runs = runs(snapshots).into_iter();
        let whole = runs.find(|run| run.is_whole() && run.parts.iter().any(|(part, _)| part == id));
        whole.unwrap_or_else(|| Run { id: None, parts: vec![(*id, snapshot.clone())] })
    };
    Ok(Selected { run, subpath: subpath.filter(|path| !path.is_empty()).map(str::to_owned) })
}

/// The runs that these names mean, each once and as a whole; without names, the runs of which the filter accepts a part.
///
/// # Errors
/// As [`resolve`]; `Invalid` for a name with a path.
pub(crate) fn chosen(
    snapshots: &[(Id, Snapshot)],
    names: &[String],
    filter: &SnapshotSelector,
) -> Result<Vec<Run>> {
    if names.is_empty() {
        let is_meant = |run: &Run| run.parts.iter().any(|(_, snapshot)| filter.accepts(snapshot));
        return Ok(runs(snapshots).into_iter().filter(is_meant).collect());
    }
    let mut seen = HashSet::new();
    let mut chosen = Vec::new();
    for name in names {
        let selected = resolve(snapshots, &SnapshotSelector { name: name.clone(), ..filter.clone() })?;
        if let Some(path) = selected.subpath {
            return Err(Error::Invalid(format!("a snapshot is meant as a whole here, not only {path}")));
        }
        let mut run = selected.run;
        run.parts.retain(|(id, _)| seen.insert(*id));
        if !run.parts.is_empty() {
            chosen.push(run);
        }
    }
    Ok(chosen)
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
    let matching: Vec<_> =
        snapshots.iter().filter(|(_, snapshot)| selector.accepts(snapshot)).cloned().collect();
    let (succeeded, other): (Vec<_>, Vec<_>) = runs(&matching).into_iter().partition(Run::succeeded);
    let count = succeeded.len();
    if let Some(run) = succeeded.into_iter().rev().nth(back) {
        return Ok(run);
    }
    let which = match selector.hosts.len() + selector.paths.len() + selector.tags.len() {
        0 => "",
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
        let table: [(&str, &[u8]); 11] = [
            ("latest", &[0x22]),
            ("latest~0", &[0x22]),
            ("latest~1", &[0x33, 0x34]),
            ("latest~2", &[0x11]),
            ("5", &[0x55]),
            ("3333", &[0x33, 0x34]),
            ("44", &[0x44]),
            ("run:r2", &[0x44]),
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
    fn only_what_belongs_together_is_a_run() {
        let part = |id, host, path, name, tags: &[&str]| snapshot(id, 10, host, &[path, name], tags);
        let tags = ["run:r", "parts:2"];
        let grouped = |all: &[(Id, Snapshot)]| -> Vec<(usize, bool)> {
            runs(all).iter().map(|run| (run.parts.len(), run.is_whole())).collect()
        };
        let first = || part(1, "a", "/x", "part-1", &tags);
        for other in [
            part(2, "b", "/x", "part-2", &tags),
            part(2, "a", "/y", "part-2", &tags),
            part(2, "a", "/x", "part-2", &["run:s", "parts:2"]),
        ] {
            assert_eq!(grouped(&[first(), other]), [(1, false), (1, false)]);
        }
        // A tag of the user's that looks like one of a run.
        assert_eq!(grouped(&[first(), part(2, "a", "/x", "part-2", &["run:r"])]), [(1, false), (1, true)]);
        assert_eq!(grouped(&[part(2, "a", "/x", "part-2", &["parts:9"])]), [(1, true)]);
        assert_eq!(grouped(&[first(), part(2, "a", "/x", "part-1", &tags)]), [(2, false)], "one part, twice");
        assert_eq!(grouped(&[first(), part(2, "a", "/x", "part-2", &tags)]), [(2, true)]);
        let two = [first(), part(2, "b", "/x", "part-1", &tags)];
        assert!(find(&two, "run:r").expect_err("which?").contains("several runs"));
    }

    #[test]
    fn tags_of_runs_are_not_for_users() {
        let check = |tag: &str| check_tags(&["mine".to_owned(), tag.to_owned()]).is_ok();
        for reserved in ["run:1", "run:", "parts:2", "incomplete", "partial"] {
            assert!(!check(reserved), "{reserved}");
        }
        assert!(check("running") && check("partially") && check("incomplete?"));
    }

    #[test]
    fn filters_narrow_latest_down() {
        let all = some();
        let latest = |host: Option<&str>, path: &str, tag: &str| {
            let own = |text: &str| if text.is_empty() { vec![] } else { vec![text.to_owned()] };
            let (hosts, paths, tags) = (host.map(str::to_owned).into_iter().collect(), own(path), own(tag));
            let selector = SnapshotSelector { name: "latest:/sub".into(), hosts, paths, tags };
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
