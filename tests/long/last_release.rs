//! The last release's binary beside this one, on one ledger, through a change of its schema.

use std::path::PathBuf;

use tests::load::{Load, count};
use tests::porter::eventually;

use super::teams_world::TeamsWorld;

/// How many deliveries are waited for in each phase.
const DELIVERIES: usize = 300;

/// Only this release knows limits.
const LIMITS: &str = "[limits.\"channel:team\"]\nat_once = 2\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_release_works_beside_this_one_while_the_schema_changes() {
    let last = std::env::var("NIGHTPORTER_TEST_LAST_RELEASE").map(PathBuf::from).unwrap_or_default();
    assert!(last.is_file(), "NIGHTPORTER_TEST_LAST_RELEASE names no binary: run this test by `tests/run-long`");
    let ledger = tests::postgres::fresh_database().await;
    let broker = tests::server("NIGHTPORTER_TEST_AMQP");
    let world = TeamsWorld::new().await;
    let old = world.house(&ledger, &broker, "").with_binary(&last);
    let new = world.house(&ledger, &broker, LIMITS);

    let (old_serve, mut old_work) = (old.start("serve"), old.start("work"));
    let old_load = Load::start(&old_serve.server(), &world.sender);
    old_load.wait_for(DELIVERIES).await;
    let before = schema(&ledger).await;

    // The first new process changes the schema, under the load of the old ones.
    let (new_serve, mut new_work) = (new.start("serve"), new.start("work"));
    let after = schema(&ledger).await;
    assert!(after > before, "the schema has not changed: {before} to {after}");
    let new_load = Load::start(&new_serve.server(), &world.sender);
    old_load.wait_for(DELIVERIES).await;
    new_load.wait_for(DELIVERIES).await;
    assert!(old_work.is_alive() && new_work.is_alive());
    let workers = "select count(distinct worker) from nightporter.history";
    eventually("both workers finish jobs", async || (count(&ledger, workers).await.ok()? == 2).then_some(())).await;

    // Only the old worker is left: it finishes jobs with limits, and does not know what it leaves behind. More of them than
    // there is room for: what has ended takes none.
    assert!(new_work.stop().success());
    let by_old = "select count(*) from nightporter.history h where exists (select 1 from nightporter.job_limit l
                  where l.job_id = h.id and l.standing = 2)";
    eventually("the old worker finishes jobs with limits", async || {
        (count(&ledger, by_old).await.ok()? > 5).then_some(())
    })
    .await;
    old_load.stop().await;
    assert!(old_work.stop().success());
    assert!(old_serve.stop().success());
    let left = count(&ledger, by_old).await.unwrap();

    // An old process that starts anew is told so.
    for role in ["serve", "work"] {
        let ended = old.run(&[role]).exits(5);
        assert!(ended.stderr.contains("newer"), "{}", ended.stderr);
        println!("the last release, started anew as `{role}`: {}", ended.stderr.lines().last().unwrap_or_default());
    }

    let new_work_again = new.start("work");
    new_load.wait_for(DELIVERIES).await;
    new_load.stop().await;
    let what = format!("schema {before} to {after}; {left} jobs with limits finished by the old worker");
    world.settle(&ledger, &what).await;
    assert!(new_work_again.stop().success() && new_serve.stop().success());
}

async fn schema(ledger: &str) -> i64 {
    count(ledger, "select max(version) from nightporter._sqlx_migrations").await.unwrap()
}
