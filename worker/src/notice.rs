//! Who is told about discarded jobs and missed times of schedules: a `notify` job to one channel, stored in the
//! transaction that discards the job or records the times. And who is told when such a job is done after all: the same,
//! stored in the transaction that completes it.

use std::sync::Arc;
use std::time::Duration;

use queue::ledger::Silence;
use queue::{MissedTimes, NoticeOfDiscard, NoticeOfForgetting, NoticeOfMissed, NoticeOfSilence, Waiting};
use schemas::{Catalog, JobId, NewJob, Problem, Timestamp, period};
use serde_json::to_value;
use tracing::error;

use crate::channels::message::cut;
use crate::channels::{Action, Severity};
use crate::handler::Handler;
use crate::jobs::notify::{DiscardedJob, NOTIFYING, Notify, OF_A_FAILED_MESSAGE, Template, notifying};
use crate::ledger_copies::{News, NoticeOfCopies};

/// Longer errors are cut: the whole one stands in the ledger.
const LONGEST_ERROR: usize = 4_000;

/// Two errors that begin alike for so long are taken for the same.
const LONGEST_LIKENESS: usize = 200;

/// Tells the given channel about every discarded job. A message to that channel that is itself discarded is not told
/// about there, and one that tells of a failed message not at all: it would never end. It stays in the ledger as discarded,
/// and in the log.
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

/// Tells the given channel about missed times of schedules.
pub fn on_missed(channel: &str, catalog: Catalog) -> NoticeOfMissed {
    let channel = channel.to_owned();
    Arc::new(move |missed, now| {
        let notify = Notify {
            channel: channel.clone(),
            title: Some(format!("Schedule {} was missed", missed.schedule)),
            text: Some(cut(&words(missed), LONGEST_ERROR)),
            severity: Some(Severity::Warning),
            ..Notify::default()
        };
        made(&notify, &catalog, now)
            .inspect_err(|problem| error!(schedule = missed.schedule, %problem, "nobody is told about missed times"))
            .ok()
    })
}

/// Tells the given channel about sources that have gone silent, and that they speak again: an alarm and its end.
pub fn on_silence(channel: &str, catalog: Catalog) -> NoticeOfSilence {
    let channel = channel.to_owned();
    Arc::new(move |silence, now| {
        let what = match (silence.is_over, silence.is_watched) {
            (false, _) => "has gone silent",
            (true, true) => "speaks again",
            (true, false) => "is not watched any more",
        };
        let notify = Notify {
            channel: channel.clone(),
            title: Some(format!("Source {} {what}", silence.source)),
            text: Some(words_of_silence(silence)),
            severity: Some(Severity::Warning),
            alarm: Some(format!("silent source {}", silence.source)),
            action: Some(if silence.is_over { Action::Resolve } else { Action::Trigger }),
            ..Notify::default()
        };
        made(&notify, &catalog, now)
            .inspect_err(|problem| error!(source = silence.source, %problem, "nobody is told about this silence"))
            .ok()
    })
}

/// Tells the given channel about events that wait for a person, before they are forgotten.
pub fn before_forgetting(channel: &str, catalog: Catalog) -> NoticeOfForgetting {
    let channel = channel.to_owned();
    Arc::new(move |waiting, within, now| {
        let notify = Notify {
            channel: channel.clone(),
            title: Some("Events that wait for you will be forgotten".to_owned()),
            text: Some(words_of(waiting, within)),
            severity: Some(Severity::Warning),
            ..Notify::default()
        };
        made(&notify, &catalog, now)
            .inspect_err(|problem| error!(%problem, "nobody is told about events that will be forgotten"))
            .ok()
    })
}

/// Tells the given channel that the ledger is not copied, and that it is again.
pub fn on_copies(channel: &str, catalog: Catalog) -> NoticeOfCopies {
    let channel = channel.to_owned();
    Arc::new(move |news, now| {
        let (title, text, action) = match news {
            News::Stale { minutes, reason } => (
                "The ledger is not copied",
                format!("Its last copy is {minutes} minutes old: a lost machine would lose what came since. {reason}"),
                Action::Trigger,
            ),
            News::Superseded(claim) => (
                "Two porters go on from one ledger",
                format!(
                    "The machine `{}` recovered this ledger at {}, and this one still runs. It is copied no more. Stop \
                     one of the two.",
                    claim.machine,
                    claim.at.format("%Y-%m-%d %H:%M:%SZ")
                ),
                Action::Trigger,
            ),
            News::Fresh => ("The ledger is copied again", "Its copies are fresh.".to_owned(), Action::Resolve),
        };
        let notify = Notify {
            channel: channel.clone(),
            title: Some(title.to_owned()),
            text: Some(cut(&text, LONGEST_ERROR)),
            // Of the resolve too, so that it goes the way of its trigger.
            severity: Some(Severity::Critical),
            alarm: Some("ledger copies".to_owned()),
            action: Some(action),
            ..Notify::default()
        };
        made(&notify, &catalog, now)
            .inspect_err(|problem| error!(%problem, "nobody is told about the ledger's copies"))
            .ok()
    })
}

