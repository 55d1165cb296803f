//! What every bucket does alike, as far as it claims the capability.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{
    Attributes, Bucket, Entry, Error, ErrorKind, GetOptions, Key, ListRequest, PartId, PutOptions, Retention,
    Revision, Upload, Verb, Verifier,
};
use cistern_testkit::Random;
use futures::{FutureExt, StreamExt, stream};
use jiff::Timestamp;

use crate::places::Place;

type Store = Arc<dyn Bucket>;

fn random(seed: u64, size: usize) -> Bytes {
    cistern_testkit::objects::content(cistern_testkit::objects::Texture::Random, seed, size)
}

async fn put(bucket: &Store, key: &str, content: impl Into<Bytes>) -> Revision {
    bucket.put(&key.into(), &[content.into()], &PutOptions::default()).await.unwrap().revision
}

async fn read(bucket: &Store, key: &str) -> Bytes {
    bucket.get(&key.into(), &GetOptions::default()).await.unwrap().body.bytes().await.unwrap()
}

async fn fails<T: std::fmt::Debug>(work: impl Future<Output = Result<T, Error>>) -> ErrorKind {
    work.await.unwrap_err().kind
}

async fn list(bucket: &Store, mut request: ListRequest) -> Vec<Entry> {
    let mut entries = Vec::new();
    loop {
        let page = bucket.list(&request).await.unwrap();
        assert!(page.next.is_none() || !page.entries.is_empty(), "an empty page that is not the last");
        if let Some(limit) = request.limit {
            assert!(page.entries.len() <= limit as usize, "a page of {} entries", page.entries.len());
        }
        entries.extend(page.entries);
        request.token = page.next;
        if request.token.is_none() {
            return entries;
        }
    }
}

async fn keys(bucket: &Store, request: ListRequest) -> Vec<String> {
    list(bucket, request).await.into_iter().map(|entry| entry.key.to_string()).collect()
}

/// A bucket that is not there is an error of its own kind at every verb, and can be made twice.
pub async fn existence(place: Place) {
    let bucket = &place.bucket;
    let missing = ErrorKind::NoSuchBucket;
    let key = Key::from("a");
    assert_eq!(fails(bucket.probe()).await, missing);
    assert_eq!(fails(bucket.list(&ListRequest::default())).await, missing);
    assert_eq!(fails(bucket.put(&key, &["x".into()], &PutOptions::default())).await, missing);
    assert_eq!(fails(bucket.get(&key, &GetOptions::default())).await, missing);
    bucket.create().await.unwrap();
    bucket.create().await.unwrap();
    bucket.probe().await.unwrap();
    assert_eq!(keys(bucket, ListRequest::default()).await, Vec::<String>::new());
    assert!(!bucket.name().is_empty());
}

/// What was put is what is got, listed and described, whatever its size and however it was cut up.
pub async fn contents(place: Place) {
    let bucket = &place.bucket;
    let big = random(1, (6 << 20) + 7);
    let pieces: Vec<Bytes> =
        (0..big.len()).step_by(4_099).map(|at| big.slice(at..big.len().min(at + 4_099))).collect();
    let bodies: [(&str, Vec<Bytes>); 6] = [
        ("empty", vec![]),
        ("empty-pieces", vec![Bytes::new(), Bytes::new()]),
        ("one", vec!["x".into()]),
        ("pieces", vec!["he".into(), Bytes::new(), "llo".into(), " world".into()]),
        ("big", pieces),
        ("deep/er/name", vec![random(2, 100_000)]),
    ];
    let before = jiff::Timestamp::now();
    let mut revisions = BTreeMap::new();
    for (key, body) in &bodies {
        let put = bucket.put(&(*key).into(), body, &PutOptions::default()).await.unwrap();
        revisions.insert(*key, put.revision);
    }
    let listed: BTreeMap<Key, Entry> = list(bucket, ListRequest::default())
        .await
        .into_iter()
        .map(|entry| (entry.key.clone(), entry))
        .collect();
    assert_eq!(listed.len(), bodies.len());
    for (key, body) in &bodies {
        let expected = body.concat();
        let get = bucket.get(&(*key).into(), &GetOptions::default()).await.unwrap();
        assert_eq!(get.body.length(), expected.len() as u64, "{key}");
        let (head, _) = bucket.head(&(*key).into()).await.unwrap();
        for entry in [&get.entry, &head, &listed[&Key::from(*key)]] {
            assert_eq!((entry.key.as_bytes(), entry.size), (key.as_bytes(), expected.len() as u64));
            assert_eq!(entry.revision, revisions[key], "{key}");
            let age = entry.modified.duration_since(before).as_secs();
            assert!((-60..600).contains(&age), "{key} was modified at {}", entry.modified);
        }
        assert_eq!(get.body.bytes().await.unwrap(), expected, "{key}");
    }
    let old = put(bucket, "one", "other").await;
    assert_ne!(old, revisions["one"]);
    assert_eq!(read(bucket, "one").await, "other");
    // A body that is dropped half way does no harm to what comes after it.
    let mut get = bucket.get(&"big".into(), &GetOptions::default()).await.unwrap();
    assert!(!get.body.next().await.unwrap().unwrap().is_empty());
    drop(get);
    assert_eq!(read(bucket, "big").await, big);
}

