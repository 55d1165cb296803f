//! The configuration files of a test cluster's programs.

use super::layout::Layout;
use anyhow::Result;
use std::fs;

/// The image whose container holds the namespaces of a pod.
pub const PAUSE_IMAGE: &str = "registry.local/pause:1";

/// Writes them all.
pub fn write(layout: &Layout) -> Result<()> {
    for folder in ["cni/net.d", "manifests", "podlogs"] {
        fs::create_dir_all(layout.path(folder))?;
    }
    // Pods get their names from CoreDNS alone.
    for (name, text) in [
        ("containerd.toml", containerd(layout)),
        ("cni/net.d/10-pods.conflist", cni(layout)),
        ("kubelet.yaml", kubelet(layout)),
        ("proxy.yaml", proxy(layout)),
        ("Corefile", coredns(layout)),
        ("resolv.conf", String::new()),
    ] {
        fs::write(layout.path(name), text)?;
    }
    Ok(())
}

/// <https://github.com/containerd/containerd/blob/release/1.6/docs/cri/config.md>
fn containerd(layout: &Layout) -> String {
    format!(
        r#"version = 2
root = "{dir}/containerd/root"
state = "{dir}/containerd/state"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper",
]
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "10010"
  disable_apparmor = true
  restrict_oom_score_adj = true
  disable_hugetlb_controller = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#,
        dir = layout.dir.display(),
        socket = layout.socket()
    )
}

/// <https://www.cni.dev/plugins/current/main/bridge/>. Nothing is masqueraded: no pod needs more than this machine.
fn cni(layout: &Layout) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "{name}", "plugins": [
  {{"type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "hairpinMode": true, "ipam": {{
    "type": "host-local", "dataDir": "{dir}/cni/addresses",
    "ranges": [[{{"subnet": "{pods}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}}]}}
"#,
        name = layout.name(),
        dir = layout.dir.display(),
        pods = layout.pods()
    )
}

/// <https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/>. Kubernetes 1.35 and later refuse
/// cgroups of version 1 unless told otherwise, and a machine of tests is always short of something.
fn kubelet(layout: &Layout) -> String {
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
cgroupRoot: /{name}
containerRuntimeEndpoint: unix://{socket}
address: {node}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {dir}/pki/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {dir}/pki/kubelet.crt
tlsPrivateKeyFile: {dir}/pki/kubelet.key
clusterDomain: cluster.local
clusterDNS: [{node}]
resolvConf: {dir}/resolv.conf
staticPodPath: {dir}/manifests
volumePluginDir: {dir}/kubelet/volume-plugins
podLogsDir: {dir}/podlogs
makeIPTablesUtilChains: false
failSwapOn: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {{memory.available: "50Mi", nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "0%"}}
registryPullQPS: 0
syncFrequency: 30s
"#,
        name = layout.name(),
        socket = layout.socket(),
        node = layout.node_address(),
        dir = layout.dir.display()
    )
}

/// <https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/>. Connection tracking stays as the
/// machine has it.
fn proxy(layout: &Layout) -> String {
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: {pods}
hostnameOverride: {name}
bindAddress: 0.0.0.0
clientConnection: {{kubeconfig: {dir}/proxy.conf}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"#,
        pods = layout.pods(),
        name = layout.name(),
        dir = layout.dir.display()
    )
}

/// <https://coredns.io/plugins/kubernetes/>. It knows the cluster's names only: nothing else can be reached.
fn coredns(layout: &Layout) -> String {
    format!(
        r#". {{
  bind {node}
  errors
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {dir}/coredns.conf cistern
    pods insecure
    ttl 5
  }}
  cache 5
  loadbalance
}}
"#,
        node = layout.node_address(),
        dir = layout.dir.display()
    )
}
