//! A connection's bytes with time limits.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use super::Bounds;
use crate::resting::{Life, Part};

/// A stream that fails when its client is too slow. hyper has one limit for "until the headers are read", which
/// starts while a kept-alive connection rests; resting may be long and headers may not, so the short limit is
/// here: it runs from the first byte after a rest until the request reaches the service.
pub(super) struct Guarded {
    stream: TcpStream,
    /// Bytes that were read to see which protocol is spoken.
    pub(super) unread: Bytes,
    /// Requests share the connection, and have their time limits elsewhere.
    pub(super) multiplexed: bool,
    bounds: Bounds,
    life: Arc<Life>,
    head_deadline: Pin<Box<Sleep>>,
    /// Runs while a write is pending.
    write_deadline: Option<Pin<Box<Sleep>>>,
    closed_slow: Counter,
}

impl Guarded {
    pub(super) fn new(stream: TcpStream, bounds: Bounds, life: Arc<Life>, closed_slow: Counter) -> Self {
        let head_deadline = Box::pin(tokio::time::sleep(bounds.header));
        Self {
            stream,
            unread: Bytes::new(),
            multiplexed: false,
            bounds,
            life,
            head_deadline,
            write_deadline: None,
            closed_slow,
        }
    }

    fn too_slow(&self, what: &'static str) -> io::Error {
        self.closed_slow.inc();
        io::Error::new(io::ErrorKind::TimedOut, what)
    }

    /// Lets `result` through unless writing has been pending for too long.
    fn limit_write<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_deadline = None;
            return result;
        }
        let limit = self.bounds.write;
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(self.too_slow("the client does not read")))
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.unread.is_empty() {
            let n = self.unread.len().min(buf.remaining());
            buf.put_slice(&self.unread[..n]);
            self.unread.advance(n);
            return Poll::Ready(Ok(()));
        }
        if self.multiplexed {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let part = self.life.part();
        if buf.filled().len() > before && matches!(part, Part::Resting | Part::Fresh) {
            self.life.enter(Part::Head);
            // For the first request it runs from accepting.
            if part == Part::Resting {
                let deadline = Instant::now() + self.bounds.header;
                self.head_deadline.as_mut().reset(deadline);
            }
        }
        if result.is_pending() && matches!(part, Part::Fresh | Part::Head) {
            ready!(self.head_deadline.as_mut().poll(cx));
            return Poll::Ready(Err(self.too_slow("the request's headers take too long")));
        }
        result
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.limit_write(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.limit_write(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.limit_write(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
