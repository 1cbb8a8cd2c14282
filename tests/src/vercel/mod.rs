//! A stub of Vercel's REST API, by its documented contract, with what can go wrong on the way: projects, deployments,
//! check runs (v2), aliases, promotions and rollbacks. It keeps every request.
//!
//! What it answers to a path stands in a file for each part; a new part is a file and a line in `PARTS`.

mod checks;
mod deployments;
mod environment;
mod moves;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

pub use checks::CHECK;
pub use deployments::OWN_COMMIT;
pub use moves::DOMAINS;

/// The token that it wants.
pub const TOKEN: &str = "vercel_canary_of_the_tests";

/// The team that everything belongs to, and its slug.
pub const TEAM: &str = "team_acme";

/// The project that there is, and its name.
pub const PROJECT: &str = "prj_app";
/// Its name.
pub const PROJECT_NAME: &str = "app";

/// The parts, asked one after the other.
const PARTS: &[fn(&mut Hub, &Call<'_>) -> Option<Answer>] =
    &[deployments::answer, checks::answer, moves::answer, environment::answer];

/// The stub; clones are the same one.
#[derive(Clone)]
pub struct Vercel(Arc<Mutex<Hub>>);

/// What it knows.
pub struct Hub {
    /// Projects by id, as the API shows them, with what we need beside it.
    pub projects: BTreeMap<String, Value>,
    /// Deployments, the oldest first. A `stranger` is shown as to those who may not see its project.
    pub deployments: Vec<Value>,
    /// Check runs of all deployments.
    pub check_runs: Vec<Value>,
    /// Environment variables and whatever other parts keep, by the part's name.
    pub other: BTreeMap<String, Value>,
    faults: VecDeque<(Method, String, Fault)>,
    requests: Vec<Request>,
    silences: usize,
    number: u64,
    /// A page of a list of deployments has at most so many.
    pub page: usize,
    /// So many of the next looks at a list of deployments do not show the newest one yet.
    pub late: usize,
    /// The time in milliseconds, which only rises.
    pub now: i64,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its path, from the version on: `v13/deployments/dpl_1`.
    pub path: String,
    /// Its query.
    pub query: BTreeMap<String, String>,
    /// Its body; null where there is none.
    pub body: Value,
}

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused so, and not done.
    Refused(StatusCode, Vec<(&'static str, String)>, Value),
    /// It is done, and the connection breaks before the answer.
    Lost,
    /// It is not done, and the connection breaks.
    Broken,
    /// It is done, and the answer never comes.
    Silence,
}

/// What is asked of a part.
pub struct Call<'c> {
    /// The method.
    pub method: &'c str,
    /// The path's steps, from the version on.
    pub steps: Vec<&'c str>,
    /// The query.
    pub query: &'c BTreeMap<String, String>,
    /// The body.
    pub body: &'c Value,
}

/// What a part answers.
pub struct Answer(pub StatusCode, pub Value);

impl Answer {
    /// 200 and this.
    pub fn ok(body: Value) -> Self {
        Self(StatusCode::OK, body)
    }

    /// A refusal in Vercel's form.
    pub fn refused(status: u16, code: &str) -> Self {
        let status = StatusCode::from_u16(status).expect("a status");
        Self(status, json!({"error": {"code": code, "message": format!("because of {code}")}}))
    }
}

impl Default for Vercel {
    fn default() -> Self {
        let project = json!({
            "id": PROJECT, "name": PROJECT_NAME, "accountId": TEAM, "autoAssignCustomDomains": true,
            "targets": {}, "lastAliasRequest": null,
        });
        Self(Arc::new(Mutex::new(Hub {
            projects: [(PROJECT.to_owned(), project)].into(),
            deployments: Vec::new(),
            check_runs: Vec::new(),
            other: BTreeMap::new(),
            faults: VecDeque::new(),
            requests: Vec::new(),
            silences: 0,
            number: 0,
            page: 100,
            late: 0,
            now: 1_795_000_000_000,
        })))
    }
}

impl Vercel {
    /// Starts it on a free port; its address.
    pub async fn start(&self) -> url::Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url.parse().expect("an address")
    }

    /// Looks at what it knows, or changes it.
    pub fn hub<T>(&self, change: impl FnOnce(&mut Hub) -> T) -> T {
        change(&mut self.lock())
    }

    /// Has this go wrong with the next request of the method whose path holds the text.
    pub fn next(&self, method: &Method, path: &str, fault: Fault) {
        self.lock().faults.push_back((method.clone(), path.to_owned(), fault));
    }

    /// All requests that came.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// How many requests of the method came whose path holds the text.
    pub fn count(&self, method: &Method, path: &str) -> usize {
        self.lock().requests.iter().filter(|it| it.method == *method && it.path.contains(path)).count()
    }

    /// How many requests are done and never answered.
    pub fn silences(&self) -> usize {
        self.lock().silences
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    /// A new id.
    pub fn id(&mut self, prefix: &str) -> String {
        self.number += 1;
        format!("{prefix}_{:04}", self.number)
    }

    /// The time of what happens now.
    pub fn tick(&mut self) -> i64 {
        self.now += 1000;
        self.now
    }

    /// A project, by id or name.
    pub fn project(&mut self, id_or_name: &str) -> Option<&mut Value> {
        self.projects.values_mut().find(|project| project["id"] == id_or_name || project["name"] == id_or_name)
    }
}

fn query_of(uri: &Uri) -> BTreeMap<String, String> {
    url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect()
}

async fn answer(State(vercel): State<Vercel>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let path = uri.path().trim_start_matches('/').to_owned();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let query = query_of(&uri);
    let fault = {
        let mut hub = vercel.lock();
        let request = Request { method: method.clone(), path: path.clone(), query: query.clone(), body: body.clone() };
        hub.requests.push(request);
        let place = hub.faults.iter().position(|(of, at, _)| *of == method && path.contains(at.as_str()));
        place.and_then(|place| hub.faults.remove(place)).map(|(_, _, fault)| fault)
    };
    match fault {
        Some(Fault::Refused(status, extra, body)) => {
            let extra = extra
                .into_iter()
                .map(|(name, value)| (HeaderName::from_static(name), value.parse().expect("a header's value")));
            (status, extra.collect::<HeaderMap>(), axum::Json(body)).into_response()
        }
        // Ends the connection's task, and with it the connection; `resume_unwind` prints nothing.
        Some(Fault::Broken) => std::panic::resume_unwind(Box::new("broken")),
        Some(Fault::Lost) => {
            drop(done(&vercel, &method, &path, &query, &headers, &body));
            std::panic::resume_unwind(Box::new("lost"))
        }
        Some(Fault::Silence) => {
            drop(done(&vercel, &method, &path, &query, &headers, &body));
            vercel.lock().silences += 1;
            std::future::pending().await
        }
        None => done(&vercel, &method, &path, &query, &headers, &body),
    }
}

fn done(
    vercel: &Vercel,
    method: &Method,
    path: &str,
    query: &BTreeMap<String, String>,
    headers: &HeaderMap,
    body: &Value,
) -> Response {
    let Answer(status, body) = if headers.get("authorization").is_none_or(|value| *value != format!("Bearer {TOKEN}")) {
        let error = json!({"code": "forbidden", "message": "Not authorized", "invalidToken": true});
        Answer(StatusCode::FORBIDDEN, json!({"error": error}))
    } else if query.get("teamId").is_none_or(|team| team != TEAM) && query.get("slug").is_none_or(|slug| slug != "acme")
    {
        Answer::refused(403, "forbidden")
    } else {
        let call = Call { method: method.as_str(), steps: path.split('/').collect(), query, body };
        let mut hub = vercel.lock();
        PARTS.iter().find_map(|part| part(&mut hub, &call)).unwrap_or_else(|| Answer::refused(404, "not_found"))
    };
    match body {
        Value::Null => status.into_response(),
        body => (status, axum::Json(body)).into_response(),
    }
}
