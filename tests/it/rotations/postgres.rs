//! The password of a role of PostgreSQL, on a server that asks for passwords.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use schemas::{JobId, JobState};
use secrets::ExposeSecret;
use secrets::vaults::{Label, Token, Vault};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;
use tests::cutting::{Cut, CuttingProxy};
use tests::porter::eventually;
use tests::postgres::PostgresServer;
use tests::rotation_world::RotationWorld;
use tests::vaults::TestVault;
use tokio::task::JoinSet;
use url::Url;

use super::on_every_vault;

on_every_vault!(two_roles_take_turns_and_the_old_one_rests_when_it_is_over);

/// The password that the superuser has.
const HOUSE: &str = "of-the-house";

/// A server that asks for passwords, with `app_a` and `app_b`, who may read `guest` by their parent, and `porter`, who sets
/// their passwords.
pub(crate) async fn server() -> PostgresServer {
    let server = PostgresServer::start().await;
    let house = server.ask_for_passwords(HOUSE).await;
    for sql in [
        "create table guest (id integer)",
        "create role app nologin",
        "grant select on guest to app",
        "create role app_a login in role app password 'canary-the-first'",
        "create role app_b nologin in role app",
        "create role porter login createrole password 'of-the-porter'",
        "grant app_a, app_b to porter with admin option",
    ] {
        run(&house, sql).await;
    }
    server
}

/// The server's address as this role.
fn address(server: &PostgresServer, role: &str, password: &str) -> String {
    let mut url = Url::parse(&server.url()).unwrap();
    url.set_username(role).unwrap();
    url.set_password(Some(password)).unwrap();
    url.into()
}

fn house(server: &PostgresServer) -> String {
    address(server, "postgres", HOUSE)
}

async fn run(url: &str, sql: &str) {
    let mut session = PgConnection::connect(url).await.unwrap();
    session.execute(AssertSqlSafe(sql.to_owned())).await.unwrap();
}

async fn one(url: &str, sql: &str) -> String {
    let mut session = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&mut session).await.unwrap()
}

/// The SQLSTATE with which a sign-in is refused; none where it works.
pub(crate) async fn refused(url: &str) -> Option<String> {
    let error = PgConnection::connect(url).await.err()?;
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    Some(code.map_or_else(|| error.to_string(), std::borrow::Cow::into_owned))
}

fn url_in(secret: &str) -> String {
    serde_json::from_str::<Value>(secret).unwrap()["url"].as_str().unwrap().to_owned()
}

/// A world that rotates `app_a` and `app_b`, whose passwords are set by this address.
async fn world_by(t: TestVault, server: &PostgresServer, admin: &str, more: Value) -> RotationWorld {
    let mut postgres = json!({"database": "main", "roles": ["app_a", "app_b"], "test": "SELECT count(*) FROM guest"});
    let mut rotation = json!({});
    for (key, value) in more.as_object().unwrap() {
        let place = if key == "consumers" || key == "within" { &mut rotation } else { &mut postgres };
        place[key] = value.clone();
    }
    rotation["postgres"] = postgres;
    let secret = json!({"url": address(server, "app_a", "canary-the-first"), "pool": 5}).to_string();
    RotationWorld::new(t, &secret, rotation, Some(admin)).await
}

async fn world(server: &PostgresServer, more: Value) -> RotationWorld {
    world_by(TestVault::file().await, server, &address(server, "porter", "of-the-porter"), more).await
}

/// Lets the overlap pass, and whatever else is waited for.
async fn passes(w: &RotationWorld, job: JobId) -> Value {
    loop {
        w.world.pass(Duration::from_hours(1)).await;
        let ends = [JobState::Completed, JobState::Discarded, JobState::Scheduled, JobState::Retryable];
        let view = w.world.wait_for(job, &ends).await;
        if matches!(view.state, JobState::Completed | JobState::Discarded) {
            return w.world.completed(job).await;
        }
    }
}

