//! One run of a directory into several repositories: every file is opened once, and each repository has its own verdict.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disk;

use std::collections::{BTreeMap, HashMap};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Class, ErrorKind, Verb};
use cistern_engine::{
    Access, Backup, BackupReport, Cx, Error, ExceptionKind, Progress, Report, Result, Role, Silent,
    backup_to_several,
};
use cistern_repository::{NodeKind, Options};
use cistern_testkit::{Faulty, seed};
use disk::{Disk, Hooked, identity};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

/// The source and a repository of the first, and the repositories of the others.
struct Several {
    disks: Vec<Disk>,
    /// Other ways than the plain ones, by repository.
    ways: BTreeMap<usize, Arc<dyn Bucket>>,
    cancel: CancellationToken,
}

struct Ways {
    plain: HashMap<Address, Arc<dyn Bucket>>,
    options: Options,
}

#[async_trait]
impl Access for Ways {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        assert_eq!(role, Role::Repository, "a directory is no bucket");
        Ok(self.plain[address].clone())
    }

    async fn password(&self, _repository: &Address) -> Result<SecretString> {
        Ok(SecretString::from("secret"))
    }

    fn options(&self, _repository: &Address) -> Options {
        self.options.clone()
    }
}

impl Several {
    async fn new(count: usize) -> Several {
        let mut disks = Vec::new();
        for _ in 0..count {
            disks.push(Disk::new().await);
        }
        Several { disks, ways: BTreeMap::new(), cancel: CancellationToken::new() }
    }

    fn source(&self) -> &Disk {
        &self.disks[0]
    }

    /// A backup of the source into the `i`-th repository.
    fn task_for(&self, i: usize) -> Backup {
        let repository = self.disks[i].repository_path();
        self.source().task(|task| task.repository = Address::Directory(repository))
    }

    async fn run(&self, tasks: &[Backup]) -> Vec<Result<BackupReport>> {
        let mut plain: HashMap<Address, Arc<dyn Bucket>> = HashMap::new();
        for i in 0..self.disks.len() {
            let way = self.ways.get(&i).cloned().unwrap_or_else(|| self.disks[i].plain());
            plain.insert(self.task_for(i).repository, way);
        }
        let cx = Cx {
            access: Arc::new(Ways { plain, options: self.source().options.clone() }),
            progress: Arc::new(Silent),
            cancel: self.cancel.clone(),
            identity: identity(),
            concurrency: 4,
            lock_wait: Duration::ZERO,
        };
        let silent = |task: &Backup| (task.clone(), Arc::new(Silent) as Arc<dyn Progress>);
        let tasks: Vec<_> = tasks.iter().map(silent).collect();
        backup_to_several(&tasks, &cx).await
    }

    async fn run_all(&self) -> Vec<Result<BackupReport>> {
        let tasks: Vec<_> = (0..self.disks.len()).map(|i| self.task_for(i)).collect();
        self.run(&tasks).await
    }

    /// The files of the source in a snapshot of the `i`-th repository.
    async fn contents(&self, i: usize, snapshot: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let disk = &self.disks[i];
        let repository = disk.open().await;
        let reader = repository.reader(repository.index().await.unwrap());
        let tree = disk.node(snapshot, &self.source().source()).await.subtree.unwrap();
        let mut found = BTreeMap::new();
        let mut open = vec![(Vec::new(), tree)];
        while let Some((path, tree)) = open.pop() {
            for node in reader.tree(&tree).await.unwrap().nodes() {
                let path = [&path[..], b"/", &node.name].concat();
                match node.kind {
                    NodeKind::Dir => open.push((path, node.subtree.unwrap())),
                    NodeKind::File => drop(found.insert(path, disk::content(&reader, node).await)),
                    _ => (),
                }
            }
        }
        found
    }

    async fn assert_whole(&self, i: usize, report: &BackupReport) {
        let files = files_below(&self.source().source());
        assert!(self.contents(i, &report.snapshots[0]).await == files, "repository {i}");
    }
}

fn files_below(root: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let files = disk::look(root).into_keys();
    let files = files.map(|path| [b"/", &path[..]].concat());
    let read = |path: Vec<u8>| {
        let file = root.join(std::str::from_utf8(&path[1..]).unwrap());
        file.symlink_metadata().unwrap().is_file().then(|| (path, std::fs::read(file).unwrap()))
    };
    files.filter_map(read).collect()
}

/// Counts how often the files of one directory are opened.
struct Opens(OwnedFd);

impl Opens {
    fn of(directory: &Path) -> Opens {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&fd, directory, WatchFlags::OPEN).unwrap();
        Opens(fd)
    }

    /// Since the last call, by name.
    fn take(&self) -> BTreeMap<String, u64> {
        let mut buffer = [MaybeUninit::uninit(); 64 << 10];
        let mut events = inotify::Reader::new(&self.0, &mut buffer);
        let mut opens = BTreeMap::new();
        while let Ok(event) = events.next() {
            if let Some(name) = event.file_name() {
                *opens.entry(name.to_str().unwrap().to_owned()).or_default() += 1;
            }
        }
        opens
    }
}

