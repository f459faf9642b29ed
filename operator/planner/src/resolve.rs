//! `resolve`: everything the spec says, validated, dereferenced and made effective, or why that cannot be.

use candela_crds::{EngineName, LlmDeploymentSpec};

use crate::Device;

/// A spec with nothing left to look up and no default left to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    /// The spec as written, for what is passed on unchanged.
    pub spec: LlmDeploymentSpec,
    pub engine: EngineName,
    pub device: Device,
    /// Image of the server's container.
    pub image: String,
    /// Arguments from the operator's configuration.
    pub image_args: Vec<String>,
    /// Image that runs `candela-server fetch`, when the weights must be fetched.
    pub fetch_image: Option<String>,
    pub served_name: String,
    pub source: Source,
    /// Extended resource and count, when there is an accelerator.
    pub accelerator: Option<(String, u32)>,
    /// 0 when suspended.
    pub replicas: i32,
    pub progress_deadline_secs: i32,
    pub grace_secs: i32,
    /// Namespace of the operator.
    pub operator_namespace: String,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Part of the image: `builtin://demo`, or a custom image without a URI.
    Image,
    /// Fetched by the init step from this host and port.
    Fetched { host: String, port: u16 },
    /// On a PersistentVolumeClaim.
    Claim { name: String, path: String },
}
