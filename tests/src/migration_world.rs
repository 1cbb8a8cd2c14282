//! Migrations folders, databases to migrate, and GitHub as far as migrations need it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use schemas::Timestamp;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use worker::Failure;
use worker::databases::Tool;
use worker::migrations::folder::{self, Folder};
use worker::migrations::{Engine, History, Patience, open_postgres_with, open_sqlite_with};

use crate::github_hooks::{Hooks, Sending};
use crate::github_secrets::Secrets;
use crate::github_statuses::Statuses;
use crate::github_workflows::{Answer, Workflows};

/// Short waits, for tests.
pub const SOON: Patience = Patience {
    tool_lock: Duration::from_secs(30),
    statement_lock: Duration::from_millis(100),
    tries: 3,
    longest_pause: Duration::from_millis(20),
};

/// Waits that do not end while a test runs.
pub const FOR_EVER: Patience = Patience {
    tool_lock: Duration::from_mins(10),
    statement_lock: Duration::from_mins(10),
    tries: 1000,
    longest_pause: Duration::from_millis(20),
};

/// A migrations folder.
pub struct Files(TempDir);

impl Files {
    /// A folder with these files.
    pub fn of(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        for (path, text) in files {
            folder.write(path, text);
        }
        folder
    }

    /// Writes a file.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// As its tool reads it.
    pub async fn read(&self, tool: Tool, engine: Engine) -> Folder {
        let files = folder::local(self.path().to_str().expect("UTF-8")).await.expect("read");
        Folder::of(tool, engine, &files).expect("a good folder")
    }
}

/// A database to migrate.
pub enum Target {
    /// On the server that `tests/run` started.
    Postgres(String),
    /// A file.
    Sqlite(TempDir, PathBuf),
}

impl Target {
    /// A new, empty `PostgreSQL` database.
    pub async fn postgres() -> Self {
        Self::Postgres(crate::postgres::fresh_database().await)
    }

    /// A new, empty `SQLite` database.
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("app.db");
        let url = format!("sqlite:{}?mode=rwc", path.display());
        let mut connection = SqliteConnection::connect(&url).await.expect("made");
        connection.execute("pragma journal_mode = wal").await.expect("set");
        connection.close().await.expect("closed");
        Self::Sqlite(folder, path)
    }

    /// Its address, as a configuration file has it.
    pub fn url(&self) -> String {
        match self {
            Self::Postgres(url) => url.clone(),
            Self::Sqlite(_, path) => format!("sqlite:{}", path.display()),
        }
    }

    /// What it is.
    pub fn engine(&self) -> Engine {
        match self {
            Self::Postgres(_) => Engine::Postgres,
            Self::Sqlite(..) => Engine::Sqlite,
        }
    }

    /// Opens a tool's history in it.
    pub async fn history(&self, tool: Tool, patience: Patience) -> Result<Box<dyn History>, Failure> {
        match self {
            Self::Postgres(url) => open_postgres_with(&url.parse().expect("an address"), tool, patience).await,
            Self::Sqlite(_, path) => open_sqlite_with(path, tool, patience).await,
        }
    }

    /// A session of somebody else in a `PostgreSQL` database.
    pub async fn session(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.expect("it answers")
    }

    /// Runs a statement.
    pub async fn run(&self, sql: &str) {
        match self {
            Self::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.expect("it answers");
                connection.execute(AssertSqlSafe(sql.to_owned())).await.expect("it runs");
            }
            Self::Sqlite(..) => {
                let mut connection = SqliteConnection::connect(&self.url()).await.expect("it opens");
                connection.execute(AssertSqlSafe(sql.to_owned())).await.expect("it runs");
            }
        }
    }

    /// The rows of a query with one column of text.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::Postgres(url) => {
                let mut connection = PgConnection::connect(url).await.expect("it answers");
                sqlx::query_scalar(sql).fetch_all(&mut connection).await.expect("it answers")
            }
            Self::Sqlite(..) => {
                let mut connection = SqliteConnection::connect(&self.url()).await.expect("it opens");
                sqlx::query_scalar(sql).fetch_all(&mut connection).await.expect("it answers")
            }
        }
    }
}

/// Applies what is pending of a folder, as the job does; the names.
pub async fn apply_pending(
    target: &Target,
    files: &Files,
    tool: Tool,
    patience: Patience,
) -> Result<Vec<String>, Failure> {
    let folder = files.read(tool, target.engine()).await;
    let mut history = target.history(tool, patience).await?;
    let applied = history.applied().await?;
    let comparison = worker::migrations::plan::Comparison::of(&folder, &applied, target.engine());
    let comparison = comparison.map_err(Failure::discard)?;
    let mut names = Vec::new();
    for migration in &comparison.pending {
        history.apply(migration).await?;
        names.push(migration.name.clone());
    }
    history.close().await;
    Ok(names)
}

