//! What becomes of the jobs of a run that wait, when others have ended. Pure: both engines ask it inside the
//! transaction that ends a job.

use schemas::condition::Needs;
use schemas::{Condition, JobId, JobState, RunState};
use serde_json::{Map, Value, json};

/// One job of a run.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) job: JobId,
    pub(crate) needs: Vec<String>,
    pub(crate) condition: Option<String>,
    pub(crate) state: JobState,
    /// Of a skipped one: whether a failed need is why, and not its own `if`.
    pub(crate) for_failure: bool,
    pub(crate) output: Option<Value>,
}

/// What is to be done with a waiting job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It may run now.
    Admit(JobId),
    /// Its own `if` is false.
    SkipByCondition(JobId, String),
    /// A need of it failed.
    SkipForFailure(JobId, String),
    /// Its `if` could not be evaluated.
    Discard(JobId, String),
}

/// Looks at every waiting job whose needs have all ended. `nodes` are changed as decided, so that what waits for a
/// skipped job is looked at as well.
pub(crate) fn advance(nodes: &mut [Node], inputs: &Value) -> Vec<Decision> {
    let mut decisions = Vec::new();
    while let Some(index) = next_to_look_at(nodes) {
        let decision = decide(index, nodes, inputs);
        let node = &mut nodes[index];
        (node.state, node.for_failure) = match decision {
            Decision::Admit(_) => (JobState::Available, false),
            Decision::SkipByCondition(..) => (JobState::Skipped, false),
            Decision::SkipForFailure(..) => (JobState::Skipped, true),
            Decision::Discard(..) => (JobState::Discarded, false),
        };
        decisions.push(decision);
    }
    decisions
}

/// How the run stands.
pub(crate) fn standing(nodes: &[Node]) -> RunState {
    let any = |state: JobState| nodes.iter().any(|node| node.state == state);
    if nodes.iter().any(|node| !node.state.is_finished()) {
        RunState::Running
    } else if any(JobState::Discarded) {
        RunState::Failed
    } else if any(JobState::Cancelled) {
        RunState::Cancelled
    } else {
        RunState::Completed
    }
}

/// The jobs that were skipped because the given one failed, directly or through others: a retry of it lets them wait
/// again.
pub(crate) fn skipped_because_of(job: JobId, nodes: &[Node]) -> Vec<JobId> {
    let mut failed: Vec<&str> = nodes.iter().filter(|node| node.job == job).map(|node| node.name.as_str()).collect();
    let mut found = Vec::new();
    while let Some(node) = nodes.iter().find(|node| {
        let waits = node.needs.iter().any(|need| failed.contains(&need.as_str()));
        waits && node.state == JobState::Skipped && !found.contains(&node.job)
    }) {
        failed.push(&node.name);
        found.push(node.job);
    }
    found
}

fn next_to_look_at(nodes: &[Node]) -> Option<usize> {
    let ended = |name: &String| nodes.iter().any(|node| node.name == *name && node.state.is_finished());
    nodes.iter().position(|node| node.state == JobState::Pending && node.needs.iter().all(ended))
}

fn decide(index: usize, nodes: &[Node], inputs: &Value) -> Decision {
    let node = &nodes[index];
    let needs: Vec<&Node> = nodes.iter().filter(|other| node.needs.contains(&other.name)).collect();
    let failed = needs.iter().find(|need| has_failed(need));
    let Some(text) = &node.condition else {
        return match failed {
            None => Decision::Admit(node.job),
            Some(need) => {
                let how = if need.state == JobState::Skipped { "was skipped" } else { "failed" };
                Decision::SkipForFailure(node.job, format!("`{}`, which it needs, {how}", need.name))
            }
        };
    };
    let outputs: Map<String, Value> =
        needs.iter().map(|need| (need.name.clone(), need.output.clone().unwrap_or_else(|| json!({})))).collect();
    let variables = json!({"inputs": inputs, "jobs": outputs});
    let condition = Condition::parse(text).map_err(|problem| problem.to_string());
    let answer = condition.and_then(|condition| {
        condition.holds(&variables, Some(Needs { failed: failed.is_some() })).map_err(|error| error.to_string())
    });
    match (answer, failed) {
        (Ok(true), _) => Decision::Admit(node.job),
        (Ok(false), _) => Decision::SkipByCondition(node.job, format!("`{text}` is false")),
        // A condition that reads what a failed need would have put out cannot hold.
        (Err(_), Some(need)) => Decision::SkipForFailure(node.job, format!("`{}`, which it needs, failed", need.name)),
        (Err(error), None) => Decision::Discard(node.job, error),
    }
}

