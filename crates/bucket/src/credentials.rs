//! Who asks: the sources of access keys, each given as a value, and keys that expire renewed in time.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use url::Url;

use crate::s3::answer;
use crate::s3::encode::percent;
use crate::s3::sign::Signer;
use crate::s3::xml;
use crate::transport::{Purpose, Transport};
use crate::{Error, ErrorKind, Result, Verb};

/// A key is renewed so long before it expires.
const MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// No answer with credentials, and no token in a file, is larger.
const MAX_ANSWER: usize = 64 * 1024;
/// The metadata service of an instance answers at once or not at all.
const METADATA_WAIT: Duration = Duration::from_secs(1);

const PURPOSE: Purpose<'static> = Purpose { verb: Verb::Bucket, key: None };

/// Where the access key of an S3 bucket comes from. Nothing is looked up in the environment: the caller says
/// it all.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Credentials {
    /// Requests are not signed.
    Anonymous,
    /// A given key.
    Static {
        /// The public half.
        access_key_id: String,
        /// The secret half.
        secret_access_key: SecretString,
        /// The third half of temporary keys.
        session_token: Option<SecretString>,
    },
    /// A token in a file is exchanged for a key (EKS: IAM roles for service accounts). The file is read again
    /// each time, since it is replaced before the token expires.
    WebIdentity {
        /// The role to take.
        role_arn: String,
        /// The file that holds the token.
        token_file: PathBuf,
        /// Names the session in the provider's logs.
        session_name: String,
        /// The token service; `None` is that of AWS in the bucket's region.
        sts_endpoint: Option<Url>,
    },
    /// A service next to the container hands out keys (EKS Pod Identity, ECS).
    Container {
        /// Its full address. Plain http is accepted for this machine and the link-local addresses of EKS and ECS.
        uri: Url,
        /// What the service wants to see.
        authorization: Option<ContainerToken>,
    },
    /// The metadata service of an EC2 instance, version 2.
    InstanceMetadata {
        /// Its address; `None` is `http://169.254.169.254`.
        endpoint: Option<Url>,
    },
    /// The first of these that is there, and from then on only that one. A source that is there and fails (the token
    /// service is down, or refuses) ends the search: the next one would be somebody else. Not there are only a token
    /// file that does not exist, and a metadata service that does not answer or knows no role.
    Chain(Vec<Credentials>),
}

/// What a container's credential service wants to see.
#[derive(Clone, Debug)]
pub enum ContainerToken {
    /// The value itself.
    Value(SecretString),
    /// A file that holds it, read each time.
    File(PathBuf),
}

impl Credentials {
    /// A key that does not expire.
    pub fn fixed(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        Credentials::Static {
            access_key_id: access_key_id.into(),
            secret_access_key: SecretString::from(secret_access_key.into()),
            session_token: None,
        }
    }
}

/// The credentials of one bucket handle with the key that is valid now.
#[derive(Debug)]
pub(crate) struct Provider {
    source: Credentials,
    /// The member of the chain that yielded the first key.
    chosen: OnceLock<Credentials>,
    current: RwLock<Current>,
    renewing: Mutex<()>,
}

#[derive(Clone, Debug)]
enum Current {
    Missing,
    /// `None` asks anonymously.
    Held(Option<Arc<Signer>>),
}

impl Provider {
    /// Keys from `source`, got when they are first needed.
    pub(crate) fn new(source: Credentials) -> Self {
        Provider {
            source,
            chosen: OnceLock::new(),
            current: RwLock::new(Current::Missing),
            renewing: Mutex::default(),
        }
    }

    /// Whether requests are not signed.
    pub(crate) fn is_anonymous(&self) -> bool {
        matches!(self.source, Credentials::Anonymous)
    }

    /// A signer whose key is valid now; `None` to ask anonymously.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] if there is no key to be had, or why its source cannot be reached.
    pub(crate) async fn signer(
        &self,
        transport: &Transport,
        region: &str,
        now: Timestamp,
    ) -> Result<Option<Arc<Signer>>> {
        let held = match self.read() {
            Current::Held(signer) if fresh(&signer, now, MARGIN) => return Ok(signer),
            held => held,
        };
        // One renews; the others go on with the old key while it is valid.
        let _renewing = match (self.renewing.try_lock(), held) {
            (Ok(guard), _) => guard,
            (Err(_), Current::Held(signer)) if fresh(&signer, now, SignedDuration::from_secs(30)) => {
                return Ok(signer);
            }
            (Err(_), _) => self.renewing.lock().await,
        };
        let held = self.read();
        if let Current::Held(signer) = &held
            && fresh(signer, now, MARGIN)
        {
            return Ok(signer.clone());
        }
        match (load(self.chosen.get().unwrap_or(&self.source), transport, region).await, held) {
            (Ok((signer, from)), _) => {
                let _ = self.chosen.set(from.clone());
                let signer = signer.map(Arc::new);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current::Held(signer.clone());
                Ok(signer)
            }
            (Err(Failed { error, .. }), Current::Held(signer))
                if fresh(&signer, now, SignedDuration::ZERO) =>
            {
                tracing::warn!(%error, "credentials could not be renewed yet");
                Ok(signer)
            }
            (Err(Failed { error, absent: true }), _) if !matches!(self.source, Credentials::Chain(_)) => {
                let detail = format!("no credentials: {}", error.detail.as_deref().unwrap_or_default());
                Err(error.detail(detail))
            }
            (Err(Failed { error, .. }), _) => Err(error),
        }
    }

