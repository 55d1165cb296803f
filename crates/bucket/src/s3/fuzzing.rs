//! What fuzz targets reach of this module: the readers of a store's answers, which are private otherwise.

use http::{HeaderMap, StatusCode};

use super::{answer, attributes, delete, read};
use crate::{Attributes, Entry, ErrorKind, Key, Tags};

pub fn error(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> (ErrorKind, String) {
    let refusal = answer::refusal(status, headers, body);
    (refusal.kind, refusal.detail)
}

pub fn tags(xml: &[u8]) -> Result<Tags, String> {
    read::parse_tags(xml)
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
