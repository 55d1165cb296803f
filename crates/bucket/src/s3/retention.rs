//! How long objects are locked (S3 Object Lock): read, and set for longer. The right to override a lock
//! (`x-amz-bypass-governance-retention`) is never used, so that a store refuses whatever would shorten one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};

use super::xml::{Node, escape, walk};
use super::{Ask, Inner};
use crate::{ErrorKind, Key, Result, Retention, Verb, checksum};

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");

/// How long the current version of an object is locked.
pub(super) async fn get(inner: &Inner, key: &Key) -> Result<Option<Retention>> {
    let mut ask = Ask::new(Verb::Retention, Method::GET, Some(key));
    ask.query = "retention=";
    let mut tries = inner.tries();
    loop {
        let failure = match inner.attempt_whole(&ask).await {
            Ok(answer) => match parse(&answer.body) {
                Ok(retention) => return Ok(retention),
                Err(what) => {
                    inner.error(ErrorKind::BadAnswer, Verb::Retention, Some(key)).detail(what).into()
                }
            },
            // The bucket has locks, and this object has none.
            Err(failure) if failure.code == "NoSuchObjectLockConfiguration" => return Ok(None),
            // The request says nothing but the key: what is not valid about it is the bucket.
            Err(mut failure)
                if matches!(&*failure.code, "InvalidRequest" | "ObjectLockConfigurationNotFoundError") =>
            {
                failure.error.kind = ErrorKind::Unsupported;
                failure
            }
            Err(failure) => failure,
        };
        tries.again(failure).await?;
    }
}

/// Locks the current version of an object.
pub(super) async fn set(inner: &Inner, key: &Key, retention: &Retention) -> Result<()> {
    let mut xml = String::from("<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>");
    escape(&retention.mode, &mut xml);
    xml.push_str(&format!("</Mode><RetainUntilDate>{}</RetainUntilDate></Retention>", retention.until));
    let body = [Bytes::from(xml)];
    let payload = hex::encode(checksum::sha256(&body));
    let mut ask = Ask::new(Verb::Retention, Method::PUT, Some(key));
    (ask.query, ask.body, ask.payload) = ("retention=", &body, &payload);
    // The protocol wants one checksum beside the signed one.
    let md5 = HeaderValue::try_from(BASE64.encode(checksum::md5(&body))).expect("base64 fits a header");
    ask.headers.insert(CONTENT_MD5, md5);
    inner.exchange(&ask).await.map(drop)
}

/// Reads `<Retention>`; one without a mode is none.
pub(super) fn parse(xml: &[u8]) -> Result<Option<Retention>, String> {
    let (mut mode, mut until) = (None, None);
    walk(xml, |node| {
        match node {
            Node::Leaf { path: ["Retention", "Mode"], text } => mode = Some(text.into_owned()),
            Node::Leaf { path: ["Retention", "RetainUntilDate"], text } => {
                until = Some(text.trim().parse().map_err(|_| "the end of the retention is no time")?);
            }
            Node::End { path: [root] } | Node::Leaf { path: [root], .. } if *root != "Retention" => {
                return Err("the answer is no retention".into());
            }
            _ => {}
        }
        Ok(())
    })?;
    match (mode.filter(|mode| !mode.is_empty()), until) {
        (Some(mode), Some(until)) => Ok(Some(Retention { mode, until })),
        (None, None) => Ok(None),
        _ => Err("the retention lacks its mode or its end".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_is_read_whole_or_not_at_all() {
        let of = |inner: &str| parse(format!("<Retention xmlns=\"x\">{inner}</Retention>").as_bytes());
        let until = "<RetainUntilDate>2030-01-02T03:04:05.000Z</RetainUntilDate>";
        let expected =
            Retention { mode: "GOVERNANCE".into(), until: "2030-01-02T03:04:05Z".parse().unwrap() };
        assert_eq!(of(&format!("<Mode>GOVERNANCE</Mode>{until}")), Ok(Some(expected)));
        assert_eq!(of(""), Ok(None));
        assert_eq!(of("<Mode/>"), Ok(None));
        for bad in [until, "<Mode>GOVERNANCE</Mode>", "<Mode>A</Mode><RetainUntilDate>1</RetainUntilDate>"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        for bad in [&b""[..], b"<html/>", b"<Retention>"] {
            assert!(parse(bad).is_err());
        }
    }
}
