//! The definitions of the custom resources: as the chart ships them, and as the API server and users expect them.
//!
//! `CISTERN_BLESS=1 cargo test -p cistern-api --test schema` writes the files of the chart anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::PathBuf;

use cistern_api::kinds::definitions;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// Kind, group, plural, short name, scope, categories, columns as `name path`; `.status.phase` and
/// `.metadata.creationTimestamp` are understood for `Phase` and `Age`.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

const ALL: &str = "kubestash appscode all";
const FEW: &str = "kubestash appscode";

const TABLE: [Row; 9] = [
    (
        "BackupStorage",
        "storage",
        "backupstorages",
        "",
        "Namespaced",
        ALL,
        &[
            "Provider .spec.storage.provider string",
            "Default .spec.default boolean",
            "Deletion-Policy .spec.deletionPolicy string",
            "Total-Size .status.totalSize string",
            "Phase",
            "Age",
        ],
    ),
    (
        "Repository",
        "storage",
        "repositories",
        "repo",
        "Namespaced",
        ALL,
        &[
            "Integrity .status.integrity boolean",
            "Snapshot-Count .status.snapshotCount integer",
            "Size .status.size string",
            "Phase",
            "Last-Successful-Backup .status.lastBackupTime date",
            "Age",
        ],
    ),
    (
        "Snapshot",
        "storage",
        "snapshots",
        "",
        "Namespaced",
        FEW,
        &[
            "Repository .spec.repository string",
            "Session .spec.session string",
            "Snapshot-Time .status.snapshotTime string",
            "Deletion-Policy .spec.deletionPolicy string",
            "Phase",
            "Age",
        ],
    ),
    (
        "RetentionPolicy",
        "storage",
        "retentionpolicies",
        "",
        "Namespaced",
        FEW,
        &["Max-Retention-Period .spec.maxRetentionPeriod string", "Default .spec.default boolean", "Age"],
    ),
    (
        "BackupConfiguration",
        "core",
        "backupconfigurations",
        "bc",
        "Namespaced",
        ALL,
        &["Phase", "Paused .spec.paused boolean", "Age"],
    ),
    (
        "BackupSession",
        "core",
        "backupsessions",
        "",
        "Namespaced",
        ALL,
        &[
            "Invoker-Type .spec.invoker.kind string",
            "Invoker-Name .spec.invoker.name string",
            "Phase",
            "Duration .status.duration string",
            "Age",
        ],
    ),
    (
        "RestoreSession",
        "core",
        "restoresessions",
        "restore",
        "Namespaced",
        ALL,
        &[
            "Repository .spec.dataSource.repository string",
            "Phase",
            "Duration .status.duration string",
            "Age",
        ],
    ),
    ("Addon", "addons", "addons", "", "Cluster", ALL, &["Age"]),
    ("Function", "addons", "functions", "fn", "Cluster", ALL, &["Age"]),
];

/// Kinds without a status of their own.
const NO_STATUS: [&str; 3] = ["RetentionPolicy", "Addon", "Function"];

fn chart_file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../charts/cistern/crds").join(format!("{name}.yaml"))
}

fn text(definition: &CustomResourceDefinition) -> String {
    let yaml = serde_saphyr::to_string(definition).unwrap();
    let kind = &definition.spec.names.kind;
    format!(
        "# The definition of {kind}, generated from its Rust type: do not edit. Write it anew with\n\
         # CISTERN_BLESS=1 cargo test -p cistern-api --test schema\n{yaml}"
    )
}

