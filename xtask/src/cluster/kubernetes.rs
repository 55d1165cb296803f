//! Starts and ends the programs of Kubernetes and its container runtime.

use super::config::PAUSE_IMAGE;
use super::daemon::{Daemon, kill, processes, wait_for};
use super::layout::{API_PORT, Layout, kubernetes};
use super::{cgroup, kubectl, make_image};
use crate::oci::Root;
use crate::process::output;
use anyhow::Result;
use rustix::process::Signal;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// How long a program may take until it answers; machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(180);

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEER: &str = "http://127.0.0.1:2380";

/// What CoreDNS may read.
const COREDNS_RIGHTS: &str = r#"
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {name: "system:coredns"}, rules: [
  {apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]},
  {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}]}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: "system:coredns"},
 roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "system:coredns"},
 subjects: [{kind: User, apiGroup: rbac.authorization.k8s.io, name: "system:coredns"}]}
"#;

/// The programs, in the order in which they start.
pub const DAEMONS: [&str; 8] = [
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
];

/// Starts what does not run, until the node is ready.
pub fn up(layout: &Layout) -> Result<()> {
    let daemon = |name| Daemon::new(layout, name);
    let start = |name, options: Vec<String>| {
        let mut command = vec![kubernetes(name)?.to_string_lossy().into_owned()];
        command.extend(options);
        daemon(name).start(&command, &[])
    };
    let configuration = layout.text("containerd.toml");
    daemon("containerd").start(&["containerd".to_owned(), "--config".to_owned(), configuration], &[])?;
    start("etcd", etcd(layout))?;
    start("kube-apiserver", api_server(layout))?;
    wait_for("containerd", PATIENCE, &[daemon("containerd")], || output(ctr(layout).arg("version")).is_ok())?;
    pause_image(layout)?;
    wait_for("the API server", PATIENCE, &[daemon("etcd"), daemon("kube-apiserver")], || {
        kubectl(layout, &["get", "--raw", "/readyz"]).is_ok()
    })?;
    start("kube-controller-manager", controller_manager(layout))?;
    start("kube-scheduler", scheduler(layout))?;
    start("kubelet", kubelet(layout))?;
    start("kube-proxy", vec![format!("--config={}", layout.text("proxy.yaml"))])?;
    super::apply(layout, COREDNS_RIGHTS)?;
    start("coredns", vec![format!("-conf={}", layout.text("Corefile"))])?;
    let rest = ["kubelet", "kube-proxy", "coredns", "kube-controller-manager", "kube-scheduler"].map(daemon);
    let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    wait_for("the node", PATIENCE, &rest, || {
        kubectl(layout, &["get", "node", &layout.name(), "--output", ready]).is_ok_and(|said| said == "True")
    })?;
    wait_for("the default service account", PATIENCE, &rest, || {
        kubectl(layout, &["get", "serviceaccount", "default", "--namespace=default"]).is_ok()
    })
}

/// Ends all pods and programs, also what is left of a cluster whose programs were killed.
pub fn down(layout: &Layout) -> Result<()> {
    let daemon = |name| Daemon::new(layout, name);
    let patience = Duration::from_secs(5);
    // Whatever would start new pods ends first.
    for name in ["kube-scheduler", "kube-controller-manager", "kube-proxy", "coredns", "kubelet"] {
        daemon(name).stop(patience)?;
    }
    let runtime = daemon("containerd");
    let left_over = !shims(layout).is_empty() || !cgroup::processes(layout).is_empty();
    let configuration = layout.path("containerd.toml");
    if left_over && runtime.running().is_none() && configuration.exists() && layout.namespace().exists() {
        // Its pods outlive the runtime: it knows best how to end them.
        let command = ["containerd", "--config", &layout.text("containerd.toml")].map(str::to_owned);
        runtime.start(&command, &[])?;
        let answers = || output(ctr(layout).arg("version")).is_ok();
        let _ = wait_for("containerd", Duration::from_secs(20), &[daemon("containerd")], answers);
    }
    if runtime.running().is_some() {
        // So that interfaces and addresses are given back. What remains is ended by force below.
        let endpoint = format!("unix://{}", layout.socket());
        let mut purge = Command::new("timeout");
        purge.arg("60").arg(kubernetes("cri")?).args(["--endpoint", &endpoint, "purge"]);
        if let Err(error) = output(&mut purge) {
            println!("some pods did not end by themselves: {error:#}");
        }
    }
    daemon("kube-apiserver").stop(Duration::from_secs(15))?;
    daemon("etcd").stop(patience)?;
    runtime.stop(patience)?;
    for pid in shims(layout).into_iter().chain(cgroup::processes(layout)) {
        kill(pid, Signal::KILL);
    }
    Ok(())
}

