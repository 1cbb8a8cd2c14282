//! Pauses of queues, kinds, keys and schedules.

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use queue::ledger::Pausable;
use schemas::Problem;
use schemas::api::{PauseRequest, PauseView, PauseWhat};

use super::auth::Caller;
use super::error::ApiError;
use super::extract::Body;
use super::schedules;
use crate::Console;
use crate::router::Answer;

pub(crate) async fn list(State(console): State<Console>) -> Answer<Vec<PauseView>> {
    Ok(Json(console.queue.ledger().pauses().await?))
}

/// Begins a pause; answers all there are.
pub(crate) async fn pause(
    State(console): State<Console>,
    caller: Caller,
    Body(request): Body<PauseRequest>,
) -> Answer<Vec<PauseView>> {
    let by = caller.because(request.reason)?;
    let what = pausable(request.what, request.name);
    // A pause of what no job names would hold nothing back and look as if it did.
    if let Some(problem) = unknown(&console, &what).await? {
        return Err(ApiError::Wrong(vec![problem]));
    }
    console.queue.pause(&what, &by).await?;
    list(State(console)).await
}

/// Ends a pause; answers those that are left.
pub(crate) async fn resume(
    State(console): State<Console>,
    caller: Caller,
    Body(request): Body<PauseRequest>,
) -> Answer<Vec<PauseView>> {
    let by = caller.because(request.reason)?;
    console.queue.resume(&pausable(request.what, request.name), &by).await?;
    list(State(console)).await
}

fn pausable(what: PauseWhat, name: String) -> Pausable {
    match what {
        PauseWhat::Queue => Pausable::Queue(name),
        PauseWhat::Kind => Pausable::Kind(name),
        PauseWhat::Key => Pausable::Key(name),
        PauseWhat::Schedule => Pausable::Schedule(name),
    }
}

async fn unknown(console: &Console, what: &Pausable) -> Result<Option<Problem>, ApiError> {
    let catalog = &console.catalog;
    Ok(match what {
        Pausable::Kind(kind) => catalog.kind(kind).err(),
        Pausable::Schedule(name) => schedules::find(console, name).err(),
        Pausable::Queue(queue) => {
            let mut known: BTreeSet<String> = catalog.kinds().map(|info| info.queue.to_owned()).collect();
            // Jobs of a kind that another process knows may lie in a queue of its own.
            known.extend(console.queue.ledger().queues().await?.into_iter().map(|view| view.queue));
            let problem = || Problem::unknown("queue", queue, known.iter().map(String::as_str));
            (!known.contains(queue)).then(problem)
        }
        Pausable::Key(key) => {
            let known = catalog.live_keys();
            let problem = Problem::unknown("limit", key, known.iter().map(String::as_str));
            (!known.contains(key)).then(|| {
                let help = problem.help.unwrap_or_default();
                Problem { help: None, ..problem }.help(format!(
                    "{help}; jobs look only at keys that exclude each other or stand under [limits] in the configuration"
                ))
            })
        }
    })
}
