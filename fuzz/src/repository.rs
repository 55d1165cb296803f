//! Files of a repository: what a person who can write to the store can make us read.

use cistern_repository::compress::Decompressor;
use cistern_repository::config::Config;
use cistern_repository::crypto::{KeyParts, MasterKey};
use cistern_repository::file::{self, FileKind};
use cistern_repository::index::{self, IndexBuilder, IndexFile};
use cistern_repository::key::{KeyFile, MAX_MEMORY};
use cistern_repository::pack::{self, Header, Opener, Sealer};
use cistern_repository::{Id, LockFile, Node, Snapshot, Time, Tree, TreeBuilder};
use jiff::Timestamp;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};
use std::sync::Arc;

/// Most bytes that these targets accept from a compressed file.
const LIMIT: usize = 1 << 20;

pub fn config(data: &[u8]) {
    if let Ok(config) = Config::parse(data) {
        let again = Config::parse(&config.to_json()).expect("a config that was read can be written and read");
        assert_eq!(again, config);
    }
}

pub fn key(data: &[u8]) {
    if let Ok(file) = KeyFile::parse(data) {
        assert!(u128::from(file.n) * u128::from(file.r) * 128 <= u128::from(MAX_MEMORY), "scrypt is bounded");
        let again = KeyFile::parse(&file.to_json()).expect("a key that was read can be written and read");
        assert_eq!(again, file);
    }
}

pub fn snapshot(data: &[u8]) {
    if let Ok(snapshot) = Snapshot::parse(data) {
        let json = snapshot.to_json();
        let again = Snapshot::parse(&json).expect("a snapshot that was read can be written and read");
        assert_eq!(String::from_utf8_lossy(&again.to_json()), String::from_utf8_lossy(&json));
    }
}

pub fn lock(data: &[u8]) {
    if let Ok(lock) = serde_json::from_slice::<LockFile>(data) {
        let json = serde_json::to_vec(&lock).expect("a lock has string keys only");
        let again: LockFile =
            serde_json::from_slice(&json).expect("a lock that was read can be written and read");
        assert_eq!(again, lock);
        let _ = lock.is_stale(Timestamp::UNIX_EPOCH, &lock.hostname, |pid| pid > 0);
    }
}

pub fn time(data: &[u8]) {
    let write = |time: Time| {
        let mut text = Vec::new();
        time.write(&mut text);
        text
    };
    if let Ok(time) = Time::parse(data) {
        let _ = time.timestamp();
        let text = write(time);
        let again = Time::parse(&text).expect("a time that was written can be read");
        assert_eq!(write(again), text);
    }
}

pub fn tree(data: &[u8]) {
    let Ok(tree) = Tree::parse(data.to_vec()) else { return };
    let text = written(tree.nodes());
    let again = Tree::parse(text.clone()).expect("a tree that was written can be read");
    assert_eq!(again.nodes(), tree.nodes());
    assert_eq!(written(again.nodes()), text);
    // The text of an unchanged node is copied, not written anew.
    let mut copy = TreeBuilder::new();
    for (i, node) in tree.nodes().iter().enumerate() {
        copy.add_raw(&node.name, tree.raw(i)).expect("the tree is no longer than before");
    }
    let copy = copy.finish().expect("the names are as they were");
    assert_eq!(Tree::parse(copy).expect("a copied tree can be read").nodes(), tree.nodes());
    for node in tree.nodes() {
        if Node::check_name(&node.name).is_ok() {
            let mut components = Path::new(OsStr::from_bytes(&node.name)).components();
            assert!(matches!(components.next(), Some(Component::Normal(_))), "the name leaves its directory");
            assert!(components.next().is_none(), "the name is a path");
        }
    }
}

fn written(nodes: &[Node]) -> Vec<u8> {
    let mut builder = TreeBuilder::new();
    for node in nodes {
        builder.add(node).expect("a small tree");
    }
    builder.finish().expect("a tree that was read has every name once")
}

