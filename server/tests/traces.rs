//! Traces, as a collector receives them.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{net::SocketAddr, time::Duration};

use axum::{Router, body::Bytes, routing::post};
use candela_engine::testing::TinyModel;
use candela_server::telemetry::Settings;
use http::HeaderMap;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;
use serde_json::json;
use support::{Events, NAME, Server, chat_body, until};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

/// What one export had.
type Export = (HeaderMap, ExportTraceServiceRequest);

/// A collector on this machine.
async fn collector() -> (SocketAddr, mpsc::UnboundedReceiver<Export>) {
    let (sender, exports) = mpsc::unbounded_channel();
    let taken = move |headers: HeaderMap, body: Bytes| async move {
        // By the protocol's own definitions.
        let _ = sender.send((headers, ExportTraceServiceRequest::decode(body).unwrap()));
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/traces", post(taken));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (address, exports)
}

fn settings(address: SocketAddr, more: &'static [(&'static str, &'static str)]) -> Settings {
    let env = move |name: &str| {
        let given = more.iter().find(|(have, _)| *have == name);
        let delay = (name == "OTEL_BSP_SCHEDULE_DELAY").then(|| "20".to_owned());
        given.map(|(_, value)| (*value).to_owned()).or(delay)
    };
    Settings::read(Some(&format!("http://{address}")), env).unwrap().unwrap()
}

async fn tracing(address: SocketAddr, more: &'static [(&'static str, &'static str)]) -> Server {
    Server::with(&TinyModel::default(), |options| options.traces = Some(settings(address, more))).await
}

/// Spans of the exports that come until there are `n`.
async fn spans(exports: &mut mpsc::UnboundedReceiver<Export>, n: usize) -> Vec<Span> {
    let mut all = Vec::new();
    while all.len() < n {
        let next = timeout(Duration::from_secs(20), exports.recv()).await;
        let (_, export) =
            next.unwrap_or_else(|_| panic!("{} of {n} spans came: {all:#?}", all.len())).unwrap();
        all.extend(export.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans));
    }
    all
}

fn value<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a Any> {
    let found = attributes.iter().find(|have| have.key == key)?;
    found.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    match value(attributes, key) {
        Some(Any::StringValue(text)) => text.clone(),
        other => panic!("`{key}` is {other:?} in {attributes:#?}"),
    }
}

