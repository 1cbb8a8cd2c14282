//! The shop's password is exchanged while it signs in fifty times a second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::TimeDelta;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::patience::wait_for;
use crate::report::Report;
use crate::team::{PATIENCE, Team};
use crate::vault;

/// The shop signs in so often.
const A_SECOND: u32 = 50;
/// It reads its secret again after so long.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// At least so many sign-ins with the new value are waited for.
const ENOUGH: usize = 100;

/// What the shop saw.
#[derive(Default)]
struct Seen {
    signed_in: AtomicUsize,
    with_the_new: AtomicUsize,
    failed: AtomicUsize,
    stop: AtomicBool,
}

/// A rotation under way, and what is known of it afterwards.
pub(crate) async fn rotate(team: &Team, report: &mut Report) -> Result<()> {
    let secret = format!("{}/shop", team.prefix);
    let old = url_of(&vault::value(team, &secret).await?)?;
    let seen = Arc::new(Seen::default());
    let began = Instant::now();
    let shop = tokio::spawn(sign_in_again_and_again(vault::Reader::of(team, &secret), old.clone(), Arc::clone(&seen)));
    count_to(&seen.signed_in, ENOUGH).await?;
    let started = team.command(&["run", "rotate", "--with", "rotation=shop", "--reason", "the monthly one"]);
    let job = started["job"].as_str().context("no job was started")?.to_owned();
    // It waits for the end of the overlap: the new version is current.
    state_of(team, &job, "scheduled").await?;
    count_to(&seen.with_the_new, ENOUGH).await?;
    team.clock.advance_to(team.clock.now() + TimeDelta::hours(2)).await?;
    state_of(team, &job, "completed").await?;
    let after = seen.signed_in.load(Ordering::SeqCst) + ENOUGH;
    count_to(&seen.signed_in, after).await?;
    seen.stop.store(true, Ordering::SeqCst);
    shop.await??;
    let new = url_of(&vault::value(team, &secret).await?)?;
    ensure!(new != old, "the secret is the old one");
    let signed_in = seen.signed_in.load(Ordering::SeqCst);
    report.check("sign-ins that failed while the password was exchanged", 0, seen.failed.load(Ordering::SeqCst));
    report.check(
        "sign-ins with the old password afterwards",
        0,
        usize::from(PgConnection::connect(&old).await.is_ok()),
    );
    report.check("versions of the secret: the old one and one new", 2, vault::versions(team, &secret).await?);
    report.figure("sign_ins", signed_in);
    report.figure("sign_ins_with_the_new_password", seen.with_the_new.load(Ordering::SeqCst));
    #[allow(clippy::cast_precision_loss)] // Some thousand.
    report.figure("sign_ins_a_second", signed_in as f64 / began.elapsed().as_secs_f64());
    report.say(&format!("  the shop's password was exchanged under {signed_in} sign-ins"));
    Ok(())
}

fn url_of(secret: &Value) -> Result<String> {
    secret["url"].as_str().map(str::to_owned).context("the secret has no url")
}

async fn count_to(counter: &AtomicUsize, count: usize) -> Result<()> {
    wait_for("the shop has signed in", PATIENCE, async || Ok((counter.load(Ordering::SeqCst) >= count).then_some(())))
        .await
}

async fn state_of(team: &Team, job: &str, wanted: &str) -> Result<()> {
    let ended = wait_for(&format!("the rotation is {wanted}"), PATIENCE, async || {
        let job = team.ask(&format!("jobs/{job}")).await?;
        let ends = [wanted, "completed", "discarded", "cancelled"];
        Ok(ends.contains(&job["state"].as_str().unwrap_or_default()).then_some(job))
    })
    .await?;
    ensure!(ended["state"] == wanted, "the rotation: {ended}");
    Ok(())
}

/// As an application without a pool does it: a sign-in for each request, with the secret that it read a moment ago.
async fn sign_in_again_and_again(reader: vault::Reader, old: String, seen: Arc<Seen>) -> Result<()> {
    let url = Arc::new(RwLock::new(old.clone()));
    let mut tick = tokio::time::interval(Duration::from_secs(1) / A_SECOND);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut read = Instant::now();
    let mut under_way = JoinSet::new();
    while !seen.stop.load(Ordering::SeqCst) {
        tick.tick().await;
        if read.elapsed() > READ_AGAIN {
            *url.write().await = url_of(&reader.value().await?)?;
            read = Instant::now();
        }
        let (url, is_new, seen) = (url.read().await.clone(), *url.read().await != old, Arc::clone(&seen));
        under_way.spawn(async move {
            if signed_in(&url).await.is_err() {
                seen.failed.fetch_add(1, Ordering::SeqCst);
            } else {
                seen.signed_in.fetch_add(1, Ordering::SeqCst);
                seen.with_the_new.fetch_add(usize::from(is_new), Ordering::SeqCst);
            }
        });
        while under_way.try_join_next().is_some() {}
    }
    while under_way.join_next().await.is_some() {}
    Ok(())
}

async fn signed_in(url: &str) -> Result<()> {
    let mut connection = PgConnection::connect(url).await?;
    let _one: i32 = sqlx::query_scalar("select 1").fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(())
}
