//! AWS Signature Version 4, the header form, for S3.
//!
//! Signing is our own rather than reqsign's: reqsign takes a finished URI apart, decodes and encodes its path
//! and query again and derives the day's key for each request. A key such as `a%2F/../b` must go out byte by
//! byte as it was signed, and on small objects the derivation would cost as much as the rest of the request.
//! The tests below are the examples that AWS publishes:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::{digest, hmac};
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret, SecretString};

use super::attributes::odd_space;

/// The SHA-256 of nothing.
pub(crate) const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// In place of a hash, over TLS: the contents are covered by a checksum of their own.
pub(crate) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// An access key, with what was derived from it for the current day and region.
pub(crate) struct Signer {
    id: Box<str>,
    secret: SecretString,
    token: Option<HeaderValue>,
    /// When the key ends to be valid.
    pub(crate) expires: Option<Timestamp>,
    derived: RwLock<Option<Arc<Derived>>>,
}

struct Derived {
    day: Box<str>,
    region: Box<str>,
    /// `AWS4-HMAC-SHA256 Credential=…, SignedHeaders=` up to the names.
    intro: Box<str>,
    key: hmac::Key,
}

/// Shows nothing that is secret; the id of an access key is none.
impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// What is signed besides the headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signed<'a> {
    /// Method in capitals.
    pub method: &'a str,
    /// Path as it goes over the wire.
    pub path: &'a str,
    /// Query as it goes over the wire: encoded, sorted, every name with a `=`.
    pub query: &'a str,
    /// Hash of the body in hexadecimal, or [`UNSIGNED`].
    pub payload: &'a str,
}

impl Signer {
    /// A signer for one access key; `None` if the id or token cannot stand in a header.
    pub(crate) fn new(
        id: &str,
        secret: SecretString,
        token: Option<&SecretString>,
        expires: Option<Timestamp>,
    ) -> Option<Self> {
        HeaderValue::from_str(id).ok()?;
        let token = match token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::from_str(token.expose_secret()).ok()?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Some(Signer { id: id.into(), secret, token, expires, derived: RwLock::default() })
    }

    /// Adds the date, the hash of the body, the session token and the signature to `headers`, which hold
    /// everything else already, `host` included. All are signed but those that proxies rewrite.
    pub(crate) fn sign(&self, request: Signed<'_>, headers: &mut HeaderMap, region: &str, now: Timestamp) {
        let time = TimeZone::UTC.to_datetime(now);
        let stamp = format!(
            "{:04}{:02}{:02}T{:02}{:02}{:02}Z",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        );
        let derived = self.derived(&stamp[..8], region);
        headers.insert(DATE, HeaderValue::from_str(&stamp).expect("digits and two letters"));
        let payload = HeaderValue::from_str(request.payload).expect("hexadecimal digits or a constant");
        headers.insert(CONTENT_SHA256, payload);
        if let Some(token) = &self.token {
            headers.insert(SECURITY_TOKEN, token.clone());
        }

        let unsigned = [ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, USER_AGENT];
        let mut signed: Vec<(&str, &HeaderValue)> = headers
            .iter()
            .filter(|(name, value)| !unsigned.contains(name) && is_signable(name, value))
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        signed.sort_by_key(|(name, _)| *name);

        let mut canonical = Vec::with_capacity(512 + request.path.len() + request.query.len());
        for part in [request.method, request.path, request.query] {
            canonical.extend_from_slice(part.as_bytes());
            canonical.push(b'\n');
        }
        for (name, value) in &signed {
            canonical.extend_from_slice(name.as_bytes());
            canonical.push(b':');
            push_trimmed(&mut canonical, value.as_bytes());
            canonical.push(b'\n');
        }
        canonical.push(b'\n');
        let names_begin = canonical.len();
        for (i, (name, _)) in signed.iter().enumerate() {
            if i > 0 {
                canonical.push(b';');
            }
            canonical.extend_from_slice(name.as_bytes());
        }
        let names_end = canonical.len();
        canonical.push(b'\n');
        canonical.extend_from_slice(request.payload.as_bytes());

        let hash = digest::digest(&digest::SHA256, &canonical);
        let day = &derived.day;
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{stamp}\n{day}/{region}/s3/aws4_request\n{}", hex::encode(hash));
        let signature = hmac::sign(&derived.key, to_sign.as_bytes());

        let mut value = Vec::with_capacity(256);
        value.extend_from_slice(derived.intro.as_bytes());
        value.extend_from_slice(&canonical[names_begin..names_end]);
        value.extend_from_slice(b", Signature=");
        value.extend_from_slice(hex::encode(signature).as_bytes());
        let value = HeaderValue::from_maybe_shared(bytes::Bytes::from(value));
        let mut value = value.expect("the id was checked, and the names are those of headers");
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }

    fn derived(&self, day: &str, region: &str) -> Arc<Derived> {
        let fits = |d: &&Arc<Derived>| *d.day == *day && *d.region == *region;
        let read = self.derived.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(derived) = read.as_ref().filter(fits) {
            return derived.clone();
        }
        drop(read);
        let hmac =
            |key: &[u8], data: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data.as_bytes());
        let secret = SecretString::from(format!("AWS4{}", self.secret.expose_secret()));
        let key = hmac(secret.expose_secret().as_bytes(), day);
        let key = hmac(key.as_ref(), region);
        let key = hmac(key.as_ref(), "s3");
        let key = hmac(key.as_ref(), "aws4_request");
        let id = &self.id;
        let derived = Arc::new(Derived {
            day: day.into(),
            region: region.into(),
            intro: format!("AWS4-HMAC-SHA256 Credential={id}/{day}/{region}/s3/aws4_request, SignedHeaders=")
                .into(),
            key: hmac::Key::new(hmac::HMAC_SHA256, key.as_ref()),
        });
        *self.derived.write().unwrap_or_else(PoisonError::into_inner) = Some(derived.clone());
        derived
    }
}

/// Whether both sides make the same of a value. White space beyond ASCII is folded by some (MinIO) and kept by
/// others; headers of the protocol have to be signed, those of HTTP (`content-disposition`) need not be.
fn is_signable(name: &HeaderName, value: &HeaderValue) -> bool {
    name.as_str().starts_with("x-amz-")
        || !std::str::from_utf8(value.as_bytes()).is_ok_and(|text| text.contains(odd_space))
}

/// Appends a value as it is signed: without white space at its ends, and one space for each run of it inside.
fn push_trimmed(out: &mut Vec<u8>, value: &[u8]) {
    let mut space = false;
    for &byte in value.trim_ascii() {
        match byte {
            b' ' | b'\t' if space => {}
            b' ' | b'\t' => out.push(b' '),
            other => out.push(other),
        }
        space = matches!(byte, b' ' | b'\t');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of "Signature Calculations for the Authorization Header: Transferring Payload in a
    /// Single Chunk".
    #[test]
    fn the_examples_of_aws_come_out() {
        let signer = Signer::new(
            "AKIAIOSFODNN7EXAMPLE",
            "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            None,
            None,
        )
        .unwrap();
        let now: Timestamp = "2013-05-24T00:00:00Z".parse().unwrap();
        struct Case {
            method: &'static str,
            path: &'static str,
            query: &'static str,
            headers: &'static [(&'static str, &'static str)],
            payload: &'static str,
            signature: &'static str,
        }
        let cases = [
            Case {
                method: "GET",
                path: "/test.txt",
                query: "",
                headers: &[("range", "bytes=0-9")],
                payload: EMPTY_SHA256,
                signature: "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            },
            Case {
                method: "PUT",
                path: "/test%24file.text",
                query: "",
                headers: &[
                    ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                ],
                payload: "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
                signature: "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
            },
            Case {
                method: "GET",
                path: "/",
                query: "lifecycle=",
                headers: &[],
                payload: EMPTY_SHA256,
                signature: "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            },
            Case {
                method: "GET",
                path: "/",
                query: "max-keys=2&prefix=J",
                headers: &[],
                payload: EMPTY_SHA256,
                signature: "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            },
        ];
        for case in cases {
            let mut headers = HeaderMap::new();
            headers.insert("host", HeaderValue::from_static("examplebucket.s3.amazonaws.com"));
            for (name, value) in case.headers {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            let request =
                Signed { method: case.method, path: case.path, query: case.query, payload: case.payload };
            signer.sign(request, &mut headers, "us-east-1", now);
            let authorization = headers[AUTHORIZATION].to_str().unwrap();
            assert!(
                authorization.starts_with(
                    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request, \
                     SignedHeaders="
                ),
                "{authorization}"
            );
            let (_, signature) = authorization.split_once("Signature=").unwrap();
            assert_eq!(signature, case.signature, "{} {}?{}", case.method, case.path, case.query);
        }
    }

    #[test]
    fn the_derived_key_follows_day_and_region() {
        let signer = Signer::new("id", "secret".into(), Some(&"token".into()), None).unwrap();
        let sign = |region: &str, now: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("host", HeaderValue::from_static("h"));
            let request = Signed { method: "GET", path: "/", query: "", payload: UNSIGNED };
            signer.sign(request, &mut headers, region, now.parse().unwrap());
            assert_eq!(headers[SECURITY_TOKEN], "token");
            headers[AUTHORIZATION].to_str().unwrap().to_owned()
        };
        let first = sign("a", "2026-01-01T00:00:00Z");
        assert_ne!(first, sign("b", "2026-01-01T00:00:00Z"));
        assert_ne!(first, sign("a", "2026-01-02T00:00:00Z"));
        assert_eq!(first, sign("a", "2026-01-01T00:00:00Z"));
    }

    #[test]
    fn values_are_trimmed_as_the_store_trims_them() {
        let mut out = Vec::new();
        push_trimmed(&mut out, b"  a \t \"b  c\"\t\xc3\xa9  ");
        assert_eq!(out, b"a \"b c\" \xc3\xa9");
    }

    #[test]
    fn nothing_secret_is_shown() {
        let signer = Signer::new("id", "hunter2".into(), Some(&"hunter3".into()), None).unwrap();
        let shown = format!("{signer:?}");
        assert!(shown.contains("id") && !shown.contains("hunter"), "{shown}");
        assert!(Signer::new("i\nd", "s".into(), None, None).is_none());
    }
}