/// What a failure says.
pub fn words(failure: &Failure) -> String {
    match failure {
        Failure::Retry { error, .. } => format!("retry: {error:#}"),
        Failure::Discard(error) => format!("discard: {error:#}"),
        other => format!("{other:?}"),
    }
}

/// GitHub: repositories, commits, branches and workflows in memory.
#[derive(Clone, Default)]
pub struct Github(Arc<Mutex<Hub>>);

#[derive(Default)]
struct Hub {
    /// Trees by hash: what the commit's hash and each folder's lead to.
    trees: BTreeMap<String, Vec<Value>>,
    blobs: BTreeMap<String, String>,
    /// The commits of the branch `main`, oldest first.
    main: Vec<String>,
    truncated: bool,
    workflows: Workflows,
    secrets: Secrets,
    hooks: Hooks,
    /// The time that its webhook's deliveries are said to be sent at.
    now: Option<Timestamp>,
    statuses: Statuses,
    /// Answers to give before the right ones.
    first: Vec<(StatusCode, HeaderMap)>,
    requests: usize,
}

/// The token that it wants.
pub const TOKEN: &str = "ghp_canary_of_the_tests";

/// The repository that it has.
pub const REPOSITORY: &str = "acme/app";

impl Github {
    /// Starts it on a free port; its address for the API.
    pub async fn start(&self) -> url::Url {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/api/v3", listener.local_addr().expect("an address"));
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        url.parse().expect("an address")
    }

    /// Commits files, below the folder `db/migrations`, onto `main`; the commit.
    pub fn commit(&self, files: &[(&str, &str)]) -> String {
        let commit = self.commit_beside(files);
        self.lock().main.push(commit.clone());
        commit
    }

    /// Commits files, but not onto `main`.
    pub fn commit_beside(&self, files: &[(&str, &str)]) -> String {
        let mut hub = self.lock();
        let number = hub.trees.len() + 1;
        let sha = |what: usize| format!("{number:020x}{what:020x}");
        let entry =
            |path: &str, kind: &str, sha: &str| json!({"path": path, "mode": "100644", "type": kind, "sha": sha});
        let mut listing = Vec::new();
        for (index, (path, text)) in files.iter().enumerate() {
            hub.blobs.insert(sha(100 + index), (*text).to_owned());
            listing.push(entry(path, "blob", &sha(100 + index)));
        }
        hub.trees.insert(sha(1), vec![entry("README.md", "blob", "0"), entry("db", "tree", &sha(2))]);
        hub.trees.insert(sha(2), vec![entry("migrations", "tree", &sha(3))]);
        hub.trees.insert(sha(3), listing);
        sha(1)
    }

