//! The trigger, and what people ask of a cluster.

use axum::http::Method;
use serde_json::{Value, json};

use super::api_server::{ApiServer, kubeconfig};
use crate::home::Home;

const CORE: &str = "/apis/core.kubestash.com/v1alpha1/namespaces/demo";
const STORAGE: &str = "/apis/storage.kubestash.com/v1alpha1/namespaces/demo";

fn configuration() -> Value {
    json!({
        "apiVersion": "core.kubestash.com/v1alpha1",
        "kind": "BackupConfiguration",
        "metadata": { "name": "orders", "namespace": "demo", "uid": "uid-of-orders" },
        "spec": {
            "target": { "kind": "PersistentVolumeClaim", "name": "orders-pvc" },
            "sessions": [{
                "name": "daily",
                "scheduler": { "schedule": "0 3 * * *" },
                "retryConfig": { "maxRetry": 2 },
                "backupTimeout": "1h30m",
                "repositories": [{ "name": "orders-repo" }],
            }],
        },
        "status": { "phase": "Ready" },
    })
}

fn run_of(name: &str, phase: &str, message: &str) -> Value {
    json!({
        "apiVersion": "core.kubestash.com/v1alpha1",
        "kind": "BackupSession",
        "metadata": { "name": name, "namespace": "demo" },
        "spec": {
            "invoker": { "kind": "BackupConfiguration", "name": "orders" },
            "session": "daily",
        },
        "status": {
            "phase": phase,
            "duration": "49s",
            "conditions": [{
                "type": "BackupSkipped",
                "status": "True",
                "lastTransitionTime": "2026-12-01T01:00:00Z",
                "message": message,
            }, {
                // The operator's last word of every session.
                "type": "MetricsPushed",
                "status": "True",
                "lastTransitionTime": "2026-12-01T01:00:01Z",
                "message": "Metrics have been pushed successfully.",
            }],
        },
    })
}

fn list(items: &[Value]) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items })
}

