//! `/openapi.json`: made from the types that parse the requests.

use axum::Json;
use serde_json::{Value, json};
use utoipa::openapi::extensions::Extensions;
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref, RefOr,
    Response, ResponseBuilder, Tag,
};
use utoipa::{PartialSchema as _, ToSchema};

use super::Problem;
use super::console::Profiles;
use crate::command::{Added, FIELDS, OPERATIONS, Operation, Sent};
use crate::gateway::Sizes;
use crate::id::{ClientId, Group, Uid};
use crate::outcome::ERRORS;
use crate::session::Session;
use crate::task::{State, View};
use crate::vitals::Nodes;

pub(super) async fn serve() -> Json<OpenApi> {
    Json(document())
}

/// The description of the API.
pub fn document() -> OpenApi {
    let mut components = ComponentsBuilder::new()
        .security_scheme("token", SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()));
    for (name, schema) in [
        named::<Problem>(),
        named::<Sent>(),
        named::<Added>(),
        named::<View>(),
        named::<State>(),
        named::<Session>(),
        named::<Uid>(),
        named::<Group>(),
        named::<ClientId>(),
    ] {
        components = components.schema(name, schema);
    }
    for errors in ERRORS.chunk_by(|(_, one, _), (_, other, _)| one == other) {
        let about: Vec<_> = errors.iter().map(|(code, _, about)| format!("`{code}`: {about}")).collect();
        if let [(_, status, _), ..] = errors {
            components = components.response(status.to_string(), problem(&about.join(" ")));
        }
    }
    let mut paths = PathsBuilder::new();
    for row in OPERATIONS {
        let (name, schema, refers_to) = (row.request)();
        components = components.schema(name, described(row, schema)).schemas_from_iter(refers_to);
        paths = paths.path(format!("/api/{}", row.name), PathItem::new(HttpMethod::Post, operation(row)));
    }
    let mut of_console = Vec::new();
    Nodes::schemas(&mut of_console);
    Sizes::schemas(&mut of_console);
    Profiles::schemas(&mut of_console);
    of_console.extend([named::<Nodes>(), named::<Sizes>(), named::<Profiles>()]);
    components = components.schemas_from_iter(of_console);
    for (path, about, parameters, kind, answer) in CONSOLE {
        paths = paths.path(*path, looking(about, parameters, kind, *answer));
    }
    let groups = OPERATIONS.chunk_by(|one, other| one.group == other.group).filter_map(<[_]>::first);
    OpenApiBuilder::new()
        .info(
            InfoBuilder::new()
                .title("Moongate")
                .version(env!("CARGO_PKG_VERSION"))
                .description(Some("Push to browsers and devices by client, uid, group, or to everyone."))
                .license(Some(
                    LicenseBuilder::new().name("MIT OR Apache-2.0").identifier(Some("MIT OR Apache-2.0")).build(),
                )),
        )
        .components(Some(components.build()))
        .tags(Some(groups.map(|row| Tag::new(row.group))))
        .paths(paths)
        .security(Some([SecurityRequirement::default(), SecurityRequirement::new("token", [""; 0])]))
        .build()
}

/// What the console asks beside the commands: path, what it answers, its parameters, kind and schema of the answer. What is
/// its own may change with it.
type Look = (&'static str, &'static str, &'static [(&'static str, &'static str)], &'static str, Option<&'static str>);
const CONSOLE: &[Look] = &[
    ("/nodes", "All nodes with their numbers; counters since their start.", &[], "application/json", Some("Nodes")),
    (
        "/console/clients",
        "All about those of some clients that are online. The console's own.",
        &[("client_id", "Up to 50 client ids, with commas between them.")],
        "application/json",
        Some("Profiles"),
    ),
    (
        "/console/groups",
        "The groups by size, the largest first. The console's own.",
        PAGE,
        "application/json",
        Some("Sizes"),
    ),
    (
        "/console/uids",
        "The uids by size, the largest first. The console's own.",
        PAGE,
        "application/json",
        Some("Sizes"),
    ),
    (
        "/console/tail",
        "What reaches a uid, a group or a client, and what its clients do: server-sent events, a JSON object each. The console's own.",
        &[("uid", "Of one of these three."), ("group", ""), ("client_id", "")],
        "text/event-stream",
        None,
    ),
];
const PAGE: &[(&str, &str)] = &[("limit", "1 to 1000; 50 unless told."), ("cursor", "From the answer before.")];

fn looking(
    about: &str,
    parameters: &[(&'static str, &'static str)],
    kind: &str,
    answer: Option<&'static str>,
) -> PathItem {
    let parameter = |(name, about): &(&'static str, &'static str)| {
        ParameterBuilder::new()
            .name(*name)
            .parameter_in(ParameterIn::Query)
            .description(Some(*about).filter(|about| !about.is_empty()))
            .schema(Some(String::schema()))
            .build()
    };
    let schema = answer.map_or_else(String::schema, |name| Ref::from_schema_name(name).into());
    let operation = OperationBuilder::new()
        .summary(Some(about))
        .parameters(Some(parameters.iter().map(parameter)))
        .response("200", answers("What was found.", kind, schema, None))
        .response("default", problem("What went wrong (RFC 9457)."));
    PathItem::new(HttpMethod::Get, operation.build())
}

fn named<T: ToSchema>() -> (String, RefOr<Schema>) {
    (T::name().into_owned(), T::schema())
}

fn operation(row: &Operation) -> utoipa::openapi::path::Operation {
    let (name, ..) = (row.request)();
    let mut about = row.about.to_owned();
    if !row.aliases.is_empty() {
        about = format!("{about} Also called {}.", row.aliases.join(", "));
    }
    let (request, result) = row.example;
    let result = json!({if row.name == "batch" { "results" } else { "result" }: read(result)});
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).example(Some(read(request))).build();
    let mut operation = OperationBuilder::new()
        .tag(row.group)
        .operation_id(Some(row.name))
        .summary(Some(about))
        .request_body(Some(RequestBodyBuilder::new().content("application/json", body).build()))
        .response("200", answers("The result.", "application/json", answer(row), Some(result)));
    for (_, status, _) in ERRORS.iter().filter(|(code, ..)| may_be(row, code)) {
        operation = operation.response(status.to_string(), Ref::from_response_name(status.to_string()));
    }
    operation.build()
}

