//! PHP's `serialize()` without objects and references: what replies, merged sessions and messages are made of.
//!
//! [`parse`] takes what PHP itself takes, [`Value::write`] writes what PHP writes, to the byte. Refused although PHP
//! takes it: bytes after the value, `S:` strings, integers beyond 64 bits. No PHP writes any of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::mem;

/// The deepest nesting of arrays that is taken: as deep as PHP's `json_encode` goes. 512 KiB of stack are
/// enough for it.
pub const MAX_DEPTH: usize = 512;

/// Bytes are not a serialized value, or one that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSerialized {
    /// There is an object or a reference in it.
    #[error("holds an object or a reference")]
    Object,
    /// Arrays are nested deeper than [`MAX_DEPTH`].
    #[error("is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// Anything else.
    #[error("is not what PHP's serialize() writes")]
    Malformed,
}

/// A PHP value. Its strings are bytes.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// A string.
    Bytes(Cow<'a, [u8]>),
    /// A map that keeps its order, a list's keys being 0, 1, 2…; no key stands twice.
    Array(Vec<(Key<'a>, Self)>),
}

/// The key of an array's entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key<'a> {
    /// An integer.
    Int(i64),
    /// A string that is not the decimal form of an integer.
    Bytes(Cow<'a, [u8]>),
}

impl<'a> Key<'a> {
    /// The key that PHP makes of a string.
    pub fn of(bytes: impl Into<Cow<'a, [u8]>>) -> Self {
        let bytes = bytes.into();
        integer(&bytes).map_or(Self::Bytes(bytes), Self::Int)
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Int(number) => write_int(*number, out),
            Self::Bytes(bytes) => write_bytes(bytes, out),
        }
    }
}

/// The integer whose one decimal form is this.
fn integer(bytes: &[u8]) -> Option<i64> {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    if bytes != b"0" && !matches!(digits.first(), Some(b'1'..=b'9')) {
        return None;
    }
    str::from_utf8(bytes).ok()?.parse().ok()
}

/// An array's entries while they are put together: found one by one in a small array, by hash in a large one.
#[derive(Default)]
pub struct Entries<'a> {
    entries: Vec<(Key<'a>, Value<'a>)>,
    /// Where the first so many keys are.
    places: HashMap<Key<'a>, usize>,
}

impl<'a> Entries<'a> {
    const SMALL: usize = 16;

    /// Gives a key its value, in the place it has or else at the end.
    pub fn set(&mut self, key: Key<'a>, value: Value<'a>) {
        match self.get_mut(&key) {
            Some(old) => *old = value,
            None => self.entries.push((key, value)),
        }
    }

    /// The array.
    pub fn into_array(self) -> Value<'a> {
        Value::Array(self.entries)
    }

    fn get_mut(&mut self, key: &Key<'a>) -> Option<&mut Value<'a>> {
        let place = if self.entries.len() <= Self::SMALL {
            self.entries.iter().position(|(other, _)| other == key)
        } else {
            for (place, (new, _)) in self.entries.iter().enumerate().skip(self.places.len()) {
                self.places.insert(new.clone(), place);
            }
            self.places.get(key).copied()
        };
        self.entries.get_mut(place?).map(|(_, value)| value)
    }
}

