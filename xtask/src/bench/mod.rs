//! `cargo xtask bench`: what Cistern costs, beside what the newest restic costs on the same bytes.
//!
//! Every round runs the same operations with both programs, one right after the other and the first
//! one alternating, so that whatever else the machine does hits both; the result is the median of the
//! rounds' ratios with its spread. All files (data, repositories, caches, temporary files) lie on one
//! file system in memory if it is large enough.

mod compare;
mod data;
mod measure;
mod report;

use crate::process::{cargo, output};
use crate::tools::layout;
use anyhow::{Context, Result, bail};
use data::Set;
use measure::Cost;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const PASSWORD: &str = "benchmark";

/// Compare the CPU time and memory of Cistern and restic
#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(value_enum, default_value = "cpu")]
    what: What,
    /// Data sets, separated by commas [default: random,text,small; for memory: many,huge]
    #[arg(long, value_enum, value_delimiter = ',')]
    set: Vec<Set>,
    /// Rounds of pairs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Size of the data sets, as a factor
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    scale: f64,
    /// Folder for all files [default: in memory if there is room, else the temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Measure this program instead of building it
    #[arg(long)]
    cistern: Option<PathBuf>,
    /// Print all measurements as one JSON document
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// CPU seconds and memory, against restic
    Cpu,
    /// Peak memory of Cistern alone
    Memory,
}

fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.001..=10.0).contains(&scale) { Ok(scale) } else { Err("not between 0.001 and 10".to_owned()) }
}

/// One step that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    First,
    Unchanged,
    Changed,
    Restore,
    /// `check --read-data`.
    Check,
    /// After all snapshots but the newest were forgotten, without leaving anything unused.
    Prune,
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Peer {
    Cistern,
    Restic,
}

/// One run of one program.
#[derive(serde::Serialize)]
pub struct Measurement {
    set: &'static str,
    round: u64,
    operation: Operation,
    peer: Peer,
    #[serde(flatten)]
    cost: Cost,
}

/// Runs the benchmark and prints its table.
pub fn run(arguments: &Arguments) -> Result<()> {
    let memory = arguments.what == What::Memory;
    let sets = match (&arguments.set[..], memory) {
        ([], false) => &[Set::Random, Set::Text, Set::Small][..],
        ([], true) => &[Set::Many, Set::Huge],
        (chosen, _) => chosen,
    };
    let cistern = match &arguments.cistern {
        Some(path) => path.canonicalize().with_context(|| format!("no program at {}", path.display()))?,
        None => build()?,
    };
    let space = sets.iter().map(|set| set.space(arguments.scale)).max().unwrap_or(0);
    let place = Place::new(arguments.dir.as_deref(), space * if memory { 3 } else { 5 } + (256 << 20))?;
    let bench = Bench { cistern, restic: layout::restic()?, folder: &place.0, scale: arguments.scale };
    println!("in {}, {} CPUs", place.0.display(), std::thread::available_parallelism()?);
    let mut all = Vec::new();
    for set in sets {
        println!("{}: generating", set.name());
        let data = place.0.join("data");
        set.generate(&data, arguments.scale)?;
        for round in 0..if memory { 1 } else { arguments.rounds } {
            bench.round(*set, &data, round, memory, &mut all)?;
        }
        fs::remove_dir_all(data)?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    if memory {
        report::memory(&all)
    } else {
        report::ratios(&all)
    }
    Ok(())
}

/// Builds the program as users get it.
fn build() -> Result<PathBuf> {
    println!("building cistern");
    let said = output(cargo().args(["build", "--release", "--package", "cistern", "--message-format=json"]))?;
    let executable = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executable =
        executable.filter_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)));
    executable.next_back().context("cargo named no executable")
}

struct Bench<'a> {
    cistern: PathBuf,
    restic: PathBuf,
    folder: &'a Path,
    scale: f64,
}

