//! The bridge between spans and the trace context that travels in the ledger.
//!
//! Where no exporter is configured there is no trace: what is read is empty, and what is set changes nothing.

use std::collections::HashMap;

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TraceContextExt;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use schemas::TraceContext;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The position of a span, to be stored or sent along.
pub fn of(span: &Span) -> TraceContext {
    let mut carrier = HashMap::new();
    TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
    TraceContext {
        traceparent: carrier.remove("traceparent"),
        tracestate: carrier.remove("tracestate").filter(|state| !state.is_empty()),
    }
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
    let mut carrier = HashMap::new();
    carrier.extend(trace.traceparent.clone().map(|value| ("traceparent".to_owned(), value)));
    carrier.extend(trace.tracestate.clone().map(|value| ("tracestate".to_owned(), value)));
    TraceContextPropagator::new().extract(&carrier)
}
