//! Who may reach the pods, and what they may reach. Enforcement is the network plugin's.
//!
//! The API is open to the same namespace, to the operator's namespace (the gateway lives there) and to namespaces
//! labelled `candela.dev/access: "true"`; the internal listener to the operator's namespace and to namespaces
//! labelled `candela.dev/metrics: "true"`. Out go DNS and, where weights are fetched or the image is foreign, the
//! ports of the source: an address cannot be written down, since a hub redirects to hosts of its own choice.

use std::collections::{BTreeMap, BTreeSet};

use candela_crds::{EngineName, NetworkPolicyMode};
use candela_wire::config::{HTTP_PORT, INTERNAL_PORT};
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{OwnedKind, Resolved, models::Source};

/// Namespaces with this label (value `true`) may call the API.
pub(crate) const ACCESS_LABEL: &str = "candela.dev/access";
/// Namespaces with this label (value `true`) may scrape metrics.
pub(crate) const METRICS_LABEL: &str = "candela.dev/metrics";

pub(super) fn network_policy(resolved: &Resolved) -> Option<NetworkPolicy> {
    let mode = resolved.spec.access.as_ref().and_then(|access| access.network_policy).unwrap_or_default();
    if mode == NetworkPolicyMode::None {
        return None;
    }
    let same_namespace =
        NetworkPolicyPeer { pod_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() };
    let operator = namespaces("kubernetes.io/metadata.name", &resolved.operator_namespace);
    let mut ingress = vec![NetworkPolicyIngressRule {
        from: Some(vec![same_namespace, operator.clone(), namespaces(ACCESS_LABEL, "true")]),
        ports: Some(vec![port("TCP", HTTP_PORT)]),
    }];
    if resolved.engine == EngineName::Candle {
        ingress.push(NetworkPolicyIngressRule {
            from: Some(vec![operator, namespaces(METRICS_LABEL, "true")]),
            ports: Some(vec![port("TCP", INTERNAL_PORT)]),
        });
    }
    let mut egress =
        vec![NetworkPolicyEgressRule { ports: Some(vec![port("UDP", 53), port("TCP", 53)]), to: None }];
    let sources = source_ports(resolved);
    if !sources.is_empty() {
        let ports = sources.into_iter().map(|number| port("TCP", number)).collect();
        egress.push(NetworkPolicyEgressRule { ports: Some(ports), to: None });
    }
    Some(NetworkPolicy {
        metadata: super::metadata(resolved, OwnedKind::NetworkPolicy),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(super::label_selector(resolved)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress),
            egress: Some(egress),
        }),
    })
}

/// Ports that weights come from. A foreign image may fetch by itself, which is assumed to be HTTPS.
fn source_ports(resolved: &Resolved) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    for model in resolved.models() {
        if let Source::Fetched { port, .. } = &model.source {
            ports.extend([*port, 443]);
        }
    }
    if resolved.engine == EngineName::Custom {
        ports.insert(443);
    }
    ports
}

fn namespaces(label: &str, value: &str) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector {
            match_labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
            ..LabelSelector::default()
        }),
        ..NetworkPolicyPeer::default()
    }
}

fn port(protocol: &str, number: u16) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(i32::from(number))),
        ..NetworkPolicyPort::default()
    }
}