fn has_failed(need: &Node) -> bool {
    match need.state {
        JobState::Discarded | JobState::Cancelled => true,
        JobState::Skipped => need.for_failure,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use schemas::Timestamp;

    use super::*;

    fn node(name: &str, needs: &[&str], condition: Option<&str>, state: JobState) -> Node {
        Node {
            name: name.into(),
            job: JobId::at(Timestamp::UNIX_EPOCH),
            needs: needs.iter().map(ToString::to_string).collect(),
            condition: condition.map(Into::into),
            state,
            for_failure: false,
            output: None,
        }
    }

    /// plan → backup (if something is pending) → migrate → notify (always), as in a deploy.
    fn deploy(plan: JobState, pending: u32) -> Vec<Node> {
        let mut nodes = vec![
            node("plan", &[], None, plan),
            node("backup", &["plan"], Some("jobs.plan.pending > 0"), JobState::Pending),
            node("migrate", &["plan", "backup"], None, JobState::Pending),
            node("notify", &["migrate"], Some("always()"), JobState::Pending),
            node("alarm", &["migrate"], Some("failure()"), JobState::Pending),
        ];
        nodes[0].output = (plan == JobState::Completed).then(|| json!({"pending": pending}));
        nodes
    }

    fn states(nodes: &[Node]) -> Vec<&'static str> {
        nodes.iter().map(|node| node.state.as_str()).collect()
    }

    #[test]
    fn a_job_whose_needs_have_ended_well_is_admitted_and_the_rest_waits() {
        let mut nodes = deploy(JobState::Completed, 2);
        let decisions = advance(&mut nodes, &json!({}));
        assert_eq!(decisions, [Decision::Admit(nodes[1].job)]);
        assert_eq!(states(&nodes), ["completed", "available", "pending", "pending", "pending"]);
    }

    #[test]
    fn what_was_skipped_by_its_own_condition_does_not_stop_those_who_need_it() {
        let mut nodes = deploy(JobState::Completed, 0);
        advance(&mut nodes, &json!({}));
        assert_eq!(states(&nodes), ["completed", "skipped", "available", "pending", "pending"]);
    }

    #[test]
    fn a_failure_skips_what_needs_it_and_lets_in_what_is_for_failures() {
        let mut nodes = deploy(JobState::Discarded, 0);
        let decisions = advance(&mut nodes, &json!({}));
        assert_eq!(states(&nodes), ["discarded", "skipped", "skipped", "available", "available"]);
        assert!(matches!(&decisions[1], Decision::SkipForFailure(_, why) if why == "`plan`, which it needs, failed"));
        let skipped = skipped_because_of(nodes[0].job, &nodes);
        assert_eq!(skipped, [nodes[1].job, nodes[2].job]);
    }

    #[test]
    fn a_condition_that_cannot_be_evaluated_is_a_failure_and_is_said() {
        let mut nodes = deploy(JobState::Completed, 1);
        nodes[0].output = None;
        let decisions = advance(&mut nodes, &json!({}));
        assert!(
            matches!(&decisions[0], Decision::Discard(_, why) if why.contains("jobs.plan.pending")),
            "{decisions:?}"
        );
    }

    #[test]
    fn an_always_job_does_not_turn_a_failed_run_into_a_good_one() {
        let mut nodes = deploy(JobState::Discarded, 0);
        advance(&mut nodes, &json!({}));
        assert_eq!(standing(&nodes), RunState::Running);
        nodes.iter_mut().filter(|node| !node.state.is_finished()).for_each(|node| node.state = JobState::Completed);
        assert_eq!(standing(&nodes), RunState::Failed);
    }

    #[test]
    fn a_run_stands_by_its_worst_job() {
        let of = |states: &[JobState]| {
            standing(&states.iter().map(|state| node("n", &[], None, *state)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[JobState::Completed, JobState::Skipped]), RunState::Completed);
        assert_eq!(of(&[JobState::Completed, JobState::Cancelled]), RunState::Cancelled);
        assert_eq!(of(&[JobState::Cancelled, JobState::Discarded]), RunState::Failed);
        assert_eq!(of(&[JobState::Completed, JobState::Retryable]), RunState::Running);
    }
}