async fn two_roles_take_turns_and_the_old_one_rests_when_it_is_over(t: TestVault) {
    let server = server().await;
    let porter = address(&server, "porter", "of-the-porter");
    let w = world_by(t, &server, &porter, json!({})).await;
    let mut old = url_in(&w.current().await);
    for role in ["app_b", "app_a"] {
        let job = w.start().await;
        w.waits(job).await;
        let new = url_in(&w.current().await);
        assert_eq!(Url::parse(&new).unwrap().username(), role);
        assert_eq!((refused(&old).await, refused(&new).await), (None, None), "both work within the overlap");
        passes(&w, job).await;
        assert_eq!((refused(&old).await.as_deref(), refused(&new).await), (Some("28000"), None));
        assert!(!w.ledger().await.contains(Url::parse(&new).unwrap().password().unwrap()));
        old = new;
    }
    assert!(!w.ledger().await.contains("canary"));
    assert_eq!(serde_json::from_str::<Value>(&w.current().await).unwrap()["pool"], 5);
    w.world.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_many_reconnects_nobody_is_ever_refused() {
    const CLIENTS: usize = 6;
    let server = server().await;
    let w = world(&server, json!({})).await;
    let (signed_in, refusals) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let rounds: Arc<Vec<AtomicU64>> = Arc::new((0..CLIENTS).map(|_| AtomicU64::new(0)).collect());
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (vault, secret): (Arc<dyn Vault>, _) = (w.t.vault.clone(), w.secret.clone());
        let (signed_in, refusals, rounds) = (Arc::clone(&signed_in), Arc::clone(&refusals), Arc::clone(&rounds));
        clients.spawn(async move {
            loop {
                let value = vault.current(&secret).await.unwrap();
                match PgConnection::connect(&url_in(value.expose_secret())).await {
                    Ok(session) => {
                        signed_in.fetch_add(1, Ordering::SeqCst);
                        session.close().await.unwrap();
                    }
                    Err(error) => {
                        println!("refused: {error}");
                        refusals.fetch_add(1, Ordering::SeqCst);
                    }
                }
                rounds[number].fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    // Until each client has read the vault and signed in anew.
    let all_anew = async || {
        let before: Vec<u64> = rounds.iter().map(|round| round.load(Ordering::SeqCst)).collect();
        let anew = || rounds.iter().zip(&before).all(|(now, before)| now.load(Ordering::SeqCst) >= before + 2);
        eventually("each client has signed in anew", async || anew().then_some(())).await;
    };
    for _ in 0..3 {
        all_anew().await;
        let job = w.start().await;
        w.waits(job).await;
        all_anew().await;
        passes(&w, job).await;
    }
    all_anew().await;
    clients.shutdown().await;
    let (signed_in, refusals) = (signed_in.load(Ordering::SeqCst), refusals.load(Ordering::SeqCst));
    println!("{signed_in} sign-ins through three rotations, {refusals} refused");
    assert!(refusals == 0 && signed_in >= CLIENTS * 12, "{signed_in} sign-ins, {refusals} refused");
    w.world.close().await;
}

#[tokio::test]
async fn a_role_that_is_still_in_use_is_waited_for_and_then_told_of() {
    let server = server().await;
    let w = world(&server, json!({})).await;
    let old = url_in(&w.current().await);
    let session = PgConnection::connect(&old).await.unwrap();
    let job = w.start().await;
    w.waits(job).await;
    w.world.pass(Duration::from_hours(1)).await;
    let waits = async |what: &str| {
        eventually("it waits", async || {
            let view = w.world.queue.ledger().job(job).await.unwrap().unwrap();
            let waits = view.state == JobState::Scheduled && view.reason.unwrap_or_default().contains(what);
            waits.then_some(())
        })
        .await;
    };
    waits("`app_a` has 1 sessions still").await;
    assert_eq!(refused(&old).await, None, "nobody is locked out");
    w.world.pass(Duration::from_hours(7 * 24 + 1)).await;
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.contains("still used") && reason.contains("retry the job"), "{reason}");
    assert_eq!(refused(&old).await, None);
    session.close().await.unwrap();
    eventually("its session is gone", async || {
        let count = "select count(*)::text from pg_stat_activity where usename = 'app_a'";
        (one(&house(&server), count).await == "0").then_some(())
    })
    .await;
    w.world.retry(job).await;
    w.world.completed(job).await;
    assert_eq!(refused(&old).await.as_deref(), Some("28000"));
    w.world.close().await;
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_by_signing_in_and_makes_no_second_value() {
    for (cut, at) in [(Cut::After, &b"COMMIT"[..]), (Cut::Before, b"COMMIT"), (Cut::After, b"ALTER ROLE")] {
        let server = server().await;
        let proxy = CuttingProxy::to(server.address()).await;
        let admin = proxy.url(&address(&server, "porter", "of-the-porter"));
        let w = world_by(TestVault::file().await, &server, &admin, json!({})).await;
        proxy.cut_once(cut, at);
        let job = w.start().await;
        w.world.first_failure(job).await;
        let value = w.value_of(job).await;
        w.world.pass(Duration::from_mins(10)).await;
        w.waits(job).await;
        assert_eq!((w.current().await, proxy.cuts()), (value.clone(), 1), "{cut:?}");
        assert_eq!(refused(&url_in(&value)).await, None);
        assert_eq!(w.t.vault.describe(&w.secret).await.unwrap().versions.len(), 2, "exactly one new version");
        w.world.close().await;
    }
}

#[tokio::test]
async fn a_network_that_is_away_says_nothing_of_a_password_and_in_the_end_everything_is_taken_back() {
    let server = server().await;
    // What programs use: it breaks as soon as somebody signs in.
    let proxy = CuttingProxy::to(server.address()).await;
    let w = {
        let secret = json!({"url": proxy.url(&address(&server, "app_a", "canary-the-first"))}).to_string();
        let rotation = json!({"within": "1h", "postgres": {"database": "main", "roles": ["app_a", "app_b"]}});
        let porter = address(&server, "porter", "of-the-porter");
        RotationWorld::new(TestVault::file().await, &secret, rotation, Some(&porter)).await
    };
    // The test's query is the first that asks by this word.
    proxy.cut_once(Cut::Before, b"app_b");
    let job = w.start().await;
    let why = w.world.first_failure(job).await;
    assert!(why.contains("which says nothing about the password"), "{why}");
    assert_eq!(w.holder(Label::Current).await.as_ref(), Some(&w.first));
    // It comes back too late, and is away when it is looked again.
    proxy.cut_once(Cut::Before, b"app_b");
    w.world.pass(Duration::from_hours(2)).await;
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.contains("not proven within 1h") && reason.contains("everything was taken back"), "{reason}");
    w.is_as_before().await;
    assert_eq!(refused(&url_in(&w.current().await)).await, None);
    let rests = "select rolcanlogin::text from pg_roles where rolname = 'app_b'";
    assert_eq!(one(&house(&server), rests).await, "false", "the new value is dead");
    w.world.close().await;
}

#[tokio::test]
async fn a_right_that_is_missing_is_found_before_the_new_value_is_current() {
    let server = server().await;
    run(&house(&server), "create table secret (id integer)").await;
    let w = world(&server, json!({"test": "SELECT count(*) FROM secret"})).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("permission denied for table secret (SQLSTATE 42501)"), "{reason}");
    w.is_as_before().await;
    assert_eq!(refused(&url_in(&w.current().await)).await, None);
    w.world.close().await;

    run(&house(&server), "revoke app from app_b").await;
    let w = world(&server, json!({})).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("members of the same roles"), "{reason}");
    w.is_as_before().await;
    w.world.close().await;
}

#[tokio::test]
async fn a_single_role_gets_its_password_back_when_a_consumer_refuses() {
    let (server, folder) = (server().await, TempDir::new().unwrap());
    let good = json!({"roles": ["app_a"], "accept_gap": true});
    let w = world(&server, good.clone()).await;
    let old = url_in(&w.current().await);
    w.rotate().await;
    let new = url_in(&w.current().await);
    assert_eq!((refused(&old).await.as_deref(), refused(&new).await), (Some("28P01"), None));
    w.world.close().await;

    run(&house(&server), "alter role app_a password 'canary-the-first'").await;
    let mut bad = good;
    bad["consumers"] = json!({"app": {"file": {"path": folder.path().join("none/such"), "key": "url"}}});
    let w = world(&server, bad).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("could be taken back") || reason.contains("everything was taken back"), "{reason}");
    assert_eq!(refused(&old).await, None, "the password that is current is valid again");
    w.world.close().await;
}

