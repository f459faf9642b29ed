//! The API types of `candela.dev/v1alpha1`: what a user may write, with every rule that the API server can check
//! by itself. No behaviour: what a value *means* is the planner's business.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod conditions;
mod duration;
mod llm_deployment;
mod quantity;
mod reference;
mod schema;

pub use conditions::{Condition, ConditionStatus, ConditionType, Reason};
pub use duration::{Duration, InvalidDuration};
pub use llm_deployment::*;
pub use quantity::{InvalidQuantity, Quantity};
pub use reference::llm_deployment_reference;
pub use schema::{crd_yaml, crds, llm_deployment_crd};

/// API group of every kind.
pub const GROUP: &str = "candela.dev";
/// Version of every kind.
pub const VERSION: &str = "v1alpha1";
/// Label that a Secret must carry (value `true`) before Candela reads it.
pub const USABLE_LABEL: &str = "candela.dev/usable";
/// Annotation of a Secret: comma-separated hosts to which Candela may send it.
pub const HOSTS_ANNOTATION: &str = "candela.dev/hosts";
/// Label of every child and pod: the name of its LlmDeployment.
pub const LLM_DEPLOYMENT_LABEL: &str = "candela.dev/llmdeployment";
