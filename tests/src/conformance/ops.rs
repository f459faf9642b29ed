//! Random operations: what they are, and the request that each makes.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::bodies::{self, KINDS};
use super::{Call, NAMESPACE};
use crate::fake::verbs::merge_into;

/// One operation on one of the two objects of a sequence.
#[derive(Clone, Debug)]
pub struct Op {
    kind: usize,
    object: char,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    Create {
        body: Value,
        dry_run: bool,
    },
    /// PUT of the live object with this merged in, and a version: the live one, an old one, none.
    Put {
        change: Value,
        version: Version,
        dry_run: bool,
    },
    Apply {
        manager: &'static str,
        force: bool,
        body: Value,
        dry_run: bool,
    },
    Merge {
        patch: Value,
        version: Version,
    },
    ApplyStatus {
        manager: &'static str,
        status: Value,
    },
    MergeStatus {
        status: Value,
    },
    GetScale,
    Delete {
        uid: Option<Version>,
        version: Option<Version>,
        propagation: &'static str,
    },
    Finalizer {
        on: bool,
    },
    Get,
    List {
        by_label: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Live,
    Wrong,
    Absent,
}

/// The operations of a seed.
pub fn generate(seed: u64) -> Vec<Op> {
    let mut rng = StdRng::seed_from_u64(seed);
    let kind = usize::try_from(seed).unwrap_or_default() % KINDS.len();
    let n = rng.random_range(6..14);
    (0..n)
        .map(|at| {
            let object = if rng.random_bool(0.8) { 'a' } else { 'b' };
            // The first one creates, or most of the rest would be 404.
            let roll = if at == 0 { rng.random_range(0..25) } else { rng.random_range(0..100) };
            Op { kind, object, what: random(kind, roll, &mut rng) }
        })
        .collect()
}

fn version(rng: &mut StdRng) -> Version {
    match rng.random_range(0..4) {
        0 => Version::Wrong,
        1 => Version::Absent,
        _ => Version::Live,
    }
}

fn whole(kind: usize, rng: &mut StdRng) -> Value {
    let mut body = bodies::content(KINDS[kind].2, rng);
    body["metadata"] = bodies::metadata(rng);
    body
}

fn random(kind: usize, roll: u32, rng: &mut StdRng) -> What {
    let name = KINDS[kind].2;
    let has_status = matches!(name, "Deployment" | "LlmDeployment");
    let manager = if rng.random_bool(0.5) { "one" } else { "two" };
    let dry_run = rng.random_bool(0.1);
    match roll {
        0..10 => What::Create { body: whole(kind, rng), dry_run },
        10..45 => What::Apply { manager, force: rng.random_bool(0.6), body: whole(kind, rng), dry_run },
        45..55 => What::Put { change: bodies::patch(name, rng), version: version(rng), dry_run },
        55..67 => {
            let version = if rng.random_bool(0.7) { Version::Absent } else { version(rng) };
            What::Merge { patch: bodies::patch(name, rng), version }
        }
        67..71 if has_status => What::ApplyStatus { manager, status: bodies::status(name, rng) },
        71..76 if has_status => What::MergeStatus { status: bodies::status(name, rng) },
        // Not among them: a scale to the present number. The real server records the scaler as an owner even then.
        76..81 if has_status => What::GetScale,
        81..88 => {
            let some = |rng: &mut StdRng| rng.random_bool(0.4).then(|| version(rng));
            let propagation = if rng.random_bool(0.8) { "Background" } else { "Foreground" };
            What::Delete { uid: some(rng), version: some(rng), propagation }
        }
        88..92 => What::Finalizer { on: rng.random_bool(0.5) },
        92..96 => What::List { by_label: rng.random_bool(0.5) },
        _ => What::Get,
    }
}

/// Takes finalizers off and deletes.
pub(super) fn cleanup(ops: &[Op]) -> Vec<Op> {
    let Some(kind) = ops.first().map(|op| op.kind) else { return Vec::new() };
    let delete = What::Delete { uid: None, version: None, propagation: "Background" };
    ['a', 'b']
        .into_iter()
        .flat_map(|object| {
            [What::Finalizer { on: false }, delete.clone()].map(|what| Op { kind, object, what })
        })
        .collect()
}

impl Op {
    fn name(&self, seed: u64) -> String {
        format!("s{seed}-{}", self.object)
    }

    fn collection(&self) -> String {
        let (api, plural, _) = KINDS[self.kind];
        format!("/{api}/namespaces/{NAMESPACE}/{plural}")
    }

    pub(super) fn path(&self, seed: u64) -> String {
        format!("{}/{}", self.collection(), self.name(seed))
    }

    /// Whether the request depends on the object as it is.
    pub(super) fn reads_first(&self) -> bool {
        matches!(
            self.what,
            What::Put { .. } | What::Delete { .. } | What::Merge { .. } | What::Finalizer { .. }
        )
    }

