//! Frees space in repositories, and reads back a share of their data, another one each week.

use cistern_api::job::{MaintainJob, Place};
use cistern_bucket::{Address, Class};
use cistern_engine::{Error, Prune, Report, Task};
use cistern_repository::{CheckOptions, ReadData, check};
use jiff::Timestamp;

use super::outcome::Done;
use super::pod::{Pod, damaged};
use super::watch::Watch;
use crate::failure::Failure;
use crate::units::{counted, size};

/// Maintains every repository.
pub async fn run(job: &MaintainJob, pod: &Pod) -> Vec<Done> {
    let mut done = Vec::new();
    for place in &job.repositories {
        let name = name(place);
        let outcome = maintain(job, place, &name, pod).await;
        done.push(Done::new(name, outcome));
    }
    done
}

/// The place without its endpoint.
fn name(place: &Place) -> String {
    match &place.address {
        Address::S3 { bucket, prefix, .. } => format!("s3://{bucket}/{prefix}"),
        other => other.to_string(),
    }
}

async fn maintain(job: &MaintainJob, place: &Place, name: &str, pod: &Pod) -> Result<(), Failure> {
    let repository = match pod.open(place).await {
        Ok(repository) => repository,
        Err(failure) if is_none(&failure) => {
            pod.ui.say(format!("{name}: there is no repository yet"));
            return Ok(());
        }
        Err(failure) => return Err(failure),
    };
    if job.prune {
        let task = Task::Prune(Prune::new(place.address.clone()));
        match pod.run(task, Watch::new(pod.ui.clone())).await? {
            Report::Prune(report) if report.exceptions.total() > 0 => {
                let damaged = counted(report.exceptions.total(), "blob");
                let text = format!("{damaged} that snapshots need cannot be read; their packs stay");
                return Err(Failure::new(Class::Damaged, text));
            }
            Report::Prune(report) => {
                pod.ui.say(format!("{name}: {} freed", size(report.bytes_freed)));
            }
            other => return Err(Error::Broken(format!("prune reported {other:?}")).into()),
        }
    }
    let read_data = match job.check_share {
        0 => return Ok(()),
        of => ReadData::Part { number: subset(Timestamp::now(), of), of },
    };
    let work = check(&repository, CheckOptions { read_data }, &|_| ());
    let findings = pod.locked(&repository, Watch::new(pod.ui.clone()), work).await?;
    let mut harmful = findings.iter().filter(|finding| !finding.problem.is_hint());
    let Some(first) = harmful.next() else {
        pod.ui.say(format!("{name}: no errors"));
        return Ok(());
    };
    Err(damaged(1 + harmful.count() as u64, &first.problem))
}

/// Whether there is no repository: no backup has run yet.
fn is_none(failure: &Failure) -> bool {
    matches!(
        failure.error.downcast_ref::<cistern_repository::Error>(),
        Some(cistern_repository::Error::NotARepository { .. })
    )
}

/// Which of so many shares is read now, from 1: the number of the week since 1970 decides, so that as many weeks read
/// each share once.
fn subset(now: Timestamp, of: u32) -> u32 {
    const WEEK: i64 = 7 * 24 * 3600;
    let week = now.as_second().div_euclid(WEEK).rem_euclid(i64::from(of));
    u32::try_from(week).map_or(1, |week| week + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_share_has_its_week() {
        let at = |week: i64| Timestamp::from_second(1_796_000_000 + week * 7 * 24 * 3600).expect("a time");
        let mut seen: Vec<u32> = (0..7).map(|week| subset(at(week), 7)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(subset(at(0), 7), subset(at(7), 7));
        assert_eq!(subset(at(3), 1), 1);
    }
}
