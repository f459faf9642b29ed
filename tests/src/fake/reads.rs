//! Reads: get, list with selectors and pages, and what one watch sees next.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::answer::ApiError;
use super::registry::Kind;
use super::route::{Selector, Target};
use super::store::{Change, Event, Key, Store, text};

/// Which objects a list or watch is about.
#[derive(Clone, Debug)]
pub struct Selection {
    pub kind: &'static Kind,
    namespace: String,
    labels: Selector,
    fields: Selector,
}

impl Selection {
    pub fn of(target: &Target) -> Result<Self, ApiError> {
        let parse = |name: &str| target.text(name).map_or_else(|| Ok(Selector::default()), Selector::parse);
        let mut fields = target.text("fieldSelector").unwrap_or_default().to_owned();
        // `watch` on a single object's path is a watch with a field selector.
        if let Some(name) = &target.name {
            fields = format!("{fields},metadata.name={name}");
        }
        Ok(Self {
            kind: target.kind,
            namespace: target.namespace.clone(),
            labels: parse("labelSelector")?,
            fields: Selector::parse(&fields)?,
        })
    }

    pub fn has(&self, key: &Key, object: &Value) -> bool {
        let label = |name: &str| object["metadata"]["labels"].get(name).and_then(Value::as_str);
        let field = |name: &str| {
            let found = text(object, &format!("/{}", name.replace('.', "/")));
            found.or_else(|| (!name.starts_with("metadata.")).then_some(""))
        };
        (self.namespace.is_empty() || key.namespace == self.namespace)
            && self.labels.matches(label)
            && self.fields.matches(field)
    }

    /// The event as a watch with this selection sees it.
    pub fn sees(&self, event: &Event) -> Option<(&'static str, Value)> {
        if event.kind != self.kind {
            return None;
        }
        let was = event.before.as_ref().is_some_and(|before| self.has(&event.key, before));
        let is = event.change != Change::Deleted && self.has(&event.key, &event.object);
        match (was, is) {
            (false, true) => Some(("ADDED", event.object.clone())),
            (true, true) => Some(("MODIFIED", event.object.clone())),
            (true, false) => {
                let mut last = event.before.clone().unwrap_or(Value::Null);
                last["metadata"]["resourceVersion"] = json!(event.rv.to_string());
                Some(("DELETED", last))
            }
            (false, false) => None,
        }
    }
}

impl Store {
    pub fn read(&self, target: &Target, pinned: Option<u64>) -> Result<Value, ApiError> {
        let name = target.name.as_deref().unwrap_or_default();
        let key = Key::new(target.kind, &target.namespace, name);
        // Only a get that accepts any version may be answered from a lagging cache.
        let stale = pinned.filter(|_| target.text("resourceVersion") == Some("0"));
        match stale {
            Some(rv) => self.of_kind_at(target.kind, rv).remove(&key),
            None => self.get(&key).cloned(),
        }
        .ok_or_else(|| ApiError::not_found(target.kind, name))
    }

    pub fn list(&self, target: &Target, pinned: Option<u64>) -> Result<Value, ApiError> {
        let kind = target.kind;
        let selection = Selection::of(target)?;
        let limit = target.number("limit")?.filter(|n| *n > 0);
        let (mut rv, after) = match target.text("continue") {
            Some(token) => read_token(token)?,
            None => (pinned.unwrap_or(self.rv), None),
        };
        if after.is_some() && rv < self.compacted {
            return Err(ApiError::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter.",
            ));
        }
        if let Some(wanted) = target.text("resourceVersion").filter(|v| *v != "0") {
            let wanted: u64 = wanted
                .parse()
                .map_err(|_| ApiError::bad_request(format!("invalid resource version: {wanted}")))?;
            if wanted > self.rv {
                let mut out = ApiError::new(504, "Timeout", format!("Too large resource version: {wanted}"));
                out.details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]});
                return Err(out);
            }
            if target.text("resourceVersionMatch") == Some("Exact") {
                if wanted < self.compacted {
                    return Err(ApiError::expired("The resourceVersion for the provided list is too old."));
                }
                rv = wanted;
            }
        }
        let at: Vec<(Key, Value)> = if rv == self.rv {
            self.of_kind(kind).map(|(key, object)| (key.clone(), object.clone())).collect()
        } else {
            self.of_kind_at(kind, rv).into_iter().collect()
        };
        let mut found =
            at.into_iter().filter(|(key, object)| selection.has(key, object)).filter(|(key, _)| {
                after.as_ref().is_none_or(|(ns, name)| (&key.namespace, &key.name) > (ns, name))
            });
        let mut items = Vec::new();
        let mut last = None;
        for (key, mut object) in found.by_ref() {
            // The server leaves the type out of the items of built-in lists.
            if let (false, Some(map)) = (kind.is_custom(), object.as_object_mut()) {
                map.remove("apiVersion");
                map.remove("kind");
            }
            items.push(object);
            last = Some(key);
            if limit.is_some_and(|limit| items.len() as u64 >= limit) {
                break;
            }
        }
        let remaining = found.count();
        let mut meta = json!({"resourceVersion": rv.to_string()});
        if let (Some(last), true) = (last, remaining > 0) {
            meta["continue"] = json!(write_token(rv, &last));
            if target.text("labelSelector").is_none() && target.text("fieldSelector").is_none() {
                meta["remainingItemCount"] = json!(remaining);
            }
        }
        Ok(json!({
            "apiVersion": kind.api_version(), "kind": format!("{}List", kind.kind), "metadata": meta, "items": items,
        }))
    }
}

fn write_token(rv: u64, last: &Key) -> String {
    URL_SAFE_NO_PAD.encode(json!([rv, last.namespace, last.name]).to_string())
}

type Token = (u64, Option<(String, String)>);

fn read_token(token: &str) -> Result<Token, ApiError> {
    let bad = || ApiError::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
    let (rv, namespace, name): (u64, String, String) = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    Ok((rv, Some((namespace, name))))
}