#[test]
fn a_trigger_creates_the_session_that_its_configuration_describes() {
    let api = ApiServer::start();
    api.answer(Method::GET, &format!("{CORE}/backupconfigurations/orders"), configuration());
    api.answer(Method::POST, &format!("{CORE}/backupsessions"), Value::Null);
    let home = api.connect(Home::new());
    let words = ["trigger", "--namespace", "demo", "--configuration", "orders", "--session"];
    let run = home.ok(&[&words[..], &["daily"]].concat());
    let (_, session) = api.taken().pop().unwrap();
    let name = session["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("orders-daily-") && run.out.contains(name), "{}", run.transcript());
    assert_eq!(session["metadata"]["labels"]["kubestash.com/invoker-name"], "orders");
    let owner = &session["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["uid"], &owner["controller"]), (&"uid-of-orders".into(), &true.into()));
    assert_eq!(
        session["spec"],
        json!({
            "invoker": {
                "apiGroup": "core.kubestash.com",
                "kind": "BackupConfiguration",
                "name": "orders",
            },
            "session": "daily",
            "retryLeft": 2,
            // The same to whoever reads it in Go.
            "backupTimeout": "5400s",
        })
    );
    let unknown = home.run(&[&words[..], &["weekly"]].concat());
    assert_eq!(unknown.code, 20, "{}", unknown.transcript());
    assert!(unknown.err.contains("no session weekly"));
    assert_eq!(api.taken().len(), 1);
}

#[test]
fn people_see_and_steer_their_backups() {
    let api = ApiServer::start();
    let path = format!("{CORE}/backupconfigurations/orders");
    api.answer(Method::GET, &path, configuration());
    api.answer(Method::PATCH, &path, configuration());
    let runs =
        [run_of("orders-daily-1", "Succeeded", ""), run_of("orders-daily-2", "Skipped", "it is paused")];
    api.answer(Method::GET, &format!("{CORE}/backupsessions"), list(&runs));
    let repository = json!({
        "apiVersion": "storage.kubestash.com/v1alpha1",
        "kind": "Repository",
        "metadata": { "name": "orders-repo", "namespace": "demo" },
        "spec": {
            "appRef": { "name": "orders-pvc" },
            "storageRef": { "name": "storage" },
            "encryptionSecret": { "name": "secret" },
            "path": "/orders",
        },
        "status": { "phase": "Ready", "snapshotCount": 3, "size": "14.938 KiB", "integrity": true },
    });
    api.answer(Method::GET, &format!("{STORAGE}/repositories"), list(&[repository]));
    let snapshot = json!({
        "apiVersion": "storage.kubestash.com/v1alpha1",
        "kind": "Snapshot",
        "metadata": { "name": "orders-repo-orders-daily-1", "namespace": "demo" },
        "spec": { "repository": "orders-repo", "session": "daily" },
        "status": { "phase": "Succeeded", "size": "14.938 KiB", "integrity": true },
    });
    api.answer(Method::GET, &format!("{STORAGE}/snapshots"), list(&[snapshot]));
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "job-1",
            "ownerReferences": [
                { "apiVersion": "x/v1", "kind": "BackupSession", "name": "orders-daily-1", "uid": "u" },
            ],
        },
    });
    api.answer(Method::GET, "/apis/batch/v1/namespaces/demo/jobs", list(&[job]));
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "job-1-x" } });
    api.answer(Method::GET, "/api/v1/namespaces/demo/pods", list(&[pod]));
    api.answer(Method::GET, "/api/v1/namespaces/demo/pods/job-1-x/log", "first\nlast".into());

    // As kubectl calls it: by another name.
    let home = api.connect(Home::new());
    let plugin = home.path("kubectl-cistern");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cistern"), &plugin).unwrap();
    let ask = |words: &[&str]| {
        let run = home.program(&plugin, words);
        assert_eq!(run.code, 0, "{}", run.transcript());
        run.out
    };
    let shown = ask(&["describe", "orders"]);
    let lines = ["phase       Ready", "0 3 * * *, into orders-repo", "14.938 KiB", "it is paused", "49s"];
    for line in lines {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert!(shown.find("orders-daily-2") < shown.find("orders-daily-1"), "the newest comes first: {shown}");
    assert!(ask(&["snapshots", "--repository", "orders-repo"]).contains("orders-repo-orders-daily-1"));
    assert_eq!(ask(&["logs", "orders-daily-1"]), "first\nlast\n");
    assert!(ask(&["pause", "orders", "-n", "demo"]).contains("paused"));
    assert!(ask(&["resume", "orders"]).contains("resumed"));
    let patches: Vec<Value> = api.taken().into_iter().map(|(_, body)| body).collect();
    assert_eq!(patches, [json!({ "spec": { "paused": true } }), json!({ "spec": { "paused": false } })]);
    assert_eq!(home.program(&plugin, &["logs", "orders-daily-9"]).code, 20);
}

#[test]
fn a_followed_session_ends_with_its_exit_code() {
    let api = ApiServer::start();
    api.answer(Method::GET, &format!("{CORE}/backupconfigurations/orders"), configuration());
    api.answer(Method::POST, &format!("{CORE}/backupsessions"), Value::Null);
    let home = api.connect(Home::new());
    // The name of the session depends on the second in which it is created: each that it can be is answered.
    let now = jiff::Timestamp::now().as_second();
    for second in now..now + 120 {
        let name = format!("orders-daily-{second}");
        let path = format!("{CORE}/backupsessions/{name}");
        api.answer(Method::GET, &path, run_of(&name, "Skipped", "another one is running"));
    }
    let words = ["trigger", "--configuration", "orders", "--session", "daily", "--wait"];
    let run = home.run(&words);
    assert_eq!(run.code, 11, "{}", run.transcript());
    assert!(
        run.out.contains("Skipped") && run.err.contains("another one is running"),
        "{}",
        run.transcript()
    );
}

#[test]
fn a_cluster_that_is_not_there_is_unreachable() {
    // A port that nobody listens on: it was free a moment ago.
    let port = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    let home = kubeconfig(Home::new(), &format!("https://127.0.0.1:{port}"));
    let run = home.run(&["cluster", "snapshots"]);
    assert_eq!(run.code, 23, "{}", run.transcript());
    let nowhere = Home::new().run(&["cluster", "snapshots"]);
    assert_eq!(nowhere.code, 2, "{}", nowhere.transcript());
    assert!(nowhere.err.contains("--kubeconfig"), "{}", nowhere.transcript());
    let missing = home.run(&["cluster", "snapshots", "--kubeconfig", "none"]);
    assert_eq!(missing.code, 2, "{}", missing.transcript());
}
