//! What every controller works with: the client of the cluster, the settings, and the few ways in which we change objects.
//!
//! Objects are written by server-side apply under one field manager, and an object of somebody else is never taken over.
//! Secrets are got by name; nothing here lists or watches them.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cistern_api::backend::Keys;
use cistern_api::labels;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::DeserializeGuard;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::controller::Failure;
use crate::metrics::Metrics;

/// The field manager under which the operator writes.
pub const MANAGER: &str = "cistern";

/// A kind that lies in namespaces and that we read and write.
pub trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// What the administrator says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespaces that are looked after; all of them unless set.
    pub namespaces: Option<BTreeSet<String>>,
    /// Image of the pods that we start: this program's own.
    pub image: String,
    /// When that image is pulled, as in a pod.
    pub image_pull_policy: Option<String>,
    /// How long a pod may take to start before its session fails.
    pub start_limit: Duration,
    /// How long a Job may be without progress before its session fails.
    pub stall_limit: Duration,
    /// How long an object is left alone when nothing happens.
    pub resync: Duration,
    /// Where health and metrics are served; nowhere unless set.
    pub metrics_address: Option<SocketAddr>,
    /// Namespace of the lease that lets one of several operators act; no lease unless set.
    pub lease_namespace: Option<String>,
    /// Name of this process in the lease and in events.
    pub identity: String,
    /// Credentials for storages without a Secret.
    pub ambient: cistern_bucket::Credentials,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            namespaces: None,
            image: format!("ghcr.io/cistern-backup/cistern:{}", env!("CARGO_PKG_VERSION")),
            image_pull_policy: None,
            start_limit: Duration::from_mins(15),
            stall_limit: Duration::from_hours(1),
            resync: Duration::from_hours(1),
            metrics_address: None,
            lease_namespace: None,
            identity: "cistern".to_owned(),
            ambient: cistern_bucket::Credentials::Anonymous,
        }
    }
}

impl Settings {
    /// Whether objects of this namespace are looked after.
    pub fn covers(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|all| all.contains(namespace))
    }
}

/// The surroundings of every controller.
pub struct Cx {
    client: Client,
    settings: Arc<Settings>,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    locks: tokio::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// What was applied last to which object, as a hash, and the version that it had then.
    applied: Mutex<HashMap<String, (u64, Option<String>)>>,
}

/// How many applied objects are remembered.
const MEMORY: usize = 50_000;

impl Cx {
    /// The surroundings in the cluster that `client` reaches.
    pub fn new(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Cx {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(settings.identity.clone()) };
        Cx {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            settings: Arc::new(settings),
            metrics,
            locks: tokio::sync::Mutex::default(),
            applied: Mutex::default(),
        }
    }

    /// The time. Whatever judges takes it as an argument.
    pub fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    /// What the administrator says.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The numbers that are shown to whoever watches us.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The objects of a kind in one namespace.
    pub fn api<K: Kind>(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The objects of a kind: one handle for each namespace that we look after, or one for all.
    pub(crate) fn everywhere<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
    ) -> Vec<Api<K>> {
        match &self.settings.namespaces {
            None => vec![Api::all(self.client.clone())],
            Some(all) => all.iter().map(|name| Api::namespaced(self.client.clone(), name)).collect(),
        }
    }

