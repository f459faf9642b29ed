//! Events, on transitions of conditions only. They are for people: a pass never fails because one got lost.

use candela_crds::{Condition, ConditionStatus, ConditionType, LlmDeployment, Reason};
use kube::{
    Resource as _,
    runtime::events::{Event, EventType},
};
use tracing::debug;

use crate::{context::Context, error::Chain};

/// Longest note that the API server takes, in bytes.
const MAX_NOTE_BYTES: usize = 1024;

/// Publishes what changed between two sets of conditions. Call it after the new ones were written, so that a pass
/// that is repeated does not publish twice.
pub async fn publish(ctx: &Context, resource: &LlmDeployment, new: &[Condition]) {
    let old = resource.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let reference = resource.object_ref(&());
    for condition in transitions(old, new) {
        let event = Event {
            type_: if is_normal(condition) { EventType::Normal } else { EventType::Warning },
            reason: condition.reason.as_str().to_owned(),
            note: Some(cut(&condition.message, MAX_NOTE_BYTES).to_owned()),
            action: condition.type_.as_str().to_owned(),
            secondary: None,
        };
        match ctx.recorder.publish(&event, &reference).await {
            Ok(()) => ctx.metrics.wrote("Event", "event"),
            Err(error) => {
                ctx.metrics.events_failed.inc();
                debug!(error = %Chain(&error), reason = event.reason, "failed to publish an event");
            }
        }
    }
}

/// Conditions whose status or reason is another than before, one per reason: `Ready` often repeats a leaf.
fn transitions<'a>(old: &[Condition], new: &'a [Condition]) -> Vec<&'a Condition> {
    let mut found: Vec<&Condition> = Vec::new();
    for condition in new {
        // `Reconciling` repeats what the leaves say; the cluster's enforcement is no event of this resource.
        if matches!(condition.type_, ConditionType::Reconciling | ConditionType::NetworkPolicyEnforced) {
            continue;
        }
        let before = old.iter().find(|other| other.type_ == condition.type_);
        let same =
            before.is_some_and(|other| (other.status, other.reason) == (condition.status, condition.reason));
        // A new resource starts with a set of conditions that say nothing yet.
        let expected = before.is_none()
            && (condition.status == ConditionStatus::Unknown || is_normal(condition))
            && condition.type_ != ConditionType::Ready;
        if !same && !expected && found.iter().all(|other| other.reason != condition.reason) {
            found.push(condition);
        }
    }
    found
}

/// Nothing that somebody should look into.
fn is_normal(condition: &Condition) -> bool {
    use Reason as R;
    matches!(
        condition.reason,
        R::Serving
            | R::Progressing
            | R::Suspended
            | R::Valid
            | R::Loaded
            | R::Pending
            | R::Fetching
            | R::Loading
            | R::Scheduled
            | R::AllReplicasReady
            | R::SomeReplicasUnready
            | R::Complete
            | R::Enforced
            | R::NotManaged
    )
}

fn cut(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn condition(type_: ConditionType, status: ConditionStatus, reason: Reason) -> Condition {
        Condition {
            type_,
            status,
            reason,
            observed_generation: 1,
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            message: "é".repeat(1000),
        }
    }

    fn reasons(old: &[Condition], new: &[Condition]) -> Vec<Reason> {
        transitions(old, new).iter().map(|condition| condition.reason).collect()
    }

    #[test]
    fn only_transitions_are_published_and_each_reason_once() {
        use ConditionStatus::{False, True, Unknown};
        use ConditionType::{ModelAvailable, Ready, Reconciling, Schedulable, Validated};
        let start = [
            condition(Ready, False, Reason::Progressing),
            condition(Reconciling, True, Reason::Progressing),
            condition(Validated, True, Reason::Valid),
            condition(Schedulable, Unknown, Reason::Pending),
        ];
        assert_eq!(reasons(&[], &start), [Reason::Progressing]);
        assert_eq!(reasons(&start, &start), []);
        let stuck = [
            condition(Ready, False, Reason::InsufficientAccelerators),
            condition(Validated, True, Reason::Valid),
            condition(Schedulable, False, Reason::InsufficientAccelerators),
            condition(ModelAvailable, False, Reason::Pending),
        ];
        assert_eq!(reasons(&start, &stuck), [Reason::InsufficientAccelerators]);
        assert!(!is_normal(&stuck[0]));
    }

    #[test]
    fn notes_are_cut_at_a_character() {
        let long = condition(ConditionType::Ready, ConditionStatus::True, Reason::Serving).message;
        assert_eq!(cut(&long, MAX_NOTE_BYTES).len(), 1024);
        assert_eq!(cut(&long, 1023).len(), 1022);
    }
}
