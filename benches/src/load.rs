//! The load: connections that are kept alive, each with one request under way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::pushes::Push;

/// An answer that is not here within this fails the measurement.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Where requests go.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) path: &'static str,
}

/// What was measured: how many were answered with a 2xx for each second, and the times that it took, sorted.
pub(crate) struct Measured {
    pub(crate) rate: f64,
    pub(crate) times: Vec<Duration>,
}

impl Measured {
    /// The time that as many of a hundred don't exceed, in milliseconds.
    pub(crate) fn percentile(&self, of_hundred: usize) -> f64 {
        let rank = (self.times.len() * of_hundred).div_ceil(100).max(1);
        self.times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
    }
}

/// Sends for so long over so many connections: as fast as it is answered or, where a rate is given, at that rate. Then times
/// count from when a request was due, so that one that waited for its turn is not left out.
pub(crate) async fn send(
    target: &Target,
    pushes: &Arc<Vec<Push>>,
    connections: u32,
    lasting: Duration,
    rate: Option<f64>,
) -> anyhow::Result<Measured> {
    let began = Instant::now();
    let every = rate.map(|rate| Duration::from_secs_f64(f64::from(connections) / rate));
    let mut senders = JoinSet::new();
    for number in 0..connections {
        let first = began + every.unwrap_or_default() * number / connections;
        let sender =
            Sender { target: target.clone(), pushes: Arc::clone(pushes), first, every, until: began + lasting };
        senders.spawn(sender.send(number as usize * 7));
    }
    let mut times = Vec::new();
    while let Some(sender) = senders.join_next().await {
        times.extend(sender??);
    }
    times.sort_unstable();
    #[allow(clippy::cast_precision_loss)] // counts of requests, far from 2^52
    let rate = times.len() as f64 / began.elapsed().as_secs_f64();
    Ok(Measured { rate, times })
}

/// One connection.
struct Sender {
    target: Target,
    pushes: Arc<Vec<Push>>,
    first: Instant,
    every: Option<Duration>,
    until: Instant,
}

impl Sender {
    /// Sends until the time is up: how long each answer took.
    async fn send(self, skipped: usize) -> anyhow::Result<Vec<Duration>> {
        let mut connection = TcpStream::connect(&self.target.host).await?;
        connection.set_nodelay(true)?;
        let (mut request, mut answer, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let mut due = self.first;
        for push in self.pushes.iter().cycle().skip(skipped) {
            push.write_request(self.target.path, &self.target.host, &mut request);
            match self.every {
                Some(every) => {
                    sleep_until(due).await;
                    due += every;
                }
                None => due = Instant::now(),
            }
            if Instant::now() >= self.until {
                break;
            }
            let since = self.every.map_or(due, |every| due - every);
            connection.write_all(&request).await?;
            tokio::time::timeout(ANSWER_WITHIN, read_answer(&mut connection, &mut answer)).await??;
            times.push(since.elapsed());
        }
        Ok(times)
    }
}

/// Reads one answer whole. Any other than a 2xx fails.
async fn read_answer(connection: &mut TcpStream, answer: &mut Vec<u8>) -> anyhow::Result<()> {
    answer.clear();
    let head = loop {
        if connection.read_buf(answer).await? == 0 {
            bail!("the server hung up");
        }
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    let text = std::str::from_utf8(&answer[..head])?.to_ascii_lowercase();
    if !text.starts_with("http/1.1 2") {
        bail!("it was answered {}", text.lines().next().unwrap_or_default());
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(Ok(0), |length| length.trim().parse()).context("a length")?;
    while answer.len() < head + length {
        if connection.read_buf(answer).await? == 0 {
            bail!("the server hung up");
        }
    }
    Ok(())
}
