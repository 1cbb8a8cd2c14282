//! `exec`: runs a program that the configuration allows.
//!
//! The job's `with` comes to it as JSON on its standard input. It has done its work when it ends with 0; with 75
//! (`EX_TEMPFAIL` of `sysexits.h`) it says that nothing is done yet and asks to be run again, and with any other it has failed
//! for good. A JSON object on the last line of what it puts out is the job's output. It is killed, with its process group,
//! at its time limit, when the job is cancelled, and when the attempt loses its lease or is dropped.
//!
//! Twice is safe: each run is a step. A run that ended by itself is not made again; of one that was interrupted (its
//! worker died, it was killed) nobody knows what is done, and only `on_unknown = "repeat"` in the program's configuration
//! has it run again. It then knows its work by `NIGHTPORTER_JOB_ID`, the same in every run. Retries: 75, a vault that is
//! away, and with `repeat` what interrupted it.

mod run;

use std::time::Duration;

use async_trait::async_trait;
use queue::retry::RetryPolicy;
use schemars::JsonSchema;
use schemas::{Names, Problem};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::{Instrument, info};

use super::tries::{self, Next};
use crate::channels::OnUnknown;
use crate::context::Context;
use crate::handler::{Failure, Handler, Output};
use crate::outside;
use crate::programs::LONGEST;
use run::{Prepared, Said};

/// `EX_TEMPFAIL`: it is to be tried again.
const TRY_AGAIN: i32 = 75;

/// A larger object is left out of the output: outputs are for conditions, not for data.
const LARGEST_OBJECT: usize = 32 * 1024;

/// The arguments of `exec`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exec {
    /// The program's name in the configuration.
    program: String,
    /// What it is given, as JSON on its standard input.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    with: Map<String, Value>,
}

#[async_trait]
impl Handler for Exec {
    const KIND: &'static str = "exec";
    const SUMMARY: &'static str = "runs a program that the configuration allows";
    const RETRY: RetryPolicy = RetryPolicy::PATIENT;
    /// The program's own limit comes before it.
    const TIME_LIMIT: Duration = Duration::from_secs(LONGEST.as_secs() + 15 * 60);

    fn check(&self, names: &Names) -> Vec<Problem> {
        if names.programs.contains(&self.program) {
            return Vec::new();
        }
        let known = names.programs.iter().map(String::as_str);
        vec![Problem::unknown("program", &self.program, known).within("program")]
    }

    async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let config = cx.world().program(&self.program)?;
        let prepared = Prepared::of(&self.program, config, &self.with, cx).await?;
        let step = match tries::next(cx, "run", config.on_unknown).await? {
            Next::Done(output) => return Ok(output),
            Next::Try(step) => step,
        };
        let ended = prepared.run().instrument(outside::exec(&self.program)).await;
        let said = match ended {
            Ok(said) => said,
            Err(failure) => {
                step.not_done().await?; // It never began.
                return Err(failure);
            }
        };
        let program = &self.program;
        match said.code {
            Some(0) => {
                let output = output_of(&said);
                step.done(&output).await?;
                info!(program, complaints = said.complaints_end(), "it did its work");
                Ok(output)
            }
            Some(code) => {
                step.not_done().await?;
                let error = anyhow::anyhow!("the program `{program}` ended with {code}{}", said.words());
                Err(if code == TRY_AGAIN { Failure::retry(error) } else { Failure::Discard(error) })
            }
            None => {
                step.not_done().await?;
                let what = format!("the program `{program}` was killed ({}){}", said.how, said.words());
                Err(match config.on_unknown {
                    OnUnknown::Repeat => Failure::retry(anyhow::anyhow!("{what}; it is run again")),
                    OnUnknown::Report => tries::unknown(cx, &what),
                })
            }
        }
    }
}

/// The object on the last line that is not empty.
fn output_of(said: &Said) -> Output {
    let last = said.output.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if last.len() > LARGEST_OBJECT {
        info!(bytes = last.len(), "its last line is too long for an output and left out");
        return json!({});
    }
    match serde_json::from_str(last) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(text: &str) -> Value {
        output_of(&Said { code: Some(0), how: String::new(), output: text.into(), complaints: String::new() })
    }

    #[test]
    fn an_object_on_the_last_line_is_the_output_and_nothing_else_is() {
        assert_eq!(output("working\n{\"rows\": 3}\n\n"), json!({"rows": 3}));
        for other in ["", "done", "{\"rows\": 3}\ndone", "[1]", "{\"rows\":", "3"] {
            assert_eq!(output(other), json!({}), "{other}");
        }
        assert_eq!(output(&format!("{{\"long\": \"{}\"}}", "x".repeat(LARGEST_OBJECT))), json!({}));
    }

    #[test]
    fn a_program_that_is_not_configured_is_a_problem() {
        let names = Names { programs: ["reindex".to_owned()].into(), ..Names::default() };
        let of = |program: &str| Exec { program: program.into(), with: Map::new() }.check(&names);
        assert!(of("reindex").is_empty());
        assert_eq!(
            of("reindx")[0].to_string(),
            "program: there is no program named `reindx` (did you mean `reindex`?)"
        );
    }
}
