//! A model's chat template, rendered in a sandbox: it comes with the weights, so it gets fuel for a bounded number
//! of operations, a bound on its output, and no access to anything but what is passed in.

use std::{io, thread};

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Serde, merge_maps},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::python_json::tojson;
use crate::{ChatRequest, TextError, contained};

/// Instructions that one rendering may spend; minijinja counts 64 bytes of a built string as one, so all strings together
/// take at most 256 MB. A thousand long messages spend about an eighth of it.
const FUEL: u64 = 4_000_000;
/// Address space for the stack of one rendering, of which only what is used takes memory: a template can build a list
/// as deep as its fuel lasts, and values are written and dropped recursively.
const STACK_BYTES: usize = 1 << 30;
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const MAX_TEMPLATE_BYTES: usize = 1 << 20;

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// Special tokens that templates refer to, as text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TemplateTokens {
    pub(crate) bos: Option<String>,
    pub(crate) eos: Option<String>,
    pub(crate) unk: Option<String>,
    pub(crate) pad: Option<String>,
}

/// A compiled template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    tokens: TemplateTokens,
    has_tool_template: bool,
    tool_source: String,
}

impl ChatTemplate {
    /// Compiles the default template and, if there is one, that for requests with tools.
    pub(crate) fn new(default: &str, tool_use: Option<&str>, tokens: TemplateTokens) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
                .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
        });
        for (name, source) in [(DEFAULT, Some(default)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            if source.len() > MAX_TEMPLATE_BYTES {
                return Err(format!("the chat template has {} bytes, more than any real one", source.len()));
            }
            environment
                .add_template_owned(name, without_generation_marks(source))
                .map_err(|e| format!("the chat template does not compile: {e:#}"))?;
        }
        let tool_source = tool_use.unwrap_or(default).to_owned();
        Ok(Self { environment, tokens, has_tool_template: tool_use.is_some(), tool_source })
    }

    /// Of the template for requests with tools.
    pub(crate) fn tool_source(&self) -> &str {
        &self.tool_source
    }

    pub(crate) fn render(&self, request: &ChatRequest) -> Result<String, TextError> {
        let failed = |what: String| TextError::ChatTemplate(what);
        thread::scope(|scope| {
            let work = || contained::run(|| self.render_here(request));
            let thread = thread::Builder::new().name("chat-template".to_owned()).stack_size(STACK_BYTES);
            let thread = thread.spawn_scoped(scope, work);
            let thread = thread.map_err(|err| failed(format!("no thread could be started for it: {err}")))?;
            match thread.join() {
                Ok(Ok(rendered)) => rendered,
                Ok(Err(_)) | Err(_) => Err(failed("it made its interpreter fail".to_owned())),
            }
        })
    }

    fn render_here(&self, request: &ChatRequest) -> Result<String, TextError> {
        let with_tools = !request.tools.is_null();
        let name = if with_tools && self.has_tool_template { TOOL_USE } else { DEFAULT };
        let refused = |e: Error| TextError::ChatTemplate(describe(&e));
        let template = self.environment.get_template(name).map_err(refused)?;
        // Absent tokens stay undefined, so that `{% if bos_token %}` works; absent tools are none, as transformers
        // passes them.
        let mut given = context! {
            messages => Value::from(Serde(&request.messages)),
            tools => if with_tools { Value::from(Serde(&request.tools)) } else { Value::from(()) },
            documents => Value::from(()),
            add_generation_prompt => request.add_generation_prompt,
        };
        let tokens = &self.tokens;
        for (key, token) in [
            ("bos_token", &tokens.bos),
            ("eos_token", &tokens.eos),
            ("unk_token", &tokens.unk),
            ("pad_token", &tokens.pad),
        ] {
            if let Some(token) = token {
                given = merge_maps([Value::from_pairs([(key, token.as_str())]), given]);
            }
        }
        // A client's variables cannot displace the ones above: earlier maps win.
        let variables = Value::from(Serde(&request.variables));
        let mut out = Bounded(Vec::new());
        template.render_captured_to(merge_maps([given, variables]), &mut out).map_err(refused)?;
        String::from_utf8(out.0).map_err(|e| TextError::ChatTemplate(e.to_string()))
    }
}

