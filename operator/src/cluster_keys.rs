//! The public keys of the cluster's ServiceAccount tokens, which the leader asks the API server for. The planner puts
//! them into the ConfigMap that servers check the gateway's token with.

use std::sync::Arc;

use candela_planner::ClusterKeys;
use http::Request;
use serde_json::{Map, Value};
use tokio::time::Duration;
use tracing::{info, warn};

use crate::{
    context::Context,
    error::{Chain, Error},
    metrics::OutcomeLabels,
    watches::wake_all,
};

/// A new key should be published before the first tokens that it signs have replaced those of the old one: the kubelet
/// takes as long again to bring it into the pods. Nothing tells when it changes, so it is asked for.
const EVERY: Duration = Duration::from_secs(60);
/// Where every API server says how its tokens are checked. The keys are read here too, and not at the `jwks_uri` of the
/// first document: that may be an address of the outside.
const DISCOVERY: &str = "/.well-known/openid-configuration";
const KEYS: &str = "/openid/v1/jwks";
/// Servers read as many.
const MAX_KEYS: usize = 64;
/// What is public of a key, and is published. A key has no others; if it had, they were none of anybody's business.
const PUBLIC: [&str; 9] = ["kty", "use", "alg", "kid", "n", "e", "crv", "x", "y"];

#[derive(Debug, thiserror::Error)]
enum KeysError {
    #[error(transparent)]
    Call(#[from] Error),
    #[error("`{DISCOVERY}` names no `issuer`")]
    Issuer,
    #[error("`{KEYS}` holds {0} keys with a `kid`, which must be 1 to {MAX_KEYS}")]
    Keys(usize),
}

/// Asks again and again, for as long as there is a resource.
pub(crate) async fn follow(ctx: Arc<Context>) {
    loop {
        tokio::time::sleep(EVERY).await;
        if !ctx.caches.resources.is_empty() {
            look(&ctx).await;
        }
    }
}

/// Asks once. What is known stays if there is no good answer; what is new wakes every resource.
pub(crate) async fn look(ctx: &Context) {
    let found = read(ctx).await;
    let outcome = if found.is_ok() { "ok" } else { "failed" };
    ctx.metrics.key_reads.get_or_create(&OutcomeLabels { outcome }).inc();
    match found {
        Ok(keys) => {
            let mut known = ctx.cluster_keys.write();
            if known.as_ref() != Some(&keys) {
                info!(issuer = %keys.issuer, keys = keys.keys.len(), "the keys of the cluster's tokens are new");
                *known = Some(keys);
                drop(known);
                wake_all(ctx);
            }
        }
        Err(error) => warn!(
            error = %Chain(&error),
            "cannot read the keys of the cluster's tokens: servers go on with those that they have"
        ),
    }
}

async fn read(ctx: &Context) -> Result<ClusterKeys, KeysError> {
    let discovery = get(ctx, DISCOVERY).await?;
    let jwks = get(ctx, KEYS).await?;
    cluster_keys(&discovery, &jwks)
}

async fn get(ctx: &Context, path: &str) -> Result<Value, Error> {
    let request = Request::get(path).body(Vec::new()).expect("a constant path makes a valid request");
    ctx.client.request(request).await.map_err(|source| Error::call("get", path, source))
}

fn cluster_keys(discovery: &Value, jwks: &Value) -> Result<ClusterKeys, KeysError> {
    let issuer = discovery["issuer"].as_str().filter(|issuer| !issuer.is_empty()).ok_or(KeysError::Issuer)?;
    let public = |key: &Value| {
        let id = key["kid"].as_str()?.to_owned();
        let fields = PUBLIC.iter().filter_map(|name| Some(((*name).to_owned(), key.get(*name)?.clone())));
        Some((id, Value::Object(fields.collect::<Map<_, _>>())))
    };
    let mut keys: Vec<(String, Value)> =
        jwks["keys"].as_array().into_iter().flatten().filter_map(public).collect();
    if !(1..=MAX_KEYS).contains(&keys.len()) {
        return Err(KeysError::Keys(keys.len()));
    }
    // Their order means nothing, and must not look like news.
    keys.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(ClusterKeys { issuer: issuer.to_owned(), keys: keys.into_iter().map(|(_, key)| key).collect() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Script, failure};

    fn jwks(ids: &[&str]) -> Value {
        let key = |id: &&str| json!({"kid": id, "kty": "RSA", "alg": "RS256", "use": "sig", "n": "AQ", "e": "AQAB"});
        json!({"keys": ids.iter().map(key).collect::<Vec<_>>()})
    }

    fn discovery() -> Value {
        json!({"issuer": "https://cluster", "jwks_uri": "https://elsewhere.example/jwks"})
    }

    #[test]
    fn only_what_is_public_is_taken_in_a_fixed_order() {
        let mut given = jwks(&["b", "a"]);
        given["keys"][0]["d"] = json!("secret");
        given["keys"][0]["k"] = json!("secret");
        given["keys"].as_array_mut().unwrap().push(json!({"kty": "RSA"}));
        let keys = cluster_keys(&discovery(), &given).unwrap();
        assert_eq!(keys, cluster_keys(&discovery(), &jwks(&["a", "b"])).unwrap());
        assert_eq!(keys.keys.len(), 2);
        assert!(!serde_json::to_string(&keys.keys).unwrap().contains("secret"));
    }

    #[test]
    fn answers_that_cannot_be_used_say_why() {
        let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for (discovery, jwks, says) in [
            (json!({}), jwks(&["a"]), "names no `issuer`"),
            (json!({"issuer": ""}), jwks(&["a"]), "names no `issuer`"),
            (discovery(), json!({}), "holds 0 keys"),
            (discovery(), json!("keys"), "holds 0 keys"),
            (discovery(), jwks(&many), "holds 65 keys"),
        ] {
            let error = cluster_keys(&discovery, &jwks).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_known_stays_while_there_is_no_answer() {
        let script = Script::answering([
            (200, discovery()),
            (200, jwks(&["a"])),
            failure(503, "ServiceUnavailable", "later"),
            (200, discovery()),
            failure(403, "Forbidden", "no"),
            (200, discovery()),
            (200, json!({"keys": []})),
            (200, discovery()),
            (200, jwks(&["a", "b"])),
        ]);
        let ctx = script.context();
        let mut ids = Vec::new();
        for _ in 0..5 {
            look(&ctx).await;
            let known = ctx.cluster_keys.read().clone().unwrap();
            ids.push(
                known.keys.iter().map(|key| key["kid"].as_str().unwrap().to_owned()).collect::<String>(),
            );
        }
        assert_eq!(ids, ["a", "a", "a", "a", "ab"]);
        let asked: Vec<String> = script.asked().into_iter().map(|asked| asked.path).collect();
        assert_eq!(asked[..2], [DISCOVERY, KEYS], "never the address that the document names");
        assert!(asked.iter().all(|path| path == DISCOVERY || path == KEYS));
    }
}
