//! Supplies the engine with buckets, passwords and settings, from flags, environment and profile files.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use cistern_bucket::{
    Address, Bucket, Class, ContainerToken, Credentials, Directory, Error, ErrorKind, S3, S3Config, Style,
    Verb,
};
use cistern_engine::Role;
use cistern_repository::{Compression, Options};
use secrecy::SecretString;
use url::Url;

use crate::args::{BucketStyle, CompressionMode, Global};
use crate::environment::Environment;
use crate::failure::Failure;
use crate::password;
use crate::profile::Profile;

/// Access to stores with the settings of one command line.
pub struct Access {
    global: Global,
    environment: Environment,
}

/// A certificate file larger than this is none.
const MAX_CERTIFICATES: u64 = 4 << 20;

impl Access {
    /// Access with these settings.
    pub fn new(global: Global, environment: Environment) -> Self {
        Access { global, environment }
    }

    /// Parses an address of the command line; a relative directory becomes absolute.
    ///
    /// # Errors
    /// One line on what is wrong with it.
    pub fn address(&self, text: &str) -> Result<Address, Failure> {
        match text.parse::<Address>()? {
            Address::Directory(path) => std::path::absolute(&path)
                .map(Address::Directory)
                .map_err(|e| Failure::io(format!("resolving {}", path.display()), e)),
            other => Ok(other),
        }
    }

    /// The repository's address, from the flag, a file or the environment.
    ///
    /// # Errors
    /// None was given, or it cannot be parsed.
    pub fn repository(&self) -> Result<Address, Failure> {
        let from_file = |file: PathBuf| {
            std::fs::read_to_string(&file)
                .map(|text| text.trim().to_owned())
                .map_err(|e| Failure::io(format!("reading the repository file {}", file.display()), e))
        };
        let text = if let Some(text) = &self.global.repo {
            text.clone()
        } else if let Some(file) = &self.global.repository_file {
            from_file(file.clone())?
        } else if let Some(text) = self.environment.twin("REPOSITORY") {
            text
        } else if let Some(file) =
            self.environment.path(&["CISTERN_REPOSITORY_FILE", "RESTIC_REPOSITORY_FILE"])
        {
            from_file(file)?
        } else {
            return Err(Failure::invalid("no repository was given")
                .hint("use --repo s3://bucket/prefix (or a directory), or set CISTERN_REPOSITORY"));
        };
        self.address(&text)
    }

    /// The host that a snapshot of the source names: this host for a directory, the endpoint's for a bucket.
    pub fn host_of(&self, source: &Address) -> String {
        match source {
            Address::S3 { endpoint, .. } => endpoint
                .clone()
                .or_else(|| self.endpoint(Role::Source).ok().flatten())
                .and_then(|url| url.host_str().map(str::to_owned))
                .unwrap_or_else(|| "s3.amazonaws.com".to_owned()),
            _ => crate::commands::identity().hostname,
        }
    }

