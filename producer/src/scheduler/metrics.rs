//! What the scheduler counts. Labels are names of schedules and fixed words: their number is bounded.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use queue::ledger::Fired;
use schemas::Schedule;

/// What becomes of a nominal time.
const OUTCOMES: [&str; 4] = ["fired", "waiting", "skipped", "missed"];

/// Counters of a scheduler.
pub(super) struct Metrics {
    times: Family<Settled, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Settled {
    schedule: String,
    outcome: &'static str,
}

impl Metrics {
    /// All at nought: an alarm needs something to look at before the first time is missed.
    pub(super) fn of(schedules: &[Schedule]) -> Self {
        let times = Family::default();
        for schedule in schedules {
            for outcome in OUTCOMES {
                drop(times.get_or_create(&Settled { schedule: schedule.name.clone(), outcome }));
            }
        }
        Self { times }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Nominal times of schedules that this process settled, by what became of them";
        registry.register("schedule_times", help, self.times.clone());
    }

    /// Counts what this process has settled; what others had settled before is theirs.
    pub(super) fn settled(&self, schedule: &str, fired: &Fired, times: u32) {
        let outcome = match fired {
            Fired::Now(_) => "fired",
            Fired::Waits(_) => "waiting",
            Fired::Skipped(_) => "skipped",
            Fired::Missed(_) => "missed",
            Fired::Before | Fired::Outdated => return,
        };
        self.times.get_or_create(&Settled { schedule: schedule.to_owned(), outcome }).inc_by(u64::from(times));
    }
}
