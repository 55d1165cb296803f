//! What comes out of a directory's snapshot is what went in, byte by byte and attribute by attribute.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod scene;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use cistern_engine::{Error, ExceptionKind, Overwrite, TargetWriter};
use cistern_repository::NodeKind;
use cistern_testkit::{Random, tools};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use scene::{Scene, assert_nothing_unfinished, assert_same, base, incomplete, look};

fn touch(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Files, directories, links and special files of every kind.
fn plant(root: &Path) {
    let mut random = Random::new(11);
    let dir = |name: &str| {
        let path = root.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    };
    for (i, size) in [0, 1, 4_096, 70_000, 512 << 10, 5 << 20, 40 << 20].into_iter().enumerate() {
        let mut bytes = vec![0; size];
        random.fill(&mut bytes);
        std::fs::write(dir("sizes").join(i.to_string()), bytes).unwrap();
    }
    std::fs::write(dir("sizes").join("zeros"), vec![0; 9 << 20]).unwrap();
    for (i, mode) in [0o400, 0o600, 0o644, 0o664, 0o777, 0o4755, 0o2755, 0o1666].into_iter().enumerate() {
        let path = dir("modes").join(i.to_string());
        std::fs::write(&path, "mode").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    for (i, mode) in [0o700, 0o555, 0o1777, 0o2775].into_iter().enumerate() {
        let path = dir(&format!("directories/{i}/below"));
        std::fs::write(path.join("file"), "below").unwrap();
        let above = path.parent().unwrap();
        std::fs::set_permissions(above, std::fs::Permissions::from_mode(mode)).unwrap();
        touch(above, 1_234_567_890 + i as i64, 987_654_321);
    }
    for (i, (seconds, nanoseconds)) in [(0, 0), (-5, 999_999_999), (4_200_000_000, 1)].into_iter().enumerate()
    {
        let path = dir("times").join(i.to_string());
        std::fs::write(&path, "time").unwrap();
        touch(&path, seconds, nanoseconds);
    }
    symlink("../sizes/3", dir("links").join("good")).unwrap();
    symlink("/nowhere/at all", dir("links").join("dangling")).unwrap();
    touch(&root.join("links/dangling"), 1_000_000_000, 7);
    for (name, size) in [("small", 10), ("large", 3 << 20)] {
        std::fs::write(dir("links").join(format!("{name}-1")), vec![7; size]).unwrap();
        std::fs::hard_link(root.join(format!("links/{name}-1")), root.join(format!("links/{name}-2")))
            .unwrap();
        std::fs::hard_link(root.join(format!("links/{name}-1")), dir("more").join(format!("{name}-3")))
            .unwrap();
    }
    std::fs::write(dir("xattrs").join("file"), "attributes").unwrap();
    for path in ["xattrs", "xattrs/file"] {
        rustix::fs::lsetxattr(root.join(path), "user.one", b"1\xff\0", XattrFlags::empty()).unwrap();
        rustix::fs::lsetxattr(root.join(path), "user.two", b"", XattrFlags::empty()).unwrap();
    }
    let mknod = |path: &str, kind, mode, device| {
        rustix::fs::mknodat(CWD, root.join(path), kind, Mode::from_raw_mode(mode), device).unwrap();
    };
    dir("special");
    mknod("special/pipe", FileType::Fifo, 0o640, 0);
    for path in [
        &b"names/with space"[..],
        b"names/\xff\xfe",
        "names/é漢😀".as_bytes(),
        b"names/new\nline",
        b"names/.cistern",
    ] {
        use std::os::unix::ffi::OsStrExt;
        dir("names");
        std::fs::write(root.join(std::ffi::OsStr::from_bytes(path)), path).unwrap();
    }
    if is_root() {
        mknod("special/block", FileType::BlockDevice, 0o600, rustix::fs::makedev(7, 300));
        mknod("special/character", FileType::CharacterDevice, 0o666, rustix::fs::makedev(1, 3));
        rustix::fs::chownat(
            CWD,
            root.join("modes/3"),
            Some(rustix::fs::Uid::from_raw(1_234)),
            Some(rustix::fs::Gid::from_raw(4_321)),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .unwrap();
        rustix::fs::lsetxattr(root.join("links/dangling"), "trusted.link", b"x", XattrFlags::empty())
            .unwrap();
    }
    for name in ["sizes", "modes", "links", "more", "names", ""] {
        touch(&root.join(name), 1_500_000_000, 500);
    }
}

/// The target's copy of a source that was saved under its absolute path.
fn copy(out: &Path, source: &Path) -> std::path::PathBuf {
    out.join(source.strip_prefix("/").unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_restic_saved_comes_back_as_restic_brings_it_back() {
    for (program, init) in [(tools::restic().unwrap(), "0.19"), (tools::restic_debian().unwrap(), "0.14")] {
        let scene = Scene::bare();
        let source = scene.path("source");
        plant(&source);
        let text =
            |arguments: &[&std::ffi::OsStr]| scene::succeeded(scene.restic_of(program.clone(), arguments));
        text(&["init".as_ref()]);
        text(&["backup".as_ref(), "--quiet".as_ref(), source.as_ref()]);
        let reference = scene.path("reference");
        scene.restic(&["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), reference.as_ref()]);
        let report =
            scene.restore(|task| task.privileged = true).await.unwrap_or_else(|e| panic!("{init}: {e:?}"));
        assert_same(&look(&reference), &look(&scene.out()));
        let mut expected = look(&source);
        if init == "0.14" {
            // It saved no attributes of links.
            expected.get_mut(&b"links/dangling"[..]).unwrap().xattrs.clear();
        }
        assert_same(&expected, &look(&copy(&scene.out(), &source)));
        assert_eq!(report.exceptions.total(), 0, "{:?}", report.exceptions);
        assert_eq!(report.plan.write, report.objects_written);
        assert_eq!(report.plan.write_bytes, report.bytes_written);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_snapshot_comes_back_and_restic_agrees() {
    let scene = Scene::on_disk().await;
    let source = scene.path("source");
    plant(&source);
    scene.backup(&source).await;
    let report = scene.restore(|task| {
        task.privileged = true;
        task.verify = true;
    });
    let report = report.await.unwrap();
    assert_same(&look(&source), &look(&copy(&scene.out(), &source)));
    assert_eq!(report.objects_verified, report.objects_written);
    let reference = scene.path("reference");
    scene.restic(&["restore".as_ref(), "latest".as_ref(), "--target".as_ref(), reference.as_ref()]);
    assert_same(&look(&reference), &look(&scene.out()));
    assert_nothing_unfinished(&scene.out());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_restore_writes_nothing_and_puts_attributes_right() {
    let scene = Scene::in_memory().await;
    let source = scene.path("source");
    plant(&source);
    scene.backup(&source).await;
    scene.restore(|task| task.privileged = true).await.unwrap();
    let out = copy(&scene.out(), &source);
    let inode = out.join("sizes/5").metadata().unwrap().ino();
    // One has other attributes, one other contents of the same length, one is gone, a directory is closed.
    touch(&out.join("sizes/3"), 5, 5);
    std::fs::set_permissions(out.join("sizes/4"), std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(out.join("sizes/2"), vec![1; 4_096]).unwrap();
    std::fs::remove_file(out.join("sizes/1")).unwrap();
    std::fs::remove_file(out.join("links/good")).unwrap();
    symlink("elsewhere", out.join("links/good")).unwrap();
    let report = scene.restore(|task| task.privileged = true).await.unwrap();
    assert_same(&look(&source), &look(&out));
    // A file and the link.
    assert_eq!((report.objects_written, report.plan.replace), (2, 2));
    assert_eq!(report.bytes_written, 4_097);
    assert_eq!(out.join("sizes/5").metadata().unwrap().ino(), inode, "what is equal is not touched");
    assert_nothing_unfinished(&scene.out());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_is_overwritten_as_the_policy_says() {
    // For each policy: what becomes of a newer, an older and an equal file, and of a link.
    let table = [
        (Overwrite::Always, ["snapshot", "snapshot", "same", "snapshot"]),
        (Overwrite::IfChanged, ["snapshot", "snapshot", "same", "snapshot"]),
        (Overwrite::IfNewer, ["target 1", "snapshot", "same", "target 4"]),
        (Overwrite::Never, ["target 1", "target 2", "same", "target 4"]),
    ];
    for (overwrite, expected) in table {
        let scene = Scene::in_memory().await;
        scene
            .plant(async |planter| {
                vec![
                    planter.file(b"1-newer", b"snapshot").await,
                    planter.file(b"2-older", b"snapshot").await,
                    planter.file(b"3-equal", b"same").await,
                    planter.file(b"4-link", b"snapshot").await,
                    planter.file(b"5-new", b"new").await,
                ]
            })
            .await;
        let out = scene.out();
        std::fs::create_dir(&out).unwrap();
        for (name, text, time) in [
            ("1-newer", "target 1", 1_700_000_000),
            ("2-older", "target 2", 1),
            ("3-equal", "same", 1_700_000_000),
        ] {
            std::fs::write(out.join(name), text).unwrap();
            touch(&out.join(name), time, 0);
        }
        let outside = scene.path("outside");
        std::fs::write(&outside, "target 4").unwrap();
        symlink(&outside, out.join("4-link")).unwrap();
        let report = scene.restore(|task| task.overwrite = overwrite).await.unwrap();
        let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
        let found = [read("1-newer"), read("2-older"), read("3-equal"), read("4-link")];
        assert_eq!(found, expected, "{overwrite:?}");
        assert_eq!(read("5-new"), "new");
        assert_eq!(std::fs::read_to_string(&outside).unwrap(), "target 4", "a link is never followed");
        assert_eq!(report.plan.write, report.objects_written, "{overwrite:?}");
        assert_eq!(report.plan.write + report.plan.keep, 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_subfolders_and_new_beginnings_choose_what_goes_where() {
    let scene = Scene::in_memory().await;
    scene
        .plant(async |planter| {
            let deep = vec![planter.file(b"x.log", b"1").await, planter.file(b"y.txt", b"2").await];
            let deep = planter.dir(b"deep", deep);
            let a = vec![deep, planter.file(b"z.txt", b"3").await];
            let empty = planter.dir(b"empty", vec![]);
            vec![planter.dir(b"a", a), empty, planter.file(b"top.txt", b"4").await]
        })
        .await;
    type Change = fn(&mut cistern_engine::Restore);
    let table: [(&str, Change, &[&str]); 8] = [
        ("all", |_| (), &["a", "a/deep", "a/deep/x.log", "a/deep/y.txt", "a/z.txt", "empty", "top.txt"]),
        ("include", |t| t.selection.include = vec!["*.log".into()], &["a", "a/deep", "a/deep/x.log"]),
        ("exclude", |t| t.selection.exclude = vec!["deep".into()], &["a", "a/z.txt", "empty", "top.txt"]),
        ("absolute", |t| t.selection.include = vec!["/a/z.txt".into()], &["a", "a/z.txt"]),
        ("subfolder", |t| t.snapshot.name = "latest:/a/deep".into(), &["x.log", "y.txt"]),
        (
            "subfolder, include",
            |t| {
                t.snapshot.name = "latest:a".into();
                t.selection.include = vec!["/deep".into()];
            },
            &["deep", "deep/x.log", "deep/y.txt"],
        ),
        (
            "remap",
            |t| t.remap = vec![("/a/deep/".into(), "/b//c/".into()), ("/top".into(), "bottom".into())],
            &["a", "a/z.txt", "b", "b/c", "b/c/x.log", "b/c/y.txt", "bottom.txt", "empty"],
        ),
        ("size", |t| t.selection.max_size = Some(0), &["a", "a/deep", "empty"]),
    ];
    for (name, change, expected) in table {
        let _ = std::fs::remove_dir_all(scene.out());
        let report = scene.restore(change).await.unwrap();
        let found: Vec<_> =
            look(&scene.out()).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
        assert_eq!(found, expected, "{name}");
        assert_eq!(
            report.objects_written as usize,
            expected.iter().filter(|path| path.contains('.')).count()
        );
        if name == "remap" {
            assert_eq!(
                scene.out().join("b/c").metadata().unwrap().mtime(),
                1_600_000_000,
                "directories keep their times"
            );
        }
    }
    let none = scene.restore(|task| task.snapshot.name = "latest:/a/none".into()).await;
    assert!(matches!(none, Err(Error::NotFound(_))), "{none:?}");
    let out = scene.restore(|task| task.remap = vec![("/a".into(), "/../b".into())]).await;
    assert!(matches!(out, Err(Error::Invalid(_))), "{out:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_is_only_shown_or_refused_changes_nothing() {
    let scene = Scene::in_memory().await;
    scene
        .plant(async |planter| vec![planter.file(b"a", b"snapshot").await, planter.file(b"b", b"new").await])
        .await;
    std::fs::create_dir(scene.out()).unwrap();
    std::fs::write(scene.out().join("a"), "target").unwrap();
    let before = look(&scene.path(""));
    let report = scene.restore(|task| task.dry_run = true).await.unwrap();
    assert_eq!((report.plan.write, report.plan.replace, report.plan.write_bytes), (2, 1, 11));
    assert!(report.plan.repository_requests >= 1 && report.plan.repository_bytes > 0);
    assert_eq!(report.objects_written, 0);
    scene.listener.refuse.store(true, Relaxed);
    assert!(matches!(scene.restore(|_| ()).await, Err(Error::Refused)));
    assert_same(&before, &look(&scene.path("")));
    // What appears after the plan is not overwritten.
    scene.listener.refuse.store(false, Relaxed);
    let path = scene.out().join("b");
    *scene.listener.meanwhile.lock().unwrap() =
        Some(Box::new(move || std::fs::write(path, "somebody's").unwrap()));
    let report = incomplete(scene.restore(|_| ()).await);
    assert_eq!(report.exceptions.count(ExceptionKind::Unwritable), 1, "{report:?}");
    assert_eq!(std::fs::read(scene.out().join("b")).unwrap(), b"somebody's");
    assert_eq!(std::fs::read(scene.out().join("a")).unwrap(), b"snapshot");
    assert_nothing_unfinished(&scene.out());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_the_way_stays_unless_it_is_empty() {
    let scene = Scene::in_memory().await;
    scene
        .plant(async |planter| vec![planter.file(b"empty", b"1").await, planter.file(b"full", b"2").await])
        .await;
    std::fs::create_dir_all(scene.out().join("empty")).unwrap();
    std::fs::create_dir_all(scene.out().join("full/kept")).unwrap();
    let report = incomplete(scene.restore(|_| ()).await);
    assert_eq!(std::fs::read(scene.out().join("empty")).unwrap(), b"1");
    assert!(scene.out().join("full/kept").is_dir());
    assert_eq!(report.exceptions.count(ExceptionKind::Unwritable), 1);
    assert_nothing_unfinished(&scene.out());
}

#[tokio::test(flavor = "multi_thread")]
async fn extra_files_are_deleted_only_where_a_complete_snapshot_says_so() {
    let scene = Scene::in_memory().await;
    let source = scene.path("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    for name in ["a", "sub/b"] {
        std::fs::write(source.join(name), name).unwrap();
    }
    scene.backup(&source).await;
    scene.restore(|_| ()).await.unwrap();
    let out = copy(&scene.out(), &source);
    let strangers = ["extra", "sub/extra", "sub/more/deep/file", "keep.me", "sub/more/keep.me"];
    for name in strangers {
        let path = out.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "stranger").unwrap();
    }
    std::fs::write(scene.out().join("above"), "not below the source").unwrap();
    let delete = |task: &mut cistern_engine::Restore| {
        task.delete = true;
        task.selection.exclude = vec!["keep.me".into()];
    };
    let plan = scene.restore(|task| {
        delete(task);
        task.dry_run = true;
    });
    let plan = plan.await.unwrap().plan;
    // Two files, one below two directories of its own, of which one has to stay.
    assert_eq!(plan.delete, 5, "{plan:?}");
    assert!(strangers.iter().all(|name| out.join(name).exists()));
    // What appears after the plan is not deleted.
    let late = out.join("sub/late");
    let path = late.clone();
    *scene.listener.meanwhile.lock().unwrap() = Some(Box::new(move || std::fs::write(path, "late").unwrap()));
    let report = scene.restore(delete).await.unwrap();
    assert_eq!(report.objects_deleted, 4);
    let left: Vec<_> = look(&out).into_keys().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(left, ["a", "keep.me", "sub", "sub/b", "sub/late", "sub/more", "sub/more/keep.me"]);
    assert!(scene.out().join("above").exists());
    // Nobody says that this one is complete.
    scene.plant(async |planter| vec![planter.file(b"a", b"1").await]).await;
    let refused = scene.restore(|task| task.delete = true).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert!(late.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deep_and_wide_tree_needs_few_open_files() {
    let scene = Scene::in_memory().await;
    let mut names = 0;
    scene
        .plant(async |planter| {
            let file = planter.file(b"z", b"deep").await;
            let mut node = planter.dir(b"d", vec![file.clone()]);
            // Longer than any path that the system takes at once.
            for _ in 0..1_500 {
                node = planter.dir(b"a directory", vec![node, file.clone()]);
                names += 1;
            }
            let wide =
                (0..3_000).map(|i| planter.dir(format!("w{i:04}").as_bytes(), vec![file.clone()])).collect();
            vec![node, planter.dir(b"wide", wide)]
        })
        .await;
    let report = scene.restore(|_| ()).await.unwrap();
    assert_eq!(report.objects_written, 1_501 + 3_000);
    assert_eq!(report.others_written, 1_501 + 3_001);
    let mut depth = 0;
    let mut dir = rustix::fs::open(scene.out(), rustix::fs::OFlags::DIRECTORY, Mode::empty()).unwrap();
    while let Ok(next) = rustix::fs::openat(&dir, "a directory", rustix::fs::OFlags::DIRECTORY, Mode::empty())
    {
        let stat = rustix::fs::fstat(&next).unwrap();
        assert_eq!(stat.st_mtime, 1_600_000_000, "level {depth}");
        rustix::fs::statat(&next, "z", AtFlags::SYMLINK_NOFOLLOW).unwrap();
        dir = next;
        depth += 1;
    }
    assert_eq!(depth, names);
    // The standard library cannot remove it: its paths are too long.
    scene::succeeded(std::process::Command::new("rm").arg("-rf").arg(scene.out()).output().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_written_in_order_where_that_is_asked_for() {
    let scene = Scene::in_memory().await;
    let source = scene.path("source");
    plant(&source.join("x"));
    std::fs::remove_dir_all(source.join("x/special")).unwrap();
    std::fs::remove_file(source.join("x/links/good")).unwrap();
    std::fs::remove_file(source.join("x/links/dangling")).unwrap();
    scene.backup(&source).await;
    let report = scene.restore(|task| task.writer = TargetWriter::Sequential).await.unwrap();
    let contents = |root: &Path| {
        look(root)
            .into_iter()
            .map(|(path, seen)| (path, seen.content))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    assert_eq!(contents(&source), contents(&copy(&scene.out(), &source)));
    assert!(report.plan.writer.starts_with("sequential"), "{}", report.plan.writer);
    // What this target cannot take is counted.
    assert!(report.exceptions.count(ExceptionKind::AttributeLost) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_privileges_nobody_gains_any() {
    let scene = Scene::in_memory().await;
    scene
        .plant(async |planter| {
            use cistern_repository::node::mode;
            let mut suid = planter.file(b"suid", b"#!/bin/sh").await;
            suid.mode = mode::SET_UID | mode::SET_GID | mode::STICKY | 0o755;
            let mut capable = planter.file(b"capable", b"x").await;
            capable.xattrs = vec![cistern_repository::Xattr {
                name: "security.capability".into(),
                value: Some((*b"\x01\0\0\x02\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").into()),
            }];
            let mut device = base(b"device", NodeKind::Device);
            (device.mode, device.device) = (mode::DEVICE | 0o666, 0x700);
            vec![capable, device, suid]
        })
        .await;
    let report = incomplete(scene.restore(|_| ()).await);
    assert_eq!(scene.out().join("suid").metadata().unwrap().mode() & 0o7777, 0o755);
    assert!(look(&scene.out())[&b"capable".to_vec()].xattrs.is_empty());
    assert!(!scene.out().join("device").exists());
    assert_eq!(report.exceptions.count(ExceptionKind::AttributeLost), 2);
    assert_eq!(report.exceptions.count(ExceptionKind::Unwritable), 1);
}
