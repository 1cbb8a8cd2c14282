//! The `PostgreSQL` server that everything is measured on.

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use url::Url;
use uuid::Uuid;

/// A database of a measurement's own.
pub(crate) struct Database {
    server: Url,
    name: String,
    pub(crate) url: Url,
}

impl Database {
    pub(crate) async fn make(server: &Url) -> anyhow::Result<Self> {
        let name = format!("nightporter_bench_{}", Uuid::new_v4().simple());
        execute(server, &format!("create database {name}")).await?;
        let mut url = server.clone();
        url.set_path(&name);
        Ok(Self { server: server.clone(), name, url })
    }

    /// Has the server write down what earlier measurements left it to write.
    pub(crate) async fn settle(&self) -> anyhow::Result<()> {
        execute(&self.url, "checkpoint").await
    }

    pub(crate) async fn drop(self) -> anyhow::Result<()> {
        execute(&self.server, &format!("drop database {} with (force)", self.name)).await
    }
}

/// Runs statements on a connection of their own.
pub(crate) async fn execute(url: &Url, statements: &str) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(url.as_str()).await?;
    let done = sqlx::raw_sql(AssertSqlSafe(statements.to_owned())).execute(&mut connection).await;
    done.with_context(|| format!("in `{statements}`"))?;
    Ok(connection.close().await?)
}

/// Asks for one number.
pub(crate) async fn number(url: &Url, question: &'static str) -> anyhow::Result<i64> {
    let mut connection = PgConnection::connect(url.as_str()).await?;
    let number = sqlx::query_scalar(question).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(number)
}
