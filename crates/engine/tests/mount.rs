//! A bucket and a mount of it are one source: whoever changes from one to the other reads and stores nothing again.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::fs::FileTimes;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cistern_bucket::{Address, Attributes, Bucket, Key, Memory, Tags, Verb};
use cistern_engine::{Backup, BackupReport};
use cistern_repository::{Id, Node};
use support::{World, attributes, expected, task};

/// Objects of which some have attributes that need a side file.
fn plant() -> Arc<Memory> {
    let bucket = Arc::new(Memory::new("s3://orders"));
    for i in 0..40 {
        bucket.insert(format!("d{}/sub/{i:02}", i % 3), format!("content {i}"), attributes(i));
    }
    let many: BTreeMap<String, String> = (0..40).map(|i| (format!("n{i}"), "é".repeat(100))).collect();
    for key in ["side", "d1/side", "d1/!side"] {
        bucket.insert(key, key, Attributes { meta: many.clone(), ..attributes(3) });
    }
    bucket
}

/// Writes what a mount of the bucket would show: names, sizes, and times in whole seconds.
fn mount(bucket: &Memory, path: &Path) {
    for key in bucket.keys() {
        let file = path.join(std::str::from_utf8(key.as_bytes()).unwrap());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, bucket.content(&key).unwrap()).unwrap();
        let second = bucket.stat(&key).unwrap().0.modified.as_second();
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(second.try_into().unwrap());
        let times = FileTimes::new().set_modified(modified);
        std::fs::File::options().write(true).open(&file).unwrap().set_times(times).unwrap();
    }
    // A directory that a mount shows, and of which the bucket knows nothing.
    std::fs::create_dir_all(path.join("d0/empty")).unwrap();
}

/// The node of the directory in which the source lies in a snapshot.
async fn root(world: &Arc<World>, report: &BackupReport) -> Node {
    let repository = world.open();
    let reader = repository.reader(repository.index().await.unwrap());
    let tree: Id = world.trees(&report.snapshots).await[0];
    reader.tree(&tree).await.unwrap().get(b"data").unwrap().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_between_a_bucket_and_its_mount_costs_nothing() {
    let bucket = plant();
    let world = World::new(bucket.clone()).await;
    let temp = tempfile::tempdir().unwrap();
    mount(&bucket, temp.path());
    let direct = Backup { root: Some("/data".into()), ..task() };
    let mounted =
        Backup { source: Address::Directory(temp.path().to_path_buf()), mount: true, ..direct.clone() };
    let first = world.backup(&direct).await.unwrap();
    let through = world.backup(&mounted).await.unwrap();
    assert_eq!(through.parent.as_ref(), first.snapshots.first());
    assert_eq!((through.objects_unchanged, through.objects_deleted, through.bytes_read), (43, 0, 0));
    assert_eq!(through.stored.data_blobs, 0);
    let before = root(&world, &first).await;
    let after = root(&world, &through).await;
    assert_eq!(after.subtree, before.subtree, "every tree below is the same");
    assert!(after.xattrs.is_empty() && !before.xattrs.is_empty(), "only a listing proves a range");
    assert!(world.kept(&through.snapshots).await == expected(&bucket), "attributes are carried on");
    // And back again.
    let asked = bucket.ledger().snapshot();
    let back = world.backup(&direct).await.unwrap();
    let asked = bucket.ledger().snapshot().since(&asked);
    assert_eq!((asked.count(Verb::Get), asked.count(Verb::Tags)), (0, 0));
    assert_eq!((back.objects_unchanged, back.stored.data_blobs), (43, 0));
    assert_eq!(root(&world, &back).await.subtree, before.subtree);
    // What changes is read, and loses what the mount cannot say.
    bucket.insert("d1/side", "another content", attributes(5));
    bucket.remove(&Key::from("d0/sub/00"));
    std::fs::remove_file(temp.path().join("d0/sub/00")).unwrap();
    mount(&bucket, temp.path());
    let changed = world.backup(&mounted).await.unwrap();
    let counts = (changed.objects_changed, changed.objects_unchanged, changed.objects_deleted);
    assert_eq!((counts, changed.bytes_read), ((1, 41, 1), 15));
    let kept = world.kept(&changed.snapshots).await;
    let mut right = expected(&bucket);
    let new = right.get_mut(&Key::from("d1/side")).unwrap();
    (new.attributes, new.revision) = (Attributes { tags: Some(Tags::new()), ..Attributes::default() }, None);
    assert!(kept == right);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_run_through_a_mount_is_a_good_parent_for_the_bucket() {
    let bucket = plant();
    let world = World::new(bucket.clone()).await;
    let temp = tempfile::tempdir().unwrap();
    mount(&bucket, temp.path());
    let direct = Backup { root: Some("/data".into()), ..task() };
    let mounted =
        Backup { source: Address::Directory(temp.path().to_path_buf()), mount: true, ..direct.clone() };
    let first = world.backup(&mounted).await.unwrap();
    assert_eq!(first.objects_new, 43);
    let node = root(&world, &first).await;
    assert_eq!((node.mode & 0o777, node.uid, node.inode, node.mtime.seconds), (0o755, 0, 0, 0));
    let again = world.backup(&mounted).await.unwrap();
    assert_eq!((again.objects_unchanged, again.stored.tree_blobs), (43, 0));
    let asked = bucket.ledger().snapshot();
    let direct = world.backup(&direct).await.unwrap();
    assert_eq!(bucket.ledger().snapshot().since(&asked).count(Verb::Get), 0);
    assert_eq!((direct.objects_unchanged, direct.stored.data_blobs), (43, 0));
    assert_eq!(root(&world, &direct).await.subtree, node.subtree);
}
