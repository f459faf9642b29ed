//! When a stuck server loses its traffic and is restarted: the numbers of its probes and the silence after which they
//! fail, in one place, since the two bounds that are promised hold only for both together.

/// How often the kubelet asks, and when it believes an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeTiming {
    pub period_secs: u32,
    pub timeout_secs: u32,
    /// Failures in a row.
    pub failures: u32,
}

/// `/readyz` fails when an engine that has work showed no progress for so long.
pub const READY_SILENCE_SECS: u32 = 5;
/// `/livez` fails after so many times the silence of `/readyz`: one that comes round by then loses no request.
pub const LIVE_FACTOR: u32 = 3;

/// Of `/readyz`.
pub const READINESS: ProbeTiming = ProbeTiming { period_secs: 1, timeout_secs: 2, failures: 3 };
/// Of `/livez`.
pub const LIVENESS: ProbeTiming = ProbeTiming { period_secs: 5, timeout_secs: 5, failures: 3 };
/// From the SIGTERM that follows `/livez` to the kill. What is stuck has nothing to drain; a server that can still react
/// ends by itself before that.
pub const LIVENESS_GRACE_SECS: u32 = 10;

/// What is promised: a wedged step makes a pod not ready within this time, and restarts it within the other one.
pub const NOT_READY_WITHIN_SECS: u32 = 10;
pub const RESTARTED_WITHIN_SECS: u32 = 60;

impl ProbeTiming {
    /// Seconds until the kubelet acts at the latest, if every answer from `silence_secs` on says that it fails.
    pub const fn acts_after_secs(self, silence_secs: u32) -> u32 {
        silence_secs + self.period_secs * self.failures
    }

    /// Seconds until the kubelet acts at the latest, if there is no answer at all from now on.
    pub const fn acts_on_silence_after_secs(self) -> u32 {
        let each = if self.timeout_secs > self.period_secs { self.timeout_secs } else { self.period_secs };
        self.period_secs + each * self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_server_loses_traffic_and_restarts_within_the_promised_times() {
        // The server looks at its engines twice a second, so it may see the last progress half a second late.
        let seen_late = 1;
        let not_ready = READINESS.acts_after_secs(READY_SILENCE_SECS + seen_late);
        assert!(not_ready < NOT_READY_WITHIN_SECS, "{not_ready} s");
        let killed =
            LIVENESS.acts_after_secs(LIVE_FACTOR * READY_SILENCE_SECS + seen_late) + LIVENESS_GRACE_SECS;
        assert!(killed < RESTARTED_WITHIN_SECS, "{killed} s");
    }

    #[test]
    fn a_process_that_answers_no_probe_does_so_too() {
        assert!(READINESS.acts_on_silence_after_secs() < NOT_READY_WITHIN_SECS);
        assert!(LIVENESS.acts_on_silence_after_secs() + LIVENESS_GRACE_SECS < RESTARTED_WITHIN_SECS);
    }
}
