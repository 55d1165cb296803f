//! Keys: whatever is done to them, and wherever it breaks off, a password that somebody was told opens the
//! repository, to us and to restic.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cistern_bucket::{Bucket, ErrorKind, Key, Memory, Verb};
use cistern_repository::file::FileKind;
use cistern_repository::{Error, Id, Identity, LockKind, MAX_KEYS, NewKey, Repository};
use cistern_testkit::{Fault, Faulty, Rule, tools};

use crate::support::*;

const OTHER: &str = "another one";

fn new_key(password: &str) -> NewKey {
    NewKey { password: password.into(), username: "bob".into(), hostname: "host-1".into() }
}

/// A bucket with a repository.
async fn new() -> (Arc<Memory>, Repository) {
    let memory = Arc::new(Memory::new("memory"));
    let repo = Repository::init(memory.clone(), &password(), &who(), options()).await.unwrap();
    (memory, repo)
}

async fn open(bucket: Arc<dyn Bucket>, password: &str) -> Result<Repository, Error> {
    Repository::open(bucket, &password.into(), options()).await
}

async fn opens(bucket: &Arc<dyn Bucket>, password: &str) -> bool {
    match open(bucket.clone(), password).await {
        Ok(_) => true,
        Err(Error::WrongPassword { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn key_files(memory: &Memory) -> Vec<Key> {
    memory.keys().into_iter().filter(|key| key.as_bytes().starts_with(b"keys/")).collect()
}

/// A file that is no key, under an id that begins with these digits.
fn junk(memory: &Memory, digits: &str) -> Id {
    let id: Id = format!("{digits:0<64}").parse().unwrap();
    memory.insert(FileKind::Key.key(&id), "no key", Default::default());
    id
}

#[tokio::test(start_paused = true)]
async fn an_added_key_opens_and_is_listed() {
    let (memory, repo) = new().await;
    let shared = lock(&repo, LockKind::Shared).await;
    let id = repo.add_key(&new_key(OTHER), &shared).await.unwrap();
    shared.release().await;
    let second = open(memory.clone(), OTHER).await.unwrap();
    assert_eq!((second.key_id(), second.id()), (id, repo.id()));
    assert_eq!(open(memory.clone(), PASSWORD).await.unwrap().key_id(), repo.key_id());

    let broken = junk(&memory, "ee");
    let keys = second.keys().await.unwrap();
    assert_eq!(keys.len(), 3);
    for key in keys {
        assert_eq!(key.is_current, key.id == id);
        match key.file {
            Ok(file) => {
                let by = if key.is_current { ("bob", "host-1") } else { ("ann", "host-0") };
                assert_eq!((file.username.as_str(), file.hostname.as_str()), by);
                assert!(file.created.is_some());
            }
            Err(error) => assert!(key.id == broken && matches!(error, Error::Damaged { .. }), "{error}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_key_that_is_meant_is_removed() {
    let (memory, repo) = new().await;
    let exclusive = lock(&repo, LockKind::Exclusive).await;
    let id = repo.add_key(&new_key(OTHER), &exclusive).await.unwrap();
    let taken = [repo.key_id().to_string(), id.to_string()];
    let digit = "0123456789abcdef".chars().find(|digit| !taken.iter().any(|id| id.starts_with(*digit)));
    let digit = digit.unwrap().to_string();
    let twins = ["1", "2"].map(|end| junk(&memory, &format!("{digit}{end}")));
    let before = key_files(&memory);

    let refused = async |wanted: &str| repo.remove_key(wanted, &exclusive).await.unwrap_err();
    assert!(matches!(refused(&digit).await, Error::Ambiguous { .. }));
    assert!(matches!(refused(&format!("{digit}3")).await, Error::NoSuchKey { .. }));
    assert!(matches!(refused("").await, Error::NoSuchKey { .. }));
    assert!(matches!(refused("../config").await, Error::NoSuchKey { .. }));
    let mine = repo.key_id();
    assert!(matches!(refused(&mine.to_string()).await, Error::KeyInUse { id } if id == mine));
    assert_eq!(key_files(&memory), before);

    assert_eq!(repo.remove_key(&format!("{digit}1"), &exclusive).await.unwrap(), twins[0]);
    assert_eq!(repo.remove_key(&id.to_string(), &exclusive).await.unwrap(), id);
    let mut left = vec![FileKind::Key.key(&mine), FileKind::Key.key(&twins[1])];
    left.sort();
    assert_eq!(key_files(&memory), left);
    exclusive.release().await;
    let memory: Arc<dyn Bucket> = memory;
    assert!(opens(&memory, PASSWORD).await && !opens(&memory, OTHER).await);
}

#[tokio::test(start_paused = true)]
async fn a_changed_password_takes_the_place_of_the_old_one() {
    let (memory, repo) = new().await;
    let exclusive = lock(&repo, LockKind::Exclusive).await;
    let id = repo.change_key(&new_key(OTHER), &exclusive).await.unwrap();
    // What the key that is gone has opened changes nothing any more.
    for error in [
        repo.add_key(&new_key("a third"), &exclusive).await.unwrap_err(),
        repo.change_key(&new_key("a third"), &exclusive).await.unwrap_err(),
        repo.remove_key(&id.to_string(), &exclusive).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::WrongPassword { keys: 1 }), "{error}");
    }
    exclusive.release().await;
    assert_eq!(key_files(&memory), [FileKind::Key.key(&id)]);
    let memory: Arc<dyn Bucket> = memory;
    assert!(opens(&memory, OTHER).await && !opens(&memory, PASSWORD).await);
}

#[tokio::test(start_paused = true)]
async fn what_must_not_be_done_is_refused() {
    let (memory, repo) = new().await;
    let shared = lock(&repo, LockKind::Shared).await;
    let other = repo.add_key(&new_key(OTHER), &shared).await.unwrap();
    for error in [
        repo.change_key(&new_key("a third"), &shared).await.unwrap_err(),
        repo.remove_key(&other.to_string(), &shared).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Broken(_)), "{error}");
    }
    let error = repo.add_key(&new_key(""), &shared).await.unwrap_err();
    assert!(matches!(error, Error::BadParameter { what: "the new password", .. }), "{error}");
    assert_eq!(key_files(&memory).len(), 2);

    // restic tries so many keys and no more.
    for n in 2..MAX_KEYS {
        junk(&memory, &format!("f{n:03}"));
    }
    let error = repo.add_key(&new_key("a third"), &shared).await.unwrap_err();
    assert!(error.to_string().contains("20 keys"), "{error}");
    shared.release().await;
    let exclusive = lock(&repo, LockKind::Exclusive).await;
    repo.change_key(&new_key("a third"), &exclusive).await.unwrap();
    assert_eq!(key_files(&memory).len(), MAX_KEYS);
    exclusive.release().await;

    // A colleague who removes our key while we remove theirs.
    let (memory, ours) = new().await;
    let shared = lock(&ours, LockKind::Shared).await;
    ours.add_key(&new_key(OTHER), &shared).await.unwrap();
    shared.release().await;
    let theirs = open(memory.clone(), OTHER).await.unwrap();
    for (repo, other, succeeds) in [(&ours, &theirs, true), (&theirs, &ours, false)] {
        let exclusive = lock(repo, LockKind::Exclusive).await;
        assert_eq!(repo.remove_key(&other.key_id().to_string(), &exclusive).await.is_ok(), succeeds);
        exclusive.release().await;
    }
    assert_eq!(key_files(&memory), [FileKind::Key.key(&ours.key_id())]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_does_not_open_is_not_left_and_replaces_nothing() {
    let (memory, repo) = new().await;
    let faulty = Faulty::new(memory.clone() as Arc<dyn Bucket>);
    let through = repo.through(faulty.clone(), options()).unwrap();
    let before = key_files(&memory);
    for fault in [Fault::WrongBody(300), Fault::TruncatedBody(20), Fault::Error(ErrorKind::Unreachable)] {
        let exclusive = lock(&through, LockKind::Exclusive).await;
        faulty.inject(Rule::new(fault).verb(Verb::Get).prefix("keys/"));
        through.add_key(&new_key(OTHER), &exclusive).await.unwrap_err();
        through.change_key(&new_key(OTHER), &exclusive).await.unwrap_err();
        assert_eq!(key_files(&memory), before, "{fault:?}");
        faulty.reset();
        exclusive.release().await;
    }
    // The answer was lost: nobody knows what is there.
    let exclusive = lock(&through, LockKind::Exclusive).await;
    faulty.inject(Rule::new(Fault::Lost(ErrorKind::Unreachable)).verb(Verb::Put).prefix("keys/"));
    through.change_key(&new_key(OTHER), &exclusive).await.unwrap_err();
    assert_eq!(key_files(&memory), before);
    faulty.reset();

    // The key that stays is damaged: the other one is the last that opens.
    let other = through.add_key(&new_key(OTHER), &exclusive).await.unwrap();
    faulty.inject(Rule::new(Fault::WrongBody(300)).verb(Verb::Get).prefix("keys/"));
    let error = through.remove_key(&other.to_string(), &exclusive).await.unwrap_err();
    assert!(
        matches!(error, Error::Damaged { what: "key", id: Some(id), .. } if id == repo.key_id()),
        "{error}"
    );
    assert_eq!(key_files(&memory).len(), 2);
    faulty.reset();
    exclusive.release().await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_once_the_lock_is_gone() {
    let (memory, repo) = new().await;
    let exclusive = lock(&repo, LockKind::Exclusive).await;
    let other = repo.add_key(&new_key(OTHER), &exclusive).await.unwrap();
    for held in repo.locks(&who()).await.unwrap() {
        repo.remove_lock(&held).await.unwrap();
    }
    let error = repo.remove_key(&other.to_string(), &exclusive).await.unwrap_err();
    assert!(matches!(error, Error::LockLost { .. }), "{error}");
    let error = repo.change_key(&new_key("a third"), &exclusive).await.unwrap_err();
    assert!(matches!(&error, Error::OldKeyLeft { old, .. } if *old == repo.key_id()), "{error}");
    assert!(!format!("{error} {error:?}").contains("third"), "{error:?}");
    assert_eq!(key_files(&memory).len(), 3);
    let memory: Arc<dyn Bucket> = memory;
    for password in [PASSWORD, OTHER, "a third"] {
        assert!(opens(&memory, password).await, "{password}");
    }
}

/// Whether restic opens the repository with a password.
fn restic_opens(program: &Path, repo: &Path, password: &str) -> bool {
    let restic = Restic { program: program.into(), repo: repo.into(), cache: repo.with_file_name("cache") };
    // A lock of the dead must not be what keeps it out.
    let mut command = restic.command(&["--no-lock", "cat", "config"]);
    let output = command.env("RESTIC_PASSWORD", password).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("wrong password"), "{said}");
    output.status.success()
}

/// Carries a verb out again and again, dying at each of its writes in turn, before and after its effect.
async fn killed(verb: &str, kind: LockKind) {
    let doomed = Identity { pid: 999_999_999, ..who() };
    let restic = tools::restic().unwrap();
    // Deriving keys is what takes time: the repository is made once, and copied.
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().join("repo");
    let repo = Repository::init(directory(&place), &password(), &who(), options()).await.unwrap();
    let mut wanted = String::new();
    if verb == "remove" {
        let shared = lock(&repo, LockKind::Shared).await;
        wanted = repo.add_key(&new_key(OTHER), &shared).await.unwrap().to_string();
        shared.release().await;
    }
    let before = read_directory(&place);
    let mut deaths = 0;
    for (n, fault) in (0..).flat_map(|n| [(n, Fault::Die), (n, Fault::DieAfter)]) {
        std::fs::remove_dir_all(&place).unwrap();
        write_files(&place, &before);
        let inner = directory(&place);
        let faulty = Faulty::new(inner.clone());
        let mortal = repo.through(faulty.clone(), options()).unwrap();
        faulty.inject(Rule::new(fault).writes().nth(n));
        let outcome = match mortal.lock(kind, &doomed, Duration::ZERO).await {
            Err(error) => Err(error),
            Ok(lock) => {
                let outcome = match verb {
                    "add" => mortal.add_key(&new_key(OTHER), &lock).await,
                    "change" => mortal.change_key(&new_key(OTHER), &lock).await,
                    _ => mortal.remove_key(&wanted, &lock).await,
                };
                lock.release().await;
                outcome
            }
        };
        let case = format!("{verb} {n} {fault:?}: {outcome:?}");
        let (old, new) = (opens(&inner, PASSWORD).await, opens(&inner, OTHER).await);
        assert!(old || verb == "change" && new, "{case}");
        match &outcome {
            Ok(_) => assert_eq!((old, new), (verb != "change", verb != "remove"), "{case}"),
            Err(Error::OldKeyLeft { .. }) => assert!(new, "{case}"),
            Err(_) => assert!(old, "{case}"),
        }
        assert!(restic_opens(&restic, &place, if old { PASSWORD } else { OTHER }), "{case}");
        if !faulty.is_dead() {
            outcome.unwrap();
            break;
        }
        deaths += 1;
        // The lock of the dead keeps nobody out.
        let next = repo.through(inner, options()).unwrap();
        lock(&next, LockKind::Exclusive).await.release().await;
    }
    // The lock, the key or the two of them, and the lock again, each before and after.
    assert!(deaths >= if verb == "change" { 8 } else { 6 }, "{verb} died {deaths} times");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_a_key_is_added_the_old_password_opens() {
    killed("add", LockKind::Shared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_a_password_is_changed_one_of_the_two_opens() {
    killed("change", LockKind::Exclusive).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_a_key_is_removed_the_other_password_opens() {
    killed("remove", LockKind::Exclusive).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restic_opens_what_we_changed_and_we_what_restic_added() {
    for program in [tools::restic_debian().unwrap(), tools::restic().unwrap()] {
        let temp = tempfile::tempdir().unwrap();
        let place = temp.path().join("repo");
        let bucket = directory(&place);
        let repo = Repository::init(bucket.clone(), &password(), &who(), options()).await.unwrap();
        let exclusive = lock(&repo, LockKind::Exclusive).await;
        let added = repo.add_key(&new_key(OTHER), &exclusive).await.unwrap();
        for password in [PASSWORD, OTHER] {
            assert!(restic_opens(&program, &place, password));
        }
        repo.change_key(&new_key("a third"), &exclusive).await.unwrap();
        assert!(restic_opens(&program, &place, "a third") && !restic_opens(&program, &place, PASSWORD));
        let repo = open(bucket.clone(), "a third").await.unwrap();
        repo.remove_key(&added.to_string(), &exclusive).await.unwrap();
        assert!(restic_opens(&program, &place, "a third") && !restic_opens(&program, &place, OTHER));
        exclusive.release().await;

        let restic =
            Restic { program: program.clone(), repo: place.clone(), cache: temp.path().join("cache") };
        let password = temp.path().join("password");
        std::fs::write(&password, "of restic").unwrap();
        let arguments = [
            "key",
            "add",
            "--new-password-file",
            password.to_str().unwrap(),
            "--user",
            "rita",
            "--host",
            "r",
        ];
        let added = restic.command(&arguments).env("RESTIC_PASSWORD", "a third").output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
        let theirs = open(bucket.clone(), "of restic").await.unwrap();
        let keys = theirs.keys().await.unwrap();
        let current = keys.iter().find(|key| key.is_current).unwrap();
        let file = current.file.as_ref().unwrap();
        assert_eq!((keys.len(), file.username.as_str(), file.hostname.as_str()), (2, "rita", "r"));
        let listed = restic.command(&["key", "list"]).env("RESTIC_PASSWORD", "of restic").output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("bob") && listed.contains("host-1"), "{listed}");

        // Each removes what the other made.
        let exclusive = lock(&theirs, LockKind::Exclusive).await;
        theirs.change_key(&new_key(OTHER), &exclusive).await.unwrap();
        exclusive.release().await;
        let ours = open(bucket.clone(), OTHER).await.unwrap();
        let remove = ["key", "remove", &ours.key_id().short()];
        let removed = restic.command(&remove).env("RESTIC_PASSWORD", "a third").output().unwrap();
        assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
        assert!(!opens(&bucket, OTHER).await && opens(&bucket, "a third").await);
    }
}
