//! Supplies the engine with buckets, passwords and settings, from flags, environment and profile files.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket, Credentials, Directory, Error, ErrorKind, S3, S3Config, Style, Verb};
use cistern_engine::Role;
use cistern_repository::{Compression, Options};
use secrecy::SecretString;
use url::Url;

use crate::ambient;
use crate::args::{BucketStyle, CompressionMode, FromRepository, Global, NewKey};
use crate::environment::Environment;
use crate::failure::Failure;
use crate::password;
use crate::profile::Profile;

/// Access to stores with the settings of one command line.
pub struct Access {
    global: Global,
    environment: Environment,
    settings: Settings,
    /// What was asked for or computed once is not asked for again.
    password: tokio::sync::OnceCell<SecretString>,
    /// Why access failed, in full: the engine's traits have no place for hints.
    failure: Mutex<Option<Failure>>,
}

/// A certificate file larger than this is none.
const MAX_CERTIFICATES: u64 = 4 << 20;

impl Access {
    /// Access with these settings.
    ///
    /// # Errors
    /// A setting that cannot be understood: before anything is done.
    pub fn new(global: Global, environment: Environment) -> Result<Self, Failure> {
        let settings = Settings::new(&global, &environment)?;
        let (password, failure) = (tokio::sync::OnceCell::new(), Mutex::new(None));
        Ok(Access { global, environment, settings, password, failure })
    }

    /// What the environment of this process says.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The credentials of whoever runs us, for a store that has none of its own and, if it is one's own, an endpoint.
    pub fn ambient(&self, has_endpoint: bool) -> Credentials {
        ambient::chain(&self.environment, has_endpoint)
    }

    /// What a failed run tells the user: why access failed, if it did, else the error.
    pub fn failure(&self, error: cistern_engine::Error) -> Failure {
        self.failure.lock().ok().and_then(|mut failure| failure.take()).unwrap_or_else(|| error.into())
    }

    /// The repository's password, found once; `twice` as in [`password::find`].
    ///
    /// # Errors
    /// As [`password::find`].
    pub async fn secret(self: &Arc<Self>, twice: bool) -> Result<SecretString, Failure> {
        let this = self.clone();
        let find = || async move {
            // A prompt or a command takes its time, and an interrupt must be heard meanwhile.
            let found =
                tokio::task::spawn_blocking(move || password::find(&this.global, &this.environment, twice));
            found.await.unwrap_or_else(|e| Err(Failure::new(cistern_bucket::Class::Broken, e.to_string())))
        };
        self.password.get_or_try_init(find).await.cloned()
    }

    /// The password of a new key.
    ///
    /// # Errors
    /// As [`password::find_new`].
    pub async fn new_secret(&self, new: NewKey) -> Result<SecretString, Failure> {
        let found = tokio::task::spawn_blocking(move || password::find_new(&new));
        found.await.unwrap_or_else(|e| Err(Failure::new(cistern_bucket::Class::Broken, e.to_string())))
    }

    /// Keeps a failure for [`failure`](Self::failure), and gives its text for the engine.
    pub fn keep(&self, failure: Failure) -> String {
        let text = failure.to_string();
        if let Ok(mut kept) = self.failure.lock() {
            kept.get_or_insert(failure);
        }
        text
    }

