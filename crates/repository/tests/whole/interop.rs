//! Stock restic is the judge: it checks, restores, prunes and continues what we write, and we read, check and
//! continue what it writes; Debian's 0.14 and the newest.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::*;
use cistern_repository::{
    CheckOptions, Compression, Error, LockKind, NodeKind, Options, ReadData, Repository, check,
};
use cistern_testkit::{seed, tools};
use tempfile::TempDir;

/// A directory with a repository of ours, two days in it, and both versions of restic.
struct Ours {
    temp: TempDir,
    days: Vec<(String, Model)>,
}

impl Ours {
    async fn new(seed_value: u64, options: Options) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut random = seed(seed_value).random();
        let repo = Repository::init(directory(&temp.path().join("repo")), &password(), &who(), options)
            .await
            .unwrap();
        let mut day = model(&mut random);
        let mut days = Vec::new();
        for _ in 0..2 {
            days.push((backup(&repo, &day).await.unwrap().to_string(), day.clone()));
            change(&mut day, &mut random);
        }
        Ours { temp, days }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn restic(&self, program: PathBuf) -> Restic {
        Restic { program, repo: self.path("repo"), cache: self.path("cache") }
    }

    /// Restores a day with restic and compares.
    #[track_caller]
    fn restores(&self, restic: &Restic, snapshot: &str, expected: &Model) {
        let target = self.path("restored");
        restic.run(&["restore", snapshot, "--target", target.to_str().unwrap()]);
        assert_same(&read_directory(&target), expected);
        fs::remove_dir_all(target).unwrap();
    }
}

