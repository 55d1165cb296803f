//! What can happen to the files of a repository: for each damage, what restic finds we find, what can be mended is
//! mended, nothing that was readable before is lost, and what is lost is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cistern_repository::crypto::MasterKey;
use cistern_repository::file::{self, FileKind};
use cistern_repository::index::IndexFile;
use cistern_repository::key::KeyFile;
use cistern_repository::pack::{PackBuilder, PackedBlob, Sealer};
use cistern_repository::sha256::Lanes;
use cistern_repository::{
    BlobKind, CheckOptions, Finding, Id, LockKind, NodeKind, Options, Problem, ReadData, Reader, Remedy,
    Repository, check, plan_repair_index, plan_repair_packs, plan_repair_snapshots, repair_index,
    repair_packs, repair_snapshots,
};
use cistern_testkit::{seed, tools};

use crate::support::*;

/// A repository on disk with two snapshots, and what they hold.
pub struct Scene {
    pub temp: tempfile::TempDir,
    pub place: PathBuf,
    pub days: [(Id, Model); 2],
}

pub fn small() -> Options {
    Options { pack_size: 4 << 20, ..options() }
}

impl Scene {
    /// The first day has `a`, the second something else besides; each has packs and an index file of its own.
    pub async fn new(number: u64) -> Scene {
        let temp = tempfile::tempdir().unwrap();
        let place = temp.path().join("repo");
        let mut random = seed(number).random();
        let mut day = Model::from([
            ("a/large".into(), noise(&mut random, 6 << 20)),
            ("a/text".into(), text(&mut random, 300_000)),
            ("empty".into(), Bytes::new()),
        ]);
        for i in 0..30 {
            day.insert(format!("b/{}/{i}", i % 3), noise(&mut random, 30_000));
        }
        let repo = Repository::init(directory(&place), &password(), &who(), small()).await.unwrap();
        let first = (backup(&repo, &day).await.unwrap(), day.clone());
        day.insert("c/new".into(), noise(&mut random, 700_000));
        day.insert("b/1/1".into(), noise(&mut random, 40_000));
        let second = (backup(&repo, &day).await.unwrap(), day);
        Scene { temp, place, days: [first, second] }
    }

    /// The same once more, to be damaged in another way.
    pub fn again(&self) -> Scene {
        let temp = tempfile::tempdir().unwrap();
        let place = temp.path().join("repo");
        copy(&self.place, &place);
        Scene { temp, place, days: self.days.clone() }
    }

    pub async fn open(&self) -> Repository {
        Repository::open(directory(&self.place), &password(), small()).await.unwrap()
    }

    pub fn restic(&self) -> Restic {
        let (repo, cache) = (self.place.clone(), self.temp.path().join("cache"));
        Restic { program: tools::restic().unwrap(), repo, cache }
    }

    pub fn file(&self, kind: FileKind, id: &Id) -> PathBuf {
        self.place.join(kind.path(id))
    }

    pub fn change(&self, kind: FileKind, id: &Id, change: impl FnOnce(&mut Vec<u8>)) {
        let path = self.file(kind, id);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        let _ = fs::remove_file(&path);
        fs::write(path, bytes).unwrap();
    }

