//! Vercel: HMAC-SHA1 over the raw body, bare hex; the delivery id is in the body, so it is signed.
//!
//! What happens to a deployment once (it succeeded, one of its checks is to begin) is one event, however often it is told:
//! by a second webhook while a secret is being rotated, which has ids of its own, or by a job that found it at Vercel
//! ([`crate::Door::take_found`]). So the delivery id of such an event names what happened, and not who told it. A promotion
//! and a rollback may happen to a deployment again: those keep the id that Vercel gives them.
//! Contract: <https://vercel.com/docs/webhooks/webhooks-api>.

use http::HeaderMap;
use queue::ledger::Repeats;
use schemas::event::{Actor, Git, Project, Repository};
use schemas::{Facts, Problem, Timestamp};
use secrets::SecretString;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use uuid::Uuid;

use super::standard::insert;
use super::{Normalized, Sample, SourceType};
use crate::readable::{Moment, Part, Text, Unreadable, bounded_name, read, text_of};
use crate::rejection::Rejection;
use crate::signature::{Algorithm, Verified, plain_key, verify};

const SIGNATURE: &str = "x-vercel-signature";

/// The names that old hooks still send. `deployment-ready` is not `deployment.ready`.
const LEGACY: &[(&str, &str)] = &[
    ("deployment", "deployment.created"),
    ("deployment-ready", "deployment.succeeded"),
    ("deployment-prepared", "deployment.ready"),
];

const SAMPLES: &[(&str, &str)] = &[
    ("vercel.deployment.succeeded", include_str!("../samples/vercel/deployment.succeeded.json")),
    ("vercel.deployment.created", include_str!("../samples/vercel/deployment.created.json")),
    ("vercel.deployment.error", include_str!("../samples/vercel/deployment.error.json")),
    ("vercel.deployment.promoted", include_str!("../samples/vercel/deployment.promoted.json")),
    ("vercel.deployment.canceled", include_str!("../samples/vercel/deployment.canceled.json")),
    ("vercel.deployment.checkrun.start", include_str!("../samples/vercel/deployment.checkrun.start.json")),
];

/// What happens to a deployment once.
const ONCE: &[&str] =
    &["deployment.created", "deployment.succeeded", "deployment.ready", "deployment.error", "deployment.canceled"];

/// What happens to a run of a check once.
const ONCE_A_RUN: &[&str] = &["deployment.checkrun.start", "deployment.checkrun.cancel"];

#[derive(Debug)]
pub(super) struct Vercel;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    id: Text,
    r#type: Text,
    #[serde(rename = "createdAt")]
    created_at: Moment,
    payload: Part<Payload>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Payload {
    /// A null is not an absence here.
    #[serde(deserialize_with = "there")]
    target: Option<Text>,
    custom_environment_id: Text,
    deployment: Part<Deployment>,
    check_run: Part<CheckRun>,
    project: Part<NamedProject>,
    project_id: Text,
    name: Text,
    url: Text,
    user: Part<Identified>,
    links: Part<Links>,
}

