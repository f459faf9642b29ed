//! What must hold of every plan, whatever the spec: read by each planner test and by the simulation.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Probe, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::children::{CONFIG_VOLUME, config_map_name};
use crate::{OwnedKind, Plan};

/// Each broken invariant in one sentence; empty = the plan is sound.
pub fn check_plan(plan: &Plan, owner_uid: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if !plan.complete {
        if plan.waiting.is_none() {
            notes.push("an incomplete plan does not say what it waits for".to_owned());
        }
        return notes;
    }
    identities(plan, owner_uid, &mut notes);
    match of_kind::<Deployment>(plan, OwnedKind::Deployment) {
        Some(deployment) => workload(plan, &deployment, &mut notes),
        None => notes.push("the plan has no Deployment".to_owned()),
    }
    notes
}

fn of_kind<T: DeserializeOwned>(plan: &Plan, kind: OwnedKind) -> Option<T> {
    let child = plan.children.iter().find(|child| child.kind == kind)?;
    serde_json::from_value(child.object.clone()).ok()
}

fn identities(plan: &Plan, owner_uid: &str, notes: &mut Vec<String>) {
    let mut names = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for child in &plan.children {
        let (id, metadata) = (format!("{} `{}`", child.kind, child.name()), &child.object["metadata"]);
        if !names.insert((child.kind, child.name())) {
            notes.push(format!("{id} is planned twice"));
        }
        if child.name().is_empty() || child.name().len() > 63 {
            notes.push(format!("{id} has a name that is empty or too long"));
        }
        namespaces.insert(metadata["namespace"].as_str().unwrap_or_default());
        if child.object["kind"] != child.kind.kind() || child.object["apiVersion"] != child.kind.api_version()
        {
            notes.push(format!("{id} is sent as {} {}", child.object["apiVersion"], child.object["kind"]));
        }
        let owners = metadata["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
        if !matches!(owners, [owner] if owner["uid"] == owner_uid && owner["controller"] == true) {
            notes.push(format!("{id} is not owned by the resource alone"));
        }
        if metadata["labels"].get("app.kubernetes.io/instance").is_some() {
            notes.push(format!("{id} carries app.kubernetes.io/instance, by which Argo CD would claim it"));
        }
        for generated in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"] {
            if metadata.get(generated).is_some() {
                notes.push(format!("{id} sets metadata.{generated}, which is the API server's"));
            }
        }
        if child.object.get("status").is_some() {
            notes.push(format!("{id} sets a status"));
        }
    }
    if namespaces.len() > 1 || namespaces.contains("") {
        notes.push(format!("children are in the namespaces {namespaces:?}"));
    }
}

