//! `docs/reference/server-api.md` from the document, so that the page cannot say anything else.

use std::{fmt::Write as _, time::Duration};

use candela_wire::openai::InvalidField;
use serde_json::{Map, Value};

use super::{document, gateway_headers};
use crate::{api::ApiError, trust::Refusal};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/server-api.md");
const MARK: &str =
    "<!-- from here on written by the test of server/src/api/openapi/page.rs, UPDATE_EXPECT=1 -->\n";

/// A field in a table.
struct Row {
    name: String,
    required: bool,
    kind: String,
    about: String,
}

#[test]
fn the_page_says_what_the_document_says() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (head, have) = page.split_once(MARK).expect("the page has the mark");
    let wanted = text();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(PAGE, format!("{head}{MARK}{wanted}")).unwrap();
        return;
    }
    assert_eq!(have, wanted, "run the test with UPDATE_EXPECT=1");
}

fn text() -> String {
    let document = document();
    let mut out = String::from("\n## Headers of a request\n\n");
    let headers = gateway_headers();
    table(
        &mut out,
        "header",
        headers.as_array().into_iter().flatten().map(|header| Row {
            name: string(&header["name"]),
            required: false,
            kind: kind(&header["schema"]),
            about: string(&header["description"]),
        }),
    );
    out.push_str("\n## Errors\n\n| status | `code` | such as |\n| --- | --- | --- |\n");
    for err in errors() {
        let code = err.body().error.code.unwrap_or_default();
        let retry = if err.retry_after().is_some() { "; with `Retry-After`" } else { "" };
        writeln!(out, "| {} | `{code}` | {}{retry} |", err.status().as_u16(), cell(&err.to_string()))
            .unwrap();
    }
    out.push_str("\n## Routes\n");
    for (path, methods) in object(&document["paths"]) {
        for (method, operation) in object(methods) {
            route(&mut out, method, path, operation);
        }
    }
    out.push_str("\n## Shapes\n");
    for (name, schema) in object(&document["components"]["schemas"]) {
        write!(out, "\n### {name}\n\n").unwrap();
        if schema["additionalProperties"] == false {
            out.push_str("Other fields are refused by their name.\n\n");
        }
        let mut rows = Vec::new();
        fields("", schema, &mut rows);
        table(&mut out, "field", rows.into_iter());
    }
    out
}

fn route(out: &mut String, method: &str, path: &str, operation: &Value) {
    write!(out, "\n### `{} {path}`\n\n{}.", method.to_uppercase(), string(&operation["summary"])).unwrap();
    if let Some(task) = operation["x-candela-task"].as_str() {
        write!(out, " Task: `{task}`.").unwrap();
    }
    out.push('\n');
    for (media, content) in object(&operation["requestBody"]["content"]) {
        writeln!(out, "- Request, `{media}`: {}", shape(&content["schema"])).unwrap();
    }
    let responses = object(&operation["responses"]);
    for (media, content) in responses.get("200").into_iter().flat_map(|ok| object(&ok["content"])) {
        writeln!(out, "- Answer, `{media}`: {}", shape(&content["schema"])).unwrap();
    }
    let failed = responses.iter().filter(|(status, _)| *status != "200");
    let mut by_shape: Vec<(String, Vec<String>)> = Vec::new();
    for (status, response) in failed {
        let media = object(&response["content"])
            .into_iter()
            .map(|(media, content)| format!("`{media}` {}", shape(&content["schema"])));
        let what = media.collect::<Vec<_>>().join(", ");
        let status = if status == "default" { "any".to_owned() } else { status.clone() };
        match by_shape.iter_mut().find(|(other, _)| *other == what) {
            Some((_, statuses)) => statuses.push(status),
            None => by_shape.push((what, vec![status])),
        }
    }
    for (what, statuses) in by_shape {
        writeln!(out, "- Errors ({}): {what}", statuses.join(", ")).unwrap();
    }
    // What has no name of its own is told here.
    let bodies = object(&operation["requestBody"]["content"]).values();
    for schema in bodies.map(|content| &content["schema"]).filter(|schema| schema["properties"].is_object()) {
        let mut rows = Vec::new();
        fields("", schema, &mut rows);
        out.push('\n');
        table(out, "field", rows.into_iter());
    }
}

/// One of each: what the page misses the compiler misses here.
fn errors() -> Vec<ApiError> {
    let field = |code| {
        ApiError::Invalid(InvalidField { param: Some("max_tokens".to_owned()), message: words(code), code })
    };
    let second = Duration::from_secs(1);
    let model = || "chat".to_owned();
    let mut all: Vec<ApiError> = CODES.into_iter().map(field).collect();
    all.extend([
        ApiError::BodyBroken,
        ApiError::GatewayHeader { name: candela_wire::trust::DEADLINE_MS, what: "is no number".to_owned() },
        ApiError::WrongTask { model: model(), task: "Embed", does: "Generate".to_owned() },
        ApiError::ContextLength { prompt_tokens: 4000, max_tokens: 200, context_length: 4096 },
        ApiError::GatewayToken(Refusal::Expired),
        ApiError::GatewayOnly { what: "load and unload models" },
        ApiError::NoRoute { path: "/v1/chats".to_owned() },
        ApiError::NoSuchModel { asked: "other".to_owned(), served: model() },
        ApiError::Method { allowed: "POST" },
        ApiError::BodyTooSlow { limit: 30 * second },
        ApiError::SlowReader,
        ApiError::BodyTooLarge { limit: 4 << 20 },
        ApiError::MediaType,
        ApiError::QueueFull { retry_after: second },
        ApiError::Engine("the cause is in the log".to_owned()),
        ApiError::Loading { phase: "Load" },
        ApiError::Unavailable { model: model(), why: "it is being unloaded".to_owned(), passes: true },
        ApiError::ShuttingDown,
        ApiError::Deadline { limit: 600 * second },
        ApiError::FirstToken { limit: 60 * second },
    ]);
    for err in &all {
        match err {
            ApiError::Invalid(_)
            | ApiError::MediaType
            | ApiError::BodyTooLarge { .. }
            | ApiError::BodyTooSlow { .. }
            | ApiError::BodyBroken
            | ApiError::NoRoute { .. }
            | ApiError::Method { .. }
            | ApiError::NoSuchModel { .. }
            | ApiError::Unavailable { .. }
            | ApiError::WrongTask { .. }
            | ApiError::ContextLength { .. }
            | ApiError::QueueFull { .. }
            | ApiError::Loading { .. }
            | ApiError::ShuttingDown
            | ApiError::Deadline { .. }
            | ApiError::FirstToken { .. }
            | ApiError::SlowReader
            | ApiError::GatewayToken(_)
            | ApiError::GatewayHeader { .. }
            | ApiError::GatewayOnly { .. }
            | ApiError::Engine(_) => {}
        }
    }
    all.sort_by_key(ApiError::status);
    all
}

