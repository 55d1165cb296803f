//! A bucket behind any server that speaks S3.
//!
//! Every request goes through [`Inner::attempt`]: sign, send, understand the refusal; and through one of two
//! loops over it, [`Inner::open`] for contents that are streamed and [`Inner::exchange`] for everything else.
//! What a store turns out not to know (checksum headers, conditional creation, batch deletion) is remembered
//! at the first refusal and left out from then on.

pub(crate) mod answer;
mod attributes;
mod config;
mod delete;
pub(crate) mod encode;
#[doc(hidden)]
pub mod fuzzing;
mod list;
mod place;
mod read;
mod retention;
pub(crate) mod sign;
#[cfg(test)]
mod tests;
mod write;
pub(crate) mod xml;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use hyper::body::Incoming;
use jiff::Timestamp;

use crate::credentials::Provider;
use crate::transport::{Connector, Leave, Purpose, Retry, Transport, asked_to_wait, tls_config};
use crate::{
    Attributes, Bucket, Capabilities, Checksums, DeleteOutcome, Entry, Error, ErrorKind, Get, GetOptions,
    Key, Ledger, ListRequest, Page, PartId, Put, PutOptions, Result, Retention, Revision, Tags, Upload, Verb,
};
pub use config::{S3Config, Style};
use encode::percent;
pub use list::parse_listing;
use place::Place;
use sign::{EMPTY_SHA256, Signed, Signer};

/// Objects above this need a multipart upload, and a copy in parts (S3: 5 GiB).
const MAX_PUT: u64 = 5 << 30;
/// A longer path does not fit into a request line; stores end at keys of 1,024 bytes.
const MAX_PATH: usize = 32 * 1024;

/// A handle on a bucket behind an S3 server. Clones share connections, limits and ledger.
#[derive(Clone)]
pub struct S3 {
    inner: Arc<Inner>,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("name", &self.inner.transport.name()).finish_non_exhaustive()
    }
}

struct Inner {
    transport: Transport,
    provider: Provider,
    place: RwLock<Arc<Place>>,
    /// The store takes `x-amz-checksum-…` headers.
    takes_checksums: AtomicBool,
    /// The store takes `If-None-Match: *`.
    takes_create_only: AtomicBool,
    /// The store deletes in batches.
    takes_batches: AtomicBool,
    /// A listing begins behind `start-after`.
    takes_start_after: AtomicBool,
}

/// A request that may go now.
struct Turn<'a> {
    leave: Leave<'a>,
    place: Arc<Place>,
    signer: Option<Arc<Signer>>,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    /// The whole exchange is small.
    Small,
    /// Contents go out, or come in.
    Contents,
    /// The store has work to do.
    Slow,
}

/// A request before it is signed.
#[derive(Clone)]
struct Ask<'a> {
    purpose: Purpose<'a>,
    method: Method,
    /// The object in the path; `None` is the bucket.
    key: Option<&'a Key>,
    /// Encoded and sorted, every name with a `=`.
    query: &'a str,
    headers: HeaderMap,
    body: &'a [Bytes],
    /// The hash of the body, or [`sign::UNSIGNED`].
    payload: &'a str,
    wait: Wait,
    /// Longest answer that is read.
    limit: usize,
}

impl<'a> Ask<'a> {
    fn new(verb: Verb, method: Method, key: Option<&'a Key>) -> Self {
        Ask {
            purpose: Purpose { verb, key },
            method,
            key,
            query: "",
            headers: HeaderMap::new(),
            body: &[],
            payload: EMPTY_SHA256,
            wait: Wait::Small,
            limit: 1 << 20,
        }
    }
}

/// A complete answer.
#[derive(Debug)]
struct Answer {
    headers: HeaderMap,
    body: Bytes,
}

/// Why an attempt failed.
struct Failure {
    error: Error,
    code: String,
    /// The status of the refusal, if it was one.
    status: Option<StatusCode>,
    /// Something was learnt that makes another try at once worthwhile.
    repaired: bool,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure { error, code: String::new(), status: None, repaired: false }
    }
}

/// The tries of one request: those that cost patience and those that follow a repair.
struct Tries<'a> {
    retry: Retry,
    repairs: u32,
    transport: &'a Transport,
}

