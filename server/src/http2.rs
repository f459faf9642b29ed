//! HTTP/2 on a connection of the public listener, by prior knowledge: what gRPC speaks. Its many requests share one
//! connection, so that the time limits that HTTP/1 has per connection are kept per stream here.

mod streams;

use std::{io, sync::Arc, time::Duration};

use axum::{Router, body::Body, response::IntoResponse};
use hyper::{Request, body::Incoming, rt::Executor, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    sync::Notify,
    task_local,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::{api::ApiError, listen::Bounds, resting::Life};
pub(crate) use streams::Unsent;
use streams::{Streams, Watched};

/// How a client that speaks HTTP/2 begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests that one connection may have at the same time.
const MAX_STREAMS: u32 = 128;
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Bytes of a connection's requests that nobody has read yet, which it may hold in our memory: no more than one of HTTP/1
/// has in its buffer.
const WINDOW_BYTES: u32 = 64 << 10;
/// Bytes of one answer that wait to be sent.
const SEND_BUFFER_BYTES: usize = 16 << 10;
/// For a client that reads nothing of an answer, where answers that are not read take much memory.
const SCARCE_PATIENCE: Duration = Duration::from_secs(1);
/// For a request that was on its way to a connection which is to make room.
const ROOM_LINGER: Duration = Duration::from_millis(250);
/// Between two questions whether a client is still there, and for its answer.
const PING: Duration = Duration::from_secs(20);

/// Whether HTTP/2 is spoken, and the bytes that were read to see it.
pub(crate) async fn is_spoken(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(bool, Vec<u8>)> {
    let mut begun = [0; PREFACE.len()];
    let mut n = 0;
    while n < PREFACE.len() {
        let more = stream.read(&mut begun[n..]).await?;
        n += more;
        // HTTP/1 has no method that begins so, so that its first bytes tell.
        if more == 0 || begun[..n] != PREFACE[..n] {
            return Ok((false, begun[..n].to_vec()));
        }
    }
    Ok((true, begun.to_vec()))
}

/// What connections of a listener have in common.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) bounds: Bounds,
    pub(crate) unsent: Arc<Unsent>,
    /// Answers that were cut off, since their clients did not read them.
    pub(crate) closed_slow: Counter,
    /// Streams run here; the listener waits for them.
    pub(crate) tasks: TaskTracker,
}

/// Answers all requests of a connection. `closing` completes when it is to take no more of them.
pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    life: Arc<Life>,
    shared: Shared,
    closing: impl Future<Output = ()>,
) -> io::Result<()> {
    let Shared { bounds, unsent, closed_slow, tasks } = shared;
    let streams = Arc::new(Streams::new(Arc::clone(&life), Arc::clone(&unsent)));
    let (answering, room) = (Arc::clone(&streams), Arc::clone(&unsent));
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, entry, room) = (router.clone(), answering.begin(), Arc::clone(&room));
        async move {
            if let Ok(cut) = CUT.try_with(Arc::clone) {
                entry.can_be_cut_by(cut);
            }
            let response = if room.is_exhausted() {
                Ok(ApiError::QueueFull { retry_after: SCARCE_PATIENCE }.into_response())
            } else {
                router.oneshot(request.map(Body::new)).await
            };
            response.map(|response| response.map(|body| Body::new(Watched::new(body, entry))))
        }
    });
    let connection = http2::Builder::new(Tasks(tasks))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection, closing);
    let grain = (bounds.write.min(bounds.idle) / 4).clamp(Duration::from_millis(10), SCARCE_PATIENCE);
    let mut look = interval(grain);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // When a client that has been told that the connection ends is no longer waited for, if it asks nothing.
    let mut over: Option<Instant> = None;
    loop {
        let is_resting = streams.resting().is_some();
        let tell = tokio::select! {
            // First, so that a request which has arrived is one.
            biased;
            result = connection.as_mut() => return result.map_err(io::Error::other),
            () = closing.as_mut(), if over.is_none() => Some(bounds.header),
            () = life.told_to_close(), if over.is_none() => Some(ROOM_LINGER),
            () = sleep_until(over.unwrap_or_else(Instant::now)), if over.is_some() && is_resting => {
                // Half a request's head keeps no connection open, nor does a client that does not go when told.
                if streams.resting().is_some() {
                    return Ok(());
                }
                None
            }
            _ = look.tick() => {
                let patience = if unsent.is_scarce() { SCARCE_PATIENCE.min(bounds.write) } else { bounds.write };
                closed_slow.inc_by(streams.cut_unread(patience));
                let rests_long = streams.resting().is_some_and(|since| since.elapsed() > bounds.idle);
                (over.is_none() && rests_long).then_some(bounds.header)
            }
        };
        if let Some(patience) = tell {
            over = Some(Instant::now() + patience);
            // Requests that are on their way are answered still.
            connection.as_mut().graceful_shutdown();
        }
    }
}

task_local! {
    /// Ends the stream whose task it is.
    static CUT: Arc<Notify>;
}

/// Runs streams as tasks that the listener waits for. One that is cut is dropped, and so reset, alone.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let cut = Arc::new(Notify::new());
        let stream = CUT.scope(Arc::clone(&cut), stream);
        self.0.spawn(async move {
            tokio::select! {
                biased;
                _ = stream => {}
                () = cut.notified() => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_bytes_tell_the_protocol() {
        for (bytes, spoken, read) in [
            (&PREFACE[..], true, 24),
            (b"POST / HTTP/1.1\r\n\r\n", false, 19),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r ", false, 24),
            (b"P", false, 1),
            (b"", false, 0),
        ] {
            let (is_spoken, begun) = is_spoken(&mut &bytes[..]).await.unwrap();
            assert_eq!((is_spoken, begun.as_slice()), (spoken, &bytes[..read]));
        }
        // In pieces, as slow clients send it.
        let mut pieces = in_pieces(&[b"PRI", b" * HTTP/2.0\r\n", b"\r\nSM\r\n\r\nrest"]);
        assert!(is_spoken(&mut pieces).await.unwrap().0);
    }

    fn in_pieces(pieces: &[&'static [u8]]) -> impl AsyncRead + Unpin {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| Ok::<_, io::Error>(bytes::Bytes::from_static(piece))).collect();
        tokio_util::io::StreamReader::new(futures::stream::iter(pieces))
    }
}
