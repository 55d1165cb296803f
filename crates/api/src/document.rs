//! Documents of a YAML text: read within limits, told apart by kind, and gathered into a [`World`].

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::{
    Addon, BackupConfiguration, BackupSession, BackupStorage, Function, Repository, RestoreSession,
    RetentionPolicy, Snapshot,
};
use crate::problem::Problems;
use crate::schema;
use crate::world::{ClaimFacts, Name, SecretFacts, World};

/// The longest text that is read, in bytes.
pub const MAX_TEXT: usize = 16 << 20;

/// One document.
#[derive(Clone, Debug)]
pub struct Document {
    /// Kind, as it says.
    pub kind: String,
    /// Namespace and name; the namespace is empty for what has none.
    pub name: Name,
    /// What it is.
    pub object: Object,
}

/// What a document is. Secrets are kept without their values.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names are those of the kinds")]
pub enum Object {
    BackupStorage(Box<BackupStorage>),
    Repository(Box<Repository>),
    Snapshot(Box<Snapshot>),
    RetentionPolicy(Box<RetentionPolicy>),
    BackupConfiguration(Box<BackupConfiguration>),
    BackupSession(Box<BackupSession>),
    RestoreSession(Box<RestoreSession>),
    Addon(Box<Addon>),
    Function(Box<Function>),
    Secret(SecretFacts),
    Namespace(BTreeMap<String, String>),
    Claim(Box<PersistentVolumeClaim>),
    Volume(Box<PersistentVolume>),
    StorageClass(Box<StorageClass>),
    /// A kind that says nothing to us.
    Other,
}

/// Reads the documents of a YAML text, each by itself; those without contents are left out, and a `List` is what it holds.
/// Depth, number of nodes and repetition are limited, so that a small text cannot become a large one.
pub fn read(text: &str) -> Vec<Result<Value, String>> {
    if text.len() > MAX_TEXT {
        return vec![Err(format!("the text has {} bytes; {MAX_TEXT} are read", text.len()))];
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: 250_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        with_snippet: false,
    };
    let mut bytes = text.as_bytes();
    let mut all = Vec::new();
    for document in serde_saphyr::read_with_options::<_, Value>(&mut bytes, options) {
        match document {
            Ok(Value::Object(mut fields))
                if fields.get("kind").and_then(Value::as_str) == Some("List")
                    && fields.get("items").is_some_and(Value::is_array) =>
            {
                let items = fields.get_mut("items").and_then(Value::as_array_mut);
                all.extend(items.map(std::mem::take).unwrap_or_default().into_iter().map(Ok));
            }
            Ok(value) => all.push(Ok(value)),
            Err(error) => all.push(Err(one_line(&error.to_string()))),
        }
    }
    all
}

/// One line without advice for programmers.
fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace(", set DuplicateKeyPolicy in Options if acceptable", "")
}

impl Document {
    /// Tells what a document is. An object of a kind of ours is held against its schema first: what is wrong with it is
    /// added to the problems. Without a namespace it lies in `default`.
    pub fn parse(value: &Value, default: &str, problems: &mut Problems) -> Option<Document> {
        let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
        if !value.is_object() {
            problems.wrong("", "this is no object of Kubernetes");
            return None;
        }
        let (version, kind) = (text("/apiVersion"), text("/kind"));
        // A name that the API server makes up begins with this.
        let own = match text("/metadata/name") {
            "" => text("/metadata/generateName").trim_end_matches('-'),
            name => name,
        };
        for (path, word) in [("apiVersion", version), ("kind", kind), ("metadata.name", own)] {
            if word.is_empty() {
                problems.wrong(path, "must be set");
            }
        }
        if version.is_empty() || kind.is_empty() {
            return None;
        }
        let group = version.split('/').next().unwrap_or_default();
        let ours = schema::is_known(version, kind);
        if group.ends_with(".kubestash.com") && !ours {
            problems.wrong("kind", format!("{kind} of {version} is not supported yet"));
            return None;
        }
        let namespace = match text("/metadata/namespace") {
            _ if ours && !schema::is_namespaced(version, kind) => "",
            "" => default,
            namespace => namespace,
        };
        let name = Name::new(namespace, own);
        if ours {
            if !is_subdomain(&name.name) && !name.name.is_empty() {
                problems.wrong("metadata.name", "must be lower-case letters, digits, '-' and '.'");
            }
            let before = problems.0.len();
            schema::check(version, kind, value, problems);
            if problems.0.len() > before {
                return None;
            }
        }
        let object = object(version, kind, value, problems)?;
        Some(Document { kind: kind.to_owned(), name, object })
    }
}

