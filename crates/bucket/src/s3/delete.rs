//! Deleting objects, one by one or a thousand at a time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering::Relaxed;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::xml::{Node, can_hold, escape, walk};
use super::{Ask, Failure, Inner, answer};
use crate::{DeleteOutcome, Error, ErrorKind, Key, Result, Verb, checksum};

const CONTENT_MD5: HeaderName = HeaderName::from_static("content-md5");
/// Keys of one request, by the protocol.
const BATCH: usize = 1_000;

/// Deletes one object.
pub(super) async fn one(inner: &Inner, key: &Key) -> Result<()> {
    let ask = Ask::new(Verb::Delete, Method::DELETE, Some(key));
    match inner.exchange(&ask).await {
        Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(()),
        other => other.map(drop),
    }
}

/// Deletes many objects: in batches, and one by one what XML cannot hold, what a batch could not do, and
/// everything on a store without batches.
pub(super) async fn many(inner: &Inner, keys: &[Key]) -> Vec<DeleteOutcome> {
    let mut results: Vec<Option<Result<()>>> = keys.iter().map(|_| None).collect();
    let fits = |key: &Key| !key.is_empty() && key.as_str().is_some_and(can_hold);
    if inner.takes_batches.load(Relaxed) {
        let in_batches: Vec<usize> = (0..keys.len()).filter(|&i| fits(&keys[i])).collect();
        let batches: Vec<Vec<usize>> =
            in_batches.chunks(BATCH).filter(|batch| batch.len() > 1).map(<[usize]>::to_vec).collect();
        let batches =
            futures::stream::iter(batches).map(|indices| batch(inner, keys, indices)).buffer_unordered(4);
        let outcomes: Vec<_> = batches.collect().await;
        for (index, result) in outcomes.into_iter().flatten() {
            results[index] = Some(result);
        }
    }
    let rest: Vec<usize> = (0..keys.len()).filter(|&i| results[i].is_none()).collect();
    let singles = futures::stream::iter(rest)
        .map(|index| async move { (index, one(inner, &keys[index]).await) })
        .buffer_unordered(16);
    let outcomes: Vec<_> = singles.collect().await;
    for (index, result) in outcomes {
        results[index] = Some(result);
    }
    keys.iter()
        .zip(results)
        .map(|(key, result)| {
            let result = result.expect("every key was part of a batch or deleted by itself");
            DeleteOutcome { key: key.clone(), result }
        })
        .collect()
}

/// Deletes the keys at `indices` in one request. A key without a result is to be deleted by itself.
async fn batch(inner: &Inner, keys: &[Key], indices: Vec<usize>) -> Vec<(usize, Result<()>)> {
    let mut xml =
        String::from("<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>");
    for &index in &indices {
        xml.push_str("<Object><Key>");
        escape(keys[index].as_str().expect("only text is deleted in batches"), &mut xml);
        xml.push_str("</Key></Object>");
    }
    xml.push_str("</Delete>");
    let body = [Bytes::from(xml)];
    let payload = hex::encode(checksum::sha256(&body));
    let mut ask = Ask::new(Verb::Delete, Method::POST, None);
    (ask.query, ask.body, ask.payload, ask.limit) = ("delete=", &body, &payload, 16 << 20);
    let md5 = HeaderValue::try_from(BASE64.encode(checksum::md5(&body))).expect("base64 fits a header");
    ask.headers.insert(CONTENT_MD5, md5);

    let mut tries = inner.tries();
    let errors = loop {
        let failure: Failure = match inner.attempt_whole(&ask).await {
            Ok(answer) => match parse(&answer.body) {
                Ok(errors) => break errors,
                Err(what) => inner.error(ErrorKind::BadAnswer, Verb::Delete, None).detail(what).into(),
            },
            Err(failure) => failure,
        };
        let unknown = is_unknown(&failure);
        if let Err(error) = tries.again(failure).await {
            if unknown {
                inner.takes_batches.store(false, Relaxed);
                return Vec::new();
            }
            return failed(inner, keys, &indices, &error);
        }
    };
    let refused: HashMap<&[u8], &Refused> = errors.iter().map(|e| (e.key.as_bytes(), e)).collect();
    let named: HashSet<&[u8]> = indices.iter().map(|&index| keys[index].as_bytes()).collect();
    if refused.keys().any(|key| !named.contains(key)) {
        // Errors about keys that nobody named: none of the results can be trusted.
        return Vec::new();
    }
    let mut results = Vec::with_capacity(indices.len());
    for &index in &indices {
        let key = &keys[index];
        // A key may be named more than once.
        let result = match refused.get(key.as_bytes()) {
            None => Ok(()),
            Some(error) => {
                let kind = answer::kind(StatusCode::INTERNAL_SERVER_ERROR, &error.code, &error.message);
                match kind {
                    ErrorKind::NoSuchKey => Ok(()),
                    // What may pass is tried again by itself.
                    kind if kind.is_transient() => continue,
                    kind => {
                        let detail = format!("{}: {}", error.code, error.message);
                        Err(inner.error(kind, Verb::Delete, Some(key)).detail(detail))
                    }
                }
            }
        };
        results.push((index, result));
    }
    results
}

