//! Programs that go on after the task ends: started, found again and ended by their recorded id.

use super::layout::Layout;
use crate::process::line;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at that nothing announces.
const PAUSE: Duration = Duration::from_millis(100);

/// Clock ticks in a second: to programs, Linux shows 100 on every machine that Kubernetes runs on.
const TICKS: f64 = 100.0;

/// A process as it was recorded: ids are used again, but not with the same start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    pid: i32,
    /// Clock ticks between the start of the machine and that of the process.
    start: u64,
}

/// What the kernel tells of a live process; see proc_pid_stat(5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stat {
    start: u64,
    /// User and system time.
    pub seconds: f64,
}

/// One program of a cluster.
pub struct Daemon<'a> {
    layout: &'a Layout,
    name: &'a str,
}

impl<'a> Daemon<'a> {
    pub fn new(layout: &'a Layout, name: &'a str) -> Self {
        Self { layout, name }
    }

    fn record(&self) -> PathBuf {
        self.layout.path("pid").join(self.name)
    }

    fn log(&self) -> PathBuf {
        self.layout.path("log").join(format!("{}.log", self.name))
    }

    fn identity(&self) -> Option<Identity> {
        let text = fs::read_to_string(self.record()).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Identity { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }

    /// The process, if it runs: its id and what the kernel tells of it.
    pub fn running(&self) -> Option<(i32, Stat)> {
        let Identity { pid, start } = self.identity()?;
        let stat = stat(pid).filter(|stat| stat.start == start)?;
        Some((pid, stat))
    }

    /// Starts the command in the network of the cluster, unless it runs; it sees no environment but `variables`.
    pub fn start(&self, command: &[String], variables: &[(&str, &str)]) -> Result<()> {
        if self.running().is_some() {
            return Ok(());
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        // Both programs execute the next one, so that the id is that of the daemon; a session of its own
        // keeps the end of a terminal away from it.
        let mut process = Command::new("setsid");
        process.arg("nsenter").arg(format!("--net={}", self.layout.namespace().display())).arg("--");
        process.args(command).env_clear().env("PATH", super::PATH).envs(variables.iter().copied());
        process.current_dir("/").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // It outlives this task, which does not wait for it.
        let child = process.spawn().with_context(|| format!("cannot start `{}`", line(&process)))?;
        let pid = i32::try_from(child.id())?;
        let start = stat(pid).with_context(|| format!("{} ended at once: {}", self.name, self.tail()))?.start;
        Ok(fs::write(self.record(), format!("{pid} {start}\n"))?)
    }

    /// Ends it, by force if it does not within `patience`.
    pub fn stop(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut signal = Signal::TERM;
        while let Some((pid, _)) = self.running() {
            if Instant::now() > deadline {
                signal = Signal::KILL;
            }
            kill(pid, signal);
            sleep(PAUSE);
        }
        match fs::remove_file(self.record()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// The closing lines of its log.
    fn tail(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(15);
        format!("\n{}\n(all of it: {})", lines[from..].join("\n"), self.log().display())
    }
}

/// Looks until `there` holds; fails when a program that it needs ended, or after `patience`.
pub fn wait_for(
    what: &str,
    patience: Duration,
    needs: &[Daemon<'_>],
    mut there: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !there() {
        if let Some(daemon) = needs.iter().find(|daemon| daemon.running().is_none()) {
            bail!("{} ended while {what} was waited for:{}", daemon.name, daemon.tail());
        }
        if Instant::now() > deadline {
            let logs: Vec<String> =
                needs.iter().map(|daemon| format!("{}:{}", daemon.name, daemon.tail())).collect();
            bail!("{what}: not there after {} s\n{}", patience.as_secs(), logs.join("\n"));
        }
        sleep(PAUSE);
    }
    Ok(())
}

/// Sends a signal to a process that may have ended.
pub fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

/// What the kernel tells of a process; nothing of one that has ended, also if nobody has reaped it.
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The fields behind the name, which may itself hold blanks and brackets: the first is the third of the manual.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    if ["Z", "X"].contains(fields.first()?) {
        return None;
    }
    Some(Stat { start: number(19)?, seconds: (number(11)? + number(12)?) as f64 / TICKS })
}

/// Resident memory of a process; 0 of one that has ended.
pub fn resident_mib(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// The ids of the processes whose command line `chosen` takes: the words of it.
pub fn processes(chosen: impl Fn(&[&str]) -> bool) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter(|pid| {
        let text = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        chosen(&text.split('\0').collect::<Vec<_>>())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_whatever_its_name() {
        let text = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 2 3 4 50 6 0 0 20 0 9 0 12345 8192 321 1844\n")
        };
        let stat = Some(Stat { start: 12345, seconds: 0.56 });
        assert_eq!(parse_stat(&text("sh", "S")), stat);
        assert_eq!(parse_stat(&text("a) Z (b", "R")), stat);
        assert_eq!(parse_stat(&text("sh", "Z")), None, "it only waits to be reaped");
        assert_eq!(parse_stat("7 (sh) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn this_process_runs_and_can_be_found() {
        let own = i32::try_from(std::process::id()).expect("ids are positive");
        assert!(stat(own).is_some() && resident_mib(own) > 0);
        let program = std::env::args().next().expect("a program has a name");
        assert!(processes(|words| words[0] == program).contains(&own));
    }
}
