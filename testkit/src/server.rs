//! An S3 server in this process: the protocol of the s3s crate over our own buckets, with faults on cue.
//!
//! It has its own threads, listens on the loopback interface only, and holds every key that AWS holds:
//! paths are taken as they came over the wire, never normalised.

mod fault;
mod store;
mod wire;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use cistern_bucket::{Bucket, Key, Ledger, LedgerSnapshot, Memory, Verb};
use http::{Method, Request as HttpRequest, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use self::fault::AnswerBody;
pub use self::fault::HttpFault;
use self::store::Store;
use crate::rule::decide;
use crate::{Request, Rule};

/// The region that the server says it is in.
pub const REGION: &str = "us-east-1";

/// Answered requests that are remembered.
const LOG: usize = 1 << 16;

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// What was asked for, as stores count it.
    pub request: Request,
    /// The bucket; empty if it was about all of them.
    pub bucket: String,
    /// The query, as it came.
    pub query: String,
    /// The range that was asked for, as it came.
    pub range: Option<String>,
    /// HTTP status of the answer.
    pub status: u16,
}

/// A running server. It stops when it is dropped.
pub struct Server {
    address: SocketAddr,
    secret_key: String,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    store: Store,
    service: S3Service,
    ledger: Ledger,
    rules: Mutex<Vec<Rule<HttpFault>>>,
    log: Mutex<VecDeque<Seen>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Server {
    /// The access key that the server knows.
    pub const ACCESS_KEY: &'static str = "cistern";

    /// Starts a server on a free port of the loopback interface, with a secret key that nobody knows yet.
    ///
    /// # Errors
    /// If no port or thread can be had.
    pub fn start() -> io::Result<Self> {
        let mut secret = [0; 15];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| io::Error::other("no random bytes"))?;
        let secret_key = hex::encode(secret);
        let store = Store::default();
        let mut builder = S3ServiceBuilder::new(store.clone());
        builder.set_auth(SimpleAuth::from_single(Self::ACCESS_KEY, secret_key.as_str()));
        let shared = Arc::new(Shared {
            store,
            service: builder.build(),
            ledger: Ledger::default(),
            rules: Mutex::default(),
            log: Mutex::default(),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3-server")
            .on_thread_start(|| {
                // s3s logs every refused request as an error; here refusals are what is asked for.
                std::mem::forget(tracing::subscriber::set_default(
                    tracing::subscriber::NoSubscriber::default(),
                ));
            })
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _context = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, shared.clone()));
        Ok(Server { address, secret_key, shared, runtime: Some(runtime) })
    }

    /// Where the server listens, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The secret that belongs to [`ACCESS_KEY`](Self::ACCESS_KEY).
    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// The bucket of this name, to look into or to fill without requests. It is created if there is none.
    ///
    /// # Panics
    /// If something else was mounted under the name.
    pub fn bucket(&self, name: &str) -> Arc<Memory> {
        self.shared.store.memory(name).expect("the bucket is one in memory")
    }

    /// Serves a bucket of any kind under this name (3 to 63 characters, as S3 has it).
    pub fn mount(&self, name: &str, bucket: Arc<dyn Bucket>) {
        self.shared.store.mount(name, bucket, None);
    }

    /// Serves this bucket in memory under this name.
    pub fn mount_memory(&self, name: &str, memory: Arc<Memory>) {
        self.shared.store.mount(name, memory.clone(), Some(memory));
    }

    /// Adds a rule. The first rule that meets a request decides; all rules count it.
    pub fn inject(&self, rule: Rule<HttpFault>) {
        lock(&self.shared.rules).push(rule);
    }

