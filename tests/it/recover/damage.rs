//! Copies that were damaged where they lie.

use std::path::{Path, PathBuf};

use super::*;

/// The files of a line whose names hold a text, in their order.
fn files(safe: &Path, line: u32, text: &str) -> Vec<PathBuf> {
    let folder = safe.join(format!("nightporter-ledger/{line:08}"));
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.to_string_lossy().contains(text));
    found.sort();
    found
}

fn flip_a_byte(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Writes other hex digits into what a manifest says; whether it is the digest of the copy's bytes or of the ledger's.
fn alter(manifest: &Path, say: impl Fn(&mut Value) -> &mut Value) {
    let mut copy: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let digest = say(&mut copy);
    *digest = Value::String(digest.as_str().unwrap().chars().rev().collect());
    std::fs::write(manifest, serde_json::to_vec(&copy).unwrap()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_not_what_its_manifest_names_is_passed_over() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let machine = team.machine();
    let up = machine.start("up");
    for commit in commits(1..3) {
        deliver_all(&up, std::slice::from_ref(&commit)).await;
        team.copied(&delivery_of(&commit).to_string()).await;
    }
    up.kill();
    let claims = || std::fs::read_dir(safe.path().join("nightporter-ledger/claims")).unwrap().count();
    let claimed = claims();
    let recover = || team.machine().run(&["recover", "--dry-run", "--json"]);
    let whole = recover().exits(0).json();
    let (line, copies) = (u32::try_from(whole["line"].as_u64().unwrap()).unwrap(), whole["copy"].as_u64().unwrap());
    // The parts fit together, but one was not read as it was written.
    let last = files(safe.path(), line, ".copy.json").pop().unwrap();
    let kept = std::fs::read(&last).unwrap();
    alter(&last, |copy| &mut copy["data"]["plain"]["sha256"]);
    assert_eq!(recover().exits(0).json()["copy"].as_u64(), Some(copies - 1));
    // Each part was read as it was written, but together they are another ledger.
    std::fs::write(&last, kept).unwrap();
    alter(&last, |copy| &mut copy["root"]);
    let refused = recover().exits(1);
    assert!(refused.stderr.contains("does not make the ledger that its copies name"), "{}", refused.stderr);
    assert_eq!(claims(), claimed, "a dry run takes the copies from nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_costs_the_copies_behind_it_and_then_the_line_and_is_said_each_time() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let machine = team.machine();
    // Two lines, each with parts: every start begins one.
    for round in 0..2 {
        let up = machine.start("up");
        for commit in commits(round * 10 + 1..round * 10 + 4) {
            deliver_all(&up, std::slice::from_ref(&commit)).await;
            team.copied(&delivery_of(&commit).to_string()).await;
        }
        up.kill();
    }
    let recover = || team.machine().run(&["recover", "--dry-run", "--json"]);
    let whole = recover().exits(0).json();
    let (line, copies) = (whole["line"].as_u64().unwrap(), whole["copy"].as_u64().unwrap());
    let line_number = u32::try_from(line).unwrap();
    assert!(copies > 2, "{whole}");

    flip_a_byte(files(safe.path(), line_number, ".part.zst").last().unwrap());
    let told = recover().exits(0).json();
    assert_eq!((told["line"].as_u64(), told["copy"].as_u64()), (Some(line), Some(copies - 1)), "{told}");
    assert!(told["passed_over"][0].as_str().unwrap().contains(&format!("copy {copies} of line {line}")), "{told}");

    flip_a_byte(&files(safe.path(), line_number, ".whole.zst")[0]);
    let told = recover().exits(0).json();
    assert_eq!(told["line"].as_u64(), Some(line - 1), "{told}");
    assert!(told["passed_over"][0].as_str().unwrap().contains(&format!("line {line}")), "{told}");
    assert_eq!(told["sources"][0]["last"]["delivery_id"], delivery_of(&commits(3..4)[0]).to_string());

    std::fs::remove_file(&files(safe.path(), line_number - 1, ".whole.zst")[0]).unwrap();
    let refused = recover().exits(1);
    assert!(refused.stderr.contains("no copy of the ledger can be used"), "{}", refused.stderr);
}
