//! A file on this machine, which a program reads at each start or each use: an environment file's value, a certificate's key.
//! Written beside and renamed, so that nobody reads half of it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use schemas::Problem;
use secrets::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Consumer, Publication};
use crate::context::Context;
use crate::handler::{Failure, OrFail};

/// Who may read the file, unless it is there with another mode: its owner.
const PRIVATE: u32 = 0o600;

/// Such a file as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// Where it is, from the root.
    pub path: PathBuf,
    /// The field of the secret that it holds; the whole secret where none is named.
    #[serde(default)]
    pub key: Option<String>,
}

impl FileConfig {
    pub(super) fn problems(&self) -> Vec<Problem> {
        let problem = || Problem::new("write where the file is, from the root").within("path");
        if self.path.is_absolute() { Vec::new() } else { vec![problem()] }
    }
}

/// Keeps that file.
pub(super) struct FileCopy {
    name: String,
    config: FileConfig,
}

impl FileCopy {
    pub(super) fn new(name: &str, config: FileConfig) -> Self {
        Self { name: name.to_owned(), config }
    }

    fn doing(&self, what: &str) -> String {
        format!("{what} {}", self.config.path.display())
    }
}

#[async_trait]
impl Consumer for FileCopy {
    fn name(&self) -> &str {
        &self.name
    }

    async fn publish(&self, _: &Context, publication: &Publication<'_>) -> Result<Value, Failure> {
        let (path, text) = (self.config.path.clone(), publication.text(self.config.key.as_deref())?);
        let written = tokio::task::spawn_blocking(move || write(&path, &text).map(|folder| folder.sync_all())).await;
        let written = written.or_retry("writing a file")?;
        // What is written beside and not renamed changes nothing; and no folder comes by waiting.
        let in_place = written.map_err(|error| Failure::Cancelled(format!("{}: {error}", self.doing("writing"))))?;
        in_place.or_retry(&self.doing("writing"))?;
        Ok(json!({"path": self.config.path}))
    }

    async fn prove(&self, _: &Context, publication: &Publication<'_>, _: &Value) -> Result<(), Failure> {
        let text = publication.text(self.config.key.as_deref())?;
        let found = tokio::fs::read(&self.config.path).await.or_discard(&self.doing("reading"))?;
        if found == text.expose_secret().as_bytes() {
            return Ok(());
        }
        let error = anyhow::anyhow!("{} has been changed since it was written", self.config.path.display());
        Err(Failure::Discard(error))
    }
}

/// Puts the file in its place; the folder, which holds the name and is still to be written to disk.
fn write(path: &Path, text: &SecretString) -> std::io::Result<File> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let handle = File::open(folder)?;
    let mut aside = tempfile::NamedTempFile::new_in(folder)?;
    aside.write_all(text.expose_secret().as_bytes())?;
    let mode = std::fs::metadata(path).map_or(PRIVATE, |there| there.permissions().mode() & 0o777);
    aside.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    aside.as_file().sync_all()?;
    aside.persist(path)?;
    Ok(handle)
}