    /// The objects of a kind that lies in no namespace.
    pub fn cluster<K: Resource<DynamicType = (), Scope = ClusterResourceScope>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// One object.
    ///
    /// # Errors
    /// The API server does not give it, for another reason than that it does not exist.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, Failure> {
        Ok(self.api::<K>(namespace).get_opt(name).await?)
    }

    /// The objects of one namespace that carry these labels. One that cannot be read is left out, and logged.
    ///
    /// # Errors
    /// The API server does not give them.
    pub async fn list<K: Kind>(&self, namespace: &str, labels: &str) -> Result<Vec<K>, Failure> {
        let api: Api<DeserializeGuard<K>> = Api::namespaced(self.client.clone(), namespace);
        self.pages(api, labels).await
    }

    /// The objects of every namespace that we look after. One that cannot be read is left out, and logged.
    ///
    /// # Errors
    /// The API server does not give them.
    pub async fn list_everywhere<K: Kind>(&self, labels: &str) -> Result<Vec<K>, Failure> {
        let mut all = Vec::new();
        for api in self.everywhere::<DeserializeGuard<K>>() {
            all.append(&mut self.pages(api, labels).await?);
        }
        Ok(all)
    }

    async fn pages<K: Kind>(&self, api: Api<DeserializeGuard<K>>, labels: &str) -> Result<Vec<K>, Failure> {
        let mut all = Vec::new();
        let mut params = ListParams::default().labels(labels).limit(500);
        loop {
            let page = api.list(&params).await?;
            for DeserializeGuard(item) in page.items {
                match item {
                    Ok(object) => all.push(object),
                    Err(broken) => tracing::warn!(
                        kind = %K::kind(&()),
                        namespace = broken.metadata.namespace,
                        name = broken.metadata.name,
                        error = broken.error,
                        "an object cannot be read and is left out"
                    ),
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// Makes an object what it is to be: server-side apply. Only what `wanted` names is changed, and nothing is sent if the
    /// object is as we left it.
    ///
    /// # Errors
    /// An object of that name has another owner; the API server refuses.
    pub async fn apply<K: Kind>(&self, wanted: &K) -> Result<K, Failure> {
        let (namespace, name) = (wanted.namespace().unwrap_or_default(), wanted.name_any());
        let body = applied(wanted)?;
        let key = format!("{} {namespace}/{name}", K::kind(&()));
        let text = body.to_string();
        if let Some(present) = self.get::<K>(&namespace, &name).await? {
            same_owner(wanted, &present)?;
            let left = self.applied.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
            if left == Some((hash(&text), present.resource_version())) {
                return Ok(present);
            }
        }
        let params = PatchParams::apply(MANAGER).force();
        let answer = self.api::<K>(&namespace).patch(&name, &params, &Patch::Apply(&body)).await?;
        let mut memory = self.applied.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= MEMORY {
            memory.clear();
        }
        memory.insert(key, (hash(&text), answer.resource_version()));
        Ok(answer)
    }

    /// Creates an object that has to be there once. One that is there already is as good if it has the same owner.
    ///
    /// # Errors
    /// An object of that name has another owner; the API server refuses.
    pub async fn create_once<K: Kind>(&self, wanted: &K) -> Result<K, Failure> {
        let (namespace, name) = (wanted.namespace().unwrap_or_default(), wanted.name_any());
        let api = self.api::<K>(&namespace);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, wanted).await {
            Ok(created) => Ok(created),
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let present = api.get(&name).await?;
                same_owner(wanted, &present)?;
                Ok(present)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an object, and in the background what it owns. One that is gone is no error.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn delete<K: Kind>(&self, namespace: &str, name: &str) -> Result<(), Failure> {
        match self.api::<K>(namespace).delete(name, &DeleteParams::background()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes an object of the owner's namespace that belongs to it, and in the background what that owns. One that is gone
    /// is no error, and one of somebody else is left alone.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn delete_owned<K: Kind>(&self, owner: &impl Kind, name: &str) -> Result<(), Failure> {
        let namespace = owner.namespace().unwrap_or_default();
        let Some(present) = self.get::<K>(&namespace, name).await? else { return Ok(()) };
        if !is_owned(&present, owner) {
            return Ok(());
        }
        // Another one may have taken its place since.
        let this = Preconditions { uid: present.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(this), ..DeleteParams::background() };
        match self.api::<K>(&namespace).delete(name, &params).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the status that `object` is to have: once, and only if more than times differ. Fields that it leaves out
    /// stay if somebody else wrote them, and go if we did.
    ///
    /// # Errors
    /// [`Failure::Busy`] if the object changed since it was read; the API server refuses.
    pub async fn publish<K: Kind, S: Serialize>(&self, object: &K, status: &S) -> Result<(), Failure> {
        let wanted = serde_json::to_value(status).map_err(Failure::broken)?;
        let present = serde_json::to_value(object).map_err(Failure::broken)?;
        let nothing = json!({});
        if !differs(present.get("status").unwrap_or(&nothing), &owned_fields(object), &wanted) {
            return Ok(());
        }
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": object.uid(),
                "resourceVersion": object.resource_version(),
            },
            "status": wanted,
        });
        let params = PatchParams::apply(MANAGER).force();
        self.api::<K>(&namespace).patch_status(&name, &params, &Patch::Apply(&body)).await?;
        Ok(())
    }

    /// The values of a Secret, got by its name.
    ///
    /// # Errors
    /// The API server does not give it, for another reason than that it does not exist.
    pub async fn keys(&self, namespace: &str, secret: &str) -> Result<Option<Keys>, Failure> {
        let Some(secret) = self.get::<Secret>(namespace, secret).await? else { return Ok(None) };
        let mut keys = Keys::default();
        for (name, value) in secret.data.unwrap_or_default() {
            keys.insert(name, &value.0);
        }
        Ok(Some(keys))
    }

    /// Tells people about an object. Whether they hear it changes nothing.
    pub async fn announce<K: Kind>(&self, object: &K, event: Event) {
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, kind = %K::kind(&()), name = object.name_any(), "an event was not taken");
        }
    }

    /// Puts our finalizer on an object, so that it stays until what lies outside of the cluster is seen to. Gives the
    /// object as it is then.
    ///
    /// # Errors
    /// [`Failure::Busy`] if the object changed since it was read; the API server refuses.
    pub async fn hold<K: Kind>(&self, object: &K) -> Result<K, Failure> {
        if object.finalizers().iter().any(|name| name == labels::FINALIZER) {
            return Ok(object.clone());
        }
        self.finalizers(object, with(object.finalizers())).await
    }

    /// Takes our finalizer off an object: it may go.
    ///
    /// # Errors
    /// [`Failure::Busy`] if the object changed since it was read; the API server refuses.
    pub async fn release<K: Kind>(&self, object: &K) -> Result<(), Failure> {
        if !object.finalizers().iter().any(|name| name == labels::FINALIZER) {
            return Ok(());
        }
        match self.finalizers(object, without(object.finalizers())).await {
            // It went while we were at it.
            Ok(_) | Err(Failure::Missing(_)) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// The test makes the patch fail on an object that somebody else changed since.
    async fn finalizers<K: Kind>(&self, object: &K, wanted: Vec<String>) -> Result<K, Failure> {
        let patch = serde_json::from_value(json!([
            { "op": "test", "path": "/metadata/resourceVersion", "value": object.resource_version() },
            { "op": "add", "path": "/metadata/finalizers", "value": wanted },
        ]));
        let patch = Patch::Json::<()>(patch.map_err(Failure::broken)?);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let namespace = object.namespace().unwrap_or_default();
        match self.api::<K>(&namespace).patch(&object.name_any(), &params, &patch).await {
            Err(kube::Error::Api(status)) if status.is_invalid() => {
                Err(Failure::Busy("the object was changed meanwhile".to_owned(), Duration::from_secs(5)))
            }
            answer => Ok(answer?),
        }
    }

    /// One writer at a time: whoever holds the lock of this name in this process.
    pub async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().await;
            // Nobody else holds it, nor waits for it.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }
}

/// A warning for people.
pub fn warning(reason: &str, action: &str, note: impl Into<String>) -> Event {
    event(EventType::Warning, reason, action, note.into())
}

/// News for people.
pub fn news(reason: &str, action: &str, note: impl Into<String>) -> Event {
    event(EventType::Normal, reason, action, note.into())
}

fn event(type_: EventType, reason: &str, action: &str, note: String) -> Event {
    // The API server takes one kilobyte.
    let note = Some(note.chars().take(250).collect());
    Event { type_, reason: reason.to_owned(), note, action: action.to_owned(), secondary: None }
}

/// The reference by which `object` owns another one: the one controller of it.
pub fn owner<K: Kind>(object: &K) -> OwnerReference {
    // Every object that comes from the API server has a name and a uid.
    object.controller_owner_ref(&()).unwrap_or_default()
}

/// Whether `owner` is an owner of the object.
pub fn is_owned(object: &impl Resource, owner: &impl Resource) -> bool {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owner.meta().uid.as_ref().is_some_and(|uid| owners.iter().any(|one| one.uid == *uid))
}

fn controller<K: Resource>(object: &K) -> Option<&OwnerReference> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true))
}

