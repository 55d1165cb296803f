//! The controllers of Cistern: the only code that changes a cluster.
//!
//! [`run`] starts one controller for each kind. What they share is in `context` (how objects are read and written),
//! `controller` (the loop, and what follows from a failure), `lease`, `serve` and `metrics`. Each controller is a
//! file, whose passes have five steps: observe, lower, decide, apply, publish.

mod backup_configuration;
mod backup_session;
mod backup_storage;
mod context;
mod controller;
mod destination;
mod discovery;
mod job;
mod layout;
mod lease;
mod metrics;
mod repository;
mod restore_session;
mod retention;
mod series;
mod serve;
mod snapshot;
pub mod trigger;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cistern_api::kinds::{
    BackupConfiguration, BackupSession, BackupStorage, Repository, RestoreSession, Snapshot,
};
use kube::Client;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use context::{Cx, Settings};
pub use controller::{Failure, Reconcile, Requeue, Watches};
use serve::Health;

/// Why the operator ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Health and metrics cannot be served.
    #[error("serving health and metrics at {0}")]
    Serve(std::net::SocketAddr, #[source] std::io::Error),
    /// The API server does not answer as it should.
    #[error("asking the API server for its version")]
    ApiServer(#[source] kube::Error),
    /// Another operator acts now.
    #[error("the lease was lost: another operator acts now, or the API server was not reached in time")]
    LeaseLost,
}

/// Runs all controllers until `cancel` fires.
///
/// # Errors
/// The API server cannot be reached at the beginning; health cannot be served; the lease was lost.
pub async fn run(client: Client, settings: Settings, cancel: CancellationToken) -> Result<(), Error> {
    let health = Health::default();
    if let Some(address) = settings.metrics_address {
        let listener = TcpListener::bind(address).await.map_err(|error| Error::Serve(address, error))?;
        let (health, cancel) = (health.clone(), cancel.clone());
        tokio::spawn(async move {
            if let Err(error) = serve::serve(listener, health, cancel).await {
                tracing::error!(%error, "health and metrics are no longer served");
            }
        });
    }
    let version = client.apiserver_version().await.map_err(Error::ApiServer)?;
    health.ready.store(true, Ordering::Relaxed);
    tracing::info!(version = version.git_version, "the API server was reached");
    let Some(namespace) = settings.lease_namespace.clone() else {
        controllers(client, settings, &health, cancel).await;
        return Ok(());
    };
    let mut candidate = lease::Candidate::new(client.clone(), &namespace, &settings.identity);
    tokio::select! {
        () = candidate.acquire() => {}
        () = cancel.cancelled() => return Ok(()),
    }
    tokio::select! {
        () = controllers(client, settings, &health, cancel) => {}
        // Passes that have begun are dropped with the process: another operator acts already.
        () = candidate.keep() => return Err(Error::LeaseLost),
    }
    // An API server that does not answer keeps nobody: the lease runs out by itself.
    let _ = tokio::time::timeout(PATIENCE, candidate.release()).await;
    Ok(())
}

/// How long work that has begun may take to end after somebody asked to stop; a pod is killed after half a minute.
const PATIENCE: Duration = Duration::from_secs(10);

/// All controllers, side by side.
async fn controllers(client: Client, settings: Settings, health: &Health, cancel: CancellationToken) {
    let cx = Arc::new(Cx::new(client, settings, health.metrics.clone()));
    let late = async {
        cancel.cancelled().await;
        tokio::time::sleep(PATIENCE).await;
    };
    let all = async {
        tokio::join!(
            controller::run::<BackupStorage>(cx.clone(), cancel.clone()),
            controller::run::<Repository>(cx.clone(), cancel.clone()),
            controller::run::<BackupConfiguration>(cx.clone(), cancel.clone()),
            controller::run::<BackupSession>(cx.clone(), cancel.clone()),
            controller::run::<RestoreSession>(cx.clone(), cancel.clone()),
            controller::run::<Snapshot>(cx.clone(), cancel.clone()),
        )
    };
    tokio::select! {
        _ = all => {}
        () = late => tracing::warn!("passes that had begun are dropped; the next operator does them again"),
    }
}
