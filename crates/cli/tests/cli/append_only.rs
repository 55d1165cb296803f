//! A writer whose keys may add but not delete, but for locks: everything works for it, and it cannot take anything away.

use serde_json::json;

use crate::home::{Home, Run};
use crate::s3::home_for;

/// What an append-only writer needs, as a policy of S3.
fn append_only(bucket: &str, prefix: &str) -> String {
    let objects = format!("arn:aws:s3:::{bucket}/{prefix}");
    json!({
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [format!("arn:aws:s3:::{bucket}")]},
            {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": [format!("{objects}/*")]},
            {"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": [format!("{objects}/locks/*")]},
        ],
    })
    .to_string()
}

fn snapshots(home: &Home) -> usize {
    home.ok(&["snapshots", "--json"]).lines()[0].as_array().unwrap().len()
}

fn refused(run: &Run) {
    let text = run.transcript();
    assert_eq!(run.code, 21, "{text}");
    assert!(text.contains("access denied") && text.contains("only append"), "{text}");
}

#[test]
fn a_writer_that_may_only_append_does_its_work_and_takes_nothing_away() {
    let minio = cistern_testkit::minio();
    let (endpoint, bucket) = (minio.endpoint(), "append-only");
    let address = format!("s3://{bucket}/repo");
    let owner =
        home_for(&endpoint, minio.access_key(), minio.secret_key()).with("CISTERN_REPOSITORY", &*address);
    owner.ok(&["init"]);

    let keys = minio.borrow_keys(&append_only(bucket, "repo"));
    let writer = home_for(&endpoint, &keys.access_key, &keys.secret_key)
        .with("AWS_SESSION_TOKEN", keys.session_token)
        .with("CISTERN_REPOSITORY", address);
    writer.write("data/a", "one");
    writer.write("data/b/c", vec![7; 3 << 20]);
    writer.ok(&["backup", "data"]);
    writer.write("data/a", "two");
    let second = writer.ok(&["backup", "data", "--json"]).summary();
    assert_eq!(
        (&second["objects_changed"], &second["objects_unchanged"]),
        (&1.into(), &1.into()),
        "{second}"
    );
    writer.ok(&["backup", "data"]);
    assert_eq!(snapshots(&writer), 3);
    for command in [
        &["ls", "latest"][..],
        &["find", "c"],
        &["diff", "latest~1", "latest"],
        &["stats"],
        &["key", "list"],
        &["unlock"],
        &["check"],
        &["check", "--read-data"],
        &["verify", "latest", "data"],
        &["verify", "latest", "data", "--content"],
        &["restore", "latest", "--to", "out"],
        &["forget", "--keep-last", "1", "--dry-run"],
    ] {
        writer.ok(command);
    }
    let restored = writer.path("out").join(writer.path("data/a").strip_prefix("/").unwrap());
    assert_eq!(std::fs::read(restored).unwrap(), b"two");

    refused(&writer.run(&["forget", "latest"]));
    refused(&writer.run(&["forget", "--keep-last", "1"]));
    let left = minio.versions(bucket, "repo/locks/");
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(snapshots(&writer), 3);
    writer.ok(&["backup", "data"]);

    let restic = cistern_testkit::tools::restic().unwrap();
    let owner = owner
        .with("RESTIC_REPOSITORY", format!("s3:{endpoint}/{bucket}/repo"))
        .with("RESTIC_PASSWORD", "geheim");
    let check = owner.program(&restic, &["check", "--read-data"]);
    assert_eq!(check.code, 0, "{}", check.transcript());
    // The owner still can.
    owner.ok(&["forget", "--keep-last", "1"]);
    assert_eq!(snapshots(&owner), 1);
}
