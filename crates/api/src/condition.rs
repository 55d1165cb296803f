//! Conditions: their types and reasons in one place, and how a list of them is kept.
//!
//! Published types carry published reasons; ours have types of their own. A condition's time changes with its status only,
//! so that nothing is written when nothing changed.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_with::skip_serializing_none;

/// One observation about an object.
#[skip_serializing_none]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is observed.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it is so.
    pub status: Truth,
    /// Generation of the object that was observed.
    pub observed_generation: Option<i64>,
    /// How bad it is; not written by us.
    pub severity: Option<String>,
    /// When the status last changed.
    pub last_transition_time: Time,
    /// The reason in one word.
    pub reason: Option<String>,
    /// The reason for a person.
    pub message: Option<String>,
}

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody knows.
    Unknown,
}

impl std::convert::From<bool> for Truth {
    fn from(holds: bool) -> Truth {
        if holds { Truth::True } else { Truth::False }
    }
}

/// A type of condition with the reasons that go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditionKind {
    /// Its type.
    pub name: &'static str,
    /// The reason when it is true.
    pub yes: &'static str,
    /// The reason when it is false.
    pub no: &'static str,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $const:ident = $name:literal, $yes:literal, $no:literal;)*) => {
        $($(#[$doc])* pub const $const: ConditionKind = ConditionKind { name: $name, yes: $yes, no: $no };)*
        /// Every type of condition that we write.
        pub const ALL: &[ConditionKind] = &[$($const),*];
    };
}

kinds! {
    /// Of a BackupStorage: its bucket answers and holds `metadata.yaml`.
    BACKEND_INITIALIZED = "BackendInitialized", "BackendInitializationSucceeded", "BackendInitializationFailed";
    /// Of a BackupStorage: the Secret that it names is there.
    BACKEND_SECRET_FOUND = "BackendSecretFound", "BackendSecretAvailable", "BackendSecretNotAvailable";
    /// Ours, of a BackupStorage: what its bucket held when it was first opened is in the cluster.
    REPOSITORIES_SYNCED = "RepositoriesSynced", "RepositoriesSynced", "RepositoriesNotSynced";
    /// Of a Repository: its `repository.yaml` is in the bucket.
    REPOSITORY_INITIALIZED = "RepositoryInitialized", "RepositoryInitializationSucceeded", "RepositoryInitializationFailed";
    /// Of a Snapshot: its YAML is in the bucket.
    SNAPSHOT_METADATA_UPLOADED = "SnapshotMetadataUploaded", "SuccessfullyUploadedSnapshotMetadata", "FailedToUploadSnapshotMetadata";
    /// Of a Snapshot: its Repository lists it.
    RECENT_SNAPSHOT_LIST_UPDATED = "RecentSnapshotListUpdated", "SuccessfullyUpdatedRecentSnapshotList", "FailedToUpdateRecentSnapshotList";
    /// Of a Snapshot: the Job ended before it was done. True is bad.
    BACKUP_INCOMPLETE = "BackupIncomplete", "BackupExecutorTerminatedBeforeCompletion", "";
    /// Of a BackupConfiguration or RestoreSession: it says what can be done.
    VALIDATION_PASSED = "ValidationPassed", "ResourceValidationPassed", "ResourceValidationFailed";
    /// Of a session of a BackupConfiguration: its CronJob is there.
    SCHEDULER_ENSURED = "SchedulerEnsured", "SchedulerEnsured", "SchedulerNotEnsured";
    /// Of a session of a BackupConfiguration: the first backup was triggered.
    INITIAL_BACKUP_TRIGGERED = "InitialBackupTriggered", "SuccessfullyTriggeredInitialBackup", "FailedToTriggerInitialBackup";
    /// Of a BackupSession: it was not run. Another reason is [`ANOTHER_SESSION_RUNNING`].
    BACKUP_SKIPPED = "BackupSkipped", "PreRequisitesNotSatisfied", "";
    /// Of a BackupSession: its Snapshots are there.
    SNAPSHOTS_ENSURED = "SnapshotsEnsured", "SuccessfullyEnsuredSnapshots", "FailedToEnsureSnapshots";
    /// Of a BackupSession: its Job is there.
    BACKUP_EXECUTOR_ENSURED = "BackupExecutorEnsured", "SuccessfullyEnsuredBackupExecutor", "FailedToEnsureBackupExecutor";
    /// Of a BackupSession: retention was seen to.
    RETENTION_POLICY_EXECUTOR_ENSURED = "RetentionPolicyExecutorEnsured", "SuccessfullyEnsuredRetentionPolicyExecutor", "FailedToEnsureRetentionPolicyExecutor";
    /// Of a BackupSession: the retention Job ended before it was done. True is bad.
    SNAPSHOT_CLEANUP_INCOMPLETE = "SnapshotCleanupIncomplete", "SnapshotCleanupTerminatedBeforeCompletion", "";
    /// Of a BackupSession: old sessions were removed.
    SESSION_HISTORY_CLEANED = "SessionHistoryCleaned", "SuccessfullyCleanedSessionHistory", "FailedToCleanSessionHistory";
    /// Of a session: its pod waits for a node or a volume; seen with status `Unknown`.
    POD_PENDING = "PodHasBeenInPendingStateForLongerThanExpected", "PodHasBeenInPendingStateForLongerThanExpected", "";
    /// Of a session: the mark of its end.
    METRICS_PUSHED = "MetricsPushed", "SuccessfullyPushedMetrics", "FailedToPushMetrics";
    /// Of a RestoreSession: its target is there.
    RESTORE_TARGET_FOUND = "RestoreTargetFound", "RestoreTargetFound", "UnableToCheckTargetAvailability";
    /// Of a RestoreSession: its Job is there.
    RESTORE_EXECUTOR_ENSURED = "RestoreExecutorEnsured", "SuccessfullyEnsuredRestoreExecutor", "FailedToEnsureRestoreExecutor";
    /// Of a RestoreSession: the Job ended before it was done. True is bad.
    RESTORE_INCOMPLETE = "RestoreIncomplete", "RestoreExecutorTerminatedBeforeCompletion", "";
    /// Ours, of a BackupSession or RestoreSession: its deadline passed before it was done. True is bad.
    DEADLINE_EXCEEDED = "DeadlineExceeded", "DeadlineExceeded", "";
    /// Ours, of a Snapshot: objects were left out as the user allows.
    SOURCE_EXCEPTIONS = "SourceExceptions", "SourceExceptions", "NoSourceExceptions";
}

