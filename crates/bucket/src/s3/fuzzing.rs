//! What fuzz targets reach of this module: the readers of a store's answers, which are private otherwise.

use http::{HeaderMap, StatusCode};

use std::time::{Duration, SystemTime};

use super::{answer, attributes, delete, list, read, retention, write};
use crate::{Attributes, Entry, ErrorKind, Key, Retention, Tags, credentials, transport};

pub fn error(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> (ErrorKind, String) {
    let refusal = answer::refusal(status, headers, body);
    (refusal.kind, refusal.detail)
}

pub fn tags(xml: &[u8]) -> Result<Tags, String> {
    read::parse_tags(xml)
}

pub fn retention(xml: &[u8]) -> Result<Option<Retention>, String> {
    retention::parse(xml)
}

/// The keys that were not deleted.
pub fn deletion(xml: &[u8]) -> Result<Vec<Key>, String> {
    Ok(delete::parse(xml)?.into_iter().map(|refused| refused.key).collect())
}

pub fn entry(headers: &HeaderMap) -> Result<Entry, String> {
    attributes::checksums(headers);
    attributes::entry(&Key::from("key"), 0, headers, None)
}

pub fn attributes(headers: &HeaderMap) -> Attributes {
    attributes::read(headers)
}

pub fn headers(of: &Attributes) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    attributes::write(of, false, &mut headers)?;
    Ok(headers)
}

/// Whether the answer of a token service, and of a service of the machine, holds a key.
pub fn credentials(answer: &[u8]) -> [bool; 2] {
    credentials::read_key(answer)
}

/// What an answer to a begun upload, a completed one and a copy is looked at for.
pub fn fields(xml: &[u8]) -> [Result<String, String>; 4] {
    let roots = [
        ["InitiateMultipartUploadResult", "UploadId"],
        ["CompleteMultipartUploadResult", "ETag"],
        ["CopyObjectResult", "ETag"],
        ["CopyPartResult", "ETag"],
    ];
    roots.map(|wanted| write::find_field(xml, wanted))
}

/// First byte, end and size.
pub fn content_range(headers: &HeaderMap) -> Option<(u64, u64, u64)> {
    read::content_range(headers)
}

/// A token of ours, read and written again.
pub fn list_token(text: &str) -> Option<String> {
    list::rewritten(text)
}

pub fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    transport::retry_after(value, now)
}
