use super::*;

fn call(name: &str, arguments: &str) -> Part {
    Part::Call { name: name.to_owned(), arguments: arguments.to_owned() }
}

fn text(text: &str) -> Part {
    Part::Text(text.to_owned())
}

/// The same whatever the pieces are.
fn parts(notation: Notation, first_only: bool, answer: &str) -> Vec<Part> {
    let mut of_all: Vec<Vec<Part>> = Vec::new();
    for size in [1, 3, 7, answer.len()] {
        let mut parser = Parser::new(notation, first_only);
        let letters: Vec<char> = answer.chars().collect();
        let mut parts: Vec<Part> = Vec::new();
        for piece in letters.chunks(size) {
            parts.extend(parser.push(&piece.iter().collect::<String>()));
        }
        parts.extend(parser.finish());
        let mut joined: Vec<Part> = Vec::new();
        for part in parts {
            match (joined.last_mut(), part) {
                (Some(Part::Text(before)), Part::Text(more)) => before.push_str(&more),
                (_, part) => joined.push(part),
            }
        }
        of_all.push(joined);
    }
    assert!(of_all.windows(2).all(|pair| pair[0] == pair[1]), "{of_all:?}");
    of_all.remove(0)
}

#[test]
fn hermes_calls_are_found_among_text() {
    let of = |answer| parts(Notation::Hermes, false, answer);
    let one = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"b\": 1, \"a\": \"<é>\"}}\n</tool_call>";
    assert_eq!(of(one), [call("f", r#"{"b":1,"a":"<é>"}"#)]);
    let two = format!("Let me see.\n{one}\n<tool_call>{{\"name\":\"g\",\"arguments\":{{}}}}</tool_call>\n");
    assert_eq!(of(&two), [text("Let me see."), call("f", r#"{"b":1,"a":"<é>"}"#), call("g", "{}")]);
    assert_eq!(of("a <tool is no call \n"), [text("a <tool is no call \n")]);
    // Cut off, or no JSON: the client sees what was written.
    let cut = "x <tool_call>{\"name\": \"f\", \"argu";
    assert_eq!(of(cut), [text("x <tool_call>{\"name\": \"f\", \"argu")]);
    let none = "<tool_call>f(1)</tool_call> y";
    assert_eq!(of(none), [text(none)]);
    // The end mark is missing, the call is not.
    assert_eq!(of("<tool_call>{\"name\": \"f\", \"arguments\": \"{}\"}"), [call("f", "{}")]);
    let quoted = r#"<tool_call>{"name":"f","arguments":{"s":"a \"</tool_call> b"}}</tool_call>"#;
    assert_eq!(of(quoted), [call("f", r#"{"s":"a \"</tool_call> b"}"#)], "an end mark within a string");
    let open = format!("<tool_call>{{\"name: 1}}</tool_call> and {one}");
    let shown = "<tool_call>{\"name: 1}</tool_call> and";
    assert_eq!(of(&open), [text(shown), call("f", r#"{"b":1,"a":"<é>"}"#)], "a string without an end");
    assert_eq!(parts(Notation::Hermes, true, &two).len(), 2, "the second call is left out");
}

#[test]
fn llama_and_mistral_calls_are_whole_answers() {
    let llama = |answer| parts(Notation::Llama, false, answer);
    assert_eq!(llama(r#" {"name": "f", "parameters": {"x": 2}}"#), [call("f", r#"{"x":2}"#)]);
    assert_eq!(llama(r#"{"name": "f"}; {"name": "g"}"#), [call("f", "{}"), call("g", "{}")]);
    assert_eq!(llama(r#"{"colour": "red"}"#), [text(r#"{"colour": "red"}"#)]);
    assert_eq!(llama("It is {hot}."), [text("It is {hot}.")]);
    assert_eq!(llama(r#"<|python_tag|>{"name": "f", "parameters": {}}"#), [call("f", "{}")]);
    let mistral = |answer| parts(Notation::Mistral, false, answer);
    let two = r#"[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]"#;
    assert_eq!(mistral(two), [call("f", "{}"), call("g", "{}")]);
    let marked = format!("[TOOL_CALLS] {two}");
    assert_eq!(mistral(&marked), [call("f", "{}"), call("g", "{}")]);
    assert_eq!(mistral("[1] is a citation"), [text("[1] is a citation")]);
    assert_eq!(mistral("[TOO"), [text("[TOO")]);
    assert_eq!(parts(Notation::Mistral, true, two), [call("f", "{}")]);
}

#[test]
fn notations_are_read_off_the_template() {
    let refused = |template: &str| Notation::of(template).unwrap_err().to_string();
    assert_eq!(Notation::of("{% if tools %}<tool_call>{% endif %}"), Ok(Notation::Hermes));
    assert_eq!(Notation::of("{{ tools }} [AVAILABLE_TOOLS] [TOOL_CALLS]"), Ok(Notation::Mistral));
    assert_eq!(Notation::of("{{ tools }} parameters ipython"), Ok(Notation::Llama));
    assert!(refused("{{ messages }}").contains("does not know tools"));
    assert!(refused("{{ tools }} <tool_call><function=f>").contains("cannot read"));
    assert_eq!(Notation::Mistral.call_id("0123456789ab").len(), 9);
}

fn engine() -> candela_engine::Engine {
    let dir = tempfile::tempdir().unwrap();
    let model = candela_engine::testing::TinyModel::default();
    model.write_folder(dir.path()).unwrap();
    let source = candela_engine::ModelSource::Folder(dir.path().to_owned());
    candela_engine::Engine::load(&source, &candela_engine::EngineConfig::default(), &mut |_| ()).unwrap()
}

#[test]
fn where_the_model_decides_a_call_of_a_strict_function_matches_its_schema() {
    let parameters = json!({"type": "object", "required": ["days"], "additionalProperties": false,
        "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}});
    let function = |name: &str, strict: bool| candela_wire::openai::Function {
        name: name.to_owned(),
        description: None,
        parameters: Some(parameters.clone()),
        strict,
    };
    let tools = |strict: bool, parallel: bool| Tools {
        functions: vec![function("f", strict), function("g", false)],
        choice: ToolChoice::Auto,
        parallel,
    };
    let engine = engine();
    assert_eq!(Notation::Hermes.grammar(&tools(false, true)), Ok(None), "as the model likes");
    let may = |notation: Notation, parallel: bool, text: &str| {
        let grammar = notation.grammar(&tools(true, parallel)).unwrap().unwrap();
        let constraint = engine.constraint(&grammar).unwrap_or_else(|err| panic!("{grammar:?}: {err}"));
        candela_engine::testing::may_be(&engine, &constraint, text)
    };
    let call = |name: &str, arguments: &str| {
        format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
    };
    let (good, bad) = (call("f", "{\"days\": 3}"), call("f", "{\"days\": 30}"));
    for text in [
        "It is <b>hot</b>, and 3 < 4.\n".to_owned(),
        "a <tool_cal".to_owned(),
        good.clone(),
        format!("Let me see.\n{good}"),
        format!("{good}\n{good}"),
        format!("{good} and then"),
        call("g", "{\"days\": 30}"),
    ] {
        assert!(may(Notation::Hermes, true, &text), "{text}");
        let again = text.matches("<tool_call>").count() > 1;
        assert_eq!(may(Notation::Hermes, false, &text), !again, "{text}");
    }
    for text in [
        bad.clone(),
        format!("Well: {bad}"),
        format!("{good}\n{bad}"),
        call("h", "{}"),
        "<tool_call>f()".to_owned(),
    ] {
        assert!(!may(Notation::Hermes, true, &text), "{text}");
    }
    let llama = |arguments: &str| format!("{{\"name\": \"f\", \"parameters\": {arguments}}}");
    assert!(
        may(Notation::Llama, true, "It is {hot}.") && may(Notation::Llama, true, &llama("{\"days\": 3}"))
    );
    assert!(!may(Notation::Llama, true, &llama("{\"days\": 0}")));
    let refused = Notation::Mistral.grammar(&tools(true, true)).unwrap_err();
    assert!(refused.to_string().contains("tool_choice"), "{refused}");
}
