use super::*;
use crate::openai::ToolChoice;

const HI: &str = r#""messages": [{"role": "user", "content": "hi"}]"#;

fn chat(extra: &str) -> Result<ChatRequest, InvalidField> {
    let body = format!(r#"{{"model": "m", {HI} {extra}}}"#);
    ChatRequest::parse(body.as_bytes(), &RequestLimits::default())
}

/// The field named by the refusal, and its code.
fn refused<T: std::fmt::Debug>(result: Result<T, InvalidField>) -> (String, &'static str) {
    let err = result.expect_err("must be refused");
    (err.param.unwrap_or_default(), err.code)
}

#[test]
fn a_full_chat_request_is_read() {
    let request = chat(
        r#", "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": -4,
           "presence_penalty": 1, "frequency_penalty": -1, "stop": ["a", "b"], "logprobs": true, "top_logprobs": 2,
           "stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "n": 3,
           "tools": [], "user": "u", "response_format": {"type": "text"}, "logit_bias": {"7": -100}, "min_p": 0.1,
           "min_tokens": 2, "ignore_eos": true, "speculation": {"type": "prompt_lookup", "max_draft": 4}"#,
    )
    .expect("all of it is supported");
    let sampling = Sampling {
        max_tokens: Some(7),
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(3),
        seed: Some(-4),
        presence_penalty: Some(1.0),
        frequency_penalty: Some(-1.0),
        repetition_penalty: None,
        stop: vec!["a".into(), "b".into()],
        logit_bias: vec![(7, -100.0)],
        min_p: Some(0.1),
        min_tokens: 2,
        ignore_eos: true,
        speculation: Some(Speculation { ngram: 3, max_draft: 4 }),
    };
    let expected = ChatRequest {
        model: "m".to_owned(),
        messages: vec![Message { role: "user", content: "hi".into(), ..Message::default() }],
        sampling,
        logprobs: Some(2),
        tools: None,
        format: None,
        n: 3,
        delivery: Delivery { stream: true, include_usage: true, continuous_usage: true },
    };
    assert_eq!(request, expected);
}

#[test]
fn what_would_be_ignored_is_refused_by_name() {
    for (extra, param, code) in [
        (r#", "n": 9"#, "n", "invalid_value"),
        (r#", "n": 0"#, "n", "invalid_value"),
        (r#", "tools": [{}]"#, "tools[0].type", "missing_required_parameter"),
        (r#", "tools": [{"type": "web_search"}]"#, "tools[0].type", "unsupported_parameter"),
        (
            r#", "tools": [{"type": "function", "function": {"name": "a b"}}]"#,
            "tools[0].function.name",
            "invalid_value",
        ),
        (r#", "tool_choice": "auto""#, "tool_choice", "invalid_value"),
        (r#", "parallel_tool_calls": true"#, "parallel_tool_calls", "invalid_value"),
        (r#", "functions": [{}]"#, "functions", "unsupported_parameter"),
        (r#", "response_format": {"type": "xml"}"#, "response_format.type", "invalid_value"),
        (
            r#", "response_format": {"type": "json_schema"}"#,
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            r#", "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": 1}}"#,
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        (r#", "structured_outputs": {"regex": "a", "choice": ["b"]}"#, "structured_outputs", "invalid_value"),
        (r#", "structured_outputs": {"gbnf": "a"}"#, "structured_outputs.gbnf", "unknown_parameter"),
        (r#", "min_tokens": 5, "max_tokens": 4"#, "min_tokens", "invalid_value"),
        (r#", "min_p": 1"#, "min_p", "invalid_value"),
        (r#", "speculation": {}"#, "speculation.type", "missing_required_parameter"),
        (r#", "speculation": {"type": "eagle"}"#, "speculation.type", "invalid_value"),
        (r#", "speculation": {"type": "prompt_lookup", "ngram": 17}"#, "speculation.ngram", "invalid_value"),
        (r#", "logit_bias": {"a": 2}"#, "logit_bias", "invalid_value"),
        (r#", "logit_bias": {"1": 101}"#, "logit_bias.1", "invalid_value"),
        (r#", "store": true"#, "store", "unsupported_parameter"),
        (r#", "colour": 1"#, "colour", "unknown_parameter"),
        (r#", "temperature": 2.1"#, "temperature", "invalid_value"),
        (r#", "temperature": "hot""#, "temperature", "invalid_value"),
        (r#", "max_tokens": 0"#, "max_tokens", "invalid_value"),
        (r#", "max_tokens": 1.5"#, "max_tokens", "invalid_value"),
        (r#", "max_tokens": 1, "max_completion_tokens": 2"#, "max_tokens", "invalid_value"),
        (r#", "top_logprobs": 1"#, "top_logprobs", "invalid_value"),
        (r#", "stream_options": {}"#, "stream_options", "invalid_value"),
        (
            r#", "stream": true, "stream_options": {"continuous_usage_stats": true}"#,
            "stream_options.continuous_usage_stats",
            "invalid_value",
        ),
        (r#", "stream": true, "stream_options": {"x": 1}"#, "stream_options.x", "unknown_parameter"),
        (r#", "stop": ["a", ""]"#, "stop[1]", "invalid_value"),
        (r#", "stop": ["a", "b", "c", "d", "e"]"#, "stop", "invalid_value"),
        (r#", "seed": 1e30"#, "seed", "invalid_value"),
    ] {
        assert_eq!(refused(chat(extra)), (param.to_owned(), code), "for {extra}");
    }
}

#[test]
fn messages_are_checked_one_by_one() {
    let parse = |messages: &str| {
        let body = format!(r#"{{"model": "m", "messages": {messages}}}"#);
        ChatRequest::parse(body.as_bytes(), &RequestLimits::default())
    };
    for (messages, param) in [
        ("[]", "messages"),
        ("{}", "messages"),
        (r#"["hi"]"#, "messages[0]"),
        (r#"[{"role": "user"}]"#, "messages[0].content"),
        (r#"[{"role": "king", "content": "hi"}]"#, "messages[0].role"),
        (r#"[{"role": "function", "content": "hi"}]"#, "messages[0].role"),
        (r#"[{"role": "tool"}]"#, "messages[0].content"),
        (r#"[{"role": "assistant"}]"#, "messages[0].content"),
        (
            r#"[{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function":
                {"name": "f", "arguments": "[1]"}}]}]"#,
            "messages[0].tool_calls[0].function.arguments",
        ),
        (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "messages[0].content[0].type"),
        (r#"[{"role": "user", "content": "a", "tool_calls": [1]}]"#, "messages[0].tool_calls"),
    ] {
        assert_eq!(refused(parse(messages)).0, param, "for {messages}");
    }
    let request = parse(
        r#"[{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "tool_calls": null, "annotations": []}]"#,
    )
    .expect("parts and echoed answers are fine");
    let turns: Vec<_> = request.messages.iter().map(|turn| (turn.role, turn.content.as_str())).collect();
    assert_eq!(turns, [("system", "ab"), ("assistant", "c")]);
}

#[test]
fn prompts_come_as_text_or_tokens() {
    let parse = |prompt: &str| {
        let body = format!(r#"{{"model": "m", "prompt": {prompt}}}"#);
        CompletionRequest::parse(body.as_bytes(), &RequestLimits::default()).map(|request| request.prompt)
    };
    assert_eq!(parse(r#""hi""#), Ok(Prompt::Text("hi".into())));
    assert_eq!(parse(r#"["hi"]"#), Ok(Prompt::Text("hi".into())));
    assert_eq!(parse("[1, 2]"), Ok(Prompt::Tokens(vec![1, 2])));
    assert_eq!(parse("[[1, 2]]"), Ok(Prompt::Tokens(vec![1, 2])));
    for bad in ["[]", "[[]]", r#"["a", "b"]"#, "[[1], [2]]", "7"] {
        assert_eq!(refused(parse(bad)).0, "prompt", "for {bad}");
    }
    for bad in ["[1, -2]", "[1, 2.5]", "[1, 99999999999]"] {
        assert_eq!(refused(parse(bad)).0, "prompt[1]", "for {bad}");
    }
}

#[test]
fn bodies_that_are_not_objects_are_refused_whole() {
    for body in ["", "{", "[]", "null", "\"x\"", "{\"model\": 1e999}", &"[".repeat(100_000)] {
        let result = ChatRequest::parse(body.as_bytes(), &RequestLimits::default());
        assert_eq!(refused(result), (String::new(), "invalid_json"));
    }
}

const WEATHER: &str = r#"{"type": "function", "function": {"name": "weather", "description": "d", "strict": false,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}"#;

#[test]
fn tools_are_read_and_shown_to_templates_in_their_own_order() {
    let choice = |choice: &str| {
        let request = chat(&format!(r#", "tools": [{WEATHER}], "tool_choice": {choice}"#));
        request.map(|request| request.tools.expect("it has tools").choice)
    };
    assert_eq!(choice(r#""required""#), Ok(ToolChoice::Required));
    assert_eq!(choice(r#""none""#), Ok(ToolChoice::None));
    let named = |name: &str| format!(r#"{{"type": "function", "function": {{"name": "{name}"}}}}"#);
    assert_eq!(choice(&named("weather")), Ok(ToolChoice::Named("weather".into())));
    assert_eq!(refused(choice(&named("wether"))), ("tool_choice".to_owned(), "invalid_value"));
    let tools =
        chat(&format!(r#", "tools": [{WEATHER}], "parallel_tool_calls": false"#)).expect("fine").tools;
    let tools = tools.expect("it has tools");
    assert_eq!((tools.choice.clone(), tools.parallel), (ToolChoice::Auto, false));
    assert_eq!(
        tools.for_template().to_string(),
        r#"[{"type":"function","function":{"name":"weather","description":"d","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]"#
    );
    let twice = format!(r#", "tools": [{WEATHER}, {WEATHER}]"#);
    assert_eq!(refused(chat(&twice)).0, "tools[1].function.name");
    // A promise that would not be kept.
    let strict = WEATHER.replace("false", "true");
    let tools = chat(&format!(r#", "tools": [{strict}]"#)).expect("it is taken").tools.expect("tools");
    assert!(tools.functions[0].strict && tools.choice == ToolChoice::Auto);
}

#[test]
fn calls_and_what_tools_said_are_turns() {
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "hi"},
        {"role": "assistant", "content": null, "refusal": null, "tool_calls": [
            {"id": "c1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": []}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "42"}]}"#;
    let request = ChatRequest::parse(body.as_bytes(), &RequestLimits::default()).expect("all turns are fine");
    let turns = serde_json::to_string(&request.messages[1..]).expect("plain data serialises");
    assert_eq!(
        turns,
        r#"[{"role":"assistant","content":"","tool_calls":[{"id":"c1","type":"function","function":{"name":"f","arguments":{"b":1,"a":[]}}}]},{"role":"tool","content":"42","tool_call_id":"c1"}]"#
    );
}

#[test]
fn formats_name_the_field_they_came_from() {
    let format = |extra: &str| chat(extra).expect("fine").format.map(|format| format.param);
    assert_eq!(format(r#", "response_format": {"type": "json_object"}"#), Some("response_format"));
    assert_eq!(
        format(
            r#", "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": {}}}"#
        ),
        Some("response_format.json_schema.schema")
    );
    assert_eq!(format(r#", "structured_outputs": {"choice": ["a"]}"#), Some("structured_outputs.choice"));
    assert_eq!(format(r#", "structured_outputs": {"json": "{}"}"#), Some("structured_outputs.json"));
}
