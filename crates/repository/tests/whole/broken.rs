//! Repositories that are damaged, or made by somebody who knows the password and means harm: an error or a
//! finding, and bounded memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{Attributes, Bucket, Class, Key, Memory};
use cistern_repository::config::Config;
use cistern_repository::crypto::MasterKey;
use cistern_repository::file::{self, FileKind};
use cistern_repository::index::IndexFile;
use cistern_repository::key::KeyFile;
use cistern_repository::pack::{PackedBlob, Sealer};
use cistern_repository::{
    BlobKind, CheckOptions, Error, Finding, Id, KdfParams, LockKind, Node, NodeKind, Options, Problem,
    ReadData, Repository, Time, TreeBuilder, check,
};
use cistern_testkit::seed;

use crate::support::*;

/// A repository of which the test knows the master key.
struct Hostile {
    memory: Arc<Memory>,
    sealer: Sealer,
    repo: Repository,
}

impl Hostile {
    async fn new() -> Self {
        Hostile::with(options()).await
    }

    async fn with(options: Options) -> Self {
        let memory = Arc::new(Memory::new("hostile"));
        let master = Arc::new(MasterKey::generate().unwrap());
        let key = KeyFile::create(&master, &password(), KdfParams::NONE, "ann", "host-0", Time::new(0, 0))
            .unwrap()
            .to_json();
        let mut sealer = Sealer::new(master, Some(3)).unwrap();
        let config = Config::create(None).unwrap().to_json();
        let config = file::seal(&mut sealer, FileKind::Config, &config).unwrap();
        memory.insert(FileKind::Key.key(&Id::of(&key)), key, Attributes::default());
        memory.insert("config", config, Attributes::default());
        let repo = Repository::open(memory.clone(), &password(), options).await.unwrap();
        Hostile { memory, sealer, repo }
    }

    fn put(&mut self, kind: FileKind, json: &[u8]) -> Id {
        let stored = file::seal(&mut self.sealer, kind, json).unwrap();
        let id = Id::of(&stored);
        self.memory.insert(kind.key(&id), stored, Attributes::default());
        id
    }

    fn remove_all(&self, kind: FileKind) {
        for key in
            self.memory.keys().iter().filter(|key| key.as_bytes().starts_with(kind.prefix().as_bytes()))
        {
            assert!(self.memory.remove(key));
        }
    }

    fn put_pack(&self, bytes: Vec<u8>) -> Id {
        let id = Id::of(&bytes);
        self.memory.insert(FileKind::Pack.key(&id), bytes, Attributes::default());
        id
    }

    fn put_index(&mut self, pack: Id, blobs: &[PackedBlob]) {
        let mut index = IndexFile::new();
        index.add(&pack, blobs);
        self.put(FileKind::Index, &index.finish());
    }

