//! The HTTP client of the operator commands.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{RequestBuilder, StatusCode};
use schemas::api::ErrorAnswer;
use secrets::{ExposeSecret, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use crate::args::Global;
use crate::config::{Checked, Config};
use crate::failure::{Failure, with_causes};
use crate::rooms;

/// The server answers within its own deadline, or not at all.
const DEADLINE: Duration = Duration::from_secs(40);

/// Speaks to a server's API.
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: SecretString,
}

impl Client {
    /// A client of the server that the command line, the environment or the configuration names.
    pub(crate) async fn open(global: &Global) -> Result<Self, Failure> {
        let config = match &global.server {
            Some(_) => None,
            None => Some(Checked::file(&global.config)?.config()?),
        };
        let base = match (&global.server, &config) {
            (Some(url), _) => url.clone(),
            (None, Some(config)) => operators_url(config)?,
            (None, None) => return Err(Failure::usage("no server is named")),
        };
        let token = token(global, config.as_ref()).await?;
        Ok(Self { http: http_client()?, base, token })
    }

    /// Reads.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.send(self.http.get(self.url(path)?)).await
    }

    /// Does.
    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Failure> {
        self.send(self.http.post(self.url(path)?).json(body)).await
    }

    fn url(&self, path: &str) -> Result<Url, Failure> {
        let base = self.base.as_str().trim_end_matches('/');
        Url::parse(&format!("{base}/api/v1/{path}")).map_err(|error| Failure::usage(format!("{base}: {error}")))
    }

    async fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let sent = request.bearer_auth(self.token.expose_secret()).send().await;
        let response = sent.map_err(|error| unreachable(&self.base, &error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| unreachable(&self.base, &error))?;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                Failure::failed(format!("the server at {} answered what is not understood: {error}", self.base))
                    .help("is it a nightporter of another version, or another program?")
            });
        }
        let said =
            serde_json::from_slice(&body).map_or_else(|_| format!("{status}"), |answer: ErrorAnswer| answer.error);
        Err(refused(status, said))
    }
}

fn unreachable(base: &Url, error: &reqwest::Error) -> Failure {
    let why = with_causes(&error);
    Failure::unavailable(format!("no server answers at {base}: {why}"))
        .help("start one with `nightporter up`, or name it with --server or NIGHTPORTER_SERVER")
}

fn refused(status: StatusCode, said: String) -> Failure {
    match status {
        StatusCode::UNAUTHORIZED => Failure::auth(said).help("give the token with --token-file or NIGHTPORTER_TOKEN"),
        StatusCode::FORBIDDEN => Failure::auth(said),
        StatusCode::NOT_FOUND => Failure::not_found(said),
        StatusCode::CONFLICT => Failure::conflict(said),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE => {
            Failure::usage(said)
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Failure::unavailable(said),
        _ => Failure::failed(said),
    }
}

/// A client for all calls of this process.
pub(crate) fn http_client() -> Result<reqwest::Client, Failure> {
    let client = reqwest::Client::builder().timeout(DEADLINE).connect_timeout(Duration::from_secs(10)).build();
    client.map_err(|error| Failure::failed(format!("cannot make an HTTP client: {}", with_causes(&error))))
}

fn operators_url(config: &Config) -> Result<Url, Failure> {
    let listen = config.operators.listen;
    if listen.port() == 0 {
        return Err(Failure::usage("[operators] listens on any free port, so the configuration does not say which")
            .help("name the server with --server"));
    }
    url_of(listen)
}

/// The address at which a listener on this machine is reached.
pub(crate) fn url_of(mut listen: std::net::SocketAddr) -> Result<Url, Failure> {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() });
    }
    Url::parse(&format!("http://{listen}")).map_err(|error| Failure::usage(format!("{listen}: {error}")))
}

/// The token to show: from --token-file, `NIGHTPORTER_TOKEN`, the configuration, or the file beside the ledger.
async fn token(global: &Global, config: Option<&Config>) -> Result<SecretString, Failure> {
    if let Some(path) = &global.token_file {
        return read_token(path);
    }
    if let Some(token) = std::env::var("NIGHTPORTER_TOKEN").ok().filter(|token| !token.is_empty()) {
        return Ok(token.into());
    }
    let without = || Failure::auth("there is no token to show").help("give it with --token-file or NIGHTPORTER_TOKEN");
    let config = config.ok_or_else(without)?;
    if let Some(token) = &config.operators.token {
        return rooms::resolve(token, &*rooms::resolver(config).await, "[operators] token").await;
    }
    let path = config.queue.ledger.sqlite_path().map(|ledger| token_path(&ledger)).ok_or_else(without)?;
    read_token(&path)
}

fn read_token(path: &std::path::Path) -> Result<SecretString, Failure> {
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|error| {
        Failure::auth(format!("cannot read the token in {}: {error}", path.display()))
            .help("`nightporter up` writes it there; or give it with --token-file or NIGHTPORTER_TOKEN")
    })?;
    Ok(text.trim().into())
}

/// Where the token of an embedded server lies: beside its ledger.
pub(crate) fn token_path(ledger: &std::path::Path) -> PathBuf {
    let mut name = ledger.as_os_str().to_owned();
    name.push(".token");
    name.into()
}
