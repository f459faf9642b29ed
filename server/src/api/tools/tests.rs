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
