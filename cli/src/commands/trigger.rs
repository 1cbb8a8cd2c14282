//! `trigger`: sends a sample event to the running server, signed as its sender would.

use chrono::Utc;
use producer::Source;
use producer::sources::{SignedSample, signed_sample};
use reqwest::StatusCode;
use schemas::api::{DeliveryAnswer, ErrorAnswer};
use url::Url;
use uuid::Uuid;

use crate::args::Global;
use crate::client::{http_client, url_of};
use crate::config::{Checked, Config};
use crate::failure::{Failure, with_causes};
use crate::rooms;

/// The arguments of `trigger`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A configured source.
    source: String,
    /// An event type, with or without the sender's name in front, such as `deployment.succeeded`.
    kind: String,
    /// Change a value of the sample by its path, such as `payload.target=production`.
    #[arg(long, value_name = "PATH=VALUE", value_parser = change)]
    set: Vec<(String, String)>,
    /// The public address of the server; else `[server] listen` says it.
    #[arg(long)]
    url: Option<Url>,
}

fn change(text: &str) -> Result<(String, String), String> {
    let (path, value) = text.split_once('=').ok_or("write PATH=VALUE")?;
    if path.is_empty() { Err("the path is missing".into()) } else { Ok((path.to_owned(), value.to_owned())) }
}

pub(crate) async fn run(args: Args, global: &Global) -> Result<(), Failure> {
    let config = Checked::file(&global.config)?.config()?;
    let names = config.sources.iter().map(Source::name);
    let unknown = || Failure::not_found(schemas::Problem::unknown("source", &args.source, names).to_string());
    let source = config.sources.get(&args.source).ok_or_else(unknown)?;
    let sample = sample(&args, source, &config).await?;
    let base = args.url.map_or_else(|| server_url(&config), Ok)?;
    let address = format!("{}/webhooks/{}", base.as_str().trim_end_matches('/'), source.name());
    let sent = http_client()?.post(&address).headers(sample.headers).body(sample.body).send().await;
    let away = |error: reqwest::Error| {
        Failure::unavailable(format!("no server answers at {address}: {}", with_causes(&error)))
            .help("start one with `nightporter up`, or name it with --url")
    };
    let response = sent.map_err(away)?;
    let status = response.status();
    let body = response.bytes().await.map_err(away)?;
    if !status.is_success() {
        return Err(refused(status, &body));
    }
    let answer: DeliveryAnswer = serde_json::from_slice(&body)
        .map_err(|error| Failure::failed(format!("{address} answered {status}, which is not understood: {error}")))?;
    global.output().print(&answer, say)
}

async fn sample(args: &Args, source: &Source, config: &Config) -> Result<SignedSample, Failure> {
    let resolver = rooms::resolver(config).await;
    let secret = source.secrets().first().ok_or_else(|| Failure::usage("the source has no secret"))?;
    let secret = rooms::resolve(secret, &resolver, &format!("[sources.{}] secrets", source.name())).await?;
    signed_sample(source.kind(), &args.kind, &args.set, &secret, Uuid::new_v4(), Utc::now())
        .map_err(|problem| Failure::not_found(problem.to_string()))
}

fn server_url(config: &Config) -> Result<Url, Failure> {
    if config.server.listen.port() == 0 {
        return Err(Failure::usage("[server] listens on any free port, so the configuration does not say which")
            .help("name the server with --url"));
    }
    url_of(config.server.listen)
}

fn refused(status: StatusCode, body: &[u8]) -> Failure {
    let said = serde_json::from_slice(body).map_or_else(|_| status.to_string(), |answer: ErrorAnswer| answer.error);
    let said = format!("the server answered {}: {said}", status.as_u16());
    match status {
        StatusCode::UNAUTHORIZED => {
            Failure::auth(said).help("does the server run with the same configuration and secrets?")
        }
        StatusCode::NOT_FOUND => Failure::not_found(said).help("does the server run with the same configuration?"),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => Failure::unavailable(said),
        _ => Failure::failed(said),
    }
}

fn say(answer: &DeliveryAnswer) -> String {
    let Some(id) = answer.event_id else { return "kept on disk until the ledger is back".to_owned() };
    let jobs: Vec<String> = answer.jobs.iter().map(ToString::to_string).collect();
    let mut lines = vec![format!("event {id}")];
    let notes = [
        (answer.duplicate, "this delivery was there already"),
        (answer.quarantined, "it could not be read as an event: it is kept for you to look at"),
        (answer.held, "a suspected replay: held, without jobs"),
        (
            jobs.is_empty() && !answer.held && !answer.quarantined,
            "no route made a job of it: see `nightporter explain`",
        ),
    ];
    lines.extend(notes.iter().filter(|(holds, _)| *holds).map(|(_, note)| (*note).to_owned()));
    lines.extend(jobs.iter().map(|job| format!("job   {job}")));
    lines.push(format!("look at it with `nightporter events show {id}`"));
    lines.join("\n")
}
