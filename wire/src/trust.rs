//! What a server believes of the gateway in front of it: the headers, the token beside them, and the file with the keys
//! that the token is checked with.
//!
//! The gateway's pod mounts a projected ServiceAccount token for [`AUDIENCE`] and sends it with every request as
//! [`AUTHORIZATION`]. That is a header of its own since `Authorization` belongs to users: every OpenAI client sends one,
//! the public API may come to check it, and a proxy between the two may log or rewrite it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `Bearer TOKEN`: who speaks. Headers below are believed only beside a token that is good.
pub const AUTHORIZATION: &str = "x-candela-authorization";
/// For whom a request is made. Requests of two tenants never share what was computed of a prompt.
/// 1 to [`MAX_TENANT_BYTES`] visible ASCII characters.
pub const TENANT: &str = "x-candela-tenant";
/// Milliseconds that the whole request may still take, 1 to [`MAX_DEADLINE_MS`]; the server's own limit holds besides.
pub const DEADLINE_MS: &str = "x-candela-deadline-ms";
/// Name of the request in logs and in the answer. A client that is not trusted may propose one, too: it is a label, and
/// proves nothing.
pub const REQUEST_ID: &str = "x-request-id";

pub const MAX_TENANT_BYTES: usize = 256;
/// A day.
pub const MAX_DEADLINE_MS: u64 = 24 * 3600 * 1000;
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// Audience that the gateway's projected token must have.
pub const AUDIENCE: &str = "candela-data-plane";
/// ServiceAccount of the gateway, in the namespace of the operator.
pub const GATEWAY_SERVICE_ACCOUNT: &str = "candela-gateway";

/// Where the ConfigMap with [`TrustFile`] is mounted.
pub const TRUST_DIR: &str = "/var/run/candela/trust";
/// Key of the ConfigMap.
pub const TRUST_KEY: &str = "trust.json";
/// The file in the pod. It changes while the server runs, when the cluster's keys do.
pub const TRUST_PATH: &str = "/var/run/candela/trust/trust.json";
/// Version of [`TrustFile`] that this build writes and reads.
pub const TRUST_VERSION: u32 = 1;

/// `sub` of the gateway's token, where the operator runs in this namespace.
pub fn gateway_subject(operator_namespace: &str) -> String {
    format!("system:serviceaccount:{operator_namespace}:{GATEWAY_SERVICE_ACCOUNT}")
}

/// Whose tokens are good. Pods live on while the operator that writes it is replaced, so a field that a reader does not
/// know is ignored (`server.json` is stricter: it never outlives its pod).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrustFile {
    /// [`TRUST_VERSION`].
    pub version: u32,
    /// `iss` of the cluster's tokens.
    pub issuer: String,
    /// `aud` must hold this one.
    pub audience: String,
    /// Values of `sub` that are trusted.
    pub subjects: Vec<String>,
    /// The cluster's public keys.
    pub jwks: JwkSet,
}

/// RFC 7517. Each key is read by itself, so that one of an unknown kind does not hide the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JwkSet {
    pub keys: Vec<Value>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_the_key_in_the_folder() {
        assert_eq!(TRUST_PATH, format!("{TRUST_DIR}/{TRUST_KEY}"));
        assert_eq!(gateway_subject("candela-system"), "system:serviceaccount:candela-system:candela-gateway");
    }

    #[test]
    fn a_file_of_a_newer_operator_is_read() {
        let text = r#"{"version":1,"issuer":"https://a","audience":"b","subjects":["c"],"jwks":{"keys":[{"kid":"1"}],"x":1},"more":2}"#;
        let file: TrustFile = serde_json::from_str(text).expect("fields may be added");
        assert_eq!(
            serde_json::to_string(&file).expect("plain data"),
            r#"{"version":1,"issuer":"https://a","audience":"b","subjects":["c"],"jwks":{"keys":[{"kid":"1"}]}}"#
        );
    }
}
