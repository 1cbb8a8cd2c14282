//! Whether each production domain leads to the deployment: what Vercel says of the whole is not taken for it.

use schemas::Timestamp;
use serde::Deserialize;

use super::moves::Aim;
use super::{ADVICE, Rollback};
use crate::context::Context;
use crate::handler::Failure;
use crate::rest::query_of;
use crate::vercel::{Vercel, status_of};

/// Vercel's pages.
const MOST_PAGES: usize = 20;

#[derive(Debug, Deserialize)]
struct Domains {
    domains: Vec<Domain>,
    pagination: Pagination,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Domain {
    name: String,
    #[serde(default)]
    git_branch: Option<String>,
    #[serde(default)]
    custom_environment_id: Option<String>,
    #[serde(default)]
    redirect: Option<String>,
    verified: bool,
}

#[derive(Debug, Deserialize)]
struct Pagination {
    next: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Leads {
    #[serde(default)]
    deployment_id: Option<String>,
}

impl Domain {
    /// A domain of production that shows a deployment: none of a branch or another environment, none that sends elsewhere.
    fn is_of_production(&self) -> bool {
        self.verified && self.git_branch.is_none() && self.custom_environment_id.is_none() && self.redirect.is_none()
    }
}

impl Rollback {
    /// The production domains, all of which lead to the deployment.
    pub(super) async fn all_lead_there(
        &self,
        cx: &Context,
        vercel: &Vercel<'_>,
        aim: &Aim,
        asked_at: Timestamp,
    ) -> Result<Vec<String>, Failure> {
        let domains = domains(vercel, aim).await?;
        if domains.is_empty() {
            return Err(Failure::Discard(anyhow::anyhow!(
                "the rollback of {} was taken, but Vercel names no production domain of it, so nothing shows what it serves",
                aim.name
            )));
        }
        let mut elsewhere = Vec::new();
        for domain in &domains {
            let to = leads_to(vercel, domain, aim).await?;
            if to.as_deref() != Some(aim.deployment.as_str()) {
                elsewhere.push(format!("{domain} leads to {}", to.as_deref().unwrap_or("nothing")));
            }
        }
        if elsewhere.is_empty() {
            return Ok(domains);
        }
        Err(self.not_yet(
            cx,
            asked_at,
            &format!("not all domains lead to {}: {}", aim.deployment, elsewhere.join(", ")),
        ))
    }
}

async fn domains(vercel: &Vercel<'_>, aim: &Aim) -> Result<Vec<String>, Failure> {
    let mut all = Vec::new();
    let mut until = None;
    for _ in 0..MOST_PAGES {
        let fixed = [("production", "true"), ("redirects", "false"), ("limit", "100")];
        let until_then = until.map(|until: i64| ("until", until.to_string()));
        let query = query_of(fixed.map(|(name, value)| (name, value.to_owned())).into_iter().chain(until_then));
        let path = ["v9", "projects", &aim.project, "domains"];
        let page: Domains = vercel.get(&path, &query, "listing the project's domains", &ADVICE).await?;
        all.extend(page.domains.into_iter().filter(Domain::is_of_production).map(|domain| domain.name));
        until = page.pagination.next;
        if until.is_none() {
            break;
        }
    }
    Ok(all)
}

/// The deployment that a domain leads to.
async fn leads_to(vercel: &Vercel<'_>, domain: &str, aim: &Aim) -> Result<Option<String>, Failure> {
    let query = query_of([("projectId", aim.project.clone())]);
    match vercel.get::<Leads>(&["v4", "aliases", domain], &query, "looking where a domain leads", &ADVICE).await {
        Ok(leads) => Ok(leads.deployment_id),
        Err(failure) if status_of(&failure) == Some(404) => Ok(None),
        Err(failure) => Err(failure),
    }
}
