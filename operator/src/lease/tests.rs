use http::{Method, Request, Response};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{
    config::Span,
    permit::{self, WritePermit},
};

/// One Lease with optimistic concurrency, behind any number of clients.
#[derive(Clone, Default)]
struct Server {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    lease: Option<Value>,
    version: u64,
    /// Who is cut off, by the client's name.
    partitioned: Vec<&'static str>,
    /// Commit the next write, and answer nothing.
    lose_next_answer: bool,
    unconditional_writes: usize,
}

impl Server {
    fn client(&self, name: &'static str) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                if server.state.lock().partitioned.contains(&name) {
                    std::future::pending::<()>().await;
                }
                let (code, answer, lost) = server.answer(&head.method, &body);
                if lost {
                    std::future::pending::<()>().await;
                }
                let response = Response::builder().status(code);
                response.body(Body::from(answer.to_string().into_bytes())).map_err(kube::Error::HttpError)
            }
        });
        Client::new(service, "candela-system")
    }

    fn answer(&self, method: &Method, body: &[u8]) -> (u16, Value, bool) {
        let mut state = self.state.lock();
        let failure = |code: u16| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "no"})
        };
        if *method == Method::GET {
            return match &state.lease {
                Some(lease) => (200, lease.clone(), false),
                None => (404, failure(404), false),
            };
        }
        let mut sent: Value = serde_json::from_slice(body).expect("a Lease");
        let sent_version = sent["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let present = state.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
        let fits = match (method == Method::POST, &present) {
            (true, None) => true,
            (false, Some(present)) => {
                state.unconditional_writes += usize::from(sent_version.is_none());
                present.as_str() == sent_version.as_deref()
            }
            _ => false,
        };
        if !fits {
            return (409, failure(409), false);
        }
        state.version += 1;
        sent["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.lease = Some(sent.clone());
        let lost = std::mem::take(&mut state.lose_next_answer);
        (200, sent, lost)
    }

    fn holder(&self) -> Option<String> {
        self.state.lock().lease.as_ref()?["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }
}

struct Replica {
    permit: WritePermit,
    leadership: watch::Receiver<Leadership>,
    task: tokio::task::JoinHandle<Result<(), LeaseError>>,
}

impl Replica {
    fn start(server: &Server, name: &'static str) -> Self {
        let (holder, permit) = permit::permit();
        let config = LeaseConfig { margin: Span::secs(3), ..LeaseConfig::default() };
        let metrics = Metrics::new();
        let (mut elector, leadership) =
            Elector::new(server.client(name), "candela-system", config, name.to_owned(), holder, metrics);
        let task = tokio::spawn(async move { elector.run().await });
        Self { permit, leadership, task }
    }

    async fn leads(&mut self) {
        let wait = self.leadership.wait_for(|leadership| leadership.leading);
        tokio::time::timeout(Duration::from_secs(60), wait).await.expect("in time").expect("it runs");
    }
}

#[tokio::test(start_paused = true)]
async fn the_second_waits_and_takes_over_only_after_the_first_may_no_longer_write() {
    let server = Server::default();
    let mut first = Replica::start(&server, "a");
    first.leads().await;
    let second = Replica::start(&server, "b");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(first.permit.is_valid() && !second.permit.is_valid(), "the first renews, the second waits");
    assert_eq!(second.leadership.borrow().holder.as_deref(), Some("a"));

    server.state.lock().partitioned.push("a");
    let cut_off = Instant::now();
    // At every instant at most one may write.
    while !second.permit.is_valid() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!(first.permit.is_valid() && second.permit.is_valid()), "two leaders");
        assert!(cut_off.elapsed() < Duration::from_secs(20), "failover within the lease and 5 s");
    }
    assert!(!first.permit.is_valid());
    let ended = first.task.await.expect("no panic");
    assert!(matches!(ended, Err(LeaseError::NotRenewed)), "the first gives up by itself: {ended:?}");
    assert_eq!(server.holder().as_deref(), Some("b"));
    assert_eq!(server.state.lock().unconditional_writes, 0, "each write carries a resourceVersion");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_lost_is_not_a_lost_lease() {
    let server = Server::default();
    let mut replica = Replica::start(&server, "a");
    replica.leads().await;
    server.state.lock().lose_next_answer = true;
    for _ in 0..600 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(replica.permit.is_valid(), "own write found again, no gap");
    }
    assert!(!replica.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_taken_stops_at_once() {
    let server = Server::default();
    let mut replica = Replica::start(&server, "a");
    replica.leads().await;
    {
        let mut state = server.state.lock();
        state.version += 1;
        let version = json!(state.version.to_string());
        let lease = state.lease.as_mut().expect("it exists");
        lease["spec"]["holderIdentity"] = json!("thief");
        lease["metadata"]["resourceVersion"] = version;
    }
    let ended = tokio::time::timeout(Duration::from_secs(3), &mut replica.task).await;
    let ended = ended.expect("at the next renewal").expect("no panic");
    assert!(matches!(ended, Err(LeaseError::Taken { ref holder }) if holder == "thief"), "{ended:?}");
    assert!(!replica.permit.is_valid());
}

#[tokio::test(start_paused = true)]
async fn a_lease_given_up_is_free_at_once() {
    let server = Server::default();
    let (holder, permit) = permit::permit();
    let (mut elector, _) = Elector::new(
        server.client("a"),
        "candela-system",
        LeaseConfig::default(),
        "a".to_owned(),
        holder,
        Metrics::new(),
    );
    let ended = tokio::time::timeout(Duration::from_secs(30), elector.run()).await;
    assert!(ended.is_err() && permit.is_valid(), "it leads and goes on leading");
    elector.release().await;
    assert!(!permit.is_valid());
    let released = Instant::now();
    let mut second = Replica::start(&server, "b");
    second.leads().await;
    assert!(released.elapsed() < Duration::from_secs(1));
}
