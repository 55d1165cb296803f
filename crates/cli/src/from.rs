//! Access to two repositories at once: one that is copied from, with a password of its own, and the usual one.

use std::sync::Arc;

use async_trait::async_trait;
use cistern_bucket::{Address, Bucket};
use cistern_engine::Role;
use cistern_repository::{Id, Options, Repository};
use secrecy::SecretString;

use crate::access::{Access, Handle};
use crate::args::FromRepository;
use crate::failure::Failure;

/// Access to a repository to copy from, and to everything else as ever. Its bucket is reached as a source is: with
/// `--endpoint` and not `--repo-endpoint`.
pub struct From {
    access: Arc<Access>,
    args: FromRepository,
    /// Where it is.
    pub address: Address,
    key_hint: Option<Id>,
}

impl From {
    /// Access as flags and environment say.
    ///
    /// # Errors
    /// No repository to copy from was given; a setting that cannot be understood.
    pub fn new(access: &Arc<Access>, args: FromRepository) -> Result<Self, Failure> {
        let address = access.source_repository(&args)?;
        let key_hint = access.source_key_hint(&args)?;
        Ok(From { access: access.clone(), args, address, key_hint })
    }

    /// Opens the repository to copy from.
    ///
    /// # Errors
    /// No access, no repository, wrong password.
    pub async fn repository(&self) -> Result<Repository, Failure> {
        let bucket = cistern_engine::repository_bucket(&self.address, Role::Source, self).await;
        let bucket = bucket.map_err(|error| self.access.failure(error))?;
        let password = self.access.source_secret(self.args.clone()).await?;
        let options = cistern_engine::Access::options(self, &self.address);
        Ok(Repository::open(bucket, &password, options).await?)
    }

    fn handle(&self) -> Handle {
        Handle(self.access.clone())
    }
}

#[async_trait]
impl cistern_engine::Access for From {
    async fn bucket(&self, address: &Address, role: Role) -> cistern_bucket::Result<Arc<dyn Bucket>> {
        self.handle().bucket(address, role).await
    }

    async fn password(&self, repository: &Address) -> cistern_engine::Result<SecretString> {
        if *repository != self.address {
            return self.handle().password(repository).await;
        }
        let found = self.access.source_secret(self.args.clone()).await;
        found.map_err(|failure| cistern_engine::Error::Invalid(self.access.keep(failure)))
    }

    fn options(&self, repository: &Address) -> Options {
        let mut options = self.access.options(repository);
        if *repository == self.address {
            options.key_hint = self.key_hint;
        }
        options
    }
}
