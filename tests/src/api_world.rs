//! The console's API before a real ledger of either engine, asked over HTTP, with a clock that is moved by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use console::Console;
use producer::{ScheduleConfig, Startable};
use queue::ledger::{NewToken, Operator};
use queue::{Queue, QueueConfig};
use reqwest::Method;
use schemas::runbook::{RunbookConfig, Start};
use schemas::{Catalog, EventId, JobId, Key, KindInfo, Names, NewRun, Role, RunId, Runbook, Schedule, TraceContext};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use crate::ledgers::{TestLedger, completed, discarded};

/// The token that is not in the ledger.
pub const FIRST_TOKEN: &str = "np_the_first_token_of_the_tests";

/// The API, and the ledger behind it.
pub struct ApiWorld {
    /// The ledger.
    pub ledger: TestLedger,
    /// The queue on it.
    pub queue: Queue,
    catalog: Arc<Catalog>,
    runbooks: Arc<BTreeMap<String, Runbook>>,
    http: reqwest::Client,
    address: String,
    serving: JoinHandle<()>,
}

impl Drop for ApiWorld {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl ApiWorld {
    /// Serves the API before a ledger. There are the kinds of the worker, `rotate`, which must not be done twice, `other`, of which
    /// there is only one, the schedule `nightly`, which starts a `noop` at 02:00, and the runbooks `greet` and `guarded`, which waits for an approval. Every event makes one `noop`.
    pub async fn before(ledger: TestLedger) -> Self {
        let broker =
            queue::broker::open(&QueueConfig::new("sqlite:none", "in-process").broker).await.expect("a broker");
        let queue = Queue::with_parts(Arc::clone(&ledger.ledger), broker, ledger.clock.clone());
        let catalog = Arc::new(catalog());
        let runbooks = Arc::new(runbooks(&catalog));
        let (made_by, clock) = (Arc::clone(&catalog), ledger.clock.clone());
        let console = Console {
            queue: queue.clone(),
            catalog: Arc::clone(&catalog),
            runbooks: Arc::clone(&runbooks),
            schedules: Arc::new(schedules(&catalog)),
            token: FIRST_TOKEN.into(),
            released: Arc::new(move |event, _| {
                let job = made_by.job("noop", &json!({}), clock.now())?;
                Ok((vec![job.made_for(event.event.id, TraceContext::default())], Vec::new()))
            }),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}/api/v1", listener.local_addr().expect("an address"));
        let serving = tokio::spawn(async move {
            axum::serve(listener, console::router(console)).await.expect("it serves");
        });
        let http = worker::world::http_client();
        Self { ledger, queue, catalog, runbooks, http, address, serving }
    }

