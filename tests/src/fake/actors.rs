//! What else lives in a cluster: garbage collector, namespace, deployment and replica-set controllers, a scheduler and
//! a kubelet. Each step makes at most a few writes and depends on nothing but the stored objects.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::registry::{KINDS, Kind};
use super::server::FakeCluster;
use super::store::{now, text};

/// Name of these actors in the log.
pub const CONTROLLERS: &str = "controllers";

/// What becomes of pods: given a new pod, its status. The default makes it ready at once.
type Script = Box<dyn FnMut(&Value) -> Value + Send>;

#[derive(Clone)]
pub struct Controllers {
    cluster: FakeCluster,
    script: Arc<Mutex<Script>>,
}

/// Status of a pod that runs and is ready.
pub fn ready_pod(pod: &Value) -> Value {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now()});
    let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let statuses: Vec<Value> = containers
        .iter()
        .map(|c| {
            json!({"name": c["name"], "image": c["image"], "imageID": "", "ready": true, "started": true,
                "restartCount": 0, "state": {"running": {"startedAt": now()}}})
        })
        .collect();
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    json!({"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}], "startTime": now(),
        "conditions": conditions,
        "containerStatuses": statuses})
}

/// Status of a pod that no node can take.
pub fn unschedulable_pod(message: &str) -> Value {
    json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": message, "lastTransitionTime": now()}]})
}

/// Status of a pod whose container waits for this reason.
pub fn waiting_pod(pod: &Value, reason: &str, message: &str) -> Value {
    let mut status = ready_pod(pod);
    status["phase"] = json!("Pending");
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if matches!(condition["type"].as_str(), Some("Ready" | "ContainersReady")) {
            condition["status"] = json!("False");
        }
    }
    for container in status["containerStatuses"].as_array_mut().into_iter().flatten() {
        container["ready"] = json!(false);
        container["started"] = json!(false);
        container["state"] = json!({"waiting": {"reason": reason, "message": message}});
    }
    status
}

fn meta<'v>(object: &'v Value, field: &str) -> &'v str {
    object["metadata"][field].as_str().unwrap_or_default()
}

fn path(kind: &Kind, object: &Value) -> String {
    let api = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let scope =
        if kind.namespaced { format!("/namespaces/{}", meta(object, "namespace")) } else { String::new() };
    format!("{api}/{}{scope}/{}", kind.version, kind.plural)
}

fn controller_uid(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|o| o["controller"] == true).and_then(|o| o["uid"].as_str())
}

fn owned_by(object: &Value, owner: &Value) -> bool {
    controller_uid(object) == Some(meta(owner, "uid"))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn hash_of(value: &Value) -> String {
    let hash = value.to_string().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:010x}", hash & 0xff_ffff_ffff)
}

impl Controllers {
    pub fn new(cluster: &FakeCluster) -> Self {
        let script: Script = Box::new(ready_pod);
        Self { cluster: cluster.clone(), script: Arc::new(Mutex::new(script)) }
    }

    /// Decides what becomes of pods from now on.
    pub fn script(&self, script: impl FnMut(&Value) -> Value + Send + 'static) {
        *self.script.lock().expect("scripts do not panic") = Box::new(script);
    }

    /// Works for ever; drop the future to stop.
    pub async fn run(self) {
        let mut ticks = self.cluster.ticks();
        loop {
            ticks.mark_unchanged();
            while self.step() {
                tokio::task::yield_now().await;
            }
            if ticks.changed().await.is_err() {
                return;
            }
        }
    }

    /// One round of everybody; whether anything was written.
    pub fn step(&self) -> bool {
        let before = self.cluster.version();
        self.collect_garbage();
        self.finish_namespaces();
        for deployment in self.cluster.all("Deployment") {
            self.sync_deployment(&deployment);
        }
        for pod in self.cluster.all("Pod") {
            self.sync_pod(&pod);
        }
        self.cluster.version() != before
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        self.cluster.call_as(CONTROLLERS, method, path, body)
    }

    fn delete(&self, kind: &Kind, object: &Value) {
        let options = json!({"preconditions": {"uid": meta(object, "uid")}});
        self.call("DELETE", &format!("{}/{}", path(kind, object), meta(object, "name")), &options);
    }

