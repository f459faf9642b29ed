//! What the Deployment and its ReplicaSets say.

use candela_crds::{IntOrPercent, LlmDeployment, RolloutStrategy};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::{
    Observed, OwnedKind, PlanOutcome, names, observed::controller_uid, owned_fields_differ,
    resolve::wanted_replicas,
};

/// The state of the pods as a whole.
pub(super) struct Workload {
    /// Replicas that the spec wants, 0 when suspended.
    pub(super) desired: i32,
    /// True if a change starts new pods before it stops old ones.
    pub(super) surges: bool,
    pub(super) replicas: i32,
    pub(super) ready: i32,
    pub(super) updated: i32,
    /// Every child is as planned, and the Deployment's controller has acted on it.
    pub(super) children_current: bool,
    /// The Deployment's controller gave up waiting.
    pub(super) deadline_exceeded: bool,
    /// The Deployment's controller once saw the present revision complete; it stays so when a pod fails later.
    pub(super) completed: bool,
    /// Words of the API server when pods cannot be created.
    pub(super) creation_failure: Option<String>,
    /// ReplicaSets of the Deployment, newest revision first.
    pub(super) replica_sets: Vec<ReplicaSet>,
}

impl Workload {
    pub(super) fn of(cr: &LlmDeployment, outcome: &PlanOutcome, seen: &Observed) -> Self {
        let name = cr.metadata.name.as_deref().unwrap_or_default();
        let live = seen
            .child(OwnedKind::Deployment, &names::child(OwnedKind::Deployment, name))
            .filter(|live| controller_uid(live) == cr.metadata.uid.as_deref());
        let deployment: Deployment =
            live.and_then(|live| serde_json::from_value(live.clone()).ok()).unwrap_or_default();
        let status = deployment.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let condition = |type_: &str| conditions.iter().find(|condition| condition.type_ == type_);
        let observed =
            status.observed_generation.unwrap_or(0) >= deployment.metadata.generation.unwrap_or(i64::MAX);
        Self {
            desired: wanted_replicas(&cr.spec),
            surges: surges(cr),
            replicas: status.replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            updated: status.updated_replicas.unwrap_or(0),
            children_current: outcome.plan.complete
                && outcome.apply_failure.is_none()
                && observed
                && children_current(outcome, seen),
            deadline_exceeded: observed
                && condition("Progressing").is_some_and(|found| {
                    found.status == "False" && found.reason.as_deref() == Some("ProgressDeadlineExceeded")
                }),
            completed: condition("Progressing")
                .is_some_and(|found| found.reason.as_deref() == Some("NewReplicaSetAvailable")),
            creation_failure: condition("ReplicaFailure")
                .filter(|found| found.status == "True")
                .map(|found| found.message.clone().unwrap_or_default()),
            replica_sets: replica_sets(live, seen),
        }
    }

    pub(super) fn suspended(&self) -> bool {
        self.desired == 0
    }

    pub(super) fn serving(&self) -> bool {
        self.ready > 0
    }

    /// Every pod runs the present revision, no other is left, and they all answered at least once.
    pub(super) fn rolled_out(&self) -> bool {
        self.children_current
            && self.updated == self.desired
            && self.replicas == self.desired
            && (self.completed || self.ready >= self.desired)
    }

    /// Nothing is left to do.
    pub(super) fn settled(&self) -> bool {
        self.rolled_out() && self.ready == self.desired
    }

    /// The ReplicaSet of the wanted revision; unknown until the Deployment's controller has acted.
    pub(super) fn newest(&self) -> Option<&ReplicaSet> {
        self.replica_sets.first().filter(|_| self.children_current)
    }

    pub(super) fn target_revision(&self) -> Option<String> {
        self.newest().and_then(|set| set.metadata.name.clone())
    }

    /// The revision that serves: the newest one with a ready pod once it is all there, the oldest such until then.
    pub(super) fn current_revision(&self) -> Option<String> {
        let mut serving = self.replica_sets.iter().filter(|set| ready(set) > 0);
        let found = if self.rolled_out() { serving.next() } else { serving.next_back() };
        found.and_then(|set| set.metadata.name.clone())
    }

    /// True while pods of an older revision exist.
    pub(super) fn replacing(&self) -> bool {
        self.replica_sets.iter().skip(1).any(|set| replicas(set) > 0)
    }

    /// True while new pods take the place of old ones that were stopped first: until the Deployment's controller saw
    /// them all, or gave up, one that finds no room waits for what the old ones held.
    pub(super) fn replaces_in_place(&self) -> bool {
        !self.surges && self.replica_sets.len() > 1 && !self.completed && !self.deadline_exceeded
    }

    pub(super) fn is_newest(&self, pod: &Pod) -> bool {
        let hash = |labels: &Option<std::collections::BTreeMap<String, String>>| {
            labels.as_ref().and_then(|labels| labels.get("pod-template-hash").cloned())
        };
        match self.newest() {
            Some(set) => hash(&set.metadata.labels) == hash(&pod.metadata.labels),
            None => false,
        }
    }
}

fn surges(cr: &LlmDeployment) -> bool {
    let rollout = cr.spec.rollout.clone().unwrap_or_default();
    let zero = match &rollout.max_surge {
        Some(IntOrPercent::Int(number)) => *number == 0,
        Some(IntOrPercent::Percent(text)) => text == "0%",
        None => false,
    };
    rollout.strategy.unwrap_or_default() == RolloutStrategy::RollingUpdate && !zero
}

fn children_current(outcome: &PlanOutcome, seen: &Observed) -> bool {
    outcome.plan.children.iter().all(|child| {
        seen.child(child.kind, child.name()).is_some_and(|live| !owned_fields_differ(&child.object, live))
    })
}

pub(super) fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// The Deployment's own ReplicaSets, newest revision first.
fn replica_sets(deployment: Option<&Value>, seen: &Observed) -> Vec<ReplicaSet> {
    let Some(uid) = deployment.and_then(|live| live["metadata"]["uid"].as_str()) else { return Vec::new() };
    let owned =
        |set: &&ReplicaSet| set.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid);
    let revision = |set: &ReplicaSet| {
        set.metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get("deployment.kubernetes.io/revision")?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let mut sets: Vec<ReplicaSet> = seen.replica_sets.iter().filter(owned).cloned().collect();
    sets.sort_by(|a, b| revision(b).cmp(&revision(a)).then_with(|| a.metadata.name.cmp(&b.metadata.name)));
    sets
}
