//! `token`: who may call the API. A token is shown once; the ledger keeps its SHA-256.

use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use schemas::Role;
use schemas::api::{ReasonRequest, TokenAnswer, TokenRequest, TokenView};
use url::form_urlencoded::byte_serialize;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Output, moment, print, table};

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a token and print it: it is shown now and never again.
    Create {
        /// Its name, for ever: what is done with it is audited under it.
        name: String,
        /// What it may do.
        #[arg(long, value_parser = PossibleValuesParser::new(Role::ALL.map(Role::as_str)))]
        role: String,
        /// After so many days it ends; without it, never.
        #[arg(long)]
        days: Option<u32>,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
    /// All tokens by name, those that have ended included.
    List,
    /// End a token, at once.
    Revoke {
        /// Its name.
        name: String,
        /// Why; kept in the audit.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) async fn run(command: Command, global: &Global) -> Result<(), Failure> {
    let client = Client::open(global).await?;
    let tokens: Vec<TokenView> = match command {
        Command::Create { name, role, days, reason } => {
            let role = Role::ALL.into_iter().find(|known| known.as_str() == role).unwrap_or(Role::Viewer);
            let made: TokenAnswer = client.post("tokens", &TokenRequest { name, role, days, reason }).await?;
            return say(&made, global.output());
        }
        Command::List => client.get("tokens").await?,
        Command::Revoke { name, reason } => {
            let name: String = byte_serialize(name.as_bytes()).collect();
            client.post(&format!("tokens/{name}/revoke"), &ReasonRequest { reason }).await?
        }
    };
    global.output().print(&tokens, |tokens| rows(tokens))
}

/// The token alone on standard output, so that it can be piped into a file.
fn say(made: &TokenAnswer, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        return output.print(made, |_| String::new());
    }
    let TokenView { name, role, expires_at, .. } = &made.about;
    let end = expires_at.map_or_else(|| "without an end".to_owned(), |at| format!("until {}", moment(at)));
    eprintln!("the token of `{name}`, role {role}, {end}; it is not shown again:");
    print(&made.token)
}

fn rows(tokens: &[TokenView]) -> String {
    let row = |token: &TokenView| {
        let TokenView { name, role, created_at, created_by, expires_at, revoked_at } = token;
        let end = match (revoked_at, expires_at) {
            (Some(at), _) => format!("revoked {}", moment(*at)),
            (None, Some(at)) => moment(*at),
            (None, None) => "never".to_owned(),
        };
        [name.clone(), role.to_string(), moment(*created_at), created_by.clone(), end]
    };
    table(["NAME", "ROLE", "MADE", "BY", "ENDS"], tokens.iter().map(row))
}