    fn put(&self, kind: FileKind, id: &Id, bytes: &[u8]) {
        let path = self.file(kind, id);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn all(&self, kind: FileKind) -> Vec<Id> {
        let names = fs::read_dir(self.place.join(kind.prefix())).unwrap();
        let mut ids: Vec<Id> =
            names.map(|name| name.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
        ids.sort();
        ids
    }

    fn master(&self) -> Arc<MasterKey> {
        let key = fs::read(self.file(FileKind::Key, &self.all(FileKind::Key)[0])).unwrap();
        Arc::new(KeyFile::parse(&key).unwrap().open(&password()).unwrap())
    }

    /// A pack of the first day, and the blobs in it.
    pub async fn pack(&self, kind: BlobKind) -> (Id, Vec<PackedBlob>) {
        let repo = self.open().await;
        let index = repo.index().await.unwrap();
        let blob = match kind {
            BlobKind::Tree => repo.snapshot(&self.days[0].0).await.unwrap().tree,
            BlobKind::Data => Id::of(&self.days[0].1["b/0/0"]),
        };
        let pack = index.lookup(kind, &blob).unwrap().pack;
        let blobs = index.by_pack().of(pack).into_iter().map(|(_, blob)| blob).collect();
        (index.pack(pack), blobs)
    }

    pub fn put_index(&self, pack: &Id, blobs: &[PackedBlob]) {
        let mut index = IndexFile::new();
        index.add(pack, blobs);
        let mut sealer = Sealer::new(self.master(), None).unwrap();
        let stored = file::seal(&mut sealer, FileKind::Index, &index.finish()).unwrap();
        self.put(FileKind::Index, &Id::of(&stored), &stored);
    }

    /// A pack with one blob that nobody needs.
    fn spare_pack(&self) -> (Id, Vec<u8>, Vec<PackedBlob>) {
        let mut sealer = Sealer::new(self.master(), None).unwrap();
        let mut pack = PackBuilder::new(BlobKind::Data, 1 << 16);
        let content = noise(&mut seed(7).random(), 10_000);
        pack.add(&mut sealer, Id::of(&content), &content).unwrap();
        let pack = pack.finish(&mut sealer, Lanes::detect()).unwrap();
        (pack.id, pack.bytes, pack.blobs)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, target) = (entry.as_ref().unwrap().path(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.is_dir() { copy(&entry, &target) } else { fs::copy(&entry, &target).map(drop).unwrap() }
    }
}

pub async fn findings(repo: &Repository) -> Vec<Finding> {
    check(repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap()
}

/// Every file below a directory that can be read, whatever else cannot.
pub async fn readable(reader: &Reader, root: Id) -> Model {
    let mut model = Model::new();
    let mut stack = vec![(String::new(), root)];
    while let Some((path, id)) = stack.pop() {
        let Ok(tree) = reader.tree(&id).await else { continue };
        'nodes: for node in tree.nodes() {
            let path = format!("{path}/{}", String::from_utf8_lossy(&node.name));
            if node.kind == NodeKind::Dir {
                stack.push((path, node.subtree.unwrap()));
                continue;
            }
            let mut content = Vec::new();
            for blob in node.content.as_ref().unwrap() {
                let Ok(piece) = reader.blob(BlobKind::Data, blob).await else { continue 'nodes };
                content.extend_from_slice(&piece);
            }
            model.insert(path[1..].to_owned(), content.into());
        }
    }
    model
}

/// What the snapshots hold, by their first ids.
pub async fn held(scene: &Scene, repo: &Repository) -> BTreeMap<Id, Model> {
    let Ok(index) = repo.index().await else { return BTreeMap::new() };
    let reader = repo.reader(index);
    let mut held = BTreeMap::new();
    for id in scene.all(FileKind::Snapshot) {
        if let Ok(snapshot) = repo.snapshot(&id).await {
            held.insert(snapshot.original.unwrap_or(id), readable(&reader, snapshot.tree).await);
        }
    }
    held
}

/// Lost paths that a repair names of a snapshot, at most.
const NAMED: usize = 20;

/// What repairs said.
#[derive(Debug, Default)]
pub struct Said {
    pub unreadable_packs: Vec<Id>,
    pub lost_blobs: u64,
    /// By snapshot; of each the first [`NAMED`], and no entry where nothing is lost.
    pub lost_paths: BTreeMap<Id, BTreeSet<String>>,
    pub unreadable_snapshots: Vec<Id>,
    /// Of which nothing is left.
    pub emptied_snapshots: Vec<Id>,
}

/// All repairs, one after the other.
pub async fn repaired(repo: &Repository) -> cistern_repository::Result<Said> {
    let mut said = Said::default();
    let lock = Arc::new(lock(repo, LockKind::Exclusive).await);
    let outcome = async {
        let plan = plan_repair_index(repo, false, &|_| ()).await?;
        said.unreadable_packs = plan.unreadable_packs.iter().map(|(id, _)| *id).collect();
        said.lost_blobs += plan.lost;
        repair_index(repo, plan, &lock, &|_| ()).await?;
        let plan = plan_repair_packs(repo, &[], &|_| ()).await?;
        said.lost_blobs += plan.lost();
        assert!(repair_packs(repo, plan, &lock, &|_| ()).await?.failed.is_empty());
        let plan = plan_repair_snapshots(repo, &|_| ()).await?;
        for broken in &plan.broken {
            let paths = broken.paths.iter().map(|path| String::from_utf8_lossy(&path[1..]).into_owned());
            let paths: BTreeSet<_> = paths.collect();
            if !paths.is_empty() {
                said.lost_paths.insert(broken.id, paths);
            }
            match broken.remedy {
                Remedy::Unreadable(_) => said.unreadable_snapshots.push(broken.id),
                Remedy::NothingLeft => said.emptied_snapshots.push(broken.id),
                Remedy::Rewrite | Remedy::Rewritten(_) => (),
            }
        }
        repair_snapshots(repo, plan, &["partial"], true, &lock, &|_| ()).await
    };
    let outcome = outcome.await;
    Arc::into_inner(lock).expect("the repairs are over").release().await;
    outcome.map(|_| said)
}

/// What a damage needs to know of the repository.
struct Known {
    data: Id,
    data_blobs: Vec<PackedBlob>,
    tree: Id,
    tree_blobs: Vec<PackedBlob>,
    /// The index file that names both.
    index: Id,
}

/// What is expected after a damage.
struct Case {
    name: &'static str,
    damage: fn(&Scene, &Known),
    /// Kinds of problems that our check finds.
    kinds: &'static [&'static str],
    /// What becomes of it.
    then: Then,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    /// Everything is as it was.
    Healed,
    /// Files or directories are lost, and named.
    Lost,
    /// A snapshot is lost, and named.
    SnapshotLost,
    /// Nothing is lost, and a pack that cannot be read is named.
    Named,
    /// No repair is meant for it: the key is removed by its name.
    KeyRemoved,
}

fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 0x10;
}

const PACKS: &[Case] = &[
    Case {
        name: "a missing pack of data",
        damage: |scene, known| fs::remove_file(scene.file(FileKind::Pack, &known.data)).unwrap(),
        kinds: &["missing-pack"],
        then: Then::Lost,
    },
    Case {
        name: "a missing pack of directories",
        damage: |scene, known| fs::remove_file(scene.file(FileKind::Pack, &known.tree)).unwrap(),
        kinds: &["missing-pack", "tree"],
        then: Then::Lost,
    },
    Case {
        name: "a pack cut in half",
        damage: |scene, known| {
            scene.change(FileKind::Pack, &known.data, |bytes| bytes.truncate(bytes.len() / 2));
        },
        kinds: &["blob", "pack", "pack-size"],
        then: Then::Lost,
    },
    Case {
        name: "a pack of directories cut to nothing",
        damage: |scene, known| scene.change(FileKind::Pack, &known.tree, Vec::clear),
        kinds: &["blob", "pack", "pack-size", "tree"],
        then: Then::Lost,
    },
    Case {
        name: "a pack cut within its header",
        damage: |scene, known| {
            scene.change(FileKind::Pack, &known.data, |bytes| bytes.truncate(bytes.len() - 10));
        },
        kinds: &["pack", "pack-size"],
        then: Then::Healed,
    },
    Case {
        name: "a pack with something behind it",
        damage: |scene, known| scene.change(FileKind::Pack, &known.data, |bytes| bytes.push(0)),
        kinds: &["pack", "pack-size"],
        then: Then::Healed,
    },
];

const BITS: &[Case] = &[
    Case {
        name: "a wrong bit in data",
        damage: |scene, known| {
            let at = known.data_blobs[0].offset as usize + 50;
            scene.change(FileKind::Pack, &known.data, |bytes| flip(bytes, at));
        },
        kinds: &["blob", "pack"],
        then: Then::Lost,
    },
    Case {
        name: "a wrong bit in a directory",
        damage: |scene, known| {
            let at = known.tree_blobs[0].offset as usize + 50;
            scene.change(FileKind::Pack, &known.tree, |bytes| flip(bytes, at));
        },
        kinds: &["blob", "pack", "tree"],
        then: Then::Lost,
    },
    Case {
        name: "a wrong bit in the header of a pack",
        damage: |scene, known| {
            scene.change(FileKind::Pack, &known.data, |bytes| {
                let at = bytes.len() - 30;
                flip(bytes, at);
            });
        },
        kinds: &["pack"],
        then: Then::Healed,
    },
    Case {
        name: "a wrong length of the header of a pack of directories",
        damage: |scene, known| {
            scene.change(FileKind::Pack, &known.tree, |bytes| {
                bytes.iter_mut().rev().take(4).for_each(|byte| *byte = 0xff)
            });
        },
        kinds: &["pack"],
        then: Then::Healed,
    },
    Case {
        name: "a pack that no index names",
        damage: |scene, _| {
            let (id, bytes, _) = scene.spare_pack();
            scene.put(FileKind::Pack, &id, &bytes);
        },
        kinds: &["unused-pack"],
        then: Then::Healed,
    },
    Case {
        name: "half of a pack under its final name",
        damage: |scene, _| {
            let (id, bytes, _) = scene.spare_pack();
            scene.put(FileKind::Pack, &id, &bytes[..bytes.len() / 2]);
        },
        kinds: &["unused-pack"],
        then: Then::Named,
    },
];

const FILES: &[Case] = &[
    Case {
        name: "a wrong bit in an index file",
        damage: |scene, known| scene.change(FileKind::Index, &known.index, |bytes| flip(bytes, 40)),
        kinds: &["index", "missing-blob", "tree", "unused-pack"],
        then: Then::Healed,
    },
    Case {
        name: "half of an index file",
        damage: |scene, known| {
            scene.change(FileKind::Index, &known.index, |bytes| bytes.truncate(bytes.len() / 2));
        },
        kinds: &["index", "missing-blob", "tree", "unused-pack"],
        then: Then::Healed,
    },
    Case {
        name: "a missing index file",
        damage: |scene, known| fs::remove_file(scene.file(FileKind::Index, &known.index)).unwrap(),
        kinds: &["missing-blob", "tree", "unused-pack"],
        then: Then::Healed,
    },
    Case {
        name: "no index",
        damage: |scene, _| {
            for id in scene.all(FileKind::Index) {
                fs::remove_file(scene.file(FileKind::Index, &id)).unwrap();
            }
        },
        kinds: &["tree", "unused-pack"],
        then: Then::Healed,
    },
    Case {
        name: "an index that names a pack which does not exist",
        damage: |scene, _| {
            let (id, _, blobs) = scene.spare_pack();
            scene.put_index(&id, &blobs);
        },
        kinds: &["missing-pack"],
        then: Then::Healed,
    },
    Case {
        name: "an index that knows half of a pack",
        damage: |scene, known| {
            fs::remove_file(scene.file(FileKind::Index, &known.index)).unwrap();
            scene.put_index(&known.data, &known.data_blobs[..known.data_blobs.len() / 2]);
        },
        kinds: &["missing-blob", "pack", "pack-size", "tree", "unused-pack"],
        then: Then::Healed,
    },
    Case {
        name: "a wrong bit in a snapshot",
        damage: |scene, _| scene.change(FileKind::Snapshot, &scene.days[0].0, |bytes| flip(bytes, 40)),
        kinds: &["snapshot"],
        then: Then::SnapshotLost,
    },
    Case {
        name: "half of a snapshot",
        damage: |scene, _| {
            scene.change(FileKind::Snapshot, &scene.days[0].0, |bytes| bytes.truncate(bytes.len() / 2));
        },
        kinds: &["snapshot"],
        then: Then::SnapshotLost,
    },
    Case {
        name: "nothing of a snapshot",
        damage: |scene, _| scene.change(FileKind::Snapshot, &scene.days[0].0, Vec::clear),
        kinds: &["snapshot"],
        then: Then::SnapshotLost,
    },
    Case {
        name: "a key under another name",
        damage: |scene, _| {
            let key = fs::read(scene.file(FileKind::Key, &scene.all(FileKind::Key)[0])).unwrap();
            scene.put(FileKind::Key, &Id::of(b"another"), &key);
        },
        kinds: &["key"],
        then: Then::KeyRemoved,
    },
    Case {
        name: "a key that is no JSON",
        damage: |scene, _| scene.put(FileKind::Key, &Id::of(b"no key"), b"no key"),
        kinds: &["key"],
        then: Then::KeyRemoved,
    },
];

/// Ids that restic names, whole, as something that is wrong.
fn named_by_restic(said: &str) -> BTreeSet<Id> {
    let mut named = BTreeSet::new();
    for line in said.lines().filter(|line| !line.contains("not referenced")) {
        // The hash of what is there instead, and the directory that names what is missing.
        let line = line.split("unexpected pack id").next().unwrap_or_default();
        let line = line
            .trim()
            .strip_prefix("tree ")
            .and_then(|rest| rest.split_once(": file"))
            .map_or(line, |(_, rest)| rest);
        let words = line.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64);
        named.extend(words.map(|word| word.parse::<Id>().unwrap()));
    }
    named
}

/// Damages, checks with both programs, repairs, and checks again.
async fn play(case: &Case, scene: &Scene) {
    let name = case.name;
    let (data, data_blobs) = scene.pack(BlobKind::Data).await;
    let (tree, tree_blobs) = scene.pack(BlobKind::Tree).await;
    let index = {
        let index = scene.open().await.index().await.unwrap();
        let names = |file: &&cistern_repository::index::NamedIn| {
            file.packs.iter().any(|pack| index.pack(*pack) == data)
        };
        index.files().iter().find(names).unwrap().id
    };
    (case.damage)(scene, &Known { data, data_blobs, tree, tree_blobs, index });
    let repo = scene.open().await;
    let found = findings(&repo).await;
    let kinds: BTreeSet<&str> = found.iter().map(|finding| finding.problem.kind()).collect();
    assert_eq!(kinds, case.kinds.iter().copied().collect(), "{name}: {found:#?}");
    let is_harmful = found.iter().any(|finding| !finding.problem.is_hint());
    let (passes, out, err) = scene.restic().attempt(&["check", "--read-data"]);
    assert!(passes || is_harmful, "{name}: restic finds what we do not:\n{out}\n{err}");
    let ours: String =
        found.iter().map(|finding| format!("{} {:?}\n", finding.problem, finding.problem)).collect();
    for id in named_by_restic(&format!("{out}\n{err}")) {
        assert!(ours.contains(&id.to_string()), "{name}: restic names {id}:\n{out}\n{err}\n{ours}");
    }

    let before = held(scene, &repo).await;
    let said = repaired(&repo).await.unwrap_or_else(|error| panic!("{name}: {error}"));
    let repo = scene.open().await;
    let after = held(scene, &repo).await;
    for (id, files) in &before {
        for (path, content) in files {
            assert!(after[id].get(path) == Some(content), "{name}: {path} could be read before");
        }
    }
    for (id, day) in &scene.days {
        let Some(after) = after.get(id) else {
            let mut lost = said.unreadable_snapshots.iter().chain(&said.emptied_snapshots);
            assert!(lost.any(|lost| lost == id), "{name}: {id} is lost, and not named: {said:?}");
            continue;
        };
        for (path, content) in day.iter().filter(|(path, content)| after.get(*path) != Some(*content)) {
            assert_eq!(case.then, Then::Lost, "{name}: {path} of {} bytes is not what it was", content.len());
            let named = said.lost_paths.get(id).into_iter().flatten();
            let is_named = named
                .clone()
                .any(|lost| path == lost || path.starts_with(&format!("{lost}/")) || lost.is_empty());
            assert!(
                is_named || named.count() == NAMED,
                "{name}: {path} of {id} is lost, and not named: {said:?}"
            );
        }
    }
    assert_eq!(!said.lost_paths.is_empty(), case.then == Then::Lost, "{name}: {said:?}");
    assert_eq!(!said.unreadable_snapshots.is_empty(), case.then == Then::SnapshotLost, "{name}: {said:?}");
    if case.then == Then::Named {
        assert_eq!(said.unreadable_packs.len(), 1, "{name}: {said:?}");
    }
    if case.then == Then::KeyRemoved {
        let odd = found.iter().find_map(|finding| match &finding.problem {
            Problem::Key { id, .. } => Some(*id),
            _ => None,
        });
        let odd = odd.unwrap();
        // The key that opens the repository is not removed with its own help, whatever its name.
        let hint = scene.all(FileKind::Key).into_iter().find(|id| *id != odd);
        let options = Options { key_hint: hint, ..small() };
        let repo = Repository::open(directory(&scene.place), &password(), options).await.unwrap();
        let lock = lock(&repo, LockKind::Exclusive).await;
        repo.remove_key(&odd.to_string(), &lock).await.unwrap();
        lock.release().await;
    }
    let left = findings(&repo).await;
    assert!(left.iter().all(|finding| finding.problem.is_hint()), "{name}: {left:#?}");
    scene.restic().run(&["check", "--read-data"]);
    // A second run has nothing to do.
    let again = repaired(&repo).await.unwrap();
    assert!(again.lost_paths.is_empty() && again.lost_blobs == 0, "{name}: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_that_are_missing_or_cut_are_found_and_what_is_whole_in_them_is_saved() {
    let scene = Scene::new(80).await;
    for case in PACKS {
        play(case, &scene.again()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packs_with_wrong_bits_are_found_and_what_is_whole_in_them_is_saved() {
    let scene = Scene::new(83).await;
    for case in BITS {
        play(case, &scene.again()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_beside_the_packs_are_found_and_replaced() {
    let scene = Scene::new(81).await;
    for case in FILES {
        play(case, &scene.again()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_twice_survives_damage_to_one_of_the_two() {
    let scene = Scene::new(82).await;
    let (_, day) = &scene.days[0];
    let repo = scene.open().await;
    // A writer that sees no index stores everything again.
    let writer = repo.writer(Arc::default(), lock(&repo, LockKind::Shared).await);
    write(&writer, day).await.unwrap();
    writer.finish(Vec::new()).await.unwrap();
    let case = Case {
        name: "a wrong bit in one of two",
        damage: |scene, known| {
            let at = known.data_blobs[0].offset as usize + 50;
            scene.change(FileKind::Pack, &known.data, |bytes| flip(bytes, at));
        },
        kinds: &["blob", "pack", "stored-twice"],
        then: Then::Healed,
    };
    play(&case, &scene).await;
}
