//! `nightporter demo`: the main job, on samples, in one process, told step by step.

mod receiver;
mod shell;
mod site;
mod story;
mod telling;
mod words;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use self::receiver::Receiver;
use self::site::Site;
use self::story::{Story, Told};
use self::telling::Telling;
use crate::args::Global;
use crate::client::{self, Client};
use crate::failure::Failure;
use crate::output::print;
use crate::server::{self, Roles};

/// The server is ready within this, or the demo has failed.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// End when everything is done: exit code 0, or 1 where anything fell short.
    #[arg(long)]
    once: bool,
    /// Where the demo's folder is made; the system's folder for temporary files where none is given.
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Makes a site, runs a whole porter in it, and tells the story.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let began = Instant::now();
    let team = Receiver::start().await?;
    let site = Site::make(&args.dir.unwrap_or_else(std::env::temp_dir), team.address).await?;
    team.believe(site.secret("team")?);
    site.leave_alone_for_a_day().await?;
    introduce(&site)?;
    let ready = site.folder.join("ready.json");
    let mut server = Box::pin(server::run(&site.config, Roles::UP, Some(ready.clone())));
    tokio::select! {
        ended = &mut server => return ended,
        is_ready = until_ready(&ready) => is_ready?,
    }
    let global = Global::of(&site.config);
    let client = Client::open(&global).await?;
    let http = client::http_client()?;
    let mut story = Story(Telling { site: &site, client, http, team, began, chapters: 0 });
    let told = tokio::select! {
        ended = &mut server => return ended,
        told = story.tell() => told?,
    };
    sum_up(&site, &told, began)?;
    if args.once {
        return Ok(());
    }
    print("\nIt stays up until you press Ctrl-C.")?;
    server.await
}

async fn until_ready(file: &std::path::Path) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_WITHIN;
    while !file.exists() {
        if Instant::now() > deadline {
            return Err(Failure::failed("the demo's server did not start in time"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn introduce(site: &Site) -> Result<(), Failure> {
    print(&format!(
        "nightporter demo: everything in this one process, on sample data\n\n   files     {}\n   webhooks  \
         http://{}/webhooks/<source>\n   API       http://{}/api/v1\n   commands  with \
         NIGHTPORTER_CONFIG={}",
        site.folder.display(),
        site.server,
        site.operators,
        site.config.display()
    ))
}

fn sum_up(site: &Site, told: &[Told], began: Instant) -> Result<(), Failure> {
    print("\nDone")?;
    for line in told {
        print(&format!("   {:>6.2} s  {}: {}", line.took.as_secs_f64(), line.what, line.outcome))?;
    }
    print(&format!("   {:>6.2} s  in all", began.elapsed().as_secs_f64()))?;
    let config = site.config.display();
    print(&format!(
        "\nThe configuration, the ledger, the backups and the sample application are in\n   {}\n\nTry next, in another \
         terminal:\n   export NIGHTPORTER_CONFIG={config}\n   nightporter runs list\n   nightporter schedules list\n   nightporter \
         backups list\n   nightporter backups restore latest --database shop --store backups --into shop_restored --reason \
         \"a drill\"\n   nightporter trigger vercel deployment.succeeded\n   nightporter check",
        site.folder.display()
    ))
}
