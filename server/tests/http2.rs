//! HTTP/2 on the public port, and gRPC on it: beside HTTP/1, with every bound that is kept per stream, and through a drain.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use candela_engine::testing::TinyModel;
use candela_oip::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
    infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
};
use futures::channel::mpsc;
use http::Request;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use support::{NAME, Server, long_winded, until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};

type Sender = http2::SendRequest<BoxBody<Bytes, Infallible>>;

/// A connection of HTTP/2, whose streams take `window` bytes that nobody reads.
async fn connect(server: &Server, window: u32) -> (Sender, JoinHandle<hyper::Result<()>>) {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let handshake = builder.initial_stream_window_size(window).handshake(TokioIo::new(stream));
    let (sender, connection) = handshake.await.unwrap();
    (sender, tokio::spawn(connection))
}

fn full(bytes: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    http_body_util::Full::new(bytes.into()).boxed()
}

fn framed(message: &impl Message) -> Bytes {
    let bytes = message.encode_to_vec();
    [&[0][..], &(bytes.len() as u32).to_be_bytes(), &bytes].concat().into()
}

async fn call(
    sender: &mut Sender,
    method: &str,
    body: BoxBody<Bytes, Infallible>,
) -> http::Response<Incoming> {
    let request = Request::post(format!("http://server/inference.GRPCInferenceService/{method}"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    sender.send_request(request.body(body).unwrap()).await.unwrap()
}

/// Messages, and the status that ended the call.
async fn collected(response: http::Response<Incoming>) -> (Vec<Bytes>, String) {
    let status = |headers: &http::HeaderMap| Some(headers.get("grpc-status")?.to_str().unwrap().to_owned());
    let early = status(response.headers());
    let body = response.into_body().collect().await.unwrap();
    let late = body.trailers().and_then(status);
    let mut bytes = body.to_bytes();
    let mut messages = Vec::new();
    while bytes.len() >= 5 {
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        messages.push(bytes.slice(5..5 + length));
        bytes = bytes.slice(5 + length..);
    }
    (messages, early.or(late).expect("a call ends with a status"))
}

fn ask(max_tokens: i64) -> ModelInferRequest {
    let text = InferTensorContents { bytes_contents: vec![b"hi"[..].into()], ..Default::default() };
    let input = InferInputTensor {
        name: "text_input".into(),
        datatype: "BYTES".into(),
        shape: vec![1],
        contents: Some(text),
        ..Default::default()
    };
    let wish = |choice| InferParameter { parameter_choice: Some(choice) };
    let parameters = [
        ("max_tokens".to_owned(), wish(ParameterChoice::Int64Param(max_tokens))),
        ("ignore_eos".to_owned(), wish(ParameterChoice::BoolParam(true))),
        ("temperature".to_owned(), wish(ParameterChoice::DoubleParam(0.0))),
    ];
    let parameters = parameters.into_iter().collect();
    ModelInferRequest { model_name: NAME.into(), inputs: vec![input], parameters, ..Default::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_protocols_are_answered_on_one_port() {
    let server = Server::of(&TinyModel::default()).await;
    let (mut sender, _connection) = connect(&server, 1 << 20).await;
    let live = Request::get("http://server/v2/health/live").body(full("")).unwrap();
    let answer = sender.send_request(live).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(answer.headers().contains_key("x-request-id"));
    assert_eq!(server.http.get(server.url("/v2/health/live")).send().await.unwrap().status(), 200);

    let calls = (0..40).map(|_| {
        let mut sender = sender.clone();
        async move { collected(call(&mut sender, "ModelInfer", full(framed(&ask(4)))).await).await }
    });
    let answers = futures::future::join_all(calls).await;
    for (messages, status) in &answers {
        assert_eq!((messages.len(), status.as_str()), (1, "0"));
        let answer = ModelInferResponse::decode(messages[0].clone()).unwrap();
        assert_eq!(answer.outputs[0].name, "text_output");
        assert_eq!(
            answer.parameters["num_output_tokens"].parameter_choice,
            Some(ParameterChoice::Int64Param(4))
        );
    }
    // Its status is counted as that of the call, since HTTP's is always 200.
    assert_eq!(collected(call(&mut sender, "ModelInfer", full(framed(&ask(0)))).await).await.1, "3");
    assert_eq!(collected(call(&mut sender, "Nothing", full(framed(&ask(0)))).await).await.1, "12");
    let metrics = server.metrics().await;
    assert!(
        metrics.contains(r#"route="/inference.GRPCInferenceService/ModelInfer",status="400"} 1"#),
        "{metrics}"
    );
    // gRPC over HTTP/1 cannot be.
    let wrong =
        server.http.post(server.url("/inference.GRPCInferenceService/ServerLive")).send().await.unwrap();
    assert_eq!(wrong.status(), 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_a_stream_and_hanging_up_cancels() {
    let server = Server::of(&long_winded()).await;
    let (mut sender, connection) = connect(&server, 1 << 20).await;
    let (messages, status) =
        collected(call(&mut sender, "ModelStreamInfer", full(framed(&ask(6)))).await).await;
    assert_eq!(status, "0");
    assert!(messages.len() > 1, "{} responses", messages.len());
    let last = ModelStreamInferResponse::decode(messages.last().unwrap().clone()).unwrap();
    let parameters = last.infer_response.unwrap().parameters;
    assert_eq!(parameters["triton_final_response"].parameter_choice, Some(ParameterChoice::BoolParam(true)));

    // One stream is reset, another goes with its connection.
    let mut streamed = call(&mut sender, "ModelStreamInfer", full(framed(&ask(10_000)))).await.into_body();
    streamed.frame().await.unwrap().unwrap();
    drop(streamed);
    server.settled().await;
    let mut streamed = call(&mut sender, "ModelStreamInfer", full(framed(&ask(10_000)))).await.into_body();
    streamed.frame().await.unwrap().unwrap();
    connection.abort();
    server.settled().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_is_cut_off() {
    let server =
        Server::with(&long_winded(), |options| options.limits.write = Duration::from_millis(200)).await;
    // The first bytes fill the window, and the connection itself stays open to everything else.
    let (mut sender, _connection) = connect(&server, 16).await;
    let unread = call(&mut sender, "ModelStreamInfer", full(framed(&ask(10_000)))).await;
    let (messages, status) = collected(call(&mut sender, "ModelInfer", full(framed(&ask(4)))).await).await;
    assert_eq!((messages.len(), status.as_str()), (1, "0"));
    until("the answer is cut off", || async { closed_slow(&server).await == 1 }).await;
    server.settled().await;
    let broken = unread.into_body().collect().await;
    assert!(broken.is_err(), "its stream is reset");
    let (messages, status) = collected(call(&mut sender, "ModelInfer", full(framed(&ask(4)))).await).await;
    assert_eq!((messages.len(), status.as_str()), (1, "0"), "others go on");
}

async fn closed_slow(server: &Server) -> u64 {
    let metrics = server.metrics().await;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("candela_server_connections_closed_slow_total "));
    line.unwrap().parse().unwrap()
}

fn get(path: &str) -> Request<BoxBody<Bytes, Infallible>> {
    Request::get(format!("http://server{path}")).body(full("")).unwrap()
}

/// What one answer is made of in one piece stays in memory until it was read, and is forgotten by hyper at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_answers_that_are_not_read_are_cut_off_too() {
    let server = Server::with(&TinyModel::default(), |options| {
        options.limits.write = Duration::from_millis(300);
        options.limits.idle = Duration::from_secs(60);
    })
    .await;
    let (mut sender, _connection) = connect(&server, 1).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        let answer = sender.send_request(get("/openapi.json")).await.unwrap();
        assert_eq!(answer.status(), 200);
        unread.push(answer);
    }
    until("all are cut off", || async { closed_slow(&server).await == 100 }).await;
    let answer = sender.send_request(get("/v2/health/live")).await.unwrap();
    assert_eq!(answer.status(), 200);
    drop(unread);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_slowly_has_all_of_the_answer() {
    let server = Server::with(&TinyModel::default(), |options| {
        options.limits.write = Duration::from_secs(1);
        options.limits.idle = Duration::from_millis(200);
        options.limits.header = Duration::from_millis(200);
    })
    .await;
    let (mut sender, connection) = connect(&server, 2048).await;
    let answer = sender.send_request(get("/openapi.json")).await.unwrap();
    let length: usize = answer.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let (mut body, mut n_bytes) = (answer.into_body(), 0);
    while let Some(frame) = body.frame().await {
        n_bytes += frame.unwrap().data_ref().map_or(0, Bytes::len);
        // The pace of a poor line: several times as long in all as a connection may rest.
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(n_bytes, length);
    assert_eq!(closed_slow(&server).await, 0);
    drop(sender);
    timeout(Duration::from_secs(20), connection).await.expect("then it rests, and ends").unwrap().ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_does_not_go_when_told_makes_room_all_the_same() {
    let server = Server::with(&TinyModel::default(), |options| options.limits.connections = 1).await;
    // Settings, and then nothing: no answer to the ping by which hyper tells.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    // The server's own settings: it has begun.
    let mut begun = [0; 9];
    stream.read_exact(&mut begun).await.unwrap();
    let answer = server.http.get(server.url("/v2/health/live")).send();
    let answer = timeout(Duration::from_secs(5), answer).await.expect("it makes room").unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_a_request_end() {
    let short = Duration::from_millis(200);
    let server = Server::with(&TinyModel::default(), |options| {
        options.limits.idle = short;
        options.limits.header = short;
        options.limits.body = short;
    })
    .await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // Half a head: a HEADERS frame of 100 bytes on stream 1, of which 3 come.
    let half = [0, 0, 100, 1, 0x4, 0, 0, 0, 1, 0x82, 0x86, 0x84];
    for sent in [
        preface[..10].to_vec(),
        preface.to_vec(),
        [&preface[..], &settings].concat(),
        [&preface[..], &settings, &half].concat(),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&sent).await.unwrap();
        let mut rest = Vec::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await;
        read.unwrap_or_else(|_| panic!("a connection of {sent:?} is never ended")).ok();
    }
    // A message that does not come whole, one that does not come at all, and one after which the call does not end.
    let whole = framed(&ask(4));
    for (begun, status) in [
        (&[0, 0, 0, 0, 9, 1][..], "4"),
        (&[], "4"),
        (&whole, "4"),
        // Two, and as many as would take all that bodies may hold.
        (&[&whole[..], &[0; 5]].concat(), "3"),
        (&vec![0; 5 << 14], "3"),
    ] {
        let (mut sender, _connection) = connect(&server, 1 << 20).await;
        let (keep, body) = mpsc::unbounded();
        keep.unbounded_send(Ok(Frame::data(Bytes::copy_from_slice(begun)))).unwrap();
        let response = call(&mut sender, "ModelInfer", BodyExt::boxed(StreamBody::new(body)));
        let response = timeout(Duration::from_secs(20), response).await.expect("the call is ended");
        assert_eq!(collected(response).await.1, status, "{} bytes", begun.len());
        drop(keep);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_asks_nothing_rests_no_longer_than_a_connection() {
    let idle = Duration::from_millis(300);
    let server = Server::with(&long_winded(), |options| options.limits.idle = idle).await;
    let (mut sender, _connection) = connect(&server, 1 << 20).await;
    let (keep, body) = mpsc::unbounded();
    keep.unbounded_send(Ok(Frame::data(framed(&ask(1000))))).unwrap();
    let began = std::time::Instant::now();
    let response = call(&mut sender, "ModelStreamInfer", BodyExt::boxed(StreamBody::new(body))).await;
    let (messages, status) = timeout(Duration::from_secs(60), collected(response)).await.unwrap();
    assert_eq!(status, "14", "the server ends it");
    // While it is answered it does not rest.
    let last = ModelStreamInferResponse::decode(messages.last().unwrap().clone()).unwrap();
    let parameters = last.infer_response.unwrap().parameters;
    assert_eq!(parameters["num_output_tokens"].parameter_choice, Some(ParameterChoice::Int64Param(1000)));
    assert!(began.elapsed() > idle);
    drop(keep);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_answers_what_runs_and_tells_the_rest() {
    let mut server = Server::of(&long_winded()).await;
    let (mut sender, connection) = connect(&server, 1 << 20).await;
    let (keep, body) = mpsc::unbounded();
    keep.unbounded_send(Ok(Frame::data(framed(&ask(300))))).unwrap();
    let response = call(&mut sender, "ModelStreamInfer", BodyExt::boxed(StreamBody::new(body))).await;
    until("it runs", || async { server.status().await.requests.in_flight == 1 }).await;
    server.terminate();
    let (messages, status) = timeout(Duration::from_secs(60), collected(response)).await.unwrap();
    assert_eq!(status, "14", "the call is ended by the server");
    let last = ModelStreamInferResponse::decode(messages.last().unwrap().clone()).unwrap();
    let parameters = last.infer_response.unwrap().parameters;
    assert_eq!(parameters["num_output_tokens"].parameter_choice, Some(ParameterChoice::Int64Param(300)));
    timeout(Duration::from_secs(20), connection).await.expect("GOAWAY ends it").unwrap().unwrap();
    drop(keep);
    server.ended().await.unwrap();
}
