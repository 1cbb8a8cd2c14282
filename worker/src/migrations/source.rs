//! Where a database's migrations come from: a folder on this machine, or a repository at a commit.

use crate::context::Context;
use crate::databases::MigrationsConfig;
use crate::handler::Failure;
use crate::migrations::folder::{self, SourceFile};
use crate::migrations::github::Repository;

/// How the database's migrations are configured.
pub(crate) fn config<'c>(cx: &'c Context, database: &str) -> Result<&'c MigrationsConfig, Failure> {
    cx.world().database_config(database)?.migrations.as_ref().ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!(
            "the database `{database}` has no `migrations`; add `migrations = {{ tool = ..., path = ... }}` to it"
        ))
    })
}

/// The files, at the commit where they come from a repository.
pub(crate) async fn files(
    cx: &Context,
    database: &str,
    config: &MigrationsConfig,
    commit: Option<&str>,
) -> Result<Vec<SourceFile>, Failure> {
    let Some(name) = &config.repository else { return folder::local(&config.path).await };
    let commit = commit.filter(|commit| is_whole_hash(commit)).ok_or_else(|| {
        Failure::Discard(anyhow::anyhow!(
            "the migrations of `{database}` come from a repository, so `ref` must be a whole commit hash (40 hexadecimal \
             digits), and is {}",
            commit.map_or("missing".to_owned(), |commit| format!("`{commit}`"))
        ))
    })?;
    let needs = format!("the migrations of `{database}` come from a repository");
    let repository = Repository::connect(cx, name, &needs).await?;
    if let Some(branch) = &config.branch {
        repository.refuse_unless_reachable(branch, commit).await?;
    }
    repository.files(commit, &config.path).await
}

/// A SHA-1 or SHA-256 in whole: a shorter one, or a branch, may mean another commit tomorrow.
fn is_whole_hash(commit: &str) -> bool {
    matches!(commit.len(), 40 | 64) && commit.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_hash_names_a_commit_for_ever() {
        assert!(is_whole_hash(&"0a".repeat(20)) && is_whole_hash(&"0a".repeat(32)));
        for other in ["main", "0a0a0a0", &"0A".repeat(20), &"g".repeat(40)] {
            assert!(!is_whole_hash(other), "{other}");
        }
    }
}
