//! Reading objects: heads, tags, and contents that go on where a connection broke off.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, IF_MATCH, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use super::xml::{Node, walk};
use super::{Ask, Inner, Wait, attributes};
use crate::transport::{Purpose, Retry, chain};
use crate::{
    Attributes, Body, Checksums, Entry, Error, ErrorKind, Get, GetOptions, Key, Result, Revision, Tags, Verb,
};

const CHECKSUM_MODE: HeaderName = HeaderName::from_static("x-amz-checksum-mode");
const ENABLED: HeaderValue = HeaderValue::from_static("ENABLED");
const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// The description of an object.
pub(super) async fn head(inner: &Inner, key: &Key) -> Result<(Entry, Attributes)> {
    let headers = headers_of(inner, &Ask::new(Verb::Head, Method::HEAD, Some(key)), key).await?;
    let size = length(&headers).ok_or("the answer lacks Content-Length");
    let attributes = attributes::read(&headers);
    let entry = size.map_err(String::from);
    let entry = entry.and_then(|size| attributes::entry(key, size, &headers, attributes.class.as_deref()));
    match entry {
        Ok(entry) => Ok((entry, attributes)),
        Err(what) => Err(inner.error(ErrorKind::BadAnswer, Verb::Head, Some(key)).detail(what)),
    }
}

/// The checksums of a whole object in the state `revision`.
pub(super) async fn checksums(inner: &Inner, key: &Key, revision: &Revision) -> Result<Checksums> {
    let mut ask = Ask::new(Verb::Head, Method::HEAD, Some(key));
    ask.headers.insert(CHECKSUM_MODE, ENABLED);
    pin(inner, &mut ask, key, Some(revision))?;
    let headers = headers_of(inner, &ask, key).await?;
    still(inner, Verb::Head, key, Some(revision), &attributes::revision(&headers))?;
    Ok(attributes::checksums(&headers))
}

/// The head of the answer to a HEAD.
async fn headers_of(inner: &Inner, ask: &Ask<'_>, key: &Key) -> Result<HeaderMap> {
    let error = match inner.exchange(ask).await {
        Ok(answer) => return Ok(answer.headers),
        Err(error) if error.kind == ErrorKind::Invalid => error,
        Err(error) => return Err(error),
    };
    // The answer to a HEAD has no body, so a 400 says nothing: the reason is had by reading a byte.
    let options = GetOptions { range: Some(0..1), revision: None };
    match get_once(inner, key, &options).await {
        Err(reason) if reason.kind != ErrorKind::Invalid => Err(reason),
        Err(_) => Err(error),
        // It was a key that had expired, and reading got another one.
        Ok(_) => inner.exchange(ask).await.map(|answer| answer.headers),
    }
}

/// Asks only for the state `revision`.
fn pin(inner: &Inner, ask: &mut Ask<'_>, key: &Key, revision: Option<&Revision>) -> Result<()> {
    let verb = ask.purpose.verb;
    if let Some(Revision::Generation { .. }) = revision {
        // A state of another kind of store is none of ours.
        return Err(inner.error(ErrorKind::PreconditionFailed, verb, Some(key)));
    }
    if let Some(tag) = revision.and_then(Revision::etag) {
        let value = HeaderValue::try_from(format!("\"{tag}\"")).map_err(|_| {
            inner.error(ErrorKind::Invalid, verb, Some(key)).detail("the entity tag fits no header")
        })?;
        ask.headers.insert(IF_MATCH, value);
    }
    Ok(())
}

/// Refuses an answer about another state than was asked for: the store ignored the condition.
fn still(inner: &Inner, verb: Verb, key: &Key, wanted: Option<&Revision>, found: &Revision) -> Result<()> {
    match (wanted.and_then(Revision::etag), found.etag()) {
        (Some(wanted), Some(found)) if wanted != found => {
            Err(inner.error(ErrorKind::PreconditionFailed, verb, Some(key)))
        }
        _ => Ok(()),
    }
}

/// The tags of an object.
pub(super) async fn tags(inner: &Inner, key: &Key) -> Result<Tags> {
    let mut ask = Ask::new(Verb::Tags, Method::GET, Some(key));
    ask.query = "tagging=";
    let mut tries = inner.tries();
    loop {
        let failure = match inner.attempt_whole(&ask).await {
            Ok(answer) => match parse_tags(&answer.body) {
                Ok(tags) => return Ok(tags),
                Err(what) => inner.error(ErrorKind::BadAnswer, Verb::Tags, Some(key)).detail(what).into(),
            },
            // How some stores say "none".
            Err(failure) if failure.code == "NoSuchTagSet" => return Ok(Tags::new()),
            Err(failure) => failure,
        };
        tries.again(failure).await?;
    }
}