    /// Forgets the key `used`, which the store calls expired, if nobody has got another one meanwhile. False if
    /// another key would not be had by asking again.
    pub(crate) fn forget(&self, used: &Arc<Signer>) -> bool {
        let source = self.chosen.get().unwrap_or(&self.source);
        if matches!(source, Credentials::Anonymous | Credentials::Static { .. }) {
            return false;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*current, Current::Held(Some(held)) if Arc::ptr_eq(held, used)) {
            *current = Current::Missing;
        }
        true
    }

    fn read(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn fresh(signer: &Option<Arc<Signer>>, now: Timestamp, margin: SignedDuration) -> bool {
    match signer.as_ref().and_then(|s| s.expires) {
        None => true,
        Some(expires) => expires.duration_since(now) > margin,
    }
}

/// Why a source yields no key.
struct Failed {
    error: Error,
    /// There is no such source here, as opposed to one that fails.
    absent: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed { error, absent: false }
    }
}

/// A key, and the member of a chain that it came from.
type Loaded<'a> = (Option<Signer>, &'a Credentials);

async fn load<'a>(
    source: &'a Credentials,
    transport: &Transport,
    region: &str,
) -> Result<Loaded<'a>, Failed> {
    let signer = match source {
        Credentials::Anonymous => None,
        Credentials::Static { access_key_id, secret_access_key, session_token } => {
            let signer = Signer::new(access_key_id, secret_access_key.clone(), session_token.as_ref(), None);
            let unusable = || {
                transport
                    .error(ErrorKind::Invalid, PURPOSE)
                    .detail("the access key holds characters that no header can")
            };
            Some(signer.ok_or_else(unusable)?)
        }
        Credentials::WebIdentity { role_arn, token_file, session_name, sts_endpoint } => {
            let token = read_token(transport, token_file).await?;
            let endpoint = sts_endpoint.as_ref();
            Some(web_identity(transport, role_arn, &token, session_name, endpoint, region).await?)
        }
        Credentials::Container { uri, authorization } => {
            Some(container(transport, uri, authorization.as_ref()).await?)
        }
        Credentials::InstanceMetadata { endpoint } => Some(instance(transport, endpoint.as_ref()).await?),
        Credentials::Chain(sources) => {
            let mut looked = Vec::new();
            for source in sources {
                match Box::pin(load(source, transport, region)).await {
                    Err(Failed { error, absent: true }) => {
                        tracing::debug!(%error, "no such source of credentials here");
                        looked.push(error.detail.unwrap_or_default());
                    }
                    found => return found,
                }
            }
            let mut detail = String::from("no credentials were given");
            if !looked.is_empty() {
                detail = format!("{detail}, and none were found: {}", looked.join("; "));
            }
            let error = transport.error(ErrorKind::Denied, PURPOSE).detail(detail);
            return Err(Failed { error, absent: true });
        }
    };
    Ok((signer, source))
}

async fn read_token(transport: &Transport, path: &PathBuf) -> Result<SecretString, Failed> {
    use tokio::io::AsyncReadExt;
    let denied = |what: String| transport.error(ErrorKind::Denied, PURPOSE).detail(what);
    let shown = path.display();
    let mut text = String::new();
    let read =
        async { tokio::fs::File::open(path).await?.take(MAX_ANSWER as u64).read_to_string(&mut text).await };
    read.await.map_err(|e| Failed {
        absent: e.kind() == std::io::ErrorKind::NotFound,
        error: denied(format!("the token file {shown} cannot be read: {e}")),
    })?;
    if text.trim().is_empty() {
        return Err(denied(format!("the token file {shown} is empty")).into());
    }
    Ok(SecretString::from(text.trim().to_owned()))
}

