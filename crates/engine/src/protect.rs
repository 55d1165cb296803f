//! Locks what the snapshots of a repository need against deletion, for a time (S3 Object Lock), and tells how much of it
//! is locked.
//!
//! A snapshot leans on packs that earlier backups have stored, whose locks end earlier: what a snapshot references is
//! what has to be locked, not what its backup uploaded. That is a request per file to ask, and one more for each whose
//! lock is to be extended; whoever is stopped goes on where it ended, as what is locked already is only asked about.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cistern_bucket::{Bucket, ErrorKind, Retention};
use cistern_repository::file::FileKind;
use cistern_repository::{Id, PruneProgress, PruneStage, Repository};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::backup::session::{Collector, Ticker, open_repository};
use crate::restore::lock_if_possible;
use crate::{Cx, Error, ExceptionKind, Exceptions, Meter, Phase, Protect, Requests, Result};

/// Stores take no lock that ends later.
const LONGEST: SignedDuration = SignedDuration::from_hours(100 * 365 * 24);

/// Who may take a lock away before its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMode {
    /// Whoever has the permission to override locks.
    #[default]
    Governance,
    /// Nobody.
    Compliance,
}

impl LockMode {
    fn as_str(self) -> &'static str {
        match self {
            LockMode::Governance => "GOVERNANCE",
            LockMode::Compliance => "COMPLIANCE",
        }
    }
}

/// How much of what the snapshots need is locked.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProtectReport {
    /// Until when files count as covered, and were to be locked; none if it was only asked what is locked now.
    pub until: Option<Timestamp>,
    /// Whether nothing was to be locked.
    pub dry_run: bool,
    /// Files that the snapshots need.
    pub needed: u64,
    /// Those that are locked for long enough.
    pub covered: u64,
    /// Those whose lock was set or extended; in a dry run, those for which it would be.
    pub extended: u64,
    /// Needed and covered files by kind.
    pub kinds: BTreeMap<&'static str, Coverage>,
    /// The earliest end of any lock on a needed file that has not ended yet.
    pub earliest_end: Option<Timestamp>,
    /// Files that are not locked for long enough, and why.
    pub exceptions: Exceptions,
    /// Requests to the repository.
    pub repository_requests: Requests,
    /// Start.
    pub started: Timestamp,
    /// End.
    pub ended: Timestamp,
}

/// How many files of a kind are covered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Files that are needed.
    pub needed: u64,
    /// Those that are locked for long enough.
    pub covered: u64,
}

impl ProtectReport {
    /// Whether every needed file is covered, or would be if it were no dry run.
    pub fn is_whole(&self) -> bool {
        let missing = if self.dry_run { self.extended } else { 0 };
        self.covered + missing == self.needed
    }

    fn count(&mut self, kind: FileKind, seen: &Seen, dry_run: bool) {
        let of_kind = self.kinds.entry(kind.as_str()).or_default();
        of_kind.needed += 1;
        self.needed += 1;
        let covered = match &seen.step {
            Ok(Step::Covered) => true,
            Ok(Step::Extend(_)) => {
                self.extended += 1;
                !dry_run
            }
            Ok(Step::Leave(_)) | Err(_) => false,
        };
        of_kind.covered += u64::from(covered);
        self.covered += u64::from(covered);
        self.earliest_end = self.earliest_end.into_iter().chain(seen.end).min();
    }
}

/// What is to be done about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// It is locked for long enough.
    Covered,
    /// It gets this lock.
    Extend(Retention),
    /// It is not locked for long enough, and stays so.
    Leave(String),
}

/// A file as it is in the end.
struct Seen {
    step: Result<Step, cistern_bucket::Error>,
    /// The end of its lock, if there is one in force.
    end: Option<Timestamp>,
}

/// What is to be done about a file that is locked as `found`: a lock is never shortened, and never exchanged for a weaker
/// one. Nor is one made for longer than was asked for, only to change its mode: that could not be undone.
fn decide(found: Option<&Retention>, wanted: Option<&Retention>, now: Timestamp) -> Step {
    let in_force = found.filter(|found| found.until > now);
    match (wanted, in_force) {
        (None, Some(_)) => Step::Covered,
        (None, None) => Step::Leave(match found {
            Some(found) => format!("its lock ended at {}", found.until),
            None => "it is not locked".into(),
        }),
        (Some(wanted), None) => Step::Extend(wanted.clone()),
        (Some(wanted), Some(found)) => {
            let is_weaker =
                found.mode == LockMode::Governance.as_str() && wanted.mode != LockMode::Governance.as_str();
            match (found.until >= wanted.until, is_weaker) {
                (true, false) => Step::Covered,
                (true, true) => Step::Leave(format!("it is locked in governance mode until {}", found.until)),
                (false, true) => Step::Extend(wanted.clone()),
                (false, false) => Step::Extend(Retention { mode: found.mode.clone(), until: wanted.until }),
            }
        }
    }
}

