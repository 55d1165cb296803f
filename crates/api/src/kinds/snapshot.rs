//! Snapshot: what one backup run left in one Repository.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::shared::{DeletionPolicy, TypedRef};
use crate::condition::Condition;

/// What one backup run left in one Repository. Users do not create it.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "storage.kubestash.com",
    version = "v1alpha1",
    kind = "Snapshot",
    plural = "snapshots",
    namespaced,
    status = "SnapshotStatus",
    category = "kubestash",
    category = "appscode",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Repository", type_ = "string", json_path = ".spec.repository"),
    printcolumn(name = "Session", type_ = "string", json_path = ".spec.session"),
    printcolumn(name = "Snapshot-Time", type_ = "string", json_path = ".status.snapshotTime"),
    printcolumn(name = "Deletion-Policy", type_ = "string", json_path = ".spec.deletionPolicy"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// ULID of the run.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: Option<String>,
    /// `FullBackup` or `IncrementalBackup`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Name of the Repository, in the same namespace.
    pub repository: String,
    /// Name of the session.
    pub session: Option<String>,
    /// Name of the BackupSession.
    pub backup_session: Option<String>,
    /// Version of the layout, `v1`.
    pub version: Option<String>,
    /// What was backed up.
    pub app_ref: Option<TypedRef>,
    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Ignores what happens.
    pub paused: Option<bool>,
}

/// What is known of a Snapshot.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Where it is in its life.
    pub phase: Option<SnapshotPhase>,
    /// Whether somebody restored it to see.
    pub verification_status: Option<VerificationStatus>,
    /// Who did.
    pub verification_session: Option<String>,
    /// When it was taken.
    pub snapshot_time: Option<Time>,
    /// When this status last changed.
    pub last_update_time: Option<Time>,
    /// Sum of the components' sizes.
    pub size: Option<String>,
    /// Whether all components are whole.
    pub integrity: Option<bool>,
    /// Number of components that there are to be.
    pub total_components: Option<i32>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The components by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, Component>,
}

/// Where a Snapshot, or a component of one, is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum SnapshotPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl SnapshotPhase {
    /// Whether nothing changes any more.
    pub fn is_over(self) -> bool {
        matches!(self, SnapshotPhase::Succeeded | SnapshotPhase::Failed)
    }
}

impl Snapshot {
    /// When it was taken: what its status says, else when the object was made.
    pub fn taken(&self) -> Option<&Time> {
        let said = self.status.as_ref().and_then(|status| status.snapshot_time.as_ref());
        said.or(self.metadata.creation_timestamp.as_ref())
    }
}

/// Whether somebody restored a Snapshot to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum VerificationStatus {
    Verified,
    NotVerified,
    VerificationFailed,
}

/// A part of a target that is stored by itself, in a restic repository of its own.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// Its folder, relative to the Repository's: `repository/<version>/<session>/<component>`.
    pub path: Option<String>,
    /// Where it is in its life.
    pub phase: Option<SnapshotPhase>,
    /// What keeps the data: `Restic`.
    pub driver: Option<String>,
    /// Size of its whole restic repository.
    pub size: Option<String>,
    /// How long it took, as a Go duration.
    pub duration: Option<String>,
    /// Whether it is whole.
    pub integrity: Option<bool>,
    /// Why it failed.
    pub error: Option<String>,
    /// One entry for each restic snapshot that it is made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restic_stats: Vec<ResticStats>,
}

/// What is known of one restic snapshot.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResticStats {
    /// What it became.
    pub summary: Option<ResticSummary>,
    /// How far it is.
    pub progress: Option<BackupProgress>,
    /// As older objects have it, in the place of `summary.id`.
    pub id: Option<String>,
    /// As older objects have it, in the place of `summary.hostPath`.
    pub host_path: Option<String>,
    /// As older objects have it, in the place of `summary.size`.
    pub size: Option<String>,
    /// As older objects have it, in the place of `summary.uploaded`.
    pub uploaded: Option<String>,
}

impl ResticStats {
    /// Id of the restic snapshot, wherever the object has it.
    pub fn snapshot(&self) -> Option<&str> {
        self.summary.as_ref().and_then(|summary| summary.id.as_deref()).or(self.id.as_deref())
    }
}

/// What a restic snapshot became.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResticSummary {
    /// Its id, 64 hexadecimal digits.
    pub id: Option<String>,
    /// Path that was backed up.
    pub host_path: Option<String>,
    /// Bytes that were looked at.
    pub size: Option<String>,
    /// Bytes that were added.
    pub uploaded: Option<String>,
    /// When it began.
    pub start_time: Option<Time>,
    /// When it ended.
    pub end_time: Option<Time>,
}

/// How far a backup is.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupProgress {
    /// Bytes that are done.
    pub backup_done: Option<String>,
    /// Files that are done.
    pub files_done: Option<i64>,
    /// Share of the bytes, such as `93.94%`.
    pub percent_done: Option<String>,
    /// Seconds since the beginning.
    pub seconds_elapsed: Option<i64>,
    /// Bytes in a second, such as `32MB/s`.
    pub speed: Option<String>,
    /// Bytes that there are.
    pub total: Option<String>,
    /// Files that there are.
    pub total_files: Option<i64>,
}
