//! Backs up a synthetic bucket into a directory, or restores what is there, and prints peak memory and time: `million
//! KIND DIRECTORY [RUNS]`.
//!
//! KIND is `folders` (a million objects of 1 KiB, 1,000 to a folder), `flat` (the same in one folder), `large` (one
//! object of 20 GiB) or `restore` (the newest snapshot, into a bucket that takes everything and keeps nothing). Each run
//! is a process's worth of peak memory, so one run per call tells most.
#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

// Memory is measured as the binary has it.
#[path = "../../cli/src/allocator.rs"]
mod allocator;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use cistern_bucket::{
    Address, Attributes, Bucket, Capabilities, DeleteOutcome, Directory, Entry, ErrorKind, Get, GetOptions,
    Key, Ledger, ListRequest, Page, PartId, Put, PutOptions, Revision, Tags, Upload, Verb,
};
use cistern_engine::{Access, Backup, Cx, Error, Report, Restore, Result, Role, Silent, Task};
use cistern_repository::{Identity, Options, Repository};
use cistern_testkit::Synthetic;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

/// A bucket that takes everything, and remembers no more than how much was sent in parts.
#[derive(Debug, Default)]
struct Nowhere {
    ledger: Ledger,
    parts: AtomicU64,
}

fn not_there<T>(verb: Verb) -> cistern_bucket::Result<T> {
    Err(cistern_bucket::Error::new(ErrorKind::NoSuchKey, verb, "nowhere"))
}

#[async_trait]
impl Bucket for Nowhere {
    fn name(&self) -> &str {
        "nowhere"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            list_after: true,
            attributes: true,
            tags: true,
            multipart: true,
            create_only: false,
            copy: false,
            retention: false,
            max_put: 5 << 30,
        }
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    async fn probe(&self) -> cistern_bucket::Result<()> {
        Ok(())
    }

    async fn create(&self) -> cistern_bucket::Result<()> {
        Ok(())
    }

    async fn list(&self, _: &ListRequest) -> cistern_bucket::Result<Page> {
        self.ledger.request(Verb::List);
        Ok(Page::default())
    }

    async fn head(&self, key: &Key) -> cistern_bucket::Result<(Entry, Attributes)> {
        match self.parts.load(Relaxed) {
            0 => not_there(Verb::Head),
            size => {
                let (modified, revision) = (jiff::Timestamp::UNIX_EPOCH, Revision::Unknown);
                let entry =
                    Entry { key: key.clone(), size, modified, revision, class: None, attributes: None };
                Ok((entry, Attributes::default()))
            }
        }
    }

    async fn get(&self, _: &Key, _: &GetOptions) -> cistern_bucket::Result<Get> {
        not_there(Verb::Get)
    }

    async fn put(&self, _: &Key, _: &[Bytes], _: &PutOptions) -> cistern_bucket::Result<Put> {
        self.ledger.request(Verb::Put);
        Ok(Put { revision: Revision::Unknown })
    }

    async fn begin_upload(&self, key: &Key, _: &PutOptions) -> cistern_bucket::Result<Upload> {
        self.ledger.request(Verb::Multipart);
        Ok(Upload { key: key.clone(), id: "upload".into() })
    }

    async fn upload_part(&self, _: &Upload, number: u32, body: &[Bytes]) -> cistern_bucket::Result<PartId> {
        self.ledger.request(Verb::Put);
        self.parts.fetch_add(body.iter().map(|piece| piece.len() as u64).sum(), Relaxed);
        Ok(PartId { number, etag: String::new() })
    }

    async fn complete_upload(&self, _: &Upload, _: &[PartId], _: &PutOptions) -> cistern_bucket::Result<Put> {
        self.ledger.request(Verb::Multipart);
        Ok(Put { revision: Revision::Unknown })
    }

    async fn abort_upload(&self, _: &Upload) -> cistern_bucket::Result<()> {
        Ok(())
    }

    async fn copy(&self, _: &Key, _: &Key) -> cistern_bucket::Result<Put> {
        not_there(Verb::Copy)
    }

    async fn delete(&self, _: &Key) -> cistern_bucket::Result<()> {
        Ok(())
    }

    async fn delete_many(&self, _: &[Key]) -> Vec<DeleteOutcome> {
        Vec::new()
    }

    async fn tags(&self, _: &Key) -> cistern_bucket::Result<Tags> {
        not_there(Verb::Tags)
    }
}

struct World {
    source: Arc<dyn Bucket>,
    repository: Arc<dyn Bucket>,
}

#[async_trait]
impl Access for World {
    async fn bucket(&self, _: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        Ok(match role {
            Role::Repository => self.repository.clone(),
            Role::Source => self.source.clone(),
            Role::Target => Arc::new(Nowhere::default()),
        })
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
    let usage = || Error::Invalid("usage: million folders|flat|large|restore DIRECTORY [RUNS]".into());
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next();
    let source = match kind.as_deref() {
        Some("restore") => Synthetic::new("s3://synthetic", 0, 0),
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
        if kind.as_deref() == Some("restore") {
            let target = "s3://nowhere".parse().map_err(Error::Target)?;
            let restore = Task::Restore(Restore::new(task.repository.clone(), "latest", target));
            let Report::Restore(report) = cistern_engine::run(&restore, &cx).await? else { break };
            println!(
                "{} written ({} bytes), {:?} to the repository: {:.1} s, {:.1} s of processor, peak {} MiB",
                report.objects_written,
                report.bytes_written,
                report.repository_requests.by_kind,
                start.elapsed().as_secs_f64(),
                processor_seconds() - before,
                peak_memory(),
            );
            continue;
        }
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
