//! Backs up a synthetic bucket into a directory, twice, and prints peak memory and time: `million KIND DIRECTORY
//! [RUNS]`.
//!
//! KIND is `folders` (a million objects of 1 KiB, 1,000 to a folder), `flat` (the same in one folder) or `large` (one
//! object of 20 GiB). Each run is a process's worth of peak memory, so one run per call tells most.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Directory};
use cistern_engine::{Access, Backup, Cx, Error, Report, Result, Role, Silent, Task};
use cistern_repository::{Identity, Options, Repository};
use cistern_testkit::Synthetic;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

struct World {
    source: Arc<dyn Bucket>,
    repository: Arc<dyn Bucket>,
}

#[async_trait]
impl Access for World {
    async fn bucket(&self, _: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(if role == Role::Repository { self.repository.clone() } else { self.source.clone() })
    }

    async fn password(&self, _: &Address) -> Result<SecretString> {
        Ok(SecretString::from("measure"))
    }

    fn options(&self, _: &Address) -> Options {
        Options::default()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let usage = || Error::Invalid("usage: million folders|flat|large DIRECTORY [RUNS]".into());
    let mut arguments = std::env::args().skip(1);
    let source = match arguments.next().as_deref() {
        Some("folders") => Synthetic::new("s3://synthetic", 1_000_000, 1 << 10),
        Some("flat") => Synthetic::new("s3://synthetic", 1_000_000, 1 << 10).flat(),
        Some("large") => Synthetic::new("s3://synthetic", 1, 20 << 30),
        _ => return Err(usage()),
    };
    let folder = arguments.next().ok_or_else(usage)?;
    let runs: u32 = arguments.next().and_then(|runs| runs.parse().ok()).unwrap_or(1);
    let world = Arc::new(World { source: Arc::new(source), repository: Arc::new(Directory::new(&folder)) });
    let identity = Identity {
        hostname: "measure".into(),
        username: "measure".into(),
        pid: std::process::id(),
        uid: 0,
        gid: 0,
    };
    let password = SecretString::from("measure");
    match Repository::init(world.repository.clone(), &password, &identity, Options::default()).await {
        Ok(_) | Err(cistern_repository::Error::AlreadyARepository { .. }) => (),
        Err(error) => return Err(error.into()),
    }
    let cx = Cx {
        access: world,
        progress: Arc::new(Silent),
        cancel: CancellationToken::new(),
        identity,
        concurrency: 64,
        lock_wait: Duration::ZERO,
    };
    let task = Backup::new(
        "s3://synthetic".parse().map_err(Error::Source)?,
        Address::Directory(folder.into()),
        "measure",
    );
    for _ in 0..runs {
        let (start, before) = (Instant::now(), processor_seconds());
        let Report::Backup(report) = cistern_engine::run(&Task::Backup(task.clone()), &cx).await? else {
            break;
        };
        println!(
            "{} listed, {} read, {} parts, {:?}: {:.1} s, {:.1} s of processor, peak {} MiB",
            report.objects_listed,
            report.objects_new + report.objects_changed,
            report.parts.len(),
            report.source_requests.by_kind,
            start.elapsed().as_secs_f64(),
            processor_seconds() - before,
            peak_memory(),
        );
    }
    Ok(())
}

/// Peak resident memory of this process in MiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// User and system time of this process in seconds.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
