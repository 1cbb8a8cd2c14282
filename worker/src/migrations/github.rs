//! A migrations folder at a commit, read through GitHub's REST API (Git database: trees and blobs; compare).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use schemas::Timestamp;
use secrets::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tracing::Instrument;
use url::Url;

use crate::handler::{Failure, OrFail};
use crate::migrations::folder::{LARGEST_FILE, SourceFile, is_read, text_of};
use crate::outside;

/// Each request.
const DEADLINE: Duration = Duration::from_secs(30);

/// Requests under way at once: GitHub asks for few.
const AT_ONCE: usize = 4;

/// A repository at GitHub.
pub struct Repository<'r> {
    /// The client.
    pub http: &'r reqwest::Client,
    /// `https://api.github.com`, or another server's.
    pub api_url: &'r Url,
    /// A token that may read the contents.
    pub token: SecretString,
    /// `owner/name`.
    pub name: &'r str,
    /// The ledger's time, for limits that GitHub gives as a time.
    pub now: Timestamp,
}

#[derive(Deserialize)]
struct Tree {
    tree: Vec<Entry>,
    truncated: bool,
}

#[derive(Deserialize)]
struct Entry {
    path: String,
    mode: String,
    #[serde(rename = "type")]
    kind: String,
    sha: String,
    #[serde(default)]
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Blob {
    content: String,
    encoding: String,
}

#[derive(Deserialize)]
struct Compared {
    status: String,
}

impl Repository<'_> {
    /// The files of the folder at the commit.
    pub async fn files(&self, commit: &str, folder: &str) -> Result<Vec<SourceFile>, Failure> {
        let mut tree = commit.to_owned();
        for segment in folder.split('/').filter(|segment| !segment.is_empty() && *segment != ".") {
            tree = self.subtree(&tree, segment, commit, folder).await?;
        }
        let listing = self.tree(&tree, true, commit).await?;
        let entries = listing.tree.into_iter().filter(|entry| entry.kind != "tree");
        let files = stream::iter(entries.map(|entry| self.file(entry))).buffered(AT_ONCE);
        files.try_collect().await
    }

    /// That the commit is the branch's newest or one of its ancestors.
    pub async fn refuse_unless_reachable(&self, branch: &str, commit: &str) -> Result<(), Failure> {
        let range = format!("{branch}...{commit}");
        let what = format!("comparing the commit {commit} with the branch `{branch}`");
        // One commit of the list, and no files, are enough to be told the status.
        let compared: Compared = self.get(&["compare", &range], "per_page=1", &what).await?;
        if matches!(compared.status.as_str(), "behind" | "identical") {
            return Ok(());
        }
        Err(Failure::Discard(anyhow::anyhow!(
            "the commit {commit} is not on the branch `{branch}` of {} (GitHub says `{}`); merge it first, or change \
             `branch` in the database's migrations",
            self.name,
            compared.status
        )))
    }

    async fn subtree(&self, tree: &str, segment: &str, commit: &str, folder: &str) -> Result<String, Failure> {
        let listing = self.tree(tree, false, commit).await?;
        let found = listing.tree.into_iter().find(|entry| entry.path == segment && entry.kind == "tree");
        found.map(|entry| entry.sha).ok_or_else(|| {
            Failure::Discard(anyhow::anyhow!(
                "{} has no folder `{folder}` at the commit {commit} (`{segment}` is not there); check `path` of the \
                 database's migrations",
                self.name
            ))
        })
    }

    async fn tree(&self, sha: &str, recursive: bool, commit: &str) -> Result<Tree, Failure> {
        let query = if recursive { "recursive=1" } else { "" };
        let what = format!("reading the files of the commit {commit}");
        let tree: Tree = self.get(&["git", "trees", sha], query, &what).await?;
        if tree.truncated {
            return Err(Failure::Discard(anyhow::anyhow!(
                "{} has more files in a folder than GitHub lists in one answer, so that some could be missed; keep the \
                 migrations in a smaller folder",
                self.name
            )));
        }
        Ok(tree)
    }

    async fn file(&self, entry: Entry) -> Result<SourceFile, Failure> {
        let path = entry.path;
        if !is_read(&path) {
            return Ok(SourceFile { path, text: None });
        }
        let refused = |why: &str| Failure::Discard(anyhow::anyhow!("`{path}` in {} {why}", self.name));
        if entry.kind != "blob" || entry.mode == "120000" {
            return Err(refused("is a link, not a file; put the file itself there"));
        }
        if entry.size.is_some_and(|size| size > LARGEST_FILE) {
            return Err(refused("is too large for a migration"));
        }
        let blob: Blob = self.get(&["git", "blobs", &entry.sha], "", &format!("reading `{path}`")).await?;
        if blob.encoding != "base64" {
            return Err(refused("came in an encoding that is not known"));
        }
        let digits: String = blob.content.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(digits).or_retry(&format!("reading `{path}`"))?;
        let text = text_of(&path, bytes).map_err(Failure::discard)?;
        Ok(SourceFile { path, text: Some(text) })
    }

    async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &str, what: &str) -> Result<T, Failure> {
        let mut url = self.api_url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("repos").extend(self.name.split('/')).extend(path);
        }
        url.set_query((!query.is_empty()).then_some(query));
        let request = self
            .http
            .get(url)
            .bearer_auth(self.token.expose_secret())
            .header("accept", "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header("user-agent", "nightporter")
            .timeout(DEADLINE);
        let span = outside::github(self.api_url.host_str());
        let response = request.send().instrument(span).await.or_retry(what)?;
        if response.status().is_success() {
            return response.json().await.or_retry(what);
        }
        Err(self.refusal(response.status(), response.headers()).context(what))
    }

    fn refusal(&self, status: StatusCode, headers: &HeaderMap) -> Failure {
        let limited = status == StatusCode::TOO_MANY_REQUESTS
            || status == StatusCode::FORBIDDEN
                && (headers.contains_key("retry-after") || number(headers, "x-ratelimit-remaining") == Some(0));
        if limited {
            let error = anyhow::anyhow!("GitHub limits this token's requests for now ({status})");
            return Failure::Retry { error, after: Some(self.wait(headers)) };
        }
        let next = match status.as_u16() {
            401 => "the token of `[connections.github]` is not valid; put in a new one and retry the job",
            403 => {
                "the token of `[connections.github]` may not read this repository; give it the right `contents: read`"
            }
            301 | 302 | 307 | 308 => "the repository was renamed or moved; write its new name into `repository`",
            404 | 409 | 422 => {
                "check `repository` and `branch` of the database's migrations, that the commit was pushed, and that the \
                 token may read this repository (GitHub says `not found` where it may not)"
            }
            _ => return Failure::retry(anyhow::anyhow!("GitHub answered {status}")),
        };
        Failure::Discard(anyhow::anyhow!("GitHub answered {status} for {}: {next}", self.name))
    }

    /// What a limit asks for: `retry-after`, or the time when the quota is new; else the minute that GitHub asks for.
    fn wait(&self, headers: &HeaderMap) -> Duration {
        let after = number(headers, "retry-after");
        let reset = number(headers, "x-ratelimit-reset").map(|at| at - self.now.timestamp());
        let seconds = after.or(reset).unwrap_or(60).clamp(1, 3600);
        Duration::from_secs(seconds.unsigned_abs())
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<i64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