    fn endpoint(&self, role: Role) -> Result<Option<Url>, Failure> {
        let store = &self.global.store;
        let own = (role == Role::Repository).then_some(store.repo_endpoint.as_ref()).flatten();
        let text = own
            .or(store.endpoint.as_ref())
            .cloned()
            .or_else(|| self.environment.first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
        text.map(|text| {
            let with_scheme = if text.contains("://") { text.clone() } else { format!("https://{text}") };
            Url::parse(&with_scheme)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
                .ok_or_else(|| {
                    Failure::invalid(format!("the endpoint {text:?} is no URL"))
                        .hint("use https://host or http://host:port")
                })
        })
        .transpose()
    }

    fn profile_name(&self, role: Role) -> Option<String> {
        let store = &self.global.store;
        let own = (role == Role::Repository).then_some(store.repo_profile.as_ref()).flatten();
        own.or(store.profile.as_ref()).cloned().or_else(|| self.environment.first(&["AWS_PROFILE"]))
    }

    /// Whether the role's profile was named on the command line: it then comes before the environment.
    fn profile_is_explicit(&self, role: Role) -> bool {
        let store = &self.global.store;
        store.profile.is_some() || role == Role::Repository && store.repo_profile.is_some()
    }

    fn credentials(&self, role: Role, profile: &Profile) -> Credentials {
        if self.global.store.no_sign_request && role != Role::Repository {
            return Credentials::Anonymous;
        }
        let env = |name: &str| self.environment.first(&[name]);
        let mut chain = Vec::new();
        let session = || env("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "cistern".to_owned());
        if let (Some(id), Some(secret)) = (env("AWS_ACCESS_KEY_ID"), env("AWS_SECRET_ACCESS_KEY")) {
            chain.push(Credentials::Static {
                access_key_id: id,
                secret_access_key: SecretString::from(secret),
                session_token: env("AWS_SESSION_TOKEN").map(SecretString::from),
            });
        }
        let mut from_profile = Vec::new();
        if let (Some(id), Some(secret)) =
            (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key"))
        {
            from_profile.push(Credentials::Static {
                access_key_id: id.to_owned(),
                secret_access_key: SecretString::from(secret),
                session_token: profile.get("aws_session_token").map(SecretString::from),
            });
        }
        if let (Some(role), Some(file)) = (profile.get("role_arn"), profile.get("web_identity_token_file")) {
            from_profile.push(Credentials::WebIdentity {
                role_arn: role.to_owned(),
                token_file: file.into(),
                session_name: profile.get("role_session_name").map_or_else(session, str::to_owned),
                sts_endpoint: None,
            });
        }
        if self.profile_is_explicit(role) {
            from_profile.append(&mut chain);
            chain = from_profile;
        } else {
            chain.append(&mut from_profile);
        }
        if let (Some(role), Some(file)) = (env("AWS_ROLE_ARN"), env("AWS_WEB_IDENTITY_TOKEN_FILE")) {
            chain.push(Credentials::WebIdentity {
                role_arn: role,
                token_file: file.into(),
                session_name: session(),
                sts_endpoint: env("AWS_ENDPOINT_URL_STS").and_then(|url| Url::parse(&url).ok()),
            });
        }
        let container = env("AWS_CONTAINER_CREDENTIALS_FULL_URI").or_else(|| {
            env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI").map(|path| format!("http://169.254.170.2{path}"))
        });
        if let Some(uri) = container.and_then(|uri| Url::parse(&uri).ok()) {
            let token_file =
                env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(|f| ContainerToken::File(f.into()));
            let token = || {
                env("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(|t| ContainerToken::Value(SecretString::from(t)))
            };
            chain.push(Credentials::Container { uri, authorization: token_file.or_else(token) });
        }
        let disabled = env("AWS_EC2_METADATA_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        // A store of one's own has no instance metadata of AWS; asking for it would only delay the answer
        // that credentials are missing.
        if !disabled && (chain.is_empty() || self.endpoint(role).ok().flatten().is_none()) {
            let endpoint = env("AWS_EC2_METADATA_SERVICE_ENDPOINT").and_then(|url| Url::parse(&url).ok());
            chain.push(Credentials::InstanceMetadata { endpoint });
        }
        Credentials::Chain(chain)
    }

    fn s3(&self, endpoint: Option<&Url>, bucket: &str, role: Role) -> Result<Arc<dyn Bucket>, Failure> {
        let store = &self.global.store;
        let profile = Profile::load(self.profile_name(role).as_deref(), &self.environment)?;
        let mut config = S3Config::new(bucket);
        config.endpoint =
            match (endpoint, self.endpoint(role)?, profile.get("endpoint_url")) {
                (Some(own), _, _) => Some(own.clone()),
                (None, Some(set), _) => Some(set),
                (None, None, Some(text)) => Some(Url::parse(text).map_err(|_| {
                    Failure::invalid(format!("endpoint_url {text:?} in the profile is no URL"))
                })?),
                (None, None, None) => None,
            };
        let own_region = (role == Role::Repository).then_some(store.repo_region.as_ref()).flatten();
        config.region = own_region
            .or(store.region.as_ref())
            .cloned()
            .or_else(|| self.environment.first(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
            .or_else(|| profile.get("region").map(str::to_owned));
        config.style = match store.bucket_style {
            BucketStyle::Auto => Style::Auto,
            BucketStyle::Path => Style::Path,
            BucketStyle::Host => Style::VirtualHost,
        };
        let ca = store.cacert.clone().or_else(|| self.environment.path(&["AWS_CA_BUNDLE", "RESTIC_CACERT"]));
        config.ca_pem = ca.map(certificates).transpose()?;
        config.insecure_tls = store.insecure_tls;
        config.credentials = self.credentials(role, &profile);
        config.limits.requests_per_second = store.limit_requests.map(f64::from);
        config.limits.bytes_per_second = store.limit_rate.map(|kib| kib.saturating_mul(1024));
        config.limits.max_concurrency = store.connections.max(1);
        Ok(Arc::new(S3::connect(config)?))
    }
}

fn certificates(file: PathBuf) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut pem = Vec::new();
    std::fs::File::open(&file)
        .and_then(|f| f.take(MAX_CERTIFICATES).read_to_end(&mut pem))
        .map_err(|e| Failure::io(format!("reading the certificates {}", file.display()), e))?;
    Ok(pem)
}

#[async_trait]
impl cistern_engine::Access for Access {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        match address {
            Address::S3 { endpoint, bucket, .. } => {
                // The engine's trait speaks of buckets; a bad setting is told in the bucket's words.
                self.s3(endpoint.as_ref(), bucket, role).map_err(|failure| {
                    match failure.error.downcast::<Error>() {
                        Ok(error) => *error,
                        Err(other) => {
                            let kind = match failure.class {
                                Class::Denied | Class::NotFound => ErrorKind::Denied,
                                _ => ErrorKind::Invalid,
                            };
                            Error::new(kind, Verb::Bucket, address.to_string()).detail(other.to_string())
                        }
                    }
                })
            }
            Address::Directory(path) => Ok(Arc::new(Directory::new(path))),
        }
    }

    async fn password(&self, _repository: &Address) -> cistern_engine::Result<SecretString> {
        password::find(&self.global, &self.environment, false)
            .map_err(|failure| cistern_engine::Error::Invalid(failure.to_string()))
    }

    fn options(&self, repository: &Address) -> Options {
        let mut options = Options::default();
        let is_local = matches!(repository, Address::Directory(_));
        if !self.global.no_cache && !is_local {
            options.cache = self
                .global
                .cache_dir
                .clone()
                .or_else(|| self.environment.path(&["CISTERN_CACHE_DIR"]))
                .or_else(|| Some(self.environment.cache_home()?.join("cistern")));
        }
        let hint = self.global.key_hint.clone().or_else(|| self.environment.twin("KEY_HINT"));
        options.key_hint = hint.and_then(|text| text.parse().ok());
        options.verify_writes = !self.global.no_extra_verify;
        options.compression = match self.compression() {
            CompressionMode::Auto => Compression::Auto,
            CompressionMode::Off => Compression::Off,
            CompressionMode::Fastest => Compression::Fastest,
            CompressionMode::Max => Compression::Max,
        };
        let size = self.global.pack_size.or_else(|| self.environment.twin("PACK_SIZE")?.parse().ok());
        if let Some(mib) = size {
            options.pack_size = mib.clamp(4, 128) << 20;
        }
        options
    }
}

impl Access {
    fn compression(&self) -> CompressionMode {
        use clap::ValueEnum;
        self.global
            .compression
            .or_else(|| CompressionMode::from_str(&self.environment.twin("COMPRESSION")?, true).ok())
            .unwrap_or(CompressionMode::Auto)
    }
}
