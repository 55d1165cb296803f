//! Writing objects: whole, in parts, or as copies within the store.
//!
//! What proves that the store holds what was sent: the SHA-256 of the body is signed wherever it is known
//! already (a pack's name) or the connection is not encrypted, and the store compares it; over TLS a CRC-32C
//! goes along instead, at a tenth of the cost, which the store compares, keeps and confirms. A store that does
//! not know checksum headers gets the signed SHA-256. MD5, ten times slower again, is not computed, so the
//! entity tag that comes back is recorded but not recomputed.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http::header::IF_NONE_MATCH;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use md5::{Digest as _, Md5};
use std::sync::atomic::Ordering::Relaxed;

use super::encode::percent;
use super::sign::{EMPTY_SHA256, UNSIGNED};
use super::xml::{Node, escape, walk};
use super::{Answer, Ask, Failure, Inner, MAX_PUT, Wait, answer, attributes};
use crate::{
    Attributes, Entry, Error, ErrorKind, Key, PartId, Put, PutOptions, Result, Revision, Upload, Verb,
    checksum,
};

/// The checksum of a body.
pub(super) const CHECKSUM: HeaderName = HeaderName::from_static("x-amz-checksum-crc32c");
/// The checksum that the parts of an upload will carry.
pub(super) const CHECKSUM_ALGORITHM: HeaderName = HeaderName::from_static("x-amz-checksum-algorithm");
const COPY_SOURCE: HeaderName = HeaderName::from_static("x-amz-copy-source");
const COPY_SOURCE_IF_MATCH: HeaderName = HeaderName::from_static("x-amz-copy-source-if-match");
const COPY_SOURCE_RANGE: HeaderName = HeaderName::from_static("x-amz-copy-source-range");
const ANY: HeaderValue = HeaderValue::from_static("*");

const METADATA_DIRECTIVE: HeaderName = HeaderName::from_static("x-amz-metadata-directive");

/// Marks the id of an upload whose parts carry a CRC-32C; the store wants it for all of them or for none.
const WITH_CRC: &str = "crc32c:";
/// Bodies above this are hashed away from the threads that serve connections.
const HASH_INLINE: usize = 256 * 1024;
/// Longest name of an upload, in bytes: it goes into a request line, where every byte may become three.
const MAX_UPLOAD_ID: usize = 8 << 10;
/// Part numbers, by the protocol.
const MAX_PARTS: u64 = 10_000;
/// Parts of a large copy; the store copies a part of 1 GiB in seconds.
const COPY_PART: u64 = 1 << 30;

/// What covers a body on its way, computed when it is first needed.
#[derive(Debug, Default)]
struct Seal {
    sha256: Option<String>,
    crc32c: Option<[u8; 4]>,
}

impl Seal {
    fn new(known: Option<[u8; 32]>) -> Self {
        Seal { sha256: known.map(hex::encode), crc32c: None }
    }

    /// The hash to sign, and the header that says the checksum, if one is to be sent.
    async fn apply(&mut self, crc: bool, body: &[Bytes]) -> (&str, Option<HeaderValue>) {
        if body.iter().all(Bytes::is_empty) {
            return (EMPTY_SHA256, None);
        }
        if crc {
            let crc = match self.crc32c {
                Some(crc) => crc,
                None => *self.crc32c.insert(hashed(body, checksum::crc32c).await),
            };
            let value = HeaderValue::try_from(BASE64.encode(crc)).expect("base64 fits a header");
            return (self.sha256.as_deref().unwrap_or(UNSIGNED), Some(value));
        }
        let hash = match &mut self.sha256 {
            Some(hash) => hash,
            missing => missing.insert(hex::encode(hashed(body, checksum::sha256).await)),
        };
        (hash, None)
    }

    /// Whether the answer confirms another checksum than was sent.
    fn contradicted(&self, headers: &HeaderMap) -> bool {
        match (self.crc32c, headers.get(CHECKSUM)) {
            (Some(crc), Some(confirmed)) => confirmed.as_bytes() != BASE64.encode(crc).as_bytes(),
            _ => false,
        }
    }
}

async fn hashed<T: Send + 'static>(body: &[Bytes], hash: fn(&[Bytes]) -> T) -> T {
    if body.iter().map(Bytes::len).sum::<usize>() <= HASH_INLINE {
        return hash(body);
    }
    let body = body.to_vec();
    tokio::task::spawn_blocking(move || hash(&body)).await.expect("hashing does not panic")
}

