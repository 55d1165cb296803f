//! Reports components in the status of an object, and nothing else of it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::ui::Ui;

/// Whose fields these are, as a server-side apply names it
/// (<https://kubernetes.io/docs/reference/using-api/server-side-apply/>).
const MANAGER: &str = "cistern-job";
/// How long one attempt may take: the last one of all waits for one that is on its way.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The API server, or that there is none.
pub struct Server {
    client: Option<Client>,
    /// It did not answer for as long as we wait: what comes later is offered once.
    lost: AtomicBool,
    ui: Arc<Ui>,
}

impl Server {
    /// Without a client, nothing is reported, and a warning says so once.
    pub fn new(client: Option<Client>, ui: Arc<Ui>) -> Arc<Self> {
        Arc::new(Server { client, lost: AtomicBool::new(false), ui })
    }

    /// The status of an object.
    pub fn status<K: Resource<DynamicType = ()>>(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
    ) -> Arc<Report> {
        let resource = ApiResource::erase::<K>(&());
        let client = self.client.clone();
        Arc::new(Report {
            api: client.map(|client| Api::namespaced_with(client, namespace, &resource)),
            resource,
            name: name.to_owned(),
            server: self.clone(),
            components: Mutex::default(),
        })
    }
}

/// The components of one object. An apply names all that this Job owns: what it leaves out would be taken away.
pub struct Report {
    api: Option<Api<DynamicObject>>,
    resource: ApiResource,
    name: String,
    server: Arc<Server>,
    /// Held while they are sent: a state never overtakes a later one.
    components: Mutex<BTreeMap<String, Value>>,
}

impl Report {
    /// Tells how a component is, now or never: another state follows.
    pub async fn tell(&self, component: &str, state: &(impl Serialize + Debug)) {
        let mut components = self.components.lock().await;
        components.insert(component.to_owned(), value(state));
        if let Err((error, _)) = self.apply(&components).await {
            tracing::info!("{} {} was not told: {error}", self.resource.kind, self.name);
        }
    }

    /// Tells how a component has ended, again and again until somebody hears it, or the time is over.
    pub async fn settle(&self, component: &str, state: &(impl Serialize + Debug), patience: Duration) {
        let mut components = self.components.lock().await;
        components.insert(component.to_owned(), value(state));
        let patience = if self.server.lost.load(Relaxed) { Duration::ZERO } else { patience };
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(250);
        loop {
            let Err((error, is_final)) = self.apply(&components).await else { return };
            if is_final || Instant::now() + pause > until {
                let what = format!("{} {}", self.resource.kind, self.name);
                self.server.ui.warn(format!("the status of {what} could not be written: {error}"));
                self.server.lost.fetch_or(!is_final, Relaxed);
                return;
            }
            tracing::info!("{} {} is told again: {error}", self.resource.kind, self.name);
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
        }
    }

    /// # Errors
    /// Why not, and whether another attempt would end as this one.
    async fn apply(&self, components: &BTreeMap<String, Value>) -> Result<(), (String, bool)> {
        let Some(api) = &self.api else { return Err(("there is no API server".into(), true)) };
        let object = json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": { "name": self.name },
            "status": { "components": components },
        });
        // The operator writes a component only when its Job is lost; whoever still writes is not.
        let parameters = PatchParams::apply(MANAGER).force();
        let patch = Patch::Apply(&object);
        match timeout(ATTEMPT, api.patch_status(&self.name, &parameters, &patch)).await {
            Ok(Ok(_)) => Ok(()),
            // A Role may take a moment to hold, and a token to be renewed.
            Ok(Err(kube::Error::Api(status))) => {
                Err((status.message.clone(), matches!(status.code, 400 | 404 | 422)))
            }
            Ok(Err(error)) => Err((error.to_string(), false)),
            Err(_) => Err(("no answer".into(), false)),
        }
    }
}

fn value(state: &impl Serialize) -> Value {
    serde_json::to_value(state).expect("a component has string keys")
}
