//! RestoreSession: brings a Snapshot back into a target, once.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_with::skip_serializing_none;

use super::addon::AddonInfo;
use super::hook::RestoreHooks;
use super::shared::{ObjRef, ResourceFoundStatus, TypedRef, free_form};
use crate::condition::Condition;

/// Brings a Snapshot back into a target, once.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "core.kubestash.com",
    version = "v1alpha1",
    kind = "RestoreSession",
    plural = "restoresessions",
    shortname = "restore",
    namespaced,
    status = "RestoreSessionStatus",
    category = "kubestash",
    category = "appscode",
    category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Repository", type_ = "string", json_path = ".spec.dataSource.repository"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSessionSpec {
    /// Where to; where the Snapshot came from unless it is set.
    pub target: Option<TypedRef>,
    /// What.
    pub data_source: DataSource,
    /// How.
    pub addon: Option<AddonInfo>,
    /// What is done before and after; not yet.
    pub hooks: Option<RestoreHooks>,
    /// Time for the whole restore; there is no limit unless it is set.
    pub restore_timeout: Option<Duration>,
    /// For manifests only; not yet.
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub manifest_options: Option<Map<String, Value>>,
}

/// What is restored.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.pitr) || (has(self.snapshot) && self.snapshot != '')", "snapshot can not be empty"))]
#[x_kube(validation = ("has(self.pitr) || !has(self.snapshot) || self.snapshot != 'latest' || (has(self.repository) && self.repository != '')", "repository can not be empty for latest snapshot"))]
#[x_kube(validation = ("!has(self.pitr) || (has(self.pitr.targetTime) && has(self.repository) && self.repository != '')", "pitr needs targetTime and repository"))]
pub struct DataSource {
    /// Namespace of the Repository and the Snapshot; empty is the session's own.
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// The Repository, for `latest`.
    #[schemars(length(max = 253))]
    pub repository: Option<String>,
    /// Name of a Snapshot, or `latest`.
    #[schemars(length(max = 253))]
    pub snapshot: Option<String>,
    /// A moment, for databases only; not yet.
    pub pitr: Option<Pitr>,
    /// The components that are restored; empty is all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub components: Vec<String>,
    /// Secret with the key `RESTIC_PASSWORD`.
    pub encryption_secret: Option<ObjRef>,
}

/// A moment to restore.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pitr {
    /// The moment.
    pub target_time: Option<Time>,
    /// Whether what happened at that moment is left out.
    pub exclusive: Option<bool>,
}

/// What is known of a RestoreSession.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSessionStatus {
    /// Where it is in its life.
    pub phase: Option<RestorePhase>,
    /// Whether the target is there.
    pub target_found: Option<bool>,
    /// How long it took, in whole seconds, as a Go duration.
    pub duration: Option<String>,
    /// When it ends at the latest.
    pub restore_deadline: Option<Time>,
    /// Number of components that are restored.
    pub total_components: Option<i32>,
    /// The components by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, RestoreComponent>,
    /// What it needs, with the resolved name of the Snapshot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<ResourceFoundStatus>,
    /// Configurations that were paused for the restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused_backups: Vec<TypedRef>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where a RestoreSession, or a component of one, is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RestorePhase {
    #[default]
    Pending,
    Running,
    Failed,
    Succeeded,
    Invalid,
    Unknown,
}

impl RestorePhase {
    /// Whether nothing changes any more.
    pub fn is_over(self) -> bool {
        matches!(self, RestorePhase::Failed | RestorePhase::Succeeded | RestorePhase::Invalid)
    }
}

/// What is known of a component that is restored.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreComponent {
    /// Where it is in its life.
    pub phase: Option<RestorePhase>,
    /// How long it took, as a Go duration.
    pub duration: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// How far it is.
    pub progress: Option<RestoreProgress>,
}

/// How far a restore is.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreProgress {
    /// Bytes that are done.
    pub restore_done: Option<String>,
    /// Share of the bytes, such as `93.94%`.
    pub percent_done: Option<String>,
    /// Files that are done.
    pub files_done: Option<i64>,
    /// Files that there are.
    pub total_files: Option<i64>,
    /// Seconds since the beginning.
    pub seconds_elapsed: Option<i64>,
    /// Bytes in a second, such as `32MB/s`.
    pub speed: Option<String>,
    /// Bytes that there are.
    pub total: Option<String>,
}
