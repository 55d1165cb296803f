//! Copies snapshots from one repository into another: nothing is cut or compressed anew, and what the destination holds
//! is not fetched.
//!
//! Runs are copied in batches. Snapshots of a batch are written when every blob of their trees is durable and named by the
//! index; a copy that breaks off leaves blobs that the next one finds. What a copy decides by is in the snapshots
//! themselves: a copy names the snapshot that it is of as its `original`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cistern_bucket::{Address, LedgerSnapshot};
use cistern_repository::{Copied, Copier, Id, Lock, Repository, Snapshot, Writer};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backup::session::{Collector, Ticker, lock, open_repository, open_repository_as, seal};
use crate::snapshots::{Run, chosen};
use crate::{
    Cx, Error, ExceptionKind, Exceptions, Meter, Note, Phase, Report, Requests, Result, Role,
    SnapshotSelector,
};

/// Packs that the first batch fills, about; each later one is twice as large as the one before, so that the index of the
/// destination is not read too often.
const FIRST_BATCH: u64 = 4;

/// Copies those snapshots that are named, or that the filter accepts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopySnapshots {
    /// The repository that is read.
    pub from: Address,
    /// The repository that is written.
    pub repository: Address,
    /// The snapshots of the source; none means all that the filter accepts. A part stands for its run.
    #[serde(default)]
    pub snapshots: Vec<String>,
    /// Runs of these hosts, paths and tags only; its name is not used.
    #[serde(default)]
    pub filter: SnapshotSelector,
    /// Finds out what there is to copy, and copies nothing.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a copy did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CopyReport {
    /// Snapshots that were copied.
    pub copied: Vec<CopiedSnapshot>,
    /// Snapshots that were there already.
    pub skipped: u64,
    /// Snapshots that are not whole in the source, and were not copied.
    pub failed: Vec<NotCopied>,
    /// Blobs that were copied; of a dry run, those that would be.
    pub blobs: u64,
    /// Their bytes as they are stored.
    pub bytes: u64,
    /// Whether nothing was to be copied.
    pub dry_run: bool,
    /// What is damaged in the source.
    pub exceptions: Exceptions,
    /// Requests to the source.
    pub source_requests: Requests,
    /// Requests to the destination.
    pub repository_requests: Requests,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
}

/// A snapshot that was copied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CopiedSnapshot {
    /// Its id in the source.
    pub source: String,
    /// Its id in the destination; none in a dry run.
    pub id: Option<String>,
}

/// A snapshot that could not be copied.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NotCopied {
    /// Its id in the source.
    pub source: String,
    /// One of the reasons.
    pub why: String,
}

/// Copies.
///
/// # Errors
/// `Incomplete` if some snapshots are damaged in the source: the others are copied; whatever kept it from being done.
/// What was copied before an error stays.
pub(crate) async fn run(task: &CopySnapshots, cx: &Cx) -> Result<CopyReport> {
    if task.from == task.repository {
        return Err(Error::Invalid(
            "a repository is not copied into itself: source and destination are one".into(),
        ));
    }
    let meter = Arc::new(Meter::default());
    let ticker = Ticker::start(meter.clone(), cx.progress.clone());
    let started = Timestamp::now();
    let opened = async {
        let source = open_repository_as(&task.from, Role::Source, cx).await?;
        Ok::<_, Error>((source, open_repository(&task.repository, cx).await?))
    };
    let ((source, source_before), (destination, before)) = cx.unless_cancelled(opened).await?;
    if source.config().chunker_polynomial != destination.config().chunker_polynomial {
        cx.progress.note(Note::Info(
            "the repositories cut files in different ways: what is copied saves new backups next to nothing; a \
             repository that was made with `init --from-repo … --copy-chunker-params` cuts as the other one"
                .into(),
        ));
    }
    let mut copy = Copy {
        exceptions: Collector::new(cx.progress.clone(), meter.clone()),
        report: CopyReport { started, dry_run: task.dry_run, ..CopyReport::default() },
        task,
        cx,
        source,
        destination,
        meter,
    };
    copy.under_locks().await?;
    ticker.stop();
    copy.finish(source_before, before)
}

/// A copy at work.
struct Copy<'a> {
    task: &'a CopySnapshots,
    cx: &'a Cx,
    source: Repository,
    destination: Repository,
    meter: Arc<Meter>,
    exceptions: Collector,
    report: CopyReport,
}

