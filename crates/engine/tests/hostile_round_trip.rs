//! Ten thousand hostile keys from a bucket through a snapshot into a bucket of every kind, and back: what a store
//! holds comes out exactly, what it does not hold is found by asking it and counted.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{
    Attributes, Bucket, Credentials, Directory, Durability, Key, ListRequest, Memory, Prefixed, S3, S3Config,
};
use cistern_engine::{Error, ExceptionKind, Report, RestoreReport, Result, fidelity};
use cistern_testkit::{Server, hostile, seed};
use md5::{Digest, Md5};
use rustix::fs::{Mode, OFlags};
use scene::Scene;

const COUNT: usize = 10_000;

/// What an object holds: different for each key.
fn content(key: &Key) -> Bytes {
    Bytes::from([b"of ", key.as_bytes()].concat())
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The keys and entity tags that a bucket lists.
async fn listed(bucket: &dyn Bucket) -> BTreeMap<Key, (u64, Option<String>)> {
    let mut all = BTreeMap::new();
    let mut request = ListRequest::default();
    loop {
        let page = bucket.list(&request).await.unwrap();
        for entry in page.entries {
            let tag = entry.revision.etag().map(ToOwned::to_owned);
            assert!(all.insert(entry.key, (entry.size, tag)).is_none());
        }
        request.token = page.next;
        if request.token.is_none() {
            return all;
        }
    }
}

/// The files below a directory, some of them at paths that no call takes as a whole.
fn files(root: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![(Vec::new(), File::open(root).unwrap())];
    while let Some((path, directory)) = open.pop() {
        for entry in rustix::fs::Dir::read_from(&directory).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = File::from(rustix::fs::openat(&directory, name, flags, Mode::empty()).unwrap());
            let path = [&path[..], if path.is_empty() { b"" } else { b"/" }, name].concat();
            if file.metadata().unwrap().is_dir() {
                open.push((path, file));
            } else {
                let mut content = Vec::new();
                file.read_to_end(&mut content).unwrap();
                files.insert(path, content);
            }
        }
    }
    files
}

fn report(result: Result<RestoreReport>) -> RestoreReport {
    match result {
        Ok(report) => report,
        Err(Error::Incomplete { report, .. }) => match *report {
            Report::Restore(report) => report,
            other => panic!("{other:?}"),
        },
        Err(error) => panic!("{error:?}"),
    }
}

/// A bucket in memory with the keys, and a snapshot of it.
async fn saved() -> (Scene, BTreeSet<Key>) {
    let keys = hostile::keys(seed(70).value(), COUNT);
    let source = Arc::new(Memory::new("s3://orders"));
    for key in &keys {
        source.insert(key.clone(), content(key), Attributes::default());
    }
    let mut scene = Scene::in_memory().await;
    scene.source = source;
    scene.backup_bucket().await;
    (scene, keys.into_iter().collect())
}

/// Restores the snapshot into the bucket, saves that, restores it into memory, and yields how many keys it holds.
async fn round_trip(bucket: Arc<dyn Bucket>) -> usize {
    bucket.create().await.unwrap();
    let (mut scene, keys) = saved().await;
    assert!(keys.len() >= COUNT);
    scene.target = bucket.clone();
    let first = report(scene.restore_to("s3://copy", |task| task.verify = true).await);
    let lists = first.target_requests.by_kind.get("list").copied().unwrap_or(0);
    // Only long names of folders do not tell exactly where their keys stand in a listing.
    assert!(lists < COUNT as u64 / 4, "{lists} lists");
    let held = listed(&*bucket).await;
    let is_exact = |key: &&Key| {
        let expected = content(key);
        held.get(*key).is_some_and(|(size, tag)| {
            let tag = tag.as_deref().filter(|tag| tag.len() == 32);
            *size == expected.len() as u64 && tag.is_none_or(|tag| tag == md5(&expected))
        })
    };
    let (exact, other): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(is_exact);
    // Each key that is not there as it was is an exception, and nothing else is: it was refused, or is in the way of
    // another, or the store takes the two for one.
    let counts = &first.exceptions.counts;
    let kinds = [ExceptionKind::NameRefused, ExceptionKind::Unwritable, ExceptionKind::Differs];
    assert_eq!(first.exceptions.total(), other.len() as u64, "{counts:?} {:?}", first.exceptions.first);
    assert_eq!(
        kinds.map(|kind| first.exceptions.count(kind)).iter().sum::<u64>(),
        other.len() as u64,
        "{counts:?}"
    );
    let names: BTreeSet<String> = other.iter().map(ToString::to_string).collect();
    assert!(first.exceptions.first.iter().all(|exception| names.contains(&exception.key)), "{counts:?}");
    // What the store holds goes into a snapshot and out of it exactly.
    let mut again = Scene::in_memory().await;
    let copy = Arc::new(Memory::new("s3://copy"));
    (again.source, again.target) = (bucket.clone(), copy.clone());
    let saved = again.backup_bucket().await;
    assert_eq!((saved.objects_listed as usize, saved.exceptions.total()), (held.len(), 0), "{saved:?}");
    again.restore_to("s3://copy", |_| ()).await.unwrap();
    assert!(copy.keys() == held.keys().cloned().collect::<Vec<_>>());
    for key in &exact {
        assert!(copy.content(key).unwrap() == content(key), "{key}");
    }
    exact.len()
}

