//! A connection that comes back by itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::{DEADLINE, Fault, within};
use crate::broker::BrokerError;
use crate::retry::Pauses;

/// A peer that is silent for twice as long is gone. The broker's own default of a minute is too long to notice.
const HEARTBEAT_SECONDS: u16 = 10;
/// The pauses between tries to connect: short at first, for a restart takes seconds, and never long, for the first one that
/// comes back sets the others to work.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A well broker opens a channel in milliseconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A bell is far smaller. The client keeps room for 64 frames for each connection: 8 MB, where the broker says how large.
const BELL_FRAME_BYTES: u32 = 16 * 1024;
/// How often a connection is looked at that says nothing.
const LOOK: Duration = Duration::from_secs(1);

/// A supervised connection. Cheap to clone; ends with [`Link::close`].
#[derive(Clone)]
pub(super) struct Link {
    live: watch::Receiver<Option<Live>>,
    stop: CancellationToken,
    supervisor: TaskTracker,
}

/// One connection, from its making to its end.
#[derive(Clone)]
pub(super) struct Live {
    /// Its host and port, for people.
    node: String,
    connection: Arc<Connection>,
    broken: CancellationToken,
}

impl Link {
    /// A connection for bells: to the first node that answers, each within the deadline, and supervised from then on.
    pub(super) async fn connect(addresses: &str) -> Result<Self, BrokerError> {
        let mut nodes = nodes_of(addresses)?;
        for node in &mut nodes {
            node.query.frame_max.get_or_insert(BELL_FRAME_BYTES);
        }
        let first = dial_any(&nodes).await.map_err(BrokerError::Unavailable)?;
        Ok(Self::supervised(nodes, Some(first)))
    }

    /// A connection for messages of any size: as soon as a node answers, and supervised from then on.
    pub(super) fn connect_later(addresses: &str) -> Result<Self, BrokerError> {
        Ok(Self::supervised(nodes_of(addresses)?, None))
    }

    fn supervised(nodes: Vec<AMQPUri>, first: Option<Live>) -> Self {
        let (tell, live) = watch::channel(first);
        let (stop, supervisor) = (CancellationToken::new(), TaskTracker::new());
        supervisor.spawn(supervise(nodes, tell, stop.clone()));
        supervisor.close();
        Self { live, stop, supervisor }
    }

    /// The connection, if there is one now.
    pub(super) fn live(&self) -> Option<Live> {
        self.live.borrow().clone().filter(Live::is_up)
    }

    /// Waits for a connection; for ever, once the link is closed.
    pub(super) async fn up(&self) -> Live {
        let mut live = self.live.clone();
        let found =
            live.wait_for(|live| live.as_ref().is_some_and(Live::is_up)).await.ok().and_then(|live| live.clone());
        match found {
            Some(live) => live,
            None => std::future::pending().await,
        }
    }

    /// Whether it is connected, and the broker takes what we send.
    pub(super) fn is_up(&self) -> bool {
        self.live().is_some_and(|live| !live.is_blocked())
    }

    /// Closes the connection, which gives back what is held, and makes no other.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.supervisor.wait().await;
    }
}

impl Live {
    /// A new channel. It is closed when its last handle is dropped.
    pub(super) async fn channel(&self) -> Result<Channel, Fault> {
        within("open a channel", self.connection.create_channel()).await
    }

    /// Has the supervisor drop this connection and make another.
    pub(super) fn give_up(&self) {
        self.broken.cancel();
    }

    /// Whether the broker takes nothing from those who publish: its memory or its disk runs out.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// A call got no answer: gives the connection up, unless it answers another one. Then only what was asked for is away,
    /// a queue without a leader. One that is blocked answers nothing, and another one would be blocked as well.
    pub(super) async fn suspect(&self) {
        if self.is_blocked() {
            return;
        }
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.connection.create_channel()).await;
        if !matches!(answered, Ok(Ok(_))) && !self.is_blocked() {
            self.give_up();
        }
    }

    /// Whether both are the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connection, &other.connection)
    }

    pub(super) fn is_up(&self) -> bool {
        !self.broken.is_cancelled() && self.connection.status().connected()
    }

    /// Waits until it is broken.
    async fn ended(&self) {
        let mut events = std::pin::pin!(self.connection.events_listener());
        let mut look = tokio::time::interval(LOOK);
        while self.is_up() {
            // Events tell at once, but not of every end, and errors of a channel are among them: only the status counts.
            tokio::select! {
                () = self.broken.cancelled() => {}
                Some(_) = events.next() => {}
                _ = look.tick() => {}
            }
        }
        self.broken.cancel();
    }

    /// Says goodbye. Nothing depends on the answer: the broker notices a closed socket as well.
    async fn hang_up(self) {
        if self.connection.status().connected() {
            let _no_answer = tokio::time::timeout(DEADLINE, self.connection.close(200, "bye".into())).await;
        }
    }
}

