//! Makes a Job of a task: the Secret that hands it over, the identity that reports on it, and the pod that does it.
//!
//! Nothing here asks the cluster. A pod gets its task and its credentials as files, may patch the status of the objects
//! that it reports on, and nothing else; it runs under restricted Pod Security unless it restores owners of files.

use std::collections::BTreeMap;

use cistern_api::backend::{Keys, PASSWORD};
use cistern_api::job::{CREDENTIALS_DIR, DATA_DIR, JobTask, SCRATCH_DIR, TASK_FILE};
use cistern_api::kinds::backup_storage::Local;
use cistern_api::kinds::pod::PodTemplateSpec;
use cistern_api::labels;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Secret, ServiceAccount, Volume, VolumeMount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use secrecy::ExposeSecret;
use serde_json::{Map, Value, json};

use crate::context::{Cx, Kind, Settings};
use crate::controller::Failure;

pub(crate) mod pod;
pub(crate) mod work;

/// Key of the Secret that holds the task.
const TASK_KEY: &str = "task.json";
/// The keys of users' Secrets that a Job gets, if they are there. It gets no other ones.
const HANDED_OVER: [&str; 5] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "CA_CERT_DATA", PASSWORD];
/// Seconds that a pod has to end by itself at its deadline, before the Job ends it.
const GRACE: i64 = 60;

/// Everything that a Job is made of.
pub(crate) struct Plan {
    /// Name of the Job and of what belongs to it.
    pub name: String,
    /// The session's namespace.
    pub namespace: String,
    /// The session that needs it.
    pub owner: OwnerReference,
    /// What it is for: the value of the label `app.kubernetes.io/component`.
    pub component: &'static str,
    /// Labels of all its objects.
    pub labels: BTreeMap<String, String>,
    /// What it does.
    pub task: JobTask,
    /// The credentials of each place that the task names.
    pub keys: BTreeMap<String, Keys>,
    /// Volumes of its pod. One for files of the Job's own is added if none of these is it.
    pub volumes: Vec<Volume>,
    /// Where they are mounted.
    pub mounts: Vec<VolumeMount>,
    /// Whether the data is only read.
    pub read_only: bool,
    /// Storages that are volumes.
    pub storages: Vec<Local>,
    /// The objects whose status it writes.
    pub reports: Option<Reports>,
    /// Who it runs as, unless the user says otherwise.
    pub user: User,
    /// What the user says of it and its pod.
    pub template: Option<PodTemplateSpec>,
    /// What somebody needs to know about it later.
    pub annotations: BTreeMap<String, String>,
    /// When it is over at the latest.
    pub deadline: Option<Timestamp>,
}

/// Objects of one kind by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reports {
    /// Their API group.
    pub group: &'static str,
    /// Their plural.
    pub resource: &'static str,
    /// Their names.
    pub names: Vec<String>,
}

/// Who a pod runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum User {
    /// Nobody, without capabilities: restricted.
    Nobody,
    /// Root with the capabilities that owners and modes of files need, and no other ones: baseline.
    Owners,
}

impl Plan {
    /// Labels of an object of this Job.
    fn marks(&self) -> BTreeMap<String, String> {
        let mut marks = self.labels.clone();
        marks.insert(labels::MANAGED_BY.into(), labels::MANAGER.into());
        marks.insert(labels::COMPONENT.into(), self.component.into());
        marks
    }

    fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.marks()),
            owner_references: Some(vec![self.owner.clone()]),
            ..ObjectMeta::default()
        }
    }

    /// The Secret with the task and its credentials. It cannot be changed, and is deleted when the Job has ended.
    ///
    /// # Errors
    /// The task cannot be written as JSON.
    pub fn secret(&self) -> Result<Secret, Failure> {
        let task = serde_json::to_vec(&self.task).map_err(Failure::broken)?;
        let mut data = BTreeMap::from([(TASK_KEY.to_owned(), ByteString(task))]);
        for (place, key, value) in self.handed_over() {
            data.insert(format!("{place}.{key}"), ByteString(value.expose_secret().as_bytes().to_vec()));
        }
        let (metadata, immutable) = (self.metadata(), Some(true));
        Ok(Secret {
            metadata,
            immutable,
            data: Some(data),
            type_: Some("Opaque".into()),
            ..Secret::default()
        })
    }

    fn handed_over(&self) -> impl Iterator<Item = (&str, &'static str, &secrecy::SecretString)> {
        self.keys.iter().flat_map(|(place, keys)| {
            HANDED_OVER.iter().filter_map(move |key| Some((place.as_str(), *key, keys.get(key)?)))
        })
    }

    /// The Job's own identity; `None` if the user names one.
    pub fn service_account(&self) -> Option<ServiceAccount> {
        self.named_account().is_none().then(|| ServiceAccount {
            metadata: self.metadata(),
            automount_service_account_token: Some(false),
            ..ServiceAccount::default()
        })
    }

    fn named_account(&self) -> Option<&str> {
        self.template.as_ref()?.spec.as_ref()?.service_account_name.as_deref().filter(|name| !name.is_empty())
    }

    /// The right to write the status of what is reported on, by name.
    pub fn role(&self) -> Option<Role> {
        let reports = self.reports.as_ref()?;
        let rule = PolicyRule {
            api_groups: Some(vec![reports.group.into()]),
            resources: Some(vec![format!("{}/status", reports.resource)]),
            resource_names: Some(reports.names.clone()),
            verbs: vec!["get".into(), "patch".into()],
            ..PolicyRule::default()
        };
        Some(Role { metadata: self.metadata(), rules: Some(vec![rule]) })
    }

    /// Gives the right to the identity.
    pub fn role_binding(&self) -> Option<RoleBinding> {
        self.reports.as_ref()?;
        let subject = Subject {
            kind: "ServiceAccount".into(),
            name: self.named_account().unwrap_or(&self.name).to_owned(),
            namespace: Some(self.namespace.clone()),
            ..Subject::default()
        };
        let role_ref = RoleRef {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "Role".into(),
            name: self.name.clone(),
        };
        Some(RoleBinding { metadata: self.metadata(), subjects: Some(vec![subject]), role_ref })
    }

    /// The Job.
    ///
    /// # Errors
    /// The user's settings of the pod cannot be followed.
    pub fn job(&self, settings: &Settings, now: Timestamp) -> Result<Job, Failure> {
        let mut metadata = self.metadata();
        let of_user = self.template.as_ref().and_then(|template| template.controller.clone());
        let of_user = of_user.unwrap_or_default();
        metadata.labels = Some(of_user.labels.unwrap_or_default().into_iter().chain(self.marks()).collect());
        let annotations = of_user.annotations.unwrap_or_default().into_iter();
        metadata.annotations = Some(annotations.chain(self.annotations.clone()).collect());
        // The pod is to end by itself, with a word about why; this is for the case that nobody is there to see to it.
        let seconds = self.deadline.map(|deadline| deadline.duration_since(now).as_secs().max(1) + GRACE);
        let job = json!({
            "metadata": metadata,
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": seconds,
                // A pod that has to leave its node has not failed; another one begins where it was.
                "podFailurePolicy": { "rules": [
                    { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
                ] },
                // Never two pods at one repository.
                "podReplacementPolicy": "Failed",
                "template": self.pod(settings)?,
            },
        });
        serde_json::from_value(job).map_err(|error| Failure::Invalid(format!("jobTemplate: {error}")))
    }

    /// The volume with the task and the credentials: each key of the Secret where the pod looks for it.
    fn files(&self) -> Value {
        // Both lie below the same folder, so that one volume holds them.
        let relative = |path: &str| path.trim_start_matches(FILES_DIR).trim_start_matches('/').to_owned();
        let mut items = vec![json!({ "key": TASK_KEY, "path": relative(TASK_FILE) })];
        items.extend(self.handed_over().map(|(place, key, _)| {
            json!({ "key": format!("{place}.{key}"), "path": relative(&format!("{CREDENTIALS_DIR}/{place}/{key}")) })
        }));
        json!({ "name": FILES, "secret": { "secretName": self.name, "defaultMode": 0o444, "items": items } })
    }
}

/// The folder that holds the task and the credentials.
const FILES_DIR: &str = "/run/cistern";
/// Name of its volume.
const FILES: &str = "cistern-files";
/// Name of the volume for files of the Job's own.
const SCRATCH: &str = "kubestash-tmp-volume";

/// Creates what a plan names: first what the pod needs, all at once, then the Job. What is there already is left alone.
///
/// # Errors
/// The API server refuses; an object of one of the names belongs to somebody else.
pub(crate) async fn start(cx: &Cx, plan: &Plan) -> Result<Job, Failure> {
    let job = plan.job(cx.settings(), cx.now())?;
    let (secret, account, role, binding) =
        (plan.secret()?, plan.service_account(), plan.role(), plan.role_binding());
    let secret = async { cx.create_once(&secret).await.map(drop) };
    let account = async { once(cx, account).await };
    // Whoever binds a Role has to have its rights: the API server wants to see them.
    let rights = async {
        once(cx, role).await?;
        once(cx, binding).await
    };
    futures::try_join!(secret, account, rights)?;
    cx.create_once(&job).await
}

async fn once<K: Kind>(cx: &Cx, object: Option<K>) -> Result<(), Failure> {
    match object {
        Some(object) => cx.create_once(&object).await.map(drop),
        None => Ok(()),
    }
}

/// Deletes the owner's Job of this name with its pod, and the Secret that it had. What belongs to somebody else stays.
///
/// # Errors
/// The API server refuses.
pub(crate) async fn stop(cx: &Cx, owner: &impl Kind, name: &str) -> Result<(), Failure> {
    futures::try_join!(cx.delete_owned::<Job>(owner, name), cx.delete_owned::<Secret>(owner, name)).map(drop)
}

/// Lays the members of `over` over those of `under`; objects within are not mixed.
pub(crate) fn overlay(under: &mut Value, over: Value) {
    if let (Some(under), Value::Object(over)) = (under.as_object_mut(), over) {
        under.extend(over.into_iter().filter(|(_, value)| !value.is_null()));
    }
}

/// Adds the elements of a list to those of another one.
fn append(list: &mut Value, more: Option<Value>) {
    if let (Some(list), Some(Value::Array(more))) = (list.as_array_mut(), more) {
        list.extend(more);
    }
}

fn object(value: impl serde::Serialize) -> Result<Map<String, Value>, Failure> {
    match serde_json::to_value(value).map_err(Failure::broken)? {
        Value::Object(object) => Ok(object),
        _ => Err(Failure::Broken("settings that are no object".into())),
    }
}

#[cfg(test)]
mod tests;
