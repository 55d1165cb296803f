//! Where the suite runs: one empty bucket per test on each kind of store.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Bucket, Credentials, Directory, Durability, ErrorKind, Memory, Prefixed, S3, S3Config};
use cistern_testkit::Server;

/// A bucket that does not exist yet, and what keeps its store alive.
pub struct Place {
    pub bucket: Arc<dyn Bucket>,
    /// Length of the shortest part that a multipart upload may have in its middle.
    pub part: usize,
    /// How many of the odd keys of the suite it holds exactly; `None` if it takes some and lists others.
    pub odd_keys: Option<usize>,
    /// What completing an upload that was aborted ends as.
    pub gone_upload: ErrorKind,
    /// Whether it lets exactly one of those succeed who create an object at the same time.
    pub decides_races: bool,
    /// Whether it has a request that tells how long an object is locked.
    pub tells_retention: bool,
    _store: Box<dyn Any + Send + Sync>,
}

impl Place {
    fn new(bucket: impl Bucket, store: impl Any + Send + Sync) -> Self {
        Place {
            bucket: Arc::new(bucket),
            part: 5 << 20,
            odd_keys: Some(0),
            gone_upload: ErrorKind::NoSuchKey,
            decides_races: true,
            tells_retention: true,
            _store: Box::new(store),
        }
    }

    /// Makes the bucket.
    pub async fn ready(self) -> Self {
        self.bucket.create().await.unwrap();
        self
    }
}

pub fn s3(endpoint: String, bucket: &str, access_key: &str, secret_key: &str) -> S3 {
    let mut config = S3Config::new(bucket);
    config.endpoint = Some(endpoint.parse().unwrap());
    config.region = Some("us-east-1".into());
    config.credentials = Credentials::fixed(access_key, secret_key);
    config.retry.base_delay = Duration::from_millis(5);
    S3::connect(config).unwrap()
}

pub fn memory(name: &str) -> Place {
    Place { odd_keys: Some(3), ..Place::new(Memory::new(name).absent(), ()) }
}

pub fn directory(name: &str) -> Place {
    let root = tempfile::tempdir().unwrap();
    Place { odd_keys: Some(1), ..Place::new(Directory::with(root.path().join(name), Durability::None), root) }
}

pub fn prefixed(name: &str) -> Place {
    let memory = Arc::new(Memory::new(name).absent());
    Place { odd_keys: Some(3), ..Place::new(Prefixed::new(memory, "a prefix/"), ()) }
}

pub fn embedded(name: &str) -> Place {
    let server = Server::start().unwrap();
    let bucket = s3(server.endpoint(), name, Server::ACCESS_KEY, server.secret_key());
    Place { odd_keys: Some(2), ..Place::new(bucket, server) }
}

pub fn minio(name: &str) -> Place {
    let server = cistern_testkit::minio();
    let bucket = s3(server.endpoint(), name, server.access_key(), server.secret_key());
    Place::new(bucket, server)
}

pub fn moto(name: &str) -> Place {
    let server = cistern_testkit::moto();
    let bucket = s3(server.endpoint(), name, server.access_key(), server.secret_key());
    // moto 5.2.5 breaks down (500) over an upload that it has forgotten, and looks for an object and then writes it with
    // nothing that keeps others from doing the same between.
    Place {
        odd_keys: None,
        gone_upload: ErrorKind::Unreachable,
        decides_races: false,
        tells_retention: false,
        ..Place::new(bucket, server)
    }
}

/// A bucket with locks, which exists.
pub fn locked_memory(name: &str) -> Place {
    Place::new(Memory::new(name).object_lock(), ())
}

pub fn locked_minio(name: &str) -> Place {
    let server = cistern_testkit::minio();
    server.create_locked_bucket(name);
    minio(name)
}

pub fn locked_moto(name: &str) -> Place {
    let server = cistern_testkit::moto();
    server.create_locked_bucket(name);
    moto(name)
}
