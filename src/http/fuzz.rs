//! What must hold for any request to the API; see [`crate::fuzz`].

#![allow(clippy::expect_used)] // here a panic is what is looked for

use super::{api, guard};
use crate::command::{Command, Operation};
use crate::json;

/// The operation's name in the path, and a body.
pub(crate) fn body(op: &str, body: &[u8]) {
    if let (Ok(op), Ok(fields)) = (Operation::find(op), json::fields(body)) {
        // Its words are for whoever asked.
        drop(Command::parse(op.name, &fields));
    }
}

/// The form of `?method=`: in the query, and in a body.
pub(crate) fn form(query: &[u8], form: &[u8]) {
    let Ok((op, object)) = api::positional(query, form) else { return };
    let fields = json::fields(object.as_bytes()).expect("a form makes an object");
    assert!(fields.iter().all(|(name, _)| op.args.contains(&&**name)), "{object}");
    drop(Command::parse(op.name, &fields));
}

/// What stands in a `Host`: whoever is taken for this machine is it in the eyes of a browser, too.
pub(crate) fn host(host: &str) {
    let Ok(url) = reqwest::Url::parse(&format!("http://{host}/")) else { return };
    if guard::is_loopback_host(&host.to_ascii_lowercase()) {
        let name = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_loopback = name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        assert!(name == "localhost" || is_loopback, "{host} is {name}");
    }
}
