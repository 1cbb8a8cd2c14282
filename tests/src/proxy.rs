//! A line between two programs that can go bad: what it carries is held back, or swallowed for ever.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the line does with what is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It carries it.
    Good,
    /// It holds back what the server says, until it is good again.
    HoldsServer,
    /// It holds back everything, until it is good again: connections are made, and nothing is said.
    Silent,
    /// It holds back everything on the connections from this one on (the first is 0), until it is good again.
    HoldsFrom(usize),
}

/// A TCP proxy in front of a server.
pub struct Proxy {
    address: SocketAddr,
    line: watch::Sender<Line>,
    /// Connections that were made before this one are dead: neither side hears of it.
    oldest_alive: watch::Sender<usize>,
    server: watch::Sender<SocketAddr>,
    made: Arc<AtomicUsize>,
}

impl Proxy {
    /// A line to the server at this address.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (line, oldest_alive) = (watch::Sender::new(Line::Good), watch::Sender::new(0));
        let made = Arc::new(AtomicUsize::new(0));
        let (of_line, of_alive, count) = (line.subscribe(), oldest_alive.subscribe(), Arc::clone(&made));
        let (server, of_server) = watch::channel(server);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                let state = State { number, line: of_line.clone(), oldest_alive: of_alive.clone() };
                let server = *of_server.borrow();
                tokio::spawn(carry(client, server, state));
            }
        });
        Self { address, line, oldest_alive, server, made }
    }

    /// From now on new connections go to another server, as where a name or an address moves.
    pub fn switch(&self, server: SocketAddr) {
        self.server.send_replace(server);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on the line is so, for what is on its way as well.
    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }

    /// Swallows everything on the connections that there are; new ones are good.
    pub fn swallow(&self) {
        self.oldest_alive.send_replace(self.made());
    }

    /// How many connections were made.
    pub fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct State {
    number: usize,
    line: watch::Receiver<Line>,
    oldest_alive: watch::Receiver<usize>,
}

impl State {
    /// Waits until what was read may be passed on; for ever, on a dead connection.
    async fn may_pass(&mut self, from_server: bool) {
        if *self.oldest_alive.borrow() > self.number {
            std::future::pending::<()>().await;
        }
        let number = self.number;
        let passes = |line: &Line| match line {
            Line::Good => true,
            Line::HoldsServer => !from_server,
            Line::Silent => false,
            Line::HoldsFrom(first) => number < *first,
        };
        let _the_proxy_is_gone = self.line.wait_for(passes).await;
    }
}

async fn carry(client: TcpStream, server: SocketAddr, state: State) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((client_says, to_client), (server_says, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(client_says, to_server, state.clone(), false) => {}
        () = pump(server_says, to_client, state, true) => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: State, from_server: bool) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        state.may_pass(from_server).await;
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
    }
    // The end travels like everything else.
    state.may_pass(from_server).await;
}
