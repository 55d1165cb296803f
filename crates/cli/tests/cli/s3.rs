//! Buckets from the shell, on the S3 server of this process and on MinIO.

use cistern_bucket::{Bucket, Credentials, GetOptions, Key, PutOptions, S3, S3Config};
use cistern_testkit::{Server, objects};
use futures::StreamExt;

use crate::home::Home;

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

pub fn home_for(endpoint: &str, id: &str, secret: &str) -> Home {
    Home::new()
        .with("AWS_ENDPOINT_URL", endpoint)
        .with("AWS_REGION", "us-east-1")
        .with("AWS_ACCESS_KEY_ID", id)
        .with("AWS_SECRET_ACCESS_KEY", secret)
        .with("CISTERN_REPOSITORY", "s3://backups/orders")
}

#[test]
fn a_bucket_goes_round() {
    let server = Server::start().unwrap();
    let (orders, copy) = (server.bucket("orders"), server.bucket("orders-copy"));
    server.bucket("backups");
    block_on(objects::fill(&*orders, objects::natural(7, 300).chain(objects::odd(7, 200)))).unwrap();
    let home = home_for(&server.endpoint(), Server::ACCESS_KEY, server.secret_key());
    home.ok(&["init"]);
    let first = home.ok(&["backup", "s3://orders", "--json"]).summary();
    let total = first["objects_listed"].as_u64().unwrap();
    assert_eq!(first["objects_new"], total);
    let second = home.ok(&["backup", "s3://orders", "--json"]).summary();
    assert_eq!(second["objects_unchanged"], total);
    assert_eq!(second["bytes_read"], 0);
    assert!(second["source_requests"].get("get").is_none(), "{second}");
    assert!(second["source_requests"].get("head").is_none(), "{second}");

    let plan = home.ok(&["restore", "latest", "--to", "s3://orders-copy", "--dry-run", "--json"]).summary();
    assert_eq!(plan["plan"]["write"], total);
    let restored = home.ok(&["restore", "latest", "--to", "s3://orders-copy", "--json"]).summary();
    assert_eq!(restored["objects_written"], total);
    assert_eq!(block_on(read_all(&*orders)), block_on(read_all(&*copy)));
    home.ok(&["verify", "latest", "s3://orders"]);
    home.ok(&["verify", "latest", "--content", "s3://orders"]);

    let keys = home.ok(&["ls", "latest", "--keys", "--json"]).lines().len();
    assert_eq!(keys as u64, total);
    let again = home.ok(&["restore", "latest", "--to", "s3://orders-copy", "--json"]).summary();
    assert_eq!((&again["objects_written"], &again["objects_kept"]), (&0.into(), &total.into()), "{again}");
}

#[test]
fn a_prefix_is_a_source_of_its_own() {
    let server = Server::start().unwrap();
    let orders = server.bucket("orders");
    server.bucket("backups");
    block_on(async {
        for key in ["2025/a", "2026/a", "2026/b/c", "2026x"] {
            orders
                .put(&Key::from(key), &[key.as_bytes().to_vec().into()], &PutOptions::default())
                .await
                .unwrap();
        }
    });
    let home = home_for(&server.endpoint(), Server::ACCESS_KEY, server.secret_key());
    home.ok(&["init"]);
    let run = home.ok(&["backup", "s3://orders/2026/", "--json"]).summary();
    assert_eq!(run["objects_listed"], 2);
    let snapshot = &home.ok(&["snapshots", "--json"]).lines()[0][0];
    assert_eq!(snapshot["paths"][0], "/orders/2026");
    assert_eq!(snapshot["hostname"], "127.0.0.1");
    home.ok(&["restore", "latest", "--to", "out"]);
    assert_eq!(std::fs::read(home.path("out/orders/2026/b/c")).unwrap(), b"2026/b/c");
    home.ok(&["verify", "latest", "s3://orders/2026/"]);
    // The snapshot knows where it comes from.
    home.ok(&["verify", "latest"]);
}

