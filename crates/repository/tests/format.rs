//! The format judged by restic itself: everything that two releases write is read and written again byte for
//! byte, and what these primitives write, restic checks and reads.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cistern_repository::chunker::Chunker;
use cistern_repository::config::Config;
use cistern_repository::crypto::MasterKey;
use cistern_repository::file::{self, FileKind};
use cistern_repository::index::{self, Index, IndexBuilder, IndexFile};
use cistern_repository::key::KeyFile;
use cistern_repository::node::mode;
use cistern_repository::pack::{self, Header, Opener, PackBuilder, PackedBlob, Sealer};
use cistern_repository::sha256::Lanes;
use cistern_repository::{BlobKind, Error, Id, KdfParams, Node, NodeKind, Snapshot, Time, Tree, TreeBuilder};
use cistern_testkit::tools;
use secrecy::SecretString;

const PASSWORD: &str = "a pässword";

struct Restic {
    program: PathBuf,
    repository: PathBuf,
    cache: PathBuf,
}

impl Restic {
    fn run(&self, arguments: &[&OsStr]) -> Vec<u8> {
        let output = Command::new(&self.program)
            .env_clear()
            .env("RESTIC_PASSWORD", PASSWORD)
            .env("RESTIC_REPOSITORY", &self.repository)
            .env("TZ", "Asia/Kolkata")
            .arg("--cache-dir")
            .arg(&self.cache)
            .args(arguments)
            .output()
            .expect("restic starts");
        assert!(
            output.status.success(),
            "restic {arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    }

    fn call(&self, words: &str) -> Vec<u8> {
        self.run(&words.split(' ').map(OsStr::new).collect::<Vec<_>>())
    }
}

/// Debian's release and the newest, and whether it is the newest: 0.14 knew neither `linktarget_raw`, nor the
/// characters that Unicode has since, nor the short escapes that Go's JSON has since.
fn restics() -> [(PathBuf, bool); 2] {
    let debian = tools::restic_debian().expect("restic 0.14 is installed");
    [(debian, false), (tools::restic().expect("restic is installed"), true)]
}

/// Bytes that no compressor shortens and that differ by seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Names that need every kind of escape.
const ODD_NAMES: [&[u8]; 12] = [
    "newer scripts \u{1e4d0}\u{1f6dc}\u{31350}".as_bytes(),
    b"plain",
    b"with space and 'quotes' and \"double\" ones",
    b"back\\slash",
    b"line\nfeed\ttab\rreturn",
    b"bell\x07bs\x08vt\x0bff\x0cesc\x1bdel\x7fone\x01",
    b"<html>&amp;",
    b"not utf-8 \xff\xfe\x80\xc3(",
    b"surrogate \xed\xa0\x80",
    "composed \u{e9}, decomposed e\u{301}".as_bytes(),
    "\u{6f22}\u{5b57} \u{1f600} \u{10ffff}\u{e000}".as_bytes(),
    "separators \u{2028}\u{2029}\u{a0}\u{85}\u{ad}\u{200b}\u{feff}\u{fffd}".as_bytes(),
];

/// Every kind of entry that needs no privilege. What is regular is returned with its content.
fn fill(root: &Path, newest: bool) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (i, name) in ODD_NAMES[usize::from(!newest)..].iter().enumerate() {
        let content = format!("content {i}").into_bytes();
        fs::write(root.join(OsStr::from_bytes(name)), &content).unwrap();
        files.insert(name.to_vec(), content);
    }
    let lines = (0..400_000).flat_map(|i: u32| format!("line {}\n", i * 7919 % 10_007).into_bytes());
    for (name, content) in [
        ("empty", vec![]),
        ("minimum", noise(1, 512 << 10)),
        ("random", noise(2, (13 << 20) + 7)),
        ("zeros", vec![0; (17 << 20) + 1]),
        ("text", lines.collect()),
    ] {
        fs::write(root.join(name), &content).unwrap();
        files.insert(name.as_bytes().to_vec(), content);
    }
    fs::create_dir(root.join("directory")).unwrap();
    fs::create_dir(root.join("directory/nothing")).unwrap();
    fs::write(root.join("directory/inner"), "inner").unwrap();
    fs::hard_link(root.join("plain"), root.join("directory/hard link")).unwrap();
    symlink("plain", root.join("link")).unwrap();
    symlink("<dangling> & \u{7}\u{2028}", root.join("odd link")).unwrap();
    if newest {
        symlink("\u{8}\u{c}", root.join("newer link")).unwrap();
        symlink(OsStr::from_bytes(b"not utf-8 \xff\xc3\x28"), root.join("raw link")).unwrap();
    }
    fs::set_permissions(root.join("plain"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(root.join("directory"), fs::Permissions::from_mode(0o3770)).unwrap();
    let xattr = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(root.join(path), name, value, rustix::fs::XattrFlags::empty()).unwrap();
    };
    xattr("plain", "user.one", b"value");
    xattr("plain", "user.<two>", b"\x00\xff\x10");
    xattr("directory", "user.empty", b"");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), fifo, rustix::fs::Mode::from(0o640), 0).unwrap();
    for (name, seconds, nanoseconds) in
        [("text", 1_000_000_000, 120_000_000), ("link", -5, 1), ("empty", 0, 0)]
    {
        let time = rustix::fs::Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, root.join(name), &times, flags).unwrap();
    }
    files
}

