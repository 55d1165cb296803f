//! Regions, credentials and certificates: how a bucket is reached at all.

use std::io::Write as _;
use std::sync::atomic::AtomicUsize;

use tokio::net::TcpListener;

use super::*;
use crate::{ContainerToken, RetryPolicy};

fn on_aws(credentials: Credentials) -> S3Config {
    let mut config = S3Config::new("b");
    config.credentials = credentials;
    config
}

#[tokio::test(start_paused = true)]
async fn the_region_is_learnt_from_the_store() {
    type First = fn() -> Reply;
    let table: [First; 3] = [
        || {
            answer(
                301,
                &[("x-amz-bucket-region", "eu-west-1"), ("location", "http://evil.org/")],
                "<Error><Code>PermanentRedirect</Code></Error>",
            )
        },
        || {
            answer(
                400,
                &[],
                "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>",
            )
        },
        || answer(400, &[("x-amz-bucket-region", "eu-west-1")], ""),
    ];
    for first in table {
        let world =
            World::with(on_aws(Credentials::fixed("id", "s")), move |_, seen| match seen.header("host") {
                Some("b.s3.us-east-1.amazonaws.com") => first(),
                Some("b.s3.eu-west-1.amazonaws.com") => {
                    assert!(seen.header("authorization").unwrap().contains("/eu-west-1/s3/aws4_request"));
                    answer(204, &[], "")
                }
                other => panic!("{other:?}"),
            });
        for _ in 0..2 {
            world.bucket.delete(&"k".into()).await.unwrap();
        }
        assert_eq!(world.bucket.region(), "eu-west-1");
        assert_eq!((world.lines(), world.counts().retries), (vec!["DELETE /k".to_owned(); 3], 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_without_end_or_to_nowhere_is_an_error() {
    let flip = AtomicUsize::new(0);
    let world = World::with(on_aws(Credentials::Anonymous), move |_, _| {
        let region = ["eu-west-1", "eu-west-2"][flip.fetch_add(1, Relaxed) % 2];
        answer(301, &[("x-amz-bucket-region", region)], "")
    });
    assert_eq!(world.bucket.probe().await.unwrap_err().kind, ErrorKind::Invalid);
    assert_eq!(world.seen().len(), 4);
    for lie in ["evil.org/x", "us-east-1", ""] {
        let world = World::with(on_aws(Credentials::Anonymous), move |_, _| {
            answer(301, &[("x-amz-bucket-region", lie), ("location", "http://evil.org/")], "")
        });
        assert_eq!(world.bucket.probe().await.unwrap_err().kind, ErrorKind::Invalid);
        assert_eq!(world.seen().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_signs_for_anonymous() {
    let world = World::with(on_aws(Credentials::Anonymous), |_, _| answer(204, &[], ""));
    world.bucket.delete(&"k".into()).await.unwrap();
    let seen = &world.seen()[0];
    assert_eq!((seen.header("authorization"), seen.header("x-amz-date")), (None, None));
}

const KEY_JSON: &str = r#"{"Code":"Success","AccessKeyId":"AKIA1","SecretAccessKey":"hunter2","Token":"tok","Expiration":"EXP"}"#;

fn key_json(expires_in: i64) -> String {
    let expires = Timestamp::now() + jiff::SignedDuration::from_secs(expires_in);
    KEY_JSON.replace("EXP", &expires.to_string())
}

#[tokio::test(start_paused = true)]
async fn keys_come_from_the_metadata_of_an_instance() {
    let world = World::with(on_aws(Credentials::InstanceMetadata { endpoint: None }), |_, seen| {
        if seen.header("host") != Some("169.254.169.254") {
            assert_eq!(seen.header("x-amz-security-token"), Some("tok"));
            assert!(seen.header("authorization").unwrap().contains("Credential=AKIA1/"));
            return answer(204, &[], "");
        }
        match &*seen.line {
            "PUT /latest/api/token" => {
                assert_eq!(seen.header("x-aws-ec2-metadata-token-ttl-seconds"), Some("21600"));
                answer(200, &[], "imds")
            }
            line => {
                assert_eq!(seen.header("x-aws-ec2-metadata-token"), Some("imds"));
                match line {
                    "GET /latest/meta-data/iam/security-credentials/" => answer(200, &[], "a role\n"),
                    "GET /latest/meta-data/iam/security-credentials/a%20role" => {
                        answer(200, &[], key_json(3_600))
                    }
                    other => panic!("{other}"),
                }
            }
        }
    });
    for _ in 0..3 {
        world.bucket.delete(&"k".into()).await.unwrap();
    }
    assert_eq!(world.seen().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_metadata_says_so_at_once() {
    let world =
        World::with(
            on_aws(Credentials::InstanceMetadata { endpoint: None }),
            |_, _| Reply::Stall(Vec::new()),
        );
    let started = tokio::time::Instant::now();
    let error = world.bucket.probe().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(error.to_string().contains("no credentials"), "{error}");
    assert!(started.elapsed().as_secs() <= 2);
}

#[tokio::test(start_paused = true)]
async fn keys_that_expire_are_renewed_in_time_and_when_the_store_says_so() {
    let served = Arc::new(AtomicUsize::new(0));
    let counter = served.clone();
    let credentials = Credentials::Container {
        uri: "http://169.254.170.23/v1/credentials".parse().unwrap(),
        authorization: Some(ContainerToken::Value("pod-token".into())),
    };
    let world = World::with(on_aws(credentials), move |n, seen| {
        if seen.header("host") == Some("169.254.170.23") {
            assert_eq!(seen.header("authorization"), Some("pod-token"));
            // The first key is about to expire, so the next request wants another one.
            let nth = counter.fetch_add(1, Relaxed);
            return answer(200, &[], key_json(if nth == 0 { 60 } else { 3_600 }));
        }
        match n {
            4 => error(400, "ExpiredToken"),
            _ => answer(204, &[], ""),
        }
    });
    let mut fetched = Vec::new();
    for _ in 0..4 {
        world.bucket.delete(&"k".into()).await.unwrap();
        fetched.push(served.load(Relaxed));
    }
    assert_eq!(fetched, [1, 2, 3, 3], "{:?}", world.lines());
}

#[tokio::test(start_paused = true)]
async fn a_token_file_is_exchanged_for_a_key_and_read_again_each_time() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"token+1\n").unwrap();
    let credentials = Credentials::WebIdentity {
        role_arn: "arn:aws:iam::1:role/r".into(),
        token_file: file.path().into(),
        session_name: "cistern".into(),
        sts_endpoint: None,
    };
    let mut config = on_aws(credentials);
    config.region = Some("eu-west-1".into());
    let world = World::with(config, |_, seen| {
        if seen.header("host") != Some("sts.eu-west-1.amazonaws.com") {
            return answer(204, &[], "");
        }
        let expires = Timestamp::now() + jiff::SignedDuration::from_secs(60);
        answer(
            200,
            &[],
            format!(
                "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleWithWebIdentityResult>\
             <Credentials><SessionToken>t</SessionToken><SecretAccessKey>hunter2</SecretAccessKey><Expiration>{expires}</Expiration>\
             <AccessKeyId>AKIA2</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            ),
        )
    });
    world.bucket.delete(&"k".into()).await.unwrap();
    std::fs::write(file.path(), "token+2").unwrap();
    world.bucket.delete(&"k".into()).await.unwrap();
    let seen = world.seen();
    let body = |n: usize| String::from_utf8(seen[n].body.clone()).unwrap();
    assert_eq!(
        body(0),
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fr&RoleSessionName=cistern&WebIdentityToken=token%2B1"
    );
    assert!(body(2).ends_with("WebIdentityToken=token%2B2"));
    assert!(seen[1].header("authorization").unwrap().contains("Credential=AKIA2/"));
}

#[tokio::test(start_paused = true)]
async fn a_chain_takes_the_first_that_is_there_and_else_tells_where_it_looked() {
    let missing = Credentials::WebIdentity {
        role_arn: "r".into(),
        token_file: "/nonexistent/token".into(),
        session_name: "s".into(),
        sts_endpoint: None,
    };
    let chain = Credentials::Chain(vec![missing.clone(), Credentials::fixed("AKIA3", "s")]);
    let world = World::with(on_aws(chain), |_, _| answer(204, &[], ""));
    world.bucket.delete(&"k".into()).await.unwrap();
    assert!(world.seen()[0].header("authorization").unwrap().contains("AKIA3"));

    for (sources, parts) in [
        (vec![], &["no credentials were given"][..]),
        (
            vec![missing, Credentials::InstanceMetadata { endpoint: None }],
            &["no credentials were given", "/nonexistent/token", "instance's metadata"],
        ),
    ] {
        let world = World::with(on_aws(Credentials::Chain(sources)), |_, _| answer(403, &[], ""));
        let error = world.bucket.probe().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_does_not_make_the_next_one_speak() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "token").unwrap();
    let ours = Credentials::WebIdentity {
        role_arn: "r".into(),
        token_file: file.path().into(),
        session_name: "s".into(),
        sts_endpoint: None,
    };
    let sts = "sts.us-east-1.amazonaws.com";
    let chain = Credentials::Chain(vec![ours.clone(), Credentials::fixed("AKIANODE", "s")]);
    // From the beginning.
    for (status, kind) in [(500, ErrorKind::Unreachable), (403, ErrorKind::Denied)] {
        let world = World::with(on_aws(chain.clone()), move |_, seen| {
            assert_eq!(seen.header("host"), Some(sts), "somebody else asks");
            answer(status, &[], "<ErrorResponse/>")
        });
        assert_eq!(world.bucket.delete(&"k".into()).await.unwrap_err().kind, kind);
    }
    // And when the key is to be renewed; even if the token file went away.
    for gone in [false, true] {
        let world = World::with(on_aws(chain.clone()), move |n, seen| match seen.header("host") {
            Some(host) if host == sts && n == 0 => answer(
                200,
                &[],
                "<R><Credentials><AccessKeyId>AKIAPOD</AccessKeyId><SecretAccessKey>s</SecretAccessKey>\
                 </Credentials></R>",
            ),
            Some(host) if host == sts => answer(500, &[], "<ErrorResponse/>"),
            _ if n == 1 => answer(204, &[], ""),
            _ => {
                assert!(seen.header("authorization").unwrap().contains("AKIAPOD"), "somebody else asks");
                error(400, "ExpiredToken")
            }
        });
        world.bucket.delete(&"k".into()).await.unwrap();
        if gone {
            std::fs::remove_file(file.path()).unwrap();
        }
        let kind = world.bucket.delete(&"k".into()).await.unwrap_err().kind;
        assert_eq!(kind, if gone { ErrorKind::Denied } else { ErrorKind::Unreachable });
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_service_that_is_busy_is_asked_again_and_slows_nothing_down() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "token").unwrap();
    let ours = Credentials::WebIdentity {
        role_arn: "r".into(),
        token_file: file.path().into(),
        session_name: "s".into(),
        sts_endpoint: None,
    };
    let mut config = on_aws(ours);
    // The only turn belongs to the request that needs the key.
    config.limits.max_concurrency = 1;
    let world = World::with(config, |n, seen| match (n, seen.header("host")) {
        (0, _) => answer(
            400,
            &[],
            "<ErrorResponse><Error><Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>",
        ),
        (1, _) => answer(503, &[], ""),
        (2, _) => answer(
            200,
            &[],
            "<R><Credentials><AccessKeyId>A</AccessKeyId><SecretAccessKey>s</SecretAccessKey></Credentials></R>",
        ),
        _ => answer(204, &[], ""),
    });
    world.bucket.delete(&"k".into()).await.unwrap();
    assert_eq!((world.seen().len(), world.counts().throttled), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_fixed_key_that_expired_is_not_tried_again() {
    for credentials in [Credentials::fixed("a", "s"), Credentials::Chain(vec![Credentials::fixed("a", "s")])]
    {
        let world = World::with(on_aws(credentials), |_, _| error(400, "ExpiredToken"));
        assert_eq!(world.bucket.delete(&"k".into()).await.unwrap_err().kind, ErrorKind::Denied);
        assert_eq!(world.seen().len(), 1);
    }
}

#[tokio::test]
async fn only_the_key_that_was_used_is_forgotten() {
    let uri = "http://127.0.0.1/key".parse().unwrap();
    let world = World::with(on_aws(Credentials::Container { uri, authorization: None }), |_, _| {
        answer(200, &[], key_json(3_600))
    });
    let inner = &world.bucket.inner;
    let signer = || inner.provider.signer(&inner.transport, "r", Timestamp::now());
    let old = signer().await.unwrap().unwrap();
    assert!(inner.provider.forget(&old));
    let new = signer().await.unwrap().unwrap();
    // Another request hears only now that the old key has expired.
    assert!(inner.provider.forget(&old));
    assert!(Arc::ptr_eq(&new, &signer().await.unwrap().unwrap()));
    assert_eq!(world.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_key_are_errors_that_quote_nothing() {
    let uri = "http://127.0.0.1/k".parse().unwrap();
    let credentials = Credentials::Container { uri, authorization: None };
    for (status, body, kind) in [
        (200, "{\"SecretAccessKey\":\"hunter2\"}", ErrorKind::BadAnswer),
        (200, "{\"AccessKeyId\":\"\",\"SecretAccessKey\":\"hunter2\"}", ErrorKind::BadAnswer),
        (200, "hunter2", ErrorKind::BadAnswer),
        (404, "hunter2", ErrorKind::Denied),
        (500, "hunter2", ErrorKind::Unreachable),
    ] {
        let world = World::with(on_aws(credentials.clone()), move |_, _| answer(status, &[], body));
        let error = world.bucket.probe().await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    let uri = "http://example.org/k".parse().unwrap();
    let far = World::with(on_aws(Credentials::Container { uri, authorization: None }), |_, _| unreachable!());
    assert_eq!(far.bucket.probe().await.unwrap_err().kind, ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn errors_hold_no_secret() {
    let world = World::new(|_, _| {
        answer(
            403,
            &[],
            "<Error><Code>SignatureDoesNotMatch</Code><Message>no</Message><StringToSign>AWS4-HMAC</StringToSign></Error>",
        )
    });
    let error = world.bucket.head(&"k".into()).await.unwrap_err();
    let error = format!("{error:?} {error}");
    assert!(!error.contains("hunter2") && !error.contains("AWS4"), "{error}");
    let config = on_aws(Credentials::fixed("id", "hunter2"));
    assert!(!format!("{config:?} {:?}", S3::connect(config.clone()).unwrap()).contains("hunter2"));
}

/// A certificate authority and a certificate for `localhost` that it signed, valid until 2126.
const CA: &[u8] = include_bytes!("tls/ca.pem");
const CERTIFICATE: &[u8] = include_bytes!("tls/server.pem");
const PRIVATE_KEY: &[u8] = include_bytes!("tls/server.key");

async fn tls_server() -> u16 {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(CERTIFICATE).unwrap()],
            PrivateKeyDer::from_pem_slice(PRIVATE_KEY).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut buffer = vec![0; 4_096];
                while stream.read(&mut buffer).await.ok()? > 0 {
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.ok()?;
                }
                Some(())
            });
        }
    });
    port
}

#[tokio::test]
async fn certificates_are_checked_unless_the_user_says_otherwise() {
    let port = tls_server().await;
    let delete = |host: &str, ca: Option<&[u8]>, insecure: bool| {
        let mut config = S3Config::new("b");
        config.endpoint = Some(format!("https://{host}:{port}").parse().unwrap());
        config.ca_pem = ca.map(Into::into);
        config.insecure_tls = insecure;
        let bucket = S3::connect(config).unwrap();
        async move { bucket.delete(&"k".into()).await.map_err(|e| (e.kind, e.to_string())) }
    };
    delete("localhost", Some(CA), false).await.unwrap();
    delete("localhost", None, true).await.unwrap();
    delete("127.0.0.1", None, true).await.unwrap();
    let (kind, text) = delete("localhost", None, false).await.unwrap_err();
    assert!(kind == ErrorKind::Invalid && text.contains("certificate"), "{text}");
    let (kind, text) = delete("127.0.0.1", Some(CA), false).await.unwrap_err();
    assert!(kind == ErrorKind::Invalid && text.contains("certificate"), "{text}");

    for pem in [&b"no certificate"[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let mut config = S3Config::new("b");
        config.ca_pem = Some(pem.into());
        assert_eq!(S3::connect(config).unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    for scheme in ["http", "https"] {
        let mut config = S3Config::new("b");
        config.endpoint = Some(format!("{scheme}://127.0.0.1:{port}").parse().unwrap());
        config.retry = RetryPolicy { max_tries: 2, ..RetryPolicy::default() };
        let bucket = S3::connect(config).unwrap();
        let error = bucket.probe().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unreachable);
        assert!(error.to_string().contains("refused"), "{error}");
        assert_eq!(bucket.ledger().snapshot().retries, 1);
    }
}
