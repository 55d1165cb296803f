//! The embedded server and its faults, as the S3 bucket meets them: each hook does what it says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{
    Attributes, Bucket, Credentials, ErrorKind, GetOptions, Key, ListRequest, PutOptions, S3, S3Config, Verb,
    Verifier,
};
use cistern_testkit::{HttpFault, Rule, Server, Synthetic};

const CONTENT: &str = "0123456789";

/// A server with three objects, and a client that tries so often.
fn scene(tries: u32) -> (Server, S3) {
    let server = Server::start().unwrap();
    let memory = server.bucket("orders");
    for key in ["a", "b", "c"] {
        memory.insert(key, CONTENT, Attributes::default());
    }
    let bucket = client(&server, "orders", tries);
    (server, bucket)
}

fn client(server: &Server, bucket: &str, tries: u32) -> S3 {
    let mut config = S3Config::new(bucket);
    config.endpoint = Some(server.endpoint().parse().unwrap());
    config.region = Some(cistern_testkit::server::REGION.into());
    config.credentials = Credentials::fixed(Server::ACCESS_KEY, server.secret_key());
    config.retry.max_tries = tries;
    config.retry.base_delay = Duration::from_millis(1);
    config.timeouts.idle = Duration::from_millis(300);
    config.timeouts.small = Duration::from_millis(300);
    S3::connect(config).unwrap()
}

async fn get(bucket: &S3, key: &str) -> Result<Bytes, cistern_bucket::Error> {
    bucket.get(&key.into(), &GetOptions::default()).await?.body.bytes().await
}

async fn put(bucket: &S3, key: &str) -> Result<cistern_bucket::Put, cistern_bucket::Error> {
    bucket.put(&key.into(), &["new".into()], &PutOptions::default()).await
}

