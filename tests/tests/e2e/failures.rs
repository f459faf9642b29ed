//! What goes wrong in pods is told in one word of the closed list, with what to do, within five seconds of the pod's
//! status showing it.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    chat,
    node::{self, PRODUCT, READY, Story},
    served,
    watch::Seen,
};

/// From the pod's status showing it to the condition.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

struct Case {
    name: &'static str,
    reason: &'static str,
    /// Condition that speaks of it, beside `WorkloadReady`.
    condition: &'static str,
    /// Words that the message holds.
    says: Vec<String>,
    spec: Value,
    shows: fn(&Value) -> bool,
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
}

fn cannot_pull(pod: &Value) -> bool {
    containers(pod).any(|container| {
        let reason = container["state"]["waiting"]["reason"].as_str().unwrap_or_default();
        ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"].contains(&reason)
    })
}

fn ended(pod: &Value) -> bool {
    containers(pod).any(|container| {
        let states = [&container["state"]["terminated"], &container["lastState"]["terminated"]];
        let init =
            pod["status"]["initContainerStatuses"].as_array().is_some_and(|all| all.contains(container));
        states.iter().any(|state| state.is_object() && (!init || state["exitCode"] != 0))
    })
}

fn has_no_node(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .is_some_and(|all| all.iter().any(|c| c["type"] == "PodScheduled" && c["reason"] == "Unschedulable"))
}

fn custom(image: &str, args: &[&str]) -> Value {
    json!({"model": {"uri": null}, "engine": {"name": "Custom", "image": image, "args": args}})
}

