//! `/openapi.json`: made from the types that parse the requests.

use axum::Json;
use serde_json::{Value, json};
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, PathsBuilder, Ref, RefOr,
    ResponseBuilder,
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

pub(super) async fn serve() -> Json<Value> {
    Json(document())
}

/// The description of the API.
pub fn document() -> Value {
    // It is made of strings, numbers, lists and maps: this cannot fail.
    let mut document = serde_json::to_value(types()).unwrap_or_default();
    document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"] =
        ERRORS.iter().map(|(code, ..)| *code).collect();
    document["tags"] = OPERATIONS
        .chunk_by(|one, other| one.group == other.group)
        .flat_map(|group| group.first())
        .map(|row| json!({"name": row.group}))
        .collect();
    for (code, status, about) in ERRORS {
        let response = &mut document["components"]["responses"][status.to_string()];
        let others = response["description"].as_str().map_or_else(String::new, |others| format!("{others} "));
        *response = json!({
            "description": format!("{others}`{code}`: {about}"),
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        });
    }
    for row in OPERATIONS {
        let (name, ..) = (row.request)();
        let fields = &mut document["components"]["schemas"][&*name];
        describe(fields);
        if !row.one_of.is_empty() {
            fields["oneOf"] = row.one_of.iter().map(|field| json!({"required": [field]})).collect();
        }
        let operation = &mut document["paths"][format!("/api/{}", row.name)]["post"];
        let (request, answer) = row.example;
        let [request, answer]: [Value; 2] =
            [request, answer].map(|json| serde_json::from_str(json).unwrap_or_default());
        operation["requestBody"]["content"]["application/json"]["example"] = request;
        operation["responses"]["200"]["content"]["application/json"]["example"] =
            json!({ if row.name == "batch" { "results" } else { "result" }: answer });
        for (_, status, _) in ERRORS.iter().filter(|(code, ..)| is_answered(row, code)) {
            operation["responses"][status.to_string()] = json!({"$ref": format!("#/components/responses/{status}")});
        }
    }
    document
}

/// Whether a command may be refused so.
fn is_answered(row: &Operation, code: &str) -> bool {
    match code {
        "client_not_found" => matches!(row.group, "Bind" | "Groups" | "Sessions") && row.name != "ungroup",
        "unknown_op" | "not_found" | "method_not_allowed" | "too_many" => false,
        _ => true,
    }
}

/// Says of a command's fields what they mean. What may be left out is not there, rather than null.
fn describe(fields: &mut Value) {
    let Some(properties) = fields["properties"].as_object_mut() else { return };
    for (name, property) in properties {
        if let Some([schema, _null]) = property["oneOf"].as_array().map(Vec::as_slice) {
            *property = schema.clone();
        }
        if let Some([kind, _null]) = property["type"].as_array().map(Vec::as_slice) {
            property["type"] = kind.clone();
        }
        if property["type"] == "boolean" {
            property["default"] = false.into();
        }
        if let Some((_, about)) = FIELDS.iter().find(|(field, _)| field == name) {
            property["description"] = (*about).into();
        }
    }
}

/// What the types say.
fn types() -> OpenApi {
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
    let mut paths = PathsBuilder::new();
    for row in OPERATIONS {
        let (name, schema, refers_to) = (row.request)();
        components = components.schema(name, schema).schemas_from_iter(refers_to);
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
    let problem = Ref::from_schema_name("Problem").into();
    let operation = OperationBuilder::new()
        .summary(Some(about))
        .parameters(Some(parameters.iter().map(parameter)))
        .response("200", response("What was found.", kind, schema))
        .response("default", response("What went wrong (RFC 9457).", "application/problem+json", problem));
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
    let body = ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build();
    OperationBuilder::new()
        .operation_id(Some(row.name))
        .summary(Some(about))
        .request_body(Some(RequestBodyBuilder::new().content("application/json", body).build()))
        .response("200", response("The result.", "application/json", answer(row)))
        .tag(row.group)
        .build()
}

fn response(about: &str, kind: &str, schema: RefOr<Schema>) -> utoipa::openapi::Response {
    ResponseBuilder::new().description(about).content(kind, ContentBuilder::new().schema(Some(schema)).build()).build()
}

/// `{"result": …}`; a batch has `{"results": […]}`, and what takes `limit` may answer a page.
fn answer(row: &Operation) -> RefOr<Schema> {
    let problem = || ObjectBuilder::new().property("error", Ref::from_schema_name("Problem")).required("error");
    let object = |result: RefOr<Schema>| ObjectBuilder::new().property("result", result).required("result");
    if row.name == "batch" {
        let item = OneOfBuilder::new().item(object(ObjectBuilder::new().into())).item(problem());
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
    use crate::command::Command;

    #[test]
    fn every_operation_and_every_field_is_described_and_every_reference_resolves() {
        let json = document();
        let schemas = &json["components"]["schemas"];
        for row in OPERATIONS {
            assert!(json["paths"][format!("/api/{}", row.name)]["post"]["requestBody"].is_object(), "{}", row.name);
            let (name, ..) = (row.request)();
            for (field, property) in schemas[&*name]["properties"].as_object().into_iter().flatten() {
                assert!(property["description"].is_string(), "{} of {}", field, row.name);
            }
            let (request, answer) = row.example;
            let request = request.replacen('{', &format!(r#"{{"op":"{}","#, row.name), 1).replace(",}", "}");
            assert!(Command::parse_object(&request).is_ok(), "{request}");
            assert!(serde_json::from_str::<Value>(answer).is_ok(), "{answer}");
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
