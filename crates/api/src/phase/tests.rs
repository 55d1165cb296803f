//! Tables of the phase functions: every rule alone, and rules that compete.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::*;
use crate::kinds::backup_configuration::{Backend, BackendStatus, Session, SessionStatus};
use crate::kinds::backup_session::RetentionPolicyLine;
use crate::kinds::restore_session::RestoreComponent;
use crate::kinds::snapshot::Component;

/// `+Name` is a condition that is true, `-Name` false, `?Name` unknown; words are separated by spaces.
fn conditions(text: &str) -> Vec<Condition> {
    let condition = |word: &str| {
        let (sign, name) = word.split_at(1);
        let kind = condition::ALL.iter().find(|kind| kind.name == name).expect("a known condition");
        let truth = match sign {
            "+" => Truth::True,
            "-" => Truth::False,
            _ => Truth::Unknown,
        };
        kind.is(truth, format!("about {name}"), Timestamp::UNIX_EPOCH)
    };
    text.split_whitespace().map(condition).collect()
}

/// `P`ending, `R`unning, `S`ucceeded, `F`ailed.
fn phases(letters: &str) -> Vec<SnapshotPhase> {
    let phase = |letter| match letter {
        'P' => SnapshotPhase::Pending,
        'R' => SnapshotPhase::Running,
        'S' => SnapshotPhase::Succeeded,
        'F' => SnapshotPhase::Failed,
        other => panic!("no phase {other}"),
    };
    letters.chars().map(phase).collect()
}

#[test]
fn a_storage_needs_its_bucket_and_its_secret() {
    for (text, expected) in [
        ("", BackupStoragePhase::NotReady),
        ("+BackendInitialized", BackupStoragePhase::Ready),
        ("+BackendInitialized +BackendSecretFound", BackupStoragePhase::Ready),
        ("+BackendInitialized -BackendSecretFound", BackupStoragePhase::NotReady),
        ("+BackendInitialized ?BackendSecretFound", BackupStoragePhase::NotReady),
        ("-BackendInitialized +BackendSecretFound", BackupStoragePhase::NotReady),
        ("+BackendSecretFound", BackupStoragePhase::NotReady),
    ] {
        let status = BackupStorageStatus { conditions: conditions(text), ..Default::default() };
        assert_eq!(backup_storage(&status), expected, "{text}");
    }
}

#[test]
fn a_repository_needs_its_file() {
    for (text, expected) in [
        ("", RepositoryPhase::NotReady),
        ("-RepositoryInitialized", RepositoryPhase::NotReady),
        ("?RepositoryInitialized", RepositoryPhase::NotReady),
        ("+RepositoryInitialized", RepositoryPhase::Ready),
    ] {
        let status = RepositoryStatus { conditions: conditions(text), ..Default::default() };
        assert_eq!(repository(&status), expected, "{text}");
    }
}

fn of_components(letters: &str, total: i32, text: &str) -> SnapshotStatus {
    let part = |phase| Component { phase: Some(phase), ..Default::default() };
    let parts = phases(letters).into_iter().enumerate().map(|(i, phase)| (format!("dump-{i}"), part(phase)));
    SnapshotStatus {
        components: parts.collect(),
        total_components: (total > 0).then_some(total),
        conditions: conditions(text),
        ..Default::default()
    }
}

#[test]
fn components_count_against_their_total() {
    use SnapshotPhase::*;
    for (letters, total, expected) in [
        ("", 1, Pending),
        ("P", 1, Running),
        ("R", 1, Running),
        ("S", 1, Succeeded),
        ("F", 1, Failed),
        ("S", 2, Running),
        ("SS", 2, Succeeded),
        ("SF", 2, Failed),
        ("F", 2, Failed),
        ("RF", 2, Failed),
        ("SS", 0, Succeeded),
        ("SR", 0, Running),
    ] {
        assert_eq!(components(&of_components(letters, total, "")), expected, "{letters} of {total}");
    }
}