/// What is not there is an error of its own kind, and nothing to delete.
pub async fn absence(place: Place) {
    let bucket = &place.bucket;
    put(bucket, "there/object", "x").await;
    for key in ["nothing", "there", "there/", "there/object/below", "there/objec"] {
        let key = Key::from(key);
        assert_eq!(fails(bucket.get(&key, &GetOptions::default())).await, ErrorKind::NoSuchKey, "{key}");
        assert_eq!(fails(bucket.head(&key)).await, ErrorKind::NoSuchKey, "{key}");
        bucket.delete(&key).await.unwrap();
        if bucket.capabilities().copy {
            assert_eq!(fails(bucket.copy(&key, &"copy".into())).await, ErrorKind::NoSuchKey, "{key}");
        }
        if bucket.capabilities().tags {
            assert_eq!(fails(bucket.tags(&key)).await, ErrorKind::NoSuchKey, "{key}");
        }
    }
    assert_eq!(keys(bucket, ListRequest::default()).await, ["there/object"]);
    bucket.delete(&"there/object".into()).await.unwrap();
    bucket.delete(&"there/object".into()).await.unwrap();
    assert_eq!(keys(bucket, ListRequest::default()).await, Vec::<String>::new());
}

/// Ranges are half open; an end behind the end is cut; what is empty or behind the end is refused.
pub async fn ranges(place: Place) {
    let bucket = &place.bucket;
    let content = random(3, (2 << 20) + 100);
    let size = content.len() as u64;
    let revision = put(bucket, "object", content.clone()).await;
    put(bucket, "empty", "").await;
    for range in
        [0..1, 0..size, 1..size, 5..7, size - 1..size, size - 10..size + 10, 0..1 << 62, 100..(1 << 20) + 300]
    {
        let options = GetOptions { range: Some(range.clone()), revision: Some(revision.clone()) };
        let get = bucket.get(&"object".into(), &options).await.unwrap();
        let expected = content.slice(range.start as usize..range.end.min(size) as usize);
        assert_eq!(get.entry.size, size, "{range:?}");
        assert_eq!(get.body.length(), expected.len() as u64, "{range:?}");
        let sums = get.checksums;
        assert_eq!(get.body.bytes().await.unwrap(), expected, "{range:?}");
        // Whatever came with a range is about the whole.
        for sums in [sums, bucket.checksums(&"object".into(), &revision).await.unwrap()] {
            if let Some(mut verifier) = Verifier::new(&sums) {
                verifier.update(&content);
                assert!(verifier.finish(), "{range:?} {sums:?}");
            }
        }
    }
    #[expect(clippy::reversed_empty_ranges, reason = "such a range is one of those that are refused")]
    for (key, range) in
        [("object", size..size + 1), ("object", 5..5), ("object", 7..5), ("empty", 0..1), ("empty", 0..0)]
    {
        let options = GetOptions { range: Some(range.clone()), revision: None };
        assert_eq!(fails(bucket.get(&key.into(), &options)).await, ErrorKind::Invalid, "{key} {range:?}");
    }
}

