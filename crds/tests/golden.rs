//! The committed CRDs are those of the code, bounded, and small enough for client-side apply.

#![allow(clippy::unwrap_used, clippy::panic)]

use candela_crds::crds;
use serde_json::Value;

fn schema() -> Value {
    let crd = serde_json::to_value(candela_crds::llm_deployment_crd()).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Calls `visit` with the path and value of every schema node.
fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, inner) in properties {
            walk(inner, &format!("{path}.{name}"), visit);
        }
    }
    for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&schema[key], &format!("{path}{suffix}"), visit);
        }
    }
}

#[test]
fn committed_crds_equal_the_code() {
    for crd in crds() {
        let file = format!(
            "{}/../manifests/crd/{}.yaml",
            env!("CARGO_MANIFEST_DIR"),
            crd.metadata.name.as_ref().unwrap()
        );
        // As `expect-test` does it; `xtask gen` writes the same file.
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(&file, candela_crds::crd_yaml(&crd)).unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            committed == candela_crds::crd_yaml(&crd),
            "{file} differs from the code: run `cargo run --release -p xtask -- gen`"
        );
    }
}

#[test]
fn the_committed_reference_equals_the_code() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/llmdeployment.md");
    let page = candela_crds::llm_deployment_reference();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(file, &page).unwrap();
    }
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    assert!(committed == page, "{file} differs from the code: run `cargo run --release -p xtask -- gen`");
}

#[test]
fn crds_fit_into_a_client_side_apply() {
    for crd in crds() {
        let size = serde_json::to_string(&crd).unwrap().len();
        assert!(size < 256 * 1024, "{size} bytes");
        let annotations = crd.metadata.annotations.unwrap();
        assert_eq!(annotations["argocd.argoproj.io/sync-options"], "Prune=false");
    }
}

#[test]
fn every_text_list_and_map_is_bounded() {
    let mut unbounded = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        let bounded = match node["type"].as_str() {
            Some("string") => {
                node.get("maxLength").is_some() || node.get("enum").is_some() || node["format"] == "date-time"
            }
            Some("array") => node.get("maxItems").is_some(),
            Some("object") => {
                node.get("additionalProperties").is_none() || node.get("maxProperties").is_some()
            }
            _ => true,
        };
        if !bounded {
            unbounded.push(path.to_owned());
        }
    });
    assert_eq!(unbounded, Vec::<String>::new());
}

#[test]
fn nothing_is_defaulted_into_the_stored_object_but_the_first_status() {
    let mut defaults = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        if let Some(default) = node.get("default") {
            defaults.push((path.to_owned(), default.clone()));
        }
    });
    assert_eq!(defaults, [(".status".to_owned(), serde_json::json!({"observedGeneration": -1}))]);
}

#[test]
fn additional_models_are_a_map_by_the_name_that_each_must_have() {
    let models = &schema()["properties"]["spec"]["properties"]["additionalModels"];
    assert_eq!(models["x-kubernetes-list-type"], "map");
    assert_eq!(models["x-kubernetes-list-map-keys"], serde_json::json!(["servedName"]));
    assert_eq!(models["items"]["required"], serde_json::json!(["servedName", "uri"]));
    assert_eq!(models["maxItems"], 8);
}

#[test]
fn the_resource_can_be_scaled_and_listed_with_its_category() {
    let crd = serde_json::to_value(candela_crds::llm_deployment_crd()).unwrap();
    assert_eq!(crd["spec"]["names"]["shortNames"], serde_json::json!(["llm"]));
    assert_eq!(crd["spec"]["names"]["categories"], serde_json::json!(["candela"]));
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"]["scale"]["specReplicasPath"], ".spec.replicas");
    assert_eq!(version["subresources"]["scale"]["labelSelectorPath"], ".status.selector");
    let columns: Vec<&str> = version["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(columns, ["Model", "Engine", "Ready", "Replicas", "Desired", "State", "URL", "Age"]);
}
