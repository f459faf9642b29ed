//! One watch per kind: fill the cache first, then wake whom the change concerns; deletions and what a relist shows to
//! be gone included.

use std::{fmt::Debug, sync::Arc};

use candela_crds::{GROUP, LLM_DEPLOYMENT_LABEL, LlmDeployment, VERSION};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DynamicObject, ObjectMeta},
    core::PartialObjectMeta,
    runtime::watcher::{self, Config, Event, watcher},
};
use tokio::{task::JoinSet, time::Duration};
use tracing::{debug, warn};

use crate::{
    backoff::{doubled, jittered},
    cache::{Cache, Change, Entry, Key, Raw, controller},
    context::{Context, Node, api_resource},
    error::Chain,
    metrics::KindLabels,
    planted::PlantedBug,
    queue::Priority,
};

/// Everything we create carries it.
pub const MANAGED_BY_US: &str = "app.kubernetes.io/managed-by=candela";
/// Longest pause between two attempts to open a watch.
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// `apiVersion` of the resources.
pub(crate) fn resource_api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

pub(crate) fn resource_kind() -> ApiResource {
    ApiResource::erase::<LlmDeployment>(&())
}

/// Starts all watches. `namespace` restricts them to one; nodes have none.
pub fn spawn(ctx: &Arc<Context>, namespace: Option<&str>, tasks: &mut JoinSet<&'static str>) {
    let client = ctx.client.clone();
    // Anybody may write our label on something large: small pages, and of strangers nothing but their metadata.
    let ours = Config::default().labels(MANAGED_BY_US).page_size(PAGE);
    let everything = Config::default();

    let resources = dynamic(&client, namespace, &resource_kind());
    let shared = Arc::clone(ctx);
    tasks.spawn(async move {
        let api_version = resource_api_version();
        let convert = |mut object: DynamicObject| {
            object.metadata.managed_fields = None;
            Raw::new(object, &api_version, "LlmDeployment")
        };
        let wake = |change: &Change<Raw>, priority| wake_resource(&shared, change, priority);
        let cache = &shared.caches.resources;
        follow(&shared, "LlmDeployment", watcher(resources, everything), cache, convert, wake).await
    });

    for kind in candela_planner::OwnedKind::ALL.iter().copied() {
        let api = dynamic(&client, namespace, &api_resource(kind));
        let (shared, config) = (Arc::clone(ctx), ours.clone());
        tasks.spawn(async move {
            let api_version = kind.api_version();
            let convert = |object: DynamicObject| Raw::new(without_bulk(object), &api_version, kind.kind());
            let wake = |change: &Change<Raw>, priority| wake_owner(&shared, change, priority);
            let cache = shared.caches.children(kind);
            follow(&shared, kind.kind(), watcher(api, config), cache, convert, wake).await
        });
    }

    let pods: Api<Pod> = api(&client, namespace);
    let (shared, config) = (Arc::clone(ctx), ours.clone());
    tasks.spawn(async move {
        let wake = |change: &Change<Pod>, priority| wake_for_pod(&shared, change, priority);
        let cache = &shared.caches.pods;
        follow(&shared, "Pod", watcher(pods, config), cache, without_managed_fields, wake).await
    });

    let replica_sets: Api<ReplicaSet> = api(&client, namespace);
    let (shared, config) = (Arc::clone(ctx), ours);
    tasks.spawn(async move {
        let wake = |change: &Change<ReplicaSet>, priority| wake_by_label(&shared, change, priority);
        let cache = &shared.caches.replica_sets;
        let events = watcher(replica_sets, config);
        follow(&shared, "ReplicaSet", events, cache, without_managed_fields, wake).await
    });

    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
    let shared = Arc::clone(ctx);
    tasks.spawn(async move {
        let wake = |change: &Change<Node>, _| {
            let facts = |node: &Option<Arc<Node>>| node.as_ref().map(|node| node.facts.clone());
            // Heartbeats change nothing.
            if facts(&change.old) != facts(&change.new) {
                wake_all(&shared);
            }
        };
        let events = watcher(nodes, Config::default());
        follow(&shared, "Node", events, &shared.caches.nodes, Node::from, wake).await
    });

    let secrets: Api<PartialObjectMeta<Secret>> = api(&client, namespace);
    let shared = Arc::clone(ctx);
    tasks.spawn(async move {
        let wake = |change: &Change<PartialObjectMeta<Secret>>, _| wake_users_of_secret(&shared, change);
        let cache = &shared.caches.secrets;
        let events = watcher(secrets, Config::default());
        follow(&shared, "Secret", events, cache, marks_of_secret, wake).await
    });

    let claims: Api<PartialObjectMeta<PersistentVolumeClaim>> = api(&client, namespace);
    let shared = Arc::clone(ctx);
    tasks.spawn(async move {
        let wake = |change: &Change<PartialObjectMeta<PersistentVolumeClaim>>, _| {
            wake_users_of_claim(&shared, change)
        };
        let cache = &shared.caches.claims;
        let events = watcher(claims, Config::default());
        follow(&shared, "PersistentVolumeClaim", events, cache, without_managed_fields, wake).await
    });
}

