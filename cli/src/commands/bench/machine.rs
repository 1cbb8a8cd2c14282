//! The machine: its cores, and the CPU time that a round took of it.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use tokio::time::Instant;

use super::report::Round;

/// The unit of the times in `/proc`: `sysconf(_SC_CLK_TCK)` is 100 on every Linux there is.
const TICK: Duration = Duration::from_millis(10);

/// Counts the CPU time of this process and of the servers that it was told of.
pub(super) struct Watch {
    servers: Vec<u32>,
}

/// One measurement under way.
pub(super) struct Meter<'a> {
    watch: &'a Watch,
    began: Instant,
    own: Option<Duration>,
    servers: Option<Duration>,
}

/// Of this process.
fn own() -> Option<Duration> {
    times(std::process::id()).map(|times| times.own)
}

impl Watch {
    pub(super) fn new(servers: Vec<u32>) -> Self {
        Self { servers }
    }

    pub(super) fn start(&self) -> Meter<'_> {
        let (own, servers) = (own(), self.servers());
        Meter { watch: self, began: Instant::now(), own, servers }
    }

    /// Of the servers and their descendants; what a descendant took is its parent's once it has ended.
    fn servers(&self) -> Option<Duration> {
        if self.servers.is_empty() {
            return None;
        }
        let all: HashMap<u32, Times> = fs::read_dir("/proc")
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(|pid| Some((pid, times(pid)?)))
            .collect();
        let is_counted = |pid: u32| {
            let ancestors = std::iter::successors(Some(pid), |pid| all.get(pid).map(|times| times.parent));
            ancestors.take_while(|pid| *pid != 0).any(|pid| self.servers.contains(&pid))
        };
        Some(all.iter().filter(|(pid, _)| is_counted(**pid)).map(|(_, times)| times.own + times.ended_children).sum())
    }
}

impl Meter<'_> {
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// The round: how many were done, and how long each took, where that was measured.
    pub(super) fn end(self, done: u64, latencies: Vec<Duration>) -> Round {
        let took = self.began.elapsed();
        let since = |before: Option<Duration>, after: Option<Duration>| Some(after?.saturating_sub(before?));
        let own = since(self.own, own());
        let servers = since(self.servers, self.watch.servers());
        Round::new(done, took, latencies, own, servers)
    }
}

/// What the system says of one process.
struct Times {
    parent: u32,
    own: Duration,
    ended_children: Duration,
}

fn times(pid: u32) -> Option<Times> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the fields after it are numbers: state, parent, ...
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |first: usize| -> Option<Duration> {
        let sum: u32 = fields.get(first..first + 2)?.iter().map(|field| field.parse::<u32>().unwrap_or(0)).sum();
        Some(TICK * sum)
    };
    Some(Times { parent: fields.get(1)?.parse().ok()?, own: ticks(11)?, ended_children: ticks(13)? })
}

/// How many cores this process may use.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The name of the processor, where the system tells it.
pub(super) fn processor() -> Option<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpus.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_the_parent_and_the_time_of_a_process() {
        let me = times(std::process::id()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id());
    }
}
