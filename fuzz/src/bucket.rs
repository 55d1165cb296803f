//! What a store answers, and what a person types as an address.

use cistern_bucket::{Address, Attributes, Page, fuzzing, parse_listing};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// An address is shown so that it is read as the same place: what would look like a scheme gets a `./`.
pub fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = text.parse::<Address>() {
        let shown = address.to_string();
        let again: Address = shown.parse().expect("an address that is shown can be read");
        assert_eq!(again.to_string(), shown);
        match (&address, &again) {
            (Address::Directory(path), Address::Directory(again)) => {
                assert_eq!(
                    again.strip_prefix("./").unwrap_or(again),
                    path.strip_prefix("./").unwrap_or(path)
                );
            }
            _ => assert_eq!(again, address),
        }
    }
}

pub fn listing(data: &[u8]) {
    if let Ok(Page { entries, .. }) = parse_listing(data) {
        assert!(entries.is_sorted_by(|a, b| a.key < b.key), "keys ascend strictly");
    }
}

/// The first two bytes are the status.
pub fn error(data: &[u8]) {
    let Some((status, body)) = data.split_first_chunk() else { return };
    let Ok(status) = StatusCode::from_u16(u16::from_be_bytes(*status)) else { return };
    let (_, detail) = fuzzing::error(status, &HeaderMap::new(), body);
    assert!(!detail.is_empty(), "an error says something");
}

pub fn tags(data: &[u8]) {
    let _ = fuzzing::tags(data);
}

pub fn retention(data: &[u8]) {
    let _ = fuzzing::retention(data);
}

pub fn deletion(data: &[u8]) {
    let _ = fuzzing::deletion(data);
}

/// A header a line: `name: value`.
pub fn headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(1000) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) =
            (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let _ = fuzzing::entry(&headers);
    if let Some((start, end, size)) = fuzzing::content_range(&headers) {
        assert!(start < end && end <= size, "a range lies within the object");
    }
    let attributes = fuzzing::attributes(&headers);
    // What a store said can be said to a store, unless the writer names what it cannot say.
    if let Ok(written) = fuzzing::headers(&attributes) {
        let again = fuzzing::attributes(&written);
        // A lock that is over is not written again.
        let retention = attributes.retention.filter(|_| again.retention.is_some());
        let counted = Attributes { missing_meta: 0, tag_count: None, retention, ..attributes };
        assert_eq!(again, counted);
    }
}

/// Answers of a token service (XML) and of services of the machine (JSON).
pub fn credentials(data: &[u8]) {
    let [by_sts, by_json] = fuzzing::credentials(data);
    assert!(!(by_sts && by_json), "no text is XML and JSON");
}

/// Answers to begun and completed uploads and to copies.
pub fn fields(data: &[u8]) {
    for found in fuzzing::fields(data) {
        assert!(found.is_err() || found.is_ok_and(|text| !text.is_empty()), "a field says something");
    }
}

pub fn token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(written) = fuzzing::list_token(text) {
        assert_eq!(
            fuzzing::list_token(&written).as_ref(),
            Some(&written),
            "a token is read as it was written"
        );
    }
}

pub fn retry_after(data: &[u8]) {
    let _ = fuzzing::retry_after(data, std::time::SystemTime::UNIX_EPOCH);
}
