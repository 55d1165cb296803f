//! Directories go into a repository exactly as stock restic puts them there, and come back through it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cistern_bucket::{Class, ErrorKind, Verb};
use cistern_engine::{Error, ExceptionKind, OnUnreadable, Report};
use cistern_repository::NodeKind;
use cistern_testkit::{Fault, Faulty, Random, Rule, tools};
use disk::{Disk, Hooked, look, touch};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

fn bytes(random: &mut Random, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

/// Whether this process may do what only root may.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Files of every kind, size, name, mode and time.
fn plant(disk: &Disk) {
    let mut random = Random::new(7);
    for (i, size) in
        [0, 1, 4_095, 4_096, 70_000, (512 << 10) - 1, 512 << 10, 3 << 20, 20 << 20].into_iter().enumerate()
    {
        disk.write(format!("sizes/{i}"), bytes(&mut random, size));
    }
    let names: [&[u8]; 16] = [
        b"plain",
        b"with space",
        b"quote\"back\\slash'",
        b"new\nline\ttab\x01\x7f",
        b"\xff\xfe broken",
        "é漢😀".as_bytes(),
        "e\u{301}".as_bytes(),
        b"<&>",
        b"-",
        b"a-b",
        b"a.b",
        b"a/b",
        "\u{2028}\u{200b}".as_bytes(),
        b"%41",
        b"~",
        b"{}",
    ];
    for name in names {
        disk.write([b"names/", name].concat(), name);
    }
    disk.write([&b"names/"[..], &[b'x'; 255]].concat(), "long");
    for (i, mode) in [0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o6711].into_iter().enumerate() {
        let path = format!("modes/{i}");
        disk.write(&path, "mode");
        std::fs::set_permissions(disk.file(&path), std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let times =
        [(0, 0), (-1, 999_999_999), (-300_000_000, 5), (1_700_000_000, 120_000_000), (4_200_000_000, 1)];
    for (i, (seconds, nanoseconds)) in times.into_iter().enumerate() {
        let path = format!("times/{i}");
        disk.write(&path, "time");
        touch(&disk.file(&path), seconds, nanoseconds);
    }
    std::fs::create_dir_all(disk.file("links/empty")).unwrap();
    symlink("../sizes/3", disk.file("links/good")).unwrap();
    symlink("nowhere", disk.file("links/dangling")).unwrap();
    symlink("..", disk.file("links/up")).unwrap();
    symlink(OsStr::from_bytes(b"bad \xff target <&>"), disk.file("links/bytes")).unwrap();
    touch(&disk.file("links/good"), 1_000_000_000, 7);
    disk.write("links/hard1", "two names");
    std::fs::hard_link(disk.file("links/hard1"), disk.file("links/hard2")).unwrap();
    let sparse = std::fs::File::create(disk.file("links/sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    disk.write("xattrs/file", "attributes");
    let set = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(disk.file(path), name, value, XattrFlags::empty()).unwrap();
    };
    for name in ["user.z", "user.a", "user.m <&>"] {
        set("xattrs/file", name, name.as_bytes());
    }
    set("xattrs/file", "user.empty", b"");
    set("xattrs/file", "user.bytes", b"\xff\x00\xfe");
    set("xattrs", "user.directory", b"too");
    let make = |path: &str, kind, device| {
        rustix::fs::mknodat(CWD, disk.file(path), kind, Mode::from_raw_mode(0o640), device).unwrap();
    };
    std::fs::create_dir(disk.file("special")).unwrap();
    make("special/fifo", FileType::Fifo, 0);
    std::os::unix::net::UnixListener::bind(disk.file("special/socket")).unwrap();
    if is_root() {
        make("special/null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
        make("special/disk", FileType::BlockDevice, rustix::fs::makedev(259, 1_000_000));
        rustix::fs::chownat(
            CWD,
            disk.file("modes/2"),
            Some(rustix::fs::Uid::from_raw(12_345)),
            None,
            rustix::fs::AtFlags::empty(),
        )
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_finds_nothing_to_add_after_us_and_we_find_nothing_after_restic() {
    let disk = Disk::new().await;
    plant(&disk);
    // What lies above the source changes when other tests make directories: then it is done again.
    for attempt in 0.. {
        let before = disk.above();
        let ours = disk.backup().await;
        let theirs = disk.restic_backup();
        let again = disk.backup().await;
        assert_eq!((theirs.data_blobs, theirs.files_changed, theirs.files_new), (0, 0, 0), "{theirs:?}");
        assert_eq!((again.bytes_read, again.stored.data_blobs), (0, 0), "{again:?}");
        assert_eq!(disk.source_tree(&ours.snapshots[0]).await, disk.source_tree(&theirs.snapshot).await);
        if disk.above() == before {
            assert_eq!(theirs.tree_blobs, 0, "{theirs:?}");
            assert_eq!((again.stored.tree_blobs, again.stored.dirs_changed), (0, 0), "{again:?}");
            let snapshot = disk.snapshot(&again.snapshots[0]).await;
            assert_eq!(snapshot.parent.unwrap().to_string(), theirs.snapshot, "restic's is a good parent");
            break;
        }
        assert!(attempt < 50, "the directories above the source never come to rest");
    }
    disk.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_restic_restores_is_what_was_there() {
    let mut disk = Disk::new().await;
    plant(&disk);
    let report = disk.backup().await;
    let mut expected = look(&disk.source());
    expected.remove(&b"special/socket"[..]).expect("restic does not keep sockets");
    for judge in [tools::restic().unwrap(), tools::restic_debian().unwrap()] {
        disk.judge = judge;
        disk.check();
        let restored = look(&disk.restic_restore(&report.snapshots[0]));
        assert_eq!(expected.keys().collect::<Vec<_>>(), restored.keys().collect::<Vec<_>>());
        // 0.14 knows no link targets that are not UTF-8: the raw ones came with 0.16.
        let known = |path: &[u8]| path != b"links/bytes" || disk.judge == tools::restic().unwrap();
        for (path, expected) in expected.iter().filter(|(path, _)| known(path)) {
            assert!(restored[path] == *expected, "{}: {:?}", path.escape_ascii(), restored[path].mode);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_restic_began_is_continued_without_reading_anything_again() {
    let disk = Disk::bare();
    disk.restic_ok(&["init"]);
    plant(&disk);
    let theirs = disk.restic_backup();
    let ours = disk.backup().await;
    assert_eq!((ours.bytes_read, ours.stored.data_blobs, ours.objects_new), (0, 0, 0), "{ours:?}");
    assert_eq!(ours.objects_unchanged, theirs.files_new);
    assert_eq!(disk.source_tree(&ours.snapshots[0]).await, disk.source_tree(&theirs.snapshot).await);
    disk.write("names/plain", "changed");
    disk.write("new/file", "new");
    std::fs::remove_file(disk.file("sizes/3")).unwrap();
    let ours = disk.backup().await;
    assert_eq!((ours.objects_new, ours.objects_changed, ours.objects_deleted), (1, 1, 1), "{ours:?}");
    assert_eq!((ours.bytes_read, ours.stored.data_blobs), (10, 2));
    let theirs = disk.restic_backup();
    assert_eq!((theirs.files_new, theirs.files_changed, theirs.data_blobs), (0, 0, 0), "{theirs:?}");
    assert_eq!(disk.source_tree(&ours.snapshots[0]).await, disk.source_tree(&theirs.snapshot).await);
    disk.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_says_what_it_is_of_and_what_the_run_did() {
    let disk = Disk::new().await;
    disk.write("a/one", "1");
    disk.write("two", "22");
    let task = disk.task(|task| {
        task.tags = vec!["x".into()];
        task.selection.exclude = vec!["*.tmp".into()];
    });
    let report = disk.run(&task).await.unwrap();
    let snapshot = disk.snapshot(&report.snapshots[0]).await;
    assert_eq!(snapshot.paths, [disk.source().to_str().unwrap()]);
    assert_eq!((&*snapshot.hostname, &*snapshot.username), ("test", "tester"));
    assert_eq!(
        (snapshot.tags, snapshot.excludes),
        (["x", "partial"].map(String::from).to_vec(), vec!["*.tmp".to_owned()])
    );
    assert!(snapshot.program_version.starts_with("cistern "));
    let summary = snapshot.summary.unwrap();
    let depth = disk.source().components().count() as u64 - 1;
    assert_eq!((summary.files_new, summary.total_files_processed, summary.total_bytes_processed), (2, 2, 3));
    assert_eq!((summary.dirs_new, summary.data_blobs), (depth + 1, 2));
    assert_eq!((summary.tree_blobs, summary.tree_blobs), (depth + 2, report.stored.tree_blobs));
    assert_eq!(summary.data_added, report.stored.bytes_added);
    assert!(summary.data_added_packed > 0 && summary.data_added_packed == report.stored.bytes_stored);
    // restic's own view of it.
    let listed = disk.restic_ok(&["snapshots", "--json"]);
    assert!(listed.contains(&report.snapshots[0]), "{listed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_one_link_and_the_way_through_a_link() {
    let disk = Disk::new().await;
    disk.write("real/file", vec![7; 600 << 10]);
    disk.write("real/small", "small");
    symlink("real", disk.file("link")).unwrap();
    for below in ["real/file", "real/small", "link", "link/small", "link/file", "real"] {
        let path = disk.file(below);
        let task = disk.task(|task| {
            task.source = cistern_bucket::Address::Directory(path.clone());
            task.host = "test".into();
        });
        let ours = disk.run(&task).await.unwrap();
        let theirs = disk.restic_backup_of(&path, &[]);
        let parent = path.parent().unwrap();
        let tree = async |snapshot: &str| disk.node(snapshot, parent).await.subtree.unwrap();
        assert_eq!(tree(&ours.snapshots[0]).await, tree(&theirs.snapshot).await, "{below}");
        assert_eq!(theirs.data_blobs, 0, "{below}");
        let again = disk.run(&task).await.unwrap();
        assert_eq!((again.bytes_read, again.stored.data_blobs), (0, 0), "{below}");
    }
    let link = disk
        .run(&disk.task(|task| task.source = cistern_bucket::Address::Directory(disk.file("link"))))
        .await;
    let node = disk.node(&link.unwrap().snapshots[0], &disk.file("link")).await;
    assert_eq!((node.kind, &*node.link_target), (NodeKind::Symlink, &b"real"[..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_root_takes_the_place_of_the_absolute_path() {
    let disk = Disk::new().await;
    disk.write("a/one", "1");
    let task = disk.task(|task| task.root = Some("/kubestash-data".into()));
    let report = disk.run(&task).await.unwrap();
    assert_eq!(disk.snapshot(&report.snapshots[0]).await.paths, ["/kubestash-data"]);
    disk.node(&report.snapshots[0], Path::new("/kubestash-data/a/one")).await;
    let deep = disk.run(&disk.task(|task| task.root = Some("/x/y/z/".into()))).await.unwrap();
    disk.node(&deep.snapshots[0], Path::new("/x/y/z/a/one")).await;
    let whole = disk.task(|task| task.root = Some("/".into()));
    for unchanged in [0, 1] {
        let report = disk.run(&whole).await.unwrap();
        disk.node(&report.snapshots[0], Path::new("/a/one")).await;
        assert_eq!(report.objects_unchanged, unchanged);
    }
    let error = disk.run(&disk.task(|task| task.root = Some("relative".into()))).await.unwrap_err();
    assert_eq!(error.class(), Class::Invalid);
    disk.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patterns_leave_out_what_restic_leaves_out() {
    let disk = Disk::new().await;
    for path in [
        "src/main.c",
        "src/main.o",
        "src/deep/er/x.o",
        "src/deep/keep.o",
        "docs/a.TXT",
        "docs/b.txt",
        "docs/.hidden",
        "cache/1",
        "cache/keep/2",
        "build/cache/3",
        "a[b]/file",
        "a b/c d",
        "über/Ärger",
        "foo/bar/baz",
        "foo/x/y/baz/z",
    ] {
        disk.write(path, path);
    }
    std::fs::create_dir_all(disk.file("empty.o")).unwrap();
    symlink("main.o", disk.file("src/link.o")).unwrap();
    let base = disk.source();
    let base = base.to_str().unwrap();
    let absolute = |pattern: &str| format!("{base}/{pattern}");
    let table: Vec<Vec<String>> = vec![
        vec!["*.o".into()],
        vec!["cache".into()],
        vec![absolute("cache")],
        vec![absolute("*/cache")],
        vec![absolute("cache/*"), format!("!{}", absolute("cache/keep"))],
        vec!["src/**/x.o".into()],
        vec![absolute("foo/**/baz")],
        vec!["**/y".into(), "docs/?.txt".into()],
        vec!["a[[]b]".into()],
        vec!["a\\[b\\]".into(), "[a-c] b".into()],
        vec!["*.o".into(), "!keep.o".into(), "[^d]ocs".into()],
        vec!["src/*".into(), "!src/deep".into()],
        vec!["c d/".into(), "./foo//x".into()],
        vec!["über".into()],
        vec!["source".into()],
    ];
    for patterns in table {
        for ignore_case in [false, true] {
            let flag = if ignore_case { "--iexclude" } else { "--exclude" };
            let options: Vec<&str> = patterns.iter().flat_map(|pattern| [flag, pattern]).collect();
            let task = disk.task(|task| {
                task.selection.exclude = patterns.clone();
                task.selection.ignore_case = ignore_case;
                (task.accept_shrink, task.allow_empty) = (true, true);
            });
            let ours = disk.run(&task).await.unwrap();
            let theirs = disk.restic_backup_of(&disk.source(), &options);
            let (ours, theirs) = (&ours.snapshots[0], &theirs.snapshot);
            if disk.source_tree(ours).await != disk.source_tree(theirs).await {
                let names = async |snapshot: &str| {
                    disk.contents(snapshot)
                        .await
                        .into_keys()
                        .map(|k| String::from_utf8(k).unwrap())
                        .collect::<Vec<_>>()
                };
                panic!("{patterns:?}: {:?} instead of {:?}", names(ours).await, names(theirs).await);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn includes_size_and_time_choose_files_and_leave_no_empty_way() {
    let disk = Disk::new().await;
    for path in ["a/x.txt", "a/x.bin", "b/deep/y.txt", "c/z.bin", "top.txt"] {
        disk.write(path, path);
    }
    disk.write("a/large.txt", vec![1; 1000]);
    disk.write("a/old.txt", "old");
    touch(&disk.file("a/old.txt"), 1_000_000_000, 0);
    let task = disk.task(|task| {
        task.selection.include =
            vec![disk.file("a").to_str().unwrap().into(), disk.file("**/*.txt").to_str().unwrap().into()];
        task.selection.max_size = Some(100);
        task.selection.modified_since = Some("2002-01-01T00:00:00Z".parse().unwrap());
    });
    let report = disk.run(&task).await.unwrap();
    let found = disk.contents(&report.snapshots[0]).await;
    let found: Vec<_> = found.keys().map(|k| std::str::from_utf8(k).unwrap()).collect();
    assert_eq!(found, ["a/x.bin", "a/x.txt", "b/deep/y.txt", "top.txt"]);
    assert_eq!(disk.snapshot(&report.snapshots[0]).await.tags, ["partial"]);
    assert!(disk.snapshot(&disk.backup().await.snapshots[0]).await.tags.is_empty());
    let tree = disk.source_tree(&report.snapshots[0]).await;
    let repository = disk.open().await;
    let reader = repository.reader(repository.index().await.unwrap());
    assert!(reader.tree(&tree).await.unwrap().get(b"c").is_none(), "nothing in it is meant");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_repository_inside_the_source_is_left_out() {
    let disk = Disk::new().await;
    disk.write("file", "x");
    let whole = disk.task(|task| task.source = cistern_bucket::Address::Directory(disk.path("")));
    for _ in 0..2 {
        let report = disk.run(&whole).await.unwrap();
        let node = disk.node(&report.snapshots[0], &disk.path("")).await;
        let repository = disk.open().await;
        let reader = repository.reader(repository.index().await.unwrap());
        let tree = reader.tree(&node.subtree.unwrap()).await.unwrap();
        assert!(tree.get(b"source").is_some() && tree.get(b"repository").is_none());
        assert_eq!(disk.snapshot(&report.snapshots[0]).await.tags, ["partial"]);
    }
    let itself = disk.task(|task| task.source = cistern_bucket::Address::Directory(disk.repository_path()));
    assert_eq!(disk.run(&itself).await.unwrap_err().class(), Class::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_file_systems_are_left_alone_on_request() {
    let disk = Disk::new().await;
    let inside = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(inside.path().join("file"), "x").unwrap();
    let options: Vec<String> = vec![
        "/dev/*".into(),
        "!/dev/shm".into(),
        "/dev/shm/*".into(),
        format!("!{}", inside.path().display()),
    ];
    let mut flags: Vec<&str> = options.iter().flat_map(|option| ["--exclude", option]).collect();
    for one in [false, true] {
        let task = disk.task(|task| {
            task.source = cistern_bucket::Address::Directory("/dev".into());
            task.selection.exclude = options.clone();
            (task.one_file_system, task.accept_shrink) = (one, true);
        });
        let ours = disk.run(&task).await.unwrap();
        if one {
            flags.push("--one-file-system");
        }
        let theirs = disk.restic_backup_of(Path::new("/dev"), &flags);
        let shm = async |snapshot: &str| disk.node(snapshot, Path::new("/dev/shm")).await.subtree;
        assert_eq!(shm(&ours.snapshots[0]).await, shm(&theirs.snapshot).await, "one file system: {one}");
        let mounted =
            Path::new("/dev").metadata().unwrap().dev() != Path::new("/dev/shm").metadata().unwrap().dev();
        assert_eq!(ours.objects_listed, if one && mounted { 0 } else { 1 });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_times_are_kept_on_request_and_reading_leaves_none() {
    let disk = Disk::new().await;
    disk.write("a/small", "x");
    disk.write("a/large", vec![1; 1 << 20]);
    let old = |path: &Path| {
        let time = |seconds| rustix::fs::Timespec { tv_sec: seconds, tv_nsec: 5 };
        let times = rustix::fs::Timestamps { last_access: time(1_000), last_modification: time(2_000) };
        rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
    };
    for path in ["a/small", "a/large", "a"] {
        old(&disk.file(path));
    }
    let ours = disk.run(&disk.task(|task| task.with_atime = true)).await.unwrap();
    for path in ["a/small", "a/large", "a"] {
        let node = disk.node(&ours.snapshots[0], &disk.file(path)).await;
        assert_eq!(node.atime.instant(), (1_000, 5), "{path}");
        assert_eq!(disk.file(path).metadata().unwrap().atime(), 1_000, "{path} was read without a trace");
    }
    let theirs = disk.restic_backup_of(&disk.source(), &["--with-atime"]);
    let a = async |snapshot: &str| disk.node(snapshot, &disk.file("a")).await.subtree;
    assert_eq!(a(&ours.snapshots[0]).await, a(&theirs.snapshot).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_of_a_bucket_is_compared_without_inodes() {
    let disk = Disk::new().await;
    disk.write("a", "1");
    disk.write("b", vec![2; 700 << 10]);
    let task = disk.task(|task| task.ignore_inode = true);
    disk.run(&task).await.unwrap();
    // The same files under other numbers, as after a new mount.
    for name in ["a", "b"] {
        let (path, copy) = (disk.file(name), disk.file("copy"));
        let modified = path.metadata().unwrap();
        std::fs::copy(&path, &copy).unwrap();
        touch(&copy, modified.mtime(), modified.mtime_nsec());
        std::fs::rename(&copy, &path).unwrap();
    }
    let again = disk.run(&task).await.unwrap();
    assert_eq!((again.bytes_read, again.objects_unchanged), (0, 2));
    let node = disk.node(&again.snapshots[0], &disk.file("a")).await;
    assert_eq!((node.inode, node.device_id, node.ctime), (0, 0, node.mtime));
    let careful = disk.backup().await;
    assert_eq!(careful.objects_unchanged, 0, "otherwise a file of another number is read");
    disk.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_writes_nothing_at_all() {
    let disk = Disk::new().await;
    disk.write("a/one", "1");
    disk.backup().await;
    disk.write("a/two", "22");
    disk.write("a/one", "changed");
    let before = look(&disk.repository_path());
    let report = disk.run(&disk.task(|task| task.dry_run = true)).await.unwrap();
    assert_eq!((report.objects_new, report.objects_changed, report.bytes_read), (1, 1, 0));
    assert!(report.snapshots.is_empty());
    assert!(look(&disk.repository_path()) == before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unchanged_source_needs_no_snapshot_and_force_reads_it_all() {
    let disk = Disk::new().await;
    disk.write("a/one", "1");
    let task = disk.task(|task| {
        task.skip_if_unchanged = true;
        task.root = Some("/root".into());
    });
    let first = disk.run(&task).await.unwrap();
    let second = disk.run(&task).await.unwrap();
    assert_eq!((second.snapshots.len(), second.parent.as_ref()), (0, Some(&first.snapshots[0])));
    let elsewhere = cistern_engine::Backup { host: "elsewhere".into(), ..task.clone() };
    for written in [1, 0] {
        assert_eq!(disk.run(&elsewhere).await.unwrap().snapshots.len(), written, "each host has its own");
    }
    let forced = disk.run(&disk.task(|task| task.force = true)).await.unwrap();
    assert_eq!((forced.bytes_read, forced.stored.data_blobs, forced.parent), (1, 0, None));
    disk.write("a/one", "2");
    assert_eq!(disk.run(&task).await.unwrap().snapshots.len(), 1);
    let explicit =
        disk.run(&disk.task(|task| task.parent = Some(first.snapshots[0][..10].into()))).await.unwrap();
    assert_eq!(explicit.parent, Some(first.snapshots[0].clone()));
    let none = disk.run(&disk.task(|task| task.parent = Some("ffffffff".into()))).await.unwrap_err();
    assert_eq!(none.class(), Class::NotFound);
    assert_eq!(std::fs::read_dir(disk.repository_path().join("locks")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_shrank_or_is_empty_is_refused_until_somebody_accepts_it() {
    let disk = Disk::new().await;
    let empty = disk.run(&disk.task(|_| ())).await.unwrap_err();
    assert!(matches!(empty, Error::SourceEmpty { .. }), "{empty}");
    disk.run(&disk.task(|task| task.allow_empty = true)).await.unwrap();
    for i in 0..10 {
        disk.write(format!("d{}/{i}", i % 3), "x");
    }
    disk.backup().await;
    for i in 0..6 {
        std::fs::remove_file(disk.file(format!("d{}/{i}", i % 3))).unwrap();
    }
    let error = disk.run(&disk.task(|_| ())).await.unwrap_err();
    assert!(matches!(error, Error::SourceShrunk { before: 10, now: 4, .. }), "{error}");
    let accepted = disk.run(&disk.task(|task| task.accept_shrink = true)).await.unwrap();
    assert_eq!(accepted.objects_deleted, 6);
    // The same where no summary says how many there were: the trees of what is gone are counted.
    std::fs::remove_dir_all(disk.file("d0")).unwrap();
    for i in 0..50 {
        disk.write(format!("gone/{i}/file"), "x");
    }
    let (source, other) = (disk.source(), disk.repository_path().join("config"));
    disk.restic_ok(&["backup", "--host", "test", source.to_str().unwrap(), other.to_str().unwrap()]);
    std::fs::remove_dir_all(disk.file("gone")).unwrap();
    let error = disk.run(&disk.task(|_| ())).await.unwrap_err();
    assert!(matches!(error, Error::SourceShrunk { before: 52, now: 2, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn force_and_empty_do_not_get_around_the_guard() {
    let disk = Disk::new().await;
    for i in 0..10 {
        disk.write(format!("d/{i}"), "x");
    }
    disk.backup().await;
    for i in 0..6 {
        std::fs::remove_file(disk.file(format!("d/{i}"))).unwrap();
    }
    let error = disk.run(&disk.task(|task| task.force = true)).await.unwrap_err();
    assert!(matches!(error, Error::SourceShrunk { before: 10, now: 4, .. }), "{error}");
    // A run of somebody else's does not measure this one.
    let other = disk.task(|task| (task.host, task.accept_shrink) = ("other".into(), true));
    disk.run(&other).await.unwrap();
    assert!(matches!(disk.run(&disk.task(|_| ())).await, Err(Error::SourceShrunk { before: 10, .. })));
    std::fs::remove_dir_all(disk.file("d")).unwrap();
    for allowing in [
        disk.task(|task| task.max_shrink = 1.0),
        disk.task(|task| (task.max_shrink, task.allow_empty) = (1.0, true)),
        disk.task(|task| (task.max_shrink, task.force, task.allow_empty) = (1.0, true, true)),
    ] {
        let error = disk.run(&allowing).await.unwrap_err();
        assert!(matches!(error, Error::SourceShrunk { before: 10, now: 0, .. }), "{error}");
    }
    disk.run(&disk.task(|task| task.accept_shrink = true)).await.unwrap();
    disk.run(&disk.task(|task| task.allow_empty = true)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_not_there_leaves_no_trace() {
    let disk = Disk::new().await;
    let before = look(&disk.repository_path());
    let task = disk.task(|task| task.source = cistern_bucket::Address::Directory(disk.path("none")));
    assert_eq!(disk.run(&task).await.unwrap_err().class(), Class::NotFound);
    let bad = disk.task(|task| task.selection.exclude = vec!["[".into()]);
    assert_eq!(disk.run(&bad).await.unwrap_err().class(), Class::Invalid);
    assert!(look(&disk.repository_path()) == before);
}

/// Runs `test` on a thread that is bound by permissions, whoever runs the tests; threads that it starts are, too.
fn without_privileges(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let test = scope.spawn(|| {
            if is_root() {
                use rustix::thread::{
                    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_capabilities,
                };
                let gone = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
                // Programs that it starts get none of these back.
                for one in gone.iter() {
                    remove_capability_from_bounding_set(one).unwrap();
                }
                let mut sets = capabilities(None).unwrap();
                sets.effective.remove(gone);
                set_capabilities(None, sets).unwrap();
            }
            test();
        });
        if let Err(panic) = test.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_saved() {
    without_privileges(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let disk = Disk::new().await;
            for path in ["good", "small", "dir/inside", "passable/inside"] {
                disk.write(path, path);
            }
            disk.write("large", vec![1; 1 << 20]);
            let chmod = |path: &str, mode| {
                std::fs::set_permissions(disk.file(path), std::fs::Permissions::from_mode(mode)).unwrap();
            };
            for path in ["small", "large", "dir"] {
                chmod(path, 0);
            }
            chmod("passable", 0o400);
            let error = disk.run(&disk.task(|_| ())).await.unwrap_err();
            assert_eq!(error.class(), Class::Incomplete);
            let Error::Incomplete { report, .. } = error else { panic!("{error}") };
            let Report::Backup(report) = *report else { panic!("{report:?}") };
            assert_eq!(report.exceptions.count(ExceptionKind::Denied), 4, "{:?}", report.exceptions);
            let keys: Vec<_> = report.exceptions.first.iter().map(|e| e.key.clone()).collect();
            let mut expected =
                ["dir", "large", "passable/inside", "small"].map(|p| disk.file(p).display().to_string());
            expected.sort();
            let mut sorted = keys.clone();
            sorted.sort();
            assert_eq!(sorted, expected);
            assert_eq!(disk.contents(&report.snapshots[0]).await.into_keys().collect::<Vec<_>>(), [b"good"]);
            let tags = disk.snapshot(&report.snapshots[0]).await.tags;
            assert_eq!(tags, ["incomplete", "partial"], "so that it is not taken for the latest good one");
            // restic saves the same.
            let output =
                disk.restic(&[OsStr::new("backup"), disk.source().as_os_str(), OsStr::new("--json")]);
            assert_eq!(output.status.code(), Some(3));
            let listed = disk.restic_ok(&["snapshots", "--json", "latest"]);
            let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
            let theirs = listed[0]["id"].as_str().unwrap();
            assert_eq!(disk.source_tree(&report.snapshots[0]).await, disk.source_tree(theirs).await);
            // Whoever accepts it has a good snapshot.
            let skip = disk.task(|task| task.on_unreadable = OnUnreadable::Skip);
            let report = disk.run(&skip).await.unwrap();
            assert_eq!(report.exceptions.total(), 4);
            assert_eq!(disk.snapshot(&report.snapshots[0]).await.tags, ["partial"]);
            for path in ["dir", "passable"] {
                chmod(path, 0o700);
            }
        });
    });
}

/// A way to the repository that calls `now` at the first pack.
fn at_the_first_pack(disk: &Disk, now: impl Fn() + Send + Sync + 'static) -> Arc<Hooked> {
    let packs = AtomicU64::new(0);
    Hooked::new(disk.plain(), move |verb, key| {
        if verb == Verb::Put && key.as_bytes().starts_with(b"data/") && packs.fetch_add(1, Relaxed) == 0 {
            now();
        }
        None
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vanishes_or_changes_its_kind_while_others_are_read_is_no_disaster() {
    let mut disk = Disk::new().await;
    disk.options.workers = 1;
    disk.options.memory = 16 << 20;
    let mut random = Random::new(3);
    for i in 0..96 {
        disk.write(format!("{i:02}"), bytes(&mut random, 1 << 20));
    }
    let (gone, changed, linked) = (disk.file("93"), disk.file("94"), disk.file("95"));
    disk.bucket = Some(at_the_first_pack(&disk, move || {
        std::fs::remove_file(&gone).unwrap();
        std::fs::remove_file(&changed).unwrap();
        std::fs::create_dir(&changed).unwrap();
        std::fs::remove_file(&linked).unwrap();
        symlink("/etc/passwd", &linked).unwrap();
    }));
    let error = disk.run(&disk.task(|_| ())).await.unwrap_err();
    let Error::Incomplete { report, .. } = error else { panic!("{error}") };
    let Report::Backup(report) = *report else { panic!("{report:?}") };
    assert_eq!((report.objects_vanished, report.exceptions.count(ExceptionKind::Unreadable)), (1, 2));
    assert_eq!(disk.contents(&report.snapshots[0]).await.len(), 93);
    disk.check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_vanishes_counts_as_what_was_in_it() {
    let mut disk = Disk::new().await;
    disk.options.workers = 1;
    disk.options.memory = 16 << 20;
    let mut random = Random::new(4);
    for i in 0..40 {
        disk.write(format!("~gone/{i}"), "x");
        disk.write(format!("{i:02}"), "before");
    }
    disk.backup().await;
    for i in 0..40 {
        disk.write(format!("{i:02}"), bytes(&mut random, 1 << 20));
    }
    let gone = disk.file("~gone");
    disk.bucket = Some(at_the_first_pack(&disk, move || std::fs::remove_dir_all(&gone).unwrap()));
    let error = disk.run(&disk.task(|_| ())).await.unwrap_err();
    let Error::File { source, .. } = &error else { panic!("{error}") };
    assert!(source.to_string().contains("40 of 80 objects vanished"), "{source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_uploads_hang_can_be_stopped() {
    let mut disk = Disk::new().await;
    disk.options.workers = 1;
    disk.options.memory = 16 << 20;
    let mut random = Random::new(5);
    for i in 0..80 {
        disk.write(format!("{i:02}"), bytes(&mut random, 1 << 20));
    }
    let faulty = Faulty::new(disk.plain());
    faulty.inject(Rule::new(Fault::Hang).verb(Verb::Put).prefix("data/"));
    disk.bucket = Some(faulty.clone());
    let cancel = disk.cancel.clone();
    let stopping = async {
        let begun = || faulty.requests().iter().filter(|r| r.key.as_bytes().starts_with(b"data/")).count();
        while begun() < 2 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let task = disk.task(|_| ());
    let both = async { tokio::join!(disk.run(&task), stopping).0 };
    let outcome = tokio::time::timeout(std::time::Duration::from_secs(60), both).await;
    assert!(matches!(outcome.expect("it ends"), Err(Error::Cancelled)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_stopped_or_fails_at_any_moment_leaves_the_snapshots_before_it_whole() {
    let mut disk = Disk::new().await;
    disk.options.pack_size = 4 << 20;
    let mut random = Random::new(5);
    disk.write("before", "x");
    let before = disk.backup().await;
    for i in 0..12 {
        disk.write(format!("large{i}"), bytes(&mut random, 2 << 20));
        disk.write(format!("dir{i}/small"), bytes(&mut random, 100));
    }
    let mut ended = 0;
    for nth in 0..20 {
        for stop in [true, false] {
            let counted = AtomicU64::new(0);
            let cancel = tokio_util::sync::CancellationToken::new();
            disk.cancel = cancel.clone();
            disk.bucket = Some(Hooked::new(disk.plain(), move |verb, _| {
                // A lock that cannot be deleted stays: that is another story.
                if verb == Verb::Delete || counted.fetch_add(1, Relaxed) != nth * 3 {
                    return None;
                }
                if stop {
                    cancel.cancel();
                    return None;
                }
                Some(ErrorKind::Denied)
            }));
            match disk.run(&disk.task(|_| ())).await {
                Ok(_) => ended += 1,
                Err(error) if stop => assert_eq!(error.class(), Class::Cancelled, "{error}"),
                Err(error) => assert_ne!(error.class(), Class::Broken, "{error}"),
            }
        }
    }
    assert!(ended > 0, "the last ones come too late to stop anything");
    (disk.bucket, disk.cancel) = (None, tokio_util::sync::CancellationToken::new());
    disk.check();
    assert_eq!(disk.contents(&before.snapshots[0]).await.len(), 1);
    let after = disk.backup().await;
    assert_eq!(disk.contents(&after.snapshots[0]).await.len(), 25);
    disk.check();
}
