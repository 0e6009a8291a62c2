//! JSON in ext data, as PHP sees it: lists and objects are one, and names may be strings or numbers.
//!
//! What an application passes wrongly (floats, booleans, null) becomes what PHP makes of it. Nothing here is an error:
//! each command says what garbage means.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// JSON that PHP has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Json<'a> {
    /// A scalar, as the text that PHP makes of it where it is a name.
    Text(Cow<'a, str>),
    /// A list, whose keys are 0, 1, 2…, or an object.
    Array(Vec<(Cow<'a, str>, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// None where it is no JSON.
    pub(super) fn read(ext: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(ext).ok()
    }

    /// The same, but what is no JSON is a scalar, and has no entries.
    pub(super) fn of(ext: &'a [u8]) -> Self {
        Self::read(ext).unwrap_or(Self::NULL)
    }

    /// An entry of an array. Null counts as none, as for PHP's `isset`.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let found = self.entries().iter().rev().find(|(name, _)| name == key).map(|(_, value)| value);
        found.filter(|value| **value != Self::NULL)
    }

    /// The entries of an array; a scalar has none.
    pub(super) fn entries(&self) -> &[(Cow<'a, str>, Self)] {
        match self {
            Self::Array(entries) => entries,
            Self::Text(_) => &[],
        }
    }

    /// The scalars among an array's values.
    pub(super) fn values(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().filter_map(|(_, value)| match value {
            Self::Text(text) => Some(&**text),
            Self::Array(_) => None,
        })
    }

    /// An array's keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|(key, _)| &**key)
    }

    const NULL: Self = Self::Text(Cow::Borrowed(""));
}

impl<'de> Deserialize<'de> for Json<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Json<'de>, E> {
                Ok(Json::Text(text.into()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Json<'de>, E> {
                Ok(Json::Text(text.to_owned().into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Json<'de>, E> {
                Ok(Json::Text(number.to_string().into()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Json<'de>, E> {
                Ok(Json::Text(number.to_string().into()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Json<'de>, E> {
                Ok(Json::Text((number as i64).to_string().into()))
            }
            fn visit_bool<E>(self, yes: bool) -> Result<Json<'de>, E> {
                Ok(Json::Text(u8::from(yes).to_string().into()))
            }
            fn visit_unit<E>(self) -> Result<Json<'de>, E> {
                Ok(Json::NULL)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(item) = items.next_element()? {
                    entries.push((entries.len().to_string().into(), item));
                }
                Ok(Json::Array(entries))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Json<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, value)) = fields.next_entry::<Cow<'de, str>, _>()? {
                    entries.push((key, value));
                }
                Ok(Json::Array(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_and_objects_are_arrays_and_scalars_are_texts() {
        let values = |json: &str| {
            Json::read(json.as_bytes()).map(|json| json.values().map(str::to_owned).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(
            values(r#"["a",7,"7",-1,1.9,true,false,null,[1],{"x":2}]"#),
            ["a", "7", "7", "-1", "1", "1", "0", ""]
        );
        assert_eq!(values(r#"{"k":"6","l":7}"#), ["6", "7"]);
        assert_eq!(values(r#"["\u623f\u95f4"]"#), ["房间"]);
        for empty in ["1", "1.5", "\"x\"", "true", "null", "[]", "{}"] {
            assert_eq!(values(empty), [""; 0], "{empty}");
        }
        assert_eq!(Json::read(b"not json"), None);
        assert_eq!(Json::read(b""), None);
        let keys = |json: &str| {
            Json::read(json.as_bytes()).map(|json| json.keys().map(str::to_owned).collect::<Vec<_>>()).unwrap()
        };
        assert_eq!(keys("[9,9]"), ["0", "1"]);
        assert_eq!(keys(r#"{"5":5,"7":1}"#), ["5", "7"]);
    }

    #[test]
    fn a_null_counts_as_missing() {
        let json = Json::read(br#"{"group":["g"],"exclude":null}"#).unwrap();
        assert_eq!(json.get("exclude"), None);
        assert_eq!(json.get("nothing"), None);
        assert_eq!(json.get("group").unwrap().values().collect::<Vec<_>>(), ["g"]);
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in ".{0,64}") {
            if let Some(json) = Json::read(text.as_bytes()) {
                prop_assert!(json.values().count() <= json.keys().count());
            }
        }
    }
}
