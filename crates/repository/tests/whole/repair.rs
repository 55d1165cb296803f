//! Repairs change nothing before they are asked to, lose nothing that is whole, and can be stopped at every write.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cistern_bucket::{Bucket, Memory, Verb};
use cistern_repository::file::FileKind;
use cistern_repository::{
    BlobKind, Error, Id, Identity, LockKind, Node, NodeKind, Problem, REPAIRED_TAG, Remedy, Repository,
    Result, Snapshot, TreeBuilder, node::mode, plan_repair_index, plan_repair_packs, plan_repair_snapshots,
    repair_index, repair_packs, repair_snapshots,
};
use cistern_testkit::{Fault, Faulty, Rule, seed};

use crate::damage::{Scene, findings, held, readable, repaired, small};
use crate::support::*;

async fn exclusive(repo: &Repository) -> Arc<cistern_repository::Lock> {
    Arc::new(lock(repo, LockKind::Exclusive).await)
}

async fn free(lock: Arc<cistern_repository::Lock>) {
    Arc::into_inner(lock).expect("the repair is over").release().await;
}

/// A repository in memory with one snapshot, and the blob of a file in it.
async fn in_memory(day: &Model) -> (Arc<Memory>, Repository, Id) {
    let memory = Arc::new(Memory::new("memory"));
    let repo = Repository::init(memory.clone(), &password(), &who(), small()).await.unwrap();
    let id = backup(&repo, day).await.unwrap();
    (memory, repo, id)
}

