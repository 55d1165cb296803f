//! BackupConfiguration: what is backed up, when, how and into which repositories.

use kube::core::Duration;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

use super::addon::AddonInfo;
use super::backup_storage::BackupStoragePhase;
use super::hook::BackupHooks;
use super::pod::PodTemplateSpec;
use super::repository::RepositoryPhase;
use super::shared::{ObjRef, ResourceFoundStatus, RetryConfig, TypedRef};
use crate::condition::Condition;

/// What is backed up, when, how and into which repositories.
#[skip_serializing_none]
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "core.kubestash.com",
    version = "v1alpha1",
    kind = "BackupConfiguration",
    plural = "backupconfigurations",
    shortname = "bc",
    namespaced,
    status = "BackupConfigurationStatus",
    category = "kubestash",
    category = "appscode",
    category = "all",
    label("app.kubernetes.io/name", "kubestash"),
    derive = "PartialEq",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.sessions) || !has(self.backends) || size(self.backends) == 0 || self.sessions.all(s, !has(s.repositories) || s.repositories.all(r, !has(r.backend) || r.backend == '' || self.backends.exists(b, has(b.name) && b.name == r.backend)))", "every repository must name one of the backends"))]
pub struct BackupConfigurationSpec {
    /// What is backed up.
    pub target: Option<TypedRef>,
    /// Suspends the schedules.
    pub paused: Option<bool>,
    /// Where repositories can lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, (has(a.name) ? a.name : '') == (has(b.name) ? b.name : '')))", "names of backends must be unique"))]
    pub backends: Vec<Backend>,
    /// When what is done.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = ("self.all(a, self.exists_one(b, a.name == b.name))", "names of sessions must be unique"))]
    pub sessions: Vec<Session>,
}

impl BackupConfigurationSpec {
    /// Which of the backends a repository means: the one that it names; where it names none, the unnamed one, or the only
    /// one. Without backends the default one is the first.
    pub fn backend_of(&self, repository: &RepositoryInfo) -> Option<usize> {
        let wanted = repository.backend.as_deref().unwrap_or_default();
        match self.backends.as_slice() {
            [] | [_] if wanted.is_empty() => Some(0),
            all => all.iter().position(|backend| backend.name.as_deref().unwrap_or_default() == wanted),
        }
    }
}

/// A place for repositories.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// Name by which repositories refer to it.
    #[schemars(length(max = 63))]
    pub name: Option<String>,
    /// The BackupStorage; the default one unless it is set.
    pub storage_ref: Option<ObjRef>,
    /// The RetentionPolicy; the default one unless it is set.
    pub retention_policy: Option<ObjRef>,
}

/// One schedule, and what is done then.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// How many BackupSessions that are over are kept.
    #[serde(default = "one")]
    #[schemars(range(min = 0))]
    pub session_history_limit: i32,
    /// When.
    pub scheduler: Option<Scheduler>,
    /// What is done before and after; not yet.
    pub hooks: Option<BackupHooks>,
    /// What happens after a failure.
    pub retry_config: Option<RetryConfig>,
    /// Time for the whole session; there is no limit unless it is set.
    pub backup_timeout: Option<Duration>,
    /// What is done.
    pub addon: Option<AddonInfo>,
    /// Where to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub repositories: Vec<RepositoryInfo>,
}

fn one() -> i32 {
    1
}

/// A schedule, whose settings are those of a CronJob.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scheduler {
    /// When, as five fields of cron.
    #[schemars(length(min = 1, max = 128))]
    pub schedule: String,
    /// How late a run may begin.
    pub starting_deadline_seconds: Option<i64>,
    /// What happens when the run before is not over.
    pub concurrency_policy: Option<String>,
    /// Suspends the schedule.
    pub suspend: Option<bool>,
    /// Number of trigger Jobs that are kept after success.
    pub successful_jobs_history_limit: Option<i32>,
    /// Number of trigger Jobs that are kept after failure.
    pub failed_jobs_history_limit: Option<i32>,
    /// Settings of the trigger Job.
    pub job_template: Option<TriggerJobTemplate>,
}

