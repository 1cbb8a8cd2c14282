//! Whether a commit comes after the one that is live: deployments finish in another order than they began.

use serde::Deserialize;

use super::{Gate, Verdict};
use crate::context::Context;
use crate::github::Repository;
use crate::handler::Failure;
use crate::vercel::{Advice, Deployment, Vercel};

const ADVICE: Advice =
    Advice { forbidden: "may not read this project", check: "check `project` and `team`: it is not there" };

#[derive(Deserialize)]
struct Project {
    #[serde(default)]
    targets: Option<Targets>,
}

#[derive(Deserialize)]
struct Targets {
    #[serde(default)]
    production: Option<Live>,
}

#[derive(Deserialize)]
struct Live {
    #[serde(default)]
    id: Option<String>,
}

/// How a commit stands to the live one.
pub(super) enum Order {
    /// It is the same, or a descendant: as it should be.
    After,
    /// Nobody compared them: there is no repository to ask, or nothing is live.
    Unknown,
    /// It must not go live.
    Wrong(Verdict),
}

/// The commit that production serves, if it was built from one.
pub(super) async fn live_commit(vercel: &Vercel<'_>, project: &str) -> Result<Option<String>, Failure> {
    let project: Project = vercel.get(&["v9", "projects", project], "", "reading the project", &ADVICE).await?;
    let live = project.targets.and_then(|targets| targets.production).and_then(|live| live.id);
    let Some(live) = live else { return Ok(None) };
    let live = Deployment::read(vercel, &live).await?;
    Ok(live.commit().map(str::to_owned))
}

impl Gate {
    /// Compares the commit with the live one.
    pub(super) async fn order(&self, cx: &Context, vercel: &Vercel<'_>, commit: &str) -> Result<Order, Failure> {
        let (Some(name), "production") = (&self.repository, self.target.as_str()) else { return Ok(Order::Unknown) };
        let Some(live) = live_commit(vercel, &self.project).await? else { return Ok(Order::Unknown) };
        if live == commit {
            return Ok(Order::After);
        }
        let repository = Repository::connect(cx, name, "a gate compares commits").await?;
        Ok(match repository.standing_of(&live, commit).await?.as_str() {
            "ahead" | "identical" => Order::After,
            "behind" => Order::Wrong(Verdict::canceled(
                format!("superseded: production serves a newer commit ({live:.7}) than {commit:.7}"),
                None,
            )),
            _ => Order::Wrong(Verdict::failed(
                format!(
                    "{commit:.7} is no descendant of what production serves ({live:.7}), so nobody can say which is newer; if \
                     it is meant, bypass the gate"
                ),
                None,
            )),
        })
    }
}
