//! Addon and Function: the catalogue of what can be done to a target, and with which container. Cluster-scoped: they are
//! the administrator's.

use k8s_openapi::api::core::v1::{
    ContainerPort, EnvVar, PersistentVolumeClaim, Volume, VolumeDevice, VolumeMount,
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use serde_with::skip_serializing_none;

use super::pod::{PodTemplateSpec, RuntimeSettings};
use super::shared::{ParameterDefinition, Params, core, free_form};

/// Names the tasks that back up and restore one kind of target.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "addons.kubestash.com",
    version = "v1alpha1",
    kind = "Addon",
    plural = "addons",
    category = "kubestash",
    category = "appscode",
    category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AddonSpec {
    /// Tasks that back up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backup_tasks: Vec<AddonTask>,
    /// Tasks that restore.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restore_tasks: Vec<AddonTask>,
}

/// One task of an addon.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddonTask {
    /// Name of the task.
    pub name: String,
    /// Function that does it.
    pub function: Option<String>,
    /// What keeps the data, such as `Restic`.
    pub driver: Option<String>,
    /// Where the function runs; only `Job` works.
    pub executor: Option<String>,
    /// Whether one Job does all components.
    pub singleton: Option<bool>,
    /// Parameters that the function understands.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<ParameterDefinition>,
    /// Volumes that the function needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_template: Vec<VolumeTemplate>,
    /// Where the function wants them.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<VolumeMount>>>")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// A volume that a function needs.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VolumeTemplate {
    /// Name of the volume.
    pub name: String,
    /// What it is for.
    pub usage: Option<String>,
    /// Any volume source of a pod, or `volumeClaimTemplate`.
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub source: Option<Map<String, Value>>,
}

/// What an invoker says of the addon that it uses.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddonInfo {
    /// Name of the addon.
    pub name: Option<String>,
    /// Tasks to run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tasks: Vec<TaskReference>,
    /// Settings of the container that does the work.
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub container_runtime_settings: Option<Map<String, Value>>,
    /// Settings of the Job that does the work.
    pub job_template: Option<PodTemplateSpec>,
}

/// A task of an addon, with what it is to do here.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskReference {
    /// Name of the task.
    pub name: Option<String>,
    /// Variables for the function.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<EnvVar>>>")]
    pub variables: Option<Vec<EnvVar>>,
    /// Parameters of the task.
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub params: Option<Params>,
    /// Volumes of the target, where it does not name them itself.
    pub target_volumes: Option<TargetVolumes>,
    /// Volumes in the place of those that the addon names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub addon_volumes: Vec<AddonVolume>,
}

/// Volumes of a target.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetVolumes {
    /// The volumes.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<Volume>>>")]
    pub volumes: Option<Vec<Volume>>,
    /// Where they are mounted.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<VolumeMount>>>")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Claims to create.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<PersistentVolumeClaim>>>")]
    pub volume_claim_templates: Option<Vec<PersistentVolumeClaim>>,
}

/// A volume in the place of one that the addon names.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AddonVolume {
    /// Name of the addon's volume.
    pub name: String,
    /// Any volume source of a pod, or `volumeClaimTemplate`.
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub source: Option<Map<String, Value>>,
}

/// A container that does tasks.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "addons.kubestash.com",
    version = "v1alpha1",
    kind = "Function",
    plural = "functions",
    shortname = "fn",
    category = "kubestash",
    category = "appscode",
    category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct FunctionSpec {
    /// Image of the container.
    pub image: Option<String>,
    /// Its command, in the place of the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Its arguments, in which `${name:=default}` is replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Folder to run in.
    pub working_dir: Option<String>,
    /// Ports of the container.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<ContainerPort>>>")]
    pub ports: Option<Vec<ContainerPort>>,
    /// Where volumes are mounted.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<VolumeMount>>>")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    /// Block devices of the container.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<VolumeDevice>>>")]
    pub volume_devices: Option<Vec<VolumeDevice>>,
    /// Settings of the container and its pod.
    pub runtime_settings: Option<RuntimeSettings>,
    /// Tags of the image that there are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub available_versions: Vec<String>,
}
