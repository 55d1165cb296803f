//! Begins a backup: creates the BackupSession of a session of a BackupConfiguration, and follows it if asked.

use std::time::Duration;

use cistern_api::kinds::backup_session::BackupSessionPhase;
use cistern_api::kinds::{BackupConfiguration, BackupSession, Snapshot};
use cistern_api::phase;
use cistern_bucket::Class;
use cistern_operator::trigger::backup_session;
use jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use super::args::Start;
use super::client::Cluster;
use crate::commands::{Outcome, Shell};
use crate::failure::Failure;

/// How often a session is looked at that is followed.
const LOOK: Duration = Duration::from_secs(2);

/// Creates the BackupSession.
///
/// # Errors
/// The configuration or its session is not there; the API server says no; a session that was followed did not succeed.
pub async fn run(shell: &Shell, cluster: &Cluster, start: Start) -> Outcome {
    let configuration = cluster.api::<BackupConfiguration>().get(&start.configuration).await?;
    let session = session(&configuration, &start.session, Timestamp::now())?;
    let sessions = cluster.api::<BackupSession>();
    match sessions.create(&PostParams::default(), &session).await {
        // Two triggers of one second mean the same session.
        Ok(_) => (),
        Err(kube::Error::Api(status)) if status.code == 409 => (),
        Err(error) => return Err(error.into()),
    }
    let name = session.name_any();
    shell.ui.say(format!("created backupsession {name}"));
    if !start.wait {
        return Ok(0);
    }
    follow(shell, &sessions, &cluster.api::<Snapshot>(), &name).await
}

/// The BackupSession that begins at `now`.
///
/// # Errors
/// The configuration has no such session.
fn session(
    configuration: &BackupConfiguration,
    session: &str,
    now: Timestamp,
) -> Result<BackupSession, Failure> {
    let Some(wanted) = configuration.spec.sessions.iter().find(|s| s.name == session) else {
        return Err(Failure::new(
            Class::NotFound,
            format!("the BackupConfiguration {} has no session {session}", configuration.name_any()),
        ));
    };
    Ok(backup_session(configuration, wanted, now.as_second()))
}

/// Tells whenever something changes, until the session is over.
async fn follow(
    shell: &Shell,
    sessions: &Api<BackupSession>,
    snapshots: &Api<Snapshot>,
    name: &str,
) -> Outcome {
    let mut told = String::new();
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        let session = match sessions.get(name).await.map_err(Failure::from) {
            Err(failure) if failure.class == Class::Unreachable => {
                shell.ui.warn(failure.to_string());
                continue;
            }
            session => session?,
        };
        let status = session.status.unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        let mut lines = vec![format!("{name}: {phase:?}")];
        for line in &status.snapshots {
            if let Ok(Some(snapshot)) = snapshots.get_opt(&line.name).await {
                lines.extend(components(&snapshot));
            }
        }
        let now = lines.join("\n");
        if now != told {
            shell.ui.say(&now);
            told = now;
        }
        let why = || phase::backup_session_failure(&status).unwrap_or_default();
        return match phase {
            BackupSessionPhase::Succeeded => Ok(0),
            BackupSessionPhase::Failed => {
                Err(Failure::new(Class::Incomplete, format!("the backup {name} failed: {}", why())))
            }
            BackupSessionPhase::Skipped => {
                Err(Failure::new(Class::Busy, format!("the backup {name} was skipped: {}", why())))
            }
            _ => continue,
        };
    }
}

fn components(snapshot: &Snapshot) -> Vec<String> {
    let name = snapshot.name_any();
    let components = snapshot.status.iter().flat_map(|status| &status.components);
    let line = |(component, state): (&String, &cistern_api::kinds::snapshot::Component)| {
        let progress = state.restic_stats.iter().find_map(|stats| stats.progress.as_ref());
        let far = progress
            .and_then(|p| Some(format!(", {} of {}", p.percent_done.as_ref()?, p.total.as_ref()?)))
            .unwrap_or_default();
        let error = state.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
        format!("  {name} {component}: {:?}{far}{error}", state.phase.unwrap_or_default())
    };
    components.map(line).collect()
}
