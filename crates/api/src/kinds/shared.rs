//! The small structs that several kinds share: references, usage policies, parameters.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::KubeSchema;
use kube::core::Duration;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use serde_with::skip_serializing_none;

/// Names an object by name and namespace; without a namespace, one in the namespace of the object that refers to it.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct ObjRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of the object; empty is the namespace of the object that refers to it.
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// Names an object of any kind.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TypedRef {
    /// API group; empty is the core group.
    pub api_group: Option<String>,
    /// Kind of the object.
    pub kind: Option<String>,
    /// Namespace of the object; empty is the namespace of the object that refers to it.
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Names the object of the same namespace that owns a schedule.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InvokerRef {
    /// API group.
    pub api_group: Option<String>,
    /// Kind, such as `BackupConfiguration`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// Says which namespaces may refer to an object.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsagePolicy {
    /// The namespaces that may refer to the object.
    #[serde(default)]
    pub allowed_namespaces: AllowedNamespaces,
}

/// A choice of namespaces.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = ("self.from != 'Selector' || has(self.selector)", "from: Selector needs a selector"))]
pub struct AllowedNamespaces {
    /// How the namespaces are chosen.
    #[serde(default)]
    pub from: From,
    /// Labels of the namespaces, with `from: Selector` only.
    #[serde(default)]
    #[schemars(schema_with = "core::<Option<LabelSelector>>")]
    pub selector: Option<LabelSelector>,
}

/// How namespaces are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum From {
    /// Every namespace.
    All,
    /// Those with certain labels.
    Selector,
    /// The object's own.
    #[default]
    Same,
}

/// What becomes of the data when an object is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The objects leave the cluster, the data stays.
    #[default]
    Delete,
    /// The data is deleted, too.
    WipeOut,
}

/// A parameter that a task understands.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ParameterDefinition {
    /// Name of the parameter.
    pub name: String,
    /// What it is for.
    pub usage: Option<String>,
    /// Whether a task cannot be run without it.
    pub required: Option<bool>,
    /// What it is when nobody says.
    pub default: Option<String>,
}

/// Whether an object that another one depends on is there.
#[skip_serializing_none]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceFoundStatus {
    /// API group; empty is the core group.
    pub api_group: Option<String>,
    /// Kind of the object.
    pub kind: Option<String>,
    /// Namespace of the object.
    pub namespace: Option<String>,
    /// Name of the object.
    pub name: String,
    /// Whether it is there.
    pub found: Option<bool>,
}

/// How often, and after which time, a session that failed is tried again.
#[skip_serializing_none]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryConfig {
    /// Number of further attempts.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    pub max_retry: i32,
    /// Time before each; at once unless it is set.
    pub delay: Option<Duration>,
}

fn one() -> i32 {
    1
}

/// Free-form parameters, whose values are strings.
pub type Params = Map<String, Value>;

/// The schema of a free-form object.
pub(crate) fn free_form(_: &mut SchemaGenerator) -> Schema {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true, "nullable": true });
    schema.try_into().expect("an object is a schema")
}

/// The schema of a type of Kubernetes itself, without its descriptions: with them a definition outgrows what etcd holds.
pub(crate) fn core<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    if let Some(object) = schema.as_object_mut() {
        object.values_mut().for_each(drop_descriptions);
        object.remove("description");
    }
    schema
}

fn drop_descriptions(value: &mut Value) {
    match value {
        Value::Object(object) => {
            // A property may be called so, too: then it is a schema and no text.
            if object.get("description").is_some_and(Value::is_string) {
                object.remove("description");
            }
            object.values_mut().for_each(drop_descriptions);
        }
        Value::Array(values) => values.iter_mut().for_each(drop_descriptions),
        _ => {}
    }
}
