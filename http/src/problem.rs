//! Errors as problem details, RFC 9457.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enjambre_control::{Failure, Status};
use enjambre_core::protocol::error::ErrorCode;
use serde::Serialize;
use utoipa::ToSchema;

/// An error response.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The status code.
    pub status: StatusCode,
    /// The cause, for programs, if it is one of the protocol's.
    pub code: Option<ErrorCode>,
    /// What failed, for people.
    pub detail: String,
}

/// An error as problem details (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemDetails {
    /// The text of the status code.
    title: &'static str,
    /// The status code.
    status: u16,
    /// What failed, for people.
    detail: String,
    /// The cause, for programs, as in error replies of the protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    code: Option<ErrorCode>,
}

impl Problem {
    /// Creates an error response.
    pub fn new(status: StatusCode, detail: impl ToString) -> Self {
        Self { status, code: None, detail: detail.to_string() }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let status = match (failure.code, failure.status) {
            (Some(ErrorCode::Full), _) => StatusCode::INSUFFICIENT_STORAGE,
            (Some(ErrorCode::TooLarge), _) => StatusCode::PAYLOAD_TOO_LARGE,
            (Some(ErrorCode::Forbidden | ErrorCode::Unauthorized), _) => StatusCode::FORBIDDEN,
            (Some(ErrorCode::Busy), _) => StatusCode::SERVICE_UNAVAILABLE,
            (Some(ErrorCode::Conflict | ErrorCode::Replaced | ErrorCode::Unsupported), _) => {
                StatusCode::CONFLICT
            }
            (Some(ErrorCode::Ambiguous), _) => StatusCode::MULTIPLE_CHOICES,
            (Some(ErrorCode::Malformed), _) => StatusCode::BAD_REQUEST,
            (Some(ErrorCode::NotFound), _) | (_, Status::NotFound) => StatusCode::NOT_FOUND,
            (_, Status::Unreachable) => StatusCode::BAD_GATEWAY,
            (_, Status::Usage) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self { status, code: failure.code, detail: failure.message }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let Self { status, code, detail } = self;
        let body = axum::Json(ProblemDetails { title, status: status.as_u16(), detail, code });
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
