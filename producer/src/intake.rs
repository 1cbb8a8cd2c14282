//! Jobs that other programs ask for by messages.
//!
//! A message is acknowledged after its job is committed, or after it was laid aside with the reason; never before. While
//! the ledger is away nothing is acknowledged, and the messages go back: the broker keeps them.
//!
//! Each is booked as a delivery, by its `key` or its message id: however often it comes, and whatever becomes of its job, it
//! is one job, and it is known who asked for it, when, and with which words.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use queue::broker::programs::{Inbox, Letter, Programs};
use queue::ledger::{LedgerError, NewDelivery, Repeats, StoredBody};
use queue::retry::Pauses;
use queue::{Queue, kill_point, trace};
use schemas::event::Actor;
use schemas::{Catalog, Event, EventId, Facts, JobMessage, NewJob, Problem};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, debug, error, info, info_span, warn};

use crate::absence::is_there;
use crate::readable::{Unreadable, is_plain, made_plain, read, text_of};

/// So many messages are in our hands at once, and committed together. The broker sends each of them whole, whatever its
/// size, and all of them are held in memory.
const AT_ONCE: u16 = 16;

/// A larger message is laid aside: arguments name things, they do not carry them.
const MOST_BYTES: usize = 256 << 10;

/// The longest key, in characters.
const LONGEST_KEY: usize = 200;

/// The ledger must have committed within this.
const BOOKED_WITHIN: Duration = Duration::from_secs(20);

/// The pauses before messages are taken again that could not be booked or laid aside.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What becomes of messages.
const RESULTS: [&str; 4] = ["booked", "duplicate", "refused", "returned"];

/// The type of the events that messages make.
const EVENT_TYPE: &str = "nightporter.job.requested";

/// What an intake is made of.
pub struct IntakeConfig {
    /// Where jobs are stored.
    pub queue: Queue,
    /// What brings the messages.
    pub programs: Arc<dyn Programs>,
    /// The queue that they lie in.
    pub inbox: String,
    /// The kinds of jobs that may be asked for.
    pub kinds: BTreeSet<String>,
    /// What is known of them.
    pub catalog: Arc<Catalog>,
    /// Of the configuration that all this is from.
    pub config_digest: String,
}

/// Takes jobs in from other programs. Cheap to clone.
#[derive(Clone)]
pub struct Intake(Arc<Inner>);

struct Inner {
    config: IntakeConfig,
    messages: Family<Taken, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Taken {
    result: &'static str,
}

/// What became of a message.
enum Fate {
    Settled,
    /// It goes back: the ledger cannot book it now, or the broker cannot lay it aside.
    GoesBack,
}

impl Intake {
    /// An intake that takes nothing yet.
    pub fn new(config: IntakeConfig) -> Self {
        let messages = Family::default();
        for result in RESULTS {
            // An alarm needs something to look at before the first one.
            drop(messages.get_or_create(&Taken { result }));
        }
        Self(Arc::new(Inner { config, messages }))
    }

    /// Makes what it counts known under its names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let help = "Messages of other programs that ask for jobs, by what became of them";
        registry.register("messages", help, self.0.messages.clone());
    }

