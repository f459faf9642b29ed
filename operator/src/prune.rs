//! `prune`: deletes children that a complete plan no longer has. Candidates are found by the uid of their controller,
//! never by label or name; each delete carries the uid and version that were seen.

use candela_planner::{OwnedKind, Plan};
use kube::api::{DeleteParams, Preconditions};
use tracing::info;

use crate::{
    apply::Owner,
    cache::{Key, Raw},
    context::Context,
    error::Error,
    planted::PlantedBug,
};

/// Deletes what is ours and not in the plan. The caller has applied the whole plan; a partial one is refused here
/// once more, because the price of a mistake is a model that stops serving.
pub async fn prune(ctx: &Context, owner: &Owner, plan: &Plan) -> Result<usize, Error> {
    if !plan.complete && !ctx.planted.has(PlantedBug::PruneAfterPartialPlan) {
        return Ok(0);
    }
    let mut n_deleted = 0;
    // Against the order of creation: pods go before what they mount.
    for kind in OwnedKind::ALL.iter().rev().copied() {
        let cache = ctx.caches.children(kind);
        for live in cache.owned_by(&owner.uid) {
            let key = Key::of(&live.meta);
            let wanted = plan.children.iter().any(|child| child.kind == kind && child.name() == key.name);
            let kept = plan.kept.contains(&(kind, key.name.clone()));
            if wanted || kept || live.meta.deletion_timestamp.is_some() {
                continue;
            }
            if interrupts(kind) {
                ctx.brake.pass(&owner.key, ctx.caches.resources.len())?;
            }
            delete(ctx, kind, &key, &live).await?;
            n_deleted += 1;
        }
    }
    Ok(n_deleted)
}

/// Whether a wrong delete could be felt by clients. The others come and go in normal work: a budget with the second
/// replica, a ConfigMap with each configuration, after the last pod that reads it.
fn interrupts(kind: OwnedKind) -> bool {
    match kind {
        OwnedKind::ConfigMap | OwnedKind::PodDisruptionBudget => false,
        OwnedKind::ServiceAccount | OwnedKind::Service | OwnedKind::NetworkPolicy | OwnedKind::Deployment => {
            true
        }
    }
}

async fn delete(ctx: &Context, kind: OwnedKind, key: &Key, live: &Raw) -> Result<(), Error> {
    let cache = ctx.caches.children(kind);
    let uid = live.meta.uid.clone().unwrap_or_default();
    let mut params = DeleteParams::background();
    if !ctx.planted.has(PlantedBug::DeleteWithoutUidPrecondition) {
        params = params.preconditions(Preconditions {
            uid: live.meta.uid.clone(),
            resource_version: live.meta.resource_version.clone(),
        });
    }
    let answer = ctx.children_api(kind, &key.namespace).delete(&key.name, &params).await;
    match answer {
        Ok(answer) => match answer.left() {
            // Finalizers hold it: it is still there, marked.
            Some(object) if object.metadata.deletion_timestamp.is_some() => {
                cache.wrote(Raw::new(object, &kind.api_version(), kind.kind()));
            }
            _ => cache.wrote_deletion(key, &uid),
        },
        Err(kube::Error::Api(status)) if status.code == 404 => {
            cache.wrote_deletion(key, &uid);
            return Ok(());
        }
        // Somebody changed it, or it is another object by now: look again.
        Err(source) => return Err(Error::call("delete", format!("{kind} {key}"), source)),
    }
    ctx.metrics.wrote(kind.kind(), "delete");
    info!(kind = kind.kind(), child = %key, "deleted, no longer wanted");
    Ok(())
}