fn s3(endpoint: String, access_key: &str, secret_key: &str) -> Arc<dyn Bucket> {
    let mut config = S3Config::new("hostile-round-trip");
    config.endpoint = Some(endpoint.parse().unwrap());
    config.region = Some("us-east-1".into());
    config.credentials = Credentials::fixed(access_key, secret_key);
    config.retry.base_delay = Duration::from_millis(5);
    Arc::new(S3::connect(config).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_holds_them_all() {
    assert!(round_trip(Arc::new(Memory::new("s3://copy"))).await >= COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_takes_from_the_length_of_a_key_and_nothing_else() {
    let memory = Arc::new(Memory::new("s3://copy").unlimited_keys());
    assert!(round_trip(Arc::new(Prefixed::new(memory, "a prefix/"))).await >= COUNT);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_server_holds_all_that_http_can_say() {
    let server = Server::start().unwrap();
    let held = round_trip(s3(server.endpoint(), Server::ACCESS_KEY, server.secret_key())).await;
    assert!(held >= COUNT * 9 / 10, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_as_a_bucket_names_what_no_path_can_be() {
    let temp = tempfile::tempdir().unwrap();
    let bucket = Directory::with(temp.path().join("bucket"), Durability::None);
    let held = round_trip(Arc::new(bucket)).await;
    assert!(held >= COUNT / 10, "{held}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_has_every_object_and_the_report_names_those_under_other_names() {
    let (scene, keys) = saved().await;
    let report = report(scene.restore(|_| ()).await);
    let files = files(&scene.out().join("orders"));
    let exact = |key: &Key| files.get(key.as_bytes()).is_some_and(|found| found[..] == content(key)[..]);
    let other: Vec<&Key> = keys.iter().filter(|key| !exact(key)).collect();
    assert!(!other.is_empty() && other.len() < keys.len());
    for key in &other {
        let beside = format!("{key}/");
        let escaped = fidelity::is_escaped(key.as_bytes());
        assert!(escaped || keys.iter().any(|other| other.to_string().starts_with(&beside)), "{key}");
    }
    // Every object is there, if not under its own name; each of those is counted, the first are named.
    let mut contents: Vec<&[u8]> = files.values().map(|content| &content[..]).collect();
    contents.sort_unstable();
    let expected: Vec<Bytes> = keys.iter().map(content).collect();
    let mut expected: Vec<&[u8]> = expected.iter().map(|content| &content[..]).collect();
    expected.sort_unstable();
    assert!(contents == expected, "{} files of {} objects", contents.len(), expected.len());
    assert_eq!(report.exceptions.total(), other.len() as u64, "{:?}", report.exceptions.counts);
    assert_eq!(report.exceptions.count(ExceptionKind::NameRefused), other.len() as u64);
    let names: BTreeSet<String> = other.iter().map(ToString::to_string).collect();
    assert!(report.exceptions.first.iter().all(|exception| names.contains(&exception.key)));
}
