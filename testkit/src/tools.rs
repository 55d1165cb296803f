//! Says where the external programs are that tests compare us with; `cargo xtask tools` puts them there.
//!
//! The task that installs them compiles this same file, so the layout and the versions have one home:
//! `<cache>/<name>-<version>/bin/<name>`, where `<cache>` is `$CISTERN_TOOLS`, else
//! `$XDG_CACHE_HOME/cistern-tools`, else `~/.cache/cistern-tools`.

use std::env;
use std::fmt;
use std::path::PathBuf;

/// A program of a fixed version that tests run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tool {
    /// Its name, which is also the name of the file to execute.
    pub name: &'static str,
    /// The version that the tests expect.
    pub version: &'static str,
}

/// The restic that Debian 12 ships: the oldest that must understand our repositories.
pub const RESTIC_DEBIAN: Tool = Tool { name: "restic", version: "0.14.0" };
/// The newest restic: the judge of the format, and the peer of the benchmark.
pub const RESTIC: Tool = Tool { name: "restic", version: "0.19.1" };
/// MinIO: the most faithful server for authentication, versions, tags and locks.
pub const MINIO: Tool = Tool { name: "minio", version: "20260212" };
/// moto's server: it holds the odd keys that MinIO refuses.
pub const MOTO: Tool = Tool { name: "moto", version: "5.2.5" };
/// Kubernetes as one program, beside it links named `kubectl`, `etcd` and so on, `pause` and `csi-registrar`.
pub const KUBEALL: Tool = Tool { name: "kubeall", version: "1.36.3" };
/// The package manager that people install our chart with.
pub const HELM: Tool = Tool { name: "helm", version: "4.3.1" };
/// csi-s3, a CSI driver that mounts buckets into pods.
pub const S3DRIVER: Tool = Tool { name: "s3driver", version: "0.43.7" };
/// geesefs, the FUSE client that csi-s3 starts.
pub const GEESEFS: Tool = Tool { name: "geesefs", version: "0.43.8" };

impl Tool {
    /// The folder that holds this version and nothing else.
    ///
    /// # Errors
    /// When the environment names no place for caches.
    pub fn folder(self) -> Result<PathBuf, MissingTool> {
        Ok(cache_folder()?.join(format!("{}-{}", self.name, self.version)))
    }

    /// The file to execute.
    ///
    /// # Errors
    /// When it is not installed; the text says how to.
    pub fn path(self) -> Result<PathBuf, MissingTool> {
        let path = self.folder()?.join("bin").join(self.name);
        if path.is_file() { Ok(path) } else { Err(MissingTool::NotInstalled(path)) }
    }
}

/// The newest restic, as a path.
///
/// # Errors
/// When it is not installed; the text says how to.
pub fn restic() -> Result<PathBuf, MissingTool> {
    RESTIC.path()
}

/// Debian's restic, as a path.
///
/// # Errors
/// When it is not installed; the text says how to.
pub fn restic_debian() -> Result<PathBuf, MissingTool> {
    RESTIC_DEBIAN.path()
}

/// MinIO, as a path: `minio server --address HOST:PORT DIR`.
///
/// # Errors
/// When it is not installed; the text says how to.
pub fn minio() -> Result<PathBuf, MissingTool> {
    MINIO.path()
}

/// moto's server, as a path: `moto -H HOST -p PORT`.
///
/// # Errors
/// When it is not installed; the text says how to.
pub fn moto() -> Result<PathBuf, MissingTool> {
    MOTO.path()
}

/// kubectl, as a path, of the version of the test cluster.
///
/// # Errors
/// When it is not installed; the text says how to.
pub fn kubectl() -> Result<PathBuf, MissingTool> {
    let kubeall = KUBEALL.path()?;
    Ok(kubeall.with_file_name("kubectl"))
}

/// Helm, as a path.
///
/// # Errors
/// When it is not installed; the text says how to.
pub fn helm() -> Result<PathBuf, MissingTool> {
    HELM.path()
}

/// Why there is no path. Its debug form is its text, so that a failing `expect` reads well.
#[derive(PartialEq, Eq)]
pub enum MissingTool {
    /// Neither `CISTERN_TOOLS`, `XDG_CACHE_HOME` nor `HOME` is set.
    NoCache,
    /// The file is not there.
    NotInstalled(PathBuf),
}

impl fmt::Display for MissingTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCache => f.write_str("no place for tools: set CISTERN_TOOLS, XDG_CACHE_HOME or HOME"),
            Self::NotInstalled(path) => {
                write!(f, "{} is not installed: run `cargo xtask tools`", path.display())
            }
        }
    }
}

impl fmt::Debug for MissingTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for MissingTool {}

/// The folder that holds all tools, and the test cluster.
///
/// # Errors
/// When the environment names no place for caches.
pub fn cache_folder() -> Result<PathBuf, MissingTool> {
    cache(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
        .ok_or(MissingTool::NoCache)
}

/// The cache folder, given the value of each environment variable.
fn cache(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("CISTERN_TOOLS")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("cistern-tools")))
        .or_else(|| Some(variable("HOME")?.join(".cache/cistern-tools")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_particular_variable_names_the_cache() {
        let set = [("CISTERN_TOOLS", "/tools"), ("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/ann")];
        let with = |from: usize| {
            cache(|name| {
                set[from..].iter().find(|(known, _)| *known == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(0), Some("/tools".into()));
        assert_eq!(with(1), Some("/cache/cistern-tools".into()));
        assert_eq!(with(2), Some("/home/ann/.cache/cistern-tools".into()));
        assert_eq!(with(3), None);
    }

    #[test]
    fn a_missing_tool_says_how_to_get_it() {
        let never = Tool { name: "restic", version: "0.0.0" };
        let text = never.path().expect_err("no such version exists").to_string();
        assert!(text.contains("restic-0.0.0/bin/restic") && text.contains("cargo xtask tools"), "{text}");
    }
}
