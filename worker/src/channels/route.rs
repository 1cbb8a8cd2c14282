//! Routers: channels that send nothing themselves, and name the channels that a message goes to by how urgent it is.
//!
//! A router names targets, never another router: so no message goes round in a circle. Each severity must be named, if with
//! nobody: who forgets one has a mistake, and who wants silence writes it.

use std::collections::{BTreeMap, BTreeSet};

use schemas::Problem;
use serde::Deserialize;

use super::config::ChannelConfig;
use super::message::Severity;

/// Whom a router tells: the names of channels, by severity.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Of what somebody must look at now.
    #[serde(alias = "P0")]
    pub critical: BTreeSet<String>,
    /// Of what somebody must look at today.
    #[serde(alias = "P1")]
    pub warning: BTreeSet<String>,
    /// Of what is good to know.
    #[serde(alias = "P2")]
    pub info: BTreeSet<String>,
}

impl Route {
    /// Whom it tells of a message that is so urgent.
    pub fn targets(&self, severity: Severity) -> &BTreeSet<String> {
        match severity {
            Severity::Critical => &self.critical,
            Severity::Warning => &self.warning,
            Severity::Info => &self.info,
        }
    }
}

/// What is wrong with the routers among these channels, `names` being those of all channels, also of such as cannot be read.
pub fn problems(channels: &BTreeMap<String, ChannelConfig>, names: &BTreeSet<String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, config) in channels {
        let Some(route) = &config.route else { continue };
        for (severity, targets) in [("critical", &route.critical), ("warning", &route.warning), ("info", &route.info)] {
            for target in targets {
                let problem = problem_with(target, name, channels, names);
                let place = |problem: Problem| {
                    ["route", name, "channels"].into_iter().fold(problem.within(severity), Problem::within)
                };
                problems.extend(problem.map(place));
            }
        }
    }
    problems
}

fn problem_with(
    target: &str,
    router: &str,
    channels: &BTreeMap<String, ChannelConfig>,
    names: &BTreeSet<String>,
) -> Option<Problem> {
    if target == router {
        return Some(Problem::new(format!("`{router}` would tell itself, without end")).help("name other channels"));
    }
    if !names.contains(target) {
        return Some(Problem::unknown("channel", target, names.iter().map(String::as_str)));
    }
    let is_router = channels.get(target).is_some_and(|config| config.route.is_some());
    is_router.then(|| Problem::new(format!("`{target}` is a router itself")).help("name the channels that it names"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn found(channels: Value) -> Vec<String> {
        let channels: BTreeMap<String, ChannelConfig> = serde_json::from_value(channels).unwrap();
        let names = channels.keys().cloned().collect();
        problems(&channels, &names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_router_names_a_target_for_each_severity_or_nobody() {
        let route: Route =
            serde_json::from_value(json!({"P0": ["pager", "team"], "P1": ["team"], "info": []})).unwrap();
        assert_eq!(route.targets(Severity::Critical).len(), 2);
        assert!(route.targets(Severity::Info).is_empty());
        assert!(serde_json::from_value::<Route>(json!({"critical": [], "warning": []})).is_err(), "info is missing");
        assert!(
            serde_json::from_value::<Route>(json!({"critical": [], "warning": [], "info": [], "eror": []})).is_err()
        );
    }

    #[test]
    fn unknown_names_routers_and_circles_are_found() {
        let channels = json!({
            "team": {"slack": "${env:X}"},
            "a": {"route": {"critical": ["team", "b"], "warning": ["a"], "info": ["taem"]}},
            "b": {"route": {"critical": ["team"], "warning": [], "info": []}},
        });
        assert_eq!(
            found(channels),
            [
                "channels.a.route.critical: `b` is a router itself (name the channels that it names)",
                "channels.a.route.warning: `a` would tell itself, without end (name other channels)",
                "channels.a.route.info: there is no channel named `taem` (did you mean `team`?)",
            ]
        );
    }
}
