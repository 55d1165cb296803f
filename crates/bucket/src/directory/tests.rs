//! What is particular to a directory as a bucket: links, modes, names, times.

use std::os::unix::fs::{MetadataExt, symlink};

use super::*;

async fn put(bucket: &Directory, key: &str, content: &'static str) -> Result<Put> {
    bucket.put(&key.into(), &[content.into()], &PutOptions::default()).await
}

async fn text(bucket: &Directory, key: &str) -> Result<Bytes> {
    bucket.get(&key.into(), &GetOptions::default()).await?.body.bytes().await
}

async fn all(bucket: &Directory) -> Vec<Key> {
    let page = bucket.list(&ListRequest::default()).await.unwrap();
    page.entries.into_iter().map(|entry| entry.key).collect()
}

#[tokio::test]
async fn files_and_directories_are_private_and_two_writes_never_look_the_same() {
    let place = tempfile::tempdir().unwrap();
    let bucket = Directory::new(place.path().join("not/yet"));
    let missing = put(&bucket, "a/b/c", "1").await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NoSuchBucket);
    bucket.create().await.unwrap();
    bucket.create().await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for content in ["1", "2", "3", "4"] {
        let put = put(&bucket, "a/b/c", content).await.unwrap();
        let (entry, _) = bucket.head(&"a/b/c".into()).await.unwrap();
        assert_eq!(entry.revision, put.revision);
        assert!(seen.insert(entry.revision.etag().unwrap().to_string()), "{content}");
    }
    let mode = |path: &str| std::fs::metadata(place.path().join(path)).unwrap().mode() & 0o7777;
    assert_eq!(mode("not/yet/a/b/c"), 0o400);
    assert_eq!([mode("not"), mode("not/yet"), mode("not/yet/a"), mode("not/yet/a/b")], [0o700; 4]);
    assert_eq!(std::fs::read_dir(place.path().join("not/yet/a/b")).unwrap().count(), 1);
}

#[tokio::test]
async fn what_lies_behind_a_link_is_neither_read_nor_written_nor_removed() {
    let (place, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    symlink(outside.path(), place.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), place.path().join("file")).unwrap();
    let bucket = Directory::new(place.path());
    for key in ["out/secret", "file"] {
        assert_eq!(text(&bucket, key).await.unwrap_err().kind, ErrorKind::NoSuchKey, "{key}");
        assert_eq!(bucket.head(&key.into()).await.unwrap_err().kind, ErrorKind::NoSuchKey, "{key}");
        bucket.delete(&key.into()).await.unwrap();
        assert_eq!(put(&bucket, key, "x").await.unwrap_err().kind, ErrorKind::Unsupported, "{key}");
    }
    assert_eq!(put(&bucket, "out/new/file", "x").await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(all(&bucket).await, Vec::<Key>::new());
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "s");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn an_object_and_a_directory_cannot_share_a_name_but_empty_directories_give_way() {
    let place = tempfile::tempdir().unwrap();
    let bucket = Directory::with(place.path(), Durability::None);
    put(&bucket, "a/b/c", "1").await.unwrap();
    assert_eq!(put(&bucket, "a/b", "2").await.unwrap_err().kind, ErrorKind::Unsupported);
    assert_eq!(put(&bucket, "a/b/c/d", "2").await.unwrap_err().kind, ErrorKind::Unsupported);
    bucket.delete(&"a/b/c".into()).await.unwrap();
    bucket.delete(&"a/b".into()).await.unwrap();
    put(&bucket, "a", "3").await.unwrap();
    assert_eq!(all(&bucket).await, ["a".into()]);
    assert_eq!(text(&bucket, "a").await.unwrap(), "3");
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_read_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let bucket = Directory::with(place.path(), Durability::None);
    let big = Bytes::from(vec![7; 5 * PIECE as usize + 1]);
    let put = bucket.put(&"big".into(), &[big.clone(), big], &PutOptions::default()).await.unwrap();
    let pinned = GetOptions { range: Some(1..10 * PIECE), revision: Some(put.revision) };
    let mut get = bucket.get(&"big".into(), &pinned).await.unwrap();
    assert_eq!(get.body.next().await.unwrap().unwrap().len() as u64, PIECE);
    assert_eq!(get.body.bytes().await.unwrap().len() as u64, 9 * PIECE - 1);
    let get = bucket.get(&"big".into(), &pinned).await.unwrap();
    let file = std::fs::File::open(place.path().join("big")).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(get.body.bytes().await.unwrap_err().kind, ErrorKind::PreconditionFailed);
    assert_eq!(bucket.get(&"big".into(), &pinned).await.unwrap_err().kind, ErrorKind::PreconditionFailed);
}

#[tokio::test]
async fn a_listing_goes_on_where_it_was_also_when_it_was_forgotten_and_the_root_replaced() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    let bucket = Directory::with(&root, Durability::None);
    bucket.create().await.unwrap();
    for number in 0..20 {
        put(&bucket, &format!("{}/{number:02}", number % 3), "x").await.unwrap();
    }
    let first = ListRequest { limit: Some(7), ..ListRequest::default() };
    let expected = all(&bucket).await;
    let mut runs: Vec<(ListRequest, Vec<Key>)> = vec![(first.clone(), Vec::new()); 2 * RESTING];
    for _ in 0..3 {
        for (request, keys) in &mut runs {
            let page = bucket.list(request).await.unwrap();
            keys.extend(page.entries.into_iter().map(|entry| entry.key));
            request.token = page.next;
        }
    }
    assert!(runs.iter().all(|(request, keys)| request.token.is_none() && *keys == expected));
    std::fs::remove_dir_all(&root).unwrap();
    assert_eq!(bucket.list(&first).await.unwrap_err().kind, ErrorKind::NoSuchBucket);
    assert_eq!(text(&bucket, "0/00").await.unwrap_err().kind, ErrorKind::NoSuchBucket);
    assert_eq!(bucket.probe().await.unwrap_err().kind, ErrorKind::NoSuchBucket);
    bucket.create().await.unwrap();
    put(&bucket, "again", "x").await.unwrap();
    assert_eq!(all(&bucket).await, ["again".into()]);
}

#[test]
fn errors_are_named_after_what_the_reader_can_do() {
    let bucket = Directory::new("/nowhere");
    let kind = |errno| bucket.inner.failed(Verb::Put, errno).kind;
    assert_eq!([Errno::NOSPC, Errno::DQUOT].map(kind), [ErrorKind::NoSpace; 2]);
    assert_eq!([Errno::ACCESS, Errno::PERM, Errno::ROFS].map(kind), [ErrorKind::Denied; 3]);
    assert_eq!([Errno::IO, Errno::STALE, Errno::NOTCONN].map(kind), [ErrorKind::Unreachable; 3]);
    let text = bucket.inner.failed(Verb::Put, Errno::NOSPC).key(&"a".into()).to_string();
    assert_eq!(text, "writing a in /nowhere: no space left");
}