    /// Parses an address of the command line; a relative directory becomes absolute.
    ///
    /// # Errors
    /// One line on what is wrong with it.
    pub fn address(&self, text: &OsStr) -> Result<Address, Failure> {
        match Address::from_os(text)? {
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
        let given = (&self.global.repo, &self.global.repository_file);
        let text = self.named_repository(given, "")?.ok_or_else(|| {
            Failure::invalid("no repository was given")
                .hint("use --repo s3://bucket/prefix (or a directory), or set CISTERN_REPOSITORY")
        })?;
        let mut address = self.address(&text)?;
        if let (Address::S3 { endpoint: endpoint @ None, .. }, Some(_)) =
            (&mut address, &self.global.store.repo_endpoint)
        {
            // The same name at another endpoint is another bucket, and must look like one.
            *endpoint = self.endpoint(Role::Repository)?;
        }
        Ok(address)
    }

    /// The address of a repository from flags, else from the environment; `which` begins the names of its variables.
    fn named_repository(
        &self,
        (text, file): (&Option<OsString>, &Option<PathBuf>),
        which: &str,
    ) -> Result<Option<OsString>, Failure> {
        let from_file = |file: PathBuf| {
            std::fs::read_to_string(&file)
                .map(|text| Some(OsString::from(text.trim())))
                .map_err(|e| Failure::io(format!("reading the repository file {}", file.display()), e))
        };
        if let Some(text) = text {
            return Ok(Some(text.clone()));
        }
        if let Some(file) = file {
            return from_file(file.clone());
        }
        if let Some((_, text)) = self.environment.twin(&format!("{which}REPOSITORY")) {
            return Ok(Some(text));
        }
        match self.environment.twin(&format!("{which}REPOSITORY_FILE")) {
            Some((_, file)) => from_file(file.into()),
            None => Ok(None),
        }
    }

    /// The address of the repository to copy from.
    ///
    /// # Errors
    /// As [`repository`](Self::repository).
    pub fn source_repository(&self, from: &FromRepository) -> Result<Address, Failure> {
        let given = (&from.from_repo, &from.from_repository_file);
        let text = self.named_repository(given, "FROM_")?.ok_or_else(|| {
            Failure::invalid("no repository to copy from was given")
                .hint("use --from-repo s3://bucket/prefix (or a directory), or set CISTERN_FROM_REPOSITORY")
        })?;
        self.address(&text)
    }

    /// The password of the repository to copy from.
    ///
    /// # Errors
    /// As [`password::find_from`].
    pub async fn source_secret(self: &Arc<Self>, from: FromRepository) -> Result<SecretString, Failure> {
        let this = self.clone();
        let found = tokio::task::spawn_blocking(move || password::find_from(&from, &this.environment));
        found.await.unwrap_or_else(|e| Err(Failure::new(cistern_bucket::Class::Broken, e.to_string())))
    }

    /// The key of the repository to copy from that is tried first.
    ///
    /// # Errors
    /// It is no id.
    pub fn source_key_hint(&self, from: &FromRepository) -> Result<Option<cistern_repository::Id>, Failure> {
        match &from.from_key_hint {
            Some(text) => match text.parse() {
                Ok(id) => Ok(Some(id)),
                Err(_) => Err(Failure::invalid(format!("--from-key-hint {text} is no id"))),
            },
            None => twin(&self.environment, "FROM_KEY_HINT", "the id of a key", |text| text.parse().ok()),
        }
    }

    /// The host that a snapshot of the source names: this host for a directory, the endpoint's for a bucket.
    pub fn host_of(&self, source: &Address) -> String {
        if let Some(host) = self.environment.first(&["CISTERN_HOST", "RESTIC_HOST"]) {
            return host;
        }
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

    fn credentials(&self, role: Role, profile: &Profile) -> Result<Credentials, Failure> {
        if self.global.store.no_sign_request && role != Role::Repository {
            return Ok(Credentials::Anonymous);
        }
        let mut chain: Vec<Credentials> = ambient::keys(&self.environment).into_iter().collect();
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
                session_name: profile
                    .get("role_session_name")
                    .map_or_else(|| ambient::session(&self.environment), str::to_owned),
                sts_endpoint: None,
            });
        }
        if self.profile_is_explicit(role) {
            // Whoever names a profile means it: acting as somebody else would be a surprise.
            if from_profile.is_empty() {
                return Err(
                    profile.without_credentials(self.profile_name(role).as_deref().unwrap_or_default())
                );
            }
            return Ok(Credentials::Chain(from_profile));
        }
        if chain.is_empty() && from_profile.is_empty() && profile.needs_another_tool() {
            return Err(profile.without_credentials(self.profile_name(role).as_deref().unwrap_or("default")));
        }
        chain.append(&mut from_profile);
        chain.extend(ambient::identity(&self.environment));
        let has_endpoint = self.endpoint(role).ok().flatten().is_some();
        Ok(ambient::and_machine(chain, &self.environment, has_endpoint))
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
        config.credentials = self.credentials(role, &profile)?;
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

/// A handle to the access that the engine takes.
#[derive(Clone)]
pub struct Handle(pub Arc<Access>);

#[async_trait]
impl cistern_engine::Access for Handle {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        match address {
            Address::S3 { endpoint, bucket, .. } => {
                self.0.s3(endpoint.as_ref(), bucket, role).map_err(|failure| {
                    let text = self.0.keep(failure);
                    Error::new(ErrorKind::Invalid, Verb::Bucket, address.to_string()).detail(text)
                })
            }
            Address::Directory(path) => Ok(Arc::new(Directory::new(path))),
        }
    }

