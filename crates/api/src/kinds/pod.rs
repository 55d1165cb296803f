//! Settings of pods in manifests: the flat pod template of Jobs, and runtime settings.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Container, EnvFromSource, EnvVar, Lifecycle, LocalObjectReference, PodDNSConfig,
    PodReadinessGate, PodSecurityContext, Probe, ResourceRequirements, SecurityContext, Toleration,
    TopologySpreadConstraint, Volume, VolumeMount,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::shared::{core, free_form};
use serde_json::{Map, Value};

/// Labels and annotations.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Marks {
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations.
    pub annotations: Option<BTreeMap<String, String>>,
}

/// What a user may say of a Job's pod. Settings of a container apply to the one that does the work.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PodTemplateSpec {
    /// Of the pod.
    pub metadata: Option<Marks>,
    /// Of the Job.
    pub controller: Option<Marks>,
    /// Of the pod and its container.
    pub spec: Option<PodSettings>,
}

/// Settings of a pod and of its one container, in one list.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of a pod and of a container")]
pub struct PodSettings {
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Affinity>>")]
    pub affinity: Option<Affinity>,
    pub args: Option<Vec<String>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<SecurityContext>>")]
    pub container_security_context: Option<SecurityContext>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<PodDNSConfig>>")]
    pub dns_config: Option<PodDNSConfig>,
    pub dns_policy: Option<String>,
    pub enable_service_links: Option<bool>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<EnvVar>>>")]
    pub env: Option<Vec<EnvVar>>,
    #[serde(rename = "hostIPC")]
    pub host_ipc: Option<bool>,
    pub host_network: Option<bool>,
    #[serde(rename = "hostPID")]
    pub host_pid: Option<bool>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<LocalObjectReference>>>")]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
    #[serde(default)]
    #[schemars(schema_with = "containers")]
    pub init_containers: Option<Vec<Container>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Lifecycle>>")]
    pub lifecycle: Option<Lifecycle>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Probe>>")]
    pub liveness_probe: Option<Probe>,
    pub node_selector: Option<BTreeMap<String, String>>,
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub pod_placement_policy: Option<Map<String, Value>>,
    pub priority: Option<i32>,
    pub priority_class_name: Option<String>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Probe>>")]
    pub readiness_probe: Option<Probe>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<ResourceRequirements>>")]
    pub resources: Option<ResourceRequirements>,
    pub runtime_class_name: Option<String>,
    pub scheduler_name: Option<String>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<PodSecurityContext>>")]
    pub security_context: Option<PodSecurityContext>,
    pub service_account_name: Option<String>,
    pub share_process_namespace: Option<bool>,
    pub termination_grace_period_seconds: Option<i64>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<Toleration>>>")]
    pub tolerations: Option<Vec<Toleration>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<TopologySpreadConstraint>>>")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<VolumeMount>>>")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<Volume>>>")]
    pub volumes: Option<Vec<Volume>>,
}

/// A list of containers: what they hold is checked when the pod is made, or each would cost 20 kB of every definition.
fn containers(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array", "nullable": true, "maxItems": 32,
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
    })
}

/// Settings of the pods that act for an object.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RuntimeSettings {
    /// Of the pod.
    pub pod: Option<PodRuntimeSettings>,
    /// Of its container.
    pub container: Option<ContainerRuntimeSettings>,
}

/// Settings of a container.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of a container")]
pub struct ContainerRuntimeSettings {
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<ResourceRequirements>>")]
    pub resources: Option<ResourceRequirements>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Probe>>")]
    pub liveness_probe: Option<Probe>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Probe>>")]
    pub readiness_probe: Option<Probe>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Lifecycle>>")]
    pub lifecycle: Option<Lifecycle>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<SecurityContext>>")]
    pub security_context: Option<SecurityContext>,
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub nice: Option<Map<String, Value>>,
    #[serde(default)]
    #[schemars(schema_with = "free_form")]
    pub ionice: Option<Map<String, Value>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<EnvVar>>>")]
    pub env: Option<Vec<EnvVar>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<EnvFromSource>>>")]
    pub env_from: Option<Vec<EnvFromSource>>,
}

/// Settings of a pod.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of a pod")]
pub struct PodRuntimeSettings {
    pub pod_labels: Option<BTreeMap<String, String>>,
    pub pod_annotations: Option<BTreeMap<String, String>>,
    pub service_account_name: Option<String>,
    pub service_account_annotations: Option<BTreeMap<String, String>>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub automount_service_account_token: Option<bool>,
    pub node_name: Option<String>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<PodSecurityContext>>")]
    pub security_context: Option<PodSecurityContext>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<LocalObjectReference>>>")]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Affinity>>")]
    pub affinity: Option<Affinity>,
    pub scheduler_name: Option<String>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<Toleration>>>")]
    pub tolerations: Option<Vec<Toleration>>,
    pub priority_class_name: Option<String>,
    pub priority: Option<i32>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<PodReadinessGate>>>")]
    pub readiness_gates: Option<Vec<PodReadinessGate>>,
    pub runtime_class_name: Option<String>,
    pub enable_service_links: Option<bool>,
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<Vec<TopologySpreadConstraint>>>")]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
}
