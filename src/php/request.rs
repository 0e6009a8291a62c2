//! What a PHP application learns of a WebSocket handshake: the body of `GatewayWorker`'s event `ON_WEBSOCKET_CONNECT`.
//!
//! [`describe`] reads the raw request as Workerman 5.2 does with PHP 8.2's `parse_url` and `parse_str`, oddities
//! included: an application finds in `$data['get']`, `$data['server']` and `$data['cookie']` what it found there before.

use std::collections::HashMap;
use std::iter;
use std::net::{IpAddr, SocketAddr};

use super::serialize::{Key, Value};

/// How many variables of a query count: PHP's `max_input_vars`.
const MAX_VARIABLES: usize = 1000;
/// How many indexes a variable may have: PHP's `max_input_nesting_level`.
const MAX_NESTING: usize = 64;

/// The serialized PHP array `["get" => …, "server" => […], "cookie" => […]]` of a request that came from `remote` to the
/// listener on `port`.
///
/// `head` is the request line and the headers as received; what follows the first empty line is not looked at. Any bytes
/// have a description. It takes memory linear in their number (5 MB for the worst 16 KiB), time so but for sorting, and
/// nests at most 64 arrays below `get`.
pub(super) fn describe(head: &[u8], remote: SocketAddr, port: u16) -> Vec<u8> {
    let mut lines = lines(head);
    let request_line = lines.next().unwrap_or_default();
    let mut words = request_line.splitn(3, |&byte| byte == b' ');
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or(b"/");
    let version = split_once(request_line, b"HTTP/").map_or(&b"1.0"[..], |(_, version)| version);
    let query = query(target);

    let mut lists: Ordered<Vec<&[u8]>> = Ordered::default();
    for (name, value) in lines.filter_map(|line| split_once(line, b":")) {
        lists.entry(name.to_ascii_uppercase()).push(trim(value, b" \t"));
    }
    let headers: Vec<_> = lists.into_entries().map(|(name, values)| (name, values.join(&b','))).collect();
    let header = |name: &[u8]| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice());
    // Two headers that differ in `-` and `_` alone are no repetition: here the later one replaces the earlier.
    let mut http: Ordered<&[u8]> = Ordered::default();
    for (name, value) in &headers {
        *http.entry([b"HTTP_", &*replaced(name, b"-")].concat()) = value;
    }

    let address = match remote.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        // PHP cuts the port off `[::1]:80` and no more.
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    let mut server = vec![
        (key("QUERY_STRING"), bytes(&query)),
        (key("REQUEST_METHOD"), bytes(method)),
        (key("REQUEST_URI"), bytes(target)),
        (key("SERVER_PROTOCOL"), Value::Bytes([b"HTTP/", version].concat().into())),
        (key("SERVER_NAME"), header(b"HOST").map_or(Value::Null, bytes)),
        (key("CONTENT_TYPE"), header(b"CONTENT-TYPE").map_or(Value::Null, bytes)),
        (key("REMOTE_ADDR"), bytes(address.as_bytes())),
        (key("REMOTE_PORT"), Value::Int(remote.port().into())),
        (key("SERVER_PORT"), Value::Int(port.into())),
    ];
    server.extend(http.into_entries().map(|(name, value)| (Key::Bytes(name.into()), bytes(value))));

    let request = Value::Array(vec![
        (key("get"), variables(&query).into_value()),
        (key("server"), Value::Array(server)),
        (key("cookie"), cookies(header(b"COOKIE").unwrap_or_default()).into_value()),
    ]);
    let mut out = Vec::new();
    request.write(&mut out);
    out
}

fn key(name: &'static str) -> Key<'static> {
    Key::Bytes(name.as_bytes().into())
}

fn bytes(text: &[u8]) -> Value<'_> {
    Value::Bytes(text.into())
}

/// The lines of a request head, up to the empty one.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = head;
    iter::from_fn(move || {
        let (line, after) = split_once(rest, b"\r\n").unwrap_or((rest, b""));
        rest = after;
        (!line.is_empty()).then_some(line)
    })
}

/// The cookies by name. A part without `=` is none; nothing is decoded.
fn cookies(header: &[u8]) -> Array {
    let mut cookies = Array::default();
    for (name, value) in header.split(|&byte| byte == b';').filter_map(|part| split_once(part, b"=")) {
        cookies.set(&[Some(trim(name, b" \t\n\r\0\x0b"))], value.to_vec());
    }
    cookies
}