impl Bench<'_> {
    /// Each operation with each program, then all repositories go.
    fn round(
        &self,
        set: Set,
        data: &Path,
        round: u64,
        memory: bool,
        all: &mut Vec<Measurement>,
    ) -> Result<()> {
        use Operation::*;
        let peers: &[Peer] = match (memory, round % 2) {
            (true, _) => &[Peer::Cistern],
            (false, 0) => &[Peer::Cistern, Peer::Restic],
            (false, _) => &[Peer::Restic, Peer::Cistern],
        };
        // One repository for both: a program chooses how dear its key is by how busy the machine is just then.
        let first = self.home(peers[0]);
        for peer in peers {
            let home = self.home(*peer);
            fs::create_dir_all(home.join("tmp"))?;
            if home == first {
                output(self.restic_command(&home).arg("init"))?;
            } else {
                output(Command::new("cp").arg("-a").arg(first.join("repository")).arg(&home))?;
            }
        }
        let operations: &[Operation] = if set == Set::Huge {
            &[First, Unchanged, Restore]
        } else {
            &[First, Unchanged, Changed, Restore, Check, Prune]
        };
        for operation in operations {
            if *operation == Changed {
                set.change(data, self.scale, round + 1)?;
            }
            for peer in peers {
                self.warm(set)?;
                let cost = self.measure(*peer, *operation, data, set != Set::Huge && round == 0)?;
                println!(
                    "{} round {}: {operation:?} {peer:?}: {:.2} s CPU, {:.2} s, {} MiB",
                    set.name(),
                    round + 1,
                    cost.cpu,
                    cost.wall,
                    cost.rss >> 20
                );
                all.push(Measurement { set: set.name(), round, operation: *operation, peer: *peer, cost });
            }
        }
        for peer in peers {
            if round == 0 {
                // Both repositories must please the same judge.
                output(self.restic_command(&self.home(*peer)).arg("check"))?;
            }
            fs::remove_dir_all(self.home(*peer))?;
        }
        Ok(())
    }

    /// Touches as much memory as an operation may write to: on a virtual machine the first to use pages that were free for
    /// a while pays for them, whoever it is.
    fn warm(&self, set: Set) -> Result<()> {
        let path = self.folder.join("warm");
        let mut file = fs::File::create(&path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..set.space(self.scale) >> 20 {
            file.write_all(&zeros)?;
        }
        fs::remove_file(path)?;
        Ok(())
    }

    fn measure(&self, peer: Peer, operation: Operation, data: &Path, check: bool) -> Result<Cost> {
        let home = self.home(peer);
        let log = home.join("log");
        match operation {
            Operation::First | Operation::Unchanged | Operation::Changed => {
                return measure::run(self.command(peer, "backup").arg(data), &log);
            }
            Operation::Check => return measure::run(self.command(peer, "check").arg("--read-data"), &log),
            Operation::Prune => {
                output(self.command(peer, "forget").args(["--keep-last", "1"]))?;
                return measure::run(self.command(peer, "prune").args(["--max-unused", "0"]), &log);
            }
            Operation::Restore => {}
        }
        let target = home.join("restored");
        let mut command = self.command(peer, "restore");
        let flag = if peer == Peer::Cistern { "--to" } else { "--target" };
        let cost = measure::run(command.arg("latest").arg(flag).arg(&target), &log)?;
        if check {
            compare::same(data, &target)?;
        }
        fs::remove_dir_all(target)?;
        Ok(cost)
    }

    fn home(&self, peer: Peer) -> PathBuf {
        self.folder.join(match peer {
            Peer::Cistern => "cistern",
            Peer::Restic => "restic",
        })
    }

    fn command(&self, peer: Peer, verb: &str) -> Command {
        let home = self.home(peer);
        let mut command = match peer {
            Peer::Restic => self.restic_command(&home),
            Peer::Cistern => {
                let mut command = hermetic(&self.cistern, &home);
                command.env("CISTERN_PASSWORD", PASSWORD).arg("--repo").arg(home.join("repository"));
                command
            }
        };
        command.args(["--quiet", verb]);
        command
    }

    fn restic_command(&self, home: &Path) -> Command {
        let mut command = hermetic(&self.restic, home);
        command.env("RESTIC_PASSWORD", PASSWORD).arg("--repo").arg(home.join("repository"));
        command
    }
}

/// A program that sees nothing of the user's settings and writes below `home` only.
fn hermetic(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TZ", "UTC");
    command.env("HOME", home).env("XDG_CACHE_HOME", home.join("cache")).env("TMPDIR", home.join("tmp"));
    command
}

/// A folder for one run, removed at its end.
struct Place(PathBuf);

impl Place {
    fn new(wish: Option<&Path>, space: u64) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = match wish {
            Some(wish) => wish.to_owned(),
            None if free(memory).is_some_and(|free| free > space) => memory.to_owned(),
            None => std::env::temp_dir(),
        };
        remove_left_over(&parent)?;
        match free(&parent) {
            Some(free) if free > space => {}
            Some(free) => {
                bail!("{} MiB are needed in {}, {} are free", space >> 20, parent.display(), free >> 20)
            }
            None => bail!("cannot tell how much is free in {}", parent.display()),
        }
        let folder = parent.join(format!("cistern-bench-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(Self(folder))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            println!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Removes the folders of runs that were killed: they may hold gigabytes of memory.
fn remove_left_over(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let owner = entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("cistern-bench-")?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Bytes that an ordinary user may still write there.
fn free(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}
