//! Labels, annotations and the finalizer: every magic word that objects carry, in one place.

/// Who manages an object; its value is [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const MANAGER: &str = "kubestash.com";
/// What an object is for.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// Value of [`COMPONENT`]: backs up.
pub const COMPONENT_BACKUP: &str = "kubestash-backup";
/// Value of [`COMPONENT`]: restores.
pub const COMPONENT_RESTORE: &str = "kubestash-restore";
/// Value of [`COMPONENT`]: removes what a policy does not keep.
pub const COMPONENT_RETENTION: &str = "kubestash-retention-policy";
/// Value of [`COMPONENT`]: deletes data.
pub const COMPONENT_CLEANER: &str = "kubestash-cleaner";
/// Kind of the object that another one was made for.
pub const INVOKER_KIND: &str = "kubestash.com/invoker-kind";
/// Name of the object that another one was made for.
pub const INVOKER_NAME: &str = "kubestash.com/invoker-name";
/// Namespace of the object that another one was made for.
pub const INVOKER_NAMESPACE: &str = "kubestash.com/invoker-namespace";
/// Session that an object was made for.
pub const SESSION_NAME: &str = "kubestash.com/session-name";
/// Repository that an object belongs to.
pub const REPO_NAME: &str = "kubestash.com/repo-name";
/// Kind of what was backed up.
pub const APP_REF_KIND: &str = "kubestash.com/app-ref-kind";
/// Namespace of what was backed up.
pub const APP_REF_NAMESPACE: &str = "kubestash.com/app-ref-namespace";
/// Name of what was backed up.
pub const APP_REF_NAME: &str = "kubestash.com/app-ref-name";
/// Keeps an object until what lies outside of the cluster is seen to.
pub const FINALIZER: &str = "kubestash.com/cleanup";
/// Annotation, ours: namespaces that may refer to the object.
pub const ALLOW_FROM: &str = "cistern.dev/allow-from";
/// Annotation of a Namespace, ours: storages whose repositories may be discovered into it.
pub const ACCEPT_FROM: &str = "cistern.dev/accept-from";
/// Annotation of a BackupConfiguration, ours: the refused BackupSession whose shrunken source is accepted.
pub const ACCEPT_SHRINK: &str = "cistern.dev/accept-shrink";
