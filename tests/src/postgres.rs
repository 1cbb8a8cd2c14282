//! Databases on the PostgreSQL server that `tests/run` started.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

/// The variable with the server's address: a superuser's, to the database `postgres`.
pub const SERVER: &str = "NIGHTPORTER_TEST_POSTGRES";

/// The address of a new, empty database.
pub async fn fresh_database() -> String {
    let server = crate::server(SERVER);
    let name = format!("test_{}", Uuid::new_v4().simple());
    let mut connection = PgConnection::connect(&server).await.expect("the server answers");
    connection.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("a database is made");
    let mut url = url::Url::parse(&server).expect("an address");
    url.set_path(&name);
    url.into()
}
