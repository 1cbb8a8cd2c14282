//! Tokens: made here, shown once, kept as a hash.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CACHE_CONTROL;
use chrono::Duration;
use queue::ledger::NewToken;
use rand::TryRngCore;
use rand::rngs::OsRng;
use schemas::api::{ReasonRequest, TokenAnswer, TokenRequest, TokenView};
use tracing::error;

use super::auth::{Caller, FIRST, hash};
use super::error::ApiError;
use super::extract::{Body, Name};
use crate::Console;
use crate::router::Answer;

/// As long as a key: it can't be guessed, and needs no salt.
const RANDOM_BYTES: usize = 32;

/// No name is longer.
const LONGEST_NAME: usize = 64;

/// Ten years.
const LONGEST_LIFE: u32 = 3650;

type Made = Result<(StatusCode, [(axum::http::HeaderName, &'static str); 1], Json<TokenAnswer>), ApiError>;

pub(crate) async fn list(State(console): State<Console>) -> Answer<Vec<TokenView>> {
    Ok(Json(console.queue.ledger().tokens().await?))
}

/// Makes a token. Its answer is the only place where it stands.
pub(crate) async fn create(State(console): State<Console>, caller: Caller, Body(request): Body<TokenRequest>) -> Made {
    let TokenRequest { name, role, days, reason } = request;
    let by = caller.because(reason)?;
    check(&name, days)?;
    let (token, now) = (new_token()?, console.queue.clock().now());
    let expires_at = days.map(|days| now + Duration::days(days.into()));
    let kept = NewToken { name: name.clone(), hash: hash(token.as_bytes()), role, expires_at };
    console.queue.ledger().keep_token(&kept, &by, now).await?;
    let about = TokenView { name, role, created_at: now, created_by: by.actor, expires_at, revoked_at: None };
    Ok((StatusCode::CREATED, [(CACHE_CONTROL, "no-store")], Json(TokenAnswer { token, about })))
}

/// Ends a token at once; answers all there are.
pub(crate) async fn revoke(
    State(console): State<Console>,
    caller: Caller,
    Name(name): Name,
    Body(request): Body<ReasonRequest>,
) -> Answer<Vec<TokenView>> {
    let by = caller.because(request.reason)?;
    if name == FIRST {
        return Err(ApiError::Conflict(
            "this token is the server's first one and not in the ledger: change it in [operators], or delete the file \
             beside the ledger, and restart"
                .into(),
        ));
    }
    console.queue.ledger().revoke_token(&name, &by, console.queue.clock().now()).await?;
    list(State(console)).await
}

fn check(name: &str, days: Option<u32>) -> Result<(), ApiError> {
    let right = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-@".contains(c));
    if name.is_empty() || name.len() > LONGEST_NAME || !right {
        return Err(ApiError::wrong("a token's name has up to 64 letters, digits, `.`, `_`, `-` and `@`"));
    }
    if name == FIRST {
        return Err(ApiError::Conflict(format!("`{FIRST}` is the name of the server's first token; choose another")));
    }
    if days.is_some_and(|days| !(1..=LONGEST_LIFE).contains(&days)) {
        return Err(ApiError::wrong("a token lives between 1 and 3650 days, or without an end"));
    }
    Ok(())
}

fn new_token() -> Result<String, ApiError> {
    let mut bytes = [0; RANDOM_BYTES];
    OsRng.try_fill_bytes(&mut bytes).map_err(|failure| {
        error!(error = %failure, "the system gives no random bytes");
        ApiError::NoRandomBytes
    })?;
    Ok(format!("np_{}", hex::encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let [first, second] = [(); 2].map(|()| new_token().unwrap());
        assert!(first.starts_with("np_") && first.len() == 67, "{}", first.len());
        assert_ne!(first, second);
    }

    #[test]
    fn names_that_would_confuse_the_audit_are_refused() {
        assert!(["ci", "ann@acme.example", "deploy-bot_2"].into_iter().all(|name| check(name, None).is_ok()));
        for name in ["", "token", "a b", "a\n", "é", &"x".repeat(65)] {
            assert!(check(name, None).is_err(), "{name:?}");
        }
        assert!(check("ci", Some(0)).is_err() && check("ci", Some(3651)).is_err() && check("ci", Some(90)).is_ok());
    }
}