/// Reads a serialized value; strings are borrowed.
pub fn parse(bytes: &[u8]) -> Result<Value<'_>, NotSerialized> {
    let mut reader = Reader { rest: bytes };
    let value = reader.value(MAX_DEPTH)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(NotSerialized::Malformed) }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn value(&mut self, levels: usize) -> Result<Value<'a>, NotSerialized> {
        match self.rest.first() {
            Some(b'N') => self.take(b"N;").map(|()| Value::Null),
            Some(b'b') => match self.field(b"b:", b';')? {
                "0" => Ok(Value::Bool(false)),
                "1" => Ok(Value::Bool(true)),
                _ => Err(NotSerialized::Malformed),
            },
            Some(b'i') => self.int().map(Value::Int),
            Some(b'd') => self.float().map(Value::Float),
            Some(b's') => self.string().map(|bytes| Value::Bytes(bytes.into())),
            Some(b'a') => self.array(levels),
            Some(b'O' | b'C' | b'E' | b'R' | b'r') => Err(NotSerialized::Object),
            _ => Err(NotSerialized::Malformed),
        }
    }

    fn int(&mut self) -> Result<i64, NotSerialized> {
        self.field(b"i:", b';')?.parse().map_err(|_| NotSerialized::Malformed)
    }

    fn float(&mut self) -> Result<f64, NotSerialized> {
        match self.field(b"d:", b';')? {
            "INF" => Ok(f64::INFINITY),
            "-INF" => Ok(f64::NEG_INFINITY),
            "NAN" => Ok(f64::NAN),
            // Rust knows more names of these three than PHP.
            text if text.contains(|c| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')) => {
                Err(NotSerialized::Malformed)
            }
            text => text.parse().map_err(|_| NotSerialized::Malformed),
        }
    }

    fn string(&mut self) -> Result<&'a [u8], NotSerialized> {
        let length = self.count(b"s:")?;
        self.take(b"\"")?;
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(NotSerialized::Malformed)?;
        self.rest = rest;
        self.take(b"\";")?;
        Ok(bytes)
    }

    fn array(&mut self, levels: usize) -> Result<Value<'a>, NotSerialized> {
        let levels = levels.checked_sub(1).ok_or(NotSerialized::TooDeep)?;
        let count = self.count(b"a:")?;
        self.take(b"{")?;
        // Grows with what is there; the count is only a claim.
        let mut entries = Entries::default();
        for _ in 0..count {
            let key = match self.rest.first() {
                Some(b'i') => Key::Int(self.int()?),
                Some(b's') => Key::of(self.string()?),
                _ => return Err(NotSerialized::Malformed),
            };
            entries.set(key, self.value(levels)?);
        }
        self.take(b"}")?;
        Ok(entries.into_array())
    }

    fn count(&mut self, tag: &[u8]) -> Result<usize, NotSerialized> {
        let digits = self.field(tag, b':')?;
        if digits.starts_with('+') {
            return Err(NotSerialized::Malformed);
        }
        digits.parse().map_err(|_| NotSerialized::Malformed)
    }

    /// The text between a tag and the byte that ends it.
    fn field(&mut self, tag: &[u8], end: u8) -> Result<&'a str, NotSerialized> {
        self.take(tag)?;
        let mut parts = self.rest.splitn(2, |byte| *byte == end);
        let (Some(text), Some(rest)) = (parts.next(), parts.next()) else { return Err(NotSerialized::Malformed) };
        self.rest = rest;
        str::from_utf8(text).map_err(|_| NotSerialized::Malformed)
    }

    fn take(&mut self, token: &[u8]) -> Result<(), NotSerialized> {
        self.rest = self.rest.strip_prefix(token).ok_or(NotSerialized::Malformed)?;
        Ok(())
    }
}

impl Value<'_> {
    /// Appends the value as PHP serializes it.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => write_null(out),
            Self::Bool(yes) => out.extend_from_slice(if *yes { b"b:1;" } else { b"b:0;" }),
            Self::Int(number) => write_int(*number, out),
            Self::Float(number) => {
                out.extend_from_slice(b"d:");
                out.extend_from_slice(float_text(*number, 'E').as_bytes());
                out.push(b';');
            }
            Self::Bytes(bytes) => write_bytes(bytes, out),
            Self::Array(entries) => {
                begin_array(entries.len(), out);
                for (key, value) in entries {
                    key.write(out);
                    value.write(out);
                }
                end_array(out);
            }
        }
    }
}

/// Appends null.
pub fn write_null(out: &mut Vec<u8>) {
    out.extend_from_slice(b"N;");
}

/// Appends an integer.
pub fn write_int(number: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(if number < 0 { b"i:-" } else { b"i:" });
    write_digits(number.unsigned_abs(), out);
    out.push(b';');
}

/// Appends a string.
pub fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"s:");
    write_digits(bytes.len() as u64, out);
    out.extend_from_slice(b":\"");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\";");
}

/// Appends the key that PHP makes of a string.
pub fn write_key(key: &[u8], out: &mut Vec<u8>) {
    match integer(key) {
        Some(number) => write_int(number, out),
        None => write_bytes(key, out),
    }
}

/// Begins an array. As many entries have to follow, each a key and a value, and [`end_array`].
pub fn begin_array(count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(b"a:");
    write_digits(count as u64, out);
    out.extend_from_slice(b":{");
}

/// Ends an array.
pub fn end_array(out: &mut Vec<u8>) {
    out.push(b'}');
}

