//! What the process tells about itself: log lines on stderr, and traces over OTLP where an endpoint is configured.
//!
//! The exporter works in a thread of its own, where no runtime is: its calls are carried out on the process's runtime,
//! by the same HTTP client as everything else, and traced by nobody.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::field::{Field, Visit};
use tracing::instrument::WithSubscriber;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::NoSubscriber;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};
use url::Url;

use crate::config::LogLevel;

/// Which log lines are written, as `RUST_LOG` spells it; `info` where it is not set.
const LOG_VARIABLE: &str = "NIGHTPORTER_LOG";

/// The usual ways to name a collector; the exporter reads them itself.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];

/// One export is given up after this.
const EXPORT_DEADLINE: Duration = Duration::from_secs(10);

/// The crates whose spans are exported: only ours, so that no library's span can hold a secret, and none of the
/// exporter's own calls is exported in its turn.
const OURS: [&str; 7] = ["nightporter", "producer", "queue", "worker", "console", "secrets", "schemas"];

/// `[telemetry]`.
#[derive(Clone, Debug)]
pub(crate) struct TelemetrySettings {
    /// Where traces go: the collector's address, to which `/v1/traces` is added. Without it the usual environment
    /// variables are read, and without those nothing is exported.
    pub(crate) otlp: Option<Url>,
    /// Whether log lines are JSON, one object each.
    pub(crate) json: bool,
    /// The least important lines that are written, where the environment does not say.
    pub(crate) level: LogLevel,
}

/// What was started; [`Telemetry::shutdown`] sends what is still unsent.
#[derive(Debug)]
pub(crate) struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

/// Starts logging, and tracing where an endpoint is configured. Called once, within the runtime.
///
/// # Errors
///
/// If `NIGHTPORTER_LOG` is malformed, the endpoint cannot be used, or it was called before.
pub(crate) fn start(settings: &TelemetrySettings) -> anyhow::Result<Telemetry> {
    let provider = provider(settings)?;
    tracing_subscriber::registry()
        .with(lines(settings)?)
        .with(provider.as_ref().map(spans))
        .try_init()
        .context("logging was started twice")?;
    Ok(Telemetry { provider })
}

/// Makes spans as [`start`] does, with ids and parents, and exports none; of log lines only warnings are written. For
/// measurements: what a collector costs is the collector's.
pub(crate) fn start_unexported() -> anyhow::Result<()> {
    let provider = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOn).build();
    let settings = TelemetrySettings { otlp: None, json: false, level: LogLevel::Warn };
    tracing_subscriber::registry()
        .with(lines(&settings)?)
        .with(spans(&provider))
        .try_init()
        .context("logging was started twice")
}

impl Telemetry {
    /// Sends what is still unsent, for at most `timeout`. Never fails: telemetry must not hurt the work.
    pub(crate) async fn shutdown(self, timeout: Duration) {
        let Some(provider) = self.provider else { return };
        // It blocks its thread, and the runtime must go on meanwhile: the export runs there.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout));
        match tokio::time::timeout(timeout, flushed).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last traces were not sent"),
            Ok(Err(error)) => tracing::warn!(%error, "the last traces were not sent"),
            Err(_) => tracing::warn!("the last traces were not sent in time"),
        }
    }
}

/// The layer that writes log lines to stderr: stdout is for data.
fn lines<S>(settings: &TelemetrySettings) -> anyhow::Result<Box<dyn Layer<S> + Send + Sync>>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let filter = EnvFilter::builder()
        .with_default_directive(filter_of(settings.level).into())
        .with_env_var(LOG_VARIABLE)
        .from_env()
        .with_context(|| format!("{LOG_VARIABLE} is not a filter such as `info` or `info,queue=debug`"))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    Ok(if settings.json {
        lines.json().with_filter(filter).boxed()
    } else {
        let lines = lines.with_ansi(std::io::stderr().is_terminal()).fmt_fields(ForPeople);
        lines.with_filter(filter).boxed()
    })
}

fn filter_of(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    }
}

/// Writes fields for people: those that only traces need are left out, `job.id` and its like stay.
struct ForPeople;

impl<'writer> FormatFields<'writer> for ForPeople {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Line { writer, begun: false, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'writer> {
    writer: Writer<'writer>,
    begun: bool,
    result: fmt::Result,
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        if name.starts_with("otel.") || name.starts_with("messaging.") || self.result.is_err() {
            return;
        }
        let space = if std::mem::replace(&mut self.begun, true) { " " } else { "" };
        self.result = match name {
            "message" => write!(self.writer, "{space}{value:?}"),
            _ => write!(self.writer, "{space}{name}={value:?}"),
        };
    }
}

/// The layer that makes spans of ours into spans of the trace. Log lines are not put on them, nor where in the code or
/// in which thread they arose.
fn spans<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("nightporter"))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_level(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(is_exported))
}

fn is_exported(metadata: &Metadata<'_>) -> bool {
    let room = metadata.target().split("::").next().unwrap_or_default();
    metadata.is_span() && *metadata.level() <= Level::INFO && OURS.contains(&room)
}

