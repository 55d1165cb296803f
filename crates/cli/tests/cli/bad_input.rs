//! Everything that people do wrong: a one-screen error with its exit code, nothing lost, nothing half-written.

use std::process::Command;

use cistern_repository::crypto::Nonces;
use cistern_repository::key::KeyFile;
use cistern_testkit::Server;
use secrecy::SecretString;

use crate::home::{Home, Run};

/// An error is at most a screen, begins with `error:`, and holds no secret.
fn refused(run: &Run, code: i32, words: &[&str]) {
    assert_eq!(run.code, code, "{}", run.transcript());
    assert!(run.err.lines().count() <= 12, "{}", run.transcript());
    assert!(run.err.contains("error: "), "{}", run.transcript());
    for word in words {
        assert!(run.err.contains(word), "{word:?} is missing in {}", run.transcript());
    }
    for secret in ["geheim", "falsch"] {
        assert!(!run.err.contains(secret) && !run.out.contains(secret), "{}", run.transcript());
    }
}

fn with_repository() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    home.write("data/a", "one");
    home.write("data/deep/b", "two");
    home.ok(&["backup", "data"]);
    home
}

#[test]
fn a_wrong_password_is_named() {
    let home = with_repository().with("CISTERN_PASSWORD", "falsch");
    refused(&home.run(&["snapshots"]), 12, &["password", "hint: "]);
    refused(&home.run(&["backup", "data"]), 12, &["password"]);
    refused(&home.run(&["restore", "latest", "--to", "out"]), 12, &["password"]);
    assert!(!home.path("out").exists());
}

#[test]
fn no_password_at_all_says_where_to_put_it() {
    let home = with_repository().without("CISTERN_PASSWORD");
    refused(&home.run(&["snapshots"]), 2, &["no password", "CISTERN_PASSWORD_FILE"]);
    refused(&home.run(&["snapshots", "--password-file", "none"]), 20, &["none"]);
    home.write("empty", "\n");
    refused(&home.run(&["snapshots", "--password-file", "empty"]), 2, &["empty"]);
    refused(&home.run(&["snapshots", "--password-command", "false"]), 2, &["false failed"]);
}

#[test]
fn no_repository_is_ten() {
    let home = Home::new();
    refused(&home.run(&["snapshots"]), 10, &["hint: "]);
    std::fs::create_dir(home.path("repo")).unwrap();
    refused(&home.run(&["snapshots"]), 10, &["no repository", "cistern init"]);
    home.write("data/a", "one");
    refused(&home.run(&["backup", "data"]), 10, &["no repository"]);
    let home = home.without("CISTERN_REPOSITORY");
    refused(&home.run(&["snapshots"]), 2, &["no repository was given", "--repo"]);
}

#[test]
fn a_second_init_changes_nothing() {
    let home = with_repository();
    refused(&home.run(&["init"]), 2, &["already"]);
    home.ok(&["restore", "latest", "--to", "out"]);
}

#[test]
fn bad_addresses_and_arguments_are_two() {
    let home = with_repository();
    refused(&home.run(&["backup", "gs://bucket"]), 2, &["gs:"]);
    refused(&home.run(&["backup", "s3://"]), 2, &["bucket"]);
    refused(&home.run(&["backup", "ftp://x/y"]), 2, &["ftp"]);
    refused(&home.run(&["backup", "s3://bucket", "--endpoint", "not a url"]), 2, &["endpoint"]);
    refused(&home.run(&["restore", "latest", "--to", "out", "--exclude", "[x"]), 2, &["[x"]);
    let run = home.run(&["restore", "latest"]);
    assert_eq!(run.code, 2, "{}", run.transcript());
    assert!(run.err.contains("--to"));
}

#[test]
fn missing_sources_and_snapshots_are_twenty() {
    let home = with_repository();
    refused(&home.run(&["backup", "nothing"]), 20, &["nothing"]);
    refused(&home.run(&["ls", "deadbeef"]), 20, &["deadbeef"]);
    refused(&home.run(&["restore", "latest~7", "--to", "out"]), 20, &["only 1"]);
    refused(&home.run(&["ls", "latest", "/no/such/path"]), 20, &["/no/such/path"]);
}

#[test]
fn a_bucket_that_is_missing_or_closed_is_told_apart() {
    let server = Server::start().unwrap();
    server.bucket("orders");
    let home = with_repository()
        .with("AWS_ENDPOINT_URL", server.endpoint())
        .with("AWS_REGION", "us-east-1")
        .with("AWS_ACCESS_KEY_ID", Server::ACCESS_KEY)
        .with("AWS_SECRET_ACCESS_KEY", server.secret_key());
    refused(&home.run(&["backup", "s3://absent"]), 20, &["no such bucket", "absent"]);
    refused(&home.run(&["snapshots", "--repo", "s3://absent/x"]), 10, &["absent"]);
    refused(&home.run(&["snapshots", "--repo", "s3://orders/x"]), 10, &["no repository"]);
    refused(&home.run(&["backup", "s3://orders"]), 2, &["holds nothing", "--allow-empty"]);
    let home = home.with("AWS_SECRET_ACCESS_KEY", "falsch");
    refused(&home.run(&["backup", "s3://orders"]), 21, &["denied", "AWS_ACCESS_KEY_ID"]);
}

