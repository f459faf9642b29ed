use super::*;

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
           "stream": true, "stream_options": {"include_usage": true}, "n": 1, "tools": [], "user": "u",
           "response_format": {"type": "text"}, "logit_bias": {"7": -100}"#,
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
    };
    let messages = vec![Message { role: "user", content: "hi".into(), name: None }];
    let model = "m".to_owned();
    let logprobs = Some(2);
    assert_eq!(
        request,
        ChatRequest { model, messages, sampling, logprobs, stream: true, include_usage: true }
    );
}

#[test]
fn what_would_be_ignored_is_refused_by_name() {
    for (extra, param, code) in [
        (r#", "n": 2"#, "n", "unsupported_parameter"),
        (r#", "tools": [{}]"#, "tools", "unsupported_parameter"),
        (r#", "tool_choice": "auto""#, "tool_choice", "unsupported_parameter"),
        (r#", "response_format": {"type": "json_object"}"#, "response_format", "unsupported_parameter"),
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
        (r#"[{"role": "tool", "content": "hi"}]"#, "messages[0].role"),
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
