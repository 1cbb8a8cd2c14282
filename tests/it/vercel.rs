//! Vercel, at a stub of its API: what the client makes of its answers, and the gate.

mod client;
