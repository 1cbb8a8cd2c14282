//! The heartbeat to a dead-man's switch: a service outside that calls people when it hears nothing more.
//!
//! It is sent only while the process is really well: the ledger answers, and no queue is stuck, which means that no job has
//! been available for longer than it may, in a queue that nobody paused. Otherwise the switch is told so, with the reason.
//! One is sent at a time, with a deadline; one that fails is logged and counted, and stops nothing: the switch notices.
//!
//! Contracts: <https://healthchecks.io/docs/http_api/> (a ping is a request to the check's address, `/fail` behind it says
//! that something is wrong; a check that it does not know is answered by 200 too, in words), and Sentry's check-ins,
//! <https://docs.sentry.io/product/crons/getting-started/http/> (`?status=ok` or `error`).

use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use queue::Queue;
use schemas::api::QueueView;
use schemas::{Timestamp, period};
use secrets::{ExposeSecret, Resolver, SecretText};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use url::Url;

use crate::channels::beginning_of;

/// A ledger that takes longer to answer is not well.
const PATIENCE: Duration = Duration::from_secs(5);

/// A switch that takes longer has not heard it.
const DEADLINE: Duration = Duration::from_secs(10);

/// More often is only noise, and services limit it.
const SHORTEST: Duration = Duration::from_secs(10);

/// The heartbeat as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeartbeatConfig {
    /// The switch's address; whoever has it can keep the switch quiet, so it is a secret.
    pub url: SecretText,
    /// Which service's words are spoken.
    #[serde(default)]
    pub service: Service,
    /// How often it is sent.
    #[serde(default = "each_minute", with = "period")]
    pub every: Duration,
    /// How long a job may be available before its queue is taken for stuck.
    #[serde(default = "a_quarter", with = "period")]
    pub stuck_after: Duration,
}

/// Which service's words are spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Service {
    /// healthchecks.io, its own installations, and whatever takes a request to an address as a sign of life.
    #[default]
    Healthchecks,
    /// Sentry's check-ins of a cron monitor.
    Sentry,
}

impl Service {
    /// Where it is told that all is well, or that something is wrong; none where the address has no path.
    pub(crate) fn address(self, mut url: Url, is_wrong: bool) -> Option<Url> {
        match self {
            Self::Healthchecks if is_wrong => {
                url.path_segments_mut().ok()?.pop_if_empty().push("fail");
            }
            Self::Healthchecks => {}
            Self::Sentry => {
                url.query_pairs_mut().append_pair("status", if is_wrong { "error" } else { "ok" });
            }
        }
        Some(url)
    }
}

fn each_minute() -> Duration {
    Duration::from_mins(1)
}

fn a_quarter() -> Duration {
    Duration::from_mins(15)
}

impl HeartbeatConfig {
    /// What is wrong with it beyond its types.
    pub fn problems(&self) -> Vec<schemas::Problem> {
        let too_often = self.every < SHORTEST;
        too_often.then(|| schemas::Problem::new("at most every 10s").within("every")).into_iter().collect()
    }
}