pub(super) fn parse_tags(xml: &[u8]) -> Result<Tags, String> {
    let mut tags = Tags::new();
    let (mut name, mut value) = (None, None);
    walk(xml, |node| {
        match node {
            Node::Leaf { path: ["Tagging", "TagSet", "Tag", "Key"], text } => name = Some(text.into_owned()),
            Node::Leaf { path: ["Tagging", "TagSet", "Tag", "Value"], text } => {
                value = Some(text.into_owned());
            }
            Node::End { path: ["Tagging", "TagSet", "Tag"] } => {
                let name = name.take().ok_or("a tag has no name")?;
                tags.insert(name, value.take().unwrap_or_default());
            }
            Node::End { path: [root] } | Node::Leaf { path: [root], .. } if *root != "Tagging" => {
                return Err("the answer is no set of tags".into());
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(tags)
}

/// Contents of an object, resumed where the connection breaks off.
pub(super) async fn get(inner: &Arc<Inner>, key: &Key, options: &GetOptions) -> Result<Get> {
    let opened = get_once(inner, key, options).await?;
    let revision = match opened.entry.revision.clone() {
        Revision::Unknown => None,
        known => Some(known),
    };
    let length = opened.end - opened.start;
    let stream = Contents {
        inner: inner.clone(),
        key: key.clone(),
        revision,
        at: opened.start,
        end: opened.end,
        state: State::Reading(opened.body),
        progress: opened.start,
        retry: None,
        idle: None,
        waiting: false,
        pause: None,
    };
    Ok(Get {
        entry: opened.entry,
        attributes: opened.attributes,
        body: Body::new(length, stream.boxed()),
        checksums: opened.checksums,
    })
}

struct Opened {
    entry: Entry,
    attributes: Attributes,
    checksums: Checksums,
    body: Incoming,
    /// What the body yields, as positions within the object.
    start: u64,
    end: u64,
}

/// Opens an object for reading; the loop of tries covers the head of the answer.
async fn get_once(inner: &Inner, key: &Key, options: &GetOptions) -> Result<Opened> {
    let bad = |what: &str| inner.error(ErrorKind::BadAnswer, Verb::Get, Some(key)).detail(what);
    let mut ask = Ask::new(Verb::Get, Method::GET, Some(key));
    ask.wait = Wait::Contents;
    ask.headers = HeaderMap::with_capacity(12);
    ask.headers.insert(ACCEPT_ENCODING, IDENTITY);
    if let Some(range) = &options.range {
        if range.start >= range.end {
            return Err(inner.error(ErrorKind::Invalid, Verb::Get, Some(key)).detail("the range is empty"));
        }
        let value = format!("bytes={}-{}", range.start, range.end - 1);
        ask.headers.insert(RANGE, HeaderValue::try_from(value).expect("digits"));
    } else {
        ask.headers.insert(CHECKSUM_MODE, ENABLED);
    }
    pin(inner, &mut ask, key, options.revision.as_ref())?;
    let (parts, body) = inner.open(&ask).await?.into_parts();
    let headers = parts.headers;
    let length = length(&headers).ok_or_else(|| bad("the answer lacks Content-Length"))?;
    let (start, end, size) = match (&options.range, parts.status) {
        (None, StatusCode::OK) => (0, length, length),
        (Some(range), StatusCode::PARTIAL_CONTENT) => {
            let (start, end, size) =
                content_range(&headers).ok_or_else(|| bad("Content-Range is missing or makes no sense"))?;
            if start != range.start || end != range.end.min(size) || end - start != length {
                return Err(bad("another range was sent than was asked for"));
            }
            (start, end, size)
        }
        // A range that is the whole may be answered as such.
        (Some(range), StatusCode::OK) if range.start == 0 && range.end >= length => (0, length, length),
        (Some(_), StatusCode::OK) => return Err(bad("the store ignores ranges")),
        (_, status) => return Err(bad(&format!("HTTP {status}"))),
    };
    let attributes = attributes::read(&headers);
    let entry = attributes::entry(key, size, &headers, attributes.class.as_deref()).map_err(|e| bad(&e))?;
    still(inner, Verb::Get, key, options.revision.as_ref(), &entry.revision)?;
    let checksums = match options.range {
        None => attributes::checksums(&headers),
        Some(_) => attributes::tag_checksum(&headers),
    };
    Ok(Opened { entry, attributes, checksums, body, start, end })
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// `bytes a-b/size` as a half-open range and the size.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (range, size) = text.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (first, last + 1, size))
}

/// Bytes after which a body counts as getting on, and its tries are counted anew: a store that breaks off after a few
/// bytes each time would be asked for ever.
const PROGRESS: u64 = 64 << 10;

/// The contents of an object as a stream that survives broken connections.
struct Contents {
    inner: Arc<Inner>,
    key: Key,
    revision: Option<Revision>,
    /// Position of the next byte within the object.
    at: u64,
    end: u64,
    state: State,
    /// Where the tries were counted anew.
    progress: u64,
    /// The tries since `PROGRESS` bytes arrived.
    retry: Option<Retry>,
    idle: Option<Pin<Box<Sleep>>>,
    /// Whether `idle` runs: the time in which nobody asks for bytes does not count.
    waiting: bool,
    /// Until when the limits ask to wait.
    pause: Option<Pin<Box<Sleep>>>,
}

enum State {
    Reading(Incoming),
    Resuming(BoxFuture<'static, (Retry, Result<Incoming>)>),
    Over,
}

impl Contents {
    /// Goes on behind the last byte that arrived, if the same state of the object can be asked for.
    fn resume(&mut self, what: &str) {
        let purpose = Purpose { verb: Verb::Get, key: Some(&self.key) };
        let error = self.inner.transport.error(ErrorKind::Unreachable, purpose).detail(what);
        let (inner, key, range) = (self.inner.clone(), self.key.clone(), self.at..self.end);
        let revision = self.revision.clone();
        let mut retry = self.retry.take().unwrap_or_else(|| self.inner.transport.tries());
        self.state = State::Resuming(
            async move {
                if revision.is_none() {
                    return (retry, Err(error));
                }
                if let Err(error) = inner.transport.again(&mut retry, error).await {
                    return (retry, Err(error));
                }
                let options = GetOptions { range: Some(range.clone()), revision };
                let body = match get_once(&inner, &key, &options).await {
                    Ok(opened) if (opened.start, opened.end) == (range.start, range.end) => Ok(opened.body),
                    Ok(_) => Err(inner
                        .error(ErrorKind::BadAnswer, Verb::Get, Some(&key))
                        .detail("the object has another size than before")),
                    Err(error) => Err(error),
                };
                (retry, body)
            }
            .boxed(),
        );
    }

    fn end_with(&mut self, error: Error) -> Poll<Option<Result<Bytes>>> {
        self.state = State::Over;
        Poll::Ready(Some(Err(error)))
    }

    /// Takes bytes that arrived.
    fn take(&mut self, bytes: Bytes) -> Poll<Option<Result<Bytes>>> {
        self.waiting = false;
        let length = bytes.len() as u64;
        if length > self.end - self.at {
            let error = self.inner.error(ErrorKind::BadAnswer, Verb::Get, Some(&self.key));
            return self.end_with(error.detail("more bytes were sent than announced"));
        }
        self.at += length;
        if self.at - self.progress >= PROGRESS {
            (self.progress, self.retry) = (self.at, None);
        }
        if let Some(then) = self.inner.transport.received(length)
            && then > Instant::now()
        {
            self.pause = Some(Box::pin(tokio::time::sleep_until(then)));
        }
        Poll::Ready(Some(Ok(bytes)))
    }

    /// Whether nothing has arrived for too long, since somebody waits for it.
    fn stalled(&mut self, cx: &mut Context<'_>) -> bool {
        let wait = self.inner.transport.timeouts.idle;
        let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        if !self.waiting {
            idle.as_mut().reset(Instant::now() + wait);
            self.waiting = true;
        }
        idle.as_mut().poll(cx).is_ready()
    }
}

impl Stream for Contents {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        let this = &mut *self;
        if let Some(pause) = &mut this.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        loop {
            match &mut this.state {
                State::Over => return Poll::Ready(None),
                State::Resuming(future) => {
                    let (retry, body) = std::task::ready!(future.as_mut().poll(cx));
                    this.retry = Some(retry);
                    match body {
                        Ok(body) => {
                            this.waiting = false;
                            this.state = State::Reading(body);
                        }
                        Err(error) => return this.end_with(error),
                    }
                }
                State::Reading(body) => match Pin::new(body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(bytes) if bytes.is_empty() => {}
                        Ok(bytes) => return this.take(bytes),
                        Err(_trailers) => {}
                    },
                    Poll::Ready(None) if this.at == this.end => {
                        this.state = State::Over;
                        return Poll::Ready(None);
                    }
                    Poll::Ready(None) => this.resume("the contents ended early"),
                    Poll::Ready(Some(Err(error))) => {
                        this.resume(&format!("the contents broke off: {}", chain(&error)));
                    }
                    Poll::Pending => {
                        if !this.stalled(cx) {
                            return Poll::Pending;
                        }
                        let wait = this.inner.transport.timeouts.idle;
                        this.resume(&format!("the contents stopped for {wait:?}"));
                    }
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_or_refused() {
        let table = [
            ("bytes 0-9/10", Some((0, 10, 10))),
            ("bytes 5-5/10", Some((5, 6, 10))),
            ("bytes 5-4/10", None),
            ("bytes 0-10/10", None),
            ("bytes 0-9/*", None),
            ("bytes */10", None),
            ("bytes 0-18446744073709551615/18446744073709551615", None),
            ("0-9/10", None),
        ];
        for (text, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            assert_eq!(content_range(&headers), expected, "{text}");
        }
    }

    #[test]
    fn tags_are_read() {
        let xml = b"<Tagging><TagSet><Tag><Key>a &amp; b</Key><Value/></Tag><Tag><Key>c</Key><Value>d</Value></Tag></TagSet></Tagging>";
        let expected: Tags = [("a & b", ""), ("c", "d")].map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(parse_tags(xml).unwrap(), expected);
        assert_eq!(parse_tags(b"<Tagging><TagSet/></Tagging>").unwrap(), Tags::new());
        assert!(parse_tags(b"<Tagging><TagSet><Tag><Value>d</Value></Tag></TagSet></Tagging>").is_err());
        assert!(parse_tags(b"<html/>").is_err());
    }
}
