//! `{"error": {...}}`, with the types that OpenAI's clients map to their exceptions.

use serde::{Deserialize, Serialize};

/// The body of every error on an OpenAI route, and of the event that ends a broken stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: ErrorDetail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    pub message: String,
    #[serde(rename = "type")]
    pub kind: ErrorKind,
    /// The field at fault, such as `messages[0].content`; `null` if it is none of them.
    pub param: Option<String>,
    pub code: Option<String>,
}

/// Whose fault it is, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    InvalidRequestError,
    RateLimitError,
    TimeoutError,
    ServiceUnavailableError,
    ServerError,
}
