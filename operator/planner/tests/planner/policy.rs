//! The rendered NetworkPolicies, judged by an evaluator of the API's semantics: the test cluster stores policies but
//! enforces none, so what they would do is proved here.

use std::collections::BTreeMap;

use candela_planner::OwnedKind;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::fixtures::planned;

type Labels = BTreeMap<String, String>;

/// The other end of a connection.
enum Other {
    Pod {
        namespace: &'static str,
        namespace_labels: Labels,
        labels: Labels,
    },
    /// Outside the cluster.
    Address,
}

fn pod(namespace: &'static str, extra: &[(&str, &str)]) -> Other {
    let mut labels = Labels::from([("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())]);
    labels.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Other::Pod {
        namespace,
        namespace_labels: labels,
        labels: Labels::from([("app".to_owned(), "client".to_owned())]),
    }
}

fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    assert!(selector.match_expressions.is_none(), "the evaluator knows matchLabels only");
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn is_peer(peer: &NetworkPolicyPeer, policy_namespace: &str, other: &Other) -> bool {
    assert!(peer.ip_block.is_none(), "the evaluator knows no ipBlock");
    let Other::Pod { namespace, namespace_labels, labels } = other else { return false };
    let namespace_fits = match &peer.namespace_selector {
        Some(selector) => selects(selector, namespace_labels),
        None => *namespace == policy_namespace,
    };
    namespace_fits && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, labels))
}

fn is_port(port: &NetworkPolicyPort, protocol: &str, number: u16) -> bool {
    let end = port.end_port.unwrap_or(0);
    let fits = match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => {
            let number = i32::from(number);
            number == *first || (end > 0 && (*first..=end).contains(&number))
        }
        Some(IntOrString::String(name)) => panic!("the evaluator knows no named ports: {name}"),
    };
    fits && port.protocol.as_deref().unwrap_or("TCP") == protocol
}

/// Absent or empty lists of peers and of ports mean all of them; a direction without rules admits nothing.
fn rule_admits(
    peers: Option<&Vec<NetworkPolicyPeer>>,
    ports: Option<&Vec<NetworkPolicyPort>>,
    namespace: &str,
    other: &Other,
    protocol: &str,
    number: u16,
) -> bool {
    let any_peer = peers.is_none_or(Vec::is_empty);
    let any_port = ports.is_none_or(Vec::is_empty);
    (any_peer || peers.into_iter().flatten().any(|peer| is_peer(peer, namespace, other)))
        && (any_port || ports.into_iter().flatten().any(|port| is_port(port, protocol, number)))
}

struct Evaluated {
    policy: NetworkPolicy,
}

impl Evaluated {
    fn of(spec: &str) -> Self {
        let policy = planned(spec, OwnedKind::NetworkPolicy).unwrap();
        Self { policy: serde_json::from_value(policy).unwrap() }
    }

    fn lets_in(&self, from: &Other, port: u16) -> bool {
        let spec = self.policy.spec.as_ref().unwrap();
        assert!(spec.policy_types.as_ref().unwrap().contains(&"Ingress".to_owned()));
        let rules = spec.ingress.iter().flatten();
        rules.into_iter().any(|rule| {
            rule_admits(rule.from.as_ref(), rule.ports.as_ref(), self.namespace(), from, "TCP", port)
        })
    }

    fn lets_out(&self, to: &Other, protocol: &str, port: u16) -> bool {
        let spec = self.policy.spec.as_ref().unwrap();
        assert!(spec.policy_types.as_ref().unwrap().contains(&"Egress".to_owned()));
        let rules = spec.egress.iter().flatten();
        rules.into_iter().any(|rule| {
            rule_admits(rule.to.as_ref(), rule.ports.as_ref(), self.namespace(), to, protocol, port)
        })
    }

    fn namespace(&self) -> &str {
        self.policy.metadata.namespace.as_deref().unwrap()
    }
}

#[test]
fn the_api_is_open_to_those_who_should_call_it() {
    for spec in ["{}", "{model: {}, engine: {name: Custom, image: x}}"] {
        let policy = Evaluated::of(spec);
        assert!(policy.lets_in(&pod("team", &[]), 8080), "the same namespace");
        assert!(policy.lets_in(&pod("candela-system", &[]), 8080), "the operator's namespace");
        assert!(
            policy.lets_in(&pod("web", &[("candela.dev/access", "true")]), 8080),
            "a namespace that was let in"
        );
        assert!(!policy.lets_in(&pod("web", &[("candela.dev/access", "false")]), 8080));
        assert!(!policy.lets_in(&pod("web", &[]), 8080), "any other namespace");
        assert!(!policy.lets_in(&Other::Address, 8080), "from outside");
    }
}

#[test]
fn the_internal_listener_is_for_the_operator_and_metrics_alone() {
    let policy = Evaluated::of("{}");
    assert!(policy.lets_in(&pod("candela-system", &[]), 9090));
    assert!(policy.lets_in(&pod("monitoring", &[("candela.dev/metrics", "true")]), 9090));
    assert!(!policy.lets_in(&pod("team", &[]), 9090), "not even the same namespace");
    assert!(!policy.lets_in(&pod("web", &[("candela.dev/access", "true")]), 9090));
    assert!(!policy.lets_in(&pod("monitoring", &[("candela.dev/metrics", "true")]), 8080));
    for port in [22, 80, 443, 10250] {
        assert!(!policy.lets_in(&pod("candela-system", &[]), port), "{port}");
    }
    let custom = Evaluated::of("{model: {}, engine: {name: Custom, image: x}}");
    assert!(!custom.lets_in(&pod("candela-system", &[]), 9090), "a foreign image has no such listener");
}

#[test]
fn pods_reach_names_and_their_source_and_nothing_else() {
    let anywhere = [pod("team", &[]), pod("kube-system", &[]), Other::Address];
    for (spec, tcp) in [
        ("{}", &[53][..]),
        ("{model: {uri: 'pvc://weights/x'}}", &[53]),
        ("{model: {uri: 'hf://a/b'}}", &[53, 443]),
        ("{model: {uri: 'http://h:8000/m.gguf'}}", &[53, 443, 8000]),
        ("{model: {}, engine: {name: Custom, image: x}}", &[53, 443]),
    ] {
        let policy = Evaluated::of(spec);
        for to in &anywhere {
            assert!(policy.lets_out(to, "UDP", 53), "{spec}");
            for port in [22, 53, 80, 443, 2379, 5432, 6443, 8000, 8080, 10250] {
                assert_eq!(policy.lets_out(to, "TCP", port), tcp.contains(&port), "{spec}: {port}");
            }
            assert!(!policy.lets_out(to, "UDP", 443), "{spec}");
        }
    }
}