/// Settings of the Job that creates the BackupSession.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the fields are those of a Job")]
pub struct TriggerJobTemplate {
    pub parallelism: Option<i32>,
    pub completions: Option<i32>,
    pub active_deadline_seconds: Option<i64>,
    pub backoff_limit: Option<i32>,
    pub template: Option<PodTemplateSpec>,
    pub ttl_seconds_after_finished: Option<i32>,
    pub completion_mode: Option<String>,
    pub suspend: Option<bool>,
}

/// A repository that a session writes.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryInfo {
    /// Name of the Repository.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Name of the backend; the default one unless it is set.
    #[schemars(length(max = 63))]
    pub backend: Option<String>,
    /// Folder, relative to the prefix of the storage.
    #[schemars(length(max = 512))]
    pub directory: Option<String>,
    /// Secret with the key `RESTIC_PASSWORD`.
    pub encryption_secret: Option<ObjRef>,
    /// What becomes of the Repository when the configuration is deleted.
    pub deletion_policy: Option<RepositoryDeletionPolicy>,
    /// What verifies the backups; not yet.
    pub backup_verifier: Option<ObjRef>,
}

/// What becomes of a Repository when the configuration that made it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RepositoryDeletionPolicy {
    /// The objects leave the cluster, the data stays.
    Delete,
    /// The data is deleted, too.
    WipeOut,
    /// Everything stays.
    Retain,
}

/// What is known of a BackupConfiguration.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackupConfigurationStatus {
    /// Whether its schedules run.
    pub phase: Option<BackupConfigurationPhase>,
    /// Whether the target is there.
    pub target_found: Option<bool>,
    /// The backends.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<BackendStatus>,
    /// The repositories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub repositories: Vec<RepositoryInfoStatus>,
    /// What else it needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<ResourceFoundStatus>,
    /// The sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sessions: Vec<SessionStatus>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Whether a BackupConfiguration's schedules run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names say it")]
pub enum BackupConfigurationPhase {
    NotReady,
    Ready,
    Invalid,
}

/// What is known of a backend.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// Its name.
    pub name: Option<String>,
    /// Whether it can be used.
    pub ready: Option<bool>,
    /// Its storage.
    pub storage: Option<StorageStatus>,
    /// Its policy.
    pub retention_policy: Option<RetentionPolicyFound>,
}

/// What is known of a backend's storage.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StorageStatus {
    /// Which one.
    #[serde(rename = "ref")]
    pub ref_: Option<ObjRef>,
    /// Whether it can be used.
    pub phase: Option<BackupStoragePhase>,
    /// Why not.
    pub reason: Option<String>,
}

/// Whether a backend's policy is there.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RetentionPolicyFound {
    /// Which one.
    #[serde(rename = "ref")]
    pub ref_: Option<ObjRef>,
    /// Whether it is there.
    pub found: Option<bool>,
    /// Why not.
    pub reason: Option<String>,
}

/// What is known of a repository of the configuration.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryInfoStatus {
    /// Its name.
    pub name: String,
    /// Whether it can be used.
    pub phase: Option<RepositoryPhase>,
    /// Why not.
    pub reason: Option<String>,
    /// Whether a verifier is set.
    pub verification_configured: Option<bool>,
}

/// What is known of a session of the configuration.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Its name.
    pub name: String,
    /// When it runs next.
    pub next_schedule: Option<String>,
    /// Observations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_means_one_backend_or_none() {
        let of = |names: &[&str], wanted: &str| {
            let backend = |name: &&str| Backend { name: Some((*name).to_owned()), ..Backend::default() };
            let spec = BackupConfigurationSpec {
                backends: names.iter().map(backend).collect(),
                ..BackupConfigurationSpec::default()
            };
            let backend = (!wanted.is_empty()).then(|| wanted.to_owned());
            spec.backend_of(&RepositoryInfo { backend, ..RepositoryInfo::default() })
        };
        assert_eq!(of(&[], ""), Some(0), "the default one");
        assert_eq!(of(&[], "a"), None);
        assert_eq!(of(&["a"], ""), Some(0), "the only one");
        assert_eq!(of(&["a", "b"], ""), None);
        assert_eq!(of(&["a", ""], ""), Some(1), "the unnamed one");
        assert_eq!(of(&["a", "b"], "b"), Some(1));
        assert_eq!(of(&["a"], "b"), None);
    }
}