    async fn password(&self, _repository: &Address) -> cistern_engine::Result<SecretString> {
        let found = self.0.secret(false).await;
        found.map_err(|failure| cistern_engine::Error::Invalid(self.0.keep(failure)))
    }

    fn options(&self, repository: &Address) -> Options {
        self.0.options(repository)
    }
}

impl Access {
    /// Settings of the repository.
    pub fn options(&self, repository: &Address) -> Options {
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
        if is_local {
            // A disk answers at once: more in flight would only be more memory to fill.
            options.connections = 2;
        }
        options.verify_writes = !self.global.no_extra_verify;
        options.key_hint = self.settings.key_hint;
        options.compression = match self.settings.compression {
            CompressionMode::Auto => Compression::Auto,
            CompressionMode::Off => Compression::Off,
            CompressionMode::Fastest => Compression::Fastest,
            CompressionMode::Better => Compression::Level(7),
            CompressionMode::Max => Compression::Max,
        };
        if let Some(mib) = self.settings.pack_size {
            options.pack_size = mib << 20;
        }
        options
    }
}

/// Settings of the repository that the environment may hold.
struct Settings {
    compression: CompressionMode,
    /// In MiB.
    pack_size: Option<u32>,
    key_hint: Option<cistern_repository::Id>,
}

impl Settings {
    /// From flags, else from the environment.
    ///
    /// # Errors
    /// Which flag or variable cannot be understood, and what was expected.
    fn new(global: &Global, environment: &Environment) -> Result<Self, Failure> {
        use clap::ValueEnum;
        let compression = match global.compression {
            Some(mode) => Some(mode),
            None => twin(environment, "COMPRESSION", "auto, off, fastest, better or max", |text| {
                CompressionMode::from_str(text, true).ok()
            })?,
        };
        let pack_size = match global.pack_size {
            Some(mib) => Some(mib),
            None => twin(environment, "PACK_SIZE", "MiB from 4 to 128", |text| {
                text.parse().ok().filter(|mib| (4..=128).contains(mib))
            })?,
        };
        let key_hint = match &global.key_hint {
            Some(text) => {
                Some(text.parse().map_err(|_| Failure::invalid(format!("--key-hint {text} is no id")))?)
            }
            None => twin(environment, "KEY_HINT", "the id of a key", |text| text.parse().ok())?,
        };
        Ok(Settings { compression: compression.unwrap_or(CompressionMode::Auto), pack_size, key_hint })
    }
}

