//! `cargo xtask cluster`: a real Kubernetes of one node on this machine, for tests: no stand-in for anything.
//!
//! Control plane, kubelet, container runtime, network, DNS, an object store (MinIO) and a CSI driver that mounts
//! its buckets. Everything lives in one folder and in one network namespace, and goes without a trace. Outside
//! of them lies only what the programs put at fixed places, which is removed at the end as well: cgroups, sockets
//! below `/run/containerd`, results below `/var/lib/cni`, links in `/var/log/containers`. Empty folders stay, and the
//! lock file that tells who has a cluster's number.

mod cgroup;
mod config;
mod csi;
mod daemon;
mod kubernetes;
pub(crate) mod layout;
mod mounts;
mod network;
mod pki;
mod storage;

use crate::oci::{Image, Root};
use crate::process::output;
use crate::tools;
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use daemon::Daemon;
use layout::Layout;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Where the programs of a cluster find others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Run a real Kubernetes cluster of one node for tests (needs root)
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// The cluster's number: its networks are 10.{96,98,244}.N.0/24
    #[arg(long, value_name = "N", global = true, default_value_t = 77, value_parser = clap::value_parser!(u8).range(1..=254))]
    net: u8,
    /// The folder of all its state [default: cluster-N beside the tools]
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the cluster, or what of it does not run
    ///
    /// What it needs is installed first, as by `cargo xtask tools`. Tests find everything through the file
    /// cluster.json in the cluster's folder.
    Up,
    /// End the cluster and remove all its data
    Down,
    /// Show what runs and where to find it
    Status,
    /// Run kubectl as the cluster's administrator
    Kubectl {
        /// What to pass on
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Make an image known to the cluster
    LoadImage {
        /// An OCI archive, as `cargo xtask image` makes it
        file: PathBuf,
    },
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let layout = Layout::new(arguments.net, arguments.dir.as_deref())?;
    match &arguments.verb {
        Verb::Up => up(&layout),
        Verb::Down => down(&layout),
        Verb::Status => status(&layout),
        Verb::Kubectl { arguments } => {
            running(&layout)?;
            Err(kubectl_command(&layout)?.args(arguments).exec()).context("cannot start kubectl")
        }
        Verb::LoadImage { file } => {
            running(&layout)?;
            load(&layout, file).map(|names| print!("{names}"))
        }
    }
}

/// Starts a cluster, or what of it does not run.
pub(crate) fn up(layout: &Layout) -> Result<()> {
    let _lock = lock(layout)?;
    tools::install_for_cluster()?;
    let start = Instant::now();
    let since = || format!("{:.1} s", start.elapsed().as_secs_f64());
    for folder in ["log", "pid", "images"] {
        fs::create_dir_all(layout.path(folder))?;
    }
    pki::make(layout)?;
    network::make(layout)?;
    mounts::share(layout)?;
    cgroup::make(layout)?;
    config::write(layout)?;
    kubernetes::up(layout)?;
    println!("node {} is ready after {}", layout.name(), since());
    let credentials = storage::up(layout)?;
    csi::up(layout, &credentials)?;
    println!("object store and CSI driver are ready after {}", since());
    describe(layout)?;
    places(layout);
    Ok(())
}

/// Ends a cluster and removes all its data.
pub(crate) fn down(layout: &Layout) -> Result<()> {
    let _lock = lock(layout)?;
    kubernetes::down(layout)?;
    storage::down(layout)?;
    mounts::remove(&layout.dir)?;
    network::remove(layout)?;
    cgroup::remove(layout)?;
    kubernetes::remove_log_links(layout)?;
    if layout.dir.exists() {
        fs::remove_dir_all(&layout.dir).with_context(|| format!("cannot remove {}", layout.dir.display()))?;
    }
    println!("cluster {} is gone", layout.net);
    Ok(())
}

fn status(layout: &Layout) -> Result<()> {
    running(layout)?;
    println!("{:24} {:>8} {:>8} {:>9}", "program", "process", "MiB", "CPU s");
    for name in kubernetes::DAEMONS.iter().chain([&storage::DAEMON]) {
        match Daemon::new(layout, name).running() {
            Some((pid, stat)) => {
                let (memory, time) = (daemon::resident_mib(pid), stat.seconds);
                println!("{name:24} {pid:>8} {memory:>8} {time:>9.1}");
            }
            None => {
                println!("{name:24} does not run: see {}", layout.path(&format!("log/{name}.log")).display())
            }
        }
    }
    println!();
    places(layout);
    let pods = kubectl(layout, &["get", "pods", "--all-namespaces", "--output=wide"]);
    println!("\n{}", pods.unwrap_or_else(|error| format!("{error:#}")));
    Ok(())
}

