//! The few things about JSON that `serde_json` leaves open: values passed on as the text they came in, with their
//! white space taken out and their depth bounded, and errors that name the field.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The deepest nesting that is taken, as `serde_json`'s own limit.
pub const MAX_DEPTH: usize = 127;

/// A value is nested deeper than [`MAX_DEPTH`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is nested deeper than {MAX_DEPTH} levels")]
pub struct TooDeep;

/// What is wrong with a request, in the user's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{}{detail}", field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct Invalid {
    /// The field concerned.
    pub field: Option<Cow<'static, str>>,
    /// What it takes, or what is wrong with it.
    pub detail: String,
}

impl Invalid {
    /// About one field.
    pub fn field(field: impl Into<Cow<'static, str>>, detail: impl fmt::Display) -> Self {
        Self { field: Some(field.into()), detail: detail.to_string() }
    }

    /// About the request as a whole.
    pub fn request(detail: impl fmt::Display) -> Self {
        Self { field: None, detail: detail.to_string() }
    }
}

/// Checks that any reader will understand JSON whose shape alone has been looked at: no half surrogate pairs, no
/// numbers beyond what readers can hold.
pub fn check_readable(json: &str) -> Result<(), Invalid> {
    serde_json::from_str::<Readable>(json).map(drop).map_err(|error| Invalid::request(words(&error)))
}

/// Any JSON value, read and forgotten.
struct Readable;

impl<'de> de::Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Readable;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON")
            }
            fn visit_unit<E>(self) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_str<E>(self, _: &str) -> Result<Readable, E> {
                Ok(Readable)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Readable, A::Error> {
                while seq.next_element::<Readable>()?.is_some() {}
                Ok(Readable)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Readable, A::Error> {
                while map.next_entry::<Readable, Readable>()?.is_some() {}
                Ok(Readable)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// Valid JSON without the white space between its tokens.
pub fn compact(json: &str) -> Result<String, TooDeep> {
    let mut out = Vec::with_capacity(json.len());
    let (mut depth, mut in_string, mut escaped) = (0, false, false);
    for &byte in json.as_bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => continue,
                b'"' => in_string = true,
                b'[' | b'{' => {
                    depth += 1;
                    if depth > MAX_DEPTH {
                        return Err(TooDeep);
                    }
                }
                b']' | b'}' => depth -= 1,
                _ => {}
            }
        }
        out.push(byte);
    }
    // Only whole ASCII bytes were left out, so this is UTF-8 as the input was.
    Ok(String::from_utf8(out).unwrap_or_default())
}

/// JSON text as a value that is printed as it is.
pub fn borrow_raw(json: &str) -> serde_json::Result<&RawValue> {
    serde_json::from_str(json)
}

/// Appends a JSON string.
pub fn write_string(text: &str, out: &mut String) {
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// An object's fields, unparsed, in order.
pub type Fields<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// Splits a JSON object into its fields.
pub fn fields(json: &[u8]) -> Result<Fields<'_>, Invalid> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Fields<'de>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a JSON object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
            let mut fields = Vec::new();
            while let Some(entry) = map.next_entry::<Key<'de>, &RawValue>()? {
                fields.push((entry.0.0, entry.1));
            }
            Ok(fields)
        }
    }
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let fields = deserializer.deserialize_map(Object).map_err(|error| Invalid::request(words(&error)))?;
    deserializer.end().map_err(|error| Invalid::request(words(&error)))?;
    Ok(fields)
}

/// A key, borrowed where it has no escapes (serde's own `Cow` never borrows).
#[derive(serde::Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a struct from fields; an error names the field it is about.
pub fn from_fields<T: DeserializeOwned>(fields: &[(Cow<'_, str>, &RawValue)]) -> Result<T, Invalid> {
    let mut reader = FieldReader { fields: fields.iter(), current: None, at: None };
    T::deserialize(de::value::MapAccessDeserializer::new(&mut reader)).map_err(|error| {
        let detail = words(&error);
        let missing = detail.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let field = reader.at.or(missing).map(|field| Cow::Owned(field.to_owned()));
        Invalid { field, detail }
    })
}

struct FieldReader<'a> {
    fields: std::slice::Iter<'a, (Cow<'a, str>, &'a RawValue)>,
    current: Option<&'a RawValue>,
    /// The field being read; none when all are read and one is missing.
    at: Option<&'a str>,
}

impl<'a> MapAccess<'a> for &mut FieldReader<'a> {
    type Error = serde_json::Error;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, serde_json::Error> {
        let Some((key, value)) = self.fields.next() else {
            self.at = None;
            return Ok(None);
        };
        self.at = Some(key);
        self.current = Some(value);
        seed.deserialize(de::value::BorrowedStrDeserializer::new(key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, serde_json::Error> {
        match self.current.take() {
            Some(value) => seed.deserialize(value),
            None => Err(de::Error::custom("a value without a key")),
        }
    }
}

/// `serde_json`'s message without the position it counts from the start of a field; syntax errors keep theirs.
pub(crate) fn words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let at = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&at) {
        Some(text) if error.is_data() => text.to_owned(),
        _ if error.is_data() => text,
        _ => format!("not JSON: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn white_space_goes_only_between_tokens() {
        assert_eq!(
            compact(" { \"a b\" :\t[ 1 , \"\\\" \\\\\" ,\r\n null ] } ").unwrap(),
            r#"{"a b":[1,"\" \\",null]}"#
        );
        assert_eq!(compact(&format!("{}{}", "[".repeat(127), "]".repeat(127))).unwrap().len(), 254);
        assert_eq!(compact(&"[".repeat(128)), Err(TooDeep));
        for unreadable in [r#"["\ud800"]"#, r#"{"\udc00":1}"#, "1e999"] {
            assert!(check_readable(unreadable).is_err(), "{unreadable}");
        }
    }

    proptest! {
        #[test]
        fn compacting_keeps_the_value(text in "[\\[\\]{}\",:0-9a-z\\\\ ]{0,40}") {
            if let Ok(value) = serde_json::from_str::<serde_json::Value>(&text) {
                let short = compact(&text).unwrap();
                prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&short).unwrap(), value);
                prop_assert!(short.len() <= text.len());
            }
        }

        #[test]
        fn garbage_is_an_error_and_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(fields(&bytes));
        }
    }
}
