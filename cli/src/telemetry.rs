//! What the process tells about itself: log lines on stderr.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;
use url::Url;

/// `[telemetry]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct TelemetrySettings {
    /// Where traces go.
    #[allow(dead_code)]
    pub(crate) otlp: Option<Url>,
    /// Whether log lines are JSON, one object each.
    pub(crate) json: bool,
}

/// What was started.
#[derive(Debug)]
pub(crate) struct Telemetry;

/// Starts logging. Called once, within the runtime.
pub(crate) fn start(settings: &TelemetrySettings) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_from_env("NIGHTPORTER_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_ansi(colours).with_env_filter(filter).with_writer(std::io::stderr);
    let started = if settings.json { lines.json().finish().try_init() } else { lines.finish().try_init() };
    started.context("logging was started twice")?;
    Ok(Telemetry)
}

impl Telemetry {
    /// Sends what is still unsent, for at most `timeout`.
    #[allow(clippy::unused_async)]
    pub(crate) async fn shutdown(self, timeout: Duration) {
        let _ = timeout;
    }
}
