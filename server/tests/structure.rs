//! Several answers of one prompt, answers of a given form, and calls of tools.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use candela_engine::testing::TinyModel;
use candela_wire::openai::{ChatChunk, ChatCompletion, Completion, ErrorBody, FinishReason};
use serde_json::{Value, json};
use support::{Events, NAME, Server, TEMPLATE};

fn roomy() -> TinyModel {
    TinyModel { context_length: 4096, ..TinyModel::default() }
}

async fn chunks(response: reqwest::Response) -> Vec<ChatChunk> {
    assert_eq!(response.status(), 200);
    let mut events = Events::of(response).rest().await;
    assert_eq!(events.pop().unwrap(), "[DONE]");
    events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

async fn refusal(response: reqwest::Response) -> (String, String) {
    assert_eq!(response.status(), 400);
    let error = response.json::<ErrorBody>().await.unwrap().error;
    (error.param.unwrap_or_default(), error.message)
}

#[tokio::test]
async fn answers_to_one_prompt_come_side_by_side_and_the_prompt_counts_once() {
    let server = Server::of(&TinyModel::default()).await;
    let asked = json!({"n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 12});
    let whole: ChatCompletion = server.chat(asked.clone()).await.json().await.unwrap();
    let texts: Vec<String> =
        whole.choices.iter().map(|choice| choice.message.content.clone().unwrap()).collect();
    assert_eq!(whole.choices.iter().map(|choice| choice.index).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(texts[0] != texts[1] && texts[1] != texts[2]);
    let one: ChatCompletion = server.chat(json!({"max_tokens": 12})).await.json().await.unwrap();
    assert_eq!(whole.usage.prompt_tokens, one.usage.prompt_tokens);
    assert_eq!(whole.usage.completion_tokens, 36);

    let mut asked = asked;
    asked["stream"] = json!(true);
    asked["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
    let chunks = chunks(server.chat(asked).await).await;
    let mut streamed = vec![String::new(); 3];
    let mut last = vec![0; 3];
    let mut switches = 0;
    let mut before = 0;
    for chunk in &chunks {
        let Some(choice) = chunk.choices.first() else { continue };
        let at = choice.index as usize;
        streamed[at].push_str(choice.delta.content.as_deref().unwrap_or_default());
        if choice.delta.role.is_none() {
            let usage = chunk.usage.expect("every chunk after the first has one");
            assert!(usage.completion_tokens >= last[at] && usage.timings.is_none());
            last[at] = usage.completion_tokens;
        }
        switches += usize::from(choice.index != before);
        before = choice.index;
    }
    assert_eq!(streamed, texts);
    assert_eq!(last, [12, 12, 12]);
    assert!(switches > 6, "they are interleaved: {switches}");
    let usage = chunks.last().unwrap().usage.unwrap();
    assert_eq!((usage.completion_tokens, usage.prompt_tokens), (36, whole.usage.prompt_tokens));

    let body =
        json!({"model": NAME, "prompt": "ab", "max_tokens": 4, "n": 2, "temperature": 0, "ignore_eos": true});
    let completion: Completion = server.post("/v1/completions", &body).await.json().await.unwrap();
    assert_eq!(completion.choices[0].text, completion.choices[1].text);
    assert_eq!(completion.usage.unwrap().completion_tokens, 8);
    server.settled().await;
}

#[tokio::test]
async fn an_answer_held_to_a_schema_is_of_it_whole_and_streamed() {
    let server = Server::of(&roomy()).await;
    let schema = json!({"type": "object", "additionalProperties": false, "required": ["colour", "count"], "properties": {
        "colour": {"enum": ["red", "green"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}}});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema}});
    let asked =
        json!({"response_format": format, "max_tokens": 400, "temperature": 1, "seed": 1, "logit_bias": {}});
    let check = |text: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(["red", "green"].contains(&value["colour"].as_str().unwrap()), "{value}");
        assert!(value["count"].as_u64().unwrap() < 100);
    };
    let whole: ChatCompletion = server.chat(asked.clone()).await.json().await.unwrap();
    assert_eq!(whole.choices[0].finish_reason, FinishReason::Stop);
    check(whole.choices[0].message.content.as_ref().unwrap());
    let mut streamed = asked.clone();
    streamed["stream"] = json!(true);
    let chunks = chunks(server.chat(streamed).await).await;
    let text: String = chunks.iter().filter_map(|chunk| chunk.choices[0].delta.content.clone()).collect();
    assert_eq!(Some(text), whole.choices[0].message.content);
    // Cut off in the middle, and said so.
    let mut cut = asked;
    cut["max_tokens"] = json!(3);
    let cut: ChatCompletion = server.chat(cut).await.json().await.unwrap();
    assert_eq!(cut.choices[0].finish_reason, FinishReason::Length);

    let body = json!({"model": NAME, "prompt": "a", "structured_outputs": {"choice": ["yes", "no"]}});
    let completion: Completion = server.post("/v1/completions", &body).await.json().await.unwrap();
    assert!(["yes", "no"].contains(&completion.choices[0].text.as_str()));
    let (param, message) = refusal(server.chat(json!({"structured_outputs": {"regex": "("}})).await).await;
    assert_eq!(param, "structured_outputs.regex");
    assert!(message.contains("cannot be kept to"), "{message}");
    let wrong = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}});
    let (param, message) = refusal(server.chat(json!({"response_format": wrong})).await).await;
    assert_eq!(param, "response_format.json_schema.schema");
    assert!(message.contains("not"), "{message}");
}

