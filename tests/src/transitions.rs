//! Watches the states that jobs go through in a ledger, whatever it is asked: triggers in its own database note each.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::JobState;
use schemas::job::TRANSITIONS;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tempfile::TempDir;
use uuid::Uuid;

const SQLITE: &str = "
    create table seen (number integer primary key, job blob not null, state integer not null);
    create trigger job_begins after insert on job begin insert into seen (job, state) values (new.id, new.state); end;
    create trigger job_moves after update of state on job begin insert into seen (job, state) values (new.id, new.state); end;
    create trigger job_ends after insert on history begin insert into seen (job, state) values (new.id, new.state); end;";

const POSTGRES: &str = "
    set search_path = nightporter;
    create table seen (number bigserial primary key, job uuid not null, state smallint not null);
    create function note() returns trigger language plpgsql as
      $$ begin insert into nightporter.seen (job, state) values (new.id, new.state); return null; end $$;
    create trigger job_begins after insert on job for each row execute function note();
    create trigger job_moves after update of state on job for each row execute function note();
    create trigger job_ends after insert on history for each row execute function note();";

/// A ledger that is watched.
pub struct Watch {
    url: String,
    _folder: Option<Arc<TempDir>>,
}

impl Watch {
    /// Begins to watch the ledger at that address.
    pub async fn begin(url: &str, folder: Option<Arc<TempDir>>) -> Self {
        if url.starts_with("sqlite:") {
            let mut ledger = SqliteConnection::connect(url).await.expect("the ledger's file");
            sqlx::raw_sql(SQLITE).execute(&mut ledger).await.expect("triggers");
        } else {
            let mut ledger = PgConnection::connect(url).await.expect("the ledger's database");
            sqlx::raw_sql(POSTGRES).execute(&mut ledger).await.expect("triggers");
        }
        Self { url: url.to_owned(), _folder: folder }
    }

    /// Checks that every job went only ways that there are.
    ///
    /// # Panics
    ///
    /// Where one went another.
    pub async fn verify(&self) {
        let seen: Vec<(Uuid, i16)> = if self.url.starts_with("sqlite:") {
            let mut ledger = SqliteConnection::connect(&self.url).await.expect("the ledger's file");
            let seen = sqlx::query_as("select job, state from seen order by job, number");
            seen.fetch_all(&mut ledger).await.expect("what was seen")
        } else {
            let mut ledger = PgConnection::connect(&self.url).await.expect("the ledger's database");
            let seen = sqlx::query_as("select job, state from nightporter.seen order by job, number");
            seen.fetch_all(&mut ledger).await.expect("what was seen")
        };
        let mut before: Option<(Uuid, JobState)> = None;
        let mut ways = BTreeSet::new();
        for (job, code) in seen {
            let state = JobState::from_code(code).expect("a state");
            let from = before.filter(|(same, _)| *same == job).map(|(_, state)| state);
            if from != Some(state) {
                ways.insert((from, state));
            }
            before = Some((job, state));
        }
        for (from, to) in ways {
            let known = TRANSITIONS.iter().any(|way| way.from == from && way.to == to);
            assert!(known, "a job went from {from:?} to {to:?}, which is no way that there is");
        }
    }
}
