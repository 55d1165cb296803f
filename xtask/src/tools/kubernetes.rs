//! Makes what the test cluster is put together from: Kubernetes, Helm, a CSI driver, and Debian packages.

use super::{go_build, go_build_in};
use crate::process::{debian_packages, output, root};
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Debian packages of the cluster and what shows that they are there.
const PACKAGES: [(&str, &str); 9] = [
    ("containerd", "/usr/bin/containerd"),
    ("runc", "/usr/sbin/runc"),
    ("containernetworking-plugins", "/usr/lib/cni/bridge"),
    ("nftables", "/usr/sbin/nft"),
    ("busybox-static", "/bin/busybox"),
    ("fuse3", "/usr/bin/fusermount3"),
    ("openssl", "/usr/bin/openssl"),
    ("iproute2", "/usr/sbin/ip"),
    ("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

/// The names that `kubeall` answers to.
pub const KUBERNETES: [&str; 9] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "coredns",
    "cri",
];

/// The SDK that geesefs is built with.
const SDK: &str = "github.com/aws/aws-sdk-go@v1.55.8";

/// Installs the Debian packages that are missing.
pub fn packages() -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("Debian packages: installing {} (up to 160 MB)", missing.join(" "));
    debian_packages(&missing)
}

/// One program for all of Kubernetes, and two small ones that run in pods.
pub fn kubeall(folder: &Path) -> Result<()> {
    // Without these it calls itself 0.0.0, and the programs refuse to work together.
    let stamp = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"].map(|package| {
        [
            ("gitVersion", "v1.36.3"),
            ("gitMajor", "1"),
            ("gitMinor", "36"),
            ("gitTreeState", "clean"),
            ("buildDate", "1970-01-01T00:00:00Z"),
        ]
        .map(|(name, value)| (format!("{package}.{name}"), value))
    });
    let stamp: Vec<(&str, &str)> =
        stamp.iter().flatten().map(|(name, value)| (name.as_str(), *value)).collect();
    let module = root().join("xtask/tools/kubeall");
    for name in ["pause", "csi-registrar"] {
        go_build_in(&module, &folder.join("bin").join(name), &format!("./{name}"), &[])?;
    }
    go_build(folder, "kubeall", ".", &stamp)?;
    for name in KUBERNETES {
        symlink("kubeall", folder.join("bin").join(name))?;
    }
    Ok(())
}

pub fn helm(folder: &Path) -> Result<()> {
    let version = [("helm.sh/helm/v4/internal/version.version", "v4.3.1")];
    go_build(folder, "helm", "helm.sh/helm/v4/cmd/helm", &version)
}

pub fn s3driver(folder: &Path) -> Result<()> {
    let package = "github.com/yandex-cloud/k8s-csi-s3/cmd/s3driver";
    go_build(folder, "s3driver", package, &[])?;
    // Its manifests are part of the module.
    let module = module_folder("github.com/yandex-cloud/k8s-csi-s3@v0.43.7")?;
    for name in ["driver.yaml", "csi-s3.yaml"] {
        fs::copy(Path::new(&module).join("deploy/kubernetes").join(name), folder.join(name))?;
    }
    Ok(())
}

/// Builds geesefs, whose archive lacks its variant of the S3 SDK: a nested module, which no module proxy serves.
/// The stock SDK takes its place, with the few lines that are missing there.
pub fn geesefs(folder: &Path) -> Result<()> {
    let build = folder.join("build");
    let sources = root().join("xtask/tools/geesefs");
    fs::create_dir(&build)?;
    for name in ["go.mod", "go.sum"] {
        fs::copy(sources.join(name), build.join(name))?;
    }
    let sdk = build.join("s3ext");
    output(
        Command::new("cp").args(["--recursive", "--no-preserve=mode"]).arg(module_folder(SDK)?).arg(&sdk),
    )?;
    fs::copy(sources.join("yandex_ext.go"), sdk.join("service/s3/yandex_ext.go"))?;
    let file = sdk.join("service/s3/api.go");
    let text = fs::read_to_string(&file)?;
    let object = "\ntype Object struct {\n";
    if text.matches(object).count() != 1 {
        bail!("{SDK} has no type Object");
    }
    // Listings of Yandex's store carry it; elsewhere it stays empty.
    let metadata =
        "\tUserMetadata map[string]*string `locationName:\"Metadata\" type:\"map\" flattened:\"true\"`\n";
    fs::write(file, text.replacen(object, &format!("{object}{metadata}"), 1))?;
    go_build_in(&build, &folder.join("bin/geesefs"), "github.com/yandex-cloud/geesefs", &[])?;
    Ok(fs::remove_dir_all(build)?)
}

/// Downloads a Go module, `path@version`, unless it is there, and returns its folder in Go's cache.
fn module_folder(module: &str) -> Result<String> {
    // In a folder without a go.mod, or Go would ask for it to be required there.
    let mut command = Command::new("go");
    let said = output(command.args(["mod", "download", "-json", module]).current_dir("/"))?;
    let answer: serde_json::Value = serde_json::from_str(&said).context("Go speaks no JSON")?;
    Ok(answer["Dir"].as_str().with_context(|| format!("Go names no folder of {module}"))?.to_owned())
}
