//! Listing and reading through retries, cuts, stalls and lies.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::Instant;

use super::*;
use crate::{Body, Limits, RetryPolicy, Verifier};

async fn all(body: Body) -> Result<Bytes> {
    body.bytes().await
}

fn object(body: &str) -> Reply {
    answer(200, &[MODIFIED, TAG], body)
}

#[tokio::test(start_paused = true)]
async fn a_store_that_asks_for_less_is_waited_for() {
    let world = World::new(|n, _| match n {
        0 => answer(503, &[("retry-after", "7")], "<Error><Code>SlowDown</Code></Error>"),
        1 => answer(429, &[], ""),
        2 => error(500, "InternalError"),
        3 => Reply::Cut(Vec::new()),
        _ => object("hello"),
    });
    let started = Instant::now();
    let get = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap();
    assert_eq!(all(get.body).await.unwrap(), "hello");
    assert!(started.elapsed() >= Duration::from_secs(7));
    let counts = world.counts();
    assert_eq!((counts.count(Verb::Get), counts.retries, counts.throttled, counts.received), (5, 4, 2, 5));
}

#[tokio::test(start_paused = true)]
async fn tries_end() {
    let world = World::new(|_, _| error(503, "SlowDown"));
    let error = world.bucket.head(&"k".into()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Throttled);
    assert_eq!(world.seen().len(), RetryPolicy::default().max_tries as usize);

    let world = World::new(|_, _| Reply::Stall(Vec::new()));
    let started = Instant::now();
    let error = world.bucket.list(&ListRequest::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unreachable);
    assert!(error.to_string().contains("within 120s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(600), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn contents_go_on_where_they_broke_off() {
    for stall in [false, true] {
        let world = World::new(move |n, seen| {
            let cut = |bytes| if stall { Reply::Stall(bytes) } else { Reply::Cut(bytes) };
            match n {
                0 => {
                    let mut bytes = raw(200, &[MODIFIED, TAG], b"0123456789");
                    bytes.truncate(bytes.len() - 6);
                    cut(bytes)
                }
                1 => {
                    assert_eq!(seen.header("range"), Some("bytes=4-9"));
                    assert_eq!(seen.header("if-match"), Some("\"t1\""));
                    let range = ("content-range", "bytes 4-9/10");
                    let mut bytes = raw(206, &[MODIFIED, TAG, range], b"456789");
                    bytes.truncate(bytes.len() - 1);
                    cut(bytes)
                }
                2 => error(503, "SlowDown"),
                _ => {
                    assert_eq!(seen.header("range"), Some("bytes=9-9"));
                    answer(206, &[MODIFIED, TAG, ("content-range", "bytes 9-9/10")], "9")
                }
            }
        });
        let get = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap();
        assert_eq!(get.entry.size, 10);
        assert_eq!(all(get.body).await.unwrap(), "0123456789");
        assert_eq!((world.seen().len(), world.counts().received), (4, 10));
    }
}

#[tokio::test(start_paused = true)]
async fn a_range_goes_on_within_itself() {
    let world = World::new(|n, seen| match n {
        0 => {
            assert_eq!(seen.header("range"), Some("bytes=2-5"));
            Reply::Cut(raw(
                206,
                &[MODIFIED, TAG, ("content-range", "bytes 2-5/10"), ("content-length", "4")],
                b"23",
            ))
        }
        _ => {
            assert_eq!(seen.header("range"), Some("bytes=4-5"));
            answer(206, &[MODIFIED, TAG, ("content-range", "bytes 4-5/10")], "45")
        }
    });
    let options = GetOptions { range: Some(2..6), revision: None };
    let get = world.bucket.get(&"k".into(), &options).await.unwrap();
    assert_eq!((get.entry.size, get.body.length()), (10, 4));
    assert_eq!(all(get.body).await.unwrap(), "2345");
}

#[tokio::test(start_paused = true)]
async fn contents_are_never_mixed_of_two_states() {
    let cut = || Reply::Cut(raw(200, &[MODIFIED, TAG, ("content-length", "10")], b"0123"));
    type Second = fn() -> Reply;
    let table: [(Second, ErrorKind); 4] = [
        (|| error(412, "PreconditionFailed"), ErrorKind::PreconditionFailed),
        (|| error(404, "NoSuchKey"), ErrorKind::NoSuchKey),
        // A store that ignores the condition is noticed by its answer.
        (
            || answer(206, &[MODIFIED, ("etag", "\"t2\""), ("content-range", "bytes 4-9/10")], "456789"),
            ErrorKind::PreconditionFailed,
        ),
        (|| answer(206, &[MODIFIED, TAG, ("content-range", "bytes 4-8/9")], "45678"), ErrorKind::BadAnswer),
    ];
    for (second, kind) in table {
        let world = World::new(move |n, _| if n == 0 { cut() } else { second() });
        let get = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap();
        assert_eq!(all(get.body).await.unwrap_err().kind, kind);
        assert_eq!(world.seen().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn contents_without_an_entity_tag_cannot_go_on() {
    let world = World::new(|_, _| Reply::Cut(raw(200, &[MODIFIED, ("content-length", "10")], b"0123")));
    let get = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap();
    assert_eq!(get.entry.revision, Revision::Unknown);
    assert_eq!(all(get.body).await.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(world.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn contents_that_always_break_off_are_an_error_in_the_end() {
    let world = World::new(|n, seen| match n {
        0 => Reply::Cut(raw(200, &[MODIFIED, TAG, ("content-length", "10")], b"0123")),
        _ => {
            assert_eq!(seen.header("range"), Some("bytes=4-9"));
            let range = ("content-range", "bytes 4-9/10");
            Reply::Cut(raw(206, &[MODIFIED, TAG, range, ("content-length", "6")], b""))
        }
    });
    let mut body = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap().body;
    assert_eq!(body.next().await.unwrap().unwrap(), "0123");
    assert_eq!(body.next().await.unwrap().unwrap_err().kind, ErrorKind::Unreachable);
    assert!(body.next().await.is_none());
    assert_eq!(world.seen().len(), RetryPolicy::default().max_tries as usize);
}

#[tokio::test(start_paused = true)]
async fn the_time_in_which_nobody_reads_does_not_count_as_a_stall() {
    let world = World::new(|_, _| object(&"x".repeat(1 << 20)));
    let mut body = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap().body;
    let mut length = 0;
    while let Some(bytes) = body.next().await {
        length += bytes.unwrap().len();
        tokio::time::sleep(Duration::from_secs(3_600)).await;
    }
    assert_eq!((length, world.seen().len()), (1 << 20, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_what_was_asked_for_is_an_error() {
    let ranged = GetOptions { range: Some(2..6), revision: None };
    let pinned = GetOptions { range: None, revision: Some(Revision::ETag("t0".into())) };
    let foreign = GetOptions { range: None, revision: Some(Revision::Generation { object: 1, meta: 1 }) };
    type Answer = fn() -> Reply;
    let table: [(&GetOptions, Answer, ErrorKind); 10] = [
        (&ranged, || object("0123456789"), ErrorKind::BadAnswer),
        (&ranged, || answer(206, &[MODIFIED, TAG], "2345"), ErrorKind::BadAnswer),
        (
            &ranged,
            || answer(206, &[MODIFIED, TAG, ("content-range", "bytes 3-6/10")], "3456"),
            ErrorKind::BadAnswer,
        ),
        (
            &ranged,
            || answer(206, &[MODIFIED, TAG, ("content-range", "bytes 2-4/10")], "234"),
            ErrorKind::BadAnswer,
        ),
        (&ranged, || error(416, "InvalidRange"), ErrorKind::Invalid),
        (&pinned, || object("x"), ErrorKind::PreconditionFailed),
        (&foreign, || unreachable!(), ErrorKind::PreconditionFailed),
        (&GetOptions { range: None, revision: None }, || answer(200, &[TAG], "x"), ErrorKind::BadAnswer),
        (
            &GetOptions { range: None, revision: None },
            || answer(206, &[MODIFIED, TAG], "x"),
            ErrorKind::BadAnswer,
        ),
        (&GetOptions { range: Some(3..3), revision: None }, || unreachable!(), ErrorKind::Invalid),
    ];
    for (i, (options, reply, kind)) in table.into_iter().enumerate() {
        let world = World::new(move |_, _| reply());
        let error = world.bucket.get(&"k".into(), options).await.err().map(|e| e.kind);
        assert_eq!(error, Some(kind), "case {i}");
    }
    let no_length = |_: usize, _: &Seen| {
        Reply::Cut(b"HTTP/1.1 200 OK\r\nlast-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\nabc".to_vec())
    };
    let error = World::new(no_length).bucket.get(&"k".into(), &GetOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("Content-Length"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_range_behind_the_end_is_cut_as_http_has_it() {
    let world =
        World::new(|_, _| answer(206, &[MODIFIED, TAG, ("content-range", "bytes 2-9/10")], "23456789"));
    let options = GetOptions { range: Some(2..100), revision: None };
    let get = world.bucket.get(&"k".into(), &options).await.unwrap();
    assert_eq!(all(get.body).await.unwrap(), "23456789");
    // A range that is the whole may come as the whole.
    let world = World::new(|_, _| object("0123"));
    let options = GetOptions { range: Some(0..100), revision: None };
    let get = world.bucket.get(&"k".into(), &options).await.unwrap();
    assert_eq!((get.body.length(), get.checksums.len()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn keys_go_over_the_wire_byte_by_byte() {
    let long = "k".repeat(1_024);
    let table: [(&[u8], &str); 15] = [
        (b"a/b", "/b/a/b"),
        (b"a/../b", "/b/a/../b"),
        (b"..", "/b/.."),
        (b".", "/b/."),
        (b"./x", "/b/./x"),
        (b"//", "/b///"),
        (b"/lead", "/b//lead"),
        (b"a//b/", "/b/a//b/"),
        (b"a b", "/b/a%20b"),
        (b"100%", "/b/100%25"),
        (b"a%2Fb", "/b/a%252Fb"),
        (b"a+b?c#d&e=f", "/b/a%2Bb%3Fc%23d%26e%3Df"),
        ("é\u{1f600}e\u{301}".as_bytes(), "/b/%C3%A9%F0%9F%98%80e%CC%81"),
        (b"\x00\x01\n\xff", "/b/%00%01%0A%FF"),
        (long.as_bytes(), &format!("/b/{long}")),
    ];
    for (key, target) in table {
        let world = World::new(|_, _| object("x"));
        let key = Key::new(key);
        let get = world.bucket.get(&key, &GetOptions::default()).await.unwrap();
        assert_eq!(get.entry.key, key);
        world.bucket.delete(&key).await.unwrap();
        assert_eq!(world.lines(), [format!("GET {target}"), format!("DELETE {target}")]);
    }
    let world = World::new(|_, _| unreachable!());
    assert_eq!(world.bucket.delete(&Key::default()).await.unwrap_err().kind, ErrorKind::Invalid);
    let huge = Key::new(vec![0xff; 20_000]);
    assert_eq!(world.bucket.delete(&huge).await.unwrap_err().kind, ErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn a_head_without_a_reason_is_asked_again_as_a_read() {
    let world = World::new(|_, seen| match seen.line.starts_with("HEAD") {
        true => Reply::Answer(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        false => answer(
            400,
            &[],
            "<Error><Code>InvalidRequest</Code><Message>The object was stored using a form of Server Side Encryption.</Message></Error>",
        ),
    });
    assert_eq!(world.bucket.head(&"k".into()).await.unwrap_err().kind, ErrorKind::CustomerKey);
    assert_eq!(world.lines(), ["HEAD /b/k", "GET /b/k"]);
}

#[tokio::test(start_paused = true)]
async fn hundreds_of_headers_are_read() {
    let names: Vec<String> = (0..300).map(|i| format!("x-amz-meta-{i:03}")).collect();
    let world = World::new(move |_, _| {
        let mut headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        headers.extend([MODIFIED, TAG, ("x-amz-tagging-count", "3"), ("x-amz-storage-class", "GLACIER_IR")]);
        Reply::Answer(raw(200, &headers, b""))
    });
    let (entry, attributes) = world.bucket.head(&"k".into()).await.unwrap();
    assert_eq!((attributes.meta.len(), attributes.tag_count), (300, Some(3)));
    assert_eq!((entry.class.as_deref(), entry.size), (Some("GLACIER_IR"), 0));
}

fn listing(entries: &str, rest: &str) -> String {
    format!("<ListBucketResult>{entries}{rest}</ListBucketResult>")
}

fn listed(key: &str) -> String {
    format!(
        "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00Z</LastModified><Size>1</Size><ETag>t</ETag></Contents>"
    )
}

#[tokio::test(start_paused = true)]
async fn a_listing_is_followed_to_its_end() {
    let world = World::new(|n, _| {
        let end = "<EncodingType>url</EncodingType>";
        let xml = match n {
            0 => listing(
                &listed("p%2Fa"),
                &format!(
                    "{end}<IsTruncated>true</IsTruncated><NextContinuationToken>1/+ =</NextContinuationToken>"
                ),
            ),
            // Cut on its way: asked for again.
            1 => listing(&listed("p%2Fb"), end)[..100].to_owned(),
            _ => listing(&listed("p%2Fb"), &format!("{end}<IsTruncated>false</IsTruncated>")),
        };
        answer(200, &[], xml)
    });
    let mut request =
        ListRequest { prefix: "p/".into(), after: Some("p/ \u{1}".into()), limit: Some(5_000), token: None };
    let first = world.bucket.list(&request).await.unwrap();
    request.token = first.next;
    let second = world.bucket.list(&request).await.unwrap();
    assert_eq!((first.entries[0].key.clone(), second.entries[0].key.clone()), ("p/a".into(), "p/b".into()));
    assert_eq!(second.next, None);
    let next =
        "GET /b/?continuation-token=1%2F%2B%20%3D&encoding-type=url&list-type=2&max-keys=1000&prefix=p%2F";
    let first = "GET /b/?encoding-type=url&list-type=2&max-keys=1000&prefix=p%2F&start-after=p%2F%20%01";
    assert_eq!(world.lines(), [first, next, next]);
}

#[tokio::test(start_paused = true)]
async fn a_hostile_listing_is_an_error_within_bounds() {
    let deep = "<a>".repeat(1 << 20);
    let endless = vec![b' '; 17 << 20];
    let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;\">]><ListBucketResult>&b;</ListBucketResult>";
    let outside = listing(&listed("q"), "<IsTruncated>false</IsTruncated>");
    for (body, part) in [
        (deep.into_bytes(), "too deeply"),
        (endless, "longer than"),
        (bomb.into(), "document type"),
        (outside.into_bytes(), "outside the prefix"),
        (b"\xff\xfe".to_vec(), "UTF-8"),
    ] {
        let world = World::new(move |_, _| answer(200, &[], &body));
        let request = ListRequest { prefix: "p".into(), ..ListRequest::default() };
        let error = world.bucket.list(&request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::BadAnswer);
        assert!(error.to_string().contains(part), "{error}");
    }
    let world = World::new(|_, _| unreachable!());
    let request = ListRequest { token: Some("made-up".into()), ..ListRequest::default() };
    assert_eq!(world.bucket.list(&request).await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn tags_are_read_and_their_absence_too() {
    let world = World::new(|n, _| match n {
        0 => answer(200, &[], "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>"),
        1 => error(404, "NoSuchTagSet"),
        _ => error(403, "AccessDenied"),
    });
    let key = Key::from("k");
    assert_eq!(world.bucket.tags(&key).await.unwrap(), Tags::from([("a".into(), "b".into())]));
    assert_eq!(world.bucket.tags(&key).await.unwrap(), Tags::new());
    assert_eq!(world.bucket.tags(&key).await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(world.lines()[0], "GET /b/k?tagging=");
}

#[tokio::test(start_paused = true)]
async fn limits_are_kept() {
    let mut config = S3Config::new("b");
    config.endpoint = Some("http://store".parse().unwrap());
    config.limits =
        Limits { requests_per_second: Some(10.0), bytes_per_second: Some(100_000), ..Limits::default() };
    let world = World::with(config, |_, seen| match seen.line.starts_with("PUT") {
        true => answer(200, &[TAG], ""),
        false => object(&"x".repeat(500_000)),
    });
    let started = Instant::now();
    let get = world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap();
    all(get.body).await.unwrap();
    let body = [Bytes::from(vec![0; 500_000])];
    world.bucket.put(&"k".into(), &body, &PutOptions::default()).await.unwrap();
    let elapsed = started.elapsed().as_secs_f64();
    assert!((8.5..11.0).contains(&elapsed), "{elapsed}");

    let started = Instant::now();
    let heads = futures::stream::iter(0..50).map(|_| async {
        let _ = world.bucket.head(&"k".into()).await;
    });
    heads.buffer_unordered(50).collect::<Vec<_>>().await;
    let elapsed = started.elapsed().as_secs_f64();
    assert!((4.5..5.1).contains(&elapsed), "{elapsed}");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_held_do_not_keep_others_from_starting() {
    let mut config = S3Config::new("b");
    config.endpoint = Some("http://store".parse().unwrap());
    config.limits.max_concurrency = 2;
    let world = World::with(config, |_, _| object(&"x".repeat(1 << 20)));
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(world.bucket.get(&"k".into(), &GetOptions::default()).await.unwrap());
    }
    for get in held {
        assert_eq!(all(get.body).await.unwrap().len(), 1 << 20);
    }
}

#[tokio::test(start_paused = true)]
async fn readers_of_ranges_get_checksums_of_the_whole_object() {
    const MD5: (&str, &str) = ("etag", "\"25f9e794323b453885f5181f1b624d0b\"");
    // The answer to a range may carry the checksum of a part.
    const PART: (&str, &str) = ("x-amz-checksum-crc32c", "AAAAAA==");
    const WHOLE: (&str, &str) = ("x-amz-checksum-crc32c", "4waSgw==");
    for wrong in [false, true] {
        let world = World::new(move |_, seen| {
            if seen.line.starts_with("HEAD") {
                assert_eq!(seen.header("x-amz-checksum-mode"), Some("ENABLED"));
                assert!(seen.header("if-match").is_some());
                return answer(200, &[MODIFIED, MD5, WHOLE, ("content-length", "9")], "");
            }
            match seen.header("range") {
                Some("bytes=0-3") => {
                    answer(206, &[MODIFIED, MD5, PART, ("content-range", "bytes 0-3/9")], "1234")
                }
                _ if wrong => answer(206, &[MODIFIED, MD5, PART, ("content-range", "bytes 4-8/9")], "56780"),
                _ => answer(206, &[MODIFIED, MD5, PART, ("content-range", "bytes 4-8/9")], "56789"),
            }
        });
        let (key, mut revision) = (Key::from("k"), None);
        let mut pieces = Vec::new();
        let mut by_tag: Option<Verifier> = None;
        for range in [0..4, 4..9] {
            let options = GetOptions { range: Some(range), revision: revision.clone() };
            let get = world.bucket.get(&key, &options).await.unwrap();
            assert_eq!(get.checksums.keys().copied().collect::<Vec<_>>(), ["md5"]);
            revision.get_or_insert(get.entry.revision);
            let bytes = get.body.bytes().await.unwrap();
            by_tag.get_or_insert_with(|| Verifier::new(&get.checksums).unwrap()).update(&bytes);
            pieces.push(bytes);
        }
        assert_eq!(by_tag.unwrap().finish(), !wrong);
        let revision = revision.unwrap();
        let mut cheap = Verifier::new(&world.bucket.checksums(&key, &revision).await.unwrap()).unwrap();
        assert_eq!(cheap.algorithm(), "crc32c");
        pieces.iter().for_each(|piece| cheap.update(piece));
        assert_eq!(cheap.finish(), !wrong);
        let other = world.bucket.checksums(&key, &Revision::ETag("other".into())).await.unwrap_err();
        assert_eq!(other.kind, ErrorKind::PreconditionFailed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_with_an_expired_key_is_made_again_with_another() {
    let mut config = S3Config::new("b");
    let uri = "http://127.0.0.1/key".parse().unwrap();
    config.credentials = Credentials::Container { uri, authorization: None };
    config.endpoint = Some("http://store".parse().unwrap());
    let world = World::with(config, |n, seen| {
        let expired = seen.header("authorization").is_some_and(|a| a.contains("AKIA0"));
        match &*seen.line {
            "GET /key" => answer(
                200,
                &[],
                format!("{{\"AccessKeyId\":\"AKIA{n}\",\"SecretAccessKey\":\"s\",\"Expiration\":null}}"),
            ),
            "HEAD /b/k" if expired => answer(400, &[("content-length", "0")], ""),
            "GET /b/k" if expired => error(400, "ExpiredToken"),
            "HEAD /b/k" => answer(200, &[MODIFIED, TAG, ("content-length", "0")], ""),
            _ => answer(206, &[MODIFIED, TAG, ("content-range", "bytes 0-0/1")], "x"),
        }
    });
    world.bucket.head(&"k".into()).await.unwrap();
}