impl Tries<'_> {
    /// How many tries have failed in a way that leaves open whether the store acted.
    fn failed(&self) -> u32 {
        self.retry.failed()
    }

    async fn again(&mut self, failure: Failure) -> Result<()> {
        if failure.repaired && self.repairs < 3 {
            self.repairs += 1;
            self.transport.ledger().retried();
            return Ok(());
        }
        self.transport.again(&mut self.retry, failure.error).await
    }
}

impl S3 {
    /// Prepares a handle; nothing is asked of the server before the first verb.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for an address, region or certificate that cannot be used.
    pub fn connect(config: S3Config) -> Result<S3> {
        let name = format!("s3://{}", config.bucket);
        let invalid = |what: String| Error::new(ErrorKind::Invalid, Verb::Bucket, name.as_str()).detail(what);
        let place = Place::new(&config).map_err(invalid)?;
        let tls = tls_config(config.ca_pem.as_deref(), config.insecure_tls).map_err(invalid)?;
        let connector = Connector::new(tls, config.timeouts.connect);
        Ok(S3::assemble(name, place, connector, config))
    }

    fn assemble(name: String, place: Place, connector: Connector, config: S3Config) -> S3 {
        let transport = Transport::new(name, connector, config.limits, config.timeouts, config.retry);
        let inner = Inner {
            transport,
            provider: Provider::new(config.credentials),
            place: RwLock::new(Arc::new(place)),
            takes_checksums: AtomicBool::new(true),
            takes_create_only: AtomicBool::new(true),
            takes_batches: AtomicBool::new(true),
            takes_start_after: AtomicBool::new(true),
        };
        S3 { inner: Arc::new(inner) }
    }

    /// The region that requests are signed for; after the first successful request, that of the bucket.
    pub fn region(&self) -> String {
        self.inner.place().region.to_string()
    }
}

impl Inner {
    fn place(&self) -> Arc<Place> {
        self.place.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn error(&self, kind: ErrorKind, verb: Verb, key: Option<&Key>) -> Error {
        self.transport.error(kind, Purpose { verb, key })
    }

    fn tries(&self) -> Tries<'_> {
        Tries { retry: self.transport.tries(), repairs: 0, transport: &self.transport }
    }

