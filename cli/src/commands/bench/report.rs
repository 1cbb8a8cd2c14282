//! What was measured, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::{Plan, machine};
use crate::output::{facts, table};

/// What one round measured.
pub(super) struct Round {
    rate: Option<f64>,
    p50_millis: Option<f64>,
    p99_millis: Option<f64>,
    own_cpu_micros: Option<f64>,
    server_cpu_micros: Option<f64>,
}

impl Round {
    pub(super) fn new(
        done: u64,
        took: Duration,
        mut latencies: Vec<Duration>,
        own_cpu: Option<Duration>,
        server_cpu: Option<Duration>,
    ) -> Self {
        #[allow(clippy::cast_precision_loss)] // counts of jobs, far from 2^52
        let done = done as f64;
        latencies.sort_unstable();
        let per_job = |cpu: Duration| cpu.as_secs_f64() * 1e6 / done.max(1.0);
        Self {
            rate: Some(done / took.as_secs_f64()),
            p50_millis: percentile(&latencies, 50),
            p99_millis: percentile(&latencies, 99),
            own_cpu_micros: own_cpu.map(per_job),
            server_cpu_micros: server_cpu.map(per_job),
        }
    }

    /// The rate was given, and is no result.
    pub(super) fn at_a_given_rate(self) -> Self {
        Self { rate: None, ..self }
    }
}

/// Of sorted times: the one that as many of a hundred don't exceed, in milliseconds.
fn percentile(sorted: &[Duration], of_hundred: usize) -> Option<f64> {
    let rank = (sorted.len() * of_hundred).div_ceil(100).max(1);
    sorted.get(rank - 1).map(|time| time.as_secs_f64() * 1e3)
}

fn median(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let mut values: Vec<f64> = values.flatten().collect();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// The medians of some rounds.
#[derive(Debug, Serialize)]
pub(super) struct Scenario {
    name: String,
    /// For each second; none where the rate was given.
    rate: Option<f64>,
    /// The rate of each round.
    rates: Vec<f64>,
    /// The rate, in parts of the plain rows' rate.
    to_raw: Option<f64>,
    p50_millis: Option<f64>,
    p99_millis: Option<f64>,
    /// CPU time of this process, for each job.
    own_cpu_micros: Option<f64>,
    /// CPU time of the servers named by `--cpu-of`, for each job.
    server_cpu_micros: Option<f64>,
}

impl Scenario {
    pub(super) fn of(name: &str, rounds: &[Round]) -> Self {
        Self {
            name: name.to_owned(),
            rate: median(rounds.iter().map(|round| round.rate)),
            rates: rounds.iter().filter_map(|round| round.rate).collect(),
            to_raw: None,
            p50_millis: median(rounds.iter().map(|round| round.p50_millis)),
            p99_millis: median(rounds.iter().map(|round| round.p99_millis)),
            own_cpu_micros: median(rounds.iter().map(|round| round.own_cpu_micros)),
            server_cpu_micros: median(rounds.iter().map(|round| round.server_cpu_micros)),
        }
    }
}

/// Everything.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    version: &'static str,
    processor: Option<String>,
    cores: usize,
    /// What the servers say of themselves, durability first.
    servers: BTreeMap<String, String>,
    jobs: u64,
    rounds: usize,
    callers: usize,
    permits: usize,
    scenarios: Vec<Scenario>,
}

impl Report {
    pub(super) fn new(plan: &Plan, servers: BTreeMap<String, String>, mut scenarios: Vec<Scenario>) -> Self {
        let raw = scenarios.first().and_then(|raw| raw.rate);
        for scenario in &mut scenarios {
            scenario.to_raw = scenario.rate.zip(raw).map(|(rate, raw)| rate / raw);
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            processor: machine::processor(),
            cores: machine::cores(),
            servers,
            jobs: plan.jobs,
            rounds: plan.rounds,
            callers: plan.callers,
            permits: plan.permits,
            scenarios,
        }
    }

    pub(super) fn table(&self) -> String {
        let processor = self.processor.as_deref().unwrap_or("unknown");
        let servers: Vec<String> = self.servers.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let head = facts([
            ("nightporter", Some(self.version.to_owned())),
            ("machine", Some(format!("{} cores, {processor}", self.cores))),
            ("servers", Some(servers.join(", "))),
            (
                "each round",
                Some(format!("{} jobs of 1 KiB, {} callers, {} permits", self.jobs, self.callers, self.permits)),
            ),
            (
                "shown",
                Some(format!("the median of {} rounds; raw: plain rows, {} to a commit", self.rounds, self.callers)),
            ),
        ]);
        let number = |value: Option<f64>, digits: usize| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        let rows = self.scenarios.iter().map(|scenario| {
            let rounds: Vec<String> = scenario.rates.iter().map(|rate| format!("{rate:.0}")).collect();
            [
                scenario.name.clone(),
                number(scenario.rate, 0),
                number(scenario.to_raw, 2),
                number(scenario.p50_millis, 2),
                number(scenario.p99_millis, 2),
                number(scenario.own_cpu_micros, 1),
                number(scenario.server_cpu_micros, 1),
                rounds.join(" "),
            ]
        });
        let columns = ["SCENARIO", "PER SECOND", "OF RAW", "P50 MS", "P99 MS", "CPU µS", "SERVERS' µS", "ROUNDS"];
        format!("{head}\n\n{}", table(columns, rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Some(100.0));
        assert_eq!(percentile(&times, 99), Some(198.0));
        assert_eq!(percentile(&times[..1], 99), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn the_median_leaves_out_what_was_not_measured() {
        assert_eq!(median([Some(3.0), None, Some(1.0), Some(2.0)].into_iter()), Some(2.0));
        assert_eq!(median([None].into_iter()), None);
    }
}
