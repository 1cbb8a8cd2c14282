//! The yardstick: rows as large as a job, inserted in the same batches over one connection, and nothing else.

use sqlx::{Connection, PgConnection, SqliteConnection};
use tokio::time::Instant;
use uuid::Uuid;

use super::Plan;
use super::probe::Jobs;
use super::report::Round;
use super::stage::{Engine, Stage};
use crate::failure::Failure;

pub(super) async fn round(plan: &Plan, stage: &Stage) -> Result<Round, Failure> {
    stage.settle().await?;
    let measured = match stage.engine() {
        Engine::Postgres => postgres(plan, stage.url()).await,
        Engine::Sqlite => sqlite(plan, stage.url()).await,
    };
    measured.map_err(|error| Failure::failed(format!("plain rows cannot be inserted: {error}")))
}

fn rows(plan: &Plan) -> (Vec<Uuid>, Vec<String>) {
    let args = Jobs::new(false).next(schemas::Timestamp::UNIX_EPOCH, schemas::TraceContext::default()).args;
    (0..plan.callers).map(|_| (Uuid::now_v7(), args.get().to_owned())).unzip()
}

async fn postgres(plan: &Plan, url: &str) -> Result<Round, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let table = "drop table if exists raw; create table raw (id uuid primary key, args text not null)";
    sqlx::raw_sql(table).execute(&mut connection).await?;
    let meter = plan.watch.start();
    let (mut done, mut took) = (0, Vec::new());
    while done < plan.jobs && meter.began().elapsed() < plan.limit {
        let (ids, args) = rows(plan);
        let began = Instant::now();
        let insert = sqlx::query("insert into raw select * from unnest($1::uuid[], $2::text[])").bind(&ids).bind(&args);
        done += insert.execute(&mut connection).await?.rows_affected();
        took.push(began.elapsed());
    }
    let round = meter.end(done, took);
    connection.close().await?;
    Ok(round)
}

async fn sqlite(plan: &Plan, url: &str) -> Result<Round, sqlx::Error> {
    // A file of its own: the ledger's is locked while it is open.
    let file = format!("{url}.raw?mode=rwc");
    let mut connection = SqliteConnection::connect(&file).await?;
    let table = "pragma journal_mode = wal; pragma synchronous = full; drop table if exists raw;
                 create table raw (id blob primary key, args text not null)";
    sqlx::raw_sql(table).execute(&mut connection).await?;
    let meter = plan.watch.start();
    let (mut done, mut took) = (0, Vec::new());
    while done < plan.jobs && meter.began().elapsed() < plan.limit {
        let (ids, args) = rows(plan);
        let rows: Vec<_> = ids.iter().zip(&args).map(|(id, args)| serde_json::json!([id.simple(), args])).collect();
        let rows = serde_json::Value::from(rows).to_string();
        let began = Instant::now();
        let insert = "insert into raw select unhex(value ->> 0), value ->> 1 from json_each(?)";
        done += sqlx::query(insert).bind(rows).execute(&mut connection).await?.rows_affected();
        took.push(began.elapsed());
    }
    let round = meter.end(done, took);
    connection.close().await?;
    Ok(round)
}
