//! The termination message: how a pod that gives up tells the operator why, through `status.containerStatuses`.

use serde::{Deserialize, Serialize};

/// Where Kubernetes reads it from; at most 4096 bytes.
pub const TERMINATION_LOG_PATH: &str = "/dev/termination-log";

/// Why a server or its init step gave up. A closed list: each maps to one condition reason in `candela-crds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitReason {
    /// `server.json`, an argument or the environment cannot be used.
    InvalidConfiguration,
    /// The source answered that the model, revision or file does not exist.
    WeightsNotFound,
    /// The source wants credentials, or refused those given.
    WeightsUnauthorized,
    /// The source could not be reached, or broke off more often than retries allow.
    WeightsFetchFailed,
    /// Bytes do not have the digest that was asked for.
    ChecksumMismatch,
    /// The files are there, but are not a model that this build can serve.
    ModelUnsupported,
    /// The weights do not fit into the memory limit.
    OutOfMemory,
    /// The pod was given accelerators that this build cannot use.
    DeviceUnsupported,
    /// No progress for the configured time.
    StartupStalled,
    /// A fault of ours.
    EngineCrashed,
}

/// Body of the termination message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminationMessage {
    pub reason: ExitReason,
    /// What happened and what to do next; no secrets, one paragraph.
    pub message: String,
}

impl TerminationMessage {
    /// At most this many bytes of message, so that the JSON stays under 4096.
    pub const MAX_MESSAGE_BYTES: usize = 1024;

    /// Parses what a container left; `None` if it is not ours (a crash, a foreign image).
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// One line of JSON, message cut at a character boundary.
    pub fn to_json(&self) -> String {
        let mut cut = self.message.len().min(Self::MAX_MESSAGE_BYTES);
        while !self.message.is_char_boundary(cut) {
            cut -= 1;
        }
        let short = Self { reason: self.reason, message: self.message[..cut].to_owned() };
        serde_json::to_string(&short).expect("a struct of an enum and a string always serialises")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let long = TerminationMessage { reason: ExitReason::EngineCrashed, message: "é".repeat(3000) };
        let json = long.to_json();
        assert!(json.len() < 4096);
        let back = TerminationMessage::parse(&json).expect("own output parses");
        assert_eq!(back.message, "é".repeat(512));
    }

    #[test]
    fn foreign_text_is_not_ours() {
        assert_eq!(TerminationMessage::parse("panic: oops"), None);
    }
}
