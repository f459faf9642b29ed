//! What the server checks and fills in before it stores: names, namespaces, versions, immutable fields, defaults.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::defaults;
use super::registry::Kind;
use super::route::Target;
use super::ssa::{Actor, Refused};
use super::store::{Key, Store, now, text};

pub(super) fn resets(kind: &Kind, subresource: Option<&str>) -> &'static [&'static str] {
    match subresource {
        Some("status") => &["f:spec", "f:metadata"],
        None if kind.has_status => &["f:status"],
        _ => &[],
    }
}

pub(super) fn refused(kind: &Kind, name: &str, why: Refused) -> ApiError {
    match why {
        Refused::Unmergeable(error) => {
            ApiError::new(500, "InternalError", format!("failed to merge: {}", error.0))
        }
        Refused::Conflicts(conflicts) => {
            let mut causes = Vec::new();
            let mut lines = Vec::new();
            for (manager, set) in &conflicts {
                let subresource =
                    manager.subresource.as_deref().map(|s| format!(" with subresource \"{s}\""));
                let who = format!(
                    "conflict with \"{}\"{} using {}",
                    manager.name,
                    subresource.unwrap_or_default(),
                    manager.api_version
                );
                for path in set.paths() {
                    lines.push(format!("{who}: {path}"));
                    causes.push(json!({"reason": "FieldManagerConflict", "message": who, "field": path}));
                }
            }
            let plural = if causes.len() == 1 { "" } else { "s" };
            let message =
                format!("Apply failed with {} conflict{plural}: {}", causes.len(), lines.join("\n"));
            let mut out = ApiError::new(409, "Conflict", message);
            out.details = json!({"causes": causes});
            let _ = (kind, name);
            out
        }
    }
}

/// Only the status of `new`, over all else of `old`; or all but the status.
pub(super) fn confine(kind: &Kind, subresource: Option<&str>, old: &Value, new: &mut Value) {
    let keep = |from: &Value, to: &mut Value, field: &str| match from.get(field) {
        Some(value) => to[field] = value.clone(),
        None => {
            if let Some(map) = to.as_object_mut() {
                map.remove(field);
            }
        }
    };
    if subresource == Some("status") {
        let mut out = old.clone();
        keep(new, &mut out, "status");
        if let Some(fields) = new["metadata"].get("managedFields") {
            out["metadata"]["managedFields"] = fields.clone();
        }
        *new = out;
    } else if kind.has_status {
        keep(old, new, "status");
    }
}

pub(super) fn set_server_metadata(old: Option<&Value>, new: &mut Value) {
    const SERVER: [&str; 7] = [
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
        "selfLink",
    ];
    if let Some(meta) = new.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in SERVER {
            meta.remove(field);
            if let Some(value) = old.and_then(|old| old["metadata"].get(field)) {
                meta.insert(field.to_owned(), value.clone());
            }
        }
    }
}

pub(super) fn without(object: &Value, fields: &[&str]) -> Value {
    let mut out = object.clone();
    if let Some(map) = out.as_object_mut() {
        fields.iter().for_each(|field| {
            map.remove(*field);
        });
    }
    out
}