fn words_of(waiting: &Waiting, within: Duration) -> String {
    let Waiting { held, quarantined, oldest } = waiting;
    let ids = oldest.iter().map(|id| format!("nightporter events show {id}\n")).collect::<Vec<_>>().concat();
    format!(
        "{held} events are held and {quarantined} are in quarantine, and nobody has looked after them. Within {} the first \
         of them lose what their senders wrote, or go ([queue] keep).\n\nThe oldest:\n{ids}\nA held one has its work by:\n\
         nightporter events release ID --reason '...'",
        period::write(within)
    )
}

/// Makes the job that tells people that a job which was given up is done after all: its id, its kind.
pub type Resolution = Arc<dyn Fn(JobId, &str, Timestamp) -> Option<NewJob> + Send + Sync>;

/// Ends the alarms about discarded jobs that complete when they are retried.
pub fn on_completion(channel: &str, catalog: Catalog) -> Resolution {
    let channel = channel.to_owned();
    Arc::new(move |job, kind, now| {
        made(&Notify::done_after_all(&channel, job, kind), &catalog, now)
            .inspect_err(|problem| error!(job.id = %job, %problem, "nobody is told that this job is done after all"))
            .ok()
    })
}

fn words_of_silence(silence: &Silence) -> String {
    let Silence { source, heard_at, quiet, is_over, is_watched } = silence;
    let said = |moment: &Timestamp| moment.format("%Y-%m-%d %H:%M:%SZ").to_string();
    let heard = heard_at
        .as_ref()
        .map_or_else(|| "It was never heard".to_owned(), |at| format!("It was last heard at {}", said(at)));
    if !is_watched {
        return format!("{heard}. It is not configured any more, or has no `silent_after`.");
    }
    if *is_over {
        return format!("{heard}.");
    }
    let quiet = period::write(Duration::from_secs(quiet.as_secs() / 60 * 60));
    format!(
        "{heard}; for {quiet} nothing came, while somebody listened.\n\nLook at the sender whether the webhook is still there, \
         active, and has the secret that `[sources.{source}]` names; a signature that is wrong is in the log. What it \
         should have sent is found by `nightporter run reconcile`."
    )
}

fn words(missed: &MissedTimes) -> String {
    let MissedTimes { schedule, first, last, times, reason } = missed;
    let said = |moment: &Timestamp| moment.format("%Y-%m-%d %H:%M:%SZ").to_string();
    let when =
        if first == last { said(first) } else { format!("{times} times, from {} to {}", said(first), said(last)) };
    format!("Not done: {when}: {reason}.\n\nTo do it now:\nnightporter schedules run {schedule} --reason '...'")
}

/// Whether a message failed at another channel. Each failure of the handler names its channel first; one that names
/// none (a crash, a panic) may be of this channel, and is taken for it.
fn failed_at_another(channel: &str, error: &str) -> bool {
    let of_a_failed_message = || {
        let behind_the_name = error[NOTIFYING.len()..].split('`').nth(2);
        behind_the_name.is_some_and(|rest| rest.starts_with(OF_A_FAILED_MESSAGE))
    };
    error.starts_with(NOTIFYING) && !error.starts_with(&notifying(channel)) && !of_a_failed_message()
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
    let notify = Notify {
        channel: channel.to_owned(),
        template: Template::Discarded,
        about: Some(about),
        group: Some(format!("discarded {kind}: {}", likeness(error))),
        ..Notify::default()
    };
    made(&notify, catalog, now)
}

fn made(notify: &Notify, catalog: &Catalog, now: Timestamp) -> Result<NewJob, Problem> {
    let args = to_value(notify).map_err(|error| Problem::new(error.to_string()))?;
    catalog.job(Notify::KIND, &args, now)
}

