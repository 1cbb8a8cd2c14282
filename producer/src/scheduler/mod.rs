//! The scheduler: settles each nominal time of each schedule, once, in order.
//!
//! It runs wherever a producer runs, in any number of processes, and has no leader: the ledger settles each nominal time
//! once, whoever asks first. What a schedule has come to stands in the ledger, so that a time which fell into a downtime is
//! found by whoever comes next. A time that is late by less than `GRACE` is late and not missed, if it is the newest one.

mod config;
mod metrics;
mod missed;

use std::time::Duration;

use prometheus_client::registry::Registry;
use queue::clock::later;
use queue::ledger::{Announced, Due, Fired, Firing, LedgerError, Progress};
use queue::{MissedTimes, NoticeOfMissed, Queue, trace};
use schemas::runbook::Start;
use schemas::{Problem, Schedule, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, info, info_span, warn};

use crate::routes::Startable;

use self::metrics::Metrics;

pub use config::ScheduleConfig;
pub use missed::since;

/// Producers with an older configuration hear of this one so often, and what others have settled is read again: within
/// the time in which a configuration counts as alive, and seldom enough to cost nothing.
const ANNOUNCE_EVERY: Duration = Duration::from_mins(1);

/// What waits for the end of earlier work is asked for so often.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The newest nominal time that is late by less than this is fired, whatever is to be made up for: a restart, and the
/// time after which an older configuration takes over, are no downtimes.
const GRACE: Duration = Duration::from_mins(10);

/// Of producers that settle at the same moment one is first, each time: who is not asks how things stand, and goes on
/// from there, so often in one look.
const TURNS: u32 = 8;

/// What a scheduler is made of.
pub struct SchedulerConfig {
    /// Where work is stored.
    pub queue: Queue,
    /// The schedules.
    pub schedules: Vec<Schedule>,
    /// What they can start.
    pub startable: Startable,
    /// Of the configuration that all this is from.
    pub config_digest: String,
    /// Who is told about missed times.
    pub notice: Option<NoticeOfMissed>,
}

/// Fires schedules.
pub struct Scheduler {
    config: SchedulerConfig,
    /// How far each schedule has come, in the order of the schedules; none before the ledger has told, or while a newer
    /// configuration is alive.
    progress: Option<Vec<Progress>>,
    announce_at: Timestamp,
    is_outdated: bool,
    metrics: Metrics,
}

/// Whether to go on with a schedule's next time.
enum Next {
    GoOn,
    /// Others have settled it, or a newer configuration has come: the ledger is asked how things stand.
    AskTheLedger,
}

impl Scheduler {
    /// A scheduler that has not looked yet.
    pub fn new(config: SchedulerConfig) -> Self {
        let metrics = Metrics::of(&config.schedules);
        Self { config, progress: None, announce_at: Timestamp::MIN_UTC, is_outdated: false, metrics }
    }

