//! The bridge between spans and the trace context that travels in the ledger.
//!
//! Where no exporter is configured there is no trace: what is read is empty, and what is set changes nothing.

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use schemas::TraceContext;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The position of a span, to be stored or sent along.
pub fn of(span: &Span) -> TraceContext {
    let mut stored = Stored(TraceContext::default());
    TraceContextPropagator::new().inject_context(&span.context(), &mut stored);
    stored.0
}

/// The position of the current span.
pub fn current() -> TraceContext {
    of(&Span::current())
}

/// Makes a stored position the parent of a span that has not been entered yet.
pub fn set_parent(span: &Span, trace: &TraceContext) {
    let context = context(trace);
    if context.span().span_context().is_valid() {
        // Err only if the span was entered already or no exporter listens: then there is no parent to set.
        let _untraced = span.set_parent(context);
    }
}

/// Links a span to a stored position.
pub fn link(span: &Span, trace: &TraceContext) {
    let linked = context(trace).span().span_context().clone();
    if linked.is_valid() {
        span.add_link(linked);
    }
}

fn context(trace: &TraceContext) -> opentelemetry::Context {
    TraceContextPropagator::new().extract(&Read(trace))
}

/// A position that is being stored.
struct Stored(TraceContext);

impl Injector for Stored {
    fn set(&mut self, name: &str, value: String) {
        match name {
            "traceparent" => self.0.traceparent = Some(value),
            "tracestate" => self.0.tracestate = Some(value).filter(|state| !state.is_empty()),
            _ => {}
        }
    }
}

/// A position that is being read.
struct Read<'a>(&'a TraceContext);

impl Extractor for Read<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "traceparent" => self.0.traceparent.as_deref(),
            "tracestate" => self.0.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}
