//! A Repository with the storage that it lies in: where Jobs find its restic repositories, and with which keys.

use cistern_api::backend::{self, Keys};
use cistern_api::job::Place;
use cistern_api::kinds::backup_storage::{BackupStorage, Local};
use cistern_api::kinds::repository::Repository;
use cistern_api::lower::Credentials;
use cistern_api::name::folder;
use cistern_api::usage;
use cistern_api::world::Name;
use kube::ResourceExt;

use crate::backup_storage::storage_of;
use crate::context::Cx;
use crate::controller::Failure;
use crate::layout::Layout;
use crate::repository::admitted;
use crate::world;

/// A Repository and its storage.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    /// The Repository.
    pub repository: Repository,
    /// The storage.
    pub storage: BackupStorage,
}

/// Finds a Repository and its storage, for a Job in the Repository's namespace.
///
/// # Errors
/// One of them is not there; the storage's policy does not admit the namespace.
pub(crate) async fn find(cx: &Cx, namespace: &str, name: &str) -> Result<Destination, Failure> {
    let repository = cx.get::<Repository>(namespace, name).await?;
    let repository =
        repository.ok_or_else(|| Failure::Missing(format!("the Repository {name} does not exist")))?;
    of(cx, repository).await
}

/// Finds the storage of a Repository, for a Job in the Repository's namespace.
///
/// # Errors
/// It is not there; its policy does not admit the namespace.
pub(crate) async fn of(cx: &Cx, repository: Repository) -> Result<Destination, Failure> {
    let user = repository.namespace().unwrap_or_default();
    let name = storage_of(&repository);
    let storage = cx.get::<BackupStorage>(&name.namespace, &name.name).await?;
    let storage =
        storage.ok_or_else(|| Failure::Missing(format!("the BackupStorage {name} does not exist")))?;
    if !admitted(cx, &storage, &user).await? {
        let why = format!("the usagePolicy of BackupStorage {name} does not admit namespace {user}");
        return Err(Failure::Invalid(why));
    }
    Ok(Destination { repository, storage })
}

impl Destination {
    /// The files beside the restic repositories.
    ///
    /// # Errors
    /// The storage cannot be used from here; its Secret is not there.
    pub async fn layout(&self, cx: &Cx) -> Result<Layout, Failure> {
        Layout::open(cx, &self.storage).await
    }

    /// Where the restic repository in this folder of the Repository is; `credentials` names the folder of its keys.
    ///
    /// # Errors
    /// The storage cannot be used.
    pub fn place(&self, component: &str, credentials: &str) -> Result<Place, Failure> {
        let directory = folder(&self.repository.spec.path, component);
        Ok(backend::place(&self.storage.spec.storage, &directory, credentials)?)
    }

    /// The volume that the storage is, for a pod in the Repository's namespace.
    ///
    /// # Errors
    /// A claim of another namespace.
    pub fn volume(&self) -> Result<Option<Local>, Failure> {
        let local = self.storage.spec.storage.local.clone();
        let is_claim = local.as_ref().is_some_and(|local| local.persistent_volume_claim.is_some());
        if is_claim && self.storage.namespace() != self.repository.namespace() {
            let why = "a storage that is a claim can be used in its own namespace only";
            return Err(Failure::Invalid(why.into()));
        }
        Ok(local)
    }

    /// The keys that a Job in the Repository's namespace needs: those of the storage, and the password.
    ///
    /// # Errors
    /// A Secret is not there or lacks the password; one of another namespace does not allow the Job's.
    pub async fn keys(&self, cx: &Cx) -> Result<Keys, Failure> {
        let secret = self.repository.spec.encryption_secret.as_ref().ok_or_else(|| {
            Failure::Invalid(format!("the Repository {} has no encryptionSecret", self.repository.name_any()))
        })?;
        let user = self.repository.namespace().unwrap_or_default();
        let encryption = Name::of(secret, &user);
        if encryption.namespace != user {
            let found = world::the_secret(cx, &encryption).await?;
            if !usage::allows_from(found.metadata.annotations.as_ref(), &user) {
                let why = "is of another namespace, and its annotation cistern.dev/allow-from does not name this one";
                return Err(Failure::Invalid(format!("the Secret {encryption} {why}")));
            }
        }
        let of_storage = self.storage.namespace().unwrap_or_default();
        let storage = self.storage.spec.storage.secret_name().map(|name| Name::new(of_storage, name));
        world::keys(cx, &Credentials { place: String::new(), storage, encryption }).await
    }
}
