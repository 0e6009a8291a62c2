//! The WebSocket handshake (RFC 6455, section 4.2) over hyper, on any path.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CONNECTION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderName, HeaderValue, ORIGIN, PROXY_AUTHORIZATION,
    RETRY_AFTER, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE, WWW_AUTHENTICATE,
};
use hyper::server::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Edge, LetIn};
use crate::accept::{MAX_HEAD, MAX_HEADERS};
use crate::access::{Full, Grant, Place, TokenError};
use crate::client::Client;
use crate::event;
use crate::id::ClientId;
use crate::webhook::NotAdmitted;

type Body = axum::body::Body;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A handshake that is answered with 101.
struct Agreed {
    upgrade: OnUpgrade,
    let_in: LetIn,
}

/// A request that is served.
struct Good {
    accept: HeaderValue,
    /// Where it comes from, by the word of proxies that are believed.
    ip: IpAddr,
    grant: Option<Grant>,
    place: Option<Box<Place>>,
}

impl Edge {
    /// Reads one request and answers it; gives the stream back, with bytes that came behind the request, when it is
    /// a WebSocket now.
    pub(super) async fn http_handshake<S>(
        self: &Arc<Self>,
        client: &Client,
        is_guest: bool,
        stream: S,
    ) -> Option<(S, Bytes, LetIn)>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let agreed = Arc::new(Mutex::new(None));
        let service = hyper::service::service_fn(|request| {
            let answer = self.answer(request, is_guest, client, Arc::clone(&agreed));
            async { Ok::<_, Infallible>(answer.await) }
        });
        let served = http1().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        if let Err(error) = served {
            tracing::debug!(%error, "handshake failed");
            self.refuse("http");
            return None;
        }
        let Agreed { upgrade, let_in } = agreed.lock().take()?;
        let parts = upgrade.await.ok()?.downcast::<TokioIo<S>>().ok()?;
        Some((parts.io.into_inner(), parts.read_buf, let_in))
    }

    /// What is wrong is answered at once, even to one who does not wait for it; a guest's good request is told of first.
    fn answer(
        &self,
        mut request: Request<Incoming>,
        is_guest: bool,
        client: &Client,
        agreed: Arc<Mutex<Option<Agreed>>>,
    ) -> impl Future<Output = Response<Body>> {
        let checked = self.check(&request, client);
        async move {
            let Good { accept, ip, grant, place } = match checked {
                Ok(good) => good,
                Err(refusal) => return refusal,
            };
            if is_guest && !self.gateway.shook_hands(client, &head(&request)).await {
                return self.no_worker();
            }
            let admission = match self.admit(client, || described(&request, ip), grant).await {
                Ok(admission) => admission,
                Err(NotAdmitted::Refused(status)) => {
                    return refusal(status, &[], "the application does not let this client in\n");
                }
                Err(NotAdmitted::NoAnswer) => {
                    let words = "the application cannot be asked; connect again\n";
                    return refusal(StatusCode::SERVICE_UNAVAILABLE, &[(RETRY_AFTER, "1")], words);
                }
            };
            let let_in = LetIn { admission, place };
            *agreed.lock() = Some(Agreed { upgrade: hyper::upgrade::on(&mut request), let_in });
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            let headers = response.headers_mut();
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
            response
        }
    }

    /// A request that is served, or the answer to one that is not. The place comes last: nothing else takes one.
    #[allow(clippy::result_large_err)] // both are answers
    fn check(&self, request: &Request<Incoming>, client: &Client) -> Result<Good, Response<Body>> {
        if self.refusing.is_cancelled() {
            return Err(self.not_now("draining", "this node is stopping; connect again\n"));
        }
        // With another address since it was accepted it would have an id that nobody finds.
        if client.id() == ClientId::NOBODY || !self.gateway.has_place() || client.id().lan != self.gateway.lan() {
            let words = "this node has no place among the others yet; connect again\n";
            return Err(self.not_now("not_ready", words));
        }
        let accept = accept_key(request.method(), request.headers()).map_err(|(status, words)| {
            self.refuse("not_websocket");
            let version = (SEC_WEBSOCKET_VERSION, "13");
            let headers: &[_] =
                if status == StatusCode::UPGRADE_REQUIRED { &[(UPGRADE, "websocket"), version] } else { &[] };
            refusal(status, headers, words)
        })?;
        if self.gateway.lacks_listener() {
            return Err(self.no_worker());
        }
        let (access, headers) = (&self.access, request.headers());
        if let (Some(origins), Some(origin)) = (&access.origins, headers.get(ORIGIN))
            && !origins.allow(origin.as_bytes())
        {
            self.refuse("origin");
            return Err(refusal(StatusCode::FORBIDDEN, &[], "pages of this origin may not connect\n"));
        }
        let grant = self.grant(request).map_err(|error| {
            self.refuse("token");
            refusal(StatusCode::UNAUTHORIZED, &[(WWW_AUTHENTICATE, "Bearer")], format!("{error}\n"))
        })?;
        let forwarded_for = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes);
        let ip = access.proxies.client(client.arrival().peer.ip(), forwarded_for);
        let place = self.place(ip).map_err(|full| match full {
            Full::ForAll => {
                let words = "this node has as many clients as it may; connect again\n";
                refusal(StatusCode::SERVICE_UNAVAILABLE, &[(RETRY_AFTER, "1")], words)
            }
            Full::ForAddress => refusal(StatusCode::TOO_MANY_REQUESTS, &[], "too many connections from this address\n"),
        })?;
        Ok(Good { accept, ip, grant, place })
    }

    /// What a client's token gives it, if tokens mean anything here.
    fn grant(&self, request: &Request<Incoming>) -> Result<Option<Grant>, TokenError> {
        let Some(tokens) = &self.access.tokens else { return Ok(None) };
        let grant = tokens.grant(token(request).as_deref())?;
        match grant.as_ref().and_then(|grant| self.gateway.refuses(grant)) {
            Some(why) => Err(TokenError::Unfit(why)),
            None => Ok(grant),
        }
    }

    fn no_worker(&self) -> Response<Body> {
        self.not_now("no_worker", "no PHP worker is connected to this node; connect again\n")
    }

    fn not_now(&self, reason: &'static str, words: &'static str) -> Response<Body> {
        self.refuse(reason);
        refusal(StatusCode::SERVICE_UNAVAILABLE, &[(RETRY_AFTER, "1")], words)
    }
}

