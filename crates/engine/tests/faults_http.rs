//! A whole backup over HTTP, with every request of it going wrong in turn: success after all, or a clear error, and
//! never a wrong snapshot.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Attributes, Bucket, Credentials, Key, Memory, S3, S3Config, Style, Verb};
use cistern_engine::{BackupReport, Result};
use cistern_testkit::{HttpFault, Rule, Server, seed};
use support::{Kept, World, again, attributes, expected, reported, task};

/// Everything that can go wrong but a listing that hides keys: nobody could tell that from a bucket without them.
fn faults() -> [HttpFault; 13] {
    [
        HttpFault::slow_down(None),
        HttpFault::internal_error(),
        HttpFault::denied(),
        HttpFault::Lost,
        HttpFault::Reset,
        HttpFault::LostReset,
        HttpFault::Stall,
        HttpFault::StalledBody(3),
        HttpFault::TruncatedBody(3),
        HttpFault::WrongBody(5),
        HttpFault::WrongEtag,
        HttpFault::RepeatedEntry,
        HttpFault::UnsortedListing,
    ]
}

/// A bucket of the server over HTTP, with little patience.
fn s3(server: &Server, name: &str) -> Arc<dyn Bucket> {
    let mut config = S3Config::new(name);
    config.endpoint = Some(server.endpoint().parse().unwrap());
    config.style = Style::Path;
    config.credentials = Credentials::Static {
        access_key_id: Server::ACCESS_KEY.into(),
        secret_access_key: server.secret_key().into(),
        session_token: None,
    };
    config.retry.max_tries = 4;
    config.retry.base_delay = Duration::from_millis(1);
    config.retry.max_delay = Duration::from_millis(5);
    config.timeouts.idle = Duration::from_millis(500);
    config.timeouts.small = Duration::from_millis(500);
    config.timeouts.slow = Duration::from_millis(500);
    Arc::new(S3::connect(config).unwrap())
}

/// Objects with everything, one of them read in ranges.
fn fill(bucket: &Memory) {
    for i in 0..6 {
        bucket.insert(format!("d{}/{i}", i % 3), format!("content {i}"), attributes(i));
    }
    let mut large = vec![0; (16 << 20) + 5];
    seed(9).random().fill(&mut large);
    bucket.insert("large", large, attributes(1));
}

/// What a run has to leave: exactly the source, or an error that says why not, or what could not be read by name.
async fn judge(
    world: &Arc<World>,
    what: &str,
    source: &BTreeMap<Key, Kept>,
    outcome: Result<BackupReport>,
) -> bool {
    let Some((report, complete)) = reported(what, outcome) else { return false };
    let kept = world.kept(&report.snapshots).await;
    let told = report.exceptions.total();
    for (key, kept) in &kept {
        let right = source.get(key).unwrap_or_else(|| panic!("{what}: {key} is not in the source"));
        assert!(kept.content == right.content, "{what}: {key} has other contents");
        assert!(kept.attributes == right.attributes || told > 0, "{what}: {key} has lost attributes");
    }
    let missing = (source.len() - kept.len()) as u64;
    match complete {
        true => assert_eq!(missing, report.objects_vanished, "{what}: objects are missing without a word"),
        false => assert!(missing > 0 && told >= missing, "{what}"),
    }
    complete
}

/// A copy of a repository, so that each run finds the same.
fn copy(from: &Memory) -> Arc<Memory> {
    let to = Memory::new("s3://repository");
    for key in from.keys() {
        to.insert(key.clone(), from.content(&key).unwrap(), Attributes::default());
    }
    Arc::new(to)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_request_to_the_source_may_go_wrong() {
    let server = Server::start().unwrap();
    fill(&server.bucket("orders"));
    let source = expected(&server.bucket("orders"));
    let repository = Arc::new(Memory::new("s3://repository"));
    let world = World::with(s3(&server, "orders"), repository.clone()).await;
    server.clear_log();
    world.backup(&again()).await.unwrap();
    let kinds: BTreeSet<&str> = server.log().iter().map(|seen| seen.request.verb.name()).collect();
    assert_eq!(kinds, BTreeSet::from(["get", "list", "tags"]));
    let mut healed = 0;
    for fault in faults() {
        for verb in [Verb::List, Verb::Get, Verb::Tags] {
            // The first of its kind, one in the middle, and all of them.
            for times in [0..1, 3..4, 0..u64::MAX] {
                let what = format!("{fault:?} at {} {times:?}", verb.name());
                server.inject(Rule::new(fault.clone()).verb(verb).range(times));
                let plain = copy(&repository);
                let world = world.on(plain.clone(), plain);
                let outcome = world.backup(&again()).await;
                server.heal();
                healed += u32::from(judge(&world, &what, &source, outcome).await);
            }
        }
    }
    assert!(healed >= 50, "{healed} runs succeeded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_to_the_repository_may_go_wrong() {
    let bucket = Arc::new(Memory::new("s3://orders"));
    (0..6).for_each(|i| bucket.insert(format!("d{}/{i}", i % 3), format!("content {i}"), attributes(i)));
    let plain = Arc::new(Memory::new("s3://repository"));
    let world = World::with(bucket.clone(), plain.clone()).await;
    let first = world.backup(&task()).await.unwrap();
    let before = expected(&bucket);
    bucket.insert("new", "new", attributes(3));
    let source = expected(&bucket);
    let server = Server::start().unwrap();
    let mut requests = 1;
    let mut healed = 0;
    for fault in faults() {
        let mut n = 0;
        while n < requests {
            let what = format!("{fault:?} at {n}");
            let copied = copy(&plain);
            server.mount_memory("repository", copied.clone());
            let world = world.on(s3(&server, "repository"), copied);
            server.clear_log();
            // The run that counts the requests is the one in which nothing goes wrong.
            if requests > 1 {
                server.inject(Rule::new(fault.clone()).nth(n));
            }
            let outcome = world.backup(&task()).await;
            server.heal();
            if requests == 1 {
                requests = server.log().len() as u64;
                assert!(outcome.is_ok() && requests > 10, "{requests} requests: {outcome:?}");
                continue;
            }
            healed += u32::from(judge(&world, &what, &source, outcome).await);
            assert!(world.kept(&first.snapshots).await == before, "{what}: the first run has changed");
            n += 1;
        }
    }
    assert!(healed >= 100, "{healed} runs succeeded");
}