/// The lock that the task asks for.
///
/// # Errors
/// It would end at once, or later than stores take.
fn wanted(task: &Protect, now: Timestamp) -> Result<Option<Retention>> {
    let Some(until) = task.until else { return Ok(None) };
    let length = until.duration_since(now);
    if length <= SignedDuration::ZERO || length > LONGEST {
        let why = if length > LONGEST { "is more than 100 years ahead" } else { "is over" };
        return Err(Error::Invalid(format!("nothing can be locked until {until}, which {why}")));
    }
    // Stores keep whole seconds or milliseconds: a lock that they cut would look too short the next time.
    let whole = until.as_second() + i64::from(until.subsec_nanosecond() > 0);
    let until = Timestamp::from_second(whole).unwrap_or(until);
    Ok(Some(Retention { mode: task.mode.as_str().into(), until }))
}

/// Whether an error is about one file; what concerns the whole bucket ends the run.
fn is_local(error: &cistern_bucket::Error) -> bool {
    use ErrorKind::{Cancelled, NoSpace, NoSuchBucket, Throttled, Unreachable};
    !matches!(error.kind, NoSuchBucket | Throttled | Unreachable | NoSpace | Cancelled)
}

/// Locks, or only looks.
///
/// # Errors
/// The bucket locks nothing; what snapshots need is missing or damaged; whatever else kept it from being done. What was
/// locked before an error stays locked. That single files could not be locked is no error.
pub(crate) async fn run(task: &Protect, cx: &Cx) -> Result<ProtectReport> {
    let started = Timestamp::now();
    let wanted = wanted(task, started)?;
    let meter = Arc::new(Meter::default());
    let ticker = Ticker::start(meter.clone(), cx.progress.clone());
    let (repository, before) = cx.unless_cancelled(open_repository(&task.repository, cx)).await?;
    let lock = match wanted.is_some() && !task.dry_run {
        true => lock_if_possible(&repository, cx).await?,
        false => None,
    };
    let job = Job { task, cx, repository: &repository, wanted, meter: meter.clone() };
    let outcome = cx.unless_cancelled(job.protect()).await;
    if let Some(lock) = lock {
        lock.release().await;
    }
    let report = outcome?;
    meter.enter(Phase::Done);
    ticker.stop();
    let repository_requests = repository.bucket().ledger().snapshot().since(&before).into();
    Ok(ProtectReport { repository_requests, started, ended: Timestamp::now(), ..report })
}

/// One run.
struct Job<'a> {
    task: &'a Protect,
    cx: &'a Cx,
    repository: &'a Repository,
    wanted: Option<Retention>,
    meter: Arc<Meter>,
}

