//! Everything that is chosen about an S3 bucket before the first request; nothing is read from elsewhere.

use url::Url;

use crate::credentials::Credentials;
use crate::transport::{Limits, RetryPolicy, Timeouts};

/// Where the bucket's name goes in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// Into the path for an endpoint that the user gave, into the host name on AWS (but for names with dots,
    /// which no certificate covers).
    #[default]
    Auto,
    /// `https://host/bucket/key`
    Path,
    /// `https://bucket.host/key`
    VirtualHost,
}

/// How to reach a bucket that speaks S3.
///
/// ```
/// use cistern_bucket::{Credentials, S3, S3Config};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = S3Config::new("orders");
/// config.endpoint = Some("http://127.0.0.1:9000".parse()?);
/// config.credentials = Credentials::fixed("minioadmin", "minioadmin");
/// let bucket = S3::connect(config)?;
/// # drop(bucket);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct S3Config {
    /// Name of the bucket.
    pub bucket: String,
    /// The server (`https://host:port`, optionally with a path before the bucket); `None` is AWS.
    pub endpoint: Option<Url>,
    /// Region to sign for. Without it requests begin with `us-east-1` and follow the store's own word.
    pub region: Option<String>,
    /// Where the bucket's name goes.
    pub style: Style,
    /// Certificates (PEM, one or more) of authorities that are trusted besides the public ones.
    pub ca_pem: Option<Vec<u8>>,
    /// Accepts any certificate: no protection against a server that pretends.
    pub insecure_tls: bool,
    /// Who asks.
    pub credentials: Credentials,
    /// How often and how long a request is tried again.
    pub retry: RetryPolicy,
    /// How much may be asked of the store.
    pub limits: Limits,
    /// How long silence is tolerated.
    pub timeouts: Timeouts,
}

impl S3Config {
    /// A bucket on AWS, without credentials, with defaults for everything else.
    pub fn new(bucket: impl Into<String>) -> Self {
        S3Config {
            bucket: bucket.into(),
            endpoint: None,
            region: None,
            style: Style::Auto,
            ca_pem: None,
            insecure_tls: false,
            credentials: Credentials::Anonymous,
            retry: RetryPolicy::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
        }
    }
}
