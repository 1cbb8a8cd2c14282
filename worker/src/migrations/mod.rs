//! Migrations of a user's database: folders, histories and plans of the tools that are known.

use async_trait::async_trait;

/// A migration tool's history in one database, under the tool's own lock.
#[async_trait]
pub trait History: Send {}