/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
async fn web_identity(
    transport: &Transport,
    role_arn: &str,
    token: &SecretString,
    session_name: &str,
    endpoint: Option<&Url>,
    region: &str,
) -> Result<Signer> {
    let aws;
    let endpoint = match endpoint {
        Some(url) => url.as_str(),
        None => {
            let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            aws = format!("https://sts.{region}.{suffix}/");
            &aws
        }
    };
    let mut form = String::from("Action=AssumeRoleWithWebIdentity&Version=2011-06-15");
    let fields = [
        ("RoleArn", role_arn),
        ("RoleSessionName", session_name),
        ("WebIdentityToken", token.expose_secret()),
    ];
    for (name, value) in fields {
        form.push('&');
        form.push_str(name);
        form.push('=');
        percent(value.as_bytes(), false, &mut form);
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let (status, answer) =
        ask(transport, Method::POST, endpoint, headers, Bytes::from(form), transport.timeouts.idle).await?;
    if !status.is_success() {
        let code = xml::find(&answer, "Code").ok().flatten().unwrap_or_else(|| status.to_string());
        // What passes comes with any status: STS throttles with a 400.
        let kind = match answer::kind(status, &code, "") {
            ErrorKind::Throttled => ErrorKind::Throttled,
            ErrorKind::Unreachable => ErrorKind::Unreachable,
            _ if code == "IDPCommunicationError" => ErrorKind::Unreachable,
            _ => ErrorKind::Denied,
        };
        let detail = format!("the token service refuses role {role_arn}: {code}");
        return Err(transport.error(kind, PURPOSE).detail(detail));
    }
    match sts_key(&answer) {
        Some(signer) => Ok(signer),
        None => Err(transport
            .error(ErrorKind::BadAnswer, PURPOSE)
            .detail("the token service's answer holds no credentials")),
    }
}

/// The key in the answer of the token service.
fn sts_key(answer: &[u8]) -> Option<Signer> {
    let mut key = Key::default();
    let parsed = xml::walk(answer, |node| {
        if let xml::Node::Leaf { path: [.., "Credentials", name], text } = node {
            match *name {
                "AccessKeyId" => key.id = text.into_owned(),
                "SecretAccessKey" => key.secret = text.into_owned().into(),
                "SessionToken" => key.token = Some(text.into_owned().into()),
                "Expiration" => key.expires = text.parse().ok(),
                _ => {}
            }
        }
        Ok(())
    });
    parsed.ok()?;
    key.signer()
}

/// Reads both kinds of answers with a key, for fuzzing.
#[doc(hidden)]
pub(crate) fn read_key(answer: &[u8]) -> [bool; 2] {
    [sts_key(answer).is_some(), read_json(answer).is_some()]
}

fn read_json(answer: &[u8]) -> Option<Signer> {
    serde_json::from_slice::<Key>(answer).ok().and_then(Key::signer)
}

/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
async fn container(
    transport: &Transport,
    uri: &Url,
    authorization: Option<&ContainerToken>,
) -> Result<Signer, Failed> {
    let local = match uri.host() {
        Some(url::Host::Ipv4(ip)) => {
            ip.is_loopback() || [[169, 254, 170, 2], [169, 254, 170, 23]].contains(&ip.octets())
        }
        Some(url::Host::Ipv6(ip)) => {
            ip.is_loopback() || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23]
        }
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if uri.scheme() != "https" && !local {
        return Err(transport
            .error(ErrorKind::Invalid, PURPOSE)
            .detail("container credentials come over https, or over http from this machine only")
            .into());
    }
    let mut headers = HeaderMap::new();
    let token = match authorization {
        None => None,
        Some(ContainerToken::Value(value)) => Some(value.clone()),
        Some(ContainerToken::File(path)) => Some(read_token(transport, path).await?),
    };
    if let Some(token) = token {
        let mut value = HeaderValue::from_str(token.expose_secret()).map_err(|_| {
            transport.error(ErrorKind::Invalid, PURPOSE).detail("the authorization token fits no header")
        })?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let wait = transport.timeouts.connect;
    let (status, answer) = ask(transport, Method::GET, uri.as_str(), headers, Bytes::new(), wait).await?;
    Ok(json_key(transport, "the container's credential service", status, &answer)?)
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
async fn instance(transport: &Transport, endpoint: Option<&Url>) -> Result<Signer, Failed> {
    const WHAT: &str = "the instance's metadata service";
    let base = endpoint.map_or("http://169.254.169.254", |url| url.as_str().trim_end_matches('/'));
    let mut headers = HeaderMap::new();
    headers.insert("x-aws-ec2-metadata-token-ttl-seconds", HeaderValue::from_static("21600"));
    let url = format!("{base}/latest/api/token");
    let (status, token) = match ask(transport, Method::PUT, &url, headers, Bytes::new(), METADATA_WAIT).await
    {
        // Where there is no such service there is no key: nothing that would pass.
        Err(error) if error.kind == ErrorKind::Unreachable => {
            let detail = format!("{WHAT} does not answer ({})", error.detail.as_deref().unwrap_or_default());
            let error = transport.error(ErrorKind::Denied, PURPOSE);
            return Err(Failed { error: error.detail(detail), absent: true });
        }
        other => other?,
    };
    let Some(token) = status.is_success().then(|| HeaderValue::from_bytes(&token).ok()).flatten() else {
        // Where the service is switched off, it says so.
        let absent = matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
        return Err(Failed { error: refused(transport, WHAT, status), absent });
    };
    let mut headers = HeaderMap::new();
    headers.insert("x-aws-ec2-metadata-token", token);
    let url = format!("{base}/latest/meta-data/iam/security-credentials/");
    let (status, roles) =
        ask(transport, Method::GET, &url, headers.clone(), Bytes::new(), METADATA_WAIT).await?;
    if status == StatusCode::NOT_FOUND {
        let error = transport.error(ErrorKind::Denied, PURPOSE).detail("the instance has no role");
        return Err(Failed { error, absent: true });
    }
    if !status.is_success() {
        return Err(refused(transport, WHAT, status).into());
    }
    let role = String::from_utf8_lossy(&roles).lines().next().unwrap_or_default().trim().to_owned();
    let mut url = url;
    percent(role.as_bytes(), false, &mut url);
    let (status, answer) = ask(transport, Method::GET, &url, headers, Bytes::new(), METADATA_WAIT).await?;
    Ok(json_key(transport, WHAT, status, &answer)?)
}

fn refused(transport: &Transport, what: &str, status: StatusCode) -> Error {
    let passing = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    let kind = if passing { ErrorKind::Unreachable } else { ErrorKind::Denied };
    transport.error(kind, PURPOSE).detail(format!("{what} answers {status}"))
}

#[derive(Default, serde::Deserialize)]
struct Key {
    #[serde(rename = "AccessKeyId")]
    id: String,
    #[serde(rename = "SecretAccessKey", deserialize_with = "secret")]
    secret: SecretString,
    #[serde(rename = "Token", default, deserialize_with = "secret_option")]
    token: Option<SecretString>,
    #[serde(rename = "Expiration")]
    expires: Option<Timestamp>,
}

fn secret<'de, D: serde::Deserializer<'de>>(from: D) -> Result<SecretString, D::Error> {
    <String as serde::Deserialize>::deserialize(from).map(SecretString::from)
}

fn secret_option<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
    Ok(<Option<String> as serde::Deserialize>::deserialize(from)?.map(SecretString::from))
}

impl Key {
    fn signer(self) -> Option<Signer> {
        if self.id.is_empty() || self.secret.expose_secret().is_empty() {
            return None;
        }
        Signer::new(&self.id, self.secret, self.token.as_ref(), self.expires)
    }
}

fn json_key(transport: &Transport, what: &str, status: StatusCode, answer: &[u8]) -> Result<Signer> {
    if !status.is_success() {
        return Err(refused(transport, what, status));
    }
    // The parser's own words may quote what it read.
    read_json(answer).ok_or_else(|| {
        transport
            .error(ErrorKind::BadAnswer, PURPOSE)
            .detail(format!("the answer of {what} holds no credentials"))
    })
}

/// One request to a credential service.
async fn ask(
    transport: &Transport,
    method: Method,
    url: &str,
    mut headers: HeaderMap,
    body: Bytes,
    wait: Duration,
) -> Result<(StatusCode, Bytes)> {
    let invalid = |what: &str| transport.error(ErrorKind::Invalid, PURPOSE).detail(format!("{what} {url}"));
    let uri: Uri = url.parse().map_err(|_| invalid("no address of a credential service:"))?;
    let authority = uri.authority().ok_or_else(|| invalid("no host in"))?;
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| invalid("no host in"))?;
    headers.insert(HOST, host);
    let mut request = Request::new(transport.body(PURPOSE.verb, &[body]));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    let exchange = async {
        let answer = transport.send(PURPOSE, request, wait).await?;
        let (parts, body) = answer.into_parts();
        let body = transport.collect(PURPOSE, body, MAX_ANSWER, wait).await?;
        Ok((parts.status, body))
    };
    match tokio::time::timeout(wait, exchange).await {
        Ok(answer) => answer,
        Err(_) => {
            let detail = format!("the credential service does not answer within {wait:?}");
            Err(transport.error(ErrorKind::Unreachable, PURPOSE).detail(detail))
        }
    }
}