    /// Takes messages until told to stop; what is in hand then is settled first.
    pub async fn run(self, stop: CancellationToken) {
        let IntakeConfig { programs, inbox: name, .. } = &self.0.config;
        let mut inbox = programs.receive(name, AT_ONCE);
        let mut pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            if !self.take(&mut *inbox, &mut pauses, &stop).await {
                return;
            }
            // All that is in our hands goes back: another producer may reach what we do not.
            inbox.pause().await;
            let pause = pauses.next_pause().unwrap_or(LONGEST_PAUSE);
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.wait_for_the_ledger(pause) => {}
            }
        }
    }

    /// Takes messages until one must go back (true) or until told to stop (false).
    async fn take(&self, inbox: &mut dyn Inbox, pauses: &mut Pauses, stop: &CancellationToken) -> bool {
        let mut in_hand = FuturesUnordered::new();
        loop {
            let full = in_hand.len() >= usize::from(AT_ONCE);
            tokio::select! {
                biased;
                Some(fate) = in_hand.next() => match fate {
                    Fate::Settled => pauses.reset(u32::MAX),
                    Fate::GoesBack => return true,
                },
                () = stop.cancelled() => break,
                letter = inbox.next(), if !full => in_hand.push(self.settle(letter)),
            }
        }
        while in_hand.next().await.is_some() {}
        false
    }

    async fn wait_for_the_ledger(&self, pause: Duration) {
        sleep(pause).await;
        while !is_there(&self.0.config.queue).await {
            sleep(FIRST_PAUSE).await;
        }
    }

    /// Books a message, and only then has the broker forget it.
    async fn settle(&self, letter: Letter) -> Fate {
        let span = info_span!(
            "receive",
            otel.name = format!("receive {}", self.0.config.inbox),
            otel.kind = "consumer",
            messaging.system = "nightporter",
            messaging.destination.name = self.0.config.inbox,
            message.id = letter.message_id,
        );
        trace::set_parent(&span, &letter.trace);
        self.settle_in_span(letter).instrument(span).await
    }

    async fn settle_in_span(&self, letter: Letter) -> Fate {
        let delivery = match self.delivery(&letter) {
            Ok(delivery) => delivery,
            Err(problem) => return self.lay_aside(letter, &problem.to_string()).await,
        };
        match timeout(BOOKED_WITHIN, self.0.config.queue.accept(delivery)).await {
            Ok(Ok(receipt)) => {
                kill_point::reached("message booked");
                let result = if receipt.duplicate { "duplicate" } else { "booked" };
                self.count(result);
                debug!(event.id = %receipt.event, jobs = receipt.jobs.len(), "a message is {result}");
                letter.done().await;
                Fate::Settled
            }
            Ok(Err(refused)) if matches!(*refused, LedgerError::Refused(_)) => {
                error!(error = &*refused as &dyn std::error::Error, "the ledger refuses a message's job");
                self.lay_aside(letter, "the ledger refuses it; the log of nightporter says why").await
            }
            Ok(Err(away)) => {
                warn!(error = &*away as &dyn std::error::Error, "a message cannot be booked now; it goes back");
                self.go_back()
            }
            Err(_) => {
                warn!("the ledger did not commit a message's job in time; it goes back");
                self.go_back()
            }
        }
    }

    async fn lay_aside(&self, letter: Letter, reason: &str) -> Fate {
        let reason = made_plain(reason); // and short: it travels in a header
        kill_point::reached("message refused");
        match letter.refuse(&reason).await {
            Ok(()) => {
                info!(reason, "a message is laid aside");
                self.count("refused");
                Fate::Settled
            }
            Err(error) => {
                warn!(reason, %error, "a message can neither be booked nor laid aside; it goes back");
                self.go_back()
            }
        }
    }

    fn go_back(&self) -> Fate {
        self.count("returned");
        Fate::GoesBack
    }

    fn count(&self, result: &'static str) {
        self.0.messages.get_or_create(&Taken { result }).inc();
    }

    /// A message as it is booked; what is wrong with it.
    fn delivery(&self, letter: &Letter) -> Result<NewDelivery, Problem> {
        if letter.body.len() > MOST_BYTES {
            let message = format!("it has {} bytes, and {MOST_BYTES} are the most", letter.body.len());
            return Err(Problem::new(message).help("pass a reference to what is large"));
        }
        if let Some(encoding) = &letter.content_encoding
            && !["", "identity", "utf-8", "UTF-8"].contains(&encoding.as_str())
        {
            return Err(Problem::new(format!("its content encoding is `{encoding}`")).help("send plain JSON"));
        }
        let unreadable = |error: Unreadable| Problem::new(error.to_string());
        let text = text_of(&letter.body).map_err(unreadable)?;
        let message: JobMessage = read(&text).map_err(unreadable)?;
        let delivery_id = delivery_id(&message, letter)?;
        let job = self.job(&message)?;
        Ok(self.entry(letter, job, delivery_id))
    }

    /// The job, checked as the command line checks it.
    fn job(&self, message: &JobMessage) -> Result<NewJob, Problem> {
        let IntakeConfig { queue, kinds, catalog, .. } = &self.0.config;
        let info = catalog.kind(&message.kind).map_err(|problem| problem.within("kind"))?;
        if !kinds.contains(&message.kind) {
            let problem = Problem::new(format!("jobs of kind `{}` cannot be asked for by messages", message.kind));
            return Err(problem.help("an operator can add it to `kinds` under [amqp.jobs]").within("kind"));
        }
        if let Some(name) = &message.queue
            && name != info.queue
        {
            let problem = Problem::new(format!("jobs of kind `{}` wait in the queue `{}`", info.kind, info.queue));
            return Err(problem.help("leave `queue` out").within("queue"));
        }
        let args = Value::Object(message.args.clone());
        catalog.job(info.kind, &args, queue.clock().now()).map_err(|problem| problem.within("args"))
    }

    fn entry(&self, letter: &Letter, job: NewJob, delivery_id: String) -> NewDelivery {
        let IntakeConfig { queue, inbox, config_digest, .. } = &self.0.config;
        let now = queue.clock().now();
        let (id, trace) = (EventId::at(now), trace::of(&Span::current()));
        let actor = Actor { id: letter.app.as_deref().map(made_plain), login: letter.user.as_deref().map(made_plain) };
        NewDelivery {
            event: Event {
                id,
                // No source of webhooks has a name like this.
                source: format!("message:{inbox}"),
                kind: EVENT_TYPE.to_owned(),
                delivery_id,
                subject: Some(job.kind.clone()),
                time: now,
                data: Facts { actor, ..Facts::default() },
            },
            unreadable: None,
            body: StoredBody::new(
                &letter.body,
                Sha256::digest(&letter.body).into(),
                letter.content_type.as_deref().map_or_else(|| "application/json".to_owned(), made_plain),
                "{}".to_owned(),
            ),
            repeats: Repeats::AreNew,
            jobs: vec![job.made_for(id, trace.clone())],
            runs: Vec::new(),
            route_errors: Vec::new(),
            config_digest: config_digest.clone(),
            trace,
        }
    }
}

/// By what a message is known again.
fn delivery_id(message: &JobMessage, letter: &Letter) -> Result<String, Problem> {
    if let Some(key) = &message.key {
        let length = key.chars().count();
        if length == 0 || length > LONGEST_KEY || !is_plain(key) {
            let right = format!("it has between 1 and {LONGEST_KEY} characters, and no control characters");
            return Err(Problem::new(right).within("key"));
        }
        return Ok(format!("key:{key}"));
    }
    match letter.message_id.as_deref() {
        Some(id) if !is_plain(id) => Err(Problem::new("its message id holds control characters")),
        Some(id) if !id.is_empty() => Ok(format!("id:{id}")),
        _ => Err(Problem::new("it has neither a `key` nor a message id: sent twice it would be two jobs")
            .help("set the property `message_id`")),
    }
}