fn size(body: &[Bytes]) -> u64 {
    body.iter().map(|piece| piece.len() as u64).sum()
}

/// The headers that an object is created with.
fn object_headers(inner: &Inner, verb: Verb, key: &Key, of: &Attributes) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    match attributes::write(of, inner.place().words, &mut headers) {
        Ok(()) => Ok(headers),
        Err(what) => Err(inner.error(ErrorKind::Unsupported, verb, Some(key)).detail(what)),
    }
}

fn too_large(inner: &Inner, verb: Verb, key: &Key) -> Error {
    inner.error(ErrorKind::Unsupported, verb, Some(key)).detail("more than 5 GiB in one piece")
}

/// Whether a checksum goes along: over TLS where no hash is signed, and where nothing is signed at all.
fn takes_crc(inner: &Inner, has_hash: bool) -> bool {
    let signed = !inner.provider.is_anonymous();
    let covered = signed && (has_hash || !inner.place().https());
    !covered && inner.takes_checksums.load(Relaxed)
}

/// Writes a whole object.
pub(super) async fn put(inner: &Inner, key: &Key, body: &[Bytes], options: &PutOptions) -> Result<Put> {
    if size(body) > MAX_PUT {
        return Err(too_large(inner, Verb::Put, key));
    }
    let headers = object_headers(inner, Verb::Put, key, &options.attributes)?;
    let mut seal = Seal::new(options.sha256);
    let mut tries = inner.tries();
    loop {
        // Built anew for each try: a refusal may have taught what to leave out.
        let crc = takes_crc(inner, options.sha256.is_some());
        let create_only = options.create_only && inner.takes_create_only.load(Relaxed);
        let mut ask = Ask::new(Verb::Put, Method::PUT, Some(key));
        ask.headers = headers.clone();
        if create_only {
            ask.headers.insert(IF_NONE_MATCH, ANY);
        }
        let (payload, checksum) = seal.apply(crc, body).await;
        if let Some(checksum) = checksum {
            ask.headers.insert(CHECKSUM, checksum);
        }
        (ask.payload, ask.body, ask.wait) = (payload, body, Wait::Contents);
        let failure = match inner.attempt_whole(&ask).await {
            Ok(answer) if seal.contradicted(&answer.headers) => {
                let error = inner.error(ErrorKind::BadAnswer, Verb::Put, Some(key));
                error.detail("the store confirms another checksum than was sent").into()
            }
            Ok(answer) => return Ok(Put { revision: attributes::revision(&answer.headers) }),
            Err(failure) if create_only && failure.error.kind == ErrorKind::PreconditionFailed => {
                // Perhaps an earlier try of ours did create it, and its answer was lost.
                if tries.failed() > 0
                    && let Some(put) = ours(inner, key, &hex::encode(checksum::md5(body))).await
                {
                    return Ok(put);
                }
                return Err(inner.error(ErrorKind::AlreadyExists, Verb::Put, Some(key)));
            }
            Err(failure) => failure,
        };
        tries.again(failure).await?;
    }
}

/// The object, if its entity tag is the one that our contents get.
async fn ours(inner: &Inner, key: &Key, etag: &str) -> Option<Put> {
    let (entry, _) = super::read::head(inner, key).await.ok()?;
    (entry.revision.etag() == Some(etag)).then_some(Put { revision: entry.revision })
}

/// The text of a leaf below the expected root; an error that came with status 200 is a failure like any other.
fn field(
    inner: &Inner,
    verb: Verb,
    key: &Key,
    answer: &Answer,
    wanted: [&str; 2],
) -> std::result::Result<String, Failure> {
    let error = |kind, what: &str| inner.error(kind, verb, Some(key)).detail(what);
    if let Some(body) = answer::error_body(&answer.body) {
        // Copies and completed uploads answer 200 before they are done, and may fail afterwards.
        let status = http::StatusCode::INTERNAL_SERVER_ERROR;
        let kind = answer::kind(status, &body.code, &body.message);
        let failed = error(kind, &format!("{}: {}", body.code, body.message));
        return Err(Failure { error: failed, code: body.code, status: None, repaired: false });
    }
    find_field(&answer.body, wanted).map_err(|what| error(ErrorKind::BadAnswer, &what).into())
}

