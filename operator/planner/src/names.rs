//! Names of children and labels: deterministic, so that a crash between two writes finds its own work again.

use std::collections::BTreeMap;

use candela_crds::LLM_DEPLOYMENT_LABEL;

use crate::OwnedKind;

/// Name of the child of this kind; of ConfigMaps, of which there is one per configuration, the part before the hash.
pub(crate) fn child(kind: OwnedKind, name: &str) -> String {
    match kind {
        OwnedKind::ConfigMap
        | OwnedKind::ServiceAccount
        | OwnedKind::Service
        | OwnedKind::NetworkPolicy
        | OwnedKind::PodDisruptionBudget
        | OwnedKind::Deployment => name.to_owned(),
    }
}

/// The rule on `metadata.name`, for objects that came past the API server's.
pub(crate) fn is_valid(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.len() <= 50
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.chars().all(inner)
}

/// What selects the pods of one LlmDeployment. Never changes: a Deployment's selector is immutable.
pub(crate) fn selector(name: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(LLM_DEPLOYMENT_LABEL.to_owned(), name.to_owned())])
}

/// Labels of every child and pod. The resource's own labels are not copied, nor is
/// `app.kubernetes.io/instance` set: Argo CD would take the children for its own and prune them.
pub(crate) fn labels(name: &str) -> BTreeMap<String, String> {
    let mut labels = selector(name);
    labels.insert("app.kubernetes.io/name".to_owned(), "candela-server".to_owned());
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "candela".to_owned());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cannot_name_a_service_are_refused() {
        for (name, ok) in
            [("chat", true), ("a", true), ("2b", false), ("a-", false), ("", false), ("A", false)]
        {
            assert_eq!(is_valid(name), ok, "{name}");
        }
        assert!(is_valid(&"a".repeat(50)) && !is_valid(&"a".repeat(51)));
    }
}