impl Job<'_> {
    async fn protect(&self) -> Result<ProtectReport> {
        let config = FileKind::Config.key(&Id::default());
        // Before anything large is read: does this bucket lock at all?
        self.bucket().retention(&config).await.map_err(cistern_repository::Error::from)?;
        self.meter.enter(Phase::Planning);
        let listen = |progress: PruneProgress| {
            self.meter.current(|| match progress.stage {
                PruneStage::Index => format!("index file {} of {}", progress.done, progress.total),
                _ => format!("snapshot {} of {}", progress.done, progress.total),
            });
        };
        let files = self.repository.needed_files(&listen).await?;
        self.meter.current(String::new);
        self.meter.objects_total.fetch_add(files.len() as u64, Relaxed);
        self.meter.totals_final();
        self.meter.enter(Phase::Sealing);
        let collector = Collector::new(self.cx.progress.clone(), self.meter.clone());
        let mut report = ProtectReport {
            until: self.wanted.as_ref().map(|wanted| wanted.until),
            dry_run: self.task.dry_run,
            ..ProtectReport::default()
        };
        let mut seen = futures::stream::iter(files)
            .map(|(kind, id)| async move { (kind, id, self.one(kind, &id).await) })
            .buffer_unordered(self.cx.concurrency.max(1));
        while let Some((kind, id, seen)) = seen.next().await {
            report.count(kind, &seen, self.task.dry_run);
            self.meter.done(0);
            match seen.step {
                Ok(Step::Covered | Step::Extend(_)) => (),
                Ok(Step::Leave(why)) => collector.add(ExceptionKind::Unprotected, kind.path(&id), why),
                Err(error) if is_local(&error) => {
                    collector.add(ExceptionKind::Unprotected, kind.path(&id), error);
                }
                Err(error) => return Err(cistern_repository::Error::from(error).into()),
            }
        }
        report.exceptions = collector.take();
        Ok(report)
    }

    fn bucket(&self) -> &dyn Bucket {
        &**self.repository.bucket()
    }

    /// Asks about one file, and locks it.
    async fn one(&self, kind: FileKind, id: &Id) -> Seen {
        let (key, now) = (kind.key(id), Timestamp::now());
        let found = match self.bucket().retention(&key).await {
            Ok(found) => found,
            Err(error) => return Seen { step: Err(error), end: None },
        };
        let end = found.as_ref().map(|found| found.until).filter(|until| *until > now);
        match decide(found.as_ref(), self.wanted.as_ref(), now) {
            Step::Extend(retention) if !self.task.dry_run => {
                match self.bucket().set_retention(&key, &retention).await {
                    Ok(()) => Seen { end: Some(retention.until), step: Ok(Step::Extend(retention)) },
                    Err(error) => Seen { step: Err(error), end },
                }
            }
            step => Seen { step: Ok(step), end },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn lock(mode: LockMode, second: i64) -> Retention {
        Retention { mode: mode.as_str().into(), until: at(second) }
    }

    #[test]
    fn locks_get_longer_and_stronger_and_never_the_other_way_round() {
        use LockMode::{Compliance as C, Governance as G};
        // Found, wanted, and the lock that is set; none if it is long enough.
        let table = [
            (None, (G, 10), Some((G, 10))),
            (Some((G, -1)), (G, 10), Some((G, 10))),
            (Some((C, -1)), (G, 10), Some((G, 10))),
            (Some((G, 9)), (G, 10), Some((G, 10))),
            (Some((G, 10)), (G, 10), None),
            (Some((G, 11)), (G, 10), None),
            (Some((C, 9)), (G, 10), Some((C, 10))),
            (Some((C, 11)), (G, 10), None),
            (Some((C, 9)), (C, 10), Some((C, 10))),
            (Some((G, 9)), (C, 10), Some((C, 10))),
        ];
        for (found, wanted, expected) in table {
            let found = found.map(|(mode, second)| lock(mode, second));
            let step = decide(found.as_ref(), Some(&lock(wanted.0, wanted.1)), at(0));
            let expected = expected.map_or(Step::Covered, |(mode, second)| Step::Extend(lock(mode, second)));
            assert_eq!(step, expected, "{found:?} {wanted:?}");
        }
        // A lock in compliance mode that is longer than what was asked for could not be undone.
        let longer = decide(Some(&lock(G, 11)), Some(&lock(C, 10)), at(0));
        assert!(matches!(longer, Step::Leave(_)), "{longer:?}");
    }

    #[test]
    fn without_a_time_whatever_is_locked_now_is_covered() {
        let locked = |second| decide(Some(&lock(LockMode::Governance, second)), None, at(0));
        assert_eq!(locked(1), Step::Covered);
        assert!(matches!(locked(0), Step::Leave(why) if why.contains("ended")));
        assert!(matches!(decide(None, None, at(0)), Step::Leave(_)));
    }

    #[test]
    fn times_are_ahead_and_in_whole_seconds() {
        let task = |until| Protect { until, ..Protect::new("s3://backups".parse().unwrap()) };
        assert_eq!(wanted(&task(None), at(0)).unwrap(), None);
        let half = at(5) + SignedDuration::from_millis(500);
        assert_eq!(wanted(&task(Some(half)), at(0)).unwrap().unwrap().until, at(6));
        for bad in [at(0), at(-1), at(101 * 365 * 86_400)] {
            assert!(wanted(&task(Some(bad)), at(0)).is_err(), "{bad}");
        }
    }
}
