//! What dashboards show of the objects: a gauge for each observation, under the names that they know.
//!
//! Everything is computed from the objects whenever somebody asks. `created` and other times are in seconds since 1970;
//! of a phase there is one series for each that is possible.

use cistern_api::condition::Condition;
use cistern_api::kinds::shared::TypedRef;
use cistern_api::kinds::{
    BackupConfiguration, BackupSession, BackupStorage, Repository, RestoreSession, Snapshot,
};
use cistern_api::size;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;

/// Names and values of the labels of one series.
pub type Labels = Vec<(String, String)>;

/// One number: name of its series, labels, value.
pub type Sample = (&'static str, Labels, f64);

/// An object that shows numbers.
pub trait Series {
    /// Its numbers.
    fn series(&self) -> Vec<Sample>;
}

/// The names of all series, with what they say.
pub const NAMES: &[(&str, &str)] = &[
    ("core_kubestash_com_backupconfiguration_created", "When it was created"),
    ("core_kubestash_com_backupconfiguration_info", "What it is"),
    ("core_kubestash_com_backupconfiguration_sessions", "Its sessions"),
    ("core_kubestash_com_backupconfiguration_phase", "Its phase"),
    ("core_kubestash_com_backupconfiguration_conditions", "Its conditions"),
    ("core_kubestash_com_backupsession_created", "When it was created"),
    ("core_kubestash_com_backupsession_info", "What it is"),
    ("core_kubestash_com_backupsession_snapshots", "Its Snapshots"),
    ("core_kubestash_com_backupsession_phase", "Its phase"),
    ("core_kubestash_com_backupsession_duration_seconds", "How long it took"),
    ("core_kubestash_com_backupsession_conditions", "Its conditions"),
    ("core_kubestash_com_restoresession_created", "When it was created"),
    ("core_kubestash_com_restoresession_info", "What it is"),
    ("core_kubestash_com_restoresession_phase", "Its phase"),
    ("core_kubestash_com_restoresession_duration_seconds", "How long it took"),
    ("core_kubestash_com_restoresession_component_count_total", "Number of its components"),
    ("core_kubestash_com_restoresession_conditions", "Its conditions"),
    ("storage_kubestash_com_backupstorage_created", "When it was created"),
    ("storage_kubestash_com_backupstorage_info", "What it is"),
    ("storage_kubestash_com_backupstorage_repository_size_bytes", "What is stored in a Repository"),
    ("storage_kubestash_com_backupstorage_phase", "Its phase"),
    ("storage_kubestash_com_backupstorage_size_bytes", "What is stored in it"),
    ("storage_kubestash_com_backupstorage_conditions", "Its conditions"),
    ("storage_kubestash_com_repository_created", "When it was created"),
    ("storage_kubestash_com_repository_info", "What it is"),
    ("storage_kubestash_com_repository_last_successful_backup", "When a backup last succeeded"),
    ("storage_kubestash_com_repository_size_bytes", "What is stored in it"),
    ("storage_kubestash_com_repository_snapshot_count_total", "Number of its Snapshots"),
    ("storage_kubestash_com_repository_conditions", "Its conditions"),
    ("storage_kubestash_com_snapshot_created", "When it was created"),
    ("storage_kubestash_com_snapshot_info", "What it is"),
    ("storage_kubestash_com_snapshot_phase", "Its phase"),
    ("storage_kubestash_com_snapshot_size_bytes", "What is stored for it"),
    ("storage_kubestash_com_snapshot_time_seconds", "When it was taken"),
    ("storage_kubestash_com_snapshot_component_count_total", "Number of its components"),
    ("storage_kubestash_com_snapshot_conditions", "Its conditions"),
];

/// Numbers of one object while they are gathered.
struct Sheet {
    prefix: String,
    common: Labels,
    samples: Vec<Sample>,
}

impl Sheet {
    fn new<K: Resource<DynamicType = ()> + ResourceExt>(
        object: &K,
        prefix: &str,
        common: Vec<(&str, String)>,
    ) -> Sheet {
        let space = [("namespace", object.namespace().unwrap_or_default())].into_iter();
        let common = space.chain(common).map(|(name, value)| (name.to_owned(), value)).collect();
        let mut sheet = Sheet { prefix: prefix.to_owned(), common, samples: Vec::new() };
        if let Some(time) = object.creation_timestamp() {
            sheet.add("created", vec![], time.0.as_second() as f64);
        }
        sheet
    }

    fn add(&mut self, name: &str, labels: Vec<(&str, String)>, value: f64) {
        let wanted = format!("{}{name}", self.prefix);
        let known = NAMES.iter().find(|(known, _)| *known == wanted);
        let (known, _) = known.expect("every series is in the list of names");
        let own = labels.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.samples.push((known, self.common.iter().cloned().chain(own).collect(), value));
    }

    fn size(&mut self, name: &str, text: Option<&String>) {
        if let Some(bytes) = text.and_then(|text| size::parse_size(text)) {
            self.add(name, vec![], bytes as f64);
        }
    }

    fn phase(&mut self, phase: &str, all: &[&str]) {
        for one in all {
            self.add("phase", vec![("phase", (*one).to_owned())], f64::from(*one == phase));
        }
    }

    fn conditions(&mut self, conditions: &[Condition]) {
        for condition in conditions {
            let labels = vec![("condition", condition.type_.clone()), ("status", word(&condition.status))];
            self.add("conditions", labels, 1.0);
        }
    }
}

/// The word by which JSON has a value of a closed set.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(Value::Bool(truth)) => truth.to_string(),
        _ => String::new(),
    }
}

