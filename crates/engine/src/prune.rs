//! Frees what no snapshot needs, as [`cistern_repository::prune`] does, under an exclusive lock of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use cistern_repository::{
    Amount, Id, Lock, LockKind, Margins, MaxUnused, PruneOptions, PrunePlan, PruneProgress, PruneStage,
    Pruned, Repository, plan_prune, prune,
};
use serde::Serialize;
use tokio::time::Instant;

use crate::backup::session::{Ticker, lock_as, open_repository};
use crate::report::Requests;
use crate::restore::lock_if_possible;
use crate::{Cx, Error, Exception, ExceptionKind, Exceptions, Meter, Note, Phase, Prune, Result, Unused};

/// What a prune was to do, and what it did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PruneReport {
    /// Blobs that snapshots need, each once.
    pub used: Amount,
    /// Blobs that none needs.
    pub unused: Amount,
    /// Blobs that are stored once more than is needed.
    pub twice: Amount,
    /// Packs that stay as they are.
    pub packs_kept: u64,
    /// Packs that nobody needs.
    pub packs_unused: Amount,
    /// Packs of which what is needed is packed anew.
    pub packs_repacked: Amount,
    /// Bytes of them that are needed.
    pub bytes_repacked: u64,
    /// Packs that no index names and that are old enough to go.
    pub packs_unnamed: Amount,
    /// Packs that no index names and that stay until they are a day old.
    pub packs_unnamed_kept: Amount,
    /// Packs that do not exist and that nobody needs: the index forgets them.
    pub packs_forgotten: u64,
    /// Bytes that nobody needs and that stay all the same, as was allowed.
    pub bytes_unused_left: u64,
    /// Bytes that are free afterwards, about.
    pub bytes_freed: u64,
    /// Requests of the plan, about: reads, writes, and files to delete.
    pub planned_requests: cistern_repository::Requests,
    /// What was done; none in a dry run, or if there was nothing to do.
    pub done: Option<PruneDone>,
    /// Blobs that are damaged; their packs stay.
    pub exceptions: Exceptions,
    /// Requests to the repository.
    pub repository_requests: Requests,
    /// Whether nothing was to be changed.
    pub dry_run: bool,
}

/// What a prune did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PruneDone {
    /// Packs that were deleted.
    pub packs_deleted: u64,
    /// Those of them of which what was needed was packed anew.
    pub packs_repacked: u64,
    /// Packs that were to be packed anew, and are left to the next run because time was up.
    pub packs_left: u64,
    /// New packs.
    pub packs_written: u64,
    /// Bytes that were fetched.
    pub bytes_read: u64,
    /// Stored bytes of blobs in new packs.
    pub bytes_written: u64,
    /// New index files.
    pub index_files_written: u64,
    /// Index files that were deleted.
    pub index_files_deleted: u64,
}

/// Plans and prunes.
///
/// # Errors
/// Whatever kept it from being done, above all that something is missing that a snapshot needs: nothing is deleted then.
/// What was done before an error is complete in itself.
pub(crate) async fn run(task: &Prune, cx: &Cx) -> Result<PruneReport> {
    let options = options(task)?;
    let until = task.time_limit.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let meter = Arc::new(Meter::default());
    let ticker = Ticker::start(meter.clone(), cx.progress.clone());
    let (repository, before) = cx.unless_cancelled(open_repository(&task.repository, cx)).await?;
    let lock = match task.dry_run {
        true => lock_if_possible(&repository, cx).await?,
        false => Some(lock_as(&repository, LockKind::Exclusive, cx).await?),
    };
    let lock = lock.map(Arc::new);
    let outcome = cx.unless_cancelled(work(task, &options, until, &repository, lock.as_ref(), &meter)).await;
    if let Some(lock) = lock {
        lock.release().await;
    }
    let (mut report, damaged) = outcome?;
    for exception in damaged {
        cx.progress.note(Note::Exception(exception.clone()));
        report.exceptions.add(exception);
    }
    report.repository_requests = repository.bucket().ledger().snapshot().since(&before).into();
    meter.enter(Phase::Done);
    ticker.stop();
    Ok(report)
}

