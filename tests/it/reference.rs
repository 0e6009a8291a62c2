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

fn table<const COLUMNS: usize>(heads: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>, say: Say<'_>) -> String {
    let lines = [heads.map(&mut *say), heads.map(|_| "---".to_owned())].into_iter().chain(rows);
    lines.map(|cells| format!("| {} |\n", cells.join(" | "))).collect::<Vec<_>>().concat()
}

fn fields(schemas: &Value, say: Say<'_>) -> String {
    let mut rows = Vec::new();
    for (name, about) in FIELDS {
        let mut commands = OPERATIONS.iter().map(|row| &schemas[&*(row.request)().0]["properties"]);
        let property = commands.find_map(|properties| properties.get(name)).unwrap();
        rows.push([format!("`{name}`"), kind(schemas, property), say(about)]);
    }
    table(["field", "type", "meaning"], rows, say)
}

fn operations(schemas: &Value, say: Say<'_>) -> String {
    let mut out = String::new();
    for group in OPERATIONS.chunk_by(|one, other| one.group == other.group) {
        let (mut rows, mut examples) = (Vec::new(), String::new());
        for row in group {
            let names: Vec<_> = [&row.name].into_iter().chain(row.aliases).map(|name| format!("`{name}`")).collect();
            let answer = shape(schemas, &serde_json::to_value((row.result)()).unwrap());
            rows.push([names.join(", "), say(row.about), takes(schemas, row), format!("`{answer}`")]);
            let (request, answer) = row.example;
            let request =
                if request == "{}" { String::new() } else { format!(" '{request}'").replace(SOMEBODY, "'$id'") };
            writeln!(examples, "api {}{request}\n# {}", row.name, body(row, answer)).unwrap();
        }
        let table = table(["operation", "what it does", "fields", "answer"], rows, say);
        write!(out, "\n### {}\n\n{table}\n```sh\n{examples}```\n", say(group[0].group)).unwrap();
    }
    out + "\n"
}

/// A command's fields: first those of the `?method=` form, in its order, then the others.
fn takes(schemas: &Value, row: &Operation) -> String {
    let schema = &schemas[&*(row.request)().0];
    let is_required = |name: &str| schema["required"].as_array().is_some_and(|names| names.contains(&name.into()));
    let mut seen = BTreeSet::new();
    let mut list = |names: &[&'static str]| {
        let mut list = Vec::new();
        for name in names {
            let one_of = if row.one_of.contains(name) { row.one_of } else { &[*name] };
            let Some(property) = schema["properties"].get(name).filter(|_| seen.insert(one_of[0])) else { continue };
            let mark = if one_of.len() > 1 || is_required(name) { "" } else { "?" };
            let names: Vec<_> = one_of.iter().map(|name| format!("`{name}{mark}`")).collect();
            let is_many = property["$ref"].as_str().is_some_and(|name| name.ends_with('s'));
            list.push(names.join(r" \| ") + if is_many { " ¹" } else { "" });
        }
        list.join(", ")
    };
    let all: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
    let mut lists = vec![list(row.args), list(&all)];
    lists.retain(|list| !list.is_empty());
    lists.join("; ")
}

/// The fields of an answer.
fn properties(schemas: &Value, name: &str, say: Say<'_>) -> String {
    let schema = &schemas[name];
    let mut rows = Vec::new();
    for name in names(schema) {
        let property = &schema["properties"][name.trim_end_matches('?')];
        rows.push([format!("`{name}`"), kind(schemas, property), say(property["description"].as_str().unwrap())]);
    }
    table(["field", "type", "meaning"], rows, say)
}

/// Their names, those first that are always there.
fn names(schema: &Value) -> Vec<String> {
    let required: Vec<_> = schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let others = schema["properties"].as_object().unwrap().keys().filter(|name| !required.contains(&name.as_str()));
    required.iter().map(|name| (*name).to_owned()).chain(others.map(|name| format!("{name}?"))).collect()
}

fn errors(say: Say<'_>) -> String {
    let row = |(code, status, about): &(&str, u16, &str)| [format!("`{code}`"), status.to_string(), say(about)];
    let rows = ERRORS.iter().map(row).collect();
    table(["code", "status", "meaning"], rows, say)
}

fn resolved<'a>(schemas: &'a Value, schema: &'a Value) -> &'a Value {
    schema["$ref"].as_str().map_or(schema, |name| &schemas[name.rsplit('/').next().unwrap()])
}

/// The type of a field, its bounds and its default.
fn kind(schemas: &Value, schema: &Value) -> String {
    let schema = resolved(schemas, schema);
    let mut kind = format!("`{}`", type_of(schemas, schema).replace('|', r"\|"));
    let bound = |key: &str| schema[key].as_u64().map(grouped);
    if let (Some(least), Some(most)) = (bound("minimum"), bound("maximum")) {
        write!(kind, ", {least}–{most}").unwrap();
    }
    if let Some(most) = bound("maxItems") {
        write!(kind, ", ≤ {most}").unwrap();
    }
    if let Some(default) = schema.get("default") {
        write!(kind, " = `{default}`").unwrap();
    }
    kind
}

/// The type as TypeScript writes it; where one or several are taken, that of one.
fn type_of(schemas: &Value, schema: &Value) -> String {
    let schema = resolved(schemas, schema);
    let joined = |kinds: &mut dyn Iterator<Item = String>| kinds.collect::<Vec<_>>().join(" | ");
    if let Some(names) = schema["enum"].as_array() {
        return joined(&mut names.iter().map(Value::to_string));
    }
    if let Some(either) = schema["oneOf"].as_array() {
        return joined(&mut either.iter().filter(|one| one["type"] != "array").map(|one| type_of(schemas, one)));
    }
    match &schema["type"] {
        Value::Array(kinds) => joined(&mut kinds.iter().map(|kind| kind.as_str().unwrap().to_owned())),
        kind if kind == "array" => match type_of(schemas, &schema["items"]) {
            one if one.contains('|') => format!("({one})[]"),
            one => format!("{one}[]"),
        },
        kind => kind.as_str().unwrap_or("any").to_owned(),
    }
}

/// What an answer is made of, in the names of the fields.
fn shape(schemas: &Value, schema: &Value) -> String {
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
        return either.iter().map(|one| shape(schemas, one)).collect::<Vec<_>>().join(r" \| ");
    }
    match schema["type"].as_str() {
        Some("array") => format!("{}[]", shape(schemas, &schema["items"])),
        Some("object") => {
            let key = json!({"$ref": schema["propertyNames"]["title"]});
            format!("{{{}: {}}}", shape(schemas, &key), shape(schemas, &schema["additionalProperties"]))
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
