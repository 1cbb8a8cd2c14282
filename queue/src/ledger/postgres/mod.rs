//! stub
pub(crate) use super::sqlite::Sqlite as Postgres;
