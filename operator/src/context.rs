//! What every stage of a pass can reach.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use candela_crds::Quantity;
use candela_planner::{ClusterKeys, NodeFacts, OwnedKind, Settings};
use candela_wire::internal::ProcessStatus;
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{PersistentVolumeClaim, Pod, Secret},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ObjectMeta},
    core::PartialObjectMeta,
    runtime::events::{Recorder, Reporter},
};
use parking_lot::{Mutex, RwLock};
use tokio::time::{Duration, Instant};

use crate::{
    backoff::Backoff,
    cache::{Cache, Entry, Key, Raw},
    error::Error,
    metrics::Metrics,
    planted::Planted,
    pull::Puller,
    queue::Queue,
};

/// One per process.
pub struct Context {
    /// Under the policy of `client.rs`: deadlines, bounds and the write fence hold for all calls.
    pub client: Client,
    pub caches: Caches,
    pub settings: Settings,
    pub metrics: Arc<Metrics>,
    pub recorder: Recorder,
    pub planted: Planted,
    /// Resources that want a pass.
    pub queue: Queue<Key>,
    pub backoff: Backoff<Key>,
    /// Pods whose internal status should be pulled.
    pub pulls: Queue<Key>,
    pub pull: Puller,
    pub processes: Processes,
    pub foreign: Foreign,
    pub brake: Brake,
    /// The last ones that could be read.
    pub cluster_keys: RwLock<Option<ClusterKeys>>,
}

impl Context {
    pub fn new(
        client: Client,
        settings: Settings,
        metrics: Arc<Metrics>,
        identity: &str,
        pull: Puller,
        planted: Planted,
    ) -> Arc<Self> {
        let reporter =
            Reporter { controller: "candela.dev/operator".to_owned(), instance: Some(identity.to_owned()) };
        Arc::new(Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            caches: Caches::default(),
            settings,
            metrics,
            planted,
            queue: Queue::default(),
            backoff: Backoff::default(),
            pulls: Queue::default(),
            pull,
            processes: Processes::default(),
            foreign: Foreign::default(),
            brake: Brake::default(),
            cluster_keys: RwLock::default(),
        })
    }

    /// The API of one owned kind in one namespace.
    pub(crate) fn children_api(&self, kind: OwnedKind, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &api_resource(kind))
    }
}

pub(crate) fn api_resource(kind: OwnedKind) -> ApiResource {
    ApiResource {
        group: kind.group().to_owned(),
        version: kind.version().to_owned(),
        api_version: kind.api_version(),
        kind: kind.kind().to_owned(),
        plural: kind.plural().to_owned(),
    }
}

/// Everything that is watched.
#[derive(Debug)]
pub struct Caches {
    /// The LlmDeployments themselves, unparsed: one that this build cannot read must not stop the others.
    pub resources: Cache<Raw>,
    pub children: BTreeMap<OwnedKind, Cache<Raw>>,
    pub pods: Cache<Pod>,
    pub replica_sets: Cache<ReplicaSet>,
    pub nodes: Cache<Node>,
    pub secrets: Cache<PartialObjectMeta<Secret>>,
    pub claims: Cache<PartialObjectMeta<PersistentVolumeClaim>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            resources: Cache::default(),
            children: OwnedKind::ALL.iter().map(|kind| (*kind, Cache::default())).collect(),
            pods: Cache::default(),
            replica_sets: Cache::default(),
            nodes: Cache::default(),
            secrets: Cache::default(),
            claims: Cache::default(),
        }
    }
}

impl Caches {
    pub fn children(&self, kind: OwnedKind) -> &Cache<Raw> {
        self.children.get(&kind).expect("there is a cache for each kind of the closed list")
    }

    /// An empty cache looks like "everything is gone": nothing may act before this.
    pub async fn wait_until_synced(&self) {
        self.resources.wait_until_synced().await;
        for cache in self.children.values() {
            cache.wait_until_synced().await;
        }
        self.pods.wait_until_synced().await;
        self.replica_sets.wait_until_synced().await;
        self.nodes.wait_until_synced().await;
        self.secrets.wait_until_synced().await;
        self.claims.wait_until_synced().await;
    }

    /// Kinds whose first list is not complete.
    pub fn unsynced(&self) -> Vec<&'static str> {
        let children = self.children.iter().map(|(kind, cache)| (kind.kind(), cache.is_synced()));
        let others = [
            ("LlmDeployment", self.resources.is_synced()),
            ("Pod", self.pods.is_synced()),
            ("ReplicaSet", self.replica_sets.is_synced()),
            ("Node", self.nodes.is_synced()),
            ("Secret", self.secrets.is_synced()),
            ("PersistentVolumeClaim", self.claims.is_synced()),
        ];
        children.chain(others).filter(|(_, synced)| !synced).map(|(kind, _)| kind).collect()
    }
}

/// A node, reduced to what placement asks for: heartbeats change nothing in it.
#[derive(Clone, Debug)]
pub struct Node {
    pub meta: ObjectMeta,
    pub facts: NodeFacts,
}

