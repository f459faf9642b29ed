use std::convert::Infallible;

use futures::TryStreamExt as _;
use hyper::body::Frame;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{ListParams, PostParams, WatchParams},
};
use tower_test::mock::{self, Handle};

use super::*;
use crate::permit;

type Server = Handle<Request<Body>, Response<AnyBody>>;

fn policy(permit: WritePermit) -> CallPolicy {
    CallPolicy { timeouts: ClientTimeouts::default(), limiter: None, permit, metrics: Metrics::new() }
}

fn client(policy: CallPolicy) -> (Api<ConfigMap>, Server) {
    let (service, handle) = mock::pair();
    let client = with_policy(Client::new(service, "default"), policy);
    (Api::namespaced(client, "default"), handle)
}

fn config_map() -> ConfigMap {
    serde_json::from_value(serde_json::json!({"metadata": {"name": "a"}})).expect("a ConfigMap")
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_costs_one_deadline() {
    let (api, _server) = client(policy(WritePermit::always()));
    let start = Instant::now();
    let error = api.get("a").await.expect_err("nobody answered");
    assert!(error.to_string().contains("did not answer within 10s"), "{error}");
    assert_eq!(start.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_costs_one_deadline() {
    let (api, mut server) = client(policy(WritePermit::always()));
    let serve = async {
        let (_request, reply) = server.next_request().await.expect("a request");
        reply.send_response(Response::new(endless()));
        std::future::pending::<Infallible>().await
    };
    let error = tokio::select! {
        result = api.get("a") => result.expect_err("the body never ended"),
        never = serve => match never {},
    };
    assert!(error.to_string().contains("did not answer within 10s"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn writes_stop_with_the_permit_and_reads_go_on() {
    let (holder, permit) = permit::permit();
    let (api, mut server) = client(policy(permit));
    let error = api.create(&PostParams::default(), &config_map()).await.expect_err("no permit yet");
    assert!(is_fenced(&error), "{error}");

    // A write may not outlive the permit, even if the server takes its time.
    holder.grant_until(Instant::now() + Duration::from_secs(2));
    let start = Instant::now();
    let error = api.create(&PostParams::default(), &config_map()).await.expect_err("nobody answered");
    assert!(error.to_string().contains("within 2s"), "{error}");
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    let (request, _) = server.next_request().await.expect("it was sent while the permit held");
    assert_eq!(request.method(), Method::POST);

    let list_params = ListParams::default();
    let (list, ()) = tokio::join!(api.list(&list_params), async {
        let (request, reply) = server.next_request().await.expect("reads are not fenced");
        assert_eq!(request.method(), Method::GET);
        let empty =
            br#"{"apiVersion":"v1","kind":"ConfigMapList","metadata":{"resourceVersion":"1"},"items":[]}"#;
        reply.send_response(Response::new(boxed(Full::new(Bytes::from_static(empty)))));
    });
    assert!(list.expect("an empty list").items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_half_open_watch_is_noticed() {
    let (api, mut server) = client(policy(WritePermit::always()));
    let watch = async {
        let stream = api.watch(&WatchParams::default(), "1").await.expect("the head came");
        stream.try_collect::<Vec<_>>().await.expect_err("the stream broke off")
    };
    let start = Instant::now();
    let serve = async {
        let (_request, reply) = server.next_request().await.expect("a request");
        reply.send_response(Response::new(endless()));
        std::future::pending::<Infallible>().await
    };
    let error = tokio::select! {
        error = watch => error,
        never = serve => match never {},
    };
    assert!(error.to_string().contains("nothing came over the watch"), "{error}");
    assert_eq!(start.elapsed(), Duration::from(ClientTimeouts::default().watch_idle));
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_burst_are_spread_out() {
    let limiter = Limiter::new(4, 10.0, 5.0);
    let start = Instant::now();
    for _ in 0..15 {
        tokio::time::sleep(limiter.reserve()).await;
    }
    let took = start.elapsed();
    assert!((0.99..1.05).contains(&took.as_secs_f64()), "15 calls, burst 5, 10 per second took {took:?}");
}

/// A body that stays open and says nothing.
fn endless() -> AnyBody {
    boxed(StreamBody::new(futures::stream::pending::<Result<Frame<Bytes>, BoxError>>()))
}