impl Copy<'_> {
    /// Takes a shared lock of both repositories, but for a dry run, and gives them back.
    async fn under_locks(&mut self) -> Result<()> {
        if self.task.dry_run {
            return self.copy(None).await;
        }
        let read = lock(&self.source, self.cx).await?;
        let write = match lock(&self.destination, self.cx).await {
            Ok(write) => Arc::new(write),
            Err(error) => {
                read.release().await;
                return Err(error);
            }
        };
        let outcome = self.copy(Some((&read, &write))).await;
        read.release().await;
        write.release().await;
        outcome
    }

    async fn copy(&mut self, locks: Option<(&Lock, &Arc<Lock>)>) -> Result<()> {
        self.meter.enter(Phase::Planning);
        // Snapshots before the index, on either side: then the index names everything that they need.
        let loading = async {
            let there = self.destination.snapshots().await?;
            let to = self.destination.index().await?;
            let snapshots = self.source.snapshots().await?;
            let runs = chosen(&snapshots, &self.task.snapshots, &self.task.filter)?;
            Ok::<_, Error>((there, to, runs, self.source.index().await?))
        };
        let (there, to, runs, from) = self.cx.unless_cancelled(loading).await?;
        let (runs, skipped) = missing(runs, &there);
        self.report.skipped = skipped;
        let mut copier = Copier::new(&self.source, from, to);
        let mut batch = u64::from(self.destination.options().pack_size) * FIRST_BATCH;
        let mut runs = runs.into_iter().peekable();
        while runs.peek().is_some() {
            let limit = copier.needed().bytes + batch;
            let mut parts = Vec::new();
            self.meter.enter(Phase::Planning);
            while copier.needed().bytes < limit
                && let Some(run) = runs.next()
            {
                for (_, snapshot) in &run.parts {
                    let adding = copier.add(snapshot.tree);
                    self.cx.unless_cancelled(adding).await?;
                }
                parts.extend(run.parts);
            }
            let needed = copier.needed();
            self.meter.objects_total.store(needed.blobs, Relaxed);
            self.meter.bytes_total.store(needed.bytes, Relaxed);
            if runs.peek().is_none() {
                self.meter.totals_final();
            }
            match locks {
                None => self.would_copy(&copier, parts).await?,
                Some((read, write)) => self.batch(&copier, parts, read, write).await?,
            }
            batch = batch.saturating_mul(2);
        }
        if locks.is_none() {
            let needed = copier.needed();
            (self.report.blobs, self.report.bytes) = (needed.blobs, needed.bytes);
        }
        Ok(())
    }

    /// Notes what a batch would copy.
    async fn would_copy(&mut self, copier: &Copier, parts: Vec<(Id, Snapshot)>) -> Result<()> {
        let whole = self.cx.unless_cancelled(self.whole(copier, parts)).await?;
        let copied = whole.0.iter().map(|(id, _)| CopiedSnapshot { source: id.to_string(), id: None });
        self.report.copied.extend(copied);
        self.report.failed.extend(whole.1);
        Ok(())
    }

    /// Copies a batch: blobs, then the snapshots that are whole.
    async fn batch(
        &mut self,
        copier: &Copier,
        parts: Vec<(Id, Snapshot)>,
        read: &Lock,
        write: &Arc<Lock>,
    ) -> Result<()> {
        self.meter.enter(Phase::Copying);
        let index = self.cx.unless_cancelled(self.destination.index()).await?;
        let writer = self.destination.writer(index, write.clone());
        let moved = self.cx.unless_cancelled(self.blobs(copier, parts, &writer)).await;
        // Without it, somebody may have taken away what was not read yet; that would look like damage.
        let moved = moved.and_then(|moved| Ok((read.check()?, moved).1));
        let (whole, failed) = match moved {
            Ok(moved) => moved,
            Err(error) => {
                writer.abort().await;
                return Err(error);
            }
        };
        self.meter.enter(Phase::Sealing);
        let copies = whole.iter().map(|(id, snapshot)| copy_of(id, snapshot)).collect();
        let finished = seal(writer, self.cx, |_| copies).await?;
        let copied = whole.iter().zip(finished.ids);
        let copied = copied
            .map(|((source, _), id)| CopiedSnapshot { source: source.to_string(), id: Some(id.to_string()) });
        self.report.copied.extend(copied);
        self.report.failed.extend(failed);
        self.report.blobs += finished.stats.data_blobs + finished.stats.tree_blobs;
        self.report.bytes += finished.stats.data_packed + finished.stats.tree_packed;
        Ok(())
    }

    async fn blobs(
        &self,
        copier: &Copier,
        parts: Vec<(Id, Snapshot)>,
        writer: &Writer,
    ) -> Result<(Vec<(Id, Snapshot)>, Vec<NotCopied>)> {
        let mut done = |copied: Copied| {
            self.meter.objects_done.fetch_add(copied.blobs, Relaxed);
            self.meter.bytes_done.fetch_add(copied.bytes, Relaxed);
            for (id, error) in copied.failed {
                self.exceptions.add(ExceptionKind::Damaged, format_args!("blob {}", id.short()), error);
            }
        };
        copier.transfer(writer, &mut done).await?;
        self.whole(copier, parts).await
    }

    /// Those of these snapshots that the destination can have, and the others.
    async fn whole(
        &self,
        copier: &Copier,
        parts: Vec<(Id, Snapshot)>,
    ) -> Result<(Vec<(Id, Snapshot)>, Vec<NotCopied>)> {
        let (mut whole, mut failed) = (Vec::new(), Vec::new());
        for (id, snapshot) in parts {
            match copier.harm(snapshot.tree).await? {
                None => whole.push((id, snapshot)),
                Some(error) => {
                    self.exceptions.add(
                        ExceptionKind::Damaged,
                        format_args!("snapshot {}", id.short()),
                        format_args!("it is not copied: {error}"),
                    );
                    failed.push(NotCopied { source: id.to_string(), why: error.to_string() });
                }
            }
        }
        Ok((whole, failed))
    }

    fn finish(mut self, source_before: LedgerSnapshot, before: LedgerSnapshot) -> Result<CopyReport> {
        let requests = |repository: &Repository, before: &LedgerSnapshot| {
            Requests::from(repository.bucket().ledger().snapshot().since(before))
        };
        self.report.source_requests = requests(&self.source, &source_before);
        self.report.repository_requests = requests(&self.destination, &before);
        self.report.exceptions = self.exceptions.take();
        self.report.ended = Timestamp::now();
        self.meter.enter(Phase::Done);
        let why = match self.report.failed.len() {
            0 => return Ok(self.report),
            1 => "one snapshot is damaged in the source, and was not copied".to_owned(),
            n => format!("{n} snapshots are damaged in the source, and were not copied"),
        };
        Err(Error::Incomplete { why, report: Box::new(Report::Copy(self.report)) })
    }
}

