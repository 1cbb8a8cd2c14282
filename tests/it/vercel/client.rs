//! What the client makes of answers, refusals, limits and silence.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use schemas::Timestamp;
use secrets::{Resolver, SecretText};
use serde_json::{Value, json};
use tests::migration_world::words;
use tests::vercel::{CHECK, Fault, OWN_COMMIT, PROJECT, TEAM, TOKEN};
use worker::rest::{Advice, Sent, status_of};
use worker::vercel::{Deployment, Vercel};
use worker::world::{Connections, VercelConnection};
use worker::{Failure, World, WorldConfig};

const ADVICE: Advice = Advice { forbidden: "may not do it", check: "check it" };

/// A world with the stub as Vercel.
async fn world(stub: &tests::vercel::Vercel, token: &str, team: Option<&str>) -> World {
    let connection = VercelConnection {
        token: SecretText::parse(token).unwrap(),
        team: team.map(str::to_owned),
        api_url: stub.start().await,
    };
    let connections = Connections { vercel: Some(connection), ..Connections::default() };
    let config = WorldConfig { connections, ..WorldConfig::default() };
    World::new(config, Arc::new(Resolver::default()), worker::world::http_client())
}

async fn vercel(world: &World) -> Vercel<'_> {
    Vercel::of(world, Timestamp::UNIX_EPOCH, "the test needs it").await.unwrap()
}

async fn read(stub: &tests::vercel::Vercel, id: &str) -> Result<Deployment, Failure> {
    let world = world(stub, TOKEN, Some(TEAM)).await;
    Deployment::read(&vercel(&world).await, id).await
}

#[tokio::test]
async fn a_deployment_is_read_with_its_commit_and_by_id_or_address() {
    let stub = tests::vercel::Vercel::default();
    let id = stub.deploy(Some("production"), OWN_COMMIT);
    let url = stub.deployment(&id)["url"].as_str().unwrap().to_owned();
    for name in [&id, &url] {
        let found = read(&stub, name).await.unwrap();
        assert_eq!((found.id.as_str(), found.project(), found.target()), (id.as_str(), PROJECT, "production"));
        assert_eq!(found.commit(), Some(OWN_COMMIT));
    }
    let by_hand = stub.deploy_by_hand(OWN_COMMIT);
    assert_eq!(read(&stub, &by_hand).await.unwrap().commit(), None, "what the uploader claims is no proof");
}

#[tokio::test]
async fn a_strangers_deployment_looks_plausible_and_is_refused() {
    let stub = tests::vercel::Vercel::default();
    let id = stub.deploy(Some("production"), OWN_COMMIT);
    stub.change(&id, &json!({"stranger": true}));
    let said = words(&read(&stub, &id).await.unwrap_err());
    assert!(said.starts_with("discard:") && said.contains("has no access to its project"), "{said}");
}

#[tokio::test]
async fn a_team_is_named_by_its_id_or_its_slug() {
    for (team, name) in [(TEAM, "teamId"), ("acme", "slug")] {
        let stub = tests::vercel::Vercel::default();
        let id = stub.deploy(None, OWN_COMMIT);
        let world = world(&stub, TOKEN, Some(team)).await;
        Deployment::read(&vercel(&world).await, &id).await.unwrap();
        let request = stub.requests().pop().unwrap();
        assert_eq!(request.query[name], team);
        assert_eq!(request.query["withGitRepoInfo"], "true");
    }
    let stub = tests::vercel::Vercel::default();
    let world = world(&stub, TOKEN, Some("other")).await;
    let said = words(&Deployment::read(&vercel(&world).await, "dpl_1").await.unwrap_err());
    assert!(said.contains("403") && said.contains("`team` must name it"), "{said}");
}

#[tokio::test]
async fn refusals_say_what_to_do_and_never_the_token() {
    let stub = tests::vercel::Vercel::default();
    let world = world(&stub, "vercel_another_canary", Some(TEAM)).await;
    let vercel = vercel(&world).await;
    let failure = Deployment::read(&vercel, "dpl_1").await.unwrap_err();
    let said = words(&failure);
    assert!(said.contains("is not valid; put in a new one") && !said.contains("canary"), "{said}");
    assert_eq!(status_of(&failure), Some(403));
}

async fn patch(stub: &tests::vercel::Vercel, fault: Option<Fault>) -> Sent {
    let deployment = stub.deploy(Some("production"), OWN_COMMIT);
    let run = stub.begin_check(&deployment);
    assert_eq!(stub.check_run(&run)["checkId"], CHECK);
    if let Some(fault) = fault {
        stub.next(&Method::PATCH, "check-runs", fault);
    }
    let world = world(stub, TOKEN, Some(TEAM)).await;
    let path = ["v2", "deployments", &deployment, "check-runs", &run];
    vercel(&world).await.patch(&path, &json!({"status": "running"}), "answering", &ADVICE).await
}

#[tokio::test]
async fn what_changes_something_is_done_refused_or_unknown() {
    let stub = tests::vercel::Vercel::default();
    assert!(matches!(patch(&stub, None).await, Sent::Done(run) if run["status"] == "running"));
    let refused = |status, headers, body| Fault::Refused(StatusCode::from_u16(status).unwrap(), headers, body);
    for status in [400, 409, 410, 413, 422] {
        let body = json!({"error": {"code": "as_said", "message": "private words"}});
        let Sent::Refused(failure) = patch(&stub, Some(refused(status, vec![], body))).await else {
            panic!("{status}")
        };
        let said = words(&failure);
        assert_eq!(status_of(&failure), Some(status));
        assert!(said.contains("(as_said): check it") && !said.contains("private"), "{said}");
    }
    for fault in [refused(502, vec![], Value::Null), Fault::Lost, Fault::Broken] {
        assert!(matches!(patch(&stub, Some(fault)).await, Sent::Unknown(Failure::Retry { .. })));
    }
}

#[tokio::test]
async fn limits_are_waited_out_as_they_ask() {
    let stub = tests::vercel::Vercel::default();
    for (headers, seconds) in [
        (vec![("retry-after", "37".to_owned())], 37),
        // The ledger's clock stands at the epoch here.
        (vec![("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", "90".to_owned())], 90),
        (vec![], 60),
    ] {
        let fault = Fault::Refused(StatusCode::TOO_MANY_REQUESTS, headers, json!({"error": {"code": "rate_limited"}}));
        let Sent::Refused(Failure::Retry { after, .. }) = patch(&stub, Some(fault)).await else { panic!("{seconds}") };
        assert_eq!(after, Some(Duration::from_secs(seconds)));
    }
}