#[test]
fn a_bucket_that_was_emptied_is_not_the_new_truth() {
    let server = Server::start().unwrap();
    let orders = server.bucket("orders");
    server.bucket("backups");
    block_on(objects::fill(&*orders, objects::natural(7, 100))).unwrap();
    let home = home_for(&server.endpoint(), Server::ACCESS_KEY, server.secret_key());
    home.ok(&["init"]);
    home.ok(&["backup", "s3://orders"]);
    let keys: Vec<Key> = block_on(read_all(&*orders)).into_keys().collect();
    block_on(orders.delete_many(&keys[..80]));
    let refused = home.run(&["backup", "s3://orders"]);
    assert_eq!(refused.code, 2, "{}", refused.transcript());
    assert!(refused.err.contains("shrank from 100 to 20"), "{}", refused.err);
    assert_eq!(home.ok(&["snapshots", "--json"]).lines()[0].as_array().unwrap().len(), 1);
    home.ok(&["backup", "s3://orders", "--accept-shrink"]);
}

pub fn connect((endpoint, id, secret): (&str, &str, &str), name: &str) -> S3 {
    let mut config = S3Config::new(name);
    config.endpoint = endpoint.parse().ok();
    config.credentials = Credentials::fixed(id, secret);
    S3::connect(config).unwrap()
}

/// The demo's steps on a server of its own kind: fill, back up, again, change, delete everything, restore, compare.
/// `keys` yields more objects than the server may hold; those that it refuses are not part of it.
fn the_whole_job(
    (endpoint, id, secret): (&str, &str, &str),
    keys: impl Iterator<Item = objects::Object> + Send,
    least: usize,
) -> Home {
    let bucket = |name: &str| connect((endpoint, id, secret), name);
    let orders = bucket("orders");
    let before = block_on(async {
        orders.create().await.unwrap();
        bucket("backups").create().await.unwrap();
        objects::fill(&orders, keys).await.unwrap();
        read_all(&orders).await
    });
    assert!(before.len() >= least, "{} objects are held", before.len());
    let home = home_for(endpoint, id, secret);
    home.ok(&["init"]);
    let total = before.len() as u64;
    let first = home.ok(&["backup", "s3://orders", "--json"]).summary();
    assert_eq!(first["objects_new"], total);
    let second = home.ok(&["backup", "s3://orders", "--json"]).summary();
    assert_eq!((&second["objects_unchanged"], &second["bytes_read"]), (&total.into(), &0.into()), "{second}");
    assert!(second["source_requests"].get("get").is_none(), "{second}");
    assert!(second["source_requests"].get("head").is_none(), "{second}");

    let changed: Vec<Key> = before.keys().step_by(100).cloned().collect();
    let before = block_on(async {
        for key in &changed {
            let (content, attributes) = &before[key];
            let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
            orders.put(key, &[[content, &b"changed"[..]].concat().into()], &options).await.unwrap();
        }
        read_all(&orders).await
    });
    let third = home.ok(&["backup", "s3://orders", "--json"]).summary();
    assert_eq!(third["objects_changed"], changed.len() as u64, "{third}");

    block_on(async {
        for outcome in orders.delete_many(&before.keys().cloned().collect::<Vec<_>>()).await {
            outcome.result.unwrap();
        }
        let hidden = list_all(&orders).await;
        assert!(!hidden.keys().any(|key| before.contains_key(key)), "{hidden:?}");
        delete_all(&orders).await;
    });
    let restored = home.ok(&["restore", "latest", "--to", "s3://orders", "--verify", "--json"]).summary();
    assert_eq!(restored["objects_written"], total, "{restored}");
    let after = block_on(read_all(&orders));
    for (key, value) in &before {
        assert!(after.get(key) == Some(value), "{key}: {:?} {:?}", value.1, after.get(key).map(|v| &v.1));
    }
    assert_eq!(after.len(), before.len());
    home.ok(&["verify", "latest", "s3://orders"]);
    home
}

fn everything() -> impl Iterator<Item = objects::Object> + Send {
    objects::natural(9, 300).chain(objects::large(9, 1, 20 << 20)).chain(objects::odd(9, 300))
}

#[test]
fn the_whole_job_on_minio_and_restic_sees_the_same_repository() {
    let minio = cistern_testkit::minio();
    let endpoint = minio.endpoint();
    let home = the_whole_job((&endpoint, minio.access_key(), minio.secret_key()), everything(), 301);
    let restic = cistern_testkit::tools::restic().unwrap();
    let home = home
        .with("RESTIC_REPOSITORY", format!("s3:{endpoint}/backups/orders"))
        .with("RESTIC_PASSWORD", "geheim");
    let check = home.program(&restic, &["check", "--read-data"]);
    assert_eq!(check.code, 0, "{}", check.transcript());
}

