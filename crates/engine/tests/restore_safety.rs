//! A restore takes nothing away that it was not told to take: what it deletes, replaces and leaves out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cistern_bucket::{Address, Attributes, Bucket, ErrorKind, Key, Memory, PutOptions, Verb};
use cistern_engine::{Backup, Error, ExceptionKind, OnUnreadable, Overwrite, Report, Restore};
use cistern_repository::BlobKind;
use cistern_testkit::{Fault, Faulty, Random, Rule};
use scene::{Scene, assert_nothing_unfinished, incomplete, look};

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

async fn put(bucket: &dyn Bucket, key: &str, text: &str) {
    let body = Bytes::copy_from_slice(text.as_bytes());
    bucket.put(&key.into(), &[body], &PutOptions::default()).await.unwrap();
}

fn keys(bucket: &Memory) -> Vec<String> {
    bucket.keys().iter().map(ToString::to_string).collect()
}

fn text(bucket: &Memory, key: &str) -> String {
    String::from_utf8(bucket.content(&key.into()).unwrap().to_vec()).unwrap()
}

/// A repository with two directories' worth of files.
async fn scene_of_files() -> (Scene, impl Fn(&mut Restore) + use<>) {
    let scene = Scene::on_disk().await;
    let source = scene.path("source");
    for name in ["a", "sub/b"] {
        write(&source.join(name), name);
    }
    scene.backup(&source).await;
    let name = format!("latest:{}", source.display());
    let change = move |task: &mut Restore| {
        task.snapshot.name = name.clone();
        task.delete = true;
    };
    (scene, change)
}

