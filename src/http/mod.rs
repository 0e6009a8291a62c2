//! The API door: every route on one screen.

mod api;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod guard;
mod openapi;
mod problem;
mod serve;

use std::any::Any;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, middleware};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

pub use openapi::document;
pub use serve::serve;

use crate::cluster::Readiness;
use crate::config::ApiConfig;
use crate::gateway::Gateway;
use crate::outcome::Problem;

/// The try-it page; `__LISTEN__` becomes scheme and port of the clients' listener.
const PAGE: &str = include_str!("page.html");

/// The HTTP API.
pub struct Api {
    /// Where commands go.
    pub gateway: Arc<Gateway>,
    /// Its settings.
    pub config: ApiConfig,
    /// Cancelled when the node begins to stop: not ready from then on.
    pub stopping: CancellationToken,
    /// Whether clients speak wss, and on which port.
    pub clients_tls: bool,
    /// The port of `LISTEN`.
    pub clients_port: u16,
}

/// What handlers share.
#[derive(Clone)]
struct Shared {
    api: Arc<Api>,
    page: Arc<str>,
}

impl axum::extract::FromRef<Shared> for Arc<Gateway> {
    fn from_ref(shared: &Shared) -> Self {
        Arc::clone(&shared.api.gateway)
    }
}

impl Api {
    /// All routes.
    pub fn router(self) -> Router {
        let scheme = if self.clients_tls { "wss" } else { "ws" };
        let listen = format!(r#"{{"scheme":"{scheme}","port":{}}}"#, self.clients_port);
        let max_body = self.config.max_body;
        let shared = Shared { page: PAGE.replace("__LISTEN__", &listen).into(), api: Arc::new(self) };
        Router::new()
            .route("/", get(root).post(root))
            .route("/api/{op}", post(api::run))
            .route("/openapi.json", get(openapi::serve))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .fallback(async || {
                Problem::new(
                    StatusCode::NOT_FOUND,
                    "not_found",
                    "no such page; commands are POST /api/<op>, described in /openapi.json",
                )
            })
            .method_not_allowed_fallback(async |method: Method| {
                Problem::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "method_not_allowed",
                    format!("{method} is not taken here; commands are POST"),
                )
            })
            .layer(DefaultBodyLimit::max(max_body))
            .layer(middleware::from_fn_with_state(Arc::clone(&shared.api), guard::guard))
            .layer(CatchPanicLayer::custom(panicked))
            .with_state(shared)
    }
}

/// The page, or `GatewayWorker`'s `?method=` form.
async fn root(
    State(shared): State<Shared>,
    method: Method,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    parent: api::Parent,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let query = query.unwrap_or_default();
    if method == Method::POST || guard::is_method_form(&query) {
        if method == Method::HEAD {
            return Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "?method= takes GET or POST")
                .into_response();
        }
        let gateway = Arc::clone(&shared.api.gateway);
        return api::run_method(gateway, &method, &query, &headers, parent, body).await.into_response();
    }
    let mut page = Html(shared.page.to_string()).into_response();
    page.headers_mut().insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    page
}

/// Whether this node takes new clients; `?strict=1`: and has Redis.
async fn ready(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Response {
    if shared.api.stopping.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    let strict = query.is_some_and(|query| query.split('&').any(|field| field == "strict=1"));
    match shared.api.gateway.readiness() {
        Readiness::Ready => "ready\n".into_response(),
        Readiness::WithoutRedis if strict => (StatusCode::SERVICE_UNAVAILABLE, "Redis is away\n").into_response(),
        Readiness::WithoutRedis => "ready; Redis is away\n".into_response(),
        Readiness::Not(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let hub = gateway.hub();
    let page = gateway.metrics().page(hub.clients(), hub.uid_count(), hub.group_count(), hub.events().waiting());
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page).into_response()
}

#[allow(clippy::needless_pass_by_value)] // the layer's signature
fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request's handler panicked");
    Problem::internal().into_response()
}
