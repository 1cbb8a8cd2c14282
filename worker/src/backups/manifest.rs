//! The manifest: what a backup says about itself. It holds no secrets, and all that is needed to restore by hand.

use std::collections::BTreeMap;

use schemas::{AttemptId, EventId, JobId, RunId, Timestamp};
use serde::{Deserialize, Serialize};

use super::MANIFEST;
use super::packing::Measure;
use super::sealing::Encryption;
use crate::databases::DumpFacts;

/// The version of the manifest's form that this binary writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// How a key of data ends.
const PACKED: &str = ".dump.zst";
/// What follows where it is encrypted.
const SEALED: &str = ".age";

/// One backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// [`VERSION`]. Fields may be added within one version.
    pub version: u32,
    /// The database's name in the configuration.
    pub database: String,
    /// What its maker called it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The tier that keeps it, where it is not one of those by time: `before_migration`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    /// What the dump says about itself.
    #[serde(flatten)]
    pub dump: DumpFacts,
    /// The program that wrote this.
    pub written_by: String,
    /// When the dump began: the data is not older.
    pub started_at: Timestamp,
    /// When all was read back and right.
    pub finished_at: Timestamp,
    /// Where and what the bytes are.
    pub data: Data,
    /// The job that made it.
    pub job: JobId,
    /// The attempt of it that did.
    pub attempt: i32,
    /// The event that it was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    /// The run that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// How it is restored with stock programs alone, after the data was fetched into the current folder.
    pub restore_with: Vec<String>,
}

/// The bytes of a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// In the same store.
    pub key: String,
    /// `zstd`, with checksums in its frames.
    pub compression: String,
    /// How what was compressed is encrypted, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<Encryption>,
    /// The dump itself.
    pub plain: Measure,
    /// What lies in the store.
    pub stored: Measure,
}

impl Data {
    /// Packed data under a key.
    pub(crate) fn packed(key: String, plain: Measure, stored: Measure, encryption: Option<Encryption>) -> Self {
        Self { key, compression: "zstd".to_owned(), encryption, plain, stored }
    }
}

impl Manifest {
    /// Reads a manifest; the reason where it cannot be read.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Form {
            version: u32,
        }
        let form: Form =
            serde_json::from_slice(text).map_err(|error| format!("the manifest is not readable: {error}"))?;
        if form.version > VERSION {
            return Err(format!(
                "the manifest was written by a newer nightporter (form {}, this one reads {VERSION}); use that one",
                form.version
            ));
        }
        serde_json::from_slice(text).map_err(|error| format!("the manifest is not readable: {error}"))
    }

    /// Itself, if its data is there in the size that it names.
    pub(super) fn sized_as(self, sizes: &BTreeMap<&str, u64>) -> Result<Self, String> {
        match sizes.get(self.data.key.as_str()) {
            Some(bytes) if *bytes == self.data.stored.bytes => Ok(self),
            Some(bytes) => Err(format!("its data has {bytes} bytes instead of {}", self.data.stored.bytes)),
            None => Err("its data is missing".to_owned()),
        }
    }
}

/// Where the backup of one job lies. The same for all attempts of the job, except that each has data of its own: what a
/// stale attempt still does can't touch what a later one has made.
pub(crate) struct Keys {
    stem: String,
}

impl Keys {
    pub(crate) fn of(database: &str, job: JobId, created_at: Timestamp) -> Self {
        Self { stem: format!("{database}/{}-{job}", created_at.format("%Y/%m/%Y%m%dT%H%M%SZ")) }
    }

    pub(crate) fn manifest(&self) -> String {
        format!("{}{MANIFEST}", self.stem)
    }

    pub(crate) fn data(&self, attempt: AttemptId, sealed: bool) -> String {
        format!("{}.{}{PACKED}{}", self.stem, attempt.number, if sealed { SEALED } else { "" })
    }

    /// What all data of the job begins with.
    pub(crate) fn all_data(&self) -> String {
        format!("{}.", self.stem)
    }
}

/// The part of a key of data that its manifest's key begins with too.
pub(super) fn stem_of_data(key: &str) -> Option<&str> {
    let (stem, attempt) = key.strip_suffix(SEALED).unwrap_or(key).strip_suffix(PACKED)?.rsplit_once('.')?;
    attempt.parse::<u32>().is_ok().then_some(stem)
}

/// The commands, for people whose Nightporter is gone.
pub(crate) fn stock_commands(facts: &DumpFacts, data: &Data) -> Vec<String> {
    let file = data.key.rsplit('/').next().unwrap_or(&data.key);
    let check = format!("echo '{}  {file}' | sha256sum --check", data.stored.sha256);
    let unpacked = match &data.encryption {
        // With the file that age-keygen wrote.
        Some(_) => format!("age --decrypt --identity key.txt {file} | zstd -dc"),
        None => format!("zstd -dc {file}"),
    };
    let restore = match facts.engine.as_str() {
        "sqlite" => {
            vec![format!("{unpacked} > restored.db"), "sqlite3 restored.db 'PRAGMA integrity_check'".into()]
        }
        _ => vec![
            "createdb --template=template0 restored".to_owned(),
            format!(
                "{unpacked} | pg_restore --dbname=restored --single-transaction --exit-on-error --no-owner --no-privileges"
            ),
        ],
    };
    std::iter::once(check).chain(restore).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_name_the_database_the_time_the_job_and_the_attempt() {
        let job: JobId = "0198c0de-0000-7000-8000-000000000001".parse().unwrap();
        let keys = Keys::of("main", job, "2026-11-20T02:00:01Z".parse().unwrap());
        assert_eq!(keys.manifest(), "main/2026/11/20261120T020001Z-0198c0de-0000-7000-8000-000000000001.manifest.json");
        let data = keys.data(AttemptId { job, number: 2 }, false);
        assert_eq!(data, "main/2026/11/20261120T020001Z-0198c0de-0000-7000-8000-000000000001.2.dump.zst");
        assert!(data.starts_with(&keys.all_data()));
        assert_eq!(stem_of_data(&data).map(|stem| format!("{stem}{MANIFEST}")), Some(keys.manifest()));
        let sealed = keys.data(AttemptId { job, number: 2 }, true);
        assert_eq!((sealed.as_str(), stem_of_data(&sealed)), (&*format!("{data}.age"), stem_of_data(&data)));
        assert_eq!(stem_of_data("main/notes.txt"), None);
    }

    #[test]
    fn a_manifest_of_a_newer_form_is_refused_with_what_to_do() {
        let reason = Manifest::parse(br#"{"version": 2, "anything": true}"#).unwrap_err();
        assert!(reason.contains("newer nightporter"), "{reason}");
        assert!(Manifest::parse(b"{").is_err());
    }
}
