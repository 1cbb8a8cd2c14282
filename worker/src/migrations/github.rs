//! A migrations folder at a commit, read through GitHub's REST API (Git database: trees and blobs; compare).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use crate::github::Advice;
pub use crate::github::Repository;
use crate::handler::{Failure, OrFail};
use crate::migrations::folder::{LARGEST_FILE, SourceFile, is_read, text_of};

/// Requests under way at once: GitHub asks for few.
const AT_ONCE: usize = 4;

const ADVICE: Advice = Advice {
    forbidden: "may not read this repository; give it the right `contents: read`",
    check: "check `repository` and `branch` of the database's migrations, that the commit was pushed, and that the token \
            may read this repository (GitHub says `not found` where it may not)",
};

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
        let compared: Compared = self.get(&["compare", &range], "per_page=1", &what, &ADVICE).await?;
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

    /// How a commit stands to another one: `ahead` (a descendant), `identical`, `behind` or `diverged`.
    pub async fn standing_of(&self, base: &str, commit: &str) -> Result<String, Failure> {
        let what = format!("comparing the commit {commit} with {base}");
        let compared: Compared =
            self.get(&["compare", &format!("{base}...{commit}")], "per_page=1", &what, &ADVICE).await?;
        Ok(compared.status)
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
        let tree: Tree = self.get(&["git", "trees", sha], query, &what, &ADVICE).await?;
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
        let blob: Blob = self.get(&["git", "blobs", &entry.sha], "", &format!("reading `{path}`"), &ADVICE).await?;
        if blob.encoding != "base64" {
            return Err(refused("came in an encoding that is not known"));
        }
        let digits: String = blob.content.split_ascii_whitespace().collect();
        let bytes = STANDARD.decode(digits).or_retry(&format!("reading `{path}`"))?;
        let text = text_of(&path, bytes).map_err(Failure::discard)?;
        Ok(SourceFile { path, text: Some(text) })
    }
}
