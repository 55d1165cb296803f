//! What begins the sessions of a BackupConfiguration: a CronJob for each, whose pod may create a BackupSession and no more.
//!
//! The pod is this program's own image and meets the strictest Pod Security. What the user says of it in
//! `scheduler.jobTemplate` is laid over that.

use std::collections::BTreeMap;

use cistern_api::kinds::backup_configuration::{Scheduler, Session, TriggerJobTemplate};
use cistern_api::kinds::pod::PodSettings;
use cistern_api::kinds::shared::InvokerRef;
use cistern_api::kinds::{BackupConfiguration, BackupSession, BackupSessionSpec};
use cistern_api::{labels, name};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, JobSpec, JobTemplateSpec};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::context::{Settings, owner};
use crate::controller::Failure;
use crate::job::overlay;

/// How late a session may begin: after a long outage nothing old is begun.
const STARTING_DEADLINE: i64 = 200;
/// How long a trigger may take: a pod that cannot start would keep all later runs away.
const ACTIVE_DEADLINE: i64 = 600;

/// Everything that one session needs to be begun.
#[derive(Debug, PartialEq)]
pub struct Trigger {
    /// The pod's identity, unless the user names one.
    pub account: Option<ServiceAccount>,
    /// What it may do.
    pub role: Role,
    /// That it may.
    pub binding: RoleBinding,
    /// When.
    pub cron: CronJob,
}

