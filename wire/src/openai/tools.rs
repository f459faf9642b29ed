//! Functions that a model may call, and how it is to choose.

use serde_json::{Map, Value, json};

use super::fields::{Fields, InvalidField, list_at, string_at, wrong};

/// The tools of a request; at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Tools {
    pub functions: Vec<Function>,
    pub choice: ToolChoice,
    /// Whether an answer may hold several calls.
    pub parallel: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Function {
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema; absent = no parameters.
    pub parameters: Option<Value>,
    /// Calls of it must match that, also where the model decides whether to call.
    pub strict: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The functions are shown, and an answer is taken as text.
    None,
    /// The model decides.
    Auto,
    /// At least one call.
    Required,
    /// A call of this function.
    Named(String),
}

const MAX_TOOLS: usize = 128;
const MAX_NAME_BYTES: usize = 64;

impl Tools {
    /// As chat templates read them: OpenAI's shape for chats.
    pub fn for_template(&self) -> Value {
        let one = |function: &Function| {
            let mut inner = Map::from_iter([("name".to_owned(), json!(function.name))]);
            if let Some(description) = &function.description {
                inner.insert("description".to_owned(), json!(description));
            }
            let empty = || json!({"type": "object", "properties": {}});
            // Templates go through `properties`.
            inner.insert("parameters".to_owned(), function.parameters.clone().unwrap_or_else(empty));
            json!({"type": "function", "function": inner})
        };
        self.functions.iter().map(one).collect()
    }
}

/// `tools`, `tool_choice` and `parallel_tool_calls`. `flat` = as in the Responses API, where a function's fields lie
/// beside `type` instead of in `function`.
pub(super) fn tools(fields: &mut Fields, flat: bool) -> Result<Option<Tools>, InvalidField> {
    let list = match fields.take("tools") {
        Some(value) => list_at("tools", value, MAX_TOOLS)?,
        None => Vec::new(),
    };
    let mut functions: Vec<Function> = Vec::new();
    for (at, value) in list.into_iter().enumerate() {
        let path = format!("tools[{at}]");
        let mut outer = Fields::of(&path, value)?;
        outer.function_kind()?;
        let mut inner = match flat {
            true => outer,
            false => {
                let function = outer.required("function")?;
                outer.finish()?;
                Fields::of(&format!("{path}.function"), function)?
            }
        };
        let name_path = inner.path("name");
        let name = inner.required_string("name")?;
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        if name.is_empty() || name.len() > MAX_NAME_BYTES || !plain(&name) {
            let message =
                format!("`{name_path}` must have 1 to {MAX_NAME_BYTES} letters, digits, `_`, `-` or `.`");
            return Err(InvalidField::value(name_path, message));
        }
        if functions.iter().any(|other| other.name == name) {
            let message = format!("`{name_path}`: there is another function `{name}` already");
            return Err(InvalidField::value(name_path, message));
        }
        let description = inner.string("description")?;
        let parameters_path = inner.path("parameters");
        let parameters = match inner.take("parameters") {
            None => None,
            Some(value @ Value::Object(_)) => Some(value),
            Some(other) => return Err(wrong(&parameters_path, "a JSON schema of an object", &other)),
        };
        let strict = inner.boolean("strict")?.unwrap_or(false);
        inner.finish()?;
        functions.push(Function { name, description, parameters, strict });
    }
    let choice = choice(fields, flat, &functions)?;
    let parallel = fields.boolean("parallel_tool_calls")?;
    if functions.is_empty() {
        if parallel == Some(true) {
            let message = "`parallel_tool_calls` needs `tools`";
            return Err(InvalidField::value("parallel_tool_calls", message));
        }
        return Ok(None);
    }
    let choice = choice.unwrap_or(ToolChoice::Auto);
    Ok(Some(Tools { functions, choice, parallel: parallel.unwrap_or(true) }))
}

fn choice(
    fields: &mut Fields,
    flat: bool,
    functions: &[Function],
) -> Result<Option<ToolChoice>, InvalidField> {
    let path = "tool_choice";
    let choice = match fields.take(path) {
        None => return Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(Some(ToolChoice::None)),
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => {
                let message = "`tool_choice` must be `none`, `auto`, `required` or name a function";
                return Err(InvalidField::value(path, message));
            }
        },
        Some(value @ Value::Object(_)) => {
            let mut outer = Fields::of(path, value)?;
            outer.function_kind()?;
            let name = match flat {
                true => outer.required_string("name")?,
                false => {
                    let function = outer.required("function")?;
                    let mut inner = Fields::of("tool_choice.function", function)?;
                    let name = inner.required_string("name")?;
                    inner.finish()?;
                    name
                }
            };
            outer.finish()?;
            if !functions.iter().any(|function| function.name == name) {
                let name: String = name.chars().take(MAX_NAME_BYTES).collect();
                let message = format!("`tool_choice` names `{name}`, which is none of `tools`");
                return Err(InvalidField::value(path, message));
            }
            ToolChoice::Named(name)
        }
        Some(other) => return Err(wrong(path, "a string or an object", &other)),
    };
    // OpenAI refuses it as well.
    if functions.is_empty() {
        return Err(InvalidField::value(path, "`tool_choice` needs `tools`"));
    }
    Ok(Some(choice))
}

impl Fields {
    /// `type`, which must be `function`.
    pub(super) fn function_kind(&mut self) -> Result<(), InvalidField> {
        let path = self.path("type");
        let kind = self.required("type")?;
        if string_at(&path, kind)? == "function" {
            return Ok(());
        }
        let message = format!("`{path}` must be `function`: this server has no tools of its own");
        Err(InvalidField::unsupported(path, message))
    }
}
