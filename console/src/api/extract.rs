//! Reads requests, and answers what cannot be read as every other error is answered.

use std::fmt::Display;
use std::str::FromStr;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// What lists answer where nothing else is asked for, and at most.
const LIMITS: (u32, u32) = (50, 500);

/// How many lines a list has.
pub(crate) fn limit(asked: Option<u32>) -> u32 {
    asked.unwrap_or(LIMITS.0).clamp(1, LIMITS.1)
}

/// What a list is asked for.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// At most so many: 50 where nothing is said, never more than 500.
    limit: Option<u32>,
}

impl ListParams {
    pub(crate) fn limit(&self) -> u32 {
        limit(self.limit)
    }
}

/// Where nothing may stand behind the question mark.
#[derive(JsonSchema)]
pub(crate) struct NoParams {}

/// The body of a request, JSON.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let read = Json::from_request(request, state).await;
        read.map(|Json(body)| Self(body)).map_err(|rejection: JsonRejection| match rejection {
            JsonRejection::BytesRejection(bytes) if bytes.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::TooLarge
            }
            other => ApiError::BadRequest(other.body_text()),
        })
    }
}

/// The parameters behind the question mark.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Query::from_request_parts(parts, state).await;
        read.map(|Query(params)| Self(params)).map_err(|rejection| ApiError::BadRequest(rejection.body_text()))
    }
}

/// The id in the path. What is no id names nothing.
pub(crate) struct Id<T>(pub(crate) T);

impl<S: Send + Sync, T: FromStr<Err: Display>> FromRequestParts<S> for Id<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let unreadable = |text: &dyn Display| ApiError::NotFound(format!("the address holds no id: {text}"));
        let Path(text): Path<String> =
            Path::from_request_parts(parts, state).await.map_err(|rejection| unreadable(&rejection.body_text()))?;
        text.parse().map(Self).map_err(|_| unreadable(&text))
    }
}

/// The name in the path.
pub(crate) struct Name(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let read = Path::from_request_parts(parts, state).await;
        read.map(|Path(name)| Self(name)).map_err(|rejection| ApiError::BadRequest(rejection.body_text()))
    }
}
