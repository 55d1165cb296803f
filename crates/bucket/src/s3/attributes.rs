//! Attributes of an object as headers, both ways.
//!
//! Values are text that goes over the wire as UTF-8. Stores differ in what they make of metadata that is not
//! ASCII: Ceph and moto return it as it came; MinIO and AWS return RFC 2047 words, and AWS reads raw bytes as
//! Latin-1 but decodes such words (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>).
//! So AWS is sent words and the others UTF-8, and words that a store would make are decoded when they are read.
//! Only a literal word that somebody stored on a server which does not know them changes its spelling thereby,
//! to the text that it stands for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, ETAG, EXPIRES,
    LAST_MODIFIED,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;

use super::encode::percent;
use crate::{Attributes, Checksums, Entry, Key, Revision, Tags};

const META: &str = "x-amz-meta-";
const MISSING_META: HeaderName = HeaderName::from_static("x-amz-missing-meta");
const STORAGE_CLASS: HeaderName = HeaderName::from_static("x-amz-storage-class");
const TAGGING: HeaderName = HeaderName::from_static("x-amz-tagging");
const TAG_COUNT: HeaderName = HeaderName::from_static("x-amz-tagging-count");
const REDIRECT: HeaderName = HeaderName::from_static("x-amz-website-redirect-location");
const ENCRYPTION: HeaderName = HeaderName::from_static("x-amz-server-side-encryption");
const CUSTOMER_KEY: HeaderName = HeaderName::from_static("x-amz-server-side-encryption-customer-algorithm");
const CHECKSUM_TYPE: HeaderName = HeaderName::from_static("x-amz-checksum-type");

/// The attributes in the head of an answer.
pub(crate) fn read(headers: &HeaderMap) -> Attributes {
    let mut unreadable = 0;
    let mut text = |name: &HeaderName| match headers.get(name).map(|v| std::str::from_utf8(v.as_bytes())) {
        Some(Ok(text)) => Some(text.to_owned()),
        // Not UTF-8: it cannot be held, and is counted rather than changed.
        Some(Err(_)) => {
            unreadable += 1;
            None
        }
        None => None,
    };
    let mut attributes = Attributes {
        content_type: text(&CONTENT_TYPE),
        cache_control: text(&CACHE_CONTROL),
        content_disposition: text(&CONTENT_DISPOSITION),
        content_encoding: text(&CONTENT_ENCODING),
        content_language: text(&CONTENT_LANGUAGE),
        expires: text(&EXPIRES),
        website_redirect: text(&REDIRECT),
        class: text(&STORAGE_CLASS).filter(|class| class != "STANDARD"),
        ..Attributes::default()
    };
    let number = |name: HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<u32>().ok();
    attributes.tag_count = number(TAG_COUNT);
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix(META) else { continue };
        match std::str::from_utf8(value.as_bytes()) {
            // Two headers of one name are one value (RFC 9110, section 5.3).
            Ok(value) => {
                let value = from_words(value).unwrap_or_else(|| value.to_owned());
                match attributes.meta.get_mut(name) {
                    None => drop(attributes.meta.insert(name.to_owned(), value)),
                    Some(before) => {
                        before.push(',');
                        before.push_str(&value);
                    }
                }
            }
            Err(_) => unreadable += 1,
        }
    }
    attributes.missing_meta = number(MISSING_META).unwrap_or(0).saturating_add(unreadable);
    attributes
}

/// The object in the head of an answer; a sentence if the answer does not describe one.
pub(crate) fn entry(key: &Key, size: u64, headers: &HeaderMap, class: Option<&str>) -> Result<Entry, String> {
    let modified = headers.get(LAST_MODIFIED).ok_or("the answer lacks Last-Modified")?;
    let modified = modified.to_str().ok().and_then(http_date).ok_or("Last-Modified is no date")?;
    Ok(Entry {
        key: key.clone(),
        size,
        modified,
        revision: revision(headers),
        class: class.map(Into::into),
        attributes: None,
    })
}

/// The state that the answer's entity tag names.
pub(crate) fn revision(headers: &HeaderMap) -> Revision {
    match headers.get(ETAG).and_then(|tag| tag.to_str().ok()) {
        Some(tag) if !unquoted(tag).is_empty() => Revision::ETag(unquoted(tag).into()),
        _ => Revision::Unknown,
    }
}

