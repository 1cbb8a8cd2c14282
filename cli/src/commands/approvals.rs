//! `approvals`: jobs that wait for a person's word.

use clap::Subcommand;
use schemas::JobId;
use schemas::api::{ApprovalView, JobView, ReasonRequest};

use super::jobs;
use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{line, moment, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All that is waited for, the oldest first.
    List {
        /// At most so many.
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Consent to a job, with exactly the arguments that it shows.
    Approve {
        /// The job's id.
        job: JobId,
        /// Why; kept with the approval and in the audit.
        #[arg(long)]
        reason: String,
    },
    /// Refuse a job: it is cancelled.
    Refuse {
        /// The job's id.
        job: JobId,
        /// Why; kept with the job and in the audit.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let job: JobView = match command {
        Command::List { limit } => {
            let approvals: Vec<ApprovalView> = client.get(&format!("approvals?limit={limit}")).await?;
            return global.output().print(&approvals, |approvals| rows(approvals));
        }
        Command::Approve { job, reason } => {
            client.post(&format!("approvals/{job}/approve"), &ReasonRequest { reason }).await?
        }
        Command::Refuse { job, reason } => {
            client.post(&format!("approvals/{job}/refuse"), &ReasonRequest { reason }).await?
        }
    };
    global.output().print(&job, jobs::details)
}

fn rows(approvals: &[ApprovalView]) -> String {
    let row = |approval: &ApprovalView| {
        let by = approval.requested_by.clone().unwrap_or_default();
        let until = approval.expires_at.map(moment).unwrap_or_default();
        let args = line(&approval.args.to_string());
        [approval.job.to_string(), approval.kind.clone(), args, standing(approval), by, until]
    };
    table(["JOB", "KIND", "ARGS", "CONSENTS", "STARTED BY", "UNTIL"], approvals.iter().map(row))
}

/// How far it is, in a few words.
pub(crate) fn standing(approval: &ApprovalView) -> String {
    let ApprovalView { consents, needed, role, .. } = approval;
    format!("{} of {needed} ({role})", consents.len())
}

/// All about one, over several lines.
pub(crate) fn details(approval: &ApprovalView) -> String {
    let consents = approval.consents.iter().map(|consent| {
        let own = if consent.own { ", who started it" } else { "" };
        format!("{}{own}, {}: {}", consent.actor, moment(consent.at), line(&consent.reason))
    });
    let until = match (approval.granted_at, approval.expires_at) {
        (Some(granted), _) => format!(", given {}", moment(granted)),
        (None, Some(expires)) => format!(", waits until {}", moment(expires)),
        (None, None) => String::new(),
    };
    std::iter::once(standing(approval) + &until).chain(consents).collect::<Vec<_>>().join("; ")
}
