//! Installs the programs that tests compare us with, once, into a cache outside of the checkout.
//!
//! Each is put together in a folder beside its place and renamed into it when it has proven that it
//! runs, so a half-made one is never taken for whole. Nothing of the system is altered, except that
//! Debian packages are installed where a machine lacks them: Python, and what the test cluster runs on.

mod kubernetes;

use crate::process::{debian_packages, output, root};
use anyhow::{Context, Result, bail};
use layout::{GEESEFS, HELM, KUBEALL, MINIO, MOTO, RESTIC, RESTIC_DEBIAN, S3DRIVER, Tool};
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

// The same file as in the testkit, compiled here again: the tools can then be installed while
// the crates that the testkit depends on do not compile.
#[path = "../../testkit/src/tools.rs"]
#[expect(dead_code, reason = "the tests' half of the file is not used here")]
pub mod layout;

/// How a tool comes to be, and how it shows that it is there.
struct Recipe {
    tool: Tool,
    /// Makes `bin/<name>` inside the given empty folder.
    make: fn(&Path) -> Result<()>,
    /// What to ask it, word by word, and what the answer must contain.
    probe: (&'static str, &'static str),
    /// What a person should expect.
    how: &'static str,
}

/// Quick ones first: somebody may wait for them.
const RECIPES: [Recipe; 8] = [
    Recipe {
        tool: RESTIC_DEBIAN,
        make: restic_debian,
        probe: ("version", "restic 0.14.0 "),
        how: "Debian's package",
    },
    Recipe {
        tool: RESTIC,
        make: restic,
        probe: ("version", "restic 0.19.1 "),
        how: "built with Go, 1 to 3 minutes",
    },
    Recipe { tool: MOTO, make: moto, probe: ("--help", "--host"), how: "from PyPI" },
    Recipe {
        tool: S3DRIVER,
        make: kubernetes::s3driver,
        probe: ("-help", "CSI endpoint"),
        how: "built with Go, 1 minute",
    },
    Recipe {
        tool: GEESEFS,
        make: kubernetes::geesefs,
        probe: ("--version", "0.43.8"),
        how: "built with Go, 1 to 3 minutes",
    },
    Recipe {
        tool: HELM,
        make: kubernetes::helm,
        probe: ("version", "v4.3.1"),
        how: "built with Go, 1 to 5 minutes",
    },
    Recipe { tool: MINIO, make: minio, probe: ("--version", "minio"), how: "built with Go, 5 to 15 minutes" },
    Recipe {
        tool: KUBEALL,
        make: kubernetes::kubeall,
        probe: ("kubectl version --client", "v1.36.3"),
        how: "built with Go, 5 to 20 minutes, 2.5 GB of memory, 4 GB of Go's caches",
    },
];

/// Installs the named tools, or all, unless they are there and run.
pub fn install(names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| RECIPES.iter().all(|recipe| recipe.tool.name != **name)) {
        bail!("no tool is called {unknown}");
    }
    if names.is_empty() {
        kubernetes::packages()?;
    }
    for recipe in
        RECIPES.iter().filter(|recipe| names.is_empty() || names.iter().any(|name| name == recipe.tool.name))
    {
        let Tool { name, version } = recipe.tool;
        recipe.ensure().with_context(|| format!("cannot install {name} {version}"))?;
    }
    Ok(())
}

/// Installs the programs that tests compare us with.
pub fn install_peers() -> Result<()> {
    install(&[RESTIC_DEBIAN, RESTIC, MOTO, MINIO].map(|tool| tool.name.to_owned()))
}

/// Installs what the test cluster is made of.
pub fn install_for_cluster() -> Result<()> {
    kubernetes::packages()?;
    install(&[S3DRIVER, GEESEFS, HELM, MINIO, KUBEALL].map(|tool| tool.name.to_owned()))
}

