//! A folder on this machine.
//!
//! An object is written to a hidden file beside its place, synced, and moved to its place unless one is there.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use schemas::Timestamp;
use tempfile::NamedTempFile;

use super::{Body, ObjectInfo, Put, Store, Upload, checked};
use crate::handler::{Failure, OrFail};

/// How the hidden files of unfinished uploads end.
const UNFINISHED: &str = ".unfinished";

/// A store in a folder.
pub struct Directory {
    root: PathBuf,
}

impl Directory {
    /// A store in that folder, which is made with the first object.
    pub fn new(folder: &str) -> Result<Self, Failure> {
        let path = folder.strip_prefix("//").unwrap_or(folder);
        match path {
            "" => Err(Failure::Discard(anyhow::anyhow!("the store's address names no folder; write `file:<folder>`"))),
            path => Ok(Self { root: path.into() }),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf, Failure> {
        Ok(self.root.join(checked(key)?))
    }
}

struct FileUpload {
    file: NamedTempFile,
    writer: Arc<fs::File>,
    path: PathBuf,
}

#[async_trait]
impl Store for Directory {
    async fn begin(&self, key: &str, _expected_bytes: u64) -> Result<Box<dyn Upload>, Failure> {
        let path = self.path(key)?;
        let root = self.root.clone();
        let upload = blocking(move || begin(&root, path)).await.or_retry(&format!("beginning to write {key}"))?;
        Ok(Box::new(upload))
    }

    async fn put_if_absent(&self, key: &str, bytes: Bytes) -> Result<Put, Failure> {
        let mut upload = self.begin(key, bytes.len() as u64).await?;
        upload.write(bytes).await?;
        upload.finish().await
    }

    async fn get(&self, key: &str) -> Result<Option<Body>, Failure> {
        match tokio::fs::File::open(self.path(key)?).await {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).or_retry(&format!("opening {key}")),
        }
    }

    async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, Failure> {
        let (path, key) = (self.path(key)?, key.to_owned());
        blocking(move || match fs::metadata(path) {
            Ok(found) => Ok(Some(info(key, &found)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        })
        .await
        .or_retry("looking at a file of the store")
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Failure> {
        let files = self.files(prefix).await?;
        Ok(files.into_iter().filter(|file| !is_unfinished(&file.key)).collect())
    }

    async fn delete(&self, keys: &[String]) -> Result<(), Failure> {
        let paths = keys.iter().map(|key| self.path(key)).collect::<Result<Vec<_>, _>>()?;
        blocking(move || paths.iter().try_for_each(|path| remove(path))).await.or_retry("deleting from the store")
    }

    async fn sweep_uploads(&self, prefix: &str, older_than: Duration, now: Timestamp) -> Result<u64, Failure> {
        let left = self.files(prefix).await?.into_iter().filter(|file| is_unfinished(&file.key));
        let left = left.filter(|file| (now - file.modified).to_std().unwrap_or_default() >= older_than);
        let keys: Vec<String> = left.map(|file| file.key).collect();
        self.delete(&keys).await?;
        Ok(keys.len() as u64)
    }
}

impl Directory {
    /// All files, those of unfinished uploads included, whose keys begin with `prefix`.
    async fn files(&self, prefix: &str) -> Result<Vec<ObjectInfo>, Failure> {
        let (root, prefix) = (self.root.clone(), prefix.to_owned());
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        blocking(move || {
            let mut found = Vec::new();
            walk(&root, &folder, &mut found)?;
            found.retain(|file: &ObjectInfo| aim_of(&file.key).starts_with(&prefix));
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
        .await
        .or_retry("listing the store's folder")
    }
}

#[async_trait]
impl Upload for FileUpload {
    async fn write(&mut self, bytes: Bytes) -> Result<(), Failure> {
        // The page cache takes it; the disk is waited for once, in `finish`.
        let writer = Arc::clone(&self.writer);
        blocking(move || (&*writer).write_all(&bytes)).await.or_retry("writing to the store (is its disk full?)")
    }

    async fn finish(self: Box<Self>) -> Result<Put, Failure> {
        blocking(move || settle(*self)).await.or_retry("finishing a file of the store")
    }

    async fn abort(self: Box<Self>) {
        drop(self.file); // Removes it.
    }
}

fn begin(root: &Path, path: PathBuf) -> io::Result<FileUpload> {
    let folder = path.parent().unwrap_or(root).to_owned();
    fs::create_dir_all(&folder)?;
    // A new folder lasts when its parent is synced.
    for made in folder.ancestors().take_while(|folder| folder.starts_with(root)) {
        fs::File::open(made)?.sync_all()?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(UNFINISHED).tempfile_in(&folder)?;
    let writer = Arc::new(file.as_file().try_clone()?);
    Ok(FileUpload { file, writer, path })
}

fn settle(upload: FileUpload) -> io::Result<Put> {
    upload.file.as_file().sync_all()?;
    let put = match upload.file.persist_noclobber(&upload.path) {
        Ok(_) => Put::Written,
        Err(refused) if refused.error.kind() == io::ErrorKind::AlreadyExists => Put::AlreadyThere,
        Err(refused) => return Err(refused.error),
    };
    fs::File::open(upload.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(put)
}

fn walk(root: &Path, folder: &str, found: &mut Vec<ObjectInfo>) -> io::Result<()> {
    let entries = match fs::read_dir(root.join(folder)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue }; // Not ours: keys are text.
        let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => walk(root, &key, found)?,
            Ok(metadata) => found.push(info(key, &metadata)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // Deleted meanwhile.
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn info(key: String, metadata: &fs::Metadata) -> io::Result<ObjectInfo> {
    Ok(ObjectInfo { key, bytes: metadata.len(), modified: DateTime::<Utc>::from(metadata.modified()?) })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_unfinished(key: &str) -> bool {
    let name = key.rsplit('/').next().unwrap_or(key);
    name.starts_with('.') && name.ends_with(UNFINISHED)
}

/// The key that an unfinished file is to have; a finished file's own.
fn aim_of(key: &str) -> String {
    if !is_unfinished(key) {
        return key.to_owned();
    }
    match key.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/{}", &name[1..]),
        None => key[1..].to_owned(),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}
