//! `observe`: the caches as one LlmDeployment sees them. No call to the API server, save for a second look at
//! foreign objects that no watch shows.

use std::collections::{BTreeMap, BTreeSet};

use candela_crds::{LLM_DEPLOYMENT_LABEL, LlmDeployment};
use candela_planner::{Observed, OwnedKind, SecretFacts, is_ours};
use kube::ResourceExt as _;

use crate::{
    cache::{Entry, Key, Raw, controller},
    context::Context,
    error::Error,
};

/// What the planner gets to see.
pub fn observe(ctx: &Context, key: &Key, resource: &LlmDeployment) -> Observed {
    let uid = resource.metadata.uid.as_deref().unwrap_or_default();
    let caches = &ctx.caches;
    let mut children: BTreeMap<OwnedKind, Vec<serde_json::Value>> = BTreeMap::new();
    for kind in OwnedKind::ALL.iter().copied() {
        let cache = caches.children(kind);
        let mut objects: BTreeMap<Key, serde_json::Value> = BTreeMap::new();
        for object in cache.owned_by(uid).into_iter().chain(cache.named_after(key)) {
            objects.entry(Key::of(&object.meta)).or_insert_with(|| object.value.clone());
        }
        for (foreign_kind, foreign_key, object, _) in ctx.foreign.in_the_way_of(key) {
            if foreign_kind == kind {
                objects.entry(foreign_key).or_insert_with(|| object.value.clone());
            }
        }
        children.insert(kind, objects.into_values().collect());
    }

    let ours = |meta: &kube::api::ObjectMeta| {
        meta.labels.as_ref().and_then(|labels| labels.get(LLM_DEPLOYMENT_LABEL)) == Some(&key.name)
    };
    // Labels are copied by hand and by Jobs: what is counted is what our Deployment has made.
    let deployments: BTreeSet<&str> = children
        .get(&OwnedKind::Deployment)
        .into_iter()
        .flatten()
        .filter(|object| is_ours(object, &key.name, uid))
        .filter_map(|object| object["metadata"]["uid"].as_str())
        .collect();
    let made_by = |meta: &kube::api::ObjectMeta, kind: &str, uids: &BTreeSet<&str>| {
        controller(meta).is_some_and(|owner| owner.kind == kind && uids.contains(owner.uid.as_str()))
    };
    let replica_sets: Vec<_> = caches
        .replica_sets
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|set| ours(&set.metadata) && made_by(&set.metadata, "Deployment", &deployments))
        .map(|set| (*set).clone())
        .collect();
    let sets: BTreeSet<&str> = replica_sets.iter().filter_map(|set| set.metadata.uid.as_deref()).collect();
    let pods: Vec<_> = caches
        .pods
        .in_namespace(&key.namespace)
        .into_iter()
        .filter(|pod| ours(&pod.metadata) && made_by(&pod.metadata, "ReplicaSet", &sets))
        .map(|pod| (*pod).clone())
        .collect();
    let processes = pods
        .iter()
        .filter_map(|pod| {
            let status = ctx.processes.get(pod.metadata.uid.as_deref()?)?;
            Some((pod.name_any(), status))
        })
        .collect();
    // Large clusters have many nodes; only accelerators and memory are looked up among them.
    let nodes = if resource.spec.accelerator.is_some() || resource.spec.resources.is_some() {
        caches.nodes.all().iter().map(|node| node.facts.clone()).collect()
    } else {
        Vec::new()
    };
    let models = std::iter::once(&resource.spec.model).chain(&resource.spec.additional_models);
    let secrets = models
        .filter_map(|model| model.credentials_ref.as_ref())
        .filter_map(|reference| {
            let secret = caches.secrets.get(&Key::new(&key.namespace, &reference.name))?;
            let facts = SecretFacts {
                labels: secret.metadata.labels.clone().unwrap_or_default(),
                annotations: secret.metadata.annotations.clone().unwrap_or_default(),
            };
            Some((reference.name.clone(), facts))
        })
        .collect();
    let claims = caches
        .claims
        .in_namespace(&key.namespace)
        .iter()
        .filter_map(|claim| claim.meta().name.clone())
        .collect();
    let cluster_keys = ctx.cluster_keys.read().clone();
    Observed { children, pods, replica_sets, nodes, secrets, claims, processes, cluster_keys }
}

/// Looks again at the foreign objects in this resource's way whose last look is old.
pub async fn refresh_foreign(ctx: &Context, key: &Key) -> Result<(), Error> {
    for (kind, foreign, _, stale) in ctx.foreign.in_the_way_of(key) {
        if stale {
            look_at(ctx, key, kind, &foreign).await?;
        }
    }
    Ok(())
}

/// Reads one object that the watches do not show, and remembers what it is.
pub(crate) async fn look_at(
    ctx: &Context,
    owner: &Key,
    kind: OwnedKind,
    key: &Key,
) -> Result<Option<Raw>, Error> {
    let api = ctx.children_api(kind, &key.namespace);
    let live =
        api.get_opt(&key.name).await.map_err(|source| Error::call("get", format!("{kind} {key}"), source))?;
    let live = live.map(|object| Raw::new(object, &kind.api_version(), kind.kind()));
    match &live {
        Some(object) => ctx.foreign.set(owner, kind, key.clone(), object.clone()),
        None => ctx.foreign.remove(kind, key),
    }
    Ok(live)
}