/// Follows one watch for ever; kube lists and watches again after errors, this adds the pauses.
async fn follow<K: Debug, T: Entry>(
    ctx: &Context,
    kind: &'static str,
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    cache: &Cache<T>,
    convert: impl Fn(K) -> T,
    wake: impl Fn(&Change<T>, Priority),
) -> &'static str {
    let mut events = std::pin::pin!(events);
    let mut n_failures = 0;
    let mut swallowing = false;
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                ctx.metrics.watch_errors.get_or_create(&KindLabels { kind }).inc();
                let gone = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                swallowing = gone && ctx.planted.has(PlantedBug::SwallowInStreamGone);
                n_failures += 1;
                if gone && n_failures == 1 {
                    // Nothing is wrong with the server: list again at once.
                    debug!(kind, "the watch is too old, listing again");
                    continue;
                }
                warn!(kind, error = %Chain(&error), "watch failed");
                tokio::time::sleep(jittered(doubled(n_failures, MAX_PAUSE))).await;
                continue;
            }
        };
        match event {
            Event::Init | Event::InitApply(_) | Event::InitDone if swallowing => {
                swallowing = !matches!(event, Event::InitDone);
                continue;
            }
            // Opening a watch is no success yet: only what came over it is.
            Event::Init => cache.relist_started(),
            Event::InitApply(object) => cache.relisted(convert(object)),
            Event::InitDone => {
                n_failures = 0;
                for change in cache.relist_finished() {
                    wake(&change, Priority::Sweep);
                }
            }
            Event::Apply(object) => {
                n_failures = 0;
                if let Some(change) = cache.applied(convert(object)) {
                    wake(&change, Priority::Normal);
                }
            }
            Event::Delete(object) => {
                n_failures = 0;
                if let Some(change) = cache.deleted(&convert(object)) {
                    wake(&change, Priority::Normal);
                }
            }
        }
        let n_objects = i64::try_from(cache.len()).unwrap_or(i64::MAX);
        ctx.metrics.cached_objects.get_or_create(&KindLabels { kind }).set(n_objects);
    }
    kind
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn dynamic(client: &Client, namespace: Option<&str>, kind: &ApiResource) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, kind),
        None => Api::all_with(client.clone(), kind),
    }
}

/// Objects in one page of a list.
const PAGE: u32 = 50;
/// Bytes of a child's content, as JSON; ours have a few thousand.
const MAX_CONTENT_BYTES: usize = 256 << 10;

/// A child as it came, or its metadata alone where it is not a child of an LlmDeployment, or is larger than any that we
/// write: applying it anew is all that could follow from its content.
fn without_bulk(mut object: DynamicObject) -> DynamicObject {
    let ours = controller(&object.metadata).is_some_and(|owner| owner.kind == "LlmDeployment");
    let bytes = |value: &serde_json::Value| serde_json::to_vec(value).map_or(usize::MAX, |text| text.len());
    if !ours || bytes(&object.data) > MAX_CONTENT_BYTES {
        object.data = serde_json::json!({});
    }
    let fields = serde_json::to_value(&object.metadata.managed_fields);
    if fields.is_ok_and(|fields| bytes(&fields) > MAX_CONTENT_BYTES) {
        object.metadata.managed_fields = None;
    }
    object
}

fn without_managed_fields<K: Resource>(mut object: K) -> K {
    object.meta_mut().managed_fields = None;
    object
}

/// What Candela asks of a Secret, and no more: `kubectl apply` leaves a copy of the data in an annotation.
fn marks_of_secret(mut object: PartialObjectMeta<Secret>) -> PartialObjectMeta<Secret> {
    object.metadata.managed_fields = None;
    object.metadata.labels.get_or_insert_default().retain(|key, _| key == candela_crds::USABLE_LABEL);
    object
        .metadata
        .annotations
        .get_or_insert_default()
        .retain(|key, _| key == candela_crds::HOSTS_ANNOTATION);
    object
}

