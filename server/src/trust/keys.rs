//! The public keys of one version of the trust file, and the tokens that they have been found to sign.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use candela_wire::trust::{TRUST_VERSION, TrustFile};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tracing::warn;

/// More keys than a cluster has while it rotates them.
const MAX_KEYS: usize = 64;
const MAX_SUBJECTS: usize = 64;
/// Tokens that are remembered: a gateway has one per replica and hour.
const MAX_REMEMBERED: usize = 256;
/// Bytes of a modulus: 2048 to 8192 bits.
const MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// How a token is signed. Fixed: no other algorithm is read from a token or a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Rs256,
    Es256,
}

impl Algorithm {
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "RS256" => Some(Self::Rs256),
            "ES256" => Some(Self::Es256),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
        }
    }
}

/// One version of the trust file.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) subjects: Vec<String>,
    keys: Vec<Key>,
    /// Digests of tokens that were good, and when they end in seconds since 1970. They go with the keys.
    good: Mutex<HashMap<[u8; 32], u64>>,
    warned: AtomicBool,
}

#[derive(Debug)]
struct Key {
    id: String,
    public: Public,
}

#[derive(Debug)]
enum Public {
    /// Big-endian without leading zeros.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// The point, uncompressed.
    P256(Vec<u8>),
}

/// RFC 7517, as far as it is used.
#[derive(Deserialize)]
struct Jwk {
    kid: String,
    kty: String,
    #[serde(default, rename = "use")]
    purpose: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

impl Keys {
    /// Leaves out keys that cannot be used, each by itself. `Err` = nothing of the file can be, in words for the log.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let file: TrustFile = serde_json::from_slice(text).map_err(|err| err.to_string())?;
        if file.version != TRUST_VERSION {
            return Err(format!("`version` is {}, this build reads {TRUST_VERSION}", file.version));
        }
        for (field, empty) in [
            ("issuer", file.issuer.is_empty()),
            ("audience", file.audience.is_empty()),
            ("subjects", file.subjects.is_empty() || file.subjects.iter().any(String::is_empty)),
        ] {
            if empty {
                return Err(format!("`{field}` is empty, or has an empty entry"));
            }
        }
        if file.subjects.len() > MAX_SUBJECTS || file.jwks.keys.len() > MAX_KEYS {
            return Err(format!("there are more than {MAX_SUBJECTS} `subjects` or {MAX_KEYS} `jwks.keys`"));
        }
        let mut keys = Vec::new();
        for (at, jwk) in file.jwks.keys.into_iter().enumerate() {
            match Key::read(jwk) {
                Ok(key) => keys.push(key),
                Err(error) => warn!(key = at, error, "left out a key of the trust file"),
            }
        }
        if keys.is_empty() {
            return Err("none of `jwks.keys` can be used: RS256 and ES256 are".to_owned());
        }
        Ok(Self {
            issuer: file.issuer,
            audience: file.audience,
            subjects: file.subjects,
            keys,
            good: Mutex::default(),
            warned: AtomicBool::new(false),
        })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// True once for each version of the file.
    pub(super) fn first_warning(&self) -> bool {
        !self.warned.swap(true, Ordering::Relaxed)
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id == id)
    }

    /// Whether a key of this name and for this algorithm made the signature. `None` = no such key is for it.
    pub(super) fn signed(
        &self,
        id: &str,
        algorithm: Algorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Option<bool> {
        let mut keys =
            self.keys.iter().filter(|key| key.id == id && key.public.algorithm() == algorithm).peekable();
        keys.peek()?;
        Some(keys.any(|key| key.public.verifies(message, signature)))
    }

    /// When a token ends that was found to be good.
    pub(super) fn remembered(&self, token: &str) -> Option<u64> {
        self.good().get(&digest(token)).copied()
    }

    pub(super) fn remember(&self, token: &str, ends: u64, now: u64) {
        let mut good = self.good();
        if good.len() >= MAX_REMEMBERED {
            good.retain(|_, ends| *ends > now);
        }
        if good.len() >= MAX_REMEMBERED
            && let Some(first) = good.iter().min_by_key(|(_, ends)| **ends).map(|(digest, _)| *digest)
        {
            good.remove(&first);
        }
        good.insert(digest(token), ends);
    }

    /// Held for a look-up only, never across an await.
    fn good(&self) -> MutexGuard<'_, HashMap<[u8; 32], u64>> {
        self.good.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

impl Key {
    fn read(jwk: Value) -> Result<Self, String> {
        let jwk: Jwk = serde_json::from_value(jwk).map_err(|err| err.to_string())?;
        if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return Err("`use` is not `sig`".to_owned());
        }
        let bytes = |name: &str, text: &Option<String>| {
            let text = text.as_deref().ok_or_else(|| format!("`{name}` is missing"))?;
            URL_SAFE_NO_PAD.decode(text).map_err(|err| format!("`{name}`: {err}"))
        };
        let public = match jwk.kty.as_str() {
            "RSA" => {
                let plain = |mut bytes: Vec<u8>| {
                    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
                    bytes.drain(..zeros);
                    bytes
                };
                let (n, e) = (plain(bytes("n", &jwk.n)?), plain(bytes("e", &jwk.e)?));
                if !MODULUS_BYTES.contains(&n.len()) || (n[0] < 0x80 && n.len() == *MODULUS_BYTES.start()) {
                    return Err("the modulus `n` has not 2048 to 8192 bits".to_owned());
                }
                if !(1..=4).contains(&e.len()) || e == [1] {
                    return Err("the exponent `e` is not from 3 to 2^32".to_owned());
                }
                Public::Rsa { n, e }
            }
            "EC" if jwk.crv.as_deref() == Some("P-256") => {
                let (x, y) = (bytes("x", &jwk.x)?, bytes("y", &jwk.y)?);
                if (x.len(), y.len()) != (32, 32) {
                    return Err("`x` and `y` have not 32 bytes each".to_owned());
                }
                Public::P256([&[4], &x[..], &y[..]].concat())
            }
            other => return Err(format!("`kty` `{other}` is neither RSA nor EC with `crv` P-256")),
        };
        if jwk.alg.as_deref().is_some_and(|alg| alg != public.algorithm().as_str()) {
            return Err(format!("`alg` is not {}, the only one for such a key", public.algorithm().as_str()));
        }
        Ok(Self { id: jwk.kid, public })
    }
}

impl Public {
    fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa { .. } => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Rsa { n, e } => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            Self::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
        }
    }
}