/// The text of a leaf below the expected root.
pub(super) fn find_field(xml: &[u8], wanted: [&str; 2]) -> Result<String, String> {
    let mut found = None;
    walk(xml, |node| {
        if let Node::Leaf { path: [root, name], text } = node
            && [*root, *name] == wanted
        {
            found = Some(text.into_owned());
        }
        Ok(())
    })?;
    found.filter(|text| !text.is_empty()).ok_or_else(|| format!("the answer has no {}", wanted[1]))
}

/// Begins an upload in parts.
pub(super) async fn begin(inner: &Inner, key: &Key, options: &PutOptions) -> Result<Upload> {
    begin_with(inner, key, &options.attributes, true).await
}

async fn begin_with(inner: &Inner, key: &Key, of: &Attributes, checksums: bool) -> Result<Upload> {
    let headers = object_headers(inner, Verb::Multipart, key, of)?;
    let mut tries = inner.tries();
    loop {
        let mut ask = Ask::new(Verb::Multipart, Method::POST, Some(key));
        ask.query = "uploads=";
        ask.headers = headers.clone();
        if checksums && takes_crc(inner, false) {
            ask.headers.insert(CHECKSUM_ALGORITHM, HeaderValue::from_static("CRC32C"));
        }
        let answer = match inner.attempt_whole(&ask).await {
            Ok(answer) => {
                let id = ["InitiateMultipartUploadResult", "UploadId"];
                // A store that does not know the header does not repeat it either.
                let crc = answer.headers.get(CHECKSUM_ALGORITHM).is_some_and(|a| a == "CRC32C");
                field(inner, Verb::Multipart, key, &answer, id)
                    .map(|id| if crc { format!("{WITH_CRC}{id}") } else { id })
            }
            Err(failure) => Err(failure),
        };
        match answer {
            Ok(id) if id.len() > MAX_UPLOAD_ID => {
                let error = inner.error(ErrorKind::BadAnswer, Verb::Multipart, Some(key));
                return Err(error.detail("the name of the upload is longer than 8 KiB"));
            }
            Ok(id) => return Ok(Upload { key: key.clone(), id }),
            Err(failure) => tries.again(failure).await?,
        }
    }
}

/// `uploadId=…`, behind `before`, and whether the parts carry a CRC-32C.
fn upload_query(before: &str, upload: &Upload) -> (String, bool) {
    let (id, crc) = match upload.id.strip_prefix(WITH_CRC) {
        Some(id) => (id, true),
        None => (upload.id.as_str(), false),
    };
    let mut query = format!("{before}uploadId=");
    percent(id.as_bytes(), false, &mut query);
    (query, crc)
}

fn part_query(inner: &Inner, verb: Verb, upload: &Upload, number: u32) -> Result<(String, bool)> {
    if !(1..=MAX_PARTS).contains(&u64::from(number)) {
        let error = inner.error(ErrorKind::Invalid, verb, Some(&upload.key));
        return Err(error.detail("part numbers run from 1 to 10,000"));
    }
    Ok(upload_query(&format!("partNumber={number}&"), upload))
}

/// Uploads one part.
pub(super) async fn part(inner: &Inner, upload: &Upload, number: u32, body: &[Bytes]) -> Result<PartId> {
    let key = &upload.key;
    let (query, crc) = part_query(inner, Verb::Put, upload, number)?;
    if size(body) > MAX_PUT {
        return Err(too_large(inner, Verb::Put, key));
    }
    let mut seal = Seal::default();
    let mut ask = Ask::new(Verb::Put, Method::PUT, Some(key));
    let (payload, checksum) = seal.apply(crc, body).await;
    if let Some(checksum) = &checksum {
        ask.headers.insert(CHECKSUM, checksum.clone());
    }
    (ask.payload, ask.body, ask.wait, ask.query) = (payload, body, Wait::Contents, &query);
    let mut tries = inner.tries();
    loop {
        let bad = |what| inner.error(ErrorKind::BadAnswer, Verb::Put, Some(key)).detail(what).into();
        let failure = match inner.attempt_whole(&ask).await {
            Ok(answer) => match attributes::revision(&answer.headers) {
                _ if crc && answer.headers.get(CHECKSUM).is_some_and(|c| Some(c) != checksum.as_ref()) => {
                    bad("the store confirms another checksum than was sent")
                }
                Revision::ETag(tag) => {
                    // The checksum is wanted again at the end; a space cannot be part of an entity tag.
                    let checksum = checksum.as_ref().and_then(|c| c.to_str().ok());
                    let etag = checksum.map_or_else(|| tag.to_string(), |c| format!("{tag} {c}"));
                    return Ok(PartId { number, etag });
                }
                _ => bad("the answer has no ETag"),
            },
            Err(failure) => failure,
        };
        tries.again(failure).await?;
    }
}