fn both<T: Entry>(change: &Change<T>) -> impl Iterator<Item = &ObjectMeta> {
    change.old.iter().chain(&change.new).map(|object| object.meta())
}

fn wake_resource(ctx: &Context, change: &Change<Raw>, priority: Priority) {
    for meta in both(change).take(1) {
        let key = Key::of(meta);
        if change.new.is_none() {
            ctx.backoff.reset(&key);
            ctx.queue.forget(&key);
            ctx.foreign.forget(&key);
        } else {
            ctx.queue.add(key, priority);
        }
    }
}

fn wake_owner(ctx: &Context, change: &Change<Raw>, priority: Priority) {
    for meta in both(change) {
        let namespace = meta.namespace.clone().unwrap_or_default();
        if let Some(owner) = controller(meta)
            && owner.kind == "LlmDeployment"
            && owner.api_version.split('/').next() == Some(GROUP)
        {
            ctx.queue.add(Key::new(namespace.clone(), &owner.name), priority);
        }
        // Also who is named in the label: the owner reference may have been removed, or belong to a predecessor.
        if let Some(name) = label(meta) {
            ctx.queue.add(Key::new(namespace, name), priority);
        }
    }
}

fn wake_by_label<T: Entry>(ctx: &Context, change: &Change<T>, priority: Priority) {
    for meta in both(change) {
        if let Some(name) = label(meta) {
            ctx.queue.add(Key::new(meta.namespace.clone().unwrap_or_default(), name), priority);
        }
    }
}

fn wake_for_pod(ctx: &Context, change: &Change<Pod>, priority: Priority) {
    wake_by_label(ctx, change, priority);
    match (&change.old, &change.new) {
        (_, Some(pod)) => ctx.pulls.add(Key::of(&pod.metadata), Priority::Normal),
        (Some(pod), None) => {
            ctx.processes.forget(pod.metadata.uid.as_deref().unwrap_or_default());
            ctx.pulls.forget(&Key::of(&pod.metadata));
        }
        (None, None) => {}
    }
}

pub(crate) fn wake_all(ctx: &Context) {
    for resource in ctx.caches.resources.all() {
        ctx.queue.add(Key::of(&resource.meta), Priority::Sweep);
    }
}

fn wake_users_of_secret(ctx: &Context, change: &Change<PartialObjectMeta<Secret>>) {
    wake_users(ctx, change, |resource, secret| {
        resource.value.pointer("/spec/model/credentialsRef/name").and_then(|name| name.as_str())
            == Some(secret)
    });
}

fn wake_users_of_claim(ctx: &Context, change: &Change<PartialObjectMeta<PersistentVolumeClaim>>) {
    wake_users(ctx, change, |resource, claim| {
        let uri = resource.value.pointer("/spec/model/uri").and_then(|uri| uri.as_str()).unwrap_or_default();
        uri.strip_prefix("pvc://").and_then(|rest| rest.split('/').next()) == Some(claim)
    });
}

fn wake_users<T: Entry>(ctx: &Context, change: &Change<T>, uses: impl Fn(&Raw, &str) -> bool) {
    let Some(meta) = both(change).next() else { return };
    let (Some(namespace), Some(name)) = (meta.namespace.as_deref(), meta.name.as_deref()) else { return };
    for resource in ctx.caches.resources.in_namespace(namespace) {
        if uses(&resource, name) {
            ctx.queue.add(Key::of(&resource.meta), Priority::Normal);
        }
    }
}

fn label(meta: &ObjectMeta) -> Option<&str> {
    meta.labels.as_ref()?.get(LLM_DEPLOYMENT_LABEL).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config_map(owner: &str, content: &str) -> DynamicObject {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {
                "name": "a", "namespace": "ns", "uid": "1", "resourceVersion": "1",
                "ownerReferences": [{"apiVersion": "x/v1", "kind": owner, "name": "o", "uid": "2", "controller": true}],
            },
            "data": {"a": content},
        });
        serde_json::from_value(object).expect("an object")
    }

    #[test]
    fn of_strangers_and_of_giants_only_the_metadata_is_kept() {
        let kept = |object: DynamicObject| Raw::new(without_bulk(object), "v1", "ConfigMap").value;
        assert_eq!(kept(config_map("LlmDeployment", "x"))["data"]["a"], "x");
        for large in [config_map("Job", "x"), config_map("LlmDeployment", &"x".repeat(1 << 20))] {
            let kept = kept(large);
            assert_eq!(kept["data"], Value::Null);
            assert_eq!((&kept["kind"], &kept["metadata"]["uid"]), (&json!("ConfigMap"), &json!("1")));
        }
    }
}
