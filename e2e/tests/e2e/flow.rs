//! From a Secret to a restored bucket: every step of the described flow.

use bytes::Bytes;
use cistern_bucket::{Bucket, GetOptions, Key, PutOptions};
use cistern_e2e::Namespace;
use serde_json::{Value, json};

use crate::support;

const SUCCEEDED: &str = "jsonpath={.status.phase}=Succeeded";
const READY: &str = "jsonpath={.status.phase}=Ready";

async fn put(bucket: &dyn Bucket, key: &str, body: &str) {
    let body = Bytes::copy_from_slice(body.as_bytes());
    bucket.put(&Key::new(key), &[body], &PutOptions::default()).await.unwrap();
}

async fn read(bucket: &dyn Bucket, key: &str) -> String {
    let got = bucket.get(&Key::new(key), &GetOptions::default()).await;
    let bytes = got.unwrap_or_else(|error| panic!("{key}: {error}")).body.bytes().await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn fill(bucket: &dyn Bucket) {
    for n in 1..=5 {
        put(bucket, &format!("file_{n}.txt"), &format!("the text of file {n}\n").repeat(100)).await;
    }
    put(bucket, "folder/deep/er.txt", "deeper\n").await;
}

/// What the bucket of the source holds, text by key.
async fn contents(test: &Namespace, bucket: &dyn Bucket) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for key in test.cluster.keys(bucket).await {
        let key = key.to_string();
        // A mount leaves markers of folders.
        if !key.ends_with('/') {
            let text = read(bucket, &key).await;
            all.push((key, text));
        }
    }
    all
}