/// The snapshot that stands for another one in another repository.
fn copy_of(id: &Id, snapshot: &Snapshot) -> Snapshot {
    // The parent is in another repository.
    Snapshot { parent: None, original: snapshot.original.or(Some(*id)), ..snapshot.clone() }
}

/// Those of the runs' snapshots that are not among those of the destination, and the number of the others.
fn missing(runs: Vec<Run>, there: &[(Id, Snapshot)]) -> (Vec<Run>, u64) {
    let mut by_original: HashMap<Id, Vec<&Snapshot>> = HashMap::new();
    for (id, snapshot) in there {
        // The snapshot itself may have been copied from there to here.
        for original in snapshot.original.into_iter().chain([*id]) {
            by_original.entry(original).or_default().push(snapshot);
        }
    }
    let mut skipped = 0;
    let mut rest = Vec::new();
    for mut run in runs {
        run.parts.retain(|(id, snapshot)| {
            let candidates = by_original.get(&snapshot.original.unwrap_or(*id));
            let is_there = candidates.is_some_and(|all| all.iter().any(|other| is_same(snapshot, other)));
            skipped += u64::from(is_there);
            !is_there
        });
        if !run.parts.is_empty() {
            rest.push(run);
        }
    }
    (rest, skipped)
}

/// Whether two snapshots say the same but for parent and original, which is how restic tells a copy.
fn is_same(a: &Snapshot, b: &Snapshot) -> bool {
    let sorted = |words: &[String]| {
        let mut words = words.to_vec();
        words.sort_unstable();
        words
    };
    a.time.instant() == b.time.instant()
        && a.tree == b.tree
        && (&a.hostname, &a.username, a.uid, a.gid) == (&b.hostname, &b.username, b.uid, b.gid)
        && a.excludes == b.excludes
        && sorted(&a.paths) == sorted(&b.paths)
        && sorted(&a.tags) == sorted(&b.tags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshots::tests::snapshot;

    fn run(part: (Id, Snapshot)) -> Run {
        Run { id: None, parts: vec![part] }
    }

    #[test]
    fn a_copy_is_known_by_its_original_and_by_what_it_says() {
        let (id, source) = snapshot(0x11, 10, "a", &["/x", "/y"], &["t"]);
        let copy = copy_of(&id, &source);
        assert_eq!((copy.original, copy.parent), (Some(id), None));
        let elsewhere = Id::from_bytes([0x99; 32]);
        let there =
            |other: &Snapshot| missing(vec![run((id, source.clone()))], &[(elsewhere, other.clone())]);
        assert_eq!(there(&copy), (vec![], 1));
        let back = missing(vec![run((elsewhere, copy.clone()))], &[(id, source.clone())]);
        assert_eq!(back, (vec![], 1), "a copy is not copied back");
        let turned = Snapshot { paths: vec!["/y".into(), "/x".into()], ..copy.clone() };
        assert_eq!(there(&turned).1, 1);
        for other in [
            Snapshot { original: None, ..copy.clone() },
            Snapshot { tree: elsewhere, ..copy.clone() },
            Snapshot { tags: vec![], ..copy.clone() },
            Snapshot { hostname: "b".into(), ..copy.clone() },
            Snapshot { excludes: vec!["x".into()], ..copy.clone() },
        ] {
            let (rest, skipped) = there(&other);
            assert!(rest.len() == 1 && skipped == 0, "{other:?}");
        }
    }
}
