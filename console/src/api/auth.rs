//! Who calls: whoever shows a token. A token is a name and a role; the ledger keeps its SHA-256.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use queue::ledger::Operator;
use schemas::Role;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::ApiError;
use crate::Console;

/// The actor of the token that is not in the ledger: of the configuration, or of the file that `up` leaves.
pub(crate) const FIRST: &str = "token";

/// Who calls, and what they may do.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// Their name in the audit.
    pub(crate) actor: String,
    pub(crate) role: Role,
}

impl Caller {
    /// Who does it and why, for the audit.
    pub(crate) fn because(self, reason: String) -> Result<Operator, ApiError> {
        if reason.trim().is_empty() {
            return Err(ApiError::wrong("say why in `reason`: it is kept in the audit"));
        }
        Ok(Operator { actor: self.actor, reason })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get().cloned().ok_or(ApiError::NoToken)
    }
}

/// Lets a request in that shows a token that lives. Each request asks the ledger, so that a revoked token ends at once,
/// in every process.
pub(crate) async fn require_token(
    State(console): State<Console>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let caller = recognize(&console, request.headers()).await?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Lets a caller on whose role is strong enough.
pub(crate) async fn require_role(
    State(needed): State<Role>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Caller { actor, role } = caller;
    if role < needed {
        return Err(ApiError::Forbidden(format!(
            "this needs the role {needed}, and the token `{actor}` has the role {role}"
        )));
    }
    Ok(next.run(request).await)
}

async fn recognize(console: &Console, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let header = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
    let shown = header.and_then(bearer).filter(|shown| !shown.is_empty()).ok_or(ApiError::NoToken)?;
    // An empty token would let everyone in.
    if !console.token.is_empty() && bool::from(shown.ct_eq(console.token.as_bytes())) {
        return Ok(Caller { actor: FIRST.to_owned(), role: Role::Admin });
    }
    let found = console.queue.ledger().token(&hash(shown), console.queue.clock().now()).await?;
    let token = found.ok_or(ApiError::WrongToken)?;
    Ok(Caller { actor: token.name, role: token.role })
}

/// What the ledger keeps of a token: it is as random as a key, so a plain hash gives nothing away.
pub(crate) fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
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