    /// Deletes what all owners have left, and lets go of owners that waited for their dependents.
    fn collect_garbage(&self) {
        let everything: Vec<(&Kind, Value)> =
            KINDS.iter().flat_map(|kind| self.of_kind(kind).into_iter().map(move |o| (kind, o))).collect();
        let alive: BTreeSet<&str> = everything.iter().map(|(_, object)| meta(object, "uid")).collect();
        for (kind, object) in &everything {
            let owners = object["metadata"]["ownerReferences"].as_array();
            let uids: Vec<&str> = owners.into_iter().flatten().filter_map(|o| o["uid"].as_str()).collect();
            if !uids.is_empty() && uids.iter().all(|uid| !alive.contains(uid)) {
                self.delete(kind, object);
            }
        }
        for (kind, object) in &everything {
            let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if text(object, "/metadata/deletionTimestamp").is_none()
                || !finalizers.contains(&json!("foregroundDeletion"))
            {
                continue;
            }
            let dependents: Vec<_> = everything.iter().filter(|(_, o)| owned_by(o, object)).collect();
            if dependents.is_empty() {
                let left: Vec<&Value> = finalizers.iter().filter(|f| **f != "foregroundDeletion").collect();
                let patch = json!({"metadata": {"finalizers": left}});
                self.call("PATCH", &format!("{}/{}", path(kind, object), meta(object, "name")), &patch);
            }
            for (kind, dependent) in dependents {
                self.delete(kind, dependent);
            }
        }
    }

    fn of_kind(&self, kind: &Kind) -> Vec<Value> {
        let found = self.cluster.all(kind.kind);
        found.into_iter().filter(|o| o["apiVersion"].as_str() == Some(kind.api_version().as_str())).collect()
    }

    fn finish_namespaces(&self) {
        for namespace in self.cluster.all("Namespace") {
            if text(&namespace, "/metadata/deletionTimestamp").is_none() {
                continue;
            }
            let name = meta(&namespace, "name");
            let mut left = false;
            for kind in KINDS.iter().filter(|k| k.namespaced) {
                for object in self.of_kind(kind).iter().filter(|o| meta(o, "namespace") == name) {
                    left = true;
                    self.delete(kind, object);
                }
            }
            if !left {
                self.cluster.remove_namespace(name);
            }
        }
    }

