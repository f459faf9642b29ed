//! The log of the server in memory.

use bytes::Bytes;
use http::Request;
use serde_json::Value;
use tokio::time::Instant;

use super::dispatch::{manager_of, parse_body};
use super::route::Target;

/// One request, as an audit log has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub client: String,
    pub verb: &'static str,
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub subresource: Option<String>,
    pub manager: String,
    pub code: u16,
    /// Something was stored.
    pub committed: bool,
    /// Body of a write or options of a delete.
    pub body: Value,
    /// When, on the clock of the runtime.
    pub at: Instant,
}

impl Record {
    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch")
    }

    /// Writes that say something about workloads: leases and events are not among them.
    pub fn is_workload_write(&self) -> bool {
        self.is_write() && !matches!(self.kind, "Lease" | "Event")
    }

    /// Of a request that was answered.
    pub(super) fn of(
        client: &str,
        verb: &'static str,
        target: &Target,
        request: &Request<Bytes>,
        code: u16,
        committed: bool,
    ) -> Self {
        let body = parse_body(request);
        let created = body.pointer("/metadata/name").and_then(Value::as_str);
        Self {
            client: client.to_owned(),
            verb,
            kind: target.kind.kind,
            namespace: target.namespace.clone(),
            name: target.name.as_deref().or(created).unwrap_or_default().to_owned(),
            subresource: target.subresource.clone(),
            manager: manager_of(target, request),
            code,
            committed,
            body,
            at: Instant::now(),
        }
    }

    /// Of a watch that began.
    pub(super) fn of_watch(client: &str, target: &Target) -> Self {
        Self {
            client: client.to_owned(),
            verb: "watch",
            kind: target.kind.kind,
            namespace: target.namespace.clone(),
            name: target.name.clone().unwrap_or_default(),
            subresource: None,
            manager: String::new(),
            code: 200,
            committed: false,
            body: Value::Null,
            at: Instant::now(),
        }
    }
}
