//! placeholder
#[allow(dead_code)] // Started by the commands, which are on their way.
mod telemetry;

fn main() {}