/// How requests are read.
pub(super) fn http1() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    builder
}

/// The token that a request brings, if it does: RFC 6750, 2.1, or in the query, as browsers cannot set the header.
pub(super) fn token(request: &Request<Incoming>) -> Option<Cow<'_, str>> {
    let bearer = |value: &HeaderValue| {
        let (scheme, token) = value.as_bytes().split_at_checked(7)?;
        // What is no text is no good token, but one that is brought.
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| String::from_utf8_lossy(token).trim().to_owned().into())
    };
    let query = || {
        let query = request.uri().query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).find(|(name, value)| name == "token" && !value.is_empty())
    };
    request.headers().get(AUTHORIZATION).and_then(bearer).or_else(|| query().map(|(_, token)| token))
}

/// What applications are told of a request: nothing that would let them in elsewhere.
pub(super) fn described(request: &Request<Incoming>, ip: IpAddr) -> event::Request {
    let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
    let query = query.filter(|(name, _)| name != "token").map(|(name, value)| (name.into_owned(), value.into_owned()));
    let lines = request.headers().get_all(COOKIE).into_iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
    let mut cookies = BTreeMap::new();
    for line in lines {
        for (name, value) in line.split(';').filter_map(|cookie| cookie.split_once('=')) {
            let value = percent_decode_str(value.trim()).decode_utf8_lossy().into_owned();
            cookies.insert(name.trim().to_owned(), value);
        }
    }
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in request.headers() {
        if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name) {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        let of_name = headers.entry(name.as_str().to_owned()).or_default();
        if !of_name.is_empty() {
            of_name.push_str(", ");
        }
        of_name.push_str(&value);
    }
    // Maps of strings: this cannot fail.
    let object = |map: &BTreeMap<String, String>| serde_json::to_string(map).unwrap_or_default();
    let query = object(&query.collect());
    event::Request { query, cookies: object(&cookies), headers: object(&headers), ip }
}

/// A request's head as it came, but for what HTTP lets be written in several ways.
pub(super) fn head(request: &Request<Incoming>) -> Vec<u8> {
    let mut head = format!("{} {} {:?}\r\n", request.method(), request.uri(), request.version()).into_bytes();
    for (name, value) in request.headers() {
        head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    head
}

pub(super) fn refusal(
    status: StatusCode,
    headers: &[(HeaderName, &'static str)],
    words: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(words.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// The `Sec-WebSocket-Accept` of a request that asks for a WebSocket, or why it does not.
pub(super) fn accept_key(method: &Method, headers: &HeaderMap) -> Result<HeaderValue, (StatusCode, &'static str)> {
    if method != Method::GET {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "a WebSocket begins with GET\n"));
    }
    if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return Err((StatusCode::UPGRADE_REQUIRED, "this address speaks WebSocket\n"));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err((StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is spoken here\n"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    // Sixteen bytes in base64: RFC 6455, 4.2.1.
    let is_key = key.len() == 24
        && key.ends_with(b"==")
        && key.iter().take(22).all(|byte| byte.is_ascii_alphanumeric() || b"+/".contains(byte));
    if !is_key {
        return Err((StatusCode::BAD_REQUEST, "Sec-WebSocket-Key takes 16 bytes in base64\n"));
    }
    HeaderValue::try_from(derive_accept_key(key)).map_err(|_| (StatusCode::BAD_REQUEST, "bad Sec-WebSocket-Key\n"))
}

/// Whether a comma list names a token, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn the_handshake_follows_rfc_6455() {
        let good = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        // The example of RFC 6455, 1.3.
        assert_eq!(accept_key(&Method::GET, &headers(&good)).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(accept_key(&Method::POST, &headers(&good)).unwrap_err().0, StatusCode::METHOD_NOT_ALLOWED);
        for (place, value, status) in [
            (0, "h2c", StatusCode::UPGRADE_REQUIRED),
            (1, "close", StatusCode::UPGRADE_REQUIRED),
            (2, "8", StatusCode::UPGRADE_REQUIRED),
            (3, "short", StatusCode::BAD_REQUEST),
            (3, "dGhlIHNhbXBsZSBub25jZQ!=", StatusCode::BAD_REQUEST),
        ] {
            let mut bad = good;
            bad[place].1 = value;
            assert_eq!(accept_key(&Method::GET, &headers(&bad)).unwrap_err().0, status, "{value}");
        }
    }
}