fn is_label_name(name: &str, dots: bool) -> bool {
    let ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || (dots && c == '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    name.chars().all(ok) && edge(name.chars().next()) && edge(name.chars().last()) && name.len() <= 253
}

impl Store {
    pub(super) fn check_namespace(&self, kind: &Kind, target: &Target, name: &str) -> Result<(), ApiError> {
        if !kind.namespaced {
            return Ok(());
        }
        let namespaces = Kind::find("", "v1", "namespaces").ok_or_else(|| ApiError::injected(500))?;
        let Some(namespace) = self.get(&Key::new(namespaces, "", &target.namespace)) else {
            return Err(ApiError::not_found(namespaces, &target.namespace));
        };
        if text(namespace, "/metadata/deletionTimestamp").is_some() {
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                target.namespace
            );
            let mut out = ApiError::forbidden(kind, name, &why);
            out.details["causes"] = json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                "message": format!("namespace {} is being terminated", target.namespace)}]);
            return Err(out);
        }
        Ok(())
    }

    pub(super) fn validate(
        &self,
        kind: &Kind,
        name: &str,
        old: Option<&Value>,
        new: &Value,
    ) -> Result<(), ApiError> {
        // A Service's name is a DNS label that starts with a letter, others are subdomains.
        let label = matches!(kind.kind, "Service" | "Namespace");
        if !is_label_name(name, !label) {
            let why = format!(
                "Invalid value: \"{name}\": a lowercase RFC 1123 name must consist of lower case \
                alphanumeric characters or '-', and must start and end with an alphanumeric character"
            );
            return Err(ApiError::invalid(kind, name, "metadata.name", &why));
        }
        if kind.kind == "Service" && new["spec"]["ports"].as_array().is_none_or(Vec::is_empty) {
            return Err(ApiError::invalid(kind, name, "spec.ports", "Required value"));
        }
        if let Some(old) = old.filter(|old| kind.kind == "ConfigMap" && old["immutable"] == true) {
            for field in ["immutable", "data", "binaryData"] {
                if new.get(field) != old.get(field) {
                    let why = "Forbidden: field is immutable when `immutable` is set";
                    return Err(ApiError::invalid(kind, name, field, why));
                }
            }
        }
        if matches!(kind.kind, "Deployment" | "ReplicaSet") {
            let selector = &new["spec"]["selector"];
            if old.is_some_and(|old| old["spec"]["selector"] != *selector) {
                return Err(ApiError::invalid(
                    kind,
                    name,
                    "spec.selector",
                    "Invalid value: field is immutable",
                ));
            }
            let labels = &new["spec"]["template"]["metadata"]["labels"];
            let wanted = selector["matchLabels"].as_object().cloned().unwrap_or_default();
            if wanted.is_empty() || wanted.iter().any(|(key, value)| labels.get(key) != Some(value)) {
                let why = "Invalid value: `selector` does not match template `labels`";
                return Err(ApiError::invalid(kind, name, "spec.template.metadata.labels", why));
            }
        }
        // The real server says all of these at once.
        let mut wrong = Vec::new();
        if kind.kind == "Deployment"
            && new["spec"]["strategy"]["type"] == "Recreate"
            && new["spec"]["strategy"].get("rollingUpdate").is_some()
        {
            let why = "Forbidden: may not be specified when strategy `type` is 'Recreate'";
            wrong.push(("spec.strategy.rollingUpdate".to_owned(), why));
        }
        for template in ["/spec/template/spec", "/spec"] {
            for list in ["initContainers", "containers"] {
                let containers = new.pointer(template).and_then(|spec| spec[list].as_array());
                for (i, container) in containers.into_iter().flatten().enumerate() {
                    if container["image"].as_str().is_none_or(str::is_empty) {
                        let field = format!("{}.{list}[{i}].image", template[1..].replace('/', "."));
                        wrong.push((field, "Required value"));
                    }
                }
            }
        }
        if let Some((field, why)) = wrong.first() {
            let mut refused = ApiError::invalid(kind, name, field, why);
            let causes = wrong
                .iter()
                .map(|(field, why)| json!({"reason": "FieldValueInvalid", "message": why, "field": field}));
            refused.details["causes"] = causes.collect();
            return Err(refused);
        }
        let owners = new["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
        if owners.iter().filter(|o| o["controller"] == true).count() > 1 {
            let why = "Only one reference can have Controller set to true";
            return Err(ApiError::invalid(kind, name, "metadata.ownerReferences", why));
        }
        Ok(())
    }

    /// Name, namespace and type of a body agree with its path.
    pub(super) fn check_body(&self, target: &Target, name: &str, body: &mut Value) -> Result<Key, ApiError> {
        let kind = target.kind;
        for (field, want) in [("kind", kind.kind.to_owned()), ("apiVersion", kind.api_version())] {
            match body.get(field).and_then(Value::as_str) {
                Some(got) if got != want => {
                    let why = format!(
                        "the {field} in the data ({got}) does not match the expected {field} ({want})"
                    );
                    return Err(ApiError::bad_request(why));
                }
                _ => body[field] = json!(want),
            }
        }
        if !body["metadata"].is_object() {
            body["metadata"] = json!({});
        }
        if let Some(path_name) = target.name.as_deref().filter(|path_name| *path_name != name) {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({path_name})"
            )));
        }
        body["metadata"]["name"] = json!(name);
        if kind.namespaced {
            if text(body, "/metadata/namespace").is_some_and(|n| !n.is_empty() && n != target.namespace) {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            body["metadata"]["namespace"] = json!(target.namespace);
        }
        Ok(Key::new(kind, &target.namespace, name))
    }

    /// The body as the server's types hold it: nulls gone, unknown custom fields pruned, defaults in.
    pub(super) fn typed(&self, kind: &Kind, mut object: Value) -> Value {
        defaults::drop_nulls(&mut object);
        if !kind.is_custom() {
            defaults::drop_empty(&mut object);
            // Statuses are structs, not pointers: they are written out before anybody sets them.
            let empty = kind.empty();
            if let (true, Some(status)) = (object["status"].is_null(), empty.get("status")) {
                object["status"] = status.clone();
            }
        }
        if let (true, Some(properties)) = (kind.is_custom(), self.crd["properties"].as_object()) {
            for (name, value) in object.as_object_mut().into_iter().flatten() {
                if let (false, Some(schema)) = (name == "metadata", properties.get(name)) {
                    defaults::prune(schema, value);
                }
            }
        }
        defaults::fill(kind, &mut object, &self.crd);
        for field in ["labels", "annotations", "ownerReferences", "finalizers"] {
            let empty = match &object["metadata"][field] {
                Value::Object(map) => map.is_empty(),
                Value::Array(list) => list.is_empty(),
                other => other.is_null(),
            };
            if let (true, Some(meta)) = (empty, object["metadata"].as_object_mut()) {
                meta.remove(field);
            }
        }
        object
    }

    pub(super) fn actor(&self, target: &Target, manager: &str, kind: &'static Kind) -> OwnedActor {
        OwnedActor {
            manager: manager.to_owned(),
            subresource: target.subresource.clone(),
            api_version: kind.api_version(),
            now: now(),
            resets: resets(kind, target.subresource.as_deref()),
            empty: kind.empty(),
        }
    }

    pub(super) fn check_versions(
        &self,
        kind: &Kind,
        key: &Key,
        live: &Value,
        new: &Value,
        by_patch: bool,
    ) -> Result<(), ApiError> {
        let want_uid = text(new, "/metadata/uid").filter(|u| !u.is_empty());
        let live_uid = text(live, "/metadata/uid").unwrap_or_default();
        if let Some(uid) = want_uid.filter(|uid| *uid != live_uid) {
            // A PUT takes the uid as a precondition, a patch only as a field that must not change.
            if by_patch {
                let why = format!("Invalid value: \"{uid}\": field is immutable");
                return Err(ApiError::invalid(kind, &key.name, "metadata.uid", &why));
            }
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {live_uid}");
            return Err(ApiError::conflict(kind, &key.name, &why));
        }
        let version = text(new, "/metadata/resourceVersion").filter(|v| !v.is_empty());
        if version.is_some_and(|v| Some(v) != text(live, "/metadata/resourceVersion")) {
            return Err(ApiError::stale(kind, &key.name));
        }
        Ok(())
    }
}

pub(super) struct OwnedActor {
    manager: String,
    subresource: Option<String>,
    api_version: String,
    now: String,
    resets: &'static [&'static str],
    empty: Value,
}

impl OwnedActor {
    pub(super) fn borrow(&self) -> Actor<'_> {
        Actor {
            manager: &self.manager,
            subresource: self.subresource.as_deref(),
            api_version: &self.api_version,
            now: &self.now,
            resets: self.resets,
            empty: &self.empty,
        }
    }
}