/// Why a heartbeat was not heard.
#[derive(Debug, thiserror::Error)]
pub enum Unheard {
    /// Its address has no value.
    #[error("its address cannot be resolved")]
    Secret(#[from] secrets::ResolveError),
    /// Its address is none.
    #[error("its address is not an `https://` one; correct the secret")]
    Address,
    /// No answer.
    #[error("there is no answer")]
    NoAnswer(#[source] reqwest::Error),
    /// It was refused.
    #[error("it is answered by {0}")]
    Refused(u16),
    /// The service does not know it, or had too many.
    #[error("the service ignores it: it does not know the check, or hears from it too often")]
    Ignored,
}

/// Sends heartbeats.
pub struct Heartbeat {
    config: HeartbeatConfig,
    queue: Queue,
    secrets: Arc<Resolver>,
    http: reqwest::Client,
}

impl Heartbeat {
    /// A heartbeat of the process that has this queue.
    pub fn new(config: HeartbeatConfig, queue: Queue, secrets: Arc<Resolver>, http: reqwest::Client) -> Self {
        Self { config, queue, secrets, http }
    }

    /// Sends until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut due = interval(self.config.every);
        // After a pause one is due, not all that were missed.
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unheard: u64 = 0;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = due.tick() => {}
            }
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                heard = self.beat() => heard,
            };
            match heard {
                Ok(()) if unheard > 0 => {
                    info!(unheard, "the heartbeat is heard again");
                    unheard = 0;
                }
                Ok(()) => debug!("the heartbeat is heard"),
                Err(error) => {
                    unheard += 1;
                    warn!(unheard, error = &error as &dyn std::error::Error, "the heartbeat is not heard");
                }
            }
        }
    }

    /// Sends one: that all is well, or what is not.
    pub async fn beat(&self) -> Result<(), Unheard> {
        let wrong = self.what_is_wrong().await;
        if let Some(wrong) = &wrong {
            warn!("the dead-man's switch is told: {wrong}");
        }
        let url = self.secrets.resolve(&self.config.url).await?;
        let url = Url::parse(url.expose_secret().trim()).ok().filter(|url| matches!(url.scheme(), "https" | "http"));
        let url = self.config.service.address(url.ok_or(Unheard::Address)?, wrong.is_some());
        let url = url.ok_or(Unheard::Address)?;
        let request = self.http.post(url).timeout(DEADLINE).body(wrong.unwrap_or_default());
        let mut answer = request.send().await.map_err(|error| Unheard::NoAnswer(error.without_url()))?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Unheard::Refused(status.as_u16()));
        }
        if self.config.service == Service::Healthchecks && beginning_of(&mut answer).await.starts_with("OK (") {
            return Err(Unheard::Ignored);
        }
        Ok(())
    }

    async fn what_is_wrong(&self) -> Option<String> {
        let ledger = self.queue.ledger();
        let asked = timeout(PATIENCE, async {
            Ok::<_, queue::ledger::LedgerError>((ledger.time().await?, ledger.queues().await?))
        });
        match asked.await {
            Ok(Ok((_, queues))) => {
                queues.iter().find_map(|queue| stuck(queue, self.config.stuck_after, self.queue.clock().now()))
            }
            Ok(Err(_)) | Err(_) => Some("the ledger does not answer".to_owned()),
        }
    }
}

/// What is said of a queue in which a job has been available for too long.
fn stuck(queue: &QueueView, after: Duration, now: Timestamp) -> Option<String> {
    let waited: TimeDelta = now - queue.oldest_available?;
    let is_stuck = queue.paused.is_none() && waited.to_std().is_ok_and(|waited| waited > after);
    is_stuck.then(|| format!("the queue `{}` is stuck: a job has waited for {} min", queue.queue, waited.num_minutes()))
}

#[cfg(test)]
mod tests {
    use schemas::api::PauseView;

    use super::*;

    fn queue(waited: TimeDelta, paused: bool) -> (QueueView, Timestamp) {
        let now = Timestamp::UNIX_EPOCH + TimeDelta::days(1);
        let pause = PauseView {
            what: "queue".into(),
            name: "databases".into(),
            at: now,
            actor: "ada".into(),
            reason: "maintenance".into(),
        };
        let queue = QueueView {
            queue: "databases".into(),
            jobs: std::iter::empty().collect(),
            oldest_available: Some(now - waited),
            paused: paused.then_some(pause),
        };
        (queue, now)
    }

    #[test]
    fn a_queue_is_stuck_when_a_job_waits_too_long_that_nobody_holds_back() {
        let said = |minutes, paused| {
            let (queue, now) = queue(TimeDelta::minutes(minutes), paused);
            stuck(&queue, Duration::from_mins(15), now)
        };
        assert_eq!(said(15, false), None);
        assert_eq!(said(17, false).as_deref(), Some("the queue `databases` is stuck: a job has waited for 17 min"));
        assert_eq!(said(17, true), None);
        assert_eq!(said(-1, false), None, "clocks differ by a little");
    }

    #[test]
    fn it_is_sent_every_ten_seconds_at_most() {
        let read = |text: &str| serde_json::from_str::<HeartbeatConfig>(text).unwrap();
        assert!(read(r#"{"url": "${env:X}"}"#).problems().is_empty());
        assert_eq!(read(r#"{"url": "${env:X}", "every": "5s"}"#).problems().len(), 1);
    }
}