fn workload(plan: &Plan, deployment: &Deployment, notes: &mut Vec<String>) {
    let Some(spec) = &deployment.spec else { return notes.push("the Deployment has no spec".to_owned()) };
    let template = spec.template.metadata.clone().unwrap_or_default();
    let labels = template.labels.unwrap_or_default();
    let selects = |selector: &Value| {
        let wanted: BTreeMap<String, String> = serde_json::from_value(selector.clone()).unwrap_or_default();
        !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    for child in &plan.children {
        let object = &child.object["spec"];
        let selector = match child.kind {
            OwnedKind::Deployment | OwnedKind::PodDisruptionBudget => &object["selector"]["matchLabels"],
            OwnedKind::NetworkPolicy => &object["podSelector"]["matchLabels"],
            OwnedKind::Service => &object["selector"],
            OwnedKind::ServiceAccount | OwnedKind::ConfigMap => continue,
        };
        if !selects(selector) {
            notes.push(format!("{} `{}` does not select the pods", child.kind, child.name()));
        }
    }
    let Some(pod) = &spec.template.spec else { return notes.push("the Deployment has no pod".to_owned()) };
    pod_is_restricted(pod, notes);
    volumes_are_used(pod, notes);
    ports_exist(plan, pod, notes);
    references_exist(plan, pod, notes);
    config_is_named_after_content(plan, deployment, notes);
    if let Some(rolling) = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()) {
        let zero = |value: &Option<IntOrString>| match value {
            Some(IntOrString::Int(number)) => *number == 0,
            Some(IntOrString::String(text)) => text == "0%",
            None => false,
        };
        if zero(&rolling.max_surge) && zero(&rolling.max_unavailable) {
            notes.push("the rollout may neither add nor remove a pod".to_owned());
        }
    }
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

/// PodSecurity "restricted", and no token.
fn pod_is_restricted(pod: &PodSpec, notes: &mut Vec<String>) {
    if pod.automount_service_account_token != Some(false) {
        notes.push("the pods mount a service account token".to_owned());
    }
    let context = pod.security_context.clone().unwrap_or_default();
    let seccomp = context.seccomp_profile.is_some_and(|profile| profile.type_ == "RuntimeDefault");
    if context.run_as_non_root != Some(true) || !seccomp {
        notes.push("the pod may run as root or without seccomp".to_owned());
    }
    if pod.host_network.is_some() || pod.host_pid.is_some() || pod.host_ipc.is_some() {
        notes.push("the pod shares a namespace of its node".to_owned());
    }
    for container in containers(pod) {
        let context = container.security_context.clone().unwrap_or_default();
        let drops_all = context.capabilities.is_some_and(|capabilities| {
            capabilities.drop == Some(vec!["ALL".to_owned()]) && capabilities.add.is_none()
        });
        if context.allow_privilege_escalation != Some(false)
            || context.read_only_root_filesystem != Some(true)
            || context.privileged == Some(true)
            || !drops_all
        {
            notes.push(format!("container `{}` is not restricted", container.name));
        }
    }
    for volume in pod.volumes.iter().flatten() {
        if volume.host_path.is_some() {
            notes.push(format!("volume `{}` is a folder of the node", volume.name));
        }
    }
}

fn volumes_are_used(pod: &PodSpec, notes: &mut Vec<String>) {
    let names: Vec<&str> = pod.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    if unique.len() != names.len() {
        notes.push(format!("volumes share a name: {names:?}"));
    }
    let mut mounted = BTreeSet::new();
    for container in containers(pod) {
        let mut paths = BTreeSet::new();
        for mount in container.volume_mounts.iter().flatten() {
            mounted.insert(mount.name.as_str());
            if !unique.contains(mount.name.as_str()) {
                notes.push(format!(
                    "container `{}` mounts the unknown volume `{}`",
                    container.name, mount.name
                ));
            }
            if !paths.insert(mount.mount_path.as_str()) {
                notes.push(format!("container `{}` mounts `{}` twice", container.name, mount.mount_path));
            }
        }
    }
    for name in unique.iter().filter(|name| name.starts_with("candela-") && !mounted.contains(*name)) {
        notes.push(format!("volume `{name}` is not mounted"));
    }
}

fn ports_exist(plan: &Plan, pod: &PodSpec, notes: &mut Vec<String>) {
    let ports: Vec<_> =
        pod.containers.iter().flat_map(|container| container.ports.iter().flatten()).collect();
    let exists = |wanted: &IntOrString| match wanted {
        IntOrString::Int(number) => ports.iter().any(|port| port.container_port == *number),
        IntOrString::String(name) => ports.iter().any(|port| port.name.as_ref() == Some(name)),
    };
    for port in of_kind::<Service>(plan, OwnedKind::Service)
        .and_then(|service| service.spec?.ports)
        .into_iter()
        .flatten()
    {
        if !port.target_port.as_ref().is_some_and(exists) {
            notes.push(format!("the Service's port {} leads nowhere", port.port));
        }
    }
    let probe_port = |probe: &Probe| {
        let get = probe.http_get.as_ref().map(|get| get.port.clone());
        get.or_else(|| probe.tcp_socket.as_ref().map(|socket| socket.port.clone()))
    };
    for container in &pod.containers {
        let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        for probe in probes {
            if !probe.as_ref().and_then(probe_port).as_ref().is_some_and(exists) {
                notes.push(format!("container `{}` lacks a probe, or has one on no port", container.name));
            }
        }
    }
}

/// What pods refer to among our own children is planned, and planned before them.
fn references_exist(plan: &Plan, pod: &PodSpec, notes: &mut Vec<String>) {
    let planned = |kind: OwnedKind, name: &str| {
        plan.children
            .iter()
            .take_while(|child| child.kind != OwnedKind::Deployment)
            .any(|child| child.kind == kind && child.name() == name)
    };
    if !pod.service_account_name.as_ref().is_some_and(|name| planned(OwnedKind::ServiceAccount, name)) {
        notes.push("the pods' service account is not planned before them".to_owned());
    }
    for volume in pod.volumes.iter().flatten().filter(|volume| volume.name == CONFIG_VOLUME) {
        let name = volume.config_map.as_ref().map_or("", |source| &source.name);
        if !planned(OwnedKind::ConfigMap, name) {
            notes.push(format!("ConfigMap `{name}` is not planned before the pods"));
        }
    }
}

/// One name, one content: pods roll when the configuration changes, and a restarted container reads its own.
fn config_is_named_after_content(plan: &Plan, deployment: &Deployment, notes: &mut Vec<String>) {
    let Some(config) = of_kind::<ConfigMap>(plan, OwnedKind::ConfigMap) else { return };
    let text = config.data.unwrap_or_default().remove(candela_wire::config::SERVER_CONFIG_KEY);
    let resource = deployment.metadata.name.as_deref().unwrap_or_default();
    if config.metadata.name != text.map(|text| config_map_name(resource, &text)) {
        notes.push("the ConfigMap is not named after its content".to_owned());
    }
    if config.immutable != Some(true) {
        notes.push("the ConfigMap of one configuration can be changed".to_owned());
    }
}