#[test]
fn a_store_that_does_not_answer_is_twenty_three() {
    // A port that nobody listens on: taken, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let home = with_repository()
        .with("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .with("AWS_REGION", "us-east-1")
        .with("AWS_ACCESS_KEY_ID", "a")
        .with("AWS_SECRET_ACCESS_KEY", "falsch");
    refused(&home.run(&["backup", "s3://orders"]), 23, &["cannot be reached", "--endpoint"]);
}

#[test]
fn a_damaged_pack_is_found_and_the_rest_is_restored() {
    let home = Home::new();
    home.ok(&["init"]);
    let noise = cistern_testkit::objects::content(cistern_testkit::objects::Texture::Random, 1, 9 << 20);
    home.write("data/noise", &noise);
    home.ok(&["backup", "data"]);
    home.write("data/later", "kept in another pack");
    home.ok(&["backup", "data"]);
    let pack =
        files(&home.path("repo/data")).into_iter().max_by_key(|f| f.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let mut permissions = pack.metadata().unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(&pack, permissions).unwrap();
    std::fs::write(&pack, bytes).unwrap();

    refused(&home.run(&["check", "--read-data"]), 22, &["error"]);
    let run = home.run(&["restore", "latest", "--to", "out"]);
    refused(&run, 3, &["noise"]);
    let restored = files(&home.path("out"));
    assert!(restored.iter().any(|f| f.ends_with("later")), "{restored:?}");
    assert!(!restored.iter().any(|f| f.ends_with("noise")), "a damaged file must not look whole");
}

#[test]
fn an_unreadable_file_is_named_and_the_rest_is_kept() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new().of_user(65_534);
    home.write("data/open", "read me");
    let closed = home.write("data/closed", "not me");
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
    home.ok(&["init"]);
    let run = home.run(&["backup", "data", "--json"]);
    assert_eq!(run.code, 3, "{}", run.transcript());
    assert_eq!(
        run.summary()["exceptions"]["counts"]["denied"]
            .as_u64()
            .or(run.summary()["exceptions"]["counts"]["unreadable"].as_u64()),
        Some(1),
        "{}",
        run.out
    );
    assert!(run.err.contains("exit_error") || run.out.contains("closed"), "{}", run.transcript());
    let summary = run.summary();
    let id = summary["snapshots"][0].as_str().unwrap();
    assert!(home.ok(&["ls", id]).out.contains("/data/open"));
}

#[test]
fn a_full_disk_leaves_the_last_snapshot_whole() {
    let home = Home::new();
    let disk = Tmpfs::mount(&home, "disk", "12m");
    let home = home.with("CISTERN_REPOSITORY", home_path(&disk.0));
    home.ok(&["init"]);
    home.write("data/small", "fits");
    home.ok(&["backup", "data"]);
    let noise = cistern_testkit::objects::content(cistern_testkit::objects::Texture::Random, 2, 32 << 20);
    home.write("data/large", &noise);
    refused(&home.run(&["backup", "data"]), 23, &["no space left"]);
    std::fs::remove_file(home.path("data/large")).unwrap();
    home.ok(&["check", "--read-data"]);
    assert_eq!(home.ok(&["snapshots", "--json"]).lines()[0].as_array().unwrap().len(), 1);
    let full = Tmpfs::mount(&home, "target", "1m");
    let noise = &noise[..2 << 20];
    home.write("data/large", noise);
    let second = home_path(&home.path("repo2"));
    let home = home.with("CISTERN_REPOSITORY", second);
    home.ok(&["init"]);
    home.ok(&["backup", "data"]);
    let run = home.run(&["restore", "latest", "--to", "target"]);
    assert!([3, 23].contains(&run.code), "{}", run.transcript());
    assert!(run.err.contains("pace"), "{}", run.transcript());
    assert!(!files(&full.0).iter().any(|f| f.ends_with("large")), "{:?}", files(&full.0));
}

fn home_path(path: &std::path::Path) -> String {
    path.display().to_string()
}

/// A small disk; unmounted when dropped.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(home: &Home, name: &str, size: &str) -> Tmpfs {
        let path = home.path(name);
        std::fs::create_dir(&path).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"])
            .arg(&path)
            .status()
            .expect("mount is there");
        assert!(status.success(), "tests run as root");
        Tmpfs(path)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// All files below a directory.
fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().unwrap();
            match kind.is_dir() {
                true => todo.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}

#[test]
fn repositories_of_other_versions_are_left_alone() {
    let home = Home::new();
    let restic = cistern_testkit::tools::restic().unwrap();
    let restic_home = home
        .with("RESTIC_PASSWORD", "geheim")
        .with("RESTIC_REPOSITORY", "old")
        .with("CISTERN_REPOSITORY", "old");
    assert_eq!(restic_home.program(&restic, &["init", "--repository-version", "1"]).code, 0);
    restic_home.write("data/a", "one");
    refused(&restic_home.run(&["backup", "data"]), 2, &["version 1", "restic migrate upgrade_repo_v2"]);
    let copier = restic_home.with("CISTERN_REPOSITORY", "new").with("RESTIC_FROM_PASSWORD", "geheim");
    copier.ok(&["init"]);
    let copy = copier.run(&["copy", "--from-repo", "old"]);
    refused(&copy, 2, &["version 1", "restic migrate upgrade_repo_v2"]);

    let home = with_repository();
    let place = home.path("repo");
    let key = std::fs::read(files(&place.join("keys")).remove(0)).unwrap();
    let key = KeyFile::parse(&key).unwrap().open(&SecretString::from("geheim")).unwrap();
    let path = place.join("config");
    let (mut plain, mut sealed) = (Vec::new(), Vec::new());
    key.open_copy(&std::fs::read(&path).unwrap(), &mut plain).unwrap();
    let newer = String::from_utf8(plain).unwrap().replace("\"version\":2", "\"version\":3");
    key.seal_into(&mut Nonces::new(), newer.as_bytes(), &mut sealed).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, sealed).unwrap();
    refused(&home.run(&["backup", "data"]), 2, &["version 3", "newer"]);
    refused(&home.run(&["restore", "latest", "--to", "out"]), 2, &["version 3"]);
}

