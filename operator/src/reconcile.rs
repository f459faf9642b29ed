//! One pass over one LlmDeployment: observe → resolve → desired → apply → prune → status. The two pure stages are
//! the planner's; nothing else decides anything.

use std::{panic::AssertUnwindSafe, sync::Arc};

use candela_crds::{LlmDeployment, LlmDeploymentStatus};
use candela_planner::{Stamp, plan, recheck_after, status, unreadable};
use futures::FutureExt as _;
use jiff::{Timestamp, Unit};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::{Duration, Instant};

use crate::{
    apply::{self, Owner},
    cache::{Key, Raw},
    context::{Context, Foreign},
    error::Error,
    events, observe,
    planted::PlantedBug,
    prune,
    status::write_if_changed,
};

/// So many passes in a row may meet an unavailable server before the status says so.
const PATIENCE: u32 = 3;

/// How a pass ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Objects written or deleted, the status included.
    pub n_writes: usize,
    /// When to come again although nothing changed.
    pub again_after: Option<Duration>,
}

/// One pass. `Err` means that this attempt failed; what is wrong with the resource is in its status instead.
pub async fn pass(ctx: &Context, key: &Key) -> Result<Outcome, Error> {
    let Some(raw) = ctx.caches.resources.get(key) else {
        if ctx.caches.resources.is_doubtful(key) {
            // It is there, but its watch is silent: nothing that is seen now may be forgotten.
            return Err(Error::Stale { object: format!("LlmDeployment {key}") });
        }
        return Ok(Outcome::default());
    };
    if raw.meta.deletion_timestamp.is_some() {
        // Its children carry owner references: the garbage collector does the rest.
        return Ok(Outcome::default());
    }
    let resource = match parse(&raw) {
        Ok(resource) => resource,
        Err(source) => return Err(Box::pin(say_unreadable(ctx, key, &raw, source)).await),
    };
    let owner = Owner { key: key.clone(), uid: raw.meta.uid.clone().unwrap_or_default() };

    observe::refresh_foreign(ctx, key).await?;
    let seen = observe::observe(ctx, key, &resource);
    let mut outcome = plan(&resource, &seen, &ctx.settings);
    let applied = apply::apply(ctx, &owner, &outcome.plan).await?;
    let mut n_writes = applied.n_written;
    let failure = match applied.failure {
        // What could not be deleted keeps nothing from being said; it is tried again after the status is written.
        None => match Box::pin(prune::prune(ctx, &owner, &outcome.plan)).await {
            Ok(n_deleted) => {
                n_writes += n_deleted;
                None
            }
            Err(error) => Some(error),
        },
        // A server that is away for a moment is nobody's business; one that stays away is.
        Some((failure, error)) if failure.retryable && ctx.backoff.n_failures(key) < PATIENCE => {
            return Err(error);
        }
        Some((failure, error)) => {
            outcome.apply_failure = Some(failure);
            Some(error)
        }
    };

    // Own writes are in the caches by now: the status speaks of what was just applied.
    let seen = observe::observe(ctx, key, &resource);
    let acted_on = latest(ctx, key, &raw);
    let stamp = Stamp { generation: acted_on.meta.generation.unwrap_or_default(), now: now() };
    let status = status(&resource, &outcome, &seen, &ctx.settings, stamp.clone());
    if write_if_changed(ctx, key, &acted_on, resource.status.as_ref(), &status).await? {
        n_writes += 1;
        events::publish(ctx, &resource, &status.conditions).await;
    }
    match failure {
        Some(error) => {
            // The pause after a failure may be longer than what the status waits for.
            if let Some(after) = recheck_after(&seen, &stamp) {
                ctx.queue.add_at(key.clone(), Instant::now() + after);
            }
            Err(error)
        }
        None => {
            let conflict = (!ctx.foreign.in_the_way_of(key).is_empty()).then_some(Foreign::REFRESH);
            let again_after = recheck_after(&seen, &stamp).into_iter().chain(conflict).min();
            Ok(Outcome { n_writes, again_after })
        }
    }
}

/// A pass that cannot take the process down: a panic over one resource must not stop the others.
pub async fn isolated_pass(ctx: &Context, key: &Key) -> Result<Outcome, Error> {
    // On the heap: it holds whole resources and plans.
    isolated(Box::pin(pass(ctx, key))).await
}

async fn isolated(pass: impl Future<Output = Result<Outcome, Error>>) -> Result<Outcome, Error> {
    AssertUnwindSafe(pass).catch_unwind().await.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(Error::Panicked(text.unwrap_or_else(|| "no message".to_owned())))
    })
}

/// Why an object cannot be read, with the path of the field.
type Unreadable = serde_path_to_error::Error<serde_json::Error>;

fn parse(raw: &Raw) -> Result<LlmDeployment, Unreadable> {
    serde_path_to_error::deserialize(&raw.value)
}

/// Says in the status what cannot be read; the error is that, or why it could not be said.
async fn say_unreadable(ctx: &Context, key: &Key, raw: &Raw, source: Unreadable) -> Error {
    let previous: Option<LlmDeploymentStatus> = serde_json::from_value(raw.value["status"].clone()).ok();
    let stamp = Stamp { generation: raw.meta.generation.unwrap_or_default(), now: now() };
    let status = unreadable(previous.as_ref(), &source.to_string(), &stamp);
    match write_if_changed(ctx, key, raw, previous.as_ref(), &status).await {
        Ok(_) => Error::Malformed { source },
        Err(error) => error,
    }
}

/// The object that the pass began with. The planted bug takes a newer one, if there is one by now: its generation is
/// then reported without having been applied.
fn latest(ctx: &Context, key: &Key, raw: &Arc<Raw>) -> Arc<Raw> {
    let newer = ctx.planted.has(PlantedBug::ObservedGenerationAheadOfApply);
    newer.then(|| ctx.caches.resources.get(key)).flatten().unwrap_or_else(|| Arc::clone(raw))
}

/// In whole seconds, like every time of Kubernetes.
fn now() -> Time {
    let now = Timestamp::now();
    Time(now.round(Unit::Second).unwrap_or(now))
}

#[cfg(test)]
mod tests;
