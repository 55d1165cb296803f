//! The object store of a test cluster: MinIO on the node's address, with credentials of its own.

use super::daemon::{Daemon, wait_for};
use super::layout::{Layout, S3_PORT};
use crate::tools::layout::minio;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// The name of the program among the cluster's.
pub const DAEMON: &str = "minio";

/// The file that tests read. It is written once, before MinIO's first start.
#[derive(Serialize, Deserialize)]
pub struct Credentials {
    pub endpoint: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
}

/// Where the credentials lie; only the owner reads them.
pub fn file(layout: &Layout) -> PathBuf {
    layout.path("s3.json")
}

/// Starts MinIO and returns its credentials.
pub fn up(layout: &Layout) -> Result<Credentials> {
    let credentials = credentials(layout)?;
    let data = layout.path("minio");
    fs::create_dir_all(&data)?;
    let address = format!("{}:{S3_PORT}", layout.node_address());
    let command = [minio()?.to_string_lossy().as_ref(), "server", "--quiet", "--address", &address]
        .map(str::to_owned)
        .into_iter()
        .chain([data.to_string_lossy().into_owned()]);
    let daemon = Daemon::new(layout, DAEMON);
    daemon.start(
        &command.collect::<Vec<_>>(),
        &[
            ("HOME", &layout.dir.to_string_lossy()),
            ("MINIO_ROOT_USER", &credentials.access_key),
            ("MINIO_ROOT_PASSWORD", &credentials.secret_key),
            ("MINIO_BROWSER", "off"),
            ("MINIO_UPDATE", "off"),
        ],
    )?;
    let address = SocketAddr::new(layout.node_address().parse::<IpAddr>()?, S3_PORT);
    wait_for("MinIO", Duration::from_secs(180), &[daemon], || ready(address).unwrap_or(false))?;
    Ok(credentials)
}

/// Ends MinIO.
pub fn down(layout: &Layout) -> Result<()> {
    Daemon::new(layout, DAEMON).stop(Duration::from_secs(5))
}

fn credentials(layout: &Layout) -> Result<Credentials> {
    let file = file(layout);
    if let Ok(text) = fs::read(&file) {
        return serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display()));
    }
    let mut random = [0; 20];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let credentials = Credentials {
        endpoint: layout.s3_endpoint(),
        region: "us-east-1".to_owned(),
        access_key: "cistern".to_owned(),
        secret_key: hex::encode(random),
    };
    let new = file.with_extension("new");
    let mut output = File::options().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    serde_json::to_writer_pretty(&mut output, &credentials)?;
    output.write_all(b"\n")?;
    fs::rename(new, file)?;
    Ok(credentials)
}

/// Whether the server says that it serves; see MinIO's healthcheck API.
fn ready(address: SocketAddr) -> Result<bool> {
    let timeout = Duration::from_secs(5);
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET /minio/health/ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    Ok(line.ends_with(b" 200"))
}
