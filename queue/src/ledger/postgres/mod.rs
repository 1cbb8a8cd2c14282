//! stub
pub(crate) use super::Sqlite as Postgres;