/// A read that is pinned to a state gets that state or nothing; a create makes or fails.
pub async fn conditions(place: Place) {
    let bucket = &place.bucket;
    let pinned = |revision: &Revision, range| GetOptions { range, revision: Some(revision.clone()) };
    let first = put(bucket, "object", "first").await;
    let get = bucket.get(&"object".into(), &pinned(&first, None)).await.unwrap();
    assert_eq!(get.body.bytes().await.unwrap(), "first");
    let second = put(bucket, "object", "secnd").await;
    assert_ne!(first, second);
    for range in [None, Some(1..3)] {
        let kind = fails(bucket.get(&"object".into(), &pinned(&first, range.clone()))).await;
        assert_eq!(kind, ErrorKind::PreconditionFailed);
        bucket.get(&"object".into(), &pinned(&second, range)).await.unwrap();
    }
    bucket.get(&"object".into(), &pinned(&Revision::Unknown, None)).await.unwrap();
    bucket.delete(&"object".into()).await.unwrap();
    assert_eq!(fails(bucket.get(&"object".into(), &pinned(&second, None))).await, ErrorKind::NoSuchKey);
    if !bucket.capabilities().create_only {
        return;
    }
    let create = PutOptions { create_only: true, ..PutOptions::default() };
    bucket.put(&"new".into(), &["one".into()], &create).await.unwrap();
    assert_eq!(fails(bucket.put(&"new".into(), &["two".into()], &create)).await, ErrorKind::AlreadyExists);
    assert_eq!(read(bucket, "new").await, "one");
    put(bucket, "new", "three").await;
    bucket.delete(&"new".into()).await.unwrap();
    bucket.put(&"new".into(), &["four".into()], &create).await.unwrap();
    assert_eq!(read(bucket, "new").await, "four");
    let racers = (0..8).map(|number| {
        let (bucket, create) = (bucket.clone(), create.clone());
        async move { bucket.put(&"race".into(), &[format!("racer {number}").into()], &create).await }
    });
    let results = futures::future::join_all(racers).await;
    let winners: Vec<usize> = (0..8).filter(|number| results[*number].is_ok()).collect();
    assert!(winners.len() == 1 || !place.decides_races && winners.len() > 1, "{results:?}");
    let last = read(bucket, "race").await;
    assert!(winners.iter().any(|number| last == format!("racer {number}")), "{last:?} of {winners:?}");
    assert!(results.into_iter().filter_map(Result::err).all(|error| error.kind == ErrorKind::AlreadyExists));
}

/// Listings are in bytewise order, complete, and cut where they are asked to be.
pub async fn listing(place: Place) {
    let bucket = &place.bucket;
    let mut all: Vec<String> = [
        "A", "a-b", "a.txt", "a/1", "a/2/x", "a/2/y", "a/2-", "a/20", "a0", "b/c/d/e", "b/c/d-", "b/c0", "é",
        "z", "z z", "z+z", "z%20z", "🦀",
    ]
    .map(String::from)
    .into();
    stream::iter(&all)
        .for_each_concurrent(8, |key| async move { drop(put(bucket, key, key.clone()).await) })
        .await;
    all.sort();
    let prefixes = ["", "a", "a/", "a/2", "a/2/", "b/c/d/e", "b/", "z ", "z+", "é", "nothing", "a/2/x/"];
    let starts: &[&str] = &["", "A", "a/2", "a/2/x", "a/3", "b/c/d", "z z", "zz", "🦀"];
    let starts = if bucket.capabilities().list_after { starts } else { &[""] };
    for prefix in prefixes {
        for after in starts {
            let expected: Vec<&String> = all
                .iter()
                .filter(|key| key.starts_with(prefix) && (after.is_empty() || key.as_str() > *after))
                .collect();
            let after = (!after.is_empty()).then(|| Key::from(*after));
            for limit in [None, Some(1), Some(2), Some(5), Some(100)] {
                let request = ListRequest { prefix: prefix.into(), after: after.clone(), token: None, limit };
                let found = keys(bucket, request.clone()).await;
                assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{request:?}");
            }
        }
    }
}