    async fn check(&self) -> Vec<Finding> {
        check(&self.repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap()
    }

    /// What a reader gives for one blob, asked for alone and in bulk.
    async fn read(&self, kind: BlobKind, id: Id) -> Result<Bytes, Error> {
        let reader = self.repo.reader(self.repo.index().await.unwrap());
        let alone = reader.blob(kind, &id).await;
        if kind == BlobKind::Data {
            let bulk = Arc::new(Mutex::new(None));
            let sink = bulk.clone();
            let deliver = reader.deliver(
                vec![id],
                Arc::new(move |_, piece| {
                    *sink.lock().unwrap() = Some(piece.map(<[u8]>::to_vec).map_err(Error::class));
                }),
            );
            deliver.await.unwrap();
            let bulk = bulk.lock().unwrap().take().expect("the sink is called");
            assert_eq!(bulk, alone.as_ref().map(|bytes| bytes.to_vec()).map_err(Error::class));
        }
        alone
    }
}

fn blob(kind: BlobKind, plain: &[u8], offset: u32, length: u32, raw_length: Option<u32>) -> PackedBlob {
    PackedBlob { kind, id: Id::of(plain), offset, length, raw_length }
}

#[tokio::test]
async fn an_index_that_lies_about_a_blob_gives_an_error_about_that_blob() {
    let plain = vec![7; 100_000];
    for kind in BlobKind::ALL {
        let mut hostile = Hostile::new().await;
        let mut pack = Vec::new();
        let raw_length = hostile.sealer.seal_blob(kind, &plain, &mut pack).unwrap();
        let length = pack.len() as u32;
        pack.resize(200_000, 0);
        let pack = hostile.put_pack(pack);
        let truth = blob(kind, &plain, 0, length, raw_length);
        hostile.put_index(pack, &[truth]);
        assert_eq!(hostile.read(kind, truth.id).await.unwrap(), plain);

        let lies = [
            PackedBlob { raw_length: None, ..truth },
            PackedBlob { raw_length: Some(99_999), ..truth },
            PackedBlob { raw_length: Some(100_001), ..truth },
            PackedBlob { raw_length: Some(u32::MAX), ..truth },
            PackedBlob { raw_length: Some(1), ..truth },
            PackedBlob { length: length + 1, ..truth },
            PackedBlob { length: 32, ..truth },
            PackedBlob { length: 33, ..truth },
            PackedBlob { length: u32::MAX, ..truth },
            PackedBlob { length: u32::MAX, raw_length: None, ..truth },
            PackedBlob { offset: 1, ..truth },
            PackedBlob { offset: u32::MAX, ..truth },
            PackedBlob { offset: u32::MAX, length: u32::MAX, ..truth },
            PackedBlob { offset: 199_999, ..truth },
            PackedBlob { id: Id::of(b"another"), ..truth },
        ];
        for lie in lies {
            hostile.remove_all(FileKind::Index);
            hostile.put_index(pack, &[lie]);
            let error = hostile.read(kind, lie.id).await.unwrap_err();
            assert!(matches!(error.class(), Class::Damaged | Class::Invalid), "{lie:?}: {error:?}");
            assert!(!hostile.check().await.is_empty(), "{lie:?}");
        }
    }
}

#[tokio::test]
async fn bombs_are_refused_before_they_go_off() {
    let mut hostile = Hostile::new().await;

    // 300 MB of zeros in a few KB.
    let zeros = vec![0; 300 << 20];
    for (kind, length) in [(FileKind::Index, 300 << 20), (FileKind::Snapshot, 65 << 20)] {
        let id = hostile.put(kind, &zeros[..length]);
        let error = match kind {
            FileKind::Index => hostile.repo.index().await.unwrap_err(),
            _ => hostile.repo.snapshots().await.unwrap_err(),
        };
        assert!(matches!(error, Error::BadParameter { .. }), "{error:?}");
        assert!(hostile.check().await.iter().any(|finding| match &finding.problem {
            Problem::Index { id: found, .. } | Problem::Snapshot { id: found, .. } => *found == id,
            _ => false,
        }));
        hostile.remove_all(kind);
    }

    // A blob that is said to be small, and one that is said to be what it is.
    let mut pack = Vec::new();
    hostile.sealer.seal_blob(BlobKind::Data, &zeros, &mut pack).unwrap();
    let length = pack.len() as u32;
    let pack = hostile.put_pack(pack);
    for raw_length in [1 << 20, 300 << 20] {
        hostile.put_index(pack, &[blob(BlobKind::Data, &zeros, 0, length, Some(raw_length))]);
        let error = hostile.read(BlobKind::Data, Id::of(&zeros)).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. } | Error::BadParameter { .. }), "{error:?}");
        hostile.remove_all(FileKind::Index);
    }

    // A key that asks for 1 TiB of memory; other keys still open the repository.
    let keys = hostile.memory.keys();
    let good = keys.iter().find(|key| key.as_bytes().starts_with(b"keys/")).unwrap();
    let json = String::from_utf8(hostile.memory.content(good).unwrap().to_vec()).unwrap();
    let bomb = json.replace("\"N\":2,", "\"N\":1073741824,");
    assert_ne!(json, bomb);
    hostile.memory.insert(FileKind::Key.key(&Id::of(bomb.as_bytes())), bomb.clone(), Attributes::default());
    Repository::open(hostile.memory.clone(), &password(), options()).await.unwrap();
    assert!(hostile.memory.remove(good));
    let error = Repository::open(hostile.memory.clone(), &password(), options()).await.unwrap_err();
    assert!(matches!(error, Error::BadParameter { what: "key", .. }), "{error:?}");
}

