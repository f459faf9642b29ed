//! The trust file on disk, followed while the server runs: the kubelet swaps a link when the ConfigMap changes.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::{Trust, keys::Keys};

/// What a ConfigMap may hold.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the file again and again. The whole of it, since it is small and neither times nor inodes of files behind a
/// swapped link say reliably that nothing changed.
pub(crate) struct TrustFollower {
    trust: Arc<Trust>,
    path: PathBuf,
    /// What was seen last, good or bad.
    last: Option<Vec<u8>>,
    /// The file could not be read, and that was said.
    unreadable: bool,
}

impl TrustFollower {
    /// Has read the file once.
    pub(crate) fn start(trust: Arc<Trust>, path: PathBuf) -> Self {
        let mut follower = Self { trust, path, last: None, unreadable: false };
        follower.look();
        follower
    }

    /// Looks every `period`, for ever.
    pub(crate) async fn run(mut self, period: Duration) {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // A volume that hangs must not hold up requests.
            let look = move || {
                self.look();
                self
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(follower) => self = follower,
                // It panicked, and then so does the process; or the runtime ends.
                Err(_) => return,
            }
        }
    }

    /// Takes what is there. A file that is gone takes the trust along; one that cannot be used leaves it as it is.
    pub(super) fn look(&mut self) {
        let metrics = &self.trust.metrics;
        let path = self.path.display();
        let text = match read(&self.path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                self.unreadable = false;
                if self.last.take().is_some() {
                    warn!(%path, "the trust file is gone: no header of a gateway is believed any more");
                    metrics.load("gone");
                    self.trust.replace(None);
                }
                return;
            }
            Err(err) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    warn!(%path, error = %err, "cannot read the trust file: going on with the keys at hand");
                    metrics.load("unreadable");
                }
                return;
            }
        };
        self.unreadable = false;
        if self.last.as_ref() == Some(&text) {
            return;
        }
        match Keys::read(&text) {
            Ok(keys) => {
                info!(%path, keys = keys.len(), issuer = %keys.issuer, "took the keys of the trust file");
                metrics.load("taken");
                self.trust.replace(Some(keys));
            }
            Err(error) => {
                warn!(%path, error, "cannot use the trust file: going on with the keys at hand");
                metrics.load("unusable");
            }
        }
        self.last = Some(text);
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
    }
    Ok(text)
}