/// An entity tag without its quotes; some servers mark theirs as weak.
pub(crate) fn unquoted(tag: &str) -> &str {
    let tag = tag.trim();
    tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"')
}

/// A date as HTTP writes it (RFC 9110, section 5.6.7).
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// Checksums of the whole object, by an answer about the whole object. What stands in the answer to a range can be
/// that of the part of the upload which the range happens to be, so there only [`tag_checksum`] counts.
pub(crate) fn checksums(headers: &HeaderMap) -> Checksums {
    let mut all = tag_checksum(headers);
    // A composite checksum is one of the parts' checksums: nothing to compare contents with.
    if headers.get(CHECKSUM_TYPE).is_none_or(|kind| kind == "FULL_OBJECT") {
        let names: [(&'static str, &'static str, usize); 5] = [
            ("crc32", "x-amz-checksum-crc32", 4),
            ("crc32c", "x-amz-checksum-crc32c", 4),
            ("crc64nvme", "x-amz-checksum-crc64nvme", 8),
            ("sha1", "x-amz-checksum-sha1", 20),
            ("sha256", "x-amz-checksum-sha256", 32),
        ];
        for (name, header, length) in names {
            // Composite ones end in `-N`, which is no base64.
            let value = headers.get(header).and_then(|value| BASE64.decode(value.as_bytes()).ok());
            if let Some(value) = value.filter(|v| v.len() == length) {
                all.insert(name, Bytes::from(value));
            }
        }
    }
    all
}

/// The checksum that the entity tag is: the MD5 of the whole object, unless it was put in parts or is encrypted with
/// a managed key.
pub(crate) fn tag_checksum(headers: &HeaderMap) -> Checksums {
    let mut all = Checksums::new();
    let managed_key = headers.get(ENCRYPTION).is_some_and(|kind| kind.as_bytes().starts_with(b"aws:"));
    if !managed_key && !headers.contains_key(CUSTOMER_KEY) {
        let tag = headers.get(ETAG).and_then(|tag| tag.to_str().ok()).map(unquoted).unwrap_or_default();
        if tag.len() == 32
            && let Ok(md5) = hex::decode(tag)
        {
            all.insert("md5", Bytes::from(md5));
        }
    }
    all
}

/// Adds the headers that store `attributes` with an object. `words` sends what is not ASCII as RFC 2047 words.
///
/// # Errors
/// A sentence that names the attribute which no header can hold.
pub(crate) fn write(attributes: &Attributes, words: bool, headers: &mut HeaderMap) -> Result<(), String> {
    let standard = [
        (CONTENT_TYPE, &attributes.content_type),
        (CACHE_CONTROL, &attributes.cache_control),
        (CONTENT_DISPOSITION, &attributes.content_disposition),
        (CONTENT_ENCODING, &attributes.content_encoding),
        (CONTENT_LANGUAGE, &attributes.content_language),
        (EXPIRES, &attributes.expires),
        (REDIRECT, &attributes.website_redirect),
        (STORAGE_CLASS, &attributes.class),
    ];
    for (name, value) in standard {
        if let Some(text) = value {
            let value = value_of(name.as_str(), text, false)?;
            headers.insert(name, value);
        }
    }
    for (name, text) in &attributes.meta {
        let header = HeaderName::from_bytes(format!("{META}{name}").as_bytes())
            .map_err(|_| format!("no header can be named after metadata {name:?}"))?;
        let value = value_of(name, text, words)?;
        headers.insert(header, value);
    }
    if let Some(tags) = attributes.tags.as_ref().filter(|tags| !tags.is_empty()) {
        headers.insert(TAGGING, HeaderValue::from_str(&tagging(tags)).expect("percent-encoded text"));
    }
    Ok(())
}

fn value_of(name: &str, text: &str, words: bool) -> Result<HeaderValue, String> {
    // Space at the ends is not part of a header's value: it would be lost without a word.
    if text.trim_matches([' ', '\t']).len() != text.len() {
        return Err(format!("no header can hold the space around the value of {name:?}"));
    }
    let value = if words && !text.is_ascii() {
        HeaderValue::from_str(&format!("=?UTF-8?B?{}?=", BASE64.encode(text)))
    } else {
        HeaderValue::from_bytes(text.as_bytes())
    };
    value.map_err(|_| format!("no header can hold the value of {name:?}"))
}

