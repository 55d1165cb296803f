//! csi-s3 on a test cluster: the driver's images, and its own manifests with the few changes that this place needs.

use super::daemon::{Daemon, wait_for};
use super::layout::{Layout, kubernetes};
use super::storage::Credentials;
use super::{apply, kubectl, make_image};
use crate::oci::Root;
use crate::process::output;
use crate::tools::layout::{GEESEFS, S3DRIVER};
use anyhow::{Result, bail};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The name that volumes call the driver by.
pub const DRIVER: &str = "ru.yandex.s3.csi";
/// Where the driver and its Secret live.
pub const NAMESPACE: &str = "csi-s3";
/// The Secret with the credentials of the cluster's object store, for volumes to refer to.
pub const SECRET: &str = "csi-s3-secret";
/// A shell and the small programs of Unix, for pods of tests.
pub const BUSYBOX_IMAGE: &str = "registry.local/busybox:1";

const DRIVER_IMAGE: &str = "registry.local/csi-s3:0.43.7";
const REGISTRAR_IMAGE: &str = "registry.local/csi-registrar:1";

/// Loads the images and applies the manifests, until volumes can be mounted.
pub fn up(layout: &Layout, credentials: &Credentials) -> Result<()> {
    images(layout)?;
    let folder = S3DRIVER.folder()?;
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let namespace = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}}}}}");
    let driver = adapted(&read("csi-s3.yaml")?, &layout.text("kubelet"))?;
    let secret = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": NAMESPACE, "name": SECRET},
        "stringData": {
            "accessKeyID": credentials.access_key, "secretAccessKey": credentials.secret_key,
            "endpoint": credentials.endpoint, "region": credentials.region,
        },
    });
    apply(layout, &[namespace, secret.to_string(), read("driver.yaml")?, driver].join("\n---\n"))?;
    // The kubelet knows the driver a moment after its pod is ready.
    let drivers = "jsonpath={.spec.drivers[*].name}";
    wait_for("the CSI driver", Duration::from_secs(180), &[Daemon::new(layout, "kubelet")], || {
        kubectl(layout, &["get", "csinode", &layout.name(), "--output", drivers])
            .is_ok_and(|said| said.split(' ').any(|name| name == DRIVER))
    })
}

/// The driver's manifest for this cluster: the images made here, the kubelet's folder, and no systemd, which
/// would keep mounts alive for it on a node that has it.
fn adapted(text: &str, kubelet: &str) -> Result<String> {
    let mut changed = text.to_owned();
    for (from, to) in [
        ("namespace: kube-system", format!("namespace: {NAMESPACE}")),
        ("/var/lib/kubelet", kubelet.to_owned()),
        (
            "cr.yandex/crp9ftr22d26age3hulg/yandex-cloud/csi-s3/csi-node-driver-registrar:v2.16.0",
            REGISTRAR_IMAGE.to_owned(),
        ),
        ("cr.yandex/crp9ftr22d26age3hulg/csi-s3:0.43.7", DRIVER_IMAGE.to_owned()),
        ("            - name: systemd-control\n              mountPath: /run/systemd\n", String::new()),
        (
            "        - name: systemd-control\n          hostPath:\n            path: /run/systemd\n            \
             type: DirectoryOrCreate\n",
            String::new(),
        ),
    ] {
        if !changed.contains(from) {
            bail!("the driver's manifest is another one than expected: it has no `{}`", from.trim());
        }
        changed = changed.replace(from, &to);
    }
    Ok(changed)
}

fn images(layout: &Layout) -> Result<()> {
    let driver = || {
        let mut root = system()?;
        root.file("s3driver", &S3DRIVER.path()?, 0o755)?;
        root.file("usr/bin/geesefs", &GEESEFS.path()?, 0o755)?;
        root.program("usr/bin/fusermount3", Path::new("/usr/bin/fusermount3"))?;
        root.link("usr/bin/fusermount", "fusermount3");
        root.bytes("etc/fuse.conf", "user_allow_other\n", 0o644);
        Ok((root, vec!["/s3driver".to_owned()]))
    };
    let registrar = || {
        let mut root = Root::default();
        root.file("csi-node-driver-registrar", &kubernetes("csi-registrar")?, 0o755)?;
        Ok((root, vec!["/csi-node-driver-registrar".to_owned()]))
    };
    make_image(layout, DRIVER_IMAGE, driver)?;
    make_image(layout, REGISTRAR_IMAGE, registrar)?;
    make_image(layout, BUSYBOX_IMAGE, || Ok((system()?, Vec::new())))
}

/// busybox under all its names, accounts and certificates.
fn system() -> Result<Root> {
    let busybox = Path::new("/bin/busybox");
    let mut root = Root::default();
    root.file("bin/busybox", busybox, 0o755)?;
    for name in output(Command::new(busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        root.link(&format!("bin/{name}"), "busybox");
    }
    root.bytes("etc/passwd", "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", 0o644);
    root.bytes("etc/group", "root:x:0:\nnogroup:x:65534:\n", 0o644);
    root.certificates()?;
    root.directory("tmp", 0o1777);
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::adapted;

    #[test]
    fn a_manifest_of_another_release_is_refused() {
        let error = adapted("kind: DaemonSet\n", "/k").expect_err("nothing of it is known").to_string();
        assert!(error.contains("namespace: kube-system"), "{error}");
    }
}