fn both() -> [PathBuf; 2] {
    [tools::restic_debian().unwrap(), tools::restic().unwrap()]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_reads_checks_restores_and_prunes_what_we_write() {
    for (case, program) in both().into_iter().enumerate() {
        let compression = [Compression::Auto, Compression::Off][case];
        let ours = Ours::new(case as u64, Options { compression, pack_size: 4 << 20, ..options() }).await;
        let restic = ours.restic(program);
        let clean = restic.run(&["check", "--read-data"]);
        assert!(clean.contains("no errors were found"), "{clean}");
        for (id, day) in &ours.days {
            ours.restores(&restic, id, day);
        }
        let (id, day) = &ours.days[1];
        let listed = restic.run(&["ls", id]);
        for path in day.keys().filter(|path| path.is_ascii()) {
            assert!(listed.contains(&format!("/{path}\n")), "{path} is not listed");
        }
        let dumped = restic.command(&["dump", id, "/large/a.log"]).output().unwrap();
        assert!(dumped.status.success() && dumped.stdout == day["large/a.log"]);
        let differs = restic.run(&["diff", &ours.days[0].0, id]);
        let (before, after) = (&ours.days[0].1, day);
        for path in before.keys().chain(after.keys()).filter(|path| path.is_ascii()) {
            let listed = differs
                .lines()
                .any(|line| line.get(1..).is_some_and(|rest| rest.trim_start() == format!("/{path}")));
            assert_eq!(listed, before.get(path) != after.get(path), "{path} in {differs}");
        }
        assert!(restic.run(&["snapshots"]).contains("2 snapshots"));
        restic.run(&["stats", "--mode", "raw-data"]);

        // An index that is lost is made again from the packs' headers.
        for file in fs::read_dir(ours.path("repo/index")).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
        let repair: &[&str] = if case == 0 { &["rebuild-index"] } else { &["repair", "index"] };
        restic.run(repair);
        restic.run(&["check", "--read-data"]);
        ours.restores(&restic, id, day);

        restic.run(&["forget", &ours.days[0].0, "--prune", "--max-unused", "0"]);
        restic.run(&["check", "--read-data"]);
        ours.restores(&restic, id, day);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_copies_and_rewrites_what_we_write() {
    let ours = Ours::new(7, options()).await;
    for (case, program) in both().into_iter().enumerate() {
        let restic = ours.restic(program.clone());
        let copy = Restic { program, repo: ours.path(&format!("copy{case}")), cache: ours.path("cache") };
        let password = ours.path("password");
        fs::write(&password, PASSWORD).unwrap();
        let from = [
            "--from-repo",
            restic.repo.to_str().unwrap(),
            "--from-password-file",
            password.to_str().unwrap(),
        ];
        copy.run(&[&["init", "--copy-chunker-params"], &from[..]].concat());
        copy.run(&[&["copy"], &from[..]].concat());
        copy.run(&["check", "--read-data"]);
        ours.restores(&copy, "latest", &ours.days[1].1);
        // Copying again finds that everything is there.
        let again = copy.run(&[&["copy"], &from[..]].concat());
        assert!(!again.contains("started copy"), "{again}");
    }
    let newest = ours.restic(tools::restic().unwrap());
    newest.run(&["rewrite", "--exclude", "/large", "--forget", &ours.days[1].0]);
    let mut rest = ours.days[1].1.clone();
    rest.retain(|path, _| !path.starts_with("large/"));
    ours.restores(&newest, "latest", &rest);
    newest.run(&["check", "--read-data"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_repairs_what_we_wrote_and_somebody_damaged() {
    let ours = Ours::new(8, Options { pack_size: 4 << 20, ..options() }).await;
    let restic = ours.restic(tools::restic().unwrap());
    let packs = fs::read_dir(ours.path("repo/data")).unwrap();
    let packs = packs.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    // The largest holds data, and not directories.
    let pack =
        packs.map(|file| file.unwrap().path()).max_by_key(|file| file.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    bytes[100] ^= 1;
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, bytes).unwrap();
    let (success, ..) = restic.attempt(&["check", "--read-data"]);
    assert!(!success, "the damage is not found");
    restic.run(&["repair", "packs", pack.file_name().unwrap().to_str().unwrap()]);
    restic.run(&["repair", "snapshots", "--forget"]);
    restic.run(&["check", "--read-data"]);

    // What is left reads the same to us, and goes on.
    let repo = Repository::open(directory(&ours.path("repo")), &password(), options()).await.unwrap();
    assert!(check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap().is_empty());
    let snapshots = repo.snapshots().await.unwrap();
    assert_eq!(snapshots.len(), ours.days.len());
    let reader = repo.reader(repo.index().await.unwrap());
    // A file that lost a blob is left without it, on the days that had it.
    let mut differ = Vec::new();
    for ((_, snapshot), (_, day)) in snapshots.iter().zip(&ours.days) {
        let left = read(&reader, snapshot.tree).await.unwrap();
        differ.extend(
            day.iter().filter(|(path, content)| left.get(*path) != Some(*content)).map(|(path, _)| path),
        );
    }
    let files: usize = ours.days.iter().map(|(_, day)| day.len()).sum();
    assert!((1..files / 2).contains(&differ.len()), "{differ:?} of {files} files differ");
    let day = &ours.days[1].1;
    let id = backup(&repo, day).await.unwrap().to_string();
    restic.run(&["check", "--read-data"]);
    ours.restores(&restic, &id, day);
}

/// What restic saved, as we read it.
async fn latest(repo: &Repository, below: &Path) -> Model {
    let snapshots = repo.snapshots().await.unwrap();
    let reader = repo.reader(repo.index().await.unwrap());
    let mut tree = snapshots.last().unwrap().1.tree;
    for name in below.components().skip(1) {
        let parent = reader.tree(&tree).await.unwrap();
        let node = parent.get(name.as_os_str().as_encoded_bytes()).unwrap();
        assert_eq!(node.kind, NodeKind::Dir);
        tree = node.subtree.unwrap();
    }
    read(&reader, tree).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_read_check_and_continue_what_restic_writes() {
    for (case, program) in both().into_iter().enumerate() {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(temp.path()).unwrap();
        let (source, place) = (root.join("source"), root.join("repo"));
        let mut random = seed(case as u64 + 20).random();
        let mut day = model(&mut random);
        write_files(&source, &day);
        let restic = Restic { program, repo: place.clone(), cache: root.join("cache") };
        restic.run(&["init"]);
        restic.run(&["backup", "--host", "host-0", source.to_str().unwrap()]);

        // A second key with another password opens it as well.
        let other = root.join("other password");
        fs::write(&other, "another one").unwrap();
        restic.run(&["key", "add", "--new-password-file", other.to_str().unwrap()]);
        let second = Repository::open(directory(&place), &"another one".into(), options()).await.unwrap();
        let repo = Repository::open(directory(&place), &password(), options()).await.unwrap();
        assert_ne!(repo.key_id(), second.key_id());
        let wrong = Repository::open(directory(&place), &"a third".into(), options()).await.unwrap_err();
        assert!(matches!(wrong, Error::WrongPassword { keys: 2 }), "{wrong}");
        let hint = Options { key_hint: Some(repo.key_id()), ..options() };
        assert_eq!(
            Repository::open(directory(&place), &password(), hint).await.unwrap().key_id(),
            repo.key_id()
        );

        assert_same(&latest(&repo, &source).await, &day);
        let findings = check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap();
        assert!(findings.is_empty(), "{findings:?}");

        // The same files through our writer: every blob of theirs is there already.
        let writer = repo.writer(repo.index().await.unwrap(), lock(&repo, LockKind::Shared).await);
        let tree = write(&writer, &day).await.unwrap();
        let stats = writer.stats();
        assert_eq!(stats.data_blobs, 0, "cut or named otherwise than restic does");
        writer.finish(vec![snapshot(tree, None)]).await.unwrap();

        // We go on, restic goes on, and both read what the other has added.
        change(&mut day, &mut random);
        let id = backup(&repo, &day).await.unwrap();
        restic.run(&["check", "--read-data"]);
        let target = root.join("restored");
        restic.run(&["restore", &id.to_string(), "--target", target.to_str().unwrap()]);
        assert_same(&read_directory(&target), &day);
        fs::remove_dir_all(&source).unwrap();
        change(&mut day, &mut random);
        write_files(&source, &day);
        restic.run(&["backup", "--host", "host-0", source.to_str().unwrap()]);
        assert_same(&latest(&repo, &source).await, &day);
        restic.run(&["forget", "--keep-last", "1", "--group-by", "", "--prune"]);
        assert_same(&latest(&repo, &source).await, &day);
        assert!(check(&repo, CheckOptions { read_data: ReadData::All }, &|_| ()).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_seen_from_both_sides() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("repo");
    let repo = Repository::init(directory(&place), &password(), &who(), options()).await.unwrap();
    for program in both() {
        let restic = Restic { program, repo: place.clone(), cache: temp.path().join("cache") };
        let shared = lock(&repo, LockKind::Shared).await;
        restic.run(&["snapshots"]);
        let (success, _, error) = restic.attempt(&["prune"]);
        assert!(!success && error.contains("already locked"), "{error}");
        shared.release().await;
        let exclusive = lock(&repo, LockKind::Exclusive).await;
        let (success, _, error) = restic.attempt(&["list", "snapshots"]);
        assert!(!success && error.contains("locked exclusively") && error.contains("host-0"), "{error}");
        exclusive.release().await;
        restic.run(&["prune"]);

        // restic holds a lock while it waits for its standard input.
        let mut backup = restic.command(&["backup", "--stdin"]);
        backup.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut backup = backup.spawn().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let taken =
            || fs::read_dir(place.join("locks")).unwrap().any(|file| file.unwrap().file_name().len() == 64);
        while !taken() {
            assert!(std::time::Instant::now() < deadline, "restic takes no lock");
            std::thread::yield_now();
        }
        let error = repo.lock(LockKind::Exclusive, &who(), std::time::Duration::ZERO).await.unwrap_err();
        assert!(matches!(&error, Error::Locked { exclusive: false, .. }), "{error}");
        assert!(error.to_string().contains(&format!("process {}", backup.id())), "{error}");
        std::io::Write::write_all(&mut backup.stdin.take().unwrap(), b"done").unwrap();
        assert!(backup.wait().unwrap().success());
        lock(&repo, LockKind::Exclusive).await.release().await;
    }
}
