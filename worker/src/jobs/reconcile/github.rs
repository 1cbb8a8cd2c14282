//! GitHub's deliveries: of those that a webhook made within GitHub's memory (three days; seven on Enterprise Server), the
//! ones whose id the ledger does not know are asked for again, whatever GitHub says became of them. They come by our own
//! door, under the same id.
//!
//! Twice is safe: what is missing is looked up anew, and a delivery that comes twice is one event by its id. How often
//! one was sent stands in GitHub's own list, and each failure doubles the time until it is asked for again: a door that
//! refuses for days is not asked each minute. Retries: GitHub, and its limits as late as it asks.

use std::collections::BTreeMap;
use std::time::Duration;

use queue::clock::later;
use schemars::JsonSchema;
use schemas::{Names, Problem, Timestamp, period};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::info;

use crate::context::{Context, Step};
use crate::github::{Advice, Repository, Sent, status_of, wrong_place};
use crate::handler::{Failure, OrFail, Output};
use crate::rest::query_of;

/// A younger delivery may be on its way, in the spool, or asked for by hand just now.
const SETTLED_AFTER: Duration = Duration::from_mins(2);

/// After its second failure a delivery is asked for again after so long, then after twice as long each time.
const PAUSE: Duration = Duration::from_mins(5);
const LONGEST_PAUSE: Duration = Duration::from_hours(6);

/// So many are asked for in one job: GitHub limits what changes something to some 80 a minute. The next job goes on.
const MOST_ASKED: usize = 60;

/// GitHub's pages have at most so many deliveries.
const PAGE: usize = 100;

/// A webhook with more deliveries than this within the time that is looked back needs a shorter time.
const MOST_PAGES: usize = 300;

/// So many are named in an error.
const NAMED: usize = 3;

const ADVICE: Advice = Advice {
    forbidden: "may not see and repeat the deliveries of webhooks there; give it the right `webhooks: write` (of an \
                organisation: `organization webhooks: write`)",
    check: "check `repository`, `organization` and `hook`, and that the token may administer webhooks there (GitHub says \
            `not found` where it may not)",
};

/// Whose deliveries.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OfGithub {
    /// `owner/name`, whose webhooks they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    /// Or the organisation's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    organization: Option<String>,
    /// The webhook's number; all that lead to this source where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hook: Option<u64>,
    /// The source that they come to.
    #[serde(default = "source")]
    pub(super) source: String,
    /// How far it looks back.
    #[serde(default = "within", with = "period")]
    #[schemars(with = "String")]
    within: Duration,
    /// From when on they are wanted, in place of when the source was first listened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<Timestamp>,
}

fn source() -> String {
    "github".to_owned()
}

fn within() -> Duration {
    Duration::from_hours(72)
}

#[derive(Debug, Deserialize)]
struct Hook {
    id: u64,
    active: bool,
    config: HookConfig,
}

#[derive(Debug, Deserialize)]
struct HookConfig {
    #[serde(default)]
    url: Option<String>,
}

/// One time that GitHub sent a delivery.
#[derive(Debug, Deserialize)]
struct Attempt {
    id: u64,
    /// The delivery's id, the same each time: `x-github-delivery`.
    guid: String,
    delivered_at: Timestamp,
    status: String,
    status_code: i64,
    event: String,
}

/// A delivery that the ledger does not have.
#[derive(Debug)]
struct Missing {
    times: u32,
    last: Attempt,
}

/// What a webhook's deliveries came to.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Tally {
    looked_at: usize,
    missing: usize,
    /// Asked for now.
    asked: usize,
    /// Asked for later.
    waiting: usize,
    /// Asked for again now, though that did not help before; the first of them, in words.
    failing: usize,
    named: Vec<String>,
    /// GitHub does not have them any more.
    lost: usize,
}

impl OfGithub {
    pub(super) fn check(&self, names: &Names) -> Vec<Problem> {
        let mut problems = super::check(&self.source, self.within, names);
        problems.extend(wrong_place(self.repository.as_deref(), self.organization.as_deref()));
        problems
    }

    pub(super) async fn run(&self, cx: &Context) -> Result<Output, Failure> {
        let name = self.repository.as_deref().or(self.organization.as_deref()).unwrap_or_default();
        let github = Repository::connect(cx, name, "the deliveries of GitHub's webhooks are looked up").await?;
        let horizon = super::horizon(cx, &self.source, self.within, self.from).await?;
        let hooks = self.hooks(&github).await?;
        let mut all = Tally::default();
        for hook in &hooks {
            all.add(self.of_hook(cx, &github, *hook, horizon).await?);
        }
        if all.failing + all.lost > 0 {
            return Err(self.trouble(&all));
        }
        Ok(super::ended(json!({
            "hooks": hooks.len(), "looked_at": all.looked_at, "missing": all.missing, "asked": all.asked,
            "waiting": all.waiting,
        })))
    }

