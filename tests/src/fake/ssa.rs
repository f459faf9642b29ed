//! Field ownership: who set what, for applies and for updates.

use serde_json::{Value, json};

use super::fields::FieldSet;
use super::merge::{self, Unmergeable};
use super::schema::Place;

/// One entry of `metadata.managedFields`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: Option<String>,
    pub time: String,
    pub fields: FieldSet,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Apply,
    Update,
}

impl Manager {
    fn same_as(&self, other: &Manager) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && self.api_version == other.api_version
    }
}

/// Who does it, and when.
#[derive(Clone, Debug)]
pub struct Actor<'a> {
    pub manager: &'a str,
    pub subresource: Option<&'a str>,
    pub api_version: &'a str,
    pub now: &'a str,
    /// Fields that this endpoint resets, and so nobody owns through it: `f:status` on the main resource.
    pub resets: &'a [&'a str],
    /// What an object of the kind is before anybody sets a field.
    pub empty: &'a Value,
}

impl Actor<'_> {
    fn entry(&self, operation: Operation, mut fields: FieldSet) -> Manager {
        for field in self.resets {
            fields.remove_tree(&[field]);
        }
        Manager {
            name: self.manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.map(str::to_owned),
            time: self.now.to_owned(),
            fields,
        }
    }
}

/// Why an apply is refused.
#[derive(Debug, PartialEq)]
pub enum Refused {
    /// Other managers own these with other values.
    Conflicts(Vec<(Manager, FieldSet)>),
    Unmergeable(Unmergeable),
}

impl From<Unmergeable> for Refused {
    fn from(error: Unmergeable) -> Self {
        Refused::Unmergeable(error)
    }
}

/// Fields that are never owned, because every writer sends them or only the server sets them.
fn strip_meta(set: &mut FieldSet) {
    for path in [
        vec!["f:apiVersion"],
        vec!["f:kind"],
        vec!["f:metadata"],
        vec!["f:metadata", "f:name"],
        vec!["f:metadata", "f:namespace"],
        vec!["f:metadata", "f:creationTimestamp"],
        vec!["f:metadata", "f:uid"],
        vec!["f:metadata", "f:generation"],
        vec!["f:metadata", "f:resourceVersion"],
        vec!["f:metadata", "f:selfLink"],
    ] {
        set.remove(&path);
    }
    set.remove_tree(&["f:metadata", "f:managedFields"]);
}

pub fn read_managers(object: &Value) -> Vec<Manager> {
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    entries
        .into_iter()
        .flatten()
        .map(|entry| Manager {
            name: text(entry, "manager").unwrap_or_default(),
            operation: match text(entry, "operation").as_deref() {
                Some("Apply") => Operation::Apply,
                _ => Operation::Update,
            },
            api_version: text(entry, "apiVersion").unwrap_or_default(),
            subresource: text(entry, "subresource"),
            time: text(entry, "time").unwrap_or_default(),
            fields: entry.get("fieldsV1").map(FieldSet::from_json).unwrap_or_default(),
        })
        .collect()
}

/// Writes the entries in the server's order: applies first, then by time, name and subresource.
pub fn write_managers(object: &mut Value, managers: &[Manager]) {
    let mut sorted: Vec<_> = managers.iter().collect();
    sorted.sort_by_key(|m| {
        (
            m.operation == Operation::Update,
            m.time.clone(),
            m.name.clone(),
            m.api_version.clone(),
            m.subresource.clone(),
        )
    });
    let entries: Vec<Value> = sorted
        .iter()
        .map(|m| {
            let mut entry = json!({
                "manager": m.name,
                "operation": match m.operation { Operation::Apply => "Apply", Operation::Update => "Update" },
                "apiVersion": m.api_version,
                "time": m.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": m.fields.to_json(),
            });
            if let Some(subresource) = &m.subresource {
                entry["subresource"] = json!(subresource);
            }
            entry
        })
        .collect();
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
        if !entries.is_empty() {
            meta.insert("managedFields".to_owned(), Value::Array(entries));
        }
    }
}

fn without_managers(object: &Value) -> Value {
    let mut out = object.clone();
    if let Some(meta) = out.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("managedFields");
    }
    out
}

/// Takes what `old` → `new` changed away from everyone but `me`; with conflicts when `force` is off.
fn take(
    place: Place<'_>,
    old: &Value,
    new: &Value,
    managers: &mut Vec<Manager>,
    me: &Manager,
    force: bool,
) -> Result<merge::Comparison, Refused> {
    let found = merge::compare(place, old, new)?;
    let changed = found.modified.union(&found.added);
    let conflicts: Vec<(Manager, FieldSet)> = managers
        .iter()
        .filter(|m| !m.same_as(me))
        .map(|m| (m.clone(), m.fields.intersection(&changed)))
        .filter(|(_, set)| !set.is_empty())
        .collect();
    if !force && !conflicts.is_empty() {
        return Err(Refused::Conflicts(conflicts));
    }
    for manager in managers.iter_mut().filter(|m| !m.same_as(me)) {
        manager.fields = manager.fields.difference(&changed).difference(&found.removed);
    }
    managers.retain(|m| m.same_as(me) || !m.fields.is_empty());
    Ok(found)
}