/// Labels of what is made for a session.
pub fn marks(configuration: &BackupConfiguration, session: &str) -> BTreeMap<String, String> {
    let namespace = configuration.namespace().unwrap_or_default();
    [
        (labels::MANAGED_BY, labels::MANAGER.to_owned()),
        (labels::INVOKER_KIND, BackupConfiguration::kind(&()).into_owned()),
        (labels::INVOKER_NAME, name::label(&configuration.name_any())),
        (labels::INVOKER_NAMESPACE, namespace),
        (labels::SESSION_NAME, name::label(session)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// What begins a session.
///
/// # Errors
/// The user's settings of the pod cannot be followed.
pub fn trigger(
    configuration: &BackupConfiguration,
    session: &Session,
    scheduler: &Scheduler,
    settings: &Settings,
) -> Result<Trigger, Failure> {
    let name = name::trigger(&configuration.name_any(), &session.name);
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        namespace: configuration.namespace(),
        labels: Some(marks(configuration, &session.name)),
        owner_references: Some(vec![owner(configuration)]),
        ..ObjectMeta::default()
    };
    let template = scheduler.job_template.clone().unwrap_or_default();
    let user = template.template.as_ref().and_then(|template| template.spec.as_ref());
    let named = user.and_then(|user| user.service_account_name.clone()).filter(|name| !name.is_empty());
    let account = named.is_none().then(|| ServiceAccount {
        metadata: metadata.clone(),
        // The one pod that needs a token says so itself.
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    });
    let subject = named.unwrap_or_else(|| name.clone());
    let arguments = [
        "trigger".to_owned(),
        format!("--namespace={}", configuration.namespace().unwrap_or_default()),
        format!("--configuration={}", configuration.name_any()),
        format!("--session={}", session.name),
    ];
    let spec = pod(&subject, arguments.into(), user, settings)?;
    let pod_marks =
        template.template.as_ref().and_then(|template| template.metadata.clone()).unwrap_or_default();
    let job_marks =
        template.template.as_ref().and_then(|template| template.controller.clone()).unwrap_or_default();
    let with_ours = |theirs: Option<BTreeMap<String, String>>| {
        Some(theirs.unwrap_or_default().into_iter().chain(marks(configuration, &session.name)).collect())
    };
    let pod_metadata = ObjectMeta {
        labels: with_ours(pod_marks.labels),
        annotations: pod_marks.annotations,
        ..ObjectMeta::default()
    };
    let job_metadata = ObjectMeta {
        labels: with_ours(job_marks.labels),
        annotations: job_marks.annotations,
        ..ObjectMeta::default()
    };
    let cron = CronJobSpec {
        schedule: scheduler.schedule.trim().to_owned(),
        starting_deadline_seconds: Some(scheduler.starting_deadline_seconds.unwrap_or(STARTING_DEADLINE)),
        concurrency_policy: Some(
            scheduler
                .concurrency_policy
                .clone()
                .filter(|policy| !policy.is_empty())
                .unwrap_or_else(|| "Forbid".to_owned()),
        ),
        suspend: Some(configuration.spec.paused == Some(true) || scheduler.suspend == Some(true)),
        successful_jobs_history_limit: Some(scheduler.successful_jobs_history_limit.unwrap_or(1)),
        failed_jobs_history_limit: Some(scheduler.failed_jobs_history_limit.unwrap_or(1)),
        job_template: JobTemplateSpec {
            metadata: Some(job_metadata),
            spec: Some(job(template, PodTemplateSpec { metadata: Some(pod_metadata), spec: Some(spec) })),
        },
        time_zone: None,
    };
    Ok(Trigger {
        account,
        role: Role { rules: Some(rules(&configuration.name_any())), metadata: metadata.clone() },
        binding: RoleBinding {
            role_ref: RoleRef {
                api_group: Some("rbac.authorization.k8s.io".to_owned()),
                kind: "Role".to_owned(),
                name: name.clone(),
            },
            subjects: Some(vec![Subject {
                kind: "ServiceAccount".to_owned(),
                name: subject,
                namespace: configuration.namespace(),
                api_group: None,
            }]),
            metadata: metadata.clone(),
        },
        cron: CronJob { metadata, spec: cron, status: None },
    })
}

/// What the trigger may do: read its configuration, and create sessions that belong to it.
fn rules(configuration: &str) -> Vec<PolicyRule> {
    let rule = |resource: &str, names: Option<&str>, verb: &str| PolicyRule {
        api_groups: Some(vec!["core.kubestash.com".to_owned()]),
        resources: Some(vec![resource.to_owned()]),
        resource_names: names.map(|name| vec![name.to_owned()]),
        verbs: vec![verb.to_owned()],
        non_resource_urls: None,
    };
    vec![
        rule("backupsessions", None, "create"),
        rule("backupconfigurations", Some(configuration), "get"),
        // Clusters that guard owner references (OpenShift does) ask for it.
        rule("backupconfigurations/finalizers", Some(configuration), "update"),
    ]
}

fn job(template: TriggerJobTemplate, pod: PodTemplateSpec) -> JobSpec {
    JobSpec {
        parallelism: template.parallelism,
        completions: template.completions,
        active_deadline_seconds: Some(template.active_deadline_seconds.unwrap_or(ACTIVE_DEADLINE)),
        backoff_limit: Some(template.backoff_limit.unwrap_or(3)),
        ttl_seconds_after_finished: template.ttl_seconds_after_finished,
        completion_mode: template.completion_mode,
        suspend: template.suspend,
        template: pod,
        ..JobSpec::default()
    }
}

/// Settings of the flat template that belong to the container, by the name that they have there.
const OF_CONTAINER: [&str; 6] =
    ["env", "lifecycle", "livenessProbe", "readinessProbe", "resources", "volumeMounts"];

fn pod(
    account: &str,
    arguments: Vec<String>,
    user: Option<&PodSettings>,
    settings: &Settings,
) -> Result<PodSpec, Failure> {
    let user = serde_json::to_value(user).map_err(Failure::broken)?;
    let mut user = user.as_object().cloned().unwrap_or_default();
    // The arguments are what makes it a trigger.
    for name in ["args", "podPlacementPolicy"] {
        if user.contains_key(name) {
            let path = "scheduler.jobTemplate.template.spec";
            return Err(Failure::Invalid(format!("{path}.{name} is not supported")));
        }
    }
    let mut container = json!({
        "name": "trigger",
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "args": arguments,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
        },
        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "128Mi" } },
    });
    overlay(&mut container["securityContext"], user.remove("containerSecurityContext").unwrap_or_default());
    let of_container = OF_CONTAINER.iter().filter_map(|name| user.remove_entry(*name)).collect();
    overlay(&mut container, Value::Object(of_container));
    let mut pod = json!({
        "serviceAccountName": account,
        "automountServiceAccountToken": true,
        "enableServiceLinks": false,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container],
    });
    overlay(&mut pod["securityContext"], user.remove("securityContext").unwrap_or_default());
    overlay(&mut pod, user.into());
    serde_json::from_value(pod)
        .map_err(|error| Failure::Invalid(format!("scheduler.jobTemplate.template.spec: {error}")))
}

