//! Reading request bodies: how large one may be, how much all of them may hold, and what they may grow to.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, extract::Request};
use bytes::Bytes;
use candela_wire::openai::InvalidField;
use http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::error::ApiError;
use crate::app::App;

/// Announced bodies up to this have a share of their own, so that a few large ones cannot keep them out.
const SMALL_BYTES: usize = 64 << 10;
/// Everything in a request but its text.
const BASE_BYTES: usize = 64 << 10;
/// More than any text needs, with each character escaped.
const BYTES_PER_TOKEN: usize = 32;
const KIB: usize = 1 << 10;

/// What the bodies of a process may hold together, in KiB: taken before the first byte is read and given back when
/// the request is parsed.
pub(crate) struct Budget {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    /// Bytes of the larger share.
    large_bytes: usize,
}

impl Budget {
    /// A sixteenth of the container's memory, at most 64 MiB; a quarter of it for small bodies.
    pub(crate) fn of(memory_bytes: Option<u64>) -> Self {
        let most = 64 << 20;
        let all = memory_bytes.map_or(most, |bytes| (bytes / 16).clamp(1 << 20, most as u64) as usize);
        let small = all / 4;
        let share = |bytes| Arc::new(Semaphore::new(bytes / KIB));
        Self { small: share(small), large: share(all - small), large_bytes: all - small }
    }

    /// `None` = too much is being read already.
    pub(crate) fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let share = if bytes <= SMALL_BYTES { &self.small } else { &self.large };
        let permits = u32::try_from(bytes.div_ceil(KIB).max(1)).ok()?;
        Arc::clone(share).try_acquire_many_owned(permits).ok()
    }
}

/// Bytes that the body of one request may have.
pub(crate) fn limit_bytes(app: &App, context_length: u32) -> usize {
    let of_context = BASE_BYTES.saturating_add((context_length as usize).saturating_mul(BYTES_PER_TOKEN));
    app.limits.body_bytes.min(of_context).min(app.bodies.large_bytes)
}

/// The whole body, which must be JSON, and its part of the budget.
pub(super) async fn read(
    app: &App,
    context_length: u32,
    request: Request,
) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let media_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    let is_json = |value: &[u8]| {
        let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
        value[..end].trim_ascii().eq_ignore_ascii_case(b"application/json")
    };
    if !media_type.is_none_or(is_json) {
        return Err(ApiError::MediaType);
    }
    read_any(app, context_length, request).await
}

/// The same for a body of any type.
pub(crate) async fn read_any(
    app: &App,
    context_length: u32,
    request: Request,
) -> Result<(Bytes, OwnedSemaphorePermit), ApiError> {
    let limit = limit_bytes(app, context_length);
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > limit as u64) {
        discard(request.into_body()).await;
        return Err(ApiError::BodyTooLarge { limit });
    }
    // Without an announcement it may be as large as any.
    let most = announced.map_or(limit, |bytes| bytes as usize);
    let full = ApiError::QueueFull { retry_after: Duration::from_secs(1) };
    let body: Body = request.into_body();
    let Some(permit) = app.bodies.take(most) else {
        discard(body).await;
        return Err(full);
    };
    let collected = timeout(app.limits.body, Limited::new(body, limit).collect()).await;
    match collected {
        Err(_) => Err(ApiError::BodyTooSlow { limit: app.limits.body }),
        Ok(Err(err)) if err.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge { limit }),
        Ok(Err(_)) => Err(ApiError::BodyBroken),
        Ok(Ok(body)) => {
            let body = body.to_bytes();
            let room = shrunk(permit, body.len());
            Ok((body, room))
        }
    }
}

/// What a body of `n_bytes` needs of the room that was taken for one of any size.
fn shrunk(mut permit: OwnedSemaphorePermit, n_bytes: usize) -> OwnedSemaphorePermit {
    let needed = n_bytes.div_ceil(KIB).max(1);
    permit.split(needed).unwrap_or(permit)
}

/// Reads on for a while and keeps nothing: to close with bytes unread resets the connection, and the client then may
/// not see why.
async fn discard(mut body: Body) {
    let read = async {
        let mut left = 1 << 20;
        while let Some(Ok(frame)) = body.frame().await {
            left -= frame.data_ref().map_or(0, Bytes::len).min(left);
            if left == 0 {
                break;
            }
        }
    };
    // A client that is slower than this is cut off.
    let _ = timeout(Duration::from_secs(1), read).await;
}

/// Objects and arrays, of which a chat of as many turns as are allowed has three each.
const MAX_CONTAINERS: usize = 16 << 10;
/// Values besides the tokens of a prompt.
const MAX_OTHER_VALUES: usize = 64 << 10;

/// Refuses what would take far more memory as values than as text: `{"":0},` is 7 bytes, and hundreds as an object.
pub(crate) fn check_values(body: &[u8], context_length: u32) -> Result<(), ApiError> {
    let (mut containers, mut values) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => containers += 1,
            b',' if !in_string => values += 1,
            _ => {}
        }
    }
    let max_values = MAX_OTHER_VALUES.saturating_add(context_length as usize);
    if containers <= MAX_CONTAINERS && values <= max_values {
        return Ok(());
    }
    Err(ApiError::Invalid(InvalidField {
        param: None,
        message: format!(
            "the request has more than {MAX_CONTAINERS} objects and arrays or {max_values} values: send fewer \
             messages or a shorter prompt"
        ),
        code: "too_many_values",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_leave_room_for_small_ones_and_give_theirs_back() {
        let budget = Budget::of(Some(512 << 20));
        let large: Vec<_> = std::iter::from_fn(|| budget.take(4 << 20)).collect();
        assert_eq!(large.len(), 6, "24 MiB of 32");
        assert!(budget.take(100).is_some());
        drop(large);
        assert!(budget.take(4 << 20).is_some());
        let small = std::iter::from_fn(|| budget.take(0)).take(10_000).collect::<Vec<_>>();
        assert_eq!(small.len(), 8 << 10, "an announced length of 0 is not free");
        // What was not announced takes the most until it is there.
        let arrived: Vec<_> = (0..1000).filter_map(|_| Some(shrunk(budget.take(4 << 20)?, 100))).collect();
        assert_eq!(arrived.len(), 1000);
        assert_eq!(arrived.iter().map(OwnedSemaphorePermit::num_permits).sum::<usize>(), 1000);
    }

    #[test]
    fn only_structure_outside_strings_counts() {
        let text = format!(r#"{{"prompt": "{}"}}"#, r#"{[,\""#.repeat(100_000));
        assert!(check_values(text.as_bytes(), 10).is_ok());
        let objects = format!("[{}]", "{},".repeat(MAX_CONTAINERS));
        assert!(check_values(objects.as_bytes(), 10).is_err());
        let numbers = |n| format!("[0{}]", ",0".repeat(n));
        assert!(check_values(numbers(MAX_OTHER_VALUES + 10).as_bytes(), 10).is_ok());
        assert!(check_values(numbers(MAX_OTHER_VALUES + 11).as_bytes(), 10).is_err());
    }
}
