//! Brings components back into a target, and reports each in the RestoreSession.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cistern_api::job::{RestoreJob, RestorePart};
use cistern_api::kinds::RestoreSession;
use cistern_api::kinds::restore_session::{RestoreComponent, RestorePhase, RestoreProgress};
use cistern_api::size::{amount, go_duration, percent, speed};
use cistern_bucket::Address;
use cistern_engine::{Error, Report, Restore, SnapshotSelector, Status, Task, resolve};
use futures::FutureExt;

use super::outcome::{Done, shown};
use super::pod::Pod;
use super::report;
use super::watch::{Pulse, Watch};
use crate::failure::Failure;
use crate::units::{counted, size};

/// Restores every component. One that fails keeps nobody from trying the others.
pub async fn run(job: &RestoreJob, pod: &Pod) -> Vec<Done> {
    let status = pod.server.status::<RestoreSession>(&job.namespace, &job.restore_session);
    let mut done = Vec::new();
    for part in &job.components {
        done.push(one(job, part, pod, &status).await);
    }
    done
}

async fn one(job: &RestoreJob, part: &RestorePart, pod: &Pod, status: &Arc<report::Report>) -> Done {
    let began = Instant::now();
    let component = |phase| RestoreComponent { phase: Some(phase), ..RestoreComponent::default() };
    status.tell(&part.component, &component(RestorePhase::Running)).await;
    let watch = Watch::new(pod.ui.clone());
    let pulse = {
        let (status, name) = (status.clone(), part.component.clone());
        Pulse::start(watch.clone(), move |at, elapsed| {
            let now = RestoreComponent {
                progress: Some(progress(&at, elapsed)),
                ..component(RestorePhase::Running)
            };
            let (status, name) = (status.clone(), name.clone());
            async move { status.tell(&name, &now).await }.boxed()
        })
    };
    let outcome = restore(job, part, pod, &watch).await;
    pulse.stop().await;
    let phase = if outcome.is_ok() { RestorePhase::Succeeded } else { RestorePhase::Failed };
    let ended = RestoreComponent {
        duration: Some(go_duration(began.elapsed())),
        error: outcome.as_ref().err().map(shown),
        progress: Some(progress(&watch.status(), began.elapsed())),
        ..component(phase)
    };
    status.settle(&part.component, &ended, pod.patience()).await;
    Done::new(&part.component, outcome)
}

/// Restores each run that the component is made of to the place where its path was. As root, owners come back, too; what
/// could harm the node (set-uid bits, devices) does not.
///
/// # Errors
/// The first failure; what was restored before stays.
async fn restore(job: &RestoreJob, part: &RestorePart, pod: &Pod, watch: &Arc<Watch>) -> Result<(), Failure> {
    for (name, target) in runs(part, pod).await? {
        let task = Restore {
            selection: job.selection.clone(),
            overwrite: job.overwrite,
            delete: job.delete,
            ..Restore::new(part.place.address.clone(), name, target)
        };
        match pod.run(Task::Restore(task), watch.clone()).await? {
            Report::Restore(report) => pod.ui.say(format!(
                "{}: {} ({}) restored, {} there already",
                part.component,
                counted(report.objects_written, "object"),
                size(report.bytes_written),
                report.objects_kept
            )),
            other => return Err(Error::Broken(format!("a restore reported {other:?}")).into()),
        }
    }
    Ok(())
}

/// The name of what is restored of each run, and where it goes. Parts of one run are one.
///
/// # Errors
/// A snapshot is gone, or was not taken of a cluster's volume.
async fn runs(part: &RestorePart, pod: &Pod) -> Result<Vec<(String, Address)>, Failure> {
    let repository = pod.open(&part.place).await?;
    let all = pod.unless_stopped(repository.snapshots()).await?;
    let (mut seen, mut runs) = (HashSet::new(), Vec::new());
    for id in &part.snapshots {
        let selector = SnapshotSelector { name: id.clone(), ..SnapshotSelector::default() };
        let run = resolve(&all, &selector)?.run;
        let is_new = run.parts.iter().filter(|(id, _)| seen.insert(*id)).count() > 0;
        let path = run.source_paths().first().cloned().unwrap_or_default();
        if is_new {
            runs.push((format!("{id}:{path}"), pod.below_data(&path)?));
        }
    }
    Ok(runs)
}

/// How far a restore is, as a RestoreSession shows it.
fn progress(at: &Status, elapsed: Duration) -> RestoreProgress {
    let number = |count: u64| i64::try_from(count).ok();
    RestoreProgress {
        restore_done: Some(amount(at.bytes_done)),
        // Of a total that is not known yet, nothing is done.
        percent_done: Some(percent(at.bytes_done, at.bytes_total.max(u64::from(!at.totals_final)))),
        files_done: number(at.objects_done),
        total_files: number(at.objects_total),
        seconds_elapsed: number(elapsed.as_secs()),
        speed: Some(speed(at.bytes_done, elapsed)),
        total: Some(amount(at.bytes_total)),
    }
}
