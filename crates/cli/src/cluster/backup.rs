//! Backs a target up, and reports each repository's component in its Snapshot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cistern_api::job::{BackupJob, BackupPlace, HOST, Place};
use cistern_api::kinds::Snapshot;
use cistern_api::kinds::snapshot::{BackupProgress, Component, ResticStats, ResticSummary, SnapshotPhase};
use cistern_api::size::{amount, go_duration, percent, size, speed};
use cistern_bucket::{Address, ErrorKind, Key};
use cistern_engine::{
    Backup, BackupReport, Error, Progress, Report, Role, Silent, Status, backup_to_several, repository_bucket,
};
use cistern_repository::{Id, Repository, RunCheck, check_run};
use futures::FutureExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::outcome::{Done, shown};
use super::pod::{Pod, damaged};
use super::watch::{Pulse, Watch};
use crate::commands::identity;
use crate::failure::Failure;
use crate::units::counted;

/// What keeps the data.
const DRIVER: &str = "Restic";

/// Backs up into every repository, and reads the target once. One that fails keeps nobody from going on with the others.
pub async fn run(job: &BackupJob, pod: &Pod) -> Vec<Done> {
    let mut runs = Vec::new();
    for place in &job.repositories {
        runs.push(Run::begin(job, place, pod).await);
    }
    for path in &job.paths {
        let mut going: Vec<&mut Run<'_>> = runs.iter_mut().filter(|run| run.outcome.is_ok()).collect();
        let tasks: Vec<(Backup, Arc<dyn Progress>)> = going
            .iter()
            .map(|run| (task(job, &run.place.place, pod, path), run.watch.clone() as Arc<dyn Progress>))
            .collect();
        let verdicts = backup_to_several(&tasks, &pod.cx(Arc::new(Silent))).await;
        for (run, verdict) in going.iter_mut().zip(verdicts) {
            run.note(path, verdict, pod);
        }
    }
    let mut done = Vec::new();
    for run in runs {
        done.push(run.end(pod).await);
    }
    done
}

/// The run into one repository, which is reported from its first moment to its last.
struct Run<'a> {
    component: &'a str,
    place: &'a BackupPlace,
    began: Instant,
    status: Arc<super::report::Report>,
    watch: Arc<Watch>,
    pulse: Pulse,
    /// One entry for each restic snapshot that was written, also if not all of the source is in it.
    stats: Vec<ResticStats>,
    /// The first failure.
    outcome: Result<(), Failure>,
}

