//! The limit: verifies a delivery as it must, inserts one row with its body, and answers after the commit. What arrives
//! while a statement runs is inserted by the next one.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use url::Url;
use uuid::Uuid;

use crate::pushes::SECRET;

/// No statement inserts more.
const LARGEST_BATCH: usize = 256;

/// The arguments of the server.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Its database.
    #[arg(long)]
    database: Url,
    /// How many connections insert: two are the fastest on two cores.
    #[arg(long, default_value_t = 2)]
    writers: usize,
    /// Where it listens is written into this file.
    #[arg(long)]
    ready_file: std::path::PathBuf,
}

type Waiting = (Bytes, oneshot::Sender<()>);

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let table = "create table raw (id uuid primary key, body bytea not null);
                 alter table raw alter column body set storage external";
    crate::server::execute(&args.database, table).await?;
    let (give, take) = mpsc::channel(4096);
    let take = Arc::new(Mutex::new(take));
    for _ in 0..args.writers {
        let connection = PgConnection::connect(args.database.as_str()).await?;
        tokio::spawn(write(connection, Arc::clone(&take)));
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    std::fs::write(&args.ready_file, serde_json::json!({"server": listener.local_addr()?}).to_string())?;
    let router = Router::new().route("/webhooks/github", post(accept)).with_state(give);
    Ok(axum::serve(listener, router).await?)
}

async fn accept(State(give): State<mpsc::Sender<Waiting>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    if !is_signed(&headers, &body) {
        return StatusCode::UNAUTHORIZED;
    }
    let (done, is_done) = oneshot::channel();
    let given = give.send((body, done)).await.is_ok();
    if given && is_done.await.is_ok() { StatusCode::ACCEPTED } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn is_signed(headers: &HeaderMap, body: &[u8]) -> bool {
    let signature = headers.get("x-hub-signature-256").and_then(|value| value.to_str().ok()?.strip_prefix("sha256="));
    let Some(signature) = signature.and_then(|signature| hex::decode(signature).ok()) else { return false };
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes());
    mac.is_ok_and(|mac| mac.chain_update(body).verify_slice(&signature).is_ok())
}

async fn write(mut connection: PgConnection, waiting: Arc<Mutex<mpsc::Receiver<Waiting>>>) -> anyhow::Result<()> {
    loop {
        let mut batch = Vec::with_capacity(LARGEST_BATCH);
        if waiting.lock().await.recv_many(&mut batch, LARGEST_BATCH).await == 0 {
            return Ok(());
        }
        let ids: Vec<Uuid> = batch.iter().map(|_| Uuid::now_v7()).collect();
        let bodies: Vec<&[u8]> = batch.iter().map(|(body, _)| &body[..]).collect();
        let insert = "insert into raw select * from unnest($1::uuid[], $2::bytea[])";
        sqlx::query(insert).bind(ids).bind(bodies).execute(&mut connection).await?;
        for (_, done) in batch {
            let _gone_away = done.send(());
        }
    }
}
