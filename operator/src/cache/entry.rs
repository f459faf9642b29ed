//! What is cached, and by which name.

use std::fmt;

use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        core::v1::{PersistentVolumeClaim, Pod, Secret},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    api::{DynamicObject, ObjectMeta},
    core::PartialObjectMeta,
};
use serde_json::Value;

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What can be cached.
pub trait Entry: Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;
}

/// An object as it came, with its metadata parsed.
#[derive(Clone, Debug)]
pub struct Raw {
    pub meta: ObjectMeta,
    /// The whole object, `apiVersion` and `kind` included.
    pub value: Value,
}

impl Raw {
    /// Lists leave `apiVersion` and `kind` out of their items; a cached object always has them.
    pub fn new(object: DynamicObject, api_version: &str, kind: &str) -> Self {
        let meta = object.metadata.clone();
        let mut value = serde_json::to_value(&object).unwrap_or(Value::Null);
        if let Value::Object(fields) = &mut value {
            fields.insert("apiVersion".to_owned(), api_version.into());
            fields.insert("kind".to_owned(), kind.into());
        }
        Self { meta, value }
    }
}

impl Entry for Raw {
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
}

impl Entry for Pod {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Entry for ReplicaSet {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Entry for PartialObjectMeta<Secret> {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

impl Entry for PartialObjectMeta<PersistentVolumeClaim> {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// The reference to the controller of an object.
pub fn controller(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}
