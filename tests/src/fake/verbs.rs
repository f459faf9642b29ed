//! Writes: create, update, patch, apply, delete.

use serde_json::{Map, Value, json};

use super::answer::{self, ApiError};
use super::defaults;
use super::route::Target;
use super::rules::{confine, refused, set_server_metadata, without};
use super::ssa;
use super::store::{Key, Store, now, text, uid};

/// An answer with its HTTP code, and whether something was stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub code: u16,
    pub body: Value,
    pub committed: bool,
}

type Outcome = Result<Written, ApiError>;

/// Who writes: the field manager, from the query or the user agent.
pub struct Writer<'a> {
    pub manager: &'a str,
    /// The request is a patch, not a PUT.
    pub patches: bool,
}

impl Store {
    pub fn create(&mut self, target: &Target, mut body: Value, writer: &Writer<'_>) -> Outcome {
        let kind = target.kind;
        let serial = self.next_serial();
        if text(&body, "/metadata/name").unwrap_or_default().is_empty() {
            let prefix = text(&body, "/metadata/generateName").unwrap_or_default();
            if prefix.is_empty() {
                let why = "Required value: name or generateName is required";
                return Err(ApiError::invalid(kind, "", "metadata.name", why));
            }
            body["metadata"]["name"] = json!(format!("{prefix}{serial:05x}"));
        }
        let name = text(&body, "/metadata/name").unwrap_or_default().to_owned();
        set_server_metadata(None, &mut body);
        let key = self.check_body(target, &name, &mut body)?;
        self.check_namespace(kind, target, &name)?;
        if self.get(&key).is_some() {
            return Err(ApiError::already_exists(kind, &name));
        }
        let owned_status = std::mem::take(&mut body["status"]);
        let seeded = matches!(kind.kind, "Node" | "Pod") && !owned_status.is_null();
        body = without(&body, &["status"]);
        let mut object = self.typed(kind, body);
        let actor = self.actor(target, writer.manager, kind);
        ssa::update(kind.place(&self.crd), &kind.empty(), &mut object, &actor.borrow())
            .map_err(|e| refused(kind, &name, e))?;
        // Test scripts create nodes and pods together with their status, in one step.
        if seeded {
            object["status"] = owned_status;
        }
        self.insert(target, &key, object, serial)
    }

    /// Nobody comes to own the fields of an object that a PUT created.
    fn create_by_put(&mut self, target: &Target, body: Value, writer: &Writer<'_>) -> Outcome {
        self.unowned = true;
        let written = self.create(target, body, writer);
        self.unowned = false;
        written
    }

    fn insert(&mut self, target: &Target, key: &Key, mut object: Value, serial: u64) -> Outcome {
        let kind = target.kind;
        self.validate(kind, &key.name, None, &object)?;
        object["metadata"]["uid"] = json!(uid(serial));
        object["metadata"]["creationTimestamp"] = json!(now());
        if kind.counts_generations {
            object["metadata"]["generation"] = json!(1);
        }
        defaults::allocate(kind, &mut object, serial);
        if self.unowned {
            ssa::write_managers(&mut object, &[]);
        }
        if kind.is_custom() && !target.dry_run() {
            self.fresh.insert(key.clone());
        }
        if target.dry_run() {
            return Ok(Written { code: 201, body: object, committed: false });
        }
        Ok(Written { code: 201, body: self.commit(kind, key, Some(object)), committed: true })
    }

    fn live(&self, target: &Target) -> Result<(Key, Value), ApiError> {
        let name = target.name.as_deref().unwrap_or_default();
        let key = Key::new(target.kind, &target.namespace, name);
        let object = self.get(&key).ok_or_else(|| ApiError::not_found(target.kind, name))?;
        Ok((key.clone(), object.clone()))
    }

