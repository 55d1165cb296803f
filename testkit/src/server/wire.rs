//! Between our words for objects and errors and those of the S3 protocol.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cistern_bucket::{Attributes, Body, Entry, Error, ErrorKind, Key, Revision, Tags, Verb};
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue};
use http_body_util::StreamBody;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use s3s::dto::{self, ETag, StreamingBlob, Tag};
use s3s::{S3Error, S3ErrorCode, S3Result};

/// What AWS stores with an object that was put without a media type.
const NO_TYPE: &str = "binary/octet-stream";

/// What `encoding-type=url` leaves as it is; a space becomes `+`, as in forms.
const LISTED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b'*')
    .remove(b' ');

/// A key as a listing with `encoding-type=url` shows it.
pub(super) fn listed(key: &[u8]) -> String {
    percent_encode(key, LISTED).to_string().replace(' ', "+")
}

/// A key as text; what is no UTF-8 cannot have come in through this server.
pub(super) fn text(key: &Key) -> String {
    String::from_utf8_lossy(key.as_bytes()).into_owned()
}

/// A time as the protocol has it.
pub(super) fn time(time: Timestamp) -> dto::Timestamp {
    let since = Duration::try_from(time.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default();
    (SystemTime::UNIX_EPOCH + since).into()
}

/// The entity tag of an object.
pub(super) fn etag(revision: &Revision) -> Option<ETag> {
    revision.etag().map(|tag| ETag::Strong(tag.to_string()))
}

/// Tags of a request or from an object.
pub(super) fn tags(set: Vec<Tag>) -> Tags {
    set.into_iter().map(|tag| (tag.key.unwrap_or_default(), tag.value.unwrap_or_default())).collect()
}

/// Tags of an answer.
pub(super) fn tag_set(tags: Tags) -> Vec<Tag> {
    tags.into_iter().map(|(key, value)| Tag { key: Some(key), value: Some(value) }).collect()
}

/// Attributes of an object that is about to be written.
pub(super) fn attributes(
    headers: &HeaderMap,
    tagging: Option<&str>,
    meta: Option<dto::Metadata>,
) -> Attributes {
    let get =
        |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let encoding = get("content-encoding").map(|encodings| {
        // How the body of this one request travelled is nothing that is stored.
        let stored = encodings.split(',').map(str::trim).filter(|encoding| *encoding != "aws-chunked");
        stored.collect::<Vec<_>>().join(", ")
    });
    Attributes {
        content_type: Some(
            get("content-type").filter(|kind| !kind.is_empty()).unwrap_or_else(|| NO_TYPE.into()),
        ),
        cache_control: get("cache-control"),
        content_disposition: get("content-disposition"),
        content_encoding: encoding.filter(|encoding| !encoding.is_empty()),
        content_language: get("content-language"),
        expires: get("expires"),
        website_redirect: get("x-amz-website-redirect-location"),
        class: get("x-amz-storage-class"),
        meta: meta.unwrap_or_default().into_iter().collect(),
        missing_meta: 0,
        tag_count: None,
        tags: tagging.map(|text| url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()),
    }
}

/// The headers that the protocol crate has no field for, or only one that changes them.
pub(super) fn headers(attributes: &Attributes, head: bool) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(expires) = attributes.expires.as_deref().and_then(|text| HeaderValue::from_str(text).ok()) {
        headers.insert("expires", expires);
    }
    if let Some(count) = attributes.tag_count.filter(|count| head && *count > 0) {
        headers.insert("x-amz-tagging-count", count.into());
    }
    headers
}

/// The media type of an answer; an object that came past the protocol may have none.
pub(super) fn media_type(attributes: &Attributes) -> Option<String> {
    Some(attributes.content_type.clone().unwrap_or_else(|| NO_TYPE.into()))
}

/// The storage class of an answer, if it is not the standard one.
pub(super) fn class(entry: &Entry) -> Option<String> {
    entry.class.as_deref().map(String::from)
}

/// A body of an answer: small ones in one piece, as that is much cheaper.
pub(super) async fn blob(body: Body) -> S3Result<StreamingBlob> {
    const SMALL: u64 = 1 << 20;
    if body.length() <= SMALL {
        let bytes = body.bytes().await.map_err(error)?;
        return Ok(StreamingBlob::from(s3s::Body::from(bytes)));
    }
    let pieces = stream::unfold(body, |mut body| async move { Some((body.next().await?, body)) });
    let frames = pieces.map_ok(http_body::Frame::data).boxed();
    Ok(StreamingBlob::from(s3s::Body::http_body_unsync(StreamBody::new(frames))))
}

/// The body of a request, as pieces.
pub(super) async fn pieces(body: Option<StreamingBlob>) -> S3Result<Vec<Bytes>> {
    let Some(body) = body else { return Ok(Vec::new()) };
    body.try_collect().await.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))
}

/// Which code and status an error of a bucket has in the protocol.
pub(super) fn error(error: Error) -> S3Error {
    let code = match (error.kind, error.verb) {
        (ErrorKind::NoSuchKey, Verb::Multipart | Verb::Put) => S3ErrorCode::NoSuchUpload,
        (ErrorKind::NoSuchKey, _) => S3ErrorCode::NoSuchKey,
        (ErrorKind::NoSuchBucket, _) => S3ErrorCode::NoSuchBucket,
        (ErrorKind::PreconditionFailed | ErrorKind::AlreadyExists, _) => S3ErrorCode::PreconditionFailed,
        (ErrorKind::Denied | ErrorKind::CustomerKey, _) => S3ErrorCode::AccessDenied,
        (ErrorKind::Archived, _) => S3ErrorCode::InvalidObjectState,
        (ErrorKind::Unsupported, Verb::Put | Verb::Copy) => S3ErrorCode::EntityTooLarge,
        (ErrorKind::Unsupported, _) => S3ErrorCode::NotImplemented,
        (ErrorKind::Invalid, Verb::Get) => S3ErrorCode::InvalidRange,
        (ErrorKind::Invalid, Verb::Multipart) => S3ErrorCode::InvalidPart,
        (ErrorKind::Invalid, _) => S3ErrorCode::InvalidRequest,
        (ErrorKind::Throttled, _) => S3ErrorCode::SlowDown,
        (ErrorKind::Unreachable, _) => S3ErrorCode::ServiceUnavailable,
        _ => S3ErrorCode::InternalError,
    };
    let detail = error.detail.as_deref().unwrap_or("").to_string();
    S3Error::with_message(code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listed_keys_are_encoded_as_in_forms_but_for_slashes() {
        assert_eq!(listed(b"a b/c+d%/\xc3\xa9\n~*"), "a+b/c%2Bd%25/%C3%A9%0A~*");
    }

    #[test]
    fn attributes_come_from_headers_and_the_transport_leaves_no_trace() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("content-encoding", "aws-chunked, gzip"), ("content-type", "text/plain"), ("expires", "soon")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let attributes = attributes(&headers, Some("a=1&b+c=%C3%A9"), None);
        assert_eq!(attributes.content_encoding.as_deref(), Some("gzip"));
        assert_eq!(attributes.tags.unwrap()["b c"], "é");
        assert_eq!(attributes.expires.as_deref(), Some("soon"));
    }
}
