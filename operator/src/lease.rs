//! Leader election by one Lease. Safety does not rest on wall clocks: a standby waits for one whole lease duration
//! in which *it* saw no change, and the leader's permit ends a margin before one duration after it *began* its last
//! successful write, both on the monotonic clock. Every write carries the resourceVersion that was read.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::{
    sync::watch,
    time::{Duration, Instant},
};
use tracing::{debug, info, warn};

use crate::{config::LeaseConfig, error::Chain, metrics::Metrics, permit::PermitHolder};

/// Who leads, as far as this replica knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub leading: bool,
    pub holder: Option<String>,
}

/// Why the election ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("the lease could not be renewed in time; another replica may lead by now")]
    NotRenewed,
    #[error("the lease was taken by `{holder}`")]
    Taken { holder: String },
}

/// What one replica needs to take part.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    namespace: String,
    config: LeaseConfig,
    /// Unique per process: two containers of one pod, one after the other, are two candidates.
    identity: String,
    permit: PermitHolder,
    leadership: watch::Sender<Leadership>,
    metrics: Arc<Metrics>,
    /// End of the permit that was granted last.
    last_end: Instant,
}

/// A Lease as it was read, and when it was first seen in that state.
#[derive(Debug)]
struct Seen {
    lease: Lease,
    since: Instant,
}

impl Elector {
    /// `client` should carry no rate limit and no fence: the lease is what the fence hangs on.
    pub fn new(
        client: Client,
        namespace: &str,
        config: LeaseConfig,
        identity: String,
        permit: PermitHolder,
        metrics: Arc<Metrics>,
    ) -> (Self, watch::Receiver<Leadership>) {
        let (leadership, receiver) = watch::channel(Leadership::default());
        let api = Api::namespaced(client, namespace);
        let namespace = namespace.to_owned();
        let last_end = Instant::now();
        (Self { api, namespace, config, identity, permit, leadership, metrics, last_end }, receiver)
    }

    /// Stands for election, then renews. Ends with an error when leadership is lost, and never otherwise.
    pub async fn run(&mut self) -> Result<(), LeaseError> {
        let mut held = self.acquire().await;
        self.metrics.leader.set(1);
        info!(identity = %self.identity, "became leader");
        loop {
            held = self.renew(held).await?;
        }
    }

