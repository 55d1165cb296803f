//! Access to the repositories of a Job, each with the credentials in a folder of its own.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use cistern_api::backend::{self, Keys, PASSWORD};
use cistern_api::job::Place;
use cistern_bucket::{Address, Bucket, Directory, Error, ErrorKind, Verb};
use cistern_engine::Role;
use cistern_repository::Options;
use secrecy::SecretString;

use crate::access::Access;

/// A Secret holds no more.
const MAX_KEY: u64 = 1 << 20;

/// The repositories that a Job may open. Credentials are read whenever one is opened: they may have been renewed.
pub struct Places {
    access: Arc<Access>,
    folder: PathBuf,
    cache: Option<PathBuf>,
    places: HashMap<Address, Place>,
}

impl Places {
    /// These places, whose credentials lie below `folder`. `cache` takes copies of their files.
    pub fn new<'a>(
        access: Arc<Access>,
        folder: &Path,
        cache: Option<PathBuf>,
        places: impl IntoIterator<Item = &'a Place>,
    ) -> Self {
        let places = places.into_iter().map(|place| (place.address.clone(), place.clone())).collect();
        Places { access, folder: folder.to_owned(), cache, places }
    }

    fn place(&self, address: &Address) -> cistern_bucket::Result<&Place> {
        self.places.get(address).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, Verb::Bucket, address.to_string())
                .detail("the task names no such place")
        })
    }

    /// The keys of a place; none if it has no folder.
    async fn keys(&self, place: &Place) -> cistern_bucket::Result<Keys> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Invalid, Verb::Bucket, format!("the credentials {}", place.credentials))
                .source(error)
        };
        let mut parts = Path::new(&place.credentials).components();
        let (Some(Component::Normal(name)), None) = (parts.next(), parts.next()) else {
            return Err(failed(io::Error::other("the name of a folder is expected")));
        };
        let folder = self.folder.join(name);
        let read = tokio::task::spawn_blocking(move || read(&folder)).await;
        read.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed)
    }
}

fn read(folder: &Path) -> io::Result<Keys> {
    let mut keys = Keys::default();
    let files = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(keys),
        files => files?,
    };
    for file in files {
        let file = file?;
        // What a mounted Secret consists of begins with two dots; the keys are links into it.
        let Some(name) = file.file_name().to_str().filter(|name| !name.starts_with("..")).map(str::to_owned)
        else {
            continue;
        };
        if std::fs::metadata(file.path())?.is_file() {
            let mut value = Vec::new();
            std::fs::File::open(file.path())?.take(MAX_KEY).read_to_end(&mut value)?;
            keys.insert(name, &value);
            zeroize::Zeroize::zeroize(&mut value);
        }
    }
    Ok(keys)
}

#[async_trait]
impl cistern_engine::Access for Places {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        if let (Role::Source | Role::Target, Address::Directory(path)) = (role, address) {
            return Ok(Arc::new(Directory::new(path)));
        }
        let place = self.place(address)?;
        let has_endpoint = matches!(address, Address::S3 { endpoint: Some(_), .. });
        backend::open(place, &self.keys(place).await?, self.access.ambient(has_endpoint))
    }

    async fn password(&self, repository: &Address) -> cistern_engine::Result<SecretString> {
        let place = self.place(repository).map_err(cistern_engine::Error::Source)?;
        let keys = self.keys(place).await.map_err(cistern_engine::Error::Source)?;
        keys.get(PASSWORD).cloned().ok_or_else(|| {
            cistern_engine::Error::Invalid(format!("the encryption Secret lacks the key {PASSWORD}"))
        })
    }

    fn options(&self, repository: &Address) -> Options {
        let mut options = self.access.options(repository);
        // A repository on a disk has no cache in any case.
        options.cache = options.cache.and(self.cache.clone());
        let most = self.places.get(repository).and_then(|place| place.max_connections);
        if let Some(most) = most.and_then(|most| usize::try_from(most).ok()).filter(|most| *most > 0) {
            options.connections = options.connections.min(most);
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_mounted_secret_is_read_through_its_links() {
        let folder = tempfile::tempdir().expect("a temporary directory can be made");
        let data = folder.path().join("..2026");
        std::fs::create_dir(&data).expect("a directory can be made");
        std::fs::write(data.join("RESTIC_PASSWORD"), "secret\n").expect("a file can be written");
        std::os::unix::fs::symlink("..2026", folder.path().join("..data")).expect("a link can be made");
        std::os::unix::fs::symlink("..data/RESTIC_PASSWORD", folder.path().join("RESTIC_PASSWORD"))
            .expect("a link can be made");
        let keys = read(folder.path()).expect("it can be read");
        assert_eq!(keys.get(PASSWORD).expect("it is there").expose_secret(), "secret");
        assert!(keys.get("..data").is_none());
        assert!(read(&folder.path().join("none")).expect("nothing is no error").get(PASSWORD).is_none());
    }
}