/// More objects than fit on a page; deleted again, many at a time.
pub async fn many(place: Place) {
    let bucket = &place.bucket;
    let all: Vec<Key> =
        (0..1_105).map(|number| Key::from(format!("{}/object-{number:05}", number % 3))).collect();
    stream::iter(&all)
        .for_each_concurrent(16, |key| async move {
            bucket.put(key, &["x".into()], &PutOptions::default()).await.unwrap();
        })
        .await;
    let mut sorted = all.clone();
    sorted.sort();
    let first = bucket.list(&ListRequest::default()).await.unwrap();
    assert!((1..=1_000).contains(&first.entries.len()) && first.next.is_some());
    // A second listing of the same bucket at the same time has its own place in it.
    let between = keys(bucket, ListRequest { prefix: "1/".into(), ..ListRequest::default() }).await;
    assert_eq!(between.len(), 368);
    let rest = list(bucket, ListRequest { token: first.next, ..ListRequest::default() }).await;
    let found: Vec<Key> = first.entries.into_iter().chain(rest).map(|entry| entry.key).collect();
    assert_eq!(found, sorted);
    let mut doomed = all[..1_050].to_vec();
    doomed.insert(500, "never-there".into());
    let outcomes = bucket.delete_many(&doomed).await;
    assert_eq!(
        outcomes.iter().map(|outcome| &outcome.key).collect::<Vec<_>>(),
        doomed.iter().collect::<Vec<_>>()
    );
    for outcome in &outcomes {
        assert!(outcome.result.is_ok(), "{outcome:?}");
    }
    assert_eq!(keys(bucket, ListRequest::default()).await.len(), 55);
    assert!(bucket.delete_many(&[]).await.is_empty());
}

/// An object made of parts appears when it is complete, from the parts that were named.
pub async fn multipart(place: Place) {
    let bucket = &place.bucket;
    let options = PutOptions { attributes: attributes(), ..PutOptions::default() };
    let key = Key::from("parts/object");
    if !bucket.capabilities().multipart {
        assert_eq!(fails(bucket.begin_upload(&key, &options)).await, ErrorKind::Unsupported);
        return;
    }
    let parts = [random(1, place.part), random(2, place.part + 1), random(3, 10)];
    let upload = bucket.begin_upload(&key, &options).await.unwrap();
    assert_eq!(upload.key, key);
    let mut ids = Vec::new();
    for number in [3, 1, 2] {
        let part = &parts[number as usize - 1];
        let cut = [part.slice(..5), part.slice(5..)];
        ids.push(bucket.upload_part(&upload, number, &cut).await.unwrap());
    }
    ids.sort_by_key(|part| part.number);
    assert_eq!(keys(bucket, ListRequest::default()).await, Vec::<String>::new());
    assert_eq!(fails(bucket.head(&key)).await, ErrorKind::NoSuchKey);
    let wrong = PartId { number: 3, etag: "00000000000000000000000000000000".into() };
    let bad = [ids[0].clone(), ids[1].clone(), wrong];
    assert_eq!(fails(bucket.complete_upload(&upload, &bad, &options)).await, ErrorKind::Invalid);
    let put = bucket.complete_upload(&upload, &ids, &options).await.unwrap();
    let get =
        bucket.get(&key, &GetOptions { range: None, revision: Some(put.revision.clone()) }).await.unwrap();
    assert_eq!(get.entry.revision, put.revision);
    if let Some(tag) = put.revision.etag() {
        assert!(tag.ends_with("-3"), "{tag}");
    }
    same_attributes(&get.attributes, &options.attributes);
    assert_eq!(get.body.bytes().await.unwrap(), parts.concat());
    let start = place.part as u64 - 3;
    let across = GetOptions { range: Some(start..start + 6), revision: None };
    let get = bucket.get(&key, &across).await.unwrap();
    assert_eq!(get.body.bytes().await.unwrap(), parts.concat()[start as usize..start as usize + 6]);
    // What was thrown away or never begun cannot be continued.
    let gone = bucket.begin_upload(&"gone".into(), &options).await.unwrap();
    let part = bucket.upload_part(&gone, 1, &["x".into()]).await.unwrap();
    bucket.abort_upload(&gone).await.unwrap();
    bucket.abort_upload(&gone).await.unwrap();
    assert_eq!(fails(bucket.complete_upload(&gone, &[part], &options)).await, place.gone_upload);
    let never = Upload { key: "never".into(), id: gone.id.clone() };
    assert_eq!(fails(bucket.upload_part(&never, 1, &["x".into()])).await, place.gone_upload);
    // One small part is enough, and an upload replaces what was there.
    let upload = bucket.begin_upload(&key, &PutOptions::default()).await.unwrap();
    let part = bucket.upload_part(&upload, 1, &["small".into()]).await.unwrap();
    bucket.complete_upload(&upload, &[part], &PutOptions::default()).await.unwrap();
    assert_eq!(read(bucket, "parts/object").await, "small");
    assert_eq!(keys(bucket, ListRequest::default()).await, ["parts/object"]);
    if bucket.capabilities().create_only {
        let upload = bucket.begin_upload(&key, &PutOptions::default()).await.unwrap();
        let part = bucket.upload_part(&upload, 1, &["other".into()]).await.unwrap();
        let create = PutOptions { create_only: true, ..PutOptions::default() };
        assert_eq!(fails(bucket.complete_upload(&upload, &[part], &create)).await, ErrorKind::AlreadyExists);
        assert_eq!(read(bucket, "parts/object").await, "small");
    }
}