/// The message of `raise_exception`, or what went wrong and where.
fn describe(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it needs more computation than a chat template may use".to_owned(),
        (ErrorKind::WriteFailure, _) => format!("its output exceeds {MAX_OUTPUT_BYTES} bytes"),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail} (line {})", error.line().unwrap_or(0)),
        (kind, None) => format!("{kind} (line {})", error.line().unwrap_or(0)),
    }
}

/// `{% generation %}` marks assistant text for training masks; here it is a block that is always shown.
fn without_generation_marks(source: &str) -> String {
    let mut out = source.to_owned();
    for (mark, block) in [("generation", "if true"), ("endgeneration", "endif")] {
        for open in ["{%", "{%-"] {
            for close in ["%}", "-%}"] {
                out = out.replace(&format!("{open} {mark} {close}"), &format!("{open} {block} {close}"));
            }
        }
    }
    out
}

/// A buffer that refuses to grow past the bound.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::other("output too large"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str, request: &ChatRequest) -> Result<String, TextError> {
        let tokens = TemplateTokens { bos: Some("<s>".to_owned()), ..TemplateTokens::default() };
        ChatTemplate::new(template, None, tokens).expect("template compiles").render(request)
    }

    fn hello() -> ChatRequest {
        ChatRequest {
            messages: json!([{"role": "user", "content": " <b>hi</b> "}]),
            add_generation_prompt: true,
            ..ChatRequest::default()
        }
    }

    #[test]
    fn python_idioms_of_real_templates_work() {
        let template = "{{- bos_token }}\n{%- for message in messages %}\n    {%- if loop.first and \
             message['role'].startswith('us') %}\n<|{{ message.role.upper() }}|>{{ message['content'].strip() }}\n\
             {%- endif %}\n{%- endfor %}\n{%- if not tools is defined or tools is none %}\n!{%- endif %}\
             {% if add_generation_prompt %}<|assistant|>{% endif %}";
        assert_eq!(render(template, &hello()).unwrap(), "<s><|USER|><b>hi</b>!<|assistant|>");
    }

    #[test]
    fn tojson_writes_what_python_writes() {
        let request = ChatRequest { tools: json!([{"b": 1, "a": ["<é>", null, 1.5]}]), ..hello() };
        assert_eq!(
            render("{{ tools | tojson }}", &request).unwrap(),
            "[{\"b\": 1, \"a\": [\"<é>\", null, 1.5]}]"
        );
        assert_eq!(
            render("{{ tools[0] | tojson(indent=2) }}", &request).unwrap(),
            "{\n  \"b\": 1,\n  \"a\": [\n    \"<é>\",\n    null,\n    1.5\n  ]\n}"
        );
    }

    #[test]
    fn a_template_can_refuse() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &hello()).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the model's chat template refused the messages: roles must alternate"
        );
    }

    #[test]
    fn hostile_templates_end_in_errors() {
        for template in [
            "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{{ 'a' * 100000000 * 100000000 }}",
            "{% for i in range(90000) %}{{ 'a' * 1000000 }}{% endfor %}",
            "{{ messages.nothing.more }}",
            "{{ 1 // 0 }}",
            "{{ strftime_now('%') }}",
            "{{ messages[9223372036854775807].x }}",
            // Gigabytes of strings that stay referred to.
            "{% set ns = namespace(a=[]) %}{% for i in range(30) %}{% set ns.a = [ns.a, 'a' * 99000000] %}{% endfor %}",
            // Depth of values instead of calls, until the fuel ends.
            "{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% for j in range(100000) %}\
             {% set ns.a = [ns.a] %}{% endfor %}{% endfor %}",
        ] {
            assert!(matches!(render(template, &hello()), Err(TextError::ChatTemplate(_))), "{template}");
        }
        // As deep as may be, and dropped, or written, without harm to the process.
        let deep =
            "{% set ns = namespace(a=[]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}";
        assert_eq!(render(deep, &hello()).unwrap(), "");
        let _ = render(&format!("{deep}{{{{ ns.a | tojson }}}}"), &hello());
        let _ = render(&format!("{deep}{{{{ ns.a }}}}"), &hello());
        let deep = "{% if true %}".repeat(100_000);
        assert!(ChatTemplate::new(&deep, None, TemplateTokens::default()).is_err());
    }

    #[test]
    fn loop_controls_dates_and_generation_marks_work() {
        let template = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}\
             {% generation %}x{% endgeneration %}{{ strftime_now('%Y') | length }}";
        assert_eq!(render(template, &hello()).unwrap(), "01x4");
    }
}
