//! W3C Trace Context, as it travels in the ledger, in bells and in headers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The position of some work in a trace (<https://www.w3.org/TR/trace-context/>).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TraceContext {
    /// `00-<trace id>-<span id>-<flags>`; none where nothing is traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// The vendors' list that goes with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

impl TraceContext {
    /// The trace id in hex, if there is a well-formed `traceparent`.
    pub fn trace_id(&self) -> Option<&str> {
        let mut parts = self.traceparent.as_deref()?.split('-');
        let (_version, trace) = (parts.next()?, parts.next()?);
        let hex = trace.bytes().all(|byte| byte.is_ascii_hexdigit());
        (trace.len() == 32 && hex).then_some(trace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_id_is_read_from_a_well_formed_traceparent_only() {
        let with = |text: &str| TraceContext { traceparent: Some(text.into()), tracestate: None };
        let good = with("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(good.trace_id(), Some("0af7651916cd43dd8448eb211c80319c"));
        assert_eq!(with("00-xyz-1-01").trace_id(), None);
        assert_eq!(TraceContext::default().trace_id(), None);
    }
}