fn attributes() -> Attributes {
    Attributes {
        content_type: Some("application/json; charset=utf-8".into()),
        cache_control: Some("max-age=60".into()),
        content_disposition: Some("attachment; filename=\"a b.json\"".into()),
        content_encoding: Some("gzip".into()),
        content_language: Some("de, en".into()),
        expires: Some("Wed, 21 Oct 2026 07:28:00 GMT".into()),
        meta: [("owner", "Ada Lovelace"), ("x-trace", "a=b;c,d"), ("number", "0012")]
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .into(),
        tags: Some(
            [("tier", "gold"), ("cost centre", "a+b/c=d:e@f")]
                .map(|(n, v)| (n.to_string(), v.to_string()))
                .into(),
        ),
        ..Attributes::default()
    }
}

#[track_caller]
fn same_attributes(found: &Attributes, expected: &Attributes) {
    let comparable =
        |attributes: &Attributes| Attributes { tags: None, tag_count: None, ..attributes.clone() };
    assert_eq!(comparable(found), comparable(expected));
    if let Some(count) = found.tag_count {
        assert_eq!(count as usize, expected.tags.as_ref().map_or(0, |tags| tags.len()));
    }
}

/// Headers, metadata and tags come back as they were given, and go when the object is replaced.
pub async fn attributes_and_tags(place: Place) {
    let bucket = &place.bucket;
    let key = Key::from("object");
    let options = PutOptions { attributes: attributes(), ..PutOptions::default() };
    bucket.put(&key, &["x".into()], &options).await.unwrap();
    if !bucket.capabilities().attributes {
        let (_, found) = bucket.head(&key).await.unwrap();
        assert_eq!(found, Attributes::default());
        return;
    }
    let (_, head) = bucket.head(&key).await.unwrap();
    same_attributes(&head, &options.attributes);
    for range in [None, Some(0..1)] {
        let get = bucket.get(&key, &GetOptions { range, revision: None }).await.unwrap();
        same_attributes(&get.attributes, &options.attributes);
    }
    let plain = Attributes { content_type: Some("text/plain".into()), ..Attributes::default() };
    if bucket.capabilities().tags {
        assert_eq!(Some(bucket.tags(&key).await.unwrap()), options.attributes.tags);
        bucket
            .put(
                &"plain".into(),
                &["x".into()],
                &PutOptions { attributes: plain.clone(), ..PutOptions::default() },
            )
            .await
            .unwrap();
        assert_eq!(bucket.tags(&"plain".into()).await.unwrap(), Default::default());
        // S3 has tags of any letters; a server that has not says so.
        let tags = Some([("Größe".to_string(), "日本".to_string())].into());
        let wide = PutOptions { attributes: Attributes { tags, ..plain.clone() }, ..PutOptions::default() };
        match bucket.put(&"tagged".into(), &["x".into()], &wide).await {
            Ok(_) => assert_eq!(Some(bucket.tags(&"tagged".into()).await.unwrap()), wide.attributes.tags),
            Err(error) => assert_eq!(error.kind, ErrorKind::Unsupported, "{error:?}"),
        }
    } else {
        assert_eq!(fails(bucket.tags(&key)).await, ErrorKind::Unsupported);
    }
    // Beyond ASCII, a store may show metadata in the words of RFC 2047; these then stay as they are.
    let meta = [("name".to_string(), "Jürgen 🦀".to_string())].into();
    let mut wide = Attributes { content_type: plain.content_type.clone(), meta, ..Attributes::default() };
    for round in 0..2 {
        let options = PutOptions { attributes: wide.clone(), ..PutOptions::default() };
        bucket.put(&"wide".into(), &["x".into()], &options).await.unwrap();
        let (_, found) = bucket.head(&"wide".into()).await.unwrap();
        if round == 0 && found.meta["name"].starts_with("=?UTF-8?") {
            wide.meta = found.meta.clone();
        }
        same_attributes(&found, &wide);
    }
    bucket
        .put(&key, &["y".into()], &PutOptions { attributes: plain.clone(), ..PutOptions::default() })
        .await
        .unwrap();
    let (_, found) = bucket.head(&key).await.unwrap();
    same_attributes(&found, &plain);
}