    fn typed(&self, seed: u64, body: &Value) -> Value {
        let (api, _, kind) = KINDS[self.kind];
        let mut out = body.clone();
        out["apiVersion"] = json!(api.split_once('/').map_or(api, |(_, version)| version));
        out["kind"] = json!(kind);
        if !out["metadata"].is_object() {
            out["metadata"] = json!({});
        }
        out["metadata"]["name"] = json!(self.name(seed));
        out["metadata"]["namespace"] = json!(NAMESPACE);
        out
    }

    pub(super) fn call(&self, seed: u64, live: &Value) -> Call {
        const JSON: &str = "application/json";
        const MERGE: &str = "application/merge-patch+json";
        const APPLY: &str = "application/apply-patch+yaml";
        let path = self.path(seed);
        let label = format!("seq=s{seed}");
        let labelled = |body: &Value| {
            let mut out = self.typed(seed, body);
            out["metadata"]["labels"]["seq"] = json!(format!("s{seed}"));
            out
        };
        let dry = |on: bool| if on { "&dryRun=All" } else { "" };
        let call = |method, path, content_type, body| Call { method, path, content_type, body };
        match &self.what {
            What::Create { body, dry_run } => {
                let path = format!("{}?fieldManager=creator{}", self.collection(), dry(*dry_run));
                call("POST", path, JSON, labelled(body))
            }
            What::Put { change, version, dry_run } => {
                let mut body = live.clone();
                merge_into(&mut body, change);
                stamp(&mut body, "resourceVersion", *version, live);
                let mut body = self.typed(seed, &body);
                if body["metadata"]["uid"].is_null() {
                    // The object does not exist: any body will do.
                    body = self.typed(seed, &json!({}));
                }
                call("PUT", format!("{path}?fieldManager=updater{}", dry(*dry_run)), JSON, body)
            }
            What::Apply { manager, force, body, dry_run } => {
                let path = format!("{path}?fieldManager={manager}&force={force}{}", dry(*dry_run));
                call("PATCH", path, APPLY, labelled(body))
            }
            What::Merge { patch, version } => {
                let mut patch = patch.clone();
                if *version != Version::Absent {
                    stamp(&mut patch, "resourceVersion", *version, live);
                }
                call("PATCH", format!("{path}?fieldManager=patcher"), MERGE, patch)
            }
            What::ApplyStatus { manager, status } => {
                let body = self.typed(seed, &json!({"status": status}));
                call("PATCH", format!("{path}/status?fieldManager={manager}&force=true"), APPLY, body)
            }
            What::MergeStatus { status } => call(
                "PATCH",
                format!("{path}/status?fieldManager=reporter"),
                MERGE,
                json!({"status": status}),
            ),
            What::GetScale => call("GET", format!("{path}/scale"), JSON, Value::Null),
            What::Delete { uid, version, propagation } => {
                let mut preconditions = json!({});
                for (field, wanted) in [("uid", uid), ("resourceVersion", version)] {
                    let mut carrier = json!({});
                    stamp(&mut carrier, field, wanted.unwrap_or(Version::Absent), live);
                    if let Some(value) = carrier["metadata"].get(field) {
                        preconditions[field] = value.clone();
                    }
                }
                let mut options =
                    json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation});
                if preconditions != json!({}) {
                    options["preconditions"] = preconditions;
                }
                call("DELETE", path, JSON, options)
            }
            What::Finalizer { on } => {
                let finalizers = if *on { json!(["candela.dev/test"]) } else { Value::Null };
                let patch = json!({"metadata": {"finalizers": finalizers}});
                call("PATCH", format!("{path}?fieldManager=patcher"), MERGE, patch)
            }
            What::Get => call("GET", path, JSON, Value::Null),
            What::List { by_label } => {
                let page = if *by_label { "" } else { "&limit=50" };
                call("GET", format!("{}?labelSelector={label}{page}", self.collection()), JSON, Value::Null)
            }
        }
    }
}

/// Writes `metadata.FIELD` of `live` into `body`, a wrong one, or none.
fn stamp(body: &mut Value, field: &str, version: Version, live: &Value) {
    if !body["metadata"].is_object() {
        body["metadata"] = json!({});
    }
    let value = match version {
        Version::Live => live["metadata"].get(field).cloned(),
        Version::Wrong if field == "uid" => Some(json!("11111111-1111-4111-8111-111111111111")),
        Version::Wrong => Some(json!("1")),
        Version::Absent => None,
    };
    if let Some(meta) = body["metadata"].as_object_mut() {
        meta.remove(field);
        if let Some(value) = value {
            meta.insert(field.to_owned(), value);
        }
    }
}
