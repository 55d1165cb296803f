//! Ten thousand hostile keys on every backend: what a store takes, it holds, lists, gives back and deletes
//! exactly. What it does not is found by asking it, never assumed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/places.rs"]
#[expect(dead_code, reason = "the conformance suite uses the rest")]
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Bucket, ErrorKind, GetOptions, Key, ListRequest, PutOptions};
use cistern_testkit::{Seed, hostile, seed};
use futures::{StreamExt, stream};

const COUNT: usize = 10_000;
/// As many for servers that take milliseconds for each; more than ten thousand go through them on their way into a
/// repository and back (`cli::s3`).
const FEWER: usize = 3_000;
const PARALLEL: usize = 16;

/// What became of the keys.
#[derive(Debug, Default)]
struct Outcome {
    /// Put, listed, read and described exactly.
    held: BTreeSet<Key>,
    /// Refused by the put.
    refused: BTreeSet<Key>,
    /// Accepted by the put, and then not listed, or not readable.
    lost: BTreeSet<Key>,
    /// Listed, but never put.
    invented: BTreeSet<Key>,
}

fn content(key: &Key) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

async fn all_keys(bucket: &Arc<dyn Bucket>) -> Vec<Key> {
    let mut keys = Vec::new();
    let mut request = ListRequest::default();
    loop {
        let page = bucket.list(&request).await.unwrap();
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
        request.token = page.next;
        if request.token.is_none() {
            return keys;
        }
    }
}

/// Puts all keys, looks what is there, reads it, and deletes everything again. A key that a store cannot hold
/// ends as [`ErrorKind::Unsupported`], or as what `tolerates` says of this store.
async fn round_trip_with(
    bucket: Arc<dyn Bucket>,
    keys: Vec<Key>,
    tolerates: impl Fn(&Key, ErrorKind) -> bool,
) -> Outcome {
    bucket.create().await.unwrap();
    let mut outcome = Outcome::default();
    let puts = stream::iter(keys.clone()).map(|key| {
        let bucket = bucket.clone();
        async move {
            let put = bucket.put(&key, &[content(&key)], &PutOptions::default()).await;
            (key, put)
        }
    });
    let results: Vec<_> = puts.buffer_unordered(PARALLEL).collect().await;
    let mut accepted = BTreeSet::new();
    for (key, put) in results {
        match put {
            Ok(_) => drop(accepted.insert(key)),
            Err(error) => {
                assert!(
                    error.kind == ErrorKind::Unsupported || tolerates(&key, error.kind),
                    "{key:?}: {error:?}"
                );
                outcome.refused.insert(key);
            }
        }
    }
    let listed = all_keys(&bucket).await;
    assert!(listed.is_sorted_by(|a, b| a < b), "the listing is not in ascending order");
    let listed: BTreeSet<Key> = listed.into_iter().collect();
    outcome.invented = listed.difference(&accepted).cloned().collect();
    let reads = stream::iter(accepted.clone()).map(|key| {
        let (bucket, listed) = (bucket.clone(), &listed);
        async move {
            // Every tenth key is enough for the verb that differs from a get in nothing but the body.
            let asked = key.len() % 10 == 0;
            let head =
                !asked || bucket.head(&key).await.is_ok_and(|(entry, _)| entry.size == key.len() as u64);
            let exact = match bucket.get(&key, &GetOptions::default()).await {
                Ok(get) => get.body.bytes().await.is_ok_and(|bytes| bytes == content(&key)),
                Err(_) => false,
            };
            let held = listed.contains(&key) && head && exact;
            (key, held)
        }
    });
    for (key, held) in reads.buffer_unordered(PARALLEL).collect::<Vec<_>>().await {
        if held {
            outcome.held.insert(key)
        } else {
            outcome.lost.insert(key)
        };
    }
    let doomed: Vec<Key> = outcome.held.iter().cloned().collect();
    let (batch, single) = doomed.split_at(doomed.len() * 9 / 10);
    for deleted in bucket.delete_many(batch).await {
        assert!(deleted.result.is_ok(), "{deleted:?}");
    }
    stream::iter(single)
        .for_each_concurrent(PARALLEL, |key| {
            let bucket = bucket.clone();
            async move { bucket.delete(key).await.unwrap() }
        })
        .await;
    let left: BTreeSet<Key> = all_keys(&bucket).await.into_iter().collect();
    assert_eq!(left.intersection(&outcome.held).next(), None, "a key that was deleted is still there");
    outcome
}

async fn round_trip(bucket: Arc<dyn Bucket>, keys: Vec<Key>) -> Outcome {
    round_trip_with(bucket, keys, |_, _| false).await
}

/// Whether a directory beside the keys could hold this one: names of files, none of them a directory as well.
fn fits_a_directory(key: &Key) -> bool {
    key.as_bytes().split(|&byte| byte == b'/').all(|name| {
        !matches!(name, b"" | b"." | b"..")
            && name.len() <= 255
            && !name.contains(&0)
            && !name.starts_with(b".cistern-tmp-")
    })
}

/// Whether another of the keys lies below this one, or above it.
fn has_relatives(key: &Key, all: &BTreeSet<Key>) -> bool {
    let bytes = key.as_bytes();
    let below = [bytes, b"/"].concat();
    let is_parent =
        all.range(Key::new(below.clone())..).next().is_some_and(|next| next.as_bytes().starts_with(&below));
    let is_above =
        |(at, &byte): (usize, &u8)| byte == b'/' && at > 0 && all.contains(&Key::from(&bytes[..at]));
    is_parent || bytes.iter().enumerate().any(is_above)
}

