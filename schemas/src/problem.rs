//! What `nightporter check` finds wrong: a place, what is wrong there, and what to write instead.

use std::fmt;

/// One finding about the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path in the configuration file, outermost key first, for example `["runbooks", "deploy", "jobs", "plan"]`.
    pub path: Vec<String>,
    /// What is wrong, as a sentence without its full stop.
    pub message: String,
    /// What to do about it, where that is known.
    pub help: Option<String>,
}

impl Problem {
    /// A finding whose place is not yet known: the callers on the way up name it, innermost first.
    pub fn new(message: impl Into<String>) -> Self {
        Self { path: Vec::new(), message: message.into(), help: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Puts an outer key in front of the path.
    #[must_use]
    pub fn within(mut self, key: impl Into<String>) -> Self {
        self.path.insert(0, key.into());
        self
    }

    /// A name that is not among the known ones, with the nearest of them as help.
    pub fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        let nearest = known
            .iter()
            .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), *candidate))
            .filter(|(likeness, _)| *likeness > 0.5)
            .max_by(|left, right| left.0.total_cmp(&right.0));
        let help = match nearest {
            Some((_, candidate)) => format!("did you mean `{candidate}`?"),
            None if known.is_empty() => format!("there is no {what} at all"),
            None => format!("known: {}", known.join(", ")),
        };
        Self::new(format!("there is no {what} named `{name}`")).help(help)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.join("."))?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, " ({help})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_suggests_the_nearest_one() {
        let problem = Problem::unknown("database", "mian", ["main", "reports"]).within("with");
        assert_eq!(problem.to_string(), "with: there is no database named `mian` (did you mean `main`?)");
    }
}