/// A copy has contents, attributes and tags of its source, which stays as it is.
pub async fn copies(place: Place) {
    let bucket = &place.bucket;
    let (from, to) = (Key::from("from/a b+c%/ü"), Key::from("to/ü c+%25"));
    let options = PutOptions { attributes: attributes(), ..PutOptions::default() };
    bucket.put(&from, &["content".into()], &options).await.unwrap();
    put(bucket, to.as_str().unwrap(), "old").await;
    if !bucket.capabilities().copy {
        assert_eq!(fails(bucket.copy(&from, &to)).await, ErrorKind::Unsupported);
        return;
    }
    let copied = bucket.copy(&from, &to).await.unwrap();
    let get = bucket.get(&to, &GetOptions { range: None, revision: Some(copied.revision) }).await.unwrap();
    if bucket.capabilities().attributes {
        same_attributes(&get.attributes, &options.attributes);
    }
    assert_eq!(get.body.bytes().await.unwrap(), "content");
    if bucket.capabilities().tags {
        assert_eq!(Some(bucket.tags(&to).await.unwrap()), options.attributes.tags);
    }
    assert_eq!(read(bucket, from.as_str().unwrap()).await, "content");
}

/// What a store cannot hold it refuses by name, and what makes no sense is called so.
pub async fn refusals(place: Place) {
    let bucket = &place.bucket;
    let kind = fails(bucket.put(&Key::default(), &["x".into()], &PutOptions::default())).await;
    assert_eq!(kind, ErrorKind::Invalid);
    // A key that a store cannot hold is refused by name; one that it takes, it has to list exactly.
    let odd = [
        Key::new(vec![b'k'; 4_100]),
        Key::from(&b"odd/\xff"[..]),
        Key::from(&b"odd\x00"[..]),
        "a//b/../c".into(),
    ];
    let mut held = Vec::new();
    for key in odd {
        match bucket.put(&key, &["x".into()], &PutOptions::default()).await {
            Ok(_) => held.push(key),
            Err(error) => assert_eq!(error.kind, ErrorKind::Unsupported, "{error:?}"),
        }
    }
    held.sort();
    let found: Vec<Key> =
        list(bucket, ListRequest::default()).await.into_iter().map(|entry| entry.key).collect();
    match place.odd_keys {
        Some(expected) => assert_eq!((found == held, held.len()), (true, expected)),
        // What such a server makes of a key is told by its listing alone.
        None => assert_eq!(found.len(), held.len()),
    }
    let error = bucket.head(&"not there".into()).await.unwrap_err();
    assert!(error.to_string().contains("not there") && error.to_string().contains(bucket.name()), "{error}");
    assert_eq!((error.verb, error.key), (Verb::Head, Some("not there".into())));
}

