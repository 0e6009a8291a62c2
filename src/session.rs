//! What an application stores with a client: a JSON object or array, kept as the text it came in.
//!
//! [`Session::merge`] is PHP's `array_replace_recursive` on JSON: both objects and lists are maps, a list's keys being
//! 0, 1, 2…; numbers and strings keep their text, keys their order. A null in an object of the update deletes its key.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, Deserializer};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};

use crate::json;

/// A client's session: compact JSON, an object or an array, of bounded depth. The empty one is `{}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Session(Arc<str>);

impl Session {
    /// The JSON text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of PHP's that has no form in JSON, such as one with objects in it.
    pub fn is_opaque(&self) -> bool {
        self.0.starts_with(r#"{"$php":"#)
    }

    /// This session with `update` laid over it.
    #[must_use]
    pub fn merge(&self, update: &Self) -> Self {
        let mut out = String::with_capacity(self.0.len() + update.0.len());
        merge(&self.0, &update.0, &mut out);
        Self::of_compact(out)
    }

    /// The scalar at a path of keys and list indexes, as the text a template shows: a string's content, a number or
    /// boolean as JSON. Arrays, objects and null count as missing.
    pub fn scalar(&self, path: &str) -> Option<String> {
        let mut value: &str = &self.0;
        for key in path.split('.') {
            value = entries(value)?.into_iter().find(|(name, _)| name == key)?.1;
        }
        match value.as_bytes().first()? {
            b'{' | b'[' | b'n' => None,
            b'"' => serde_json::from_str(value).ok(),
            _ => Some(value.to_owned()),
        }
    }

    /// A session of compact JSON, an object or an array of bounded depth: somebody has made sure of that.
    pub(crate) fn of_compact(text: String) -> Self {
        // PHP has one empty array; its `json_encode` writes it as a list.
        if text == "[]" { Self::default() } else { Self(text.into()) }
    }
}

impl Default for Session {
    fn default() -> Self {
        Self("{}".into())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({} bytes)", self.0.len())
    }
}

impl Serialize for Session {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        json::borrow_raw(&self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Session {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        if !raw.get().starts_with(['{', '[']) {
            return Err(de::Error::custom("takes a JSON object or array"));
        }
        let text = json::compact(raw.get()).map_err(de::Error::custom)?;
        json::check_readable(&text).map_err(de::Error::custom)?;
        Ok(Self::of_compact(text))
    }
}

impl utoipa::PartialSchema for Session {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(SchemaType::Array(vec![Type::Object, Type::Array]))
            .description(Some("Session: any JSON object (or array, as PHP writes lists)."))
            .build()
            .into()
    }
}
impl utoipa::ToSchema for Session {}

/// The entries of an object or list as (key, JSON text); none for a scalar. The depth is bounded by [`json::compact`].
fn entries(json: &str) -> Option<Vec<(String, &str)>> {
    match json.as_bytes().first() {
        Some(b'{') => {
            let mut entries: Vec<(String, &str)> = Vec::new();
            let mut places = HashMap::new();
            for (key, value) in json::fields(json.as_bytes()).ok()? {
                // Of a key that stands twice the last value counts, as for everyone who reads JSON.
                match places.get(&key).and_then(|&place: &usize| entries.get_mut(place)) {
                    Some(entry) => entry.1 = value.get(),
                    None => {
                        places.insert(key.clone(), entries.len());
                        entries.push((key.into_owned(), value.get()));
                    }
                }
            }
            Some(entries)
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(json).ok()?;
            Some(items.into_iter().enumerate().map(|(index, value)| (index.to_string(), value.get())).collect())
        }
        _ => None,
    }
}

/// Writes `update` laid over `base`; both compact JSON.
fn merge(base: &str, update: &str, out: &mut String) {
    let Some(changes) = entries(update) else {
        out.push_str(update);
        return;
    };
    let update_is_list = update.starts_with('[');
    // What is replaced as a whole is merged onto nothing of its own kind, so that its nulls delete then and on a repetition.
    let base_entries = entries(base);
    let base_is_container = base_entries.is_some();
    let base_has_entries = base_entries.as_ref().is_some_and(|entries| !entries.is_empty());
    let mut merged: Vec<(String, String)> =
        base_entries.unwrap_or_default().into_iter().map(|(key, value)| (key, value.to_owned())).collect();
    let mut places: HashMap<String, usize> =
        merged.iter().enumerate().map(|(place, (key, _))| (key.clone(), place)).collect();
    let mut deleted = Vec::new();
    for (key, value) in changes {
        let place = places.get(&key).copied();
        if value == "null" && !update_is_list {
            deleted.extend(place);
            places.remove(&key);
            continue;
        }
        let old = place.and_then(|place| merged.get(place)).map_or("null", |(_, old)| old);
        let mut new = String::new();
        merge(old, value, &mut new);
        match place.and_then(|place| merged.get_mut(place)) {
            Some(entry) => entry.1 = new,
            None => {
                places.insert(key.clone(), merged.len());
                merged.push((key, new));
            }
        }
    }
    deleted.sort_unstable();
    let kept: Vec<_> = merged
        .into_iter()
        .enumerate()
        .filter_map(|(place, entry)| deleted.binary_search(&place).is_err().then_some(entry))
        .collect();

    // An empty container takes the kind of what is put into it.
    let base_decides = base_is_container && (base_has_entries || kept.is_empty());
    let was_list = if base_decides { base.starts_with('[') } else { update_is_list };
    let is_list = was_list && kept.iter().enumerate().all(|(index, (key, _))| *key == index.to_string());
    out.push(if is_list { '[' } else { '{' });
    for (index, (key, value)) in kept.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        if !is_list {
            json::write_string(key, out);
            out.push(':');
        }
        out.push_str(value);
    }
    out.push(if is_list { ']' } else { '}' });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn session(json: &str) -> Session {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn an_update_merges_as_phps_array_replace_recursive() {
        for (stored, update, result) in [
            ("{}", r#"{"a":1}"#, r#"{"a":1}"#),
            (r#"{"a":1}"#, "{}", r#"{"a":1}"#),
            (r#"{"a":1}"#, "[]", r#"{"a":1}"#),
            (r#"{"a":1,"b":2}"#, r#"{"c":3,"a":9}"#, r#"{"a":9,"b":2,"c":3}"#),
            (r#"{"a":{"x":1}}"#, r#"{"a":{"y":2}}"#, r#"{"a":{"x":1,"y":2}}"#),
            (r#"{"a":{"x":1}}"#, r#"{"a":5}"#, r#"{"a":5}"#),
            (r#"{"a":5}"#, r#"{"a":{"x":1}}"#, r#"{"a":{"x":1}}"#),
            (r#"{"l":[1,2,3]}"#, r#"{"l":["x"]}"#, r#"{"l":["x",2,3]}"#),
            (r#"{"l":[1,2,3]}"#, r#"{"l":[]}"#, r#"{"l":[1,2,3]}"#),
            (r#"{"l":[1,2,3]}"#, r#"{"l":{"1":"x","5":"y"}}"#, r#"{"l":{"0":1,"1":"x","2":3,"5":"y"}}"#),
            (r#"{"l":[1]}"#, r#"{"l":{"1":2}}"#, r#"{"l":[1,2]}"#),
            (r#"{"o":{"0":1}}"#, r#"{"o":[2]}"#, r#"{"o":{"0":2}}"#),
            (r#"{"o":{}}"#, r#"{"o":[2]}"#, r#"{"o":[2]}"#),
            (
                r#"{"n":1.50,"big":123456789012345678901234567890}"#,
                r#"{"m":1e3}"#,
                r#"{"n":1.50,"big":123456789012345678901234567890,"m":1e3}"#,
            ),
        ] {
            assert_eq!(session(stored).merge(&session(update)).as_str(), result, "{stored} + {update}");
        }
    }

    #[test]
    fn a_null_deletes_its_key_at_any_depth() {
        for (stored, update, result) in [
            (r#"{"a":1,"b":2}"#, r#"{"a":null}"#, r#"{"b":2}"#),
            (r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"x":null}}"#, r#"{"a":{"y":2}}"#),
            ("{}", r#"{"a":{"x":null,"y":1}}"#, r#"{"a":{"y":1}}"#),
            (r#"{"l":[1,2,3]}"#, r#"{"l":{"1":null}}"#, r#"{"l":{"0":1,"2":3}}"#),
            ("{}", r#"{"l":[1,null,{"x":null}]}"#, r#"{"l":[1,null,{}]}"#),
            ("{}", r#"{"a":null,"a":1}"#, r#"{"a":1}"#),
            (r#"{"l":[null]}"#, r#"{"l":{"0":null}}"#, r#"{"l":[]}"#),
            (r#"{"l":[]}"#, r#"{"l":{"0":null}}"#, r#"{"l":[]}"#),
        ] {
            assert_eq!(session(stored).merge(&session(update)).as_str(), result, "{stored} + {update}");
        }
    }

    #[test]
    fn a_session_is_an_object_or_a_php_list() {
        assert_eq!(session(" { \"a\" : [ 1 , 2 ] } ").as_str(), r#"{"a":[1,2]}"#);
        assert_eq!(session("[]").as_str(), "{}");
        for json in ["null", "1", "\"x\"", "true"] {
            assert!(serde_json::from_str::<Session>(json).is_err(), "{json}");
        }
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        assert!(serde_json::from_str::<Session>(&deep).is_err());
    }

    #[test]
    fn templates_see_scalars_only() {
        let session = session(r#"{"uname":"Tom \"T\"","age":5,"ok":true,"none":null,"a":{"b":[10,20]},"uname2":{}}"#);
        assert_eq!(session.scalar("uname").as_deref(), Some("Tom \"T\""));
        assert_eq!(session.scalar("age").as_deref(), Some("5"));
        assert_eq!(session.scalar("ok").as_deref(), Some("true"));
        assert_eq!(session.scalar("a.b.1").as_deref(), Some("20"));
        for missing in ["none", "a", "a.b", "uname2", "nobody", "age.x", "", "a..b"] {
            assert_eq!(session.scalar(missing), None, "{missing}");
        }
    }

    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("1".to_owned()),
            Just("\"x\"".to_owned()),
            Just("true".to_owned())
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(","))),
                prop::collection::vec(("[a-c0-2]", inner), 0..4).prop_map(|entries| {
                    let entries: Vec<String> =
                        entries.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                    format!("{{{}}}", entries.join(","))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_repeated_update_changes_nothing(base in any_json(), update in any_json()) {
            let (base, update) = (format!("{{\"k\":{base}}}"), format!("{{\"k\":{update}}}"));
            let once = session(&base).merge(&session(&update));
            prop_assert_eq!(&once.merge(&session(&update)), &once);
            prop_assert!(serde_json::from_str::<serde_json::Value>(once.as_str()).is_ok());
        }

        #[test]
        fn garbage_is_refused_without_a_panic(text in ".{0,64}") {
            if let Ok(session) = serde_json::from_str::<Session>(&text) {
                session.scalar("a.b");
            }
        }
    }
}
