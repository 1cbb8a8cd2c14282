//! `events`: what senders said.

use clap::Subcommand;
use schemas::EventId;
use schemas::api::{EventView, ReasonRequest, ReplayAnswer};

use super::replay::made;
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{facts, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The newest events.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// One event, with what became of it.
    Show {
        /// Its id.
        id: EventId,
    },
    /// Let a held event have its work after all, by the server's present routes.
    Release {
        /// Its id.
        id: EventId,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
    /// Do what the server's present routes make of an event, although it had its work before.
    Replay {
        /// Its id.
        id: EventId,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let one: EventView = match command {
        Command::List { limit } => {
            let events: Vec<EventView> = client.get(&format!("events?limit={limit}")).await?;
            return global.output().print(&events, |events| rows(events));
        }
        Command::Replay { id, reason } => {
            let answer: ReplayAnswer = client.post(&format!("events/{id}/replay"), &ReasonRequest { reason }).await?;
            return global.output().print(&answer, made);
        }
        Command::Show { id } => client.get(&format!("events/{id}")).await?,
        Command::Release { id, reason } => {
            client.post(&format!("events/{id}/release"), &ReasonRequest { reason }).await?
        }
    };
    global.output().print(&one, details)
}

fn standing(event: &EventView) -> String {
    format!("{:?}", event.standing).to_lowercase()
}

fn rows(events: &[EventView]) -> String {
    let row = |view: &EventView| {
        let work = format!("{} jobs, {} runs", view.jobs.len(), view.runs.len());
        [view.event.id.to_string(), moment(view.received_at), view.event.kind.clone(), standing(view), work]
    };
    table(["ID", "RECEIVED", "TYPE", "STANDING", "WORK"], events.iter().map(row))
}

fn details(view: &EventView) -> String {
    let event = &view.event;
    let data = serde_json::to_string_pretty(&event.data).unwrap_or_default();
    let list = |ids: Vec<String>| (!ids.is_empty()).then(|| ids.join(" "));
    let facts = facts([
        ("id", Some(event.id.to_string())),
        ("type", Some(event.kind.clone())),
        ("source", Some(event.source.clone())),
        ("delivery", Some(event.delivery_id.clone())),
        ("subject", event.subject.clone()),
        ("happened", Some(moment(event.time))),
        ("received", Some(moment(view.received_at))),
        ("standing", Some(standing(view))),
        ("reason", view.reason.clone()),
        ("not routed", list(view.route_errors.clone())),
        ("jobs", list(view.jobs.iter().map(ToString::to_string).collect())),
        ("runs", list(view.runs.iter().map(ToString::to_string).collect())),
    ]);
    format!("{facts}\n\n{data}")
}
