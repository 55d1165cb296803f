//! `cargo xtask test`: everything that must hold before a change is taken, stage by stage.
//!
//! The last line counts the tests that ran, as cargo counted them; any other stage that fails counts as one.

use crate::process::{cargo, line, show};
use crate::{fuzz, tools};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Install what the tests need, lint, and run all tests
#[derive(clap::Args)]
pub struct Arguments {
    /// Leave out the stage `fuzz`
    #[arg(long)]
    quick: bool,
    /// Run only this stage (repeatable)
    #[arg(long, value_name = "STAGE", value_parser = STAGES.map(|stage| stage.name))]
    only: Vec<String>,
    /// Seconds that each fuzz target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    fuzz_seconds: u64,
}

/// What the tests of one stage said.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

struct Stage {
    name: &'static str,
    run: fn(&Arguments, &mut Tally) -> Result<()>,
}

const STAGES: [Stage; 7] = [
    Stage { name: "format", run: |_, _| format() },
    Stage { name: "tools", run: |_, _| tools::install_peers() },
    Stage {
        name: "lint",
        run: |_, _| show(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    },
    Stage { name: "test", run: |_, tally| tests(tally) },
    Stage { name: "docs", run: |_, _| docs() },
    Stage { name: "fuzz", run: |arguments, _| fuzz::run(&fuzz::Arguments::each_for(arguments.fuzz_seconds)) },
    Stage { name: "demo", run: |_, _| show(cargo().args(["run", "--release", "--", "demo"])) },
];

/// Runs the chosen stages up to the first that fails, and prints the summary.
pub fn run(arguments: &Arguments) -> ExitCode {
    let chosen = |stage: &&Stage| match arguments.only.is_empty() {
        true => !(arguments.quick && stage.name == "fuzz"),
        false => arguments.only.iter().any(|name| name == stage.name),
    };
    let mut tally = Tally::default();
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut failure = None;
    for stage in STAGES.iter().filter(chosen) {
        println!("\n== {} ==", stage.name);
        let start = Instant::now();
        let result = (stage.run)(arguments, &mut tally);
        times.push((stage.name, start.elapsed()));
        if let Err(error) = result {
            tally.failed = tally.failed.max(1);
            failure = Some(error.context(format!("stage `{}` failed", stage.name)));
            break;
        }
    }
    println!("\n== summary ==");
    for (name, time) in &times {
        println!("{name:8} {:6.1} s", time.as_secs_f64());
    }
    println!("{:8} {:6.1} s", "total", times.iter().map(|(_, time)| time.as_secs_f64()).sum::<f64>());
    if let Some(error) = &failure {
        println!("\n{error:#}");
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    if failure.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Names the files that are not formatted.
fn format() -> Result<()> {
    show(cargo().args(["fmt", "--all", "--", "--check", "-l"])).context("run `cargo fmt --all`")
}

/// Builds all tests, runs them, also behind a failed one, and counts what they report.
fn tests(tally: &mut Tally) -> Result<()> {
    let binaries = test_binaries()?;
    let waiting = Mutex::new(VecDeque::from(binaries));
    let done = Mutex::new((*tally, Vec::new()));
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(binary) = { waiting.lock().expect("no worker panics").pop_front() } {
                    let ran = binary.run();
                    // Printed as a whole, so that two outputs do not mix.
                    let mut done = done.lock().expect("no worker panics");
                    match ran {
                        Ok((text, status)) => {
                            println!("\n     Running {}\n{text}", binary.name);
                            done.0.count(&text);
                            if !status.success() {
                                done.1.push(format!("{} failed ({status})", binary.name));
                            }
                        }
                        Err(error) => done.1.push(format!("{}: {error:#}", binary.name)),
                    }
                }
            });
        }
    });
    let (counted, mut failures) = done.into_inner().expect("no worker panics");
    *tally = counted;
    if tally.passed == 0 {
        bail!("no test ran");
    }
    let documented = cargo().args(["test", "--workspace", "--doc"]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&documented.stdout).into_owned();
    println!("{text}{}", String::from_utf8_lossy(&documented.stderr));
    tally.count(&text);
    if !documented.status.success() {
        failures.push(format!("`cargo test --doc` failed ({})", documented.status));
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
}

/// Test programs that run at once: they wait for disks and for each other's servers more than they compute.
const JOBS: usize = 3;

/// One program of tests.
struct Binary {
    name: String,
    executable: PathBuf,
    package: PathBuf,
}

impl Binary {
    /// Runs it as cargo does: in the folder of its package.
    fn run(&self) -> Result<(String, ExitStatus)> {
        let output = Command::new(&self.executable)
            .current_dir(&self.package)
            .env("CARGO_MANIFEST_DIR", &self.package)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", self.executable.display()))?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((text, output.status))
    }
}

/// Builds the programs of all tests and asks cargo where they are
/// (<https://doc.rust-lang.org/cargo/reference/external-tools.html#json-messages>).
fn test_binaries() -> Result<Vec<Binary>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let text = line(&command);
    let output = command.output().with_context(|| format!("cannot start `{text}`"))?;
    if !output.status.success() {
        bail!("`{text}` failed ({})", output.status);
    }
    let mut binaries = Vec::new();
    for message in output.stdout.split(|byte| *byte == b'\n').filter(|message| !message.is_empty()) {
        let message: serde_json::Value = serde_json::from_slice(message).context("cargo speaks no JSON")?;
        let (Some(executable), Some(true)) =
            (message["executable"].as_str(), message["profile"]["test"].as_bool())
        else {
            continue;
        };
        let manifest = message["manifest_path"].as_str().context("cargo names no manifest")?;
        let package = Path::new(manifest).parent().context("a manifest lies in a folder")?.to_owned();
        // These need a cluster: `cargo xtask e2e`.
        if package.ends_with("e2e") {
            continue;
        }
        let (kind, name) = (&message["target"]["kind"][0], &message["target"]["name"]);
        let folder = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        binaries.push(Binary {
            name: format!("{folder}: {} {}", kind.as_str().unwrap_or(""), name.as_str().unwrap_or("")),
            executable: executable.into(),
            package,
        });
    }
    Ok(binaries)
}

impl Tally {
    /// Adds what the closing lines in an output say.
    fn count(&mut self, text: &str) {
        for Tally { passed, failed } in text.lines().filter_map(closing_line) {
            self.passed += passed;
            self.failed += failed;
        }
    }
}

/// The counts in a line such as `test result: ok. 3 passed; 0 failed; 0 ignored; …`.
fn closing_line(line: &str) -> Option<Tally> {
    let counts = line.strip_prefix("test result: ")?;
    let count = |word: &str| {
        let before = counts.split(';').find_map(|part| part.trim_end().strip_suffix(word))?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some(Tally { passed: count(" passed")?, failed: count(" failed")? })
}

/// Builds the documentation; a link that leads nowhere is an error.
fn docs() -> Result<()> {
    show(cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_closing_lines_of_cargo_count() {
        let cases = [
            (
                "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.02s",
                Some((12, 0)),
            ),
            (
                "test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
                Some((7, 2)),
            ),
            ("test tools::it_passed ... ok", None),
            ("12 passed; 0 failed", None),
        ];
        for (line, counts) in cases {
            assert_eq!(closing_line(line), counts.map(|(passed, failed)| Tally { passed, failed }), "{line}");
        }
    }
}
