//! The doors that are compared.

use std::path::Path;

use anyhow::Context;
use uuid::Uuid;

use crate::Servers;
use crate::load::Target;
use crate::porter::Porter;
use crate::pushes::SECRET;
use crate::server::Database;

/// What a delivery becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Variant {
    /// A row of the plain server's.
    Raw,
    /// An event.
    NoRoute,
    /// An event and a job.
    OneJob,
    /// An event and a run of three jobs.
    RunOfThree,
}

const ONE_JOB: &str = r#"
[[routes]]
on = "github.push"
when = "event.ref == 'refs/heads/main'"
run = { job = "noop", with = { message = "{{ event.git.sha }}" } }
"#;

const RUN_OF_THREE: &str = r#"
[runbooks.three]
inputs = { ref = "git-sha" }
[runbooks.three.jobs]
one   = { job = "noop", with = { message = "{{ inputs.ref }}" } }
two   = { job = "noop", needs = ["one"] }
three = { job = "noop", needs = ["one", "two"] }

[[routes]]
on = "github.push"
when = "event.ref == 'refs/heads/main'"
run = { runbook = "three", with = { ref = "{{ event.git.sha }}" } }
"#;

/// A server that takes deliveries, with a database and a folder of its own.
pub(crate) struct Door {
    pub(crate) porter: Porter,
    pub(crate) database: Database,
    _folder: tempfile::TempDir,
}

impl Door {
    pub(crate) async fn open(variant: Variant, servers: &Servers) -> anyhow::Result<Self> {
        let database = Database::make(&servers.ledger).await?;
        let folder = tempfile::tempdir()?;
        let porter = match variant {
            Variant::Raw => {
                let arguments = ["raw-server", "--database", database.url.as_str()];
                Porter::start(&std::env::current_exe()?, &arguments, folder.path()).await?
            }
            _ => serve(variant, servers, &database, folder.path()).await?,
        };
        Ok(Self { porter, database, _folder: folder })
    }

    pub(crate) fn target(&self) -> Target {
        Target { host: self.porter.host.clone(), path: "/webhooks/github" }
    }

    pub(crate) async fn close(self) -> anyhow::Result<()> {
        self.porter.end().await?;
        self.database.drop().await
    }
}

async fn serve(variant: Variant, servers: &Servers, database: &Database, folder: &Path) -> anyhow::Result<Porter> {
    let routes = match variant {
        Variant::Raw | Variant::NoRoute => "",
        Variant::OneJob => ONE_JOB,
        Variant::RunOfThree => RUN_OF_THREE,
    };
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nspool = \"spool\"\n[operators]\nlisten = \"127.0.0.1:0\"\ntoken = \"{}\"\n\
         [queue]\nledger = \"{}\"\nbroker = \"{}\"\n[telemetry]\nlevel = \"warn\"\n\
         [sources.github]\nsecrets = [\"${{file:github}}\"]\n{routes}",
        Uuid::new_v4(),
        database.url,
        servers.broker,
    );
    std::fs::write(folder.join("github"), SECRET)?;
    std::fs::write(folder.join("nightporter.toml"), config)?;
    let program = std::fs::canonicalize(&servers.nightporter).with_context(|| {
        format!("{} is not there: build it, or name it by --nightporter", servers.nightporter.display())
    })?;
    Porter::start(&program, &["serve"], folder).await
}
