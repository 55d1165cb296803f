//! Parameters of tasks: texts by name, read into what they mean. One that nobody knows is refused by its name.

use std::collections::BTreeMap;

use cistern_engine::{OnUnreadable, Overwrite, Selection};
use serde_json::Value;

use crate::job::{DATA_DIR, SCRATCH_DIR};
use crate::kinds::addon::AddonTask;
use crate::kinds::shared::Params;
use crate::problem::Problems;

/// Share of the keys that may have vanished before a run is refused, unless somebody says otherwise.
pub const MAX_SHRINK: f64 = 0.5;

/// What the parameters of a backup say.
#[derive(Clone, Debug, PartialEq)]
pub struct BackupParameters {
    /// What is read; absolute paths in the pod.
    pub paths: Vec<String>,
    /// What is meant of it.
    pub selection: Selection,
    /// What becomes of objects that cannot be read.
    pub on_unreadable: OnUnreadable,
    /// Share of the keys (0 to 1) that may have vanished before the run is refused.
    pub max_shrink: f64,
    /// Accepts a source without any object.
    pub allow_empty: bool,
    /// Keeps files of the repository in the pod.
    pub enable_cache: bool,
}

/// What the parameters of a restore say.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreParameters {
    /// What is meant of the snapshot.
    pub selection: Selection,
    /// What becomes of files that are there already.
    pub overwrite: Option<Overwrite>,
    /// Deletes what the snapshot lacks.
    pub delete: bool,
    /// Keeps files of the repository in the pod.
    pub enable_cache: bool,
}

/// The texts of a task's parameters, each with the path of its field.
pub(super) struct Parameters<'a> {
    values: BTreeMap<String, String>,
    said: Option<&'a Params>,
    path: String,
    problems: &'a mut Problems,
}