fn tools() -> Value {
    let parameters = json!({"type": "object", "required": ["days"], "additionalProperties": false,
        "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    json!([tool("weather"), tool("tides")])
}

#[tokio::test]
async fn calls_that_must_come_come_and_are_valid() {
    let server = Server::with_template(&roomy(), TEMPLATE).await;
    let asked = |choice: Value, seed: u64| {
        json!({"tools": tools(), "tool_choice": choice, "temperature": 1, "seed": seed, "max_tokens": 600,
               "logit_bias": {}, "parallel_tool_calls": seed.is_multiple_of(2)})
    };
    let mut names = std::collections::BTreeSet::new();
    for seed in 0..6 {
        let answer: ChatCompletion = server.chat(asked(json!("required"), seed)).await.json().await.unwrap();
        let choice = &answer.choices[0];
        let message = &choice.message;
        assert_eq!(
            (choice.finish_reason, message.content.as_deref()),
            (FinishReason::ToolCalls, None),
            "{answer:?}"
        );
        assert!(!message.tool_calls.is_empty() && (seed % 2 == 0 || message.tool_calls.len() == 1));
        for call in &message.tool_calls {
            let arguments: Value = serde_json::from_str(&call.function.arguments).unwrap();
            assert!((1..=9).contains(&arguments["days"].as_u64().unwrap()) && call.id.starts_with("call_"));
            names.insert(call.function.name.clone());
        }
    }
    assert_eq!(names.len(), 2, "either is called in the end");
    let named = json!({"type": "function", "function": {"name": "tides"}});
    let whole: ChatCompletion = server.chat(asked(named.clone(), 1)).await.json().await.unwrap();
    let choice = &whole.choices[0];
    assert_eq!((choice.finish_reason, choice.message.tool_calls.len()), (FinishReason::Stop, 1), "{whole:?}");
    let mut streamed = asked(named, 1);
    streamed["stream"] = json!(true);
    let chunks = chunks(server.chat(streamed).await).await;
    let calls: Vec<_> =
        chunks.iter().flat_map(|chunk| &chunk.choices).flat_map(|c| &c.delta.tool_calls).collect();
    assert_eq!((calls.len(), calls[0].index, calls[0].call.function.name.as_str()), (1, 0, "tides"));
    let text: String =
        chunks.iter().filter_map(|chunk| chunk.choices.first()?.delta.content.clone()).collect();
    assert_eq!(text, "");
    assert_eq!(chunks.last().unwrap().choices[0].finish_reason, Some(FinishReason::Stop), "as OpenAI has it");

    // The model may answer with text, and of a conversation with calls.
    let call =
        json!({"id": "c", "type": "function", "function": {"name": "tides", "arguments": "{\"days\": 2}"}});
    let turns = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "high"}]);
    let answer = server.chat(json!({"tools": tools(), "messages": turns})).await;
    let answer: ChatCompletion = answer.json().await.unwrap();
    assert_eq!(answer.choices[0].finish_reason, FinishReason::Length);
    assert!(answer.choices[0].message.content.is_some());
    let both = json!({"tools": tools(), "response_format": {"type": "json_object"}});
    assert_eq!(refusal(server.chat(both).await).await.0, "response_format");
    let mut wrong = json!({"tools": tools(), "tool_choice": "required"});
    wrong["tools"][1]["function"]["parameters"] =
        json!({"type": "object", "properties": {"a": {"type": "sting"}}});
    let (_, message) = refusal(server.chat(wrong).await).await;
    assert!(message.contains("sting"), "{message}");
}

#[tokio::test]
async fn tools_for_a_template_that_does_not_know_them_are_refused() {
    let server = Server::of(&TinyModel::default()).await;
    let (param, message) = refusal(server.chat(json!({"tools": tools()})).await).await;
    assert_eq!(param, "tools");
    assert!(message.contains("does not know tools"), "{message}");
}
