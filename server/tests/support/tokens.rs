//! A cluster's keys, and the ServiceAccount tokens that they sign.

#![allow(dead_code, reason = "each test program uses its part")]

use std::time::{SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub(crate) const SUBJECT: &str = "system:serviceaccount:candela-system:candela-gateway";

/// One key of a cluster.
pub(crate) struct Signer {
    pub(crate) id: String,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
}

impl Signer {
    /// The same one each time: making one takes a second. It signs nothing outside of tests.
    pub(crate) fn rsa(id: &str) -> Self {
        let pair = RsaKeyPair::from_pkcs8(include_bytes!("rsa-for-tests.pk8")).unwrap();
        Self { id: id.to_owned(), pair: Pair::Rsa(pair) }
    }

    /// A new one.
    pub(crate) fn p256(id: &str) -> Self {
        let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let made = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, made.as_ref(), &random).unwrap();
        Self { id: id.to_owned(), pair: Pair::P256(pair) }
    }

    pub(crate) fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
        }
    }

    /// As `/openid/v1/jwks` shows it.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = json!({"use": "sig", "kid": self.id, "alg": self.algorithm()});
        match &self.pair {
            Pair::Rsa(pair) => {
                let public: rsa::PublicKeyComponents<Vec<u8>> = pair.public().into();
                jwk["kty"] = "RSA".into();
                jwk["n"] = encoded(&public.n).into();
                jwk["e"] = encoded(&public.e).into();
            }
            Pair::P256(pair) => {
                let point = pair.public_key().as_ref();
                jwk["kty"] = "EC".into();
                jwk["crv"] = "P-256".into();
                jwk["x"] = encoded(&point[1..33]).into();
                jwk["y"] = encoded(&point[33..]).into();
            }
        }
        jwk
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature).unwrap();
                signature
            }
            Pair::P256(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
        }
    }

    pub(crate) fn header(&self) -> Value {
        json!({"alg": self.algorithm(), "kid": self.id})
    }

    pub(crate) fn token(&self, claims: &Value) -> String {
        self.compact(&self.header().to_string(), &claims.to_string())
    }

    /// Signs whatever this is.
    pub(crate) fn compact(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encoded(header.as_bytes()), encoded(claims.as_bytes()));
        let signature = self.sign(signed.as_bytes());
        format!("{signed}.{}", encoded(&signature))
    }
}

pub(crate) fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Those of a projected token that was made at `now`, in seconds since 1970, and lasts an hour.
pub(crate) fn claims(now: u64) -> Value {
    json!({
        "aud": ["candela-data-plane"], "exp": now + 3600, "iat": now, "iss": ISSUER, "jti": "1", "nbf": now,
        "kubernetes.io": {"namespace": "candela-system", "serviceaccount": {"name": "candela-gateway", "uid": "2"}},
        "sub": SUBJECT,
    })
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The file that the operator publishes.
pub(crate) fn trust_file(signers: &[&Signer]) -> Value {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({"version": 1, "issuer": ISSUER, "audience": "candela-data-plane", "subjects": [SUBJECT],
        "jwks": {"keys": keys}})
}
