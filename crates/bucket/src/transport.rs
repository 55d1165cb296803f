//! Carries requests to a store and answers back, under limits and time-outs, and counts them.
//!
//! One call is one request: the tries of a request are the loop of its owner over [`Retry`], because only
//! the owner knows how to sign it again, and where an interrupted body goes on.

mod body;
mod connect;
mod limit;
mod retry;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use body::Progress;
pub(crate) use body::RequestBody;
pub(crate) use connect::{Connector, chain, tls_config};
pub(crate) use limit::Leave;
pub use limit::Limits;
use limit::{Concurrency, Pace};
pub use retry::RetryPolicy;
pub(crate) use retry::{Retry, retry_after};

use crate::{Error, ErrorKind, Key, Ledger, Result, Verb};

/// How long silence is tolerated before a request counts as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Between two signs of life while contents are sent or received.
    pub idle: Duration,
    /// For the whole of a request that carries no contents, such as a page of a listing.
    pub small: Duration,
    /// Until the first sign of life of an answer that takes the store work: copies, completed uploads.
    pub slow: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            small: Duration::from_secs(120),
            slow: Duration::from_secs(600),
        }
    }
}

/// What a request is for; it becomes part of its errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purpose<'a> {
    /// The kind that is counted.
    pub verb: Verb,
    /// The object, if one is meant.
    pub key: Option<&'a Key>,
}

/// Carries the requests of one bucket handle.
#[derive(Debug)]
pub(crate) struct Transport {
    name: Box<str>,
    client: legacy::Client<Connector, RequestBody>,
    concurrency: Concurrency,
    requests: Option<Pace>,
    bytes: Option<Arc<Pace>>,
    pub(crate) timeouts: Timeouts,
    retry: RetryPolicy,
    ledger: Arc<Ledger>,
    /// Whether the store has ever answered.
    known: AtomicBool,
}

impl Transport {
    /// Carries requests for the bucket shown as `name` over connections from `connector`.
    pub(crate) fn new(
        name: impl Into<Box<str>>,
        connector: Connector,
        limits: Limits,
        timeouts: Timeouts,
        retry: RetryPolicy,
    ) -> Self {
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            // Servers close idle connections after 5 s (Node) to 2 min; a request on a dying one is lost.
            .pool_idle_timeout(Duration::from_secs(20))
            // User metadata is up to 2 KiB of name-value pairs, each of which is a header.
            .http1_max_headers(1_024)
            .build(connector);
        let requests = limits.requests_per_second.map(|rate| Pace::new(rate, Duration::from_millis(100)));
        let bytes =
            limits.bytes_per_second.map(|rate| Arc::new(Pace::new(rate as f64, Duration::from_millis(100))));
        Transport {
            name: name.into(),
            client,
            concurrency: Concurrency::new(limits.max_concurrency),
            requests,
            bytes,
            timeouts,
            retry,
            ledger: Arc::default(),
            known: AtomicBool::new(false),
        }
    }

    /// The bucket as a person names it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The counts.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The tries of one request, beginning now.
    pub(crate) fn tries(&self) -> Retry {
        Retry::new(self.retry)
    }

    /// Waits until the next of `tries`, or gives the error back.
    pub(crate) async fn again(&self, tries: &mut Retry, error: Error) -> Result<()> {
        tries.again(error, &self.ledger, self.known.load(Relaxed)).await
    }

    /// A body for a request; contents are paced as the limits say.
    pub(crate) fn body(&self, verb: Verb, pieces: &[Bytes]) -> RequestBody {
        let pace = self.bytes.clone().filter(|_| verb == Verb::Put);
        RequestBody::new(pieces, pace)
    }