    pub fn update(&mut self, target: &Target, mut body: Value, writer: &Writer<'_>) -> Outcome {
        if target.subresource.as_deref() == Some("scale") {
            return self.scale(target, &body, writer);
        }
        let name = text(&body, "/metadata/name").unwrap_or_default().to_owned();
        let key = self.check_body(target, &name, &mut body)?;
        // These two kinds are created by a PUT on a name that is free.
        if target.subresource.is_none()
            && matches!(target.kind.kind, "Service" | "Lease")
            && self.get(&key).is_none()
        {
            return self.create_by_put(target, body, writer);
        }
        let (key, live) = self.live(target)?;
        let conditional =
            target.kind.is_custom() || matches!(target.kind.kind, "PodDisruptionBudget" | "Lease");
        if conditional && text(&body, "/metadata/resourceVersion").is_none_or(str::is_empty) {
            let why = "Invalid value: 0: must be specified for an update";
            return Err(ApiError::invalid(target.kind, &name, "metadata.resourceVersion", why));
        }
        self.replace(target, &key, &live, body, writer)
    }

    /// `new` in place of `live`, with the preconditions that `new` states.
    fn replace(
        &mut self,
        target: &Target,
        key: &Key,
        live: &Value,
        mut new: Value,
        writer: &Writer<'_>,
    ) -> Outcome {
        let kind = target.kind;
        self.check_versions(kind, key, live, &new, writer.patches)?;
        set_server_metadata(Some(live), &mut new);
        confine(kind, target.subresource.as_deref(), live, &mut new);
        defaults::keep_allocated(kind, live, &mut new);
        let mut new = self.typed(kind, new);
        let actor = self.actor(target, writer.manager, kind);
        ssa::update(kind.place(&self.crd), live, &mut new, &actor.borrow())
            .map_err(|e| refused(kind, &key.name, e))?;
        self.store_update(target, key, live, new)
    }

