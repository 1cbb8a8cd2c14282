//! More than the machine takes: memory stays bounded, honest senders are served, and what was signed for is done.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use sqlx::{Connection, PgConnection};
use tests::binary::{House, Running};
use tests::porter::eventually;
use tests::sender::{Sender, configuration, push};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// A porter holds no more than this, whatever is sent to it; it needs less than a tenth of it when idle.
const MOST_MEMORY: u64 = 400 << 20;

struct Crowded {
    up: Running,
    /// The folder that it lives in.
    _house: House,
    ledger: String,
    sender: Arc<Sender>,
}

impl Crowded {
    async fn start(change: impl FnOnce(House) -> House) -> Self {
        let ledger = tests::postgres::fresh_database().await;
        let house = change(House::new(&configuration(&ledger)));
        Self { up: house.start("up"), _house: house, ledger, sender: Arc::default() }
    }

    fn memory(&self) -> String {
        let most = self.up.most_memory();
        assert!(most < MOST_MEMORY, "it held {} MiB", most >> 20);
        format!("{} MiB at most", most >> 20)
    }

    /// Everything that was signed for is in the ledger, and all its jobs have ended.
    async fn settled(&self) {
        eventually("what was signed for is booked", async || {
            self.sender.is_all_booked(&self.ledger).await.then_some(())
        })
        .await;
        eventually("all jobs have ended", async || {
            let mut ledger = PgConnection::connect(&self.ledger).await.unwrap();
            let open = sqlx::query_scalar("select count(*) from nightporter.job");
            let open: i64 = open.fetch_one(&mut ledger).await.unwrap();
            (open == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_times_the_senders_that_it_takes_to_be_busy_are_served_or_told_to_come_back() {
    let crowded = Crowded::start(|house| house).await;
    let door = crowded.up.server();
    let lasts = Duration::from_secs(if tests::is_long() { 60 } else { 3 });
    let mut rates = Vec::new();
    for senders in [64, 320] {
        let (before, until) = (crowded.sender.acknowledged().0, Instant::now() + lasts);
        let mut all = JoinSet::new();
        for _ in 0..senders {
            let (sender, door) = (Arc::clone(&crowded.sender), door.clone());
            all.spawn(async move {
                while Instant::now() < until {
                    let status = sender.push(&door, 16 * 1024).await.map(|status| status.as_u16());
                    assert!(matches!(status, None | Some(200 | 202 | 429 | 503)), "{status:?}");
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            ended.unwrap();
        }
        rates.push(crowded.sender.acknowledged().0 - before);
    }
    crowded.settled().await;
    let (acknowledged, spooled) = crowded.sender.acknowledged();
    println!(
        "{acknowledged} signed for ({spooled} by the spool) and done; {rates:?} in {lasts:?} of 64 and of 320 senders; \
         answers {}; {}",
        crowded.sender.answers(),
        crowded.memory()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_bodies_at_once_take_a_bounded_memory_and_keep_no_small_one_out() {
    let crowded = Crowded::start(|house| house).await;
    let door = crowded.up.server();
    let large = if tests::is_long() { 64 } else { 12 };
    // Not all of one byte: what compresses to nothing is no load.
    let padding: String = (0_u64..)
        .flat_map(|n| format!("{:x}", n.wrapping_mul(0x9E37_79B9_7F4A_7C15)).into_bytes())
        .map(char::from)
        .take((25 << 20) - 20_000)
        .collect();
    let (headers, body) = push(0, &padding);
    drop(padding);
    let sending = (0..large).map(|_| crowded.sender.send(&door, headers.clone(), body.clone()));
    let small = async {
        let mut answers = Vec::new();
        for _ in 0..50 {
            answers.push(crowded.sender.push(&door, 8 * 1024).await);
        }
        answers
    };
    let (large_answers, small_answers) = tokio::join!(join_all(sending), small);
    assert!(small_answers.iter().all(|status| *status == Some(StatusCode::ACCEPTED)), "{small_answers:?}");
    let taken = large_answers.iter().flatten().filter(|status| status.is_success()).count();
    assert!(taken > 0, "{large_answers:?}");
    eventually("what was signed for is booked", async || {
        crowded.sender.is_all_booked(&crowded.ledger).await.then_some(())
    })
    .await;
    println!(
        "{taken} of {large} bodies of 25 MiB taken beside 50 small ones; answers {}; {}",
        crowded.sender.answers(),
        crowded.memory()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_keep_nobody_out() {
    // What many systems begin with; the porter raises it itself.
    let crowded = Crowded::start(|house| house.with_limit("-S -n 1024")).await;
    let many = if tests::is_long() { 10_000 } else { 2_000 };
    let (door, idle) = (crowded.up.server(), connect(&crowded.up, many).await);
    let served: Vec<_> = stream::iter(0..50).then(|_| crowded.sender.push(&door, 8 * 1024)).collect().await;
    assert!(served.iter().all(|status| *status == Some(StatusCode::ACCEPTED)), "{served:?}");
    assert!(crowded.up.open_files() > many, "they were not let in, or cut");
    crowded.settled().await;
    println!("50 deliveries taken beside {} idle connections; {}", idle.len(), crowded.memory());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_that_drip_are_cut_and_take_the_descriptors_of_nothing_else() {
    // 30 connections at the public door.
    let crowded = Crowded::start(|house| house.with_limit("-n 80")).await;
    let start = Instant::now();
    let mut dripping = JoinSet::new();
    for (number, stream) in connect(&crowded.up, 75).await.into_iter().enumerate() {
        dripping.spawn(drip(stream, number % 2 == 0));
    }
    let mut refused = 0;
    let mut served = 0;
    while served < 20 {
        // Whoever finds no place in ten seconds comes again: others have been cut by then.
        match crowded.sender.push(&crowded.up.server(), 1024).await {
            Some(StatusCode::ACCEPTED) => served += 1,
            other => {
                assert_eq!(other, None);
                refused += 1;
            }
        }
        assert!(refused < 20, "honest senders are not served");
    }
    let served_after = start.elapsed();
    let crowd = dripping.len() / 2;
    let mut cut = 0;
    while cut < if tests::is_long() { dripping.len() + cut } else { crowd } {
        let one = tokio::time::timeout(Duration::from_mins(2), dripping.join_next()).await;
        one.expect("who drips is cut").unwrap().unwrap();
        cut += 1;
    }
    crowded.settled().await;
    assert_eq!(crowded.sender.acknowledged(), (20, 0), "the ledger has descriptors: nothing was spooled");
    println!(
        "20 deliveries taken within {served_after:.1?} ({refused} had to come again); {cut} of 75 that drip were cut in {:.1?}; {}",
        start.elapsed(),
        crowded.memory()
    );
}

async fn connect(up: &Running, many: usize) -> Vec<TcpStream> {
    let address = up.server().trim_start_matches("http://").to_owned();
    let connected = stream::iter(0..many).map(|_| TcpStream::connect(address.clone())).buffer_unordered(64);
    connected.map(|stream| stream.expect("a connection")).collect().await
}

/// Sends a byte each half second, of the head or of the body, until it is cut.
async fn drip(mut stream: TcpStream, in_the_head: bool) {
    let head = "POST /webhooks/github HTTP/1.1\r\nhost: porter\r\ncontent-type: application/json\r\n";
    let start = if in_the_head { head.to_owned() } else { format!("{head}content-length: 10000\r\n\r\n") };
    let _cut = stream.write_all(start.as_bytes()).await;
    let mut answer = [0; 1024];
    loop {
        tokio::select! {
            read = stream.read(&mut answer) => match read {
                Ok(1..) => {} // It is told why.
                Ok(0) | Err(_) => return,
            },
            () = sleep(Duration::from_millis(500)) => {
                if stream.write_all(b"x").await.is_err() {
                    return;
                }
            }
        }
    }
}