    /// Gives the lease up, so that another replica need not wait for its end. Call it after the last write.
    pub async fn release(&mut self) {
        if !self.leadership.borrow().leading {
            return;
        }
        self.permit.revoke();
        self.metrics.leader.set(0);
        self.leadership.send_replace(Leadership::default());
        let retry_period = self.config.retry_period.into();
        let release = async {
            let mut lease = self.api.get(&self.config.name).await?;
            if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref())
                != Some(self.identity.as_str())
            {
                return Ok(());
            }
            if let Some(spec) = &mut lease.spec {
                spec.holder_identity = None;
                spec.acquire_time = None;
                spec.renew_time = Some(MicroTime(Timestamp::now()));
            }
            self.api.replace(&self.config.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(retry_period, release).await {
            Ok(Ok(())) => info!("gave the lease up"),
            Ok(Err(error)) => warn!(error = %Chain(&error), "failed to give the lease up; it ends by itself"),
            Err(_) => warn!("giving the lease up took too long; it ends by itself"),
        }
    }

    async fn acquire(&mut self) -> Lease {
        let mut seen: Option<Seen> = None;
        loop {
            let began = Instant::now();
            match self.attempt(&mut seen).await {
                Ok(Some(lease)) => {
                    self.granted(began, true);
                    return lease;
                }
                Ok(None) => {}
                Err(error) => {
                    self.metrics.lease_failures.inc();
                    warn!(error = %Chain(&error), "failed to stand for election");
                }
            }
            tokio::time::sleep(self.config.retry_period.into()).await;
        }
    }

    /// One look, and a write if the lease is free.
    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Option<Lease>, kube::Error> {
        let Some(lease) = self.bounded(self.api.get_opt(&self.config.name)).await? else {
            let lease = self.record(None);
            let created = self.bounded(self.api.create(&PostParams::default(), &lease)).await;
            return won(created);
        };
        let now = Instant::now();
        let changed = seen.as_ref().is_none_or(|seen| {
            seen.lease.metadata.resource_version != lease.metadata.resource_version
                || seen.lease.metadata.uid != lease.metadata.uid
        });
        if changed {
            *seen = Some(Seen { lease, since: now });
        }
        let Some(seen) = seen.as_ref() else { return Ok(None) };
        let spec = seen.lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
        self.leadership.send_if_modified(|known| {
            let differs = known.holder != holder;
            known.holder.clone_from(&holder);
            differs
        });
        let duration = spec
            .lease_duration_seconds
            .and_then(|secs| u64::try_from(secs).ok())
            .map_or_else(|| self.config.duration.into(), Duration::from_secs);
        let free = holder.is_none()
            || holder.as_deref() == Some(self.identity.as_str())
            || now.duration_since(seen.since) >= duration;
        if !free {
            return Ok(None);
        }
        let lease = self.record(Some(&seen.lease));
        won(self.bounded(self.api.replace(&self.config.name, &PostParams::default(), &lease)).await)
    }

    /// Renews until it worked once, or until the permit's end.
    async fn renew(&mut self, mut held: Lease) -> Result<Lease, LeaseError> {
        let end = self.last_end;
        tokio::time::sleep(self.config.retry_period.into()).await;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.lost(LeaseError::NotRenewed));
            }
            let began = Instant::now();
            let record = self.record(Some(&held));
            let params = PostParams::default();
            let write = self.api.replace(&self.config.name, &params, &record);
            let written = tokio::time::timeout(left, self.bounded(write)).await;
            match written {
                Ok(Ok(lease)) => {
                    self.granted(began, false);
                    return Ok(lease);
                }
                Ok(Err(kube::Error::Api(status))) if status.code == 409 || status.code == 404 => {
                    // Someone wrote, perhaps we ourselves in a call whose answer was lost.
                    let read = self.bounded(self.api.get_opt(&self.config.name));
                    match tokio::time::timeout(left, read).await {
                        Ok(Ok(Some(lease))) => {
                            let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone());
                            match holder {
                                Some(holder) if holder == self.identity => held = lease,
                                Some(holder) if !holder.is_empty() => {
                                    return Err(self.lost(LeaseError::Taken { holder }));
                                }
                                // Emptied by hand: whoever writes first has it.
                                _ => held = lease,
                            }
                            continue;
                        }
                        // Deleted by hand. Taking it anew could overlap with another who does the same.
                        Ok(Ok(None)) => return Err(self.lost(LeaseError::NotRenewed)),
                        Ok(Err(error)) => debug!(error = %Chain(&error), "failed to read the lease"),
                        Err(_) => debug!("reading the lease took too long"),
                    }
                    self.metrics.lease_failures.inc();
                }
                Ok(Err(error)) => {
                    self.metrics.lease_failures.inc();
                    warn!(error = %Chain(&error), "failed to renew the lease");
                }
                Err(_) => continue,
            }
            tokio::time::sleep(Duration::from(self.config.retry_period).min(left)).await;
        }
    }

    /// The record that a write of ours leaves, on top of what was read.
    fn record(&self, present: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = present.and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let continued = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let metadata = match present {
            Some(lease) => lease.metadata.clone(),
            None => ObjectMeta {
                name: Some(self.config.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
        };
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(Duration::from(self.config.duration).as_secs()).ok(),
            acquire_time: before.acquire_time.filter(|_| continued).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!continued)),
            ..LeaseSpec::default()
        };
        Lease { metadata, spec: Some(spec) }
    }

    /// A call may not take longer than half of what a lease leaves, whatever the client's own deadline.
    async fn bounded<T>(&self, call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
        let config = &self.config;
        let limit = (Duration::from(config.duration) - Duration::from(config.margin)) / 2;
        match tokio::time::timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(kube::Error::Service("no answer about the lease in time".into())),
        }
    }

    fn granted(&mut self, began: Instant, first: bool) {
        let config = &self.config;
        self.last_end = began + Duration::from(config.duration) - Duration::from(config.margin);
        self.permit.grant_until(self.last_end);
        if first {
            let holder = Some(self.identity.clone());
            self.leadership.send_replace(Leadership { leading: true, holder });
        }
    }

    fn lost(&mut self, error: LeaseError) -> LeaseError {
        self.permit.revoke();
        self.metrics.leader.set(0);
        self.leadership.send_replace(Leadership::default());
        error
    }
}

/// A conflict means that another was first.
fn won(written: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