impl Entry for Node {
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

impl From<k8s_openapi::api::core::v1::Node> for Node {
    fn from(node: k8s_openapi::api::core::v1::Node) -> Self {
        let status = node.status.unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let cordoned = node.spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        let allocatable = status.allocatable.unwrap_or_default().into_iter();
        // Accelerators are whole numbers, memory is in bytes; nothing else is looked at.
        let amount = |name: &str, quantity: &str| match name {
            "memory" => i64::try_from(Quantity::nano(quantity)? / 1_000_000_000).ok(),
            _ if name.contains('/') => quantity.parse().ok(),
            _ => None,
        };
        let facts = NodeFacts {
            name: node.metadata.name.clone().unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            allocatable: allocatable
                .filter_map(|(name, quantity)| amount(&name, &quantity.0).map(|amount| (name, amount)))
                .collect(),
            unschedulable: cordoned || !ready,
        };
        let meta = ObjectMeta {
            name: node.metadata.name,
            uid: node.metadata.uid,
            resource_version: node.metadata.resource_version,
            ..ObjectMeta::default()
        };
        Self { meta, facts }
    }
}

/// Latest answers of pods to the pull of their internal status, by the uid of the pod.
#[derive(Debug, Default)]
pub struct Processes {
    by_pod: RwLock<HashMap<String, ProcessStatus>>,
}

impl Processes {
    pub fn get(&self, pod_uid: &str) -> Option<ProcessStatus> {
        self.by_pod.read().get(pod_uid).cloned()
    }

    /// True if the pod says something else than before, its traffic aside.
    pub fn set(&self, pod_uid: &str, status: ProcessStatus) -> bool {
        let mut by_pod = self.by_pod.write();
        let same = by_pod
            .get(pod_uid)
            .is_some_and(|known| ProcessStatus { requests: status.requests, ..known.clone() } == status);
        by_pod.insert(pod_uid.to_owned(), status);
        !same
    }

    pub fn forget(&self, pod_uid: &str) {
        self.by_pod.write().remove(pod_uid);
    }
}

/// Objects that bear a child's name and are not ours. They carry no label of ours, so no watch shows them: each is
/// read when a create meets it, and again from time to time.
#[derive(Debug, Default)]
pub struct Foreign {
    seen: Mutex<BTreeMap<(OwnedKind, Key), Look>>,
}

/// What was read, and when.
#[derive(Debug)]
struct Look {
    /// The resource in whose way it is.
    owner: Key,
    object: Arc<Raw>,
    at: Instant,
}

impl Foreign {
    /// How long a look at a foreign object is good for.
    pub const REFRESH: Duration = Duration::from_secs(30);

    pub fn set(&self, owner: &Key, kind: OwnedKind, key: Key, object: Raw) {
        let look = Look { owner: owner.clone(), object: Arc::new(object), at: Instant::now() };
        self.seen.lock().insert((kind, key), look);
    }

    pub fn remove(&self, kind: OwnedKind, key: &Key) {
        self.seen.lock().remove(&(kind, key.clone()));
    }

    /// Forgets what was in the way of a resource that is gone.
    pub fn forget(&self, key: &Key) {
        for (kind, foreign, _, _) in self.in_the_way_of(key) {
            self.remove(kind, &foreign);
        }
    }

    /// Those of a resource, with whether they should be read again.
    pub fn in_the_way_of(&self, owner: &Key) -> Vec<(OwnedKind, Key, Arc<Raw>, bool)> {
        self.seen
            .lock()
            .iter()
            .filter(|(_, look)| look.owner == *owner)
            .map(|((kind, other), look)| {
                (*kind, other.clone(), Arc::clone(&look.object), look.at.elapsed() >= Self::REFRESH)
            })
            .collect()
    }
}

/// Stops a loop that deletes children of many resources in a short time: rather a late clean-up than a wrong one.
#[derive(Debug, Default)]
pub struct Brake {
    recent: Mutex<VecDeque<(Instant, Key)>>,
}

impl Brake {
    const WINDOW: Duration = Duration::from_secs(60);
    const AT_LEAST: usize = 10;
    /// Times as many in all namespaces together.
    const OVERALL: usize = 3;

    /// Whether children of one more resource may be deleted now, out of so many resources.
    pub fn pass(&self, key: &Key, n_resources: usize) -> Result<(), Error> {
        let mut recent = self.recent.lock();
        while recent.front().is_some_and(|(at, _)| at.elapsed() >= Self::WINDOW) {
            recent.pop_front();
        }
        if recent.iter().any(|(_, other)| other == key) {
            return Ok(());
        }
        // A namespace by itself, so that one tenant's change does not hold up all others'; and all of them together.
        let most = Self::AT_LEAST.max(n_resources / 20);
        let here = recent.iter().filter(|(_, other)| other.namespace == key.namespace).count();
        if here >= most || recent.len() >= Self::OVERALL * most {
            return Err(Error::Brake { owners: if here >= most { here } else { recent.len() } });
        }
        recent.push_back((Instant::now(), key.clone()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_is_its_labels_accelerators_memory_and_whether_it_takes_pods() {
        let node = json!({
            "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": "H100"}},
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi", "nvidia.com/gpu": "4"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(node).expect("a node");
        let facts = Node::from(node).facts;
        let offers = [("memory".to_owned(), 8_589_934_592), ("nvidia.com/gpu".to_owned(), 4)];
        assert_eq!(facts.allocatable, BTreeMap::from(offers));
        assert!(!facts.unschedulable);
        assert!(Node::from(k8s_openapi::api::core::v1::Node::default()).facts.unschedulable, "not ready");
    }

    #[tokio::test(start_paused = true)]
    async fn the_brake_lets_a_few_through_and_opens_again() {
        let brake = Brake::default();
        let key = |n: usize| Key::new("ns", format!("r{n}"));
        for n in 0..10 {
            brake.pass(&key(n), 20).expect("a few are normal");
        }
        brake.pass(&key(0), 20).expect("the same resource again");
        assert!(matches!(brake.pass(&key(10), 20), Err(Error::Brake { owners: 10 })));
        brake.pass(&Key::new("other", "r"), 20).expect("another namespace");
        brake.pass(&key(10), 1000).expect("5 % of many are more");
        tokio::time::advance(Brake::WINDOW).await;
        brake.pass(&key(11), 20).expect("a minute later");
    }
}