fn int(attributes: &[KeyValue], key: &str) -> i64 {
    match value(attributes, key) {
        Some(Any::IntValue(number)) => *number,
        other => panic!("`{key}` is {other:?} in {attributes:#?}"),
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[tokio::test]
async fn a_request_is_a_span_of_its_callers_trace_with_its_phases_below() {
    let (address, mut exports) = collector().await;
    let more = &[
        ("OTEL_SERVICE_NAME", "chat-test"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=mine"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=chat-0"),
    ];
    let server = tracing(address, more).await;
    let body = chat_body(json!({"max_tokens": 6, "stream": true, "n": 2}));
    let asked = server.http.post(server.url("/v1/chat/completions")).json(&body);
    let asked =
        asked.header("traceparent", format!("00-{TRACE}-{CALLER}-01")).header("tracestate", "vendor=1");
    Events::of(asked.send().await.unwrap()).rest().await;

    let (headers, export) = timeout(Duration::from_secs(20), exports.recv()).await.unwrap().unwrap();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(headers["x-scope"], "mine");
    let of_resource = &export.resource_spans[0];
    let resource = &of_resource.resource.as_ref().unwrap().attributes;
    assert_eq!(text(resource, "service.name"), "chat-test");
    assert_eq!(text(resource, "k8s.pod.name"), "chat-0");
    let all = &of_resource.scope_spans[0].spans;
    assert_eq!(all.len(), 7, "the request's, and three phases of each answer: {all:#?}");
    let whole = &all[0];
    assert_eq!(whole.name, format!("chat {NAME}"));
    assert_eq!(whole.kind(), SpanKind::Server);
    assert_eq!(
        (hex::encode(&whole.trace_id), hex::encode(&whole.parent_span_id)),
        (TRACE.into(), CALLER.into())
    );
    assert_eq!(whole.trace_state, "vendor=1");
    assert_eq!(whole.flags & 1, 1);
    assert!(whole.status.is_none(), "it went well");
    let attributes = &whole.attributes;
    for (key, expected) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.provider.name", "candela"),
        ("gen_ai.request.model", NAME),
        ("http.request.method", "POST"),
        ("http.route", "/v1/chat/completions"),
    ] {
        assert_eq!(text(attributes, key), expected);
    }
    assert_eq!(int(attributes, "gen_ai.usage.output_tokens"), 12);
    assert_eq!(int(attributes, "gen_ai.request.max_tokens"), 6);
    assert_eq!(int(attributes, "http.response.status_code"), 200);
    assert!(int(attributes, "gen_ai.usage.input_tokens") > 2);
    match value(attributes, "gen_ai.response.finish_reasons") {
        Some(Any::ArrayValue(reasons)) => assert_eq!(reasons.values.len(), 2),
        other => panic!("{other:?}"),
    }
    for (phase, name) in all[1..].iter().zip(["queue", "prefill", "decode"].iter().cycle()) {
        assert_eq!((phase.name.as_str(), phase.kind()), (*name, SpanKind::Internal));
        assert_eq!((&phase.trace_id, &phase.parent_span_id), (&whole.trace_id, &whole.span_id));
        assert!(phase.start_time_unix_nano <= phase.end_time_unix_nano);
        assert!(whole.start_time_unix_nano <= phase.start_time_unix_nano, "{phase:#?} {whole:#?}");
        assert!(phase.end_time_unix_nano <= whole.end_time_unix_nano, "{phase:#?} {whole:#?}");
    }
    until("sent spans are counted", || async {
        server.metrics().await.contains("candela_server_trace_spans_total 7\n")
    })
    .await;
}

#[tokio::test]
async fn other_requests_have_spans_of_their_own_traces_and_unsampled_ones_none() {
    let (address, mut exports) = collector().await;
    let server = tracing(address, &[]).await;
    let unsampled = server.http.get(server.url("/v1/models"));
    let unsampled = unsampled.header("traceparent", format!("00-{TRACE}-{CALLER}-00"));
    assert_eq!(unsampled.send().await.unwrap().status(), 200);
    assert_eq!(server.chat(json!({"max_tokens": 0})).await.status(), 400);
    let summary = server.post("/summarize", &json!({"model": NAME, "text": "a b", "stream": true})).await;
    Events::of(summary).rest().await;
    let all = spans(&mut exports, 5).await;
    assert!(all.iter().all(|span| hex::encode(&span.trace_id) != TRACE), "{all:#?}");
    let refused = all.iter().find(|span| int_or(span, "http.response.status_code") == 400).unwrap();
    assert!(
        refused.parent_span_id.is_empty() && refused.status.is_none(),
        "a client's mistake is no error of ours"
    );
    let summary = all.iter().find(|span| span.name == format!("text_completion {NAME}")).unwrap();
    assert_eq!(text(&summary.attributes, "http.route"), "/summarize");
    assert_eq!(all.iter().filter(|span| span.parent_span_id == summary.span_id).count(), 3);
}

fn int_or(span: &Span, key: &str) -> i64 {
    match value(&span.attributes, key) {
        Some(Any::IntValue(number)) => *number,
        _ => 0,
    }
}

#[tokio::test]
async fn a_collector_that_is_away_or_never_answers_costs_spans_and_nothing_else() {
    // One takes connections and says nothing, the other has no listener any more.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), gone] {
        let mut server = tracing(address, &[("OTEL_BSP_MAX_QUEUE_SIZE", "4")]).await;
        for _ in 0..20 {
            let answered = timeout(Duration::from_secs(5), server.chat(json!({"max_tokens": 2}))).await;
            assert_eq!(answered.expect("as quick as without traces").status(), 200);
        }
        // 80 spans: some wait in the queue or are under way, the others are lost.
        until("lost spans are counted", || async {
            let metrics = server.metrics().await;
            let dropped = metrics
                .lines()
                .find_map(|line| line.strip_prefix("candela_server_trace_spans_dropped_total "));
            dropped.unwrap().parse::<u32>().unwrap() >= 60
        })
        .await;
        server.terminate();
        assert!(server.ended().await.is_ok());
    }
}