/// The one BackupSession of a configuration that is not in the list.
fn new_session(test: &Namespace, known: &[String]) -> Option<String> {
    let sessions = test.get("backupsessions.core.kubestash.com -l kubestash.com/invoker-name=bucket-backup");
    let names = sessions["items"].as_array().unwrap().iter().map(|s| s["metadata"]["name"].as_str().unwrap());
    names.map(str::to_owned).find(|name| !known.contains(name))
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_secret_to_a_restored_bucket() {
    let test = Namespace::new("e2e-flow");
    let source = test.cluster.empty_bucket("e2e-flow-source").await;
    let kept = test.cluster.empty_bucket("e2e-flow-kept").await;
    fill(&*source).await;
    let before = contents(&test, &*source).await;

    // 1. The storage.
    test.apply(&support::storage(&test.cluster, "storage", "e2e-flow-kept", "fuse-backup"));
    test.wait("backupstorage/storage", READY, 60);
    assert!(read(&*kept, "fuse-backup/metadata.yaml").await.contains("kind: BackendMeta"));

    // 2. The volume.
    test.try_kubectl(&["delete", "pv", "e2e-flow-pv", "--ignore-not-found"]).unwrap();
    test.apply(&support::volume("e2e-flow-pv", &test.name, "bucket", "e2e-flow-source"));

    // 3. The configuration: its Repository, its CronJob, and a first backup.
    test.apply(&support::configuration("bucket-backup", "bucket", "storage", "0 0 1 1 *", &["repo-a"]));
    test.wait("backupconfiguration/bucket-backup", READY, 60);
    test.wait("repository.storage.kubestash.com/repo-a", READY, 30);
    assert!(read(&*kept, "fuse-backup/repo-a/repository.yaml").await.contains("kind: Repository"));
    assert_eq!(test.get("cronjob/trigger-bucket-backup-frequent-backup")["spec"]["suspend"], json!(false));
    test.wait("backupsessions.core.kubestash.com -l kubestash.com/invoker-name=bucket-backup", "create", 30);
    test.wait(
        "backupsessions.core.kubestash.com -l kubestash.com/invoker-name=bucket-backup",
        SUCCEEDED,
        120,
    );
    let first = new_session(&test, &[]).unwrap();

    // 5–7. What the Job said, and what the operator made of it.
    let snapshot = test.get(&format!("snapshots.storage.kubestash.com/repo-a-{first}"));
    check_snapshot(&snapshot);
    assert!(
        read(&*kept, &format!("fuse-backup/repo-a/snapshots/repo-a-{first}.yaml"))
            .await
            .contains("kind: Snapshot")
    );
    let config = Key::new("fuse-backup/repo-a/repository/v1/frequent-backup/dump/config");
    assert!(kept.head(&config).await.is_ok(), "the component is a restic repository");
    test.wait("repository.storage.kubestash.com/repo-a", "jsonpath={.status.snapshotCount}=1", 30);
    assert_eq!(test.get("repository.storage.kubestash.com/repo-a")["status"]["integrity"], json!(true));

    // 4. Another one, by the CronJob's pod.
    put(&*source, "aaa-first.txt", "sorts first\n").await;
    let job = "--from=cronjob/trigger-bucket-backup-frequent-backup";
    test.kubectl(&["create", "job", "by-hand", job]);
    test.wait("job/by-hand", "condition=Complete", 60);
    let second = new_session(&test, std::slice::from_ref(&first)).unwrap();
    test.wait(&format!("backupsessions.core.kubestash.com/{second}"), SUCCEEDED, 120);

    // 8. All is lost, and comes back: into the bucket, and into a folder of the node.
    for key in test.cluster.keys(&*source).await {
        source.delete(&key).await.unwrap();
    }
    test.apply(&support::restore("back", "bucket", "repo-a"));
    test.wait("restoresession/back", SUCCEEDED, 120);
    let mut expected = before.clone();
    expected.push(("aaa-first.txt".into(), "sorts first\n".into()));
    expected.sort();
    assert_eq!(contents(&test, &*source).await, expected);

    test.try_kubectl(&["delete", "pv", "e2e-flow-folder", "--ignore-not-found"]).unwrap();
    let path = test.cluster.shared.join("e2e-flow");
    drop(std::fs::remove_dir_all(&path));
    test.apply(&support::folder("e2e-flow-folder", &test.name, "folder", path.to_str().unwrap()));
    test.apply(&support::restore("elsewhere", "folder", "repo-a"));
    test.wait("restoresession/elsewhere", SUCCEEDED, 120);
    for (key, text) in &expected {
        assert_eq!(&std::fs::read_to_string(path.join(key)).unwrap(), text, "{key}");
    }

    // What is called like a session and is none of its own stays, whatever becomes of the session.
    test.apply(&support::restore("encrypt-secret", "folder", "repo-a"));
    test.wait("restoresession/encrypt-secret", "jsonpath={.status.phase}=Failed", 60);
    test.kubectl(&["delete", "restoresession", "encrypt-secret", "--timeout=60s"]);
    assert_eq!(test.get("secret/encrypt-secret")["data"]["RESTIC_PASSWORD"], "Y2hhbmdlaXQ=");

    // 4 once more, by the clock.
    let every_minute =
        json!([{ "op": "replace", "path": "/spec/sessions/0/scheduler/schedule", "value": "* * * * *" }]);
    let patch = format!("--patch={every_minute}");
    test.kubectl(&["patch", "backupconfiguration", "bucket-backup", "--type=json", &patch]);
    test.wait("repository.storage.kubestash.com/repo-a", "jsonpath={.status.snapshotCount}=3", 120);
    let pause = r#"--patch={"spec":{"paused":true}}"#;
    test.kubectl(&["patch", "backupconfiguration", "bucket-backup", "--type=merge", pause]);
    test.wait("cronjob/trigger-bucket-backup-frequent-backup", "jsonpath={.spec.suspend}=true", 30);
    let ours = "backupsessions.core.kubestash.com -l kubestash.com/invoker-name=bucket-backup";
    test.wait(ours, SUCCEEDED, 120);
    // The policy keeps two: a Job has forgotten the first one.
    test.wait("repository.storage.kubestash.com/repo-a", "jsonpath={.status.snapshotCount}=2", 60);
    let first = kept.head(&Key::new(format!("fuse-backup/repo-a/snapshots/repo-a-{first}.yaml"))).await;
    assert!(first.is_err_and(|error| error.kind == cistern_bucket::ErrorKind::NoSuchKey));

    // 9. All objects are gone; the storage brings its Repository and Snapshots back, and they can be restored.
    test.kubectl(&["delete", "backupconfiguration", "bucket-backup", "--timeout=60s"]);
    test.kubectl(&["delete", "backupstorage", "storage", "--timeout=60s"]);
    let left = test.get("repositories.storage.kubestash.com,snapshots.storage.kubestash.com");
    assert_eq!(left["items"], json!([]));
    test.apply(&support::storage(&test.cluster, "storage", "e2e-flow-kept", "fuse-backup"));
    test.wait("repository.storage.kubestash.com/repo-a", "create", 60);
    test.wait("repository.storage.kubestash.com/repo-a", READY, 60);
    test.wait("snapshots.storage.kubestash.com -l kubestash.com/repo-name=repo-a", SUCCEEDED, 60);
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    test.apply(&support::restore("found-again", "folder", "repo-a"));
    test.wait("restoresession/found-again", SUCCEEDED, 120);
    for (key, text) in &expected {
        assert_eq!(&std::fs::read_to_string(path.join(key)).unwrap(), text, "{key}");
    }
}

/// The fields that users know of a Snapshot.
fn check_snapshot(snapshot: &Value) {
    let status = &snapshot["status"];
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["integrity"], true);
    assert_eq!(status["totalComponents"], 1);
    assert_eq!(status["verificationStatus"], "NotVerified");
    let dump = &status["components"]["dump"];
    assert_eq!(dump["driver"], "Restic");
    assert_eq!(dump["path"], "repository/v1/frequent-backup/dump");
    assert_eq!(dump["phase"], "Succeeded");
    let summary = &dump["resticStats"][0]["summary"];
    assert_eq!(summary["hostPath"], "/kubestash-data");
    assert_eq!(summary["id"].as_str().unwrap().len(), 64);
    assert!(dump["size"].as_str().unwrap().ends_with("KiB"), "{dump}");
    assert_eq!(snapshot["metadata"]["labels"]["kubestash.com/repo-name"], "repo-a");
    assert_eq!(snapshot["spec"]["snapshotID"].as_str().unwrap().len(), 26);
}