fn class(outcome: &Result<BackupReport>) -> Option<Class> {
    outcome.as_ref().err().map(Error::class)
}

fn all(outcomes: Vec<Result<BackupReport>>) -> Vec<BackupReport> {
    outcomes.into_iter().map(|outcome| outcome.unwrap()).collect()
}

/// Many small files, and two of several chunks.
fn fill(disk: &Disk) {
    let mut random = seed(72).random();
    for i in 0..600 {
        disk.write(format!("many/{i:03}"), format!("file {i}"));
    }
    for (name, length) in [("many/large", 9 << 20), ("many/larger", 13 << 20), ("middle", 300 << 10)] {
        let mut content = vec![0; length];
        random.fill(&mut content);
        disk.write(name, content);
    }
    disk.write("empty", "");
    std::os::unix::fs::symlink("many/000", disk.file("link")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_file_is_opened_once_for_all_repositories() {
    let mut several = Several::new(2).await;
    fill(several.source());
    std::fs::remove_file(several.source().file("link")).unwrap();
    let opens = Opens::of(&several.source().file("many"));
    let first = all(several.run_all().await);
    let opened = opens.take();
    assert_eq!(opened.len(), 602);
    assert!(opened.values().all(|times| *times == 1), "{opened:?}");
    let tree = several.disks[0].node(&first[0].snapshots[0], &several.source().source()).await;
    for (i, report) in first.iter().enumerate() {
        several.assert_whole(i, report).await;
        several.disks[i].check();
        assert_eq!((report.objects_new, report.stored.data_blobs), (604, report.stored.data_blobs));
        assert_eq!(report.bytes_read, report.bytes_listed);
        // Chunks depend on the repository; all else is the same.
        let node = several.disks[i].node(&report.snapshots[0], &several.source().source()).await;
        assert_eq!((node.mode, node.inode, node.mtime), (tree.mode, tree.inode, tree.mtime));
    }
    for name in ["many/007", "many/large"] {
        std::fs::write(several.source().file(name), format!("changed {name}")).unwrap();
    }
    opens.take();
    let second = all(several.run_all().await);
    assert_eq!(opens.take(), [("007".to_owned(), 1), ("large".to_owned(), 1)].into());
    for (i, report) in second.iter().enumerate() {
        several.assert_whole(i, report).await;
        assert_eq!((report.objects_changed, report.objects_unchanged), (2, 602));
        assert_eq!(report.parent.as_ref(), first[i].snapshots.first());
    }
    // One more, that has nothing, and one that has missed a run.
    several.source().write("many/new", "new");
    all(several.run(&[several.task_for(0)]).await);
    several.disks.push(Disk::new().await);
    opens.take();
    let third = all(several.run_all().await);
    let opened = opens.take();
    assert!(opened.len() == 603 && opened.values().all(|times| *times == 1), "{opened:?}");
    let counts =
        |report: &BackupReport| (report.objects_new, report.objects_changed, report.objects_unchanged);
    assert_eq!(third.iter().map(counts).collect::<Vec<_>>(), [(0, 0, 605), (1, 0, 604), (605, 0, 0)]);
    for (i, report) in third.iter().enumerate() {
        several.assert_whole(i, report).await;
        several.disks[i].check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_finds_nothing_to_add_in_any_of_them() {
    let several = Several::new(2).await;
    fill(several.source());
    all(several.run_all().await);
    for disk in &several.disks {
        let said = disk.restic_backup_of(&several.source().source(), &[]);
        assert_eq!((said.files_new, said.files_changed, said.data_blobs), (0, 0, 0), "{said:?}");
        assert_eq!(said.files_unmodified, 604);
        disk.check();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_fails_at_any_write_harms_no_other() {
    let several = Several::new(1).await;
    for i in 0..40 {
        several.source().write(format!("{}/{i}", i % 3), format!("file {i}"));
    }
    several.source().write("large", vec![7; 2 << 20]);
    let mut several = several;
    let mut failed = 0;
    for n in 0.. {
        several.disks.truncate(1);
        several.disks.push(Disk::new().await);
        let faulty = Faulty::new(several.disks[1].plain());
        faulty.die_at_write(n, false);
        several.ways.insert(1, faulty.clone());
        let tasks = [0, 1].map(|i| Backup { force: true, ..several.task_for(i) });
        let outcomes = several.run(&tasks).await;
        several.assert_whole(0, outcomes[0].as_ref().unwrap()).await;
        if !faulty.is_dead() {
            several.assert_whole(1, outcomes[1].as_ref().unwrap()).await;
            break;
        }
        failed += usize::from(outcomes[1].is_err());
        assert!(n < 100, "it never ends");
    }
    assert!(failed >= 3, "{failed}");
    several.disks[0].check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_that_breaks_down_in_the_middle_of_a_large_file_is_left_behind() {
    let mut several = Several::new(2).await;
    several.disks[0].options.pack_size = 4 << 20;
    fill(several.source());
    let writes = Arc::new(AtomicU64::new(0));
    let count = writes.clone();
    let full = Hooked::new(several.disks[1].plain(), move |verb, key| {
        let data = verb == Verb::Put && key.as_bytes().starts_with(b"data/");
        (data && count.fetch_add(1, Relaxed) >= 1).then_some(ErrorKind::NoSpace)
    });
    several.ways.insert(1, full);
    let outcomes = several.run_all().await;
    assert_eq!(class(&outcomes[1]), Some(Class::Unreachable));
    assert!(writes.load(Relaxed) > 1);
    several.assert_whole(0, outcomes[0].as_ref().unwrap()).await;
    several.disks[0].check();
    // Once there is space again, it goes on.
    several.ways.clear();
    let reports = all(several.run_all().await);
    assert_eq!((reports[0].objects_unchanged, reports[1].objects_new), (604, 604));
    several.assert_whole(1, &reports[1]).await;
    several.disks[1].check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vanishes_or_cannot_be_read_is_told_to_all() {
    let mut several = Several::new(2).await;
    (several.disks[0].options.workers, several.disks[0].options.memory) = (1, 16 << 20);
    let mut random = seed(73).random();
    for i in 0..80 {
        let mut content = vec![0; 1 << 20];
        random.fill(&mut content);
        several.source().write(format!("{i:02}"), content);
    }
    let once = AtomicBool::new(false);
    let (gone, changed) = (several.source().file("78"), several.source().file("79"));
    let trap = Hooked::new(several.disks[1].plain(), move |verb, key| {
        if verb == Verb::Put && key.as_bytes().starts_with(b"data/") && !once.swap(true, Relaxed) {
            std::fs::remove_file(&gone).unwrap();
            std::fs::remove_file(&changed).unwrap();
            std::fs::create_dir(&changed).unwrap();
        }
        None
    });
    several.ways.insert(1, trap);
    for (i, outcome) in several.run_all().await.into_iter().enumerate() {
        let Err(Error::Incomplete { report, .. }) = outcome else { panic!("{outcome:?}") };
        let Report::Backup(report) = *report else { panic!("{report:?}") };
        assert_eq!((report.objects_vanished, report.exceptions.count(ExceptionKind::Unreadable)), (1, 1));
        several.assert_whole(i, &report).await;
        several.disks[i].check();
    }
    // A source that is gone is an error of all, and nobody's snapshot.
    std::fs::remove_dir_all(several.source().source()).unwrap();
    let outcomes = several.run_all().await;
    assert_eq!(outcomes.iter().map(class).collect::<Vec<_>>(), [Some(Class::NotFound); 2]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_to_stop_stops_all() {
    let mut several = Several::new(2).await;
    several.disks[0].options.pack_size = 4 << 20;
    fill(several.source());
    let cancel = several.cancel.clone();
    let stopping = Hooked::new(several.disks[1].plain(), move |verb, key| {
        if verb == Verb::Put && key.as_bytes().starts_with(b"data/") {
            cancel.cancel();
        }
        None
    });
    several.ways.insert(1, stopping);
    let outcomes = several.run_all().await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Err(Error::Cancelled))), "{outcomes:?}");
    for disk in &several.disks {
        assert!(disk.open().await.snapshots().await.unwrap().is_empty());
        let locks = std::fs::read_dir(disk.repository_path().join("locks")).map(Iterator::count);
        assert_eq!(locks.unwrap_or(0), 0, "still locked");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_file_goes_to_all_as_well() {
    let several = Several::new(2).await;
    let content = vec![9; 3 << 20];
    several.source().write("one", &content);
    let tasks = [0, 1].map(|i| {
        let mut task = several.task_for(i);
        task.source = Address::Directory(several.source().file("one"));
        task
    });
    let opens = Opens::of(&several.source().source());
    for (i, report) in all(several.run(&tasks).await).iter().enumerate() {
        assert_eq!((report.objects_new, report.bytes_listed), (1, 3 << 20));
        let node = several.disks[i].node(&report.snapshots[0], &several.source().file("one")).await;
        let repository = several.disks[i].open().await;
        let reader = repository.reader(repository.index().await.unwrap());
        assert!(disk::content(&reader, &node).await == content);
    }
    assert_eq!(opens.take(), [("one".to_owned(), 1)].into());
    let again = all(several.run(&tasks).await);
    assert!(again.iter().all(|report| report.objects_unchanged == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_tells_each_what_it_would_take() {
    let several = Several::new(2).await;
    fill(several.source());
    all(several.run(&[several.task_for(0)]).await);
    let tasks = [0, 1].map(|i| Backup { dry_run: true, ..several.task_for(i) });
    let reports = all(several.run(&tasks).await);
    assert_eq!((reports[0].objects_unchanged, reports[0].objects_new), (604, 0));
    assert_eq!((reports[1].objects_unchanged, reports[1].objects_new), (0, 604));
    assert!(several.disks[1].open().await.snapshots().await.unwrap().is_empty());
}
