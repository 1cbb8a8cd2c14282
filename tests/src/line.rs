//! A line between us and a service that speaks HTTP, on which single requests go wrong: whichever request it is, so that a
//! test can go through all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Wrong {
    /// It is done, and its answer never comes: for who is killed meanwhile.
    Held,
    /// It is done, and the connection breaks before the answer.
    Lost,
    /// It is not done, and the connection breaks.
    Broken,
    /// It is not done, and answered so.
    Answered(StatusCode, Vec<(&'static str, &'static str)>, &'static str),
}

/// The line. It ends when it is dropped.
pub struct Line {
    /// `http://127.0.0.1:PORT`.
    pub url: url::Url,
    state: Arc<Shared>,
    wrong: watch::Receiver<usize>,
    _serving: AbortOnDropHandle<()>,
}

struct Shared {
    server: String,
    http: reqwest::Client,
    kept: Mutex<Kept>,
    wrong: watch::Sender<usize>,
}

#[derive(Default)]
struct Kept {
    /// Requests so far, as `METHOD path body`.
    requests: Vec<String>,
    /// What goes wrong with which of them, the first being 1.
    wrongs: BTreeMap<usize, Wrong>,
    /// What goes wrong with the next that holds such a text.
    next: Vec<(String, Wrong)>,
}

impl Line {
    /// A line to that server: `http://HOST:PORT`, and a path for a service that has one.
    pub async fn to(server: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server: url::Url = server.parse().expect("an address");
        let url = format!("http://{}{}", listener.local_addr().expect("an address"), server.path());
        let (sender, wrong) = watch::channel(0);
        let state = Arc::new(Shared {
            server: server.origin().ascii_serialization(),
            http: worker::world::http_client(),
            kept: Mutex::default(),
            wrong: sender,
        });
        let router = Router::new().fallback(carry).with_state(Arc::clone(&state));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Self { url: url.parse().expect("an address"), state, wrong, _serving: AbortOnDropHandle::new(serving) }
    }

    /// Has this go wrong with the request of that number, the first being 1.
    pub fn at(&self, number: usize, wrong: Wrong) {
        self.state.lock().wrongs.insert(number, wrong);
    }

    /// Has this go wrong with the next request that holds such a text.
    pub fn next(&self, text: &str, wrong: Wrong) {
        self.state.lock().next.push((text.to_owned(), wrong));
    }

    /// All requests so far, as `METHOD path body`.
    pub fn requests(&self) -> Vec<String> {
        self.state.lock().requests.clone()
    }

    /// How many requests held such a text.
    pub fn count(&self, text: &str) -> usize {
        self.state.lock().requests.iter().filter(|request| request.contains(text)).count()
    }

    /// Waits until something has gone wrong.
    pub async fn has_gone_wrong(&self) {
        self.wrong.clone().wait_for(|wrong| *wrong > 0).await.expect("the line is there");
    }

    /// Whether something has gone wrong.
    pub fn went_wrong(&self) -> bool {
        *self.wrong.borrow() > 0
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fate(&self, request: String) -> Option<Wrong> {
        let mut kept = self.lock();
        let place = kept.next.iter().position(|(text, _)| request.contains(text.as_str()));
        kept.requests.push(request);
        let number = kept.requests.len();
        place.map(|place| kept.next.remove(place).1).or_else(|| kept.wrongs.remove(&number))
    }

    async fn forward(&self, method: Method, uri: &Uri, mut headers: HeaderMap, body: Bytes) -> Response {
        let path = uri.path_and_query().map_or("/", axum::http::uri::PathAndQuery::as_str);
        for own in ["host", "content-length", "connection"] {
            headers.remove(own);
        }
        let sent = self.http.request(method, format!("{}{path}", self.server)).headers(headers).body(body).send().await;
        let Ok(answer) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
        let (status, mut headers) = (answer.status(), answer.headers().clone());
        headers.remove("transfer-encoding");
        headers.remove("connection");
        (status, headers, answer.bytes().await.unwrap_or_default()).into_response()
    }
}

async fn carry(State(line): State<Arc<Shared>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let fate = line.fate(format!("{method} {uri} {}", String::from_utf8_lossy(&body)));
    let said = |line: &Shared| line.wrong.send_modify(|wrong| *wrong += 1);
    match fate {
        None => line.forward(method, &uri, headers, body).await,
        Some(Wrong::Held) => {
            line.forward(method, &uri, headers, body).await;
            said(&line);
            std::future::pending().await
        }
        Some(Wrong::Lost) => {
            line.forward(method, &uri, headers, body).await;
            said(&line);
            // Ends the connection's task, and with it the connection; `resume_unwind` prints nothing.
            std::panic::resume_unwind(Box::new("lost"))
        }
        Some(Wrong::Broken) => {
            said(&line);
            std::panic::resume_unwind(Box::new("broken"))
        }
        Some(Wrong::Answered(status, extra, text)) => {
            said(&line);
            let mut response = (status, text).into_response();
            for (name, value) in extra {
                response.headers_mut().insert(name, value.parse().expect("a header's value"));
            }
            response
        }
    }
}
