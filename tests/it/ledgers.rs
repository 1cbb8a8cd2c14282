//! The ledger's contract: one suite, every engine.

mod attempts;
mod chores;
mod deliveries;
mod keys;
mod runs;
mod texts;
mod verbs;

use std::time::Duration;

use schemas::{Key, RunState};
use tests::ledgers::TestLedger;

fn keyed(t: &TestLedger, key: &str) -> schemas::NewJob {
    let key = Key { scope: "noop".into(), key: key.into(), hold: Duration::from_hours(1) };
    schemas::NewJob { key: Some(key), ..t.job() }
}

/// plan → backup (if something is pending) → migrate → notify (always).
fn deploy(t: &TestLedger) -> schemas::NewRun {
    t.run(&[
        ("plan", &[], None),
        ("backup", &["plan"], Some("jobs.plan.pending > 0")),
        ("migrate", &["plan", "backup"], None),
        ("notify", &["migrate"], Some("always()")),
    ])
}

async fn run_state(t: &TestLedger, run: schemas::RunId) -> RunState {
    t.ledger.run(run).await.unwrap().unwrap().state
}