/// The query of a request target as PHP's `parse_url` gives it, with `_` for control characters; empty when there is
/// none or when that function fails.
fn query(target: &[u8]) -> Vec<u8> {
    let end = target.iter().position(|byte| b"?#".contains(byte)).unwrap_or(target.len());
    match target.split_at_checked(end) {
        Some((start, [b'?', rest @ ..])) if is_url(start) => {
            let query = rest.split(|&byte| byte == b'#').next().unwrap_or_default();
            query.iter().map(|&byte| if byte.is_ascii_control() { b'_' } else { byte }).collect()
        }
        _ => Vec::new(),
    }
}

/// Whether PHP's `parse_url` takes a URL that has a query, `start` being what stands before that.
fn is_url(start: &[u8]) -> bool {
    let relative = start.strip_prefix(b"//");
    let Some((scheme, rest)) = split_once(start, b":") else { return relative.is_none_or(has_host) };
    let is_scheme = !scheme.is_empty() && scheme.iter().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(b));
    if is_scheme && rest.starts_with(b"/") {
        let without_host = scheme.eq_ignore_ascii_case(b"file") && rest.starts_with(b"///");
        return without_host || rest.strip_prefix(b"//").is_none_or(has_host);
    }
    // What looks like a port is taken for one, in a path too: `/p:80/x` then fails for want of a host.
    if let Some((port, _)) = split_once(rest, b"/")
        && (1..=5).contains(&port.len())
        && port.iter().all(u8::is_ascii_digit)
    {
        return is_port(port) && has_host(relative.unwrap_or(start));
    }
    is_scheme || relative.is_none_or(has_host)
}

/// Whether what stands before the first `/` is a host, with or without a user and a port.
fn has_host(rest: &[u8]) -> bool {
    let authority = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
    let host = authority.rsplit(|&byte| byte == b'@').next().unwrap_or_default();
    if host.starts_with(b"[") && host.ends_with(b"]") {
        return true;
    }
    let colon = host.iter().rposition(|&byte| byte == b':').unwrap_or(host.len());
    match host.split_at_checked(colon) {
        Some((host, [b':', port @ ..])) if !port.is_empty() => !host.is_empty() && is_port(port),
        Some((host, _)) => !host.is_empty(),
        None => false,
    }
}

/// Whether a port is read from at most 5 bytes by C's `strtol`: that passes over blanks, takes a sign and stops at what
/// is no digit.
fn is_port(text: &[u8]) -> bool {
    if text.len() > 5 {
        return false;
    }
    let mut text = text.iter().copied().skip_while(|&byte| is_space(byte)).peekable();
    let negative = text.next_if(|byte| b"+-".contains(byte)) == Some(b'-');
    let port = text.map_while(|byte| char::from(byte).to_digit(10)).reduce(|number, digit| 10 * number + digit);
    port.is_some_and(|port| port <= if negative { 0 } else { 65535 })
}

/// The variables of a query, as PHP's `parse_str` reads them.
fn variables(query: &[u8]) -> Array {
    let mut variables = Array::default();
    for part in query.split(|&byte| byte == b'&').filter(|part| !part.is_empty()).take(MAX_VARIABLES) {
        let (name, value) = split_once(part, b"=").unwrap_or((part, b""));
        // To PHP the name is a string of C: it ends at a NUL.
        let name: Vec<u8> = decoded(name).into_iter().skip_while(|&b| b == b' ').take_while(|&b| b != 0).collect();
        set_variable(&mut variables, &name, decoded(value));
    }
    variables
}

/// Sets the variable that a name like `a`, `a[b]` or `a[b][]` means, if it means one.
///
/// One rule is left out: names that only here become `__Host-…` or `__Secure-…` are dropped by PHP since 8.1.11. It is
/// for cookies, which Workerman does not read this way.
fn set_variable(variables: &mut Array, name: &[u8], value: Vec<u8>) {
    let bracket = name.iter().position(|&byte| byte == b'[').unwrap_or(name.len());
    let Some((base @ [_, ..], mut rest)) = name.split_at_checked(bracket) else { return };
    // A first bracket that is never closed is part of the name.
    let base = if rest.contains(&b']') { replaced(base, b" .") } else { replaced(name, b" .[") };
    let mut path = vec![Some(&*base)];
    while path.len() <= MAX_NESTING
        && let Some((index, after)) = rest.strip_prefix(b"[").and_then(|inner| split_once(inner, b"]"))
    {
        let appends = index.is_empty() || matches!(index, &[blank] if is_space(blank));
        path.push((!appends).then_some(index));
        rest = after;
    }
    let is_set = variables.set(&path, value).is_some();
    if is_set && path.len() > MAX_NESTING && rest.starts_with(b"[") {
        // PHP finds out when it is that deep, and takes back all there is under the name.
        variables.entries.map.remove(&base);
    }
}