#[tokio::test]
async fn a_lock_that_cannot_be_read_is_a_conflict() {
    let mut hostile = Hostile::new().await;
    for json in ["{", "[]", "{\"time\":5}"] {
        let id = hostile.put(FileKind::Lock, json.as_bytes());
        let error = hostile.repo.lock(LockKind::Shared, &who(), Duration::ZERO).await.unwrap_err();
        assert!(matches!(error, Error::Locked { lock, .. } if lock == id), "{error:?}");
        hostile.remove_all(FileKind::Lock);
    }
    let id = Id::of(b"");
    hostile.memory.insert(FileKind::Lock.key(&id), "", Attributes::default());
    let error = hostile.repo.lock(LockKind::Shared, &who(), Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error:?}");
    assert_eq!(hostile.memory.keys().len(), 3, "nobody removes what cannot be judged");
}

#[tokio::test]
async fn directories_may_be_as_deep_as_anybody_likes() {
    let hostile = Hostile::new().await;
    let writer =
        hostile.repo.writer(hostile.repo.index().await.unwrap(), lock(&hostile.repo, LockKind::Shared).await);
    let mut tree = writer.tree(b"{\"nodes\":[]}\n".to_vec()).unwrap();
    for _ in 0..20_000 {
        let node = format!(
            "{{\"nodes\":[{{\"name\":\"d\",\"type\":\"dir\",\"mtime\":\"2026-01-01T00:00:00Z\",\
             \"atime\":\"2026-01-01T00:00:00Z\",\"ctime\":\"2026-01-01T00:00:00Z\",\"uid\":0,\"gid\":0,\
             \"content\":null,\"subtree\":\"{tree}\"}}]}}\n"
        );
        tree = writer.tree(node.into_bytes()).unwrap();
    }
    let id = writer.finish(vec![snapshot(tree, None)]).await.unwrap().ids[0];
    assert!(hostile.check().await.is_empty());
    // Without its last directory the snapshot is endangered, which is found at the bottom.
    let bottom = Id::of(b"{\"nodes\":[]}\n");
    let index = hostile.repo.index().await.unwrap();
    let pack = FileKind::Pack.key(&index.pack(index.lookup(BlobKind::Tree, &bottom).unwrap().pack));
    let offset = index.lookup(BlobKind::Tree, &bottom).unwrap().offset as usize;
    assert!(hostile.memory.corrupt(&pack, |bytes| bytes[offset + 20] ^= 1));
    let findings = hostile.check().await;
    let lost =
        findings.iter().find(|finding| matches!(finding.problem, Problem::Tree { id, .. } if id == bottom));
    assert_eq!(lost.unwrap().endangers, [id]);
}

/// A repository with two snapshots, of which only the second has `new`.
async fn two_days(memory: &Arc<Memory>) -> (Repository, [Id; 2], [Model; 2]) {
    let mut random = seed(60).random();
    let first = Model::from([
        ("old/a".into(), noise(&mut random, 2 << 20)),
        ("old/b".into(), text(&mut random, 3000)),
    ]);
    let mut second = first.clone();
    second.insert("new/c".into(), noise(&mut random, 2 << 20));
    let repo = Repository::init(memory.clone(), &password(), &who(), options()).await.unwrap();
    let ids = [backup(&repo, &first).await.unwrap(), backup(&repo, &second).await.unwrap()];
    (repo, ids, [first, second])
}

/// The pack that holds the first blob of this file.
async fn pack_of(repo: &Repository, content: &Bytes) -> (Key, u32, Id) {
    let index = repo.index().await.unwrap();
    let cut = repo.config();
    let chunker = cistern_repository::chunker::Chunker::new(cut.chunker_polynomial);
    let id = Id::of(&content[..chunker.next_cut(content, true).unwrap()]);
    let place = index.lookup(BlobKind::Data, &id).unwrap();
    (FileKind::Pack.key(&index.pack(place.pack)), place.offset, id)
}

