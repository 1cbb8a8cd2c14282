//! Announces to other programs what happens: accepted events, and how jobs ended.
//!
//! Of all producers one has the turn. It publishes what the ledger gives it, in the order of the numbers that the ledger
//! gave: those of one source one after the other, each confirmed before the next, those of different sources side by side.
//! Only then does the ledger forget them. One that dies in between is followed by another, which publishes the same again
//! under the same ids and numbers: at least once, and nothing is left out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use queue::Queue;
use queue::broker::programs::{Notice, Programs};
use queue::clock::later;
use queue::kill_point::reached;
use queue::ledger::{Happened, LedgerError, ToAnnounce, Turn};
use queue::retry::Pauses;
use schemas::{AnnouncedData, Announcement, EventId, JobEnd, JobId, SaidEvent, WorkerId};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::door::Door;

/// So many are read, published and forgotten together.
const AT_ONCE: u32 = 100;

/// Whoever has the turn is followed by another when it has been silent for so long.
const TURN: Duration = Duration::from_secs(30);

/// What is not published by then is left for the next look, which prolongs the turn.
const PUBLISH_WITHIN: Duration = Duration::from_secs(10);

/// Where nothing happened, it is looked again after this.
const IDLE: Duration = Duration::from_millis(500);

/// Who does not have the turn asks again after this.
const NOT_OURS: Duration = Duration::from_secs(5);

/// Where a newer configuration has another opinion, it is asked again after this.
const OUTDATED: Duration = Duration::from_secs(30);

/// The pauses after what failed.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A larger body is left out.
const MOST_RAW: usize = 256 << 10;

/// The longest routing key, in bytes.
const LONGEST_ROUTING_KEY: usize = 255;

/// What is published.
const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What an announcer is made of.
pub struct AnnouncerConfig {
    /// Where it is written what happens.
    pub queue: Queue,
    /// What brings it to others.
    pub programs: Arc<dyn Programs>,
    /// The exchange that it is published to.
    pub exchange: String,
    /// Whether events carry the sender's own bodies.
    pub bodies: bool,
    /// Whether ends of jobs carry what they have put out.
    pub outputs: bool,
    /// Reads the bodies.
    pub door: Door,
    /// Of the configuration that all this is from.
    pub config_digest: String,
}

/// Announces. Cheap to clone.
#[derive(Clone)]
pub struct Announcer(Arc<Inner>);

struct Inner {
    config: AnnouncerConfig,
    id: WorkerId,
    published: Counter,
    failed: Counter,
}

/// An announcement that is to be published, and its number.
struct Ready {
    number: i64,
    notice: Notice,
}

impl Announcer {
    /// An announcer that has announced nothing yet.
    pub fn new(config: AnnouncerConfig) -> Self {
        let id = WorkerId::at(config.queue.clock().now());
        Self(Arc::new(Inner { config, id, published: Counter::default(), failed: Counter::default() }))
    }

