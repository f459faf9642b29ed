//! Every CEL rule, evaluated in this process by kube-cel: one object that it lets pass, one that it refuses with its
//! own message. The real API server gets the same objects in `tests/`.

#![allow(clippy::unwrap_used, clippy::panic)]

mod cases;

use std::collections::BTreeSet;

use kube_cel::{RootContext, Validator};
use serde_json::Value;

use self::cases::{ACCEPTED_URIS, Case, REFUSED_URIS, cases, object};

fn refusals(object: &Value) -> Vec<String> {
    let crd = serde_json::to_value(candela_crds::llm_deployment_crd()).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let root = RootContext {
        api_version: "candela.dev/v1alpha1".into(),
        api_group: "candela.dev".into(),
        kind: "LlmDeployment".into(),
    };
    match Validator::new().validate_with_context(schema, object, None, Some(&root)) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.iter().map(|error| error.message.clone()).collect(),
    }
}

fn rules(schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(rules) = schema["x-kubernetes-validations"].as_array() {
        found.extend(
            rules.iter().map(|rule| rule["message"].as_str().expect("every rule has a message").to_owned()),
        );
    }
    for inner in schema["properties"].as_object().into_iter().flat_map(|p| p.values()) {
        rules(inner, found);
    }
    for key in ["items", "additionalProperties"] {
        if schema[key].is_object() {
            rules(&schema[key], found);
        }
    }
}

#[test]
fn each_rule_lets_one_object_pass_and_refuses_one() {
    for Case { message, accept, reject, reject_name } in cases() {
        assert_eq!(refusals(&object("chat", accept)), Vec::<String>::new(), "{message}: accepted object");
        let refusals = refusals(&object(reject_name.unwrap_or("chat"), reject));
        assert!(
            refusals.iter().any(|refusal| refusal.contains(message)),
            "{reject} should be refused with `{message}`, got {refusals:?}"
        );
    }
}

#[test]
fn every_rule_has_a_case_and_every_case_a_rule() {
    let crd = serde_json::to_value(candela_crds::llm_deployment_crd()).unwrap();
    let mut found = BTreeSet::new();
    rules(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], &mut found);
    let cases = cases();
    for message in &found {
        let n_cases = cases.iter().filter(|case| message.contains(case.message)).count();
        assert_eq!(n_cases, 1, "cases for the rule `{message}`");
    }
    for case in &cases {
        assert!(
            found.iter().any(|message| message.contains(case.message)),
            "no rule says `{}`",
            case.message
        );
    }
}

#[test]
fn names_are_bounded_at_fifty_characters() {
    for (name, ok) in
        [("a".repeat(50), true), ("a".repeat(51), false), ("a-".to_owned(), false), ("A".to_owned(), false)]
    {
        assert_eq!(refusals(&object(&name, "{}")).is_empty(), ok, "{name}");
    }
}

#[test]
fn sources_that_look_right_are_told_from_those_that_do_not() {
    for (uris, ok) in [(&ACCEPTED_URIS[..], true), (&REFUSED_URIS[..], false)] {
        for uri in uris {
            let found = refusals(&object("chat", &format!("{{model: {{uri: '{uri}'}}}}")));
            assert_eq!(found.is_empty(), ok, "{uri}: {found:?}");
        }
    }
}

#[test]
fn additional_models_obey_the_rules_of_the_main_one() {
    let models = |models: &str| refusals(&object("chat", &format!("{{additionalModels: [{models}]}}")));
    assert_eq!(
        models("{servedName: a, uri: 'hf://a/b', revision: main}, {servedName: b, uri: 'pvc://c/m'}"),
        [""; 0]
    );
    for (model, says) in [
        ("{servedName: a, uri: 's3://b/m'}", "model.uri must be"),
        ("{servedName: 'a/../b', uri: 'hf://a/b'}", "model.servedName must be"),
        ("{servedName: a, uri: 'builtin://demo', revision: main}", "model.revision is a commit"),
        ("{servedName: a, uri: 'hf://a/b', contextLength: 0}", "model.contextLength must be"),
        (
            "{servedName: a, uri: 'pvc://c/m', credentialsRef: {name: s, key: token}}",
            "model.credentialsRef is only sent",
        ),
    ] {
        let found = models(model);
        assert!(found.iter().any(|found| found.contains(says)), "{model}: {found:?} should say `{says}`");
    }
}

#[test]
fn no_mount_covers_what_is_candelas() {
    let mount = |path: &str| {
        format!(
            "{{podTemplate: {{volumes: [{{name: d, emptyDir: {{}}}}], volumeMounts: [{{name: d, mountPath: '{path}'}}]}}}}"
        )
    };
    for path in ["/data", "/etc/candela2", "/etc/ssl/certs", "/var/run/other", "/modelsx/models"] {
        assert_eq!(refusals(&object("chat", &mount(path))), Vec::<String>::new(), "{path}");
    }
    for path in [
        "//etc/candela",
        "/etc//candela",
        "/etc/candela/../candela",
        "/etc/./candela",
        "/etc/candela/",
        "/etc",
        "/var",
        "/var/run",
        "/run",
        "/run/candela/credentials",
        "/",
        "/models/chat",
        "data",
    ] {
        assert!(!refusals(&object("chat", &mount(path))).is_empty(), "{path}");
    }
}

#[test]
fn quantities_that_kubernetes_would_change_do_not_match() {
    let pattern = regex::Regex::new(candela_crds::Quantity::PATTERN).unwrap();
    for text in ["1", "0.5", "500m", "1.5Gi", ".5", "1e9", "2E+3", "1e-3", "100u", "+1", "2."] {
        assert!(pattern.is_match(text), "{text}");
    }
    for text in ["-1", "1e999", "1e-9", "0.0001", "1.5n", "1n", "", ".", "1Gb", "1 Gi", "e3"] {
        assert!(!pattern.is_match(text), "{text}");
    }
}
