//! Compares a snapshot with a live source: by listing alone, or reading the contents on both sides, too.
//!
//! Nothing is written. What differs is an exception of the report: [`ExceptionKind::OnlyInSnapshot`],
//! [`ExceptionKind::OnlyInSource`], [`ExceptionKind::Differs`]; what the repository does not give back whole is
//! [`ExceptionKind::Damaged`].
//!
//! By listing alone, two objects are equal if size and entity tag (or generation) are; where one side has none, if
//! size and time of modification in whole seconds are. With contents, the bytes decide, and the attributes that come
//! with them.

mod bucket;
mod content;
mod directory;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cistern_bucket::{Address, LedgerSnapshot};
use cistern_repository::{Id, NodeKind, Reader, Repository, Snapshot};
use jiff::Timestamp;

use crate::backup::session::{Collector, Ticker, open_repository};
use crate::restore::lock_if_possible;
use crate::select::{Select, clean};
use crate::snapshots::{Selected, resolve};
use crate::{Cx, Error, ExceptionKind, Meter, Phase, Requests, Result, Role, Verify, VerifyReport};

/// What a comparison shares.
struct Job {
    task: Verify,
    cx: Cx,
    reader: Reader,
    select: Select,
    selected: Selected,
    collector: Collector,
    meter: Arc<Meter>,
    equal: AtomicU64,
    equal_bytes: AtomicU64,
}

impl Job {
    /// Counts an object that is the same on both sides.
    fn equal(&self, bytes: u64) {
        self.equal.fetch_add(1, Relaxed);
        self.equal_bytes.fetch_add(bytes, Relaxed);
    }

    fn differs(&self, key: impl std::fmt::Display, detail: impl std::fmt::Display) {
        self.collector.add(ExceptionKind::Differs, key, detail);
    }
}

/// Compares what the task names.
///
/// # Errors
/// Whatever kept it from being compared; differences are no error.
pub(crate) async fn run(task: &Verify, cx: &Cx) -> Result<VerifyReport> {
    let started = Timestamp::now();
    let meter = Arc::new(Meter::default());
    let ticker = Ticker::start(meter.clone(), cx.progress.clone());
    let (repository, before) = cx.unless_cancelled(open_repository(&task.repository, cx)).await?;
    let lock = lock_if_possible(&repository, cx).await?;
    let compared = cx.unless_cancelled(compare(task, cx, &repository, meter.clone())).await;
    if let Some(lock) = lock {
        lock.release().await;
    }
    let (job, source_requests) = compared?;
    meter.enter(Phase::Done);
    ticker.stop();
    Ok(VerifyReport {
        snapshots: job.selected.run.parts.iter().map(|(id, _)| id.to_string()).collect(),
        objects_equal: job.equal.load(Relaxed),
        bytes_equal: job.equal_bytes.load(Relaxed),
        content: task.content,
        exceptions: job.collector.take(),
        source_requests,
        repository_requests: repository.bucket().ledger().snapshot().since(&before).into(),
        started,
        ended: Timestamp::now(),
    })
}

async fn compare(
    task: &Verify,
    cx: &Cx,
    repository: &Repository,
    meter: Arc<Meter>,
) -> Result<(Arc<Job>, Requests)> {
    let snapshots = repository.snapshots().await?;
    let job = Arc::new(Job {
        selected: resolve(&snapshots, &task.snapshot)?,
        reader: repository.reader(repository.index().await?),
        select: Select::new(&task.selection)?,
        collector: Collector::new(cx.progress.clone(), meter.clone()),
        task: task.clone(),
        cx: cx.clone(),
        meter,
        equal: AtomicU64::new(0),
        equal_bytes: AtomicU64::new(0),
    });
    job.meter.enter(Phase::Verifying);
    let requests = match &task.source {
        Address::Directory(path) => {
            directory::compare(&job, path).await?;
            Requests::default()
        }
        Address::S3 { bucket: name, prefix, .. } => {
            let bucket = cx.access.bucket(&task.source, Role::Source).await.map_err(Error::Source)?;
            let before: LedgerSnapshot = bucket.ledger().snapshot();
            bucket::compare(&job, &bucket, name, prefix).await?;
            bucket.ledger().snapshot().since(&before).into()
        }
    };
    Ok((job, requests))
}

impl Job {
    /// Where to begin in the snapshots, as the task says it: behind the colon, or as `root`.
    fn wanted_root(&self) -> Option<String> {
        let path = self.selected.subpath.as_ref().or(self.task.root.as_ref())?;
        Some(String::from_utf8_lossy(&clean(format!("/{path}").as_bytes())).into_owned())
    }

    /// The tree of a path in a snapshot, if it is a directory there.
    async fn descend(&self, snapshot: &Snapshot, path: &[u8]) -> Result<Option<Id>> {
        let mut at = snapshot.tree;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let tree = self.reader.tree(&at).await?;
            match tree.get(name).filter(|node| node.kind == NodeKind::Dir).and_then(|node| node.subtree) {
                Some(subtree) => at = subtree,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}
