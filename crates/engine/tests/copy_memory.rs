//! A copy of much data takes no more memory than one of little: alone in its process, which is measured.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../cli/src/allocator.rs"]
mod allocator;
mod support;

use std::sync::Arc;

use cistern_bucket::{Attributes, Bucket, Directory, Durability, Memory};
use cistern_engine::{CopySnapshots, Report, SnapshotSelector, Task};
use cistern_testkit::seed;
use support::{World, task};

/// The most that this process has had in memory.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_what_is_copied() {
    let temp = tempfile::tempdir().unwrap();
    let directory = |name: &str| -> Arc<dyn Bucket> {
        Arc::new(Directory::with(temp.path().join(name), Durability::None))
    };
    let mut random = seed(95).random();
    let from = World::with(Arc::new(Memory::new("s3://orders")), directory("from")).await;
    let bytes = 400_u64 << 20;
    for i in 0..bytes / (10 << 20) {
        // One file at a time: the source must not be what takes the memory.
        let bucket = Arc::new(Memory::new("s3://orders"));
        let mut content = vec![0; 10 << 20];
        random.fill(&mut content);
        bucket.insert("file", content, Attributes::default());
        let mut backup = task();
        (backup.force, backup.host) = (true, format!("{i}"));
        from.again(|world| world.source = bucket).backup(&backup).await.unwrap();
    }
    let to = World::with(directory("from"), directory("to")).await;
    let before = peak();
    let copy = CopySnapshots {
        from: "s3://from".parse().unwrap(),
        repository: "s3://repository".parse().unwrap(),
        snapshots: Vec::new(),
        filter: SnapshotSelector::default(),
        dry_run: false,
    };
    let Report::Copy(report) = cistern_engine::run(&Task::Copy(copy), &to.cx()).await.unwrap() else {
        panic!("another report")
    };
    assert!(report.bytes >= bytes, "{report:?}");
    let grown = peak() - before;
    assert!(
        grown < 192 << 20,
        "{} MiB more than the backups before, which took {} MiB",
        grown >> 20,
        before >> 20
    );
}
