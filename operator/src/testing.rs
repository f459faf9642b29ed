//! For unit tests of the stages: an API server that answers what it was told to, and remembers what it was asked.

use std::{collections::VecDeque, sync::Arc};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use parking_lot::Mutex;
use serde_json::{Value, json};

use candela_crds::EngineName;
use candela_planner::{Child, Device, ImageRule, NetworkPolicyEnforced, OwnedKind, Plan, Settings};

use crate::{
    apply::Owner,
    cache::{Key, Raw},
    client::{CallPolicy, with_policy},
    config::ClientTimeouts,
    context::Context,
    metrics::Metrics,
    permit::WritePermit,
    planted::Planted,
};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

/// Answers in order; the test fails when there are too few.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    answers: VecDeque<(u16, Value)>,
    asked: Vec<Asked>,
    /// Once the answers are used up, every write succeeds; counts the versions given out.
    echo: Option<u64>,
    /// A method that is always answered so.
    failing: Option<(Method, (u16, Value))>,
}

impl State {
    fn echo(&mut self, body: &Value) -> Option<(u16, Value)> {
        let version = self.echo.as_mut()?;
        *version += 1;
        let mut object = body.clone();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["metadata"].get("uid").is_none() {
            object["metadata"]["uid"] = json!(format!("uid-{version}"));
        }
        Some((200, object))
    }
}

impl Script {
    pub(crate) fn answering(answers: impl IntoIterator<Item = (u16, Value)>) -> Self {
        let script = Self::default();
        script.state.lock().answers.extend(answers);
        script
    }

    /// Answers every call of a method so.
    pub(crate) fn fail(&self, method: Method, answer: (u16, Value)) {
        self.state.lock().failing = Some((method, answer));
    }

    /// Lets every further write succeed.
    pub(crate) fn then_echo(self) -> Self {
        self.state.lock().echo = Some(1000);
        self
    }

    /// What was asked since the last call; every answer must have been used.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let mut state = self.state.lock();
        assert!(state.answers.is_empty(), "answers that nobody asked for: {:?}", state.answers);
        std::mem::take(&mut state.asked)
    }

    pub(crate) fn context(&self) -> Arc<Context> {
        let script = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let script = script.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let mut state = script.state.lock();
                state.asked.push(Asked {
                    method: head.method.clone(),
                    path: head.uri.path().to_owned(),
                    query: head.uri.query().unwrap_or_default().to_owned(),
                    body: body.clone(),
                });
                let failing = state.failing.clone().filter(|(method, _)| *method == head.method);
                if let Some((_, (code, answer))) = failing {
                    return Response::builder()
                        .status(code)
                        .body(Body::from(answer.to_string().into_bytes()))
                        .map_err(kube::Error::HttpError);
                }
                let answer = state.answers.pop_front().or_else(|| state.echo(&body));
                let (code, answer) =
                    answer.unwrap_or_else(|| panic!("unexpected {} {}", head.method, head.uri));
                Response::builder()
                    .status(code)
                    .body(Body::from(answer.to_string().into_bytes()))
                    .map_err(kube::Error::HttpError)
            }
        });
        let metrics = Metrics::new();
        let policy = CallPolicy {
            timeouts: ClientTimeouts::default(),
            limiter: None,
            permit: WritePermit::always(),
            metrics: Arc::clone(&metrics),
        };
        let client = with_policy(Client::new(service, "ns"), policy);
        let settings = Settings {
            images: vec![ImageRule {
                engine: EngineName::Candle,
                device: Device::Cpu,
                image: "candela.local/server:dev".to_owned(),
                args: Vec::new(),
            }],
            network_policy_enforced: NetworkPolicyEnforced::Unknown,
            operator_namespace: "candela-system".to_owned(),
            ..Settings::default()
        };
        let pull: crate::pull::Puller = Arc::new(|_| Box::pin(std::future::pending()));
        Context::new(client, settings, metrics, "test", pull, Planted::default())
    }
}

pub(crate) fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status =
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message});
    (code, status)
}

pub(crate) const OWNER_UID: &str = "owner-uid";

pub(crate) fn owner() -> Owner {
    Owner { key: Key::new("ns", "chat"), uid: OWNER_UID.to_owned() }
}

/// A ServiceAccount as the planner would ask for it.
pub(crate) fn service_account() -> Child {
    let object = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "chat", "namespace": "ns", "ownerReferences": [reference(OWNER_UID)]},
        "automountServiceAccountToken": false,
    });
    Child { kind: OwnedKind::ServiceAccount, object }
}

pub(crate) fn reference(uid: &str) -> Value {
    json!({"apiVersion": "candela.dev/v1alpha1", "kind": "LlmDeployment", "name": "chat", "uid": uid,
           "controller": true, "blockOwnerDeletion": true})
}

/// The ServiceAccount as the API server has it.
pub(crate) fn live(uid: &str, version: u64, owner: Option<&str>, automount: bool) -> Value {
    let mut object = service_account().object;
    object["metadata"]["uid"] = json!(uid);
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    object["metadata"]["ownerReferences"] = owner.map_or(json!([]), |owner| json!([reference(owner)]));
    object["automountServiceAccountToken"] = json!(automount);
    object["metadata"]["managedFields"] = json!([{
        "manager": candela_planner::FIELD_MANAGER, "operation": "Apply", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "time": "2026-01-01T00:00:00Z",
        "fieldsV1": {
            "f:automountServiceAccountToken": {},
            "f:metadata": {"f:ownerReferences": {"k:{\"uid\":\"owner-uid\"}": {}}},
        },
    }]);
    object
}

pub(crate) fn raw(object: Value) -> Raw {
    Raw::new(serde_json::from_value(object).expect("an object"), "v1", "ServiceAccount")
}

pub(crate) fn plan(children: Vec<Child>) -> Plan {
    Plan { children, complete: true, ..Plan::default() }
}