#[tokio::test]
async fn the_role_that_sets_passwords_can_have_its_own_rotated() {
    let server = server().await;
    let (secret, rotation) = (
        address(&server, "porter", "of-the-porter"),
        json!({"postgres": {"database": "main", "roles": ["porter"], "accept_gap": true}}),
    );
    let t = TestVault::file().await;
    let (name, _) = t.secret(&secret).await;
    let config = tests::rotation_world::config(&name, rotation, Some(&format!("${{vault:{name}}}")));
    let world = tests::backup_world::BackupWorld::with_vault(config, t.vault.clone()).await;
    let job = world.enqueue("rotate", &RotationWorld::args()).await;
    world.wait_for(job, &[JobState::Scheduled]).await;
    let new = t.vault.current(&name).await.unwrap();
    assert_eq!((refused(&secret).await.as_deref(), refused(new.expose_secret()).await), (Some("28P01"), None));
    // The process that rotated it has read the old value a moment ago, and uses it no more.
    let ask = json!({"database": "main", "statement": "select 1", "expect": {"equals": 1}});
    world.complete("sql", &ask).await;
    world.close().await;
}

#[tokio::test]
async fn a_server_that_lets_anybody_in_is_refused() {
    let url = tests::postgres::fresh_database().await;
    let role = format!("role_{}", uuid::Uuid::new_v4().simple());
    run(&url, &format!("create role {role} login password 'x'")).await;
    let mut address = Url::parse(&url).unwrap();
    address.set_username(&role).unwrap();
    address.set_password(Some("x")).unwrap();
    let rotation = json!({"postgres": {"database": "main", "roles": [role], "accept_gap": true}});
    let w = RotationWorld::new(TestVault::file().await, address.as_str(), rotation, Some(&url)).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("in with any password"), "{reason}");
    w.world.close().await;
    run(&url, &format!("drop role {role}")).await;
}