/// Where a person finds things.
fn places(layout: &Layout) {
    println!("KUBECONFIG={}", layout.kubeconfig().display());
    println!("S3 endpoint {}, credentials in {}", layout.s3_endpoint(), storage::file(layout).display());
    println!("pods reach this machine as {}", layout.host_address());
    println!("for tests: {}", description(layout).display());
}

/// The file that tells tests where things are.
pub(crate) fn description(layout: &Layout) -> PathBuf {
    layout.path("cluster.json")
}

/// Writes where tests find things; see the fields.
fn describe(layout: &Layout) -> Result<()> {
    let text = serde_json::json!({
        "dir": layout.dir,
        // A folder that pods may share mounts with this machine through.
        "shared": layout.path("shared"),
        "node": layout.name(),
        "node_address": layout.node_address(),
        "host_address": layout.host_address(),
        "kubeconfig": layout.kubeconfig(),
        "kubectl": tools::layout::kubectl()?,
        "helm": tools::layout::helm()?,
        "s3_endpoint": layout.s3_endpoint(),
        "s3_credentials": storage::file(layout),
        "csi_driver": csi::DRIVER,
        "csi_secret": {"namespace": csi::NAMESPACE, "name": csi::SECRET},
        "busybox_image": csi::BUSYBOX_IMAGE,
        "logs": layout.path("log"),
    });
    let new = layout.path("cluster.json.new");
    fs::write(&new, format!("{text:#}\n"))?;
    Ok(fs::rename(new, description(layout))?)
}

/// Fails unless `up` came to its end.
fn running(layout: &Layout) -> Result<()> {
    if description(layout).exists() {
        return Ok(());
    }
    bail!("no cluster runs in {}: start one with `cargo xtask cluster up`", layout.dir.display())
}

/// Keeps two tasks from working on one cluster, and two clusters from having one number.
///
/// The file holds the folder of the cluster that has the number.
fn lock(layout: &Layout) -> Result<File> {
    if !rustix::process::geteuid().is_root() {
        bail!("a cluster takes root: it makes mounts, network namespaces and cgroups");
    }
    let file = Path::new("/run").join(format!("{}.lock", layout.name()));
    let mut lock = File::options().create(true).truncate(false).read(true).write(true).open(&file)?;
    lock.lock()?;
    let mut owner = String::new();
    lock.read_to_string(&mut owner)?;
    if !owner.is_empty() && Path::new(&owner) != layout.dir && Path::new(&owner).exists() {
        bail!("the cluster in {owner} has number {}: take another by --net", layout.net);
    }
    lock.set_len(0)?;
    lock.rewind()?;
    lock.write_all(layout.dir.as_os_str().as_encoded_bytes())?;
    Ok(lock)
}

/// Makes an image known to the cluster, unless it has been.
pub(crate) fn make_image(
    layout: &Layout,
    name: &str,
    content: impl FnOnce() -> Result<(Root, Vec<String>)>,
) -> Result<()> {
    let simple = name.replace(['/', ':'], "-");
    let file = layout.path("images").join(&simple);
    if file.exists() {
        return Ok(());
    }
    let (root, entrypoint) = content()?;
    let image = Image { name: name.to_owned(), root, entrypoint, ..Image::default() };
    let new = layout.path("images").join(format!("{simple}.new"));
    image.write(&new)?;
    load(layout, &new)?;
    Ok(fs::rename(new, file)?)
}

/// Imports an OCI archive and returns what containerd says of it.
pub(crate) fn load(layout: &Layout, file: &Path) -> Result<String> {
    output(kubernetes::ctr(layout).args(["images", "import"]).arg(file))
}

fn kubectl_command(layout: &Layout) -> Result<Command> {
    let mut command = Command::new(tools::layout::kubectl()?);
    command.arg("--kubeconfig").arg(layout.kubeconfig());
    command.arg("--cache-dir").arg(layout.path("kubectl-cache"));
    Ok(command)
}

/// Runs kubectl and returns what it printed.
pub(crate) fn kubectl(layout: &Layout, words: &[&str]) -> Result<String> {
    output(kubectl_command(layout)?.args(words))
}

/// Applies manifests, which may hold secrets: they are shown neither in arguments nor in errors.
fn apply(layout: &Layout, manifests: &str) -> Result<()> {
    let mut command = kubectl_command(layout)?;
    command
        .args(["apply", "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start kubectl")?;
    child.stdin.take().context("kubectl takes no input")?.write_all(manifests.as_bytes())?;
    let ended = child.wait_with_output()?;
    if ended.status.success() {
        return Ok(());
    }
    bail!("kubectl apply failed ({}): {}", ended.status, String::from_utf8_lossy(&ended.stderr))
}
