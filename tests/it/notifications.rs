//! Notifications: what channels send, what a failed try means, and that a message is neither lost nor doubled.

mod alarms;
mod channels;
mod conformance;
mod grouping;
mod house;
mod jobs;
mod routing;
mod targets;

use serde_json::{Value, json};
use worker::channels::ChannelConfig;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What the Slack URLs of these tests hold, as a real one holds its token.
const CANARY: &str = "T0CANARY-B0CANARY";

fn config(config: Value) -> ChannelConfig {
    serde_json::from_value(config).expect("a channel's configuration")
}

fn slack(receiver: &str) -> Value {
    json!({"slack": format!("{receiver}/services/{CANARY}")})
}

fn webhook(receiver: &str) -> Value {
    json!({"webhook": {"url": format!("{receiver}/hook"), "secret": SECRET}})
}

fn heartbeat(receiver: &str) -> Value {
    json!({"heartbeat": {"url": format!("{receiver}/{CANARY}")}})
}
