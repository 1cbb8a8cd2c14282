//! Connections that are cut in the middle of a commit.

use std::net::SocketAddr;
use std::sync::Arc;

use queue::ledger::{Ended, LedgerError};
use schemas::JobState;
use sqlx::{Connection, PgConnection};
use tests::binary::House;
use tests::cutting::{Cut, CuttingProxy};
use tests::ledgers::{TestLedger, completed};
use tests::porter::eventually;
use tests::postgres::fresh_database;
use tests::sender::{Sender, configuration};

use super::{Load, deploy, deploy_again, with_vercel};

/// What stands in the message that has a prepared statement executed, and in no other.
const BIND: &[u8] = b"\0sqlx_s_";

/// How often each kind of commit is cut, on each side.
fn rounds() -> usize {
    if tests::is_long() { 100 } else { 5 }
}

async fn behind_a_line() -> (CuttingProxy, String) {
    let url = fresh_database().await;
    let server: SocketAddr = url.split(['@', '/']).nth(3).unwrap().parse().unwrap();
    (CuttingProxy::to(server).await, url)
}

#[tokio::test]
async fn a_delivery_whose_commit_was_cut_is_of_unknown_outcome_and_its_repeat_is_booked_once() {
    let (line, url) = behind_a_line().await;
    let t = TestLedger::postgres_at(&line.url(&url)).await;
    let mut seen = 0;
    // With jobs the transaction ends with a COMMIT; without, one statement is all, and commits itself.
    for (has_jobs, at) in [(true, &b"COMMIT"[..]), (false, BIND)] {
        for (round, cut) in (0..rounds()).flat_map(|round| [(round, Cut::Before), (round, Cut::After)]) {
            let mut delivery = t.delivery(&format!("{has_jobs} {round} {cut:?}"), b"{}");
            if !has_jobs {
                delivery.jobs.clear();
            }
            line.cut_once(cut, at);
            let answer = t.ledger.accept(std::slice::from_ref(&delivery), t.now()).await;
            assert!(matches!(answer, Err(LedgerError::Unknown(_))), "{cut:?}: {answer:?}");
            let again = t.accept(&delivery).await;
            assert_eq!(again.duplicate, cut == Cut::After, "{cut:?}");
            seen += 1;
            let job = delivery.jobs.first().map(|job| job.id);
            if let Some(job) = job {
                assert_eq!(t.state(job).await, JobState::Available);
            }
        }
    }
    let count = "select count(*) from nightporter.event";
    let mut reader = PgConnection::connect(&url).await.unwrap();
    let events: i64 = sqlx::query_scalar(count).fetch_one(&mut reader).await.unwrap();
    assert_eq!(usize::try_from(events), Ok(seen));
    println!("{seen} commits of deliveries cut, each booked once");
}

#[tokio::test]
async fn an_end_whose_commit_was_cut_is_recorded_once() {
    let (line, url) = behind_a_line().await;
    let t = TestLedger::postgres_at(&line.url(&url)).await;
    for (round, cut) in (0..rounds()).flat_map(|round| [(round, Cut::Before), (round, Cut::After)]) {
        t.enqueue(&[t.job()]).await;
        let job = t.claim_one().await;
        line.cut_once(cut, BIND);
        let end = || Ended { attempt: job.id, outcome: completed(None) };
        let answer = t.ledger.finish(&[end()], t.now()).await;
        assert!(matches!(answer, Err(LedgerError::Unknown(_))), "{round} {cut:?}: {answer:?}");
        // Told again, as the worker does: it was recorded, or it is now.
        assert_eq!(t.finish(job.id, completed(None)).await, cut == Cut::Before);
        assert_eq!(t.state(job.id.job).await, JobState::Completed);
    }
    println!("{} commits of ends cut, each recorded once", rounds() * 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_commits_are_cut_and_what_was_signed_for_is_booked_once_and_done() {
    let (line, url) = behind_a_line().await;
    let house = House::new(&configuration(&line.url(&url)));
    let (up, sender) = (house.start("up"), Arc::new(Sender::default()));
    let load = Load::start(&up.server(), &sender);
    load.wait_for(20).await;
    line.cut_every(7);
    load.wait_for(if tests::is_long() { 10_000 } else { 150 }).await;
    line.cut_every(0);
    load.stop().await;
    eventually("what was signed for is booked", async || sender.is_all_booked(&url).await.then_some(())).await;
    tests::load::done(&url).await;
    let (acknowledged, spooled) = sender.acknowledged();
    assert!(line.cuts() > 3, "only {} commits were cut", line.cuts());
    println!("{} commits cut, {acknowledged} signed for, {spooled} by the spool, all booked once", line.cuts());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_again_is_asked_to_where_the_outcome_is_unknown() {
    let (line, url) = behind_a_line().await;
    let house = House::new(&with_vercel(&line.url(&url)));
    let up = house.start("serve");
    for (first, cut, then) in [(100, Cut::After, 200), (200, Cut::Before, 202)] {
        let mut nonce = first;
        let refused = async || {
            nonce += 1; // The commit that was cut may have been another's.
            line.cut_once(cut, b"COMMIT");
            (deploy(&up, nonce).await == 503).then_some(())
        };
        eventually("the outcome is unknown", refused).await;
        assert_eq!(deploy_again(&up, nonce).await.as_u16(), then, "{cut:?}");
    }
}
