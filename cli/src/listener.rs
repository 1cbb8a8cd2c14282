//! Listeners: connections in, with deadlines, until told to stop.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::failure::Failure;

/// The head of a request is here within this, or the connection is cut: whoever sends it slowly sends nothing else.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);

/// Requests under way when the process stops end within this, or are cut.
const LAST_REQUESTS: Duration = Duration::from_secs(10);

/// After an accept that failed (mostly for want of file descriptors) the next is tried so much later.
const AFTER_FAILURE: Duration = Duration::from_millis(200);

/// A bound address, not yet served.
pub(crate) struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds an address; port 0 takes any free one.
    pub(crate) async fn bind(address: SocketAddr, section: &str) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::conflict(format!("cannot listen on {address}: {error}"))
                .help(format!("change `listen` in [{section}], or stop what listens there"))
        };
        let socket = TcpListener::bind(address).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// The real address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop; then takes no connection more and lets requests under way end.
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        let open = GracefulShutdown::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => serve_connection(stream, router.clone(), &open),
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

fn serve_connection(stream: TcpStream, router: Router, open: &GracefulShutdown) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).into_owned();
    let watched = open.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = watched.await {
            debug!(error = &*error, "a connection broke");
        }
    });
}
