//! Who may refer to an object of another namespace: usage policies and the annotation `cistern.dev/allow-from`.

use std::collections::BTreeMap;

use kube::core::{Selector, SelectorExt};

use crate::kinds::shared::{From, UsagePolicy};
use crate::labels::ALLOW_FROM;

/// Whether an object of namespace `own` may be used by objects of `namespace`, whose labels are given. Without a policy
/// only its own namespace may. A selector that nobody can read admits nobody.
pub fn admits(
    policy: Option<&UsagePolicy>,
    own: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let allowed = policy.map(|policy| &policy.allowed_namespaces);
    match allowed.map(|allowed| allowed.from).unwrap_or_default() {
        From::All => true,
        From::Same => own == namespace,
        From::Selector => allowed
            .and_then(|allowed| allowed.selector.clone())
            .and_then(|selector| Selector::try_from(selector).ok())
            .is_some_and(|selector| selector.matches(labels)),
    }
}

/// Whether an object's annotations let objects of this namespace refer to it: `cistern.dev/allow-from` lists namespaces,
/// separated by commas. There is no word for all.
pub fn allows_from(annotations: Option<&BTreeMap<String, String>>, namespace: &str) -> bool {
    let listed = annotations.and_then(|annotations| annotations.get(ALLOW_FROM));
    listed.is_some_and(|list| list.split(',').any(|one| one.trim() == namespace))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(value: serde_json::Value) -> Option<UsagePolicy> {
        serde_json::from_value(json!({ "allowedNamespaces": value })).expect("a policy")
    }

    #[test]
    fn policies_are_read_as_published() {
        let labels = BTreeMap::from([("team".to_owned(), "blue".to_owned())]);
        let select = |selector| policy(json!({ "from": "Selector", "selector": selector }));
        for (policy, same, other) in [
            (None, true, false),
            (policy(json!({})), true, false),
            (policy(json!({ "from": "Same" })), true, false),
            (policy(json!({ "from": "All" })), true, true),
            // Labels decide even of the object's own namespace.
            (select(json!({ "matchLabels": { "team": "blue" } })), true, true),
            (select(json!({ "matchLabels": { "team": "red" } })), false, false),
            (
                select(
                    json!({ "matchExpressions": [{ "key": "team", "operator": "In", "values": ["blue"] }] }),
                ),
                true,
                true,
            ),
            (
                select(json!({ "matchExpressions": [{ "key": "team", "operator": "DoesNotExist" }] })),
                false,
                false,
            ),
            (select(json!({ "matchExpressions": [{ "key": "team", "operator": "Near" }] })), false, false),
            (policy(json!({ "from": "Selector" })), false, false),
        ] {
            assert_eq!(admits(policy.as_ref(), "demo", "demo", &labels), same, "{policy:?}");
            assert_eq!(admits(policy.as_ref(), "demo", "other", &labels), other, "{policy:?}");
        }
    }

    #[test]
    fn annotations_name_each_namespace() {
        let with = |list: &str| BTreeMap::from([(ALLOW_FROM.to_owned(), list.to_owned())]);
        assert!(allows_from(Some(&with("a, demo")), "demo"));
        for list in ["", "*", "demo-2", "a,b"] {
            assert!(!allows_from(Some(&with(list)), "demo"), "{list}");
        }
        assert!(!allows_from(None, "demo"));
    }
}
