//! The plan: what of a folder is not applied yet, and whether it may be.
//!
//! Pending is what is in the folder and not in the history, by name: never what is newer than the newest one applied,
//! because that passes over a migration that was merged late.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::migrations::folder::Folder;
use crate::migrations::refusal::{LISTED, listed, refuse_edited, refuse_unfinished};
use crate::migrations::risk::{self, Judged, Risk};
use crate::migrations::{Applied, AppliedState, Engine, Migration, tools};

pub use crate::migrations::refusal::Refusal;

/// More statements than this a plan does not list; its risk counts all.
const LISTED_STATEMENTS: usize = 50;

/// A plan, as the job `plan` puts it out and `migrate` runs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The database that it is for.
    pub database: String,
    /// The commit that it is of.
    #[serde(rename = "ref")]
    pub commit: Option<String>,
    /// How many migrations are to be applied.
    pub pending: usize,
    /// Their names, in order.
    pub names: Vec<String>,
    /// The worst of its statements.
    pub risk: Risk,
    /// The first of them, judged.
    pub statements: Vec<Judged>,
    /// Of exactly these files upon exactly this history.
    pub hash: String,
    /// Whether a newer commit has been applied already, so that this one has nothing left to do.
    pub superseded: bool,
    /// The migrations that only the newer commit has.
    pub by: Vec<String>,
    /// What is in the folder and is not run, with the reason.
    pub ignored: Vec<String>,
}

/// A folder beside a history.
pub struct Comparison<'f> {
    folder: &'f Folder,
    /// Digests by id, of what is applied.
    applied: BTreeMap<String, String>,
    /// In the folder and not applied, in order.
    pub pending: Vec<&'f Migration>,
    /// Applied and not in the folder: a newer commit's. Empty where the folder has anything that is not applied.
    pub superseded_by: Vec<String>,
    /// Applied, and older than the whole folder: squashed away.
    squashed: Vec<String>,
}

/// What is applied and not in the folder, by name: what came after it, as far as it is finished.
pub fn newer_than(folder: &Folder, history: &[Applied]) -> Vec<String> {
    let files: BTreeSet<&str> = folder.migrations.iter().map(|migration| migration.id.as_str()).collect();
    let (newer, _squashed) = gone(&files, history);
    newer
}

/// The names of what is applied and not in the folder: what is newer than its oldest file, and what is older than all of it,
/// which was squashed away and not made by a newer commit.
fn gone(files: &BTreeSet<&str>, history: &[Applied]) -> (Vec<String>, Vec<String>) {
    let oldest = files.first().copied().unwrap_or_default();
    let finished = history.iter().filter(|applied| matches!(applied.state, AppliedState::Finished(_)));
    let gone = finished.filter(|applied| !files.contains(applied.id.as_str()));
    let (newer, squashed): (Vec<_>, Vec<_>) = gone.partition(|applied| applied.id.as_str() > oldest);
    let names = |of: Vec<&Applied>| of.into_iter().map(|applied| applied.name.clone()).collect();
    (names(newer), names(squashed))
}

impl<'f> Comparison<'f> {
    /// Compares.
    ///
    /// # Errors
    ///
    /// Where the folder may not be applied; every migration that stands in the way is named.
    pub fn of(folder: &'f Folder, history: &[Applied], engine: Engine) -> Result<Self, Refusal> {
        let files: BTreeMap<&str, &Migration> =
            folder.migrations.iter().map(|migration| (migration.id.as_str(), migration)).collect();
        refuse_unfinished(folder.tool, &files, history, engine)?;
        refuse_edited(folder.tool, &files, history)?;
        let finished = history.iter().filter(|applied| matches!(applied.state, AppliedState::Finished(_)));
        let applied: BTreeMap<String, String> =
            finished.map(|applied| (applied.id.clone(), applied.checksum.clone())).collect();
        let pending: Vec<&Migration> =
            folder.migrations.iter().filter(|migration| !applied.contains_key(&migration.id)).collect();
        let (missing, squashed) = gone(&files.keys().copied().collect(), history);
        if !missing.is_empty() && !pending.is_empty() {
            let names = pending.iter().map(|migration| migration.name.as_str());
            return Err(Refusal::Diverged { missing: listed(&missing), pending: listed(names) });
        }
        Ok(Self { folder, applied, pending, superseded_by: missing, squashed })
    }

