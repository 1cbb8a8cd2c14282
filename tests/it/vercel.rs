//! Vercel, at a stub of its API: what the client makes of its answers, and the gate.

mod answers;
mod client;
mod delivered;
mod gate;
mod interrupted;
mod past_the_gate;
mod rollback;
mod statuses;