/// The reasons for which MinIO is known to lose a key; the first that applies.
fn reason(key: &Key, all: &BTreeSet<Key>) -> &'static str {
    let bytes = key.as_bytes();
    let names = || bytes.split(|&byte| byte == b'/');
    match () {
        () if names().any(|name| name == b"xl.meta") => "a name of MinIO's own",
        () if bytes.starts_with(b"/") => "begins with a slash",
        () if bytes.windows(2).any(|two| two == b"//") => "an empty component",
        () if names().any(|name| matches!(name, b"." | b"..")) => "`.` or `..`",
        // It appends up to nine bytes to the name of a directory.
        () if names().any(|name| name.len() > 246) => "a component above 246 bytes",
        () if has_relatives(key, all) => "above or below another object",
        // Which it keeps under the name without the slash.
        () if has_relatives(&key.under(b"/"), all) => "above or below an object that begins with a slash",
        () => "no known reason",
    }
}

fn reasons(keys: &BTreeSet<Key>, all: &BTreeSet<Key>) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for key in keys {
        *counts.entry(reason(key, all)).or_default() += 1;
    }
    counts
}

fn start() -> (Seed, Vec<Key>, BTreeSet<Key>) {
    start_with(COUNT)
}

fn start_with(count: usize) -> (Seed, Vec<Key>, BTreeSet<Key>) {
    let seed = seed(20_261_122);
    let keys = hostile::keys(seed.value(), count);
    let all = keys.iter().cloned().collect();
    (seed, keys, all)
}

#[track_caller]
fn complete(outcome: &Outcome, all: &BTreeSet<Key>) {
    assert_eq!(
        outcome.held.len(),
        COUNT,
        "refused {:?}, lost {:?}",
        reasons(&outcome.refused, all),
        reasons(&outcome.lost, all)
    );
    assert_eq!(outcome.invented.len(), 0, "{:?}", outcome.invented);
}

#[tokio::test]
async fn memory_holds_every_key_and_any_bytes() {
    let (_seed, mut keys, all) = start();
    complete(&round_trip(places::memory("memory").bucket, keys.clone()).await, &all);
    keys = hostile::byte_keys(1, 2_000);
    assert_eq!(round_trip(places::memory("bytes").bucket, keys).await.held.len(), 2_000);
}

#[tokio::test]
async fn a_prefix_changes_nothing() {
    let (_seed, keys, _) = start();
    // The prefix counts as a part of the key.
    let short: Vec<Key> = keys.into_iter().filter(|key| key.len() < 1_000).collect();
    let count = short.len();
    assert_eq!(round_trip(places::prefixed("prefixed").bucket, short).await.held.len(), count);
}

#[tokio::test]
async fn a_directory_refuses_what_no_file_system_holds_and_keeps_the_rest() {
    let (_seed, keys, all) = start();
    let place = places::directory("directory");
    let outcome = round_trip(place.bucket, keys).await;
    assert_eq!(
        (outcome.lost.len(), outcome.invented.len()),
        (0, 0),
        "{:?} {:?}",
        outcome.lost,
        outcome.invented
    );
    assert!(outcome.held.iter().all(fits_a_directory));
    for key in outcome.refused.iter().filter(|key| fits_a_directory(key)) {
        assert!(has_relatives(key, &all), "{key:?} was refused");
    }
    assert!(outcome.held.len() > 1_500, "{}", outcome.held.len());
}

#[tokio::test]
async fn the_embedded_server_holds_every_key_as_aws_does() {
    let (_seed, keys, all) = start();
    let place = places::embedded("hostile");
    complete(&round_trip(place.bucket.clone(), keys).await, &all);
}

#[tokio::test]
async fn minio_loses_only_what_it_is_known_to_lose() {
    let (_seed, keys, all) = start_with(FEWER);
    let place = places::minio("hostile");
    let outcome = round_trip_with(place.bucket.clone(), keys, |key, kind| match kind {
        ErrorKind::Denied => reason(key, &all) == "a name of MinIO's own",
        // Put at the same moment, an object and one below it end as an "incomplete body".
        ErrorKind::Unreachable => has_relatives(key, &all),
        _ => false,
    })
    .await;
    for (fate, keys) in [("refused", &outcome.refused), ("lost", &outcome.lost)] {
        let others: Vec<_> = keys.iter().filter(|key| reason(key, &all) == "no known reason").collect();
        assert!(others.is_empty(), "{fate}: {others:?}");
    }
    assert!(outcome.held.len() > FEWER * 15 / 100, "{}", outcome.held.len());
}

#[tokio::test]
async fn moto_loses_only_line_breaks() {
    let (_seed, keys, _) = start_with(FEWER);
    let place = places::moto("hostile");
    let outcome = round_trip_with(place.bucket.clone(), keys, |_, kind| kind == ErrorKind::NoSuchKey).await;
    let broken = |key: &&Key| key.as_bytes().iter().any(|byte| matches!(byte, b'\n' | b'\r'));
    let others: Vec<_> = outcome.refused.iter().chain(&outcome.lost).filter(|key| !broken(key)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(outcome.held.len() > FEWER * 80 / 100, "{}", outcome.held.len());
}