/// Undoes the URL encoding; a `%` without two hex digits stays.
fn decoded(text: &[u8]) -> Vec<u8> {
    let text: Vec<u8> = text.iter().map(|&byte| if byte == b'+' { b' ' } else { byte }).collect();
    percent_encoding::percent_decode(&text).collect()
}

/// A PHP array in the making.
#[derive(Default)]
struct Array {
    /// By the text of the key: [`Key::of`] makes different keys of different texts.
    entries: Ordered<Node>,
    greatest_int: Option<i64>,
}

/// What an [`Array`] holds: an array, or else a text.
#[derive(Default)]
struct Node {
    array: Option<Array>,
    text: Vec<u8>,
}

impl Array {
    /// Sets the entry at a path of keys, where none stands for the next free one; what is no array on the way becomes
    /// one. Does nothing and gives none when there is no free key.
    fn set(&mut self, path: &[Option<&[u8]>], text: Vec<u8>) -> Option<()> {
        let (&key, path) = path.split_first()?;
        let node = self.entry(key)?;
        if path.is_empty() {
            *node = Node { array: None, text };
            Some(())
        } else {
            node.array.get_or_insert_default().set(path, text)
        }
    }

    /// The entry of a key, made if it is not there; none when there is no free integer above the greatest.
    fn entry(&mut self, key: Option<&[u8]>) -> Option<&mut Node> {
        let text = match key {
            Some(key) => key.to_vec(),
            None => self.greatest_int.map_or(Some(0), |int| int.checked_add(1))?.to_string().into(),
        };
        if let Key::Int(int) = Key::of(text.as_slice()) {
            self.greatest_int = self.greatest_int.max(Some(int));
        }
        Some(self.entries.entry(text))
    }

    fn into_value(self) -> Value<'static> {
        let entries = self.entries.into_entries().map(|(key, node)| {
            let value = node.array.map_or_else(|| Value::Bytes(node.text.into()), Self::into_value);
            (Key::of(key), value)
        });
        Value::Array(entries.collect())
    }
}

/// A map that keeps the order in which its keys came.
struct Ordered<V> {
    map: HashMap<Vec<u8>, (usize, V)>,
    next: usize,
}

impl<V> Default for Ordered<V> {
    fn default() -> Self {
        Self { map: HashMap::new(), next: 0 }
    }
}

impl<V: Default> Ordered<V> {
    fn entry(&mut self, key: Vec<u8>) -> &mut V {
        self.next += 1;
        &mut self.map.entry(key).or_insert_with(|| (self.next, V::default())).1
    }

    fn into_entries(self) -> impl Iterator<Item = (Vec<u8>, V)> {
        let mut entries: Vec<_> = self.map.into_iter().collect();
        entries.sort_unstable_by_key(|(_, (place, _))| *place);
        entries.into_iter().map(|(key, (_, value))| (key, value))
    }
}

/// What stands before and after the first `separator`.
fn split_once<'a>(text: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let place = text.windows(separator.len()).position(|window| window == separator)?;
    let (before, rest) = text.split_at_checked(place)?;
    Some((before, rest.strip_prefix(separator)?))
}

/// The text without blanks at either end.
fn trim<'a>(mut text: &'a [u8], blanks: &[u8]) -> &'a [u8] {
    while let [first, rest @ ..] = text
        && blanks.contains(first)
    {
        text = rest;
    }
    while let [rest @ .., last] = text
        && blanks.contains(last)
    {
        text = rest;
    }
    text
}

/// The text with `_` for each of some bytes.
fn replaced(text: &[u8], some: &[u8]) -> Vec<u8> {
    text.iter().map(|byte| if some.contains(byte) { b'_' } else { *byte }).collect()
}

