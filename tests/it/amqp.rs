//! Messages from and to other programs, by a real RabbitMQ.

mod announcements;
mod binary;
mod intake;
mod ledger;
