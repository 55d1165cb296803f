//! Hooks in manifests. They do not run yet: a manifest that names one is refused with the path of the field.

use k8s_openapi::api::core::v1::{EnvVar, Volume, VolumeMount};
use kube::core::Duration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::pod::RuntimeSettings;
use super::shared::{ObjRef, Params, core, free_form};

/// A hook that a session names.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookInfo {
    /// Name of the hook.
    pub name: Option<String>,
    /// What it does.
    pub hook_template: Option<ObjRef>,
    /// Parameters for the template.
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub params: Option<Params>,
    /// Number of further attempts.
    #[schemars(range(min = 0))]
    pub max_retry: Option<i32>,
    /// Time for one attempt.
    pub timeout: Option<Duration>,
    /// After which outcomes it runs.
    #[serde(default)]
    pub execution_policy: ExecutionPolicy,
    /// Variables for a Function.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<EnvVar>>>")]
    pub variables: Option<Vec<EnvVar>>,
    /// Volumes for a Function.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<Volume>>>")]
    pub volumes: Option<Vec<Volume>>,
    /// Where they are mounted.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<VolumeMount>>>")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Settings of a Function's pod.
    pub runtime_settings: Option<RuntimeSettings>,
}

/// After which outcomes a hook runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExecutionPolicy {
    /// After every outcome.
    #[default]
    Always,
    /// After success.
    OnSuccess,
    /// After failure.
    OnFailure,
}

/// Hooks of a backup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupHooks {
    /// Before the backup.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre_backup: Vec<HookInfo>,
    /// After it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_backup: Vec<HookInfo>,
}

/// Hooks of a restore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreHooks {
    /// Before the restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre_restore: Vec<HookInfo>,
    /// After it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post_restore: Vec<HookInfo>,
}
