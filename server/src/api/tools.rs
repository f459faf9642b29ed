//! Tool calls: how a model's chat template writes them, the grammar that forces one, and the parser that finds them in
//! an answer.

use candela_engine::Grammar;
use candela_wire::openai::{InvalidField, ToolChoice, Tools};
use serde_json::{Map, Value, json};

use super::error::ApiError;

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notation {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of them: Hermes, Qwen.
    Hermes,
    /// An answer that is nothing but `{"name": …, "parameters": {…}}`: Llama 3.
    Llama,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]` at the end: Mistral. The mark is a special token in most
    /// vocabularies, which the text of an answer does not show.
    Mistral,
}

const HERMES_BEGIN: &str = "<tool_call>";
const HERMES_END: &str = "</tool_call>";
const MISTRAL_BEGIN: &str = "[TOOL_CALLS]";
const LLAMA_BEGIN: &str = "<|python_tag|>";

impl Notation {
    /// By the source of the chat template.
    pub(crate) fn of(template: &str) -> Result<Self, ApiError> {
        let has = |text: &str| template.contains(text);
        let unsupported = |what: &str| {
            let message = format!("`tools`: {what}; leave `tools` out or choose another model");
            ApiError::Invalid(InvalidField::unsupported("tools", message))
        };
        if !has("tools") {
            return Err(unsupported("the chat template of this model does not know tools"));
        }
        // A later notation with the same mark writes arguments as XML.
        if has(HERMES_BEGIN) && !has("<function=") {
            Ok(Self::Hermes)
        } else if has(MISTRAL_BEGIN) && !has("[ARGS]") {
            Ok(Self::Mistral)
        } else if has("parameters") && has("ipython") {
            Ok(Self::Llama)
        } else {
            Err(unsupported(
                "the chat template of this model writes calls in a way that this server cannot read",
            ))
        }
    }

    /// What an answer with these tools must be; `None` = the model may answer as it likes.
    pub(crate) fn grammar(self, tools: &Tools) -> Result<Option<Grammar>, ApiError> {
        let all = tools.functions.iter().enumerate();
        let wanted: Vec<_> = match &tools.choice {
            ToolChoice::None => return Ok(None),
            ToolChoice::Auto if all.clone().all(|(_, function)| !function.strict) => return Ok(None),
            ToolChoice::Auto | ToolChoice::Required => all.collect(),
            ToolChoice::Named(name) => all.filter(|(_, function)| function.name == *name).collect(),
        };
        let is_free = tools.choice == ToolChoice::Auto;
        // A named function is called once.
        let several = tools.parallel && !matches!(tools.choice, ToolChoice::Named(_));
        let arguments = if self == Self::Llama { "parameters" } else { "arguments" };
        let mut rules = Vec::new();
        for (at, function) in &wanted {
            let nothing = || json!({"type": "object", "properties": {}, "additionalProperties": false});
            let schema = match &function.parameters {
                // Where the model decides, only those that say so are held to their schemas.
                Some(_) if is_free && !function.strict => json!({"type": "object"}),
                Some(schema) => schema.clone(),
                None => nothing(),
            };
            let schema = Grammar::embedded_schema(&schema).map_err(|err| {
                let param = format!("tools[{at}].function.parameters");
                ApiError::invalid(&param, format!("`{param}` cannot be kept to: {err}"))
            })?;
            let head = Grammar::quoted(&format!("{{\"name\": \"{}\", \"{arguments}\": ", function.name));
            rules.push(format!("{head} %json {schema} \"}}\""));
        }
        let call = format!("call: {}", rules.join("\n    | "));
        let start = match (self, is_free) {
            (_, false) => self.forced(several),
            (Self::Hermes, true) => {
                // Text up to the first mark, and after it a call. What has no mark is text to the end.
                let calls = if several { "tagged*" } else { "tagged?" };
                format!(
                    "start: {calls} rest?\ntagged: before \"\\n\" call \"\\n{HERMES_END}\"\n\
                     before[lazy]: /(?s:.)*{HERMES_BEGIN}/\nrest: REST\n\
                     REST: /(?s:.)+/ & ~/(?s:.)*{HERMES_BEGIN}(?s:.)*/"
                )
            }
            (Self::Llama, true) => "start: call | REST?\nREST: /[ \\n\\t]*[^{ \\n\\t](?s:.)*/".to_owned(),
            (Self::Mistral, true) => {
                let param = "tool_choice";
                let message = format!(
                    "`{param}`: this model marks its calls by a token that no text shows, so that `strict` cannot be \
                     kept where it may also answer with text: set `{param}` to `required` or to a function, or leave \
                     `strict` out"
                );
                return Err(ApiError::Invalid(InvalidField::unsupported(param, message)));
            }
        };
        Ok(Some(Grammar::Lark(format!("{start}\n{call}"))))
    }

    /// The first rules of an answer that is nothing but calls.
    fn forced(self, several: bool) -> String {
        let start = match (self, several) {
            (Self::Hermes, false) => "start: tagged",
            (Self::Hermes, true) => "start: tagged (\"\\n\" tagged)*",
            (Self::Mistral, false) => "start: \"[\" call \"]\"",
            (Self::Mistral, true) => "start: \"[\" call (\", \" call)* \"]\"",
            (Self::Llama, _) => "start: call",
        };
        match self {
            Self::Hermes => {
                format!("{start}\ntagged: \"{HERMES_BEGIN}\\n\" call \"\\n{HERMES_END}\"")
            }
            Self::Llama | Self::Mistral => start.to_owned(),
        }
    }

    /// An id for a call; Mistral's templates accept nine letters and digits only.
    pub(crate) fn call_id(self, random: &str) -> String {
        match self {
            Self::Mistral => random[..9].to_owned(),
            Self::Hermes | Self::Llama => format!("call_{random}"),
        }
    }
}

/// What an answer is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Call {
        name: String,
        /// A JSON object, as text.
        arguments: String,
    },
}

/// Finds calls in text that comes in pieces. What might be the beginning of a call is held back; what turns out to be
/// none is text.
pub(crate) struct Parser {
    notation: Notation,
    /// Only the first call of an answer counts.
    first_only: bool,
    /// Text of which nothing is certain yet.
    held: String,
    /// Inside of what looks like a call.
    inside: bool,
    /// How far the end of that call was looked for.
    scan: Scan,
    /// Nothing but blanks came so far.
    at_start: bool,
    n_calls: usize,
}

impl Parser {
    pub(crate) fn new(notation: Notation, first_only: bool) -> Self {
        Self {
            notation,
            first_only,
            held: String::new(),
            inside: false,
            scan: Scan::default(),
            at_start: true,
            n_calls: 0,
        }
    }

    pub(crate) fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Takes more text; returns what is certain.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        loop {
            if !self.inside && !self.enter(&mut parts) {
                return parts;
            }
            // The other notations end with the answer.
            if self.notation != Notation::Hermes {
                return parts;
            }
            let Some(end) = self.scan.end(&self.held) else { return parts };
            self.leave(end, &mut parts);
        }
    }

    /// Ends the call whose end mark is at `end`.
    fn leave(&mut self, end: usize, parts: &mut Vec<Part>) {
        let rest = self.held.split_off(end + HERMES_END.len());
        let block = std::mem::replace(&mut self.held, rest);
        (self.inside, self.scan) = (false, Scan::default());
        self.calls_of(&block, parts);
    }

    /// What is left when the answer ends.
    pub(crate) fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        // Where a string was never closed, marks behind it were taken for a part of it.
        while self.notation == Notation::Hermes
            && (self.inside || self.enter(&mut parts))
            && let Some(end) = self.held.find(HERMES_END)
        {
            self.leave(end, &mut parts);
        }
        let rest = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.inside) {
            self.calls_of(&rest, &mut parts);
        } else {
            self.text(&rest, &mut parts);
        }
        parts
    }

    /// Goes on to the beginning of a call, if there is one.
    fn enter(&mut self, parts: &mut Vec<Part>) -> bool {
        let begin = match self.notation {
            Notation::Hermes => HERMES_BEGIN,
            Notation::Mistral => MISTRAL_BEGIN,
            Notation::Llama => LLAMA_BEGIN,
        };
        if self.at_start && self.notation != Notation::Hermes {
            let first = self.held.trim_start();
            let bare = if self.notation == Notation::Llama { '{' } else { '[' };
            if first.starts_with(bare) && !begin.starts_with(first) {
                self.inside = true;
                return true;
            }
        }
        if let Some(at) = self.held.find(begin) {
            // Blanks around calls are no answer, but belong to what turns out to be text.
            let call = self.held.split_off(self.held[..at].trim_end().len());
            let before = std::mem::replace(&mut self.held, call);
            self.text(&before, parts);
            self.inside = true;
            return true;
        }
        // Blanks may lead to a call, and so may a part of its mark.
        let certain = self.held.len() - beginning(&self.held, begin);
        let certain = self.held[..certain].trim_end().len();
        let rest = self.held.split_off(certain);
        let text = std::mem::replace(&mut self.held, rest);
        self.text(&text, parts);
        false
    }

    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        let done = self.n_calls > 0 && (self.first_only || text.trim().is_empty());
        if !text.is_empty() && !done {
            parts.push(Part::Text(text.to_owned()));
        }
        self.at_start &= text.trim().is_empty();
    }

    /// The calls in what looked like some, or its text.
    fn calls_of(&mut self, block: &str, parts: &mut Vec<Part>) {
        let inner = match self.notation {
            Notation::Hermes => {
                let inner = block.trim_start().trim_start_matches(HERMES_BEGIN);
                inner.strip_suffix(HERMES_END).unwrap_or(inner)
            }
            Notation::Mistral => block.trim_start().trim_start_matches(MISTRAL_BEGIN),
            Notation::Llama => block.trim_start().trim_start_matches(LLAMA_BEGIN),
        };
        let Some(calls) = calls(inner) else { return self.text(block, parts) };
        for call in calls {
            if self.n_calls == 0 || !self.first_only {
                self.n_calls += 1;
                parts.push(call);
            }
        }
        self.at_start = false;
    }
}

/// Looks for the end mark of a call, whose JSON may have one in a string.
#[derive(Default)]
struct Scan {
    at: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Of a text that has only grown since it was last asked.
    fn end(&mut self, text: &str) -> Option<usize> {
        while let Some(byte) = text.as_bytes().get(self.at) {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'<' if !self.in_string => {
                    let rest = &text[self.at..];
                    if rest.starts_with(HERMES_END) {
                        return Some(self.at);
                    }
                    // Perhaps a part of it.
                    if HERMES_END.starts_with(rest) {
                        return None;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
        None
    }
}

/// `text` as a call, a list of calls, or several calls with `;` or blanks between them.
fn calls(text: &str) -> Option<Vec<Part>> {
    let mut found = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next()?.ok()? {
            Value::Array(list) => found.extend(list.into_iter().map(call).collect::<Option<Vec<_>>>()?),
            value => found.push(call(value)?),
        }
        rest = rest[values.byte_offset()..].trim_start_matches(|c: char| c == ';' || c.is_whitespace());
    }
    Some(found).filter(|found| !found.is_empty())
}

fn call(value: Value) -> Option<Part> {
    let Value::Object(mut map) = value else { return None };
    let Some(Value::String(name)) = map.remove("name") else { return None };
    let arguments = map.remove("arguments").or_else(|| map.remove("parameters"));
    let arguments = match arguments {
        Some(Value::Object(map)) => Value::Object(map).to_string(),
        // Some models write the object as text.
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(&text).ok()?;
            text
        }
        None => "{}".to_owned(),
        Some(_) => return None,
    };
    Some(Part::Call { name, arguments })
}

/// Bytes at the end of `text` that are a proper beginning of `mark`, which is ASCII.
fn beginning(text: &str, mark: &str) -> usize {
    (1..mark.len().min(text.len() + 1)).rev().find(|n| text.ends_with(&mark[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests;
