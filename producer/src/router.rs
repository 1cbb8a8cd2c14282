//! The public door over HTTP: `POST /webhooks/{source}`.

use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use schemas::api::{DeliveryAnswer, ErrorAnswer};
use tracing::field::Empty;
use tracing::{Instrument, info_span};

use crate::accept::Refusal;
use crate::body::{self, LARGEST_BODY, NotTaken};
use crate::door::Door;
use crate::sources::{Source, media_type};

/// When a sender should come back, in seconds.
const COME_BACK: &str = "30";

impl Door {
    /// The routes of the public door.
    pub fn router(&self) -> Router {
        Router::new().route("/webhooks/{source}", post(receive).fallback(wrong_method)).with_state(self.clone())
    }
}

/// A delivery begins a trace of its own: whoever may post here may also forge a `traceparent`, so none is read.
async fn receive(State(door): State<Door>, Path(name): Path<String>, request: Request) -> Response {
    let source = door.0.config.sources.get(&name);
    let span = info_span!(
        parent: None,
        "delivery",
        otel.name = "POST /webhooks/{source}",
        otel.kind = "server",
        http.request.method = "POST",
        http.route = "/webhooks/{source}",
        http.response.status_code = Empty,
        source = source.map(Source::name),
        "event.id" = Empty,
        "event.type" = Empty,
    );
    async {
        let response = match source {
            Some(source) => take(&door, source, request).await.unwrap_or_else(IntoResponse::into_response),
            None => NotSigned(StatusCode::NOT_FOUND, "there is no such source").into_response(),
        };
        tracing::Span::current().record("http.response.status_code", response.status().as_u16());
        response
    }
    .instrument(span)
    .await
}

async fn wrong_method() -> Response {
    let mut response = NotSigned(StatusCode::METHOD_NOT_ALLOWED, "deliveries come by POST").into_response();
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    response
}

async fn take(door: &Door, source: &Source, request: Request) -> Result<Response, NotSigned> {
    check_type(source, request.headers())?;
    let length = check_length(request.headers())?;
    let (parts, sent) = request.into_parts();
    let held = door.0.room.take(sent, length).await.map_err(not_taken)?;
    let accepted = if body::is_large(&held.bytes) {
        let (door, source) = (door.clone(), source.name().to_owned());
        let accepting = async move {
            let source = door.0.config.sources.get(&source).ok_or(Refusal::Unavailable)?;
            door.accept(source, &parts.headers, held).await
        };
        body::aside(accepting).await.unwrap_or(Err(Refusal::Unavailable))
    } else {
        door.accept(source, &parts.headers, held).await
    };
    match accepted {
        Ok(answer) => Ok(signed_for(&answer)),
        Err(refusal) => Err(refuse(&refusal)),
    }
}

fn check_type(source: &Source, headers: &HeaderMap) -> Result<(), NotSigned> {
    let given = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(media_type);
    let forms = source.kind().sends_forms();
    match given.as_deref() {
        Some("application/json") => Ok(()),
        Some("application/x-www-form-urlencoded") if forms => Ok(()),
        _ => Err(NotSigned(StatusCode::UNSUPPORTED_MEDIA_TYPE, "deliveries of this source are application/json")),
    }
}

/// The length that the sender says; refused before a byte is read, where it is too large.
fn check_length(headers: &HeaderMap) -> Result<Option<usize>, NotSigned> {
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > LARGEST_BODY) { Err(TOO_LARGE) } else { Ok(length) }
}

fn not_taken(why: NotTaken) -> NotSigned {
    match why {
        NotTaken::TooLarge => TOO_LARGE,
        NotTaken::BrokeOff => NotSigned(StatusCode::BAD_REQUEST, "the body broke off"),
        NotTaken::TooSlow => NotSigned(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
        NotTaken::NoRoom => {
            NotSigned(StatusCode::SERVICE_UNAVAILABLE, "too many deliveries are here; send it again later")
        }
    }
}

fn signed_for(answer: &DeliveryAnswer) -> Response {
    let status = if answer.duplicate { StatusCode::OK } else { StatusCode::ACCEPTED };
    (status, Json(answer)).into_response()
}

/// One answer for every failed signature: what was wrong with it is for the operator's log.
const fn refuse(refusal: &Refusal) -> NotSigned {
    match refusal {
        Refusal::Unverified => NotSigned(StatusCode::UNAUTHORIZED, "the signature is missing or wrong"),
        Refusal::TooManyFailures => {
            NotSigned(StatusCode::TOO_MANY_REQUESTS, "too many deliveries with a wrong signature")
        }
        Refusal::Unavailable => {
            NotSigned(StatusCode::SERVICE_UNAVAILABLE, "the delivery cannot be kept now; send it again later")
        }
    }
}

const TOO_LARGE: NotSigned = NotSigned(StatusCode::PAYLOAD_TOO_LARGE, "a delivery has at most 25 MiB");

/// A request that is not signed for, and what its sender is told.
struct NotSigned(StatusCode, &'static str);

impl IntoResponse for NotSigned {
    fn into_response(self) -> Response {
        let Self(status, text) = self;
        let mut response = (status, Json(ErrorAnswer { error: text.to_owned() })).into_response();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static(COME_BACK));
        }
        response
    }
}