    /// Waits until another request may go to the store.
    pub(crate) async fn turn(&self) -> Leave<'_> {
        let leave = self.concurrency.enter().await;
        if let Some(pace) = &self.requests {
            pace.wait(1).await;
        }
        leave
    }

    /// An error about `purpose`.
    pub(crate) fn error(&self, kind: ErrorKind, purpose: Purpose<'_>) -> Error {
        let error = Error::new(kind, purpose.verb, &*self.name);
        match purpose.key {
            Some(key) => error.key(key),
            None => error,
        }
    }

    /// Makes one request to the store, whose [`turn`](Self::turn) it is, and waits for the head of its answer,
    /// whatever its status.
    ///
    /// `wait` bounds the silence between the last byte that was taken from the body and the answer.
    ///
    /// # Errors
    /// [`ErrorKind::Unreachable`], and [`ErrorKind::Invalid`] for a certificate that is not accepted.
    pub(crate) async fn open(
        &self,
        leave: Leave<'_>,
        purpose: Purpose<'_>,
        request: Request<RequestBody>,
        wait: Duration,
    ) -> Result<Response<Incoming>> {
        let answer = self.send(purpose, request, wait).await?;
        if !self.known.load(Relaxed) {
            self.known.store(true, Relaxed);
        }
        match answer.status() {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                self.ledger.throttled();
                leave.throttled();
            }
            _ => leave.good(),
        }
        Ok(answer)
    }

    /// As [`open`](Self::open) for another server than the store: neither waits for a turn nor says anything about
    /// what the store can bear.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) async fn send(
        &self,
        purpose: Purpose<'_>,
        mut request: Request<RequestBody>,
        wait: Duration,
    ) -> Result<Response<Incoming>> {
        if matches!(*request.method(), Method::PUT | Method::POST) && request.body().is_end_stream() {
            // Servers refuse such a request without a length, and an empty body has none by itself.
            request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        self.ledger.request(purpose.verb);
        let progress = request.body().progress();
        let answer = watched(self.client.request(request), wait, progress.as_deref()).await;
        if let (Some(progress), Verb::Put) = (progress, purpose.verb) {
            self.ledger.sent(progress.sent());
        }
        match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(self.unreachable(purpose, error)),
            None => {
                let detail = format!("no answer within {wait:?}");
                Err(self.error(ErrorKind::Unreachable, purpose).detail(detail))
            }
        }
    }

    fn unreachable(&self, purpose: Purpose<'_>, error: legacy::Error) -> Error {
        use std::error::Error as _;
        let cause = error.source().and_then(|e| e.downcast_ref::<connect::ConnectError>());
        match cause {
            // Trying again would meet the same certificate: the configuration is to be changed.
            Some(refused @ connect::ConnectError::Certificate(_)) => {
                self.error(ErrorKind::Invalid, purpose).detail(refused.to_string())
            }
            Some(other) => self.error(ErrorKind::Unreachable, purpose).detail(other.to_string()),
            None => self.error(ErrorKind::Unreachable, purpose).detail(chain(&error)),
        }
    }

    /// Reads a whole answer of at most `limit` bytes; object contents are read elsewhere.
    ///
    /// # Errors
    /// [`ErrorKind::BadAnswer`] for more than `limit`, [`ErrorKind::Unreachable`] when it breaks off.
    pub(crate) async fn collect(
        &self,
        purpose: Purpose<'_>,
        body: Incoming,
        limit: usize,
        wait: Duration,
    ) -> Result<Bytes> {
        let (bytes, whole) = self.collect_some(purpose, body, limit, wait).await?;
        if whole {
            return Ok(bytes);
        }
        let detail = format!("the answer is longer than {limit} bytes");
        Err(self.error(ErrorKind::BadAnswer, purpose).detail(detail))
    }

    /// Reads at most about `limit` bytes of an answer, and says whether that was all.
    pub(crate) async fn collect_some(
        &self,
        purpose: Purpose<'_>,
        mut body: Incoming,
        limit: usize,
        wait: Duration,
    ) -> Result<(Bytes, bool)> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        loop {
            let frame = match watched(body.frame(), wait, None).await {
                None => {
                    let detail = format!("the answer stopped for {wait:?}");
                    return Err(self.error(ErrorKind::Unreachable, purpose).detail(detail));
                }
                Some(Some(Err(error))) => {
                    let detail = format!("the answer broke off: {}", chain(&error));
                    return Err(self.error(ErrorKind::Unreachable, purpose).detail(detail));
                }
                Some(None) => break,
                Some(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            if first.len() + all.len() + data.len() > limit {
                let rest = limit.saturating_sub(first.len() + all.len());
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data[..rest]);
                return Ok((all.freeze(), false));
            }
            // Most answers are one piece, which need not be copied.
            if first.is_empty() && all.is_empty() {
                first = data;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        Ok((if all.is_empty() { first } else { all.freeze() }, true))
    }

    /// Counts contents that were received, and waits as long as the limits ask for.
    pub(crate) fn received(&self, bytes: u64) -> Option<Instant> {
        self.ledger.received(bytes);
        self.bytes.as_ref().map(|pace| pace.book(bytes))
    }
}

/// How long the store asks to wait, by the head of its answer.
pub(crate) fn asked_to_wait(headers: &http::HeaderMap) -> Option<Duration> {
    retry_after(headers.get(RETRY_AFTER)?.as_bytes(), SystemTime::now())
}

/// Waits for `future` as long as it shows signs of life: within any `wait`, it ends, `progress` moves, or our own
/// limits hold it back.
async fn watched<F: Future>(future: F, wait: Duration, progress: Option<&Progress>) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut seen = 0;
    loop {
        let began = Instant::now();
        if let Ok(output) = tokio::time::timeout(wait, &mut future).await {
            return Some(output);
        }
        let now = progress.map_or(0, Progress::sent);
        if now == seen && !progress.is_some_and(|progress| progress.was_paused_since(began)) {
            return None;
        }
        seen = now;
    }
}
