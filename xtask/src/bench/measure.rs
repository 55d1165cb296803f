//! Runs one program and asks the kernel what it cost: CPU time with all its children, and peak memory.
#![expect(
    unsafe_code,
    reason = "the standard library has no wait4, the only call that tells what one child cost"
)]

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

/// What one run cost.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Cost {
    /// Seconds of user and system time, children included.
    pub cpu: f64,
    /// Seconds that passed.
    pub wall: f64,
    /// Peak resident memory of the largest process, bytes. Never less than that of this
    /// process, which a child shares until it executes its program.
    pub rss: u64,
}

/// Runs the command to its end; what it prints goes to `log`.
pub fn run(command: &mut Command, log: &Path) -> Result<Cost> {
    let text = crate::process::line(command);
    let out = File::create(log)?;
    let start = Instant::now();
    let child = command.stdin(Stdio::null()).stderr(out.try_clone()?).stdout(out);
    let child = child.spawn().with_context(|| format!("cannot start `{text}`"))?;
    let (status, usage) = wait(child.id()).context("cannot wait for a child")?;
    let wall = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("`{text}` failed ({status}):\n{}", fs::read_to_string(log)?);
    }
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let cpu = seconds(usage.ru_utime) + seconds(usage.ru_stime);
    Ok(Cost { cpu, wall, rss: usage.ru_maxrss as u64 * 1024 })
}

/// Waits for a child of this process that nobody else waits for.
fn wait(pid: u32) -> io::Result<(ExitStatus, libc::rusage)> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    loop {
        // SAFETY: both pointers are to live values of the types that wait4(2) writes.
        let answer = unsafe { libc::wait4(pid as libc::pid_t, &raw mut status, 0, usage.as_mut_ptr()) };
        if answer >= 0 {
            // SAFETY: a `rusage` holds integers only, so that zeroes are a value of it, and the kernel filled it.
            return Ok((ExitStatus::from_raw(status), unsafe { usage.assume_init() }));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
