//! Phases: what an object's conditions and parts add up to, as pure functions over its status.
//!
//! The rules are those that users' dashboards and scripts expect; of each function the first rule that fits decides. A
//! session stays `Running` until [`METRICS_PUSHED`](condition::METRICS_PUSHED) marks its end.

use crate::condition::{self, Condition, ConditionKind, Truth};
use crate::kinds::backup_configuration::{
    BackupConfigurationPhase, BackupConfigurationSpec, BackupConfigurationStatus,
};
use crate::kinds::backup_session::{
    BackupSessionPhase, BackupSessionStatus, RetentionPolicyPhase, SnapshotLine,
};
use crate::kinds::backup_storage::{BackupStoragePhase, BackupStorageStatus};
use crate::kinds::repository::{RepositoryPhase, RepositoryStatus};
use crate::kinds::restore_session::{RestorePhase, RestoreSessionStatus};
use crate::kinds::snapshot::{SnapshotPhase, SnapshotStatus};

fn is_true(list: &[Condition], kind: ConditionKind) -> bool {
    kind.in_list(list) == Some(Truth::True)
}

fn is_false(list: &[Condition], kind: ConditionKind) -> bool {
    kind.in_list(list) == Some(Truth::False)
}

/// Whether a storage can be used: its bucket answered, and the Secret that it may need is there.
pub fn backup_storage(status: &BackupStorageStatus) -> BackupStoragePhase {
    let list = &status.conditions;
    let secret = condition::BACKEND_SECRET_FOUND.in_list(list);
    match is_true(list, condition::BACKEND_INITIALIZED) && matches!(secret, None | Some(Truth::True)) {
        true => BackupStoragePhase::Ready,
        false => BackupStoragePhase::NotReady,
    }
}

/// Whether a Repository can be used.
pub fn repository(status: &RepositoryStatus) -> RepositoryPhase {
    match is_true(&status.conditions, condition::REPOSITORY_INITIALIZED) {
        true => RepositoryPhase::Ready,
        false => RepositoryPhase::NotReady,
    }
}

/// What a Snapshot's components add up to. Without `totalComponents` those that are there are all.
pub fn components(status: &SnapshotStatus) -> SnapshotPhase {
    let count = |phase| status.components.values().filter(|part| part.phase == Some(phase)).count();
    let (succeeded, failed) = (count(SnapshotPhase::Succeeded), count(SnapshotPhase::Failed));
    let total = total(status.total_components, status.components.len());
    if status.components.is_empty() {
        SnapshotPhase::Pending
    } else if succeeded == total {
        SnapshotPhase::Succeeded
    } else if failed > 0 {
        SnapshotPhase::Failed
    } else {
        SnapshotPhase::Running
    }
}

/// Where a Snapshot is in its life.
pub fn snapshot(status: &SnapshotStatus) -> SnapshotPhase {
    let list = &status.conditions;
    let parts = components(status);
    let failed = is_false(list, condition::SNAPSHOT_METADATA_UPLOADED)
        || is_false(list, condition::RECENT_SNAPSHOT_LIST_UPDATED)
        || is_true(list, condition::BACKUP_INCOMPLETE);
    if failed {
        SnapshotPhase::Failed
    } else if parts == SnapshotPhase::Pending
        || condition::find(list, condition::SNAPSHOT_METADATA_UPLOADED).is_some()
    {
        parts
    } else {
        SnapshotPhase::Running
    }
}

/// Whether a BackupConfiguration's schedules run. Repositories and `dependencies` do not count. Without backends in the
/// spec the default one counts, under no name.
pub fn backup_configuration(
    spec: &BackupConfigurationSpec,
    status: &BackupConfigurationStatus,
) -> BackupConfigurationPhase {
    if is_false(&status.conditions, condition::VALIDATION_PASSED) {
        return BackupConfigurationPhase::Invalid;
    }
    let is_ready = |name: Option<&str>| {
        let mut known = status.backends.iter();
        known.any(|b| b.name.as_deref().unwrap_or("") == name.unwrap_or("") && b.ready == Some(true))
    };
    let backends = match spec.backends.is_empty() {
        true => is_ready(None),
        false => spec.backends.iter().all(|backend| is_ready(backend.name.as_deref())),
    };
    let is_scheduled = |name: &str| {
        let mut known = status.sessions.iter();
        known.any(|s| s.name == name && is_true(&s.conditions, condition::SCHEDULER_ENSURED))
    };
    let sessions = spec.sessions.iter().all(|session| is_scheduled(&session.name));
    match status.target_found == Some(true) && backends && sessions {
        true => BackupConfigurationPhase::Ready,
        false => BackupConfigurationPhase::NotReady,
    }
}

