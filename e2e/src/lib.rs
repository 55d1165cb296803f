//! What tests on a real cluster share: the cluster that `cargo xtask cluster up` made, a namespace for each test, kubectl.
//!
//! A test waits with `kubectl wait` only, which watches and has a deadline. When it fails, what the namespace holds is
//! printed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use cistern_bucket::{self as bucket, Bucket, Key, ListRequest, S3, S3Config, Style};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;

/// The variable that names the description of the cluster: the file `cluster.json` that `cargo xtask cluster up` writes.
pub const CLUSTER: &str = "CISTERN_CLUSTER";

/// Where things are: the file that `cargo xtask cluster up` writes.
#[derive(Clone, Debug, Deserialize)]
pub struct Cluster {
    /// Credentials for the API server.
    pub kubeconfig: PathBuf,
    /// kubectl.
    pub kubectl: PathBuf,
    /// URL of the S3 server, the same for pods and for this machine.
    pub s3_endpoint: String,
    /// File with the keys of the S3 server.
    pub s3_credentials: PathBuf,
    /// A folder of the node that pods may mount.
    pub shared: PathBuf,
    /// The folder of all of the cluster's state.
    dir: PathBuf,
}

/// Who may use the S3 server.
#[derive(Clone, Deserialize)]
pub struct Credentials {
    /// Region of its buckets.
    pub region: String,
    /// Id of the key.
    pub access_key: String,
    /// The key.
    pub secret_key: String,
}

impl Cluster {
    /// The cluster that the environment names.
    ///
    /// # Panics
    /// There is none: these tests are run by `cargo xtask e2e`, which makes one.
    pub fn find() -> Cluster {
        let file =
            std::env::var_os(CLUSTER).expect("CISTERN_CLUSTER names no cluster: run `cargo xtask e2e`");
        let text = std::fs::read(&file).expect("the description of the cluster can be read");
        serde_json::from_slice(&text).expect("the description of the cluster is whole")
    }

    /// Who may use the S3 server.
    ///
    /// # Panics
    /// The file is not as it should be.
    pub fn credentials(&self) -> Credentials {
        let text = std::fs::read(&self.s3_credentials).expect("the credentials can be read");
        serde_json::from_slice(&text).expect("the credentials are whole")
    }

    /// The whole bucket of this name on the S3 server, made anew and empty if it is there.
    ///
    /// # Panics
    /// The server does not do it.
    pub async fn empty_bucket(&self, name: &str) -> Arc<dyn Bucket> {
        let bucket = self.bucket(name);
        bucket.create().await.expect("a bucket can be made");
        let keys: Vec<Key> = self.keys(&*bucket).await;
        for key in keys {
            bucket.delete(&key).await.expect("an object can be deleted");
        }
        bucket
    }

    /// The bucket of this name on the S3 server.
    ///
    /// # Panics
    /// The endpoint is none.
    pub fn bucket(&self, name: &str) -> Arc<dyn Bucket> {
        let credentials = self.credentials();
        let mut config = S3Config::new(name);
        config.endpoint = Some(self.s3_endpoint.parse().expect("the endpoint is a URL"));
        config.region = Some(credentials.region);
        config.style = Style::Path;
        config.credentials = bucket::Credentials::Static {
            access_key_id: credentials.access_key,
            secret_access_key: SecretString::from(credentials.secret_key),
            session_token: None,
        };
        Arc::new(S3::connect(config).expect("a client can be made"))
    }

    /// The keys of a bucket.
    ///
    /// # Panics
    /// It cannot be listed.
    pub async fn keys(&self, bucket: &dyn Bucket) -> Vec<Key> {
        let mut request = ListRequest::default();
        let mut keys = Vec::new();
        loop {
            let page = bucket.list(&request).await.expect("a bucket can be listed");
            keys.extend(page.entries.iter().map(|entry| entry.key.clone()));
            match page.next {
                Some(next) => request.token = Some(next),
                None => return keys,
            }
        }
    }

    /// kubectl with these arguments; what it printed, or what it complained of.
    ///
    /// # Errors
    /// What it wrote to standard error, if it failed.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn try_kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<String, String> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        // Nothing is left in the home of whoever runs the tests.
        command.arg("--cache-dir").arg(self.dir.join("kubectl-cache")).args(arguments);
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl starts");
        if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
            // A program that does not read all has something to say.
            drop(pipe.write_all(input.as_bytes()));
        }
        let output = child.wait_with_output().expect("kubectl ends");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// A namespace of one test. It stays when the test fails, and what it holds is printed.
pub struct Namespace {
    /// The cluster.
    pub cluster: Cluster,
    /// Its name.
    pub name: String,
}

impl Namespace {
    /// A new namespace.
    ///
    /// # Panics
    /// It cannot be made.
    pub fn new(name: &str) -> Namespace {
        let cluster = Cluster::find();
        // Of an earlier run that failed.
        drop(
            cluster.try_kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"], None),
        );
        let namespace = Namespace { cluster, name: name.to_owned() };
        namespace.cluster.try_kubectl(&["create", "namespace", name], None).expect("a namespace can be made");
        namespace
    }

    /// kubectl in this namespace.
    ///
    /// # Panics
    /// It fails.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).unwrap_or_else(|error| panic!("kubectl {}: {error}", arguments.join(" ")))
    }

    /// kubectl in this namespace.
    ///
    /// # Errors
    /// What it wrote to standard error, if it failed.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let all: Vec<&str> = ["--namespace", &self.name].iter().chain(arguments).copied().collect();
        self.cluster.try_kubectl(&all, None)
    }

    /// Applies documents.
    ///
    /// # Errors
    /// What the API server says of them.
    pub fn try_apply(&self, documents: &str) -> Result<String, String> {
        let all = ["--namespace", &self.name, "apply", "--server-side", "-f", "-"];
        self.cluster.try_kubectl(&all, Some(documents))
    }

    /// Applies documents.
    ///
    /// # Panics
    /// The API server refuses them.
    pub fn apply(&self, documents: &str) {
        self.try_apply(documents).unwrap_or_else(|error| panic!("{error}\n{documents}"));
    }

    /// Waits until the objects are as `what` says, an argument of `kubectl wait --for`.
    ///
    /// # Panics
    /// They are not in time.
    pub fn wait(&self, objects: &str, what: &str, seconds: u32) {
        let (what, timeout) = (format!("--for={what}"), format!("--timeout={seconds}s"));
        let mut arguments = vec!["wait", &what, &timeout];
        arguments.extend(objects.split(' '));
        self.kubectl(&arguments);
    }

    /// An object, or a list of them.
    ///
    /// # Panics
    /// It cannot be read.
    pub fn get(&self, objects: &str) -> Value {
        let mut arguments = vec!["get", "--output=json"];
        arguments.extend(objects.split(' '));
        serde_json::from_str(&self.kubectl(&arguments)).expect("kubectl prints JSON")
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            drop(self.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]));
            return;
        }
        let kinds = "backupstorages,repositories.storage.kubestash.com,backupconfigurations,backupsessions,\
                     snapshots.storage.kubestash.com,restoresessions,jobs,pods,events";
        for arguments in [
            vec!["get", "--output=wide", kinds],
            vec!["get", "--output=yaml", "backupsessions,snapshots.storage.kubestash.com,restoresessions"],
        ] {
            let said = self.try_kubectl(&arguments).unwrap_or_else(|error| error);
            write!(std::io::stderr(), "\n{said}\n").expect("standard error takes it");
        }
    }
}

/// The root of the checkout.
///
/// # Panics
/// This crate does not lie in it.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the checkout")
}
