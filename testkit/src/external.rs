//! Real object-store servers on a free port of this machine, for as long as somebody holds them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use crate::tools;

/// How long a server may take until it answers; machines that run tests are busy.
const DEADLINE: Duration = Duration::from_secs(180);

/// A server in a process of its own. It is ended when the last handle is dropped, also by a failing test.
#[derive(Debug)]
pub struct External {
    child: Child,
    address: SocketAddr,
    access_key: &'static str,
    secret_key: &'static str,
    _data: TempDir,
}

/// The running MinIO of this process; started if there is none.
///
/// # Panics
/// If it is not installed (`cargo xtask tools`) or does not start.
pub fn minio() -> Arc<External> {
    static RUNNING: Mutex<Weak<External>> = Mutex::new(Weak::new());
    shared(&RUNNING, || {
        start("/minio/health/ready", "minioadmin", "minioadmin", |data, port| {
            let mut command = Command::new(tools::minio().unwrap_or_else(|missing| panic!("{missing}")));
            command.args(["server", "--quiet", "--address", &format!("127.0.0.1:{port}")]).arg(data);
            command.env("MINIO_ROOT_USER", "minioadmin").env("MINIO_ROOT_PASSWORD", "minioadmin");
            command.env("MINIO_BROWSER", "off").env("MINIO_UPDATE", "off");
            command
        })
    })
}

/// The running moto of this process; started if there is none. It takes any credentials.
///
/// # Panics
/// If it is not installed (`cargo xtask tools`) or does not start.
pub fn moto() -> Arc<External> {
    static RUNNING: Mutex<Weak<External>> = Mutex::new(Weak::new());
    shared(&RUNNING, || {
        start("/moto-api/", "moto", "moto", |_, port| {
            let mut command = Command::new(tools::moto().unwrap_or_else(|missing| panic!("{missing}")));
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            command
        })
    })
}

impl External {
    /// Where it listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The access key that it knows.
    pub fn access_key(&self) -> &str {
        self.access_key
    }

    /// The secret that belongs to the access key.
    pub fn secret_key(&self) -> &str {
        self.secret_key
    }
}

impl Drop for External {
    fn drop(&mut self) {
        // The child leads a group of its own, so that what it started goes with it.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
        let _ = self.child.wait();
    }
}

fn shared(running: &Mutex<Weak<External>>, start: impl FnOnce() -> External) -> Arc<External> {
    let mut running = running.lock().unwrap_or_else(PoisonError::into_inner);
    running.upgrade().unwrap_or_else(|| {
        let started = Arc::new(start());
        *running = Arc::downgrade(&started);
        started
    })
}

fn start(
    ready: &str,
    access_key: &'static str,
    secret_key: &'static str,
    command: impl Fn(&Path, u16) -> Command,
) -> External {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let data = tempfile::tempdir().expect("a directory for the server's data can be made");
        let log = data.path().join("log");
        let output = std::fs::File::create(&log).expect("the server's log can be made");
        let port = free_port().expect("a port is free");
        let mut command = command(&data.path().join("data"), port);
        let streams = (output.try_clone(), Stdio::from(output));
        command.stdin(Stdio::null()).stdout(streams.0.expect("a file can be opened twice")).stderr(streams.1);
        let child = command.process_group(0).spawn().expect("the server can be executed");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = External { child, address, access_key, secret_key, _data: data };
        loop {
            if answers(address, ready) {
                return server;
            }
            if Instant::now() > deadline {
                panic!("the server at {address} did not answer in time: {}", tail(&log));
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                // Most likely somebody else took the port in between: try another.
                let late = Instant::now() + Duration::from_secs(1) > deadline;
                assert!(
                    !late && tail(&log).contains("in use"),
                    "the server ended ({status}): {}",
                    tail(&log)
                );
                break;
            }
            // Nothing announces readiness but the answer itself.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Whether a GET of `path` is answered with 200.
fn answers(address: SocketAddr, path: &str) -> bool {
    let timeout = Duration::from_secs(5);
    let ask = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut line = [0; 12];
        stream.read_exact(&mut line)?;
        Ok(line.ends_with(b" 200"))
    };
    ask().unwrap_or(false)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&text[text.len().saturating_sub(2_000)..]).into_owned()
}
