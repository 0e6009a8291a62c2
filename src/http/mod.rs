//! The API door: every route on one screen.

mod api;
mod console;
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
use axum::{Json, Router, middleware};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

pub use openapi::document;
pub use serve::serve;

use crate::cluster::Readiness;
use crate::config::ApiConfig;
use crate::gateway::Gateway;
use crate::metrics::Held;
use crate::outcome::Problem;
use crate::vitals::Nodes;

/// The HTTP API.
pub struct Api {
    /// Where commands go.
    pub gateway: Arc<Gateway>,
    /// Its settings.
    pub config: ApiConfig,
    /// Cancelled when the API ends: so do answers that would go on.
    pub ending: CancellationToken,
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
        let (port, token) = (self.clients_port, self.config.token.is_some());
        let listen = format!(r#"{{"scheme":"{scheme}","port":{port},"token":{token}}}"#);
        let max_body = self.config.max_body;
        let shared = Shared { page: console::page(&listen).into(), api: Arc::new(self) };
        Router::new()
            .route("/", get(root).post(root))
            .route("/api/{op}", post(api::run))
            .route("/console/clients", get(console::clients))
            .route("/console/groups", get(console::groups))
            .route("/console/uids", get(console::uids))
            .route("/console/tail", get(console::tail))
            .route("/openapi.json", get(openapi::serve))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .route("/nodes", get(nodes))
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
async fn ready(State(gateway): State<Arc<Gateway>>, RawQuery(query): RawQuery) -> Response {
    let strict = query.is_some_and(|query| query.split('&').any(|field| field == "strict=1"));
    let readiness = gateway.readiness();
    let (status, words) = match readiness {
        Readiness::Not(why) => (StatusCode::SERVICE_UNAVAILABLE, why),
        Readiness::WithoutRedis if strict => (StatusCode::SERVICE_UNAVAILABLE, "Redis is away"),
        Readiness::Ready | Readiness::WithoutRedis => (StatusCode::OK, readiness.words()),
    };
    (status, format!("{words}\n")).into_response()
}

/// All nodes with their numbers.
async fn nodes(State(gateway): State<Arc<Gateway>>) -> Json<Nodes> {
    Json(gateway.nodes().await)
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let hub = gateway.hub();
    let page = gateway.metrics().page(&Held {
        clients: hub.clients(),
        uids: hub.uid_count(),
        groups: hub.group_count(),
        topics: hub.topic_count(),
        events_waiting: hub.events().waiting(),
    });
    ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], page).into_response()
}

#[allow(clippy::needless_pass_by_value)] // the layer's signature
fn panicked(_: Box<dyn Any + Send>) -> Response {
    tracing::error!("a request's handler panicked");
    Problem::internal().into_response()
}
