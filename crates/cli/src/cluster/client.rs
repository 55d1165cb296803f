//! The connection to a cluster's API server, and what its errors mean for the reader.

use std::time::Duration;

use cistern_bucket::Class;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::args::Connection;
use crate::failure::{Failure, exit_code};

/// Where a verb works.
pub struct Cluster {
    /// The API server.
    pub client: Client,
    /// The namespace.
    pub namespace: String,
}

impl Cluster {
    /// The objects of a kind in the namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// All objects of a kind, the oldest first.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn list<K>(&self, parameters: &ListParams) -> Result<Vec<K>, Failure>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        let mut items = self.api::<K>().list(parameters).await?.items;
        items.sort_by_key(|item| (item.creation_timestamp().map(|time| time.0), item.name_any()));
        Ok(items)
    }
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