    /// Asks, showing this token, if any; the status and the answer.
    pub async fn ask(&self, token: Option<&str>, method: &Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        self.ledger.clock.advance(Duration::from_millis(1)); // so that ids rise
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.address));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.expect("it answers");
        let status = response.status().as_u16();
        (status, response.json().await.expect("JSON"))
    }

    /// Asks as the first token, an admin's, which must be answered with this status.
    pub async fn post(&self, path: &str, body: &Value, status: u16) -> Value {
        let (answered, answer) = self.ask(Some(FIRST_TOKEN), &Method::POST, path, Some(body)).await;
        assert_eq!(answered, status, "{path} {body}: {answer}");
        answer
    }

    /// Reads as the first token.
    pub async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask(Some(FIRST_TOKEN), &Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// Makes a token of this name and role; the token.
    pub async fn token(&self, name: &str, role: Role) -> String {
        let token = format!("np_of_{name}");
        let kept = NewToken { name: name.into(), hash: Sha256::digest(&token).into(), role, expires_at: None };
        let by = Operator { actor: "tests".into(), reason: "a test".into() };
        self.ledger.ledger.keep_token(&kept, &by, self.ledger.now()).await.expect("kept");
        token
    }

    /// A `noop` that was discarded.
    pub async fn discarded(&self) -> JobId {
        let job = self.ledger.enqueue(&[self.ledger.job()]).await[0];
        let claimed = self.ledger.claim_one().await;
        assert_eq!(claimed.id.job, job, "nothing else is available");
        self.ledger.finish(claimed.id, discarded("it broke")).await;
        job
    }

    /// A run of `greet` that has ended.
    pub async fn ended_run(&self) -> RunId {
        let run = self.start("greet").await;
        let claimed = self.ledger.claim_one().await;
        self.ledger.finish(claimed.id, completed(None)).await;
        run.id
    }

    /// A run of `guarded`; the job that waits for an approval.
    pub async fn asks_approval(&self) -> JobId {
        self.start("guarded").await.jobs[0].job.id
    }

    /// A run of `guarded`, which waits for an approval.
    pub async fn run_that_waits(&self) -> RunId {
        self.start("guarded").await.id
    }

    async fn start(&self, runbook: &str) -> NewRun {
        self.ledger.clock.advance(Duration::from_millis(1));
        let start = Start { actor: Some("starter".into()), reason: Some("a test".into()), ..Start::default() };
        let now = self.ledger.now();
        let inputs = json!({"name": "you"}).as_object().cloned().unwrap_or_default();
        let run = self.runbooks[runbook].plan(&inputs, start, &self.catalog, now).expect("it is planned");
        self.ledger.ledger.start(&run, now).await.expect("started");
        run
    }

    /// An event that was accepted, with its job ended, and one that is held.
    pub async fn events(&self) -> (EventId, EventId) {
        let delivery = |id: &str| queue::ledger::NewDelivery {
            repeats: queue::ledger::Repeats::AreHeld,
            ..self.ledger.delivery(id, b"the same body")
        };
        let (accepted, held) = (delivery("d-1"), delivery("d-2"));
        self.ledger.accept(&accepted).await;
        self.ledger.complete_next(None).await;
        self.ledger.accept(&held).await;
        (accepted.event.id, held.event.id)
    }

    /// Everything that operators can change, as they see it.
    pub async fn everything(&self) -> Value {
        let mut all = serde_json::Map::new();
        for path in ["/jobs?limit=500", "/runs", "/events", "/pauses", "/approvals", "/tokens", "/audit?limit=500"] {
            all.insert(path.to_owned(), self.get(path).await);
        }
        all.into()
    }
}

fn catalog() -> Catalog {
    let names = Names {
        databases: ["main", "other"].map(str::to_owned).into(),
        stores: ["nightly".to_owned()].into(),
        ..Names::default()
    };
    let all = worker::jobs::registry().catalog(names.clone());
    let rotate = KindInfo { kind: "rotate", once: true, ..all.kind("noop").expect("there is one").clone() };
    let key = |_: &Value| Some(Key { scope: "other".into(), key: "only".into(), hold: Duration::from_hours(24) });
    let other = KindInfo { kind: "other", key, ..rotate.clone() };
    let other = KindInfo { once: false, ..other };
    Catalog::new(all.kinds().cloned().chain([rotate, other]), names)
}

fn schedules(catalog: &Arc<Catalog>) -> BTreeMap<String, Schedule> {
    let config = json!({"cron": "0 2 * * *", "timezone": "Europe/Berlin", "run": {"job": "noop"}});
    let config: ScheduleConfig = serde_json::from_value(config).expect("a schedule");
    let startable = Startable { catalog: Arc::clone(catalog), runbooks: Arc::default() };
    [("nightly".to_owned(), config.build("nightly", &startable).expect("a right one"))].into()
}

fn runbooks(catalog: &Catalog) -> BTreeMap<String, Runbook> {
    let inputs = json!({"name": "string"});
    let job = json!({"job": "noop", "with": {"message": "hello {{ inputs.name }}"}});
    let mut guarded = job.clone();
    guarded["approval"] = json!({});
    [("greet", job), ("guarded", guarded)]
        .map(|(name, job)| {
            let config: RunbookConfig =
                serde_json::from_value(json!({"inputs": inputs, "jobs": {"hello": job}})).expect("a runbook");
            (name.to_owned(), Runbook::build(name, &config, catalog).expect("a right one"))
        })
        .into()
}
