//! Who calls: whoever shows the token.

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::Console;

/// The actor that the audit names. There is one token; people get their own names with their own tokens.
pub(crate) const ACTOR: &str = "token";

/// Lets a request in that shows the token, compared in constant time.
pub(crate) async fn require_token(
    State(console): State<Console>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let header = request.headers().get(AUTHORIZATION).map(axum::http::HeaderValue::as_bytes);
    let shown = header.and_then(bearer).unwrap_or_default();
    // An empty token would let everyone in who shows nothing.
    let right = !console.token.is_empty() && bool::from(shown.ct_eq(console.token.as_bytes()));
    if right { Ok(next.run(request).await) } else { Err(ApiError::Unauthorized) }
}

/// The token of a header; the scheme's case does not count (RFC 9110 §11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = header.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_needed_and_its_case_is_not() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"abc"), None);
    }
}