    /// The webhooks that lead to this source.
    async fn hooks(&self, github: &Repository<'_>) -> Result<Vec<u64>, Failure> {
        let hooks: Vec<Hook> = match self.hook {
            Some(id) => {
                vec![github.get(&["hooks", &id.to_string()], "", "looking at the webhook", &ADVICE).await?]
            }
            None => github.get(&["hooks"], "per_page=100", "listing the webhooks", &ADVICE).await?,
        };
        let end = format!("/webhooks/{}", self.source);
        let leads_here = |hook: &Hook| {
            let url = hook.config.url.as_deref().and_then(|url| url::Url::parse(url).ok());
            url.is_some_and(|url| url.path().trim_end_matches('/').ends_with(&end))
        };
        let ours: Vec<&Hook> = hooks.iter().filter(|hook| self.hook.is_some() || leads_here(hook)).collect();
        if ours.is_empty() {
            return Err(Failure::Discard(anyhow::anyhow!(
                "no webhook of {} leads to `{end}`; make one there, or name it by `hook`",
                github.name
            )));
        }
        if let Some(off) = ours.iter().find(|hook| !hook.active) {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the webhook {} of {} is switched off at GitHub: nothing comes from it, and nothing is kept to be sent \
                 again; switch it on",
                off.id,
                github.name
            )));
        }
        Ok(ours.iter().map(|hook| hook.id).collect())
    }

    async fn of_hook(
        &self,
        cx: &Context,
        github: &Repository<'_>,
        hook: u64,
        horizon: Timestamp,
    ) -> Result<Tally, Failure> {
        // A stale attempt asks for nothing; one that was interrupted looks again.
        match cx.step::<Tally>(&format!("redeliver {hook}")).await? {
            Step::Finished(tally) => Ok(tally),
            Step::Fresh(step) | Step::Unknown(step) => {
                let hook = hook.to_string();
                let (looked_at, missing) = self.missing(cx, github, &hook, horizon).await?;
                let mut tally = Tally { looked_at, missing: missing.len(), ..Tally::default() };
                for delivery in missing.values() {
                    tally.ask_again(cx.now(), github, &hook, delivery).await?;
                }
                step.finish(&tally).await?;
                Ok(tally)
            }
        }
    }

    /// How many deliveries a webhook made since then, and those that the ledger does not know, by their time.
    async fn missing(
        &self,
        cx: &Context,
        github: &Repository<'_>,
        hook: &str,
        horizon: Timestamp,
    ) -> Result<(usize, BTreeMap<(Timestamp, String), Missing>), Failure> {
        let mut made: BTreeMap<String, Missing> = BTreeMap::new();
        let mut cursor: Option<String> = None;
        for _ in 0..MOST_PAGES {
            let query = query(cursor.as_deref());
            let path = ["hooks", hook, "deliveries"];
            let what = "listing the deliveries of a webhook";
            let (page, next): (Vec<Attempt>, _) = github.get_page(&path, &query, what, &ADVICE).await?;
            // The newest come first.
            let ends = page.last().is_none_or(|oldest| oldest.delivered_at < horizon);
            for attempt in page.into_iter().filter(|attempt| attempt.delivered_at >= horizon) {
                match made.get_mut(&attempt.guid) {
                    Some(known) => known.times += 1,
                    None => drop(made.insert(attempt.guid.clone(), Missing { times: 1, last: attempt })),
                }
            }
            cursor = next;
            if ends || cursor.is_none() {
                return Ok((made.len(), self.unknown(cx, made).await?));
            }
        }
        Err(Failure::Discard(anyhow::anyhow!(
            "the webhook {hook} made more than {} deliveries within {}; look back less far, more often (`within`)",
            MOST_PAGES * PAGE,
            period::write(self.within)
        )))
    }

    /// Those that the ledger does not know.
    async fn unknown(
        &self,
        cx: &Context,
        mut made: BTreeMap<String, Missing>,
    ) -> Result<BTreeMap<(Timestamp, String), Missing>, Failure> {
        let ids: Vec<String> = made.keys().cloned().collect();
        for some in ids.chunks(PAGE) {
            let known = cx.queue().ledger().known(&self.source, some).await.or_retry("looking up deliveries")?;
            made.retain(|id, _| !known.contains(id));
        }
        Ok(made.into_iter().map(|(id, missing)| ((missing.last.delivered_at, id), missing)).collect())
    }

    fn trouble(&self, tally: &Tally) -> Failure {
        let Tally { failing, lost, named, .. } = tally;
        let named = named.join(", ");
        Failure::Discard(if *lost > 0 {
            anyhow::anyhow!(
                "{lost} deliveries of GitHub are lost: they never arrived, and GitHub does not have them any more ({named}); \
                 look there what they would have started"
            )
        } else {
            anyhow::anyhow!(
                "{failing} deliveries of GitHub did not arrive when they were asked for again ({named}); see that \
                 `/webhooks/{}` can be reached from outside and has the webhook's secret. They are asked for again until \
                 GitHub forgets them",
                self.source
            )
        })
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.looked_at += other.looked_at;
        self.missing += other.missing;
        self.asked += other.asked;
        self.waiting += other.waiting;
        self.failing += other.failing;
        self.lost += other.lost;
        self.named.extend(other.named);
        self.named.truncate(NAMED);
    }

    fn name(&mut self, attempt: &Attempt) {
        if self.named.len() < NAMED {
            let Attempt { event, guid, status, status_code, .. } = attempt;
            self.named.push(format!("{event} {guid}: {status_code} {status}"));
        }
    }

    async fn ask_again(
        &mut self,
        now: Timestamp,
        github: &Repository<'_>,
        hook: &str,
        missing: &Missing,
    ) -> Result<(), Failure> {
        let Missing { times, last } = missing;
        if later(last.delivered_at, pause(*times)) > now || self.asked >= MOST_ASKED {
            self.waiting += 1;
            return Ok(());
        }
        let path = ["hooks", hook, "deliveries", &last.id.to_string(), "attempts"];
        match github.post(&path, &json!({}), "asking for a delivery again", &ADVICE).await {
            Sent::Done(_) => {
                info!(delivery = last.guid, event = last.event, times, "asked for again");
                self.asked += 1;
                if *times > 1 {
                    self.failing += 1;
                    self.name(last);
                }
                Ok(())
            }
            Sent::Refused(failure) if matches!(status_of(&failure), Some(404 | 410 | 422)) => {
                self.lost += 1;
                self.name(last);
                Ok(())
            }
            // Whoever sends it twice sends one event.
            Sent::Refused(failure) | Sent::Unknown(failure) => Err(failure),
        }
    }
}

