//! One suite over every backend: memory, a directory, a prefix, and S3 on three servers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "conformance/cases.rs"]
mod cases;
#[path = "conformance/places.rs"]
mod places;

/// The suite on one backend. Every test has an empty bucket of its own.
macro_rules! conforms {
    ($($backend:ident)*) => {$(
        mod $backend {
            use crate::{cases, places};

            conforms!(@case $backend
                contents absence ranges conditions listing many multipart attributes_and_tags copies refusals
                concurrency giving_up counting retention);

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn existence() {
                cases::existence(places::$backend("existence")).await;
            }
        }
    )*};
    (@case $backend:ident $($case:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let name = stringify!($case).replace('_', "-");
            cases::$case(places::$backend(&name).ready().await).await;
        }
    )*};
}

conforms!(memory directory prefixed embedded minio moto);

/// Buckets that were created for it.
mod locked {
    use crate::{cases, places};

    #[tokio::test]
    async fn memory() {
        cases::locks(places::locked_memory("locks")).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn minio() {
        cases::locks(places::locked_minio("locks")).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn moto() {
        cases::locks_that_show_in_heads(places::locked_moto("locks")).await;
    }
}

#[tokio::test]
async fn a_wrong_secret_or_an_unknown_key_is_denied() {
    use cistern_bucket::{Bucket, ErrorKind, ListRequest};
    let (embedded, minio) = (cistern_testkit::Server::start().unwrap(), cistern_testkit::minio());
    embedded.bucket("orders");
    for (endpoint, access_key, secret_key) in [
        (embedded.endpoint(), cistern_testkit::Server::ACCESS_KEY, "wrong"),
        (embedded.endpoint(), "nobody", embedded.secret_key()),
        (minio.endpoint(), minio.access_key(), "wrong-secret"),
        (minio.endpoint(), "nobody", minio.secret_key()),
    ] {
        let bucket = places::s3(endpoint, "orders", access_key, secret_key);
        let error = bucket.list(&ListRequest::default()).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied, "{error:?}");
        assert!(!format!("{error:?} {bucket:?}").contains(secret_key));
    }
}
