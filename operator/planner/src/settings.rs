//! What the operator's configuration tells the planner.

use candela_crds::EngineName;
use serde::{Deserialize, Serialize};

/// The planner's part of `operator.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Images by engine and device.
    pub images: Vec<ImageRule>,
    /// Whether the cluster's network plugin enforces NetworkPolicies.
    #[serde(default)]
    pub network_policy_enforced: NetworkPolicyEnforced,
    /// Namespace of the operator; pods there may reach the servers' internal port.
    #[serde(default = "operator_namespace")]
    pub operator_namespace: String,
    /// Address of the hub that `hf://` means, such as a mirror inside the company; absent = `https://huggingface.co`.
    /// Secrets are sent to its host, if their annotation says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_endpoint: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            images: Vec::new(),
            network_policy_enforced: NetworkPolicyEnforced::Unknown,
            operator_namespace: operator_namespace(),
            hub_endpoint: None,
        }
    }
}

fn operator_namespace() -> String {
    "candela-system".to_owned()
}

/// Which image serves which engine on which device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageRule {
    pub engine: EngineName,
    pub device: Device,
    pub image: String,
    /// Arguments added after those that the operator writes.
    #[serde(default)]
    pub args: Vec<String>,
}

/// What a server computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Device {
    Cpu,
    Nvidia,
}

impl Device {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "Cpu",
            Self::Nvidia => "Nvidia",
        }
    }
}

/// Whether the cluster enforces NetworkPolicies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkPolicyEnforced {
    Yes,
    No,
    #[default]
    Unknown,
}