#[test]
fn a_snapshot_is_done_when_its_file_is_in_the_bucket() {
    use SnapshotPhase::*;
    for (letters, text, expected) in [
        ("", "", Pending),
        ("R", "", Running),
        ("S", "", Running),
        ("F", "", Running),
        ("S", "+RecentSnapshotListUpdated", Running),
        ("S", "+SnapshotMetadataUploaded", Succeeded),
        ("F", "+SnapshotMetadataUploaded", Failed),
        ("S", "?SnapshotMetadataUploaded", Succeeded),
        ("S", "-SnapshotMetadataUploaded", Failed),
        ("S", "+SnapshotMetadataUploaded -RecentSnapshotListUpdated", Failed),
        ("S", "+SnapshotMetadataUploaded +BackupIncomplete", Failed),
        ("", "+BackupIncomplete", Failed),
        ("R", "-BackupIncomplete", Running),
    ] {
        assert_eq!(snapshot(&of_components(letters, 1, text)), expected, "{letters} {text}");
    }
}

#[test]
fn a_configuration_is_ready_when_target_backends_and_schedules_are() {
    use BackupConfigurationPhase::*;
    let backend = |name: &str| Backend { name: Some(name.into()), ..Default::default() };
    let session = |name: &str| Session { name: name.into(), ..Default::default() };
    let spec = BackupConfigurationSpec {
        backends: vec![backend("a"), backend("b")],
        sessions: vec![session("hourly"), session("daily")],
        ..Default::default()
    };
    let found = |(name, ready): &(&str, bool)| BackendStatus {
        name: Some((*name).into()),
        ready: Some(*ready),
        ..Default::default()
    };
    let scheduled = |(name, text): &(&str, &str)| SessionStatus {
        name: (*name).into(),
        conditions: conditions(text),
        ..Default::default()
    };
    let status =
        |text, target, backends: &[(&str, bool)], sessions: &[(&str, &str)]| BackupConfigurationStatus {
            conditions: conditions(text),
            target_found: target,
            backends: backends.iter().map(found).collect(),
            sessions: sessions.iter().map(scheduled).collect(),
            ..Default::default()
        };
    let both = [("a", true), ("b", true)];
    let ran = [("hourly", "+SchedulerEnsured"), ("daily", "+SchedulerEnsured")];
    let ok = "+ValidationPassed";
    for (status, expected) in [
        (status(ok, Some(true), &both, &ran), Ready),
        (status("", Some(true), &both, &ran), Ready),
        (status("-ValidationPassed", Some(true), &both, &ran), Invalid),
        (status(ok, Some(false), &both, &ran), NotReady),
        (status(ok, None, &both, &ran), NotReady),
        (status(ok, Some(true), &both[..1], &ran), NotReady),
        (status(ok, Some(true), &[("a", true), ("b", false)], &ran), NotReady),
        (status(ok, Some(true), &both, &ran[..1]), NotReady),
        (status(ok, Some(true), &both, &[ran[0], ("daily", "-SchedulerEnsured")]), NotReady),
        // A status of a session that is no longer there stands for no other one.
        (status(ok, Some(true), &both, &[ran[0], ("weekly", "+SchedulerEnsured")]), NotReady),
        (BackupConfigurationStatus::default(), NotReady),
    ] {
        assert_eq!(backup_configuration(&spec, &status), expected, "{status:?}");
    }
    let defaulted = BackupConfigurationSpec { backends: Vec::new(), ..spec };
    let mut of_default = status(ok, Some(true), &[], &ran);
    assert_eq!(backup_configuration(&defaulted, &of_default), NotReady);
    of_default.backends = vec![BackendStatus { ready: Some(true), ..Default::default() }];
    assert_eq!(backup_configuration(&defaulted, &of_default), Ready);
}

fn of_snapshots(letters: &str, text: &str) -> BackupSessionStatus {
    let line = |phase| SnapshotLine { phase: Some(phase), ..Default::default() };
    BackupSessionStatus {
        snapshots: phases(letters).into_iter().map(line).collect(),
        conditions: conditions(text),
        ..Default::default()
    }
}