/// An example's JSON. All are carried out by `tests/it/reference.rs`.
fn read(example: &str) -> Value {
    serde_json::from_str(example).unwrap_or_default()
}

/// Whether a command may be refused so.
fn may_be(row: &Operation, code: &str) -> bool {
    match code {
        "client_not_found" => matches!(row.group, "Bind" | "Groups" | "Sessions") && row.name != "ungroup",
        "unknown_op" | "not_found" | "method_not_allowed" | "too_many" => false,
        _ => true,
    }
}

/// A command's fields, with what they mean. One that is optional is left out, and not null.
fn described(row: &Operation, fields: RefOr<Schema>) -> RefOr<Schema> {
    let RefOr::T(Schema::Object(mut fields)) = fields else { return fields };
    for (name, property) in &mut fields.properties {
        if let RefOr::T(Schema::OneOf(either)) = property
            && let Some(schema) = either.items.iter().find(|item| matches!(item, RefOr::Ref(_)))
        {
            *property = schema.clone();
        }
        let about = FIELDS.iter().find(|(field, _)| field == name).map(|(_, about)| (*about).to_owned());
        match property {
            RefOr::Ref(schema) => schema.description = about.unwrap_or_default(),
            RefOr::T(Schema::Array(schema)) => schema.description = about,
            RefOr::T(Schema::Object(schema)) => {
                if let SchemaType::Array(kinds) = &schema.schema_type
                    && let [kind, Type::Null] | [Type::Null, kind] = kinds.as_slice()
                {
                    schema.schema_type = kind.clone().into();
                }
                if schema.schema_type == Type::Boolean.into() {
                    schema.default = Some(false.into());
                }
                schema.description = about;
            }
            RefOr::T(_) => {}
        }
    }
    if !row.one_of.is_empty() {
        // The builder has no word for it.
        let one_of = row.one_of.iter().map(|field| json!({"required": [field]})).collect::<Value>();
        fields.extensions = Some(Extensions::from_iter([("oneOf", one_of)]));
    }
    Schema::Object(fields).into()
}

fn answers(about: &str, kind: &str, schema: RefOr<Schema>, example: Option<Value>) -> Response {
    let content = ContentBuilder::new().schema(Some(schema)).example(example).build();
    ResponseBuilder::new().description(about).content(kind, content).build()
}

fn problem(about: &str) -> Response {
    answers(about, "application/problem+json", Ref::from_schema_name("Problem").into(), None)
}

/// `{"result": …}`; a batch has `{"results": […]}`, and what takes `limit` may answer a page.
fn answer(row: &Operation) -> RefOr<Schema> {
    let problem = || ObjectBuilder::new().property("error", Ref::from_schema_name("Problem")).required("error");
    let object = |result: RefOr<Schema>| ObjectBuilder::new().property("result", result).required("result");
    if row.name == "batch" {
        let item = OneOfBuilder::new()
            .item(object(ObjectBuilder::new().schema_type(SchemaType::AnyValue).into()))
            .item(problem());
        return ObjectBuilder::new()
            .property("results", ArrayBuilder::new().items(RefOr::T(Schema::from(item.build()))))
            .required("results")
            .into();
    }
    let result = (row.result)();
    let (_, fields, _) = (row.request)();
    let pages = matches!(&fields, RefOr::T(Schema::Object(fields)) if fields.properties.contains_key("limit"));
    if !pages {
        return object(result).into();
    }
    let cursor = Option::<String>::schema();
    let page = ObjectBuilder::new()
        .property("items", result.clone())
        .property("cursor", cursor)
        .required("items")
        .required("cursor");
    if row.name == "listTasks" {
        return object(page.into()).into();
    }
    let either = OneOfBuilder::new().item(result).item(page).build();
    object(Schema::from(either).into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_and_every_field_is_described_and_every_reference_resolves() {
        let json = serde_json::to_value(document()).unwrap();
        let schemas = &json["components"]["schemas"];
        for row in OPERATIONS {
            assert!(json["paths"][format!("/api/{}", row.name)]["post"]["requestBody"].is_object(), "{}", row.name);
            let (name, ..) = (row.request)();
            for (field, property) in schemas[&*name]["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{field} of {}", row.name);
            }
        }
        let text = json.to_string();
        for reference in text.split("\"#/components/").skip(1) {
            let reference = reference.split('"').next().unwrap();
            assert!(json["components"].pointer(&format!("/{reference}")).is_some_and(Value::is_object), "{reference}");
        }
        let fields = &schemas["SendToGroup"];
        assert_eq!(fields["additionalProperties"], false);
        assert_eq!(fields["required"], json!(["group"]));
        assert_eq!(fields["oneOf"], json!([{"required": ["message"]}, {"required": ["binary"]}]));
    }
}
