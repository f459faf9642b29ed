//! A request's body as gRPC's decoder reads it, under the rules that bodies have over HTTP: each message takes its part of the
//! process's budget before its bytes are read, is no larger than any body, and arrives in time.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep, sleep},
};
use tonic::Status;

use super::status;
use crate::{api::ApiError, app::App};

/// Parts of the budget of the messages that are read and not yet made work of.
#[derive(Clone, Default)]
pub(super) struct Room(Arc<Mutex<Vec<OwnedSemaphorePermit>>>);

impl Room {
    /// They are given back when the result is dropped.
    pub(super) fn take(&self) -> Vec<OwnedSemaphorePermit> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, permit: OwnedSemaphorePermit) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(permit);
    }
}

/// A flag and the length of the message, big-endian.
const PREFIX_BYTES: usize = 5;

pub(super) struct Metered {
    body: Body,
    app: Arc<App>,
    room: Room,
    /// Bytes of one message at most.
    limit: usize,
    prefix: [u8; PREFIX_BYTES],
    n_prefix: usize,
    /// Of the message at hand.
    left: usize,
    /// Whether more than one message may come.
    is_stream: bool,
    n_messages: usize,
    /// Whether something must arrive before `deadline`.
    expecting: bool,
    deadline: Pin<Box<Sleep>>,
}

impl Metered {
    /// Of a stream, messages may come whenever they like, but each must come whole in time. Of a call with one message,
    /// the end must come in time as well: its handler waits for it.
    pub(super) fn new(body: Body, app: Arc<App>, room: Room, limit: usize, is_stream: bool) -> Self {
        let deadline = Box::pin(sleep(app.limits.body));
        Self {
            body,
            app,
            room,
            limit,
            prefix: [0; PREFIX_BYTES],
            n_prefix: 0,
            left: 0,
            is_stream,
            n_messages: 0,
            expecting: !is_stream,
            deadline,
        }
    }

    fn account(&mut self, mut data: &[u8]) -> Result<(), ApiError> {
        while !data.is_empty() {
            if self.left > 0 {
                let n = self.left.min(data.len());
                self.left -= n;
                data = &data[n..];
                continue;
            }
            if !self.is_stream && self.n_messages > 0 {
                let what = "this method takes one message".to_owned();
                return Err(ApiError::invalid("", what));
            }
            if self.is_stream && self.n_prefix == 0 {
                self.deadline.as_mut().reset(Instant::now() + self.app.limits.body);
            }
            let n = (PREFIX_BYTES - self.n_prefix).min(data.len());
            self.prefix[self.n_prefix..self.n_prefix + n].copy_from_slice(&data[..n]);
            self.n_prefix += n;
            data = &data[n..];
            if self.n_prefix == PREFIX_BYTES {
                self.n_prefix = 0;
                self.n_messages += 1;
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                if self.left > self.limit {
                    return Err(ApiError::BodyTooLarge { limit: self.limit });
                }
                let retry_after = std::time::Duration::from_secs(1);
                let permit = self.app.bodies.take(self.left).ok_or(ApiError::QueueFull { retry_after })?;
                self.room.add(permit);
            }
        }
        self.expecting = !self.is_stream || self.left > 0 || self.n_prefix > 0;
        Ok(())
    }
}

impl HttpBody for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.expecting => {
                ready!(self.deadline.as_mut().poll(cx));
                let limit = self.app.limits.body;
                Poll::Ready(Some(Err(status(&ApiError::BodyTooSlow { limit }))))
            }
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(status(&ApiError::BodyBroken)))),
            Poll::Ready(Some(Ok(frame))) => {
                let fine = frame.data_ref().map_or(Ok(()), |data| self.account(data));
                Poll::Ready(Some(fine.map(|()| frame).map_err(|err| status(&err))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