#[test]
fn the_chart_ships_the_definitions_of_the_code() {
    let bless = std::env::var_os("CISTERN_BLESS").is_some();
    let mut files = BTreeSet::new();
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap();
        let (path, expected) = (chart_file(&name), text(&definition));
        files.insert(path.file_name().unwrap().to_owned());
        if bless {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &expected).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "{} is not what the code says: CISTERN_BLESS=1 cargo test -p cistern-api --test schema",
            path.display()
        );
        // What is written must mean the same to whoever reads it.
        let (read, meant): (Value, Value) =
            (serde_saphyr::from_str(&found).unwrap(), serde_json::to_value(&definition).unwrap());
        assert_eq!(read, meant, "{name}");
        // `kubectl apply` keeps it in an annotation, as JSON, and an API server takes 262,144 bytes of these.
        let bytes = meant.to_string().len();
        assert!(bytes < 250_000, "{name} has {bytes} bytes");
    }
    let there = std::fs::read_dir(chart_file("x").parent().unwrap()).unwrap();
    let there: BTreeSet<_> = there.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(there, files, "the folder holds definitions and nothing else");
}

#[test]
fn names_and_columns_are_those_that_users_know() {
    let all = definitions();
    assert_eq!(all.len(), TABLE.len());
    for (kind, group, plural, short, scope, categories, columns) in TABLE {
        let definition = all.iter().find(|one| one.spec.names.kind == kind).unwrap();
        let (spec, names) = (&definition.spec, &definition.spec.names);
        assert_eq!(spec.group, format!("{group}.kubestash.com"));
        assert_eq!(spec.scope, scope, "{kind}");
        assert_eq!(names.plural, plural);
        assert_eq!(names.singular.as_deref(), Some(kind.to_lowercase().as_str()));
        assert_eq!(names.short_names.clone().unwrap_or_default().join(" "), short, "{kind}");
        assert_eq!(names.categories.clone().unwrap_or_default().join(" "), categories, "{kind}");
        let labels = definition.metadata.labels.clone().unwrap();
        assert_eq!(labels["app.kubernetes.io/name"], "kubestash");

        let [version] = spec.versions.as_slice() else { panic!("{kind} has several versions") };
        assert_eq!((version.name.as_str(), version.served, version.storage), ("v1alpha1", true, true));
        let status = version.subresources.as_ref().is_some_and(|all| all.status.is_some());
        assert_eq!(status, !NO_STATUS.contains(&kind), "{kind}");
        let found: Vec<String> = version.additional_printer_columns.iter().flatten().map(column).collect();
        assert_eq!(found, columns, "{kind}");
    }
}

fn column(
    column: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceColumnDefinition,
) -> String {
    match (column.name.as_str(), column.json_path.as_str(), column.type_.as_str()) {
        ("Phase", ".status.phase", "string") => "Phase".into(),
        ("Age", ".metadata.creationTimestamp", "date") => "Age".into(),
        (name, path, kind) => format!("{name} {path} {kind}"),
    }
}

#[test]
fn schemas_are_structural() {
    for definition in definitions() {
        let name = definition.metadata.name.unwrap();
        let schema =
            definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        let schema = serde_json::to_value(schema).unwrap();
        assert_eq!(schema["required"], serde_json::json!(["spec"]), "{name}");
        structural(&schema, &name);
    }
}

/// Every node has a type, or says why not, and none refers to another place.
fn structural(schema: &Value, path: &str) {
    let object = schema.as_object().unwrap_or_else(|| panic!("{path} is no schema"));
    for forbidden in ["$ref", "definitions", "$defs", "oneOf", "anyOf", "allOf", "not"] {
        assert!(!object.contains_key(forbidden), "{path} has {forbidden}");
    }
    let marked = |mark: &str| object.get(mark) == Some(&Value::Bool(true));
    let typed = object.get("type").is_some_and(Value::is_string);
    assert!(
        typed || marked("x-kubernetes-int-or-string") || marked("x-kubernetes-preserve-unknown-fields"),
        "{path} has no type"
    );
    for (name, property) in object.get("properties").and_then(Value::as_object).into_iter().flatten() {
        structural(property, &format!("{path}.{name}"));
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner_schema) = object.get(inner).filter(|inner| inner.is_object()) {
            structural(inner_schema, &format!("{path}.{inner}"));
        }
    }
}

