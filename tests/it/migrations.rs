//! Migrations: the tools' own histories, their locks, GitHub, and the jobs `plan` and `migrate`.

mod github;
mod histories;
mod jobs;
mod locks;
