//! BackupSession: one run of one session of a BackupConfiguration.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::shared::{InvokerRef, ObjRef, TypedRef};
use super::snapshot::SnapshotPhase;
use crate::condition::Condition;

/// One run of one session of a BackupConfiguration.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "core.kubestash.com",
    version = "v1alpha1",
    kind = "BackupSession",
    plural = "backupsessions",
    namespaced,
    status = "BackupSessionStatus",
    category = "kubestash",
    category = "appscode",
    category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Invoker-Type", type_ = "string", json_path = ".spec.invoker.kind"),
    printcolumn(name = "Invoker-Name", type_ = "string", json_path = ".spec.invoker.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Duration", type_ = "string", json_path = ".status.duration"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self == oldSelf", "spec is immutable"))]
pub struct BackupSessionSpec {
    /// The BackupConfiguration.
    pub invoker: InvokerRef,
    /// Name of its session.
    #[schemars(length(max = 63))]
    pub session: Option<String>,
    /// How often a failure is tried again.
    pub retry_left: Option<i32>,
    /// Time for the whole run.
    pub backup_timeout: Option<Duration>,
}

/// What is known of a BackupSession.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupSessionStatus {
    /// Where it is in its life.
    pub phase: Option<BackupSessionPhase>,
    /// How long it took, in whole seconds, as a Go duration.
    pub duration: Option<String>,
    /// When it ends at the latest.
    pub backup_deadline: Option<Time>,
    /// Number of Snapshots.
    pub total_snapshots: Option<i32>,
    /// The Snapshots.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotLine>,
    /// What became of the policies, for each repository.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retention_policy: Vec<RetentionPolicyLine>,
    /// Whether it was tried again.
    pub retried: Option<bool>,
    /// When it is tried again.
    pub next_retry: Option<Time>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Where a BackupSession is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum BackupSessionPhase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
    Skipped,
}

impl BackupSessionPhase {
    /// Whether nothing changes any more.
    pub fn is_over(self) -> bool {
        matches!(
            self,
            BackupSessionPhase::Succeeded | BackupSessionPhase::Failed | BackupSessionPhase::Skipped
        )
    }
}

/// A line about a Snapshot.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotLine {
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub phase: Option<SnapshotPhase>,
    /// What is backed up.
    pub app_ref: Option<TypedRef>,
    /// Its Repository.
    pub repository: Option<String>,
}

/// What became of the policy for one repository.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RetentionPolicyLine {
    /// The policy.
    #[serde(rename = "ref")]
    pub ref_: Option<ObjRef>,
    /// The Repository.
    pub repository: Option<String>,
    /// Whether it was applied.
    pub phase: Option<RetentionPolicyPhase>,
    /// Why not.
    pub error: Option<String>,
}

/// Whether a policy was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RetentionPolicyPhase {
    Pending,
    Applied,
    FailedToApply,
}
