//! The fence between an expired lease and the API server: a permit that is valid until a monotonic instant. The
//! client (`client.rs`) asks it before every mutating request, so no path can forget to.

use tokio::{
    sync::watch,
    time::{Duration, Instant},
};

/// Until when writes may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Always,
    Until(Option<Instant>),
}

/// Read side; cheap to clone.
#[derive(Clone, Debug)]
pub struct WritePermit {
    validity: watch::Receiver<Validity>,
}

/// Write side, held by the lease.
#[derive(Debug)]
pub struct PermitHolder {
    validity: watch::Sender<Validity>,
}

/// A permit that is not valid yet, and its holder.
pub fn permit() -> (PermitHolder, WritePermit) {
    let (sender, receiver) = watch::channel(Validity::Until(None));
    (PermitHolder { validity: sender }, WritePermit { validity: receiver })
}

impl WritePermit {
    /// For single processes without a lease: tests and one-shot passes.
    pub fn always() -> Self {
        let (_, validity) = watch::channel(Validity::Always);
        Self { validity }
    }

    /// Time left; `None` when there is none. `Duration::MAX` for a permit that does not end.
    pub fn remaining(&self) -> Option<Duration> {
        match *self.validity.borrow() {
            Validity::Always => Some(Duration::MAX),
            Validity::Until(end) => {
                end?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            }
        }
    }

    pub fn is_valid(&self) -> bool {
        self.remaining().is_some()
    }

    /// Resolves once the permit is valid; never if the holder is gone.
    pub async fn granted(&mut self) {
        while !self.is_valid() {
            if self.validity.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl PermitHolder {
    pub fn grant_until(&self, end: Instant) {
        self.validity.send_replace(Validity::Until(Some(end)));
    }

    pub fn revoke(&self) {
        self.validity.send_replace(Validity::Until(None));
    }
}

impl Drop for PermitHolder {
    /// A lease task that ends for any reason, a panic included, leaves no valid permit behind.
    fn drop(&mut self) {
        self.revoke();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_permit_ends_by_itself_and_with_its_holder() {
        let (holder, permit) = permit();
        assert!(!permit.is_valid());
        holder.grant_until(Instant::now() + Duration::from_secs(10));
        assert_eq!(permit.remaining(), Some(Duration::from_secs(10)));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!permit.is_valid());
        holder.grant_until(Instant::now() + Duration::from_secs(10));
        assert!(permit.is_valid());
        drop(holder);
        assert!(!permit.is_valid());
    }
}
