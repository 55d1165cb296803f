//! The certificates of a test cluster, each client's with its kubeconfig; openssl makes the keys.

use super::layout::Layout;
use crate::process::output;
use anyhow::Result;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// So that no configuration of the machine adds to what is asked for.
const CONFIGURATION: &str = "[req]\ndistinguished_name = name\n[name]\n";

const CURVE: [&str; 4] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];

/// The clients with a kubeconfig `<name>.conf`: their names and subjects, by which the API server knows them.
const CLIENTS: [(&str, &str); 5] = [
    ("admin", "/O=system:masters/CN=admin"),
    ("controller-manager", "/CN=system:kube-controller-manager"),
    ("scheduler", "/CN=system:kube-scheduler"),
    ("proxy", "/CN=system:kube-proxy"),
    ("coredns", "/CN=system:coredns"),
];

/// Makes the authority, the certificates, the key of service accounts and the kubeconfigs that are missing.
pub fn make(layout: &Layout) -> Result<()> {
    let pki = layout.path("pki");
    fs::create_dir_all(&pki)?;
    fs::set_permissions(&pki, Permissions::from_mode(0o700))?;
    fs::write(pki.join("openssl.cnf"), CONFIGURATION)?;
    if !pki.join("ca.crt").exists() {
        let mut command = request(&pki, "ca", "/CN=cistern-test-ca");
        command.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
        output(command.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]))?;
    }
    if !pki.join("sa.pub").exists() {
        let mut key = Command::new("openssl");
        key.args([
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-out",
            "sa.key",
        ]);
        output(key.current_dir(&pki))?;
        let mut public = Command::new("openssl");
        output(public.args(["pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub"]).current_dir(&pki))?;
    }
    let (node, address) = (layout.name(), layout.node_address());
    let server = format!(
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,\
         DNS:localhost,IP:127.0.0.1,IP:{},IP:{address}",
        layout.api_service()
    );
    certificate(&pki, "apiserver", "/CN=kube-apiserver", Some(&server))?;
    certificate(&pki, "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", None)?;
    certificate(&pki, "front-proxy", "/CN=front-proxy", None)?;
    let kubelet = format!("DNS:{node},DNS:localhost,IP:127.0.0.1,IP:{address}");
    certificate(&pki, "kubelet", &format!("/O=system:nodes/CN=system:node:{node}"), Some(&kubelet))?;
    kubeconfig(layout, "kubelet")?;
    for (name, subject) in CLIENTS {
        certificate(&pki, name, subject, None)?;
        kubeconfig(layout, name)?;
    }
    Ok(())
}

/// A certificate of the authority for servers and clients; `names` are those of a server.
fn certificate(pki: &Path, name: &str, subject: &str, names: Option<&str>) -> Result<()> {
    if pki.join(format!("{name}.crt")).exists() {
        return Ok(());
    }
    let mut command = request(pki, name, subject);
    command.args(["-CA", "ca.crt", "-CAkey", "ca.key"]);
    command.args(["-addext", "basicConstraints=CA:FALSE"]);
    command.args(["-addext", "keyUsage=digitalSignature,keyEncipherment"]);
    command.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
    if let Some(names) = names {
        command.args(["-addext", &format!("subjectAltName={names}")]);
    }
    output(&mut command).map(drop)
}

fn request(pki: &Path, name: &str, subject: &str) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-config", "openssl.cnf", "-nodes", "-days", "3650"]).args(CURVE);
    command.args(["-subj", subject, "-keyout", &format!("{name}.key"), "-out", &format!("{name}.crt")]);
    command.current_dir(pki);
    command
}

fn kubeconfig(layout: &Layout, name: &str) -> Result<()> {
    let pki = layout.text("pki");
    let text = format!(
        r#"apiVersion: v1
kind: Config
clusters: [{{name: cistern, cluster: {{server: "{server}", certificate-authority: "{pki}/ca.crt"}}}}]
users: [{{name: {name}, user: {{client-certificate: "{pki}/{name}.crt", client-key: "{pki}/{name}.key"}}}}]
contexts: [{{name: cistern, context: {{cluster: cistern, user: {name}}}}}]
current-context: cistern
"#,
        server = layout.api()
    );
    Ok(fs::write(layout.path(&format!("{name}.conf")), text)?)
}