#[tokio::test]
async fn findings_name_what_is_wrong_and_which_snapshots_it_endangers() {
    type Damage = fn(&Memory, &Key, u32);
    type Judge = fn(&Problem) -> bool;
    let cases: &[(&str, Damage, Judge)] = &[
        (
            "missing",
            |memory, key, _| assert!(memory.remove(key)),
            |p| matches!(p, Problem::MissingPack { .. }),
        ),
        (
            "one wrong byte",
            |memory, key, offset| assert!(memory.corrupt(key, |bytes| bytes[offset as usize + 99] ^= 4)),
            |p| matches!(p, Problem::Blob { .. }),
        ),
        (
            "cut short",
            |memory, key, offset| assert!(memory.corrupt(key, |bytes| bytes.truncate(offset as usize + 99))),
            |p| matches!(p, Problem::Blob { .. }),
        ),
        (
            "a pack of something else",
            |memory, key, _| assert!(memory.corrupt(key, |bytes| bytes.fill(1))),
            |p| matches!(p, Problem::Blob { .. }),
        ),
    ];
    for (name, damage, judge) in cases {
        for (day, file) in [(0, "old/a"), (1, "new/c")] {
            let memory = Arc::new(Memory::new("memory"));
            let (repo, ids, days) = two_days(&memory).await;
            let (pack, offset, id) = pack_of(&repo, &days[1][file]).await;
            damage(&memory, &pack, offset);
            let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
            let found: HashMap<bool, Vec<&Finding>> =
                findings.iter().fold(HashMap::new(), |mut found: HashMap<bool, Vec<&Finding>>, finding| {
                    found.entry(judge(&finding.problem)).or_default().push(finding);
                    found
                });
            assert!(
                found[&true].iter().any(|finding| finding.endangers == ids[day..]),
                "{name}, {file}: {findings:#?}"
            );
            // The rest of the snapshot is delivered all the same.
            let reader = repo.reader(repo.index().await.unwrap());
            let error = reader.blob(BlobKind::Data, &id).await.unwrap_err();
            assert!(
                matches!(
                    error.class(),
                    Class::Damaged | Class::NotFound | Class::Unreachable | Class::Invalid
                ),
                "{error:?}"
            );
        }
    }
}

#[tokio::test]
async fn damaged_snapshots_and_index_files_are_named() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ids, _) = two_days(&memory).await;
    assert!(memory.corrupt(&FileKind::Snapshot.key(&ids[0]), |bytes| bytes[30] ^= 1));
    let error = repo.snapshots().await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { id: Some(id), .. } if *id == ids[0]), "{error:?}");
    let findings = check(&repo, CheckOptions::default(), &|_| ()).await.unwrap();
    assert!(
        matches!(&findings[..], [Finding { problem: Problem::Snapshot { id, .. }, endangers, .. }] if *id == ids[0] && *endangers == [ids[0]])
    );
    assert!(memory.remove(&FileKind::Snapshot.key(&ids[0])));

    let index = memory.keys().into_iter().find(|key| key.as_bytes().starts_with(b"index/")).unwrap();
    assert!(memory.corrupt(&index, |bytes| bytes.truncate(50)));
    let id = FileKind::Index.id_of(index.as_bytes());
    let error = repo.index().await.unwrap_err();
    assert!(matches!(&error, Error::Damaged { id: named, .. } if *named == id), "{error:?}");
    let findings = check(&repo, CheckOptions::default(), &|_| ()).await.unwrap();
    assert!(
        findings.iter().any(
            |finding| matches!(&finding.problem, Problem::Index { id: named, .. } if Some(*named) == id)
        )
    );
    assert!(findings.iter().any(|finding| finding.endangers == [ids[1]]), "{findings:#?}");
}