pub fn index(data: &[u8]) {
    let mut all = Vec::new();
    if index::parse(data, |pack, blob| all.push((*pack, blob))).is_err() {
        return;
    }
    let mut builder = IndexBuilder::new();
    builder.add_file(&Id::default(), data).expect("it was read before");
    let index = builder.finish().expect("it is kept in memory");
    for (pack, blob) in &all {
        let found: Vec<Id> =
            index.lookup_all(blob.kind, &blob.id).map(|place| index.pack(place.pack)).collect();
        assert!(found.contains(pack), "a blob of the file is not in the index");
    }
    let mut file = IndexFile::new();
    for (pack, blob) in &all {
        file.add(pack, &[*blob]);
    }
    let mut again = Vec::new();
    index::parse(&file.finish(), |pack, blob| again.push((*pack, blob)))
        .expect("what was written can be read");
    assert_eq!(again, all);
}

/// The first four bytes say how long the pack's data is.
pub fn header(data: &[u8]) {
    let Some((length, plain)) = data.split_first_chunk() else { return };
    let length = u64::from(u32::from_le_bytes(*length));
    if let Ok(blobs) = pack::parse_header(plain, length) {
        let mut end = 0;
        for blob in &blobs {
            assert_eq!(u64::from(blob.offset), end, "blobs lie one behind the other");
            end = blob.end();
        }
        assert_eq!(end, length);
    }
    // No bytes from outside carry our seal.
    SEAL.with_borrow(|seal| {
        if let Ok(header) = pack::read_header(&seal.key, length, plain) {
            assert!(matches!(header, Header::Needs(bytes) if bytes <= pack::MAX_HEADER + pack::TRAILER));
        }
    });
}

/// The first byte says which kind of file it is; the rest is what the seal holds.
pub fn file(data: &[u8]) {
    const KINDS: [FileKind; 4] = [FileKind::Config, FileKind::Index, FileKind::Snapshot, FileKind::Lock];
    let Some((kind, plain)) = data.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    SEAL.with_borrow_mut(|seal| {
        let mut stored = Vec::new();
        seal.sealer.seal_plain(plain, &mut stored).expect("sealing small data works");
        if let Ok(json) = file::open(&mut seal.opener, kind, &Id::of(&stored), stored) {
            assert!(json.len() <= kind.max_length().max(plain.len()), "a bomb was let in");
            let stored = file::seal(&mut seal.sealer, kind, &json).expect("sealing small data works");
            if matches!(json.first(), Some(b'{' | b'[')) || kind != FileKind::Config {
                let again = file::open(&mut seal.opener, kind, &Id::of(&stored), stored);
                assert_eq!(again.expect("what was sealed can be opened"), json);
            }
        }
        // Without a seal nothing is even looked at.
        assert!(file::open(&mut seal.opener, kind, &Id::of(data), data.to_vec()).is_err());
    });
}

/// The first three bytes say how long the index claims that the blob is.
pub fn zstd(data: &[u8]) {
    let Some((claim, frame)) = data.split_first_chunk::<3>() else { return };
    let claim = u32::from_le_bytes([claim[0], claim[1], claim[2], 0]) as usize % LIMIT;
    ZSTD.with_borrow_mut(|decompressor| {
        if let Ok(plain) = decompressor.at_most(frame, LIMIT) {
            assert!(plain.len() <= LIMIT);
        }
        let mut plain = Vec::new();
        if decompressor.exactly(frame, claim, &mut plain).is_ok() {
            assert_eq!(plain.len(), claim);
        }
    });
}

struct Seal {
    key: Arc<MasterKey>,
    sealer: Sealer,
    opener: Opener,
}

thread_local! {
    static SEAL: RefCell<Seal> = RefCell::new({
        let parts = KeyParts { encrypt: [1; 32], k: [2; 16], r: [3; 16] };
        let key = Arc::new(MasterKey::from_parts(parts).expect("these are a key"));
        let sealer = Sealer::new(key.clone(), Some(1)).expect("a sealer can be made");
        let opener = Opener::new(key.clone()).expect("an opener can be made");
        Seal { key, sealer, opener }
    });
    static ZSTD: RefCell<Decompressor> = RefCell::new(Decompressor::new().expect("zstd can be set up"));
}
