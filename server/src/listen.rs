//! The accept loop. axum's own has no deadlines, so this one drives hyper: time limits for headers, rest and
//! writes, a bound on connections, and a close that waits for answers under way. What is particular to HTTP/2 is in
//! `http2`.

mod guarded;

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::{
    Fatal,
    app::Limits,
    http2::{self, Unsent},
    lifecycle::{Lifecycle, Stage},
    resting::{Life, Open, Part},
};
use guarded::Guarded;

/// One listener.
pub(crate) struct Listener {
    pub(crate) socket: TcpListener,
    pub(crate) router: Router,
    pub(crate) lifecycle: Lifecycle,
    /// Accepting ends when this stage is entered, and resting connections close [`LINGER`] later.
    pub(crate) until: Stage,
    pub(crate) bounds: Bounds,
    pub(crate) connections: Gauge,
    pub(crate) closed_slow: Counter,
    pub(crate) unsent: Arc<Unsent>,
}

/// How slow and how many clients may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) header: Duration,
    pub(crate) idle: Duration,
    pub(crate) write: Duration,
    pub(crate) connections: usize,
    /// Whether a connection may rest between two requests.
    pub(crate) keep_alive: bool,
    /// Whether a client may speak HTTP/2 as well.
    pub(crate) http2: bool,
}

impl Bounds {
    pub(crate) fn public(limits: &Limits) -> Self {
        Self {
            header: limits.header,
            idle: limits.idle,
            write: limits.write,
            connections: limits.connections,
            keep_alive: true,
            http2: true,
        }
    }

    /// Probes, scrapes and the operator: quick, and each with a connection of its own, so that nobody can keep
    /// the kubelet out by holding connections open.
    pub(crate) fn internal() -> Self {
        let (header, write) = (Duration::from_secs(2), Duration::from_secs(10));
        Self { header, idle: header, write, connections: 1024, keep_alive: false, http2: false }
    }
}

/// For requests that were sent before their client could know that this pod goes.
const LINGER: Duration = Duration::from_secs(1);

/// Unread bytes of one answer that the kernel keeps.
const SEND_BUFFER_BYTES: u32 = 64 << 10;

/// Binds; an address in use is a mistake in the configuration, said in those words.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Fatal> {
    let bound = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.set_reuseaddr(true)?;
        // Accepted sockets inherit it. The kernel would otherwise hold megabytes for a client that does not read.
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(address)?;
        socket.listen(1024)
    };
    bound().map_err(|err: io::Error| Fatal::config(format!("cannot listen on {address}: {err}")))
}

