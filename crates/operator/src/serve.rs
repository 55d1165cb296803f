//! Health and metrics over HTTP: `/healthz`, `/readyz` and `/metrics`. Nothing here changes anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// What the pages are made from.
#[derive(Clone, Default)]
pub struct Health {
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// Whether the process may be asked for what it is for: it has reached the API server.
    pub ready: Arc<AtomicBool>,
}

fn pages(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(numbers))
        .with_state(health)
}

async fn ready(State(health): State<Health>) -> impl IntoResponse {
    match health.ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the API server was not reached yet"),
    }
}

async fn numbers(State(health): State<Health>) -> impl IntoResponse {
    let of_text = [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    (of_text, health.metrics.text())
}

/// Answers until `cancel` fires.
///
/// # Errors
/// The socket breaks.
pub async fn serve(listener: TcpListener, health: Health, cancel: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, pages(health)).with_graceful_shutdown(cancel.cancelled_owned()).await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn it_is_ready_once_the_api_server_was_reached() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (health, cancel) = (Health::default(), CancellationToken::new());
        let server = tokio::spawn(serve(listener, health.clone(), cancel.clone()));
        let ask = async |page: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
            let request = format!("GET {page} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(ask("/readyz").await.starts_with("HTTP/1.1 503"));
        health.ready.store(true, Ordering::Relaxed);
        assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(ask("/metrics").await.contains("# EOF"));
        cancel.cancel();
        server.await.expect("it ended").expect("without an error");
    }
}
