//! The recorded conversations, as `tests/vectors/gatewayworker/README.md` describes them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use moongate::php::serialize::{self, Key};
use serde_json::Value;

/// Recorded connection ids, and those of the present clients.
pub type Ids = BTreeMap<u32, u32>;

/// A recorded file.
pub fn load(name: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/gatewayworker").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The recorded files of a folder.
pub fn names(folder: &str) -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/gatewayworker").join(folder);
    let files = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = files.map(|file| format!("{folder}/{file}")).collect();
    names.sort();
    names
}

/// `{"hex": …}`, or the hex text itself.
pub fn bytes(value: &Value) -> Vec<u8> {
    let hex = value.as_str().or_else(|| value["hex"].as_str()).unwrap_or_else(|| panic!("no bytes: {value}"));
    (0..hex.len()).step_by(2).map(|place| u8::from_str_radix(&hex[place..place + 2], 16).unwrap()).collect()
}

/// A recorded id as it is now; others name nobody, then and now.
pub fn translated(ids: &Ids, recorded: u32) -> u32 {
    ids.get(&recorded).copied().unwrap_or(recorded)
}

/// A recorded packet for the present clients.
pub fn packet(recorded: &[u8], ids: &Ids) -> Vec<u8> {
    // What is no whole packet names nobody.
    if recorded.len() < 28 || u32::from_be_bytes(recorded[..4].try_into().unwrap()) as usize != recorded.len() {
        return recorded.to_vec();
    }
    let id = u32::from_be_bytes(recorded[17..21].try_into().unwrap());
    let ext_length = u32::from_be_bytes(recorded[24..28].try_into().unwrap()) as usize;
    if recorded.len() < 28 + ext_length {
        return recorded.to_vec();
    }
    let (ext, body) = recorded[28..].split_at(ext_length);
    let ext = match serde_json::from_slice(ext) {
        Ok(mut json @ Value::Object(_)) if [6, 22, 25].contains(&recorded[4]) => {
            translate(&mut json, ids);
            json.to_string().into_bytes()
        }
        _ => ext.to_vec(),
    };
    let mut packet = recorded[..28].to_vec();
    packet[..4].copy_from_slice(&((28 + ext.len() + body.len()) as u32).to_be_bytes());
    packet[17..21].copy_from_slice(&translated(ids, id).to_be_bytes());
    packet[24..28].copy_from_slice(&(ext.len() as u32).to_be_bytes());
    [&packet[..], &ext, body].concat()
}

/// Where JSON in a packet names clients: the keys of `exclude`, the values of `connections` and `connection_id`.
fn translate(json: &mut Value, ids: &Ids) {
    let id =
        |value: &Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).map(|id| translated(ids, id as u32));
    match &mut json["exclude"] {
        Value::Object(fields) => {
            let keys = std::mem::take(fields);
            fields.extend(
                keys.into_iter().map(|(key, value)| (translated(ids, key.parse().unwrap()).to_string(), value)),
            );
        }
        // The places in a list are what is excluded.
        exclude @ Value::Array(_) => {
            let places = 0..exclude.as_array().unwrap().len() as u32;
            let fields = places.map(|place| (translated(ids, place).to_string(), Value::from(1)));
            *exclude = Value::Object(fields.collect());
        }
        _ => {}
    }
    let places = [vec!["connections"], vec!["where", "connection_id"]];
    for path in places {
        let pointer = format!("/{}", path.join("/"));
        match json.pointer_mut(&pointer) {
            Some(Value::Object(fields)) => fields.values_mut().for_each(|value| *value = id(value).unwrap().into()),
            Some(Value::Array(items)) => items.iter_mut().for_each(|value| *value = id(value).unwrap().into()),
            _ => {}
        }
    }
    // What was not there is not there.
    if let Value::Object(fields) = json {
        fields.retain(|_, value| !value.is_null());
    }
}

/// What an answer says to a command, whatever the order of what has none; `translate` is for recorded ones.
pub fn meaning(command: u8, payload: &[u8], ids: Option<&Ids>) -> String {
    if command == 203 {
        return format!("{payload:?}");
    }
    let value = serialize::parse(payload).unwrap_or_else(|error| panic!("{error}: {}", payload.escape_ascii()));
    let id = |key: &Key<'_>| match key {
        Key::Int(id) => ids.map_or(*id, |ids| translated(ids, *id as u32).into()),
        Key::Bytes(name) => panic!("no connection id: {}", name.escape_ascii()),
    };
    match (command, value) {
        (15, value) => format!("{:?}", list(&value, ids)),
        (16, serialize::Value::Array(entries)) => {
            let entries: BTreeMap<String, Vec<i64>> =
                entries.iter().map(|(key, value)| (format!("{key:?}"), list(value, ids))).collect();
            format!("{entries:?}")
        }
        (10 | 23 | 25, serialize::Value::Array(entries)) => {
            let entries: BTreeMap<i64, String> = entries.iter().map(|(key, value)| (id(key), sorted(value))).collect();
            format!("{entries:?}")
        }
        (26, serialize::Value::Array(entries)) => {
            // What is not UTF-8 is no name to a node.
            let is_name = |name: &serialize::Value<'_>| !matches!(name, serialize::Value::Bytes(name) if std::str::from_utf8(name).is_err());
            let names = entries.iter().filter(|(_, name)| is_name(name));
            let mut names: Vec<String> = names.map(|(_, name)| format!("{name:?}")).collect();
            names.sort();
            format!("{names:?}")
        }
        (_, value) => sorted(&value),
    }
}

fn list(value: &serialize::Value<'_>, ids: Option<&Ids>) -> Vec<i64> {
    let serialize::Value::Array(entries) = value else { panic!("no list: {value:?}") };
    let mut list: Vec<i64> = entries
        .iter()
        .enumerate()
        .map(|(place, (key, value))| match (key, value) {
            (Key::Int(key), serialize::Value::Int(id)) if *key == place as i64 => {
                ids.map_or(*id, |ids| translated(ids, *id as u32).into())
            }
            other => panic!("no list of ids: {other:?}"),
        })
        .collect();
    list.sort_unstable();
    list
}

/// Maps by key; the values as they are.
fn sorted(value: &serialize::Value<'_>) -> String {
    match value {
        serialize::Value::Array(entries) => {
            let entries: BTreeMap<String, String> =
                entries.iter().map(|(key, value)| (format!("{key:?}"), sorted(value))).collect();
            format!("{entries:?}")
        }
        scalar => format!("{scalar:?}"),
    }
}
