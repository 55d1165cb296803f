//! What goes in comes out: the writer and the reader against a model, on a bucket in memory.

use std::sync::Arc;
use std::time::Duration;

use crate::support::*;
use bytes::Bytes;
use cistern_bucket::{Bucket, Memory};
use cistern_repository::{
    BlobKind, CheckOptions, Compression, Error, Id, LockKind, Options, ReadData, Repository, Snapshot, Time,
    check,
};
use cistern_testkit::seed;

async fn new(options: Options) -> (Arc<Memory>, Repository) {
    let memory = Arc::new(Memory::new("memory"));
    let repo = Repository::init(memory.clone(), &password(), &who(), options).await.unwrap();
    (memory, repo)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_written_is_read_again_by_any_number_of_workers() {
    let seed = seed(1);
    for (workers, compression) in [
        (1, Compression::Auto),
        (2, Compression::Off),
        (5, Compression::Fastest),
        (2, Compression::Level(-5)),
    ] {
        let mut random = seed.random();
        let (memory, repo) = new(Options { workers, compression, pack_size: 4 << 20, ..options() }).await;
        let mut days = Vec::new();
        let mut day = model(&mut random);
        for _ in 0..3 {
            days.push((backup(&repo, &day).await.unwrap(), day.clone()));
            change(&mut day, &mut random);
        }
        // A program that opens it anew sees the same.
        let again = Repository::open(memory.clone(), &password(), options()).await.unwrap();
        let snapshots = again.snapshots().await.unwrap();
        assert_eq!(
            snapshots.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
            days.iter().map(|(id, _)| *id).collect::<Vec<_>>()
        );
        let reader = again.reader(again.index().await.unwrap());
        for ((_, snapshot), (_, day)) in snapshots.iter().zip(&days) {
            assert_same(&read(&reader, snapshot.tree).await.unwrap(), day);
        }
        let findings = check(&again, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
        assert!(findings.is_empty(), "{findings:?}");
        assert!(!memory.keys().iter().any(|key| key.as_bytes().starts_with(b"locks/")));
    }
}

#[tokio::test]
async fn what_is_stored_is_not_stored_again() {
    let mut random = seed(2).random();
    let (memory, repo) = new(options()).await;
    let day = model(&mut random);
    backup(&repo, &day).await.unwrap();
    let before = memory.len();
    let lock = repo.lock(LockKind::Shared, &who(), Duration::ZERO).await.unwrap();
    let writer = repo.writer(repo.index().await.unwrap(), lock);
    let tree = write(&writer, &day).await.unwrap();
    let finished = writer.finish(vec![snapshot(tree, None)]).await.unwrap();
    assert_eq!((finished.stats.data_blobs, finished.stats.tree_blobs, finished.stats.packs), (0, 0, 0));
    assert_eq!(memory.len(), before + 1, "one snapshot, nothing else");
}

#[tokio::test]
async fn contents_say_what_was_new() {
    let (_, repo) = new(options()).await;
    let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
    let permit = writer.permit(10).await.unwrap();
    let ticket = writer.batch(permit, |batch| {
        batch.add(b"hello");
        batch.add(b"");
        batch.add(b"hello");
        batch.add_with(3, |out| {
            out.extend_from_slice(b"half");
            Err(std::io::Error::other("unplugged"))
        });
        batch.add_bytes(Bytes::from_static(b"world"));
    });
    let results = ticket.await.unwrap();
    let seen: Vec<_> = results
        .iter()
        .map(|result| {
            result
                .as_ref()
                .map(|c| (c.blobs.clone(), c.size, c.new_bytes, c.new_blobs))
                .map_err(ToString::to_string)
        })
        .collect();
    let hello = Id::of(b"hello");
    assert_eq!(
        seen,
        [
            Ok((vec![hello], 5, 5, 1)),
            Ok((vec![], 0, 0, 0)),
            Ok((vec![hello], 5, 0, 0)),
            Err("unplugged".into()),
            Ok((vec![Id::of(b"world")], 5, 5, 1)),
        ]
    );
    assert!(writer.contains(BlobKind::Data, &hello) && !writer.contains(BlobKind::Tree, &hello));
    writer.abort().await;
}

#[test]
fn plain_threads_write_too_and_dropping_the_writer_ends_everything() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (memory, repo) = runtime.block_on(new(options()));
    let writer = runtime
        .block_on(async { repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await) });
    let blobs = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u8)
            .map(|i| {
                let writer = &writer;
                scope.spawn(move || {
                    let mut file = writer.file();
                    for _ in 0..10 {
                        // Where all bytes are equal no cut is found, but for zeros, where each place is one.
                        file.push_blocking(vec![i + 1; 300_000].into()).unwrap();
                    }
                    let large = file.finish().wait().unwrap();
                    assert_eq!(large.size, 3_000_000);
                    let permit = writer.permit_blocking(100).unwrap();
                    let small = writer.batch(permit, move |batch| batch.add(&[i; 100])).wait().unwrap();
                    assert_eq!(small[0].as_ref().unwrap().blobs, [Id::of(&[i; 100])]);
                    large.blobs.len()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    assert_eq!(blobs, 4);
    let other = writer.clone();
    drop(writer);
    assert!(other.permit_blocking(1).is_ok(), "one handle is left");
    let guard = runtime.enter();
    let permit = other.permit_blocking(1).unwrap();
    let mut file = other.file();
    drop(other);
    assert!(file.push_blocking(Bytes::from_static(b"x")).is_err());
    drop((guard, permit, file));
    runtime.block_on(async {
        // The lock is removed by a task that dropping has started.
        let gone = async {
            while memory.keys().iter().any(|key| key.as_bytes().starts_with(b"locks/")) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
    });
    assert!(runtime.block_on(repo.snapshots()).unwrap().is_empty());
}

#[tokio::test]
async fn a_tree_that_no_reader_would_take_is_refused() {
    let (_, repo) = new(options()).await;
    let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
    let error = writer.tree(vec![0; BlobKind::Tree.max_length() as usize + 1]).unwrap_err();
    assert!(matches!(error, Error::BadParameter { what: "directory", .. }), "{error}");
    writer.abort().await;
}

#[tokio::test]
async fn a_snapshot_of_a_tree_that_nobody_wrote_is_refused() {
    let (memory, repo) = new(options()).await;
    let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
    let error = writer.finish(vec![Snapshot::new(Time::new(0, 0), Id::of(b"?"), vec![])]).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchBlob { kind: BlobKind::Tree, .. }), "{error}");
    assert!(
        !memory
            .keys()
            .iter()
            .any(|key| key.as_bytes().starts_with(b"snap") || key.as_bytes().starts_with(b"lock"))
    );
}

#[tokio::test]
async fn a_panic_while_a_batch_is_filled_fails_the_writer_and_hangs_nobody() {
    let (_, repo) = new(options()).await;
    let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
    let permit = writer.permit(10).await.unwrap();
    let ticket = writer.batch(permit, |_| panic!("a test panics on purpose"));
    assert!(matches!(ticket.await.unwrap_err(), Error::Shared(_)));
    assert!(writer.permit(1).await.is_err());
    assert!(writer.tree(b"{\"nodes\":[]}\n".to_vec()).is_err());
    assert!(writer.finish(vec![]).await.is_err());
}

#[tokio::test]
async fn memory_is_bounded_by_the_budget_while_uploads_hang() {
    use cistern_bucket::Verb;
    use cistern_testkit::{Fault, Faulty, Rule};
    let faulty = Faulty::new(Arc::new(Memory::new("memory")));
    let small = Options { memory: 48 << 20, pack_size: 4 << 20, ..options() };
    let repo = Repository::init(faulty.clone() as Arc<dyn Bucket>, &password(), &who(), small).await.unwrap();
    let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
    faulty.inject(Rule::new(Fault::Hang).verb(Verb::Put).prefix("data/"));
    let mut random = seed(3).random();
    let mut accepted = 0usize;
    let mut tickets = Vec::new();
    let mut full = false;
    while !full {
        match tokio::time::timeout(Duration::from_secs(3), writer.permit(1 << 20)).await {
            Err(_) => full = true,
            Ok(permit) => {
                let bytes = noise(&mut random, 1 << 20);
                tickets.push(writer.batch(permit.unwrap(), move |batch| batch.add_bytes(bytes)));
                accepted += 1 << 20;
            }
        }
        assert!(accepted <= 100 << 20, "{accepted} bytes were taken although nothing leaves");
    }
    assert!(accepted >= 16 << 20, "{accepted}");
    writer.abort().await;
    for ticket in tickets {
        // Those that were packed are answered; all others give the error; none hangs.
        let _ = ticket.await;
    }
}
