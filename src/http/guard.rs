//! Who may ask: the bearer token; where there is none, only programs of this machine, and no foreign web page through
//! a browser on it (`Origin`, and `Host` against DNS rebinding).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, HOST, ORIGIN, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::{Api, Problem};

/// No request takes longer: a batch has 30 s, and the body must arrive, too.
const REQUEST_TIME: Duration = Duration::from_mins(1);

pub(super) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let mut response = match check(&api, &request) {
        Err(problem) => problem.into_response(),
        Ok(()) => match tokio::time::timeout(REQUEST_TIME, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                Problem::new(StatusCode::GATEWAY_TIMEOUT, "node_unreachable", "no answer in time; not known to be done")
                    .into_response()
            }
        },
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn check(api: &Api, request: &Request) -> Result<(), Problem> {
    let method_form = is_method_form(request.uri().query().unwrap_or_default());
    if api.config.token.is_some() {
        let open = match request.uri().path() {
            "/healthz" | "/readyz" => true,
            "/metrics" => api.config.metrics_open,
            "/" => request.method() == Method::GET && !method_form,
            _ => false,
        };
        let offered = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
        if open || offered.is_some_and(|offered| api.config.is_token(offered)) {
            return Ok(());
        }
        let detail = if offered.is_some() {
            "this is not the API token"
        } else {
            "the header Authorization: Bearer <API token> is missing"
        };
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", detail));
    }
    if !is_local(request.headers()) {
        let detail = "without MOONGATE_API_TOKEN only programs of this machine are answered, by its loopback name, and no other web page";
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", detail));
    }
    if method_form && request.method() != Method::POST {
        let detail = "without MOONGATE_API_TOKEN ?method= takes POST only";
        return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail));
    }
    Ok(())
}

/// Whether a query is `GatewayWorker`'s push form.
pub(super) fn is_method_form(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(key, _)| key == "method")
}

/// The token of `Bearer <token>`.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

/// Whether the request names this machine by a loopback name, and comes from no page but our own.
fn is_local(headers: &HeaderMap) -> bool {
    let text = |value: Option<&HeaderValue>| value.map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
    let host = text(headers.get(HOST)).unwrap_or_default();
    let own_origin = format!("http://{host}");
    is_loopback_host(&host) && text(headers.get(ORIGIN)).is_none_or(|origin| origin == own_origin)
}

/// `localhost`, `127.…`, `[::1]`, with or without a port.
pub(super) fn is_loopback_host(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() && (!name.contains(':') || name.ends_with(']')) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for host in ["localhost", "localhost:7273", "127.0.0.1", "127.0.0.1:80", "127.9.9.9:1", "[::1]", "[::1]:7273"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil.example:7273",
            "10.0.0.1",
            "127.0.0.1.evil.example",
            "localhost:x",
            "[::2]:80",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }

    #[test]
    fn only_our_own_page_is_not_foreign() {
        let request = |host: &'static str, origin: &'static str| {
            is_local(
                &[(HOST, HeaderValue::from_static(host)), (ORIGIN, HeaderValue::from_static(origin))]
                    .into_iter()
                    .collect(),
            )
        };
        assert!(request("127.0.0.1:7273", "http://127.0.0.1:7273"));
        assert!(!request("127.0.0.1:7273", "http://127.0.0.1:3000"));
        assert!(!request("127.0.0.1:7273", "https://evil.example"));
        assert!(!request("127.0.0.1:7273", "null"));
        assert!(!request("evil.example:7273", "http://evil.example:7273"));
    }

    #[test]
    fn a_bearer_token_is_read_in_any_case() {
        assert_eq!(bearer("Bearer x"), Some("x"));
        assert_eq!(bearer("bearer  x"), Some("x"));
        assert_eq!(bearer("Basic x"), None);
        assert_eq!(bearer("Bearer"), None);
    }
}
