//! The parts of structured-merge-diff that server-side apply is made of: field sets of values, merge, compare and
//! removal. The order of the walks, and which inner nodes count as members, follow that library.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::FieldSet;
use super::schema::{Place, Shape, field_key, item_key, set_key};

/// A value that cannot be merged, such as two list items with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmergeable(pub String);

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}

/// Items of a list by path element, in order.
fn items<'a>(shape: &Shape, value: Option<&'a Value>) -> Result<Vec<(String, &'a Value)>, Unmergeable> {
    let Some(Value::Array(list)) = value else { return Ok(Vec::new()) };
    let mut out: Vec<(String, &Value)> = Vec::new();
    for item in list {
        let element = match shape {
            Shape::ListMap(keys) => item_key(keys, item).ok_or_else(|| {
                let names: Vec<_> = keys.iter().map(|(k, _)| k.as_str()).collect();
                Unmergeable(format!(
                    "associative list with keys has an element that omits key field {names:?}"
                ))
            })?,
            _ => set_key(item),
        };
        if out.iter().any(|(seen, _)| *seen == element) {
            return Err(Unmergeable(format!("duplicate entries for key [{element}]")));
        }
        out.push((element, item));
    }
    Ok(out)
}

/// All paths of a value: leaves, empty collections, keys of maps and items of keyed lists.
pub fn field_set(place: Place<'_>, value: &Value) -> Result<FieldSet, Unmergeable> {
    let mut out = FieldSet::default();
    collect(place, value, &mut Vec::new(), &mut out)?;
    Ok(out)
}

fn collect(
    place: Place<'_>,
    value: &Value,
    path: &mut Vec<String>,
    out: &mut FieldSet,
) -> Result<(), Unmergeable> {
    let shape = place.shape(value);
    match (&shape, value) {
        (Shape::Struct | Shape::Map, Value::Object(map)) if !map.is_empty() => {
            for (name, child) in map {
                path.push(field_key(name));
                let is_empty_object = child.as_object().is_some_and(Map::is_empty);
                if shape == Shape::Map || child.is_null() || is_empty_object {
                    out.insert(path);
                }
                if !child.is_null() && !is_empty_object {
                    collect(place.field(name), child, path, out)?;
                }
                path.pop();
            }
        }
        (Shape::ListMap(_) | Shape::Set, Value::Array(list)) if !list.is_empty() => {
            for (element, item) in items(&shape, Some(value))? {
                path.push(element);
                out.insert(path);
                if matches!(shape, Shape::ListMap(_)) {
                    collect(place.item(), item, path, out)?;
                }
                path.pop();
            }
        }
        // An empty keyed list has no items to own.
        (Shape::ListMap(_) | Shape::Set, _) => {}
        _ => out.insert(path),
    }
    Ok(())
}

/// `config` laid over `live`.
pub fn merge(place: Place<'_>, live: Option<&Value>, config: Option<&Value>) -> Result<Value, Unmergeable> {
    let (live, config) = match (live, config) {
        (Some(live), Some(config)) if !live.is_null() => (live, config),
        (_, Some(config)) => (&Value::Null, config),
        (live, None) => return Ok(live.cloned().unwrap_or(Value::Null)),
    };
    let shape = place.shape(config);
    match (&shape, config) {
        (Shape::Struct | Shape::Map, Value::Object(new)) => {
            let mut out = live.as_object().cloned().unwrap_or_default();
            for (name, value) in new {
                let merged = merge(place.field(name), live.get(name), Some(value))?;
                out.insert(name.clone(), merged);
            }
            Ok(Value::Object(out))
        }
        (Shape::ListMap(_) | Shape::Set, Value::Array(_)) => merge_lists(place, &shape, live, config),
        _ => Ok(config.clone()),
    }
}

