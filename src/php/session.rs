//! A PHP session as JSON text, which alone is kept: it gives back the serialized bytes it was made of.
//!
//! Values stand for themselves, a float always with a dot or exponent. `{"$binary":"<base64>"}` is a string that is not
//! UTF-8. `{"$php":"<base64>"}` is a whole session that has no other form: one with objects in it, say.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::serialize::{self, Entries, JsonStyle, Key, Value};
use crate::json::{self, MAX_DEPTH};

const BINARY: &str = "$binary";
const OPAQUE: &str = "$php";

/// The JSON text of a serialized session, compact; [`to_php`] gives the bytes back. An empty session is `{}`.
pub fn to_json(php: &[u8]) -> String {
    if php.is_empty() {
        return "{}".to_owned();
    }
    natural(php).filter(|json| to_php(json) == php).unwrap_or_else(|| marked(OPAQUE, php))
}

/// The serialized bytes of a session in compact JSON: an object or list, whoever wrote it.
///
/// What [`to_json`] did not write becomes what PHP's `json_decode` makes of it. The session itself is an array whatever
/// its keys are, unless it is opaque. Of what cannot be read there remains the empty array: of text that is not compact
/// JSON, has more than 127 levels or half a surrogate pair in it. No session that has been checked is such a text.
pub fn to_php(json: &str) -> Vec<u8> {
    if let Some(php) = opaque(json) {
        return php;
    }
    let mut reader = Reader { rest: json };
    let session = reader.array(MAX_DEPTH).filter(|_| reader.rest.is_empty()).unwrap_or(Value::Array(Vec::new()));
    let mut php = Vec::with_capacity(2 * json.len());
    session.write(&mut php);
    php
}

fn opaque(json: &str) -> Option<Vec<u8>> {
    let mut reader = Reader { rest: json };
    reader.marked(OPAQUE).filter(|_| reader.rest.is_empty())
}

fn marked(mark: &str, bytes: &[u8]) -> String {
    format!("{{\"{mark}\":\"{}\"}}", STANDARD.encode(bytes))
}

/// The JSON text of an array, if it has one; not always one that gives the same bytes back.
fn natural(php: &[u8]) -> Option<String> {
    match serialize::parse(php).ok()? {
        Value::Array(entries) if entries.is_empty() => Some("{}".to_owned()),
        array @ Value::Array(_) => {
            let mut json = String::with_capacity(php.len());
            JsonStyle { float, string, key }.write(&array, &mut json)?;
            Some(json)
        }
        _ => None,
    }
}

fn float(number: f64, out: &mut String) -> Option<()> {
    let text = serialize::json_float(number)?;
    out.push_str(&text);
    if !text.contains(['.', 'e']) {
        out.push_str(".0");
    }
    Some(())
}

fn string(bytes: &[u8], out: &mut String) -> Option<()> {
    key(bytes, out).or_else(|| {
        out.push_str(&marked(BINARY, bytes));
        Some(())
    })
}

fn key(bytes: &[u8], out: &mut String) -> Option<()> {
    json::write_string(str::from_utf8(bytes).ok()?, out);
    Some(())
}

