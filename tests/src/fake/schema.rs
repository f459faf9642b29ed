//! How values merge: which objects are maps, which lists have keys, what is replaced as a whole. Built-in kinds by a
//! table of field names, custom resources by the OpenAPI schema of their definition.

use serde_json::{Map, Value};

/// How a value at some place merges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Replaced as a whole.
    Atomic,
    /// An object with named fields.
    Struct,
    /// An object with free keys, such as labels.
    Map,
    /// A list whose items are told apart by these keys; a missing key takes the default.
    ListMap(Vec<(String, Option<Value>)>),
    /// A list of scalars, each its own item.
    Set,
}

/// A place in a schema: walk down with [`Place::field`] and [`Place::item`].
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// A field of a built-in kind, known by its name and its kind's name.
    Builtin { kind: &'static str, field: Option<&'a str> },
    /// A node of an OpenAPI schema.
    OpenApi(&'a Value),
    /// Nothing is known: objects are structs, lists are atomic.
    Unknown,
}

impl<'a> Place<'a> {
    /// The place of field `name` of an object here.
    pub fn field(self, name: &'a str) -> Place<'a> {
        match self {
            Place::Builtin { kind, .. } => Place::Builtin { kind, field: Some(name) },
            // The schema of a custom kind leaves metadata to the server.
            Place::OpenApi(_) if name == "metadata" => Place::Builtin { kind: "", field: Some(name) },
            Place::OpenApi(node) => node
                .get("properties")
                .and_then(|p| p.get(name))
                .or_else(|| node.get("additionalProperties").filter(|v| v.is_object()))
                .map_or(Place::Unknown, Place::OpenApi),
            Place::Unknown => Place::Unknown,
        }
    }

    /// The place of an item of a list here.
    pub fn item(self) -> Place<'a> {
        match self {
            Place::Builtin { kind, .. } => Place::Builtin { kind, field: None },
            Place::OpenApi(node) => node.get("items").map_or(Place::Unknown, Place::OpenApi),
            Place::Unknown => Place::Unknown,
        }
    }

    /// How `value` merges here.
    pub fn shape(self, value: &Value) -> Shape {
        match (self, value) {
            (_, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => Shape::Atomic,
            (Place::Builtin { kind, field }, value) => builtin(kind, field.unwrap_or_default(), value),
            (Place::OpenApi(node), Value::Object(_)) => open_object(node),
            (Place::OpenApi(node), Value::Array(_)) => open_list(node),
            (Place::Unknown, Value::Object(_)) => Shape::Struct,
            (Place::Unknown, Value::Array(_)) => Shape::Atomic,
        }
    }

    /// Whether `name` is a named field here, rather than the key of a map.
    pub fn is_named(self, name: &str) -> bool {
        match self {
            Place::Builtin { field, .. } => !field.is_some_and(is_builtin_map),
            Place::OpenApi(node) => node.get("properties").is_some_and(|p| p.get(name).is_some()),
            Place::Unknown => true,
        }
    }
}

fn open_object(node: &Value) -> Shape {
    if node.get("x-kubernetes-map-type").and_then(Value::as_str) == Some("atomic") {
        Shape::Atomic
    } else if node.get("additionalProperties").is_some() {
        Shape::Map
    } else {
        Shape::Struct
    }
}

fn open_list(node: &Value) -> Shape {
    match node.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("map") => {
            let keys = node.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
            let default = |key: &str| node.pointer(&format!("/items/properties/{key}/default")).cloned();
            Shape::ListMap(
                keys.into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .map(|key| (key.to_owned(), default(key)))
                    .collect(),
            )
        }
        Some("set") => Shape::Set,
        _ => Shape::Atomic,
    }
}

fn is_builtin_map(field: &str) -> bool {
    const MAPS: [&str; 13] = [
        "labels",
        "annotations",
        "data",
        "binaryData",
        "stringData",
        "limits",
        "requests",
        "capacity",
        "allocatable",
        "hard",
        "used",
        "overhead",
        "disruptedPods",
    ];
    MAPS.contains(&field)
}

fn builtin(kind: &str, field: &str, value: &Value) -> Shape {
    let keyed = |keys: &[(&str, Option<&str>)]| {
        Shape::ListMap(
            keys.iter().map(|(key, default)| ((*key).to_owned(), default.map(Value::from))).collect(),
        )
    };
    if value.is_object() {
        return match field {
            name if is_builtin_map(name) => Shape::Map,
            // Selectors and references are marked `x-kubernetes-map-type: atomic`.
            "selector" | "podSelector" | "namespaceSelector" | "labelSelector" | "nodeSelector"
            | "configMapKeyRef" | "secretKeyRef" | "fieldRef" | "resourceFieldRef" | "secretRef"
            | "claimRef" | "scaleTargetRef" | "involvedObject" | "regarding" | "related" => Shape::Atomic,
            _ => Shape::Struct,
        };
    }
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims"
        | "claims" => keyed(&[("name", None)]),
        "secrets" if kind == "ServiceAccount" => keyed(&[("name", None)]),
        "ports" if kind == "Service" => keyed(&[("port", None), ("protocol", Some("TCP"))]),
        "ports" if kind != "NetworkPolicy" && kind != "EndpointSlice" => {
            keyed(&[("containerPort", None), ("protocol", Some("TCP"))])
        }
        "volumeMounts" => keyed(&[("mountPath", None)]),
        "volumeDevices" => keyed(&[("devicePath", None)]),
        "conditions" => keyed(&[("type", None)]),
        "ownerReferences" => keyed(&[("uid", None)]),
        "topologySpreadConstraints" => keyed(&[("topologyKey", None), ("whenUnsatisfiable", None)]),
        "hostAliases" | "podIPs" | "hostIPs" => keyed(&[("ip", None)]),
        "finalizers" => Shape::Set,
        _ => Shape::Atomic,
    }
}

/// The path element of an item of a keyed list, or `None` when a key is missing and has no default.
pub fn item_key(keys: &[(String, Option<Value>)], item: &Value) -> Option<String> {
    let mut found = Map::new();
    for (key, default) in keys {
        let value = item.get(key).filter(|v| !v.is_null()).or(default.as_ref())?;
        found.insert(key.clone(), value.clone());
    }
    Some(format!("k:{}", Value::Object(found)))
}

/// The path element of an item of a set.
pub fn set_key(item: &Value) -> String {
    format!("v:{item}")
}

/// The path element of a field.
pub fn field_key(name: &str) -> String {
    format!("f:{name}")
}