/// What errors have in common that differ in names and numbers: the first line's beginning, each word with a digit in it
/// left out.
fn likeness(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default();
    let is_part = |character: char| character.is_alphanumeric() || "-_.:/".contains(character);
    let mut likeness = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|character| is_part(character) != is_part(first)).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        let has_digit = word.bytes().any(|byte| byte.is_ascii_digit());
        likeness.push_str(if has_digit { "#" } else { word });
        rest = behind;
    }
    cut(&likeness, LONGEST_LIKENESS)
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
    fn errors_that_differ_in_names_and_numbers_alone_are_of_one_group() {
        let group = |kind, error| told(kind, error).unwrap()["group"].clone();
        let one =
            group("backup", "the job 0199-aa of 12 MB failed at db1.internal:5432 (given up after 5 failures)\nx");
        let two =
            group("backup", "the job 0198-bb of 9 MB failed at db2.internal:5433 (given up after 12 failures)\ny");
        assert_eq!(one, two);
        assert_ne!(one, group("restore", "the job 0199-aa of 12 MB failed at db1.internal:5432"));
        assert_ne!(one, group("backup", "the bucket is gone"));
        assert!(group("backup", &"é1 ".repeat(9_000)).as_str().unwrap().len() < 300);
    }

    #[test]
    fn a_message_that_failed_at_the_same_channel_makes_none_and_at_another_one_it_does() {
        assert!(told("notify", "notifying the channel `oncall`: it answered 404").is_none());
        assert!(told("notify", "notifying the channel `deploys`: it answered 404").is_some());
        assert!(told("notify", "its process crashed").is_none());
        assert!(told("notify", "notifying the channel `deploys` of a failed message: it answered 404").is_none());
    }

    #[test]
    fn missed_times_make_one_message_that_says_which_and_what_to_do() {
        let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
        let notice = on_missed("oncall", crate::jobs::registry().catalog(names));
        let missed = MissedTimes {
            schedule: "nightly".into(),
            first: Timestamp::UNIX_EPOCH,
            last: Timestamp::UNIX_EPOCH + chrono::TimeDelta::days(2),
            times: 3,
            reason: "nobody was there".into(),
        };
        let args: Value = serde_json::from_str(notice(&missed, Timestamp::UNIX_EPOCH).unwrap().args.get()).unwrap();
        assert_eq!(args["title"], "Schedule nightly was missed");
        let text = args["text"].as_str().unwrap();
        assert!(
            text.starts_with("Not done: 3 times, from 1970-01-01 00:00:00Z to 1970-01-03 00:00:00Z: nobody"),
            "{text}"
        );
        assert!(text.contains("nightporter schedules run nightly"), "{text}");
    }

    #[test]
    fn a_silence_is_an_alarm_and_its_end_is_the_end_of_that_alarm() {
        let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
        let notice = on_silence("oncall", crate::jobs::registry().catalog(names));
        let mut silence = Silence {
            source: "github".into(),
            heard_at: Some(Timestamp::UNIX_EPOCH),
            quiet: Duration::from_secs(2 * 86_400 + 59),
            is_over: false,
            is_watched: true,
        };
        let told = |silence: &Silence| -> Value {
            serde_json::from_str(notice(silence, Timestamp::UNIX_EPOCH).unwrap().args.get()).unwrap()
        };
        let raised = told(&silence);
        assert_eq!((&raised["title"], &raised["action"]), (&"Source github has gone silent".into(), &"trigger".into()));
        let text = raised["text"].as_str().unwrap();
        assert!(text.starts_with("It was last heard at 1970-01-01 00:00:00Z; for 2d nothing came"), "{text}");
        silence.is_over = true;
        let resolved = told(&silence);
        assert_eq!(resolved["action"], "resolve");
        assert_eq!(raised["alarm"], resolved["alarm"]);
        silence.is_watched = false;
        let left = told(&silence);
        assert_eq!((&left["action"], &left["alarm"]), (&"resolve".into(), &raised["alarm"]));
        assert_eq!(left["title"], "Source github is not watched any more");
    }

    #[test]
    fn what_will_be_forgotten_is_counted_named_and_said_how_to_look_at() {
        let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
        let notice = before_forgetting("oncall", crate::jobs::registry().catalog(names));
        let oldest = vec![schemas::EventId::at(Timestamp::UNIX_EPOCH)];
        let waiting = Waiting { held: 3, quarantined: 2, oldest };
        let job = notice(&waiting, Duration::from_hours(72), Timestamp::UNIX_EPOCH).unwrap();
        let args: Value = serde_json::from_str(job.args.get()).unwrap();
        let text = args["text"].as_str().unwrap();
        assert!(text.starts_with("3 events are held and 2 are in quarantine") && text.contains("Within 3d"), "{text}");
        assert!(text.contains(&format!("nightporter events show {}", waiting.oldest[0])), "{text}");
    }

    #[test]
    fn copies_that_are_too_old_raise_an_alarm_and_fresh_ones_resolve_it() {
        let names = Names { channels: ["oncall".to_owned()].into(), ..Names::default() };
        let notice = on_copies("oncall", crate::jobs::registry().catalog(names));
        let told = |news: &News| -> Value {
            serde_json::from_str(notice(news, Timestamp::UNIX_EPOCH).unwrap().args.get()).unwrap()
        };
        let stale = told(&News::Stale { minutes: 7, reason: "the bucket is gone".into() });
        assert_eq!((&stale["action"], &stale["severity"]), (&Value::from("trigger"), &Value::from("critical")));
        let text = stale["text"].as_str().unwrap();
        assert!(text.contains("7 minutes") && text.contains("the bucket is gone"), "{text}");
        let fresh = told(&News::Fresh);
        assert_eq!((&fresh["action"], &fresh["alarm"]), (&Value::from("resolve"), &stale["alarm"]));
    }

    #[test]
    fn a_channel_that_is_not_configured_makes_none_and_no_panic() {
        let notice = on_discard("nobody", crate::jobs::registry().catalog(Names::default()));
        assert!(notice(JobId::at(Timestamp::UNIX_EPOCH), "backup", "x", Timestamp::UNIX_EPOCH).is_none());
    }
}
