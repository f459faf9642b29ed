//! HTTP/2 on a connection of the public listener, by prior knowledge: what gRPC speaks. Its many requests share one
//! connection, so that the time limits that HTTP/1 has per connection are kept per stream here.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{
    Request,
    body::{Frame, Incoming},
    rt::Executor,
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::{
    listen::Bounds,
    resting::{Life, Part},
};

/// How a client that speaks HTTP/2 begins.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests that one connection may have at the same time.
const MAX_STREAMS: u32 = 128;
const MAX_HEADER_BYTES: u32 = 16 << 10;
/// Bytes of a connection's requests that nobody has read yet, which it may hold in our memory: no more than one of HTTP/1
/// has in its buffer.
const WINDOW_BYTES: u32 = 64 << 10;
/// Bytes of one answer that wait to be sent.
const SEND_BUFFER_BYTES: usize = 64 << 10;
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

/// Answers all requests of a connection. `closing` completes when it is to take no more of them.
pub(crate) async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    life: Arc<Life>,
    bounds: Bounds,
    tasks: TaskTracker,
    closing: impl Future<Output = ()>,
) -> io::Result<()> {
    let streams = Arc::new(Streams::new(Arc::clone(&life)));
    let answering = Arc::clone(&streams);
    let service = service_fn(move |request: Request<Incoming>| {
        let (router, entry) = (router.clone(), answering.begin());
        async move {
            let response = router.oneshot(request.map(Body::new)).await;
            response.map(|response| response.map(|body| Body::new(Watched { body, entry })))
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
    let mut look = interval((bounds.write.min(bounds.idle) / 4).max(Duration::from_millis(10)));
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Since when the client has been told that it ends.
    let mut told: Option<Instant> = None;
    loop {
        let tell = tokio::select! {
            // First, so that a request which has arrived is one.
            biased;
            result = connection.as_mut() => return result.map_err(io::Error::other),
            () = closing.as_mut(), if told.is_none() => true,
            () = life.told_to_close(), if told.is_none() => true,
            _ = look.tick() => {
                let seen = streams.look();
                if seen.unread.is_some_and(|since| since.elapsed() > bounds.write) {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read"));
                }
                // Half a request's head keeps no connection open, nor does a client that does not go when told.
                if let (Some(told), Some(_)) = (told, seen.resting)
                    && told.elapsed() > bounds.header
                {
                    return Ok(());
                }
                told.is_none() && seen.resting.is_some_and(|since| since.elapsed() > bounds.idle)
            }
        };
        if tell {
            told = Some(Instant::now());
            // Requests that are on their way are answered still.
            connection.as_mut().graceful_shutdown();
        }
    }
}

/// Runs streams as tasks that the listener waits for.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// The requests of one connection that are not answered to the end.
struct Streams {
    life: Arc<Life>,
    state: Mutex<State>,
}

struct State {
    next: u64,
    /// With the time since when a part of the answer has been waiting for the client to read it.
    open: BTreeMap<u64, Option<Instant>>,
    /// Since when none is open.
    resting: Option<Instant>,
}

/// What a look at them finds.
struct Seen {
    /// The longest that an answer has been waiting to be read.
    unread: Option<Instant>,
    resting: Option<Instant>,
}

impl Streams {
    fn new(life: Arc<Life>) -> Self {
        life.enter(Part::Resting);
        let state = State { next: 0, open: BTreeMap::new(), resting: Some(Instant::now()) };
        Self { life, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> Entry {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.open.insert(id, None);
        if state.resting.take().is_some() {
            self.life.enter(Part::Answering);
        }
        Entry { id, streams: Arc::clone(self) }
    }

    fn look(&self) -> Seen {
        let state = self.state();
        Seen { unread: state.open.values().flatten().min().copied(), resting: state.resting }
    }
}

/// One request, until it is dropped.
struct Entry {
    id: u64,
    streams: Arc<Streams>,
}

impl Entry {
    fn waits_for_client(&self, waits: bool) {
        if let Some(since) = self.streams.state().open.get_mut(&self.id) {
            *since = waits.then(Instant::now);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        state.open.remove(&self.id);
        if state.open.is_empty() {
            state.resting = Some(Instant::now());
            self.streams.life.enter(Part::Resting);
        }
    }
}

/// An answer's body. hyper asks it for the next part once the client has room for one: from handing out a part to the next
/// question it is the client that is waited for.
struct Watched {
    body: Body,
    entry: Entry,
}

impl hyper::body::Body for Watched {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.entry.waits_for_client(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
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