/// Makes the object appear.
pub(super) async fn complete(
    inner: &Inner,
    upload: &Upload,
    parts: &[PartId],
    options: &PutOptions,
) -> Result<Put> {
    let key = &upload.key;
    let error = |kind| inner.error(kind, Verb::Multipart, Some(key));
    if parts.is_empty() {
        return Err(error(ErrorKind::Invalid).detail("no parts"));
    }
    if parts.windows(2).any(|pair| pair[0].number >= pair[1].number) {
        return Err(error(ErrorKind::Invalid).detail("parts are not in ascending order"));
    }
    let mut xml = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    for part in parts {
        let (tag, crc) = part.etag.split_once(' ').unwrap_or((&part.etag, ""));
        xml.push_str("<Part><ETag>&quot;");
        escape(tag.trim_matches('"'), &mut xml);
        let _ = write!(xml, "&quot;</ETag><PartNumber>{}</PartNumber>", part.number);
        if !crc.is_empty() {
            xml.push_str("<ChecksumCRC32C>");
            escape(crc, &mut xml);
            xml.push_str("</ChecksumCRC32C>");
        }
        xml.push_str("</Part>");
    }
    xml.push_str("</CompleteMultipartUpload>");
    let body = [Bytes::from(xml)];
    let payload = hex::encode(checksum::sha256(&body));
    let (query, _) = upload_query("", upload);
    let mut tries = inner.tries();
    loop {
        let create_only = options.create_only && inner.takes_create_only.load(Relaxed);
        let mut ask = Ask::new(Verb::Multipart, Method::POST, Some(key));
        if create_only {
            ask.headers.insert(IF_NONE_MATCH, ANY);
        }
        (ask.query, ask.body, ask.payload, ask.wait) = (&query, &body, &payload, Wait::Slow);
        let tag = ["CompleteMultipartUploadResult", "ETag"];
        let result = match inner.attempt_whole(&ask).await {
            Ok(answer) => field(inner, Verb::Multipart, key, &answer, tag),
            Err(failure) => Err(failure),
        };
        let failure = match result {
            Ok(tag) => return Ok(Put { revision: Revision::ETag(attributes::unquoted(&tag).into()) }),
            Err(failure) => failure,
        };
        let gone = failure.code == "NoSuchUpload";
        let taken = create_only && failure.error.kind == ErrorKind::PreconditionFailed;
        if (gone || taken)
            && tries.failed() > 0
            && let Some(expected) = composite(parts)
            && let Some(put) = ours(inner, key, &expected).await
        {
            // An earlier try did complete it, and its answer was lost.
            return Ok(put);
        }
        if taken {
            return Err(error(ErrorKind::AlreadyExists));
        }
        tries.again(failure).await?;
    }
}

/// The entity tag that the object of these parts gets where entity tags are MD5 sums.
fn composite(parts: &[PartId]) -> Option<String> {
    let mut sum = Md5::new();
    for part in parts {
        let tag = part.etag.split(' ').next()?.trim_matches('"');
        sum.update(hex::decode(tag).ok().filter(|md5| md5.len() == 16)?);
    }
    Some(format!("{}-{}", hex::encode(sum.finalize()), parts.len()))
}

/// Throws the parts away.
pub(super) async fn abort(inner: &Inner, upload: &Upload) -> Result<()> {
    let (query, _) = upload_query("", upload);
    let mut ask = Ask::new(Verb::Multipart, Method::DELETE, Some(&upload.key));
    ask.query = &query;
    match inner.exchange(&ask).await {
        Err(error) if error.kind == ErrorKind::NoSuchKey => Ok(()),
        other => other.map(drop),
    }
}

