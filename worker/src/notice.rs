//! Who is told about discarded jobs: a `notify` job to one channel, stored in the transaction that discards the job.

use std::sync::Arc;

use queue::NoticeOfDiscard;
use schemas::{Catalog, JobId, NewJob, Problem, Timestamp};
use serde_json::to_value;
use tracing::error;

use crate::channels::message::cut;
use crate::handler::Handler;
use crate::jobs::notify::{DiscardedJob, NOTIFYING, Notify, Template, notifying};

/// Longer errors are cut: the whole one stands in the ledger.
const LONGEST_ERROR: usize = 4_000;

/// Tells the given channel about every discarded job. A message to that channel that is itself discarded is not told
/// about there: it would never end. It stays in the ledger as discarded, and in the log.
pub fn on_discard(channel: &str, catalog: Catalog) -> NoticeOfDiscard {
    let channel = channel.to_owned();
    Arc::new(move |job, kind, error, now| {
        if kind == Notify::KIND && !failed_at_another(&channel, error) {
            error!(job.id = %job, channel, "nobody is told about this discarded notification");
            return None;
        }
        notice(&channel, &catalog, job, kind, error, now)
            .inspect_err(|problem| error!(job.id = %job, %problem, "nobody is told about this discarded job"))
            .ok()
    })
}

/// Whether a message failed at another channel. Each failure of the handler names its channel first; one that names
/// none (a crash, a panic) may be of this channel, and is taken for it.
fn failed_at_another(channel: &str, error: &str) -> bool {
    error.starts_with(NOTIFYING) && !error.starts_with(&notifying(channel))
}

fn notice(
    channel: &str,
    catalog: &Catalog,
    job: JobId,
    kind: &str,
    error: &str,
    now: Timestamp,
) -> Result<NewJob, Problem> {
    let about = DiscardedJob { job, kind: kind.to_owned(), error: cut(error, LONGEST_ERROR) };
    let args =
        Notify { channel: channel.to_owned(), template: Template::Discarded, about: Some(about), ..Notify::default() };
    let args = to_value(&args).map_err(|error| Problem::new(error.to_string()))?;
    catalog.job(Notify::KIND, &args, now)
}

#[cfg(test)]
mod tests {
    use schemas::Names;
    use serde_json::Value;

    use super::*;

    fn notice() -> NoticeOfDiscard {
        let names = Names { channels: ["oncall".to_owned(), "deploys".to_owned()].into(), ..Names::default() };
        on_discard("oncall", crate::jobs::registry().catalog(names))
    }

    fn told(kind: &str, error: &str) -> Option<Value> {
        let job = notice()(JobId::at(Timestamp::UNIX_EPOCH), kind, error, Timestamp::UNIX_EPOCH)?;
        assert_eq!(job.kind, "notify");
        Some(serde_json::from_str(job.args.get()).unwrap())
    }

    #[test]
    fn a_discarded_job_makes_one_message_that_says_what_and_why() {
        let args = told("backup", "the bucket is gone").unwrap();
        assert_eq!(args["channel"], "oncall");
        assert_eq!(args["template"], "discarded");
        assert_eq!(args["about"]["kind"], "backup");
        assert_eq!(args["about"]["error"], "the bucket is gone");
        let cut = told("backup", &"x".repeat(100_000)).unwrap();
        assert!(cut["about"]["error"].as_str().unwrap().len() <= LONGEST_ERROR);
    }

    #[test]
    fn a_message_that_failed_at_the_same_channel_makes_none_and_at_another_one_it_does() {
        assert!(told("notify", "notifying the channel `oncall`: it answered 404").is_none());
        assert!(told("notify", "notifying the channel `deploys`: it answered 404").is_some());
        assert!(told("notify", "its process crashed").is_none());
    }

    #[test]
    fn a_channel_that_is_not_configured_makes_none_and_no_panic() {
        let notice = on_discard("nobody", crate::jobs::registry().catalog(Names::default()));
        assert!(notice(JobId::at(Timestamp::UNIX_EPOCH), "backup", "x", Timestamp::UNIX_EPOCH).is_none());
    }
}