#[tokio::test]
async fn a_blob_that_lies_in_two_packs_is_read_from_the_one_that_is_whole() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, _, days) = two_days(&memory).await;
    let (pack, offset, id) = pack_of(&repo, &days[0]["old/a"]).await;
    // A writer that sees no index stores everything again.
    let writer = repo.writer(Arc::default(), lock(&repo, LockKind::Shared).await);
    let tree = write(&writer, &days[0]).await.unwrap();
    writer.finish(vec![snapshot(tree, None)]).await.unwrap();
    assert!(memory.corrupt(&pack, |bytes| bytes[offset as usize + 17] ^= 1));
    let reader = repo.reader(repo.index().await.unwrap());
    assert_same(&read(&reader, tree).await.unwrap(), &days[0]);
    assert!(reader.blob(BlobKind::Data, &id).await.is_ok());
    let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
    assert!(
        !findings.is_empty() && findings.iter().all(|finding| finding.endangers.is_empty()),
        "{findings:#?}"
    );
    assert!(memory.remove(&pack));
    let reader = repo.reader(repo.index().await.unwrap());
    assert_same(&read(&reader, tree).await.unwrap(), &days[0]);
}

#[tokio::test]
async fn a_damaged_cache_is_healed_and_a_whole_one_saves_requests() {
    use cistern_bucket::Verb;
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ids, days) = two_days(&memory).await;
    let temp = tempfile::tempdir().unwrap();
    let cached = Options { cache: Some(temp.path().join("cache")), ..options() };
    let gets = || memory.ledger().snapshot().count(Verb::Get);
    let visit = async || {
        let before = gets();
        let repo = repo.through(memory.clone(), cached.clone()).unwrap();
        let snapshots = repo.snapshots().await.unwrap();
        assert_eq!(snapshots.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
        let reader = repo.reader(repo.index().await.unwrap());
        let mut stack = vec![snapshots[1].1.tree];
        let mut files = 0;
        while let Some(id) = stack.pop() {
            for node in reader.tree(&id).await.unwrap().nodes() {
                stack.extend(node.subtree);
                files += usize::from(node.content.is_some());
            }
        }
        assert_eq!(files, days[1].len());
        gets() - before
    };
    let first = visit().await;
    assert!(first >= 4, "{first}");
    assert_eq!(visit().await, 0, "everything is in the cache");
    let mut stack = vec![temp.path().to_owned()];
    let mut damaged = 0;
    while let Some(path) = stack.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                stack.push(path);
            } else if path.file_name().unwrap() != "CACHEDIR.TAG" {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
                std::fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged >= 4);
    assert!(visit().await >= first, "what is damaged is fetched again");
    assert_eq!(visit().await, 0, "and kept again");
}

#[tokio::test]
async fn a_pack_that_is_cut_short_endangers_the_snapshots_that_need_it() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ids, days) = two_days(&memory).await;
    let (pack, ..) = pack_of(&repo, &days[0]["old/a"]).await;
    assert!(memory.corrupt(&pack, |bytes| bytes.truncate(40)));
    // Without reading data, by the listing alone.
    let findings = check(&repo, CheckOptions::default(), &|_| ()).await.unwrap();
    let cut = findings.iter().find(|finding| matches!(finding.problem, Problem::PackSize { .. })).unwrap();
    assert!(cut.endangers.contains(&ids[0]), "{findings:#?}");
}

#[tokio::test]
async fn a_missing_pack_costs_one_request() {
    use cistern_bucket::Verb;
    let memory = Arc::new(Memory::new("memory"));
    let (repo, _, days) = two_days(&memory).await;
    let (pack, ..) = pack_of(&repo, &days[0]["old/a"]).await;
    let index = repo.index().await.unwrap();
    let lost = FileKind::Pack.id_of(pack.as_bytes()).unwrap();
    let wanted: Vec<Id> = index
        .blobs(BlobKind::Data)
        .filter(|(number, _)| index.pack(*number) == lost)
        .map(|(_, blob)| blob.id)
        .collect();
    assert!(wanted.len() > 1 && memory.remove(&pack));
    let reader = repo.reader(index);
    let gets = || memory.ledger().snapshot().count(Verb::Get);
    let before = gets();
    let failed = Arc::new(Mutex::new(0));
    let counted = failed.clone();
    let count = wanted.len();
    let deliver = reader.deliver(
        wanted,
        Arc::new(move |_, piece| {
            assert_eq!(piece.unwrap_err().class(), Class::Damaged);
            *counted.lock().unwrap() += 1;
        }),
    );
    deliver.await.unwrap();
    assert_eq!(*failed.lock().unwrap(), count);
    // Ranges that were on their way together may each have asked once.
    assert!(gets() - before <= 2, "{}", gets() - before);
}