/// Copies an object with everything that it carries.
pub(super) async fn copy(inner: &Inner, from: &Key, to: &Key) -> Result<Put> {
    // Size, class, redirection and locks are asked for first: the store copies none of the latter by itself, and
    // beyond a size nothing.
    let (entry, attributes) =
        super::read::head(inner, from).await.map_err(|e| Error { verb: Verb::Copy, ..e })?;
    if from == to {
        return Ok(Put { revision: entry.revision });
    }
    if entry.size > MAX_PUT {
        return copy_in_parts(inner, &entry, to, attributes, COPY_PART).await;
    }
    let mut headers = copy_source(inner, &entry)?;
    let set = if attributes.expires.is_some() && attributes.missing_meta == 0 {
        // MinIO copies everything but this header; so everything is said again.
        headers.insert(METADATA_DIRECTIVE, HeaderValue::from_static("REPLACE"));
        attributes
    } else {
        Attributes {
            class: attributes.class,
            website_redirect: attributes.website_redirect,
            retention: attributes.retention,
            legal_hold: attributes.legal_hold,
            ..Attributes::default()
        }
    };
    headers.extend(object_headers(inner, Verb::Copy, to, &set)?);
    let mut ask = Ask::new(Verb::Copy, Method::PUT, Some(to));
    (ask.headers, ask.wait) = (headers, Wait::Slow);
    let mut tries = inner.tries();
    loop {
        let result = match inner.attempt_whole(&ask).await {
            Ok(answer) => field(inner, Verb::Copy, to, &answer, ["CopyObjectResult", "ETag"]),
            Err(failure) => Err(failure),
        };
        match result {
            Ok(tag) => return Ok(Put { revision: Revision::ETag(attributes::unquoted(&tag).into()) }),
            Err(failure) => tries.again(failure).await?,
        }
    }
}

/// The headers that name what is copied, in the state in which it was seen.
fn copy_source(inner: &Inner, from: &Entry) -> Result<HeaderMap> {
    let mut source = String::from("/");
    percent(inner.place().bucket().as_bytes(), false, &mut source);
    source.push('/');
    percent(from.key.as_bytes(), true, &mut source);
    let mut headers = HeaderMap::new();
    headers.insert(COPY_SOURCE, HeaderValue::try_from(source).expect("percent-encoded bytes"));
    if let Some(tag) = from.revision.etag() {
        let value = HeaderValue::try_from(format!("\"{tag}\"")).map_err(|_| {
            let error = inner.error(ErrorKind::BadAnswer, Verb::Copy, Some(&from.key));
            error.detail("an entity tag fits no header")
        })?;
        headers.insert(COPY_SOURCE_IF_MATCH, value);
    }
    Ok(headers)
}

/// Copies an object that is too large for one request.
pub(super) async fn copy_in_parts(
    inner: &Inner,
    from: &Entry,
    to: &Key,
    mut attributes: Attributes,
    part_size: u64,
) -> Result<Put> {
    let size = from.size;
    let source = copy_source(inner, from)?;
    if attributes.missing_meta > 0 {
        let error = inner.error(ErrorKind::Unsupported, Verb::Copy, Some(&from.key));
        return Err(error.detail("the object has metadata that no header can hold"));
    }
    if attributes.tag_count != Some(0) {
        attributes.tags = Some(super::read::tags(inner, &from.key).await?);
    }
    let upload = begin_with(inner, to, &attributes, false).await?;
    let part_size = part_size.max(size.div_ceil(MAX_PARTS));
    let parts =
        futures::stream::iter((1..).zip((0..size).step_by(part_size as usize))).map(|(number, start)| {
            let (upload, mut headers) = (&upload, source.clone());
            async move {
                let range = format!("bytes={start}-{}", (start + part_size).min(size) - 1);
                headers.insert(COPY_SOURCE_RANGE, HeaderValue::try_from(range).expect("digits"));
                copy_part(inner, upload, number, headers).await
            }
        });
    let parts: Result<Vec<PartId>> = parts.buffered(4).try_collect().await;
    // A store that ignores the condition on the source (moto) would mix two states of it.
    let parts = match parts {
        Ok(parts) => match super::read::head(inner, &from.key).await {
            Ok((now, _)) if now.revision == from.revision && now.modified == from.modified => Ok(parts),
            Ok(_) => Err(inner.error(ErrorKind::PreconditionFailed, Verb::Copy, Some(&from.key))),
            Err(error) => Err(error),
        },
        failed => failed,
    };
    let result = match parts {
        Ok(parts) => complete(inner, &upload, &parts, &PutOptions::default()).await,
        Err(error) => Err(error),
    };
    if result.is_err()
        && let Err(error) = abort(inner, &upload).await
    {
        tracing::warn!(%error, "parts of a failed copy stay behind");
    }
    result
}

