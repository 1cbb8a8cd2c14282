//! What takes minutes, and servers of its own: run by `tests/run-long`, never by `tests/run`. Each prints how much it did.

mod last_release;
mod postgres_standby;
mod rabbitmq_4;
mod rabbitmq_cluster;
mod teams_world;