    /// Makes what it counts known under its names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        let help = "Announcements to other programs that the broker has confirmed";
        registry.register("announcements", help, self.0.published.clone());
        let help = "Tries to announce that failed; what was to be announced waits in the ledger";
        registry.register("announcements_failed", help, self.0.failed.clone());
    }

    /// Announces until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut pauses = Pauses::endless(FIRST_PAUSE, LONGEST_PAUSE);
        while !stop.is_cancelled() {
            // Not interrupted: a look is bounded, and what it has published is to be forgotten.
            let wait = match self.look().await {
                Ok(wait) => {
                    pauses.reset(u32::MAX);
                    wait
                }
                Err(error) => {
                    self.0.failed.inc();
                    warn!(error, "nothing can be announced now; it waits in the ledger");
                    pauses.next_pause().unwrap_or(LONGEST_PAUSE)
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(wait) => {}
            }
        }
        if let Err(error) = self.ledger().pass_turn(self.0.id).await {
            warn!(error = &error as &dyn std::error::Error, "the turn to announce is not passed on; it ends by itself");
        }
    }

    /// Announces what there is, at most a batch; how long until the next look.
    pub async fn look(&self) -> Result<Duration, String> {
        let queue = &self.0.config.queue;
        let now = queue.clock().now();
        let turn = queue.ledger().next_announcements(self.0.id, AT_ONCE, later(now, TURN), now).await;
        match turn.map_err(words)? {
            Turn::Off => self.turn_on().await,
            Turn::Theirs => Ok(NOT_OURS),
            Turn::Ours(batch) if batch.is_empty() => Ok(IDLE),
            Turn::Ours(batch) => {
                let full = batch.len() >= AT_ONCE as usize;
                self.announce(batch).await?;
                Ok(if full { Duration::ZERO } else { IDLE })
            }
        }
    }

    async fn turn_on(&self) -> Result<Duration, String> {
        let AnnouncerConfig { queue, config_digest, exchange, .. } = &self.0.config;
        if queue.ledger().set_announcing(true, config_digest, queue.clock().now()).await.map_err(words)? {
            info!(exchange, "from now on events and ends of jobs are announced");
            return Ok(Duration::ZERO);
        }
        warn!("a process with a newer configuration announces nothing: that counts until it has been silent for 5m");
        Ok(OUTDATED)
    }

    /// Publishes a batch and has the ledger forget it. What fails does not undo what was published before it.
    async fn announce(&self, batch: Vec<ToAnnounce>) -> Result<(), String> {
        let mut by_source: BTreeMap<String, VecDeque<Ready>> = BTreeMap::new();
        for one in batch {
            let (source, ready) = self.make_ready(one).await.map_err(words)?;
            by_source.entry(source).or_default().push_back(ready);
        }
        let mut published = Vec::new();
        let outcome = self.publish(by_source, &mut published).await;
        reached("published");
        let queue = &self.0.config.queue;
        let ours = queue.ledger().announced(self.0.id, &published, queue.clock().now()).await.map_err(words)?;
        reached("announced");
        self.0.published.inc_by(published.len() as u64);
        if outcome.is_err() && ours {
            // Another producer may reach the broker.
            queue.ledger().pass_turn(self.0.id).await.map_err(words)?;
        }
        outcome
    }

    /// Publishes in rounds: the next one of each source, confirmed before the one after it.
    async fn publish(
        &self,
        mut by_source: BTreeMap<String, VecDeque<Ready>>,
        published: &mut Vec<i64>,
    ) -> Result<(), String> {
        let AnnouncerConfig { programs, exchange, .. } = &self.0.config;
        let begun = Instant::now();
        while begun.elapsed() < PUBLISH_WITHIN {
            let round: Vec<Ready> = by_source.values_mut().filter_map(VecDeque::pop_front).collect();
            if round.is_empty() {
                break;
            }
            let (numbers, notices): (Vec<i64>, Vec<Notice>) =
                round.into_iter().map(|ready| (ready.number, ready.notice)).unzip();
            programs.publish(exchange, &notices).await.map_err(|error| error.to_string())?;
            published.extend(numbers);
        }
        Ok(())
    }

    /// The source and the message of what happened.
    async fn make_ready(&self, one: ToAnnounce) -> Result<(String, Ready), LedgerError> {
        let ToAnnounce { number, what, trace } = one;
        let (mut announcement, routing_key) = match what {
            Happened::Event { id, source, kind, delivery_id, subject, time, data } => {
                let raw = if self.0.config.bodies { self.body(id, &source).await? } else { None };
                let data = AnnouncedData::Event(Box::new(SaidEvent { facts: *data, raw }));
                let routing_key = format!("event.{kind}");
                let announcement = announcement(id.to_string(), source, kind, subject, time, data);
                (Announcement { deliveryid: Some(delivery_id), ..announcement }, routing_key)
            }
            Happened::Job(end) => {
                let output = if self.0.config.outputs { self.output(end.job).await? } else { None };
                let end = JobEnd { output, ..*end };
                let (state, time) = (end.state.as_str(), end.finished_at);
                let routing_key = format!("job.{}.{state}", end.kind);
                // A job that is retried ends again: its id alone is not enough.
                let id = format!("{}-{number}", end.job);
                let (source, kind) = (format!("nightporter/jobs/{}", end.kind), format!("nightporter.job.{state}"));
                let subject = Some(end.job.to_string());
                (announcement(id, source, kind, subject, time, AnnouncedData::Job(Box::new(end))), routing_key)
            }
        };
        announcement.sequence = format!("{number:020}");
        announcement.traceparent.clone_from(&trace.traceparent);
        let notice = Notice {
            routing_key: bounded(routing_key),
            id: announcement.id.clone(),
            content_type: CONTENT_TYPE,
            // Strings, numbers and values that were JSON: it has a JSON form.
            body: serde_json::to_vec(&announcement).unwrap_or_default(),
            trace,
        };
        Ok((announcement.source, Ready { number, notice }))
    }

    /// The sender's own body, where it is still there and fit to be sent on.
    async fn body(&self, event: EventId, source: &str) -> Result<Option<Value>, LedgerError> {
        let Some(body) = self.ledger().body(event).await? else { return Ok(None) };
        let Ok(bytes) = body.bytes() else { return Ok(None) };
        if bytes.len() > MOST_RAW {
            return Ok(None);
        }
        let raw = self.0.config.door.raw(source, &body.content_type, &bytes);
        // What is no source's is a message of another program.
        Ok(raw.ok().or_else(|| serde_json::from_slice(&bytes).ok()))
    }

    async fn output(&self, job: JobId) -> Result<Option<Value>, LedgerError> {
        Ok(self.ledger().job(job).await?.and_then(|view| view.output))
    }

    fn ledger(&self) -> &Arc<dyn queue::ledger::Ledger> {
        self.0.config.queue.ledger()
    }
}

/// Tells the ledger that this configuration has nothing announced. Where nothing was announced before, that is one question.
pub async fn settle_that_nothing_is_announced(queue: Queue, config_digest: String, stop: CancellationToken) {
    loop {
        match queue.ledger().set_announcing(false, &config_digest, queue.clock().now()).await {
            Ok(true) => return stop.cancelled().await,
            Ok(false) => {} // a newer configuration's processes decide, for as long as there are any
            Err(error) => {
                error!(error = &error as &dyn std::error::Error, "it cannot be settled that nothing is announced");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(OUTDATED) => {}
        }
    }
}

fn announcement(
    id: String,
    source: String,
    kind: String,
    subject: Option<String>,
    time: schemas::Timestamp,
    data: AnnouncedData,
) -> Announcement {
    Announcement {
        specversion: "1.0".to_owned(),
        id,
        source,
        kind,
        subject,
        time,
        datacontenttype: "application/json".to_owned(),
        sequence: String::new(),
        deliveryid: None,
        traceparent: None,
        data,
    }
}

/// A sender's word for a type may be longer than a routing key can be.
fn bounded(mut key: String) -> String {
    let mut end = key.len().min(LONGEST_ROUTING_KEY);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    key.truncate(end);
    key
}

fn words(error: LedgerError) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routing_key_is_cut_between_characters() {
        assert_eq!(bounded("event.github.push".into()), "event.github.push");
        let long = bounded(format!("event.{}", "ü".repeat(200)));
        assert!(long.len() <= LONGEST_ROUTING_KEY && long.ends_with('ü'));
    }
}
