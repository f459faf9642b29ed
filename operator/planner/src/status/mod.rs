//! `status`: the whole status, computed anew from what was seen. Nothing here depends on the order of events.

mod bounds;
mod conditions;
mod containers;
mod facts;
mod failures;
mod workload;

use candela_crds::{
    Address, Condition, ConditionStatus, ConditionType, LlmDeployment, LlmDeploymentStatus, PlacementStatus,
    Reason,
};

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
    // An attempt that failed for a passing reason has not acted on this generation yet; the conditions speak of the
    // same generation as the status that they are part of.
    let acted = outcome.apply_failure.as_ref().is_none_or(|failure| !failure.retryable);
    let observed_generation = match (&cr.status, acted) {
        (_, true) => stamp.generation,
        (Some(previous), false) => previous.observed_generation,
        (None, false) => -1,
    };
    let conditions = conditions::conditions(&conditions::Input {
        cr,
        observed_generation,
        outcome,
        seen,
        settings,
        workload: &workload,
        failures: &failures,
        fit: &fit,
        stamp: &stamp,
    });
    let url = format!("http://{name}.{namespace}.svc/v1");
    bounds::hold(LlmDeploymentStatus {
        observed_generation,
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
        placement: placement(cr, &fit),
        failures: failures.into_iter().map(|found| found.failure).collect(),
    })
}

fn placement(cr: &LlmDeployment, fit: &fit::Fit) -> Option<PlacementStatus> {
    let accelerator = cr.spec.accelerator.as_ref().map(|wanted| &wanted.device);
    let resource = accelerator.map(|device| format!("{}: {}", device.resource_name(), device.count));
    let nearest_fit = fit.nearest();
    (resource.is_some() || nearest_fit.is_some()).then_some(PlacementStatus { resource, nearest_fit })
}

/// The status of an object that is stored but cannot be read, `error` being why: one that came past the rules of the
/// present CRD. Its workload is left as it is, and so is what was last known of it.
pub fn unreadable(previous: Option<&LlmDeploymentStatus>, error: &str, stamp: &Stamp) -> LlmDeploymentStatus {
    let mut status = previous.cloned().unwrap_or_default();
    let error: String = error.chars().take(1000).collect();
    let message = format!("the stored object cannot be read: {error}; correct that field and apply it again");
    let condition = |type_, found| Condition {
        type_,
        status: found,
        observed_generation: stamp.generation,
        last_transition_time: status
            .conditions
            .iter()
            .find(|known| known.type_ == type_ && known.status == found)
            .map_or_else(|| stamp.now.clone(), |known| known.last_transition_time.clone()),
        reason: Reason::InvalidSpec,
        message: message.clone(),
    };
    status.conditions = vec![
        condition(ConditionType::Ready, ConditionStatus::False),
        condition(ConditionType::Stalled, ConditionStatus::True),
        condition(ConditionType::Validated, ConditionStatus::False),
    ];
    status.observed_generation = stamp.generation;
    status
}