impl Recipe {
    fn ensure(&self) -> Result<()> {
        let Tool { name, version } = self.tool;
        let folder = self.tool.folder()?;
        let (new, lock) = (
            folder.with_file_name(format!("{name}-{version}.new")),
            folder.with_file_name(format!("{name}-{version}.lock")),
        );
        fs::create_dir_all(folder.parent().expect("a tool's folder lies in the cache"))?;
        let lock = File::create(&lock).with_context(|| format!("cannot create {}", lock.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!("{name} {version}: waiting, another process installs it");
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        if self.runs(&folder).is_ok() {
            println!("{name} {version}: ready");
            return Ok(());
        }
        println!("{name} {version}: installing ({})", self.how);
        let start = Instant::now();
        for old in [&new, &folder] {
            if old.exists() {
                fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        fs::create_dir_all(new.join("bin"))?;
        (self.make)(&new)?;
        self.runs(&new)?;
        fs::rename(&new, &folder)?;
        println!("{name} {version}: installed in {} s", start.elapsed().as_secs());
        Ok(())
    }

    /// Fails unless the program in `folder` runs and is what its name says.
    fn runs(&self, folder: &Path) -> Result<()> {
        let (question, answer) = self.probe;
        let path = folder.join("bin").join(self.tool.name);
        let mut command = Command::new(&path);
        let answered = command.args(question.split(' ')).output();
        let answered = answered.with_context(|| format!("cannot start {}", path.display()))?;
        let said = String::from_utf8_lossy(&[answered.stdout, answered.stderr].concat()).into_owned();
        if answered.status.success() && said.contains(answer) {
            Ok(())
        } else {
            bail!("{} answers `{question}` with:\n{said}", path.display())
        }
    }
}

/// Takes the program out of Debian's package, without installing the package.
fn restic_debian(folder: &Path) -> Result<()> {
    let package = folder.join("package");
    fs::create_dir(&package)?;
    let download = || output(Command::new("apt-get").args(["download", "restic"]).current_dir(&package));
    download().or_else(|_| output(Command::new("apt-get").arg("update")).and_then(|_| download()))?;
    let file = fs::read_dir(&package)?.next().context("apt-get download left no file")??.path();
    output(Command::new("dpkg").arg("-x").arg(&file).arg(package.join("content")))?;
    fs::rename(package.join("content/usr/bin/restic"), folder.join("bin/restic"))?;
    Ok(fs::remove_dir_all(package)?)
}

fn restic(folder: &Path) -> Result<()> {
    go_build(folder, "restic", "github.com/restic/restic/cmd/restic", &[])
}

fn minio(folder: &Path) -> Result<()> {
    go_build(folder, "minio", "github.com/minio/minio", &[])
}

/// Builds a program from the Go module that `xtask/tools/<name>` pins, sums and all.
///
/// A module of our own, since `go install module@version` needs version lists that not every
/// module proxy serves.
///
/// `variables` are set in the program: a name and a value each.
fn go_build(folder: &Path, name: &str, package: &str, variables: &[(&str, &str)]) -> Result<()> {
    go_build_in(&root().join("xtask/tools").join(name), &folder.join("bin").join(name), package, variables)
}

/// Builds a package of the Go module in `module` as `program`, which needs no library of the system.
fn go_build_in(module: &Path, program: &Path, package: &str, variables: &[(&str, &str)]) -> Result<()> {
    let set: String = variables.iter().map(|(name, value)| format!(" -X {name}={value}")).collect();
    let mut command = Command::new("go");
    command.args(["build", "-mod=readonly", "-trimpath", &format!("-ldflags=-s -w{set}"), "-o"]);
    command.arg(program).arg(package).current_dir(module).env("CGO_ENABLED", "0");
    output(&mut command).context("Go 1.26 or newer builds it from source").map(drop)
}

/// Starts moto's server. It looks for the folders of all its services at every request, which are the same ones each time
/// and take a third of its time.
const START_MOTO: &str = r#"#!/bin/sh
exec "$(dirname "$0")/../venv/bin/python" -c '
import moto.backends
modules = list(moto.backends.list_of_moto_modules())
moto.backends.list_of_moto_modules = lambda: modules
from moto.server import main
main()
' "$@"
"#;

/// Installs moto beside a Python of its own.
fn moto(folder: &Path) -> Result<()> {
    let venv = || output(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")));
    venv().or_else(|_| debian_packages(&["python3", "python3-venv"]).and_then(|()| venv()))?;
    let mut pip = Command::new(folder.join("venv/bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--no-compile", "--requirement"]);
    output(pip.arg(root().join("xtask/tools/moto/requirements.txt")))?;
    // pip's own start scripts name the folder that they were made in, and this one is renamed.
    let start = folder.join("bin/moto");
    fs::write(&start, START_MOTO)?;
    Ok(fs::set_permissions(start, fs::Permissions::from_mode(0o755))?)
}