async fn copy_part(inner: &Inner, upload: &Upload, number: u32, headers: HeaderMap) -> Result<PartId> {
    let (query, _) = part_query(inner, Verb::Copy, upload, number)?;
    let mut ask = Ask::new(Verb::Copy, Method::PUT, Some(&upload.key));
    (ask.query, ask.headers, ask.wait) = (&query, headers, Wait::Slow);
    let mut tries = inner.tries();
    loop {
        let result = match inner.attempt_whole(&ask).await {
            Ok(answer) => field(inner, Verb::Copy, &upload.key, &answer, ["CopyPartResult", "ETag"]),
            Err(failure) => Err(failure),
        };
        match result {
            Ok(tag) => return Ok(PartId { number, etag: attributes::unquoted(&tag).into() }),
            Err(failure) => tries.again(failure).await?,
        }
    }
}

/// Creates the bucket if it does not exist.
pub(super) async fn create_bucket(inner: &Inner) -> Result<()> {
    let mut probe = Ask::new(Verb::Bucket, Method::GET, None);
    probe.query = "list-type=2&max-keys=1";
    match inner.exchange(&probe).await {
        Err(error) if error.kind == ErrorKind::NoSuchBucket => {}
        other => return other.map(drop),
    }
    let place = inner.place();
    let mut constraint = String::new();
    if &*place.region != "us-east-1" {
        constraint = format!(
            "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
             <LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>",
            place.region
        );
    }
    let mut tries = inner.tries();
    loop {
        let body = [Bytes::from(constraint.clone())];
        let payload = hex::encode(checksum::sha256(&body));
        let mut ask = Ask::new(Verb::Bucket, Method::PUT, None);
        (ask.body, ask.payload) = (&body, &payload);
        match inner.attempt_whole(&ask).await {
            Ok(_) => return Ok(()),
            // Somebody was faster, or a try of ours whose answer was lost; is it ours to use?
            Err(failure) if matches!(&*failure.code, "BucketAlreadyOwnedByYou" | "BucketAlreadyExists") => {
                return inner.exchange(&probe).await.map(drop);
            }
            // Stores of one region know no other names.
            Err(failure) if failure.code == "InvalidLocationConstraint" && !constraint.is_empty() => {
                constraint.clear();
            }
            Err(failure) => tries.again(failure).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entity_tag_of_parts_is_the_md5_of_their_md5s() {
        let part = |number, text: &str| PartId { number, etag: hex::encode(Md5::digest(text)) + " AAAA" };
        let parts = [part(1, "a"), part(2, "b")];
        let sums = [Md5::digest("a"), Md5::digest("b")].concat();
        assert_eq!(composite(&parts).unwrap(), format!("{}-2", hex::encode(Md5::digest(sums))));
        assert_eq!(composite(&[PartId { number: 1, etag: "opaque".into() }]), None);
    }

    #[tokio::test]
    async fn a_body_is_covered_by_what_is_known_or_cheapest() {
        let body = [Bytes::from_static(b"1234"), Bytes::from_static(b"56789")];
        let sha = hex::encode(checksum::sha256(&body));
        let mut seal = Seal::default();
        let (payload, crc) = seal.apply(true, &body).await;
        assert_eq!((payload, crc.unwrap().to_str().unwrap()), (UNSIGNED, "4waSgw=="));
        let (payload, crc) = seal.apply(false, &body).await;
        assert_eq!((payload, crc), (sha.as_str(), None));
        let mut seal = Seal::new(Some([7; 32]));
        assert_eq!(seal.apply(false, &body).await, ("07".repeat(32).as_str(), None));
        assert_eq!(Seal::default().apply(true, &[Bytes::new()]).await, (EMPTY_SHA256, None));
        let large = [Bytes::from(vec![0; HASH_INLINE + 1])];
        assert_eq!(Seal::default().apply(false, &large).await.0, hex::encode(checksum::sha256(&large)));
    }
}
