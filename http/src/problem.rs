//! Errors as problem details, RFC 9457.

use axum::body::to_bytes;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enjambre_control::{Failure, Status};
use enjambre_core::protocol::error::ErrorCode;
use serde::Serialize;
use utoipa::ToSchema;

/// Maximum size of a message that is converted to problem details, in bytes.
const MAX_TEXT: usize = 64 * 1024;

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

/// Replaces the body of an error response that has none or a plain text by problem details, and keeps its other headers. The
/// router and the extractors of axum create such responses, for example for a method that a path does not have.
pub(crate) async fn with_details(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let kind = response.headers().get(header::CONTENT_TYPE);
    if !is_error || kind.is_some_and(|kind| !kind.as_bytes().starts_with(b"text/plain")) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = to_bytes(body, MAX_TEXT).await.unwrap_or_default();
    let detail = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            "this path does not support the method; see the header Allow".to_owned()
        }
        _ if text.is_empty() => status.to_string(),
        _ => String::from_utf8_lossy(&text).into_owned(),
    };
    let mut response = Problem::new(status, detail).into_response();
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    // Replaces values, but keeps all values of a repeated header.
    response.headers_mut().extend(parts.headers);
    response
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::extract::Path;
    use axum::http::Request;
    use axum::middleware::map_response;
    use axum::response::AppendHeaders;
    use axum::routing::get;
    use serde_json::Value;
    use tower_service::Service;

    use super::*;

    #[tokio::test]
    async fn errors_of_the_router_are_problem_details() {
        let number = async |Path(_): Path<u32>| "";
        let json = async || (StatusCode::SERVICE_UNAVAILABLE, axum::Json(true));
        let repeated = async || {
            let headers = [(header::LINK, "a"), (header::LINK, "b"), (header::CACHE_CONTROL, "max-age=1")];
            (StatusCode::NOT_FOUND, AppendHeaders(headers), "text")
        };
        let mut routes = Router::new()
            .route("/number/{number}", get(number))
            .route("/json", get(json))
            .route("/repeated", get(repeated))
            .layer(map_response(with_details));
        for (method, path, status, detail) in [
            ("DELETE", "/number/1", 405, "does not support the method"),
            ("GET", "/number/one", 400, "Cannot parse"),
            ("GET", "/absent", 404, "404 Not Found"),
        ] {
            let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
            let response = routes.call(request).await.unwrap();
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers().get(header::ALLOW).is_some(), status == 405);
            let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let problem: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(problem["status"], status);
            assert!(problem["detail"].as_str().unwrap().contains(detail), "{problem}");
        }
        let response = routes.call(Request::get("/repeated").body(Body::empty()).unwrap()).await.unwrap();
        let headers = response.headers();
        let values = [header::LINK, header::CACHE_CONTROL].map(|name| Vec::from_iter(headers.get_all(name)));
        assert_eq!(values, [vec!["a", "b"], vec!["max-age=1"]]);
        let response = routes.call(Request::get("/json").body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json", "it has a body of its own");
    }
}
