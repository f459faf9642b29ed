//! One token: a JWS in compact form (RFC 7515, 7519) of the few shapes that a ServiceAccount token has. Everything else
//! is refused, not interpreted.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::keys::{Algorithm, Keys};

/// Kubernetes' own have about a thousand bytes.
pub(super) const MAX_BYTES: usize = 8 << 10;
const MAX_KEY_ID_BYTES: usize = 256;
/// Seconds that the clocks of two machines may differ by.
pub(super) const LEEWAY: u64 = 60;

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Malformed,
    TooLong,
    Algorithm,
    Signature,
    Issuer,
    Audience,
    Subject,
    Expired,
    NotYetValid,
}

impl Refusal {
    /// For metrics.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Subject => "subject",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
        }
    }

    /// Completes "the token …". Nothing of the token is repeated.
    pub(crate) fn says(self) -> &'static str {
        match self {
            Self::Malformed => "is not one `Bearer` with a signed JWT of plain header parameters",
            Self::TooLong => "is longer than 8 KiB",
            Self::Algorithm => "is not signed as the cluster's key of that name signs (RS256 or ES256)",
            Self::Signature => "has a signature that the cluster's key of that name did not make",
            Self::Issuer => "is of another issuer than this cluster",
            Self::Audience => "is not for the audience `candela-data-plane`",
            Self::Subject => "is not of the gateway's ServiceAccount",
            Self::Expired => "has expired",
            Self::NotYetValid => "is not valid yet",
        }
    }
}

/// What a token is found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    Good,
    /// Well-formed and for us, but of a key that the set does not hold (yet, or any more).
    UnknownKey,
    Refused(Refusal),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default)]
    typ: Option<String>,
    // What would have to be understood, or would bring a key along: Kubernetes writes none of it.
    #[serde(default)]
    crit: Option<IgnoredAny>,
    #[serde(default)]
    jwk: Option<IgnoredAny>,
    #[serde(default)]
    jku: Option<IgnoredAny>,
    #[serde(default)]
    x5u: Option<IgnoredAny>,
    #[serde(default)]
    x5c: Option<IgnoredAny>,
    #[serde(default)]
    b64: Option<IgnoredAny>,
    #[serde(default)]
    zip: Option<IgnoredAny>,
    #[serde(default)]
    enc: Option<IgnoredAny>,
}

impl Header {
    fn is_plain(&self) -> bool {
        let extras =
            [&self.crit, &self.jwk, &self.jku, &self.x5u, &self.x5c, &self.b64, &self.zip, &self.enc];
        let jwt = self.typ.as_deref().is_none_or(|typ| typ.eq_ignore_ascii_case("JWT"));
        jwt && extras.iter().all(|extra| extra.is_none()) && (1..=MAX_KEY_ID_BYTES).contains(&self.kid.len())
    }
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Audience,
    /// Seconds since 1970, also with a fraction.
    exp: f64,
    #[serde(default)]
    nbf: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

/// Checks a token at `now`, in seconds since 1970.
pub(super) fn check(keys: &Keys, token: &str, now: u64) -> Finding {
    if token.len() > MAX_BYTES {
        return Finding::Refused(Refusal::TooLong);
    }
    if let Some(ends) = keys.remembered(token) {
        return if now < ends { Finding::Good } else { Finding::Refused(Refusal::Expired) };
    }
    match read(keys, token, now) {
        Err(refusal) => Finding::Refused(refusal),
        Ok(None) => Finding::UnknownKey,
        Ok(Some(ends)) => {
            keys.remember(token, ends, now);
            Finding::Good
        }
    }
}

/// When a good token ends, leeway included; `None` = its key is not in the set.
fn read(keys: &Keys, token: &str, now: u64) -> Result<Option<u64>, Refusal> {
    let malformed = Refusal::Malformed;
    let (signed, signature) = token.rsplit_once('.').ok_or(malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(malformed)?;
    // The decoder takes neither padding nor stray bits: a token has one spelling. A fourth part would meet its alphabet.
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed);
    let (header, claims, signature) = (decode(header)?, decode(claims)?, decode(signature)?);
    let header: Header = object(&header)?;
    let algorithm = Algorithm::named(&header.alg).ok_or(Refusal::Algorithm)?;
    if !header.is_plain() {
        return Err(malformed);
    }
    let known = keys.has(&header.kid);
    if known {
        match keys.signed(&header.kid, algorithm, signed.as_bytes(), &signature) {
            None => return Err(Refusal::Algorithm),
            Some(false) => return Err(Refusal::Signature),
            Some(true) => {}
        }
    }
    // Also where the key is unknown: what is not for us anyway need not be served.
    let claims: Claims = object(&claims)?;
    let ends = claims.check(keys, now)?;
    Ok(known.then_some(ends))
}

/// serde would also take a list of the fields' values.
fn object<T: DeserializeOwned>(text: &[u8]) -> Result<T, Refusal> {
    let object = text.starts_with(b"{");
    object.then(|| serde_json::from_slice(text).ok()).flatten().ok_or(Refusal::Malformed)
}

impl Claims {
    /// When the token ends, leeway included.
    fn check(&self, keys: &Keys, now: u64) -> Result<u64, Refusal> {
        if self.iss != keys.issuer {
            return Err(Refusal::Issuer);
        }
        let wanted = keys.audience.as_str();
        let for_us = match &self.aud {
            Audience::One(one) => one == wanted,
            Audience::Several(several) => several.iter().any(|one| one == wanted),
        };
        if !for_us {
            return Err(Refusal::Audience);
        }
        if !keys.subjects.contains(&self.sub) {
            return Err(Refusal::Subject);
        }
        // Saturating, and 0 for what is negative: JSON has no NaN.
        let ends = (self.exp as u64).saturating_add(LEEWAY);
        if now >= ends {
            return Err(Refusal::Expired);
        }
        if self.nbf.is_some_and(|begins| now.saturating_add(LEEWAY) < begins as u64) {
            return Err(Refusal::NotYetValid);
        }
        Ok(ends)
    }
}
