//! What clients ask before they know the resources: versions, groups, resource lists.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::registry::{KINDS, Kind};

pub(super) fn answer(path: &str) -> Result<Value, ApiError> {
    let words: Vec<&str> = path.split('/').filter(|s| !s.is_empty()).collect();
    let resources = |group: &str, version: &str| {
        let of_group: Vec<&Kind> =
            KINDS.iter().filter(|k| k.group == group && k.version == version).collect();
        let list: Vec<Value> = of_group
            .iter()
            .map(|k| {
                json!({"name": k.plural, "singularName": "", "namespaced": k.namespaced, "kind": k.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"]})
            })
            .collect();
        let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
    };
    let group_of = |group: &str| {
        let version = KINDS.iter().find(|k| k.group == group)?.version;
        let entry = json!({"groupVersion": format!("{group}/{version}"), "version": version});
        Some(json!({"name": group, "versions": [entry], "preferredVersion": entry}))
    };
    let value = match words.as_slice() {
        ["version"] => Some(json!({"major": "1", "minor": "35", "gitVersion": "v1.35.0", "gitCommit": "",
            "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""})),
        ["livez" | "readyz" | "healthz"] => Some(json!("ok")),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["api", "v1"] => Some(resources("", "v1")),
        ["apis"] => {
            let mut names: Vec<&str> = KINDS.iter().map(|k| k.group).filter(|g| !g.is_empty()).collect();
            names.dedup();
            let groups: Vec<Value> = names.into_iter().filter_map(group_of).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", group] => group_of(group),
        ["apis", group, version] if KINDS.iter().any(|k| k.group == *group && k.version == *version) => {
            Some(resources(group, version))
        }
        _ => None,
    };
    value.ok_or_else(|| ApiError::injected(404))
}