/// The value of a variable or its twin, if one is set.
fn twin<T>(
    environment: &Environment,
    name: &str,
    expected: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, Failure> {
    let Some((name, value)) = environment.twin(name) else { return Ok(None) };
    match value.to_str().and_then(parse) {
        Some(value) => Ok(Some(value)),
        None => Err(Failure::invalid(format!("{name} is {}: expected {expected}", value.display()))),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use cistern_bucket::ContainerToken;

    use super::*;
    use crate::args::Cli;

    fn opened(arguments: &[&str], environment: Environment) -> Result<Access, Failure> {
        let words = ["cistern"].iter().chain(arguments).chain(&["snapshots"]);
        Access::new(Cli::parse_from(words).global, environment)
    }

    fn access(arguments: &[&str], environment: Environment) -> Access {
        opened(arguments, environment).unwrap()
    }

    fn sources(access: &Access, role: Role) -> Result<Vec<String>, Failure> {
        let profile = Profile::load(access.profile_name(role).as_deref(), &access.environment)?;
        let one = |credentials: &Credentials| match credentials {
            Credentials::Static { access_key_id, .. } => access_key_id.clone(),
            Credentials::WebIdentity { role_arn, .. } => format!("web {role_arn}"),
            Credentials::Container { uri, authorization } => {
                let token = match authorization {
                    Some(ContainerToken::File(file)) => format!(" file {}", file.display()),
                    Some(ContainerToken::Value(_)) => " value".to_owned(),
                    None => String::new(),
                };
                format!("container {uri}{token}")
            }
            Credentials::InstanceMetadata { .. } => "instance".to_owned(),
            Credentials::Anonymous => "nobody".to_owned(),
            other => panic!("{other:?} is not for the command line"),
        };
        Ok(match access.credentials(role, &profile)? {
            Credentials::Chain(all) => all.iter().map(one).collect(),
            other => vec![one(&other)],
        })
    }

    #[test]
    fn credentials_come_in_the_order_of_the_aws_tools() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(
            home.path().join(".aws/credentials"),
            "[default]\naws_access_key_id = DEFAULT\naws_secret_access_key = s\n\
             [work]\naws_access_key_id = WORK\naws_secret_access_key = s\n\
             [single]\nsso_session = corporate\n[empty]\nregion = eu-north-1\n",
        )
        .unwrap();
        let path = home.path().to_str().unwrap();
        let everything = || {
            Environment::from([
                ("HOME", path),
                ("AWS_ACCESS_KEY_ID", "ENV"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
                ("AWS_ROLE_ARN", "role"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
                ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
                ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/pod"),
            ])
        };
        let container = "container http://169.254.170.23/v1/credentials file /pod";
        assert_eq!(
            sources(&access(&[], everything()), Role::Source).unwrap(),
            ["ENV", "DEFAULT", "web role", container, "instance"]
        );
        // Whoever names a profile acts as nobody else.
        let named = access(&["--profile", "work"], everything());
        assert_eq!(sources(&named, Role::Source).unwrap(), ["WORK"]);
        let named = access(&["--repo-profile", "work", "--no-sign-request"], everything());
        assert_eq!(sources(&named, Role::Source).unwrap(), ["nobody"]);
        assert_eq!(sources(&named, Role::Repository).unwrap(), ["WORK"]);
        for (profile, word) in
            [("single", "sso_session"), ("empty", "holds no credentials"), ("none", "no profile")]
        {
            let failure = sources(&access(&["--profile", profile], everything()), Role::Source).unwrap_err();
            assert!(failure.to_string().contains(word), "{failure}");
            assert!(failure.hint.is_some());
        }
        let relative = Environment::from([
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/x"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "t"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ]);
        assert_eq!(
            sources(&access(&[], relative), Role::Source).unwrap(),
            ["container http://169.254.170.2/v2/x value"]
        );
        // A store of one's own has no instance metadata.
        let own = Environment::from([("AWS_ACCESS_KEY_ID", "ENV"), ("AWS_SECRET_ACCESS_KEY", "s")]);
        assert_eq!(sources(&access(&["--endpoint", "http://[::1]:1"], own), Role::Source).unwrap(), ["ENV"]);
    }

    #[test]
    fn the_repository_may_lie_elsewhere() {
        let environment = || Environment::from([("AWS_ENDPOINT_URL", "http://env"), ("AWS_REGION", "a")]);
        let both =
            access(&["--endpoint", "source.example", "--repo-endpoint", "http://repo:9"], environment());
        assert_eq!(both.endpoint(Role::Source).unwrap().unwrap().as_str(), "https://source.example/");
        assert_eq!(both.endpoint(Role::Repository).unwrap().unwrap().as_str(), "http://repo:9/");
        let elsewhere = access(&["--repo-endpoint", "http://repo:9", "--repo", "s3://b/p"], environment());
        assert_eq!(elsewhere.repository().unwrap().to_string(), "s3:http://repo:9/b/p");
        let there = access(&["--repo", "s3://b/p"], environment());
        assert_eq!(there.repository().unwrap().to_string(), "s3://b/p");
        let neither = access(&[], environment());
        assert_eq!(neither.endpoint(Role::Repository).unwrap().unwrap().as_str(), "http://env/");
        assert!(access(&["--endpoint", "ftp://x"], environment()).endpoint(Role::Target).is_err());
    }

    #[test]
    fn settings_that_cannot_be_understood_are_refused() {
        for (name, value, word) in [
            ("RESTIC_COMPRESSION", "much", "RESTIC_COMPRESSION is much"),
            ("CISTERN_PACK_SIZE", "500", "4 to 128"),
            ("RESTIC_KEY_HINT", "x", "the id of a key"),
        ] {
            let failure = opened(&[], Environment::from([(name, value)])).err().unwrap();
            assert!(failure.to_string().contains(word), "{failure}");
        }
        let address = Address::Directory("/r".into());
        let fine = Environment::from([("RESTIC_COMPRESSION", "better"), ("RESTIC_PACK_SIZE", "64")]);
        let options = access(&[], fine).options(&address);
        assert_eq!((options.compression, options.pack_size), (Compression::Level(7), 64 << 20));
    }
}
