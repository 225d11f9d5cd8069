//! Parts of requests. Errors are problem details.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{self, FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::problem::Problem;

/// The body of a request: an object as `application/json`. Web forms of other sites cannot send this type.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let invalid = |error: JsonRejection| {
            let status = match error.status() {
                StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
                status => status,
            };
            Problem::new(status, error.body_text())
        };
        // `serde_json` also reads a struct from an array.
        let Json(object) = Json::<Map<String, Value>>::from_request(request, state).await.map_err(invalid)?;
        let body = T::deserialize(Value::Object(object));
        body.map(Self).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error))
    }
}

/// The parameters of a query.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = extract::Query::from_request_parts(parts, state).await;
        let invalid = |error: QueryRejection| Problem::new(error.status(), error.body_text());
        query.map(|extract::Query(query)| Self(query)).map_err(invalid)
    }
}

/// The parameters of a path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = extract::Path::from_request_parts(parts, state).await;
        let invalid = |error: PathRejection| Problem::new(error.status(), error.body_text());
        path.map(|extract::Path(path)| Self(path)).map_err(invalid)
    }
}

/// Maximum number of elements of a page.
pub(super) const MAX_PAGE: usize = 1000;

/// The requested number of elements of a page.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "usize")]
pub(super) struct PageSize(pub(super) usize);

impl Default for PageSize {
    fn default() -> Self {
        Self(100)
    }
}

impl TryFrom<usize> for PageSize {
    type Error = String;

    fn try_from(size: usize) -> Result<Self, String> {
        if (1..=MAX_PAGE).contains(&size) {
            return Ok(Self(size));
        }
        Err(format!("{size} is not between 1 and {MAX_PAGE}"))
    }
}