/// Appends a number. The formatter takes far longer, and a session is full of lengths.
fn write_digits(mut number: u64, out: &mut Vec<u8>) {
    let start = out.len();
    loop {
        out.push(b'0' + (number % 10) as u8);
        number /= 10;
        if number == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

/// A float as PHP writes it: the shortest digits that read back the same, an exponent for what is very small or large.
fn float_text(number: f64, exponent_letter: char) -> String {
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let text = nearest(number.abs());
    let Some((digits, Ok(exponent))) = text.split_once('e').map(|(digits, power)| (digits, power.parse::<i32>()))
    else {
        return if number.is_nan() { "NAN".to_owned() } else { format!("{sign}INF") };
    };
    let (first, others) = digits.split_once('.').unwrap_or((digits, ""));
    match usize::try_from(exponent) {
        Ok(whole @ ..=16) => match others.split_at_checked(whole) {
            None | Some((_, "")) => format!("{sign}{first}{others:0<whole$}"),
            Some((others, fraction)) => format!("{sign}{first}{others}.{fraction}"),
        },
        Err(_) if exponent >= -4 => {
            let zeros = "0".repeat(exponent.unsigned_abs() as usize - 1);
            format!("{sign}0.{zeros}{first}{others}")
        }
        _ => {
            let others = if others.is_empty() { "0" } else { others };
            format!("{sign}{first}.{others}{exponent_letter}{exponent:+}")
        }
    }
}

/// The shortest digits for a float, in exponent form; of two that are equally near, those with an even end, as PHP has
/// it. Rust's own choice of the two is another.
fn nearest(number: f64) -> String {
    let shortest = format!("{number:e}");
    let fraction = shortest.split_once('e').map_or(0, |(digits, _)| digits.len().saturating_sub(2));
    let nearest = format!("{number:.fraction$e}");
    if nearest.parse() == Ok(number) { nearest } else { shortest }
}

/// How scalars stand in JSON; none where they cannot.
pub struct JsonStyle {
    /// Appends a float.
    pub float: fn(f64, &mut String) -> Option<()>,
    /// Appends a string.
    pub string: fn(&[u8], &mut String) -> Option<()>,
    /// Appends a string that is a key.
    pub key: fn(&[u8], &mut String) -> Option<()>,
}

impl JsonStyle {
    /// Appends a value as JSON: an array with the keys 0, 1, 2… in this order as a list, every other one as an object.
    pub fn write(&self, value: &Value<'_>, out: &mut String) -> Option<()> {
        match value {
            Value::Null => out.push_str("null"),
            Value::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
            Value::Int(number) => out.push_str(&number.to_string()),
            Value::Float(number) => (self.float)(*number, out)?,
            Value::Bytes(bytes) => (self.string)(bytes, out)?,
            Value::Array(entries) => {
                let is_list = (0..).zip(entries).all(|(place, (key, _))| *key == Key::Int(place));
                out.push(if is_list { '[' } else { '{' });
                for (place, (key, value)) in entries.iter().enumerate() {
                    if place > 0 {
                        out.push(',');
                    }
                    if !is_list {
                        match key {
                            // A string takes everything.
                            Key::Int(number) => write!(out, "\"{number}\"").ok()?,
                            Key::Bytes(bytes) => (self.key)(bytes, out)?,
                        }
                        out.push(':');
                    }
                    self.write(value, out)?;
                }
                out.push(if is_list { ']' } else { '}' });
            }
        }
        Some(())
    }
}

/// The text of a message that is an array or null: `json_encode` with unescaped unicode. None where that fails, at
/// bytes that are not UTF-8 and floats that are not numbers.
pub fn message_json(value: &Value<'_>) -> Option<String> {
    let mut out = String::new();
    JsonStyle { float: message_float, string: message_string, key: message_string }.write(value, &mut out)?;
    Some(out)
}

fn message_float(number: f64, out: &mut String) -> Option<()> {
    out.push_str(&json_float(number)?);
    Some(())
}

/// A float as PHP writes it in JSON, a whole one without a dot; none of what is no number.
pub fn json_float(number: f64) -> Option<String> {
    number.is_finite().then(|| float_text(number, 'e'))
}

fn message_string(bytes: &[u8], out: &mut String) -> Option<()> {
    out.push('"');
    for c in str::from_utf8(bytes).ok()?.chars() {
        match c {
            '"' | '\\' | '/' => out.extend(['\\', c]),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..'\u{20}' | '\u{2028}' | '\u{2029}' => write!(out, "\\u{:04x}", u32::from(c)).ok()?,
            _ => out.push(c),
        }
    }
    out.push('"');
    Some(())
}

/// Lays `update` over `stored`: `array_replace_recursive` where both are arrays, else `update` takes the other's place.
pub fn merge<'a>(stored: &mut Value<'a>, update: Value<'a>) {
    match (stored, update) {
        (Value::Array(stored), Value::Array(update)) => {
            let mut entries = Entries { entries: mem::take(stored), ..Entries::default() };
            for (key, value) in update {
                match entries.get_mut(&key) {
                    Some(old) => merge(old, value),
                    None => entries.set(key, value),
                }
            }
            *stored = entries.entries;
        }
        (stored, update) => *stored = update,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    type Json = serde_json::Value;

    /// What PHP answered, see the `README.md` there.
    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/gatewayworker/codec");

    pub(crate) fn vectors(file: &str) -> Json {
        let text = std::fs::read_to_string(format!("{VECTORS}/{file}.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) fn list<'a>(vectors: &'a Json, name: &str) -> &'a Vec<Json> {
        let list = vectors[name].as_array().unwrap();
        assert!(!list.is_empty(), "{name}");
        list
    }

    pub(crate) fn bytes(vector: &Json) -> Vec<u8> {
        let hex = vector["hex"].as_str().unwrap().as_bytes();
        hex.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    fn tagged(vector: &Json) -> Value<'static> {
        let (tag, value) = vector.as_object().unwrap().iter().next_back().unwrap();
        match tag.as_str() {
            "null" => Value::Null,
            "bool" => Value::Bool(value.as_bool().unwrap()),
            "int" => Value::Int(value.as_str().unwrap().parse().unwrap()),
            "float" | "bits" => {
                let bits = u64::from_str_radix(vector["bits"].as_str().unwrap(), 16).unwrap();
                Value::Float(f64::from_bits(bits))
            }
            "string" => Value::Bytes(bytes(value).into()),
            "array" => Value::Array(value.as_array().unwrap().iter().map(tagged_entry).collect()),
            _ => panic!("{tag}"),
        }
    }

    fn tagged_entry(entry: &Json) -> (Key<'static>, Value<'static>) {
        let key = match tagged(&entry[0]) {
            Value::Int(number) => Key::Int(number),
            Value::Bytes(bytes) => Key::Bytes(bytes),
            other => panic!("{other:?}"),
        };
        (key, tagged(&entry[1]))
    }

    pub(crate) fn written(value: &Value<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        value.write(&mut out);
        out
    }

    /// Equal in what can be written; the derived equality holds two NANs for different and the two zeros for the same.
    fn same(one: &Value<'_>, other: &Value<'_>) -> bool {
        format!("{one:?}") == format!("{other:?}")
    }

    #[test]
    fn values_are_read_and_written_as_php_does() {
        for vector in list(&vectors("php_serialize"), "values") {
            let (value, serialized) = (tagged(&vector["value"]), bytes(&vector["serialized"]));
            assert!(same(&parse(&serialized).unwrap(), &value), "{vector}");
            assert_eq!(written(&value), serialized, "{vector}");
        }
    }

    #[test]
    fn floats_have_phps_digits() {
        for (number, text) in [
            // Halfway between two shortest forms: the even one, as far as it reads back.
            (2_f64.powi(-25), "2.9802322387695312E-8"),
            (-8_109_766_192_474_613.0 / 4.0, "-2027441548118653.2"),
            (8_109_766_192_474_615.0 / 4.0, "2027441548118653.8"),
            (2_f64.powi(-24), "5.960464477539063E-8"),
            // The nearest of so few digits is another float's.
            (2_f64.powi(89), "6.189700196426902E+26"),
            (1e17 - 16.0, "99999999999999980"),
            (9.999_999_999_999_999e-5, "9.999999999999999E-5"),
            (-0.00012, "-0.00012"),
            (-1.5e-323, "-1.5E-323"),
        ] {
            assert_eq!(float_text(number, 'E'), text);
        }
    }

    #[test]
    fn other_forms_are_read_and_written_in_phps() {
        for vector in list(&vectors("php_serialize"), "accepted_but_never_written") {
            let input = bytes(&vector["input"]);
            let value = parse(&input).unwrap();
            assert!(same(&value, &tagged(&vector["value"])), "{vector}");
            assert_eq!(written(&value), bytes(&vector["serialized_again"]), "{vector}");
        }
    }

    #[test]
    fn what_php_never_writes_is_refused() {
        let vectors = vectors("php_serialize");
        for vector in list(&vectors, "rejected_or_odd").iter().chain(list(&vectors["trailing_bytes"], "cases")) {
            assert_eq!(parse(&bytes(&vector["input"])), Err(NotSerialized::Malformed), "{vector}");
        }
        for input in [
            "d:inf;",
            "d:infinity;",
            "d:+INF;",
            "d:nan;",
            "d:-NAN;",
            "d:1e;",
            "d:.;",
            "d:1_0;",
            "d:0x1;",
            "i:+-5;",
            "i: 5;",
            "b:01;",
            "s:+1:\"a\";",
            "s:-0:\"\";",
            "a:+1:{i:0;i:1;}",
            "a:-0:{}",
            "a:18446744073709551616:{}",
            "a:1:{b:1;i:1;}",
            "s:18446744073709551615:\"a\";",
            "N; ",
            " N;",
            "n;",
            "i:\u{661};",
        ] {
            assert_eq!(parse(input.as_bytes()), Err(NotSerialized::Malformed), "{input}");
        }
    }

    #[test]
    fn objects_and_references_are_refused_by_name() {
        for vector in list(&vectors("php_serialize")["objects_and_references"], "inputs") {
            assert_eq!(parse(&bytes(vector)), Err(NotSerialized::Object), "{vector}");
        }
    }

    #[test]
    fn strings_are_borrowed() {
        let Value::Array(entries) = parse(b"a:1:{s:1:\"k\";s:1:\"v\";}").unwrap() else { panic!() };
        assert!(matches!(entries[..], [(Key::Bytes(Cow::Borrowed(b"k")), Value::Bytes(Cow::Borrowed(b"v")))]));
    }

    #[test]
    fn keys_become_integers_as_in_php() {
        for vector in list(&vectors("php_array_keys"), "cases") {
            let name = bytes(&vector["string"]);
            assert_eq!(matches!(Key::of(&name), Key::Int(_)), vector["becomes_int"], "{vector}");
            let mut out = Vec::new();
            write_key(&name, &mut out);
            assert_eq!(out.starts_with(b"i:"), vector["becomes_int"], "{vector}");
        }
    }

    #[test]
    fn messages_are_encoded_as_phps_json() {
        for vector in list(&vectors("json_body"), "cases") {
            let body = bytes(&vector["serialized_body"]);
            let message = message_json(&parse(&body).unwrap()).map(String::into_bytes);
            assert_eq!(message, vector.get("message").map(bytes), "{vector}");
            assert_ne!(message.is_some(), vector.get("fails").is_some(), "{vector}");
        }
    }

    /// `UPDATE_SESSION` as a gateway does it.
    fn updated(stored: &[u8], update: &[u8]) -> Vec<u8> {
        if stored.is_empty() || stored == b"0" {
            return update.to_owned();
        }
        match (parse(stored), parse(update)) {
            (Ok(mut merged @ Value::Array(_)), Ok(update @ Value::Array(_))) => {
                merge(&mut merged, update);
                written(&merged)
            }
            _ => stored.to_owned(),
        }
    }

    #[test]
    fn sessions_merge_as_in_php() {
        for vector in list(&vectors("session_merge"), "cases") {
            let (stored, update) = (bytes(&vector["stored"]), bytes(&vector["update"]));
            let dropped = vector.get("note").is_some();
            assert_eq!(
                dropped,
                [&stored, &update].iter().any(|bytes| parse(bytes) == Err(NotSerialized::Object)),
                "{vector}"
            );
            let result = if dropped { stored.clone() } else { bytes(&vector["result"]) };
            assert_eq!(updated(&stored, &update), result, "{vector}");
        }
    }

    #[test]
    fn an_update_replaces_what_is_no_array() {
        for (stored, update, result) in [("i:1;", "a:0:{}", "a:0:{}"), ("a:1:{i:0;i:1;}", "N;", "N;")] {
            let mut merged = parse(stored.as_bytes()).unwrap();
            merge(&mut merged, parse(update.as_bytes()).unwrap());
            assert_eq!(written(&merged), result.as_bytes());
        }
    }

    #[test]
    fn a_key_that_stands_again_has_its_last_value_in_its_first_place() {
        for count in [2, 10, 1000] {
            let mut input = Vec::new();
            begin_array(count + 1, &mut input);
            for number in 0..count {
                write_key(format!("k{number}").as_bytes(), &mut input);
                write_int(-1, &mut input);
            }
            write_key(b"k1", &mut input);
            write_null(&mut input);
            end_array(&mut input);
            let Value::Array(entries) = parse(&input).unwrap() else { panic!() };
            assert_eq!(entries.len(), count);
            assert_eq!(entries[1], (Key::of(&b"k1"[..]), Value::Null));
            assert!(entries.iter().filter(|(_, value)| *value == Value::Int(-1)).count() == count - 1);
        }
    }

    #[test]
    fn very_large_arrays_take_linear_time() {
        let entry = |number: i64| (Key::of(format!("k{number}").into_bytes()), Value::Int(number));
        let input = written(&Value::Array((0..200_000).map(entry).collect()));
        let mut merged = parse(&input).unwrap();
        merge(&mut merged, parse(&input).unwrap());
        assert_eq!(written(&merged), input);
    }

    fn nested(levels: usize) -> Vec<u8> {
        ["a:1:{i:0;".repeat(levels), "N;".to_owned(), "}".repeat(levels)].concat().into_bytes()
    }

    #[test]
    fn depth_is_bounded_within_a_small_stack() {
        let work = || {
            let deepest = nested(MAX_DEPTH);
            let mut value = parse(&deepest).unwrap();
            merge(&mut value, parse(&deepest).unwrap());
            assert_eq!(written(&value), deepest);
            assert_eq!(message_json(&value).unwrap().len(), 2 * MAX_DEPTH + 4);
            assert_eq!(parse(&nested(MAX_DEPTH + 1)), Err(NotSerialized::TooDeep));
            assert_eq!(parse(&nested(1_000_000)), Err(NotSerialized::TooDeep));
        };
        thread::Builder::new().stack_size(1 << 20).spawn(work).unwrap().join().unwrap();
    }

    fn any_key() -> impl Strategy<Value = Key<'static>> {
        prop_oneof![
            any::<i64>().prop_map(Key::Int),
            (0..4_i64).prop_map(Key::Int),
            "[a-c]|-?0{0,1}[0-9]|\\$binary|\\$php|\\PC{0,4}".prop_map(|name| Key::of(name.into_bytes())),
            prop::collection::vec(any::<u8>(), 0..4).prop_map(Key::of),
        ]
    }

    pub(crate) fn any_value() -> impl Strategy<Value = Value<'static>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            any::<u64>().prop_map(|bits| Value::Float(f64::from_bits(bits))),
            (any::<i32>(), -6..20_i32).prop_map(|(digits, power)| Value::Float(f64::from(digits) * 10_f64.powi(power))),
            "\\PC{0,8}|YQ==|[\u{0}-\u{1f}\"/\\\\\u{2028}]{0,4}".prop_map(|text| Value::Bytes(text.into_bytes().into())),
            prop::collection::vec(any::<u8>(), 0..8).prop_map(|bytes| Value::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(5, 64, 24, |inner| {
            let items = prop::collection::vec(inner.clone(), 0..24);
            prop_oneof![
                items.prop_map(|items| Value::Array((0..).map(Key::Int).zip(items).collect())),
                prop::collection::vec((any_key(), inner), 0..24).prop_map(|entries| {
                    let mut array = Entries::default();
                    for (key, value) in entries {
                        array.set(key, value);
                    }
                    array.into_array()
                }),
            ]
        })
    }

    /// Serialized values with some bytes changed, left out or doubled.
    pub(crate) fn mutated() -> impl Strategy<Value = Vec<u8>> {
        let change = (any::<prop::sample::Index>(), 0..4_u8, any::<u8>());
        (any_value(), prop::collection::vec(change, 0..4)).prop_map(|(value, changes)| {
            let mut bytes = written(&value);
            for (at, kind, byte) in changes {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes[at] = b"0123456789+-.eE:;{}\"NbidsaOR"[usize::from(byte % 28)],
                    2 => bytes.insert(at, bytes[at]),
                    _ if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => {}
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in any_value()) {
            let bytes = written(&value);
            prop_assert!(same(&parse(&bytes).unwrap(), &value));
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            parse(&bytes).ok();
        }

        #[test]
        fn what_is_read_from_damaged_bytes_is_a_value_as_any_other(bytes in mutated()) {
            if let Ok(value) = parse(&bytes) {
                let again = written(&value);
                prop_assert!(same(&parse(&again).unwrap(), &value));
            }
        }

        #[test]
        fn messages_are_json(value in any_value()) {
            if let Some(message) = message_json(&value) {
                prop_assert!(serde_json::from_str::<Json>(&message).is_ok(), "{}", message);
            }
        }

        #[test]
        fn merging_again_changes_nothing(mut stored in any_value(), update in any_value()) {
            merge(&mut stored, update.clone());
            let mut again = stored.clone();
            merge(&mut again, update);
            prop_assert!(same(&again, &stored));
        }
    }
}
