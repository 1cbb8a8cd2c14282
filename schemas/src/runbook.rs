//! Runbooks: jobs with `needs` and `if`, with declared inputs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    ApprovalConfig, ApprovalPolicy, Catalog, Condition, NewRun, PlannedJob, Problem, Role, RunId, Template, Timestamp,
    TraceContext, condition::OF_NEEDS,
};

/// A runbook as the configuration file spells it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunbookConfig {
    /// What a run must be given.
    #[serde(default)]
    pub inputs: BTreeMap<String, InputType>,
    /// Its jobs, by name.
    pub jobs: BTreeMap<String, RunbookJobConfig>,
}

/// A job of a runbook as the configuration file spells it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunbookJobConfig {
    /// The job's kind.
    pub job: String,
    /// The jobs that must have ended before it is looked at.
    #[serde(default)]
    pub needs: Vec<String>,
    /// CEL over `inputs`, the outputs of needs (`jobs.plan.pending > 0`), `success()`, `failure()` and `always()`.
    /// Without it, the job runs when every need completed or was skipped by its own `if`.
    #[serde(rename = "if")]
    pub condition: Option<String>,
    /// The job's arguments; texts may hold templates over `inputs`.
    #[serde(default)]
    pub with: Map<String, Value>,
    /// Whose consent it waits for, once its needs have ended.
    #[serde(default)]
    pub approval: Option<ApprovalConfig>,
}

/// What an input may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InputType {
    /// Any text that is not empty.
    String,
    /// A full git commit hash: 40 hexadecimal digits.
    GitSha,
    /// A whole number.
    Integer,
    /// True or false.
    Boolean,
}

impl InputType {
    fn check(self, name: &str, value: &Value) -> Result<(), Problem> {
        let (fits, wanted) = match self {
            Self::String => (value.as_str().is_some_and(|text| !text.is_empty()), "a text that is not empty"),
            Self::GitSha => (value.as_str().is_some_and(is_git_sha), "a full git commit hash (40 hexadecimal digits)"),
            Self::Integer => (value.is_i64() || value.is_u64(), "a whole number"),
            Self::Boolean => (value.is_boolean(), "true or false"),
        };
        if fits { Ok(()) } else { Err(Problem::new(format!("input `{name}` must be {wanted}, not {value}"))) }
    }

    /// Reads a value as the command line gives it.
    pub fn read(self, text: &str) -> Value {
        match self {
            Self::String | Self::GitSha => Value::String(text.to_owned()),
            Self::Integer | Self::Boolean => {
                serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
            }
        }
    }

    fn example(self) -> Value {
        match self {
            Self::String => json!("text"),
            Self::GitSha => json!("0123456789abcdef0123456789abcdef01234567"),
            Self::Integer => json!(1),
            Self::Boolean => json!(true),
        }
    }
}

fn is_git_sha(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A runbook, checked against the catalog.
#[derive(Debug)]
pub struct Runbook {
    name: String,
    inputs: BTreeMap<String, InputType>,
    /// Each after those it needs.
    jobs: Vec<RunbookJob>,
}

#[derive(Debug)]
struct RunbookJob {
    name: String,
    kind: String,
    needs: Vec<String>,
    condition: Option<Condition>,
    approval: Option<ApprovalPolicy>,
    with: Template,
}

/// Who starts a run, what for, and where in a trace.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Start {
    pub actor: Option<String>,
    pub reason: Option<String>,
    pub event: Option<crate::EventId>,
    pub key: Option<crate::Key>,
    pub trace: TraceContext,
}

