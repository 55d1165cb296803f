//! Does the work of a Job's pod: reads its document, does what that says, reports, and leaves a termination message.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cistern_api::job::{JobTask, Place, SCRATCH_DIR};
use jiff::Timestamp;

use super::args::{Connection, Job};
use super::outcome::{Done, leave};
use super::places::Places;
use super::pod::{Pod, Stop};
use super::report::Server;
use super::{backup, client, forget, maintain, restore};
use crate::commands::{Outcome, Shell};
use crate::failure::Failure;

/// A document larger than this is none: a Secret holds no more.
const MAX_TASK: u64 = 1 << 20;

/// How long a Job waits for a repository unless it is told: a lock whose holder died counts for half an hour.
const LOCK_WAIT: Duration = Duration::from_secs(35 * 60);

/// Runs the Job.
///
/// # Errors
/// The first failure, whose class is the exit code. What became of everything stands in the termination message.
pub async fn run(shell: &Shell, args: Job) -> Outcome {
    let done = match work(shell, &args).await {
        Ok(done) => done,
        Err(failure) => vec![Done::new("", Err(failure))],
    };
    leave(&args.termination_log, &done, &shell.ui);
    let mut failed = done.into_iter().filter_map(|done| Some((done.name, done.failure?)));
    let Some((_, first)) = failed.next() else { return Ok(0) };
    for (name, failure) in failed {
        shell.ui.warn(format!("{name}: {failure}"));
    }
    Err(first)
}

async fn work(shell: &Shell, args: &Job) -> Result<Vec<Done>, Failure> {
    let task = read(&args.task)?;
    let (places, caches, deadline) = parts(&task);
    let cache = shell.global.cache_dir.clone().unwrap_or_else(|| SCRATCH_DIR.into());
    let connected = client::connect(&Connection::default()).await;
    if let Err(failure) = &connected {
        shell.ui.warn(format!("nothing can be reported: {failure}"));
    }
    let client = connected.ok().map(|cluster| cluster.client);
    let lock_wait = shell.lock_wait();
    let pod = Pod {
        places: Arc::new(Places::new(
            shell.access.clone(),
            &args.credentials,
            caches.then_some(cache),
            places,
        )),
        server: Server::new(client, shell.ui.clone()),
        ui: shell.ui.clone(),
        data: args.data.clone(),
        concurrency: shell.global.store.connections.max(1),
        lock_wait: if lock_wait.is_zero() { LOCK_WAIT } else { lock_wait },
        report_wait: args.report_wait.unsigned_abs(),
        stop: Stop::new(&shell.cancel, deadline),
    };
    Ok(match &task {
        JobTask::Backup(job) => backup::run(job, &pod).await,
        JobTask::Restore(job) => restore::run(job, &pod).await,
        JobTask::Forget(job) => forget::run(job, &pod).await,
        JobTask::Maintain(job) => maintain::run(job, &pod).await,
    })
}

/// # Errors
/// It is not there, or not one that this version understands.
fn read(file: &Path) -> Result<JobTask, Failure> {
    use std::io::Read;
    let mut json = Vec::new();
    std::fs::File::open(file)
        .and_then(|opened| opened.take(MAX_TASK).read_to_end(&mut json))
        .map_err(|e| Failure::io(format!("reading the task {}", file.display()), e))?;
    serde_json::from_slice(&json)
        .map_err(|e| Failure::invalid(format!("the task {} is not understood: {e}", file.display())))
}

/// The places of a task, whether it keeps copies, and its deadline. Forgetting and pruning read too little to need copies.
fn parts(task: &JobTask) -> (Vec<&Place>, bool, Option<Timestamp>) {
    match task {
        JobTask::Backup(job) => {
            (job.repositories.iter().map(|p| &p.place).collect(), job.enable_cache, job.deadline)
        }
        JobTask::Restore(job) => {
            (job.components.iter().map(|p| &p.place).collect(), job.enable_cache, job.deadline)
        }
        JobTask::Forget(job) => (job.repositories.iter().map(|p| &p.place).collect(), false, job.deadline),
        JobTask::Maintain(job) => (job.repositories.iter().collect(), false, job.deadline),
    }
}