    fn store_update(&mut self, target: &Target, key: &Key, live: &Value, mut new: Value) -> Outcome {
        let kind = target.kind;
        self.validate(kind, &key.name, Some(live), &new)?;
        if kind.counts_generations {
            let spec = |object: &Value| without(object, &["metadata", "status"]);
            let annotations = |object: &Value| object["metadata"].get("annotations").cloned();
            let by_annotation = kind.kind == "Deployment" && annotations(live) != annotations(&new);
            let generation = live["metadata"]["generation"].as_u64().unwrap_or(1);
            let changed = spec(live) != spec(&new) || by_annotation;
            new["metadata"]["generation"] = json!(generation + u64::from(changed));
        }
        let being_deleted = text(live, "/metadata/deletionTimestamp").is_some();
        let before = live["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        let added =
            new["metadata"]["finalizers"].as_array().is_some_and(|f| f.iter().any(|f| !before.contains(f)));
        if being_deleted && added {
            let why = "Forbidden: no new finalizers can be added if the object is being deleted";
            return Err(ApiError::invalid(kind, &key.name, "metadata.finalizers", why));
        }
        let held = new["metadata"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        if target.dry_run() {
            return Ok(Written { code: 200, body: new, committed: false });
        }
        if being_deleted && !held {
            self.commit(kind, key, None);
            return Ok(Written { code: 200, body: new, committed: true });
        }
        if !self.fresh.remove(key) && new == *live {
            return Ok(Written { code: 200, body: new, committed: false });
        }
        Ok(Written { code: 200, body: self.commit(kind, key, Some(new)), committed: true })
    }

    pub fn merge_patch(&mut self, target: &Target, patch: &Value, writer: &Writer<'_>) -> Outcome {
        let (key, live) = self.live(target)?;
        if target.subresource.as_deref() == Some("scale") {
            let mut scale = scale_of(target, &live)?;
            merge_into(&mut scale, patch);
            return self.scale(target, &scale, writer);
        }
        let mut new = live.clone();
        // Only a version that the patch itself states is a precondition.
        if let Some(meta) = new["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
        }
        merge_into(&mut new, patch);
        if text(&new, "/metadata/name") != Some(key.name.as_str()) {
            return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
        }
        self.replace(target, &key, &live, new, writer)
    }

    pub fn apply(&mut self, target: &Target, mut config: Value, writer: &Writer<'_>) -> Outcome {
        let kind = target.kind;
        let name = target.name.clone().unwrap_or_default();
        if target.text("fieldManager").is_none() {
            return Err(ApiError::new(
                422,
                "Invalid",
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: \
                Required value: is required for apply patch",
            ));
        }
        for field in ["apiVersion", "kind"] {
            if text(&config, &format!("/{field}")).is_none() {
                return Err(ApiError::bad_request(format!("{field} must be set in an apply patch")));
            }
        }
        if config.pointer("/metadata/managedFields").is_some_and(|f| !f.is_null()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let given = text(&config, "/metadata/name").unwrap_or(&name).to_owned();
        let key = self.check_body(target, &given, &mut config)?;
        let force = target.flag("force");
        let actor = self.actor(target, writer.manager, kind);
        let Some(live) = self.get(&key).cloned() else {
            if target.subresource.is_some() {
                return Err(ApiError::not_found(kind, &name));
            }
            if let Some(uid) = text(&config, "/metadata/uid") {
                let why = format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                );
                return Err(ApiError::new(409, "Conflict", why));
            }
            self.check_namespace(kind, target, &name)?;
            let serial = self.next_serial();
            let mut object =
                ssa::apply(kind.place(&self.crd), &kind.empty(), &config, &actor.borrow(), force)
                    .map_err(|e| refused(kind, &name, e))?;
            set_server_metadata(None, &mut object);
            let object = self.typed(kind, without(&object, &["status"]));
            return self.insert(target, &key, object, serial);
        };
        self.check_versions(kind, &key, &live, &config, true)?;
        let mut new = ssa::apply(kind.place(&self.crd), &live, &config, &actor.borrow(), force)
            .map_err(|e| refused(kind, &name, e))?;
        set_server_metadata(Some(&live), &mut new);
        confine(kind, target.subresource.as_deref(), &live, &mut new);
        defaults::keep_allocated(kind, &live, &mut new);
        let new = self.typed(kind, new);
        self.store_update(target, &key, &live, new)
    }

    fn scale(&mut self, target: &Target, scale: &Value, writer: &Writer<'_>) -> Outcome {
        let (key, live) = self.live(target)?;
        let mut new = live.clone();
        if let Some(meta) = new["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
        }
        if let Some(version) = text(scale, "/metadata/resourceVersion").filter(|v| !v.is_empty()) {
            new["metadata"]["resourceVersion"] = json!(version);
        }
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            return Err(ApiError::invalid(target.kind, &key.name, "spec.replicas", "must be non-negative"));
        }
        new["spec"]["replicas"] = json!(replicas);
        let written = self.replace(target, &key, &live, new, writer)?;
        Ok(Written { body: scale_of(target, &written.body)?, ..written })
    }

    pub fn read_scale(&self, target: &Target) -> Outcome {
        let (_, live) = self.live(target)?;
        Ok(Written { code: 200, body: scale_of(target, &live)?, committed: false })
    }

    pub fn delete(&mut self, target: &Target, options: &Value) -> Outcome {
        let kind = target.kind;
        let (key, mut live) = self.live(target)?;
        let wanted = options.get("preconditions").cloned().unwrap_or(Value::Null);
        for (field, words) in [("uid", "UID"), ("resourceVersion", "ResourceVersion")] {
            let have = live["metadata"][field].as_str().unwrap_or_default();
            if let Some(want) = wanted.get(field).and_then(Value::as_str).filter(|want| *want != have) {
                let why = format!(
                    "Precondition failed: {words} in precondition: {want}, {words} in object meta: {have}"
                );
                return Err(ApiError::conflict(kind, &key.name, &why));
            }
        }
        let uid = text(&live, "/metadata/uid").unwrap_or_default().to_owned();
        let policy = target
            .text("propagationPolicy")
            .or_else(|| options.get("propagationPolicy").and_then(Value::as_str));
        let hold = match policy {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        let mut finalizers = live["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        // Each delete says anew what becomes of dependents.
        finalizers.retain(|f| f != "foregroundDeletion" && f != "orphan");
        if let Some(hold) = hold.filter(|hold| !finalizers.contains(&json!(hold))) {
            finalizers.push(json!(hold));
        }
        let is_namespace = kind.kind == "Namespace";
        let had = live["metadata"]["finalizers"].as_array().map_or(0, Vec::len);
        if finalizers.is_empty() && had > 0 && wanted.get("resourceVersion").is_some() && !target.dry_run() {
            // The real server compares the version with that of an update which it then leaves out, as this delete needs
            // no finalizer any more: nothing is written, and no version fits.
            return Err(ApiError::stale(kind, &key.name));
        }
        if target.dry_run() {
            return Ok(Written { code: 200, body: answer::deleted(kind, &key.name, &uid), committed: false });
        }
        if finalizers.is_empty() && !is_namespace {
            let last = self.commit(kind, &key, None);
            let whole = matches!(kind.kind, "Pod" | "Service" | "ServiceAccount" | "PersistentVolumeClaim");
            let body = if whole { last } else { answer::deleted(kind, &key.name, &uid) };
            return Ok(Written { code: 200, body, committed: true });
        }
        if text(&live, "/metadata/deletionTimestamp").is_some() {
            let sorted = |list: &[Value]| {
                let mut names: Vec<String> = list.iter().map(Value::to_string).collect();
                names.sort();
                names
            };
            let present = live["metadata"]["finalizers"].as_array().map_or(&[][..], Vec::as_slice);
            if is_namespace || sorted(present) == sorted(&finalizers) {
                return Ok(Written { code: 200, body: live, committed: false });
            }
            live["metadata"]["finalizers"] = Value::Array(finalizers);
            return Ok(Written { code: 200, body: self.commit(kind, &key, Some(live)), committed: true });
        }
        live["metadata"]["deletionTimestamp"] = json!(now());
        if is_namespace {
            live["status"]["phase"] = json!("Terminating");
        } else {
            live["metadata"]["finalizers"] = Value::Array(finalizers);
            live["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        }
        if let Some(generation) = live["metadata"]["generation"].as_u64() {
            live["metadata"]["generation"] = json!(generation + 1);
        }
        Ok(Written { code: 200, body: self.commit(kind, &key, Some(live)), committed: true })
    }
}

/// RFC 7386.
pub fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let Value::Object(map) = target {
        for (key, value) in patch {
            if value.is_null() {
                map.remove(key);
            } else {
                merge_into(map.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}

fn scale_of(target: &Target, object: &Value) -> Result<Value, ApiError> {
    if !target.kind.has_scale {
        return Err(ApiError::new(404, "NotFound", "the server could not find the requested resource"));
    }
    let replicas = object["spec"]["replicas"].as_i64();
    let replicas = replicas
        .ok_or_else(|| ApiError::new(500, "InternalError", "the spec replicas field does not exist"))?;
    let selector = match &object["status"]["selector"] {
        Value::String(text) => text.clone(),
        _ => {
            let labels = object["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
            let parts: Vec<_> = labels
                .iter()
                .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
                .collect();
            parts.join(",")
        }
    };
    let meta = &object["metadata"];
    let mut out = json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"]},
        "spec": {"replicas": replicas},
        "status": {"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)},
    });
    if replicas == 0 {
        out["spec"] = json!({});
    }
    if !selector.is_empty() {
        out["status"]["selector"] = json!(selector);
    }
    Ok(out)
}
