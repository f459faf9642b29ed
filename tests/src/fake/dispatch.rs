//! From a request to the verb that answers it.

use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;

use super::answer::ApiError;
use super::faults::Faults;
use super::route::Target;
use super::store::Store;
use super::verbs::{Writer, Written};

pub(super) fn parse_body(request: &Request<Bytes>) -> Value {
    let bytes = request.body();
    serde_json::from_slice(bytes).or_else(|_| serde_yaml::from_slice(bytes)).unwrap_or(Value::Null)
}

pub(super) fn manager_of(target: &Target, request: &Request<Bytes>) -> String {
    let agent = || {
        let agent = request.headers().get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or("unknown");
        agent.split('/').next().unwrap_or(agent).to_owned()
    };
    target.text("fieldManager").map_or_else(agent, str::to_owned)
}

pub(super) fn dispatch(
    store: &mut Store,
    faults: &mut Faults,
    client: &str,
    target: &Target,
    request: &Request<Bytes>,
) -> Result<Written, ApiError> {
    let pinned = faults.link(client).frozen_at;
    let read = |value: Value| Written { code: 200, body: value, committed: false };
    let kind = target.kind;
    let missing = || Err(ApiError::injected(404));
    match target.subresource.as_deref() {
        None => {}
        Some("status") if kind.has_status => {}
        Some("scale") if kind.has_scale && request.method() == Method::GET => {
            return store.read_scale(target);
        }
        Some("scale") if kind.has_scale => {}
        Some(_) => return missing(),
    }
    let manager = manager_of(target, request);
    let writer = Writer { manager: &manager, patches: request.method() == Method::PATCH };
    let body = parse_body(request);
    let content = request.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default();
    match (request.method().as_str(), &target.name) {
        ("GET", Some(_)) => store.read(target, pinned).map(read),
        ("GET", None) => store.list(target, pinned).map(read),
        ("POST", None) if body.is_object() => store.create(target, body, &writer),
        ("PUT", Some(_)) if body.is_object() => store.update(target, body, &writer),
        ("PATCH", Some(_)) if content.starts_with("application/apply-patch") && body.is_object() => {
            store.apply(target, body, &writer)
        }
        ("PATCH", Some(_)) if content.starts_with("application/merge-patch") => {
            store.merge_patch(target, &body, &writer)
        }
        ("PATCH", Some(_)) => Err(ApiError::new(
            415,
            "UnsupportedMediaType",
            format!("the in-memory server takes merge and apply patches, not `{content}`"),
        )),
        ("DELETE", Some(_)) => store.delete(target, &body),
        ("POST" | "PUT", _) => Err(ApiError::bad_request("the body is not an object")),
        (method, _) => Err(ApiError::new(
            405,
            "MethodNotAllowed",
            format!("{method} is not supported on {}", kind.plural),
        )),
    }
}
