//! The operations of the S3 protocol over our own buckets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use cistern_bucket::{
    Bucket, DeleteOutcome, GetOptions, Key, ListRequest, Memory, Page, PartId, PutOptions, Revision, Upload,
};
use s3s::checksum::ChecksumHasher;
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, Bucket as BucketEntry, CommonPrefix,
    CompleteMultipartUploadInput, CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput,
    CopyObjectResult, CopySource, CreateBucketInput, CreateBucketOutput, CreateMultipartUploadInput,
    CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput, DeleteObjectTaggingInput,
    DeleteObjectTaggingOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition,
    EncodingType, Error as KeyError, GetBucketLocationInput, GetBucketLocationOutput, GetObjectInput,
    GetObjectOutput, GetObjectTaggingInput, GetObjectTaggingOutput, HeadBucketInput, HeadBucketOutput,
    HeadObjectInput, HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListObjectsV2Input,
    ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, PutObjectTaggingInput,
    PutObjectTaggingOutput, Range, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::fault::HttpFault;
use super::wire;

type Answer<T> = S3Result<S3Response<T>>;

/// The buckets of a server, by name.
#[derive(Clone, Default)]
pub(super) struct Store {
    buckets: Arc<RwLock<BTreeMap<String, Mounted>>>,
}

#[derive(Clone)]
struct Mounted {
    bucket: Arc<dyn Bucket>,
    /// The same, if it is one of ours: only there can tags be changed and contents be summed in advance.
    memory: Option<Arc<Memory>>,
}

impl Store {
    /// The bucket of this name, which is created if there is none.
    pub(super) fn memory(&self, name: &str) -> Option<Arc<Memory>> {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        let mounted = buckets.entry(name.to_string()).or_insert_with(|| {
            let memory = Arc::new(Memory::new(name));
            Mounted { bucket: memory.clone(), memory: Some(memory) }
        });
        mounted.memory.clone()
    }

    /// Serves `bucket` under this name.
    pub(super) fn mount(&self, name: &str, bucket: Arc<dyn Bucket>, memory: Option<Arc<Memory>>) {
        let mut buckets = self.buckets.write().unwrap_or_else(PoisonError::into_inner);
        buckets.insert(name.to_string(), Mounted { bucket, memory });
    }

    fn get(&self, name: &str) -> S3Result<Mounted> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        buckets.get(name).cloned().ok_or_else(|| s3_error!(NoSuchBucket))
    }
}

fn pinned(condition: Option<ETagCondition>) -> Option<Revision> {
    condition.and_then(ETagCondition::into_etag).map(|tag| Revision::ETag(tag.into_value().into_boxed_str()))
}

/// Whether a write may only create: the one value that `If-None-Match` takes there.
fn create_only(condition: Option<&ETagCondition>) -> S3Result<bool> {
    match condition {
        None => Ok(false),
        Some(condition) if condition.is_any() => Ok(true),
        Some(_) => Err(s3_error!(NotImplemented, "If-None-Match on a write takes only an asterisk")),
    }
}

/// Confirms what the client says of the body.
macro_rules! verify {
    ($input:expr, $pieces:expr) => {{
        let mut hasher = ChecksumHasher::default();
        hasher.crc32 = $input.checksum_crc32.as_ref().map(|_| Default::default());
        hasher.crc32c = $input.checksum_crc32c.as_ref().map(|_| Default::default());
        hasher.sha1 = $input.checksum_sha1.as_ref().map(|_| Default::default());
        hasher.sha256 = $input.checksum_sha256.as_ref().map(|_| Default::default());
        hasher.crc64nvme = $input.checksum_crc64nvme.as_ref().map(|_| Default::default());
        $pieces.iter().for_each(|piece: &Bytes| hasher.update(piece));
        let sums = hasher.finalize();
        let matches = sums.checksum_crc32 == $input.checksum_crc32
            && sums.checksum_crc32c == $input.checksum_crc32c
            && sums.checksum_sha1 == $input.checksum_sha1
            && sums.checksum_sha256 == $input.checksum_sha256
            && sums.checksum_crc64nvme == $input.checksum_crc64nvme
            && $input.content_md5.as_ref().is_none_or(|wanted| *wanted == md5($pieces));
        if !matches {
            return Err(s3_error!(BadDigest, "the contents do not have the announced checksum"));
        }
        sums
    }};
}

fn md5(pieces: &[Bytes]) -> String {
    use base64::Engine as _;
    use md5::{Digest as _, Md5};
    let mut sum = Md5::new();
    pieces.iter().for_each(|piece| sum.update(piece));
    base64::engine::general_purpose::STANDARD.encode(sum.finalize())
}

