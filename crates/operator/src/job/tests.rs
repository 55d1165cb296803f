//! What a plan becomes: one backup with the user's settings, one restore without any.

use insta::assert_yaml_snapshot;

use super::*;

fn keys(pairs: &[(&str, &str)]) -> Keys {
    let mut keys = Keys::default();
    for (name, value) in pairs {
        keys.insert(*name, value.as_bytes());
    }
    keys
}

fn made<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a document")
}

fn backup(template: Value) -> Plan {
    let owner = OwnerReference {
        kind: "BackupSession".into(),
        name: "s".into(),
        uid: "u".into(),
        ..Default::default()
    };
    Plan {
        name: "pvc-backup-hourly-1735000000".into(),
        namespace: "demo".into(),
        owner,
        component: labels::COMPONENT_BACKUP,
        labels: BTreeMap::from([(labels::SESSION_NAME.to_owned(), "hourly".to_owned())]),
        task: made(json!({
            "job": "backup", "namespace": "demo", "component": "dump", "paths": ["/kubestash-data"], "maxShrink": 0.5,
            "enableCache": true, "repositories": [],
        })),
        keys: BTreeMap::from([(
            "repository-0".to_owned(),
            keys(&[
                ("AWS_ACCESS_KEY_ID", "id"),
                ("AWS_SECRET_ACCESS_KEY", "secret"),
                ("RESTIC_PASSWORD", "pass"),
                ("OTHER", "x"),
            ]),
        )]),
        volumes: made(json!([
            { "name": "kubestash-data-volume", "persistentVolumeClaim": { "claimName": "bucket-pvc" } },
            { "name": "kubestash-tmp-volume", "emptyDir": { "medium": "Memory" } },
        ])),
        mounts: made(json!([
            { "name": "kubestash-data-volume", "mountPath": "/kubestash-data" },
            { "name": "kubestash-tmp-volume", "mountPath": "/kubestash-tmp" },
        ])),
        read_only: true,
        storages: Vec::new(),
        reports: Some(Reports {
            group: "storage.kubestash.com",
            resource: "snapshots",
            names: vec!["repo-pvc-backup-hourly-1735000000".into()],
        }),
        user: User::Nobody,
        template: made(template),
        annotations: BTreeMap::new(),
        deadline: Some("2026-01-01T01:00:00Z".parse().expect("a time")),
    }
}

fn now() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().expect("a time")
}

fn settings() -> Settings {
    Settings { image: "registry.example/cistern:1".into(), ..Settings::default() }
}

#[test]
fn a_backup_has_a_restricted_pod_and_one_right() {
    let plan = backup(Value::Null);
    assert_yaml_snapshot!("backup_job", plan.job(&settings(), now()).expect("a Job"));
    assert_yaml_snapshot!("backup_role", plan.role());
    assert_yaml_snapshot!("backup_role_binding", plan.role_binding());
    assert_yaml_snapshot!("backup_service_account", plan.service_account());
}

#[test]
fn the_secret_holds_the_task_and_the_known_keys_only() {
    let secret = backup(Value::Null).secret().expect("a Secret");
    let data = secret.data.expect("data");
    let names: Vec<_> = data.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "repository-0.AWS_ACCESS_KEY_ID",
            "repository-0.AWS_SECRET_ACCESS_KEY",
            "repository-0.RESTIC_PASSWORD",
            "task.json"
        ]
    );
    assert_eq!(secret.immutable, Some(true));
    assert_eq!(data["repository-0.RESTIC_PASSWORD"].0, b"pass");
    let task: JobTask = serde_json::from_slice(&data["task.json"].0).expect("a task");
    assert_eq!(task, backup(Value::Null).task);
}

#[test]
fn a_restore_may_give_files_to_their_owners() {
    let mut plan = backup(Value::Null);
    plan.user = User::Owners;
    plan.deadline = None;
    plan.read_only = false;
    let job = serde_json::to_value(plan.job(&settings(), now()).expect("a Job")).expect("JSON");
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsUser"], 0);
    let security = &pod["containers"][0]["securityContext"];
    assert_eq!(
        security["capabilities"],
        json!({ "drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER"] })
    );
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(job["spec"]["activeDeadlineSeconds"], Value::Null);
    let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
    assert!(mounts.iter().any(|mount| mount["mountPath"] == "/kubestash-data" && mount["readOnly"] != true));
}

#[test]
fn what_the_user_says_of_the_pod_is_laid_over() {
    let plan = backup(json!({
            "metadata": { "labels": { "team": "blue", "app.kubernetes.io/managed-by": "me" } },
            "controller": { "annotations": { "a": "b" } },
            "spec": {
                "nodeSelector": { "disk": "fast" },
                "tolerations": [{ "key": "spot", "operator": "Exists" }],
                "serviceAccountName": "cloud",
                "securityContext": { "runAsUser": 0, "fsGroup": 1000 },
                "containerSecurityContext": { "readOnlyRootFilesystem": false },
                "env": [{ "name": "HTTPS_PROXY", "value": "http://proxy" }],
                "volumes": [{ "name": "more", "emptyDir": {} }],
                "volumeMounts": [{ "name": "more", "mountPath": "/more" }],
                "resources": { "limits": { "memory": "2Gi" } },
            },
    }));
    assert_yaml_snapshot!("settings_job", plan.job(&settings(), now()).expect("a Job"));
    assert_eq!(plan.service_account(), None);
    let subjects = plan.role_binding().and_then(|binding| binding.subjects).expect("subjects");
    assert_eq!(subjects[0].name, "cloud");
}

#[test]
fn what_is_noted_on_a_job_is_there() {
    let mut plan = backup(Value::Null);
    plan.annotations = [("a".to_owned(), "b".to_owned())].into();
    let job = plan.job(&settings(), now()).expect("a Job");
    assert_eq!(job.metadata.annotations, Some(plan.annotations.clone()));
}

#[test]
fn who_reports_nothing_gets_no_right_and_no_token() {
    let mut plan = backup(Value::Null);
    plan.reports = None;
    (plan.volumes, plan.mounts) = Default::default();
    assert_eq!((plan.role(), plan.role_binding()), (None, None));
    let job = plan.job(&settings(), now()).expect("a Job");
    let pod = job.spec.expect("a spec").template.spec.expect("a pod");
    assert_eq!(pod.automount_service_account_token, Some(false));
    let names: Vec<_> = pod.volumes.into_iter().flatten().map(|volume| volume.name).collect();
    assert_eq!(names, ["cistern-files", "kubestash-tmp-volume"]);
}

#[test]
fn storages_that_are_volumes_are_mounted_where_they_say() {
    let mut plan = backup(Value::Null);
    let local =
        json!({ "mountPath": "/backups", "subPath": "here", "nfs": { "server": "nas", "path": "/b" } });
    plan.storages = vec![serde_json::from_value(local).expect("a storage")];
    let job = plan.job(&settings(), now()).expect("a Job");
    let pod = job.spec.expect("a spec").template.spec.expect("a pod");
    let volume =
        pod.volumes.unwrap_or_default().into_iter().find(|volume| volume.name == "kubestash-storage-0");
    assert_eq!(volume.and_then(|volume| volume.nfs).map(|nfs| nfs.server), Some("nas".to_owned()));
    let mounts = pod.containers[0].volume_mounts.clone().unwrap_or_default();
    assert!(
        mounts
            .iter()
            .any(|mount| mount.mount_path == "/backups" && mount.sub_path.as_deref() == Some("here"))
    );
}
