//! Errors as the API answers them: a status, and a sentence that says what to do.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use queue::ledger::LedgerError;
use schemas::Problem;
use schemas::api::ErrorAnswer;
use tracing::{error, warn};

/// A caller whom the ledger kept waiting comes back after so many seconds.
const COME_BACK: HeaderValue = HeaderValue::from_static("5");

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("no token is shown: send `Authorization: Bearer <token>`")]
    NoToken,
    #[error(
        "this token is wrong, has expired or was revoked: an admin makes a new one with `nightporter token create`"
    )]
    WrongToken,
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    NotFound(String),
    #[error("there is no such method here")]
    MethodNotAllowed,
    #[error("the request's body is too large")]
    TooLarge,
    #[error("{0}")]
    Conflict(String),
    /// Well-formed, and wrong.
    #[error("{}", sentences(.0))]
    Wrong(Vec<Problem>),
    #[error("the ledger is unavailable; nothing was done: repeat the request later")]
    Unavailable,
    #[error("the system gives no random bytes; nothing was done: repeat the request later")]
    NoRandomBytes,
    #[error("nobody knows whether it was done, the ledger went away meanwhile: repeat the request with the same `key`")]
    Unknown,
    #[error("the ledger refuses it; the server's log says why")]
    Refused,
}

fn sentences(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl ApiError {
    /// There is no such thing.
    pub(crate) fn no_such(what: &str, id: impl std::fmt::Display) -> Self {
        Self::NotFound(format!("there is no {what} `{id}`"))
    }

    /// A request that is well-formed and wrong in one point.
    pub(crate) fn wrong(message: &str) -> Self {
        Self::Wrong(vec![Problem::new(message)])
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::WrongToken => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Wrong(_) | Self::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable | Self::Unknown | Self::NoRandomBytes => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<&LedgerError> for ApiError {
    fn from(failure: &LedgerError) -> Self {
        let cause = failure as &dyn std::error::Error;
        match failure {
            LedgerError::Unavailable(_) => {
                warn!(error = cause, "an operator's request was not done");
                Self::Unavailable
            }
            LedgerError::Unknown(_) => {
                warn!(error = cause, "the outcome of an operator's request is unknown");
                Self::Unknown
            }
            LedgerError::Refused(_) => {
                error!(error = cause, "an operator's request was refused");
                Self::Refused
            }
            LedgerError::NotFound(what) => Self::NotFound(format!("there is no such {what}")),
            LedgerError::Forbidden(why) => Self::Forbidden(why.clone()),
            LedgerError::Stale | LedgerError::Conflict(_) => Self::Conflict(failure.to_string()),
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(failure: LedgerError) -> Self {
        Self::from(&failure)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let answer = Json(ErrorAnswer { error: self.to_string() });
        let mut response = (self.status(), answer).into_response();
        match self {
            Self::NoToken | Self::WrongToken => {
                response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::Unavailable | Self::Unknown => {
                response.headers_mut().insert(RETRY_AFTER, COME_BACK);
            }
            _ => {}
        }
        response
    }
}

/// Answers where no route leads.
pub(crate) async fn not_found() -> ApiError {
    ApiError::NotFound("there is nothing at this address; the API's are under /api/v1".into())
}

/// Answers a wrong method.
pub(crate) async fn not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_that_is_away_is_503_with_a_time_to_come_back() {
        let response = ApiError::from(LedgerError::Unknown("broken".into())).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[RETRY_AFTER], "5");
        assert_eq!(ApiError::from(LedgerError::NotFound("job")).status(), StatusCode::NOT_FOUND);
        assert_eq!(ApiError::from(LedgerError::Conflict("it runs".into())).status(), StatusCode::CONFLICT);
    }
}