#[test]
fn settings_of_access_keep_their_exit_codes_and_hints() {
    let home = with_repository();
    refused(&home.run(&["backup", "s3://orders", "--cacert", "absent.pem"]), 20, &["absent.pem"]);
    refused(&home.run(&["backup", "s3://orders", "--profile", "absent"]), 20, &["absent", "hint: "]);
    refused(&home.run(&["backup", "data", "--password-file", "absent"]), 20, &["absent"]);
    let home = home.without("CISTERN_PASSWORD");
    refused(&home.run(&["backup", "data"]), 2, &["no password", "CISTERN_PASSWORD_FILE"]);
    refused(&home.run(&["restore", "latest", "--to", "out"]), 2, &["no password", "CISTERN_PASSWORD_FILE"]);
    let home = home.with("CISTERN_PASSWORD", "geheim").with("RESTIC_COMPRESSION", "much");
    refused(&home.run(&["backup", "data"]), 2, &["RESTIC_COMPRESSION", "fastest"]);
    let home = home.without("RESTIC_COMPRESSION");
    for reserved in ["run:1", "parts:2", "incomplete"] {
        refused(&home.run(&["backup", "data", "--tag", reserved]), 2, &[reserved]);
    }
}

#[test]
fn an_error_in_json_is_one_object() {
    let run = Home::new().run(&["snapshots", "--json"]);
    assert_eq!((run.code, run.out.as_str()), (10, ""));
    let error: serde_json::Value = serde_json::from_str(run.err.trim()).unwrap();
    assert_eq!(error["message_type"], "exit_error");
    assert_eq!((&error["code"], &error["class"]), (&10.into(), &"not-found".into()), "{error}");
    assert!(error["hint"].is_string(), "{error}");
}

#[test]
fn a_listing_that_cannot_be_printed_is_an_error() {
    let home = with_repository();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = home.command(&["ls", "latest"]);
    let output = command.stdout(full).stderr(std::process::Stdio::piped()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(23), "{said}");
    assert!(said.contains("standard output"), "{said}");
}

#[test]
fn places_that_may_not_be_written_are_twenty_one() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new().of_user(65_534);
    home.write("data/a", "one");
    home.ok(&["init"]);
    home.ok(&["backup", "data"]);
    for part in ["repo", "repo/locks"] {
        std::fs::set_permissions(home.path(part), std::fs::Permissions::from_mode(0o555)).unwrap();
    }
    refused(&home.run(&["backup", "data"]), 21, &["denied"]);
    home.ok(&["snapshots"]);
    for part in ["repo", "repo/locks"] {
        std::fs::set_permissions(home.path(part), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    std::fs::create_dir(home.path("shut")).unwrap();
    std::fs::set_permissions(home.path("shut"), std::fs::Permissions::from_mode(0o555)).unwrap();
    refused(&home.run(&["restore", "latest", "--to", "shut/out"]), 21, &["shut"]);
}