    fn sync_deployment(&self, deployment: &Value) {
        if text(deployment, "/metadata/deletionTimestamp").is_some() {
            return;
        }
        let template = &deployment["spec"]["template"];
        let hash = hash_of(template);
        let namespace = meta(deployment, "namespace");
        let name = format!("{}-{hash}", meta(deployment, "name"));
        let sets: Vec<Value> =
            self.cluster.all("ReplicaSet").into_iter().filter(|s| owned_by(s, deployment)).collect();
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let owner = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": meta(deployment, "name"),
            "uid": meta(deployment, "uid"), "controller": true, "blockOwnerDeletion": true}]);
        let Some(current) = sets.iter().find(|set| meta(set, "name") == name) else {
            let mut template = template.clone();
            template["metadata"]["labels"]["pod-template-hash"] = json!(hash);
            let mut labels = template["metadata"]["labels"].clone();
            labels["pod-template-hash"] = json!(hash);
            let set = json!({"metadata": {"name": name, "labels": labels, "ownerReferences": owner,
                    "annotations": {"deployment.kubernetes.io/revision": (sets.len() + 1).to_string()}},
                "spec": {"replicas": wanted, "selector": {"matchLabels": labels}, "template": template}});
            self.call("POST", &format!("/apis/apps/v1/namespaces/{namespace}/replicasets"), &set);
            return;
        };
        let set_path =
            |set: &Value| format!("/apis/apps/v1/namespaces/{namespace}/replicasets/{}", meta(set, "name"));
        let pods = self.cluster.all("Pod");
        let of_set = |set: &Value| -> Vec<&Value> { pods.iter().filter(|p| owned_by(p, set)).collect() };
        if current["spec"]["replicas"] != json!(wanted) {
            self.call("PATCH", &set_path(current), &json!({"spec": {"replicas": wanted}}));
        }
        self.sync_set(current, &of_set(current), wanted);
        let ready_new = of_set(current).iter().filter(|p| is_ready(p)).count() as u64;
        let mut total = of_set(current).len() as u64;
        let mut ready = ready_new;
        for old in sets.iter().filter(|set| meta(set, "name") != name) {
            let left = of_set(old);
            // Recreate stops the old ones first; a rolling update when the new ones serve.
            let recreate = deployment["spec"]["strategy"]["type"] == "Recreate";
            let keep = if recreate || ready_new >= wanted { 0 } else { left.len() as u64 };
            if old["spec"]["replicas"] != json!(keep) {
                self.call("PATCH", &set_path(old), &json!({"spec": {"replicas": keep}}));
            }
            self.sync_set(old, &left, keep);
            total += left.len() as u64;
            ready += left.iter().filter(|p| is_ready(p)).count() as u64;
        }
        self.report(deployment, current, of_set(current).len() as u64, total, ready);
    }

    fn sync_set(&self, set: &Value, pods: &[&Value], wanted: u64) {
        let namespace = meta(set, "namespace");
        for extra in pods.iter().skip(usize::try_from(wanted).unwrap_or(usize::MAX)) {
            self.delete(&KINDS[2], extra);
        }
        let taken: BTreeSet<&str> = pods.iter().map(|p| meta(p, "name")).collect();
        let mut missing = wanted.saturating_sub(pods.len() as u64);
        for index in 0.. {
            if missing == 0 {
                break;
            }
            let name = format!("{}-{index}", meta(set, "name"));
            if taken.contains(name.as_str()) {
                continue;
            }
            let template = &set["spec"]["template"];
            let pod = json!({"metadata": {"name": name, "labels": template["metadata"]["labels"],
                    "annotations": template["metadata"]["annotations"],
                    "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": meta(set, "name"),
                        "uid": meta(set, "uid"), "controller": true, "blockOwnerDeletion": true}]},
                "spec": template["spec"]});
            self.call("POST", &format!("/api/v1/namespaces/{namespace}/pods"), &pod);
            missing -= 1;
        }
    }

    fn report(&self, deployment: &Value, current: &Value, updated: u64, total: u64, ready: u64) {
        let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
        let state = |ok: bool| if ok { "True" } else { "False" };
        let old = deployment["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let condition = |kind: &str, status: &str, reason: &str, message: String| {
            let before = old.iter().find(|c| c["type"] == kind && c["status"] == status);
            let since = before.map_or_else(|| json!(now()), |c| c["lastTransitionTime"].clone());
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": since, "lastUpdateTime": since})
        };
        let done = updated == wanted && total == wanted && ready >= wanted;
        let (reason, word) = if done {
            ("NewReplicaSetAvailable", "has successfully progressed")
        } else {
            ("ReplicaSetUpdated", "is progressing")
        };
        let available = ready >= wanted;
        let availability = if available { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" };
        let mut status = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "conditions": [
                condition("Available", state(available), availability, String::new()),
                condition("Progressing", "True", reason, format!("ReplicaSet \"{}\" {word}.", meta(current, "name"))),
            ],
        });
        let counts = [
            ("replicas", total),
            ("updatedReplicas", updated),
            ("readyReplicas", ready),
            ("availableReplicas", ready),
            ("unavailableReplicas", wanted.saturating_sub(ready)),
        ];
        for (field, count) in counts {
            // A merge patch: null takes a field away.
            status[field] = if count > 0 { json!(count) } else { Value::Null };
        }
        let mut same = deployment["status"].clone();
        super::verbs::merge_into(&mut same, &status);
        if same != deployment["status"] {
            let at = format!("{}/{}/status", path(&KINDS[10], deployment), meta(deployment, "name"));
            self.call("PATCH", &at, &json!({"status": status}));
        }
    }

    fn sync_pod(&self, pod: &Value) {
        if pod["status"]["phase"] != "Pending" || pod["status"].get("conditions").is_some() {
            return;
        }
        let status = (self.script.lock().expect("scripts do not panic"))(pod);
        if status.is_null() {
            return;
        }
        let at = format!("{}/{}", path(&KINDS[2], pod), meta(pod, "name"));
        if status["conditions"][0]["status"] == "True" && pod["spec"].get("nodeName").is_none() {
            self.call("PATCH", &at, &json!({"spec": {"nodeName": "node-1"}}));
        }
        self.call("PATCH", &format!("{at}/status"), &json!({"status": status}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_becomes_ready_and_goes_with_its_owner() {
        let cluster = FakeCluster::new(Value::Null);
        let controllers = Controllers::new(&cluster);
        let labels = json!({"app": "a"});
        let deployment = json!({"metadata": {"name": "a"}, "spec": {"replicas": 2, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
        let base = "/apis/apps/v1/namespaces/default/deployments";
        cluster.must("POST", base, &deployment);
        while controllers.step() {}
        let found = cluster.get("Deployment", "default", "a").unwrap();
        assert_eq!(found["status"]["readyReplicas"], 2);
        cluster.must(
            "PATCH",
            &format!("{base}/a"),
            &json!({"spec": {"template": {"spec": {"containers":
            [{"name": "c", "image": "i:2"}]}}}}),
        );
        while controllers.step() {}
        assert_eq!(cluster.all("Pod").len(), 2);
        assert_eq!(cluster.all("ReplicaSet").len(), 2);
        cluster.must("DELETE", &format!("{base}/a"), &Value::Null);
        while controllers.step() {}
        assert_eq!(cluster.all("Pod").len() + cluster.all("ReplicaSet").len(), 0);
    }
}