    /// The plan to apply what is pending.
    pub fn plan(&self, database: &str, commit: Option<&str>, engine: Engine) -> Plan {
        let statements = risk::judge(self.pending.iter().copied(), engine);
        Plan {
            database: database.to_owned(),
            commit: commit.map(str::to_owned),
            pending: self.pending.len(),
            names: self.pending.iter().map(|migration| migration.name.clone()).collect(),
            risk: statements.iter().map(|judged| judged.risk).max().unwrap_or(self.least_risk()),
            statements: statements.into_iter().take(LISTED_STATEMENTS).collect(),
            hash: self.hash(&self.pending, &BTreeSet::new()),
            superseded: !self.superseded_by.is_empty(),
            by: self.superseded_by.clone(),
            ignored: self.ignored(),
        }
    }

    fn ignored(&self) -> Vec<String> {
        let mut ignored = self.folder.ignored.clone();
        if ignored.len() > LISTED {
            let more = ignored.split_off(LISTED).len();
            ignored.push(format!("{more} more files"));
        }
        if !self.squashed.is_empty() {
            ignored.push(format!("{}: applied, and older than the whole folder", listed(&self.squashed)));
        }
        ignored
    }

    fn least_risk(&self) -> Risk {
        if self.pending.is_empty() { Risk::None } else { Risk::Additive }
    }

    /// Whether what is pending is what was planned, or what is left of it: the plan's hash must come out again when
    /// what has been applied of it since is counted as pending.
    pub fn is_as_planned(&self, bound: &Bound) -> Result<(), Refusal> {
        let names: BTreeSet<&str> = bound.names.iter().map(String::as_str).collect();
        if let Some(other) = self.pending.iter().find(|migration| !names.contains(migration.name.as_str())) {
            return Err(Refusal::NotAsPlanned(format!("`{}` is pending and was not when it was planned", other.name)));
        }
        if self.pending.is_empty() {
            return Ok(());
        }
        let planned: Vec<&Migration> =
            self.folder.migrations.iter().filter(|migration| names.contains(migration.name.as_str())).collect();
        let since: BTreeSet<&str> = planned.iter().map(|migration| migration.id.as_str()).collect();
        if self.hash(&planned, &since) == bound.hash {
            return Ok(());
        }
        Err(Refusal::NotAsPlanned("the files or the database's history are not those that were planned for".into()))
    }

    /// Of the given pending migrations upon the history without `since`.
    fn hash(&self, pending: &[&Migration], since: &BTreeSet<&str>) -> String {
        let mut digest = Sha256::new();
        let mut line = |kind: &str, id: &str, checksum: &str| {
            digest.update(format!("{kind} {} {id}{checksum}\n", id.len()));
        };
        line("tool", tools::name(self.folder.tool), "");
        for (id, checksum) in self.applied.iter().filter(|(id, _)| !since.contains(id.as_str())) {
            line("applied", id, checksum);
        }
        for migration in pending {
            line("pending", &migration.id, &migration.checksum);
        }
        hex::encode(digest.finalize())
    }
}

/// What a migrate job has bound itself to: names and hash of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// The plan's names.
    pub names: Vec<String>,
    /// The plan's hash.
    pub hash: String,
}

#[cfg(test)]
mod tests {
    use schemas::Timestamp;

    use super::*;
    use crate::databases::Tool;
    use crate::migrations::folder::SourceFile;

    fn folder(files: &[(&str, &str)]) -> Folder {
        let files: Vec<SourceFile> = files.iter().map(|(path, text)| tools::file(path, text)).collect();
        Folder::of(Tool::Sql, Engine::Postgres, &files).unwrap()
    }

    fn history(folder: &Folder, names: &[&str]) -> Vec<Applied> {
        let of = |name: &&str| {
            let file = folder.migrations.iter().find(|migration| migration.name == *name).unwrap();
            applied(name, &file.checksum, AppliedState::Finished(Timestamp::UNIX_EPOCH))
        };
        names.iter().map(of).collect()
    }

    fn applied(name: &str, checksum: &str, state: AppliedState) -> Applied {
        Applied { id: name.into(), name: name.into(), checksum: checksum.into(), state }
    }

    fn refusal(folder: &Folder, history: &[Applied]) -> String {
        Comparison::of(folder, history, Engine::Postgres).err().expect("it is refused").to_string()
    }

    fn pending(folder: &Folder, history: &[Applied]) -> Vec<String> {
        let comparison = Comparison::of(folder, history, Engine::Postgres).unwrap();
        comparison.pending.iter().map(|migration| migration.name.clone()).collect()
    }

    const THREE: [(&str, &str); 3] = [("1.sql", "a"), ("2.sql", "b"), ("3.sql", "c")];

    #[test]
    fn a_migration_that_was_merged_late_is_pending_although_newer_ones_are_applied() {
        let folder = folder(&THREE);
        assert_eq!(pending(&folder, &history(&folder, &["1.sql", "3.sql"])), ["2.sql"]);
    }

