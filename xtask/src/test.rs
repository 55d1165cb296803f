//! `cargo xtask test`: everything that must hold before a change is taken, stage by stage.
//!
//! The last line counts the tests that ran, as cargo counted them; any other stage that fails counts as one.

use crate::process::{cargo, line, show};
use crate::{fuzz, tools};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};
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
    Stage { name: "tools", run: |_, _| tools::install(&[]) },
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

/// Runs all tests, also behind a failed one, and counts what cargo reports.
fn tests(tally: &mut Tally) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let text = line(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start `{text}`"))?;
    let out = child.stdout.take().expect("its standard output is a pipe");
    for said in BufReader::new(out).split(b'\n') {
        let said = String::from_utf8_lossy(&said?).into_owned();
        println!("{said}");
        if let Some(Tally { passed, failed }) = closing_line(&said) {
            tally.passed += passed;
            tally.failed += failed;
        }
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{text}` failed ({status})");
    }
    if tally.passed == 0 {
        bail!("`{text}` ran no test");
    }
    Ok(())
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