/// The fields that a manifest must have, of all kinds; an optional one that came to be among them would refuse manifests
/// that are right.
const REQUIRED: [&str; 34] = [
    "Addon.backupTasks[].name",
    "Addon.backupTasks[].volumeTemplate[].name",
    "Addon.restoreTasks[].name",
    "Addon.restoreTasks[].volumeTemplate[].name",
    "BackupConfiguration.backends[].retentionPolicy.name",
    "BackupConfiguration.backends[].storageRef.name",
    "BackupConfiguration.sessions",
    "BackupConfiguration.sessions[].addon.tasks[].addonVolumes[].name",
    "BackupConfiguration.sessions[].hooks.postBackup[].hookTemplate.name",
    "BackupConfiguration.sessions[].hooks.preBackup[].hookTemplate.name",
    "BackupConfiguration.sessions[].name",
    "BackupConfiguration.sessions[].repositories[].backupVerifier.name",
    "BackupConfiguration.sessions[].repositories[].encryptionSecret.name",
    "BackupConfiguration.sessions[].repositories[].name",
    "BackupConfiguration.sessions[].scheduler.schedule",
    "BackupConfiguration.target.name",
    "BackupSession.invoker",
    "BackupSession.invoker.kind",
    "BackupSession.invoker.name",
    "BackupStorage.storage",
    "BackupStorage.storage.provider",
    "Repository.appRef.name",
    "Repository.encryptionSecret.name",
    "Repository.path",
    "Repository.storageRef",
    "Repository.storageRef.name",
    "RestoreSession.addon.tasks[].addonVolumes[].name",
    "RestoreSession.dataSource",
    "RestoreSession.dataSource.encryptionSecret.name",
    "RestoreSession.hooks.postRestore[].hookTemplate.name",
    "RestoreSession.hooks.preRestore[].hookTemplate.name",
    "RestoreSession.target.name",
    "Snapshot.appRef.name",
    "Snapshot.repository",
];

#[test]
fn nothing_else_is_required() {
    let mut all = BTreeSet::new();
    for definition in definitions() {
        let kind = definition.spec.names.kind.clone();
        let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
        required(&schema["openAPIV3Schema"]["properties"]["spec"], &kind, &mut all);
    }
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    assert_eq!(all, REQUIRED);
}

/// Collects required fields, each with the kind and its path; of Kubernetes' own structs none.
fn required(schema: &Value, path: &str, all: &mut BTreeSet<String>) {
    // Beyond these lie structs of Kubernetes, which say themselves what they need.
    let foreign = [
        "affinity",
        "env",
        "envFrom",
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "tolerations",
        "volumes",
        "volumeMounts",
        "volumeDevices",
        "ports",
        "variables",
        "selector",
        "hostPath",
        "nfs",
        "persistentVolumeClaim",
        "volumeClaimTemplates",
        "topologySpreadConstraints",
        "readinessGates",
        "dnsConfig",
        "resources",
        "securityContext",
        "containerSecurityContext",
        "imagePullSecrets",
    ];
    if path.rsplit('.').next().is_some_and(|name| foreign.contains(&name)) {
        return;
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        all.insert(format!("{path}.{}", name.as_str().unwrap()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        required(property, &format!("{path}.{name}"), all);
    }
    if schema["items"].is_object() {
        required(&schema["items"], &format!("{path}[]"), all);
    }
}

#[test]
fn every_list_that_a_rule_looks_at_is_bounded() {
    // The API server refuses rules whose cost it cannot bound: lists and texts inside a rule need a length.
    let definition =
        definitions().into_iter().find(|one| one.spec.names.kind == "BackupConfiguration").unwrap();
    let schema = serde_json::to_value(&definition.spec.versions[0].schema).unwrap();
    let spec = &schema["openAPIV3Schema"]["properties"]["spec"]["properties"];
    for (pointer, limit) in [
        ("/backends/maxItems", 16),
        ("/sessions/maxItems", 16),
        ("/sessions/items/properties/repositories/maxItems", 16),
        ("/sessions/items/properties/name/maxLength", 63),
    ] {
        assert_eq!(spec.pointer(pointer), Some(&Value::from(limit)), "{pointer}");
    }
}