/// With two buckets in memory.
async fn scene_of_buckets() -> (Scene, Arc<Memory>, Arc<Memory>) {
    let mut scene = Scene::in_memory().await;
    let (source, target) = (Arc::new(Memory::new("s3://orders")), Arc::new(Memory::new("s3://copy")));
    scene.source = source.clone();
    scene.target = target.clone();
    (scene, source, target)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_without_positive_proof() {
    type Change = fn(&mut Backup);
    let table: [(Change, bool); 7] = [
        (|_| (), true),
        (|task| task.selection.exclude = vec!["nothing".into()], false),
        (|task| task.selection.include = vec!["/orders/a".into()], false),
        (|task| task.selection.max_size = Some(100), false),
        (|task| task.selection.modified_since = Some(jiff::Timestamp::UNIX_EPOCH), false),
        // One object may not be read.
        (|task| task.source = "s3://closed".parse().unwrap(), false),
        (
            |task| (task.source, task.on_unreadable) = ("s3://closed".parse().unwrap(), OnUnreadable::Skip),
            false,
        ),
    ];
    for (change, allowed) in table {
        let (mut scene, source, target) = scene_of_buckets().await;
        put(&*source, "a", "a").await;
        let mut task =
            Backup::new("s3://orders".parse().unwrap(), "s3://repository".parse().unwrap(), "test");
        change(&mut task);
        if task.source.to_string() == "s3://closed" {
            put(&*source, "b", "b").await;
            let closed = Faulty::new(source.clone());
            closed.inject(Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Get).prefix("b"));
            scene.source = closed;
        }
        let id = match scene.backup_task(task).await {
            Ok(report) => report.snapshots[0].clone(),
            Err(Error::Incomplete { report, .. }) => match *report {
                Report::Backup(report) => report.snapshots[0].clone(),
                other => panic!("{other:?}"),
            },
            Err(error) => panic!("{error:?}"),
        };
        put(&*target, "stranger", "mine").await;
        let result = scene.restore_to("s3://copy", |task| {
            task.snapshot.name = id.clone();
            task.delete = true;
        });
        match result.await {
            Ok(report) => assert!(allowed && report.objects_deleted == 1),
            Err(Error::Invalid(_)) => assert!(!allowed && keys(&target) == ["stranger"]),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_repository_is_no_stranger_in_the_target() {
    let (scene, change) = scene_of_files().await;
    // Beside the repository, and deeper in a directory that would otherwise go.
    let nested = scene.path("strange/deep/repository");
    std::fs::create_dir_all(nested.parent().unwrap()).unwrap();
    std::fs::rename(scene.path("repository"), &nested).unwrap();
    std::os::unix::fs::symlink(&nested, scene.path("repository")).unwrap();
    write(&scene.path("strange/file"), "goes");
    let before = look(&nested).len();
    let report = scene.restore(|task| {
        change(task);
        task.repository = Address::Directory(nested.clone());
        task.target = Address::Directory(scene.path(""));
        task.selection.exclude = vec!["/repository".into(), "/source".into()];
    });
    let report = report.await.unwrap();
    assert_eq!((report.plan.delete, report.objects_deleted), (1, 1), "{:?}", report.plan.delete_first);
    assert!(!scene.path("strange/file").exists());
    assert_eq!(look(&nested).len(), before);
    let into = scene.restore(|task| {
        task.repository = Address::Directory(nested.clone());
        task.target = Address::Directory(nested.join("data/new"));
    });
    let refused = into.await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_holds_the_repository_is_no_target() {
    let (scene, source, _) = scene_of_buckets().await;
    put(&*source, "a", "a").await;
    scene.backup_bucket().await;
    for (repository, target, allowed) in [
        ("s3://copy/backups", "s3://copy", false),
        ("s3://copy/backups", "s3://copy/backups/", false),
        ("s3://copy", "s3://copy/data", false),
        ("s3://copy/backups", "s3://copy/back", true),
        ("s3://other/backups", "s3://copy", true),
    ] {
        // Where the repository really lies, another address of the same folder would say.
        let repository: Address = repository.parse().unwrap();
        let mut scene = scene.again();
        scene.source = source.clone();
        if let Address::S3 { prefix, .. } = &repository
            && !prefix.is_empty()
        {
            let folder = Arc::new(Memory::new("s3://moved"));
            let bucket = scene.repository.clone();
            let list = bucket.list(&cistern_bucket::ListRequest::default()).await.unwrap();
            for entry in list.entries {
                let got = bucket.get(&entry.key, &cistern_bucket::GetOptions::default()).await.unwrap();
                let body = got.body.bytes().await.unwrap();
                folder.insert(entry.key.under(b"backups/"), body, Attributes::default());
            }
            scene.repository = folder;
        }
        let result = scene.restore_to(target, |task| task.repository = repository.clone()).await;
        match result {
            Ok(_) => assert!(allowed, "{repository:?} {target}"),
            Err(Error::Invalid(_)) => assert!(!allowed, "{repository:?} {target}"),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_see_the_pieces_of_keys_in_both_directions() {
    let (scene, source, _) = scene_of_buckets().await;
    // The first is beside a folder of its name, and one has an empty piece and one a long one.
    let long = "x".repeat(300);
    for key in ["a", "a/b", "c//d", "e", &format!("{long}/f"), &long] {
        put(&*source, key, key).await;
    }
    scene.backup_bucket().await;
    let all = |except: &[&str]| -> Vec<String> {
        let mut all =
            vec!["a".into(), "a/b".into(), "c//d".into(), "e".into(), long.clone(), format!("{long}/f")];
        all.retain(|key| !except.contains(&key.as_str()));
        all
    };
    let inside = format!("{long}/f");
    let table: [(&[&str], &[&str], Vec<String>); 5] = [
        (&[], &["/orders/a"], all(&["a", "a/b"])),
        (&[], &["/orders/a/*"], all(&["a/b"])),
        (&["/orders/a"], &[], vec!["a".into(), "a/b".into()]),
        (&[], &["d"], all(&["c//d"])),
        (&[], &["xxx*"], all(&[&long, &inside])),
    ];
    for (include, exclude, expected) in table {
        let mut scene = scene.again();
        let target = Arc::new(Memory::new("s3://copy"));
        scene.target = target.clone();
        let own = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let change = |task: &mut Restore| {
            task.selection.include = own(include);
            task.selection.exclude = own(exclude);
        };
        scene.restore_to("s3://copy", change).await.unwrap();
        assert_eq!(keys(&target), expected, "{include:?} {exclude:?}");
        // What is not meant is not deleted either, and what is meant and a stranger is.
        for key in ["a", "a/b", "c//d", "e", &long, &inside] {
            put(&*target, key, "there").await;
        }
        put(&*target, "a/stranger", "mine").await;
        let report = scene.restore_to("s3://copy", |task| {
            change(task);
            task.delete = true;
        });
        let report = report.await.unwrap();
        let meant = !exclude.contains(&"/orders/a") && !exclude.contains(&"/orders/a/*");
        assert_eq!(report.objects_deleted, u64::from(meant), "{include:?} {exclude:?}");
        assert_eq!(target.len(), 6 + usize::from(!meant));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_if_something_could_not_be_restored() {
    let (scene, source, target) = scene_of_buckets().await;
    let mut scene = scene;
    for key in ["a", "bad"] {
        put(&*source, key, key).await;
    }
    scene.backup_bucket().await;
    put(&*target, "stranger", "mine").await;
    let faulty = Faulty::new(target.clone());
    faulty.inject(Rule::new(Fault::Error(ErrorKind::Unsupported)).verb(Verb::Put).prefix("bad"));
    scene.target = faulty;
    let delete = |task: &mut Restore| task.delete = true;
    match scene.restore_to("s3://copy", delete).await {
        Err(Error::Incomplete { why, .. }) => assert!(why.contains("nothing was deleted"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(keys(&target), ["a", "stranger"]);
    assert!(scene.listener.notes.lock().unwrap().iter().any(|note| note.contains("nothing is deleted")));
    // The same of files: a full directory stands where a file belongs.
    let (scene, change) = scene_of_files().await;
    write(&scene.out().join("a/full"), "there");
    write(&scene.out().join("stranger"), "mine");
    let report = incomplete(scene.restore(&change).await);
    assert_eq!((report.plan.delete, report.objects_deleted), (1, 0));
    assert!(scene.out().join("stranger").exists());
    // A key that no directory can hold is placed under another name, which is no failure.
    let (scene, source, _) = scene_of_buckets().await;
    put(&*source, "x//y", "odd").await;
    scene.backup_bucket().await;
    write(&scene.out().join("orders/stranger"), "mine");
    let report = incomplete(scene.restore(delete).await);
    assert_eq!(report.objects_deleted, 1, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_changed_after_the_plan_stays() {
    let (scene, change) = scene_of_files().await;
    for name in ["changed", "replaced", "goes"] {
        write(&scene.out().join(name), "stranger");
    }
    let out = scene.out();
    *scene.listener.meanwhile.lock().unwrap() = Some(Box::new(move || {
        std::fs::write(out.join("changed"), "worked on").unwrap();
        write(&out.join("new"), "stranger");
        std::fs::rename(out.join("new"), out.join("replaced")).unwrap();
    }));
    let report = scene.restore(change).await.unwrap();
    assert_eq!((report.plan.delete, report.objects_deleted), (3, 1));
    let left: Vec<_> = look(&scene.out()).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(left, ["a", "changed", "replaced", "sub", "sub/b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_appears_after_the_plan_stays() {
    let (scene, source, target) = scene_of_buckets().await;
    for key in ["late", "new"] {
        put(&*source, key, "snapshot").await;
    }
    scene.backup_bucket().await;
    let late = target.clone();
    *scene.listener.meanwhile.lock().unwrap() = Some(Box::new(move || {
        futures::executor::block_on(put(&*late, "late", "somebody's"));
    }));
    let report = incomplete(scene.restore_to("s3://copy", |_| ()).await);
    assert_eq!(report.exceptions.count(ExceptionKind::Unwritable), 1, "{report:?}");
    assert_eq!((text(&target, "late"), text(&target, "new")), ("somebody's".into(), "snapshot".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_was_written_though_nobody_said_so_is_no_stranger() {
    let (mut scene, source, target) = scene_of_buckets().await;
    put(&*source, "a", "a").await;
    scene.backup_bucket().await;
    let faulty = Faulty::new(target.clone());
    // As a store answers the second attempt after the answer to the first was lost.
    faulty.inject(Rule::new(Fault::Lost(ErrorKind::AlreadyExists)).verb(Verb::Put));
    scene.target = faulty;
    let report = scene.restore_to("s3://copy", |_| ()).await.unwrap();
    assert_eq!((report.objects_written, text(&target, "a")), (1, "a".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_many_parts_meets_its_target_in_one_listing() {
    let (scene, source, target) = scene_of_buckets().await;
    for i in 0..200 {
        put(&*source, &format!("k{i:03}"), &i.to_string()).await;
    }
    let mut task = Backup::new("s3://orders".parse().unwrap(), "s3://repository".parse().unwrap(), "test");
    task.part_keys = 20;
    let parts = scene.backup_task(task).await.unwrap().snapshots.len();
    assert!(parts > 4, "{parts}");
    for verify in [false, true] {
        let before = target.ledger().snapshot();
        let report = scene.restore_to("s3://copy", |task| task.verify = verify).await.unwrap();
        let lists = target.ledger().snapshot().since(&before).count(Verb::List);
        // A page for each range between the parts, once for the plan and once to verify.
        assert!(lists <= 2 * (parts as u64 + 1), "{lists} lists for {parts} parts");
        assert_eq!(report.objects_written + report.objects_kept, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_denied_of_one_object_does_not_end_the_others() {
    let (scene, source, _) = scene_of_buckets().await;
    for key in ["a", "b", "tagged"] {
        let tags = (key == "tagged").then(|| [("k".to_owned(), "v".to_owned())].into());
        let options =
            PutOptions { attributes: Attributes { tags, ..Attributes::default() }, ..PutOptions::default() };
        source.put(&key.into(), &[Bytes::from_static(b"x")], &options).await.unwrap();
    }
    scene.backup_bucket().await;
    let denied = || Rule::new(Fault::Error(ErrorKind::Denied)).verb(Verb::Put);
    let fresh = || {
        let mut scene = scene.again();
        let target = Arc::new(Memory::new("s3://copy"));
        let faulty = Faulty::new(target.clone());
        scene.target = faulty.clone();
        (scene, faulty, target)
    };
    // With its tags only.
    let (one, faulty, target) = fresh();
    faulty.inject(denied().prefix("tagged").nth(0));
    let report = one.restore_to("s3://copy", |_| ()).await.unwrap();
    assert_eq!(report.exceptions.count(ExceptionKind::AttributeLost), 1, "{report:?}");
    assert_eq!(keys(&target), ["a", "b", "tagged"]);
    // One key.
    let (one, faulty, target) = fresh();
    faulty.inject(denied().prefix("b"));
    let report = incomplete(one.restore_to("s3://copy", |_| ()).await);
    assert_eq!(report.exceptions.count(ExceptionKind::Denied), 1, "{report:?}");
    assert_eq!(keys(&target), ["a", "tagged"]);
    // Every key.
    let (one, faulty, target) = fresh();
    faulty.inject(denied());
    let result = one.restore_to("s3://copy", |_| ()).await;
    assert!(matches!(result, Err(Error::Target(_))), "{result:?}");
    assert!(target.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_is_missing_costs_its_objects_and_each_is_named() {
    let mut scene = Scene::bare();
    let memory = Arc::new(Memory::new("s3://repository"));
    let source = Arc::new(Memory::new("s3://orders"));
    (scene.repository, scene.source) = (memory.clone(), source.clone());
    scene.create().await;
    let mut random = Random::new(1);
    for i in 0..10 {
        let mut bytes = vec![0; 1_000];
        random.fill(&mut bytes);
        source.insert(format!("k{i}").as_str(), bytes, Attributes::default());
    }
    scene.backup_bucket().await;
    let repository = scene.open().await;
    let index = repository.index().await.unwrap();
    let (pack, _) = index.blobs(BlobKind::Data).next().unwrap();
    let id = index.pack(pack).to_string();
    assert!(memory.remove(&Key::from(format!("data/{}/{id}", &id[..2]))));
    for bucket in [false, true] {
        let mut scene = scene.again();
        let target = Arc::new(Memory::new("s3://copy"));
        scene.target = target.clone();
        let result = match bucket {
            true => scene.restore_to("s3://copy", |_| ()).await,
            false => scene.restore(|_| ()).await,
        };
        let report = incomplete(result);
        assert_eq!(report.exceptions.count(ExceptionKind::Damaged), 10, "{report:?}");
        assert!(target.is_empty());
        assert_nothing_unfinished(&scene.out());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_of_a_file_that_could_not_be_placed_is_no_link_to_what_was_there() {
    let mut scene = Scene::bare();
    let memory = Arc::new(Memory::new("s3://repository"));
    scene.repository = memory.clone();
    scene.create().await;
    let source = scene.path("source");
    write(&source.join("a"), "contents that are going to be lost");
    std::fs::hard_link(source.join("a"), source.join("b")).unwrap();
    scene.backup(&source).await;
    let index = scene.open().await.index().await.unwrap();
    for (pack, _) in index.blobs(BlobKind::Data) {
        let id = index.pack(pack).to_string();
        let key = Key::from(format!("data/{}/{id}", &id[..2]));
        assert!(memory.corrupt(&key, |bytes| bytes[20] ^= 1));
    }
    write(&scene.out().join("a"), "what was there before");
    let name = format!("latest:{}", source.display());
    let report = incomplete(
        scene
            .restore(|task| {
                task.snapshot.name = name;
                task.overwrite = Overwrite::Always;
            })
            .await,
    );
    assert_eq!(report.exceptions.count(ExceptionKind::Damaged), 2, "{report:?}");
    let left: Vec<_> = look(&scene.out()).into_keys().collect();
    assert_eq!(left, [b"a".to_vec()], "b is no link to the old a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_counts_whatever_gives_way() {
    for overwrite in [Overwrite::IfChanged, Overwrite::IfNewer, Overwrite::Never] {
        let scene = Scene::in_memory().await;
        scene
            .plant(async |planter| {
                let inner = vec![planter.file(b"f", b"1").await];
                vec![
                    planter.dir(b"empty", vec![]),
                    planter.dir(b"full", inner),
                    planter.link(b"link", b"there"),
                    scene::base(b"pipe", cistern_repository::NodeKind::Fifo),
                ]
            })
            .await;
        for name in ["empty", "full", "link", "pipe"] {
            write(&scene.out().join(name), "in the way");
        }
        let dry = scene.restore(|task| {
            task.overwrite = overwrite;
            task.dry_run = true;
        });
        let plan = match dry.await {
            Ok(report) => report.plan,
            result => incomplete(result).plan,
        };
        let result = scene.restore(|task| task.overwrite = overwrite).await;
        let is_file = |name: &str| scene.out().join(name).symlink_metadata().unwrap().is_file();
        // What is in the way is newer.
        let stays = overwrite != Overwrite::IfChanged;
        assert_eq!(plan.replace, if stays { 0 } else { 4 }, "{overwrite:?}");
        assert_eq!(result.is_ok(), !stays);
        for name in ["empty", "full", "link", "pipe"] {
            assert_eq!(is_file(name), stays, "{overwrite:?} {name}");
        }
        assert_nothing_unfinished(&scene.out());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_is_given_back_by_whoever_is_stopped_while_the_snapshot_is_looked_up() {
    let mut scene = Scene::bare();
    let memory = Arc::new(Memory::new("s3://repository"));
    scene.repository = memory.clone();
    scene.create().await;
    let source = scene.path("source");
    write(&source.join("a"), "a");
    scene.backup(&source).await;
    let faulty = Faulty::new(memory.clone());
    faulty.inject(Rule::new(Fault::Hang).verb(Verb::Get).prefix("index/"));
    scene.repository = faulty.clone();
    let cancel = scene.cancel.clone();
    let watch = async {
        // Until it hangs: the last request is for an index file.
        let hangs = |request: &cistern_testkit::Request| {
            request.verb == Verb::Get && request.key.as_bytes().starts_with(b"index/")
        };
        while !faulty.requests().iter().any(hangs) {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (result, ()) = tokio::join!(scene.restore(|_| ()), watch);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    assert!(!keys(&memory).iter().any(|key| key.starts_with("locks/")), "no lock stays behind");
}