/// The exporter with its queue, if an endpoint is configured.
fn provider(settings: &TelemetrySettings) -> anyhow::Result<Option<SdkTracerProvider>> {
    let in_environment =
        || ENDPOINT_VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|set| !set.is_empty()));
    if settings.otlp.is_none() && !in_environment() {
        return Ok(None);
    }
    let client = OnRuntime { runtime: Handle::current(), client: worker::world::http_client() };
    let mut exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_http_client(client);
    if let Some(collector) = &settings.otlp {
        exporter = exporter.with_endpoint(format!("{}/v1/traces", collector.as_str().trim_end_matches('/')));
    }
    let exporter = exporter.build().context("the OTLP endpoint cannot be used")?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::AlwaysOn) // Jobs are few and precious; a collector may sample.
        .with_resource(resource())
        .build();
    Ok(Some(provider))
}

/// Who we are: this process, from its start to its end.
fn resource() -> Resource {
    Resource::builder()
        .with_service_name("nightporter")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()))
        .build()
}

/// Carries out the exporter's calls on the process's runtime: its own thread has none, and reqwest panics without.
#[derive(Debug)]
struct OnRuntime {
    runtime: Handle,
    client: reqwest::Client,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sending = call(self.client.clone(), request).with_subscriber(NoSubscriber::default());
        self.runtime.spawn(sending).await?
    }
}

async fn call(client: reqwest::Client, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let mut request = reqwest::Request::try_from(request)?;
    *request.timeout_mut() = Some(EXPORT_DEADLINE);
    let answer = client.execute(request).await?;
    let mut response = Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        headers.extend(answer.headers().clone());
    }
    Ok(response.body(answer.bytes().await?)?)
}

#[cfg(test)]
mod tests {
    use ::tests::otlp::{Collector, parent_of, the, tree};
    use tracing::{Instrument, info_span};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn settings(otlp: Option<Url>) -> TelemetrySettings {
        TelemetrySettings { otlp, json: false, level: LogLevel::Info }
    }

    /// What the process does at work: spans of ours with children of ours, beside those of libraries.
    async fn work() {
        let attempt =
            info_span!(target: "worker::executor", "process", otel.name = "process backup", otel.kind = "consumer");
        async {
            tracing::warn!(target: "worker::executor", "a line that is not for the trace");
            let call = info_span!(target: "worker::channels", "POST", otel.kind = "client", server.address = "x.test");
            async {
                let _library = info_span!(target: "reqwest::connect", "connect").entered();
            }
            .instrument(call)
            .await;
        }
        .instrument(attempt)
        .await;
    }

    /// Works under a collector's eyes, and stops as the process does.
    async fn observed() -> Vec<::tests::otlp::Span> {
        let collector = Collector::start().await;
        let provider = provider(&settings(Some(collector.url.clone()))).unwrap().unwrap();
        let subscriber = tracing_subscriber::registry().with(spans(&provider));
        work().with_subscriber(subscriber).await;
        Telemetry { provider: Some(provider) }.shutdown(PATIENCE).await;
        collector.wait_for("the attempt", |spans| spans.iter().any(|span| span.name == "process backup")).await
    }

    fn assert_complete(spans: &[::tests::otlp::Span]) {
        assert_eq!(tree(spans), "process backup [consumer]\n  POST [client]\n");
        let call = the(spans, "POST");
        assert_eq!(parent_of(spans, call).unwrap().name, "process backup");
        assert_eq!(call.attributes.keys().collect::<Vec<_>>(), ["server.address"], "no code.*, no thread.*");
        assert!(spans.iter().all(|span| span.events.is_empty()), "log lines are not on spans");
        assert_eq!(call.resource["service.name"], "nightporter");
        assert_eq!(call.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(!call.resource["service.instance.id"].is_empty());
    }

    #[tokio::test]
    async fn our_spans_arrive_and_nothing_else_where_the_runtime_has_one_thread() {
        assert_complete(&observed().await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn our_spans_arrive_and_nothing_else_where_the_runtime_has_several_threads() {
        assert_complete(&observed().await);
    }

    #[tokio::test]
    async fn a_collector_that_is_away_does_not_keep_the_process_from_stopping() {
        let gone = ::tests::receiver::nowhere().parse().unwrap();
        let provider = provider(&settings(Some(gone))).unwrap().unwrap();
        let subscriber = tracing_subscriber::registry().with(spans(&provider));
        work().with_subscriber(subscriber).await;
        Telemetry { provider: Some(provider) }.shutdown(Duration::from_millis(200)).await;
    }

    #[tokio::test]
    async fn without_an_endpoint_nothing_is_exported() {
        assert!(provider(&settings(None)).unwrap().is_none());
    }

    #[test]
    fn only_spans_of_ours_are_exported() {
        let of = |target: &str| OURS.contains(&target.split("::").next().unwrap());
        assert!(of("worker::executor") && of("nightporter::server") && of("queue"));
        assert!(!of("reqwest::connect") && !of("hyper_util::client") && !of("h2") && !of("opentelemetry_sdk"));
    }
}
