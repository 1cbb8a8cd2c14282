//! A trace collector in this process: takes OTLP over HTTP as protobuf, and lets tests ask for what came.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use prost::Message;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use url::Url;

/// Longer than any exporter waits; only a test that fails waits so long.
const PATIENCE: Duration = Duration::from_mins(1);

/// A collector on a free port. It stops when it is dropped.
pub struct Collector {
    /// What to configure as the OTLP endpoint.
    pub url: Url,
    spans: watch::Receiver<Vec<Span>>,
    _serving: AbortOnDropHandle<()>,
}

/// A span as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// In hex.
    pub trace_id: String,
    /// In hex.
    pub span_id: String,
    /// In hex; none for a root.
    pub parent_id: Option<String>,
    /// Its name.
    pub name: String,
    /// `internal`, `server`, `client`, `producer` or `consumer`.
    pub kind: &'static str,
    /// Whether its status is an error.
    pub is_error: bool,
    /// Its attributes, as text.
    pub attributes: BTreeMap<String, String>,
    /// The spans that it links to: (trace id, span id), in hex.
    pub links: Vec<(String, String)>,
    /// The names of its events.
    pub events: Vec<String>,
    /// The attributes of the process that made it.
    pub resource: BTreeMap<String, String>,
}

impl Collector {
    /// Starts one.
    pub async fn start() -> Self {
        let (sender, spans) = watch::channel(Vec::new());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let router = Router::new().route("/v1/traces", post(take)).with_state(sender);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        let url = Url::parse(&format!("http://{address}")).expect("an address");
        Self { url, spans, _serving: AbortOnDropHandle::new(serving) }
    }

    /// What has come so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Waits until what has come satisfies the test, and gives it out.
    ///
    /// # Panics
    ///
    /// If that takes too long; says what did come.
    pub async fn wait_for(&self, what: &str, satisfied: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        let mut spans = self.spans.clone();
        let waited = tokio::time::timeout(PATIENCE, spans.wait_for(|spans| satisfied(spans))).await;
        let Ok(satisfying) = waited else { panic!("{what} did not come; what came:\n{}", tree(&self.spans())) };
        satisfying.expect("the collector serves").clone()
    }
}

async fn take(State(spans): State<watch::Sender<Vec<Span>>>, body: Bytes) -> Result<Vec<u8>, StatusCode> {
    let request = ExportTraceServiceRequest::decode(body).map_err(|_| StatusCode::BAD_REQUEST)?;
    let came: Vec<Span> = spans_of(request);
    spans.send_modify(|spans| spans.extend(came));
    Ok(ExportTraceServiceResponse::default().encode_to_vec())
}

fn spans_of(request: ExportTraceServiceRequest) -> Vec<Span> {
    let mut found = Vec::new();
    for of_resource in request.resource_spans {
        let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            found.push(Span {
                trace_id: hex(&span.trace_id),
                span_id: hex(&span.span_id),
                parent_id: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
                kind: match span.kind {
                    2 => "server",
                    3 => "client",
                    4 => "producer",
                    5 => "consumer",
                    _ => "internal",
                },
                is_error: span.status.is_some_and(|status| status.code == 2),
                name: span.name,
                attributes: attributes(span.attributes),
                links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
                events: span.events.into_iter().map(|event| event.name).collect(),
                resource: resource.clone(),
            });
        }
    }
    found
}

fn attributes(list: Vec<KeyValue>) -> BTreeMap<String, String> {
    list.into_iter().map(|pair| (pair.key, text(pair.value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(any_value::Value::StringValue(text)) => text,
        Some(any_value::Value::BoolValue(value)) => value.to_string(),
        Some(any_value::Value::IntValue(value)) => value.to_string(),
        Some(any_value::Value::DoubleValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// The spans of one trace.
pub fn in_trace<'a>(spans: &'a [Span], trace_id: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.trace_id == trace_id).collect()
}

/// The spans of that name.
pub fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

/// The only span of that name.
///
/// # Panics
///
/// If there is none, or more than one.
pub fn the<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    match named(spans, name)[..] {
        [span] => span,
        ref found => panic!("{} spans are named `{name}`; what came:\n{}", found.len(), tree(spans)),
    }
}

/// The parent of a span, where it came.
pub fn parent_of<'a>(spans: &'a [Span], span: &Span) -> Option<&'a Span> {
    let parent = span.parent_id.as_ref()?;
    spans.iter().find(|other| other.trace_id == span.trace_id && other.span_id == *parent)
}

/// The names from a span up to its root, itself first. An ancestor that did not come is `(missing)`.
pub fn ancestry(spans: &[Span], span: &Span) -> Vec<String> {
    let mut names = vec![span.name.clone()];
    let mut at = span;
    while at.parent_id.is_some() {
        let Some(parent) = parent_of(spans, at) else {
            names.push("(missing)".to_owned());
            break;
        };
        names.push(parent.name.clone());
        at = parent;
    }
    names
}

/// All traces as indented lines, for people who read a failed test and for snapshots: ids are left out.
pub fn tree(spans: &[Span]) -> String {
    let roots = spans.iter().filter(|span| parent_of(spans, span).is_none());
    roots.map(|root| branch(spans, root, 0)).collect()
}

fn branch(spans: &[Span], span: &Span, depth: usize) -> String {
    let missing = if depth == 0 && span.parent_id.is_some() { " (its parent is missing)" } else { "" };
    let line = format!("{}{} [{}]{missing}\n", "  ".repeat(depth), span.name, span.kind);
    let children = spans
        .iter()
        .filter(|other| other.trace_id == span.trace_id && other.parent_id.as_deref() == Some(span.span_id.as_str()));
    std::iter::once(line).chain(children.map(|child| branch(spans, child, depth + 1))).collect()
}
