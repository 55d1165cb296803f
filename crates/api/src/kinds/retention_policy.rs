//! RetentionPolicy: which Snapshots are kept, and how long.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::shared::UsagePolicy;

/// Which Snapshots are kept, and how long.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "storage.kubestash.com",
    version = "v1alpha1",
    kind = "RetentionPolicy",
    plural = "retentionpolicies",
    namespaced,
    category = "kubestash",
    category = "appscode",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Max-Retention-Period", type_ = "string", json_path = ".spec.maxRetentionPeriod"),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("(has(self.maxRetentionPeriod) && self.maxRetentionPeriod != '') || has(self.successfulSnapshots)", "at least one of maxRetentionPeriod and successfulSnapshots must be set"))]
#[x_kube(validation = ("!has(self.maxRetentionPeriod) || self.maxRetentionPeriod == '' || self.maxRetentionPeriod.matches('^([0-9]+(y|mo|w|d|h|m))+$')", "maxRetentionPeriod must be numbers with the units y, mo, w, d, h, m, such as 30d12h"))]
pub struct RetentionPolicySpec {
    /// Nothing older is kept. Units `y`, `mo` (30 days), `w`, `d`, `h`, `m`, such as `30d12h30m`.
    #[schemars(length(max = 64))]
    pub max_retention_period: Option<String>,
    /// Which namespaces may use it.
    pub usage_policy: Option<UsagePolicy>,
    /// How many that succeeded are kept.
    pub successful_snapshots: Option<SuccessfulSnapshots>,
    /// How many that failed are kept.
    pub failed_snapshots: Option<FailedSnapshots>,
    /// Whether it is meant when nobody says which one.
    pub default: Option<bool>,
}

/// How many Snapshots that succeeded are kept for each kind of period.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SuccessfulSnapshots {
    /// The last ones.
    #[schemars(range(min = 0))]
    pub last: Option<i32>,
    /// The newest of each hour.
    #[schemars(range(min = 0))]
    pub hourly: Option<i32>,
    /// The newest of each day.
    #[schemars(range(min = 0))]
    pub daily: Option<i32>,
    /// The newest of each week.
    #[schemars(range(min = 0))]
    pub weekly: Option<i32>,
    /// The newest of each month.
    #[schemars(range(min = 0))]
    pub monthly: Option<i32>,
    /// The newest of each year.
    #[schemars(range(min = 0))]
    pub yearly: Option<i32>,
}

/// How many Snapshots that failed are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FailedSnapshots {
    /// The last ones.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub last: i32,
}

impl Default for FailedSnapshots {
    fn default() -> Self {
        FailedSnapshots { last: one() }
    }
}

fn one() -> i32 {
    1
}