/// The BackupSession of a session that begins at `unix` seconds.
pub fn backup_session(configuration: &BackupConfiguration, session: &Session, unix: i64) -> BackupSession {
    let invoker = configuration.name_any();
    let spec = BackupSessionSpec {
        invoker: InvokerRef {
            api_group: Some(BackupConfiguration::group(&()).into_owned()),
            kind: BackupConfiguration::kind(&()).into_owned(),
            name: invoker.clone(),
        },
        session: Some(session.name.clone()),
        retry_left: session.retry_config.as_ref().map(|retry| retry.max_retry),
        backup_timeout: session.backup_timeout,
    };
    let mut object = BackupSession::new(&name::backup_session(&invoker, &session.name, unix), spec);
    object.metadata.namespace = configuration.namespace();
    object.metadata.labels = Some(BTreeMap::from([(labels::INVOKER_NAME.to_owned(), name::label(&invoker))]));
    object.metadata.owner_references = Some(vec![owner(configuration)]);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(scheduler: Value) -> (BackupConfiguration, Session, Scheduler) {
        let object = json!({
            "metadata": { "name": "s3-bucket-backup", "namespace": "demo", "uid": "u" },
            "spec": { "sessions": [{ "name": "frequent-backup", "scheduler": scheduler, "retryConfig": { "maxRetry": 2 } }] },
        });
        let configuration: BackupConfiguration = serde_json::from_value(object).expect("a configuration");
        let session = configuration.spec.sessions[0].clone();
        let scheduler = session.scheduler.clone().expect("a scheduler");
        (configuration, session, scheduler)
    }

    fn made(scheduler: Value, paused: bool) -> Result<Trigger, Failure> {
        let (mut configuration, session, scheduler) = configuration(scheduler);
        configuration.spec.paused = Some(paused);
        trigger(&configuration, &session, &scheduler, &Settings::default())
    }

    #[test]
    fn a_trigger_may_do_one_thing_and_meets_the_strictest_pod_security() {
        let trigger = made(json!({ "schedule": "*/5 * * * *" }), false).expect("a trigger");
        assert_eq!(trigger.cron.name_any(), "trigger-s3-bucket-backup-frequent-backup");
        let spec = trigger.cron.spec;
        assert_eq!((spec.suspend, spec.starting_deadline_seconds), (Some(false), Some(200)));
        assert_eq!(spec.concurrency_policy.as_deref(), Some("Forbid"));
        let pod = spec.job_template.spec.expect("a Job").template.spec.expect("a pod");
        let pod = serde_json::to_value(pod).expect("JSON");
        assert_eq!(
            pod["containers"][0]["args"],
            json!([
                "trigger",
                "--namespace=demo",
                "--configuration=s3-bucket-backup",
                "--session=frequent-backup"
            ])
        );
        assert_eq!(
            pod["securityContext"],
            json!({
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" },
            })
        );
        assert_eq!(
            pod["containers"][0]["securityContext"],
            json!({
                "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] }, "readOnlyRootFilesystem": true,
            })
        );
        let rules = trigger.role.rules.expect("rules");
        let created: Vec<_> = rules
            .iter()
            .filter(|rule| rule.verbs != ["get"])
            .flat_map(|rule| rule.resources.clone().expect("resources"))
            .collect();
        assert_eq!(created, ["backupsessions", "backupconfigurations/finalizers"]);
        assert!(rules.iter().all(|rule| rule.verbs.iter().all(|verb| verb != "*")));
    }

    #[test]
    fn what_the_user_says_of_the_pod_is_laid_over_ours() {
        let template = json!({ "schedule": "0 3 * * *", "suspend": false, "jobTemplate": {
            "backoffLimit": 1,
            "template": { "spec": {
                "nodeSelector": { "disk": "ssd" }, "serviceAccountName": "mine",
                "securityContext": { "runAsUser": 1000 }, "resources": { "limits": { "memory": "64Mi" } },
            } },
        } });
        let trigger = made(template, true).expect("a trigger");
        assert_eq!(trigger.account, None);
        assert_eq!(trigger.binding.subjects.expect("subjects")[0].name, "mine");
        let spec = trigger.cron.spec;
        assert_eq!(spec.suspend, Some(true), "it is paused");
        let job = spec.job_template.spec.expect("a Job");
        assert_eq!(job.backoff_limit, Some(1));
        let pod = serde_json::to_value(job.template.spec).expect("JSON");
        assert_eq!(pod["nodeSelector"]["disk"], "ssd");
        assert_eq!(pod["serviceAccountName"], "mine");
        assert_eq!(
            (&pod["securityContext"]["runAsUser"], &pod["securityContext"]["runAsNonRoot"]),
            (&json!(1000), &json!(true))
        );
        assert_eq!(pod["containers"][0]["resources"], json!({ "limits": { "memory": "64Mi" } }));
        let refused = made(
            json!({ "schedule": "0 3 * * *", "jobTemplate": { "template": { "spec": { "args": ["x"] } } } }),
            false,
        );
        assert!(matches!(refused, Err(Failure::Invalid(_))));
    }

    #[test]
    fn the_same_second_names_the_same_session() {
        let (configuration, session, _) = configuration(json!({ "schedule": "0 3 * * *" }));
        let made = backup_session(&configuration, &session, 1_735_000_000);
        assert_eq!(made.name_any(), "s3-bucket-backup-frequent-backup-1735000000");
        assert_eq!(made.spec.retry_left, Some(2));
        assert_eq!(made.labels()[labels::INVOKER_NAME], "s3-bucket-backup");
        assert_eq!(made.metadata.owner_references.expect("an owner")[0].uid, "u");
    }
}