/// Keeps the order of `config`, with items of `live` alone where they stood between shared ones.
fn merge_lists(place: Place<'_>, shape: &Shape, live: &Value, config: &Value) -> Result<Value, Unmergeable> {
    let left = items(shape, Some(live))?;
    let right = items(shape, Some(config))?;
    let in_left: BTreeMap<&str, &Value> = left.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let in_right: BTreeMap<&str, &Value> = right.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let mut shared = right.iter().map(|(k, _)| k.as_str()).filter(|k| in_left.contains_key(k));
    let mut next_shared = shared.next();
    let mut merged: Vec<&str> = Vec::new();
    let mut out = Vec::new();
    let both = |key: &str| merge(place.item(), in_left.get(key).copied(), in_right.get(key).copied());
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some((a, _)), Some((b, _))) = (left.get(l), right.get(r)) {
            if a == b {
                merged.push(a);
                out.push(both(a)?);
                (l, r) = (l + 1, r + 1);
                next_shared = shared.next();
                continue;
            }
            if in_right.contains_key(a.as_str()) && next_shared.is_some_and(|next| next != a) {
                l += 1;
                continue;
            }
        }
        if let Some((a, item)) = left.get(l) {
            if !in_right.contains_key(a.as_str()) {
                out.push((*item).clone());
                l += 1;
                continue;
            }
            if merged.contains(&a.as_str()) {
                l += 1;
            }
        }
        if let Some((b, _)) = right.get(r) {
            merged.push(b);
            out.push(both(b)?);
            r += 1;
            if next_shared == Some(b.as_str()) {
                next_shared = shared.next();
            }
        }
    }
    Ok(Value::Array(out))
}

/// What an update changed.
#[derive(Debug, Default)]
pub struct Comparison {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

pub fn compare(place: Place<'_>, old: &Value, new: &Value) -> Result<Comparison, Unmergeable> {
    let mut out = Comparison::default();
    walk(place, Some(old), Some(new), &mut Vec::new(), &mut out)?;
    Ok(out)
}

fn walk(
    place: Place<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<String>,
    out: &mut Comparison,
) -> Result<(), Unmergeable> {
    let witness = new.filter(|v| !v.is_null()).or(old).unwrap_or(&Value::Null);
    let shape = place.shape(witness);
    // Two empty values are a leaf: that keeps the difference between nothing, null and empty.
    if shape == Shape::Atomic || (is_empty(old) && is_empty(new)) {
        match (old, new) {
            (None, _) => out.added.insert(path),
            (_, None) => out.removed.insert(path),
            (Some(a), Some(b)) if a != b => out.modified.insert(path),
            _ => {}
        }
        return Ok(());
    }
    match shape {
        Shape::Struct | Shape::Map => {
            let nothing = Map::new();
            let a = old.and_then(Value::as_object).unwrap_or(&nothing);
            let b = new.and_then(Value::as_object).unwrap_or(&nothing);
            for name in a.keys().chain(b.keys().filter(|name| !a.contains_key(*name))) {
                path.push(field_key(name));
                walk(place.field(name), a.get(name), b.get(name), path, out)?;
                path.pop();
            }
        }
        Shape::ListMap(_) | Shape::Set => {
            let (a, b) = (items(&shape, old)?, items(&shape, new)?);
            let find = |list: &[(String, &Value)], key: &str| list.iter().position(|(k, _)| k == key);
            for (key, _) in a.iter().chain(b.iter().filter(|(k, _)| find(&a, k).is_none())) {
                path.push(key.clone());
                let old_item = find(&a, key).map(|i| a[i].1);
                let new_item = find(&b, key).map(|i| b[i].1);
                walk(place.item(), old_item, new_item, path, out)?;
                path.pop();
            }
        }
        Shape::Atomic => {}
    }
    match (old, new) {
        (None, _) => out.added.insert(path),
        (_, None) => out.removed.insert(path),
        _ => {}
    }
    Ok(())
}

/// `value` without the paths in `set`. What is emptied by it goes, unless it was empty before.
pub fn remove(place: Place<'_>, value: &Value, set: &FieldSet) -> Result<Option<Value>, Unmergeable> {
    let shape = place.shape(value);
    match (&shape, value) {
        (Shape::Struct | Shape::Map, Value::Object(map)) if !map.is_empty() => {
            let mut out = Map::new();
            for (name, child) in map {
                match set.child(&field_key(name)) {
                    Some(below) if below.is_member() => {}
                    Some(below) => {
                        if let Some(kept) = remove(place.field(name), child, below)? {
                            out.insert(name.clone(), kept);
                        }
                    }
                    None => {
                        out.insert(name.clone(), child.clone());
                    }
                }
            }
            Ok((!out.is_empty()).then_some(Value::Object(out)))
        }
        (Shape::ListMap(_) | Shape::Set, Value::Array(list)) if !list.is_empty() => {
            let mut out = Vec::new();
            for (element, item) in items(&shape, Some(value))? {
                match set.child(&element) {
                    Some(below) if below.is_member() => {}
                    Some(below) => out.extend(remove(place.item(), item, below)?),
                    None => out.push(item.clone()),
                }
            }
            Ok((!out.is_empty()).then_some(Value::Array(out)))
        }
        _ => Ok(Some(value.clone())),
    }
}
