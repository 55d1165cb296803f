//! The keys of an open repository: listed, added, removed, changed. At every moment, also after a crash, the
//! repository opens with a password that somebody was told.

use cistern_bucket::{Bucket, ErrorKind};
use futures::StreamExt;
use secrecy::{ExposeSecret, SecretString};

use crate::file::FileKind;
use crate::key::KeyFile;
use crate::repository::Repository;
use crate::store::{blocking, fetch};
use crate::{Error, Id, Lock, Result, Time};

/// Most keys that a repository gets: restic tries no more, and takes the password for wrong.
pub const MAX_KEYS: usize = 20;

/// A key of the repository, as a listing shows it.
#[derive(Debug)]
pub struct StoredKey {
    /// The name of its file.
    pub id: Id,
    /// Whether the repository was opened with it.
    pub is_current: bool,
    /// What the file holds, or why it cannot be read.
    pub file: Result<KeyFile>,
}

/// A password that is to open the repository, and the labels of its key.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The password.
    pub password: SecretString,
    /// Whose it is.
    pub username: String,
    /// Where it is used.
    pub hostname: String,
}

/// A key file whose bytes have the hash that is its name.
pub(crate) async fn key_file(bucket: &dyn Bucket, id: &Id) -> Result<KeyFile> {
    let stored = fetch(bucket, FileKind::Key, id).await?;
    if Id::of(&stored) != *id {
        return Err(Error::damaged("key", "its content has another hash than its name").named(*id));
    }
    KeyFile::parse(&stored).map_err(|error| error.named(*id))
}

impl Repository {
    /// All keys, by id. A file that cannot be understood is listed with its error and does not stop the others.
    ///
    /// # Errors
    /// What the bucket says.
    pub async fn keys(&self) -> Result<Vec<StoredKey>> {
        let files = self.inner().list(FileKind::Key).await?;
        let mut loads = futures::stream::iter(files)
            .map(|(id, _)| async move { (id, key_file(&*self.inner().bucket, &id).await) })
            .buffered(self.inner().options.connections);
        let mut keys = Vec::new();
        while let Some((id, file)) = loads.next().await {
            match file {
                Err(Error::Bucket(error)) if error.kind == ErrorKind::NoSuchKey => (),
                Err(Error::Bucket(error)) => return Err(error.into()),
                file => keys.push(StoredKey { id, is_current: id == self.key_id(), file }),
            }
        }
        Ok(keys)
    }

    /// Lets another password open the repository, under a lock of any kind. The key is read back and opened before
    /// this succeeds.
    ///
    /// # Errors
    /// [`Error::BadParameter`] for an empty password, or beside [`MAX_KEYS`] others; [`Error::WrongPassword`] if
    /// the key that opened the repository has been removed meanwhile; [`Error::Damaged`] if what was stored does
    /// not open; what the bucket says.
    pub async fn add_key(&self, new: &NewKey, lock: &Lock) -> Result<Id> {
        lock.check()?;
        let keys = self.keys_with_mine().await?;
        if keys.len() >= MAX_KEYS {
            let detail =
                format!("the repository has {} keys, and restic tries no more than {MAX_KEYS}", keys.len());
            return Err(Error::BadParameter { what: "another key", detail: detail.into() });
        }
        self.store_key(new).await
    }

    /// Removes the key whose id begins with `wanted`, under an exclusive lock; yields its id. The key that opened
    /// the repository stays, and is known to be whole before the other one goes.
    ///
    /// # Errors
    /// [`Error::NoSuchKey`], [`Error::Ambiguous`], [`Error::KeyInUse`]; [`Error::WrongPassword`] if the key that
    /// opened the repository has been removed meanwhile, [`Error::Damaged`] if it is not whole;
    /// [`Error::LockLost`]; what the bucket says.
    pub async fn remove_key(&self, wanted: &str, lock: &Lock) -> Result<Id> {
        lock.exclusive()?;
        let id = resolve(&self.keys_with_mine().await?, wanted)?;
        if id == self.key_id() {
            return Err(Error::KeyInUse { id });
        }
        key_file(&*self.inner().bucket, &self.key_id()).await?;
        lock.still_excludes().await?;
        self.inner().remove(FileKind::Key, &id).await?;
        Ok(id)
    }