/// As in the closed list of `crds/src/conditions.rs`, where a pod on this node can be brought to show it.
fn cases(url: &str) -> Vec<Case> {
    let case = |name, reason, condition, says: &[&str], spec, shows| {
        let says = says.iter().map(|&word| word.to_owned()).collect();
        Case { name, reason, condition, says, spec, shows }
    };
    let gpus = |count: u32, products: &[&str]| json!({"accelerator": {"device": {"resourceName": "nvidia.com/gpu", "count": count}, "productNames": products}});
    let image = "candela.local/server:dev";
    let none = "candela.local/no-such-image:1";
    let mut never_answers = custom("candela.local/pause:1", &[]);
    never_answers["rollout"] = json!({"progressDeadline": "10s"});
    never_answers["podTemplate"] = json!({"terminationGracePeriod": "1s"});
    let mut wrong_digest = json!({"model": {"uri": format!("{url}/demo/")}});
    wrong_digest["model"]["verification"] = json!({"sha256": "0".repeat(64)});
    let from = |path: &str| json!({"model": {"uri": format!("{url}{path}")}});
    vec![
        case("image-missing", "ImagePullFailed", "Ready", &[none], custom(none, &[]), cannot_pull),
        case(
            "image-malformed",
            "InvalidImageName",
            "Ready",
            &["Not/AnImage"],
            custom("Not/AnImage", &[]),
            cannot_pull,
        ),
        case("crash", "Crashed", "WorkloadReady", &["exit code 2"], custom(image, &["--nonsense"]), ended),
        case(
            "memory",
            "OutOfMemory",
            "WorkloadReady",
            &["memory"],
            // The model alone would fit; the buffers of such steps do not.
            json!({
                "resources": {"requests": {"memory": "24Mi"}, "limits": {"memory": "24Mi"}},
                "batching": {"maxBatchTokens": 8192}
            }),
            ended,
        ),
        case(
            "gpus",
            "InsufficientAccelerators",
            "Schedulable",
            &["nvidia.com/gpu", "4"],
            gpus(8, &[]),
            has_no_node,
        ),
        case(
            "product",
            "UnknownProduct",
            "Schedulable",
            &["NVIDIA-A100", PRODUCT],
            gpus(1, &["NVIDIA-A100"]),
            has_no_node,
        ),
        case(
            "cpus",
            "Unschedulable",
            "Schedulable",
            &["cpu"],
            json!({"resources": {"requests": {"cpu": "900"}, "limits": {"cpu": "900"}}}),
            has_no_node,
        ),
        case("not-there", "WeightsNotFound", "ModelAvailable", &["/nothing/"], from("/nothing/here/"), ended),
        case(
            "forbidden",
            "WeightsUnauthorized",
            "ModelAvailable",
            &["/secret/"],
            from("/secret/model/"),
            ended,
        ),
        case("checksum", "ChecksumMismatch", "ModelAvailable", &["verification.sha256"], wrong_digest, ended),
        case(
            "empty-claim",
            "WeightsNotFound",
            "ModelAvailable",
            &["pvc://empty"],
            json!({"model": {"uri": "pvc://empty/model"}}),
            ended,
        ),
        case("probe", "ProbeFailed", "WorkloadReady", &["probe"], never_answers, ended),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_of_pods_are_told_within_five_seconds() -> Result<()> {
    let story = Story::beside_others("failures").await?;
    let served = served::serve(&story).await?;
    story
        .apply(&json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "empty"}, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}))
        .await?;
    let cases = cases(&served.url);
    for case in &cases {
        let mut model = chat::demo(case.name);
        model["spec"]["replicas"] = json!(1);
        merge(&mut model["spec"], &case.spec);
        story.apply(&model).await?;
    }
    // The same server and the same checks, nothing wrong: fetched, verified, served.
    let mut good = chat::demo("good");
    good["spec"]["model"]["uri"] = json!(format!("{}/demo/", served.url));
    story.apply(&good).await?;

    let mut wrong = Vec::new();
    for case in &cases {
        match told(&story, case).await {
            Ok(late) => println!("{} ({}): told after {:.2} s", case.reason, case.name, late.as_secs_f64()),
            Err(error) => wrong.push(format!("{}: {error:#}", case.name)),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let fetched =
        |o: &Value| node::settled(o) && o["status"]["startup"]["fetch"].as_f64().is_some_and(|s| s > 0.0);
    let ready = story.model_until(0, "good", "Ready, fetched", READY, fetched).await?;
    println!("fetched over http: start-up {}", ready.object["status"]["startup"]);
    drop(served);
    Ok(())
}

/// How long after the pod's status showed it.
async fn told(story: &Story, case: &Case) -> Result<Duration> {
    let of_case = |seen: &Seen| {
        seen.object["metadata"]["labels"]["candela.dev/llmdeployment"] == case.name
            && (case.shows)(&seen.object)
    };
    let shown = story.pods.until(0, &format!("a pod of {} that shows it", case.name), READY, of_case).await?;
    let tells = |o: &Value| {
        let first = &o["status"]["failures"][0];
        let workload = node::condition(o, "WorkloadReady");
        let other = node::condition(o, case.condition);
        first["reason"] == case.reason
            && workload["reason"] == case.reason
            && workload["status"] == "False"
            && other["status"] == "False"
            && (case.condition == "Ready" || other["reason"] == case.reason)
            && node::condition(o, "Ready")["status"] == "False"
    };
    let told = story.model_until(0, case.name, case.reason, Duration::from_secs(20), tells).await?;
    let late = told.at.saturating_duration_since(shown.at);
    let message = told.object["status"]["failures"][0]["message"].as_str().unwrap_or_default();
    for word in &case.says {
        ensure!(message.contains(word), "the message does not name `{word}`: {message}");
    }
    ensure!(late <= TOLD_WITHIN, "told {late:?} after the pod's status showed it");
    Ok(late)
}

/// As a JSON merge patch: null takes a field away.
fn merge(into: &mut Value, patch: &Value) {
    let (Some(fields), Some(wanted)) = (into.as_object_mut(), patch.as_object()) else {
        *into = patch.clone();
        return;
    };
    for (name, value) in wanted {
        if value.is_null() {
            fields.remove(name);
        } else {
            merge(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
