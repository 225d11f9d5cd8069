//! Requests to peers and trackers.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse;
use enjambre_control::{
    CataloguePage, Command, Event, FileDetail, LogTail, NodeStatus, PinLine, Settings, TrackerNodeStatus,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::extract::{Body, PageSize, Path, Query};
use super::{Api, Routes, nothing, only};
use crate::problem::Problem;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(status))
        .routes(routes!(settings))
        .routes(routes!(search))
        .routes(routes!(file))
        .routes(routes!(pins))
        .routes(routes!(unpin))
        .routes(routes!(log_tail))
        .routes(routes!(log_level, set_log_level))
        .routes(routes!(events))
}

/// The status of a node.
#[derive(Serialize, ToSchema)]
#[serde(tag = "role", rename_all = "snake_case")]
pub(super) enum StatusReport {
    Peer(NodeStatus),
    Tracker(TrackerNodeStatus),
}

impl StatusReport {
    pub(super) fn from_event(event: Event) -> Option<Self> {
        match event {
            Event::Status(status) => Some(Self::Peer(status)),
            Event::TrackerStatus(status) => Some(Self::Tracker(status)),
            _ => None,
        }
    }
}

/// Returns the status of the node.
#[utoipa::path(get, path = "/api/v1/status", tag = "node", responses((status = 200, body = StatusReport)))]
async fn status(State(api): State<Arc<Api>>) -> Result<Json<StatusReport>, Problem> {
    api.run(Command::Status, StatusReport::from_event).await?.one().map(Json)
}

/// Returns the effective settings, without passwords.
#[utoipa::path(get, path = "/api/v1/config", tag = "node", responses((status = 200, body = Settings)))]
async fn settings(State(api): State<Arc<Api>>) -> Result<Json<Settings>, Problem> {
    api.run(Command::Settings, only!(Settings)).await?.one().map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct SearchParams {
    /// Text that the names contain, a pattern for the whole name if it has `*` or `?`, or `/` and the name.
    #[serde(default)]
    pattern: String,
    /// The `next` of the previous page.
    cursor: Option<String>,
    /// Maximum number of files.
    #[serde(default)]
    #[param(value_type = usize, minimum = 1, maximum = 1000, default = 100)]
    limit: PageSize,
}

/// Searches the catalogue. A page can be short or empty before the end.
#[utoipa::path(get, path = "/api/v1/files", tag = "catalogue", params(SearchParams), responses((status = 200, body = CataloguePage)))]
async fn search(
    State(api): State<Arc<Api>>,
    Query(SearchParams { pattern, cursor, limit }): Query<SearchParams>,
) -> Result<Json<CataloguePage>, Problem> {
    api.run(Command::Search { pattern, cursor, limit: limit.0 }, only!(Catalogue)).await?.one().map(Json)
}

/// Looks up a file or directory in the catalogue by its name, its id, or a prefix of its id.
#[utoipa::path(get, path = "/api/v1/files/{query}", tag = "catalogue", params(("query" = String, Path)), responses((status = 200, body = FileDetail)))]
async fn file(State(api): State<Arc<Api>>, Path(query): Path<String>) -> Result<Json<FileDetail>, Problem> {
    api.run(Command::File { query }, only!(FileDetail)).await?.one().map(Json)
}

/// Files of which trackers store replicas.
#[derive(Serialize, ToSchema)]
struct Pins {
    pins: Vec<PinLine>,
    /// Problems that did not stop the command.
    warnings: Vec<String>,
}

/// Lists the pins of the peer, or those of all peers at a tracker.
#[utoipa::path(get, path = "/api/v1/pins", tag = "pins", responses((status = 200, body = Pins)))]
async fn pins(State(api): State<Arc<Api>>) -> Result<Json<Pins>, Problem> {
    let (pins, warnings) = api.run(Command::Pins, only!(Pin)).await?.partial()?;
    Ok(Json(Pins { pins, warnings }))
}

/// Removes a pin of the peer, or all pins of a file at a tracker.
#[utoipa::path(delete, path = "/api/v1/pins/{query}", tag = "pins", params(("query" = String, Path)), responses((status = 204)))]
async fn unpin(State(api): State<Arc<Api>>, Path(query): Path<String>) -> Result<StatusCode, Problem> {
    api.run(Command::Unpin { query }, nothing).await?.all()?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct LogParams {
    /// Maximum number of lines. At most 500 are in memory.
    #[serde(default)]
    #[param(value_type = usize, minimum = 1, maximum = 1000, default = 100)]
    limit: PageSize,
}

/// Returns the last lines of the log.
#[utoipa::path(get, path = "/api/v1/log", tag = "node", params(LogParams), responses((status = 200, body = LogTail)))]
async fn log_tail(
    State(api): State<Arc<Api>>,
    Query(LogParams { limit }): Query<LogParams>,
) -> Result<Json<LogTail>, Problem> {
    api.run(Command::LogTail { limit: limit.0 }, only!(LogTail)).await?.one().map(Json)
}

/// The level of the log.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    /// As in the setting `log.level`.
    level: String,
}

/// Returns the level of the log.
#[utoipa::path(get, path = "/api/v1/log/level", tag = "node", responses((status = 200, body = LogLevel)))]
async fn log_level(State(api): State<Arc<Api>>) -> Result<Json<LogLevel>, Problem> {
    api.log_level(None).await
}

/// Sets the level of the log until the node exits.
#[utoipa::path(put, path = "/api/v1/log/level", tag = "node", request_body = LogLevel, responses((status = 200, body = LogLevel)))]
async fn set_log_level(
    State(api): State<Arc<Api>>,
    Body(LogLevel { level }): Body<LogLevel>,
) -> Result<Json<LogLevel>, Problem> {
    api.log_level(Some(level)).await
}

impl Api {
    async fn log_level(&self, level: Option<String>) -> Result<Json<LogLevel>, Problem> {
        let pick = |event| match event {
            Event::LogLevel { level } => Some(LogLevel { level }),
            _ => None,
        };
        self.run(Command::Log { level }, pick).await?.one().map(Json)
    }
}

/// Sends events as they happen: `status` (as `/status`), `downloads` (as `/downloads`), `library` (it changed), and `log` (as
/// `/log`). With the header `Last-Event-ID` it continues behind that event; `reset` tells that events were lost.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "node",
    params(("Last-Event-ID" = Option<String>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String)),
)]
async fn events(State(api): State<Arc<Api>>, headers: HeaderMap) -> Result<impl IntoResponse, Problem> {
    api.events.subscribe(headers.get("last-event-id").and_then(|id| id.to_str().ok()))
}
