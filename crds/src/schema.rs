//! The CRDs as they are installed: what the derives make of the types, with the three things derives cannot say.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::LlmDeployment;

/// Bounds for what comes from Kubernetes' own types (affinity, tolerations), which have none.
const MAX_LENGTH: u32 = 1024;
const MAX_ITEMS: u32 = 32;
const MAX_PROPERTIES: u32 = 32;

/// Every CRD of this build.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![llm_deployment_crd()]
}

/// The CRD of LlmDeployment.
pub fn llm_deployment_crd() -> CustomResourceDefinition {
    installed(LlmDeployment::crd())
}

fn installed(derived: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut crd = serde_json::to_value(derived).expect("a CRD always serialises");
    let versions = crd["spec"]["versions"].as_array_mut().expect("a CRD has versions");
    for version in versions {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        finish(schema);
        // A new object must not look current to `kubectl wait` or Argo CD before the operator has seen it.
        schema["properties"]["status"]["default"] = json!({"observedGeneration": -1});
        schema["properties"]["status"].as_object_mut().expect("status is an object").remove("required");
        // Rules on metadata.name need no more of the object than this.
        schema["required"] = json!(["spec"]);
    }
    serde_json::from_value(crd).expect("still a CRD")
}

/// Bounds everything, and drops `nullable`: absent is the only way of saying nothing.
fn finish(schema: &mut Value) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("nullable");
    bound(object);
    if let Some(Value::Object(properties)) = object.get_mut("properties") {
        properties.values_mut().for_each(finish);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            finish(inner);
        }
    }
}

fn bound(object: &mut Map<String, Value>) {
    let has_type = |name: &str| object.get("type").and_then(Value::as_str) == Some(name);
    let has = |key: &str| object.contains_key(key);
    let (key, value) = if has_type("string") && !has("enum") && !has("maxLength") {
        // The API server itself bounds texts with these formats.
        if object.get("format").and_then(Value::as_str) == Some("date-time") {
            return;
        }
        ("maxLength", MAX_LENGTH)
    } else if has_type("array") && !has("maxItems") {
        ("maxItems", MAX_ITEMS)
    } else if has_type("object") && has("additionalProperties") && !has("maxProperties") {
        ("maxProperties", MAX_PROPERTIES)
    } else {
        return;
    };
    object.insert(key.to_owned(), value.into());
}
