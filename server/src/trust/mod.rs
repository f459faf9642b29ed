//! What this server believes of who sends a request: the headers of `candela_wire::trust`, beside a token of the gateway
//! only. Why it is so is in `docs/adr/0009-trust-in-the-gateway.md`.
//!
//! `headers` is about one request, `token` and `keys` check its token, `file` keeps the keys up to date.

mod file;
mod headers;
mod keys;
mod token;

#[cfg(test)]
#[path = "../../tests/support/tokens.rs"]
pub(crate) mod test_tokens;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use ring::hmac;
use tokio::sync::watch;

pub(crate) use file::TrustFollower;
pub(crate) use headers::Caller;
pub(crate) use token::Refusal;

use keys::Keys;

/// Of one process.
pub(crate) struct Trust {
    had_keys: AtomicBool,
    /// `None` = no token can be checked.
    keys: watch::Sender<Option<Arc<Keys>>>,
    /// Turns tenants into salts that nobody outside of this process can guess.
    secret: hmac::Key,
    metrics: TrustMetrics,
}

impl Trust {
    /// Trusts nobody until it is given keys.
    pub(crate) fn new(metrics: &TrustMetrics) -> Self {
        Self {
            keys: watch::Sender::new(None),
            had_keys: AtomicBool::new(false),
            secret: hmac::Key::new(hmac::HMAC_SHA256, &rand::random::<[u8; 32]>()),
            metrics: metrics.clone(),
        }
    }

    /// Whether there is a gateway, or was one since the start: a file that is gone for a moment opens nothing.
    pub(crate) fn knows_a_gateway(&self) -> bool {
        self.had_keys.load(Relaxed)
    }

    fn replace(&self, keys: Option<Keys>) {
        self.had_keys.fetch_or(keys.is_some(), Relaxed);
        self.metrics.keys.set(keys.as_ref().map_or(0, |keys| keys.len() as i64));
        self.keys.send_replace(keys.map(Arc::new));
    }

    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.borrow().clone()
    }

    /// For the prefix cache: the same for all requests of a tenant, and for nobody else's.
    fn salt_of(&self, tenant: &[u8]) -> [u8; 32] {
        let tag = hmac::sign(&self.secret, tenant);
        let mut salt = [0; 32];
        salt.copy_from_slice(tag.as_ref());
        salt
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

/// Handles are cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct TrustMetrics {
    tokens: Family<Outcome, Counter>,
    keys: Gauge,
    loads: Family<Outcome, Counter>,
}

impl TrustMetrics {
    pub(crate) fn register(&self, to: &mut Registry) {
        to.register(
            "gateway_tokens",
            "Requests that came with a token of the gateway, by what became of it",
            self.tokens.clone(),
        );
        to.register("trust_keys", "Public keys that gateway tokens are checked with", self.keys.clone());
        to.register("trust_loads", "Changes of the trust file by how they were taken", self.loads.clone());
    }

    pub(crate) fn token(&self, outcome: &'static str) {
        self.tokens.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn load(&self, outcome: &'static str) {
        self.loads.get_or_create(&Outcome { outcome }).inc();
    }
}
