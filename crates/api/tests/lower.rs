//! Lowering of what is right: the Jobs that come of documents, defaults, and what needs consent.

use cistern_api::catalogue;
use cistern_api::document::{Document, Object, read};
use cistern_api::job::JobTask;
use cistern_api::kinds::{BackupConfiguration, RestoreSession};
use cistern_api::lower::{configuration, restore};
use cistern_api::problem::Problems;
use cistern_api::world::{Name, World};
use serde_json::json;

const WORLD: &str = include_str!("world.yaml");

const CONFIGURATION: &str = r#"
apiVersion: core.kubestash.com/v1alpha1
kind: BackupConfiguration
metadata: {name: backup, namespace: demo}
spec:
  target: {apiGroup: "", kind: PersistentVolumeClaim, name: data, namespace: demo}
  backends: [{name: s3, storageRef: {name: s3-storage}, retentionPolicy: {name: keep-five}}]
  sessions:
    - name: hourly
      scheduler: {schedule: "0 * * * *"}
      backupTimeout: 1h30m
      repositories:
        - {name: repository, backend: s3, directory: //data/, encryptionSecret: {name: encrypt-secret}}
      addon:
        name: pvc-addon
        tasks:
          - name: logical-backup
            params: {paths: /kubestash-data/a, exclude: "*.tmp", maxShrink: 25%, enableCache: "false"}
            addonVolumes:
              - name: ${RESTIC_CACHE_VOLUME}
                source: {emptyDir: {sizeLimit: 1Gi}}
        jobTemplate: {spec: {securityContext: {fsGroup: 100}}}
"#;

const RESTORE: &str = r#"
apiVersion: core.kubestash.com/v1alpha1
kind: RestoreSession
metadata: {name: restore, namespace: demo}
spec:
  dataSource: {repository: there, snapshot: there-1}
  addon:
    name: pvc-addon
    tasks: [{name: logical-backup-restore, params: {overwrite: never}}]
"#;

fn documents(text: &str) -> Vec<Document> {
    let mut problems = Problems::default();
    let all = read(text).into_iter().map(Result::unwrap);
    let all = all.filter_map(|value| Document::parse(&value, "default", &mut problems)).collect();
    assert!(problems.0.is_empty(), "{:?}", problems.0);
    all
}

fn world(more: &str) -> World {
    let all = catalogue::documents().into_iter().chain(documents(WORLD)).chain(documents(more));
    World::of_documents(&all.collect::<Vec<_>>())
}

fn backup(text: &str) -> BackupConfiguration {
    match documents(text).remove(0).object {
        Object::BackupConfiguration(one) => *one,
        other => panic!("{other:?}"),
    }
}

fn restoring(text: &str) -> RestoreSession {
    match documents(text).remove(0).object {
        Object::RestoreSession(one) => *one,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_becomes_a_job() {
    let lowered = configuration(&backup(CONFIGURATION), &world("")).unwrap();
    assert!(lowered.target.mounted_bucket);
    let session = &lowered.sessions[0];
    assert_eq!(session.timeout, Some(std::time::Duration::from_secs(5_400)));
    let repository = &session.repositories[0];
    assert_eq!(
        (repository.directory.as_str(), repository.policy.clone()),
        ("data", Name::new("demo", "keep-five"))
    );
    assert_eq!(repository.credentials.storage, Some(Name::new("demo", "s3-secret")));
    assert_eq!(repository.credentials.encryption, Name::new("demo", "encrypt-secret"));

    let deadline = "2026-11-01T10:00:00Z".parse().unwrap();
    let job = JobTask::Backup(session.job(&["snapshot-1".into()], false, Some(deadline)));
    let text = serde_json::to_value(&job).unwrap();
    assert_eq!(
        text,
        json!({
            "job": "backup",
            "namespace": "demo",
            "component": "dump",
            "paths": ["/kubestash-data/a"],
            "selection": {
                "include": [], "exclude": ["*.tmp"], "ignoreCase": false, "maxSize": null, "modifiedSince": null,
            },
            "onUnreadable": "fail",
            "maxShrink": 0.25,
            "acceptShrink": false,
            "allowEmpty": false,
            "mountedBucket": true,
            "enableCache": false,
            "repositories": [{
                "snapshot": "snapshot-1",
                "path": "repository/v1/hourly/dump",
                "place": {
                    "credentials": "repository",
                    "address": "s3:https://s3.example.com/backups/demo/data/repository/v1/hourly/dump",
                    "region": "us-east-1",
                    "insecureTls": false,
                    "maxConnections": null,
                },
            }],
            "deadline": "2026-11-01T10:00:00Z",
        })
    );
    assert_eq!(serde_json::from_value::<JobTask>(text).unwrap(), job);
}

#[test]
fn a_task_has_the_volumes_of_its_addon() {
    let lowered = configuration(&backup(CONFIGURATION), &world("")).unwrap();
    let task = &lowered.sessions[0].task;
    assert_eq!(task.function, "pvc-backup");
    assert_eq!(
        serde_json::to_value(&task.volumes).unwrap(),
        json!([
            { "name": "kubestash-data-volume", "persistentVolumeClaim": { "claimName": "data" } },
            { "name": "kubestash-tmp-volume", "emptyDir": { "sizeLimit": "1Gi" } },
        ])
    );
    assert_eq!(
        serde_json::to_value(&task.mounts).unwrap(),
        json!([
            { "name": "kubestash-data-volume", "mountPath": "/kubestash-data" },
            { "name": "kubestash-tmp-volume", "mountPath": "/kubestash-tmp" },
        ])
    );
    assert!(task.job.is_some());
}

#[test]
fn defaults_are_searched_near_first() {
    let storage = |name: &str, namespace: &str, from: &str| {
        format!(
            "---\napiVersion: storage.kubestash.com/v1alpha1\nkind: BackupStorage\n\
             metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  default: true\n  storage: {{provider: local, \
             local: {{mountPath: /{name}, hostPath: {{path: /x}}}}}}\n  \
             usagePolicy: {{allowedNamespaces: {{{from}}}}}\n"
        )
    };
    let policy = "---\napiVersion: storage.kubestash.com/v1alpha1\nkind: RetentionPolicy\n\
                  metadata: {name: default, namespace: other}\nspec: {default: true, successfulSnapshots: {last: 1}, \
                  usagePolicy: {allowedNamespaces: {from: All}}}\n";
    let blue = "from: Selector, selector: {matchLabels: {team: blue}}";
    let all = storage("for-all", "a", "from: All");
    let selected = storage("selected", "b", blue);
    let own = storage("own", "demo", "from: Same");
    let mut document = backup(CONFIGURATION);
    document.spec.backends.clear();
    document.spec.sessions[0].repositories[0].backend = None;
    for (more, expected) in [
        (format!("{policy}{all}"), "a/for-all"),
        (format!("{policy}{all}{selected}"), "b/selected"),
        (format!("{policy}{all}{selected}{own}"), "demo/own"),
    ] {
        let lowered = configuration(&document, &world(&more)).unwrap();
        let repository = &lowered.sessions[0].repositories[0];
        assert_eq!(repository.storage.to_string(), expected);
        assert_eq!(repository.policy.to_string(), "other/default");
    }
    // What does not admit the namespace is no default for it.
    let red = storage("red", "b", "from: Selector, selector: {matchLabels: {team: red}}");
    let problems = configuration(&document, &world(&format!("{policy}{red}"))).unwrap_err();
    assert!(problems.iter().all(|one| one.missing), "{problems:?}");
}

#[test]
fn what_is_only_missing_is_told_apart() {
    let mut document = backup(CONFIGURATION);
    document.spec.sessions[0].repositories[0].encryption_secret.as_mut().unwrap().name = "later".into();
    document.spec.target.as_mut().unwrap().name = "later".into();
    let problems = configuration(&document, &world("")).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems.iter().all(|one| one.missing));
}

#[test]
fn a_secret_of_another_namespace_must_let_us() {
    let secret = |list: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: shared, namespace: other, annotations: \
             {{cistern.dev/allow-from: \"{list}\"}}}}\nstringData: {{RESTIC_PASSWORD: x}}\n"
        )
    };
    let mut document = backup(CONFIGURATION);
    let reference = document.spec.sessions[0].repositories[0].encryption_secret.as_mut().unwrap();
    (reference.name, reference.namespace) = ("shared".into(), Some("other".into()));
    assert!(configuration(&document, &world(&secret("x,demo"))).is_ok());
    for list in ["", "other", "demo2", "*"] {
        let problems = configuration(&document, &world(&secret(list))).unwrap_err();
        assert!(problems[0].message.contains("cistern.dev/allow-from"), "{problems:?}");
    }
}

#[test]
fn a_restore_becomes_a_job() {
    let lowered = restore(&restoring(RESTORE), &world("")).unwrap();
    // Where nobody says where to, it is where it came from.
    assert_eq!(lowered.target.name, Name::new("demo", "data"));
    assert_eq!(lowered.snapshot, Name::new("demo", "there-1"));
    let job = serde_json::to_value(JobTask::Restore(lowered.job(None))).unwrap();
    assert_eq!(
        job["components"],
        json!([{
            "component": "dump",
            "snapshots": ["0123456789abcdef"],
            "place": {
                "credentials": "there",
                "address": "s3:https://s3.example.com/backups/demo/there/repository/v1/hourly/dump",
                "region": "us-east-1",
                "insecureTls": false,
                "maxConnections": null,
            },
        }])
    );
    assert_eq!(
        (&job["overwrite"], &job["delete"], &job["mountedBucket"]),
        (&json!("never"), &json!(false), &json!(true))
    );
}

/// A Snapshot of the Repository `there`.
fn snapshot(name: &str, phase: &str, time: &str, conditions: &str) -> String {
    format!(
        "---\napiVersion: storage.kubestash.com/v1alpha1\nkind: Snapshot\nmetadata: {{name: {name}, namespace: demo}}\n\
         spec: {{repository: there, session: hourly, appRef: {{kind: PersistentVolumeClaim, name: data}}}}\n\
         status:\n  phase: {phase}\n  snapshotTime: {time}\n  conditions: [{conditions}]\n  components: {{dump: \
         {{driver: Restic, path: repository/v1/hourly/dump, resticStats: [{{id: {name}}}]}}}}\n"
    )
}

#[test]
fn latest_is_the_newest_that_succeeded() {
    let more = [
        snapshot("old", "Succeeded", "2026-11-02T00:00:00Z", ""),
        snapshot("new", "Succeeded", "2026-11-03T00:00:00Z", ""),
        snapshot("broken", "Failed", "2026-11-04T00:00:00Z", ""),
        snapshot("now", "Running", "2026-11-05T00:00:00Z", ""),
    ]
    .concat();
    let lowered = restore(&restoring(&RESTORE.replace("there-1", "latest")), &world(&more)).unwrap();
    assert_eq!(lowered.snapshot.name, "new");
    // As older objects have it: the id beside the summary.
    assert_eq!(lowered.components[0].snapshots, ["new"]);
}

#[test]
fn only_a_complete_snapshot_tells_what_to_delete() {
    let exceptions = |truth: &str| {
        format!("{{type: SourceExceptions, status: \"{truth}\", lastTransitionTime: 2026-11-03T00:00:00Z}}")
    };
    for (phase, conditions, allowed) in [
        ("Succeeded", String::new(), true),
        ("Succeeded", exceptions("False"), true),
        ("Succeeded", exceptions("True"), false),
        ("Failed", String::new(), false),
    ] {
        let more = snapshot("one", phase, "2026-11-03T00:00:00Z", &conditions);
        let text = RESTORE.replace("there-1", "one").replace("overwrite: never", "delete: \"true\"");
        let lowered = restore(&restoring(&text), &world(&more));
        assert_eq!(lowered.is_ok(), allowed, "{phase} {conditions}");
    }
}

#[test]
fn a_repository_of_another_namespace_must_let_us() {
    let repository = |list: &str| {
        format!(
            "---\napiVersion: storage.kubestash.com/v1alpha1\nkind: Repository\nmetadata: {{name: far, namespace: other, \
             annotations: {{cistern.dev/allow-from: \"{list}\"}}}}\nspec: {{storageRef: {{name: private}}, path: far, \
             encryptionSecret: {{name: encrypt-secret}}}}\n{}",
            snapshot("far-1", "Succeeded", "2026-11-03T00:00:00Z", "")
                .replace("namespace: demo", "namespace: other")
                .replace("repository: there", "repository: far")
        )
    };
    let text = RESTORE.replace(
        "repository: there, snapshot: there-1",
        "repository: far, snapshot: latest, namespace: other",
    );
    let lowered = restore(&restoring(&text), &world(&repository("demo"))).unwrap();
    // Its own Secret opens it: the Repository named it in its own namespace.
    assert_eq!(lowered.credentials.encryption, Name::new("other", "encrypt-secret"));
    let problems = restore(&restoring(&text), &world(&repository("else"))).unwrap_err();
    assert!(problems[0].message.contains("cistern.dev/allow-from"), "{problems:?}");
}
