//! Listeners: connections in, so many at once, with deadlines, until told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::failure::Failure;

/// The head of a request is here within this, or the connection is cut, also where not a byte of it came: longer than
/// proxies keep a connection for its next request, for one that is cut as it comes is lost.
const HEAD_DEADLINE: Duration = Duration::from_secs(75);

/// The same, for a connection that came when more than half of the places were taken: whoever sends a head slowly, or
/// nothing, makes room.
const HEAD_DEADLINE_IN_A_CROWD: Duration = Duration::from_secs(5);

/// Requests under way when the process stops end within this, or are cut.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// After an accept that failed (mostly for want of file descriptors) the next is tried so much later.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// What is read of a connection at once, and the longest head; the protocol library would take 400 KiB for each.
const READ_AT_ONCE: usize = 64 * 1024;

/// A bound address, not yet served.
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    places: Places,
}

/// A connection's place.
struct Place {
    in_a_crowd: bool,
    _taken: OwnedSemaphorePermit,
}

/// So many connections are open at once; the next ones wait before they are accepted, until one ends.
struct Places {
    free: Arc<Semaphore>,
    most: usize,
    /// That all were taken is said once, until half of them are free again.
    full: bool,
}

impl Listener {
    /// Binds an address, for at most so many connections at once; port 0 takes any free one.
    pub(crate) async fn bind(address: SocketAddr, section: &str, most: usize) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::conflict(format!("cannot listen on {address}: {error}"))
                .help(format!("change `listen` in [{section}], or stop what listens there"))
        };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address, places: Places::new(most) })
    }

    /// The real address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop; then takes no connection more and lets requests under way end.
    pub(crate) async fn serve(mut self, router: Router, stop: CancellationToken) {
        let open = GracefulShutdown::new();
        loop {
            let place = tokio::select! {
                () = stop.cancelled() => break,
                place = self.places.take(self.address) => place,
            };
            let Some(place) = place else { break };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => serve_connection(stream, place, router.clone(), &open),
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "a connection could not be accepted");
                    sleep(AFTER_FAILURE).await;
                }
            }
        }
        drop(self.socket);
        if timeout(LAST_REQUESTS, open.shutdown()).await.is_err() {
            warn!("requests that did not end in time are cut");
        }
    }
}

impl Places {
    fn new(most: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(most)), most, full: false }
    }

    /// A place, when there is one. Never none: the semaphore is not closed.
    async fn take(&mut self, address: SocketAddr) -> Option<Place> {
        let full = self.free.available_permits() == 0;
        if full && !self.full {
            warn!(%address, most = self.most, "as many connections are open as may be; the next ones wait");
        }
        self.full = full || (self.full && self.is_crowded());
        let taken = Arc::clone(&self.free).acquire_owned().await.ok()?;
        Some(Place { in_a_crowd: self.is_crowded(), _taken: taken })
    }

    fn is_crowded(&self) -> bool {
        self.free.available_permits() < self.most / 2
    }
}

fn serve_connection(stream: TcpStream, place: Place, router: Router, open: &GracefulShutdown) {
    let head = if place.in_a_crowd { HEAD_DEADLINE_IN_A_CROWD } else { HEAD_DEADLINE };
    // Not HTTP/2, which proxies do not speak to what is behind them: to find out which of both it is, a connection would
    // be waited for without a deadline.
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(head).max_buf_size(READ_AT_ONCE);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    let watched = open.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = watched.await {
            debug!(error = &*error, "a connection broke");
        }
        drop(place);
    });
}
