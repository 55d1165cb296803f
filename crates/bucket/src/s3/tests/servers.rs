//! What only servers of others can judge and the conformance suite does not reach.

use super::*;
use crate::{Attributes, Retention};

/// Copies of more than 5 GiB take this way; a server asks for parts of 5 MiB, so that 12 MiB show it all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_parts_is_an_object_like_the_first() {
    for server in [cistern_testkit::minio(), cistern_testkit::moto()] {
        let mut config = S3Config::new("copies-in-parts");
        config.endpoint = Some(server.endpoint().parse().unwrap());
        config.credentials = Credentials::fixed(server.access_key(), server.secret_key());
        let bucket = S3::connect(config).unwrap();
        bucket.create().await.unwrap();
        let content: Bytes = (0..12 << 20).map(|i: u32| (i / 7) as u8).collect::<Vec<u8>>().into();
        let attributes = Attributes {
            content_type: Some("text/x".into()),
            expires: Some("Wed, 21 Oct 2026 07:28:00 GMT".into()),
            meta: [("owner".into(), "Zoë".into())].into(),
            tags: Some([("tier".into(), "a b".into())].into()),
            ..Attributes::default()
        };
        let options = PutOptions { attributes, ..PutOptions::default() };
        let (from, to) = (Key::from("from/ä +%"), Key::from("to"));
        bucket.put(&from, std::slice::from_ref(&content), &options).await.unwrap();

        let (entry, found) = bucket.head(&from).await.unwrap();
        let put = write::copy_in_parts(&bucket.inner, &entry, &to, found, 5 << 20).await.unwrap();
        assert!(put.revision.etag().unwrap().ends_with("-3"), "{put:?}");
        let get = bucket.get(&to, &GetOptions { range: None, revision: Some(put.revision) }).await.unwrap();
        assert_eq!(
            (&get.attributes.meta, &get.attributes.expires),
            (&options.attributes.meta, &options.attributes.expires)
        );
        assert_eq!(get.attributes.content_type, options.attributes.content_type);
        assert!(get.body.bytes().await.unwrap() == content);
        assert_eq!(Some(bucket.tags(&to).await.unwrap()), options.attributes.tags);

        // The source was replaced since it was looked at.
        let (entry, found) = bucket.head(&from).await.unwrap();
        bucket.put(&from, &[Bytes::from(vec![0; 12 << 20])], &options).await.unwrap();
        let late = write::copy_in_parts(&bucket.inner, &entry, &to, found, 5 << 20).await;
        assert_eq!(late.unwrap_err().kind, ErrorKind::PreconditionFailed, "{}", server.endpoint());
    }
}

/// MinIO folds every white space of Unicode when it checks a signature.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_with_any_white_space_are_signed_as_servers_do() {
    for server in [cistern_testkit::minio(), cistern_testkit::moto()] {
        let mut config = S3Config::new("white-space");
        config.endpoint = Some(server.endpoint().parse().unwrap());
        config.credentials = Credentials::fixed(server.access_key(), server.secret_key());
        let bucket = S3::connect(config).unwrap();
        bucket.create().await.unwrap();
        let attributes = Attributes {
            content_type: Some("text/x".into()),
            content_disposition: Some("attachment; filename=\"10.30\u{202f}PM\u{a0}.png\"".into()),
            meta: [
                ("tab", "a\tb \t c"),
                ("narrow", "10.30\u{202f}PM"),
                ("wide", "\u{3000}a\u{2003}b\u{a0}"),
                ("plain", "a   b"),
                ("letters", "Zoë"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            ..Attributes::default()
        };
        let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
        bucket.put(&"k".into(), &["x".into()], &options).await.unwrap();
        let (_, found) = bucket.head(&"k".into()).await.unwrap();
        assert_eq!(found.meta, attributes.meta, "{}", server.endpoint());
        assert_eq!(found.content_disposition, attributes.content_disposition, "{}", server.endpoint());
    }
}

/// Locks come with an object and go with it, to a bucket that was made for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_read_and_written_and_refused_where_there_are_none() {
    let server = cistern_testkit::minio();
    let connect = |name: &str| {
        let mut config = S3Config::new(name);
        config.endpoint = Some(server.endpoint().parse().unwrap());
        config.credentials = Credentials::fixed(server.access_key(), server.secret_key());
        S3::connect(config).unwrap()
    };
    let (locking, plain) = (connect("with-locks"), connect("without-locks"));
    plain.create().await.unwrap();
    let mut ask = Ask::new(Verb::Bucket, Method::PUT, None);
    ask.headers.insert("x-amz-bucket-object-lock-enabled", HeaderValue::from_static("true"));
    locking.inner.exchange(&ask).await.unwrap();

    let until = Timestamp::from_second(Timestamp::now().as_second() + 3_600).unwrap();
    let attributes = Attributes {
        retention: Some(Retention { mode: "GOVERNANCE".into(), until }),
        legal_hold: true,
        ..Attributes::default()
    };
    let options = PutOptions { attributes: attributes.clone(), ..PutOptions::default() };
    locking.put(&"k".into(), &["x".into()], &options).await.unwrap();
    let upload = locking.begin_upload(&"parts".into(), &options).await.unwrap();
    let part = locking.upload_part(&upload, 1, &["x".into()]).await.unwrap();
    locking.complete_upload(&upload, &[part], &options).await.unwrap();
    locking.copy(&"k".into(), &"copy".into()).await.unwrap();
    for key in ["k", "parts", "copy"] {
        let (_, head) = locking.head(&key.into()).await.unwrap();
        let get = locking.get(&key.into(), &GetOptions::default()).await.unwrap().attributes;
        for found in [head, get] {
            assert_eq!(found.retention, attributes.retention, "{key}");
            assert!(found.legal_hold, "{key}");
        }
    }
    let refused = plain.put(&"k".into(), &["x".into()], &options).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unsupported, "{refused:?}");
    let refused = plain.begin_upload(&"k".into(), &options).await.map(drop);
    assert_eq!(refused.map_err(|e| e.kind), Err(ErrorKind::Unsupported));
}
