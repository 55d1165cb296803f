//! The verbs of the kubectl plugin: pause, resume, describe, logs, snapshots, trigger.

use std::pin::pin;

use cistern_api::condition::Condition;
use cistern_api::kinds::backup_configuration::Session;
use cistern_api::kinds::{BackupConfiguration, BackupSession, Repository, Snapshot};
use cistern_api::{labels, name, phase};
use cistern_bucket::Class;
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{ListParams, LogParams, Patch, PatchParams};
use serde_json::json;

use super::args::Verb;
use super::client::Cluster;
use crate::commands::{Outcome, Shell};
use crate::failure::Failure;
use crate::listing::{columns, table};

/// BackupSessions that are shown of a configuration.
const LAST_RUNS: usize = 10;

/// Runs a verb of the plugin.
///
/// # Errors
/// What the API server says; what is named is not there.
pub async fn run(shell: &Shell, cluster: &Cluster, verb: Verb) -> Outcome {
    match verb {
        Verb::Trigger(start) => return super::trigger(shell, cluster, start).await,
        Verb::Pause { configuration } => pause(shell, cluster, &configuration, true).await?,
        Verb::Resume { configuration } => pause(shell, cluster, &configuration, false).await?,
        Verb::Describe { configuration } => describe(shell, cluster, &configuration).await?,
        Verb::Logs { session, follow } => logs(shell, cluster, &session, follow).await?,
        Verb::Snapshots { repository } => snapshots(shell, cluster, repository.as_deref()).await?,
    }
    Ok(0)
}

async fn pause(shell: &Shell, cluster: &Cluster, name: &str, paused: bool) -> Result<(), Failure> {
    let patch = Patch::Merge(json!({ "spec": { "paused": paused } }));
    cluster.api::<BackupConfiguration>().patch(name, &PatchParams::default(), &patch).await?;
    let what = if paused { "paused" } else { "resumed" };
    shell.ui.say(format!("{what} backupconfiguration {name}"));
    Ok(())
}

async fn describe(shell: &Shell, cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let configuration = cluster.api::<BackupConfiguration>().get(name).await?;
    let (spec, status) = (&configuration.spec, configuration.status.clone().unwrap_or_default());
    let line = |what: &str, text: &str| shell.ui.result(format!("{what:<12}{text}"));
    line("name", name);
    if let Some(target) = &spec.target {
        line("target", &format!("{} {}", target.kind.as_deref().unwrap_or_default(), target.name));
    }
    line("phase", &word(status.phase));
    line("paused", if spec.paused == Some(true) { "yes" } else { "no" });
    problems(shell, &status.conditions);
    for session in &spec.sessions {
        line("session", &schedule(session));
        if let Some(state) = status.sessions.iter().find(|state| state.name == session.name) {
            problems(shell, &state.conditions);
        }
    }
    let runs = cluster.list::<BackupSession>(&ListParams::default()).await?;
    let repositories = cluster.list::<Repository>(&ListParams::default()).await?;
    let named: Vec<_> = spec.sessions.iter().flat_map(|session| &session.repositories).collect();
    let mut table = table(["REPOSITORY", "PHASE", "SNAPSHOTS", "SIZE", "INTEGRITY", "LAST BACKUP"]);
    for repository in repositories.iter().filter(|r| named.iter().any(|n| n.name == r.name_any())) {
        let status = repository.status.clone().unwrap_or_default();
        table.add_row([
            repository.name_any(),
            word(status.phase),
            status.snapshot_count.map(|n| n.to_string()).unwrap_or_default(),
            status.size.unwrap_or_default(),
            status.integrity.map(|whole| whole.to_string()).unwrap_or_default(),
            status.last_backup_time.map(|time| time.0.to_string()).unwrap_or_default(),
        ]);
    }
    shell.ui.result(format!("\n{}", columns(&table)));
    let mut table = crate::listing::table(["BACKUPSESSION", "SESSION", "PHASE", "DURATION", "PROBLEM"]);
    let own: Vec<_> = runs.iter().filter(|run| run.spec.invoker.name == name).collect();
    for run in own.iter().rev().take(LAST_RUNS) {
        let status = run.status.clone().unwrap_or_default();
        let problem = phase::backup_session_failure(&status);
        table.add_row([
            run.name_any(),
            run.spec.session.clone().unwrap_or_default(),
            word(status.phase),
            status.duration.unwrap_or_default(),
            problem.unwrap_or_default(),
        ]);
    }
    shell.ui.result(format!("\n{}", columns(&table)));
    Ok(())
}