fn options(task: &Prune) -> Result<PruneOptions> {
    let max_unused = match task.max_unused {
        Unused::Share(share) if !(0.0..=1.0).contains(&share) => {
            return Err(Error::Invalid("the unused share that may stay is from 0 to 1".into()));
        }
        Unused::Share(share) => MaxUnused::Share(share),
        Unused::Bytes(bytes) => MaxUnused::Bytes(bytes),
        Unused::Unlimited => MaxUnused::Unlimited,
    };
    if !task.without.is_empty() && !task.dry_run {
        return Err(Error::Invalid("only a dry run can take snapshots for removed".into()));
    }
    let ids = task.without.iter().map(|id| id.parse::<Id>().map_err(|_| not_an_id(id)));
    Ok(PruneOptions {
        max_unused,
        max_repack: task.max_repack,
        repack_small: task.repack_small,
        margins: Margins { unnamed: Duration::from_secs(task.grace) },
        without: ids.collect::<Result<_>>()?,
    })
}

fn not_an_id(id: &str) -> Error {
    Error::Invalid(format!("{id:?} is no id of a snapshot"))
}

async fn work(
    task: &Prune,
    options: &PruneOptions,
    until: Option<Instant>,
    repository: &Repository,
    lock: Option<&Arc<Lock>>,
    meter: &Meter,
) -> Result<(PruneReport, Vec<Exception>)> {
    let listen = |progress: PruneProgress| show(meter, progress);
    meter.enter(Phase::Planning);
    let plan = plan_prune(repository, options, lock.map(|lock| &**lock), &listen).await?;
    let mut report = planned(&plan, repository.options().pack_size);
    report.dry_run = task.dry_run;
    let Some(lock) = lock.filter(|_| !task.dry_run && !plan.is_empty()) else {
        return Ok((report, Vec::new()));
    };
    let done = prune(repository, plan, lock, until, &listen).await?;
    report.done = Some(counts(&done));
    let damaged = done.damaged.iter().map(|(id, error)| Exception {
        kind: ExceptionKind::Damaged,
        key: id.to_string(),
        detail: error.to_string(),
    });
    Ok((report, damaged.collect()))
}

/// The plan in numbers.
fn planned(plan: &PrunePlan, pack_size: u32) -> PruneReport {
    PruneReport {
        used: plan.used,
        unused: plan.unused,
        twice: plan.twice,
        packs_kept: plan.packs_kept,
        packs_unused: plan.packs_deleted,
        packs_repacked: plan.packs_repacked,
        bytes_repacked: plan.repacked_bytes,
        packs_unnamed: plan.unnamed_deleted,
        packs_unnamed_kept: plan.unnamed_kept,
        packs_forgotten: plan.packs_forgotten,
        bytes_unused_left: plan.unused_left,
        bytes_freed: plan.freed(),
        planned_requests: plan.requests(pack_size),
        ..PruneReport::default()
    }
}

fn counts(done: &Pruned) -> PruneDone {
    PruneDone {
        packs_deleted: done.packs_deleted,
        packs_repacked: done.packs_repacked,
        packs_left: done.packs_left,
        packs_written: done.packs_written,
        bytes_read: done.bytes_read,
        bytes_written: done.bytes_written,
        index_files_written: done.index_files_written,
        index_files_deleted: done.index_files_deleted,
    }
}

/// Tells the meter what a prune is at: bytes while packs are packed anew, things otherwise.
fn show(meter: &Meter, progress: PruneProgress) {
    let (phase, what) = match progress.stage {
        PruneStage::Index => (Phase::Planning, "index files"),
        PruneStage::Snapshots => (Phase::Planning, "snapshots"),
        PruneStage::Repack => (Phase::Copying, "packs"),
        PruneStage::Rewrite => (Phase::Sealing, "packs in the index"),
        PruneStage::Delete => (Phase::Sealing, "files to delete"),
    };
    meter.enter(phase);
    meter.current(|| what.to_owned());
    let (objects, bytes) = match progress.stage {
        PruneStage::Repack => ((0, 0), (progress.done, progress.total)),
        _ => ((progress.done, progress.total), (0, 0)),
    };
    meter.objects_done.store(objects.0, Relaxed);
    meter.objects_total.store(objects.1, Relaxed);
    meter.bytes_done.store(bytes.0, Relaxed);
    meter.bytes_total.store(bytes.1, Relaxed);
}