fn target(target: Option<&TypedRef>, namespace: Option<String>) -> Vec<(&'static str, String)> {
    let na = || "na".to_owned();
    let space = target.map(|target| target.namespace.clone().or(namespace).unwrap_or_default());
    vec![
        ("target_kind", target.and_then(|target| target.kind.clone()).unwrap_or_else(na)),
        ("target_name", target.map_or_else(na, |target| target.name.clone())),
        ("target_namespace", space.unwrap_or_else(na)),
    ]
}

fn invoker<K: Resource<DynamicType = ()> + ResourceExt>(object: &K) -> Vec<(&'static str, String)> {
    vec![("invoker_kind", K::kind(&()).into_owned()), ("invoker_name", object.name_any())]
}

/// Seconds of a Go duration.
fn seconds(text: Option<&String>) -> Option<f64> {
    let duration: kube::core::Duration = text?.parse().ok()?;
    Some(std::time::Duration::from(duration).as_secs_f64())
}

impl Series for BackupConfiguration {
    fn series(&self) -> Vec<Sample> {
        let mut common = vec![
            ("backup_invoker_kind", Self::kind(&()).into_owned()),
            ("backup_invoker_name", self.name_any()),
        ];
        common.extend(target(self.spec.target.as_ref(), self.namespace()));
        let mut sheet = Sheet::new(self, "core_kubestash_com_backupconfiguration_", common);
        sheet.add("info", vec![], 1.0);
        for session in &self.spec.sessions {
            let schedule = session.scheduler.as_ref().map(|scheduler| scheduler.schedule.clone());
            let addon = session.addon.as_ref().and_then(|addon| addon.name.clone());
            let labels = vec![
                ("session_name", session.name.clone()),
                ("schedule", schedule.unwrap_or_default()),
                ("addon_name", addon.unwrap_or_default()),
            ];
            sheet.add("sessions", labels, 1.0);
        }
        let status = self.status.clone().unwrap_or_default();
        sheet.phase(&word(&status.phase), &["Ready", "NotReady", "Invalid"]);
        sheet.conditions(&status.conditions);
        sheet.samples
    }
}

impl Series for BackupSession {
    fn series(&self) -> Vec<Sample> {
        let mut common = invoker(self);
        common.push(("backup_invoker_kind", self.spec.invoker.kind.clone()));
        common.push(("backup_invoker_name", self.spec.invoker.name.clone()));
        let mut sheet = Sheet::new(self, "core_kubestash_com_backupsession_", common);
        let status = self.status.clone().unwrap_or_default();
        let session = self.spec.session.clone().unwrap_or_default();
        sheet.add("info", vec![("session", session), ("phase", word(&status.phase))], 1.0);
        for line in &status.snapshots {
            let app = line.app_ref.clone().unwrap_or_default();
            let labels = vec![
                ("snapshot_name", line.name.clone()),
                ("snapshot_phase", word(&line.phase)),
                ("repository", line.repository.clone().unwrap_or_default()),
                ("backedup_app_kind", app.kind.unwrap_or_default()),
                ("backedup_app_name", app.name),
                ("backedup_app_namespace", app.namespace.unwrap_or_default()),
            ];
            sheet.add("snapshots", labels, 1.0);
        }
        sheet.phase(&word(&status.phase), &["Pending", "Running", "Succeeded", "Failed", "Skipped"]);
        if let Some(seconds) = seconds(status.duration.as_ref()) {
            sheet.add("duration_seconds", vec![], seconds);
        }
        sheet.conditions(&status.conditions);
        sheet.samples
    }
}

