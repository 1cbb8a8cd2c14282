//! `exec`: programs that are configured, most of them a line of shell.

use std::path::Path;

use schemas::JobState;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::backup_world::BackupWorld;
use tests::log::Log;
use tests::porter::eventually;
use worker::WorldConfig;
use worker::programs::ProgramConfig;

const CANARY: &str = "canary-of-the-program";

/// A world with the program `it`, which is a line of shell; `$0` is a folder of its own.
struct House {
    world: BackupWorld,
    folder: TempDir,
}

impl House {
    async fn with(script: &str, more: Value) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = json!({"command": ["/bin/sh", "-c", script, folder.path()], "inherit": ["PATH"]});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let program: ProgramConfig = serde_json::from_value(config).unwrap();
        let programs = [("it".to_owned(), program)].into();
        let world = BackupWorld::of(WorldConfig { programs, ..WorldConfig::default() }).await;
        Self { world, folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// The lines of a file that the program wrote.
    fn lines(&self, name: &str) -> Vec<String> {
        std::fs::read_to_string(self.path(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// Waits until there are so many lines in it.
    async fn has_lines(&self, name: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} lines in {name}"), async || Some(self.lines(name)).filter(|it| it.len() >= count))
            .await
    }
}

fn it(with: Value) -> Value {
    json!({"program": "it", "with": with})
}

/// Whether a process lives: one that has ended, but is not waited for yet, does not.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

async fn end(pids: &[String]) {
    for pid in pids {
        eventually(&format!("process {pid} is killed"), async || (!is_alive(pid)).then_some(())).await;
    }
}

/// Writes its own number and that of a child that sleeps, and waits for it.
const SLEEPER: &str = "sleep 600 & echo $$ >> $0/pids; echo $! >> $0/pids; wait";

#[tokio::test]
async fn a_program_gets_its_work_as_json_and_its_last_line_is_the_output() {
    let script = "cat > $0/input; echo working; echo \"{\\\"job\\\": \\\"$NIGHTPORTER_JOB_ID\\\", \\\"attempt\\\": $NIGHTPORTER_ATTEMPT}\"";
    let house = House::with(script, json!({})).await;
    for number in [1, 2] {
        let job = house.world.enqueue("exec", &it(json!({"n": number, "deep": [true]}))).await;
        assert_eq!(house.world.completed(job).await, json!({"job": job, "attempt": 1}));
        let input: Value = serde_json::from_str(&house.lines("input").join("\n")).unwrap();
        assert_eq!(input, json!({"n": number, "deep": [true]}));
    }
    house.world.close().await;
}

#[tokio::test]
async fn nothing_is_inherited_but_what_is_named() {
    let house = House::with("env > $0/env", json!({"env": {"MODE": "all"}, "inherit": ["PATH", "NO_SUCH"]})).await;
    house.world.complete("exec", &it(json!({}))).await;
    let names = house.lines("env").iter().map(|line| line.split('=').next().unwrap().to_owned()).collect::<Vec<_>>();
    for name in &names {
        // What a shell sets by itself.
        let known = ["MODE", "PATH", "NIGHTPORTER_JOB_ID", "NIGHTPORTER_ATTEMPT", "PWD", "OLDPWD", "SHLVL", "_"];
        assert!(known.contains(&name.as_str()), "{name}");
    }
    assert!(names.contains(&"MODE".to_owned()) && names.contains(&"PATH".to_owned()));
    house.world.close().await;
}

#[tokio::test]
async fn the_exit_code_says_done_again_or_failed() {
    // 75 the first time, then 0.
    let script = "echo run >> $0/runs; test $(wc -l < $0/runs) -gt 1 || { echo 'not yet' >&2; exit 75; }";
    let house = House::with(script, json!({})).await;
    let job = house.world.enqueue("exec", &it(json!({}))).await;
    let error = house.world.first_failure(job).await;
    assert_eq!(error, "the program `it` ended with 75: not yet");
    let view = house.world.wait_for(job, &[JobState::Retryable, JobState::Completed]).await;
    assert_eq!(view.attempts[0].outcome.as_deref(), Some("failed"));
    house.world.close().await;

    let house = House::with("echo run >> $0/runs; echo 'no such index' >&2; exit 3", json!({})).await;
    let job = house.world.enqueue("exec", &it(json!({}))).await;
    assert_eq!(house.world.wait_discarded(job).await, "the program `it` ended with 3: no such index");
    house.world.retry(job).await;
    house.has_lines("runs", 2).await;
    house.world.wait_discarded(job).await;
    house.world.close().await;
}

#[tokio::test]
async fn what_is_not_there_is_said_and_was_never_begun() {
    let program: ProgramConfig = serde_json::from_value(json!({"command": ["/no/such/program"]})).unwrap();
    let programs = [("it".to_owned(), program)].into();
    let world = BackupWorld::of(WorldConfig { programs, ..WorldConfig::default() }).await;
    let reason = world.discarded("exec", &it(json!({}))).await;
    assert!(reason.starts_with("starting /no/such/program: "), "{reason}");
    world.close().await;
}

#[tokio::test]
async fn a_program_that_says_much_is_read_to_its_end_and_the_end_is_kept() {
    let script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo '{\"said\": true}'";
    let house = House::with(script, json!({"output_limit": 1000})).await;
    assert_eq!(house.world.complete("exec", &it(json!({}))).await, json!({"said": true}));
    house.world.close().await;
    let house = House::with("head -c 300000 /dev/zero | tr '\\0' x >&2; echo the cause >&2; exit 1", json!({})).await;
    let reason = house.world.discarded("exec", &it(json!({}))).await;
    assert!(reason.ends_with("the cause") && reason.len() < 3000, "{}", reason.len());
    house.world.close().await;
}

#[tokio::test]
async fn a_program_that_reads_nothing_and_leaves_a_child_behind_ends_nevertheless() {
    let script = "sleep 600 & echo $! >> $0/pids; echo '{\"done\": 1}'";
    let house = House::with(script, json!({})).await;
    let with = json!({"padding": "x".repeat(200_000)});
    assert_eq!(house.world.complete("exec", &it(with)).await, json!({"done": 1}));
    end(&house.lines("pids")).await;
    house.world.close().await;
}

#[tokio::test]
async fn at_its_time_limit_it_is_killed_with_all_that_it_started() {
    let house = House::with(SLEEPER, json!({"time_limit": "1s"})).await;
    let job = house.world.enqueue("exec", &it(json!({}))).await;
    let reason = house.world.wait_discarded(job).await;
    assert!(reason.starts_with("the program `it` was killed (after its time limit of 1s)"), "{reason}");
    assert!(reason.contains(&format!("jobs retry {job}")), "{reason}");
    end(&house.lines("pids")).await;
    house.world.close().await;
    let house = House::with(SLEEPER, json!({"time_limit": "1s", "on_unknown": "repeat"})).await;
    let job = house.world.enqueue("exec", &it(json!({}))).await;
    let error = house.world.first_failure(job).await;
    assert!(error.contains("it is run again"), "{error}");
    end(&house.lines("pids")).await;
    house.world.close().await;
}

#[tokio::test]
async fn cancelled_it_is_killed_with_all_that_it_started() {
    let house = House::with(SLEEPER, json!({})).await;
    let job = house.world.enqueue("exec", &it(json!({}))).await;
    let pids = house.has_lines("pids", 2).await;
    assert!(pids.iter().all(|pid| is_alive(pid)));
    let operator = queue::ledger::Operator { actor: "a test".into(), reason: "no longer".into() };
    house.world.queue.cancel(job, &operator).await.unwrap();
    house.world.wait_for(job, &[JobState::Cancelled]).await;
    end(&pids).await;
    house.world.close().await;
}

#[tokio::test]
async fn interrupted_it_is_killed_and_told_of_or_run_again_under_the_same_job() {
    for on_unknown in ["report", "repeat"] {
        let script = "echo \"$NIGHTPORTER_JOB_ID $NIGHTPORTER_ATTEMPT\" >> $0/runs; echo $$ >> $0/pids; \
                      test -e $0/go && exit 0; sleep 600";
        let mut house = House::with(script, json!({"on_unknown": on_unknown})).await;
        let job = house.world.enqueue("exec", &it(json!({}))).await;
        let pids = house.has_lines("pids", 1).await;
        house.world.stop_worker().await;
        end(&pids).await;
        std::fs::write(house.path("go"), "").unwrap();
        house.world.start_worker();
        if on_unknown == "report" {
            let reason = house.world.wait_discarded(job).await;
            assert!(reason.starts_with("an earlier attempt was interrupted"), "{reason}");
            assert_eq!(house.lines("runs"), [format!("{job} 1")]);
            house.world.retry(job).await;
        }
        house.world.completed(job).await;
        let attempt = if on_unknown == "report" { 3 } else { 2 };
        assert_eq!(house.lines("runs"), [format!("{job} 1"), format!("{job} {attempt}")]);
        house.world.close().await;
    }
}

#[tokio::test]
async fn killed_after_its_end_was_noted_it_is_not_run_again() {
    let mut house = House::with("echo run >> $0/runs", json!({})).await;
    house.world.stop_worker().await;
    let noted = [("run 1", Some(json!("not_done"))), ("run 2", Some(json!({"done": {"rows": 3}})))];
    let job = house.world.die_after("exec", &it(json!({})), &noted).await;
    house.world.start_worker();
    assert_eq!(house.world.completed(job).await, json!({"rows": 3}));
    assert!(house.lines("runs").is_empty());
    house.world.close().await;
}

#[tokio::test]
async fn its_secrets_are_in_no_log_error_output_argument_or_ledger() {
    let log = Log::keep();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), CANARY).unwrap();
    let env = json!({"env": {"KEY": format!("${{file:{}}}", file.path().display())}});
    let loud = "echo \"the key is $KEY\" >&2; cat /proc/$$/cmdline > $0/arguments; printf '%s' \"$KEY\" > $0/got; \
                echo \"{\\\"key\\\": \\\"$KEY\\\"}\"; test ! -e $0/fail";
    let house = House::with(loud, env).await;
    let output = house.world.complete("exec", &it(json!({}))).await;
    assert_eq!(output, json!({"key": "…"}));
    assert_eq!(house.lines("got"), [CANARY], "the program itself gets it");
    std::fs::write(house.path("fail"), "").unwrap();
    let reason = house.world.discarded("exec", &it(json!({}))).await;
    assert_eq!(reason, "the program `it` ended with 1: the key is …");
    assert!(!log.lines_with("it did its work").is_empty(), "what it complains about is logged");
    assert_eq!(log.lines_with(CANARY), [""; 0]);
    assert!(holds_not(&house.path("arguments")));
    for entry in std::fs::read_dir(house.world.folder.path()).unwrap() {
        assert!(holds_not(&entry.unwrap().path()), "in the ledger");
    }
    house.world.close().await;
}

fn holds_not(path: &Path) -> bool {
    let bytes = std::fs::read(path).unwrap();
    !bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

#[tokio::test]
async fn a_secret_that_is_cut_in_its_middle_by_the_limit_is_not_shown_either() {
    let env = json!({"env": {"KEY": "${env:PATH}"}, "output_limit": 20});
    let house = House::with("printf '%s' \"$KEY\" >&2; printf '%s' 0123456789 >&2; exit 1", env).await;
    let reason = house.world.discarded("exec", &it(json!({}))).await;
    assert_eq!(reason, "the program `it` ended with 1: …0123456789");
    house.world.close().await;
}
