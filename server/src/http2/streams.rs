//! The requests of one HTTP/2 connection, each with the time that its client takes to read the answer.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{sync::Notify, time::Instant};

use crate::resting::{Life, Part};

/// What is handed to hyper at once. It sends what it has been given, whatever the client has room for, so this is what a
/// stream of a client that does not read holds beside the send buffer; and a client that reads so much in time is alive.
const CHUNK_BYTES: usize = 4 << 10;

/// What all connections of a listener hold of answers that were not sent, since their clients do not read them.
pub(crate) struct Unsent {
    bytes: AtomicU64,
    limit: u64,
}

impl Unsent {
    /// An eighth of the container's memory, at most 256 MiB.
    pub(crate) fn of(memory_bytes: Option<u64>) -> Self {
        let most = 256 << 20;
        let limit = memory_bytes.map_or(most, |bytes| (bytes / 8).min(most));
        Self { bytes: AtomicU64::new(0), limit }
    }

    /// Clients that do not read are to make room soon.
    pub(super) fn is_scarce(&self) -> bool {
        self.bytes.load(Relaxed) > self.limit / 2
    }

    /// No more answers can be held.
    pub(super) fn is_exhausted(&self) -> bool {
        self.bytes.load(Relaxed) > self.limit
    }
}

/// The requests of one connection that are not answered to the end.
pub(super) struct Streams {
    life: Arc<Life>,
    unsent: Arc<Unsent>,
    state: Mutex<State>,
}

struct State {
    next: u64,
    open: BTreeMap<u64, Stream>,
    /// Since when none is open.
    resting: Option<Instant>,
}

#[derive(Default)]
struct Stream {
    /// Bytes of the answer that are known and not sent.
    held: u64,
    /// Chunks that hyper was given and has not sent.
    on_the_way: usize,
    /// Since when those wait for the client.
    since: Option<Instant>,
    /// Who waits for their end.
    flushed: Option<Waker>,
    /// Ends the stream alone.
    cut: Option<Arc<Notify>>,
}

impl Streams {
    pub(super) fn new(life: Arc<Life>, unsent: Arc<Unsent>) -> Self {
        life.enter(Part::Resting);
        let state = State { next: 0, open: BTreeMap::new(), resting: Some(Instant::now()) };
        Self { life, unsent, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(self: &Arc<Self>) -> Entry {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        state.open.insert(id, Stream::default());
        if state.resting.take().is_some() {
            self.life.enter(Part::Answering);
        }
        Entry { id, streams: Arc::clone(self) }
    }

    /// Since when no request is open.
    pub(super) fn resting(&self) -> Option<Instant> {
        self.state().resting
    }

    /// Ends the streams whose clients took nothing for `patience`; says how many.
    pub(super) fn cut_unread(&self, patience: Duration) -> u64 {
        let mut n_cut = 0;
        for stream in self.state().open.values_mut() {
            if let Some(since) = stream.since
                && since.elapsed() > patience
                && let Some(cut) = stream.cut.take()
            {
                cut.notify_one();
                n_cut += 1;
            }
        }
        n_cut
    }
}

/// One request, until it is dropped: by its handler, by its answer's body and by whatever is on the way of it.
pub(super) struct Entry {
    id: u64,
    streams: Arc<Streams>,
}

impl Entry {
    fn change<T>(&self, change: impl FnOnce(&mut Stream) -> T) -> Option<T> {
        self.streams.state().open.get_mut(&self.id).map(change)
    }

    /// `cut` ends the stream.
    pub(super) fn can_be_cut_by(&self, cut: Arc<Notify>) {
        self.change(|stream| stream.cut = Some(cut));
    }

    fn hold(&self, n_bytes: u64) {
        self.streams.unsent.bytes.fetch_add(n_bytes, Relaxed);
        self.change(|stream| stream.held += n_bytes);
    }

    /// For hyper; tells by its end that it was sent.
    fn hand(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        self.change(|stream| {
            stream.on_the_way += 1;
            stream.since.get_or_insert_with(Instant::now);
        });
        Bytes::from_owner(Chunk { bytes, entry: Arc::clone(self) })
    }

    fn sent(&self, n_bytes: u64) {
        let waker = self.change(|stream| {
            let known = n_bytes.min(stream.held);
            stream.held -= known;
            self.streams.unsent.bytes.fetch_sub(known, Relaxed);
            stream.on_the_way -= 1;
            stream.since = (stream.on_the_way > 0).then(Instant::now);
            stream.flushed.take_if(|_| stream.on_the_way == 0)
        });
        if let Some(waker) = waker.flatten() {
            waker.wake();
        }
    }

    fn is_flushed(&self) -> bool {
        self.change(|stream| stream.on_the_way == 0).unwrap_or(true)
    }

    fn poll_flushed(&self, cx: &Context<'_>) -> Poll<()> {
        // What was there is dropped without the lock: a waker may be the last to hold a task.
        let waited = self.change(|stream| {
            let is_pending = stream.on_the_way > 0;
            let waker = is_pending.then(|| cx.waker().clone());
            (is_pending, std::mem::replace(&mut stream.flushed, waker))
        });
        match waited {
            Some((true, _)) => Poll::Pending,
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.streams.state();
        let stream = state.open.remove(&self.id);
        if state.open.is_empty() {
            state.resting = Some(Instant::now());
            self.streams.life.enter(Part::Resting);
        }
        drop(state);
        self.streams.unsent.bytes.fetch_sub(stream.map_or(0, |stream| stream.held), Relaxed);
    }
}

struct Chunk {
    bytes: Bytes,
    entry: Arc<Entry>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.entry.sent(self.bytes.len() as u64);
    }
}

/// An answer's body in small pieces. Its end is told once all else was sent: hyper forgets a stream that has been told,
/// and what it still holds of one could then neither be seen nor cut.
pub(super) struct Watched {
    body: Body,
    entry: Arc<Entry>,
    /// Whether the size was known from the start.
    is_exact: bool,
    rest: Bytes,
    ended: bool,
    trailers: Option<Frame<Bytes>>,
}

impl Watched {
    pub(super) fn new(body: Body, entry: Entry) -> Self {
        let exact = body.size_hint().exact();
        entry.hold(exact.unwrap_or(0));
        let (rest, trailers) = (Bytes::new(), None);
        Self { body, entry: Arc::new(entry), is_exact: exact.is_some(), rest, ended: false, trailers }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        while this.rest.is_empty() && !this.ended {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => this.ended = true,
                Poll::Ready(Some(Err(err))) => return Poll::Ready(Some(Err(err))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        if !this.is_exact {
                            this.entry.hold(data.len() as u64);
                        }
                        this.rest = data;
                    }
                    Err(other) => (this.trailers, this.ended) = (Some(other), true),
                },
            }
        }
        if !this.rest.is_empty() {
            let n = this.rest.len().min(CHUNK_BYTES);
            let chunk = this.entry.hand(this.rest.split_to(n));
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        this.entry.poll_flushed(cx).map(|()| this.trailers.take().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        // hyper asks before the first part, whether there is a body, and after each one, when that is on its way.
        self.rest.is_empty()
            && self.trailers.is_none()
            && self.body.is_end_stream()
            && self.entry.is_flushed()
    }

    fn size_hint(&self) -> SizeHint {
        // Asked before anything is read.
        self.body.size_hint()
    }
}