impl Series for RestoreSession {
    fn series(&self) -> Vec<Sample> {
        let mut common = invoker(self);
        common.extend(target(self.spec.target.as_ref(), self.namespace()));
        let mut sheet = Sheet::new(self, "core_kubestash_com_restoresession_", common);
        let status = self.status.clone().unwrap_or_default();
        let source = serde_json::to_value(&self.spec).unwrap_or_default();
        let said =
            |pointer: &str| source.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let labels = vec![
            ("datasource_namespace", said("/dataSource/namespace")),
            ("repository", said("/dataSource/repository")),
            ("snapshot", said("/dataSource/snapshot")),
            ("addon_name", said("/addon/name")),
            ("phase", word(&status.phase)),
        ];
        sheet.add("info", labels, 1.0);
        let phases = ["Pending", "Running", "Failed", "Succeeded", "Invalid", "Unknown"];
        sheet.phase(&word(&status.phase), &phases);
        if let Some(seconds) = seconds(status.duration.as_ref()) {
            sheet.add("duration_seconds", vec![], seconds);
        }
        if let Some(count) = status.total_components {
            sheet.add("component_count_total", vec![], f64::from(count));
        }
        sheet.conditions(&status.conditions);
        sheet.samples
    }
}

impl Series for BackupStorage {
    fn series(&self) -> Vec<Sample> {
        let mut sheet = Sheet::new(self, "storage_kubestash_com_backupstorage_", invoker(self));
        let status = self.status.clone().unwrap_or_default();
        let labels = vec![
            ("provider", self.spec.storage.provider.clone()),
            ("default", self.spec.default.unwrap_or_default().to_string()),
            ("deletionPolicy", word(&self.spec.deletion_policy)),
            ("phase", word(&status.phase)),
        ];
        sheet.add("info", labels, 1.0);
        for line in &status.repositories {
            let Some(bytes) = line.size.as_ref().and_then(|text| size::parse_size(text)) else { continue };
            let labels = vec![
                ("repo_name", line.name.clone()),
                ("repo_namespace", line.namespace.clone().unwrap_or_default()),
                ("repo_path", line.path.clone().unwrap_or_default()),
            ];
            sheet.add("repository_size_bytes", labels, bytes as f64);
        }
        sheet.phase(&word(&status.phase), &["Ready", "NotReady"]);
        sheet.size("size_bytes", status.total_size.as_ref());
        sheet.conditions(&status.conditions);
        sheet.samples
    }
}

impl Series for Repository {
    fn series(&self) -> Vec<Sample> {
        let mut common = invoker(self);
        common.extend(target(self.spec.app_ref.as_ref(), self.namespace()));
        let mut sheet = Sheet::new(self, "storage_kubestash_com_repository_", common);
        let status = self.status.clone().unwrap_or_default();
        let labels = vec![
            ("path", self.spec.path.clone()),
            ("phase", word(&status.phase)),
            ("integrity", word(&status.integrity)),
        ];
        sheet.add("info", labels, 1.0);
        if let Some(time) = &status.last_backup_time {
            sheet.add("last_successful_backup", vec![], time.0.as_second() as f64);
        }
        sheet.size("size_bytes", status.size.as_ref());
        sheet.add("snapshot_count_total", vec![], f64::from(status.snapshot_count.unwrap_or(0)));
        sheet.conditions(&status.conditions);
        sheet.samples
    }
}