impl<'a> Parameters<'a> {
    /// What the user says, over the defaults of the addon's task. A parameter that the task needs must be there.
    pub fn new(
        task: Option<&AddonTask>,
        said: Option<&'a Params>,
        path: String,
        problems: &'a mut Problems,
    ) -> Parameters<'a> {
        let definitions = task.map(|task| task.parameters.as_slice()).unwrap_or_default();
        let default =
            |one: &crate::kinds::shared::ParameterDefinition| Some((one.name.clone(), one.default.clone()?));
        let mut values: BTreeMap<_, _> = definitions.iter().filter_map(default).collect();
        for (name, value) in said.into_iter().flatten() {
            match value {
                Value::String(text) => drop(values.insert(name.clone(), text.clone())),
                Value::Bool(_) | Value::Number(_) => drop(values.insert(name.clone(), value.to_string())),
                Value::Null => {}
                _ => problems.wrong(format!("{path}.{name}"), "must be a text"),
            }
        }
        values.retain(|_, value| !value.trim().is_empty());
        for one in definitions.iter().filter(|one| one.required == Some(true)) {
            if !values.contains_key(&one.name) {
                problems.wrong(format!("{path}.{}", one.name), "must be set: the task needs it");
            }
        }
        Parameters { values, said, path, problems }
    }

    fn wrong(&mut self, name: &str, message: impl Into<String>) {
        self.problems.wrong(format!("{}.{name}", self.path), message);
    }

    /// The text of a parameter read by `read`, or what it is otherwise.
    fn take<T>(&mut self, name: &str, otherwise: T, read: impl FnOnce(&str) -> Result<T, String>) -> T {
        let Some(text) = self.values.remove(name) else { return otherwise };
        match read(text.trim()) {
            Ok(value) => value,
            Err(message) => {
                self.wrong(name, message);
                otherwise
            }
        }
    }

    fn yes(&mut self, name: &str, otherwise: bool) -> bool {
        self.take(name, otherwise, |text| {
            text.parse().map_err(|_| format!("must be \"true\" or \"false\", and is {text:?}"))
        })
    }

    fn list(&mut self, name: &str) -> Vec<String> {
        self.take(name, Vec::new(), |text| Ok(split(text)))
    }

    fn selection(&mut self) -> Selection {
        let (include, exclude) = (self.list("include"), self.list("exclude"));
        let all = Selection { include, exclude, ..Selection::default() };
        let one = |include: &[String], exclude: &[String]| Selection {
            include: include.to_vec(),
            exclude: exclude.to_vec(),
            ..Selection::default()
        };
        for (name, part) in [("include", one(&all.include, &[])), ("exclude", one(&[], &all.exclude))] {
            if let Err(error) = part.check() {
                self.wrong(name, error.to_string());
            }
        }
        all
    }

    fn cache(&mut self) -> bool {
        self.take("scratchDir", (), |text| match text.trim_end_matches('/') == SCRATCH_DIR {
            true => Ok(()),
            false => Err(format!("only {SCRATCH_DIR} is supported yet")),
        });
        self.yes("enableCache", true)
    }

    /// Refuses what nobody asked for. Parameters of the addon's own, for Functions of other people, are theirs.
    fn finish(mut self, known: &str) {
        for name in std::mem::take(&mut self.values).into_keys() {
            self.wrong(&name, format!("there is no such parameter; there are {known}"));
        }
    }

    pub fn backup(mut self) -> BackupParameters {
        let all = BackupParameters {
            paths: self.take("paths", vec![DATA_DIR.to_owned()], paths),
            selection: self.selection(),
            on_unreadable: self.take("onUnreadable", OnUnreadable::Fail, |text| match text {
                "fail" => Ok(OnUnreadable::Fail),
                "skip" => Ok(OnUnreadable::Skip),
                _ => Err(format!("must be fail or skip, and is {text:?}")),
            }),
            max_shrink: self.take("maxShrink", MAX_SHRINK, share),
            allow_empty: self.yes("allowEmpty", false),
            enable_cache: self.cache(),
        };
        self.take("access", (), |text| match text {
            "auto" | "mount" => Ok(()),
            "api" => Err("api is not supported yet: use auto or mount".into()),
            _ => Err(format!("must be auto or mount, and is {text:?}")),
        });
        self.finish(
            "paths, include, exclude, access, onUnreadable, maxShrink, allowEmpty, enableCache, scratchDir",
        );
        all
    }

    pub fn restore(mut self) -> RestoreParameters {
        let read = |text: &str| match text {
            "always" => Ok(Some(Overwrite::Always)),
            "if-changed" => Ok(Some(Overwrite::IfChanged)),
            "if-newer" => Ok(Some(Overwrite::IfNewer)),
            "never" => Ok(Some(Overwrite::Never)),
            _ => Err(format!("must be always, if-changed, if-newer or never, and is {text:?}")),
        };
        // Two words for one thing: the user's goes before a default of the other, and who says both must say the same.
        let says = |name: &str| self.said.is_some_and(|said| said.contains_key(name));
        if says("conflict") && !says("overwrite") {
            self.values.remove("overwrite");
        }
        let overwrite = self.take("overwrite", None, read);
        let conflict = self.take("conflict", None, read);
        if overwrite.is_some() && conflict.is_some() && overwrite != conflict {
            self.wrong("conflict", "says something else than overwrite");
        }
        let all = RestoreParameters {
            selection: self.selection(),
            overwrite: overwrite.or(conflict),
            delete: self.yes("delete", false),
            enable_cache: self.cache(),
        };
        self.finish("include, exclude, overwrite, delete, enableCache, scratchDir");
        all
    }
}

/// Parts between commas, without what is empty.
fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect()
}

fn paths(text: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for path in split(text) {
        let clean = format!("/{}", crate::name::folder("", &path));
        let below = clean.strip_prefix(DATA_DIR).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !path.starts_with('/') || !below || clean.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(format!("{path:?} is not {DATA_DIR} or below it"));
        }
        all.push(clean);
    }
    all.sort();
    all.dedup();
    Ok(all)
}