    #[test]
    fn an_edited_file_stops_it_with_the_statement_that_accepts_it() {
        let folder = folder(&THREE);
        let history = [applied("2.sql", "other", AppliedState::Finished(Timestamp::UNIX_EPOCH))];
        let refused = refusal(&folder, &history);
        assert!(refused.contains("changed after they were applied: `2.sql`"), "{refused}");
        assert!(refused.contains("UPDATE nightporter_migrations SET checksum"), "{refused}");
    }

    #[test]
    fn other_line_breaks_are_no_edit() {
        let (unix, windows) = (folder(&[("1.sql", "a\nb\n")]), folder(&[("1.sql", "a\r\nb\r\n")]));
        assert!(pending(&windows, &history(&unix, &["1.sql"])).is_empty());
    }

    #[test]
    fn an_unfinished_migration_stops_it_and_an_interrupted_one_that_left_nothing_does_not() {
        let folder = folder(&[("1.sql", "select 1"), ("2.sql", "-- no-transaction\nvacuum a")]);
        let failed = applied("1.sql", "x", AppliedState::Unfinished("column is missing".into()));
        assert!(refusal(&folder, &[failed]).contains("`1.sql` (column is missing)"));
        assert!(refusal(&folder, &[applied("2.sql", "x", AppliedState::Interrupted)]).contains("`2.sql`"));
        assert!(refusal(&folder, &[applied("gone.sql", "x", AppliedState::Interrupted)]).contains("`gone.sql`"));
        assert_eq!(pending(&folder, &[applied("1.sql", "x", AppliedState::Interrupted)]).len(), 2);
    }

    #[test]
    fn an_older_commit_is_superseded_and_a_diverged_one_is_refused() {
        let newer = folder(&THREE);
        let older = folder(&THREE[..2]);
        let comparison =
            Comparison::of(&older, &history(&newer, &["1.sql", "2.sql", "3.sql"]), Engine::Postgres).unwrap();
        let plan = comparison.plan("main", None, Engine::Postgres);
        assert!(plan.superseded && plan.pending == 0 && plan.risk == Risk::None);
        assert_eq!(plan.by, ["3.sql"]);
        let refused = refusal(&older, &history(&newer, &["1.sql", "3.sql"]));
        assert!(
            refused.contains("diverged") && refused.contains("`3.sql`") && refused.contains("`2.sql`"),
            "{refused}"
        );
    }

    #[test]
    fn what_was_squashed_away_stops_nothing() {
        let old = folder(&THREE);
        let squashed = folder(&[("2.sql", "b"), ("3.sql", "c")]);
        let history = history(&old, &["1.sql", "2.sql"]);
        assert_eq!(pending(&squashed, &history), ["3.sql"]);
        let comparison = Comparison::of(&squashed, &history, Engine::Postgres).unwrap();
        let ignored = comparison.plan("main", None, Engine::Postgres).ignored;
        assert_eq!(ignored, ["`1.sql`: applied, and older than the whole folder"]);
    }

    fn bound(folder: &Folder, history: &[Applied]) -> Bound {
        let comparison = Comparison::of(folder, history, Engine::Postgres).unwrap();
        let plan = comparison.plan("main", None, Engine::Postgres);
        Bound { names: plan.names, hash: plan.hash }
    }

    #[test]
    fn a_plan_holds_while_it_is_being_applied_and_for_nothing_else() {
        let folder = folder(&THREE);
        let bound = bound(&folder, &history(&folder, &["1.sql"]));
        let check = |names: &[&str]| {
            Comparison::of(&folder, &history(&folder, names), Engine::Postgres).unwrap().is_as_planned(&bound)
        };
        assert_eq!(check(&["1.sql"]), Ok(()));
        assert_eq!(check(&["1.sql", "2.sql"]), Ok(()));
        assert_eq!(check(&["1.sql", "2.sql", "3.sql"]), Ok(()));
        assert!(matches!(check(&[]), Err(Refusal::NotAsPlanned(_))));
    }

    #[test]
    fn a_plan_does_not_hold_for_other_texts_or_upon_another_history() {
        let planned = folder(&THREE);
        let bound = bound(&planned, &history(&planned, &["1.sql"]));
        let check = |folder: &Folder, history: &[Applied]| {
            Comparison::of(folder, history, Engine::Postgres).unwrap().is_as_planned(&bound)
        };
        let other_text = folder(&[("1.sql", "a"), ("2.sql", "b"), ("3.sql", "changed")]);
        assert!(check(&other_text, &history(&other_text, &["1.sql"])).is_err());
        let more = folder(&[("1.sql", "a"), ("2.sql", "b"), ("3.sql", "c"), ("4.sql", "d")]);
        assert!(check(&more, &history(&more, &["1.sql"])).is_err());
        assert!(check(&more, &history(&more, &["1.sql", "4.sql"])).is_err());
    }
}
