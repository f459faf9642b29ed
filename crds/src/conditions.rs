//! Condition types and their closed list of reasons. A reason that is not here cannot be written.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// One condition of a status, in the shape of `metav1.Condition`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type of the condition.
    #[serde(rename = "type")]
    pub type_: ConditionType,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// Generation of the resource that this condition speaks of.
    pub observed_generation: i64,
    /// When `status` last changed.
    pub last_transition_time: Time,
    /// Why, as one word from a closed list.
    pub reason: Reason,
    /// What is the case, and what to do next.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

impl ConditionStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// Declares an enum whose variants are written as their own names, with the sentence that documents each.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($variant:ident => $doc:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name {
            $(#[doc = $doc] $variant,)+
        }

        impl $name {
            /// Every word, in the order of the reference page.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($variant),)+
                }
            }

            /// One sentence for the reference page.
            pub fn doc(self) -> &'static str {
                match self {
                    $(Self::$variant => $doc,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        // A plain bounded string and not an `enum`: a newer operator may write a word that an older CRD lacks.
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "minLength": 1, "maxLength": 64, "pattern": "^[A-Za-z][A-Za-z0-9]*$"})
            }
        }
    };
}

words! {
    /// The condition types of an LlmDeployment.
    ConditionType {
        Ready => "The summary: a client that calls `status.url` gets answers.",
        Reconciling => "Present, and True, only while the operator is bringing the cluster to the present generation.",
        Stalled => "Present, and True, only while the present generation cannot be reached without somebody acting.",
        Validated => "The spec and everything it refers to can be used.",
        ModelAvailable => "The weights are loaded in a pod that serves.",
        Schedulable => "The cluster has room for every pod.",
        WorkloadReady => "Every replica that was asked for is ready.",
        RolloutComplete => "Every pod runs the present revision.",
        NetworkPolicyEnforced => "The NetworkPolicy is known to be enforced by the cluster's network plugin.",
    }
}

words! {
    /// Why a condition has its status. One closed list for all condition types.
    Reason {
        Serving => "At least one pod of the present revision answers.",
        Progressing => "Work is under way; nothing needs doing.",
        Suspended => "No replicas are wanted: `spec.suspend` is true or `spec.replicas` is 0.",
        Valid => "The spec can be used as it stands.",
        InvalidSpec => "A value cannot be used although the API server let it pass; the message names the field.",
        ImageNotConfigured => "The operator's configuration names no image for this engine and device.",
        NameConflict => "An object of the same name exists that this resource does not own; it was left alone.",
        CredentialsNotFound => "`credentialsRef` of a model names a Secret or a key that does not exist.",
        CredentialsNotUsable => "The Secret lacks the label `candela.dev/usable: \"true\"`.",
        CredentialsHostNotAllowed => "The Secret's annotation `candela.dev/hosts` does not list the host of the model's `uri`.",
        ClaimNotFound => "`uri` of a model names a PersistentVolumeClaim that does not exist.",
        ApplyFailed => "The API server refused a child object; the message quotes it.",
        Loaded => "The model is loaded and its facts are in `status.models`.",
        Pending => "No pod has come far enough to tell.",
        Fetching => "The weights are being fetched.",
        Loading => "The weights are being loaded.",
        Scheduled => "Every pod has a node.",
        Unschedulable => "The scheduler finds no node for a pod; the message quotes it.",
        InsufficientAccelerators => "No node that takes pods has enough free accelerators; the message names the nearest fit.",
        InsufficientMemory => "No node has the memory that each replica asks for, or none has it free; the message names the nearest fit.",
        UnknownProduct => "No node carries a label `nvidia.com/gpu.product` with one of `spec.accelerator.productNames`.",
        AllReplicasReady => "As many replicas are ready as were asked for.",
        SomeReplicasUnready => "Fewer replicas are ready than were asked for.",
        Complete => "Every pod runs the present revision.",
        NoRoomToSurge => "The rollout starts new pods before it stops old ones, and only the old ones hold the accelerators that the new ones need.",
        ProgressDeadlineExceeded => "The rollout made no progress for `spec.rollout.progressDeadline`.",
        PodCreationFailed => "Pods cannot be created, by a quota or an admission rule; the message quotes it.",
        InvalidImageName => "The image reference cannot be parsed.",
        ImagePullFailed => "The image cannot be pulled. `Stalled` at once if it does not exist or is refused, else after a minute.",
        ContainerConfigError => "The container cannot be created: something it mounts or refers to is missing or unfit.",
        Evicted => "The node threw the pod out, for lack of memory or disk.",
        OutOfMemory => "A container used more memory than its limit (`Stalled` from the third time on), or the model does not fit into it (at once).",
        Crashed => "A container ended without saying why. `Stalled` from the third end on.",
        ProbeFailed => "A container that was ready has not answered its probe for 10 seconds, was stopped for that, or never became ready in time.",
        InvalidConfiguration => "The server cannot use its configuration.",
        WeightsNotFound => "The source says that the model, the revision or a file does not exist.",
        WeightsUnauthorized => "The source wants credentials, or refused those given.",
        WeightsFetchFailed => "The source cannot be reached, or breaks off again and again. `Stalled` from the third end of the init step on.",
        ChecksumMismatch => "The bytes do not have the digest that was asked for.",
        ModelUnsupported => "The files are not a model that this build can serve.",
        DeviceUnsupported => "The pod was given accelerators that its image cannot use.",
        StartupStalled => "Fetching or loading made no progress for too long. `Stalled` from the third time on.",
        EngineCrashed => "The server met a fault of its own; please report it. `Stalled` from the third time on.",
        Enforced => "The operator is configured to run on a cluster that enforces NetworkPolicies.",
        NotEnforced => "The cluster stores NetworkPolicies without enforcing them.",
        EnforcementUnknown => "Nobody told the operator whether the cluster enforces NetworkPolicies.",
        NotManaged => "`spec.access.networkPolicy` is `None`.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_written_as_their_names() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert!(reason.doc().ends_with('.'), "{reason}");
        }
    }
}
