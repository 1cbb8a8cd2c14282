//! The operators' API, on both engines: who may do what, and what the desk's verbs do.

use std::collections::BTreeSet;
use std::time::Duration;

use console::Operation;
use reqwest::Method;
use schemas::{JobId, Role};
use serde_json::{Value, json};
use tests::api_world::{ApiWorld, FIRST_TOKEN};
use tests::ledgers::{TestLedger, completed, discarded, new_job};

on_every_engine![
    every_operation_asks_for_a_token_and_for_its_role,
    every_operation_reads_and_answers_what_the_document_says,
    a_replay_does_exactly_what_was_previewed_or_nothing,
    a_replay_is_a_new_job_that_no_held_key_swallows,
    what_must_not_be_doubled_is_not_replayed,
    too_many_jobs_are_not_replayed_at_once,
    a_token_is_a_name_a_role_and_an_end,
    nobody_approves_their_own_and_a_second_person_does,
    nothing_migrates_a_database_that_is_backed_up,
    a_pause_holds_back_and_a_typing_error_is_none,
];

/// What each operation is asked, in the order of the table: parameters of the path filled in, and a body. A new operation
/// needs a line here, and what it is to find.
struct Examples {
    waiting: JobId,
    failed: [JobId; 3],
    run: schemas::RunId,
    unfinished: schemas::RunId,
    accepted: schemas::EventId,
    held: schemas::EventId,
    asking: [JobId; 2],
    gate: JobId,
}

impl Examples {
    async fn prepare(api: &ApiWorld) -> Self {
        let failed = [api.discarded().await, api.discarded().await, api.discarded().await];
        let run = api.ended_run().await;
        let (accepted, held) = api.events().await;
        let asking = [api.asks_approval().await, api.asks_approval().await];
        let unfinished = api.run_that_waits().await;
        let waiting = api.ledger.enqueue(&[api.ledger.job()]).await[0];
        let gate = api.ledger.enqueue(&[schemas::NewJob { kind: "gate".into(), ..api.ledger.job() }]).await[0];
        Self { waiting, failed, run, unfinished, accepted, held, asking, gate }
    }

    async fn of(&self, api: &ApiWorld, operation: &Operation) -> (String, Option<Value>) {
        let reason = json!({"reason": "a test"});
        let (id, body) = match operation.name {
            "list_jobs" | "list_runs" | "list_events" | "list_queues" | "list_pauses" | "list_approvals"
            | "list_audit" | "list_tokens" | "list_schedules" | "openapi" => (String::new(), None),
            "show_schedule" => ("nightly".to_owned(), None),
            "run_schedule" => ("nightly".to_owned(), Some(reason)),
            "cancel_run" => (self.unfinished.to_string(), Some(reason)),
            "show_job" => (self.waiting.to_string(), None),
            "show_run" => (self.run.to_string(), None),
            "show_event" => (self.accepted.to_string(), None),
            "cancel_job" => (self.waiting.to_string(), Some(reason)),
            "retry_job" => (self.failed[0].to_string(), Some(reason)),
            "bypass_gate" => (self.gate.to_string(), Some(reason)),
            "replay_job" => (self.failed[1].to_string(), Some(reason)),
            "preview_replay" => (String::new(), Some(json!({"filter": {}}))),
            "replay_jobs" => {
                let preview = api.post("/jobs/replay/preview", &json!({"filter": {}}), 200).await;
                (String::new(), Some(json!({"filter": {}, "set": preview["set"], "reason": "a test"})))
            }
            "start" => (String::new(), Some(json!({"run": "noop", "reason": "a test"}))),
            "replay_run" => (self.run.to_string(), Some(reason)),
            "release_event" => (self.held.to_string(), Some(reason)),
            "replay_event" => (self.accepted.to_string(), Some(reason)),
            "pause" | "resume" => {
                (String::new(), Some(json!({"what": "queue", "name": "default", "reason": "a test"})))
            }
            "approve" => (self.asking[0].to_string(), Some(reason)),
            "refuse" => (self.asking[1].to_string(), Some(reason)),
            "create_token" => (String::new(), Some(json!({"name": "new", "role": "viewer", "reason": "a test"}))),
            "revoke_token" => ("new".to_owned(), Some(reason)),
            other => panic!("there is no example of `{other}`"),
        };
        (operation.path.replace("{id}", &id).replace("{name}", &id), body)
    }
}