/// `50%` or `0.5`.
fn share(text: &str) -> Result<f64, String> {
    let share = match text.strip_suffix('%') {
        Some(percent) => percent.trim().parse().map(|percent: f64| percent / 100.0),
        None => text.parse(),
    };
    share
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("must be a share such as 50%, and is {text:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn backup(said: Value) -> Result<BackupParameters, Vec<String>> {
        let mut problems = Problems::default();
        let said = said.as_object().cloned();
        let all = Parameters::new(None, said.as_ref(), "params".into(), &mut problems).backup();
        let lines: Vec<_> = problems.0.iter().map(ToString::to_string).collect();
        if lines.is_empty() { Ok(all) } else { Err(lines) }
    }

    #[test]
    fn defaults_are_those_of_the_task() {
        let all = backup(json!({})).expect("nothing is wrong");
        assert_eq!(all.paths, ["/kubestash-data"]);
        assert_eq!((all.max_shrink, all.enable_cache, all.allow_empty), (0.5, true, false));
        let task = AddonTask {
            parameters: serde_json::from_value(json!([
                { "name": "maxShrink", "default": "10%" }, { "name": "paths", "required": true },
            ]))
            .expect("definitions"),
            ..AddonTask::default()
        };
        let mut problems = Problems::default();
        let said = json!({ "allowEmpty": true });
        let all = Parameters::new(Some(&task), said.as_object(), "params".into(), &mut problems).backup();
        assert_eq!((all.max_shrink, all.allow_empty), (0.1, true));
        assert_eq!(problems.0[0].to_string(), "params.paths: must be set: the task needs it");
    }

    #[test]
    fn parameters_are_read_and_all_that_is_wrong_is_named() {
        let all = backup(json!({
            "paths": "/kubestash-data/b/, /kubestash-data//a", "exclude": "*.tmp,, cache", "include": "x",
            "onUnreadable": "skip", "maxShrink": "25%", "allowEmpty": "true", "enableCache": "false",
            "access": "mount", "scratchDir": "/kubestash-tmp/",
        }))
        .expect("nothing is wrong");
        assert_eq!(all.paths, ["/kubestash-data/a", "/kubestash-data/b"]);
        assert_eq!(all.selection.exclude, ["*.tmp", "cache"]);
        assert_eq!((all.max_shrink, all.allow_empty, all.enable_cache), (0.25, true, false));
        let wrong = backup(json!({
            "paths": "/etc", "maxShrink": "150%", "allowEmpty": "yes", "access": "api", "scratchDir": "/tmp",
            "onUnreadable": "x", "pathz": "/kubestash-data", "exclude": { "a": 1 },
        }))
        .expect_err("all of it is wrong");
        assert_eq!(wrong.len(), 8, "{wrong:#?}");
        for path in ["/kubestash-data/../etc", "kubestash-data", "/kubestash-database", "/"] {
            assert!(backup(json!({ "paths": path })).is_err(), "{path}");
        }
    }

    #[test]
    fn overwriting_has_two_names() {
        let restore = |said: Value| {
            let mut problems = Problems::default();
            let all = Parameters::new(None, said.as_object(), "params".into(), &mut problems).restore();
            (all.overwrite, problems.0.len())
        };
        assert_eq!(restore(json!({})), (None, 0));
        assert_eq!(restore(json!({ "conflict": "never" })), (Some(Overwrite::Never), 0));
        assert_eq!(
            restore(json!({ "overwrite": "always", "conflict": "always" })),
            (Some(Overwrite::Always), 0)
        );
        assert_eq!(restore(json!({ "overwrite": "always", "conflict": "never" })).1, 1);
        assert_eq!(restore(json!({ "overwrite": "sometimes" })).1, 1);
        assert_eq!(restore(json!({ "paths": "/kubestash-data" })).1, 1);
    }
}