/// Whether C's `isspace` takes the byte.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    /// Recorded from the PHP gateway.
    const VECTORS: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/gatewayworker/codec/handshake_request.json");

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn serialized(value: &Value) -> String {
        let mut out = Vec::new();
        value.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    fn get(query: &str) -> String {
        serialized(&variables(query.as_bytes()).into_value())
    }

    fn described(head: &str, remote: &str) -> String {
        String::from_utf8(describe(head.as_bytes(), remote.parse().unwrap(), 80)).unwrap()
    }

    #[test]
    fn a_request_is_described_byte_for_byte_as_by_the_php_gateway() {
        let vectors: serde_json::Value = serde_json::from_slice(&std::fs::read(VECTORS).unwrap()).unwrap();
        let port = vectors["server_port"].as_u64().unwrap() as u16;
        let mut described = 0;
        for case in vectors["cases"].as_array().unwrap() {
            let request = &case["request"];
            let head = request["hex"].as_str().map_or_else(|| request["text"].as_str().unwrap().into(), unhex);
            // Null stands for a request that was refused.
            let Some(body) = case["body"]["hex"].as_str() else { continue };
            let remote = SocketAddr::from(([127, 0, 0, 1], case["client_port"].as_u64().unwrap() as u16));
            let got = describe(&head, remote, port);
            assert_eq!(String::from_utf8_lossy(&got), String::from_utf8_lossy(&unhex(body)), "{}", case["name"]);
            assert_eq!(got, unhex(body), "{}", case["name"]);
            described += 1;
        }
        assert!(described > 80);
    }

    #[test]
    fn a_query_is_read_as_php_reads_it() {
        // What PHP 8.2.35 answers, beyond the vectors.
        for (query, result) in [
            ("a[ ]=1&a[%0b]=2&a[  ]=3", r#"a:1:{s:1:"a";a:3:{i:0;s:1:"1";i:1;s:1:"2";s:2:"  ";s:1:"3";}}"#),
            ("a[b.[c d=1", r#"a:1:{s:8:"a_b__c_d";s:1:"1";}"#),
            ("a[b][c.d e=1", r#"a:1:{s:1:"a";a:1:{s:1:"b";s:1:"1";}}"#),
            ("a[][c=1", r#"a:1:{s:1:"a";a:1:{i:0;s:1:"1";}}"#),
            ("a[b[c]]=1", r#"a:1:{s:1:"a";a:1:{s:3:"b[c";s:1:"1";}}"#),
            ("a[b%00c]=1", r#"a:1:{s:3:"a_b";s:1:"1";}"#),
            ("a[-5]=x&a[]=y", r#"a:1:{s:1:"a";a:2:{i:-5;s:1:"x";i:-4;s:1:"y";}}"#),
            ("a[9223372036854775807]=x&a[]=y&a[][b]=z", r#"a:1:{s:1:"a";a:1:{i:9223372036854775807;s:1:"x";}}"#),
            (
                "a[x]=1&b=&a[x][y]=2&a[z]=",
                r#"a:2:{s:1:"a";a:2:{s:1:"x";a:1:{s:1:"y";s:1:"2";}s:1:"z";s:0:"";}s:1:"b";s:0:"";}"#,
            ),
        ] {
            assert_eq!(get(query), result, "{query}");
        }
    }

    #[test]
    fn a_variable_nested_too_deep_takes_its_namesake_along() {
        let deep = |levels| format!("a.b=1&c=2&a.b{}=3", "[x]".repeat(levels));
        assert!(get(&deep(64)).starts_with(r#"a:2:{s:3:"a_b";a:1:{s:1:"x";a:1:"#));
        assert_eq!(get(&deep(65)), r#"a:1:{s:1:"c";s:1:"2";}"#);
        assert_eq!(get(&deep(64).replace("=3", "[=3")), r#"a:1:{s:1:"c";s:1:"2";}"#);
    }

    #[test]
    fn parts_without_a_name_count_among_the_1000_variables_but_empty_parts_do_not() {
        assert_eq!(get(&("=&&".repeat(999) + "a=1&b=2")), r#"a:1:{s:1:"a";s:1:"1";}"#);
    }

    #[test]
    fn a_target_that_parse_url_refuses_has_no_query() {
        for target in
            ["///", "//", "//:80", "//u@", "//h:x/", "//h:-1", "//h:65536", "//[::1]:99999", "http:///", ":80/"]
                .into_iter()
                .chain(["/p:80/x", "/p:70000/x", "a:99999/"])
        {
            assert_eq!(query(format!("{target}?q").as_bytes()), b"", "{target}");
        }
        for target in
            ["", "/", "*", "/a:b", "/p:80", "//h", "//u:p@h:80/", "//h:", "//h:+80", "//h:-0", "//h:8x", "//[::1]"]
                .into_iter()
                .chain(["file:///", "a:80/", "a:99999", "a:", ":", ":80", "x/y:80/z", "//h/p:80/"])
        {
            assert_eq!(query(format!("{target}?q?#?").as_bytes()), b"q?", "{target}");
        }
        assert_eq!(query(b"/#?q"), b"");
    }

    #[test]
    fn control_characters_of_a_query_become_underscores() {
        let description = described("GET /?a\tb=\0\x7f\n HTTP/1.1\r\n\r\n", "1.2.3.4:5");
        assert!(description.starts_with(r#"a:3:{s:3:"get";a:1:{s:3:"a_b";s:3:"___";}"#), "{description}");
        assert!(description.contains("s:11:\"REQUEST_URI\";s:9:\"/?a\tb=\0\x7f\n\";"), "{description}");
    }

    #[test]
    fn of_headers_that_differ_in_dash_and_underscore_the_last_stands_in_the_place_of_the_first() {
        let description = described("GET / HTTP/1.1\r\nX-A: 1\r\nB: 2\r\nx_a: 3\r\nX-a: 4\r\n\r\nC: 5", "1.2.3.4:5");
        let headers = r#"s:8:"HTTP_X_A";s:1:"3";s:6:"HTTP_B";s:1:"2";}s:6:"cookie";a:0:{}}"#;
        assert!(description.ends_with(headers), "{description}");
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let description = described("GET / HTTP/1.1\r\n\r\n", "[2001:db8::1]:5");
        assert!(description.contains(r#"s:11:"REMOTE_ADDR";s:13:"[2001:db8::1]";s:11:"REMOTE_PORT";i:5;"#));
    }

    #[test]
    fn a_request_line_in_pieces_is_filled_up() {
        for (line, fields) in [
            ("", r#""REQUEST_METHOD";s:0:"";s:11:"REQUEST_URI";s:1:"/";s:15:"SERVER_PROTOCOL";s:8:"HTTP/1.0";"#),
            ("GET", r#""REQUEST_METHOD";s:3:"GET";s:11:"REQUEST_URI";s:1:"/";s:15:"SERVER_PROTOCOL";s:8:"HTTP/1.0";"#),
            (
                "GET  /",
                r#""REQUEST_METHOD";s:3:"GET";s:11:"REQUEST_URI";s:0:"";s:15:"SERVER_PROTOCOL";s:8:"HTTP/1.0";"#,
            ),
            ("GET /HTTP/2", r#"s:11:"REQUEST_URI";s:7:"/HTTP/2";s:15:"SERVER_PROTOCOL";s:6:"HTTP/2";"#),
        ] {
            assert!(described(line, "1.2.3.4:5").contains(fields), "{line}");
        }
    }

    #[test]
    fn no_head_of_16_kib_takes_long() {
        let fill = |text: &str| text.repeat(16 * 1024 / text.len());
        let numbered = |before: &str, after: &str| {
            (0..4000).fold(String::new(), |text, number| text + before + &format!("{number:x}") + after)
        };
        for head in [
            format!("GET /?{}", numbered("", "&")),
            format!("GET /?{}", numbered("a[", "]&")),
            format!("GET /?{}&", fill(&("a".to_owned() + &"[]".repeat(64) + "&"))),
            format!("GET /?{}", fill("a[")),
            format!("GET /?{}", fill("%5B")),
            format!("GET /\r\n{}", numbered("", ":\r\n")),
            format!("GET /\r\n{}", fill("a:\r\n")),
            format!("GET /\r\nCookie:{}", numbered("", "=;")),
        ] {
            let start = Instant::now();
            let description = described(&head, "1.2.3.4:5");
            // Some milliseconds; a debug build on a busy machine has leave to take longer.
            assert!(start.elapsed() < Duration::from_secs(1), "{}", &head[..30]);
            assert!(description.len() < 20 * head.len(), "{}", &head[..30]);
        }
    }

    const BEGINNING: &[u8; 15] = br#"a:3:{s:3:"get";"#;

    proptest! {
        #[test]
        fn any_bytes_have_a_description(head in any::<Vec<u8>>()) {
            let description = describe(&head, SocketAddr::from(([1, 2, 3, 4], 5)), 80);
            prop_assert_eq!(description.first_chunk(), Some(BEGINNING));
        }

        #[test]
        fn any_target_and_headers_have_a_description(
            target in r"[ab1/:?#@=&%\[\].+\-0 \x00\t]{0,80}",
            headers in r"[ab\-_: ;=\r\n\t]{0,80}",
        ) {
            let head = format!("GET /?{target} HTTP/1.1\r\nCookie: {headers}\r\n\r\n");
            let description = describe(head.as_bytes(), SocketAddr::from(([1, 2, 3, 4], 5)), 80);
            prop_assert_eq!(description.first_chunk(), Some(BEGINNING));
        }
    }
}