impl<'a> Run<'a> {
    /// Reports the component as running, and creates the repository if there is none.
    async fn begin(job: &'a BackupJob, place: &'a BackupPlace, pod: &Pod) -> Run<'a> {
        let status = pod.server.status::<Snapshot>(&job.namespace, &place.snapshot);
        let running = component(place, SnapshotPhase::Running);
        status.tell(&job.component, &running).await;
        let watch = Watch::new(pod.ui.clone());
        let (told, name) = (status.clone(), job.component.clone());
        let pulse = Pulse::start(watch.clone(), move |at, elapsed| {
            let now = Component { restic_stats: vec![progress(&at, elapsed)], ..running.clone() };
            let (told, name) = (told.clone(), name.clone());
            async move { told.tell(&name, &now).await }.boxed()
        });
        Run {
            component: &job.component,
            place,
            began: Instant::now(),
            status,
            watch,
            pulse,
            stats: Vec::new(),
            outcome: pod.unless_stopped(create(&place.place, pod)).await,
        }
    }

    /// Takes in what became of a path.
    fn note(&mut self, path: &str, verdict: cistern_engine::Result<BackupReport>, pod: &Pod) {
        let verdict = match verdict {
            Err(Error::Incomplete { why, report }) => {
                if let Report::Backup(report) = &*report {
                    self.stats.extend(stats(path, report));
                }
                Err(Error::Incomplete { why, report })
            }
            Ok(report) => {
                let number = counted(report.objects_listed, "object");
                pod.ui.say(format!("{}: {number} of {path} saved", self.place.snapshot));
                self.stats.extend(stats(path, &report));
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.outcome = verdict.map_err(|error| pod.failure(error));
    }

    /// Checks what was written, and reports how the run ended.
    async fn end(mut self, pod: &Pod) -> Done {
        let mut checked = None;
        if !self.stats.is_empty() {
            let proven = self.prove(pod).await.and_then(|check| {
                let verdict = verdict(&check);
                checked = Some(check);
                verdict
            });
            self.outcome = self.outcome.and(proven);
        }
        self.pulse.stop().await;
        let phase = if self.outcome.is_ok() { SnapshotPhase::Succeeded } else { SnapshotPhase::Failed };
        let ended = Component {
            size: checked.as_ref().map(|check| size(check.stored_bytes)),
            integrity: checked.as_ref().map(|check| check.problems.is_empty()),
            duration: Some(go_duration(self.began.elapsed())),
            error: self.outcome.as_ref().err().map(shown),
            restic_stats: self.stats.clone(),
            ..component(self.place, phase)
        };
        self.status.settle(self.component, &ended, pod.patience()).await;
        let snapshots = self.stats.iter().filter_map(|stats| stats.snapshot().map(str::to_owned)).collect();
        Done { snapshots, ..Done::new(&self.place.snapshot, self.outcome) }
    }

    /// The run's own check of what it has written.
    ///
    /// # Errors
    /// It could not be made.
    async fn prove(&self, pod: &Pod) -> Result<RunCheck, Failure> {
        let repository = pod.open(&self.place.place).await?;
        let ids: Vec<Id> = self.stats.iter().filter_map(|stats| stats.snapshot()?.parse().ok()).collect();
        pod.locked(&repository, self.watch.clone(), check_run(&repository, &ids, &|_| ())).await
    }
}

/// What a check means for the run.
///
/// # Errors
/// Something was found.
fn verdict(check: &RunCheck) -> Result<(), Failure> {
    let Some(first) = check.problems.first() else { return Ok(()) };
    Err(damaged(check.problems.len() as u64, first))
}

fn component(place: &BackupPlace, phase: SnapshotPhase) -> Component {
    Component {
        path: Some(place.path.clone()),
        driver: Some(DRIVER.into()),
        phase: Some(phase),
        ..Component::default()
    }
}

/// Creates the repository if there is none. Another Job may be doing the same: then it is theirs and ours.
async fn create(place: &Place, pod: &Pod) -> cistern_engine::Result<()> {
    use cistern_engine::Access;
    let address = &place.address;
    let bucket = repository_bucket(address, Role::Repository, &*pod.places).await?;
    match bucket.head(&Key::from("config")).await {
        Ok(_) => return Ok(()),
        Err(error) if matches!(error.kind, ErrorKind::NoSuchKey | ErrorKind::NoSuchBucket) => (),
        Err(error) => return Err(cistern_repository::Error::from(error).into()),
    }
    let password = pod.places.password(address).await?;
    match Repository::init(bucket, &password, &identity(), pod.places.options(address)).await {
        // If it is not a whole one, opening it says why.
        Ok(_) | Err(cistern_repository::Error::AlreadyARepository { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn task(job: &BackupJob, place: &Place, pod: &Pod, path: &str) -> Backup {
    // What is mounted elsewhere is read from there.
    let source = pod.below_data(path).unwrap_or_else(|_| Address::Directory(path.into()));
    Backup {
        root: Some(path.to_owned()),
        selection: job.selection.clone(),
        on_unreadable: job.on_unreadable,
        max_shrink: job.max_shrink,
        accept_shrink: job.accept_shrink,
        allow_empty: job.allow_empty,
        mount: job.mounted_bucket,
        ..Backup::new(source, place.address.clone(), HOST)
    }
}

/// An entry for each restic snapshot of a run. What the run as a whole has added stands in the last one: parts share
/// blobs, and readers add the entries up.
fn stats(path: &str, report: &BackupReport) -> Vec<ResticStats> {
    let parts = report.snapshots.len();
    let entry = |(i, id): (usize, &String)| {
        let part = report.parts.get(i).filter(|_| parts > 1);
        let added = if i + 1 == parts { report.stored.bytes_added } else { 0 };
        let summary = ResticSummary {
            id: Some(id.clone()),
            host_path: Some(path.to_owned()),
            size: Some(size(part.map_or(report.bytes_listed, |part| part.proof.bytes))),
            uploaded: Some(size(added)),
            start_time: Some(Time(report.started)),
            end_time: Some(Time(report.ended)),
        };
        ResticStats { summary: Some(summary), ..ResticStats::default() }
    };
    report.snapshots.iter().enumerate().map(entry).collect()
}

/// How far a run is, as a Snapshot shows it.
fn progress(at: &Status, elapsed: Duration) -> ResticStats {
    let number = |count: u64| i64::try_from(count).ok();
    let progress = BackupProgress {
        backup_done: Some(amount(at.bytes_done)),
        files_done: number(at.objects_done),
        // Of a total that is not known yet, nothing is done.
        percent_done: Some(percent(at.bytes_done, at.bytes_total.max(u64::from(!at.totals_final)))),
        seconds_elapsed: number(elapsed.as_secs()),
        speed: Some(speed(at.bytes_done, elapsed)),
        total: Some(amount(at.bytes_total)),
        total_files: number(at.objects_total),
    };
    ResticStats { progress: Some(progress), ..ResticStats::default() }
}