/// How long after a delivery was sent for the so-many-th time it is asked for again.
fn pause(times: u32) -> Duration {
    match times {
        0 | 1 => SETTLED_AFTER,
        _ => PAUSE.saturating_mul(2_u32.saturating_pow(times - 2)).min(LONGEST_PAUSE),
    }
}

fn query(cursor: Option<&str>) -> String {
    let cursor = cursor.map(|cursor| ("cursor", cursor.to_owned()));
    query_of([("per_page", PAGE.to_string())].into_iter().chain(cursor))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn problems(args: Value) -> Vec<String> {
        let names = Names { sources: ["github".to_owned()].into(), ..Names::default() };
        let of: OfGithub = serde_json::from_value(args).unwrap();
        of.check(&names).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn it_is_of_a_repository_or_of_an_organisation_and_of_a_source_that_there_is() {
        assert!(problems(json!({"repository": "acme/app"})).is_empty());
        assert!(problems(json!({"organization": "acme", "within": "7d"})).is_empty());
        assert_eq!(problems(json!({"repository": "acme"})), ["repository: this is not `owner/name`"]);
        assert!(problems(json!({"organization": "acme/app"}))[0].starts_with("organization:"));
        assert!(problems(json!({}))[0].starts_with("write either"));
        assert!(problems(json!({"repository": "a/b", "organization": "a"}))[0].starts_with("write either"));
        let found = problems(json!({"repository": "acme/app", "source": "gihtub", "within": "8d"}));
        assert!(found[0].contains("did you mean `github`?") && found[1].starts_with("within:"), "{found:?}");
    }

    #[test]
    fn who_fails_again_and_again_is_asked_less_and_less_often() {
        let minutes: Vec<u64> = (1..=10).map(|times| pause(times).as_secs() / 60).collect();
        assert_eq!(minutes, [2, 5, 10, 20, 40, 80, 160, 320, 360, 360]);
        assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
    }
}