    /// Makes a request and gives back the head of a successful answer, trying again as the policy says.
    async fn open(&self, ask: &Ask<'_>) -> Result<Response<Incoming>> {
        let mut tries = self.tries();
        loop {
            match self.attempt(ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// Makes a request and reads the whole of a successful answer, trying again as the policy says.
    async fn exchange(&self, ask: &Ask<'_>) -> Result<Answer> {
        let mut tries = self.tries();
        loop {
            match self.attempt_whole(ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => tries.again(failure).await?,
            }
        }
    }

    /// One attempt at a request with a small answer.
    async fn attempt_whole(&self, ask: &Ask<'_>) -> std::result::Result<Answer, Failure> {
        let wait = self.wait(ask.wait);
        // What is waited for in our own queue is no silence of the store.
        let turn = self.turn().await?;
        let exchange = async {
            let (parts, body) = self.attempt_in(turn, ask).await?.into_parts();
            let body = self.transport.collect(ask.purpose, body, ask.limit, wait).await?;
            Ok(Answer { headers: parts.headers, body })
        };
        if ask.wait != Wait::Small {
            return exchange.await;
        }
        match tokio::time::timeout(wait, exchange).await {
            Ok(answer) => answer,
            Err(_) => {
                let detail = format!("no complete answer within {wait:?}");
                Err(self.transport.error(ErrorKind::Unreachable, ask.purpose).detail(detail).into())
            }
        }
    }

    fn wait(&self, wait: Wait) -> std::time::Duration {
        match wait {
            Wait::Small => self.transport.timeouts.small,
            Wait::Contents => self.transport.timeouts.idle,
            Wait::Slow => self.transport.timeouts.slow,
        }
    }

    /// Waits until a request may go, and for a key to sign it with.
    async fn turn(&self) -> Result<Turn<'_>> {
        let leave = self.transport.turn().await;
        let place = self.place();
        let signer = self.provider.signer(&self.transport, &place.region, Timestamp::now()).await?;
        Ok(Turn { leave, place, signer })
    }

    /// One attempt at a request.
    async fn attempt(&self, ask: &Ask<'_>) -> std::result::Result<Response<Incoming>, Failure> {
        self.attempt_in(self.turn().await?, ask).await
    }

    /// One attempt at a request whose turn it is: signed for now, sent, and its refusal understood.
    async fn attempt_in(
        &self,
        turn: Turn<'_>,
        ask: &Ask<'_>,
    ) -> std::result::Result<Response<Incoming>, Failure> {
        let Turn { leave, place, signer } = turn;
        let now = Timestamp::now();

        let mut target = String::with_capacity(64 + ask.query.len());
        target.push_str(&place.base);
        if let Some(key) = ask.key {
            if key.is_empty() {
                // It would mean the bucket itself.
                let error = self.transport.error(ErrorKind::Invalid, ask.purpose);
                return Err(error.detail("the empty key names no object").into());
            }
            percent(key.as_bytes(), true, &mut target);
            if target.len() > MAX_PATH {
                let error = self.transport.error(ErrorKind::Unsupported, ask.purpose);
                return Err(error.detail("the key does not fit into a request").into());
            }
        }
        let mut headers = ask.headers.clone();
        headers.insert(HOST, place.host.clone());
        if let Some(signer) = &signer {
            let request =
                Signed { method: ask.method.as_str(), path: &target, query: ask.query, payload: ask.payload };
            signer.sign(request, &mut headers, &place.region, now);
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("cistern/", env!("CARGO_PKG_VERSION"))));
        if !ask.query.is_empty() {
            target.push('?');
            target.push_str(ask.query);
        }
        // From parts, since a parser of addresses would resolve `..` and drop empty segments.
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(place.scheme.clone());
        parts.authority = Some(place.authority.clone());
        let path = PathAndQuery::from_maybe_shared(Bytes::from(target)).map_err(|_| {
            // Percent-encoded bytes are a path, but for their number. What a store made too long is its fault.
            let stores = ask.query.contains("continuation-token=") || ask.query.contains("uploadId=");
            let kind = if stores { ErrorKind::BadAnswer } else { ErrorKind::Unsupported };
            self.transport.error(kind, ask.purpose).detail("this is too long for a request")
        })?;
        parts.path_and_query = Some(path);

        let mut request = Request::new(self.transport.body(ask.purpose.verb, ask.body));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path are given");
        *request.headers_mut() = headers;
        let answer = self.transport.open(leave, ask.purpose, request, self.wait(ask.wait)).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        Err(self.refused(ask, &place, signer.as_ref(), answer).await)
    }

    /// Reads a refusal, and learns from it what it can.
    async fn refused(
        &self,
        ask: &Ask<'_>,
        place: &Place,
        signer: Option<&Arc<Signer>>,
        answer: Response<Incoming>,
    ) -> Failure {
        let (parts, body) = answer.into_parts();
        let wait = self.transport.timeouts.idle;
        let body = self.transport.collect_some(ask.purpose, body, answer::MAX_ERROR, wait).await;
        let body = body.map(|(bytes, _)| bytes).unwrap_or_default();
        let mut refusal = answer::refusal(parts.status, &parts.headers, &body);
        if refusal.code == "SignatureDoesNotMatch" && ask.key.is_some_and(|key| key.as_str().is_none()) {
            // Some servers (MinIO) decode the path to text before they verify it, which bytes do not survive.
            refusal.kind = ErrorKind::Unsupported;
            refusal.detail = "the key is not UTF-8".into();
        }
        if parts.status == StatusCode::NOT_FOUND && refusal.code.is_empty() && is_write(ask) {
            // A write needs no object to be there: the server's router does not know such a path (moto).
            refusal.kind = ErrorKind::Unsupported;
        }
        let mut error = self.transport.error(refusal.kind, ask.purpose).detail(&refusal.detail);
        error.retry_after = asked_to_wait(&parts.headers);
        let repaired = self.moved(place, parts.status, &refusal)
            || self.renewed(&refusal.code, signer)
            || self.unlearnt(ask, parts.status, &refusal);
        Failure { error, code: refusal.code, status: Some(parts.status), repaired }
    }

    /// The bucket is in another region: goes on there.
    fn moved(&self, place: &Place, status: StatusCode, refusal: &answer::Refusal) -> bool {
        let elsewhere = status.is_redirection()
            || matches!(
                &*refusal.code,
                "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException"
            )
            || (status == StatusCode::BAD_REQUEST && refusal.code.is_empty());
        let Some(next) = refusal.region.as_deref().filter(|_| elsewhere).and_then(|r| place.moved(r)) else {
            return false;
        };
        tracing::debug!(region = %next.region, "the bucket is in another region");
        *self.place.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        true
    }

    /// The key is no longer valid: gets another one.
    fn renewed(&self, code: &str, used: Option<&Arc<Signer>>) -> bool {
        matches!(code, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired")
            && used.is_some_and(|used| self.provider.forget(used))
    }

    /// The store does not know an extension that this request used: does without from now on. The caller
    /// builds the next try anew, so this says only that one is worthwhile.
    fn unlearnt(&self, ask: &Ask<'_>, status: StatusCode, refusal: &answer::Refusal) -> bool {
        if status != StatusCode::NOT_IMPLEMENTED && status != StatusCode::BAD_REQUEST {
            return false;
        }
        if ask.headers.contains_key(write::CHECKSUM) || ask.headers.contains_key(write::CHECKSUM_ALGORITHM) {
            let about = refusal.detail.to_ascii_lowercase().contains("checksum");
            if (status == StatusCode::NOT_IMPLEMENTED || about) && refusal.kind != ErrorKind::BadAnswer {
                self.takes_checksums.store(false, Relaxed);
                return true;
            }
        }
        if status == StatusCode::NOT_IMPLEMENTED && ask.headers.contains_key(http::header::IF_NONE_MATCH) {
            self.takes_create_only.store(false, Relaxed);
            return true;
        }
        false
    }
}

/// Whether the request creates an object out of nothing.
fn is_write(ask: &Ask<'_>) -> bool {
    let begins = ask.method == Method::POST && ask.query == "uploads=";
    ask.key.is_some() && (begins || (ask.method == Method::PUT && ask.query.is_empty()))
}

#[async_trait]
impl Bucket for S3 {
    fn name(&self) -> &str {
        self.inner.transport.name()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            list_after: self.inner.takes_start_after.load(Relaxed),
            attributes: true,
            tags: true,
            retention: true,
            multipart: true,
            create_only: self.inner.takes_create_only.load(Relaxed),
            copy: true,
            max_put: MAX_PUT,
        }
    }

    fn ledger(&self) -> &Ledger {
        self.inner.transport.ledger()
    }

    async fn probe(&self) -> Result<()> {
        let mut ask = Ask::new(Verb::Bucket, Method::GET, None);
        ask.query = "list-type=2&max-keys=1";
        self.inner.exchange(&ask).await.map(drop)
    }

    async fn create(&self) -> Result<()> {
        write::create_bucket(&self.inner).await
    }

    async fn list(&self, request: &ListRequest) -> Result<Page> {
        list::page(&self.inner, request).await
    }

    async fn head(&self, key: &Key) -> Result<(Entry, Attributes)> {
        read::head(&self.inner, key).await
    }

    async fn get(&self, key: &Key, options: &GetOptions) -> Result<Get> {
        read::get(&self.inner, key, options).await
    }

    async fn checksums(&self, key: &Key, revision: &Revision) -> Result<Checksums> {
        read::checksums(&self.inner, key, revision).await
    }

    async fn put(&self, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
        write::put(&self.inner, key, body, options).await
    }

    async fn begin_upload(&self, key: &Key, options: &PutOptions) -> Result<Upload> {
        write::begin(&self.inner, key, options).await
    }

    async fn upload_part(&self, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId> {
        write::part(&self.inner, upload, number, body).await
    }

    async fn complete_upload(&self, upload: &Upload, parts: &[PartId], options: &PutOptions) -> Result<Put> {
        write::complete(&self.inner, upload, parts, options).await
    }

    async fn abort_upload(&self, upload: &Upload) -> Result<()> {
        write::abort(&self.inner, upload).await
    }

    async fn copy(&self, from: &Key, to: &Key) -> Result<Put> {
        write::copy(&self.inner, from, to).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        delete::one(&self.inner, key).await
    }

    async fn delete_many(&self, keys: &[Key]) -> Vec<DeleteOutcome> {
        delete::many(&self.inner, keys).await
    }

    async fn tags(&self, key: &Key) -> Result<Tags> {
        read::tags(&self.inner, key).await
    }

    async fn retention(&self, key: &Key) -> Result<Option<Retention>> {
        retention::get(&self.inner, key).await
    }

    async fn set_retention(&self, key: &Key, retention: &Retention) -> Result<()> {
        retention::set(&self.inner, key, retention).await
    }
}
