//! `[amqp]`: messages from and to other programs.

use std::collections::BTreeSet;

use queue::broker::programs;
use schemas::{Catalog, Problem};
use serde::{Deserialize, Deserializer};

use super::sections::{Address, text};

/// Bells ring in queues of this name.
const BELLS: &str = "nightporter.";

/// Names of the broker's own things begin so.
const RESERVED: &str = "amq.";

/// The longest name of a queue or exchange, in bytes: the queue beside it has a longer one.
const LONGEST_NAME: usize = 200;

/// `[amqp]`: the way to other programs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AmqpSection {
    /// `amqp://...`; where nothing is said, the `broker` of `[queue]`.
    #[serde(default, deserialize_with = "address")]
    pub(crate) url: Option<Address>,
    /// Jobs that other programs ask for.
    pub(crate) jobs: Option<JobsSection>,
    /// What is announced to them.
    pub(crate) announcements: Option<AnnouncementsSection>,
}

/// `[amqp.jobs]`: jobs that other programs ask for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobsSection {
    /// The queue that they lay messages into.
    #[serde(default = "inbox")]
    pub(crate) queue: String,
    /// The kinds of jobs that they may ask for.
    pub(crate) kinds: BTreeSet<String>,
}

/// `[amqp.announcements]`: what is announced to other programs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AnnouncementsSection {
    /// The exchange that it is published to.
    exchange: Option<String>,
    /// Whether events carry the senders' own bodies.
    pub(crate) bodies: bool,
    /// Whether the ends of jobs carry what they have put out.
    pub(crate) outputs: bool,
}

impl AnnouncementsSection {
    pub(crate) fn exchange(&self) -> &str {
        self.exchange.as_deref().unwrap_or("nightporter")
    }
}

fn inbox() -> String {
    "nightporter-jobs".into()
}

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Address>, D::Error> {
    text(deserializer).map(Some)
}

impl AmqpSection {
    /// What is wrong with it, beyond its types; `broker` is the one of `[queue]`.
    pub(crate) fn problems(&self, broker: Option<&Address>, catalog: &Catalog) -> Vec<Problem> {
        let mut problems = self.wrong_addresses(broker);
        if self.jobs.is_none() && self.announcements.is_none() {
            let problem = Problem::new("nothing is taken in and nothing is announced");
            problems.push(problem.help("add [amqp.jobs] or [amqp.announcements], or leave [amqp] out"));
        }
        if let Some(jobs) = &self.jobs {
            problems.extend(jobs.problems(catalog).into_iter().map(|problem| problem.within("jobs")));
        }
        if let Some(announcements) = &self.announcements {
            let wrong = wrong_name(announcements.exchange());
            problems.extend(wrong.map(|wrong| Problem::new(wrong).within("exchange").within("announcements")));
        }
        problems
    }

    fn wrong_addresses(&self, broker: Option<&Address>) -> Vec<Problem> {
        let right = "write `url = \"amqp://user:${env:PASSWORD}@host:5672/%2f\"`";
        let Some(url) = &self.url else {
            let in_process = broker.and_then(Address::scheme) == Some("in-process");
            let problem = || Problem::new("`url` is missing: the broker of [queue] is in this process").help(right);
            return in_process.then(problem).into_iter().collect();
        };
        let known = url.scheme().is_none_or(|scheme| matches!(scheme, "amqp" | "amqps"));
        if !known {
            return vec![Problem::new("this is no address of an AMQP server").help(right).within("url")];
        }
        let wrong = url.plain().and_then(|plain| programs::check(plain).err());
        wrong.map(|wrong| Problem::new(wrong.to_string()).within("url")).into_iter().collect()
    }
}

impl JobsSection {
    fn problems(&self, catalog: &Catalog) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.kinds.is_empty() {
            let problem =
                Problem::new("no kind of job may be asked for").help("name those that may: `kinds = [\"backup\"]`");
            problems.push(problem.within("kinds"));
        }
        problems.extend(
            self.kinds.iter().filter_map(|kind| catalog.kind(kind).err()).map(|problem| problem.within("kinds")),
        );
        problems.extend(wrong_name(&self.queue).map(|wrong| Problem::new(wrong).within("queue")));
        if self.queue.starts_with(BELLS) {
            let problem = Problem::new(format!("a queue whose name begins with `{BELLS}` is for bells alone"));
            problems.push(problem.help("take another name").within("queue"));
        }
        problems
    }
}

/// What is wrong with the name of a queue or an exchange.
fn wrong_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("it needs a name".into());
    }
    if name.starts_with(RESERVED) {
        return Some(format!("names that begin with `{RESERVED}` are the broker's own"));
    }
    (name.len() > LONGEST_NAME).then(|| format!("a name has at most {LONGEST_NAME} bytes"))
}
