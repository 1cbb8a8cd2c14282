//! S3 servers: the one that `tests/run` started, one in this process, and a door before either that can be held shut.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// The variable with the address of the server that `tests/run` started.
pub const SERVER: &str = "NIGHTPORTER_TEST_S3";

/// What every server here takes.
pub const CREDENTIALS: &str = "test-key:test-secret";

/// A bucket on a server, and what keeps that server running.
pub struct Bucket {
    /// The server.
    pub endpoint: String,
    /// The bucket's name.
    pub name: String,
    /// Of a server in this process: where its objects lie.
    pub folder: Option<TempDir>,
    server: Option<JoinHandle<()>>,
}

impl Bucket {
    /// A new bucket on the server that `tests/run` started (moto: multipart listings, storage classes).
    pub async fn on_server() -> Self {
        let endpoint = crate::server(SERVER);
        let name = format!("test-{}", Uuid::new_v4().simple());
        let made = client().put(format!("{endpoint}/{name}")).send().await.expect("the S3 server answers");
        assert!(made.status().is_success(), "a bucket is made: {}", made.status());
        Self { endpoint, name, folder: None, server: None }
    }

    /// A new bucket on a server in this process (s3s-fs: it checks digests).
    pub async fn in_process() -> Self {
        let folder = TempDir::new().expect("a folder");
        std::fs::create_dir(folder.path().join("bucket")).expect("a bucket");
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).expect("a server"));
        let (key, secret) = CREDENTIALS.split_once(':').expect("two words");
        builder.set_auth(SimpleAuth::from_single(key, secret));
        let service = Arc::new(builder.build());
        let answer = move |request: Request| {
            let service = Arc::clone(&service);
            async move {
                match service.call(request.map(s3s::Body::http_body_unsync)).await {
                    Ok(response) => response.map(Body::new),
                    Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:?}")).into_response(),
                }
            }
        };
        let (endpoint, server) = serve(Router::new().fallback(answer)).await;
        Self { endpoint, name: "bucket".to_owned(), folder: Some(folder), server: Some(server) }
    }

    /// The address of a store in it.
    pub fn store_url(&self) -> String {
        self.store_url_through(&self.endpoint)
    }

    /// The address of a store in it, reached through another endpoint.
    pub fn store_url_through(&self, endpoint: &str) -> String {
        format!("s3://{}/a/prefix?endpoint={endpoint}", self.name)
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// What becomes of a request at a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It passes.
    Free,
    /// It is answered 400, which nobody tries again.
    Refused,
    /// It waits until the door is opened.
    Held,
    /// It passes with another last byte.
    Altered,
    /// It passes without its condition, as at a server that knows none.
    Unconditional,
}

/// A door before an S3 server.
pub struct Door {
    /// Where clients knock.
    pub endpoint: String,
    open: watch::Sender<bool>,
    held: watch::Receiver<u32>,
    server: JoinHandle<()>,
}

impl Door {
    /// A door whose rule holds until it is opened.
    pub async fn before(endpoint: &str, rule: fn(&Method, &str) -> Passage) -> Self {
        let (open, opened) = watch::channel(false);
        let (counter, held) = watch::channel(0);
        let (endpoint, counter) = (endpoint.to_owned(), Arc::new(counter));
        let answer = move |request: Request| {
            let (endpoint, counter, mut opened) = (endpoint.clone(), Arc::clone(&counter), opened.clone());
            async move {
                let target = request.uri().path_and_query().map_or("", |target| target.as_str()).to_owned();
                let passage = if *opened.borrow() { Passage::Free } else { rule(request.method(), &target) };
                match passage {
                    Passage::Free | Passage::Altered | Passage::Unconditional => {}
                    Passage::Refused => return StatusCode::BAD_REQUEST.into_response(),
                    Passage::Held => {
                        counter.send_modify(|count| *count += 1);
                        let _open_or_gone = opened.wait_for(|open| *open).await;
                    }
                }
                forward(&endpoint, request, passage).await
            }
        };
        let (endpoint, server) = serve(Router::new().fallback(answer)).await;
        Self { endpoint, open, held, server }
    }

    /// Waits until a request is held.
    pub async fn holds(&mut self) {
        self.held.wait_for(|count| *count > 0).await.expect("the door stands");
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn forward(endpoint: &str, request: Request, passage: Passage) -> Response {
    let (mut parts, body) = request.into_parts();
    let uri: Uri = parts.uri;
    let mut body: Vec<u8> = to_bytes(body, usize::MAX).await.expect("the request's body").into();
    if let (Passage::Altered, Some(last)) = (passage, body.last_mut()) {
        *last ^= 1;
    }
    if passage == Passage::Unconditional {
        parts.headers.remove("if-none-match");
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let mut onward = client().request(parts.method, format!("{endpoint}{target}"));
    for (name, value) in
        parts.headers.iter().filter(|(name, _)| !["content-length", "connection"].contains(&name.as_str()))
    {
        onward = onward.header(name, value); // `host` too: the signature covers it.
    }
    let answer = onward.body(body).send().await.expect("the server behind the door answers");
    let mut response = Response::builder().status(answer.status());
    for (name, value) in answer.headers().iter().filter(|(name, _)| *name != "transfer-encoding") {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.bytes().await.expect("a body"))).expect("a response")
}

async fn serve(router: Router) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    (endpoint, server)
}

fn client() -> reqwest::Client {
    crate::backup_world::http()
}