/// The text behind RFC 2047 words, if the value is nothing but words and a store would have made them: they are
/// in UTF-8, and the text is not ASCII.
fn from_words(value: &str) -> Option<String> {
    if !value.starts_with("=?") {
        return None;
    }
    let mut bytes = Vec::with_capacity(value.len());
    for word in value.split_ascii_whitespace() {
        let mut parts = word.strip_prefix("=?")?.strip_suffix("?=")?.split('?');
        let (charset, encoding, text) = (parts.next()?, parts.next()?, parts.next()?);
        if !charset.eq_ignore_ascii_case("utf-8") || parts.next().is_some() {
            return None;
        }
        match encoding {
            "B" | "b" => bytes.extend(BASE64.decode(text).ok()?),
            "Q" | "q" => {
                let mut rest = text.as_bytes();
                while let [first, more @ ..] = rest {
                    rest = match (first, more) {
                        (b'=', [high, low, more @ ..]) => {
                            let digit = |c: u8| char::from(c).to_digit(16);
                            bytes.push((digit(*high)? << 4 | digit(*low)?) as u8);
                            more
                        }
                        (b'=', _) => return None,
                        (b'_', more) => {
                            bytes.push(b' ');
                            more
                        }
                        (other, more) => {
                            bytes.push(*other);
                            more
                        }
                    };
                }
            }
            _ => return None,
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.is_ascii())
}

/// Tags as a query string.
fn tagging(tags: &Tags) -> String {
    let mut text = String::new();
    for (name, value) in tags {
        if !text.is_empty() {
            text.push('&');
        }
        percent(name.as_bytes(), false, &mut text);
        text.push('=');
        percent(value.as_bytes(), false, &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn headers(list: &[(&str, &[u8])]) -> HeaderMap {
        let name = |name: &str| HeaderName::from_bytes(name.as_bytes()).unwrap();
        list.iter().map(|(n, value)| (name(n), HeaderValue::from_bytes(value).unwrap())).collect()
    }

    #[test]
    fn attributes_survive_the_way_through_headers() {
        let attributes = Attributes {
            content_type: Some("text/plain; charset=utf-8".into()),
            cache_control: Some("no-cache".into()),
            content_disposition: Some("attachment; filename=\"ä.txt\"".into()),
            content_encoding: Some("gzip".into()),
            content_language: Some("de".into()),
            expires: Some("never mind".into()),
            website_redirect: Some("/other".into()),
            class: Some("GLACIER".into()),
            meta: [("owner", "Zoë  \u{1f600}"), ("empty", ""), ("word", "=?UTF-8?B?YQ==?="), ("t", "a\tb")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..Attributes::default()
        };
        let mut sent = HeaderMap::new();
        write(&attributes, false, &mut sent).unwrap();
        assert_eq!(read(&sent), attributes);
        let mut sent = HeaderMap::new();
        write(&attributes, true, &mut sent).unwrap();
        assert_eq!(sent["x-amz-meta-owner"], "=?UTF-8?B?Wm/DqyAg8J+YgA==?=");
        assert_eq!(sent["x-amz-meta-word"], "=?UTF-8?B?YQ==?=");
        assert_eq!(read(&sent).meta, attributes.meta);
    }

    #[test]
    fn words_that_a_store_makes_are_decoded_and_others_kept() {
        let table = [
            ("=?UTF-8?q?zo=C3=AB_=F0=9F=A6=80?=", "zoë \u{1f980}"),
            ("=?utf-8?B?w6k=?= =?UTF-8?Q?=3d=c3=a9?=", "é=é"),
            // Split within a character, as some encoders do.
            ("=?UTF-8?Q?=C3?= =?UTF-8?Q?=A9?=", "é"),
            ("=?UTF-8?B?YQ==?=", "=?UTF-8?B?YQ==?="),
            ("=?ISO-8859-1?Q?=E9?=", "=?ISO-8859-1?Q?=E9?="),
            ("x =?UTF-8?B?w6k=?=", "x =?UTF-8?B?w6k=?="),
            ("=?UTF-8?B?w6k=?= x", "=?UTF-8?B?w6k=?= x"),
            ("=?UTF-8?B?/w==?=", "=?UTF-8?B?/w==?="),
            ("=?UTF-8?Q?=C?=", "=?UTF-8?Q?=C?="),
            ("=?UTF-8?Q?=C3=A9?x?=", "=?UTF-8?Q?=C3=A9?x?="),
            ("=?", "=?"),
        ];
        for (value, text) in table {
            let read = read(&headers(&[("x-amz-meta-a", value.as_bytes())]));
            assert_eq!(read.meta["a"], text, "{value}");
        }
    }

    #[test]
    fn what_no_header_can_hold_is_named() {
        let with = |name: &str, value: &str| Attributes {
            meta: [(name.to_owned(), value.to_owned())].into(),
            ..Attributes::default()
        };
        for (name, value) in [("a b", "x"), ("é", "x"), ("a", "x\ny"), ("a", " x"), ("a", "x\t"), ("a", "\0")]
        {
            let error = write(&with(name, value), false, &mut HeaderMap::new()).unwrap_err();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
    }

    #[test]
    fn tags_are_a_query_string_and_their_number_is_read() {
        let tags: Tags = [("a b", "c&d=e"), ("é", "+")].map(|(k, v)| (k.into(), v.into())).into();
        let attributes = Attributes { tags: Some(tags), ..Attributes::default() };
        let mut sent = HeaderMap::new();
        write(&attributes, false, &mut sent).unwrap();
        assert_eq!(sent[TAGGING], "a%20b=c%26d%3De&%C3%A9=%2B");
        assert_eq!(read(&headers(&[("x-amz-tagging-count", b"2")])).tag_count, Some(2));
        assert_eq!(read(&headers(&[("x-amz-tagging-count", b"many")])).tag_count, None);
    }

    #[test]
    fn metadata_that_cannot_be_read_is_counted() {
        let attributes = read(&headers(&[
            ("x-amz-missing-meta", b"2"),
            ("x-amz-meta-a", b"\xff"),
            ("content-disposition", b"f\xfcr"),
            ("x-amz-meta-b", b"1"),
            ("x-amz-meta-b", b"2"),
            ("x-amz-storage-class", b"STANDARD"),
        ]));
        assert_eq!(attributes.missing_meta, 4);
        assert_eq!(attributes.meta, BTreeMap::from([("b".to_owned(), "1,2".to_owned())]));
        assert_eq!((attributes.class, attributes.content_disposition), (None, None));
    }

    #[test]
    fn an_answer_describes_an_object_or_says_what_is_missing() {
        let key = Key::from("k");
        let good = headers(&[("last-modified", b"Wed, 21 Oct 2015 07:28:00 GMT"), ("etag", b"W/\"ab-2\"")]);
        let entry = super::entry(&key, 3, &good, None).unwrap();
        assert_eq!(entry.modified.to_string(), "2015-10-21T07:28:00Z");
        assert_eq!(entry.revision.etag(), Some("ab-2"));
        assert!(super::entry(&key, 3, &headers(&[]), None).unwrap_err().contains("lacks"));
        let bad = headers(&[("last-modified", b"yesterday")]);
        assert!(super::entry(&key, 3, &bad, None).unwrap_err().contains("no date"));
    }

    #[test]
    fn only_checksums_of_the_whole_object_count() {
        let md5: (&str, &[u8]) = ("etag", b"\"25f9e794323b453885f5181f1b624d0b\"");
        let crc: (&str, &[u8]) = ("x-amz-checksum-crc32c", b"4waSgw==");
        let full: (&str, &[u8]) = ("x-amz-checksum-type", b"FULL_OBJECT");
        type Given<'a> = &'a [(&'a str, &'a [u8])];
        let table: [(Given<'_>, &[&str]); 9] = [
            (&[md5, crc], &["crc32c", "md5"]),
            (&[md5, crc, full], &["crc32c", "md5"]),
            (&[crc, ("x-amz-checksum-type", b"COMPOSITE")], &[]),
            (&[("x-amz-checksum-crc32c", b"4waSgw==-3")], &[]),
            (&[("x-amz-checksum-crc32c", b"AAAA")], &[]),
            (&[("etag", b"\"25f9e794323b453885f5181f1b624d0b-2\"")], &[]),
            (&[md5, ("x-amz-server-side-encryption", b"aws:kms")], &[]),
            (&[md5, ("x-amz-server-side-encryption", b"AES256")], &["md5"]),
            (&[md5, ("x-amz-server-side-encryption-customer-algorithm", b"AES256")], &[]),
        ];
        for (list, expected) in table {
            let found = checksums(&headers(list));
            assert_eq!(found.keys().copied().collect::<Vec<_>>(), expected, "{list:?}");
        }
        assert_eq!(tag_checksum(&headers(&[md5, crc])).keys().copied().collect::<Vec<_>>(), ["md5"]);
    }
}
