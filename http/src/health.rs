//! Health checks.

use std::sync::Arc;

use async_trait::async_trait;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::Serialize;

use crate::access::Caller;

/// The state of one part of a node.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The part, for example `storage`.
    pub name: &'static str,
    /// Why the part cannot be used; `None` if it can.
    pub problem: Option<String>,
}

/// Checks the parts of a node.
#[async_trait]
pub trait Health: Send + Sync + 'static {
    /// Checks whether the node can serve requests.
    async fn check(&self) -> Vec<Check>;
}

#[derive(Serialize)]
struct Report {
    ready: bool,
    checks: Vec<Check>,
}

/// The routes of health checks: `/healthz` replies while the process works, `/readyz` if all parts can be used.
pub fn routes(health: Arc<dyn Health>) -> Router {
    let ready = async move |Extension(caller): Extension<Caller>| -> Response {
        let mut checks = health.check().await;
        if !caller.is_trusted {
            // The reasons contain paths and addresses.
            checks.iter_mut().filter_map(|check| check.problem.as_mut()).for_each(|problem| {
                "the token is required to see the reason".clone_into(problem);
            });
        }
        let ready = checks.iter().all(|check| check.problem.is_none());
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Json(Report { ready, checks })).into_response()
    };
    let alive = async || Json(Report { ready: true, checks: Vec::new() });
    Router::new().route("/healthz", get(alive)).route("/readyz", get(ready))
}