/// Has the server write down all that it can.
async fn talkative(server: &mut PostgresServer) {
    for (name, value) in [
        ("shared_preload_libraries", "'pg_stat_statements'"),
        ("log_statement", "'all'"),
        ("log_min_duration_statement", "0"),
        ("log_min_duration_sample", "0"),
        ("log_statement_sample_rate", "1"),
    ] {
        run(&house(server), &format!("alter system set {name} = {value}")).await;
    }
    server.kill();
    server.start_again().await;
    run(&house(server), "create extension pg_stat_statements").await;
}

/// What the server wrote down of statements that set passwords: only those of this test's own set-up may be there.
async fn written(server: &PostgresServer) -> String {
    let statements = "select coalesce(string_agg(query, E'\\n'), '') from pg_stat_statements where query ~* 'password'";
    format!("{}\n{}", server.log(), one(&house(server), statements).await)
}

#[tokio::test]
async fn nothing_that_the_server_writes_down_holds_a_password_or_a_verifier() {
    let mut server = server().await;
    talkative(&mut server).await;
    for (admin, password) in [(house(&server), "verifier"), (house(&server), "plain")] {
        let w = world_by(TestVault::file().await, &server, &admin, json!({"password": password})).await;
        run(&house(&server), "alter role app_a login").await;
        let job = w.start().await;
        w.waits(job).await;
        let value = url_in(&w.value_of(job).await);
        assert_eq!(refused(&value).await, None);
        let written = written(&server).await;
        let secret = Url::parse(&value).unwrap().password().unwrap().to_owned();
        assert!(written.contains("SELECT count(*) FROM guest"), "the server writes down what it is asked");
        assert!(!written.contains(&secret) && !written.contains("SCRAM-SHA-256$"), "as {password}");
        w.world.close().await;
    }
}

#[tokio::test]
async fn a_plain_password_that_would_be_written_down_is_not_sent_unless_that_is_accepted() {
    let mut server = server().await;
    talkative(&mut server).await;
    let w = world(&server, json!({"password": "plain"})).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("write the password down (log_statement)") && reason.contains("GRANT SET"), "{reason}");
    assert!(!written(&server).await.contains("ALTER ROLE \"app_b\" LOGIN"));
    w.is_as_before().await;
    w.world.close().await;
    for name in
        ["log_statement", "log_min_duration_statement", "log_min_duration_sample", "pg_stat_statements.track_utility"]
    {
        run(&house(&server), &format!("grant set on parameter {name} to porter")).await;
    }
    let w = world(&server, json!({"password": "plain"})).await;
    let job = w.start().await;
    w.waits(job).await;
    let secret = Url::parse(&url_in(&w.current().await)).unwrap().password().unwrap().to_owned();
    assert!(!written(&server).await.contains(&secret));
    w.world.close().await;
}

#[tokio::test]
async fn a_statement_that_fails_is_not_written_down_by_who_may_silence_it() {
    let server = server().await;
    run(&house(&server), "create role strict superuser login password 'of-the-strict'").await;
    run(&house(&server), "alter role strict set default_transaction_read_only = on").await;
    let strict = address(&server, "strict", "of-the-strict");
    let w = world_by(TestVault::file().await, &server, &strict, json!({"password": "plain"})).await;
    let job = w.start().await;
    let why = w.world.first_failure(job).await;
    assert!(why.contains("read-only transaction"), "{why}");
    let secret = Url::parse(&url_in(&w.value_of(job).await)).unwrap().password().unwrap().to_owned();
    let log = server.log();
    assert!(log.contains("cannot execute ALTER ROLE in a read-only transaction"), "{log}");
    assert!(!log.contains(&secret) && !why.contains(&secret), "{log}");
    w.world.close().await;
}