#[tokio::test]
async fn what_goes_wrong_once_is_an_error_to_who_tries_once_and_nothing_to_who_tries_again() {
    for (fault, kinds) in [
        (HttpFault::slow_down(None), &[ErrorKind::Throttled][..]),
        (HttpFault::slow_down(Some(0)), &[ErrorKind::Throttled]),
        (HttpFault::internal_error(), &[ErrorKind::Unreachable]),
        (HttpFault::Reset, &[ErrorKind::Unreachable]),
        (HttpFault::LostReset, &[ErrorKind::Unreachable]),
        (HttpFault::Lost, &[ErrorKind::Unreachable]),
        (HttpFault::Stall, &[ErrorKind::Unreachable]),
        (HttpFault::StalledBody(4), &[ErrorKind::Unreachable]),
        (HttpFault::StalledBody(0), &[ErrorKind::Unreachable]),
        (HttpFault::TruncatedBody(4), &[ErrorKind::Unreachable, ErrorKind::BadAnswer]),
        (HttpFault::TruncatedBody(0), &[ErrorKind::Unreachable, ErrorKind::BadAnswer]),
    ] {
        let (server, bucket) = scene(1);
        server.inject(Rule::new(fault.clone()).verb(Verb::Get).nth(0));
        let error = get(&bucket, "a").await.unwrap_err();
        assert!(kinds.contains(&error.kind), "{fault:?}: {error:?}");
        assert_eq!(get(&bucket, "a").await.unwrap(), CONTENT, "{fault:?}");
        let (server, bucket) = scene(5);
        server.inject(Rule::new(fault.clone()).verb(Verb::Get).nth(0));
        assert_eq!(get(&bucket, "a").await.unwrap(), CONTENT, "{fault:?}");
        assert_eq!(server.counts().count(Verb::Get), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn a_wrong_byte_passes_as_a_body_and_shows_in_the_checksum_that_came_with_it() {
    let (server, bucket) = scene(1);
    for (fault, expected, matches) in
        [(None, CONTENT, true), (Some(HttpFault::WrongBody(14)), "0123\x1456789", false)]
    {
        server.heal();
        if let Some(fault) = fault {
            server.inject(Rule::new(fault));
        }
        let get = bucket.get(&"a".into(), &GetOptions::default()).await.unwrap();
        let mut verifier = Verifier::new(&get.checksums).expect("the server gives a checksum");
        assert_eq!(verifier.algorithm(), "crc64nvme");
        let body = get.body.bytes().await.unwrap();
        verifier.update(&body);
        assert_eq!((body, verifier.finish()), (expected.into(), matches));
    }
}

#[tokio::test]
async fn refusals_are_final_and_lost_answers_have_had_their_effect() {
    for (fault, kind) in
        [(HttpFault::denied(), ErrorKind::Denied), (HttpFault::missing(), ErrorKind::NoSuchKey)]
    {
        let (server, bucket) = scene(5);
        server.inject(Rule::new(fault).prefix("b"));
        assert_eq!(get(&bucket, "b").await.unwrap_err().kind, kind);
        assert_eq!(get(&bucket, "a").await.unwrap(), CONTENT);
        assert_eq!(server.counts().count(Verb::Get), 2);
    }
    for (fault, effect) in [
        (HttpFault::Lost, true),
        (HttpFault::LostReset, true),
        (HttpFault::Reset, false),
        (HttpFault::internal_error(), false),
    ] {
        let (server, bucket) = scene(1);
        server.inject(Rule::new(fault.clone()).writes());
        assert_eq!(put(&bucket, "new").await.unwrap_err().kind, ErrorKind::Unreachable, "{fault:?}");
        assert_eq!(server.bucket("orders").content(&"new".into()).is_some(), effect, "{fault:?}");
        server.heal();
        put(&bucket, "new").await.unwrap();
    }
}

#[tokio::test]
async fn entity_tags_and_listings_lie() {
    let (server, bucket) = scene(1);
    server.inject(Rule::new(HttpFault::WrongEtag).verb(Verb::Head));
    let (entry, _) = bucket.head(&"a".into()).await.unwrap();
    let (truth, _) = server.bucket("orders").stat(&"a".into()).unwrap();
    assert_ne!(entry.revision, truth.revision);
    server.heal();
    server.inject(Rule::new(HttpFault::ShortListing(2)).verb(Verb::List));
    let page = bucket.list(&ListRequest::default()).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (2, None));
    for fault in [HttpFault::RepeatedEntry, HttpFault::UnsortedListing] {
        server.heal();
        server.inject(Rule::new(fault.clone()).verb(Verb::List));
        // Whether the client passes on what a broken server says or refuses it is the client's choice; what
        // counts here is that the server said it.
        match bucket.list(&ListRequest::default()).await {
            Ok(page) => assert!(!page.entries.is_sorted_by(|a, b| a.key < b.key), "{fault:?}"),
            Err(error) => assert_eq!(error.kind, ErrorKind::BadAnswer, "{fault:?}"),
        }
    }
}

#[tokio::test]
async fn pages_that_hold_too_much_or_lead_nowhere_are_told() {
    let (server, bucket) = scene(1);
    for key in ["b", "c", "d", "e"] {
        put(&bucket, key).await.unwrap();
    }
    let mut request = ListRequest { limit: Some(2), ..ListRequest::default() };
    server.inject(Rule::new(HttpFault::OverfullListing).verb(Verb::List));
    assert_eq!(bucket.list(&request).await.unwrap_err().kind, ErrorKind::BadAnswer);
    server.heal();
    server.inject(Rule::new(HttpFault::RepeatedToken).verb(Verb::List));
    request.token = bucket.list(&request).await.unwrap().next;
    request.token = bucket.list(&request).await.unwrap().next;
    assert_eq!(bucket.list(&request).await.unwrap_err().kind, ErrorKind::BadAnswer);
}

#[tokio::test]
async fn a_refusal_may_be_bare_or_hide_behind_a_200() {
    for (status, kind) in
        [(403, ErrorKind::Denied), (404, ErrorKind::NoSuchKey), (502, ErrorKind::Unreachable)]
    {
        let (server, bucket) = scene(1);
        server.inject(Rule::new(HttpFault::BareStatus(status)).verb(Verb::Get));
        assert_eq!(get(&bucket, "a").await.unwrap_err().kind, kind, "{status}");
    }
    let (server, bucket) = scene(1);
    server.inject(Rule::new(HttpFault::ErrorBehind200("InternalError")).verb(Verb::Copy));
    server
        .inject(Rule::new(HttpFault::ErrorBehind200("InternalError")).verb(Verb::Multipart).prefix("begun"));
    assert_eq!(bucket.copy(&"a".into(), &"copied".into()).await.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(server.bucket("orders").content(&"copied".into()), None);
    let begun = bucket.begin_upload(&"begun".into(), &Default::default()).await;
    assert_eq!(begun.unwrap_err().kind, ErrorKind::Unreachable);
    server.heal();
    let upload = bucket.begin_upload(&"new".into(), &Default::default()).await.unwrap();
    let part = bucket.upload_part(&upload, 1, &[CONTENT.into()]).await.unwrap();
    server.inject(Rule::new(HttpFault::ErrorBehind200("InternalError")).verb(Verb::Multipart));
    let parts = [part];
    let failed = bucket.complete_upload(&upload, &parts, &Default::default()).await;
    assert_eq!(failed.unwrap_err().kind, ErrorKind::Unreachable);
    assert_eq!(server.bucket("orders").content(&"new".into()), None);
    server.heal();
    bucket.complete_upload(&upload, &parts, &Default::default()).await.unwrap();
    assert_eq!(get(&bucket, "new").await.unwrap(), CONTENT);
}

#[tokio::test]
async fn the_log_shows_what_was_asked_for_and_a_stopped_server_is_gone() {
    let (server, bucket) = scene(1);
    let options = GetOptions { range: Some(2..5), revision: None };
    bucket.get(&"a".into(), &options).await.unwrap().body.bytes().await.unwrap();
    get(&bucket, "x y/ü").await.unwrap_err();
    let log = server.log();
    let [range, missing] = log.as_slice() else { panic!("{log:?}") };
    assert_eq!(
        (range.range.as_deref(), range.status, range.bucket.as_str()),
        (Some("bytes=2-4"), 206, "orders")
    );
    assert_eq!((missing.request.key.clone(), missing.status), (Key::from("x y/ü"), 404));
    server.clear_log();
    assert_eq!((server.log().len(), server.counts().count(Verb::Get)), (0, 2));
    server.stop();
    assert_eq!(get(&bucket, "a").await.unwrap_err().kind, ErrorKind::Unreachable);
}

#[tokio::test]
async fn any_bucket_can_be_served() {
    let server = Server::start().unwrap();
    let synthetic = Synthetic::new("synthetic", 2_500, 3 << 20);
    let expected = synthetic.content(1_234);
    let key = synthetic.key(1_234);
    server.mount("synthetic", std::sync::Arc::new(synthetic));
    let bucket = client(&server, "synthetic", 1);
    let (mut count, mut request) = (0, ListRequest::default());
    loop {
        let page = bucket.list(&request).await.unwrap();
        count += page.entries.len();
        request.token = page.next;
        if request.token.is_none() {
            break;
        }
    }
    assert_eq!(count, 2_500);
    assert_eq!(get(&bucket, key.as_str().unwrap()).await.unwrap(), expected);
    assert_eq!(put(&bucket, "new").await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(get(&client(&server, "nothing", 1), "a").await.unwrap_err().kind, ErrorKind::NoSuchBucket);
}

#[test]
fn stock_restic_keeps_a_repository_on_it() {
    let server = Server::start().unwrap();
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for (number, object) in cistern_testkit::objects::natural(3, 50).enumerate() {
        std::fs::write(source.join(format!("file-{number}")), object.content).unwrap();
    }
    let restic = |arguments: &[&str]| {
        let output = std::process::Command::new(cistern_testkit::tools::restic().unwrap())
            .args(["--repo", &format!("s3:{}/restic/repository", server.endpoint()), "--no-cache"])
            .args(arguments)
            .env("AWS_ACCESS_KEY_ID", Server::ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", server.secret_key())
            .env("RESTIC_PASSWORD", "geheim")
            .current_dir(&source)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    restic(&["init"]);
    restic(&["backup", "."]);
    restic(&["check", "--read-data"]);
    let target = place.path().join("target");
    restic(&["restore", "latest", "--target", target.to_str().unwrap()]);
    // The backup was of what is in the directory: mode and time of the directory itself are not part of it.
    let differences = cistern_testkit::tree_diff(&source, &target).unwrap();
    let inside: Vec<&String> = differences.iter().filter(|line| !line.starts_with(": ")).collect();
    assert_eq!(inside, Vec::<&String>::new());
}