async fn supervise(nodes: Vec<AMQPUri>, tell: watch::Sender<Option<Live>>, stop: CancellationToken) {
    let mut pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let live = tell.borrow().clone();
        if let Some(live) = live {
            let since = Instant::now();
            tokio::select! {
                () = live.ended() => warn!(node = live.node, "lost the connection to the broker"),
                () = stop.cancelled() => return live.hang_up().await,
            }
            tell.send_replace(None);
            tokio::spawn(live.hang_up());
            // One that breaks at once counts as a failed try.
            if since.elapsed() > LONGEST_PAUSE {
                pauses.reset(u32::MAX);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pauses.next_pause().unwrap_or(LONGEST_PAUSE)) => {}
            () = stop.cancelled() => return,
        }
        match dial_any(&nodes).await {
            Ok(live) => {
                info!(node = live.node, "connected to the broker");
                tell.send_replace(Some(live));
            }
            Err(error) => warn!(error, "cannot connect to the broker; trying again"),
        }
    }
}

/// Whether there is a node in each place of a list.
pub(crate) fn check_address(addresses: &str) -> Result<(), BrokerError> {
    nodes_of(addresses).map(drop)
}

fn nodes_of(addresses: &str) -> Result<Vec<AMQPUri>, BrokerError> {
    split(addresses).into_iter().map(parse).collect()
}

/// Asks the nodes in turn; what was wrong with each of them, if none answers.
async fn dial_any(nodes: &[AMQPUri]) -> Result<Live, String> {
    let mut faults = Vec::new();
    for node in nodes {
        match dial(node).await {
            Ok(live) => return Ok(live),
            Err(fault) => faults.push(unavailable(node, &fault)),
        }
    }
    Err(format!("{}; is it running, and is its address right?", faults.join("; ")))
}

async fn dial(node: &AMQPUri) -> Result<Live, Fault> {
    let properties = ConnectionProperties::default().with_connection_name("nightporter".into());
    let connection = within("connect", Connection::connect_uri(node.clone(), properties)).await?;
    let node = format!("{}:{}", node.authority.host, node.authority.port);
    Ok(Live { node, connection: Arc::new(connection), broken: CancellationToken::new() })
}

/// The addresses of the nodes of one cluster. A comma that stands elsewhere (in a password) separates nothing.
fn split(addresses: &str) -> Vec<&str> {
    let mut nodes = vec![];
    let mut rest = addresses;
    while let Some(comma) = [",amqp://", ",amqps://"].iter().filter_map(|next| rest.find(next)).min() {
        nodes.push(&rest[..comma]);
        rest = &rest[comma + 1..];
    }
    nodes.push(rest);
    nodes
}

fn parse(url: &str) -> Result<AMQPUri, BrokerError> {
    // Its own message is left out: it may quote the address, and that holds a password.
    let mut uri: AMQPUri = url.parse().map_err(|_| {
        BrokerError::Unavailable("its address is not of the form amqp://user:password@host:5672/%2f".into())
    })?;
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
}

fn unavailable(node: &AMQPUri, fault: &Fault) -> String {
    let authority = &node.authority;
    format!("{} at {}:{}, as user {}", fault.text, authority.host, authority.port, authority.userinfo.username)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nodes_is_split_between_addresses_alone() {
        assert_eq!(split("amqp://a:p,w@one/%2f"), ["amqp://a:p,w@one/%2f"]);
        let nodes = split("amqp://one/%2f,amqps://two/%2f,amqp://three/%2f");
        assert_eq!(nodes, ["amqp://one/%2f", "amqps://two/%2f", "amqp://three/%2f"]);
    }
}
