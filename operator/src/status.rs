//! `status`: one write, only if something changed, and only onto the very object that the pass was about: the PUT
//! carries its resourceVersion, so a spec that changed meanwhile makes it a conflict and the next pass begins anew.

use candela_crds::LlmDeploymentStatus;
use candela_planner::FIELD_MANAGER;
use kube::{
    Api,
    api::{DynamicObject, PostParams},
};
use tracing::info;

use crate::{
    cache::{Key, Raw},
    context::Context,
    error::Error,
    watches::{resource_api_version, resource_kind},
};

/// True if it was written.
pub async fn write_if_changed(
    ctx: &Context,
    key: &Key,
    raw: &Raw,
    previous: Option<&LlmDeploymentStatus>,
    status: &LlmDeploymentStatus,
) -> Result<bool, Error> {
    if previous == Some(status) {
        return Ok(false);
    }
    let object = || format!("status of LlmDeployment {key}");
    let encode = |source| Error::Encode { object: object(), source };
    let mut body = raw.value.clone();
    body["status"] = serde_json::to_value(status).map_err(encode)?;
    let body: DynamicObject = serde_json::from_value(body).map_err(encode)?;
    let api: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), &key.namespace, &resource_kind());
    // Whoever reads `managedFields` should see who wrote this.
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    let mut written = api
        .replace_status(&key.name, &params, &body)
        .await
        .map_err(|source| Error::call("write", object(), source))?;
    written.metadata.managed_fields = None;
    ctx.caches.resources.wrote(Raw::new(written, &resource_api_version(), "LlmDeployment"));
    ctx.metrics.wrote("LlmDeployment", "status");
    let ready =
        status.conditions.iter().find(|condition| condition.type_ == candela_crds::ConditionType::Ready);
    let reason = ready.map_or("Unknown", |condition| condition.reason.as_str());
    info!(resource = %key, generation = status.observed_generation, state = reason, "wrote the status");
    Ok(true)
}