async fn every_operation_asks_for_a_token_and_for_its_role(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let examples = Examples::prepare(&api).await;
    let tokens = [api.token("v", Role::Viewer).await, api.token("o", Role::Operator).await, FIRST_TOKEN.to_owned()];
    let mut changing = 0;
    for operation in console::operations() {
        let address = operation.address();
        let (path, body) = examples.of(&api, &operation).await;
        let ask = async |token: Option<&str>| api.ask(token, &operation.method, &path, body.as_ref()).await;
        let before = api.everything().await;
        for wrong in [None, Some("np_wrong"), Some("")] {
            let (status, answer) = ask(wrong).await;
            assert_eq!(status, 401, "{address} with {wrong:?}: {answer}");
        }
        for (role, token) in Role::ALL.into_iter().zip(&tokens).filter(|(role, _)| *role < operation.role) {
            let (status, answer) = ask(Some(token)).await;
            assert_eq!(status, 403, "{address} as {role}: {answer}");
            let said = answer["error"].as_str().unwrap();
            assert!(said.contains(&format!("needs the role {}", operation.role)), "{said}");
        }
        assert_eq!(api.everything().await, before, "{address} changed something for somebody who may not do it");
        // The same request, by who may: or the refusals above would prove nothing.
        let (_, token) = Role::ALL.into_iter().zip(&tokens).find(|(role, _)| *role == operation.role).unwrap();
        let (status, answer) = ask(Some(token)).await;
        assert!(status == 200 || status == 201, "{address} as {}: {status} {answer}", operation.role);
        let audited = audited(&api.everything().await) - audited(&before);
        assert_eq!(audited > 0, operation.changes(), "{address} wrote {audited} audit rows");
        changing += usize::from(operation.changes());
    }
    assert!(changing > 10, "only {changing} operations change anything");
}

fn audited(everything: &Value) -> usize {
    everything["/audit?limit=500"].as_array().unwrap().len()
}

async fn every_operation_reads_and_answers_what_the_document_says(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let document = api.get("/openapi.json").await;
    let examples = Examples::prepare(&api).await;
    for operation in console::operations() {
        let address = operation.address();
        let method = operation.method.as_str().to_lowercase();
        let described = &document["paths"][operation.path][&method];
        let (path, body) = examples.of(&api, &operation).await;
        if let Some(mut body) = body.clone() {
            body["no_such_field"] = json!(1);
            let (status, answer) = api.ask(Some(FIRST_TOKEN), &operation.method, &path, Some(&body)).await;
            assert!((400..=422).contains(&status), "{address}: {answer}");
            let said = answer["error"].as_str().unwrap();
            // serde names the fields that it would have read.
            let reads: BTreeSet<&str> = said.split('`').skip(3).step_by(2).collect();
            let schema = resolved(&document, &described["requestBody"]["content"]["application/json"]["schema"]);
            let said_to: BTreeSet<&str> =
                schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
            assert_eq!(reads, said_to, "{address} reads something else than is documented: {said}");
        }
        let (status, answer) = api.ask(Some(FIRST_TOKEN), &operation.method, &path, body.as_ref()).await;
        let response = &described["responses"][status.to_string()]["content"]["application/json"]["schema"];
        assert!(!response.is_null(), "{address} answers {status}, which is not documented: {answer}");
        fits(&document, response, &answer, &address);
    }
}

/// The schema that a reference leads to.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    schema["$ref"].as_str().map_or(schema, |reference| document.pointer(&reference[1..]).expect("it leads somewhere"))
}