/// What a session's Snapshots add up to.
pub fn snapshots(lines: &[SnapshotLine]) -> BackupSessionPhase {
    let phase = |line: &SnapshotLine| line.phase.unwrap_or_default();
    let all = |wanted: fn(SnapshotPhase) -> bool| lines.iter().all(|line| wanted(phase(line)));
    if all(|phase| phase == SnapshotPhase::Pending) {
        BackupSessionPhase::Pending
    } else if !all(SnapshotPhase::is_over) {
        BackupSessionPhase::Running
    } else if !all(|phase| phase == SnapshotPhase::Succeeded) {
        BackupSessionPhase::Failed
    } else {
        BackupSessionPhase::Succeeded
    }
}

/// Where a BackupSession is in its life. Besides the published rules, one whose deadline passed has failed.
pub fn backup_session(status: &BackupSessionStatus) -> BackupSessionPhase {
    let list = &status.conditions;
    let end = condition::METRICS_PUSHED.in_list(list);
    if end == Some(Truth::False) {
        return BackupSessionPhase::Failed;
    }
    if is_true(list, condition::BACKUP_SKIPPED) {
        return BackupSessionPhase::Skipped;
    }
    let failed = is_false(list, condition::BACKUP_EXECUTOR_ENSURED)
        || is_false(list, condition::SNAPSHOTS_ENSURED)
        || is_false(list, condition::SESSION_HISTORY_CLEANED)
        || is_true(list, condition::SNAPSHOT_CLEANUP_INCOMPLETE)
        || is_true(list, condition::DEADLINE_EXCEEDED)
        || retention_failed(status);
    if end == Some(Truth::True) && failed {
        return BackupSessionPhase::Failed;
    }
    let parts = snapshots(&status.snapshots);
    match parts == BackupSessionPhase::Pending || end.is_some() {
        true => parts,
        false => BackupSessionPhase::Running,
    }
}

fn retention_failed(status: &BackupSessionStatus) -> bool {
    status.retention_policy.iter().any(|line| line.phase == Some(RetentionPolicyPhase::FailedToApply))
}

/// Why a BackupSession failed, for hooks, events and metrics; `None` if nothing says so.
pub fn backup_session_failure(status: &BackupSessionStatus) -> Option<String> {
    let of_conditions = condition::first_problem(&status.conditions).map(ToOwned::to_owned);
    let failed = |line: &SnapshotLine| line.phase == Some(SnapshotPhase::Failed);
    of_conditions
        .or_else(|| {
            let any = status.snapshots.iter().any(failed);
            any.then(|| "one or more snapshots are failed".into())
        })
        .or_else(|| {
            retention_failed(status).then(|| "one or more retention policies are failed to apply".into())
        })
}

/// What the components of a restore add up to. Without `totalComponents` those that are there are all.
pub fn restored(status: &RestoreSessionStatus) -> RestorePhase {
    let count = |phase| status.components.values().filter(|part| part.phase == Some(phase)).count();
    let succeeded = count(RestorePhase::Succeeded);
    let failed = count(RestorePhase::Failed) + count(RestorePhase::Invalid);
    let unknown = count(RestorePhase::Unknown);
    let total = total(status.total_components, status.components.len());
    if status.components.is_empty() {
        RestorePhase::Pending
    } else if succeeded == total {
        RestorePhase::Succeeded
    } else if failed > 0 {
        RestorePhase::Failed
    } else if succeeded + unknown == total {
        RestorePhase::Unknown
    } else {
        RestorePhase::Running
    }
}

/// Where a RestoreSession is in its life. Besides the published rules, one whose deadline passed has failed.
pub fn restore_session(status: &RestoreSessionStatus) -> RestorePhase {
    let list = &status.conditions;
    let end = condition::METRICS_PUSHED.in_list(list);
    if end == Some(Truth::False) {
        return RestorePhase::Failed;
    }
    if is_false(list, condition::VALIDATION_PASSED) {
        return RestorePhase::Invalid;
    }
    let failed = is_false(list, condition::RESTORE_EXECUTOR_ENSURED)
        || is_true(list, condition::RESTORE_INCOMPLETE)
        || is_true(list, condition::DEADLINE_EXCEEDED);
    if end == Some(Truth::True) && failed {
        return RestorePhase::Failed;
    }
    let parts = restored(status);
    if parts == RestorePhase::Pending || end.is_some() || parts == RestorePhase::Unknown {
        parts
    } else {
        RestorePhase::Running
    }
}

/// The number of components that there are to be.
fn total(said: Option<i32>, there: usize) -> usize {
    said.and_then(|n| usize::try_from(n).ok()).unwrap_or(there)
}

#[cfg(test)]
mod tests;
