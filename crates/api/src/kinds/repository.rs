//! Repository: one folder of a BackupStorage, in which the backups of one target lie.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::shared::{DeletionPolicy, ObjRef, TypedRef};
use super::snapshot::SnapshotPhase;
use crate::condition::Condition;

/// One folder of a BackupStorage, in which the backups of one target lie.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "storage.kubestash.com",
    version = "v1alpha1",
    kind = "Repository",
    plural = "repositories",
    shortname = "repo",
    namespaced,
    status = "RepositoryStatus",
    category = "kubestash",
    category = "appscode",
    category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Integrity", type_ = "boolean", json_path = ".status.integrity"),
    printcolumn(name = "Snapshot-Count", type_ = "integer", json_path = ".status.snapshotCount"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Last-Successful-Backup", type_ = "date", json_path = ".status.lastBackupTime"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.path == oldSelf.path", "path is immutable"))]
#[x_kube(validation = ("self.path.split('/').exists(p, p != '') && !self.path.split('/').exists(p, p == '.' || p == '..')", "path must name a folder below the prefix of the storage"))]
pub struct RepositorySpec {
    /// What is backed up here.
    pub app_ref: Option<TypedRef>,
    /// The BackupStorage that it lies in.
    pub storage_ref: ObjRef,
    /// The folder, relative to the prefix of the storage.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Secret with the key `RESTIC_PASSWORD`.
    pub encryption_secret: Option<ObjRef>,
    /// Ignores what happens.
    pub paused: Option<bool>,
}

/// What is known of a Repository.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryStatus {
    /// Whether it can be used.
    pub phase: Option<RepositoryPhase>,
    /// Time of the last backup that succeeded.
    pub last_backup_time: Option<Time>,
    /// Whether every component was whole when it was last looked at.
    pub integrity: Option<bool>,
    /// Number of Snapshots.
    pub snapshot_count: Option<i32>,
    /// What is stored.
    pub size: Option<String>,
    /// The newest Snapshots, at most five.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_snapshots: Vec<RecentSnapshot>,
    /// Folders of the components, relative to `spec.path`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub component_paths: Vec<String>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Whether a Repository can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RepositoryPhase {
    NotReady,
    Ready,
}

/// A line about a Snapshot.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecentSnapshot {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub phase: Option<SnapshotPhase>,
    /// Its session.
    pub session: Option<String>,
    /// Its size.
    pub size: Option<String>,
    /// Its time.
    pub snapshot_time: Option<Time>,
}