    /// Answers the next request so.
    pub fn answer_first(&self, status: StatusCode, headers: &[(&'static str, &str)]) {
        let headers = headers
            .iter()
            .map(|(name, value)| (axum::http::HeaderName::from_static(name), value.parse().expect("a header's value")));
        self.lock().first.push((status, headers.collect()));
    }

    /// Looks at its workflows, or changes them.
    pub fn workflows<T>(&self, change: impl FnOnce(&mut Workflows) -> T) -> T {
        change(&mut self.lock().workflows)
    }

    /// Looks at its secrets and hooks, or changes them.
    pub fn secrets<T>(&self, change: impl FnOnce(&mut Secrets) -> T) -> T {
        change(&mut self.lock().secrets)
    }

    /// Looks at its webhook, or changes it.
    pub fn hooks<T>(&self, change: impl FnOnce(&mut Hooks) -> T) -> T {
        change(&mut self.lock().hooks)
    }

    /// What it sends from now on is said to be sent at this time.
    pub fn at(&self, now: Timestamp) {
        self.lock().now = Some(now);
    }

    /// Something happens that its webhook tells of, once; what the receiver answers.
    pub async fn tell(&self, event: &str, guid: &str, body: &Value) -> u16 {
        let sending = self.lock().hooks.sending(event, guid, body);
        self.send(sending).await
    }

    async fn send(&self, sending: Sending) -> u16 {
        let status = sending.go().await;
        let mut hub = self.lock();
        let at = hub.now.unwrap_or_else(chrono::Utc::now);
        hub.hooks.sent(sending, at, status);
        status
    }

    /// Looks at its commit statuses, or changes them.
    pub fn statuses<T>(&self, change: impl FnOnce(&mut Statuses) -> T) -> T {
        change(&mut self.lock().statuses)
    }

    /// Says of each tree that it is not whole.
    pub fn truncate(&self) {
        self.lock().truncated = true;
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.lock().requests
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(
    State(github): State<Github>,
    Query(query): Query<BTreeMap<String, String>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut hub = github.lock();
    hub.requests += 1;
    if !hub.first.is_empty() {
        return hub.first.remove(0).into_response();
    }
    if headers.get("authorization").is_none_or(|value| value != format!("Bearer {TOKEN}").as_str()) {
        return (StatusCode::UNAUTHORIZED, axum::Json(json!({"message": "Bad credentials"}))).into_response();
    }
    let below = uri.path().strip_prefix("/api/v3/").unwrap_or_default();
    let path = below.strip_prefix("repos/acme/app/").or_else(|| below.strip_prefix("orgs/acme/")).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if let Some((answer, outgoing)) = hub.secrets.answer(&method, path, &body) {
        drop(hub);
        if let Some(delivery) = outgoing {
            tokio::spawn(async move { delivery.send(&worker::world::http_client()).await });
        }
        return said(answer);
    }
    let hooks =
        ["repos/acme/app/hooks", "orgs/acme/hooks"].into_iter().find_map(|of| Some((of, below.strip_prefix(of)?)));
    if let Some((of, path)) = hooks {
        let base = format!("http://github.test/api/v3/{}", of.trim_end_matches("/hooks"));
        let (answer, links, again) = hub.hooks.answer(&method, path, &query, &base);
        drop(hub);
        if let Some(sending) = again {
            // Later, and whatever becomes of the answer.
            tokio::spawn(async move { github.send(sending).await });
        }
        return match answer {
            Answer::Say(status, body) => (status, links, axum::Json(body)).into_response(),
            Answer::Break => std::panic::resume_unwind(Box::new("lost")),
        };
    }
    let answered = match path.strip_prefix("actions/") {
        Some(path) => Some(hub.workflows.answer(&method, path, &query, &body)),
        None => hub.statuses.answer(&method, path, &body).map(Some),
    };
    if let Some(answered) = answered {
        drop(hub);
        return answered.map_or_else(not_found, said);
    }
    hub.find(path, &query).map_or_else(not_found, |body| axum::Json(body).into_response())
}

fn said(answer: Answer) -> Response {
    match answer {
        Answer::Say(StatusCode::NO_CONTENT, _) => StatusCode::NO_CONTENT.into_response(),
        Answer::Say(status, body) => (status, axum::Json(body)).into_response(),
        // Ends the connection's task, and with it the connection; `resume_unwind` prints nothing.
        Answer::Break => std::panic::resume_unwind(Box::new("lost")),
    }
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, axum::Json(json!({"message": "Not Found"}))).into_response()
}

impl Hub {
    fn find(&self, path: &str, query: &BTreeMap<String, String>) -> Option<Value> {
        if let Some(sha) = path.strip_prefix("git/trees/") {
            let _ = query.get("recursive"); // Below a migrations folder both listings are alike here.
            let tree = self.trees.get(sha)?;
            return Some(json!({"sha": sha, "tree": tree, "truncated": self.truncated}));
        }
        if let Some(sha) = path.strip_prefix("git/blobs/") {
            let text = self.blobs.get(sha)?;
            // As GitHub does it: base64 with line breaks.
            let digits = base64(text.as_bytes());
            let lines: Vec<&str> =
                digits.as_bytes().chunks(60).filter_map(|line| std::str::from_utf8(line).ok()).collect();
            return Some(json!({"content": lines.join("\n") + "\n", "encoding": "base64", "size": text.len()}));
        }
        let (base, commit) = path.strip_prefix("compare/")?.split_once("...")?;
        let base = if base == "main" { self.main.last().map_or("", String::as_str) } else { base };
        if !self.trees.contains_key(commit) || !base.is_empty() && !self.trees.contains_key(base) {
            return None;
        }
        let place = |sha: &str| self.main.iter().position(|known| known == sha);
        let status = match (place(base), place(commit)) {
            (Some(base), Some(commit)) if base == commit => "identical",
            (Some(base), Some(commit)) if commit < base => "behind",
            (Some(_), Some(_)) => "ahead",
            _ => "diverged",
        };
        Some(json!({"status": status, "commits": [], "files": []}))
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
