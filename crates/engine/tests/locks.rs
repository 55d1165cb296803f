//! Locks of objects come back where the target has them, and are named where it has none.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::sync::Arc;

use cistern_bucket::{Attributes, Bucket, Credentials, Memory, PutOptions, Retention, S3, S3Config};
use cistern_engine::{ExceptionKind, RestoreReport};
use cistern_testkit::Server;
use scene::Scene;

fn locked() -> Attributes {
    let until = "2125-01-02T03:04:05Z".parse().unwrap();
    Attributes {
        content_type: Some("text/plain".into()),
        retention: Some(Retention { mode: "GOVERNANCE".into(), until }),
        legal_hold: true,
        meta: [("owner".to_owned(), "me".to_owned())].into(),
        ..Attributes::default()
    }
}

async fn restored_to(target: Arc<dyn Bucket>) -> RestoreReport {
    let mut scene = Scene::in_memory().await;
    let source = Arc::new(Memory::new("s3://orders"));
    let options = PutOptions { attributes: locked(), ..PutOptions::default() };
    source.put(&"k".into(), &["x".into()], &options).await.unwrap();
    (scene.source, scene.target) = (source, target);
    scene.backup_bucket().await;
    scene.restore_to("s3://copy", |_| ()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_come_back() {
    let target = Arc::new(Memory::new("s3://copy"));
    let report = restored_to(target.clone()).await;
    assert_eq!(report.exceptions.total(), 0);
    let (_, found) = target.stat(&"k".into()).unwrap();
    assert_eq!((found.retention, found.legal_hold), (locked().retention, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_without_locks_gets_everything_else() {
    let server = Server::start().unwrap();
    let memory = server.bucket("copy");
    let mut config = S3Config::new("copy");
    config.endpoint = Some(server.endpoint().parse().unwrap());
    config.credentials = Credentials::fixed(Server::ACCESS_KEY, server.secret_key());
    let report = restored_to(Arc::new(S3::connect(config).unwrap())).await;
    assert_eq!(report.exceptions.count(ExceptionKind::AttributeLost), 1);
    let (_, found) = memory.stat(&"k".into()).unwrap();
    assert_eq!((found.retention, found.legal_hold), (None, false));
    assert_eq!((found.content_type, found.meta), (locked().content_type, locked().meta));
}