    /// Forgets all rules.
    pub fn heal(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Requests that came in, by kind.
    pub fn counts(&self) -> LedgerSnapshot {
        self.shared.ledger.snapshot()
    }

    /// The last requests that were answered, oldest first (at most 65,536).
    pub fn log(&self) -> Vec<Seen> {
        lock(&self.shared.log).iter().cloned().collect()
    }

    /// Forgets the requests in the log; the counts go on.
    pub fn clear_log(&self) {
        lock(&self.shared.log).clear();
    }

    /// Ends the server and cuts all connections.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // About one connection that is gone already; or about file descriptors that will be free again
                // when others end, which nothing tells, and which asking all the time does not make come sooner.
                let gone = [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset];
                if !gone.contains(&error.kind()) {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                continue;
            }
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let reset = Arc::new(AtomicBool::new(false));
            let connection = Connection { stream, reset: reset.clone() };
            let service = service_fn(move |request| answer(shared.clone(), reset.clone(), request));
            // What ends a connection is the client's business; that it ended, nobody here needs to know.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    reset: Arc<AtomicBool>,
    mut request: HttpRequest<Incoming>,
) -> io::Result<Response<AnswerBody>> {
    let (seen, bucket) = classify(&request);
    shared.ledger.request(seen.verb);
    let fault = decide(&mut lock(&shared.rules), &seen);
    let query = request.uri().query().unwrap_or_default().to_string();
    let range =
        request.headers().get("range").map(|range| String::from_utf8_lossy(range.as_bytes()).into_owned());
    let cut = |reset: &AtomicBool| {
        reset.store(true, Relaxed);
        Err(io::Error::other("the connection is reset on purpose"))
    };
    let answer = match &fault {
        Some(HttpFault::Reset) => return cut(&reset),
        Some(HttpFault::Stall) => std::future::pending().await,
        Some(
            fault @ (HttpFault::Answer { .. } | HttpFault::BareStatus(_) | HttpFault::ErrorBehind200(_)),
        ) => {
            // The body is taken in, or the client would see a broken connection instead of the answer.
            let mut body = request.into_body();
            while let Some(frame) = body.frame().await {
                frame.map_err(io::Error::other)?;
            }
            fault.refusal()
        }
        _ => {
            if let Some(HttpFault::Delay(duration)) = fault {
                tokio::time::sleep(duration).await;
            }
            if let Some(fault) = &fault {
                request.extensions_mut().insert(fault.clone());
            }
            let answer = shared.service.call(request.map(s3s::Body::from)).await.map_err(io::Error::other)?;
            let answer = answer.map(|body| body.boxed_unsync());
            match &fault {
                None => Some(answer),
                Some(HttpFault::LostReset) => return cut(&reset),
                Some(fault) => Some(fault.refusal().unwrap_or_else(|| fault.spoil(answer))),
            }
        }
    };
    let answer = answer.ok_or_else(|| io::Error::other("a refusal has an answer"))?;
    let mut log = lock(&shared.log);
    if log.len() == LOG {
        log.pop_front();
    }
    log.push_back(Seen { request: seen, bucket, query, range, status: answer.status().as_u16() });
    Ok(answer)
}

/// What a request asks for, and of which bucket.
fn classify<B>(request: &HttpRequest<B>) -> (Request, String) {
    let path = request.uri().path();
    // Only the first slash: a key can begin with another.
    let path = path.strip_prefix('/').unwrap_or(path);
    let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
    let query = request.uri().query().unwrap_or_default();
    let parameter = |name: &str| {
        query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).find(|pair| pair.0 == name)
    };
    let has = |name: &str| parameter(name).is_some();
    let method = request.method();
    let write = !matches!(*method, Method::GET | Method::HEAD);
    let verb = match *method {
        _ if has("delete") && key.is_empty() => Verb::Delete,
        Method::GET if key.is_empty() && has("list-type") => Verb::List,
        _ if key.is_empty() => Verb::Bucket,
        _ if has("tagging") => Verb::Tags,
        Method::PUT if has("partNumber") => Verb::Put,
        _ if has("uploads") || has("uploadId") => Verb::Multipart,
        Method::PUT if request.headers().contains_key("x-amz-copy-source") => Verb::Copy,
        Method::PUT => Verb::Put,
        Method::DELETE => Verb::Delete,
        Method::HEAD => Verb::Head,
        Method::GET => Verb::Get,
        _ => Verb::Bucket,
    };
    let key = match (verb, parameter("prefix")) {
        (Verb::List, Some((_, prefix))) => percent_decode_str(&prefix.replace('+', " ")).collect(),
        (Verb::List, None) => Vec::new(),
        _ => percent_decode_str(key).collect(),
    };
    (Request { verb, key: Key::new(key), write }, bucket.to_string())
}

/// A connection that can be ended by a reset instead of in good order.
struct Connection {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.reset.load(Relaxed) {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Relaxed) {
            // No orderly end: the drop that follows sends the reset.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_as_stores_count_them() {
        let verb = |method: &str, target: &str| {
            let request =
                HttpRequest::builder().method(method).uri(format!("http://host{target}")).body(()).unwrap();
            let (seen, bucket) = classify(&request);
            assert_eq!(bucket, if target == "/" { "" } else { "orders" });
            (seen.verb, seen.key.to_string(), seen.write)
        };
        for (method, target, expected) in [
            ("GET", "/", (Verb::Bucket, "", false)),
            ("GET", "/orders?list-type=2&prefix=a%2Fb+c", (Verb::List, "a/b c", false)),
            ("GET", "/orders/?list-type=2", (Verb::List, "", false)),
            ("HEAD", "/orders", (Verb::Bucket, "", false)),
            ("POST", "/orders?delete", (Verb::Delete, "", true)),
            ("GET", "/orders//a%2Fb/../c", (Verb::Get, "/a/b/../c", false)),
            ("GET", "/orders/a?tagging", (Verb::Tags, "a", false)),
            ("PUT", "/orders/a?tagging=", (Verb::Tags, "a", true)),
            ("PUT", "/orders/a", (Verb::Put, "a", true)),
            ("PUT", "/orders/a?partNumber=1&uploadId=x", (Verb::Put, "a", true)),
            ("POST", "/orders/a?uploads", (Verb::Multipart, "a", true)),
            ("DELETE", "/orders/a?uploadId=x", (Verb::Multipart, "a", true)),
            ("DELETE", "/orders/a", (Verb::Delete, "a", true)),
        ] {
            assert_eq!(
                verb(method, target),
                (expected.0, expected.1.to_string(), expected.2),
                "{method} {target}"
            );
        }
    }
}