/// Whether the store says that it does not delete in batches at all.
fn is_unknown(failure: &Failure) -> bool {
    match failure.code.as_str() {
        "" => matches!(failure.status.map(|status| status.as_u16()), Some(405 | 501)),
        code => matches!(code, "MethodNotAllowed" | "NotImplemented"),
    }
}

/// The outcome of a batch that failed as a whole.
fn failed(inner: &Inner, keys: &[Key], indices: &[usize], error: &Error) -> Vec<(usize, Result<()>)> {
    let each = |kind| {
        let with = |&index: &usize| {
            let detail = error.detail.as_deref().unwrap_or("");
            (index, Err(inner.error(kind, Verb::Delete, Some(&keys[index])).detail(detail)))
        };
        indices.iter().map(with).collect()
    };
    match error.kind {
        // One key that the store does not like spoils the request: each is tried by itself.
        ErrorKind::Invalid | ErrorKind::Unsupported => Vec::new(),
        kind => each(kind),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) key: Key,
    code: String,
    message: String,
}

/// The errors in the answer to a quiet batch; whatever is not named there is deleted.
pub(super) fn parse(xml: &[u8]) -> Result<Vec<Refused>, String> {
    let mut errors = Vec::new();
    let (mut key, mut code, mut message) = (None, String::new(), String::new());
    walk(xml, |node| {
        match node {
            Node::Leaf { path: ["DeleteResult", "Error", name], text } => match *name {
                "Key" => key = Some(Key::from(text.into_owned())),
                "Code" => code = text.into_owned(),
                "Message" => message = text.into_owned(),
                _ => {}
            },
            Node::End { path: ["DeleteResult", "Error"] } => {
                let key = key.take().ok_or("an error names no key")?;
                let (code, message) = (std::mem::take(&mut code), std::mem::take(&mut message));
                errors.push(Refused { key, code, message });
            }
            Node::End { path: [root] } | Node::Leaf { path: [root], .. } if *root != "DeleteResult" => {
                return Err("the answer is no result of a deletion".into());
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_are_read() {
        let xml = b"<DeleteResult><Deleted><Key>a</Key></Deleted><Error><Key>b&#10;</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>";
        let expected = Refused { key: "b\n".into(), code: "AccessDenied".into(), message: "no".into() };
        assert_eq!(parse(xml).unwrap(), [expected]);
        assert_eq!(parse(b"<DeleteResult/>").unwrap(), []);
        for bad in [
            &b"<DeleteResult>"[..],
            b"",
            b"<html/>",
            b"<DeleteResult><Error><Code>x</Code></Error></DeleteResult>",
        ] {
            assert!(parse(bad).is_err());
        }
    }
}
