//! Requests to peers.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use enjambre_control::{
    Command, Exported, LibraryLine, Limits, Published, Removed, Replica, TrackerLine, Verified,
};
use enjambre_core::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::routes;

use super::extract::{Body, Path};
use super::{Api, Routes, only};
use crate::problem::Problem;

pub(super) fn routes() -> Routes {
    Routes::default()
        .routes(routes!(library, publish))
        .routes(routes!(remove))
        .routes(routes!(verify))
        .routes(routes!(export))
        .routes(routes!(limits, set_limits))
        .routes(routes!(trackers))
        .routes(routes!(pin))
}

/// The files and directories of the library.
#[derive(Serialize, ToSchema)]
struct LibraryFiles {
    files: Vec<LibraryLine>,
}

/// Lists the library.
#[utoipa::path(get, path = "/api/v1/library", tag = "library", responses((status = 200, body = LibraryFiles)))]
async fn library(State(api): State<Arc<Api>>) -> Result<Json<LibraryFiles>, Problem> {
    let files = api.run(Command::Library, only!(File)).await?.all()?;
    Ok(Json(LibraryFiles { files }))
}

/// Files and directories to publish.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Publication {
    /// Absolute paths on the machine of the peer.
    #[schema(value_type = Vec<String>, min_items = 1)]
    paths: Vec<PathBuf>,
    /// The name to publish under, instead of the file name. Requires a single path.
    #[schema(value_type = Option<String>)]
    name: Option<Name>,
    /// Whether to copy the content into the library instead of linking the files.
    #[serde(default)]
    store: bool,
    /// Whether to wait until a tracker stores a replica.
    #[serde(default)]
    pin: bool,
    /// Whether an entry of a directory that cannot be published is an error.
    #[serde(default)]
    strict: bool,
    /// Patterns of entries of directories to leave out.
    #[serde(default)]
    exclude: Vec<String>,
}

/// What was published.
#[derive(Serialize, ToSchema)]
struct PublishedFiles {
    published: Vec<Published>,
    /// Problems that did not stop the command.
    warnings: Vec<String>,
}

/// Publishes files and directories of the machine of the peer. Replies when all of them are hashed.
#[utoipa::path(post, path = "/api/v1/library", tag = "library", request_body = Publication, responses((status = 200, body = PublishedFiles)))]
async fn publish(
    State(api): State<Arc<Api>>,
    Body(Publication { paths, name, store, pin, strict, exclude }): Body<Publication>,
) -> Result<Json<PublishedFiles>, Problem> {
    if paths.is_empty() || (name.is_some() && paths.len() > 1) {
        return Err(invalid("expected one path, or several paths without a name"));
    }
    paths.iter().try_for_each(|path| check_absolute(path))?;
    let command = Command::Publish { paths, name, store, pin, strict, exclude };
    let (published, warnings) = api.run_long(command, only!(Published)).await.partial()?;
    Ok(Json(PublishedFiles { published, warnings }))
}

fn invalid(text: &str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, text)
}

fn check_absolute(path: &std::path::Path) -> Result<(), Problem> {
    if path.is_absolute() && !path.as_os_str().as_encoded_bytes().contains(&0) {
        return Ok(());
    }
    Err(invalid("expected an absolute path"))
}

/// Removes a file or directory from the library. Linked files are not deleted.
#[utoipa::path(delete, path = "/api/v1/library/{query}", tag = "library", params(("query" = String, Path)), responses((status = 200, body = Removed)))]
async fn remove(State(api): State<Arc<Api>>, Path(query): Path<String>) -> Result<Json<Removed>, Problem> {
    api.run(Command::Remove { query }, only!(Removed)).await?.one().map(Json)
}

/// Verified files.
#[derive(Serialize, ToSchema)]
struct Verification {
    results: Vec<Verified>,
    /// Problems that did not stop the command.
    warnings: Vec<String>,
}

/// Verifies the hashes of a file, or of a directory and its files. Damaged pieces are no longer offered.
#[utoipa::path(post, path = "/api/v1/library/{query}/verify", tag = "library", params(("query" = String, Path)), responses((status = 200, body = Verification)))]
async fn verify(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
) -> Result<Json<Verification>, Problem> {
    let command = Command::Verify { query: Some(query) };
    let (results, warnings) = api.run_long(command, only!(Verified)).await.partial()?;
    Ok(Json(Verification { results, warnings }))
}

/// The destination of an export.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Destination {
    /// An absolute path on the machine of the peer. A file is written into an existing directory.
    #[schema(value_type = String)]
    output: PathBuf,
    /// Whether to replace an existing file.
    #[serde(default)]
    force: bool,
}

/// Exports a file or directory of the library to a path on the machine of the peer.
#[utoipa::path(post, path = "/api/v1/library/{query}/export", tag = "library", params(("query" = String, Path)), request_body = Destination, responses((status = 200, body = Exported)))]
async fn export(
    State(api): State<Arc<Api>>,
    Path(query): Path<String>,
    Body(Destination { output, force }): Body<Destination>,
) -> Result<Json<Exported>, Problem> {
    check_absolute(&output)?;
    api.run_long(Command::Export { query, output, force }, only!(Exported)).await.one().map(Json)
}

/// Returns the bandwidth limits.
#[utoipa::path(get, path = "/api/v1/limits", tag = "node", responses((status = 200, body = Limits)))]
async fn limits(State(api): State<Arc<Api>>) -> Result<Json<Limits>, Problem> {
    api.run(Command::Limits, only!(Limits)).await?.one().map(Json)
}

/// Sets the bandwidth limits until the node exits.
#[utoipa::path(put, path = "/api/v1/limits", tag = "node", request_body = Limits, responses((status = 200, body = Limits)))]
async fn set_limits(
    State(api): State<Arc<Api>>,
    Body(limits): Body<Limits>,
) -> Result<Json<Limits>, Problem> {
    api.run(Command::SetLimits(limits), only!(Limits)).await?.one().map(Json)
}

/// The trackers of the peer.
#[derive(Serialize, ToSchema)]
struct Trackers {
    trackers: Vec<TrackerLine>,
}

/// Lists the trackers of the peer.
#[utoipa::path(get, path = "/api/v1/trackers", tag = "node", responses((status = 200, body = Trackers)))]
async fn trackers(State(api): State<Arc<Api>>) -> Result<Json<Trackers>, Problem> {
    let status = api.run(Command::Status, only!(Status)).await?.one()?;
    Ok(Json(Trackers { trackers: status.trackers }))
}

/// A file or directory.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FileQuery {
    /// Its name, its id, or a prefix of its id.
    pub(super) query: String,
}

/// Requests that a tracker stores a replica of a file, or reports its progress.
#[utoipa::path(post, path = "/api/v1/pins", tag = "pins", request_body = FileQuery, responses((status = 200, body = Replica)))]
async fn pin(
    State(api): State<Arc<Api>>,
    Body(FileQuery { query }): Body<FileQuery>,
) -> Result<Json<Replica>, Problem> {
    api.run(Command::Pin { query }, only!(Replica)).await?.one().map(Json)
}
