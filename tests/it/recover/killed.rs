//! `recover` itself dies at each of its points.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::*;

const POINTS: [&str; 4] = ["ledger rebuilt", "ledger goes on", "ledger claimed", "ledger in its place"];

/// Has `recover` die at a point.
fn dies_at(machine: &House, point: &str) {
    let mut dying = machine.command(&["recover"]);
    let mut dying = dying.env("NIGHTPORTER_KILL_AT", format!("{point}:1")).spawn().expect("the binary starts");
    let deadline = Instant::now() + Duration::from_mins(1);
    let status = loop {
        if let Some(status) = dying.try_wait().expect("it can be waited for") {
            break status;
        }
        assert!(Instant::now() < deadline, "it never came to `{point}`");
        std::thread::yield_now();
    };
    assert_eq!(status.signal(), Some(9), "it ended otherwise than by our hand at `{point}`");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_dies_at_any_point_leaves_no_ledger_or_a_whole_one_that_is_copied() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let mut machine = team.machine();
    let mut up = machine.start("up");
    let mut sent = 0;
    for point in POINTS {
        sent += 2;
        deliver_all(&up, &commits(sent - 1..sent + 1)).await;
        team.copied(&delivery_of(&commits(sent..sent + 1)[0]).to_string()).await;
        up.kill();
        machine = team.machine();
        dies_at(&machine, point);
        let is_there = machine.path("book.db").exists();
        assert_eq!(is_there, point == POINTS[3], "after `{point}`");
        // What is there is whole, and goes on as it is; where nothing is, it is recovered as if nobody had tried.
        machine.run(&["recover"]).exits(if is_there { 5 } else { 0 });
        up = machine.start("up");
        for commit in commits(1..sent + 1) {
            let (status, answer) = deliver(&up.server(), &commit).await.unwrap();
            assert_eq!((status, &answer["duplicate"]), (StatusCode::OK, &Value::Bool(true)), "after `{point}`");
        }
        assert!(!superseded(&up).await, "after `{point}`");
    }
    // The last one is copied, so it had claimed the copies before it had its name.
    deliver_all(&up, &commits(sent + 1..sent + 2)).await;
    team.copied(&delivery_of(&commits(sent + 1..sent + 2)[0]).to_string()).await;
    team.all_done(&commits(1..sent + 2)).await;
    println!("{} deaths of a recovery", POINTS.len());
}