fn object(version: &str, kind: &str, value: &Value, problems: &mut Problems) -> Option<Object> {
    fn of<T: DeserializeOwned>(value: &Value, problems: &mut Problems) -> Option<Box<T>> {
        match serde_json::from_value(value.clone()) {
            Ok(object) => Some(Box::new(object)),
            Err(error) => {
                problems.wrong("spec", one_line(&error.to_string()));
                None
            }
        }
    }
    Some(match (version.split('/').next().unwrap_or_default(), kind) {
        ("storage.kubestash.com", "BackupStorage") => Object::BackupStorage(of(value, problems)?),
        ("storage.kubestash.com", "Repository") => Object::Repository(of(value, problems)?),
        ("storage.kubestash.com", "Snapshot") => Object::Snapshot(of(value, problems)?),
        ("storage.kubestash.com", "RetentionPolicy") => Object::RetentionPolicy(of(value, problems)?),
        ("core.kubestash.com", "BackupConfiguration") => Object::BackupConfiguration(of(value, problems)?),
        ("core.kubestash.com", "BackupSession") => Object::BackupSession(of(value, problems)?),
        ("core.kubestash.com", "RestoreSession") => Object::RestoreSession(of(value, problems)?),
        ("addons.kubestash.com", "Addon") => Object::Addon(of(value, problems)?),
        ("addons.kubestash.com", "Function") => Object::Function(of(value, problems)?),
        ("v1", "Secret") => {
            let secret = of::<Secret>(value, problems)?;
            let data = secret.data.unwrap_or_default().into_keys();
            let keys = data.chain(secret.string_data.unwrap_or_default().into_keys()).collect();
            Object::Secret(SecretFacts { keys, annotations: secret.metadata.annotations.unwrap_or_default() })
        }
        ("v1", "Namespace") => {
            Object::Namespace(of::<Namespace>(value, problems)?.metadata.labels.unwrap_or_default())
        }
        ("v1", "PersistentVolumeClaim") => Object::Claim(of(value, problems)?),
        ("v1", "PersistentVolume") => Object::Volume(of(value, problems)?),
        ("storage.k8s.io", "StorageClass") => Object::StorageClass(of(value, problems)?),
        _ => Object::Other,
    })
}

/// Whether a name can be that of an object: RFC 1123, a subdomain.
fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// Whether a text is a label of RFC 1123: at most 63 lower-case letters, digits and `-`, none at its ends.
pub fn is_label(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=63).contains(&text.len())
        && text.chars().all(|c| letter(c) || c == '-')
        && text.starts_with(letter)
        && text.ends_with(letter)
}

impl World {
    /// Everything that documents say there is. Of two documents of one name the later counts.
    pub fn of_documents<'a>(documents: impl IntoIterator<Item = &'a Document>) -> World {
        let mut world = World::default();
        let (mut claims, mut volumes, mut classes) = (Vec::new(), Vec::new(), BTreeMap::new());
        for document in documents {
            match &document.object {
                Object::Claim(claim) => claims.push((&document.name, claim)),
                Object::Volume(volume) => volumes.push(&**volume),
                Object::StorageClass(class) => {
                    classes.insert(document.name.name.as_str(), class.provisioner.as_str());
                }
                _ => world.add(document),
            }
        }
        for (name, claim) in claims {
            let driver = driver(claim, name, &volumes, &classes).map(ToOwned::to_owned);
            world.claims.insert(name.clone(), ClaimFacts { driver });
        }
        world
    }

    fn add(&mut self, document: &Document) {
        let name = document.name.clone();
        match &document.object {
            Object::BackupStorage(one) => self.storages.extend([(name, (**one).clone())]),
            Object::Repository(one) => self.repositories.extend([(name, (**one).clone())]),
            Object::Snapshot(one) => self.snapshots.extend([(name, (**one).clone())]),
            Object::RetentionPolicy(one) => self.policies.extend([(name, (**one).clone())]),
            Object::BackupConfiguration(one) => self.configurations.extend([(name, (**one).clone())]),
            Object::Addon(one) => self.addons.extend([(name.name, (**one).clone())]),
            Object::Function(one) => self.functions.extend([(name.name, (**one).clone())]),
            Object::Secret(facts) => self.secrets.extend([(name, facts.clone())]),
            Object::Namespace(labels) => self.namespaces.extend([(name.name, labels.clone())]),
            _ => {}
        }
    }
}

/// The CSI driver of a claim: that of the volume which either names the other, or else that of the storage class.
fn driver<'a>(
    claim: &PersistentVolumeClaim,
    name: &Name,
    volumes: &[&'a PersistentVolume],
    classes: &BTreeMap<&str, &'a str>,
) -> Option<&'a str> {
    let spec = claim.spec.as_ref()?;
    let is_bound = |volume: &PersistentVolume| {
        let claim = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        let named = claim.is_some_and(|claim| {
            claim.name.as_deref() == Some(&name.name) && claim.namespace.as_deref() == Some(&name.namespace)
        });
        named || spec.volume_name.is_some() && spec.volume_name == volume.metadata.name
    };
    match volumes.iter().find(|volume| is_bound(volume)) {
        Some(volume) => volume.spec.as_ref()?.csi.as_ref().map(|csi| csi.driver.as_str()),
        None => classes.get(spec.storage_class_name.as_deref()?).copied(),
    }
}
