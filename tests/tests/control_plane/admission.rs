//! The CEL rules as a real API server applies them: the objects that `crds/tests/cel` judges in process.

#[path = "../../../crds/tests/cel/cases.rs"]
mod cases;

use std::collections::BTreeSet;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use self::cases::{ACCEPTED_URIS, Case, REFUSED_URIS, cases, object};

/// Code and answer of a create that stores nothing. Fields that do not exist are left out by the server before it asks
/// the rules, as it is by default.
async fn create(client: &kube::Client, object: &Value) -> (u16, Value) {
    let path = "/apis/candela.dev/v1alpha1/namespaces/default/llmdeployments?dryRun=All";
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(Body::from(Bytes::from(object.to_string())))
        .unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap())
}

/// What the server adds for the field that the scale subresource names.
const OF_THE_SCALE: &str = "should be a non-negative integer";

/// The messages of all rules.
fn rules(schema: &Value, found: &mut BTreeSet<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        found.insert(rule["message"].as_str().unwrap().to_owned());
    }
    match schema {
        Value::Object(map) => map.values().for_each(|inner| rules(inner, found)),
        Value::Array(list) => list.iter().for_each(|inner| rules(inner, found)),
        _ => {}
    }
}

/// What a person reads of a refusal: the messages of its causes, without what the server puts before a rule's.
fn causes(answer: &Value) -> Vec<String> {
    let causes = answer["details"]["causes"].as_array();
    let message = |cause: &Value| cause["message"].as_str().unwrap_or_default().to_owned();
    causes.into_iter().flatten().map(message).collect()
}

#[tokio::test]
async fn every_rule_is_applied_by_a_real_api_server_with_our_message() {
    let _turn = crate::TURN.lock().await;
    let client = crate::client().await;
    let crd = serde_json::to_value(candela_crds::llm_deployment_crd()).unwrap();
    let mut messages = BTreeSet::new();
    rules(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut messages);

    let (mut n_rejected, mut faults) = (0, Vec::new());
    let cases = cases();
    for Case { message, accept, reject, reject_name } in &cases {
        let (code, answer) = create(&client, &object("chat", accept)).await;
        if code != 201 {
            faults.push(format!("{accept} should be taken, got {code} {:?}", causes(&answer)));
        }
        let (code, answer) = create(&client, &object(reject_name.unwrap_or("chat"), reject)).await;
        let rule = messages.iter().find(|rule| rule.contains(message)).unwrap();
        let found = causes(&answer);
        if code != 422 || !found.iter().any(|cause| cause.ends_with(rule.as_str())) {
            faults.push(format!("{reject} should be refused with `{rule}`, got {code} {found:?}"));
        } else {
            n_rejected += 1;
        }
        // Beside our own words nothing but those of another of our rules.
        let foreign: Vec<_> = found
            .iter()
            .filter(|cause| !messages.iter().any(|rule| cause.ends_with(rule.as_str())))
            .filter(|cause| !cause.ends_with(OF_THE_SCALE))
            .collect();
        if !foreign.is_empty() {
            faults.push(format!("{reject} is refused with words that are not ours: {foreign:?}"));
        }
    }
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert_eq!(cases.len(), messages.len(), "a case for each rule");
    println!(
        "{} rules: {n_rejected} objects refused with our message, {} taken",
        messages.len(),
        cases.len()
    );
}

#[tokio::test]
async fn names_and_sources_are_judged_alike_by_a_real_api_server() {
    let _turn = crate::TURN.lock().await;
    let client = crate::client().await;
    let names = [("a".repeat(50), 201), ("a".repeat(51), 422), ("a-".to_owned(), 422), ("A".to_owned(), 422)];
    for (name, expected) in names {
        let (code, answer) = create(&client, &object(&name, "{}")).await;
        assert_eq!(code, expected, "{name}: {:?}", causes(&answer));
    }
    let accepted = ACCEPTED_URIS.iter().map(|uri| (uri, 201));
    for (uri, expected) in accepted.chain(REFUSED_URIS.iter().map(|uri| (uri, 422))) {
        let patch = json!({"model": {"uri": uri}}).to_string();
        let (code, answer) = create(&client, &object("chat", &patch)).await;
        assert_eq!(code, expected, "{uri}: {:?}", causes(&answer));
    }
}
