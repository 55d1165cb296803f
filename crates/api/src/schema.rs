//! Holds a document against the schema of its kind, as an API server does, but names everything that is wrong at once, and
//! names fields that there are not, which an API server drops in silence.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::kinds::definitions;
use crate::problem::Problems;

/// The schemas by `apiVersion` and kind, with whether objects of the kind have a namespace.
fn schemas() -> &'static BTreeMap<(String, String), (Value, bool)> {
    static SCHEMAS: OnceLock<BTreeMap<(String, String), (Value, bool)>> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let mut all = BTreeMap::new();
        for definition in definitions() {
            let spec = definition.spec;
            for version in spec.versions {
                let schema = version.schema.and_then(|schema| schema.open_api_v3_schema);
                let schema = serde_json::to_value(schema).expect("a schema is JSON");
                let key = (format!("{}/{}", spec.group, version.name), spec.names.kind.clone());
                all.insert(key, (schema, spec.scope == "Namespaced"));
            }
        }
        all
    })
}

/// Whether this is a kind of ours; for its objects [`check`] has something to say.
pub fn is_known(api_version: &str, kind: &str) -> bool {
    schemas().contains_key(&(api_version.to_owned(), kind.to_owned()))
}

/// Whether objects of a kind of ours lie in namespaces.
pub fn is_namespaced(api_version: &str, kind: &str) -> bool {
    schemas().get(&(api_version.to_owned(), kind.to_owned())).is_some_and(|(_, namespaced)| *namespaced)
}

/// Everything that the schema of its kind has against a document. Of a kind that is not ours nothing is said.
pub fn check(api_version: &str, kind: &str, document: &Value, problems: &mut Problems) {
    let Some((schema, _)) = schemas().get(&(api_version.to_owned(), kind.to_owned())) else { return };
    let Some(object) = document.as_object() else { return };
    // What every object has is no part of the schema of its kind.
    let mut own = object.clone();
    for common in ["apiVersion", "kind", "metadata"] {
        own.remove(common);
    }
    node(schema, &Value::Object(own), "", problems);
}

fn node(schema: &Value, value: &Value, path: &str, problems: &mut Problems) {
    let is = |mark: &str| schema.get(mark).and_then(Value::as_bool).unwrap_or_default();
    if value.is_null() {
        // A key without a value is as good as no key, except in a list.
        if path.ends_with(']') && !is("nullable") {
            problems.wrong(path, "must have a value");
        }
        return;
    }
    if is("x-kubernetes-int-or-string") {
        if !value.is_string() && !value.is_i64() {
            problems.wrong(path, "must be a text or a whole number");
        }
        return;
    }
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(fields)) => object(schema, fields, path, problems),
        (Some("array"), Value::Array(items)) => array(schema, items, path, problems),
        (Some("string"), Value::String(text)) => string(schema, text, path, problems),
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            range(schema, number.as_f64().unwrap_or_default(), path, problems);
        }
        (Some("number"), Value::Number(number)) => {
            range(schema, number.as_f64().unwrap_or_default(), path, problems);
        }
        (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(wanted), found) => {
            let wanted = match wanted {
                "object" => "a map",
                "array" => "a list",
                "string" => "a text",
                "integer" => "a whole number",
                "number" => "a number",
                _ => "true or false",
            };
            problems.wrong(path, format!("must be {wanted}, and is {}", describe(found)));
        }
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Object(_) => "a map".into(),
        Value::Array(_) => "a list".into(),
        // Long values, and values that might be secret, are not repeated.
        Value::String(_) => "a text".into(),
        other => other.to_string(),
    }
}

fn object(schema: &Value, fields: &Map<String, Value>, path: &str, problems: &mut Problems) {
    let at = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        if fields.get(name).is_none_or(Value::is_null) {
            problems.wrong(at(name), "must be set");
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties");
    let open = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    for (name, value) in fields {
        if let Some(property) = properties.and_then(|all| all.get(name)) {
            node(property, value, &at(name), problems);
        } else if let Some(additional) = additional.filter(|one| one.is_object()) {
            node(additional, value, &at(name), problems);
        } else if !open && (properties.is_some() || path.is_empty()) {
            problems.wrong(at(name), "there is no such field");
        }
    }
}

fn array(schema: &Value, items: &[Value], path: &str, problems: &mut Problems) {
    let limit = |name: &str| schema.get(name).and_then(Value::as_u64);
    let length = items.len() as u64;
    if let Some(least) = limit("minItems").filter(|least| length < *least) {
        problems.wrong(path, format!("must have at least {least} {}", entries(least)));
    }
    if let Some(most) = limit("maxItems").filter(|most| length > *most) {
        problems.wrong(path, format!("has {length} entries, and may have {most}"));
    }
    for (number, item) in items.iter().enumerate() {
        node(&schema["items"], item, &format!("{path}[{number}]"), problems);
    }
}

fn entries(number: u64) -> &'static str {
    if number == 1 { "entry" } else { "entries" }
}

fn string(schema: &Value, text: &str, path: &str, problems: &mut Problems) {
    let limit = |name: &str| schema.get(name).and_then(Value::as_u64);
    let length = text.chars().count() as u64;
    if limit("minLength").is_some_and(|least| length < least) {
        problems.wrong(path, "must not be empty");
    }
    if let Some(most) = limit("maxLength").filter(|most| length > *most) {
        problems.wrong(path, format!("has {length} characters, and may have {most}"));
    }
    let words = schema.get("enum").and_then(Value::as_array);
    if let Some(words) = words.filter(|words| !words.iter().any(|word| word == text)) {
        let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
        problems.wrong(path, format!("must be one of {}, and is {text:?}", words.join(", ")));
    }
    if schema.get("format").and_then(Value::as_str) == Some("date-time") && text.parse::<Timestamp>().is_err()
    {
        problems.wrong(path, "is no time such as 2026-11-01T08:30:00Z");
    }
}

fn range(schema: &Value, number: f64, path: &str, problems: &mut Problems) {
    let limit = |name: &str| schema.get(name).and_then(Value::as_f64);
    if let Some(least) = limit("minimum").filter(|least| number < *least) {
        problems.wrong(path, format!("must be at least {least}"));
    }
    if let Some(most) = limit("maximum").filter(|most| number > *most) {
        problems.wrong(path, format!("must be at most {most}"));
    }
    let bits = match schema.get("format").and_then(Value::as_str) {
        Some("int32") => f64::from(i32::MIN)..=f64::from(i32::MAX),
        _ => f64::MIN..=f64::MAX,
    };
    if !bits.contains(&number) {
        problems.wrong(path, "is too large");
    }
}