/// Spoils the blob that is all of a small file.
async fn spoil(memory: &Memory, repo: &Repository, content: &Bytes) -> Id {
    let index = repo.index().await.unwrap();
    let place = index.lookup(BlobKind::Data, &Id::of(content)).unwrap();
    let pack = index.pack(place.pack);
    assert!(memory.corrupt(&FileKind::Pack.key(&pack), |bytes| bytes[place.offset as usize + 40] ^= 1));
    pack
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plans_write_nothing_and_repairs_want_an_exclusive_lock() {
    let mut random = seed(90).random();
    let day = Model::from([("a".into(), noise(&mut random, 9000)), ("b".into(), noise(&mut random, 9000))]);
    let (memory, repo, _) = in_memory(&day).await;
    let pack = spoil(&memory, &repo, &day["a"]).await;
    let index = memory.keys().into_iter().find(|key| key.as_bytes().starts_with(b"index/")).unwrap();
    let whole_index = memory.content(&index).unwrap();
    assert!(memory.corrupt(&index, |bytes| bytes[30] ^= 1));
    let before = memory.ledger().snapshot();
    let shared = Arc::new(lock(&repo, LockKind::Shared).await);
    let locked = memory.keys();
    // The index comes first: without it nobody knows what is lost.
    assert!(plan_repair_packs(&repo, &[], &|_| ()).await.is_err());
    assert!(plan_repair_snapshots(&repo, &|_| ()).await.is_err());
    let plan = plan_repair_index(&repo, false, &|_| ()).await.unwrap();
    assert_eq!((plan.unreadable_files.len(), plan.added.len(), plan.headers_read), (1, 2, 2));
    repair_index(&repo, plan, &shared, &|_| ()).await.unwrap_err();
    memory.insert(index, whole_index, cistern_bucket::Attributes::default());
    let plan = plan_repair_packs(&repo, &[], &|_| ()).await.unwrap();
    assert_eq!(plan.damaged.iter().map(|pack| (pack.id, pack.saved())).collect::<Vec<_>>(), [(pack, 1)]);
    assert_eq!(plan.damaged[0].lost, [(BlobKind::Data, Id::of(&day["a"]))]);
    assert!(plan.damaged[0].problems.iter().any(|problem| matches!(problem, Problem::Blob { .. })));
    repair_packs(&repo, plan, &shared, &|_| ()).await.unwrap_err();
    let plan = plan_repair_snapshots(&repo, &|_| ()).await.unwrap();
    assert!(plan.is_empty() && plan.snapshots == 1, "what is damaged is still named by the index");
    repair_snapshots(&repo, plan, &[], true, &shared, &|_| ()).await.unwrap_err();
    let unknown = plan_repair_packs(&repo, &[Id::of(b"unknown")], &|_| ()).await.map(|_| ()).unwrap_err();
    assert!(matches!(unknown, Error::BadParameter { what: "pack", .. }), "{unknown:?}");
    let after = memory.ledger().snapshot();
    assert_eq!(before.count(Verb::Delete), after.count(Verb::Delete));
    assert_eq!(after.count(Verb::Put) - before.count(Verb::Put), 1, "the lock");
    assert_eq!(memory.keys(), locked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_named_is_kept_as_it_is_and_what_is_whole_in_it_is_written_anew() {
    let mut random = seed(91).random();
    let day: Model = (0..20).map(|i| (format!("{i}"), noise(&mut random, 9000))).collect();
    let (memory, repo, id) = in_memory(&day).await;
    let pack = spoil(&memory, &repo, &day["3"]).await;
    let damaged = memory.content(&FileKind::Pack.key(&pack)).unwrap();
    let lock = exclusive(&repo).await;
    let plan = plan_repair_packs(&repo, &[pack], &|_| ()).await.unwrap();
    assert_eq!((plan.packs_read, plan.lost(), plan.damaged[0].saved()), (1, 1, 19));
    let done = repair_packs(&repo, plan, &lock, &|_| ()).await.unwrap();
    assert_eq!((done.packs_removed, done.packs_written, done.blobs_written), (1, 1, 19));
    assert_eq!((done.files_written, done.files_deleted), (2, 1));
    assert!(memory.content(&FileKind::Pack.key(&pack)).is_none());
    assert_eq!(memory.content(&format!("cistern/damaged/{pack}").into()).unwrap(), damaged);
    let reader = repo.reader(repo.index().await.unwrap());
    let tree = repo.snapshot(&id).await.unwrap().tree;
    let mut expected = day.clone();
    let lost = expected.remove("3").unwrap();
    assert_same(&readable(&reader, tree).await, &expected);
    assert!(!reader.index().contains(BlobKind::Data, &Id::of(&lost)));
    // What the source still has heals the snapshot.
    free(lock).await;
    backup(&repo, &day).await.unwrap();
    assert!(findings(&repo).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_lies_about_a_whole_pack_is_corrected_by_reading_all_headers() {
    let mut random = seed(92).random();
    let day: Model = (0..9).map(|i| (format!("{i}"), noise(&mut random, 9000))).collect();
    let scene = Scene::new(92).await;
    let repo = scene.open().await;
    backup(&repo, &day).await.unwrap();
    let (pack, mut blobs) = scene.pack(BlobKind::Data).await;
    // Two blobs change their names: the size stays what it was.
    let last = blobs.len() - 1;
    (blobs[0].id, blobs[last].id) = (blobs[last].id, blobs[0].id);
    let index = repo.index().await.unwrap();
    for file in index.files().iter().filter(|file| file.packs.iter().any(|other| index.pack(*other) == pack))
    {
        fs::remove_file(scene.file(FileKind::Index, &file.id)).unwrap();
    }
    scene.put_index(&pack, &blobs);
    let lock = exclusive(&repo).await;
    // Packs whose names were lost with the file are found; the lie is not.
    let plan = plan_repair_index(&repo, false, &|_| ()).await.unwrap();
    assert!(plan.corrected.is_empty() && !plan.added.is_empty());
    repair_index(&repo, plan, &lock, &|_| ()).await.unwrap();
    // Nothing is wrong with the pack itself.
    let plan = plan_repair_packs(&repo, &[], &|_| ()).await.unwrap();
    assert!(plan.is_empty() && plan.packs_read as usize == repo.index().await.unwrap().packs().len());
    let plan = plan_repair_index(&repo, true, &|_| ()).await.unwrap();
    assert_eq!((plan.corrected.clone(), plan.lost), (vec![pack], 0));
    repair_index(&repo, plan, &lock, &|_| ()).await.unwrap();
    free(lock).await;
    assert!(findings(&repo).await.is_empty());
    for (id, day) in &scene.days {
        let reader = repo.reader(repo.index().await.unwrap());
        assert_same(&read(&reader, repo.snapshot(id).await.unwrap().tree).await.unwrap(), day);
    }
}

/// A directory with files of one blob each, and subdirectories.
fn tree(files: &[(&str, &Bytes)], directories: &[(&str, Id)]) -> Vec<u8> {
    let mut tree = TreeBuilder::new();
    for (name, content) in files {
        let content_ids = Some([Id::of(content)].into());
        let node = Node {
            name: name.as_bytes().into(),
            size: content.len() as u64,
            content: content_ids,
            ..Node::default()
        };
        tree.add(&node).unwrap();
    }
    for (name, id) in directories {
        let node = Node {
            name: name.as_bytes().into(),
            kind: NodeKind::Dir,
            mode: mode::DIR | 0o755,
            subtree: Some(*id),
            ..Node::default()
        };
        tree.add(&node).unwrap();
    }
    tree.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_snapshot_is_written_byte_for_byte_and_no_sibling_loses_its_name() {
    let mut random = seed(93).random();
    let day =
        Model::from([("lost".into(), noise(&mut random, 5000)), ("whole".into(), noise(&mut random, 5000))]);
    let (memory, repo, first) = in_memory(&day).await;
    let (lost, whole) = (&day["lost"], &day["whole"]);
    let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
    let same = writer.tree(tree(&[("w", whole)], &[])).unwrap();
    let cut =
        writer.tree(tree(&[("f", lost), ("f.repaired", whole), ("g", lost)], &[("same", same)])).unwrap();
    let unread = writer.tree(tree(&[("z", whole)], &[])).unwrap();
    let root =
        writer.tree(tree(&[("h", whole)], &[("cut", cut), ("same", same), ("unread", unread)])).unwrap();
    let mut made = snapshot(root, None);
    made.tags = vec!["daily".into()];
    let id = writer.finish(vec![made.clone()]).await.unwrap().ids[0];

    let pack = spoil(&memory, &repo, lost).await;
    let index = repo.index().await.unwrap();
    let place = index.lookup(BlobKind::Tree, &unread).unwrap();
    let trees = index.pack(place.pack);
    assert!(memory.corrupt(&FileKind::Pack.key(&trees), |bytes| bytes[place.offset as usize + 40] ^= 1));
    let lock = exclusive(&repo).await;
    let plan = plan_repair_packs(&repo, &[pack, trees], &|_| ()).await.unwrap();
    assert_eq!(plan.lost(), 2);
    repair_packs(&repo, plan, &lock, &|_| ()).await.unwrap();

    let plan = plan_repair_snapshots(&repo, &|_| ()).await.unwrap();
    let of = |id: Id| plan.broken.iter().find(|broken| broken.id == id).unwrap();
    assert_eq!((of(first).lost.files, of(first).lost.directories), (1, 0));
    assert_eq!((of(id).lost.files, of(id).lost.directories), (2, 1));
    let mut paths = of(id).paths.clone();
    paths.sort();
    assert_eq!(paths, [&b"/cut/f"[..], b"/cut/g", b"/unread"]);
    let done = repair_snapshots(&repo, plan, &["partial"], false, &lock, &|_| ()).await.unwrap();
    assert!(done.removed.is_empty());
    let new = done.written.iter().find(|(_, old)| *old == id).unwrap().0;

    let empty = Bytes::new();
    let reader = repo.reader(repo.index().await.unwrap());
    let written = repo.snapshot(&new).await.unwrap();
    let cut = {
        let mut tree = TreeBuilder::new();
        for name in ["f.repaired-2", "g.repaired"] {
            tree.add(&Node { name: name.as_bytes().into(), content: Some([].into()), ..Node::default() })
                .unwrap();
        }
        let content = Some([Id::of(whole)].into());
        tree.add(&Node { name: b"f.repaired".as_slice().into(), size: 5000, content, ..Node::default() })
            .unwrap();
        let node = Node {
            name: b"same".as_slice().into(),
            kind: NodeKind::Dir,
            mode: mode::DIR | 0o755,
            subtree: Some(same),
            ..Node::default()
        };
        tree.add(&node).unwrap();
        Id::of(&tree.finish().unwrap())
    };
    let nothing = Id::of(b"{\"nodes\":[]}\n");
    let expected = tree(&[("h", whole)], &[("cut", cut), ("same", same), ("unread", nothing)]);
    assert_eq!(written.tree, Id::of(&expected));
    assert_eq!(reader.blob(BlobKind::Tree, &written.tree).await.unwrap(), expected);
    assert_eq!(written.tags, ["daily", REPAIRED_TAG, "partial"]);
    assert_eq!(
        written,
        Snapshot { tree: written.tree, tags: written.tags.clone(), original: Some(id), ..made }
    );
    let left = readable(&reader, written.tree).await;
    assert_eq!(left["cut/f.repaired"], *whole);
    assert_eq!((&left["cut/f.repaired-2"], &left["cut/g.repaired"]), (&empty, &empty));

    // The next run finds what this one wrote, writes nothing again, and removes the old ones if asked to.
    let plan = plan_repair_snapshots(&repo, &|_| ()).await.unwrap();
    assert!(
        plan.broken.len() == 2
            && plan.broken.iter().all(|broken| matches!(broken.remedy, Remedy::Rewritten(_)))
    );
    let done = repair_snapshots(&repo, plan, &["partial"], true, &lock, &|_| ()).await.unwrap();
    assert_eq!((done.written.len(), done.removed.len()), (0, 2));
    assert!(plan_repair_snapshots(&repo, &|_| ()).await.unwrap().is_empty());
    free(lock).await;
    assert!(findings(&repo).await.iter().all(|finding| finding.problem.is_hint()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_deleted_once_the_lock_is_gone() {
    let mut random = seed(94).random();
    let day: Model = (0..5).map(|i| (format!("{i}"), noise(&mut random, 9000))).collect();
    let (memory, repo, _) = in_memory(&day).await;
    let pack = spoil(&memory, &repo, &day["3"]).await;
    let lock = exclusive(&repo).await;
    let plan = plan_repair_packs(&repo, &[pack], &|_| ()).await.unwrap();
    for held in repo.locks(&who()).await.unwrap() {
        repo.remove_lock(&held).await.unwrap();
    }
    let before = memory.keys();
    let error = repair_packs(&repo, plan, &lock, &|_| ()).await.unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error:?}");
    assert!(before.iter().all(|key| memory.content(key).is_some()), "something is gone");
}

/// One step of the repairs, under a lock of its own.
async fn step(repo: &Repository, step: usize) -> Result<()> {
    let doomed = Identity { pid: 999_999_999, ..who() };
    let lock = Arc::new(repo.lock(LockKind::Exclusive, &doomed, Duration::ZERO).await?);
    let outcome = async {
        match step {
            0 => {
                let plan = plan_repair_index(repo, false, &|_| ()).await?;
                repair_index(repo, plan, &lock, &|_| ()).await?;
            }
            1 => {
                let plan = plan_repair_packs(repo, &[], &|_| ()).await?;
                repair_packs(repo, plan, &lock, &|_| ()).await?;
            }
            _ => {
                let plan = plan_repair_snapshots(repo, &|_| ()).await?;
                repair_snapshots(repo, plan, &["partial"], true, &lock, &|_| ()).await?;
            }
        }
        Ok(())
    };
    let outcome = outcome.await;
    free(lock).await;
    outcome
}

/// Damages of several kinds at once: packs with wrong bits in data and in a header, and one that is gone.
async fn ruin() -> Scene {
    let scene = Scene::new(95).await;
    let (data, blobs) = scene.pack(BlobKind::Data).await;
    let (trees, _) = scene.pack(BlobKind::Tree).await;
    let (repo, second) = (scene.open().await, &scene.days[1]);
    let index = repo.index().await.unwrap();
    let new = index.lookup(BlobKind::Data, &Id::of(&second.1["b/1/1"])).unwrap();
    fs::remove_file(scene.file(FileKind::Pack, &index.pack(new.pack))).unwrap();
    scene.change(FileKind::Pack, &data, |bytes| bytes[blobs[0].offset as usize + 50] ^= 1);
    scene.change(FileKind::Pack, &trees, |bytes| {
        let at = bytes.len() - 30;
        bytes[at] ^= 1;
    });
    scene
}

/// Crash points of each step that are tried, at most.
const POINTS: u64 = 8;

/// Has a step die at its writes; whatever was whole is whole then, and the next run leaves what an undisturbed one does.
async fn killed(last: usize) {
    let ruin = ruin().await;
    let healed = ruin.again();
    let said = repaired(&healed.open().await).await.unwrap();
    assert!(said.lost_blobs > 0 && !said.lost_paths.is_empty(), "{said:?}");
    let expected: BTreeMap<Id, Model> = held(&healed, &healed.open().await).await;
    for done in 0..last {
        step(&ruin.open().await, done).await.unwrap();
    }
    let repo = ruin.open().await;
    let through = |scene: &Scene| {
        let faulty = Faulty::new(directory(&scene.place));
        (faulty.clone(), repo.through(faulty, small()).unwrap())
    };
    let scene = ruin.again();
    let (faulty, counted) = through(&scene);
    step(&counted, last).await.unwrap();
    let points: Vec<(u64, bool)> = (0..faulty.writes()).flat_map(|n| [(n, false), (n, true)]).collect();
    let (mut deaths, mut random) = (0, seed(96 + last as u64).random());
    for (n, after_effect) in &points {
        if random.below(points.len() as u64) >= POINTS {
            continue;
        }
        let name = format!("step {last}, write {n}, after its effect: {after_effect}");
        let scene = ruin.again();
        let (faulty, mortal) = through(&scene);
        faulty.inject(Rule::new(if *after_effect { Fault::DieAfter } else { Fault::Die }).writes().nth(*n));
        let outcome = step(&mortal, last).await;
        drop(mortal);
        if !faulty.is_dead() {
            // The order of writes changes a little from run to run, and so may their number.
            outcome.unwrap();
            continue;
        }
        deaths += 1;
        let repo = scene.open().await;
        for (id, files) in held(&scene, &repo).await {
            let whole = expected.get(&id).into_iter().flatten();
            for (path, content) in whole.filter(|(path, _)| scene.days[1].1.contains_key(*path)) {
                assert!(files.get(path) == Some(content), "{name}: {path}");
            }
        }
        repaired(&repo).await.unwrap();
        let after = held(&scene, &repo).await;
        assert!(after.keys().eq(expected.keys()), "{name}");
        for (id, files) in &expected {
            assert_same(&after[id], files);
        }
        let left = findings(&repo).await;
        assert!(left.iter().all(|finding| finding.problem.is_hint()), "{name}: {left:#?}");
        if deaths % 3 == 0 {
            scene.restic().run(&["check", "--read-data"]);
        }
    }
    assert!(deaths >= 4, "{deaths} of {}", points.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_of_the_index_that_is_killed_loses_nothing_and_the_next_one_finishes() {
    killed(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_of_packs_that_is_killed_loses_nothing_and_the_next_one_finishes() {
    killed(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_of_snapshots_that_is_killed_loses_nothing_and_the_next_one_finishes() {
    killed(2).await;
}