/// Reason of [`BACKUP_SKIPPED`]: another session of the same configuration is running.
pub const ANOTHER_SESSION_RUNNING: &str = "AnotherBackupSessionRunning";

impl ConditionKind {
    /// The condition, observed now.
    pub fn is(self, holds: impl Into<Truth>, message: impl Into<String>, now: Timestamp) -> Condition {
        let status = holds.into();
        let reason = if status == Truth::False { self.no } else { self.yes };
        Condition {
            type_: self.name.into(),
            status,
            observed_generation: None,
            severity: None,
            last_transition_time: Time(now),
            reason: Some(reason.into()),
            message: Some(message.into()),
        }
    }

    /// Whether the list says that it holds; `None` if the list says nothing of it.
    pub fn in_list(self, list: &[Condition]) -> Option<Truth> {
        find(list, self).map(|condition| condition.status)
    }
}

impl Condition {
    /// The same with another reason than the kind's own.
    pub fn because(mut self, reason: impl Into<String>) -> Condition {
        self.reason = Some(reason.into());
        self
    }

    /// Whether it says that something is not as it should be: that it is false, or true of a kind that has no reason for
    /// being false.
    pub fn is_problem(&self) -> bool {
        let is_bad = ALL.iter().any(|kind| kind.name == self.type_ && kind.no.is_empty());
        self.status == if is_bad { Truth::True } else { Truth::False }
    }
}

/// The condition of this kind in the list.
pub fn find(list: &[Condition], kind: ConditionKind) -> Option<&Condition> {
    list.iter().find(|condition| condition.type_ == kind.name)
}

/// Puts a condition into the list, in the place of an older one of its type. The time of the older one stays unless the
/// status changed.
pub fn set(list: &mut Vec<Condition>, mut new: Condition) {
    match list.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => list.push(new),
    }
}

/// The message of the first condition that says that something is not as it should be.
pub fn first_problem(list: &[Condition]) -> Option<&str> {
    list.iter().find(|condition| condition.is_problem()).and_then(|condition| condition.message.as_deref())
}