/// Many at once: each write is whole, the last one stays, and nobody sees a mixture.
pub async fn concurrency(place: Place) {
    let bucket = &place.bucket;
    let bodies: Vec<Bytes> = (0..8).map(|number| random(number, 60_000 + number as usize)).collect();
    put(bucket, "shared", bodies[0].clone()).await;
    let tasks = (0..48u64).map(|number| {
        let (bucket, bodies) = (bucket.clone(), bodies.clone());
        tokio::spawn(async move {
            let mut random = Random::new(number);
            for _ in 0..4 {
                let body = bodies[random.below(8) as usize].clone();
                if number % 2 == 0 {
                    put(&bucket, "shared", body.clone()).await;
                    put(&bucket, &format!("own/{number}"), body.clone()).await;
                    assert_eq!(read(&bucket, &format!("own/{number}")).await, body);
                } else {
                    let seen = read(&bucket, "shared").await;
                    assert!(bodies.contains(&seen), "a mixture of {} bytes", seen.len());
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(keys(bucket, ListRequest::default()).await.len(), 25);
}

/// A request that is given up leaves an object that is whole, or none.
pub async fn giving_up(place: Place) {
    let bucket = &place.bucket;
    let body = random(9, 3 << 20);
    for number in 0..10 {
        let key = Key::from(format!("object-{number}"));
        let pieces = [body.clone()];
        let options = PutOptions::default();
        let mut put = std::pin::pin!(bucket.put(&key, &pieces, &options));
        for _ in 0..number {
            // Polls a few times, each time as far as the request gets.
            if (&mut put).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    // What was on its way when it was given up may still arrive, but only as a whole.
    put(bucket, "last", "x").await;
    for entry in list(bucket, ListRequest { prefix: "object-".into(), ..ListRequest::default() }).await {
        assert_eq!(entry.size, body.len() as u64, "{}", entry.key);
        assert_eq!(read(bucket, entry.key.as_str().unwrap()).await, body);
    }
}

/// Requests and bytes are counted, each once.
pub async fn counting(place: Place) {
    let bucket = &place.bucket;
    let capabilities = bucket.capabilities();
    let before = bucket.ledger().snapshot();
    put(bucket, "a", "12345").await;
    put(bucket, "b", "123").await;
    read(bucket, "a").await;
    bucket
        .get(&"a".into(), &GetOptions { range: Some(1..3), revision: None })
        .await
        .unwrap()
        .body
        .bytes()
        .await
        .unwrap();
    bucket.head(&"a".into()).await.unwrap();
    bucket.list(&ListRequest::default()).await.unwrap();
    bucket.list(&ListRequest { limit: Some(1), ..ListRequest::default() }).await.unwrap();
    bucket.delete(&"b".into()).await.unwrap();
    bucket.delete_many(&["a".into(), "b".into(), "c".into()]).await;
    let mut expected =
        BTreeMap::from([(Verb::Put, 2), (Verb::Get, 2), (Verb::Head, 1), (Verb::List, 2), (Verb::Delete, 2)]);
    if capabilities.multipart {
        let upload = bucket.begin_upload(&"m".into(), &PutOptions::default()).await.unwrap();
        let part = bucket.upload_part(&upload, 1, &["1234".into()]).await.unwrap();
        bucket.complete_upload(&upload, &[part], &PutOptions::default()).await.unwrap();
        *expected.entry(Verb::Put).or_default() += 1;
        expected.insert(Verb::Multipart, 2);
    }
    let counts = bucket.ledger().snapshot().since(&before);
    let found: BTreeMap<Verb, u64> = Verb::ALL
        .into_iter()
        .map(|verb| (verb, counts.count(verb)))
        .filter(|(_, count)| *count > 0)
        .collect();
    assert_eq!(found, expected);
    assert_eq!(counts.retries, 0);
    assert_eq!(counts.received, 7);
    assert_eq!(counts.sent, 8 + if capabilities.multipart { 4 } else { 0 });
    if capabilities.copy {
        put(bucket, "a", "12345").await;
        let before = bucket.ledger().snapshot();
        bucket.copy(&"a".into(), &"c".into()).await.unwrap();
        let counts = bucket.ledger().snapshot().since(&before);
        // A store may look at the source first.
        assert_eq!((counts.count(Verb::Copy), counts.total() - counts.count(Verb::Head)), (1, 1));
        assert_eq!((counts.received, counts.sent), (0, 0));
    }
}

/// A bucket that was made as any other says that it locks nothing.
pub async fn retention(place: Place) {
    let bucket = &place.bucket;
    put(bucket, "a", "x").await;
    if place.tells_retention {
        assert_eq!(fails(bucket.retention(&"a".into())).await, ErrorKind::Unsupported);
    }
    let wanted = Retention { mode: "GOVERNANCE".into(), until: in_seconds(3_600) };
    assert_eq!(fails(bucket.set_retention(&"a".into(), &wanted)).await, ErrorKind::Unsupported);
}

fn in_seconds(seconds: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap()
}

/// What is locked tells for how long, and can be locked for longer, but neither for less nor in a weaker mode.
pub async fn locks(place: Place) {
    let (bucket, key) = (&place.bucket, Key::from("a b/ü"));
    let before = bucket.ledger().snapshot();
    let error = bucket.retention(&key).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchKey, "{error:?}");
    put(bucket, key.as_str().unwrap(), "x").await;
    assert_eq!(bucket.retention(&key).await.unwrap(), None);
    let of = |mode: &str, seconds| Retention { mode: mode.into(), until: in_seconds(seconds) };
    for (mode, other) in [("GOVERNANCE", None), ("COMPLIANCE", Some("GOVERNANCE"))] {
        put(bucket, mode, "x").await;
        let key = Key::from(mode);
        let (short, long) = (of(mode, 3_600), of(mode, 7_200));
        bucket.set_retention(&key, &short).await.unwrap();
        assert_eq!(bucket.retention(&key).await.unwrap(), Some(short.clone()));
        bucket.set_retention(&key, &long).await.unwrap();
        let (_, attributes) = bucket.head(&key).await.unwrap();
        assert_eq!(attributes.retention, Some(long.clone()));
        bucket.set_retention(&key, &short).await.unwrap_err();
        if let Some(weaker) = other {
            bucket.set_retention(&key, &of(weaker, 10_000)).await.unwrap_err();
        }
        assert_eq!(bucket.retention(&key).await.unwrap(), Some(long));
    }
    assert_eq!(bucket.ledger().snapshot().since(&before).count(Verb::Retention), 13);
    // Versions are locked, keys are not.
    bucket.delete(&Key::from("GOVERNANCE")).await.unwrap();
    assert_eq!(fails(bucket.head(&"GOVERNANCE".into())).await, ErrorKind::NoSuchKey);
}

/// As [`locks`], on a server that takes locks but has no request that tells them.
pub async fn locks_that_show_in_heads(place: Place) {
    let (bucket, key) = (&place.bucket, Key::from("a"));
    put(bucket, "a", "x").await;
    let wanted = Retention { mode: "GOVERNANCE".into(), until: in_seconds(3_600) };
    bucket.set_retention(&key, &wanted).await.unwrap();
    let (_, attributes) = bucket.head(&key).await.unwrap();
    assert_eq!(attributes.retention, Some(wanted));
}
