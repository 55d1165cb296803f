//! Removes restic snapshots that no Snapshot needs any more.

use std::collections::HashSet;

use cistern_api::job::{ForgetJob, ForgetPlace};
use cistern_bucket::Class;
use cistern_engine::retention::{GroupBy, Policy};
use cistern_engine::{Error, Forget, Report, SnapshotSelector, Task};

use super::outcome::Done;
use super::pod::Pod;
use super::watch::Watch;
use crate::failure::Failure;
use crate::units::counted;

/// How often the snapshots are listed again because somebody else was faster.
const ATTEMPTS: usize = 3;

/// Removes what is named in every repository.
pub async fn run(job: &ForgetJob, pod: &Pod) -> Vec<Done> {
    let mut done = Vec::new();
    for place in &job.repositories {
        done.push(Done::new(&place.repository, forget(place, pod).await));
    }
    done
}

async fn forget(place: &ForgetPlace, pod: &Pod) -> Result<(), Failure> {
    let repository = pod.open(&place.place).await?;
    for _ in 0..ATTEMPTS {
        let listed = pod.unless_stopped(repository.snapshots()).await?;
        let there: HashSet<String> = listed.iter().map(|(id, _)| id.to_string()).collect();
        let snapshots: Vec<String> =
            place.snapshots.iter().filter(|id| there.contains(*id)).cloned().collect();
        if snapshots.is_empty() {
            pod.ui.say(format!("{}: nothing to remove", place.repository));
            return Ok(());
        }
        let task = Forget {
            repository: place.place.address.clone(),
            snapshots,
            filter: SnapshotSelector::default(),
            policy: Policy::default(),
            group_by: GroupBy::default(),
            allow_remove_all: false,
            dry_run: false,
        };
        let cx = pod.cx(Watch::new(pod.ui.clone()));
        match cistern_engine::run(&Task::Forget(task), &cx).await {
            Ok(Report::Forget(report)) => {
                let removed = counted(report.removed, "snapshot");
                pod.ui.say(format!("{}: {removed} removed", place.repository));
                return Ok(());
            }
            Ok(other) => return Err(Error::Broken(format!("forget reported {other:?}")).into()),
            // Somebody was faster with one of them: what is left is looked at again.
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(pod.failure(error)),
        }
    }
    Err(Failure::new(Class::Busy, "somebody else removes snapshots at the same time"))
}