impl Listener {
    /// Accepts until told to stop, then returns once every connection has ended.
    pub(crate) async fn run(self) {
        let slots = Arc::new(Semaphore::new(self.bounds.connections));
        let open = Arc::new(Open::default());
        let tracker = TaskTracker::new();
        let stop = self.lifecycle.reached(self.until);
        tokio::pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut stop => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                // One over the bound is held while it waits here; further ones stay in the kernel's backlog.
                Ok((stream, peer)) => {
                    let slot = self.slot(&slots, &open).await;
                    self.serve(&tracker, &open, stream, peer, slot);
                }
                Err(err) => {
                    // Out of file descriptors, or a client that has already gone: neither is fixed by spinning.
                    warn!(%err, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        // Who has connected by now is answered; closing the socket would reset them.
        while let Some((stream, peer)) = self.accept_pending() {
            self.serve(&tracker, &open, stream, peer, None);
        }
        drop(self.socket);
        tracker.close();
        tracker.wait().await;
    }

    /// The next connection of the backlog, asked of the kernel itself: tokio only knows of those that its last look
    /// found.
    fn accept_pending(&self) -> Option<(TcpStream, SocketAddr)> {
        let socket = std::net::TcpListener::from(self.socket.as_fd().try_clone_to_owned().ok()?);
        let (stream, peer) = socket.accept().ok()?;
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    }

    /// Waits for one of the bounded number of connections to end, if need be the one that has rested longest.
    /// `None` = the bound is lifted, as a drain must leave nobody in the backlog.
    async fn slot(&self, slots: &Arc<Semaphore>, open: &Open) -> Option<OwnedSemaphorePermit> {
        let draining = self.lifecycle.reached(Stage::Draining);
        tokio::pin!(draining);
        loop {
            if let Ok(slot) = Arc::clone(slots).try_acquire_owned() {
                return Some(slot);
            }
            let told = open.close_longest_resting();
            let another = async {
                if told {
                    // It goes at once, unless its next request came first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                } else {
                    open.rested.notified().await;
                }
            };
            tokio::select! {
                biased;
                () = &mut draining => return None,
                slot = Arc::clone(slots).acquire_owned() => return slot.ok(),
                () = another => {}
            }
        }
    }

    fn serve(
        &self,
        tracker: &TaskTracker,
        open: &Arc<Open>,
        stream: TcpStream,
        peer: SocketAddr,
        slot: Option<OwnedSemaphorePermit>,
    ) {
        let entry = open.add(&self.connections);
        let connection = self.connection(stream, Arc::clone(&entry.life), tracker.clone());
        tracker.spawn(async move {
            if let Err(err) = connection.await {
                debug!(%peer, %err, "connection ended early");
            }
            drop((slot, entry));
        });
    }

    fn connection(
        &self,
        stream: TcpStream,
        life: Arc<Life>,
        tasks: TaskTracker,
    ) -> impl Future<Output = io::Result<()>> + use<> {
        if let Err(err) = stream.set_nodelay(true) {
            debug!(%err, "cannot set TCP_NODELAY");
        }
        let mut stream = Guarded::new(stream, self.bounds, Arc::clone(&life), self.closed_slow.clone());
        let router = self.router.clone();
        let bounds = self.bounds;
        let (closed_slow, unsent) = (self.closed_slow.clone(), Arc::clone(&self.unsent));
        let lifecycle = self.lifecycle.clone();
        let until = self.until;
        async move {
            let closing = async {
                lifecycle.reached(until).await;
                // A request may be on its way; its answer says that the connection closes.
                tokio::select! {
                    () = tokio::time::sleep(LINGER) => {}
                    () = lifecycle.reached(Stage::Ending) => {}
                }
            };
            tokio::pin!(closing);
            let mut must_close = false;
            if bounds.http2 {
                let (is_http2, begun) = {
                    let spoken = http2::is_spoken(&mut stream);
                    tokio::pin!(spoken);
                    tokio::select! {
                        biased;
                        spoken = spoken.as_mut() => spoken?,
                        () = closing.as_mut() => {
                            if life.part() == Part::Fresh {
                                return Ok(());
                            }
                            // The head's deadline ends this.
                            must_close = true;
                            spoken.await?
                        }
                    }
                };
                stream.unread = begun.into();
                if is_http2 {
                    stream.multiplexed = true;
                    let closing = async {
                        if !must_close {
                            closing.await;
                        }
                    };
                    let shared = http2::Shared { bounds, unsent, closed_slow, tasks };
                    return http2::serve(stream, router, life, shared, closing).await;
                }
            }
            let closing = async {
                if !must_close {
                    closing.await;
                }
            };
            http1(stream, router, life, bounds, closing).await.map_err(io::Error::other)
        }
    }
}

/// Answers the requests of a connection, one after the other. `closing` completes when it is to take no more of them.
async fn http1(
    stream: Guarded,
    router: Router,
    life: Arc<Life>,
    bounds: Bounds,
    closing: impl Future<Output = ()>,
) -> hyper::Result<()> {
    let answering = Arc::clone(&life);
    let service = service_fn(move |request: Request<Incoming>| {
        answering.enter(Part::Answering);
        let router = router.clone();
        let resting = RestGuard(Arc::clone(&answering));
        async move {
            let response = router.oneshot(request.map(Body::new)).await;
            response.map(|response| response.map(|body| Body::new(WithGuard { body, _guard: resting })))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.idle)
        .keep_alive(bounds.keep_alive)
        .max_headers(64)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        // First, so that bytes which have arrived count as a request begun.
        biased;
        result = connection.as_mut() => return result,
        () = closing => {}
        () = life.told_to_close() => {}
    }
    // hyper would wait for the first request of a connection that has had none.
    if life.part() == Part::Fresh {
        return Ok(());
    }
    // A head that has begun to arrive is a request: hyper would close on it before it is whole. The part changes
    // only while the connection is polled, and the head's deadline ends this.
    let head_is_whole = std::future::poll_fn(|cx| match connection.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending if life.part() == Part::Head => Poll::Pending,
        Poll::Pending => Poll::Ready(None),
    });
    if let Some(result) = head_is_whole.await {
        return result;
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// Sets the part back when an answer's body is done.
struct RestGuard(Arc<Life>);

impl Drop for RestGuard {
    fn drop(&mut self) {
        self.0.enter(Part::Resting);
    }
}

/// A body that drops its guard when it is done or abandoned.
struct WithGuard {
    body: Body,
    _guard: RestGuard,
}

impl hyper::body::Body for WithGuard {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}