/// An object has the fields that its schema asks for, and no others; of lists, each item.
fn fits(document: &Value, schema: &Value, answer: &Value, address: &str) {
    let schema = resolved(document, schema);
    match answer {
        Value::Array(items) => items.iter().for_each(|item| fits(document, &schema["items"], item, address)),
        Value::Object(fields) if schema["properties"].is_object() => {
            for needed in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                assert!(fields.contains_key(needed), "{address}: `{needed}` is missing in {answer}");
            }
            for (name, field) in fields {
                let known = &schema["properties"][name];
                assert!(!known.is_null(), "{address}: `{name}` is not documented");
                fits(document, known, field, address);
            }
        }
        _ => {}
    }
}

async fn a_replay_does_exactly_what_was_previewed_or_nothing(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let failed = [api.discarded().await, api.discarded().await, api.discarded().await];
    let filter = json!({"kind": "noop", "state": "discarded"});
    let preview = || async { api.post("/jobs/replay/preview", &json!({"filter": filter}), 200).await };
    let shown = preview().await;
    assert_eq!(shown["jobs"].as_array().unwrap().len(), 3, "{shown}");
    assert_eq!(preview().await["set"], shown["set"], "a look changes nothing");
    // One of the three has moved on since.
    api.post(&format!("/jobs/{}/retry", failed[1]), &json!({"reason": "x"}), 200).await;
    let before = api.everything().await;
    let replay = |set: Value| json!({"filter": filter, "set": set, "reason": "all of them"});
    let refused = api.post("/jobs/replay", &replay(shown["set"].clone()), 409).await;
    assert!(refused["error"].as_str().unwrap().contains("nothing was replayed"), "{refused}");
    // It ends discarded again: the same jobs in the same states, and not what was looked at.
    let claimed = api.ledger.claim_one().await;
    api.ledger.finish(claimed.id, discarded("again")).await;
    api.post("/jobs/replay", &replay(shown["set"].clone()), 409).await;
    assert_eq!(audited(&api.everything().await), audited(&before), "a conflict wrote to the audit");
    let shown = preview().await;
    let made = api.post("/jobs/replay", &replay(shown["set"].clone()), 201).await;
    let mut of = BTreeSet::new();
    for id in made["jobs"].as_array().unwrap() {
        let job = api.get(&format!("/jobs/{}", id.as_str().unwrap())).await;
        assert_eq!((&job["state"], &job["attempt"]), (&json!("available"), &json!(0)));
        of.insert(job["replay_of"].as_str().unwrap().to_owned());
    }
    assert_eq!(of, failed.iter().map(ToString::to_string).collect());
    let audit = api.get("/audit").await;
    let lines =
        audit.as_array().unwrap().iter().filter(|line| line["verb"] == "replay" && line["reason"] == "all of them");
    assert_eq!(lines.count(), 3, "{audit}");
}