impl Series for Snapshot {
    fn series(&self) -> Vec<Sample> {
        let mut common = invoker(self);
        common.extend(target(self.spec.app_ref.as_ref(), self.namespace()));
        let mut sheet = Sheet::new(self, "storage_kubestash_com_snapshot_", common);
        let status = self.status.clone().unwrap_or_default();
        let labels = vec![
            ("snapshot_type", self.spec.type_.clone().unwrap_or_default()),
            ("repository", self.spec.repository.clone()),
            ("session", self.spec.session.clone().unwrap_or_default()),
            ("backupsession", self.spec.backup_session.clone().unwrap_or_default()),
            ("version", self.spec.version.clone().unwrap_or_default()),
            ("phase", word(&status.phase)),
            ("integrity", word(&status.integrity)),
        ];
        sheet.add("info", labels, 1.0);
        sheet.phase(&word(&status.phase), &["Pending", "Running", "Succeeded", "Failed"]);
        sheet.size("size_bytes", status.size.as_ref());
        if let Some(time) = &status.snapshot_time {
            sheet.add("time_seconds", vec![], time.0.as_second() as f64);
        }
        if let Some(count) = status.total_components {
            sheet.add("component_count_total", vec![], f64::from(count));
        }
        sheet.conditions(&status.conditions);
        sheet.samples
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn every_series_is_shown_by_some_object() {
        let object = |spec: Value, status: Value| {
            json!({
                "metadata": { "name": "n", "namespace": "demo", "creationTimestamp": "2026-01-01T00:00:00Z" },
                "spec": spec, "status": status,
            })
        };
        let condition =
            json!([{ "type": "A", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        let configuration: BackupConfiguration = serde_json::from_value(object(
            json!({ "sessions": [{ "name": "s", "scheduler": { "schedule": "@daily" } }] }),
            json!({ "phase": "Ready", "conditions": condition }),
        ))
        .expect("a configuration");
        let session: BackupSession = serde_json::from_value(object(
            json!({ "invoker": { "kind": "BackupConfiguration", "name": "bc" } }),
            json!({ "phase": "Succeeded", "duration": "1m15s", "conditions": condition, "snapshots": [{ "name": "x" }] }),
        )).expect("a session");
        let restore: RestoreSession = serde_json::from_value(object(
            json!({ "dataSource": { "repository": "r", "snapshot": "latest" } }),
            json!({ "duration": "7s", "totalComponents": 1, "conditions": condition }),
        ))
        .expect("a restore");
        let storage: BackupStorage = serde_json::from_value(object(
            json!({ "storage": { "provider": "s3" } }),
            json!({ "totalSize": "2.000 KiB", "repositories": [{ "name": "r", "size": "2.000 KiB" }], "conditions": condition }),
        )).expect("a storage");
        let repository: Repository = serde_json::from_value(object(
            json!({ "storageRef": { "name": "s" }, "path": "p" }),
            json!({ "size": "1 B", "lastBackupTime": "2026-01-01T00:00:00Z", "conditions": condition }),
        ))
        .expect("a repository");
        let snapshot: Snapshot = serde_json::from_value(object(
            json!({ "repository": "r" }),
            json!({ "size": "1 B", "snapshotTime": "2026-01-01T00:00:00Z", "totalComponents": 1, "conditions": condition }),
        )).expect("a snapshot");
        let all: Vec<Sample> = [
            configuration.series(),
            session.series(),
            restore.series(),
            storage.series(),
            repository.series(),
            snapshot.series(),
        ]
        .concat();
        let shown: BTreeSet<_> = all.iter().map(|(name, ..)| *name).collect();
        assert_eq!(shown, NAMES.iter().map(|(name, _)| *name).collect());
        let value = |name: &str| all.iter().find(|(known, ..)| *known == name).map(|(.., value)| *value);
        assert_eq!(value("core_kubestash_com_backupsession_duration_seconds"), Some(75.0));
        assert_eq!(value("storage_kubestash_com_backupstorage_size_bytes"), Some(2048.0));
        let phases = all
            .iter()
            .filter(|(name, _, value)| *name == "core_kubestash_com_backupsession_phase" && *value == 1.0);
        let phases: Vec<_> = phases.map(|(_, labels, _)| labels.last().expect("a label").1.clone()).collect();
        assert_eq!(phases, ["Succeeded"]);
        let labels: BTreeSet<_> = configuration.series()[1].1.iter().map(|(name, _)| name.clone()).collect();
        assert!(
            ["backup_invoker_kind", "backup_invoker_name", "target_kind", "target_name", "target_namespace"]
                .iter()
                .all(|name| labels.contains(*name))
        );
    }
}
