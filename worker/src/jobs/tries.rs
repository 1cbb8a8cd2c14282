//! Tries as steps, for effects whose target does not know us: a request that is not answered or a program that is killed
//! may have had its effect or not, and what becomes of that is configured.

use serde::{Deserialize, Serialize};

use crate::channels::OnUnknown;
use crate::context::{Context, OpenStep, Step};
use crate::handler::{Failure, Output};

/// How a try ended, as its step keeps it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ended {
    /// It is done, with this output: never again.
    Done(Output),
    /// It is to be done again, or somebody has to look; that was decided.
    NotDone,
}

/// What a handler finds when it comes to its tries.
pub(super) enum Next<'cx> {
    /// An earlier attempt did it.
    Done(Output),
    /// Do it now.
    Try(Try<'cx>),
}

/// A try that has begun.
pub(super) struct Try<'cx>(OpenStep<'cx>);

/// Goes past the tries that have ended, to the one that is to be made. One that an earlier attempt left open is made
/// again, or given up for a person to look: then whoever retries the job wants it done, and finds a new try.
pub(super) async fn next<'cx>(cx: &'cx Context, name: &str, on_unknown: OnUnknown) -> Result<Next<'cx>, Failure> {
    for number in 1_u32.. {
        match cx.step(&format!("{name} {number}")).await? {
            Step::Finished(Ended::Done(output)) => return Ok(Next::Done(output)),
            Step::Finished(Ended::NotDone) => {}
            Step::Fresh(step) => return Ok(Next::Try(Try(step))),
            Step::Unknown(step) if on_unknown == OnUnknown::Repeat => return Ok(Next::Try(Try(step))),
            Step::Unknown(step) => {
                step.finish(&Ended::NotDone).await?;
                return Err(unknown(cx, "an earlier attempt was interrupted in the middle of it"));
            }
        }
    }
    Err(Failure::Discard(anyhow::anyhow!("it was tried too often")))
}

impl Try<'_> {
    /// It is done.
    pub(super) async fn done(self, output: &Output) -> Result<(), Failure> {
        self.0.finish(&Ended::Done(output.clone())).await
    }

    /// It is to be done again, or not at all.
    pub(super) async fn not_done(self) -> Result<(), Failure> {
        self.0.finish(&Ended::NotDone).await
    }
}

/// Nobody knows whether it was done, and it is not done again.
pub(super) fn unknown(cx: &Context, what: &str) -> Failure {
    let job = cx.job().attempt.job;
    Failure::Discard(anyhow::anyhow!(
        "{what}, and nobody knows whether it had its effect; look there, and if it had none: nightporter jobs retry {job} \
         (`on_unknown = \"repeat\"` would do it again without asking)"
    ))
}