#[test]
fn the_whole_job_on_moto_with_keys_that_others_refuse() {
    let moto = cistern_testkit::moto();
    the_whole_job((&moto.endpoint(), moto.access_key(), moto.secret_key()), everything(), 400);
}

#[test]
fn the_whole_job_on_the_server_of_this_process_with_every_key() {
    let server = Server::start().unwrap();
    let total = everything().count();
    the_whole_job((&server.endpoint(), Server::ACCESS_KEY, server.secret_key()), everything(), total);
}

/// More than ten thousand hostile keys into a bucket, into a repository, and back after all are deleted. What the server
/// refuses at PUT or does not list afterwards is not part of it.
fn hostile_keys_come_back((endpoint, id, secret): (&str, &str, &str), least: usize) {
    let bucket = |name: &str| connect((endpoint, id, secret), name);
    let hostile = bucket("hostile");
    let put = async |key: Key| {
        let content = bytes::Bytes::copy_from_slice(key.as_bytes());
        let _ = hostile.put(&key, &[content], &PutOptions::default()).await;
    };
    let before = block_on(async {
        hostile.create().await.unwrap();
        bucket("hostile-backups").create().await.unwrap();
        let keys = cistern_testkit::hostile::keys(11, 12_000);
        futures::stream::iter(keys).for_each_concurrent(32, put).await;
        list_all(&hostile).await
    });
    assert!(before.len() >= least, "{} keys are held", before.len());
    let home = home_for(endpoint, id, secret).with("CISTERN_REPOSITORY", "s3://hostile-backups");
    home.ok(&["init"]);
    let run = home.ok(&["backup", "s3://hostile", "--json"]).summary();
    assert_eq!(run["objects_new"], before.len() as u64);
    block_on(async {
        delete_all(&hostile).await;
    });
    home.ok(&["restore", "latest", "--to", "s3://hostile"]);
    // The entity tags say what the contents are.
    let after = block_on(list_all(&hostile));
    for (key, entry) in &before {
        assert_eq!(after.get(key), Some(entry), "{key}");
    }
    assert_eq!(after.len(), before.len());
}

#[test]
fn hostile_keys_come_back_on_minio() {
    let minio = cistern_testkit::minio();
    hostile_keys_come_back((&minio.endpoint(), minio.access_key(), minio.secret_key()), 2_000);
}

#[test]
fn hostile_keys_come_back_on_moto() {
    let moto = cistern_testkit::moto();
    hostile_keys_come_back((&moto.endpoint(), moto.access_key(), moto.secret_key()), 10_000);
}

/// Deletes all objects. MinIO takes `a` and `a/b`, but lists the second only once the first is gone.
async fn delete_all(bucket: &dyn Bucket) {
    for _ in 0..100 {
        let keys: Vec<Key> = list_all(bucket).await.into_keys().collect();
        if keys.is_empty() {
            return;
        }
        for outcome in bucket.delete_many(&keys).await {
            outcome.result.unwrap();
        }
    }
    panic!("there are always more objects");
}

/// Every key with its size and entity tag, which is the MD5 of small contents.
async fn list_all(bucket: &dyn Bucket) -> std::collections::BTreeMap<Key, (u64, cistern_bucket::Revision)> {
    let mut all = std::collections::BTreeMap::new();
    let mut request = cistern_bucket::ListRequest::default();
    loop {
        let page = bucket.list(&request).await.unwrap();
        all.extend(page.entries.into_iter().map(|entry| (entry.key, (entry.size, entry.revision))));
        match page.next {
            Some(token) => request.token = Some(token),
            None => return all,
        }
    }
}

async fn read_all(
    bucket: &dyn Bucket,
) -> std::collections::BTreeMap<Key, (Vec<u8>, cistern_bucket::Attributes)> {
    let mut all = std::collections::BTreeMap::new();
    let mut request = cistern_bucket::ListRequest::default();
    loop {
        let page = bucket.list(&request).await.unwrap();
        for entry in page.entries {
            let got = bucket.get(&entry.key, &GetOptions::default()).await.unwrap();
            let mut attributes = got.attributes;
            attributes.tags = Some(bucket.tags(&entry.key).await.unwrap());
            all.insert(entry.key, (got.body.bytes().await.unwrap().to_vec(), attributes));
        }
        match page.next {
            Some(token) => request.token = Some(token),
            None => return all,
        }
    }
}