fn schedule(session: &Session) -> String {
    let schedule = session.scheduler.as_ref().map_or("no schedule", |scheduler| scheduler.schedule.as_str());
    let repositories: Vec<_> = session.repositories.iter().map(|r| r.name.as_str()).collect();
    format!("{}: {schedule}, into {}", session.name, repositories.join(", "))
}

/// The phase as the object has it.
fn word(phase: Option<impl std::fmt::Debug>) -> String {
    phase.map(|phase| format!("{phase:?}")).unwrap_or_default()
}

fn problems(shell: &Shell, conditions: &[Condition]) {
    for condition in conditions.iter().filter(|condition| condition.is_problem()) {
        let message = condition.message.as_deref().unwrap_or_default();
        shell.ui.result(format!("{:<12}{}: {message}", "", condition.type_));
    }
}

async fn snapshots(shell: &Shell, cluster: &Cluster, repository: Option<&str>) -> Result<(), Failure> {
    let parameters = match repository {
        Some(repository) => ListParams::default().labels(&name::selector(labels::REPO_NAME, repository)),
        None => ListParams::default(),
    };
    let mut table = table(["SNAPSHOT", "REPOSITORY", "SESSION", "TIME", "PHASE", "SIZE", "INTEGRITY"]);
    for snapshot in cluster.list::<Snapshot>(&parameters).await? {
        let status = snapshot.status.clone().unwrap_or_default();
        table.add_row([
            snapshot.name_any(),
            snapshot.spec.repository.clone(),
            snapshot.spec.session.clone().unwrap_or_default(),
            status.snapshot_time.map(|time| time.0.to_string()).unwrap_or_default(),
            word(status.phase),
            status.size.unwrap_or_default(),
            status.integrity.map(|whole| whole.to_string()).unwrap_or_default(),
        ]);
    }
    shell.ui.result(columns(&table));
    Ok(())
}

/// Prints the logs of every pod of the Jobs that the session owns, one after the other, or as they come.
async fn logs(shell: &Shell, cluster: &Cluster, session: &str, follow: bool) -> Result<(), Failure> {
    let ours = ListParams::default().labels(&format!("{}={}", labels::MANAGED_BY, labels::MANAGER));
    let jobs = cluster.list::<Job>(&ours).await?;
    let owned = |job: &&Job| {
        let owners = job.owner_references();
        owners
            .iter()
            .any(|o| o.name == session && ["BackupSession", "RestoreSession"].contains(&o.kind.as_str()))
    };
    let mut pods = Vec::new();
    for job in jobs.iter().filter(owned) {
        let of_job =
            ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", job.name_any()));
        pods.extend(cluster.list::<Pod>(&of_job).await?);
    }
    if pods.is_empty() {
        let text = format!("{session} has no pod in the namespace {}", cluster.namespace);
        return Err(Failure::new(Class::NotFound, text));
    }
    let is_alone = pods.len() == 1;
    let api = cluster.api::<Pod>();
    let print = async |pod: &Pod| {
        let name = pod.name_any();
        let parameters = LogParams { follow, ..LogParams::default() };
        let log = api.log_stream(&name, &parameters).await?;
        let mut lines = pin!(log.lines());
        while let Some(line) =
            lines.try_next().await.map_err(|e| Failure::io(format!("reading the log of {name}"), e))?
        {
            shell.ui.result(if is_alone { line } else { format!("{name} {line}") });
        }
        Ok::<_, Failure>(())
    };
    let most = if follow { pods.len() } else { 1 };
    let mut printing = stream::iter(pods.iter().map(print)).buffered(most);
    while let Some(printed) = printing.next().await {
        printed?;
    }
    Ok(())
}
