//! What there is beside the document that is looked at: filled by whoever can look, a cluster's client or a folder's reader.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::kinds::shared::{From, ObjRef, UsagePolicy};
use crate::kinds::{
    Addon, BackupConfiguration, BackupStorage, Function, Repository, RetentionPolicy, Snapshot,
};
use crate::usage;

/// Name of an object that lies in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Name {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Name {
    /// The name in a namespace.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Name {
        Name { namespace: namespace.into(), name: name.into() }
    }

    /// What a reference of an object in `namespace` means.
    pub fn of(reference: &ObjRef, namespace: &str) -> Name {
        let other = reference.namespace.as_deref().filter(|text| !text.is_empty());
        Name::new(other.unwrap_or(namespace), &reference.name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What is known of a Secret without its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretFacts {
    /// Names of its values.
    pub keys: BTreeSet<String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What is known of a PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimFacts {
    /// Name of the CSI driver that mounts its volume; `None` is another kind of volume, or one that is not bound yet.
    pub driver: Option<String>,
}

impl ClaimFacts {
    /// Whether the volume is a bucket that is mounted: files then have no inode numbers, owners and modes of their own.
    pub fn is_mounted_bucket(&self) -> bool {
        self.driver.as_deref().is_some_and(|driver| BUCKET_DRIVERS.contains(&driver))
    }
}

/// CSI drivers that mount buckets: of S3 and what speaks its protocol, of Google Cloud Storage, of Azure Blob.
pub const BUCKET_DRIVERS: [&str; 5] = [
    "ru.yandex.s3.csi",
    "s3.csi.aws.com",
    "ch.ctrox.csi.s3-driver",
    "gcsfuse.csi.storage.gke.io",
    "blob.csi.azure.com",
];

/// Looked-up documents. What is not in here is taken for what is not there.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Storages; all that may be the default one.
    pub storages: BTreeMap<Name, BackupStorage>,
    /// Policies; all that may be the default one.
    pub policies: BTreeMap<Name, RetentionPolicy>,
    /// Configurations.
    pub configurations: BTreeMap<Name, BackupConfiguration>,
    /// Repositories; all of a storage, or two may share a folder.
    pub repositories: BTreeMap<Name, Repository>,
    /// Snapshots.
    pub snapshots: BTreeMap<Name, Snapshot>,
    /// Addons.
    pub addons: BTreeMap<String, Addon>,
    /// Functions.
    pub functions: BTreeMap<String, Function>,
    /// Secrets.
    pub secrets: BTreeMap<Name, SecretFacts>,
    /// Claims.
    pub claims: BTreeMap<Name, ClaimFacts>,
    /// Labels of namespaces.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
}

impl World {
    /// The labels of a namespace; each carries its name.
    pub fn labels(&self, namespace: &str) -> BTreeMap<String, String> {
        let mut labels = self.namespaces.get(namespace).cloned().unwrap_or_default();
        labels.insert("kubernetes.io/metadata.name".into(), namespace.into());
        labels
    }

    /// Whether a policy of an object in namespace `own` lets objects of `namespace` refer to it.
    pub fn admits(&self, policy: Option<&UsagePolicy>, own: &str, namespace: &str) -> bool {
        usage::admits(policy, own, namespace, &self.labels(namespace))
    }

    /// The storage that is meant when an object of the namespace names none.
    pub fn default_storage(&self, namespace: &str) -> Option<&Name> {
        let all = self.storages.iter().filter(|(_, storage)| storage.spec.default == Some(true));
        self.first_default(all.map(|(name, storage)| (name, storage.spec.usage_policy.as_ref())), namespace)
    }

    /// The policy that is meant when an object of the namespace names none.
    pub fn default_policy(&self, namespace: &str) -> Option<&Name> {
        let all = self.policies.iter().filter(|(_, policy)| policy.spec.default == Some(true));
        self.first_default(all.map(|(name, policy)| (name, policy.spec.usage_policy.as_ref())), namespace)
    }

    /// The namespace's own before those that a selector admits, these before those for all.
    fn first_default<'a>(
        &self,
        all: impl Iterator<Item = (&'a Name, Option<&'a UsagePolicy>)>,
        namespace: &str,
    ) -> Option<&'a Name> {
        let from = |policy: Option<&UsagePolicy>| policy.map_or(From::Same, |p| p.allowed_namespaces.from);
        let admitted = all.filter(|(name, policy)| self.admits(*policy, &name.namespace, namespace));
        let rank = |policy: Option<&UsagePolicy>| match from(policy) {
            From::Same => 0,
            From::Selector => 1,
            From::All => 2,
        };
        admitted.min_by_key(|(_, policy)| rank(*policy)).map(|(name, _)| name)
    }
}
