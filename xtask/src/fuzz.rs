//! `cargo xtask fuzz`: feeds hostile bytes to every parser, guided by coverage, with the stable compiler.
//!
//! The compiler's coverage pass and libFuzzer are all that is needed: the flags below are those that
//! cargo-fuzz passes (<https://github.com/rust-fuzz/cargo-fuzz>), without a sanitizer, which only
//! nightly has. The one program `fuzz` holds all targets; a folder of `fuzz/seeds` names each.

use crate::process::{cargo, debian_packages, output, root};
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

/// What cargo-fuzz passes to the compiler.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cforce-frame-pointers=yes",
];

/// Targets that run at once: more than there are cores on small machines, as every one has its minute all the same.
const JOBS: u64 = 9;

/// Fuzz the parsers
#[derive(clap::Args)]
pub struct Arguments {
    /// Targets [default: all]
    target: Vec<String>,
    /// Seconds for each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Targets that run at once
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
}

impl Arguments {
    /// Every target for this long.
    pub fn each_for(seconds: u64) -> Self {
        Self { target: Vec::new(), seconds, jobs: JOBS }
    }
}

/// Builds the fuzzer and runs the targets; an input that breaks one is an error that names its file.
pub fn run(arguments: &Arguments) -> Result<()> {
    let known = targets()?;
    if let Some(unknown) = arguments.target.iter().find(|name| !known.contains(name)) {
        bail!("no target is called {unknown}; there are: {}", known.join(" "));
    }
    let chosen = if arguments.target.is_empty() { known } else { arguments.target.clone() };
    let program = build()?;
    let waiting = Mutex::new(VecDeque::from(chosen));
    let failures = Mutex::new(Vec::new());
    println!("{:18} {:>12} {:>10} {:>7} {:>9}", "target", "inputs", "coverage", "corpus", "MiB peak");
    thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                while let Some(name) = { waiting.lock().expect("no worker panics").pop_front() } {
                    match target(&program, &name, arguments.seconds) {
                        Ok(line) => println!("{line}"),
                        Err(error) => {
                            println!("{name:18} FAILED");
                            failures.lock().expect("no worker panics").push(format!("{name}: {error:#}"));
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no worker panics");
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n\n")) }
}

/// The targets, sorted: each has a folder of seeds.
fn targets() -> Result<Vec<String>> {
    let seeds = root().join("fuzz/seeds");
    let entries = fs::read_dir(&seeds).with_context(|| format!("cannot list {}", seeds.display()))?;
    let mut names: Vec<String> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

/// Builds the program with coverage, apart from the ordinary builds.
fn build() -> Result<PathBuf> {
    if output(Command::new("c++").arg("--version")).is_err() {
        // libFuzzer is C++.
        debian_packages(&["g++"])?;
    }
    let host = output(Command::new("rustc").arg("-vV"))?;
    let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    // A target that is named keeps the flags away from build scripts and macros.
    let mut command = cargo();
    command.args([
        "build",
        "--package",
        "cistern-fuzz",
        "--profile",
        "fuzz",
        "--target",
        host,
        "--target-dir",
    ]);
    command.arg(folder()).env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    crate::process::show(&mut command)?;
    Ok(folder().join(host).join("fuzz/cistern-fuzz"))
}

/// Where everything that fuzzing makes lies.
fn folder() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root().join(target).join("fuzz"),
        None => root().join("target/fuzz"),
    }
}

/// Runs one target and returns a line for the table.
fn target(program: &Path, name: &str, seconds: u64) -> Result<String> {
    // What was found in earlier runs is kept, and made small again only by `cargo clean`.
    let corpus = folder().join("corpus").join(name);
    let found = folder().join("found");
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&found)?;
    let mut command = Command::new(program);
    command.env("CISTERN_FUZZ_TARGET", name).env("RUST_BACKTRACE", "0").current_dir(root());
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/{name}-", found.display()));
    command.args([
        "-rss_limit_mb=1024",
        "-timeout=10",
        "-max_len=16384",
        "-print_final_stats=1",
        "-verbosity=1",
    ]);
    command.arg(&corpus).arg(root().join("fuzz/seeds").join(name));
    let said = command.output().with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&said.stderr);
    if !said.status.success() {
        // What counts begins where the program panicked or libFuzzer complained.
        let from = ["panicked at", "ERROR: libFuzzer"].iter().filter_map(|mark| text.find(mark)).min();
        let how = format!("CISTERN_FUZZ_TARGET={name} {} FILE", program.display());
        bail!("{}\n{}\nrun it again by: {how}", said.status, &text[from.unwrap_or(0)..]);
    }
    summary(name, &text).with_context(|| format!("cannot read what the fuzzer said:\n{text}"))
}

/// The figures of one run: inputs, coverage at its start and end, corpus, memory.
fn summary(name: &str, text: &str) -> Result<String> {
    let of = |line: &str, word: &str| -> Option<u64> {
        let mut words = line.split_whitespace().skip_while(|found| *found != word).skip(1);
        words.next()?.split('/').next()?.parse().ok()
    };
    let stat = |word: &str| {
        text.lines().find_map(|line| of(line, word)).with_context(|| format!("{word} is missing"))
    };
    let inited = text.lines().find(|line| line.contains("INITED"));
    let before =
        inited.and_then(|line| of(line, "cov:")).context("no coverage: the program is not instrumented")?;
    let after = text.lines().rev().find_map(|line| of(line, "cov:")).unwrap_or(before);
    let corpus = text.lines().rev().find_map(|line| of(line, "corp:")).unwrap_or(0);
    let inputs = stat("stat::number_of_executed_units:")?;
    let memory = stat("stat::peak_rss_mb:")?;
    Ok(format!("{name:18} {inputs:>12} {:>10} {corpus:>7} {memory:>9}", format!("{before}>{after}")))
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_run_is_summed_up_from_what_libfuzzer_prints() {
        let text = "#2\tINITED cov: 39 ft: 85 corp: 1/1b exec/s: 0 rss: 27Mb\n\
                    #9\tNEW    cov: 44 ft: 96 corp: 2/3b lim: 4 exec/s: 0 rss: 27Mb L: 2/2 MS: 1 InsertByte-\n\
                    #3232412\tDONE   cov: 145 ft: 496 corp: 88/3b lim: 4096 exec/s: 153924 rss: 31Mb\n\
                    stat::number_of_executed_units: 3232412\nstat::peak_rss_mb:              31\n";
        let line = summary("json", text).expect("all figures are there");
        assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["json", "3232412", "39>145", "88", "31"]);
        assert!(summary("json", "INFO: nothing was loaded").is_err());
    }
}