async fn a_replay_is_a_new_job_that_no_held_key_swallows(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let started = api.post("/runs", &json!({"run": "noop", "reason": "x", "key": "once"}), 201).await;
    let old = started["job"].as_str().unwrap().to_owned();
    let claimed = api.ledger.claim_one().await;
    let replay = format!("/jobs/{old}/replay");
    api.post(&replay, &json!({"reason": "too early"}), 409).await;
    api.ledger.finish(claimed.id, completed(None)).await;
    let args = json!({"message": "other"});
    let made = api.post(&replay, &json!({"reason": "again", "args": args}), 201).await;
    let job = api.get(&format!("/jobs/{}", made["jobs"][0].as_str().unwrap())).await;
    assert_eq!((&job["replay_of"], &job["args"], &job["state"]), (&json!(old), &args, &json!("available")));
    let wrong = api.post(&replay, &json!({"reason": "x", "args": {"mesage": "x"}}), 422).await;
    assert!(wrong["error"].as_str().unwrap().contains("mesage"), "{wrong}");
    // Nor does one that its kind gives it by its arguments.
    let keyed = api.post("/runs", &json!({"run": "other", "reason": "x"}), 201).await;
    let keyed = keyed["job"].as_str().unwrap().to_owned();
    api.ledger.complete_next(None).await; // the replay
    api.ledger.complete_next(None).await;
    assert_eq!(api.get(&format!("/jobs/{keyed}")).await["state"], "completed");
    assert_eq!(api.post("/runs", &json!({"run": "other", "reason": "x"}), 200).await["job"], json!(keyed));
    let made = api.post(&format!("/jobs/{keyed}/replay"), &json!({"reason": "x"}), 201).await;
    let view = api.get(&format!("/jobs/{}", made["jobs"][0].as_str().unwrap())).await;
    assert_eq!((&view["replay_of"], &view["state"]), (&json!(keyed), &json!("available")));
    // The key still holds for starts.
    let again = api.post("/runs", &json!({"run": "noop", "reason": "x", "key": "once"}), 200).await;
    assert_eq!(again["job"], json!(old));
    api.ledger.complete_next(None).await;
    let (run, ..) = (api.ended_run().await, ());
    let made = api.post(&format!("/runs/{run}/replay"), &json!({"reason": "x"}), 201).await;
    let view = api.get(&format!("/runs/{}", made["runs"][0].as_str().unwrap())).await;
    assert_eq!((&view["replay_of"], &view["actor"]), (&json!(run), &json!("token")));
    api.ledger.complete_next(None).await;
    let (accepted, held) = api.events().await;
    let made = api.post(&format!("/events/{accepted}/replay"), &json!({"reason": "x"}), 201).await;
    assert_eq!(made["jobs"].as_array().unwrap().len(), 1);
    let refused = api.post(&format!("/events/{held}/replay"), &json!({"reason": "x"}), 409).await;
    assert!(refused["error"].as_str().unwrap().contains("release it"), "{refused}");
}

async fn what_must_not_be_doubled_is_not_replayed(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let rotation = new_job("rotate", "{}", api.ledger.now());
    let rotation = api.ledger.enqueue(&[rotation]).await[0];
    api.post(&format!("/jobs/{rotation}/cancel"), &json!({"reason": "x"}), 200).await;
    let refused = api.post(&format!("/jobs/{rotation}/replay"), &json!({"reason": "x"}), 409).await;
    assert!(refused["error"].as_str().unwrap().contains("must not be done twice"), "{refused}");
    // Nor a job that had to be approved: alone, nobody would be asked.
    let asking = api.asks_approval().await;
    api.post(&format!("/approvals/{asking}/refuse"), &json!({"reason": "x"}), 200).await;
    let refused = api.post(&format!("/jobs/{asking}/replay"), &json!({"reason": "x"}), 409).await;
    assert!(refused["error"].as_str().unwrap().contains("replay its run"), "{refused}");
    let filter = json!({"state": "cancelled"});
    let shown = api.post("/jobs/replay/preview", &json!({"filter": filter}), 200).await;
    let left_out = shown["jobs"].as_array().unwrap().iter().filter(|line| line["left_out"].is_string());
    assert_eq!(left_out.count(), 2, "{shown}");
    let body = json!({"filter": filter, "set": shown["set"], "reason": "x"});
    api.post("/jobs/replay", &body, 409).await;
    let running = api.post("/jobs/replay/preview", &json!({"filter": {"state": "running"}}), 422).await;
    assert!(running["error"].as_str().unwrap().contains("have ended"), "{running}");
}