#[tokio::test]
async fn every_address_of_the_secret_is_tried() {
    let server = server().await;
    let own = address(&server, "app_a", "canary-the-first");
    let mut pooled = Url::parse(&own).unwrap();
    pooled.set_port(Some(9)).unwrap();
    let secret = json!({"url": own, "url_of_the_pooler": pooled}).to_string();
    let rotation = json!({"postgres": {"database": "main", "roles": ["app_a", "app_b"]}});
    let porter = address(&server, "porter", "of-the-porter");
    let w = RotationWorld::new(TestVault::file().await, &secret, rotation, Some(&porter)).await;
    let job = w.start().await;
    let why = w.world.first_failure(job).await;
    assert!(why.contains("signing in as `app_b`") && why.contains("nothing about the password"), "{why}");
    assert_eq!(w.holder(Label::Current).await.as_ref(), Some(&w.first));
    w.world.close().await;
}

#[tokio::test]
async fn passwords_are_not_set_through_a_pooler() {
    let server = server().await;
    let pooler = format!("{}?pgbouncer=true", address(&server, "porter", "of-the-porter"));
    let w = world_by(TestVault::file().await, &server, &pooler, json!({})).await;
    let reason = w.world.discarded("rotate", &RotationWorld::args()).await;
    assert!(reason.contains("`pgbouncer=true` says that it goes through a pooler"), "{reason}");
    assert_eq!(w.holder(Label::Current).await.as_ref(), Some(&w.first));
    w.world.close().await;
}

#[tokio::test]
async fn a_new_value_lives_until_each_who_has_it_holds_the_old_one_again() {
    let (server, folder) = (server().await, TempDir::new().unwrap());
    let path = folder.path().join("shared");
    // Two that write the same file: the first finds that it does not hold what it was given, there and back.
    let consumers = json!({"a": {"file": {"path": path, "key": "url"}}, "b": {"file": {"path": path, "key": "pool"}}});
    let w = world(&server, json!({"consumers": consumers})).await;
    let job = w.start().await;
    let reason = w.world.wait_discarded(job).await;
    assert!(reason.contains("not everything could be taken back: prove back a"), "{reason}");
    assert_eq!(refused(&url_in(&w.value_of(job).await)).await, None, "whoever has it still can use it");
    assert_eq!(refused(&url_in(&w.current().await)).await, None);
    w.world.close().await;
}

#[tokio::test]
async fn the_server_is_told_a_verifier_or_the_password_itself_as_it_is_configured() {
    let mut server = server().await;
    talkative(&mut server).await;
    // Who sets the passwords may silence nothing here, so that the log shows what the server was told.
    for (telling, accepts) in [("verifier", false), ("plain", true)] {
        let w = world(&server, json!({"password": telling, "accept_logged": accepts})).await;
        let job = w.start().await;
        w.waits(job).await;
        let secret = Url::parse(&url_in(&w.current().await)).unwrap().password().unwrap().to_owned();
        let log = server.log();
        assert!(log.contains("PASSWORD 'SCRAM-SHA-256$4096:"), "as {telling}");
        assert_eq!(log.contains(&format!("PASSWORD '{secret}'")), telling == "plain", "as {telling}");
        w.world.close().await;
    }
}

#[tokio::test]
async fn the_role_that_sets_passwords_signs_in_again_though_nobody_heard_that_its_own_was_set() {
    let server = server().await;
    let t = TestVault::file().await;
    let (name, first) = t.secret(&address(&server, "porter", "of-the-porter")).await;
    let rotation = json!({"postgres": {"database": "main", "roles": ["porter"], "accept_gap": true}});
    let config = tests::rotation_world::config(&name, rotation, Some(&format!("${{vault:{name}}}")));
    let mut world = tests::backup_world::BackupWorld::with_vault(config, t.vault.clone()).await;
    world.stop_worker().await;
    let begun = json!({"from": first, "at": world.queue.clock().now()});
    let steps = [("begin", Some(begun)), ("create", Some(Value::Null)), ("set", None)];
    let job = world.die_after("rotate", &RotationWorld::args(), &steps).await;
    let new = address(&server, "porter", "of-the-first-attempt");
    t.vault.put_pending(&name, &Token::from(job.0), &new.as_str().into()).await.unwrap();
    run(&house(&server), "alter role porter password 'of-the-first-attempt'").await;
    world.start_worker();
    let view = world.wait_for(job, &[JobState::Scheduled, JobState::Discarded, JobState::Retryable]).await;
    assert_eq!(view.state, JobState::Scheduled, "{:?}", view.reason);
    assert_eq!(t.vault.current(&name).await.unwrap().expose_secret(), new);
    world.close().await;
}
