//! What a gate has decided.

use schemas::api::RunView;
use schemas::{JobState, RunId};
use serde::{Deserialize, Serialize};

use crate::migrations::plan::Plan;

/// The word for an answer, as Vercel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::jobs) enum Conclusion {
    /// It may go live.
    Succeeded,
    /// It may not.
    Failed,
    /// It came too late.
    Canceled,
    /// Nothing is said: only of gates that report, and stop nothing.
    Neutral,
}

impl Conclusion {
    pub(in crate::jobs) const fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Neutral => "neutral",
        }
    }
}

/// A decision.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::jobs) struct Verdict {
    pub(in crate::jobs) conclusion: Conclusion,
    /// Why, on one line. It leaves the house, so it holds nothing that a database or a program said.
    pub(in crate::jobs) text: String,
    /// The run that was waited for.
    pub(in crate::jobs) run: Option<RunId>,
    /// Whether people hear of it without this job: from the run's own jobs, or because all is well.
    pub(in crate::jobs) is_told: bool,
    /// Whether somebody else has given the answer already.
    pub(in crate::jobs) is_given: bool,
}

impl Verdict {
    pub(super) fn succeeded(text: impl Into<String>, run: Option<RunId>) -> Self {
        Self { conclusion: Conclusion::Succeeded, text: text.into(), run, is_told: true, is_given: false }
    }

    /// A failure that nobody else tells of.
    pub(super) fn failed(text: impl Into<String>, run: Option<RunId>) -> Self {
        Self { conclusion: Conclusion::Failed, text: text.into(), run, is_told: false, is_given: false }
    }

    pub(super) fn canceled(text: impl Into<String>, run: Option<RunId>) -> Self {
        Self { conclusion: Conclusion::Canceled, ..Self::failed(text, run) }
    }
}

/// The jobs of a run that has not succeeded, for people: by name, without what they said.
pub(super) fn not_done(run: &RunView) -> String {
    let bad = run.jobs.iter().filter(|job| matches!(job.state, JobState::Discarded | JobState::Cancelled));
    let names: Vec<String> = bad.map(|job| format!("`{}` was {}", job.name, job.state.as_str())).collect();
    let what = if names.is_empty() { format!("it is {}", run.state.as_str()) } else { names.join(", ") };
    format!("{what}; why: nightporter runs show {}", run.id)
}

/// A plan of the run whose migrations no job of the run applied; why that is so, for people.
pub(super) fn unapplied(run: &RunView) -> Option<String> {
    let outputs = || run.jobs.iter().filter_map(|job| Some((job, job.output.as_ref()?)));
    let plans = outputs().filter_map(|(_, output)| serde_json::from_value::<Plan>(output.clone()).ok());
    let is_applied = |plan: &Plan| {
        outputs().any(|(job, output)| {
            job.kind == "migrate"
                && job.state == JobState::Completed
                && output["database"] == plan.database
                && output["hash"] == plan.hash
        })
    };
    let open = plans.filter(|plan| plan.pending > 0).find(|plan| !is_applied(plan))?;
    Some(format!("{} migrations of `{}` are pending, and no job of the run applied them", open.pending, open.database))
}

/// The databases that have a newer commit's migrations already.
pub(super) fn superseded(run: &RunView) -> Vec<String> {
    let outputs = run.jobs.iter().filter_map(|job| job.output.as_ref());
    let plans = outputs.filter_map(|output| serde_json::from_value::<Plan>(output.clone()).ok());
    plans.filter(|plan| plan.superseded).map(|plan| plan.database).collect()
}
