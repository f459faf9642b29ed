//! What is believed of one request.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use candela_wire::trust::{AUTHORIZATION, DEADLINE_MS, MAX_DEADLINE_MS, MAX_TENANT_BYTES, TENANT};
use http::{HeaderMap, HeaderValue};
use tracing::warn;

use super::{
    Trust,
    token::{self, Finding, Refusal},
};
use crate::api::ApiError;

/// Who sent a request, as far as that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Caller {
    /// It came from the gateway.
    pub(crate) trusted: bool,
    /// With whom it shares what was computed of prompts; `None` = with all who have none.
    pub(crate) salt: Option<[u8; 32]>,
    /// Time for the whole request, beside the server's own limit.
    pub(crate) deadline: Option<Duration>,
}

impl Caller {
    /// As it was found when the request arrived.
    pub(crate) fn of(request: &Request) -> Self {
        request.extensions().get().copied().unwrap_or_default()
    }

    /// The shorter one of the server's limit and the caller's.
    pub(crate) fn within(&self, limit: Duration) -> Duration {
        self.deadline.map_or(limit, |deadline| deadline.min(limit))
    }
}

impl Trust {
    /// Who sends a request with these headers. Without a token it is anybody, and the other headers mean nothing.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        // A clock before 1970 finds every token "not valid yet".
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.caller_at(headers, now)
    }

    pub(super) fn caller_at(&self, headers: &HeaderMap, now: u64) -> Result<Caller, ApiError> {
        if !headers.contains_key(AUTHORIZATION) {
            return Ok(Caller::default());
        }
        let refuse = |refusal: Refusal| {
            self.metrics.token(refusal.code());
            Err(ApiError::GatewayToken(refusal))
        };
        let Some(token) = only(headers, AUTHORIZATION).ok().flatten().and_then(bearer) else {
            return refuse(Refusal::Malformed);
        };
        let Some(keys) = self.keys() else {
            self.metrics.token("no_keys");
            return Ok(self.alone());
        };
        match token::check(&keys, token, now) {
            Finding::Refused(refusal) => refuse(refusal),
            Finding::UnknownKey => {
                if keys.first_warning() {
                    warn!("a token of the gateway names a key that the trust file does not hold");
                }
                self.metrics.token("unknown_key");
                Ok(self.alone())
            }
            Finding::Good => {
                self.metrics.token("trusted");
                let salt = tenant(headers)?.map(|tenant| self.salt_of(tenant));
                Ok(Caller { trusted: true, salt, deadline: deadline(headers)? })
            }
        }
    }

    /// For a token that may be the gateway's and cannot be checked. It must not stop the data plane, and the gateway may
    /// be speaking for several tenants that must not share: so nobody shares with this request.
    fn alone(&self) -> Caller {
        Caller { salt: Some(rand::random()), ..Caller::default() }
    }
}

/// `None` = it is not `Bearer` and something.
fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("Bearer") && !token.is_empty()).then_some(token)
}

/// The value of a header that may be there once.
fn only<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a HeaderValue>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(ApiError::GatewayHeader { name, what: "is there more than once".to_owned() }),
    }
}

fn tenant(headers: &HeaderMap) -> Result<Option<&[u8]>, ApiError> {
    let Some(value) = only(headers, TENANT)? else { return Ok(None) };
    let bytes = value.as_bytes();
    if (1..=MAX_TENANT_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
        return Ok(Some(bytes));
    }
    let what = format!("must be 1 to {MAX_TENANT_BYTES} visible ASCII characters");
    Err(ApiError::GatewayHeader { name: TENANT, what })
}

fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = only(headers, DEADLINE_MS)? else { return Ok(None) };
    // `parse` would also take a sign.
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        Some(ms @ 1..=MAX_DEADLINE_MS) => Ok(Some(Duration::from_millis(ms))),
        _ => {
            let what = format!("must be a whole number of milliseconds from 1 to {MAX_DEADLINE_MS}");
            Err(ApiError::GatewayHeader { name: DEADLINE_MS, what })
        }
    }
}
