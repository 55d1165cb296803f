//! Writing, copying and deleting, where answers are lost and stores lack what others have.

use super::*;
use crate::Attributes;

const KEY: &str = "k";

fn pieces() -> [Bytes; 3] {
    [Bytes::from_static(b"1234"), Bytes::new(), Bytes::from_static(b"56789")]
}

const SHA256: &str = "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225";
const MD5: &str = "25f9e794323b453885f5181f1b624d0b";

fn over_tls(handler: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> World {
    let mut config = S3Config::new("b");
    config.endpoint = Some("https://store".parse().unwrap());
    config.credentials = Credentials::fixed("id", "hunter2");
    World::with(config, handler)
}

#[tokio::test(start_paused = true)]
async fn a_body_goes_out_whole_and_signed() {
    let world = World::new(|_, _| answer(200, &[TAG], ""));
    let attributes = Attributes {
        content_type: Some("text/x".into()),
        meta: [("a".into(), "é".into())].into(),
        tags: Some([("t".into(), "v w".into())].into()),
        ..Attributes::default()
    };
    let options = PutOptions { attributes, ..PutOptions::default() };
    let put = world.bucket.put(&KEY.into(), &pieces(), &options).await.unwrap();
    assert_eq!(put.revision.etag(), Some("t1"));
    let seen = &world.seen()[0];
    assert_eq!((seen.line.as_str(), &*seen.body), ("PUT /b/k", &b"123456789"[..]));
    assert_eq!(seen.header("content-length"), Some("9"));
    assert_eq!(seen.header("x-amz-content-sha256"), Some(SHA256));
    assert_eq!(seen.header("x-amz-tagging"), Some("t=v%20w"));
    assert_eq!((seen.header("content-type"), seen.header("x-amz-meta-a")), (Some("text/x"), Some("é")));
    assert_eq!((seen.header("x-amz-checksum-crc32c"), seen.header("if-none-match")), (None, None));
    let signed =
        "SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date;x-amz-meta-a;x-amz-tagging,";
    assert!(seen.header("authorization").unwrap().contains(signed), "{seen:?}");
    assert_eq!(world.counts().sent, 9);

    world.bucket.put(&KEY.into(), &[], &PutOptions::default()).await.unwrap();
    assert_eq!(world.seen()[1].header("content-length"), Some("0"));
}

#[tokio::test(start_paused = true)]
async fn over_tls_a_checksum_goes_along_unless_the_store_refuses_it() {
    let world = over_tls(|n, _| match n {
        0 => answer(200, &[TAG, ("x-amz-checksum-crc32c", "4waSgw==")], ""),
        // The store confirms something else: once more.
        1 => answer(200, &[TAG, ("x-amz-checksum-crc32c", "AAAAAA==")], ""),
        2 => answer(200, &[TAG], ""),
        3 => error(501, "NotImplemented"),
        _ => answer(200, &[TAG], ""),
    });
    for _ in 0..4 {
        world.bucket.put(&KEY.into(), &pieces(), &PutOptions::default()).await.unwrap();
    }
    let seen: Vec<_> = world
        .seen()
        .iter()
        .map(|s| {
            (
                s.header("x-amz-content-sha256").unwrap().to_owned(),
                s.header("x-amz-checksum-crc32c").is_some(),
            )
        })
        .collect();
    let crc = ("UNSIGNED-PAYLOAD".to_owned(), true);
    let sha = (SHA256.to_owned(), false);
    assert_eq!(seen, [crc.clone(), crc.clone(), crc.clone(), crc, sha.clone(), sha]);
    let known = PutOptions { sha256: Some([7; 32]), ..PutOptions::default() };
    let world = over_tls(|_, _| answer(200, &[TAG], ""));
    world.bucket.put(&KEY.into(), &pieces(), &known).await.unwrap();
    assert_eq!(world.seen()[0].header("x-amz-content-sha256"), Some("07".repeat(32).as_str()));
}

#[tokio::test(start_paused = true)]
async fn contents_that_were_changed_on_their_way_are_sent_again() {
    let world = World::new(|n, _| match n {
        0 => error(400, "XAmzContentSHA256Mismatch"),
        _ => answer(200, &[TAG], ""),
    });
    world.bucket.put(&KEY.into(), &pieces(), &PutOptions::default()).await.unwrap();
    assert_eq!(world.counts().count(Verb::Put), 2);
}

#[tokio::test(start_paused = true)]
async fn creating_knows_its_own_work_from_anothers() {
    let head = |tag: &str| answer(200, &[MODIFIED, ("etag", tag)], "");
    let options = PutOptions { create_only: true, ..PutOptions::default() };
    // The answer to the first try is lost; whose object is it that the second one finds?
    for (tag, ours) in [(MD5, true), ("0123", false)] {
        let world = World::new(move |n, seen| match (n, seen.line.starts_with("HEAD")) {
            (_, true) => head(tag),
            (0, _) => Reply::Cut(Vec::new()),
            _ => {
                assert_eq!(seen.header("if-none-match"), Some("*"));
                error(412, "PreconditionFailed")
            }
        });
        let result = world.bucket.put(&KEY.into(), &pieces(), &options).await;
        match ours {
            true => assert_eq!(result.unwrap().revision.etag(), Some(MD5)),
            false => assert_eq!(result.unwrap_err().kind, ErrorKind::AlreadyExists),
        }
    }
    // Nothing was lost: no doubt either.
    let world = World::new(|_, _| error(412, "PreconditionFailed"));
    let refused = world.bucket.put(&KEY.into(), &pieces(), &options).await.unwrap_err();
    assert_eq!((refused.kind, world.seen().len()), (ErrorKind::AlreadyExists, 1));
    // A store without conditions.
    let world = World::new(|_, seen| match seen.header("if-none-match") {
        Some(_) => error(501, "NotImplemented"),
        None => answer(200, &[TAG], ""),
    });
    world.bucket.put(&KEY.into(), &pieces(), &options).await.unwrap();
    assert!(!world.bucket.capabilities().create_only);
    world.bucket.put(&KEY.into(), &pieces(), &options).await.unwrap();
    assert_eq!(world.seen().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_no_header_can_hold_is_refused_before_anything_is_sent() {
    let world = World::new(|_, _| unreachable!());
    let attributes = Attributes { meta: [("a b".into(), "x".into())].into(), ..Attributes::default() };
    let options = PutOptions { attributes, ..PutOptions::default() };
    for error in [
        world.bucket.put(&KEY.into(), &pieces(), &options).await.unwrap_err(),
        world.bucket.begin_upload(&KEY.into(), &options).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::Unsupported);
        assert!(error.to_string().contains("\"a b\""), "{error}");
    }
}

const BEGUN: &str =
    "<InitiateMultipartUploadResult><UploadId>u/1=</UploadId></InitiateMultipartUploadResult>";
const DONE: &str =
    "<CompleteMultipartUploadResult><ETag>&quot;abc-2&quot;</ETag></CompleteMultipartUploadResult>";

#[tokio::test(start_paused = true)]
async fn an_upload_in_parts_carries_checksums_where_the_store_knows_them() {
    for known in [true, false] {
        let world = over_tls(move |_, seen| match &*seen.line {
            "POST /b/k?uploads=" => {
                let mut headers = vec![];
                if known {
                    headers.push(("x-amz-checksum-algorithm", "CRC32C"));
                }
                assert_eq!(seen.header("x-amz-meta-a"), Some("b"));
                answer(200, &headers, BEGUN)
            }
            line if line.starts_with("PUT /b/k?partNumber=") => {
                assert!(line.ends_with("&uploadId=u%2F1%3D"));
                assert_eq!(seen.header("x-amz-checksum-crc32c").is_some(), known);
                assert_eq!(
                    seen.header("x-amz-content-sha256"),
                    Some(if known { "UNSIGNED-PAYLOAD" } else { SHA256 })
                );
                answer(200, &[("etag", "\"p\"")], "")
            }
            "POST /b/k?uploadId=u%2F1%3D" => answer(200, &[], DONE),
            "DELETE /b/k?uploadId=u%2F1%3D" => error(404, "NoSuchUpload"),
            other => panic!("{other}"),
        });
        let attributes = Attributes { meta: [("a".into(), "b".into())].into(), ..Attributes::default() };
        let options = PutOptions { attributes, ..PutOptions::default() };
        let upload = world.bucket.begin_upload(&KEY.into(), &options).await.unwrap();
        let parts = [
            world.bucket.upload_part(&upload, 1, &pieces()).await.unwrap(),
            world.bucket.upload_part(&upload, 2, &pieces()).await.unwrap(),
        ];
        let put = world.bucket.complete_upload(&upload, &parts, &options).await.unwrap();
        assert_eq!(put.revision.etag(), Some("abc-2"));
        let body = String::from_utf8(world.seen().last().unwrap().body.clone()).unwrap();
        assert_eq!(
            body.matches("<ChecksumCRC32C>4waSgw==</ChecksumCRC32C>").count(),
            if known { 2 } else { 0 }
        );
        assert!(body.contains("<ETag>&quot;p&quot;</ETag><PartNumber>2</PartNumber>"), "{body}");
        world.bucket.abort_upload(&upload).await.unwrap();
        assert_eq!(world.counts().sent, 18); // contents only
        assert_eq!(world.bucket.upload_part(&upload, 0, &[]).await.unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(
            world.bucket.upload_part(&upload, 10_001, &[]).await.unwrap_err().kind,
            ErrorKind::Invalid
        );
        let swapped = [parts[1].clone(), parts[0].clone()];
        for wrong in [&swapped[..], &[]] {
            let error = world.bucket.complete_upload(&upload, wrong, &options).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_completed_upload_whose_answer_was_lost_is_recognised() {
    let sum = hex::encode(crate::checksum::md5(&[hex::decode(MD5).unwrap().into()]));
    for (tag, found) in [(format!("{sum}-1"), true), ("other-1".to_owned(), false)] {
        let world = World::new(move |n, seen| match (n, seen.line.starts_with("HEAD")) {
            (_, true) => answer(200, &[MODIFIED, ("etag", &tag)], ""),
            (0, _) => Reply::Cut(Vec::new()),
            _ => error(404, "NoSuchUpload"),
        });
        let upload = Upload { key: KEY.into(), id: "u".into() };
        let parts = [PartId { number: 1, etag: MD5.into() }];
        let result = world.bucket.complete_upload(&upload, &parts, &PutOptions::default()).await;
        assert_eq!(result.is_ok(), found, "{result:?}");
    }
    // Without a lost answer the upload is just not there.
    let world = World::new(|_, _| error(404, "NoSuchUpload"));
    let upload = Upload { key: KEY.into(), id: "u".into() };
    let parts = [PartId { number: 1, etag: MD5.into() }];
    let gone = world.bucket.complete_upload(&upload, &parts, &PutOptions::default()).await.unwrap_err();
    assert_eq!((gone.kind, world.seen().len()), (ErrorKind::NoSuchKey, 1));
}

#[tokio::test(start_paused = true)]
async fn an_error_behind_a_200_is_an_error() {
    let world = World::new(|n, _| match n {
        0 => error(200, "InternalError"),
        1 => answer(200, &[], "   "),
        2 => answer(200, &[], DONE),
        _ => error(200, "AccessDenied"),
    });
    let upload = Upload { key: KEY.into(), id: "u".into() };
    let parts = [PartId { number: 1, etag: MD5.into() }];
    world.bucket.complete_upload(&upload, &parts, &PutOptions::default()).await.unwrap();
    assert_eq!(world.seen().len(), 3);
    let denied = world.bucket.complete_upload(&upload, &parts, &PutOptions::default()).await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn a_copy_keeps_class_and_redirection_and_is_pinned() {
    let world = World::new(|_, seen| match seen.line.starts_with("HEAD") {
        true => answer(
            200,
            &[
                MODIFIED,
                TAG,
                ("x-amz-storage-class", "STANDARD_IA"),
                ("x-amz-website-redirect-location", "/x"),
            ],
            "",
        ),
        false => answer(200, &[], "<CopyObjectResult><ETag>\"t2\"</ETag></CopyObjectResult>"),
    });
    let put = world.bucket.copy(&"a ü/../+".into(), &"to".into()).await.unwrap();
    assert_eq!(put.revision.etag(), Some("t2"));
    let seen = &world.seen()[1];
    assert_eq!(seen.line, "PUT /b/to");
    assert_eq!(seen.header("x-amz-copy-source"), Some("/b/a%20%C3%BC/../%2B"));
    assert_eq!(seen.header("x-amz-copy-source-if-match"), Some("\"t1\""));
    assert_eq!(seen.header("x-amz-storage-class"), Some("STANDARD_IA"));
    assert_eq!(seen.header("x-amz-website-redirect-location"), Some("/x"));
    assert_eq!(seen.header("x-amz-metadata-directive"), None);
    // Onto itself there is nothing to do.
    let put = world.bucket.copy(&"to".into(), &"to".into()).await.unwrap();
    assert_eq!((put.revision.etag(), world.seen().len()), (Some("t1"), 3));
}

#[tokio::test(start_paused = true)]
async fn a_copy_says_again_what_some_stores_forget() {
    for (missing, directive) in [("0", Some("REPLACE")), ("1", None)] {
        let world = World::new(move |_, seen| match seen.line.starts_with("HEAD") {
            true => answer(
                200,
                &[
                    MODIFIED,
                    TAG,
                    ("expires", "later"),
                    ("x-amz-meta-a", "b"),
                    ("x-amz-missing-meta", missing),
                ],
                "",
            ),
            false => answer(200, &[], "<CopyObjectResult><ETag>\"t2\"</ETag></CopyObjectResult>"),
        });
        world.bucket.copy(&"from".into(), &"to".into()).await.unwrap();
        let seen = &world.seen()[1];
        assert_eq!(seen.header("x-amz-metadata-directive"), directive);
        assert_eq!(seen.header("expires").is_some(), directive.is_some());
        assert_eq!(seen.header("x-amz-meta-a").is_some(), directive.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn a_path_that_a_server_does_not_route_is_a_key_that_it_cannot_hold() {
    let world = World::new(|_, _| answer(404, &[], "<!doctype html><title>404</title>"));
    let (key, options) = ("a\nb".into(), PutOptions::default());
    let kinds = [
        world.bucket.put(&key, &pieces(), &options).await.unwrap_err().kind,
        world.bucket.begin_upload(&key, &options).await.unwrap_err().kind,
        world.bucket.head(&key).await.unwrap_err().kind,
    ];
    assert_eq!(kinds, [ErrorKind::Unsupported, ErrorKind::Unsupported, ErrorKind::NoSuchKey]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_a_store_cannot_even_verify_is_not_supported() {
    let world = World::new(|_, _| error(403, "SignatureDoesNotMatch"));
    let mut kinds = Vec::new();
    for key in [Key::new([0xff]), KEY.into()] {
        kinds.push(world.bucket.put(&key, &pieces(), &PutOptions::default()).await.unwrap_err().kind);
    }
    assert_eq!(kinds, [ErrorKind::Unsupported, ErrorKind::Denied]);
}

#[tokio::test(start_paused = true)]
async fn a_large_copy_goes_in_parts_with_attributes_and_tags() {
    let world = World::new(|_, seen| match &*seen.line {
        "GET /b/from?tagging=" => {
            answer(200, &[], "<Tagging><TagSet><Tag><Key>t</Key><Value>v</Value></Tag></TagSet></Tagging>")
        }
        "HEAD /b/from" => answer(200, &[MODIFIED, TAG], ""),
        "POST /b/to?uploads=" => {
            assert_eq!(seen.header("x-amz-tagging"), Some("t=v"));
            assert_eq!(seen.header("content-type"), Some("text/x"));
            answer(200, &[], BEGUN)
        }
        line if line.starts_with("PUT") => {
            answer(200, &[], "<CopyPartResult><ETag>\"p\"</ETag></CopyPartResult>")
        }
        _ => answer(200, &[], DONE),
    });
    let inner = &world.bucket.inner;
    let attributes = Attributes { content_type: Some("text/x".into()), ..Attributes::default() };
    let entry = |size, tag: &str| crate::Entry {
        key: "from".into(),
        size,
        modified: "2015-10-21T07:28:00Z".parse().unwrap(),
        revision: crate::Revision::ETag(tag.into()),
        class: None,
        attributes: None,
    };
    let to = "to".into();
    write::copy_in_parts(inner, &entry(25, "t1"), &to, attributes.clone(), 10).await.unwrap();
    let mut ranges: Vec<_> = world
        .seen()
        .iter()
        .filter_map(|s| s.header("x-amz-copy-source-range").map(|r| (s.line.clone(), r.to_owned())))
        .collect();
    ranges.sort();
    assert_eq!(
        ranges.iter().map(|(_, r)| r.as_str()).collect::<Vec<_>>(),
        ["bytes=0-9", "bytes=10-19", "bytes=20-24"]
    );
    assert!(ranges[2].0.starts_with("PUT /b/to?partNumber=3&"));

    // The source was replaced meanwhile, on a store that ignores conditions.
    let late = write::copy_in_parts(inner, &entry(25, "t0"), &to, attributes.clone(), 10).await;
    assert_eq!(late.unwrap_err().kind, ErrorKind::PreconditionFailed);
    assert!(world.lines().last().unwrap().starts_with("DELETE /b/to?uploadId="));

    // A part that fails takes the upload with it.
    let world = World::new(|_, seen| match &*seen.line {
        "POST /b/to?uploads=" => answer(200, &[], BEGUN),
        line if line.starts_with("PUT") => error(412, "PreconditionFailed"),
        _ => answer(204, &[], ""),
    });
    let untagged = Attributes { tag_count: Some(0), ..attributes };
    let failed = write::copy_in_parts(&world.bucket.inner, &entry(5, "t1"), &to, untagged, 10).await;
    assert_eq!(failed.unwrap_err().kind, ErrorKind::PreconditionFailed);
    assert_eq!(world.lines().last().unwrap(), "DELETE /b/to?uploadId=u%2F1%3D");
}

fn outcomes(outcomes: Vec<DeleteOutcome>) -> Vec<(String, Option<ErrorKind>)> {
    outcomes.into_iter().map(|o| (o.key.to_string(), o.result.err().map(|e| e.kind))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_batch_deletes_what_xml_can_hold_and_the_rest_goes_by_itself() {
    let world = World::new(|_, seen| match seen.line.starts_with("POST /b/?delete=") {
        true => {
            let body = String::from_utf8(seen.body.clone()).unwrap();
            assert!(body.contains("<Key>a&amp;&#10;&lt;</Key>") && !body.contains('\u{1}'), "{body}");
            assert!(seen.header("content-md5").is_some());
            answer(
                200,
                &[],
                "<DeleteResult><Error><Key>denied</Key><Code>AccessDenied</Code></Error>\
                 <Error><Key>busy</Key><Code>SlowDown</Code></Error>\
                 <Error><Key>gone</Key><Code>NoSuchKey</Code></Error></DeleteResult>",
            )
        }
        false => answer(204, &[], ""),
    });
    let keys: Vec<Key> = vec![
        "a&\n<".into(),
        "x\u{1}".into(),
        "denied".into(),
        "busy".into(),
        "gone".into(),
        Key::new([0xff]),
        "z".into(),
    ];
    let expected = [
        ("a&\\n<", None),
        ("x\\u{1}", None),
        ("denied", Some(ErrorKind::Denied)),
        ("busy", None),
        ("gone", None),
        ("\\xff", None),
        ("z", None),
    ];
    let expected: Vec<_> = expected.map(|(k, e)| (k.to_owned(), e)).into();
    assert_eq!(outcomes(world.bucket.delete_many(&keys).await), expected);
    let mut lines = world.lines();
    lines.sort();
    assert_eq!(lines, ["DELETE /b/%FF", "DELETE /b/busy", "DELETE /b/x%01", "POST /b/?delete="]);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_keys_are_one_request() {
    let world = World::new(|_, _| answer(200, &[], "<DeleteResult/>"));
    let keys: Vec<Key> = (0..2_001).map(|i| Key::from(format!("{i}"))).collect();
    let outcomes = world.bucket.delete_many(&keys).await;
    assert!(outcomes.iter().zip(&keys).all(|(o, k)| o.key == *k && o.result.is_ok()));
    let mut lines = world.lines();
    lines.sort();
    assert_eq!(lines, ["DELETE /b/2000", "POST /b/?delete=", "POST /b/?delete="]);
    assert_eq!(world.counts().count(Verb::Delete), 3);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_is_no_success() {
    let keys: Vec<Key> = vec!["a".into(), "b".into()];
    // Not known to the store, one key spoils all, an answer about other keys: one by one.
    for reply in [
        || error(501, "NotImplemented"),
        || error(400, "MalformedXML"),
        || {
            answer(
                200,
                &[],
                "<DeleteResult><Error><Key>c</Key><Code>AccessDenied</Code></Error></DeleteResult>",
            )
        },
    ] {
        let world = World::new(move |_, seen| match seen.line.starts_with("POST") {
            true => reply(),
            false if seen.line.ends_with('b') => error(403, "AccessDenied"),
            false => answer(204, &[], ""),
        });
        let expected = [("a".to_owned(), None), ("b".to_owned(), Some(ErrorKind::Denied))];
        assert_eq!(outcomes(world.bucket.delete_many(&keys).await), expected);
    }
    let world = World::new(|_, _| error(403, "AccessDenied"));
    let denied = outcomes(world.bucket.delete_many(&keys).await);
    assert!(denied.iter().all(|(_, kind)| *kind == Some(ErrorKind::Denied)), "{denied:?}");
    assert_eq!(world.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_bucket_is_created_in_its_region_if_it_is_missing() {
    let mut config = S3Config::new("b");
    config.endpoint = Some("http://store".parse().unwrap());
    config.region = Some("eu-west-1".into());
    let world = World::with(config, |n, _| match n {
        0 => error(404, "NoSuchBucket"),
        1 => error(400, "InvalidLocationConstraint"),
        2 => error(409, "BucketAlreadyOwnedByYou"),
        _ => answer(200, &[], "<ListBucketResult/>"),
    });
    world.bucket.create().await.unwrap();
    let list = "GET /b/?list-type=2&max-keys=1";
    assert_eq!(world.lines(), [list, "PUT /b/", "PUT /b/", list]);
    let seen = world.seen();
    assert!(String::from_utf8_lossy(&seen[1].body).contains("<LocationConstraint>eu-west-1<"));
    assert!(seen[2].body.is_empty());
    let world = World::new(|_, _| error(403, "AccessDenied"));
    assert_eq!(world.bucket.create().await.unwrap_err().kind, ErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn a_slow_limit_is_no_stall_and_a_long_body_gets_another_try() {
    let mut config = S3Config::new("b");
    config.endpoint = Some("http://store".parse().unwrap());
    // 64 KiB take longer than any time-out.
    config.limits.bytes_per_second = Some(64);
    let world =
        World::with(config, |n, _| if n == 0 { Reply::Cut(Vec::new()) } else { answer(200, &[TAG], "") });
    let started = tokio::time::Instant::now();
    let body = [Bytes::from(vec![7; 3 * 64 * 1024])];
    world.bucket.put(&KEY.into(), &body, &PutOptions::default()).await.unwrap();
    assert!(started.elapsed().as_secs() > 4_000, "{:?}", started.elapsed());
    assert_eq!(world.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_signs_goes_with_a_checksum() {
    let mut config = S3Config::new("b");
    config.endpoint = Some("http://store".parse().unwrap());
    let world = World::with(config, |_, seen| match seen.line.starts_with("POST") {
        true => answer(200, &[("x-amz-checksum-algorithm", "CRC32C")], BEGUN),
        false => answer(200, &[TAG], ""),
    });
    let known = PutOptions { sha256: Some([7; 32]), ..PutOptions::default() };
    for options in [PutOptions::default(), known] {
        world.bucket.put(&KEY.into(), &pieces(), &options).await.unwrap();
        assert_eq!(world.seen().last().unwrap().header("x-amz-checksum-crc32c"), Some("4waSgw=="));
    }
    let upload = world.bucket.begin_upload(&KEY.into(), &PutOptions::default()).await.unwrap();
    world.bucket.upload_part(&upload, 1, &pieces()).await.unwrap();
    assert_eq!(world.seen().last().unwrap().header("x-amz-checksum-crc32c"), Some("4waSgw=="));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_named_twice_has_one_fate() {
    let world = World::new(|_, _| {
        let xml =
            "<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message/></Error></DeleteResult>";
        answer(200, &[], xml)
    });
    let outcomes = world.bucket.delete_many(&["a".into(), "b".into(), "a".into()]).await;
    let denied: Vec<bool> = outcomes.iter().map(|o| o.result.is_err()).collect();
    assert_eq!((denied, world.seen().len()), (vec![true, false, true], 1));
}

#[tokio::test(start_paused = true)]
async fn only_a_store_that_knows_no_batches_is_spared_them() {
    for (status, code, spared) in
        [(501, "NotImplemented", true), (405, "", true), (400, "KeyTooLongError", false), (413, "", false)]
    {
        let world = World::new(move |_, seen| match seen.line.starts_with("POST") {
            true if code.is_empty() => answer(status, &[], ""),
            true => error(status, code),
            false => answer(204, &[], ""),
        });
        let keys = ["a".into(), "b".into()];
        for _ in 0..2 {
            assert!(world.bucket.delete_many(&keys).await.iter().all(|outcome| outcome.result.is_ok()));
        }
        let batches = world.lines().iter().filter(|line| line.starts_with("POST")).count();
        assert_eq!(batches, if spared { 1 } else { 2 }, "{status} {code}");
    }
}
