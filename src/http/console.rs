//! What only the console asks: see `gateway::console` and `gateway::tail`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Problem, Shared};
use crate::gateway::{Gateway, MOST_TAILS, Profile, Sizes};
use crate::hub::Tailed;
use crate::json::Invalid;

/// Clients that can be asked for at once.
const MOST_CLIENTS: usize = 50;

/// Names on a page, at most, and unless told.
const MOST_NAMES: usize = 1000;
const NAMES: usize = 50;

/// The console's page, in one piece: no build step, and nothing from outside. `__LISTEN__` becomes what it must know.
pub(super) fn page(listen: &str) -> String {
    include_str!("console/page.html")
        .replace("/*__STYLE__*/", include_str!("console/page.css"))
        .replace("/*__WORDS__*/", include_str!("console/words.js"))
        .replace("/*__COMMON__*/", include_str!("console/common.js"))
        .replace("/*__TRY__*/", include_str!("console/try.js"))
        .replace("/*__VIEWS__*/", include_str!("console/views.js"))
        .replace("__LISTEN__", listen)
}

/// The fields of a query, each at most once; `known` are those there are.
struct Query<'a>(BTreeMap<Cow<'a, str>, Cow<'a, str>>);

impl<'a> Query<'a> {
    fn read(query: &'a str, known: &[&str]) -> Result<Self, Invalid> {
        let mut fields = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            if !known.contains(&&*name) {
                return Err(Invalid::field(
                    name.into_owned(),
                    format_args!("is not known here; there is {}", known.join(", ")),
                ));
            }
            if fields.insert(name.clone(), value).is_some() {
                return Err(Invalid::field(name.into_owned(), "comes twice"));
            }
        }
        Ok(Self(fields))
    }

    fn get<T: FromStr>(&self, name: &'static str, takes: &'static str) -> Result<Option<T>, Invalid> {
        let value = self.0.get(name).filter(|value| !value.is_empty());
        value.map(|value| value.parse().map_err(|_| Invalid::field(name, format_args!("takes {takes}")))).transpose()
    }
}

/// Some clients.
#[derive(Serialize, ToSchema)]
pub(super) struct Profiles {
    /// Those of them that are online.
    clients: Vec<Profile>,
}

/// `GET /console/clients?client_id=<id>,<id>…`
pub(super) async fn clients(
    State(gateway): State<Arc<Gateway>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Profiles>, Problem> {
    let query = query.unwrap_or_default();
    let ids = Query::read(&query, &["client_id"])?.get::<String>("client_id", "client ids")?.unwrap_or_default();
    let read = |id: &str| id.parse().map_err(|error| Invalid::field("client_id", error));
    let ids = ids.split(',').map(read).collect::<Result<Vec<_>, Invalid>>()?;
    if ids.len() > MOST_CLIENTS {
        return Err(Invalid::field("client_id", format_args!("takes at most {MOST_CLIENTS} client ids")).into());
    }
    Ok(Json(Profiles { clients: gateway.profiles(&ids).await? }))
}

/// `GET /console/groups?limit=…&cursor=…`
pub(super) async fn groups(
    State(gateway): State<Arc<Gateway>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Sizes>, Problem> {
    let (from, limit) = window(&query.unwrap_or_default())?;
    Ok(Json(gateway.groups_by_size(from, limit).await?))
}

/// `GET /console/uids?limit=…&cursor=…`
pub(super) async fn uids(
    State(gateway): State<Arc<Gateway>>,
    RawQuery(query): RawQuery,
) -> Result<Json<Sizes>, Problem> {
    let (from, limit) = window(&query.unwrap_or_default())?;
    Ok(Json(gateway.uids_by_size(from, limit).await?))
}

/// Where a page begins, and how long it is.
fn window(query: &str) -> Result<(usize, usize), Invalid> {
    let query = Query::read(query, &["limit", "cursor"])?;
    let from = query.get::<u32>("cursor", "what an answer has said")?.unwrap_or(0);
    let limit = query.get("limit", "a number")?.unwrap_or(NAMES);
    if limit == 0 || limit > MOST_NAMES {
        return Err(Invalid::field("limit", format_args!("takes 1 to {MOST_NAMES}")));
    }
    Ok((from as usize, limit))
}

/// `GET /console/tail?uid=…`, or `group`, or `client_id`: server-sent events until the caller hangs up, or the node stops.
pub(super) async fn tail(State(shared): State<Shared>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let query = query.unwrap_or_default();
    let query = Query::read(&query, &["uid", "group", "client_id"])?;
    let name = "a non-empty string of at most 256 bytes";
    let tailed = match (query.get("uid", name)?, query.get("group", name)?, query.get("client_id", "a client id")?) {
        (Some(uid), None, None) => Tailed::Uid(uid),
        (None, Some(group), None) => Tailed::Group(group),
        (None, None, Some(id)) => Tailed::ClientId(id),
        _ => return Err(Invalid::request("takes one of uid, group, client_id").into()),
    };
    let Some(tail) = shared.api.gateway.tail(tailed) else {
        let detail = format!("this node has {MOST_TAILS} tails already");
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "too_many", detail));
    };
    let ending = shared.api.ending.clone();
    let events = stream::unfold((tail, ending), async |(mut tail, ending)| {
        let line = ending.run_until_cancelled(tail.next()).await?;
        let event = Bytes::from([b"data: ", &*line, b"\n\n"].concat());
        Some((Ok::<_, Infallible>(event), (tail, ending)))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        // nginx would wait for more.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}