/// Those of fields.
const CODES: [&str; 6] = [
    "invalid_json",
    "missing_required_parameter",
    "unknown_parameter",
    "unsupported_parameter",
    "invalid_value",
    "too_many_values",
];

fn words(code: &str) -> String {
    match code {
        "invalid_json" => "the body is no JSON object, or nested too deep",
        "missing_required_parameter" => "`messages` is required",
        "unknown_parameter" => "a field that no version of the API has; `param` names it",
        "unsupported_parameter" => "a field of OpenAI's that would have to be ignored here; `param` names it",
        "invalid_value" => "a value of the wrong type or outside its bounds; `param` names the field",
        _ => "the body has more values than a request for this model can need",
    }
    .to_owned()
}

fn table(out: &mut String, head: &str, rows: impl Iterator<Item = Row>) {
    write!(out, "| {head} | type | |\n| --- | --- | --- |\n").unwrap();
    for Row { name, required, kind, about } in rows {
        let star = if required { " (required)" } else { "" };
        writeln!(out, "| `{name}`{star} | {} | {} |", cell(&kind), cell(&about)).unwrap();
    }
}

/// The fields of an object, and those of objects in them behind a dot; `[]` is each value of an array.
fn fields(prefix: &str, schema: &Value, rows: &mut Vec<Row>) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in object(&schema["properties"]) {
        // A name whose value cannot be anything is no field.
        if field == false {
            continue;
        }
        let name = format!("{prefix}{name}");
        let is_required = required.contains(&name.rsplit('.').next().unwrap_or_default());
        rows.push(Row {
            name: name.clone(),
            required: is_required,
            kind: kind(field),
            about: string(&field["description"]),
        });
        below(&name, field, rows);
    }
}

fn below(name: &str, schema: &Value, rows: &mut Vec<Row>) {
    if schema["properties"].is_object() {
        fields(&format!("{name}."), schema, rows);
    }
    if schema["items"].is_object() {
        below(&format!("{name}[]"), &schema["items"], rows);
    }
    for one in alternatives(schema) {
        below(name, one, rows);
    }
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    ["oneOf", "anyOf"].into_iter().flat_map(|word| schema[word].as_array().into_iter().flatten())
}

/// What a body is, by its name where it has one.
fn shape(schema: &Value) -> String {
    match string(&schema["description"]) {
        about if about.is_empty() => kind(schema),
        about => about,
    }
}

/// A type with its bounds.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(value) = schema.get("const") {
        return format!("`{value}`");
    }
    let mut kinds: Vec<String> = alternatives(schema).map(kind).collect();
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        several => several.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
    };
    for name in types {
        kinds.push(match name {
            "array" => {
                let of = if schema["items"].is_object() { kind(&schema["items"]) } else { "any".to_owned() };
                let of = if of.contains(" or ") { format!("({of})") } else { of };
                format!("array{} of {of}", bounds(schema, "minItems", "maxItems"))
            }
            "object" => {
                let of = &schema["additionalProperties"];
                let of = if of.is_object() { format!(" of {}", kind(of)) } else { String::new() };
                format!("object{}{of}", bounds(schema, "minProperties", "maxProperties"))
            }
            "string" => format!("string{}", bounds(schema, "minLength", "maxLength")),
            "null" => continue,
            number => format!("{number}{}", bounds(schema, "minimum", "maximum")),
        });
    }
    kinds.retain(|kind| !kind.is_empty());
    kinds.dedup();
    if kinds.is_empty() && schema["type"] != "null" && alternatives(schema).next().is_none() {
        return "any".to_owned();
    }
    let mut kinds = kinds.join(" or ");
    if let Some(default) = schema.get("default") {
        write!(kinds, ", else {default}").unwrap();
    }
    kinds
}

fn bounds(schema: &Value, least: &str, most: &str) -> String {
    match (schema.get(least), schema.get(most)) {
        (Some(least), Some(most)) if least == most => format!(" ({least})"),
        (Some(least), Some(most)) => format!(" ({least} to {most})"),
        (Some(least), None) => format!(" (≥ {least})"),
        (None, Some(most)) => format!(" (≤ {most})"),
        (None, None) => String::new(),
    }
}

fn object(value: &Value) -> &Map<String, Value> {
    static NONE: std::sync::OnceLock<Map<String, Value>> = std::sync::OnceLock::new();
    value.as_object().unwrap_or_else(|| NONE.get_or_init(Map::new))
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}
