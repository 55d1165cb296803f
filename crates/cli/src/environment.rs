//! The environment as values: the only place that reads variables, so that tests can pass their own.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Environment variables at the start of the process.
#[derive(Clone, Default)]
pub struct Environment(HashMap<String, OsString>);

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Self {
        Environment(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .filter(|(_, value)| !value.is_empty())
                .collect(),
        )
    }

    /// The first of these variables that is set and not empty.
    pub fn first(&self, names: &[&str]) -> Option<String> {
        names.iter().find_map(|name| self.0.get(*name)).map(|value| value.to_string_lossy().into_owned())
    }

    /// As [`first`](Self::first), byte by byte.
    pub fn os(&self, names: &[&str]) -> Option<OsString> {
        names.iter().find_map(|name| self.0.get(*name)).cloned()
    }

    /// As [`first`](Self::first), as a path.
    pub fn path(&self, names: &[&str]) -> Option<PathBuf> {
        self.os(names).map(PathBuf::from)
    }

    /// Cistern's own variable `CISTERN_<name>`, or its twin `RESTIC_<name>`, each with its name.
    pub fn twin(&self, name: &str) -> Option<(String, OsString)> {
        ["CISTERN", "RESTIC"].iter().find_map(|program| {
            let name = format!("{program}_{name}");
            let value = self.0.get(&name)?.clone();
            Some((name, value))
        })
    }

    /// The user's home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.path(&["HOME"])
    }

    /// Where caches lie: `$XDG_CACHE_HOME` or `~/.cache`.
    pub fn cache_home(&self) -> Option<PathBuf> {
        self.path(&["XDG_CACHE_HOME"]).or_else(|| Some(self.home()?.join(".cache")))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Environment(pairs.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_variable_comes_before_its_twin() {
        let both = Environment::from([("RESTIC_REPOSITORY", "theirs"), ("CISTERN_REPOSITORY", "ours")]);
        assert_eq!(both.twin("REPOSITORY").unwrap().1, "ours");
        let theirs = Environment::from([("RESTIC_REPOSITORY", "theirs")]);
        assert_eq!(theirs.twin("REPOSITORY").unwrap(), ("RESTIC_REPOSITORY".to_owned(), "theirs".into()));
    }
}