    /// Puts a key with another password in the place of the one that opened the repository, under an exclusive
    /// lock; yields the new one's id. The old one is removed once the new one was read back and opened, so that a
    /// crash leaves the old one or both. [`key_id`](Repository::key_id) goes on to name the old one.
    ///
    /// # Errors
    /// [`Error::OldKeyLeft`] if both open the repository now; before that, as [`add_key`](Self::add_key).
    pub async fn change_key(&self, new: &NewKey, lock: &Lock) -> Result<Id> {
        lock.exclusive()?;
        lock.check()?;
        self.keys_with_mine().await?;
        let (old, id) = (self.key_id(), self.store_key(new).await?);
        let removed = async {
            lock.still_excludes().await?;
            self.inner().remove(FileKind::Key, &old).await
        };
        match removed.await {
            Ok(()) => Ok(id),
            Err(source) => Err(Error::OldKeyLeft { new: id, old, source: Box::new(source) }),
        }
    }

    /// The ids of all keys. The one that opened the repository is among them: whoever removed it has taken the
    /// right to change keys away with it.
    async fn keys_with_mine(&self) -> Result<Vec<Id>> {
        let files = self.inner().list(FileKind::Key).await?;
        let keys: Vec<Id> = files.into_iter().map(|(id, _)| id).collect();
        if keys.contains(&self.key_id()) { Ok(keys) } else { Err(Error::WrongPassword { keys: keys.len() }) }
    }

    /// Stores a key of the master key, and proves that it opens.
    async fn store_key(&self, new: &NewKey) -> Result<Id> {
        if new.password.expose_secret().is_empty() {
            return Err(Error::BadParameter { what: "the new password", detail: "it is empty".into() });
        }
        let (inner, key) = (self.inner(), new.clone());
        let (master, kdf) = (inner.master.clone(), inner.options.kdf);
        let json = blocking(move || {
            let now = Time::from(jiff::Timestamp::now());
            Ok(KeyFile::create(&master, &key.password, kdf, &key.username, &key.hostname, now)?.to_json())
        })
        .await?;
        let id = Id::of(&json);
        let stored = async {
            inner.put(FileKind::Key, &id, json.into()).await?;
            self.prove_key(&id, &new.password).await
        };
        match stored.await {
            Ok(()) => Ok(id),
            Err(error) => {
                // Nobody is told of it, so nobody may open the repository with it.
                if let Err(error) = inner.remove(FileKind::Key, &id).await {
                    tracing::warn!(key = %id, %error, "a new key that failed may have been left behind");
                }
                Err(error)
            }
        }
    }

    /// Reads a key back and opens it.
    async fn prove_key(&self, id: &Id, password: &SecretString) -> Result<()> {
        let file = key_file(&*self.inner().bucket, id).await?;
        let (secret, master) = (password.clone(), self.inner().master.clone());
        let is_same = blocking(move || {
            let opened = match file.open(&secret) {
                Err(Error::WrongPassword { .. }) => return Ok(false),
                opened => opened?,
            };
            let (theirs, ours) = (opened.parts(), master.parts());
            Ok((theirs.encrypt, theirs.k, theirs.r) == (ours.encrypt, ours.k, ours.r))
        });
        if is_same.await? {
            return Ok(());
        }
        Err(Error::damaged("key", "what was just stored does not open to the master key").named(*id))
    }
}

/// The one key whose id begins with `wanted`.
fn resolve(keys: &[Id], wanted: &str) -> Result<Id> {
    let mut found = keys.iter().filter(|id| !wanted.is_empty() && id.has_prefix(wanted));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(*id),
        (None, _) => Err(Error::NoSuchKey { wanted: wanted.into() }),
        (Some(_), Some(_)) => Err(Error::Ambiguous { what: "key", prefix: wanted.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_beginning_of_one_id_names_a_key() {
        let id = |first: u8, second: u8| {
            let mut bytes = [7; 32];
            (bytes[0], bytes[1]) = (first, second);
            Id::from_bytes(bytes)
        };
        let keys = [id(0xab, 0x11), id(0xab, 0x22), id(0xcd, 0x11)];
        assert_eq!(resolve(&keys, "c").unwrap(), keys[2]);
        assert_eq!(resolve(&keys, "AB2").unwrap(), keys[1]);
        assert_eq!(resolve(&keys, &keys[0].to_string()).unwrap(), keys[0]);
        assert!(matches!(resolve(&keys, "ab").unwrap_err(), Error::Ambiguous { what: "key", .. }));
        let longer = format!("{}0", keys[0]);
        for wanted in ["", "ab3", "x", "cd11 ", "/cd", &longer] {
            assert!(matches!(resolve(&keys, wanted).unwrap_err(), Error::NoSuchKey { .. }), "{wanted}");
        }
    }
}
