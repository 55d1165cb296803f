//! What a Job is to do, as the operator hands it over: one JSON document without secrets, and one folder of credentials.
//!
//! A Job's pod finds the document at [`TASK_FILE`] and the credentials below [`CREDENTIALS_DIR`], a folder for each
//! [`Place`], whose files are named as the keys of the Secrets that users write (`AWS_ACCESS_KEY_ID`,
//! `RESTIC_PASSWORD`, …). It reads nothing else of the cluster, and writes nothing but the status of the objects that the
//! document names.

use cistern_bucket::Address;
use cistern_engine::{OnUnreadable, Overwrite, Selection};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a Job's pod finds its document. Not below `/cistern`, which is the program in its image.
pub const TASK_FILE: &str = "/run/cistern/task/task.json";
/// Where a Job's pod finds its credentials: `<place>/<key>`.
pub const CREDENTIALS_DIR: &str = "/run/cistern/credentials";
/// Where a target's volume is mounted; also the path of the data in every snapshot.
pub const DATA_DIR: &str = "/kubestash-data";
/// Where a Job may write files of its own.
pub const SCRATCH_DIR: &str = "/kubestash-tmp";
/// Host name that snapshots of a cluster carry, so that parents are found although pod names change.
pub const HOST: &str = "host-0";
/// The one component of a target that is a claim.
pub const COMPONENT: &str = "dump";

/// One Job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "job", deny_unknown_fields)]
pub enum JobTask {
    /// Backs a target up into one or more repositories.
    Backup(BackupJob),
    /// Brings a snapshot back.
    Restore(RestoreJob),
    /// Removes restic snapshots that no Snapshot needs any more.
    Forget(ForgetJob),
    /// Frees space, and checks a part of the data.
    Maintain(MaintainJob),
}

/// A restic repository, and where its credentials lie.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// Name of the folder of credentials below [`CREDENTIALS_DIR`].
    pub credentials: String,
    /// Where the restic repository is: bucket with endpoint, and prefix with the component's folder.
    #[serde(with = "text")]
    pub address: Address,
    /// Region of the bucket.
    #[serde(default)]
    pub region: Option<String>,
    /// Accepts any certificate.
    #[serde(default)]
    pub insecure_tls: bool,
    /// Connections at the same time.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

/// Backs up [`DATA_DIR`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupJob {
    /// Namespace of the Snapshots.
    pub namespace: String,
    /// Name of the component in each Snapshot.
    pub component: String,
    /// What is read; absolute paths in the pod.
    pub paths: Vec<String>,
    /// What is meant of it.
    #[serde(default)]
    pub selection: Selection,
    /// What becomes of objects that cannot be read.
    #[serde(default)]
    pub on_unreadable: OnUnreadable,
    /// Share of keys (0 to 1) that may have vanished before the run is refused.
    pub max_shrink: f64,
    /// The word that accepts a source that shrank.
    #[serde(default)]
    pub accept_shrink: bool,
    /// Accepts a source without any object.
    #[serde(default)]
    pub allow_empty: bool,
    /// Whether the volume is a mounted bucket: files then have no inode numbers, owners and modes of their own.
    #[serde(default)]
    pub mounted_bucket: bool,
    /// Keeps files of the repository in [`SCRATCH_DIR`].
    pub enable_cache: bool,
    /// Where to, in order.
    pub repositories: Vec<BackupPlace>,
    /// When the run is over at the latest.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
}

/// One repository of a backup.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackupPlace {
    /// Name of the Snapshot object whose component is reported.
    pub snapshot: String,
    /// Folder of the component, relative to the Repository's, as the Snapshot shows it.
    pub path: String,
    /// The restic repository.
    pub place: Place,
}

/// Restores into [`DATA_DIR`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestoreJob {
    /// Namespace of the RestoreSession.
    pub namespace: String,
    /// Name of the RestoreSession.
    pub restore_session: String,
    /// The components, in order.
    pub components: Vec<RestorePart>,
    /// What is meant.
    #[serde(default)]
    pub selection: Selection,
    /// What becomes of files that are there already.
    #[serde(default)]
    pub overwrite: Overwrite,
    /// Deletes what the snapshot lacks.
    #[serde(default)]
    pub delete: bool,
    /// Whether the volume is a mounted bucket, where owners and modes cannot be set.
    #[serde(default)]
    pub mounted_bucket: bool,
    /// Keeps files of the repository in [`SCRATCH_DIR`].
    pub enable_cache: bool,
    /// When the run is over at the latest.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
}

/// One component of a restore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RestorePart {
    /// Name of the component in the RestoreSession.
    pub component: String,
    /// Ids of the restic snapshots that it is made of.
    pub snapshots: Vec<String>,
    /// The restic repository.
    pub place: Place,
}

/// Removes restic snapshots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForgetJob {
    /// Which, by repository.
    pub repositories: Vec<ForgetPlace>,
    /// When the run is over at the latest.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
}

/// Restic snapshots of one restic repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForgetPlace {
    /// Name of the Repository object, for the report.
    pub repository: String,
    /// Ids of the restic snapshots; one that is gone already is no error.
    pub snapshots: Vec<String>,
    /// The restic repository.
    pub place: Place,
}

/// Frees space in, and checks, restic repositories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MaintainJob {
    /// Frees what no snapshot needs.
    pub prune: bool,
    /// Reads back one of so many shares of the data, another one each week; 0 reads none.
    pub check_share: u32,
    /// The restic repositories.
    pub repositories: Vec<Place>,
    /// When the run is over at the latest.
    #[serde(default)]
    pub deadline: Option<Timestamp>,
}

/// How a Job ended, in its pod's termination message: understood without the API server. At most 4 kB.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// One entry for each repository (backup, forget, maintain) or component (restore), in the task's order.
    pub results: Vec<OutcomeLine>,
}

/// How one repository or component of a Job ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeLine {
    /// Name of the Snapshot, Repository or component.
    pub name: String,
    /// Why it failed; `None` is success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Ids of restic snapshots that were written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<String>,
}

/// An address as its text.
mod text {
    use cistern_bucket::Address;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(address)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