/// Reads compact JSON that is known to be JSON. `serde_json` loses the last bit of many floats and knows none beyond
/// the range.
struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn value(&mut self, levels: usize) -> Option<Value<'a>> {
        match self.rest.as_bytes().first()? {
            b'{' | b'[' => self.binary().or_else(|| self.array(levels)),
            b'"' => self.string().map(|text| Value::Bytes(bytes(text))),
            b'n' => self.take("null").map(|()| Value::Null),
            b't' => self.take("true").map(|()| Value::Bool(true)),
            b'f' => self.take("false").map(|()| Value::Bool(false)),
            _ => self.number(),
        }
    }

    fn array(&mut self, levels: usize) -> Option<Value<'a>> {
        let levels = levels.checked_sub(1)?;
        if self.take("[").is_some() {
            let (mut items, mut place) = (Vec::new(), 0);
            self.items("]", |reader| {
                items.push((Key::Int(place), reader.value(levels)?));
                place += 1;
                Some(())
            })?;
            return Some(Value::Array(items));
        }
        self.take("{")?;
        let mut entries = Entries::default();
        self.items("}", |reader| {
            let name = reader.string()?;
            reader.take(":")?;
            entries.set(Key::of(bytes(name)), reader.value(levels)?);
            Some(())
        })?;
        Some(entries.into_array())
    }

    /// Reads what stands between commas, and the end.
    fn items(&mut self, end: &str, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        if self.take(end).is_some() {
            return Some(());
        }
        loop {
            item(self)?;
            if self.take(end).is_some() {
                return Some(());
            }
            self.take(",")?;
        }
    }

    /// Reads a string that is not UTF-8; at anything else stays where it is.
    fn binary(&mut self) -> Option<Value<'a>> {
        let mut ahead = Self { rest: self.rest };
        let bytes = ahead.marked(BINARY)?;
        self.rest = ahead.rest;
        Some(Value::Bytes(bytes.into()))
    }

    /// Reads an object that has nothing but base64 under this key.
    fn marked(&mut self, mark: &str) -> Option<Vec<u8>> {
        self.take("{")?;
        self.string().filter(|key| key == mark)?;
        self.take(":")?;
        let base64 = self.string()?;
        self.take("}")?;
        STANDARD.decode(base64.as_bytes()).ok()
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let (text, rest) = self.rest.strip_prefix('"')?.split_once('"')?;
        if !text.contains('\\') {
            self.rest = rest;
            return Some(Cow::Borrowed(text));
        }
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<String>();
        let text = values.next()?.ok()?;
        self.rest = self.rest.get(values.byte_offset()..)?;
        Some(Cow::Owned(text))
    }

    fn number(&mut self) -> Option<Value<'a>> {
        let is_other = |c| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
        let length = self.rest.find(is_other).unwrap_or(self.rest.len());
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        match text.parse() {
            // PHP's own `json_decode` forgets the sign.
            Ok(0) if text.starts_with('-') => Some(Value::Float(-0.0)),
            Ok(number) => Some(Value::Int(number)),
            Err(_) => text.parse().ok().map(Value::Float),
        }
    }

    fn take(&mut self, token: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(token)?;
        Some(())
    }
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::serialize::parse;
    use super::super::serialize::tests::{any_value, bytes, list, mutated, vectors, written};
    use super::*;

    fn is_opaque(json: &str) -> bool {
        opaque(json).is_some()
    }

    type Json = serde_json::Value;

    #[test]
    fn sessions_read_as_the_json_one_expects() {
        for (php, json) in [
            ("a:0:{}", "{}"),
            (r#"a:1:{s:1:"a";i:1;}"#, r#"{"a":1}"#),
            (r#"a:3:{s:1:"n";N;s:1:"t";b:1;s:1:"f";b:0;}"#, r#"{"n":null,"t":true,"f":false}"#),
            ("a:2:{i:0;i:5;i:1;a:0:{}}", "[5,[]]"),
            ("a:2:{i:1;i:5;i:0;i:6;}", r#"{"1":5,"0":6}"#),
            (r#"a:3:{i:-7;i:1;s:2:"07";i:2;s:0:"";i:3;}"#, r#"{"-7":1,"07":2,"":3}"#),
            ("a:4:{i:0;d:1;i:1;d:1.5;i:2;d:1.0E+25;i:3;d:-0;}", "[1.0,1.5,1.0e+25,-0.0]"),
            ("a:2:{i:0;d:0.30000000000000004;i:1;d:5.0E-324;}", "[0.30000000000000004,5.0e-324]"),
            (
                "a:2:{i:0;i:9223372036854775807;i:1;i:-9223372036854775808;}",
                "[9223372036854775807,-9223372036854775808]",
            ),
            ("a:1:{s:3:\"a/\"\";s:8:\"\n\u{1f}\u{2028}张\";}", "{\"a/\\\"\":\"\\n\\u001f\u{2028}张\"}"),
            (r#"a:1:{s:4:"$php";a:1:{s:4:"$php";s:4:"YQ==";}}"#, r#"{"$php":{"$php":"YQ=="}}"#),
            (r#"a:1:{s:1:"a";a:1:{s:7:"$binary";i:1;}}"#, r#"{"a":{"$binary":1}}"#),
        ] {
            assert_eq!(to_json(php.as_bytes()), json);
            assert_eq!(to_php(json), php.as_bytes(), "{json}");
            assert!(!is_opaque(json));
        }
        let binary = b"a:1:{s:1:\"b\";s:2:\"\0\xff\";}";
        assert_eq!(to_json(binary), r#"{"b":{"$binary":"AP8="}}"#);
        assert_eq!(to_php(r#"{"b":{"$binary":"AP8="}}"#), binary);
        assert_eq!(to_json(b""), "{}");
    }

    #[test]
    fn what_json_cannot_say_is_kept_whole() {
        let deep = ["a:1:{i:0;".repeat(128), "N;".to_owned(), "}".repeat(128)].concat();
        for php in [
            "N;",
            "i:1;",
            r#"s:1:"a";"#,
            "garbage",
            "a:0:{} ",
            "0",
            r#"a:1:{i:0;O:3:"Foo":0:{}}"#,
            "a:2:{i:0;i:5;i:1;r:2;}",
            "a:1:{i:0;d:INF;}",
            "a:1:{i:0;d:NAN;}",
            "a:1:{i:0;i:+5;}",
            "a:1:{i:0;d:0.10;}",
            "a:1:{i:0;i:-0;}",
            r#"a:1:{s:1:"5";i:1;}"#,
            "a:2:{i:0;i:1;i:0;i:2;}",
            "a:01:{i:0;i:1;}",
            r#"a:1:{s:4:"$php";s:4:"YQ==";}"#,
            r#"a:1:{s:1:"a";a:1:{s:7:"$binary";s:4:"YQ==";}}"#,
            &deep,
        ] {
            let json = to_json(php.as_bytes());
            assert_eq!(json, format!("{{\"$php\":\"{}\"}}", STANDARD.encode(php)));
            assert!(is_opaque(&json));
            assert_eq!(to_php(&json), php.as_bytes());
        }
        assert!(is_opaque(&to_json(b"a:1:{s:1:\"\xff\";i:1;}")));
        assert!(!is_opaque(&to_json(&deep.as_bytes()[9..deep.len() - 1])));
    }

    #[test]
    fn json_of_others_becomes_what_json_decode_makes_of_it() {
        for (json, php) in [
            ("{}", "a:0:{}"),
            ("[]", "a:0:{}"),
            (r#"{"a":{},"b":[]}"#, r#"a:2:{s:1:"a";a:0:{}s:1:"b";a:0:{}}"#),
            (r#"{"5":1,"05":2,"5":3}"#, r#"a:2:{i:5;i:3;s:2:"05";i:2;}"#),
            (r#"{"a":1,"b":2,"\u0061":[3]}"#, r#"a:2:{s:1:"a";a:1:{i:0;i:3;}s:1:"b";i:2;}"#),
            (r#"["\ud83c\udf19\/\"\\",""]"#, r#"a:2:{i:0;s:7:"🌙/"\";i:1;s:0:"";}"#),
            ("[1.0,1e2,1E-7,-0.0,0.1]", "a:5:{i:0;d:1;i:1;d:100;i:2;d:1.0E-7;i:3;d:-0;i:4;d:0.1;}"),
            (
                "[9223372036854775808,-9223372036854775809]",
                "a:2:{i:0;d:9.223372036854776E+18;i:1;d:-9.223372036854776E+18;}",
            ),
            ("[1e400,-1e400,1e-400,-0]", "a:4:{i:0;d:INF;i:1;d:-INF;i:2;d:0;i:3;d:-0;}"),
            (r#"{"$binary":"YQ==","a":1}"#, r#"a:2:{s:7:"$binary";s:4:"YQ==";s:1:"a";i:1;}"#),
            (
                r#"[{"$binary":"YQ="},{"$binary":"\/w=="},{"\u0024binary":"YQ=="}]"#,
                "a:3:{i:0;a:1:{s:7:\"$binary\";s:3:\"YQ=\";}i:1;s:1:\"?\";i:2;s:1:\"a\";}",
            ),
            (r#"{"$php":"YQ==","a":1}"#, r#"a:2:{s:4:"$php";s:4:"YQ==";s:1:"a";i:1;}"#),
            (r#"{"$php":"*"}"#, r#"a:1:{s:4:"$php";s:1:"*";}"#),
            (r#"{"$php":1}"#, r#"a:1:{s:4:"$php";i:1;}"#),
            (r#"{"$binary":"YQ=="}"#, r#"a:1:{s:7:"$binary";s:4:"YQ==";}"#),
        ] {
            let bytes: Vec<u8> = to_php(json).into_iter().map(|byte| if byte == 0xff { b'?' } else { byte }).collect();
            assert_eq!(String::from_utf8(bytes).unwrap(), php, "{json}");
            assert!(!is_opaque(json));
        }
        assert_eq!(to_php(r#"{"$php":"YTowOnt9"}"#), b"a:0:{}");
    }

    #[test]
    fn what_is_no_session_leaves_the_empty_one() {
        let deep = format!("{}{}", "[".repeat(128), "]".repeat(128));
        let abyss = "[{\"a\":".repeat(1_000_000);
        for json in [
            "",
            "1",
            "null",
            "\"a\"",
            "[",
            "{",
            "[1",
            "[1,",
            "[1,]",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1,}",
            "{1:2}",
            "[}",
            "[]]",
            "[\"",
            "[\"\\",
            "[\"\\\"]",
            "[tru]",
            "[inf]",
            "[-inf]",
            "[NaN]",
            "[x]",
            "[\"\\ud800\"]",
            &deep,
            &abyss,
        ] {
            assert_eq!(to_php(json), b"a:0:{}", "{json:.40}");
        }
        assert_ne!(to_php(&deep[1..255]), b"a:0:{}");
    }

    #[test]
    fn every_value_of_the_vectors_comes_back() {
        for vector in list(&vectors("php_serialize"), "values") {
            let php = bytes(&vector["serialized"]);
            let mut session = [b"a:1:{i:0;", &php[..], b"}"].concat();
            for _ in 0..2 {
                assert_eq!(to_php(&to_json(&session)), session, "{vector}");
                session.clone_from(&php);
            }
        }
        for vector in list(&vectors("session_merge"), "cases") {
            for name in ["stored", "update", "result"] {
                let php = bytes(&vector[name]);
                if !php.is_empty() {
                    assert_eq!(to_php(&to_json(&php)), php, "{vector}");
                }
            }
        }
    }

    /// Whether JSON can say it.
    fn has_words(value: &Value<'_>) -> bool {
        match value {
            Value::Float(number) => number.is_finite(),
            Value::Array(entries) => entries.iter().all(|(key, value)| {
                let plain = match key {
                    Key::Int(_) => true,
                    Key::Bytes(bytes) => !bytes.starts_with(b"$") && str::from_utf8(bytes).is_ok(),
                };
                plain && has_words(value)
            }),
            _ => true,
        }
    }

    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,21})(\\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?",
            r#""([^"\\\x00-\x1f]|\\[bnrt"/]|\\u[0-9a-c][0-9a-f]{3}){0,6}""#,
        ];
        leaf.prop_recursive(5, 64, 20, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..20).prop_map(|items| format!("[{}]", items.join(","))),
                prop::collection::vec((r#""([a-c0-3]{0,2}|\$binary|\$php|\\u002d1)""#, inner), 0..20).prop_map(
                    |entries| {
                        let entries: Vec<String> =
                            entries.iter().map(|(key, value)| format!("{key}:{value}")).collect();
                        format!("{{{}}}", entries.join(","))
                    }
                ),
                "[A-D]{4}".prop_map(|base64| format!("{{\"$binary\":\"{base64}\"}}")),
                "[A-D]{4}".prop_map(|base64| format!("{{\"$php\":\"{base64}\"}}")),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(php in prop::collection::vec(any::<u8>(), 1..64)) {
            prop_assert_eq!(to_php(&to_json(&php)), php);
        }

        #[test]
        fn any_value_comes_back_out_of_valid_json(value in any_value()) {
            let php = written(&value);
            let json = to_json(&php);
            prop_assert_eq!(to_php(&json), php);
            prop_assert!(serde_json::from_str::<Json>(&json).is_ok(), "{}", json);
            prop_assert!(!matches!(value, Value::Array(_)) || !has_words(&value) || !is_opaque(&json), "{}", json);
        }

        #[test]
        fn damaged_values_come_back_too(php in mutated()) {
            let json = to_json(&php);
            prop_assert_eq!(to_php(&json), php);
            prop_assert!(serde_json::from_str::<Json>(&json).is_ok(), "{}", json);
        }

        #[test]
        fn json_of_others_settles_after_one_round(json in any_json()) {
            let json = if json.starts_with(['[', '{']) { json } else { format!("[{json}]") };
            let settled = to_json(&to_php(&json));
            prop_assert_eq!(to_json(&to_php(&settled)), settled.clone());
            let php = to_php(&json);
            prop_assert!(to_php(&settled) == php || php.is_empty());
            if !is_opaque(&json) {
                prop_assert!(parse(&to_php(&json)).is_ok());
            }
        }

        #[test]
        fn text_that_is_no_json_makes_no_panic(text in "[\\[\\]{}\":,0-9a-e.\\\\u$é-]{0,24}") {
            to_php(&text);
            is_opaque(&text);
        }
    }
}
