//! Opens the bucket that a BackupStorage, or a Job's place, stands for.

use std::collections::BTreeMap;
use std::sync::Arc;

use cistern_bucket::{
    Address, Bucket, Credentials, Directory, Error, ErrorKind, Key, Result, S3, S3Config, Style, Verb,
};
use secrecy::SecretString;
use url::Url;

use crate::job::Place;
use crate::kinds::backup_storage::Storage;
use crate::name::folder;

/// The values of a Secret by key. They are shown to nobody.
#[derive(Clone, Default)]
pub struct Keys(BTreeMap<String, SecretString>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The key of a Secret that holds the password of a restic repository.
pub const PASSWORD: &str = "RESTIC_PASSWORD";

impl Keys {
    /// Adds a value; what is no UTF-8 is no key that we read, and is left out.
    pub fn insert(&mut self, name: impl Into<String>, value: &[u8]) {
        if let Ok(text) = std::str::from_utf8(value) {
            // `kubectl create secret --from-file` keeps the line end of the file.
            self.0.insert(name.into(), SecretString::from(text.trim_end_matches(['\r', '\n'])));
        }
    }

    /// The value of this name.
    pub fn get(&self, name: &str) -> Option<&SecretString> {
        self.0.get(name)
    }
}

/// Where a restic repository is in a storage: the place without a folder of credentials.
///
/// # Errors
/// The storage cannot be used, and why: a provider that is not there yet, an endpoint that is no URL.
pub fn place(storage: &Storage, directory: &str, credentials: impl Into<String>) -> Result<Place> {
    let invalid = |detail: String| {
        Error::new(ErrorKind::Invalid, Verb::Bucket, "the storage".to_owned()).detail(detail)
    };
    let (address, region, insecure_tls, connections) =
        match (storage.provider.as_str(), &storage.s3, &storage.local) {
            ("s3", Some(s3), _) => {
                let text = s3
                    .endpoint
                    .as_deref()
                    .map(|text| text.trim_end_matches('/'))
                    .filter(|text| !text.is_empty());
                let endpoint = text
                    .map(|text| {
                        Url::parse(text)
                            .ok()
                            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
                            .ok_or_else(|| invalid(format!("the endpoint {text:?} is no URL")))
                    })
                    .transpose()?;
                let bucket = s3.bucket.as_deref().unwrap_or_default().trim_end_matches('/').to_owned();
                if bucket.is_empty() {
                    return Err(invalid("no bucket is named".to_owned()));
                }
                let prefix = Key::new(folder(s3.prefix.as_deref().unwrap_or_default(), directory));
                (
                    Address::S3 { endpoint, bucket, prefix },
                    s3.region.clone(),
                    s3.insecure_tls.unwrap_or_default(),
                    s3.max_connections,
                )
            }
            ("local", _, Some(local)) => {
                let root = local.mount_path.as_deref().unwrap_or_default();
                if !root.starts_with('/') {
                    return Err(invalid("mountPath is no absolute path".to_owned()));
                }
                let path = format!("/{}", folder(root, directory));
                (Address::Directory(path.into()), None, false, local.max_connections)
            }
            (provider @ ("gcs" | "azure"), ..) => {
                return Err(invalid(format!("the provider {provider} is not supported yet")));
            }
            (provider, ..) => {
                return Err(invalid(format!(
                    "the provider {provider:?} is unknown, or its block is missing"
                )));
            }
        };
    let max_connections = connections.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
    Ok(Place { credentials: credentials.into(), address, region, insecure_tls, max_connections })
}

/// Opens the whole bucket that a place lies in, with the keys of its Secret; without keys, as whoever runs us.
///
/// # Errors
/// A Secret with only one of the two keys, certificates that are none.
pub fn open(place: &Place, keys: &Keys, ambient: Credentials) -> Result<Arc<dyn Bucket>> {
    let (endpoint, bucket) = match &place.address {
        Address::Directory(path) => return Ok(Arc::new(Directory::new(path))),
        Address::S3 { endpoint, bucket, .. } => (endpoint, bucket),
    };
    use secrecy::ExposeSecret;
    let mut config = S3Config::new(bucket);
    config.endpoint.clone_from(endpoint);
    config.region.clone_from(&place.region);
    config.style = if endpoint.is_some() { Style::Path } else { Style::Auto };
    config.insecure_tls = place.insecure_tls;
    config.ca_pem = keys.get("CA_CERT_DATA").map(|pem| pem.expose_secret().as_bytes().to_vec());
    config.credentials = match (keys.get("AWS_ACCESS_KEY_ID"), keys.get("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => Credentials::Static {
            access_key_id: id.expose_secret().to_owned(),
            secret_access_key: secret.clone(),
            session_token: keys.get("AWS_SESSION_TOKEN").cloned(),
        },
        (None, None) => ambient,
        (id, _) => {
            let missing = if id.is_some() { "AWS_SECRET_ACCESS_KEY" } else { "AWS_ACCESS_KEY_ID" };
            let error = Error::new(ErrorKind::Invalid, Verb::Bucket, place.address.to_string());
            return Err(error.detail(format!("the Secret lacks the key {missing}")));
        }
    };
    if let Some(connections) = place.max_connections {
        config.limits.max_concurrency = usize::try_from(connections).unwrap_or(usize::MAX);
    }
    Ok(Arc::new(S3::connect(config)?))
}