fn there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Text>, D::Error> {
    Text::deserialize(deserializer).map(Some)
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Deployment {
    id: Text,
    url: Text,
    name: Text,
    target: Text,
    custom_environment_id: Text,
    meta: Part<Meta>,
}

/// A run of a deployment check.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct CheckRun {
    id: Text,
    deployment_id: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NamedProject {
    id: Text,
    name: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Identified {
    id: Text,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Links {
    deployment: Text,
}

/// What the git host said at the push; empty for a deployment by the command line.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Meta {
    github_commit_sha: Text,
    github_commit_ref: Text,
    github_org: Text,
    github_repo: Text,
    github_repo_id: Text,
    gitlab_commit_sha: Text,
    gitlab_commit_ref: Text,
    gitlab_project_path: Text,
    gitlab_project_id: Text,
    bitbucket_commit_sha: Text,
    bitbucket_commit_ref: Text,
    bitbucket_repo_owner: Text,
    bitbucket_repo_slug: Text,
    bitbucket_repo_uuid: Text,
    /// The job of ours that made it.
    #[serde(rename = "nightporterJob")]
    mark: Text,
}

fn first(texts: &[&Text]) -> Option<String> {
    texts.iter().find_map(|text| text.0.clone())
}

fn joined(owner: &Text, name: &Text) -> Option<String> {
    Some(format!("{}/{}", owner.get()?, name.get()?))
}

impl Meta {
    fn git(&self) -> Git {
        Git {
            sha: first(&[&self.github_commit_sha, &self.gitlab_commit_sha, &self.bitbucket_commit_sha]),
            reference: first(&[&self.github_commit_ref, &self.gitlab_commit_ref, &self.bitbucket_commit_ref]),
        }
    }

    fn repository(&self) -> Repository {
        Repository {
            id: first(&[&self.github_repo_id, &self.gitlab_project_id, &self.bitbucket_repo_uuid]),
            full_name: joined(&self.github_org, &self.github_repo)
                .or_else(|| self.gitlab_project_path.0.clone())
                .or_else(|| joined(&self.bitbucket_repo_owner, &self.bitbucket_repo_slug)),
        }
    }
}

impl Payload {
    /// The environment. A null is `preview`, unless a custom environment is named; what is absent is not known, but
    /// promotions and rollbacks are of production.
    fn target(&self, kind: &str) -> Option<String> {
        if !kind.starts_with("deployment.") {
            return None;
        }
        let custom =
            || self.custom_environment_id.0.clone().or_else(|| self.deployment.text(|it| &it.custom_environment_id));
        match &self.target {
            Some(Text(Some(target))) => Some(target.clone()),
            Some(Text(None)) => custom().or_else(|| Some("preview".to_owned())),
            None if matches!(kind, "deployment.promoted" | "deployment.rollback") => Some("production".to_owned()),
            None => self.deployment.text(|it| &it.target).or_else(custom),
        }
    }

    fn url(&self) -> Option<String> {
        let address = self.url.0.clone().or_else(|| self.deployment.text(|it| &it.url));
        let with_scheme = address.map(|url| if url.contains("://") { url } else { format!("https://{url}") });
        with_scheme.or_else(|| self.links.text(|links| &links.deployment))
    }

    /// The name of what happened, where it happens once.
    fn occurrence(&self, kind: &str) -> Option<String> {
        let id = match kind {
            _ if ONCE.contains(&kind) => self.deployment.text(|it| &it.id),
            _ if ONCE_A_RUN.contains(&kind) => self.check_run.text(|it| &it.id),
            _ => None,
        };
        id.map(|id| format!("{kind} {id}"))
    }

    fn facts(&self, kind: &str) -> Facts {
        let deployment = self.deployment.0.as_ref();
        let meta = deployment.and_then(|deployment| deployment.meta.0.as_ref());
        let git = meta.map(Meta::git).unwrap_or_default();
        Facts {
            project: Project {
                id: self.project.text(|it| &it.id).or_else(|| self.project_id.0.clone()),
                name: self
                    .project
                    .text(|it| &it.name)
                    .or_else(|| self.name.0.clone())
                    .or_else(|| self.deployment.text(|it| &it.name)),
            },
            repository: meta.map(Meta::repository).unwrap_or_default(),
            reference: git.reference.clone(),
            git,
            target: self.target(kind),
            actor: Actor { id: self.user.text(|user| &user.id), login: None },
            url: self.url(),
            state: kind.strip_prefix("deployment.").map(str::to_owned),
            caused_by: meta.and_then(|meta| meta.mark.get()?.parse().ok()),
        }
    }
}

/// The one spelling: today's name, with dots. The documentation writes `project.domain-created`, the REST API
/// `project.domain.created`.
fn canonical(kind: &str) -> String {
    let current = LEGACY.iter().find(|(old, _)| *old == kind).map_or(kind, |(_, new)| new);
    current.replace('-', ".")
}

impl SourceType for Vercel {
    fn name(&self) -> &'static str {
        "vercel"
    }

    fn verify(
        &self,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &[SecretString],
        _now: Timestamp,
    ) -> Result<Verified, Rejection> {
        let given = headers.get(SIGNATURE).ok_or(Rejection::NoSignature)?;
        let signature = hex::decode(given).map_err(|_| Rejection::Malformed)?;
        verify(Algorithm::Sha1, &[body], &[signature], secrets.iter().map(|secret| Some(plain_key(secret))))
    }

    fn normalize(&self, _headers: &HeaderMap, body: &[u8]) -> Result<Normalized, Unreadable> {
        let body: Body = read(&text_of(body)?)?;
        let kind = body.r#type.get().ok_or_else(|| Unreadable::because("the body has no `type`"))?;
        let kind = canonical(kind);
        let payload = body.payload.0.unwrap_or_default();
        let facts = payload.facts(&kind);
        let id = payload.occurrence(&kind).or(body.id.0);
        Ok(Normalized {
            delivery_id: id.map(|id| bounded_name("id", id)).transpose()?,
            subject: payload
                .deployment
                .text(|it| &it.id)
                .or_else(|| payload.check_run.text(|it| &it.deployment_id))
                .or_else(|| facts.project.id.clone()),
            kind: bounded_name("type", format!("vercel.{kind}"))?,
            time: body.created_at.0,
            facts,
            repeats: Repeats::AreNew,
        })
    }

    fn canonical(&self, kind: &str) -> String {
        kind.strip_prefix("vercel.").map_or_else(|| kind.to_owned(), |kind| format!("vercel.{}", canonical(kind)))
    }

    fn sample_types(&self) -> Vec<String> {
        SAMPLES.iter().map(|(kind, _)| (*kind).to_owned()).collect()
    }

    fn sample(&self, kind: &str) -> Option<Sample> {
        let (_, text) = SAMPLES.iter().find(|(known, _)| *known == kind)?;
        Sample::bundled(text)
    }

    fn make_new(&self, sample: &mut Sample, nonce: Uuid, now: Timestamp) {
        let id = nonce.simple().to_string();
        // A new delivery is of something else that happened.
        for (path, new) in [
            ("/payload/deployment/id", format!("dpl_{id}")),
            ("/payload/checkRun/deploymentId", format!("dpl_{id}")),
            ("/payload/checkRun/id", format!("chr_{id}")),
        ] {
            if let Some(known) = sample.body.pointer_mut(path) {
                *known = json!(new);
            }
        }
        sample.body["id"] = json!(id);
        sample.body["createdAt"] = json!(now.timestamp_millis());
    }

    fn sign(&self, secret: &SecretString, headers: &mut HeaderMap, body: &[u8], _: Timestamp) -> Result<(), Problem> {
        let key = plain_key(secret);
        insert(headers, SIGNATURE, &hex::encode(Algorithm::Sha1.sign(&key, &[body])))
    }
}

#[cfg(test)]
mod tests {
    use schemas::event::DEPLOYMENT_MARK;
    use serde_json::Value;

    use super::*;

    fn normalized(body: &Value) -> Normalized {
        Vercel.normalize(&HeaderMap::new(), body.to_string().as_bytes()).unwrap()
    }

    fn target(kind: &str, payload: &Value) -> Option<String> {
        normalized(&json!({"type": kind, "payload": payload})).facts.target
    }

    #[test]
    fn legacy_names_and_both_spellings_are_one_type() {
        for (given, kind) in [
            ("deployment", "vercel.deployment.created"),
            ("deployment-ready", "vercel.deployment.succeeded"),
            ("deployment-prepared", "vercel.deployment.ready"),
            ("deployment.ready", "vercel.deployment.ready"),
            ("deployment-error", "vercel.deployment.error"),
            ("project-created", "vercel.project.created"),
            ("project.domain-created", "vercel.project.domain.created"),
            ("project.domain.created", "vercel.project.domain.created"),
        ] {
            assert_eq!(normalized(&json!({"type": given})).kind, kind);
            assert_eq!(Vercel.canonical(&format!("vercel.{given}")), kind);
        }
    }

    #[test]
    fn what_happens_once_is_one_delivery_whoever_tells_it() {
        let id = |kind: &str, id: &str, payload: Value| {
            normalized(&json!({"type": kind, "id": id, "payload": payload})).delivery_id.unwrap()
        };
        let deployment = |id: &str| json!({"deployment": {"id": id}, "checkRun": {"id": "run_1"}});
        let succeeded = id("deployment.succeeded", "a", deployment("dpl_1"));
        assert_eq!(succeeded, id("deployment-ready", "b", deployment("dpl_1")));
        assert_ne!(succeeded, id("deployment.succeeded", "a", deployment("dpl_2")));
        assert_ne!(succeeded, id("deployment.ready", "a", deployment("dpl_1")));
        let start = id("deployment.checkrun.start", "a", deployment("dpl_1"));
        assert_eq!(start, id("deployment.checkrun.start", "b", deployment("dpl_1")));
        assert_eq!(start, "deployment.checkrun.start run_1");
        // A deployment is promoted again after another one was, and what names no deployment cannot be told apart.
        assert_eq!(id("deployment.promoted", "a", deployment("dpl_1")), "a");
        assert_eq!(id("deployment.succeeded", "a", json!({})), "a");
        assert_eq!(id("project.created", "a", deployment("dpl_1")), "a");
    }

    #[test]
    fn a_null_target_is_preview_and_an_absent_one_is_not() {
        let of = |payload: Value| target("deployment.succeeded", &payload);
        assert_eq!(of(json!({"target": "production"})).as_deref(), Some("production"));
        assert_eq!(of(json!({"target": null})).as_deref(), Some("preview"));
        assert_eq!(of(json!({"target": null, "customEnvironmentId": "env_1"})).as_deref(), Some("env_1"));
        assert_eq!(of(json!({})), None);
        assert_eq!(target("deployment.promoted", &json!({})).as_deref(), Some("production"));
        assert_eq!(
            target("deployment.cleanup", &json!({"deployment": {"target": "staging"}})).as_deref(),
            Some("staging")
        );
        assert_eq!(target("project.created", &json!({"target": null})), None);
    }

    #[test]
    fn a_deployment_that_a_job_of_ours_made_names_it() {
        let job = Uuid::from_u128(7);
        let caused_by = |meta: Value| {
            normalized(&json!({"type": "deployment.succeeded", "payload": {"deployment": {"meta": meta}}}))
                .facts
                .caused_by
        };
        assert_eq!(caused_by(json!({DEPLOYMENT_MARK: job.to_string()})), Some(schemas::JobId(job)));
        assert_eq!(caused_by(json!({DEPLOYMENT_MARK: "somebody"})), None);
        assert_eq!(caused_by(json!({})), None);
    }

    #[test]
    fn a_check_run_is_about_its_deployment() {
        let subject =
            |payload: Value| normalized(&json!({"type": "deployment.checkrun.start", "payload": payload})).subject;
        assert_eq!(subject(json!({"checkRun": {"id": "chr_1", "deploymentId": "dpl_1"}})).as_deref(), Some("dpl_1"));
        let both = json!({"checkRun": {"deploymentId": "dpl_1"}, "deployment": {"id": "dpl_2"}});
        assert_eq!(subject(both).as_deref(), Some("dpl_2"));
    }

    #[test]
    fn a_deployment_by_the_command_line_has_no_commit_and_other_hosts_have_theirs() {
        let facts = |meta: Value| {
            normalized(&json!({"type": "deployment.succeeded", "payload": {"url": "a.vercel.app", "deployment": {"meta": meta}}}))
                .facts
        };
        assert_eq!(facts(json!({})).git, Git::default());
        let gitlab = facts(json!({"gitlabCommitSha": "abc", "gitlabCommitRef": "main", "gitlabProjectPath": "a/b"}));
        assert_eq!(gitlab.git.sha.as_deref(), Some("abc"));
        assert_eq!(gitlab.repository.full_name.as_deref(), Some("a/b"));
        assert_eq!(gitlab.url.as_deref(), Some("https://a.vercel.app"));
        assert_eq!(facts(json!({"bitbucketCommitRef": "main"})).git.reference.as_deref(), Some("main"));
    }
}
