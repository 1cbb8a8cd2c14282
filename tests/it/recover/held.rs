//! What the lost machine may have done after the copy asks a person first.

use serde_json::json;

use super::*;

/// Starts a `noop` that goes on for ever; its id.
fn start(machine: &House, up: &Running) -> String {
    let server = up.operators();
    let long = ["run", "noop", "--reason", "x", "--json", "--with", "steps=10", "--with", "step_millis=60000"];
    let started = machine.run(&[&long[..], &["--server", &server]].concat()).exits(0).json();
    started["job"].as_str().unwrap().to_owned()
}

fn job(machine: &House, up: &Running, id: &str) -> Value {
    machine.run(&["jobs", "show", id, "--json", "--server", &up.operators()]).exits(0).json()
}

/// Two jobs on a machine that is lost: one that runs, and one behind it.
async fn lost_with_two_jobs(team: &Team) -> [String; 2] {
    let machine = team.machine();
    let up = machine.start("up");
    let jobs = [start(&machine, &up), start(&machine, &up)];
    eventually("the first runs", async || (job(&machine, &up, &jobs[0])["state"] == "running").then_some(())).await;
    let other = team.machine();
    eventually("both are in a copy", async || {
        let told = other.run(&["recover", "--dry-run", "--json"]);
        let open = told.code == 0 && told.json()["open"].as_array()?.len() == 2;
        (open && told.json()["interrupted"].as_array()?.len() == 1).then_some(())
    })
    .await;
    up.kill();
    jobs
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_jobs_come_back_held_and_a_person_lets_them_go_on_or_cancels_them() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let [running, available] = lost_with_two_jobs(&team).await;
    let machine = team.machine();
    let told = machine.run(&["recover", "--json"]).exits(0).json();
    assert_eq!((&told["held"], &told["interrupted"][0]), (&Value::Bool(true), &Value::String(running.clone())));
    let was: BTreeMap<&str, &str> = told["open"]
        .as_array()
        .unwrap()
        .iter()
        .map(|open| (open["job"].as_str().unwrap(), open["was"].as_str().unwrap()))
        .collect();
    assert_eq!(was, BTreeMap::from([(running.as_str(), "running"), (available.as_str(), "available")]));

    let up = machine.start("up");
    let server = up.operators();
    let ask = |arguments: &[&str]| machine.run(&[arguments, &["--server", &server, "--json"]].concat());
    let waiting = ask(&["approvals", "list"]).exits(0).json();
    assert_eq!(waiting.as_array().unwrap().len(), 2, "{waiting}");
    for id in [&running, &available] {
        let job = job(&machine, &up, id);
        assert_eq!(job["state"], "pending", "{job}");
        assert!(job["reason"].as_str().unwrap().contains("the lost machine may have done it"), "{job}");
    }
    ask(&["approvals", "refuse", &available, "--reason", "it was done"]).exits(0);
    ask(&["approvals", "approve", &running, "--reason", "it was not"]).exits(0);
    eventually("it runs", async || (job(&machine, &up, &running)["state"] == "running").then_some(())).await;
    let view = job(&machine, &up, &running);
    assert_eq!(view["attempts"][0]["outcome"], "interrupted", "{view}");
    assert!(view["attempt"].as_u64() > Some(100), "its number is none of the lost machine's: {view}");
    assert_eq!(job(&machine, &up, &available)["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn open_jobs_go_on_at_once_where_a_person_says_so() {
    let safe = TempDir::new().unwrap();
    let team = Team::copying_to(&format!("file:{}", safe.path().display()), "").await;
    let [running, available] = lost_with_two_jobs(&team).await;
    let machine = team.machine();
    let told = machine.run(&["recover", "--run-open-jobs", "--reason", "it burned", "--json"]).exits(0).json();
    assert_eq!(told["held"], false, "{told}");
    let up = machine.start("up");
    // There is one place, and whoever has waited for longer has it.
    eventually("the other runs", async || (job(&machine, &up, &available)["state"] == "running").then_some(())).await;
    let view = job(&machine, &up, &running);
    assert_eq!(
        (&view["state"], &view["attempts"][0]["outcome"]),
        (&json!("available"), &json!("interrupted")),
        "{view}"
    );
}
