//! Lets one of several operators act: a Lease that is taken, renewed, and lost.
//!
//! Whoever holds it renews it every few seconds. The others watch whether it changes, by their own clocks, since clocks of
//! different machines differ; one that did not change for its whole duration is taken. Every write names the version that
//! was read, so that of two that take it at once one fails. Who loses it has to end: another one acts already.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use crate::context::MANAGER;

/// Name of the Lease.
const NAME: &str = "cistern-operator";
/// How long a lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at.
const INTERVAL: Duration = Duration::from_secs(4);
/// Whoever could not renew for so long no longer acts: well before somebody else takes it.
const MARGIN: Duration = Duration::from_secs(10);

/// One candidate for a lease.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
    /// The version that was seen last, and since when.
    seen: Option<(String, Instant)>,
}

/// What a candidate does next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// Nobody ever held it.
    Create,
    /// It is ours, or nobody's any more.
    Write,
    /// Somebody else's.
    Wait,
}

/// Judges a lease that has been as it is for `unchanged`.
fn decide(lease: Option<&LeaseSpec>, identity: &str, unchanged: Duration) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let holder = lease.holder_identity.as_deref().unwrap_or_default();
    let seconds = lease.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    let duration = seconds.map_or(DURATION, Duration::from_secs);
    if holder.is_empty() || holder == identity || unchanged > duration { Step::Write } else { Step::Wait }
}

impl Candidate {
    /// A candidate of this name for the lease in this namespace.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Candidate {
        Candidate { api: Api::namespaced(client, namespace), identity: identity.to_owned(), seen: None }
    }

    /// Waits until the lease is ours.
    pub async fn acquire(&mut self) {
        let mut told = false;
        loop {
            match self.attempt().await {
                Ok(true) => {
                    tracing::info!(identity = self.identity, "the lease is ours");
                    return;
                }
                Ok(false) if told => {}
                Ok(false) => {
                    told = true;
                    tracing::info!(identity = self.identity, "another operator holds the lease");
                }
                Err(error) => tracing::warn!(%error, "the lease cannot be read or written"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Renews the lease until it is lost.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(INTERVAL).await;
            let left = MARGIN.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::warn!(%error, "the lease was not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= MARGIN {
                return;
            }
        }
    }

    /// Gives the lease back, so that the next one need not wait.
    pub async fn release(&mut self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        if let Some(spec) =
            lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.identity))
        {
            spec.holder_identity = None;
            let _ = self.api.replace(NAME, &PostParams::default(), &lease).await;
        }
    }

    /// Takes or renews the lease if it can be; whether it is ours then.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let present = self.api.get_opt(NAME).await?;
        let version = present.as_ref().and_then(ResourceExt::resource_version).unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((version, since));
        let spec = present.as_ref().and_then(|lease| lease.spec.as_ref());
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let written = match (decide(spec, &self.identity, since.elapsed()), present) {
            (Step::Wait, _) => return Ok(false),
            (Step::Write, Some(mut lease)) => {
                lease.spec = Some(self.written(lease.spec.as_ref()));
                self.api.replace(NAME, &params, &lease).await
            }
            (Step::Create | Step::Write, _) => {
                let mut lease = Lease { spec: Some(self.written(None)), ..Lease::default() };
                lease.metadata.name = Some(NAME.to_owned());
                self.api.create(&params, &lease).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Somebody else was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn written(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let old = old.cloned().unwrap_or_default();
        let ours = old.holder_identity.as_ref() == Some(&self.identity);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time.clone() } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..old
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_when_its_holder_is_silent() {
        let held = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        let table = [
            (None, 0, Step::Create),
            (Some(held("me")), 0, Step::Write),
            (Some(held("")), 0, Step::Write),
            (Some(held("other")), 15, Step::Wait),
            (Some(held("other")), 16, Step::Write),
        ];
        for (lease, seconds, step) in table {
            let judged = decide(lease.as_ref(), "me", Duration::from_secs(seconds));
            assert_eq!(judged, step, "{lease:?} after {seconds} s");
        }
    }
}