    /// Makes what it counts known under its names.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Fires what is due until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let look = self.look();
            let wait = tokio::select! {
                () = stop.cancelled() => return,
                wait = look => wait,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Settles what is due by the queue's clock; how long until the next look. A failure is said, and made good then.
    pub async fn look(&mut self) -> Duration {
        if let Err(error) = self.try_to_look().await {
            let error = &error as &dyn std::error::Error;
            warn!(error, "schedules cannot be fired now; they are caught up with when the ledger is back");
            self.ask_the_ledger();
            return ASK_AGAIN;
        }
        self.until_next_look()
    }

    async fn try_to_look(&mut self) -> Result<(), LedgerError> {
        for _ in 0..TURNS {
            if self.announce_at <= self.now() {
                self.announce().await?;
            }
            let Some(progress) = self.progress.take() else { return Ok(()) };
            let mut ask = false;
            let mut come = Vec::with_capacity(progress.len());
            for (schedule, mut progress) in self.config.schedules.iter().zip(progress) {
                while !ask && let Some(due) = self.next_due(schedule, &progress) {
                    ask |= matches!(self.settle(schedule, &mut progress, due).await?, Next::AskTheLedger);
                }
                come.push(progress);
            }
            self.progress = Some(come);
            if !ask {
                return self.ask_for_waiting().await;
            }
            self.ask_the_ledger();
        }
        Ok(())
    }

    fn now(&self) -> Timestamp {
        self.config.queue.clock().now()
    }

    fn ask_the_ledger(&mut self) {
        self.announce_at = Timestamp::MIN_UTC;
    }

    /// Tells the ledger which schedules there are, and is told how far they have come.
    async fn announce(&mut self) -> Result<(), LedgerError> {
        let announced = |schedule: &Schedule| Announced {
            schedule: schedule.name.clone(),
            timetable: schedule.timetable.to_string(),
        };
        let SchedulerConfig { queue, schedules, config_digest, .. } = &self.config;
        let announced: Vec<Announced> = schedules.iter().map(announced).collect();
        let now = self.now();
        let told = queue.ledger().announce(config_digest, &announced, now).await?;
        if told.is_none() && !self.is_outdated && !schedules.is_empty() {
            warn!(
                "a process with a newer configuration is alive: schedules are its to fire until it has been silent for 5m"
            );
        }
        self.is_outdated = told.is_none();
        self.progress = told.map(|told| schedules.iter().map(|schedule| progress_of(schedule, &told, now)).collect());
        self.announce_at = later(now, ANNOUNCE_EVERY);
        Ok(())
    }

    /// What is to be settled next of a schedule, if it is time.
    fn next_due(&self, schedule: &Schedule, progress: &Progress) -> Option<missed::Next> {
        missed::next(schedule, progress.settled, self.now(), GRACE)
    }

    async fn settle(
        &self,
        schedule: &Schedule,
        progress: &mut Progress,
        due: missed::Next,
    ) -> Result<Next, LedgerError> {
        let (nominal, times) = (due.last(), due.times());
        let fired = match due {
            missed::Next::Fire(nominal) => self.fire(schedule, nominal).await?,
            missed::Next::Miss(missed) => self.miss(schedule, missed).await?,
        };
        self.metrics.settled(&schedule.name, &fired, times);
        match fired {
            Fired::Before | Fired::Outdated => return Ok(Next::AskTheLedger),
            Fired::Waits(_) => progress.waiting.push(nominal),
            // What waited may have been replaced by this one.
            Fired::Now(_) if !progress.waiting.is_empty() => return Ok(Next::AskTheLedger),
            Fired::Now(_) | Fired::Skipped(_) | Fired::Missed(_) => {}
        }
        progress.settled = nominal;
        Ok(Next::GoOn)
    }

    /// Fires a nominal time, and says in the log what became of it.
    async fn fire(&self, schedule: &Schedule, nominal: Timestamp) -> Result<Fired, LedgerError> {
        let span = info_span!("fire", schedule.name = schedule.name, schedule.nominal = %nominal);
        let SchedulerConfig { queue, startable, config_digest, .. } = &self.config;
        async {
            let start = Start { trace: trace::of(&Span::current()), ..Start::default() };
            let made = schedule.make(nominal, start, &startable.catalog, &startable.runbooks, self.now());
            let work = match made {
                Ok(work) => work,
                Err(problem) => return self.miss(schedule, Self::cannot_be_made(schedule, nominal, &problem)).await,
            };
            let due = Due::Work { work, overlap: schedule.overlap };
            let firing = Firing { schedule: schedule.name.clone(), nominal, config_digest: config_digest.clone(), due };
            let fired = queue.fire(&firing).await?;
            match &fired {
                Fired::Now(_) => info!("fired: {}", schedule.starts),
                Fired::Skipped(reason) => warn!(reason, "this time of the schedule is skipped"),
                Fired::Waits(_) => info!("it waits for the end of earlier work"),
                Fired::Missed(_) | Fired::Before | Fired::Outdated => {}
            }
            Ok(fired)
        }
        .instrument(span)
        .await
    }

    fn cannot_be_made(schedule: &Schedule, nominal: Timestamp, problem: &Problem) -> missed::Missed {
        error!(%problem, "the work of this schedule cannot be made");
        let reason = format!("its work cannot be made: {problem}");
        let times = MissedTimes { schedule: schedule.name.clone(), first: nominal, last: nominal, times: 1, reason };
        missed::Missed { times, tell: true }
    }

    /// Records nominal times as missed, and has people told where they are to be.
    async fn miss(&self, schedule: &Schedule, missed: missed::Missed) -> Result<Fired, LedgerError> {
        let missed::Missed { times, tell } = missed;
        let SchedulerConfig { queue, config_digest, notice, .. } = &self.config;
        let notice = notice.as_ref().filter(|_| tell).and_then(|notice| notice(&times, self.now()));
        let MissedTimes { first, last, times, reason, .. } = times;
        let due = Due::Missed { first, times, reason, notice: notice.map(Box::new) };
        let firing =
            Firing { schedule: schedule.name.clone(), nominal: last, config_digest: config_digest.clone(), due };
        let fired = queue.fire(&firing).await?;
        if matches!(fired, Fired::Missed(_)) {
            warn!(schedule.name = schedule.name, times, %first, %last, "times of the schedule were missed");
        }
        Ok(fired)
    }

    /// Fires again what waits, the oldest of each schedule, until one still has to.
    async fn ask_for_waiting(&mut self) -> Result<(), LedgerError> {
        let Some(mut progress) = self.progress.take() else { return Ok(()) };
        for (schedule, progress) in self.config.schedules.iter().zip(&mut progress) {
            while let Some(nominal) = progress.waiting.first().copied() {
                let fired = self.fire(schedule, nominal).await?;
                if !matches!(fired, Fired::Waits(_)) {
                    self.metrics.settled(&schedule.name, &fired, 1);
                }
                match fired {
                    Fired::Waits(_) => break,
                    Fired::Outdated => {
                        self.announce_at = Timestamp::MIN_UTC;
                        break;
                    }
                    Fired::Now(_) | Fired::Skipped(_) | Fired::Missed(_) | Fired::Before => {
                        progress.waiting.remove(0);
                    }
                }
            }
        }
        self.progress = Some(progress);
        Ok(())
    }

    fn until_next_look(&self) -> Duration {
        let now = self.now();
        let progress = self.progress.as_deref().unwrap_or_default();
        let due = self
            .config
            .schedules
            .iter()
            .zip(progress)
            .filter_map(|(schedule, progress)| Some(schedule.due(schedule.timetable.after(progress.settled)?)));
        let waits = progress.iter().any(|progress| !progress.waiting.is_empty());
        let at_latest = if waits { ASK_AGAIN } else { ANNOUNCE_EVERY };
        let next = due.chain([self.announce_at]).min().and_then(|next| (next - now).to_std().ok());
        // The clock may be corrected meanwhile, so that a time comes sooner: nobody sleeps for long.
        next.unwrap_or_default().clamp(Duration::from_millis(10), at_latest)
    }
}

/// How far a schedule has come by what the ledger told.
fn progress_of(schedule: &Schedule, told: &[Progress], now: Timestamp) -> Progress {
    let known = told.iter().find(|progress| progress.schedule == schedule.name).cloned();
    known.unwrap_or_else(|| Progress { schedule: schedule.name.clone(), settled: now, waiting: Vec::new() })
}