/// A repository in a directory, with everything that is needed to read it.
struct Opened {
    root: PathBuf,
    opener: Opener,
    key: Arc<MasterKey>,
    config: Config,
}

impl Opened {
    fn new(root: &Path) -> Self {
        let keys = list(&root.join("keys"));
        assert_eq!(keys.len(), 1);
        let json = fs::read(&keys[0]).unwrap();
        assert_eq!(keys[0].file_name().unwrap().to_str().unwrap(), Id::of(&json).to_string());
        let file = KeyFile::parse(&json).unwrap();
        assert_eq!(text(&file.to_json()), text(&json));
        assert!(matches!(file.open(&SecretString::from("another")), Err(Error::WrongPassword { .. })));
        let key = Arc::new(file.open(&SecretString::from(PASSWORD)).unwrap());
        let mut opener = Opener::new(key.clone()).unwrap();
        let config = fs::read(root.join("config")).unwrap();
        let json = file::open(&mut opener, FileKind::Config, &Id::default(), config).unwrap();
        let config = Config::parse(&json).unwrap();
        config.check_writable().unwrap();
        assert_eq!(text(&config.to_json()), text(&json));
        Opened { root: root.into(), opener, key, config }
    }

    /// All files of a kind, opened.
    fn files(&mut self, kind: FileKind) -> Vec<(Id, Vec<u8>)> {
        let paths = list(&self.root.join(kind.prefix()));
        let files = paths.into_iter().map(|path| {
            let relative = path.strip_prefix(&self.root).unwrap().to_str().unwrap().to_owned();
            let id = kind.id_of(relative.as_bytes()).expect("the path is one of the format");
            (id, file::open(&mut self.opener, kind, &id, fs::read(path).unwrap()).unwrap())
        });
        files.collect()
    }

    fn blob(&mut self, index: &Index, kind: BlobKind, id: Id) -> Vec<u8> {
        let place = index.lookup(kind, &id).expect("the blob is in the index");
        let pack = fs::read(self.root.join(FileKind::Pack.path(&index.pack(place.pack)))).unwrap();
        let blob = place.blob(kind, id);
        let mut sealed = pack[blob.offset as usize..blob.end() as usize].to_vec();
        self.opener.open(&blob, &mut sealed, &mut Vec::new()).unwrap().to_vec()
    }