#[tokio::test]
async fn a_blob_of_two_lengths_is_damaged_rather_than_put_in_the_wrong_place() {
    let mut hostile = Hostile::new().await;
    let plain = vec![7; 100_000];
    let mut pack = Vec::new();
    let raw_length = hostile.sealer.seal_blob(BlobKind::Data, &plain, &mut pack).unwrap();
    let truth = blob(BlobKind::Data, &plain, 0, pack.len() as u32, raw_length);
    let first = hostile.put_pack(b"nothing".to_vec());
    let second = hostile.put_pack(pack);
    let mut index = IndexFile::new();
    index.add(&first, &[PackedBlob { raw_length: Some(5), ..truth }]);
    index.add(&second, &[truth]);
    hostile.put(FileKind::Index, &index.finish());
    let error = hostile.read(BlobKind::Data, truth.id).await.unwrap_err();
    assert_eq!(error.class(), Class::Damaged, "{error:?}");
}

#[tokio::test]
async fn entries_of_directories_that_are_not_whole_are_found() {
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ..) = two_days(&memory).await;
    let held = lock(&repo, LockKind::Shared).await;
    let writer = repo.writer(repo.index().await.unwrap(), held);
    let id = repo.index().await.unwrap().blobs(BlobKind::Data).next().unwrap().1.id;
    let node = |name: &[u8], kind| Node { name: name.into(), kind, ..Node::default() };
    let mut builder = TreeBuilder::new();
    for node in [
        Node { content: Some([].into()), ..node(b"..", NodeKind::File) },
        Node { content: Some([].into()), ..node(b"a/b", NodeKind::File) },
        node(b"dir", NodeKind::Dir),
        Node { content: Some([id].into()), size: 1, ..node(b"long", NodeKind::File) },
        node(b"none", NodeKind::File),
        Node { content: Some([].into()), ..node(b"whole", NodeKind::File) },
    ] {
        builder.add(&node).unwrap();
    }
    let tree = writer.tree(builder.finish().unwrap()).unwrap();
    let ids = writer.finish(vec![snapshot(tree, None)]).await.unwrap().ids;
    let findings = check(&repo, CheckOptions::default(), &|_| ()).await.unwrap();
    let named: Vec<&[u8]> = findings
        .iter()
        .map(|finding| {
            assert_eq!(finding.endangers, ids);
            match &finding.problem {
                Problem::Node { name, .. } => &**name,
                other => panic!("{other}"),
            }
        })
        .collect();
    assert_eq!(named, [&b".."[..], b"a/b", b"dir", b"long", b"none"]);
}

#[tokio::test]
async fn readers_that_want_the_same_pack_of_directories_fetch_it_once_and_old_ones_leave_the_cache() {
    use cistern_bucket::Verb;
    let memory = Arc::new(Memory::new("memory"));
    let (repo, ..) = two_days(&memory).await;
    let temp = tempfile::tempdir().unwrap();
    let cached = Options { cache: Some(temp.path().to_owned()), ..options() };
    let repo = repo.through(memory.clone(), cached).unwrap();
    let index = repo.index().await.unwrap();
    let trees: Vec<(Id, Id)> =
        index.blobs(BlobKind::Tree).map(|(pack, blob)| (index.pack(pack), blob.id)).collect();
    let packs: std::collections::HashSet<Id> = trees.iter().map(|(pack, _)| *pack).collect();
    assert!(trees.len() > packs.len());
    let gets = || memory.ledger().snapshot().count(Verb::Get);
    let before = gets();
    let reader = repo.reader(index);
    let readings = trees.iter().map(|(_, id)| reader.tree(id));
    for tree in futures::future::join_all(readings).await {
        tree.unwrap();
    }
    assert_eq!(gets() - before, packs.len() as u64);
    // One that no index names, as a prune leaves it.
    let id = Id::of(b"gone");
    let below = temp.path().join(repo.id().to_string());
    let path = below.join(FileKind::Pack.path(&id));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "gone").unwrap();
    repo.index().await.unwrap();
    assert!(!path.exists());
    assert!(packs.iter().all(|id| below.join(FileKind::Pack.path(id)).exists()));
}