/// Removes the links to logs of this cluster's containers, which the kubelet makes at a fixed place.
pub fn remove_log_links(layout: &Layout) -> Result<()> {
    let Ok(entries) = fs::read_dir("/var/log/containers") else { return Ok(()) };
    for link in entries.flatten().map(|entry| entry.path()) {
        if fs::read_link(&link).is_ok_and(|target| target.starts_with(&layout.dir)) {
            fs::remove_file(link)?;
        }
    }
    Ok(())
}

/// containerd's own client, for the images that Kubernetes sees.
pub fn ctr(layout: &Layout) -> Command {
    let mut command = Command::new("ctr");
    command.args(["--address", &layout.socket(), "--namespace", "k8s.io"]);
    command
}

/// The helpers that hold the containers of this cluster's containerd.
fn shims(layout: &Layout) -> Vec<i32> {
    let socket = layout.socket();
    processes(|words| {
        words[0].ends_with("containerd-shim-runc-v2")
            && words.windows(2).any(|pair| pair == ["-address", &socket])
    })
}

fn pause_image(layout: &Layout) -> Result<()> {
    make_image(layout, PAUSE_IMAGE, || {
        let mut root = Root::default();
        root.file("pause", &kubernetes("pause")?, 0o755)?;
        Ok((root, vec!["/pause".to_owned()]))
    })
}

fn etcd(layout: &Layout) -> Vec<String> {
    vec![
        "--name=cistern".to_owned(),
        format!("--data-dir={}", layout.text("etcd")),
        // The cluster is made anew when the machine fails.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        format!("--listen-peer-urls={ETCD_PEER}"),
        format!("--initial-advertise-peer-urls={ETCD_PEER}"),
        format!("--initial-cluster=cistern={ETCD_PEER}"),
    ]
}

fn api_server(layout: &Layout) -> Vec<String> {
    let pki = layout.text("pki");
    vec![
        format!("--etcd-servers={ETCD}"),
        format!("--secure-port={API_PORT}"),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--advertise-address={}", layout.node_address()),
        format!("--service-cluster-ip-range={}", layout.services()),
        "--allow-privileged=true".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--tls-cert-file={pki}/apiserver.crt"),
        format!("--tls-private-key-file={pki}/apiserver.key"),
        format!("--kubelet-certificate-authority={pki}/ca.crt"),
        format!("--kubelet-client-certificate={pki}/kubelet-client.crt"),
        format!("--kubelet-client-key={pki}/kubelet-client.key"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--requestheader-client-ca-file={pki}/ca.crt"),
        "--requestheader-allowed-names=front-proxy".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={pki}/front-proxy.crt"),
        format!("--proxy-client-key-file={pki}/front-proxy.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={pki}/sa.pub"),
        format!("--service-account-signing-key-file={pki}/sa.key"),
        "--profiling=false".to_owned(),
        "--shutdown-delay-duration=0s".to_owned(),
    ]
}

fn controller_manager(layout: &Layout) -> Vec<String> {
    let pki = layout.text("pki");
    vec![
        format!("--kubeconfig={}", layout.text("controller-manager.conf")),
        "--authentication-skip-lookup=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={pki}/sa.key"),
        format!("--root-ca-file={pki}/ca.crt"),
        format!("--cluster-signing-cert-file={pki}/ca.crt"),
        format!("--cluster-signing-key-file={pki}/ca.key"),
        "--profiling=false".to_owned(),
        format!("--flex-volume-plugin-dir={}", layout.text("kubelet/volume-plugins")),
    ]
}

fn scheduler(layout: &Layout) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", layout.text("scheduler.conf")),
        "--authentication-skip-lookup=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--profiling=false".to_owned(),
    ]
}

fn kubelet(layout: &Layout) -> Vec<String> {
    vec![
        format!("--config={}", layout.text("kubelet.yaml")),
        format!("--kubeconfig={}", layout.text("kubelet.conf")),
        format!("--root-dir={}", layout.text("kubelet")),
        format!("--hostname-override={}", layout.name()),
        format!("--node-ip={}", layout.node_address()),
    ]
}
