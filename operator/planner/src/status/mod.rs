//! `status`: the whole status, computed anew from what was seen. Nothing here depends on the order of events.

mod conditions;
mod facts;
mod failures;
mod workload;

use candela_crds::{Address, LlmDeployment, LlmDeploymentStatus, PlacementStatus};

use crate::{Observed, PlanOutcome, Settings, Stamp, fit, names};

pub use failures::recheck_after;

/// The whole status; times of conditions that did not change are kept from `cr.status`.
pub fn status(
    cr: &LlmDeployment,
    outcome: &PlanOutcome,
    seen: &Observed,
    settings: &Settings,
    stamp: Stamp,
) -> LlmDeploymentStatus {
    let previous = cr.status.clone().unwrap_or_default();
    let name = cr.metadata.name.clone().unwrap_or_default();
    let namespace = cr.metadata.namespace.clone().unwrap_or_default();
    let workload = workload::Workload::of(cr, outcome, seen);
    let failures = failures::failures(cr, seen, &workload, &stamp);
    let fit = fit::fit(cr, seen);
    let conditions = conditions::conditions(&conditions::Input {
        cr,
        outcome,
        seen,
        settings,
        workload: &workload,
        failures: &failures,
        fit: &fit,
        stamp: &stamp,
    });
    // An attempt that failed for a passing reason has not acted on this generation yet.
    let acted = outcome.apply_failure.as_ref().is_none_or(|failure| !failure.retryable);
    let url = format!("http://{name}.{namespace}.svc/v1");
    LlmDeploymentStatus {
        observed_generation: match (&cr.status, acted) {
            (_, true) => stamp.generation,
            (Some(previous), false) => previous.observed_generation,
            (None, false) => -1,
        },
        conditions,
        addresses: vec![Address { type_: "Service".to_owned(), url: url.clone() }],
        url: Some(url),
        engine: Some(cr.spec.engine_name().as_str().to_owned()),
        replicas: workload.replicas,
        ready_replicas: workload.ready,
        updated_replicas: workload.updated,
        selector: Some(
            names::selector(&name)
                .iter()
                .map(|(key, value)| format!("{key}={value}"))
                .collect::<Vec<_>>()
                .join(","),
        ),
        current_revision: workload.current_revision(),
        target_revision: workload.target_revision(),
        revisions: facts::revisions(seen, &workload, &previous),
        models: facts::models(seen, &workload, &previous),
        startup: facts::startup(seen, &workload, &previous),
        placement: cr.spec.accelerator.as_ref().map(|accelerator| PlacementStatus {
            resource: Some(format!("{}: {}", accelerator.device.resource_name(), accelerator.device.count)),
            nearest_fit: fit.nearest(),
        }),
        failures: failures.into_iter().map(|found| found.failure).collect(),
    }
}