async fn too_many_jobs_are_not_replayed_at_once(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let now = api.ledger.now();
    let jobs: Vec<_> = (0..1001).map(|_| new_job("noop", "{}", now)).collect();
    api.ledger.enqueue(&jobs).await;
    let ended: Vec<_> = api
        .ledger
        .claim(1001)
        .await
        .into_iter()
        .map(|claimed| queue::ledger::Ended { attempt: claimed.id, outcome: discarded("it broke") })
        .collect();
    assert_eq!(ended.len(), 1001);
    api.ledger.ledger.finish(&ended, now).await.unwrap();
    let refused = api.post("/jobs/replay/preview", &json!({"filter": {}}), 422).await;
    assert!(refused["error"].as_str().unwrap().contains("narrow it by `kind`"), "{refused}");
    // The newest page, and the one after it: no job twice, none left out.
    let first = api.get("/jobs?limit=500").await;
    let last = first.as_array().unwrap().last().unwrap()["id"].as_str().unwrap().to_owned();
    let second = api.get(&format!("/jobs?limit=500&before={last}")).await;
    let ids = first.as_array().unwrap().iter().chain(second.as_array().unwrap()).map(|job| job["id"].as_str().unwrap());
    assert_eq!(ids.collect::<BTreeSet<_>>().len(), 1000);
}

async fn a_token_is_a_name_a_role_and_an_end(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let create = |name: &str, days: Option<u32>| json!({"name": name, "role": "operator", "days": days, "reason": "x"});
    let made = api.post("/tokens", &create("ci", Some(1)), 201).await;
    let token = made["token"].as_str().unwrap().to_owned();
    assert_eq!(made["about"]["created_by"], "token");
    let start = async |token: &str| {
        let body = json!({"run": "noop", "reason": "by its own name"});
        api.ask(Some(token), &Method::POST, "/runs", Some(&body)).await
    };
    assert_eq!(start(&token).await.0, 201);
    let audit = api.get("/audit?limit=1").await;
    assert_eq!((&audit[0]["actor"], &audit[0]["verb"]), (&json!("ci"), &json!("start")));
    api.post("/tokens", &create("ci", None), 409).await;
    api.post("/tokens", &create("token", None), 409).await;
    api.post("/tokens", &create("two words", None), 422).await;
    let listed = api.get("/tokens").await.to_string();
    assert!(listed.contains("\"ci\"") && !listed.contains(&token), "{listed}");
    api.ledger.clock.advance(Duration::from_hours(24) - Duration::from_mins(1));
    assert_eq!(start(&token).await.0, 201);
    api.ledger.clock.advance(Duration::from_mins(1));
    let (status, answer) = start(&token).await;
    assert_eq!(status, 401);
    assert!(answer["error"].as_str().unwrap().contains("has expired or was revoked"), "{answer}");
    let lasting = api.post("/tokens", &create("lasting", None), 201).await;
    let lasting = lasting["token"].as_str().unwrap();
    assert_eq!(start(lasting).await.0, 201);
    api.post("/tokens/lasting/revoke", &json!({"reason": "it leaked"}), 200).await;
    assert_eq!(start(lasting).await.0, 401, "a revoked token ends at once");
    api.post("/tokens/lasting/revoke", &json!({"reason": "x"}), 404).await;
    api.post("/tokens/token/revoke", &json!({"reason": "x"}), 409).await;
    let audit = api.get("/audit?limit=500").await.to_string();
    assert!(audit.contains("it leaked") && !audit.contains("np_"), "{audit}");
}

async fn nobody_approves_their_own_and_a_second_person_does(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let started = api.post("/runs", &json!({"run": "guarded", "with": {"name": "you"}, "reason": "x"}), 201).await;
    let run = started["run"].as_str().unwrap().to_owned();
    let waiting = api.get("/approvals").await;
    let job = waiting[0]["job"].as_str().unwrap().to_owned();
    assert_eq!(
        (&waiting[0]["requested_by"], &waiting[0]["run"], &waiting[0]["args"]["message"]),
        (&json!("token"), &json!(run), &json!("hello you"))
    );
    assert!(api.ledger.claim(1).await.is_empty(), "it waits");
    let approve = format!("/approvals/{job}/approve");
    let reason = json!({"reason": "looks right"});
    let refused = api.post(&approve, &reason, 403).await;
    assert!(refused["error"].as_str().unwrap().contains("ask somebody else"), "{refused}");
    let ann = api.token("ann", Role::Operator).await;
    let (status, view) = api.ask(Some(&ann), &Method::POST, &approve, Some(&reason)).await;
    assert_eq!((status, &view["state"]), (200, &json!("available")), "{view}");
    assert_eq!((&view["approval"]["consents"][0]["actor"], &view["approval"]["needed"]), (&json!("ann"), &json!(1)));
    assert_eq!(api.ledger.claim_one().await.id.job.to_string(), job);
    assert_eq!(api.get("/approvals").await, json!([]));
}