    /// Reads index files, packs and their headers, which have to say the same; writes the index again.
    fn index(&mut self) -> Index {
        let mut builder = IndexBuilder::new();
        let mut by_pack: BTreeMap<Id, Vec<PackedBlob>> = BTreeMap::new();
        for (_, json) in self.files(FileKind::Index) {
            builder.add_file(&Id::of(&json), &json).unwrap();
            let mut order = Vec::new();
            index::parse(&json, |pack, blob| {
                if order.last() != Some(pack) {
                    order.push(*pack);
                }
                by_pack.entry(*pack).or_default().push(blob);
            })
            .unwrap();
            let mut again = IndexFile::new();
            order.iter().for_each(|pack| again.add(pack, &by_pack[pack]));
            assert_same(text(&again.finish()).as_bytes(), text(&json).as_bytes());
        }
        let index = builder.finish().unwrap();
        let from_index: BTreeMap<Id, Vec<PackedBlob>> =
            index.by_pack().iter().map(|(pack, blobs)| (index.pack(pack), blobs)).collect();

        let packs: Vec<PathBuf> = list(&self.root.join("data")).iter().flat_map(|dir| list(dir)).collect();
        assert_eq!(packs.len(), by_pack.len());
        for path in packs {
            let bytes = fs::read(&path).unwrap();
            let id = Id::of(&bytes);
            assert!(path.ends_with(FileKind::Pack.path(&id)));
            let Header::Blobs(blobs) = pack::read_header(&self.key, bytes.len() as u64, &bytes).unwrap()
            else {
                panic!("the whole pack was given");
            };
            assert_eq!(blobs, from_index[&id]);
            by_pack.get_mut(&id).unwrap().sort_by_key(|blob| blob.offset);
            assert_eq!(blobs, by_pack[&id]);
            for blob in blobs {
                let mut sealed = bytes[blob.offset as usize..blob.end() as usize].to_vec();
                self.opener.open(&blob, &mut sealed, &mut Vec::new()).unwrap();
            }
        }
        index
    }
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap().trim_end()
}

/// Equality of long texts, of which the first difference is shown.
fn assert_same(ours: &[u8], theirs: &[u8]) {
    if ours != theirs {
        let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
        let near = |bytes: &[u8]| {
            String::from_utf8_lossy(&bytes[at.saturating_sub(60)..bytes.len().min(at + 60)]).into_owned()
        };
        panic!("at byte {at} we write\n{}\nand restic\n{}", near(ours), near(theirs));
    }
}

