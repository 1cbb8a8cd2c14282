//! The process dies at each point of a copy.

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use super::*;

const POINTS: [&str; 5] =
    ["ledger copy taken", "ledger copy claimed", "ledger copy uploaded", "ledger copied", "ledger copies swept"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_cut_short_at_any_point_leaves_the_one_before_it_whole() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let machine = team.machine();
    let (mut sent, mut kills) = (0_u32, 0);
    for point in POINTS {
        // A start claims one line and sweeps once.
        let visits = if ["ledger copy claimed", "ledger copies swept"].contains(&point) { 1..=1 } else { 1..=3 };
        for visit in visits {
            let mut dying = machine.start_to_end("up", &[("NIGHTPORTER_KILL_AT", &format!("{point}:{visit}"))]);
            let deadline = Instant::now() + Duration::from_mins(2);
            let status = loop {
                if let Some(status) = dying.ended() {
                    break status;
                }
                assert!(Instant::now() < deadline, "it never came to `{point}` for the {visit}. time");
                if let Some(door) = dying.server() {
                    sent += 1;
                    let _perhaps = deliver(&door, &commits(sent..sent + 1)[0]).await;
                }
                // The ledger is to change between two copies, and not by more than is sent again at the end.
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            assert_eq!(status.signal(), Some(9), "it ended otherwise than by our hand at `{point}`");
            kills += 1;
            // What lies there is recovered whole, or there is nothing yet.
            let told = team.machine().run(&["recover", "--dry-run", "--json"]);
            assert!(told.code == 0 || (told.code == 3 && kills <= 4), "after `{point}`: {}", told.stderr);
            if told.code == 0 {
                assert_eq!(told.json()["passed_over"], serde_json::json!([]), "after `{point}`");
            }
        }
    }
    // Lines of before are swept, and the last one recovers.
    let up = machine.start("up");
    deliver_all(&up, &commits(1..sent + 2)).await;
    team.all_done(&commits(1..sent + 2)).await;
    team.copied(&delivery_of(&commits(sent + 1..sent + 2)[0]).to_string()).await;
    up.kill();
    let folders = std::fs::read_dir(safe.path().join("nightporter-ledger")).unwrap().map(|entry| entry.unwrap().path());
    // A store in a folder leaves its folders behind, empty; beside the lines there are the claims.
    let lines = folders.filter(|folder| std::fs::read_dir(folder).unwrap().next().is_some()).count() - 1;
    assert!(lines <= 6, "{lines} lines are kept");
    let machine = team.machine();
    machine.run(&["recover"]).exits(0);
    let up = machine.start("up");
    deliver_all(&up, &commits(1..sent + 3)).await;
    team.all_done(&commits(1..sent + 3)).await;
    println!("{kills} kills at points of a copy");
}
