//! The custom resources, a file per kind, and the definitions that a cluster needs to hold them.
//!
//! Groups, names and fields are those that users' manifests have. Hooks, blueprints, batches and verifiers have no
//! definitions yet, and a field that names one is refused.

#![allow(clippy::duplicated_attributes, reason = "columns of one type are no attributes that stand twice")]

pub mod addon;
pub mod backup_configuration;
pub mod backup_session;
pub mod backup_storage;
pub mod hook;
pub mod pod;
pub mod repository;
pub mod restore_session;
pub mod retention_policy;
pub mod shared;
pub mod snapshot;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use addon::{Addon, AddonSpec, AddonTask, Function, FunctionSpec};
pub use backup_configuration::{BackupConfiguration, BackupConfigurationSpec};
pub use backup_session::{BackupSession, BackupSessionSpec};
pub use backup_storage::{BackupStorage, BackupStorageSpec};
pub use repository::{Repository, RepositorySpec};
pub use restore_session::{RestoreSession, RestoreSessionSpec};
pub use retention_policy::{RetentionPolicy, RetentionPolicySpec};
pub use snapshot::{Snapshot, SnapshotSpec};

/// The definitions of all kinds, in alphabetical order of their names.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        Addon::crd(),
        Function::crd(),
        BackupConfiguration::crd(),
        BackupSession::crd(),
        BackupStorage::crd(),
        Repository::crd(),
        RestoreSession::crd(),
        RetentionPolicy::crd(),
        Snapshot::crd(),
    ];
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    all
}
