//! Sets of field paths, as `metadata.managedFields[].fieldsV1` writes them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A set of paths, as a tree. A path element is kept in its written form: `f:name`, `k:{"name":"a"}`, `v:"x"`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    member: bool,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Whether the path of this node itself is in the set.
    pub fn is_member(&self) -> bool {
        self.member
    }

    pub fn children(&self) -> impl Iterator<Item = (&String, &FieldSet)> {
        self.children.iter()
    }

    pub fn child(&self, element: &str) -> Option<&FieldSet> {
        self.children.get(element)
    }

    pub fn insert(&mut self, path: &[String]) {
        match path.split_first() {
            None => self.member = true,
            Some((head, tail)) => self.children.entry(head.clone()).or_default().insert(tail),
        }
    }

    pub fn remove(&mut self, path: &[&str]) {
        match path.split_first() {
            None => self.member = false,
            Some((head, tail)) => {
                if let Some(child) = self.children.get_mut(*head) {
                    child.remove(tail);
                    if child.is_empty() {
                        self.children.remove(*head);
                    }
                }
            }
        }
    }

    /// Removes a path and all that lies below it.
    pub fn remove_tree(&mut self, path: &[&str]) {
        match path {
            [] => *self = Self::default(),
            [last] => {
                self.children.remove(*last);
            }
            [head, tail @ ..] => {
                if let Some(child) = self.children.get_mut(*head) {
                    child.remove_tree(tail);
                    if child.is_empty() {
                        self.children.remove(*head);
                    }
                }
            }
        }
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.member |= other.member;
        for (element, set) in &other.children {
            let slot = out.children.entry(element.clone()).or_default();
            *slot = slot.union(set);
        }
        out
    }

    pub fn difference(&self, other: &Self) -> Self {
        self.filter(other, |mine, theirs| mine && !theirs)
    }

    pub fn intersection(&self, other: &Self) -> Self {
        self.filter(other, |mine, theirs| mine && theirs)
    }

    fn filter(&self, other: &Self, keep: fn(bool, bool) -> bool) -> Self {
        let nothing = Self::default();
        let mut out = Self { member: keep(self.member, other.member), children: BTreeMap::new() };
        for (element, set) in &self.children {
            let kept = set.filter(other.children.get(element).unwrap_or(&nothing), keep);
            if !kept.is_empty() {
                out.children.insert(element.clone(), kept);
            }
        }
        out
    }

    /// The same set with every node that `named` accepts made a member, as structured-merge-diff's
    /// `EnsureNamedFieldsAreMembers` does: the fields of a struct cannot be told apart from the struct itself.
    pub fn with_named_members(&self, path: &mut Vec<String>, named: &dyn Fn(&[String]) -> bool) -> Self {
        let mut out = Self { member: self.member, children: BTreeMap::new() };
        for (element, set) in &self.children {
            path.push(element.clone());
            let mut child = set.with_named_members(path, named);
            child.member |= !set.children.is_empty() && named(path);
            path.pop();
            out.children.insert(element.clone(), child);
        }
        out
    }

    /// All member paths in the dotted form of conflict messages: `.data.a`, `.spec.ports[port=80]`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, prefix: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(prefix.to_owned());
        }
        for (element, set) in &self.children {
            let next = match element.split_once(':') {
                Some(("f", name)) => format!("{prefix}.{name}"),
                Some(("k", key)) => format!("{prefix}[{}]", spoken_key(key)),
                Some(("v", value)) => format!("{prefix}[={value}]"),
                _ => format!("{prefix}[{element}]"),
            };
            set.collect(&next, out);
        }
    }

    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        if self.member && !self.children.is_empty() {
            out.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, set) in &self.children {
            out.insert(element.clone(), set.to_json());
        }
        Value::Object(out)
    }

    pub fn from_json(value: &Value) -> Self {
        Self::parse(value, false)
    }

    fn parse(value: &Value, below_root: bool) -> Self {
        let mut out = Self::default();
        let Some(map) = value.as_object() else { return out };
        out.member = map.contains_key(".") || (below_root && map.is_empty());
        for (element, child) in map {
            if element != "." {
                out.children.insert(element.clone(), Self::parse(child, true));
            }
        }
        out
    }
}

/// `port=80,protocol="TCP"` from `{"port":80,"protocol":"TCP"}`.
fn spoken_key(key: &str) -> String {
    let fields: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
    fields.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_written_form_survives_a_round_trip() {
        let written = json!({"f:data": {".": {}, "f:a": {}}, "f:spec": {"f:ports": {"k:{\"port\":80}": {".": {}, "f:port": {}}}}});
        let set = FieldSet::from_json(&written);
        assert_eq!(set.to_json(), written);
        assert_eq!(set.paths(), [".data", ".data.a", ".spec.ports[port=80]", ".spec.ports[port=80].port"]);
    }

    #[test]
    fn a_difference_keeps_parents_that_still_have_children() {
        let a = FieldSet::from_json(&json!({"f:data": {".": {}, "f:a": {}, "f:b": {}}}));
        let b = FieldSet::from_json(&json!({"f:data": {".": {}, "f:a": {}}}));
        assert_eq!(a.difference(&b).to_json(), json!({"f:data": {"f:b": {}}}));
    }
}
