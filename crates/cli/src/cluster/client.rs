//! The connection to a cluster's API server, and what its errors mean for the reader.

use std::time::Duration;

use cistern_bucket::Class;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::args::Connection;
use crate::failure::{Failure, exit_code};

/// Where a verb works.
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

/// How long the API server may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);

/// Connects as flags and environment say: a kubeconfig file, else the identity of this pod. Nothing is sent yet.
///
/// # Errors
/// There is neither; the file cannot be understood.
pub async fn connect(connection: &Connection) -> Result<Cluster, Failure> {
    let options = KubeConfigOptions { context: connection.context.clone(), ..KubeConfigOptions::default() };
    let config = match (&connection.kubeconfig, &connection.context) {
        (Some(file), _) => match Kubeconfig::read_from(file) {
            Ok(read) => Config::from_custom_kubeconfig(read, &options).await.map_err(|e| failed(&e)),
            Err(error) => Err(failed(&error)),
        },
        (None, Some(_)) => Config::from_kubeconfig(&options).await.map_err(|e| failed(&e)),
        (None, None) => Config::infer().await.map_err(|e| failed(&e)),
    };
    let mut config = config?;
    config.connect_timeout = Some(CONNECT);
    let namespace = connection.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    Ok(Cluster { client: Client::try_from(config)?, namespace })
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::invalid(format!("no cluster can be reached: {error}"))
        .hint("use --kubeconfig FILE, or set KUBECONFIG")
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let kube::Error::Api(status) = &error else {
            let class = match error {
                kube::Error::Auth(_) => Class::Denied,
                kube::Error::SerdeError(_) => Class::Invalid,
                _ => Class::Unreachable,
            };
            return Failure { error: Box::new(error), class, code: exit_code(class), hint: None };
        };
        let class = match status.code {
            404 => Class::NotFound,
            401 | 403 => Class::Denied,
            409 => Class::Busy,
            400..500 => Class::Invalid,
            _ => Class::Unreachable,
        };
        Failure::new(class, format!("the API server says: {}", status.message))
    }
}
