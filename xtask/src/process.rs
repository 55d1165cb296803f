//! Starts other programs: a failure is an error that shows what the program said.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How many closing lines of a failed program an error shows.
const TAIL: usize = 40;

/// The root of the checkout, whatever folder the task was started in.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root of the checkout").to_owned()
}

/// Runs a program to its end and returns what it printed; nothing is shown unless it fails.
pub fn output(command: &mut Command) -> Result<String> {
    let text = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{text}`"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complete = said + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = complete.lines().collect();
    bail!("`{text}` failed ({}):\n{}", output.status, lines[lines.len().saturating_sub(TAIL)..].join("\n"))
}

/// Runs a program to its end with its output in plain sight.
pub fn show(command: &mut Command) -> Result<()> {
    let text = line(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start `{text}`"))?;
    if status.success() { Ok(()) } else { bail!("`{text}` failed ({status})") }
}

/// The cargo that runs this task, in the root of the checkout.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The command as a person would type it.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = std::iter::once(program.file_name().unwrap_or(program.as_os_str())).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Installs Debian packages; the list of packages is fetched once if the machine has none.
pub fn debian_packages(names: &[&str]) -> Result<()> {
    let install = || {
        let mut command = Command::new("apt-get");
        // Somebody else may be installing.
        command
            .args(["-o", "DPkg::Lock::Timeout=600", "install", "--yes", "--no-install-recommends"])
            .args(names);
        output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    install()
        .or_else(|_| output(Command::new("apt-get").arg("update")).and_then(|_| install()))
        .map(drop)
        .with_context(|| {
            format!("these Debian packages are needed, and installing them takes root: {}", names.join(" "))
        })
}