#[test]
fn everything_that_restic_writes_is_read_and_written_again_byte_for_byte() {
    for (program, newest) in restics() {
        let home = tempfile::tempdir().unwrap();
        let (source, repository) = (home.path().join("source"), home.path().join("repository"));
        fs::create_dir(&source).unwrap();
        let files = fill(&source, newest);
        let restic = Restic { program, repository: repository.clone(), cache: home.path().join("cache") };
        restic.call("init");
        let words = ["backup", "--tag", "one,two", "--host", "host", "--exclude", "*.nothing"];
        let mut words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        words.push(source.as_os_str());
        restic.run(&words);
        fs::write(source.join("later"), "later").unwrap();
        restic.run(&words);

        let mut opened = Opened::new(&repository);
        let index = opened.index();
        let snapshots = opened.files(FileKind::Snapshot);
        assert_eq!(snapshots.len(), 2);
        let mut parents = 0;
        for (_, json) in &snapshots {
            let snapshot = Snapshot::parse(json).unwrap();
            assert_eq!(text(&snapshot.to_json()), text(json));
            assert_eq!(snapshot.time.offset, 330);
            assert_eq!(snapshot.tags, ["one", "two"]);
            assert!(snapshot.other.is_empty(), "{:?}", snapshot.other);
            parents += usize::from(snapshot.parent.is_some());
        }
        assert_eq!(parents, 1);

        let chunker = Chunker::new(opened.config.chunker_polynomial);
        let trees: Vec<Id> = index.blobs(BlobKind::Tree).map(|(_, blob)| blob.id).collect();
        let mut seen: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
        for id in trees {
            let blob = opened.blob(&index, BlobKind::Tree, id);
            let tree = Tree::parse(blob.clone()).unwrap();
            let (mut written, mut copied) = (TreeBuilder::new(), TreeBuilder::new());
            // Backwards: the builder has to sort them.
            for (i, node) in tree.nodes().iter().enumerate().rev() {
                assert_eq!(node.unknown, None);
                written.add(node).unwrap();
                copied.add_raw(&node.name, tree.raw(i)).unwrap();
                seen.insert(node.name.to_vec(), node.clone());
            }
            assert_same(&written.finish().unwrap(), &blob);
            assert_eq!(Id::of(&copied.finish().unwrap()), id);
        }
        for (name, content) in &files {
            let node = &seen[name];
            assert_eq!((node.kind, node.size), (NodeKind::File, content.len() as u64));
            let (mut cuts, mut rest) = (Vec::new(), &content[..]);
            while let Some(cut) = chunker.next_cut(rest, true) {
                cuts.push(Id::of(&rest[..cut]));
                rest = &rest[cut..];
            }
            assert_eq!(node.content.as_deref(), Some(&cuts[..]), "{}", String::from_utf8_lossy(name));
            let blobs = cuts.iter().flat_map(|id| opened.blob(&index, BlobKind::Data, *id));
            assert!(blobs.eq(content.iter().copied()));
        }
        let node = |name: &str| &seen[name.as_bytes()];
        assert_eq!(&*node("odd link").link_target, "<dangling> & \u{7}\u{2028}".as_bytes());
        if newest {
            assert_eq!(&*node("newer link").link_target, b"\x08\x0c");
            assert_eq!(&*node("raw link").link_target, b"not utf-8 \xff\xc3\x28");
        }
        assert_eq!((node("pipe").kind, node("pipe").mode), (NodeKind::Fifo, mode::FIFO | 0o640));
        assert_eq!(node("plain").mode, mode::SET_UID | 0o711);
        assert_eq!(node("plain").mode, mode::from_unix(0o104_711));
        assert_eq!(node("directory").mode, mode::from_unix(0o043_770));
        assert_eq!((node("plain").links, node("hard link").inode), (2, node("plain").inode));
        assert_eq!(node("plain").xattrs.len(), 2);
        assert_eq!(&*node("directory").xattrs[0].name, "user.empty");
        assert_eq!(node("link").mtime.instant(), (-5, 1));
        assert_eq!(node("text").mtime.to_string(), "2001-09-09T07:16:40.12+05:30");
    }
}