#[test]
fn a_session_runs_until_its_end_is_marked() {
    use BackupSessionPhase::*;
    for (letters, text, expected) in [
        ("", "", Pending),
        ("P", "+SnapshotsEnsured", Pending),
        ("PP", "", Pending),
        ("PS", "", Running),
        ("RS", "", Running),
        ("S", "", Running),
        ("F", "", Running),
        ("S", "+MetricsPushed", Succeeded),
        ("SF", "+MetricsPushed", Failed),
        ("S", "-MetricsPushed", Failed),
        ("", "+BackupSkipped", Skipped),
        ("", "+BackupSkipped +MetricsPushed", Skipped),
        ("", "+BackupSkipped -MetricsPushed", Failed),
        ("", "-SnapshotsEnsured", Pending),
        ("", "-SnapshotsEnsured +MetricsPushed", Failed),
        ("S", "-BackupExecutorEnsured", Running),
        ("S", "-BackupExecutorEnsured +MetricsPushed", Failed),
        ("S", "-SessionHistoryCleaned +MetricsPushed", Failed),
        ("S", "+SnapshotCleanupIncomplete +MetricsPushed", Failed),
        ("S", "-RetentionPolicyExecutorEnsured +MetricsPushed", Succeeded),
        ("R", "+DeadlineExceeded", Running),
        ("R", "+DeadlineExceeded +MetricsPushed", Failed),
    ] {
        assert_eq!(backup_session(&of_snapshots(letters, text)), expected, "{letters} {text}");
    }
}

#[test]
fn a_policy_that_was_not_applied_fails_its_session() {
    let mut status = of_snapshots("S", "+MetricsPushed");
    let line = |phase| RetentionPolicyLine { phase: Some(phase), ..Default::default() };
    status.retention_policy = vec![line(RetentionPolicyPhase::Applied)];
    assert_eq!(backup_session(&status), BackupSessionPhase::Succeeded);
    assert_eq!(backup_session_failure(&status), None);
    status.retention_policy.push(line(RetentionPolicyPhase::FailedToApply));
    assert_eq!(backup_session(&status), BackupSessionPhase::Failed);
    let failure = |status: &BackupSessionStatus| backup_session_failure(status).expect("it failed");
    assert_eq!(failure(&status), "one or more retention policies are failed to apply");
    status.snapshots[0].phase = Some(SnapshotPhase::Failed);
    assert_eq!(failure(&status), "one or more snapshots are failed");
    status.conditions = conditions("+SnapshotsEnsured -BackupExecutorEnsured -SessionHistoryCleaned");
    assert_eq!(failure(&status), "about BackupExecutorEnsured");
    status.conditions = conditions("+BackupExecutorEnsured +DeadlineExceeded +MetricsPushed");
    assert_eq!(failure(&status), "about DeadlineExceeded");
}

#[test]
fn a_restore_runs_until_its_end_is_marked() {
    use RestorePhase::*;
    for (parts, total, text, expected) in [
        (vec![], 0, "", Pending),
        (vec![], 1, "+ValidationPassed", Pending),
        (vec![], 1, "-ValidationPassed", Invalid),
        (vec![], 1, "-ValidationPassed -MetricsPushed", Failed),
        (vec![Running], 1, "", Running),
        (vec![Succeeded], 1, "", Running),
        (vec![Succeeded], 1, "+MetricsPushed", Succeeded),
        (vec![Succeeded], 1, "-MetricsPushed", Failed),
        (vec![Succeeded], 2, "+MetricsPushed", Running),
        (vec![Succeeded, Failed], 2, "+MetricsPushed", Failed),
        (vec![Failed], 2, "", Running),
        (vec![Succeeded, Unknown], 2, "", Unknown),
        (vec![Failed, Unknown], 2, "+MetricsPushed", Failed),
        (vec![Running, Unknown], 2, "", Running),
        (vec![Succeeded], 1, "-RestoreExecutorEnsured +MetricsPushed", Failed),
        (vec![Succeeded], 1, "+RestoreIncomplete +MetricsPushed", Failed),
        (vec![Running], 1, "+RestoreIncomplete", Running),
        (vec![Running], 1, "+DeadlineExceeded +MetricsPushed", Failed),
    ] {
        let part = |phase: &RestorePhase| RestoreComponent { phase: Some(*phase), ..Default::default() };
        let components: BTreeMap<_, _> =
            parts.iter().enumerate().map(|(i, phase)| (format!("dump-{i}"), part(phase))).collect();
        let status = RestoreSessionStatus {
            components,
            total_components: (total > 0).then_some(total),
            conditions: conditions(text),
            ..Default::default()
        };
        assert_eq!(restore_session(&status), expected, "{parts:?} of {total} {text}");
    }
}