#[async_trait]
impl S3 for Store {
    async fn list_buckets(&self, _: S3Request<ListBucketsInput>) -> Answer<ListBucketsOutput> {
        let buckets = self.buckets.read().unwrap_or_else(PoisonError::into_inner);
        let names =
            buckets.keys().map(|name| BucketEntry { name: Some(name.clone()), ..BucketEntry::default() });
        Ok(S3Response::new(ListBucketsOutput { buckets: Some(names.collect()), ..Default::default() }))
    }

    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> Answer<CreateBucketOutput> {
        if self.get(&req.input.bucket).is_ok() {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        self.memory(&req.input.bucket);
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> Answer<HeadBucketOutput> {
        self.get(&req.input.bucket)?.bucket.probe().await.map_err(wire::error)?;
        Ok(S3Response::new(HeadBucketOutput {
            bucket_region: Some(super::REGION.into()),
            ..Default::default()
        }))
    }

    async fn get_bucket_location(
        &self,
        req: S3Request<GetBucketLocationInput>,
    ) -> Answer<GetBucketLocationOutput> {
        self.get(&req.input.bucket)?;
        Ok(S3Response::new(GetBucketLocationOutput::default()))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> Answer<ListObjectsV2Output> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let fault = req.extensions.get::<HttpFault>().cloned();
        let input = req.input;
        let limit = input.max_keys.unwrap_or(1_000).clamp(0, 1_000) as u32;
        let after = match (&input.continuation_token, &input.start_after) {
            (Some(token), _) => {
                let bytes = hex::decode(token);
                Some(Key::new(
                    bytes.map_err(|_| s3_error!(InvalidArgument, "the continuation token is not ours"))?,
                ))
            }
            (None, Some(after)) => Some(Key::from(after.clone())),
            (None, None) => None,
        };
        let prefix = Key::from(input.prefix.clone().unwrap_or_default());
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        let mut listing = Listing::default();
        match (&delimiter, limit) {
            (_, 0) => {}
            (None, _) => {
                let request = ListRequest { prefix: prefix.clone(), after, token: None, limit: Some(limit) };
                listing.page = bucket.list(&request).await.map_err(wire::error)?;
            }
            (Some(delimiter), _) => {
                listing = grouped(&*bucket, &prefix, after, delimiter.as_bytes(), limit as usize).await?;
            }
        }
        let last = listing.page.entries.last().map(|entry| entry.key.clone());
        if let (Some(HttpFault::OverfullListing), Some(last)) = (&fault, listing.page.entries.last()) {
            let after = Some(last.key.clone());
            let request = ListRequest { prefix: prefix.clone(), after, token: None, limit: None };
            let more = bucket.list(&request).await.map_err(wire::error)?;
            listing.page.entries.extend(more.entries);
            listing.page.next = more.next;
        }
        let next = listing.page.next.is_some().then(|| last.max(listing.skipped.clone()));
        match &fault {
            Some(HttpFault::ShortListing(entries)) => listing.page.entries.truncate(*entries),
            Some(HttpFault::RepeatedEntry) => {
                listing.page.entries.extend_from_within(..listing.page.entries.len().min(1));
            }
            Some(HttpFault::UnsortedListing) => listing.page.entries.reverse(),
            _ => {}
        }
        let next = next.flatten().filter(|_| !matches!(fault, Some(HttpFault::ShortListing(_))));
        let url = input.encoding_type.as_ref().is_some_and(|kind| kind.as_str() == EncodingType::URL);
        let shown =
            |key: &[u8]| if url { wire::listed(key) } else { String::from_utf8_lossy(key).into_owned() };
        let contents = listing.page.entries.iter().map(|entry| Object {
            key: Some(shown(entry.key.as_bytes())),
            size: Some(entry.size as i64),
            last_modified: Some(wire::time(entry.modified)),
            e_tag: wire::etag(&entry.revision),
            storage_class: Some(wire::class(entry).unwrap_or_else(|| "STANDARD".into()).into()),
            ..Object::default()
        });
        let contents: Vec<Object> = contents.collect();
        let groups = listing.groups.iter().map(|group| CommonPrefix { prefix: Some(shown(group)) });
        let groups: Vec<CommonPrefix> = groups.collect();
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: Some(shown(prefix.as_bytes())),
            max_keys: Some(limit as i32),
            key_count: Some((contents.len() + groups.len()) as i32),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next.map(|key| match (&fault, &input.continuation_token) {
                (Some(HttpFault::RepeatedToken), Some(token)) => token.clone(),
                _ => hex::encode(key.as_bytes()),
            }),
            continuation_token: input.continuation_token,
            contents: Some(contents),
            common_prefixes: (!groups.is_empty()).then_some(groups),
            delimiter: delimiter.map(|delimiter| shown(delimiter.as_bytes())),
            encoding_type: input.encoding_type,
            start_after: input.start_after.map(|after| shown(after.as_bytes())),
            request_charged: None,
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> Answer<HeadObjectOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let (entry, attributes) = bucket.head(&req.input.key.into()).await.map_err(wire::error)?;
        let wanted = pinned(req.input.if_match);
        if wanted.is_some_and(|wanted| wanted != entry.revision) {
            return Err(s3_error!(PreconditionFailed));
        }
        let headers = wire::headers(&attributes, true);
        let output = HeadObjectOutput {
            accept_ranges: Some("bytes".into()),
            content_length: Some(entry.size as i64),
            content_type: wire::media_type(&attributes),
            last_modified: Some(wire::time(entry.modified)),
            e_tag: wire::etag(&entry.revision),
            storage_class: wire::class(&entry).map(Into::into),
            cache_control: attributes.cache_control,
            content_disposition: attributes.content_disposition,
            content_encoding: attributes.content_encoding,
            content_language: attributes.content_language,
            website_redirect_location: attributes.website_redirect,
            metadata: Some(attributes.meta.into_iter().collect()),
            ..HeadObjectOutput::default()
        };
        Ok(S3Response::with_headers(output, headers))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> Answer<GetObjectOutput> {
        let Mounted { bucket, memory } = self.get(&req.input.bucket)?;
        let key = Key::from(req.input.key);
        let range = match req.input.range {
            None => None,
            Some(Range::Int { first, last }) => {
                Some(first..last.map_or(u64::MAX, |last| last.saturating_add(1)))
            }
            Some(Range::Suffix { length }) => {
                let (entry, _) = bucket.head(&key).await.map_err(wire::error)?;
                Some(entry.size.saturating_sub(length)..entry.size)
            }
        };
        let options = GetOptions { range: range.clone(), revision: pinned(req.input.if_match) };
        let get = bucket.get(&key, &options).await.map_err(wire::error)?;
        let unchanged = pinned(req.input.if_none_match).is_some_and(|old| old == get.entry.revision);
        if unchanged {
            return Err(s3_error!(NotModified));
        }
        let (entry, attributes, length) = (get.entry, get.attributes, get.body.length());
        let mut crc64 = None;
        if let (Some(memory), None, Some(_)) = (memory, &range, req.input.checksum_mode) {
            // AWS keeps this sum of every object, whatever came with the put.
            let mut hasher =
                ChecksumHasher { crc64nvme: Some(Default::default()), ..ChecksumHasher::default() };
            memory.pieces(&key).unwrap_or_default().iter().for_each(|piece| hasher.update(piece));
            crc64 = hasher.finalize().checksum_crc64nvme;
        }
        let headers = wire::headers(&attributes, false);
        let output = GetObjectOutput {
            accept_ranges: Some("bytes".into()),
            body: Some(wire::blob(get.body).await?),
            content_length: Some(length as i64),
            content_range: range.map(|range| {
                let last = range.start + length.saturating_sub(1);
                format!("bytes {}-{last}/{}", range.start, entry.size)
            }),
            content_type: wire::media_type(&attributes),
            last_modified: Some(wire::time(entry.modified)),
            e_tag: wire::etag(&entry.revision),
            storage_class: wire::class(&entry).map(Into::into),
            tag_count: attributes.tag_count.filter(|count| *count > 0).map(|count| count as i32),
            cache_control: attributes.cache_control,
            content_disposition: attributes.content_disposition,
            content_encoding: attributes.content_encoding,
            content_language: attributes.content_language,
            website_redirect_location: attributes.website_redirect,
            metadata: Some(attributes.meta.into_iter().collect()),
            checksum_type: crc64.is_some().then(|| "FULL_OBJECT".to_string().into()),
            checksum_crc64nvme: crc64,
            ..GetObjectOutput::default()
        };
        Ok(S3Response::with_headers(output, headers))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> Answer<PutObjectOutput> {
        wire::without_locks(&req.headers)?;
        let bucket = self.get(&req.input.bucket)?.bucket;
        let mut input = req.input;
        let key = Key::from(input.key.clone());
        let pieces = wire::pieces(input.body.take()).await?;
        let sums = verify!(input, &pieces);
        if let Some(wanted) = pinned(input.if_match.take()) {
            let (entry, _) = bucket.head(&key).await.map_err(wire::error)?;
            if entry.revision != wanted {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        let options = PutOptions {
            attributes: wire::attributes(&req.headers, input.tagging.as_deref(), input.metadata),
            create_only: create_only(input.if_none_match.as_ref())?,
            sha256: None,
        };
        let put = bucket.put(&key, &pieces, &options).await.map_err(wire::error)?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: wire::etag(&put.revision),
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
            ..PutObjectOutput::default()
        }))
    }

    async fn copy_object(&self, req: S3Request<CopyObjectInput>) -> Answer<CopyObjectOutput> {
        wire::without_locks(&req.headers)?;
        let CopySource::Bucket { bucket: source, key: from, .. } = &req.input.copy_source else {
            return Err(s3_error!(NotImplemented, "copies from access points"));
        };
        let (from, to) = (Key::from(&**from), Key::from(req.input.key.clone()));
        let target = self.get(&req.input.bucket)?.bucket;
        let replaces = |directive: Option<&str>| directive == Some("REPLACE");
        let new_meta = replaces(req.input.metadata_directive.as_ref().map(|directive| directive.as_str()));
        let new_tags = replaces(req.input.tagging_directive.as_ref().map(|directive| directive.as_str()));
        let put = if **source == *req.input.bucket && !new_meta && !new_tags {
            if from == to {
                return Err(s3_error!(InvalidRequest, "a copy onto itself that changes nothing"));
            }
            target.copy(&from, &to).await.map_err(wire::error)?
        } else {
            let source = self.get(source)?.bucket;
            let get = source.get(&from, &GetOptions::default()).await.map_err(wire::error)?;
            let tags = source.tags(&from).await.map_err(wire::error)?;
            let sent = wire::attributes(&req.headers, req.input.tagging.as_deref(), req.input.metadata);
            let mut attributes = if new_meta { sent.clone() } else { get.attributes };
            attributes.tags = if new_tags { sent.tags } else { Some(tags) };
            let content = get.body.bytes().await.map_err(wire::error)?;
            let options = PutOptions { attributes, ..PutOptions::default() };
            target.put(&to, &[content], &options).await.map_err(wire::error)?
        };
        let (entry, _) = target.head(&to).await.map_err(wire::error)?;
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(CopyObjectResult {
                e_tag: wire::etag(&put.revision),
                last_modified: Some(wire::time(entry.modified)),
                ..CopyObjectResult::default()
            }),
            ..CopyObjectOutput::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> Answer<DeleteObjectOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        bucket.delete(&req.input.key.into()).await.map_err(wire::error)?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> Answer<DeleteObjectsOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let keys: Vec<Key> = req.input.delete.objects.into_iter().map(|object| object.key.into()).collect();
        if keys.is_empty() || keys.len() > 1_000 {
            return Err(s3_error!(MalformedXML, "1 to 1,000 keys"));
        }
        let quiet = req.input.delete.quiet.unwrap_or(false);
        let (mut deleted, mut errors) = (Vec::new(), Vec::new());
        for DeleteOutcome { key, result } in bucket.delete_many(&keys).await {
            let key = Some(wire::text(&key));
            match result {
                Ok(()) if quiet => {}
                Ok(()) => deleted.push(DeletedObject { key, ..DeletedObject::default() }),
                Err(error) => {
                    let error = wire::error(error);
                    let (code, message) =
                        (error.code().as_str().to_string(), error.message().map(String::from));
                    errors.push(KeyError { code: Some(code), key, message, version_id: None });
                }
            }
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: (!deleted.is_empty()).then_some(deleted),
            errors: (!errors.is_empty()).then_some(errors),
            request_charged: None,
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> Answer<CreateMultipartUploadOutput> {
        wire::without_locks(&req.headers)?;
        let bucket = self.get(&req.input.bucket)?.bucket;
        let attributes = wire::attributes(&req.headers, req.input.tagging.as_deref(), req.input.metadata);
        let options = PutOptions { attributes, ..PutOptions::default() };
        let upload =
            bucket.begin_upload(&req.input.key.clone().into(), &options).await.map_err(wire::error)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(req.input.bucket),
            key: Some(req.input.key),
            upload_id: Some(upload.id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> Answer<UploadPartOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let mut input = req.input;
        let pieces = wire::pieces(input.body.take()).await?;
        let sums = verify!(input, &pieces);
        let upload = Upload { key: input.key.into(), id: input.upload_id };
        let number = u32::try_from(input.part_number).map_err(|_| s3_error!(InvalidArgument))?;
        let part = bucket.upload_part(&upload, number, &pieces).await.map_err(wire::error)?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(part.etag)),
            checksum_crc32: sums.checksum_crc32,
            checksum_crc32c: sums.checksum_crc32c,
            checksum_crc64nvme: sums.checksum_crc64nvme,
            checksum_sha1: sums.checksum_sha1,
            checksum_sha256: sums.checksum_sha256,
            ..UploadPartOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> Answer<CompleteMultipartUploadOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let input = req.input;
        let options =
            PutOptions { create_only: create_only(input.if_none_match.as_ref())?, ..PutOptions::default() };
        let parts = input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let parts = parts.into_iter().map(|part| {
            Some(PartId { number: u32::try_from(part.part_number?).ok()?, etag: part.e_tag?.into_value() })
        });
        let parts: Option<Vec<PartId>> = parts.collect();
        let parts = parts.ok_or_else(|| s3_error!(MalformedXML, "a part without number or entity tag"))?;
        let upload = Upload { key: input.key.clone().into(), id: input.upload_id };
        let put = bucket.complete_upload(&upload, &parts, &options).await.map_err(wire::error)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: wire::etag(&put.revision),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> Answer<AbortMultipartUploadOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let upload = Upload { key: req.input.key.into(), id: req.input.upload_id };
        bucket.abort_upload(&upload).await.map_err(wire::error)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn get_object_tagging(
        &self,
        req: S3Request<GetObjectTaggingInput>,
    ) -> Answer<GetObjectTaggingOutput> {
        let bucket = self.get(&req.input.bucket)?.bucket;
        let tags = bucket.tags(&req.input.key.into()).await.map_err(wire::error)?;
        Ok(S3Response::new(GetObjectTaggingOutput { tag_set: wire::tag_set(tags), version_id: None }))
    }

    async fn put_object_tagging(
        &self,
        req: S3Request<PutObjectTaggingInput>,
    ) -> Answer<PutObjectTaggingOutput> {
        let memory = self.get(&req.input.bucket)?.memory.ok_or_else(|| s3_error!(NotImplemented))?;
        let tags = wire::tags(req.input.tagging.tag_set);
        memory.set_tags(&req.input.key.into(), tags).map_err(wire::error)?;
        Ok(S3Response::new(PutObjectTaggingOutput::default()))
    }

    async fn delete_object_tagging(
        &self,
        req: S3Request<DeleteObjectTaggingInput>,
    ) -> Answer<DeleteObjectTaggingOutput> {
        let memory = self.get(&req.input.bucket)?.memory.ok_or_else(|| s3_error!(NotImplemented))?;
        memory.set_tags(&req.input.key.into(), Default::default()).map_err(wire::error)?;
        Ok(S3Response::new(DeleteObjectTaggingOutput::default()))
    }
}

/// A page in which keys that share a beginning up to the delimiter stand as one group.
#[derive(Default)]
struct Listing {
    page: Page,
    groups: BTreeSet<Vec<u8>>,
    /// The last group, as a key behind all keys in it.
    skipped: Option<Key>,
}

async fn grouped(
    bucket: &dyn Bucket,
    prefix: &Key,
    mut after: Option<Key>,
    delimiter: &[u8],
    limit: usize,
) -> S3Result<Listing> {
    let mut listing = Listing::default();
    'pages: loop {
        let request = ListRequest { prefix: prefix.clone(), after: after.clone(), token: None, limit: None };
        let page = bucket.list(&request).await.map_err(wire::error)?;
        for entry in page.entries {
            if listing.page.entries.len() + listing.groups.len() == limit {
                // Something follows: where, the caller knows from the last key or group.
                listing.page.next = Some(String::new());
                return Ok(listing);
            }
            let rest = &entry.key.as_bytes()[prefix.len()..];
            let group = rest.windows(delimiter.len()).position(|window| window == delimiter);
            let Some(at) = group else {
                after = Some(entry.key.clone());
                listing.page.entries.push(entry);
                continue;
            };
            let group = entry.key.as_bytes()[..prefix.len() + at + delimiter.len()].to_vec();
            // No key of UTF-8 holds this byte, so this is behind the whole group.
            let behind = Key::new([group.as_slice(), b"\xff"].concat());
            listing.groups.insert(group);
            listing.skipped = Some(behind.clone());
            after = Some(behind);
            continue 'pages;
        }
        if page.next.is_none() {
            return Ok(listing);
        }
    }
}