#[test]
fn restic_checks_and_reads_what_these_primitives_write() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("repository");
    for kind in FileKind::DIRECTORIES {
        fs::create_dir_all(root.join(kind.prefix())).unwrap();
    }
    let put = |kind: FileKind, id: &Id, bytes: &[u8]| {
        let path = root.join(kind.path(id));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let key = Arc::new(MasterKey::generate().unwrap());
    let file = KeyFile::create(
        &key,
        &SecretString::from(PASSWORD),
        KdfParams::NONE,
        "root",
        "host",
        Time::new(1, 0),
    )
    .unwrap();
    put(FileKind::Key, &Id::of(&file.to_json()), &file.to_json());
    let mut sealer = Sealer::new(key.clone(), Some(3)).unwrap();
    let config = Config::create(None).unwrap();
    put(FileKind::Config, &config.id, &file::seal(&mut sealer, FileKind::Config, &config.to_json()).unwrap());

    // A file of several blobs, whatever the polynomial, in one pack compressed and in another not.
    let content = [noise(5, 9 << 20), b"text ".repeat(500_000)].concat();
    let chunker = Chunker::new(config.chunker_polynomial);
    let mut index = IndexFile::new();
    let mut ids = Vec::new();
    let mut rest = &content[..];
    let mut packs = [PackBuilder::new(BlobKind::Data, 0), PackBuilder::new(BlobKind::Data, 0)];
    let mut sealers = [Sealer::new(key.clone(), Some(1)).unwrap(), Sealer::new(key, None).unwrap()];
    while let Some(cut) = chunker.next_cut(rest, true) {
        let id = Id::of(&rest[..cut]);
        // The text repeats: a blob is stored once.
        if !ids.contains(&id) {
            let which = packs.iter().map(|pack| pack.blobs().len()).sum::<usize>() % 2;
            packs[which].add(&mut sealers[which], id, &rest[..cut]).unwrap();
        }
        ids.push(id);
        rest = &rest[cut..];
    }
    assert!(packs.iter().all(|pack| !pack.is_empty()));
    let time = Time::new(1_700_000_000, 120_000_000);
    let node = |name: &[u8], kind: NodeKind, mode: u32| Node {
        name: name.into(),
        kind,
        mode,
        mtime: time,
        atime: time,
        ctime: time,
        ..Node::default()
    };
    let mut tree = TreeBuilder::new();
    for name in ODD_NAMES {
        let content_ids = Some(ids.clone().into());
        let file = node(name, NodeKind::File, 0o640);
        tree.add(&Node { size: content.len() as u64, content: content_ids, ..file }).unwrap();
    }
    let nothing = TreeBuilder::new().finish().unwrap();
    let directory = node(b"nothing", NodeKind::Dir, mode::DIR | 0o755);
    tree.add(&Node { subtree: Some(Id::of(&nothing)), ..directory }).unwrap();
    let target = b"raw \xff target";
    let link = node(b"link", NodeKind::Symlink, mode::SYMLINK | 0o777);
    tree.add(&Node { link_target: target[..].into(), ..link }).unwrap();
    let tree = tree.finish().unwrap();
    let mut trees = PackBuilder::new(BlobKind::Tree, 0);
    for blob in [&nothing, &tree] {
        trees.add(&mut sealer, Id::of(blob), blob).unwrap();
    }
    for pack in packs.into_iter().chain([trees]) {
        let pack = pack.finish(&mut sealer, Lanes::detect()).unwrap();
        put(FileKind::Pack, &pack.id, &pack.bytes);
        index.add(&pack.id, &pack.blobs);
    }
    let mut seal_and_put = |kind: FileKind, json: &[u8]| {
        let stored = file::seal(&mut sealer, kind, json).unwrap();
        put(kind, &Id::of(&stored), &stored);
    };
    seal_and_put(FileKind::Index, &index.finish());
    let snapshot =
        Snapshot { hostname: "host".into(), ..Snapshot::new(time, Id::of(&tree), vec!["/data".into()]) };
    seal_and_put(FileKind::Snapshot, &snapshot.to_json());

    for (program, newest) in restics() {
        let restic = Restic { program, repository: root.clone(), cache: home.path().join("cache") };
        restic.call("check --read-data");
        for name in ODD_NAMES {
            let path = [b"/", name].concat();
            let dumped = restic.run(&[OsStr::new("dump"), OsStr::new("latest"), OsStr::from_bytes(&path)]);
            assert!(dumped == content, "{}", String::from_utf8_lossy(name));
        }
        let place = home.path().join("restored");
        restic.run(&[OsStr::new("restore"), OsStr::new("latest"), OsStr::new("--target"), place.as_os_str()]);
        let link = fs::read_link(place.join("link")).unwrap();
        assert_eq!(link.as_os_str().as_bytes() == target, newest);
        assert!(place.join("nothing").is_dir());
        assert_eq!(list(&place).len(), ODD_NAMES.len() + 2);
        fs::remove_dir_all(place).unwrap();
    }
}
