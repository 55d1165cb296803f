//! An API server that records, and that is stricter than life: what a test did not allow is refused, and a status is taken
//! only from a server-side apply that holds components in the words of the resource, and nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use cistern_api::kinds::restore_session::RestoreSessionStatus;
use cistern_api::kinds::snapshot::SnapshotStatus;
use serde_json::{Value, json};

use crate::home::Home;

/// A running server. It stops when it is dropped.
pub struct ApiServer {
    url: String,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
struct State {
    answers: HashMap<(Method, String), Value>,
    /// Objects whose status may be patched.
    objects: Vec<String>,
    /// Patches of statuses and all other writes that were taken, in their order: path and body.
    taken: Vec<(String, Value)>,
    refused: Vec<String>,
    /// So many requests are answered with 500 before.
    broken: usize,
}

impl ApiServer {
    pub fn start() -> ApiServer {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let app = axum::Router::new().fallback(move |request: Request| {
            let state = shared.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = to_bytes(body, 1 << 20).await.unwrap();
                let is_apply = parts
                    .headers
                    .get(header::CONTENT_TYPE)
                    .is_some_and(|kind| kind == "application/apply-patch+yaml");
                let query = parts.uri.query().unwrap_or_default().to_owned();
                let path = parts.uri.path().to_owned();
                let (code, value) =
                    state.lock().unwrap().answer(parts.method, &path, &query, is_apply, &body);
                let text = match value {
                    Value::String(text) => text,
                    value => value.to_string(),
                };
                Response::builder().status(code).body(Body::from(text)).unwrap()
            }
        });
        runtime.spawn(async move { axum::serve(listener, app).await.unwrap() });
        ApiServer { url, state, _runtime: runtime }
    }

    /// Tells a home's commands where the server is, and that they are in the namespace `demo`.
    pub fn connect(&self, home: Home) -> Home {
        kubeconfig(home, &self.url)
    }

    /// Accepts the status of this object in `demo`.
    pub fn object(self, plural: &str, name: &str) -> Self {
        let group = if plural == "snapshots" { "storage" } else { "core" };
        let path = format!("/apis/{group}.kubestash.com/v1alpha1/namespaces/demo/{plural}/{name}/status");
        self.state.lock().unwrap().objects.push(path);
        self
    }

    /// Answers a request; a POST is answered with what it brings.
    pub fn answer(&self, method: Method, path: &str, value: Value) {
        self.state.lock().unwrap().answers.insert((method, path.to_owned()), value);
    }

    /// Answers the next `n` requests with an internal error.
    pub fn broken(&self, n: usize) {
        self.state.lock().unwrap().broken = n;
    }

    /// All writes so far.
    pub fn taken(&self) -> Vec<(String, Value)> {
        let state = self.state.lock().unwrap();
        assert!(state.refused.is_empty(), "{:?}", state.refused);
        state.taken.clone()
    }

    /// The states of a component of an object, one after the other.
    pub fn states(&self, object: &str, component: &str) -> Vec<Value> {
        let is_meant = |path: &str| path.ends_with(&format!("/{object}/status"));
        let taken = self.taken().into_iter().filter(|(path, _)| is_meant(path));
        taken.map(|(_, body)| body["status"]["components"][component].clone()).collect()
    }
}

impl State {
    fn answer(
        &mut self,
        method: Method,
        path: &str,
        query: &str,
        is_apply: bool,
        body: &[u8],
    ) -> (StatusCode, Value) {
        if self.broken > 0 {
            self.broken -= 1;
            return (StatusCode::INTERNAL_SERVER_ERROR, status(500, "etcd is away"));
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        if method == Method::PATCH && self.objects.iter().any(|object| object == path) {
            let name = path.rsplit('/').nth(1).unwrap();
            if let Err(why) = is_report(&body, name).and_then(|()| {
                let is_ours = query.contains("fieldManager=cistern-job") && query.contains("force=true");
                if is_apply && is_ours { Ok(()) } else { Err(format!("no apply of ours: {query}")) }
            }) {
                self.refused.push(format!("{path}: {why}: {body}"));
                return (StatusCode::UNPROCESSABLE_ENTITY, status(422, &why));
            }
            self.taken.push((path.to_owned(), body.clone()));
            return (StatusCode::OK, body);
        }
        let Some(answer) = self.answers.get(&(method.clone(), path.to_owned())).cloned() else {
            self.refused.push(format!("{method} {path}?{query}"));
            return (StatusCode::FORBIDDEN, status(403, "that is nobody's business"));
        };
        if method == Method::GET {
            return (StatusCode::OK, answer);
        }
        self.taken.push((path.to_owned(), body.clone()));
        match method {
            Method::POST => (StatusCode::CREATED, body),
            _ => (StatusCode::OK, answer),
        }
    }
}

/// Whether an apply holds components in the words of the resource and nothing else.
fn is_report(body: &Value, name: &str) -> Result<(), String> {
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
    };
    if keys(body) != ["apiVersion", "kind", "metadata", "status"]
        || keys(&body["metadata"]) != ["name"]
        || body["metadata"]["name"] != name
        || keys(&body["status"]) != ["components"]
    {
        return Err("more or less than components".into());
    }
    let again = match body["kind"].as_str() {
        Some("Snapshot") => {
            serde_json::from_value::<SnapshotStatus>(body["status"].clone()).and_then(serde_json::to_value)
        }
        Some("RestoreSession") => serde_json::from_value::<RestoreSessionStatus>(body["status"].clone())
            .and_then(serde_json::to_value),
        other => return Err(format!("{other:?} has no components")),
    };
    match again {
        Ok(again) if again == body["status"] => Ok(()),
        Ok(again) => Err(format!("it is read as {again}")),
        Err(error) => Err(error.to_string()),
    }
}

fn status(code: u16, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message })
}

/// Tells a home's commands that there is a cluster at this URL.
pub fn kubeconfig(home: Home, url: &str) -> Home {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "demo" } }],
        "clusters": [{ "name": "test", "cluster": { "server": url } }],
        "users": [{ "name": "test", "user": { "token": "a-token-of-the-pod" } }],
    });
    let file = home.write("kubeconfig", config.to_string());
    home.with("KUBECONFIG", file.display().to_string())
}