/// The body by which an object is applied.
fn applied<K: Kind>(wanted: &K) -> Result<Value, Failure> {
    let mut body = serde_json::to_value(wanted).map_err(Failure::broken)?;
    let object = body.as_object_mut().ok_or_else(|| Failure::Broken("an object that is none".into()))?;
    object.insert("apiVersion".to_owned(), K::api_version(&()).into());
    object.insert("kind".to_owned(), K::kind(&()).into());
    // Its status is somebody else's affair, and what the server keeps of fields cannot be applied.
    object.remove("status");
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    Ok(body)
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// An existing object with another owner is never taken over.
fn same_owner<K: Kind>(wanted: &K, present: &impl Resource) -> Result<(), Failure> {
    let (ours, theirs) = (controller(wanted), controller(present));
    if ours.map(|owner| &owner.uid) == theirs.map(|owner| &owner.uid) {
        return Ok(());
    }
    let whose = theirs.map_or_else(
        || "it belongs to nobody".to_owned(),
        |owner| format!("it belongs to {} {}", owner.kind, owner.name),
    );
    Err(Failure::Invalid(format!("the {} {} is there already, and {whose}", K::kind(&()), wanted.name_any())))
}

fn with(finalizers: &[String]) -> Vec<String> {
    finalizers.iter().cloned().chain([labels::FINALIZER.to_owned()]).collect()
}

fn without(finalizers: &[String]) -> Vec<String> {
    finalizers.iter().filter(|name| *name != labels::FINALIZER).cloned().collect()
}

/// The top-level fields of the status that we wrote.
fn owned_fields<K: Resource>(object: &K) -> BTreeSet<String> {
    let managed = object.meta().managed_fields.as_deref().unwrap_or_default();
    let ours = managed.iter().filter(|entry| {
        entry.manager.as_deref() == Some(MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref() == Some("status")
    });
    let fields = ours.filter_map(|entry| entry.fields_v1.as_ref()?.0.get("f:status")?.as_object());
    fields
        .flat_map(|fields| fields.keys().filter_map(|name| name.strip_prefix("f:").map(str::to_owned)))
        .collect()
}

/// Whether to write `wanted` would change more than times.
fn differs(present: &Value, owned: &BTreeSet<String>, wanted: &Value) -> bool {
    let (Some(old), Some(new)) = (present.as_object(), wanted.as_object()) else { return true };
    let dropped = owned.iter().any(|name| old.contains_key(name) && !new.contains_key(name));
    dropped || new.iter().any(|(name, value)| !old.get(name).is_some_and(|old| same_but_for_time(old, value)))
}

/// Whether two values are the same apart from the times at which they were written.
pub fn same_but_for_time(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let timeless = |name: &&String| !matches!(name.as_str(), "lastTransitionTime" | "lastUpdateTime");
            a.keys().chain(b.keys()).filter(timeless).all(|name| match (a.get(name), b.get(name)) {
                (Some(a), Some(b)) => same_but_for_time(a, b),
                _ => false,
            })
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_but_for_time(a, b))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_alone_are_no_reason_to_write() {
        let none = BTreeSet::new();
        let old = json!({ "phase": "Ready", "conditions": [{ "type": "A", "lastTransitionTime": "1" }], "components": {} });
        assert!(!differs(
            &old,
            &none,
            &json!({ "phase": "Ready", "conditions": [{ "type": "A", "lastTransitionTime": "2" }] })
        ));
        assert!(differs(&old, &none, &json!({ "phase": "NotReady" })));
        assert!(differs(&old, &none, &json!({ "phase": "Ready", "conditions": [] })));
        assert!(differs(&json!({}), &none, &json!({ "phase": "Ready" })));
    }

    #[test]
    fn a_field_that_we_wrote_and_want_no_more_is_a_reason_to_write() {
        let old = json!({ "phase": "Ready", "size": "1 B" });
        let ours = BTreeSet::from(["phase".to_owned(), "size".to_owned()]);
        assert!(differs(&old, &ours, &json!({ "phase": "Ready" })));
        assert!(
            !differs(&old, &BTreeSet::new(), &json!({ "phase": "Ready" })),
            "somebody else wrote the size"
        );
    }

    #[test]
    fn what_belongs_to_another_one_is_not_taken_over() {
        let owned = |uid: &str| {
            let owner = OwnerReference {
                uid: uid.into(),
                kind: "CronJob".into(),
                name: "other".into(),
                controller: Some(true),
                ..OwnerReference::default()
            };
            let mut secret = Secret::default();
            secret.metadata.owner_references = Some(vec![owner]);
            secret
        };
        assert!(same_owner(&owned("a"), &owned("a")).is_ok());
        assert!(same_owner(&Secret::default(), &Secret::default()).is_ok());
        let refused = same_owner(&owned("a"), &owned("b")).expect_err("another owner");
        assert!(refused.to_string().contains("belongs to CronJob other"), "{refused}");
        assert!(same_owner(&owned("a"), &Secret::default()).is_err());
    }
}