impl Runbook {
    /// Checks a runbook whole: names, order, conditions, templates, and the arguments of each job with example inputs.
    pub fn build(name: &str, config: &RunbookConfig, catalog: &Catalog) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let order = in_order_of_need(&config.jobs).unwrap_or_else(|found| {
            problems.extend(found);
            config.jobs.keys().cloned().collect()
        });
        let examples = json!({"inputs": examples(&config.inputs)});
        let mut jobs = Vec::new();
        for job_name in order {
            match build_job(&job_name, config, catalog, &examples) {
                Ok(job) => jobs.push(job),
                Err(found) => {
                    problems.extend(found.into_iter().map(|problem| problem.within(&job_name).within("jobs")));
                }
            }
        }
        if config.jobs.is_empty() {
            problems.push(Problem::new("a runbook needs at least one job").within("jobs"));
        }
        if problems.is_empty() {
            Ok(Self { name: name.to_owned(), inputs: config.inputs.clone(), jobs })
        } else {
            Err(problems)
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The inputs that a run must be given.
    pub fn inputs(&self) -> &BTreeMap<String, InputType> {
        &self.inputs
    }

    /// What is wrong with given inputs: all of it, not the first.
    pub fn check_inputs(&self, given: &Map<String, Value>) -> Vec<Problem> {
        let wrong = self.inputs.iter().filter_map(|(name, kind)| kind.check(name, given.get(name)?).err());
        self.check_names(given).into_iter().chain(wrong).collect()
    }

    /// What is wrong with the names of given inputs, whose values are not known yet.
    pub fn check_names(&self, given: &Map<String, Value>) -> Vec<Problem> {
        let unknown = given
            .keys()
            .filter(|name| !self.inputs.contains_key(*name))
            .map(|name| Problem::unknown("input", name, self.inputs.keys().map(String::as_str)));
        let missing = self.inputs.keys().filter(|name| !given.contains_key(*name));
        unknown.chain(missing.map(|name| Problem::new(format!("input `{name}` is missing")))).collect()
    }

    /// Fixes graph and arguments: a run, ready to be stored.
    pub fn plan(
        &self,
        inputs: &Map<String, Value>,
        start: Start,
        catalog: &Catalog,
        now: Timestamp,
    ) -> Result<NewRun, Problem> {
        if let Some(problem) = self.check_inputs(inputs).into_iter().next() {
            return Err(problem);
        }
        let variables = json!({"inputs": inputs});
        let jobs = self.jobs.iter().map(|job| job.plan(&variables, &start, catalog, now));
        Ok(NewRun {
            id: RunId::at(now),
            runbook: self.name.clone(),
            inputs: Value::Object(inputs.clone()),
            jobs: jobs.collect::<Result<_, _>>()?,
            event: start.event,
            actor: start.actor,
            reason: start.reason,
            key: start.key,
            replay_of: None,
            trace: start.trace,
        })
    }
}

impl RunbookJob {
    fn plan(&self, variables: &Value, start: &Start, catalog: &Catalog, now: Timestamp) -> Result<PlannedJob, Problem> {
        let args = self.with.render(variables).map_err(|error| Problem::new(error.to_string()).within(&self.name))?;
        let mut job = catalog.job(&self.kind, &args, now).map_err(|problem| problem.within(&self.name))?;
        job.key = None; // The run holds the key: a job that vanished from its run would leave the others waiting.
        job.approval = ApprovalPolicy::stricter(job.approval.take(), self.approval.clone());
        job.event = start.event;
        job.trace = start.trace.clone();
        Ok(PlannedJob {
            name: self.name.clone(),
            needs: self.needs.clone(),
            condition: self.condition.as_ref().map(|condition| condition.text().to_owned()),
            job,
        })
    }
}

fn build_job(
    name: &str,
    config: &RunbookConfig,
    catalog: &Catalog,
    examples: &Value,
) -> Result<RunbookJob, Vec<Problem>> {
    let job = &config.jobs[name];
    let mut problems = Vec::new();
    if let Err(problem) = catalog.kind(&job.job) {
        problems.push(problem.within("job"));
    }
    let condition = job.condition.as_deref().and_then(|text| match Condition::parse(text) {
        Ok(condition) => {
            let shape = condition_shape(config, &job.needs, catalog);
            problems.extend(condition.check(&shape, &OF_NEEDS).into_iter().map(|problem| problem.within("if")));
            Some(condition)
        }
        Err(problem) => {
            problems.push(problem.within("if"));
            None
        }
    });
    let with = match Template::parse(Value::Object(job.with.clone())) {
        Ok(template) => {
            problems.extend(check_arguments(&template, &job.job, catalog, examples));
            template
        }
        Err(problem) => return Err([problems, vec![problem.within("with")]].concat()),
    };
    if job.approval.as_ref().is_some_and(|approval| approval.role == Role::Viewer) {
        let problem =
            Problem::new("viewers only read: nobody with this role may approve").help("write `operator` or `admin`");
        problems.push(problem.within("role").within("approval"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(RunbookJob {
        name: name.to_owned(),
        kind: job.job.clone(),
        needs: job.needs.clone(),
        condition,
        approval: job.approval.as_ref().map(ApprovalPolicy::from),
        with,
    })
}

/// What is wrong with the arguments that a template renders to, with examples for its variables.
pub fn check_arguments(template: &Template, kind: &str, catalog: &Catalog, examples: &Value) -> Vec<Problem> {
    let mut problems = template.check(examples);
    if problems.is_empty() && catalog.kind(kind).is_ok() {
        match template.render(examples) {
            Ok(args) => problems = catalog.check(kind, &args),
            Err(error) => problems.push(Problem::new(error.to_string())),
        }
    }
    problems.into_iter().map(|problem| problem.within("with")).collect()
}

fn examples(inputs: &BTreeMap<String, InputType>) -> Map<String, Value> {
    inputs.iter().map(|(name, kind)| (name.clone(), kind.example())).collect()
}

/// What an `if` may read: the inputs, and what each need's kind says that it puts out.
fn condition_shape(config: &RunbookConfig, needs: &[String], catalog: &Catalog) -> Value {
    let outputs: Map<String, Value> = needs
        .iter()
        .filter_map(|need| {
            let kind = catalog.kind(&config.jobs.get(need)?.job).ok()?;
            Some((need.clone(), (kind.output)()))
        })
        .collect();
    json!({"inputs": examples(&config.inputs), "jobs": outputs})
}

/// The jobs' names, each after those it needs; what needs itself, or what does not exist, is a problem.
fn in_order_of_need(jobs: &BTreeMap<String, RunbookJobConfig>) -> Result<Vec<String>, Vec<Problem>> {
    let place = |name: &String, problem: Problem| problem.within("needs").within(name).within("jobs");
    let mut problems = Vec::new();
    for (name, job) in jobs {
        let unknown = job.needs.iter().filter(|need| !jobs.contains_key(*need));
        problems
            .extend(unknown.map(|need| place(name, Problem::unknown("job", need, jobs.keys().map(String::as_str)))));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut order: Vec<String> = Vec::new();
    while order.len() < jobs.len() {
        let ready =
            jobs.iter().find(|(name, job)| !order.contains(name) && job.needs.iter().all(|need| order.contains(need)));
        let Some((name, _)) = ready else {
            let circle = jobs.keys().filter(|name| !order.contains(name));
            return Err(circle.map(|name| place(name, Problem::new("this job waits for itself"))).collect());
        };
        order.push(name.clone());
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KindInfo, Names, Priority};

    fn catalog() -> Catalog {
        let kind = KindInfo {
            kind: "plan",
            summary: "",
            queue: "default",
            priority: Priority::Normal,
            schema: || json!({}),
            check: |args, _| if args["ref"].is_string() { vec![] } else { vec![Problem::new("`ref` is missing")] },
            key: |_| None,
            limits: |_| Vec::new(),
            approval: |_| None,
            once: false,
            output: || json!({"pending": null}),
        };
        Catalog::new([kind], Names::default())
    }

    fn config(jobs: Value) -> RunbookConfig {
        serde_json::from_value(json!({"inputs": {"ref": "git-sha"}, "jobs": jobs})).unwrap()
    }

    fn problems(jobs: Value) -> Vec<String> {
        let found = Runbook::build("deploy", &config(jobs), &catalog()).unwrap_err();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_run_is_planned_with_its_arguments_fixed_and_its_jobs_in_order() {
        let jobs = json!({
            "after": {"job": "plan", "needs": ["zero"], "if": "jobs.zero.pending > 0", "with": {"ref": "{{ inputs.ref }}"}},
            "zero": {"job": "plan", "with": {"ref": "x"}},
        });
        let runbook = Runbook::build("deploy", &config(jobs), &catalog()).unwrap();
        let inputs = json!({"ref": "0123456789abcdef0123456789abcdef01234567"});
        let run =
            runbook.plan(inputs.as_object().unwrap(), Start::default(), &catalog(), Timestamp::UNIX_EPOCH).unwrap();
        let names: Vec<&str> = run.jobs.iter().map(|job| job.name.as_str()).collect();
        assert_eq!(names, ["zero", "after"]);
        assert_eq!(run.jobs[1].job.args.get(), r#"{"ref":"0123456789abcdef0123456789abcdef01234567"}"#);
    }

    #[test]
    fn inputs_are_checked_by_name_and_type() {
        let jobs = json!({"plan": {"job": "plan", "with": {"ref": "{{ inputs.ref }}"}}});
        let runbook = Runbook::build("deploy", &config(jobs), &catalog()).unwrap();
        let found = runbook.check_inputs(json!({"rf": "x", "ref": "main"}).as_object().unwrap());
        assert_eq!(found[0].to_string(), "there is no input named `rf` (did you mean `ref`?)");
        assert!(found[1].message.contains("must be a full git commit hash"), "{}", found[1]);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once_with_its_place() {
        assert_eq!(
            problems(json!({
                "a": {"job": "paln", "with": {}},
                "b": {"job": "plan", "needs": ["a"], "if": "jobs.c.pending > 0", "with": {"ref": "{{ input.ref }}"}},
            })),
            [
                "jobs.a.job: there is no job kind named `paln` (did you mean `plan`?)",
                "jobs.b.if: there is no field of `jobs` named `c` (there is no field of `jobs` at all)",
                "jobs.b.with: there is no variable named `input` (did you mean `inputs`?)",
            ]
        );
    }

    #[test]
    fn circles_and_unknown_needs_are_found() {
        let circle = problems(json!({
            "a": {"job": "plan", "needs": ["b"], "with": {"ref": "x"}},
            "b": {"job": "plan", "needs": ["a"], "with": {"ref": "x"}},
        }));
        assert_eq!(circle, ["jobs.a.needs: this job waits for itself", "jobs.b.needs: this job waits for itself"]);
        let unknown = problems(json!({"a": {"job": "plan", "needs": ["z"], "with": {"ref": "x"}}}));
        assert!(unknown[0].starts_with("jobs.a.needs: there is no job named `z`"), "{unknown:?}");
    }
}
