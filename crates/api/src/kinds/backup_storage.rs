//! BackupStorage: where backups are kept, and who may keep them there.

use k8s_openapi::api::core::v1::{HostPathVolumeSource, NFSVolumeSource, PersistentVolumeClaimVolumeSource};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::pod::RuntimeSettings;
use super::shared::{DeletionPolicy, UsagePolicy, core};
use crate::condition::Condition;

/// A bucket, or a volume, in which repositories are kept.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "storage.kubestash.com", version = "v1alpha1", kind = "BackupStorage", plural = "backupstorages", namespaced,
    status = "BackupStorageStatus",
    category = "kubestash", category = "appscode", category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.storage.provider"),
    printcolumn(name = "Default", type_ = "boolean", json_path = ".spec.default"),
    printcolumn(name = "Deletion-Policy", type_ = "string", json_path = ".spec.deletionPolicy"),
    printcolumn(name = "Total-Size", type_ = "string", json_path = ".status.totalSize"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("!has(oldSelf.status) || !has(oldSelf.status.repositories) || size(oldSelf.status.repositories) == 0 || self.spec.storage == oldSelf.spec.storage", "BackupStorage is currently in use and cannot be modified"),
)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorageSpec {
    /// Where.
    pub storage: Storage,
    /// Which namespaces may use it.
    pub usage_policy: Option<UsagePolicy>,
    /// Whether it is meant when nobody says which one.
    pub default: Option<bool>,
    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Settings of the pods that act for it.
    pub runtime_settings: Option<RuntimeSettings>,
}

/// A provider and the settings for it.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = ("self.provider in ['local', 's3', 'gcs', 'azure']", "provider must be one of local, s3, gcs, azure"))]
#[x_kube(validation = ("(self.provider == 's3') == has(self.s3)", "provider s3 needs the block s3, and no other one has it"))]
#[x_kube(validation = ("(self.provider == 'gcs') == has(self.gcs)", "provider gcs needs the block gcs, and no other one has it"))]
#[x_kube(validation = ("(self.provider == 'azure') == has(self.azure)", "provider azure needs the block azure, and no other one has it"))]
#[x_kube(validation = ("(self.provider == 'local') == has(self.local)", "provider local needs the block local, and no other one has it"))]
pub struct Storage {
    /// `local`, `s3`, `gcs` or `azure`.
    #[schemars(length(max = 16))]
    pub provider: String,
    /// S3 and what speaks its protocol.
    pub s3: Option<S3>,
    /// Google Cloud Storage.
    pub gcs: Option<Gcs>,
    /// Azure Blob.
    pub azure: Option<Azure>,
    /// A volume.
    pub local: Option<Local>,
}

impl Storage {
    /// Name of the Secret with the keys, in the namespace of the BackupStorage.
    pub fn secret_name(&self) -> Option<&str> {
        let name = match self.provider.as_str() {
            "s3" => self.s3.as_ref()?.secret_name.as_deref(),
            "gcs" => self.gcs.as_ref()?.secret_name.as_deref(),
            "azure" => self.azure.as_ref()?.secret_name.as_deref(),
            _ => None,
        };
        name.filter(|name| !name.is_empty())
    }
}

/// A bucket of S3 or of what speaks its protocol.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.endpoint) || self.endpoint == '' || self.endpoint.startsWith('http://') || self.endpoint.startsWith('https://')", "endpoint must begin with http:// or https://"))]
#[x_kube(validation = ("has(self.bucket) && self.bucket != ''", "bucket can not be empty"))]
#[x_kube(validation = ("!has(self.prefix) || !self.prefix.split('/').exists(p, p == '..')", "prefix must not hold '..'"))]
pub struct S3 {
    /// URL of the server; AWS's own unless it is set.
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// Name of the bucket.
    #[schemars(length(max = 255))]
    pub bucket: Option<String>,
    /// What keys begin with, up to a slash.
    #[schemars(length(max = 512))]
    pub prefix: Option<String>,
    /// Region of the bucket.
    pub region: Option<String>,
    /// Secret with the keys, in the namespace of this object.
    pub secret_name: Option<String>,
    /// Connections at the same time.
    pub max_connections: Option<i64>,
    /// Accepts any certificate.
    #[serde(rename = "insecureTLS")]
    pub insecure_tls: Option<bool>,
}

/// A bucket of Google Cloud Storage.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Gcs {
    /// Name of the bucket.
    pub bucket: Option<String>,
    /// What keys begin with, up to a slash.
    pub prefix: Option<String>,
    /// Secret with the keys.
    pub secret_name: Option<String>,
    /// Connections at the same time.
    pub max_connections: Option<i64>,
}

/// A container of Azure Blob.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Azure {
    /// Name of the account.
    pub storage_account: Option<String>,
    /// Name of the container.
    pub container: Option<String>,
    /// What keys begin with, up to a slash.
    pub prefix: Option<String>,
    /// Secret with the keys.
    pub secret_name: Option<String>,
    /// Connections at the same time.
    pub max_connections: Option<i64>,
}

/// A volume.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.mountPath) && self.mountPath.startsWith('/')", "mountPath must be an absolute path"))]
#[x_kube(validation = ("!has(self.subPath) || !self.subPath.split('/').exists(p, p == '..')", "subPath must not hold '..'"))]
#[x_kube(validation = ("[has(self.hostPath), has(self.persistentVolumeClaim), has(self.nfs)].filter(x, x).size() == 1", "one of hostPath, persistentVolumeClaim, nfs must be set"))]
pub struct Local {
    /// Where the volume is mounted.
    #[schemars(length(max = 512))]
    pub mount_path: Option<String>,
    /// The folder of the volume that is used.
    #[schemars(length(max = 512))]
    pub sub_path: Option<String>,
    /// Files at the same time.
    pub max_connections: Option<i64>,
    /// A folder of the node.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<HostPathVolumeSource>>")]
    pub host_path: Option<HostPathVolumeSource>,
    /// A claim.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<PersistentVolumeClaimVolumeSource>>")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimVolumeSource>,
    /// A share.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<NFSVolumeSource>>")]
    pub nfs: Option<NFSVolumeSource>,
}

/// What is known of a BackupStorage.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupStorageStatus {
    /// Whether it can be used.
    pub phase: Option<BackupStoragePhase>,
    /// Sum of the repositories' sizes.
    pub total_size: Option<String>,
    /// The repositories that are kept here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<StoredRepository>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Whether a BackupStorage can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum BackupStoragePhase {
    Ready,
    NotReady,
}

/// A repository in a BackupStorage; the same in `metadata.yaml`.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredRepository {
    /// Name of the Repository.
    pub name: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its folder, relative to the prefix.
    pub path: Option<String>,
    /// Its size.
    pub size: Option<String>,
    /// Whether the cluster and the bucket say the same of it.
    pub synced: Option<bool>,
    /// Why not.
    pub error: Option<String>,
}
