//! `application/problem+json` (RFC 9457): errors on every route that is not an OpenAI route.

use serde::{Deserialize, Serialize};

/// Media type of the body.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// The body.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem; `about:blank` where the status says it all.
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: String,
    /// The request that met it, as in `x-request-id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Ours: what programs tell errors apart by, such as `queue_full`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Ours: the field at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub param: Option<String>,
}

impl Problem {
    /// A problem that the status alone names.
    pub fn of_status(status: http::StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank".to_owned(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: None,
            code: None,
            param: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_standard_names() {
        let problem = Problem::of_status(http::StatusCode::NOT_FOUND, "no such route");
        assert_eq!(
            serde_json::to_string(&problem).expect("plain data serialises"),
            r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"no such route"}"#
        );
    }
}
