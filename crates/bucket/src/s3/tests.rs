//! Behaviour of the S3 bucket against servers that misbehave, over pipes and under paused time: what takes
//! minutes of waiting in the world takes none here.

mod access;
mod reading;
mod servers;
mod writing;

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::transport::Connector;
use crate::{Credentials, LedgerSnapshot};

/// A request as the server saw it.
#[derive(Clone, Debug)]
struct Seen {
    /// `GET /b/k?x=y`
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// What the server does with a request.
enum Reply {
    /// A complete answer; the connection stays.
    Answer(Vec<u8>),
    /// Bytes, and the connection ends.
    Cut(Vec<u8>),
    /// Bytes, and nothing more for ever.
    Stall(Vec<u8>),
}

/// An answer with a length.
fn answer(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Reply {
    Reply::Answer(raw(status, headers, body.as_ref()))
}

fn raw(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} X\r\n");
    if !headers.iter().any(|(name, _)| *name == "content-length") {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

fn error(status: u16, code: &str) -> Reply {
    answer(status, &[], format!("<Error><Code>{code}</Code><Message>words</Message></Error>"))
}

const MODIFIED: (&str, &str) = ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT");
const TAG: (&str, &str) = ("etag", "\"t1\"");

type Handler = dyn Fn(usize, &Seen) -> Reply + Send + Sync;

/// A bucket whose server is a function of the number of the request, from 0, and the request.
struct World {
    bucket: S3,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl World {
    fn new(handler: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        let mut config = S3Config::new("b");
        config.endpoint = Some("http://store".parse().unwrap());
        config.credentials = Credentials::fixed("id", "hunter2");
        World::with(config, handler)
    }

    fn with(config: S3Config, handler: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let handler: Arc<Handler> = Arc::new(handler);
        let mut connector = Connector::new(tls_config(None, false).unwrap(), config.timeouts.connect);
        let shared = seen.clone();
        connector.fake = Some(Arc::new(move || {
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            tokio::spawn(serve(ours, handler.clone(), shared.clone()));
            theirs
        }));
        let place = Place::new(&config).unwrap();
        World { bucket: S3::assemble("s3://b".into(), place, connector, config), seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.line).collect()
    }

    fn counts(&self) -> LedgerSnapshot {
        self.bucket.ledger().snapshot()
    }
}

async fn serve(mut pipe: DuplexStream, handler: Arc<Handler>, seen: Arc<Mutex<Vec<Seen>>>) -> Option<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            (pipe.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let mut lines = head.lines();
        let line = lines.next()?.strip_suffix(" HTTP/1.1")?.to_owned();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": ").map(|(n, v)| (n.to_lowercase(), v.to_owned())))
            .collect();
        let length =
            headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
        buffer.drain(..end);
        while buffer.len() < length {
            (pipe.read_buf(&mut buffer).await.ok()? > 0).then_some(())?;
        }
        let request = Seen { line, headers, body: buffer.drain(..length).collect() };
        let number = {
            let mut all = seen.lock().unwrap();
            all.push(request.clone());
            all.len() - 1
        };
        match handler(number, &request) {
            Reply::Answer(bytes) => pipe.write_all(&bytes).await.ok()?,
            Reply::Cut(bytes) => return pipe.write_all(&bytes).await.ok(),
            Reply::Stall(bytes) => {
                pipe.write_all(&bytes).await.ok()?;
                std::future::pending::<()>().await;
            }
        }
    }
}
