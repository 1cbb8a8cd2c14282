//! Why a folder is not applied to a database: what a person reads, and what they can do.

use std::collections::BTreeMap;

use crate::databases::Tool;
use crate::migrations::statements::{Shape, shape};
use crate::migrations::{Applied, AppliedState, Engine, Migration, tools};

/// More names than this are counted and not listed.
pub(super) const LISTED: usize = 20;

/// Why a folder may not be applied to a database. Nothing is changed, and a person must look.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// The history has migrations that did not come to their end.
    #[error("{0}")]
    Unfinished(String),
    /// Files were changed after they were applied.
    #[error("{0}")]
    Edited(String),
    /// The history has migrations that the folder lacks, and the folder has some that the history lacks.
    #[error(
        "the histories have diverged: the database has {missing}, which this folder lacks, and this folder has {pending}, \
         which the database lacks; merge the branches and migrate from the merged commit"
    )]
    Diverged {
        /// The names that the folder lacks.
        missing: String,
        /// The names that the history lacks.
        pending: String,
    },
    /// It is not what was planned.
    #[error("{0}; start the run again, so that a new plan is made")]
    NotAsPlanned(String),
}

pub(super) fn refuse_unfinished(
    tool: Tool,
    files: &BTreeMap<&str, &Migration>,
    history: &[Applied],
    engine: Engine,
) -> Result<(), Refusal> {
    let mut found = Vec::new();
    for applied in history {
        let said = match &applied.state {
            AppliedState::Finished(_) => continue,
            AppliedState::Interrupted if may_run_again(files.get(applied.id.as_str()).copied(), engine) => continue,
            AppliedState::Interrupted => "an attempt was interrupted in it",
            AppliedState::Unfinished(said) => said.as_str(),
        };
        // A tool's log may be a page long.
        let said: String = said.trim().chars().take(300).collect();
        found.push(format!("`{}` ({said})", applied.name));
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(Refusal::Unfinished(format!(
        "the history has unfinished migrations: {}; look what of them is in the database, then {}",
        found.join(", "),
        resolve_unfinished(tool)
    )))
}

/// Whether an interrupted file left nothing, or only what the next attempt clears away.
fn may_run_again(file: Option<&Migration>, engine: Engine) -> bool {
    file.is_some_and(|file| shape(&file.sql, file.in_transaction, engine) != Shape::Loose)
}

/// How a person resolves an unfinished migration.
pub(super) fn resolve_unfinished(tool: Tool) -> &'static str {
    match tool {
        Tool::Prisma => {
            "run `prisma migrate resolve --applied NAME` where you completed it by hand, or `prisma migrate resolve \
             --rolled-back NAME` where you took it back, and retry the job"
        }
        Tool::Sqlx => {
            "either complete it by hand and set `success = true` in its row of `_sqlx_migrations`, or take it back and \
             delete the row, and retry the job"
        }
        Tool::Sql => {
            "either complete it by hand and set `finished_at` in its row of `nightporter_migrations`, or take it back and \
             delete the row, and retry the job"
        }
    }
}

pub(super) fn refuse_edited(
    tool: Tool,
    files: &BTreeMap<&str, &Migration>,
    history: &[Applied],
) -> Result<(), Refusal> {
    let same = |file: &Migration, applied: &Applied| {
        file.checksum == applied.checksum || file.also_accepted.contains(&applied.checksum)
    };
    let edited: Vec<&Migration> = history
        .iter()
        .filter(|applied| matches!(applied.state, AppliedState::Finished(_)))
        .filter_map(|applied| files.get(applied.id.as_str()).filter(|file| !same(file, applied)).copied())
        .collect();
    if edited.is_empty() {
        return Ok(());
    }
    let accept = edited.iter().map(|file| match tool {
        Tool::Sql => format!(
            "UPDATE nightporter_migrations SET checksum = '{}' WHERE name = '{}'",
            file.checksum,
            quoted(&file.name)
        ),
        Tool::Sqlx => format!(
            "UPDATE _sqlx_migrations SET checksum = decode('{}', 'hex') WHERE version = {}",
            file.checksum,
            tools::sqlx::version_in(&file.id).unwrap_or_default()
        ),
        Tool::Prisma => format!(
            "UPDATE _prisma_migrations SET checksum = '{}' WHERE migration_name = '{}'",
            file.checksum,
            quoted(&file.name)
        ),
    });
    Err(Refusal::Edited(format!(
        "these files were changed after they were applied: {}; put their old text back and write the change as a new \
         migration, or, where only a comment changed, accept the new text with: {}",
        listed(edited.iter().map(|file| file.name.as_str())),
        accept.collect::<Vec<_>>().join("; ")
    )))
}

fn quoted(text: &str) -> String {
    text.replace('\'', "''")
}

/// Names, for people: all of a few, the first of many.
pub(super) fn listed(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{}`", name.as_ref())).collect();
    match names.len() {
        0..=LISTED => names.join(", "),
        many => format!("{} and {} more", names[..LISTED].join(", "), many - LISTED),
    }
}
