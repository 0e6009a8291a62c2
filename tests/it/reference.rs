//! `docs/api.md` and `docs/api.zh-CN.md`: what stands between their marks is made of what `/openapi.json` is made of, and the
//! examples answer as they say. `docs/api.zh-CN.tsv` has the Chinese for each sentence of the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use moongate::command::{FIELDS, OPERATIONS, Operation};
use moongate::outcome::ERRORS;
use serde_json::{Value, json};

use crate::harness::{Node, eventually};

/// The client of the examples.
const SOMEBODY: &str = "7f0000010b5400000001";

#[test]
fn the_reference_says_in_both_languages_what_the_source_says() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).unwrap();
    let table = read("api.zh-CN.tsv");
    let chinese: BTreeMap<&str, &str> = table.lines().map(|line| line.split_once('\t').unwrap()).collect();
    let mut said = BTreeSet::new();
    let mut translate = |english: &str| {
        said.insert(english.to_owned());
        chinese.get(english).copied().unwrap_or_default().to_owned()
    };
    let pages = [
        ("api.md", made(&read("api.md"), &mut str::to_owned)),
        ("api.zh-CN.md", made(&read("api.zh-CN.md"), &mut translate)),
    ];
    let known: BTreeSet<String> = chinese.keys().map(|english| (*english).to_owned()).collect();
    let (new, gone): (Vec<_>, Vec<_>) = (said.difference(&known).collect(), known.difference(&said).collect());
    assert!(new.is_empty() && gone.is_empty(), "docs/api.zh-CN.tsv lacks {new:#?}, and has in vain {gone:#?}");
    for (name, page) in pages {
        if std::env::var_os("WRITE").is_some() {
            std::fs::write(docs.join(name), &page).unwrap();
        }
        assert!(
            read(name) == page,
            "docs/{name} is not what the source says: WRITE=1 cargo test --test it reference::"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_the_reference_answers_as_it_says() {
    let node = Node::start().await;
    for row in OPERATIONS {
        let client = node.connect().await;
        node.done("bindUid", json!({"client_id": client.id, "uid": 42})).await;
        node.done("joinGroup", json!({"client_id": client.id, "group": "room-1"})).await;
        node.done("setSession", json!({"client_id": client.id, "session": {"name": "Ann"}})).await;
        let (request, answer) = row.example;
        let answered = node.post(row.name, &request.replace(SOMEBODY, &client.id)).await.text();
        assert_eq!(answered.trim_end(), body(row, answer).replace(SOMEBODY, &client.id), "{} {request}", row.name);
        drop(client);
        eventually("the client is gone", async || node.ask("getAllClientIdCount", json!({})).await == 0).await;
    }
}

/// What HTTP answers.
fn body(row: &Operation, answer: &str) -> String {
    format!(r#"{{"{}":{answer}}}"#, if row.name == "batch" { "results" } else { "result" })
}

/// In which language a sentence of the source is said.
type Say<'a> = &'a mut dyn FnMut(&str) -> String;

/// The page with what is made anew.
fn made(page: &str, say: Say<'_>) -> String {
    let document = serde_json::to_value(moongate::http::document()).unwrap();
    let schemas = &document["components"]["schemas"];
    let (mut out, mut rest) = (String::new(), page);
    while let Some((before, after)) = rest.split_once("<!-- made: ") {
        let (what, after) = after.split_once(" -->\n").unwrap();
        let (_, after) = after.split_once("<!-- /made -->").unwrap();
        let made = match what {
            "fields" => fields(schemas, say),
            "operations" => operations(schemas, say),
            "errors" => errors(say),
            answer => properties(schemas, answer, say),
        };
        write!(out, "{before}<!-- made: {what} -->\n{made}<!-- /made -->").unwrap();
        rest = after;
    }
    out + rest
}

fn table(columns: [&str; 3], rows: impl IntoIterator<Item = [String; 3]>, say: Say<'_>) -> String {
    let heads = columns.map(&mut *say);
    let mut out = format!("| {} |\n| --- | --- | --- |\n", heads.join(" | "));
    for row in rows {
        writeln!(out, "| {} |", row.join(" | ")).unwrap();
    }
    out
}

fn fields(schemas: &Value, say: Say<'_>) -> String {
    let commands = || OPERATIONS.iter().map(|row| &schemas[&*(row.request)().0]["properties"]);
    let rows: Vec<_> = FIELDS
        .iter()
        .map(|(name, about)| {
            let property = commands().find_map(|properties| properties.get(name)).unwrap();
            [format!("`{name}`"), kind(schemas, property), say(about)]
        })
        .collect();
    table(["field", "type", "meaning"], rows, say)
}

fn operations(schemas: &Value, say: Say<'_>) -> String {
    let mut out = String::new();
    for group in OPERATIONS.chunk_by(|one, other| one.group == other.group) {
        let [name, about, takes, answers] = [group[0].group, "what it does", "fields", "answer"].map(&mut *say);
        let operation = say("operation");
        write!(out, "\n### {name}\n\n| {operation} | {about} | {takes} | {answers} |\n| --- | --- | --- | --- |\n")
            .unwrap();
        for row in group {
            let names: Vec<_> = [&row.name].into_iter().chain(row.aliases).map(|name| format!("`{name}`")).collect();
            let answer = shape(&serde_json::to_value((row.result)()).unwrap(), schemas);
            let (names, about, takes) = (names.join(", "), say(row.about), takes_of(row, schemas));
            writeln!(out, "| {names} | {about} | {takes} | `{answer}` |").unwrap();
        }
        out.push_str("\n```sh\n");
        for row in group {
            let (request, answer) = row.example;
            let request = request.replace(SOMEBODY, "'$id'");
            let request = if request == "{}" { String::new() } else { format!(" '{request}'") };
            writeln!(out, "api {}{request}\n# {}", row.name, body(row, answer)).unwrap();
        }
        out.push_str("```\n");
    }
    out + "\n"
}

/// A command's fields: first those of the `?method=` form, in its order, then the others.
fn takes_of(row: &Operation, schemas: &Value) -> String {
    let schema = &schemas[&*(row.request)().0];
    let required = schema["required"].as_array().map_or(&[][..], Vec::as_slice);
    let mut seen = BTreeSet::new();
    let mut list = |names: &mut dyn Iterator<Item = &'static str>| {
        let mut list = Vec::new();
        for name in names {
            let either = if row.one_of.contains(&name) { row.one_of } else { &[name] };
            let Some(property) = schema["properties"].get(name).filter(|_| seen.insert(either[0])) else { continue };
            let several =
                property["$ref"].as_str().is_some_and(|name| name.ends_with("/Uids") || name.ends_with("/Groups"));
            let may_be_absent = either.len() == 1 && !required.contains(&name.into());
            let names: Vec<_> =
                either.iter().map(|name| format!("`{name}{}`", if may_be_absent { "?" } else { "" })).collect();
            list.push(names.join(r" \| ") + if several { " ¹" } else { "" });
        }
        list.join(", ")
    };
    let by_place = list(&mut row.args.iter().copied());
    let by_name = list(&mut FIELDS.iter().map(|(name, _)| *name));
    [by_place, by_name].into_iter().filter(|list| !list.is_empty()).collect::<Vec<_>>().join("; ")
}

/// The fields of an answer, those first that are always there.
fn properties(schemas: &Value, name: &str, say: Say<'_>) -> String {
    let schema = &schemas[name];
    let rows: Vec<_> = names(schema)
        .into_iter()
        .map(|name| {
            let property = &schema["properties"][name.trim_end_matches('?')];
            [format!("`{name}`"), kind(schemas, property), say(property["description"].as_str().unwrap())]
        })
        .collect();
    table(["field", "type", "meaning"], rows, say)
}

fn names(schema: &Value) -> Vec<String> {
    let required: Vec<_> = schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let others = schema["properties"].as_object().unwrap().keys().filter(|name| !required.contains(&name.as_str()));
    required.iter().map(|name| (*name).to_owned()).chain(others.map(|name| format!("{name}?"))).collect()
}

fn errors(say: Say<'_>) -> String {
    let rows: Vec<_> =
        ERRORS.iter().map(|(code, status, about)| [format!("`{code}`"), status.to_string(), say(about)]).collect();
    table(["code", "status", "meaning"], rows, say)
}

fn resolved<'a>(schemas: &'a Value, schema: &'a Value) -> &'a Value {
    schema["$ref"].as_str().map_or(schema, |name| &schemas[name.rsplit('/').next().unwrap()])
}

/// The type of a field, its bounds and its default.
fn kind(schemas: &Value, schema: &Value) -> String {
    let schema = resolved(schemas, schema);
    let mut kind = format!("`{}`", type_of(schemas, schema).replace('|', r"\|"));
    let number = |key: &str| schema[key].as_u64().map(grouped);
    match (number("minimum"), number("maximum")) {
        (Some(least), Some(most)) => write!(kind, ", {least}–{most}").unwrap(),
        _ => {
            if let Some(most) = number("maxItems") {
                write!(kind, ", ≤ {most}").unwrap();
            }
        }
    }
    match &schema["default"] {
        Value::Null => {}
        default => write!(kind, " = `{default}`").unwrap(),
    }
    kind
}

/// The type as TypeScript writes it; where one or several are taken, that of one.
fn type_of(schemas: &Value, schema: &Value) -> String {
    let schema = resolved(schemas, schema);
    if let Some(names) = schema["enum"].as_array() {
        return names.iter().map(Value::to_string).collect::<Vec<_>>().join(" | ");
    }
    if let Some(either) = schema["oneOf"].as_array() {
        let ones = either.iter().filter(|one| one["type"] != "array");
        return ones.map(|one| type_of(schemas, one)).collect::<Vec<_>>().join(" | ");
    }
    match &schema["type"] {
        Value::Array(kinds) if kinds[0] == "array" => format!("{}[]", items(schemas, schema)),
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect::<Vec<_>>().join(" | "),
        kind if kind == "array" => format!("{}[]", items(schemas, schema)),
        kind => kind.as_str().unwrap_or("any").to_owned(),
    }
}

fn items(schemas: &Value, schema: &Value) -> String {
    let one = type_of(schemas, &schema["items"]);
    if one.contains('|') { format!("({one})") } else { one }
}

/// What an answer is made of, in the names of the fields.
fn shape(schema: &Value, schemas: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str() {
        return match name.rsplit('/').next().unwrap() {
            "ClientId" => "client_id".into(),
            name @ ("Uid" | "Group" | "Session" | "Task") => name.to_lowercase(),
            other => format!("{{{}}}", names(&schemas[other]).join(", ")),
        };
    }
    if schema["enum"] == json!([true]) {
        return "true".into();
    }
    if let Some(either) = schema["oneOf"].as_array() {
        return either.iter().map(|one| shape(one, schemas)).collect::<Vec<_>>().join(r" \| ");
    }
    match schema["type"].as_str() {
        Some("array") => format!("{}[]", shape(&schema["items"], schemas)),
        Some("object") => {
            let key = json!({"$ref": schema["propertyNames"]["title"]});
            format!("{{{}: {}}}", shape(&key, schemas), shape(&schema["additionalProperties"], schemas))
        }
        kind => kind.unwrap_or("any").to_owned(),
    }
}

/// 10,000
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> =
        digits.as_bytes().rchunks(3).rev().map(|digits| std::str::from_utf8(digits).unwrap()).collect();
    groups.join(",")
}