async fn nothing_migrates_a_database_that_is_backed_up(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let start = async |kind: &str, with: Value| {
        let started = api.post("/runs", &json!({"run": kind, "with": with, "reason": "x"}), 201).await;
        started["job"].as_str().unwrap().to_owned()
    };
    let job = async |id: &str| api.get(&format!("/jobs/{id}")).await;
    let backup = start("backup", json!({"database": "main", "store": "nightly"})).await;
    let migrate = start("migrate", json!({"database": "main"})).await;
    let backup_of_other = start("backup", json!({"database": "other", "store": "nightly"})).await;
    assert_eq!(job(&backup).await["state"], "available");
    assert_eq!(job(&backup_of_other).await["state"], "available");
    let waiting = job(&migrate).await;
    assert_eq!((&waiting["state"], &waiting["limits"][0]["key"]), (&json!("pending"), &json!("database:main")));
    assert!(waiting["reason"].as_str().unwrap().contains("database:main"), "{waiting}");
    let restore = json!({"database": "main", "store": "nightly", "backup": "latest", "into": "x"});
    let restore = start("restore", restore).await;
    assert_eq!(job(&restore).await["state"], "pending");
    api.post(&format!("/jobs/{backup}/cancel"), &json!({"reason": "x"}), 200).await;
    assert_eq!(job(&migrate).await["state"], "available");
    assert_eq!(job(&restore).await["state"], "pending", "one at a time");
}

async fn a_pause_holds_back_and_a_typing_error_is_none(t: TestLedger) {
    let api = ApiWorld::before(t).await;
    let pause = |what: &str, name: &str| json!({"what": what, "name": name, "reason": "maintenance"});
    for (what, name, hint) in [
        ("queue", "defualt", "did you mean `default`?"),
        ("kind", "nop", "did you mean `noop`?"),
        ("key", "database:mian", "did you mean `database:main`?"),
        ("key", "channel:team", "[limits]"),
    ] {
        let refused = api.post("/pauses", &pause(what, name), 422).await;
        assert!(refused["error"].as_str().unwrap().contains(hint), "{refused}");
    }
    let paused = api.post("/pauses", &pause("queue", "default"), 200).await;
    assert_eq!((&paused[0]["name"], &paused[0]["actor"]), (&json!("default"), &json!("token")));
    api.post("/pauses", &pause("queue", "default"), 409).await;
    let job = api.ledger.enqueue(&[api.ledger.job()]).await[0];
    assert!(api.ledger.claim(1).await.is_empty());
    let view = api.get(&format!("/jobs/{job}")).await;
    assert_eq!(view["reason"], "the queue `default` is paused");
    assert_eq!(api.get("/jobs").await[0]["reason"], view["reason"]);
    assert_eq!(api.get("/queues").await[0]["paused"]["reason"], "maintenance");
    assert_eq!(api.post("/pauses/resume", &pause("queue", "default"), 200).await, json!([]));
    api.post("/pauses/resume", &pause("queue", "default"), 409).await;
    assert_eq!(api.ledger.claim_one().await.id.job, job);
    api.post("/pauses", &pause("kind", "noop"), 200).await;
    let held = api.post("/runs", &json!({"run": "noop", "reason": "x"}), 201).await;
    let view = api.get(&format!("/jobs/{}", held["job"].as_str().unwrap())).await;
    assert_eq!((&view["state"], &view["reason"]), (&json!("pending"), &json!("the kind `noop` is paused")));
    api.post("/pauses", &pause("key", "database:main"), 200).await;
    assert_eq!(api.get("/pauses").await.as_array().unwrap().len(), 2);
}