/// Ownership after a plain write of `new` over `old`.
pub fn update(place: Place<'_>, old: &Value, new: &mut Value, actor: &Actor<'_>) -> Result<(), Refused> {
    let mut managers = read_managers(old);
    // An object without owners stays so until somebody applies.
    if managers.is_empty() && old.pointer("/metadata/uid").is_some() {
        write_managers(new, &managers);
        return Ok(());
    }
    let (old, plain) = (without_managers(old), without_managers(new));
    let mut me = actor.entry(Operation::Update, FieldSet::default());
    let found = take(place, &old, &plain, &mut managers, &me, true)?;
    let position = managers.iter().position(|m| m.same_as(&me));
    let before = position.map(|at| managers.remove(at));
    let had = before.as_ref().map(|m| m.fields.clone()).unwrap_or_default();
    me.fields = had.difference(&found.removed).union(&found.modified).union(&found.added);
    for field in actor.resets {
        me.fields.remove_tree(&[field]);
    }
    strip_meta(&mut me.fields);
    // The time of an entry moves only when its fields or their values do.
    let changed = !found.modified.is_empty() || !found.added.is_empty() || !found.removed.is_empty();
    if let (Some(before), false) = (before, changed) {
        me.time = before.time;
    }
    if !me.fields.is_empty() {
        managers.push(me);
    }
    write_managers(new, &managers);
    Ok(())
}

/// `config` applied to `live` by `actor`: the new object, with its owners.
pub fn apply(
    place: Place<'_>,
    live: &Value,
    config: &Value,
    actor: &Actor<'_>,
    force: bool,
) -> Result<Value, Refused> {
    let mut managers = read_managers(live);
    if managers.is_empty() && live.pointer("/metadata/uid").is_some() {
        // The first apply on an object without owners keeps what is there from being taken for nobody's.
        let mut fields = merge::compare(place, actor.empty, &without_managers(live))?;
        fields.added = fields.added.union(&fields.modified);
        strip_meta(&mut fields.added);
        let before = Actor { manager: "before-first-apply", subresource: None, ..actor.clone() };
        managers.push(before.entry(Operation::Update, fields.added));
    }
    let live = without_managers(live);
    let merged = merge::merge(place, Some(&live), Some(config))?;
    let mut fields = merge::field_set(place, config)?;
    strip_meta(&mut fields);
    let me = actor.entry(Operation::Apply, fields);
    let last = managers.iter().position(|m| m.same_as(&me)).map(|at| managers.remove(at));
    managers.push(me.clone());
    let mut new = match &last {
        Some(last) => prune(place, merged, &last.fields, &managers)?,
        None => merged,
    };
    take(place, &live, &new, &mut managers, &me, force)?;
    if let Some(last) = last.filter(|last| last.fields == me.fields && new == live) {
        for manager in managers.iter_mut().filter(|m| m.same_as(&me)) {
            manager.time.clone_from(&last.time);
        }
    }
    managers.retain(|m| !m.fields.is_empty());
    write_managers(&mut new, &managers);
    Ok(new)
}

/// Removes what the manager applied last time and no longer applies, unless another manager owns it.
fn prune(
    place: Place<'_>,
    merged: Value,
    last: &FieldSet,
    managers: &[Manager],
) -> Result<Value, Unmergeable> {
    let named = |path: &[String]| is_named(place, path);
    let full = |set: &FieldSet| set.with_named_members(&mut Vec::new(), &named);
    let pruned = merge::remove(place, &merged, &full(last))?.unwrap_or(Value::Null);
    // Add back what anybody owns, then what the manager never owned.
    let owned = managers.iter().fold(FieldSet::default(), |all, m| all.union(&m.fields));
    let all = full(&merge::field_set(place, &merged)?);
    let left = full(&merge::field_set(place, &pruned)?);
    let unowned = all.difference(&left.union(&full(&owned)));
    let pruned = merge::remove(place, &merged, &unowned)?.unwrap_or(Value::Null);
    let left = full(&merge::field_set(place, &pruned)?);
    let dangling = all.difference(&left).intersection(&full(last));
    Ok(merge::remove(place, &merged, &dangling)?.unwrap_or(Value::Null))
}

fn is_named(root: Place<'_>, path: &[String]) -> bool {
    let mut place = root;
    let mut named = false;
    for element in path {
        match element.split_once(':') {
            Some(("f", name)) => {
                named = place.is_named(name);
                place = place.field(name);
            }
            _ => {
                named = false;
                place = place.item();
            }
        }
    }
    named
}
