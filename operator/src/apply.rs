//! `apply`: brings the children of one resource to what the plan says, by server-side apply with one field manager,
//! and only where the cached object differs.
//!
//! Two preconditions keep a forced apply away from what is not ours. Where the cache has no object, the patch says
//! `resourceVersion: "1"`: the API server creates the object if the name is free, and answers 409 if it is taken (a
//! plain POST would do the same, but leaves the fields owned by an `Update`, so that leaving one out later would not
//! remove it). Where the cache has one, the patch carries its uid (409 if it is gone, 422 if another has the name).

use candela_planner::{ApplyFailure, Child, FIELD_MANAGER, Plan, is_ours, owned_fields_differ};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::Status,
};
use serde_json::{Value, json};
use tracing::info;

use crate::{
    cache::{Key, Raw},
    context::Context,
    error::Error,
    observe::look_at,
    planted::PlantedBug,
};

/// No object has this version: versions are those of etcd, whose first belongs to the API server itself.
const CREATE_ONLY: &str = "1";

/// Whose children.
#[derive(Clone, Debug)]
pub struct Owner {
    pub key: Key,
    pub uid: String,
}

/// What became of a plan.
#[derive(Debug, Default)]
pub struct Applied {
    pub n_written: usize,
    /// The first child that the API server refused; the ones after it were left alone.
    pub failure: Option<(ApplyFailure, Error)>,
}

/// Applies in the plan's order and stops at the first child that fails.
pub async fn apply(ctx: &Context, owner: &Owner, plan: &Plan) -> Result<Applied, Error> {
    let mut applied = Applied::default();
    for child in &plan.children {
        match apply_child(ctx, owner, child).await {
            Ok(written) => applied.n_written += usize::from(written),
            Err(error) => {
                let Some(status) = error.status().filter(|status| status.code != 409) else {
                    return Err(error);
                };
                let failure = ApplyFailure {
                    kind: child.kind,
                    name: child.name().to_owned(),
                    message: status.message.clone(),
                    retryable: status.code == 429 || status.code >= 500,
                };
                applied.failure = Some((failure, error));
                break;
            }
        }
    }
    Ok(applied)
}

/// True if something was written.
async fn apply_child(ctx: &Context, owner: &Owner, child: &Child) -> Result<bool, Error> {
    let kind = child.kind;
    let key = Key::new(&owner.key.namespace, child.name());
    let object = || format!("{kind} {key}");
    let live = ctx.caches.children(kind).get(&key);
    let mut body = child.object.clone();
    if ctx.planted.has(PlantedBug::MissingOwnerReference) {
        remove(&mut body, "/metadata", "ownerReferences");
    }
    match &live {
        Some(live) => {
            let ours = is_ours(&live.value, &owner.key.name, &owner.uid);
            if !(ours || ctx.planted.has(PlantedBug::MissingOwnerReference)) {
                // The planner refuses what it sees; this one came after it looked.
                return Err(Error::Stale { object: object() });
            }
            if live.meta.deletion_timestamp.is_some() {
                // It is on its way out; its end wakes us.
                return Ok(false);
            }
            if !owned_fields_differ(&body, &live.value) {
                return Ok(false);
            }
            body["metadata"]["uid"] = json!(live.meta.uid);
        }
        None => body["metadata"]["resourceVersion"] = json!(CREATE_ONLY),
    }

    let api = ctx.children_api(kind, &key.namespace);
    if live.is_none() && ctx.planted.has(PlantedBug::RetryPostIntoDuplicate) {
        return post_until_answered(ctx, &api, child, body).await;
    }
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(&key.name, &params, &Patch::Apply(&body)).await {
        Ok(written) => {
            ctx.caches.children(kind).wrote(Raw::new(written, &kind.api_version(), kind.kind()));
            ctx.foreign.remove(kind, &key);
            ctx.metrics.wrote(kind.kind(), "apply");
            info!(kind = kind.kind(), child = %key, created = live.is_none(), "applied");
            Ok(true)
        }
        Err(kube::Error::Api(status)) if status.code == 409 || is_other_uid(&status) => {
            taken(ctx, owner, child, &key).await?;
            Err(Error::Stale { object: object() })
        }
        Err(source) => Err(Error::call("apply", object(), source)),
    }
}

/// Another object has the name by now: to the API server that is an attempt to change an immutable field.
fn is_other_uid(status: &Status) -> bool {
    status.code == 422 && status.message.contains("metadata.uid: ")
}

/// The name is taken, or the object is another than the cache says: look at it, so that the next pass knows.
async fn taken(ctx: &Context, owner: &Owner, child: &Child, key: &Key) -> Result<(), Error> {
    let cache = ctx.caches.children(child.kind);
    match look_at(ctx, &owner.key, child.kind, key).await? {
        Some(live) => {
            if is_ours(&live.value, &owner.key.name, &owner.uid) {
                // Ours without our label, or the watch is late.
                ctx.foreign.remove(child.kind, key);
                cache.wrote(live);
            } else {
                cache.forget(key);
            }
        }
        None => cache.forget(key),
    }
    Ok(())
}

/// The planted bug: a create is sent again after 504, under a name that the API server makes up.
async fn post_until_answered(
    ctx: &Context,
    api: &Api<DynamicObject>,
    child: &Child,
    mut body: Value,
) -> Result<bool, Error> {
    let kind = child.kind;
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    remove(&mut body, "/metadata", "resourceVersion");
    for attempt in 0..2 {
        if attempt > 0 {
            body["metadata"]["generateName"] = json!(format!("{}-", child.name()));
            remove(&mut body, "/metadata", "name");
        }
        let object: DynamicObject = serde_json::from_value(body.clone())
            .map_err(|source| Error::Encode { object: child.name().to_owned(), source })?;
        match api.create(&params, &object).await {
            Ok(written) => {
                ctx.caches.children(kind).wrote(Raw::new(written, &kind.api_version(), kind.kind()));
                return Ok(true);
            }
            Err(kube::Error::Api(status)) if status.code == 504 && attempt == 0 => {}
            Err(source) => return Err(Error::call("create", child.name(), source)),
        }
    }
    Ok(false)
}

fn remove(body: &mut Value, parent: &str, field: &str) {
    if let Some(Value::Object(fields)) = body.pointer_mut(parent) {
        fields.remove(field);
    }
}

#[cfg(test)]
mod tests;
