//! Where a test cluster keeps its things, and its names and addresses, which all follow from one number.

use crate::tools::layout::{self, Tool};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

/// What `sockaddr_un` holds, less the closing zero; see unix(7).
const SOCKET_LIMIT: usize = 107;

/// The longest path of a socket below the folder of a cluster.
const LONGEST_SOCKET: &str = "kubelet/plugins_registry/ru.yandex.s3.csi-reg.sock";

/// The port of the API server on the node's address.
pub const API_PORT: u16 = 6443;

/// The port of MinIO on the node's address.
pub const S3_PORT: u16 = 9000;

/// One test cluster, running or not.
pub struct Layout {
    /// All its state.
    pub dir: PathBuf,
    /// Tells clusters of one machine apart: a part of each name and address.
    pub net: u8,
}

impl Layout {
    /// A cluster whose state lies in `dir`, else beside the tools.
    pub fn new(net: u8, dir: Option<&Path>) -> Result<Self> {
        let dir = match dir {
            Some(dir) => dir.to_owned(),
            None => layout::cache_folder()?.join(format!("cluster-{net}")),
        };
        let dir = real(&std::path::absolute(dir)?)?;
        let longest = dir.join(LONGEST_SOCKET).as_os_str().len();
        if longest > SOCKET_LIMIT {
            let spare = longest - SOCKET_LIMIT;
            bail!("{} is {spare} bytes too long for the sockets that lie below it: use --dir", dir.display());
        }
        // It becomes a part of configuration files of four syntaxes.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte);
        if !dir.as_os_str().as_encoded_bytes().iter().all(|byte| plain(*byte)) {
            bail!("{} has other characters than letters, digits and /-_.: use --dir", dir.display());
        }
        Ok(Self { dir, net })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The same as text: `new` has seen to it that it is.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// The name of the node, of the network namespace that it lives in, of its cgroup, and of the
    /// interface through which this machine reaches it.
    pub fn name(&self) -> String {
        format!("cistern-{}", self.net)
    }

    /// The network namespace as a file.
    pub fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(self.name())
    }

    /// The node's address: the API server, MinIO and DNS listen there.
    pub fn node_address(&self) -> String {
        format!("10.98.{}.1", self.net)
    }

    /// This machine's address as pods see it.
    pub fn host_address(&self) -> String {
        format!("10.98.{}.2", self.net)
    }

    pub fn pods(&self) -> String {
        format!("10.244.{}.0/24", self.net)
    }

    pub fn services(&self) -> String {
        format!("10.96.{}.0/24", self.net)
    }

    /// The address of the service `kubernetes.default`.
    pub fn api_service(&self) -> String {
        format!("10.96.{}.1", self.net)
    }

    pub fn api(&self) -> String {
        format!("https://{}:{API_PORT}", self.node_address())
    }

    pub fn s3_endpoint(&self) -> String {
        format!("http://{}:{S3_PORT}", self.node_address())
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path("admin.conf")
    }

    /// containerd's socket.
    pub fn socket(&self) -> String {
        self.text("containerd.sock")
    }
}

/// The path without links, as the kernel lists mounts below it; its end need not exist.
fn real(path: &Path) -> Result<PathBuf> {
    if path.exists() {
        return Ok(path.canonicalize()?);
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(real(parent)?.join(name)),
        _ => bail!("{} is no folder", path.display()),
    }
}

/// A program of Kubernetes.
pub fn kubernetes(name: &str) -> Result<PathBuf> {
    beside(layout::KUBEALL, name)
}

/// A program that lies beside a tool.
fn beside(tool: Tool, name: &str) -> Result<PathBuf> {
    Ok(tool.path()?.with_file_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_an_interface_and_clusters_share_none() {
        let of = |net| Layout::new(net, Some(Path::new("/c"))).expect("a short folder is taken");
        let (one, other) = (of(1), of(254));
        // IFNAMSIZ, less the closing zero.
        assert!(other.name().len() <= 15, "{}", other.name());
        assert_ne!(one.name(), other.name());
        assert_ne!(one.node_address(), other.node_address());
        assert_ne!(one.pods(), other.pods());
        assert_ne!(one.services(), other.services());
    }

    #[test]
    fn a_folder_that_sockets_or_configuration_cannot_bear_is_refused() {
        let long = format!("/{}", "x".repeat(SOCKET_LIMIT - LONGEST_SOCKET.len() - 2));
        assert!(Layout::new(1, Some(Path::new(&long))).is_ok());
        for refused in [long + "x", "/a b".to_owned(), "/a\"b".to_owned(), "/a:b".to_owned()] {
            let error = Layout::new(1, Some(Path::new(&refused))).err().expect("it is refused").to_string();
            assert!(error.contains("--dir"), "{error}");
        }
    }
}
