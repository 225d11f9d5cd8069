//! Requests about the download queue of a peer.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use enjambre_control::{Command, Download, DownloadDetail, DownloadList, Event};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::routes;

use super::extract::{Body, Path, Query};
use super::peer::FileQuery;
use super::{Api, Routes, nothing, only};
use crate::problem::Problem;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(downloads, start_download))
        .routes(routes!(download, move_download, cancel_download))
        .routes(routes!(pause_download))
        .routes(routes!(resume_download))
}

/// Lists the downloads: those of the queue, of commands and of HTTP clients.
#[utoipa::path(get, path = "/api/v1/downloads", tag = "downloads", responses((status = 200, body = DownloadList)))]
async fn downloads(State(api): State<Arc<Api>>) -> Result<Json<DownloadList>, Problem> {
    api.run(Command::Downloads, only!(Downloads)).await?.one().map(Json)
}

/// Adds a whole file or directory to the download queue. It is downloaded into the library.
#[utoipa::path(post, path = "/api/v1/downloads", tag = "downloads", request_body = FileQuery, responses((status = 201, body = Download), (status = 200, body = Download, description = "The queue already contains it.")))]
async fn start_download(
    State(api): State<Arc<Api>>,
    Body(FileQuery { query }): Body<FileQuery>,
) -> Result<(StatusCode, Json<Download>), Problem> {
    let pick = |event| match event {
        Event::DownloadStarted { download, new } => Some((download, new)),
        _ => None,
    };
    let (download, new) = api.run(Command::StartDownload { query }, pick).await?.one()?;
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, Json(download)))
}

/// Returns a download with its sources and pieces.
#[utoipa::path(get, path = "/api/v1/downloads/{query}", tag = "downloads", params(("query" = String, Path)), responses((status = 200, body = DownloadDetail)))]
async fn download(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
) -> Result<Json<DownloadDetail>, Problem> {
    api.run(Command::Download { query }, only!(DownloadDetail)).await?.one().map(Json)
}

/// A change of a download.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DownloadChange {
    /// The new position among the downloads of the queue that are not finished, from 0.
    position: u64,
}

/// Moves a download in the queue.
#[utoipa::path(patch, path = "/api/v1/downloads/{query}", tag = "downloads", params(("query" = String, Path)), request_body = DownloadChange, responses((status = 200, body = Download)))]
async fn move_download(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
    Body(DownloadChange { position }): Body<DownloadChange>,
) -> Result<Json<Download>, Problem> {
    api.run(Command::MoveDownload { query, position }, only!(Download)).await?.one().map(Json)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct CancelParams {
    /// Whether to keep the incomplete file in the library.
    #[serde(default)]
    keep: bool,
}

/// Removes a download from the queue.
#[utoipa::path(delete, path = "/api/v1/downloads/{query}", tag = "downloads", params(("query" = String, Path), CancelParams), responses((status = 204)))]
async fn cancel_download(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
    Query(CancelParams { keep }): Query<CancelParams>,
) -> Result<StatusCode, Problem> {
    api.run(Command::CancelDownload { query, keep }, nothing).await?.all()?;
    Ok(StatusCode::NO_CONTENT)
}

/// Pauses a download of the queue. Its verified pieces are kept.
#[utoipa::path(post, path = "/api/v1/downloads/{query}/pause", tag = "downloads", params(("query" = String, Path)), responses((status = 200, body = Download)))]
async fn pause_download(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
) -> Result<Json<Download>, Problem> {
    api.run(Command::PauseDownload { query }, only!(Download)).await?.one().map(Json)
}

/// Resumes a paused download, or tries a failed one again.
#[utoipa::path(post, path = "/api/v1/downloads/{query}/resume", tag = "downloads", params(("query" = String, Path)), responses((status = 200, body = Download)))]
async fn resume_download(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
) -> Result<Json<Download>, Problem> {
    api.run(Command::ResumeDownload { query }, only!(Download)).await?.one().map(Json)
}
