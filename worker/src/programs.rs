//! Programs that `exec` jobs may run: configured by name, so that a job says which and never what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemas::Problem;
use secrets::SecretText;
use serde::Deserialize;

use crate::channels::OnUnknown;

/// No program may run longer.
pub(crate) const LONGEST: Duration = Duration::from_hours(6);

/// No more is kept of what one says.
const LARGEST_OUTPUT: usize = 1024 * 1024;

/// A program as the configuration file spells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramConfig {
    /// Its absolute path, and its arguments.
    pub command: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: BTreeMap<String, SecretText>,
    /// What it gets of this process's environment.
    #[serde(default)]
    pub inherit: Vec<String>,
    /// Where it runs.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// How long it may run.
    #[serde(default = "time_limit", with = "schemas::period")]
    pub time_limit: Duration,
    /// How many bytes of what it says are kept.
    #[serde(default = "output_limit")]
    pub output_limit: usize,
    /// What to do when it was interrupted.
    #[serde(default = "OnUnknown::report")]
    pub on_unknown: OnUnknown,
}

fn time_limit() -> Duration {
    Duration::from_mins(10)
}

fn output_limit() -> usize {
    64 * 1024
}

impl ProgramConfig {
    /// What is wrong with it beyond its types.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match self.command.first() {
            None => problems.push(Problem::new("there is no program in it").within("command")),
            Some(program) if !Path::new(program).is_absolute() => {
                let help = "write where it is, `/usr/local/bin/...`: the PATH of this process is nobody's promise";
                problems.push(Problem::new(format!("`{program}` is no absolute path")).help(help).within("command"));
            }
            Some(_) => {}
        }
        if self.command.iter().any(|argument| argument.contains("${")) {
            let help = "everyone on the machine can read arguments; put it into `env`";
            problems.push(Problem::new("a reference to a secret stands in it").help(help).within("command"));
        }
        let variables =
            self.env.keys().map(|name| (name, "env")).chain(self.inherit.iter().map(|name| (name, "inherit")));
        for (name, place) in variables {
            if name.is_empty() || name.contains(['=', '\0']) {
                problems.push(Problem::new(format!("`{name}` cannot be a variable's name")).within(place));
            }
            if OURS.contains(&name.as_str()) {
                problems.push(Problem::new(format!("`{name}` is set to the job's own")).within(place));
            }
        }
        if self.time_limit > LONGEST {
            problems.push(Problem::new("a program may run for at most 6 hours").within("time_limit"));
        }
        if self.output_limit > LARGEST_OUTPUT {
            problems.push(Problem::new("at most 1048576 bytes are kept").within("output_limit"));
        }
        problems
    }
}

/// The variables that tell a program whose work it does.
pub(crate) const OURS: [&str; 2] = ["NIGHTPORTER_JOB_ID", "NIGHTPORTER_ATTEMPT"];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn problems(config: Value) -> Vec<String> {
        let config: ProgramConfig = serde_json::from_value(config).unwrap();
        config.problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_program_is_named_by_its_absolute_path() {
        assert!(
            problems(json!({"command": ["/bin/true", "-x"], "env": {"A": "${env:B}"}, "inherit": ["PATH"]})).is_empty()
        );
        assert!(problems(json!({"command": []}))[0].contains("no program"));
        assert!(problems(json!({"command": ["true"]}))[0].contains("no absolute path"));
    }

    #[test]
    fn secrets_in_arguments_and_what_cannot_be_set_are_problems() {
        assert!(problems(json!({"command": ["/bin/true", "--key=${env:KEY}"]}))[0].contains("put it into `env`"));
        let found = problems(json!({"command": ["/bin/true"], "env": {"A=B": "x", "NIGHTPORTER_JOB_ID": "x"}}));
        assert_eq!(found.len(), 2, "{found:?}");
        let found = problems(json!({"command": ["/bin/true"], "time_limit": "7h", "output_limit": 9_999_999}));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(serde_json::from_value::<ProgramConfig>(json!({"command": ["/x"], "shell": true})).is_err());
    }
}
