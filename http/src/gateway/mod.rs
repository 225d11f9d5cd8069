//! The gateway: `GET` and `HEAD` of `/files/NAME`, `/files/ID`, and below a directory `/files/NAME/PATH`; uploads.
//!
//! Missing content is downloaded while it is sent; the requested range is requested from providers first. Only verified
//! content is sent. If the download fails, the connection is closed before the end of the body, so that clients notice.

mod content;
mod directory;
mod range;
mod upload;

use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::extract::{self, DefaultBodyLimit, Path};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use enjambre_control::{Execute, Failure};
use enjambre_core::{FileId, FileKind, Member, MemberPath, Name};
use enjambre_swarm::download::downloader::Downloader;
use enjambre_swarm::download::error::DownloadError;
use enjambre_swarm::download::get::{GetRequest, get_list};
use enjambre_swarm::download::provider::ProviderSource;
use enjambre_swarm::download::reader::FileReader;
use enjambre_swarm::download::request::{DownloadRequest, Progress};
use enjambre_swarm::download::selection::member;
use enjambre_swarm::library::entry::NewFile;
use enjambre_swarm::library::output::Destination;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use tokio::sync::{Semaphore, watch};

use crate::problem::Problem;
use content::Served;
use upload::MAX_UPLOADS;

/// A file or directory of the swarm, by the claims of its publisher.
#[derive(Debug, Clone)]
pub struct Found {
    /// The id of the content.
    pub id: FileId,
    /// The name.
    pub name: Name,
    /// The kind.
    pub kind: FileKind,
    /// The size in bytes.
    pub size: u64,
}

/// Looks up the files of a swarm.
#[async_trait]
pub trait Catalogue: Send + Sync + 'static {
    /// Finds a file or directory by its name, its id, or a prefix of its id.
    async fn find(&self, query: &str) -> Result<Found, Problem>;
}

/// The parts of a node that the gateway uses.
pub struct Gateway {
    /// Downloads missing content.
    pub downloader: Arc<Downloader>,
    /// Finds the providers of a file.
    pub providers: Arc<dyn ProviderSource>,
    /// Finds files.
    pub catalogue: Arc<dyn Catalogue>,
    /// Publishes uploads. `None` for a tracker.
    pub publisher: Option<Arc<dyn Execute>>,
}

/// The characters to escape in a segment of a URL (RFC 3986) and in a parameter of a header (RFC 8187): all that are not
/// unreserved.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Maximum number of lists of directories in memory. The longest takes several hundred MiB.
const MAX_LISTS: usize = 4;

struct State {
    gateway: Gateway,
    lists: Semaphore,
    uploads: Semaphore,
}

/// The routes of the gateway.
pub fn routes(gateway: Gateway) -> Router {
    let whole =
        async |gateway, Path(query): Path<String>, request| serve(gateway, &query, None, request).await;
    let part = async |gateway, Path((query, path)): Path<(String, String)>, request| {
        serve(gateway, &query, Some(&path), request).await
    };
    let top =
        async |gateway, Path(query): Path<String>, request| serve(gateway, &query, Some(""), request).await;
    Router::new()
        .route("/files", post(upload::post).layer(DefaultBodyLimit::disable()))
        .route("/files/{query}", get(whole).put(upload::put))
        .route("/files/{query}/", get(top))
        .route("/files/{query}/{*path}", get(part))
        .with_state(Arc::new(State {
            gateway,
            lists: Semaphore::new(MAX_LISTS),
            uploads: Semaphore::new(MAX_UPLOADS),
        }))
}

/// Serves a file or directory, or with a `path` what is below a directory.
async fn serve(
    extract::State(state): extract::State<Arc<State>>,
    query: &str,
    path: Option<&str>,
    Parts { method, uri, mut headers, .. }: Parts,
) -> Result<Response, Problem> {
    let gateway = &state.gateway;
    if method == Method::HEAD {
        // Ranges are of `GET` only.
        headers.remove(header::RANGE);
    }
    let found = gateway.catalogue.find(query).await?;
    let by_id = query.parse::<FileId>().is_ok();
    if found.kind != FileKind::Collection && path.is_none() {
        let file = Served { id: found.id, name: found.name.as_str(), immutable: by_id };
        let new = NewFile { name: Some(found.name.clone()), kind: found.kind, member_of: None };
        let request = gateway.request(found.id, found.id, new, found.size, 0..=u64::MAX);
        return gateway.content(&file, request, &headers).await;
    }
    let lists = state.lists.acquire().await;
    let list = {
        let request = GetRequest {
            id: found.id,
            name: None,
            kind: FileKind::Collection,
            size: found.size,
            output: None,
            force: false,
            durable: false,
        };
        let (progress, _) = watch::channel(Progress::default());
        let providers = Arc::clone(&gateway.providers);
        get_list(&gateway.downloader, &request, providers, &progress).await.map_err(failed)?
    };
    let not_found =
        || Problem::new(StatusCode::NOT_FOUND, format!("{} does not contain this path", found.name));
    let is_directory_url = path.is_some_and(|path| path.is_empty() || path.ends_with('/'));
    let path = path.unwrap_or_default().trim_end_matches('/');
    let path: Option<MemberPath> = match path {
        "" => None,
        path => Some(path.parse().map_err(|_| not_found())?),
    };
    if let Some(member) = path.as_ref().filter(|_| !is_directory_url).and_then(|path| member(&list, path)) {
        let Member { id, size, executable, ref path } = *member;
        let name = path.file_name().to_owned();
        drop((list, lists));
        let file = Served { id, name: &name, immutable: by_id };
        let new = NewFile { name: None, kind: FileKind::of_file(executable), member_of: Some(found.id) };
        let request = gateway.request(id, found.id, new, size, size..=size);
        return gateway.content(&file, request, &headers).await;
    }
    let listing = directory::Listing::new(&found, &list, path.as_ref()).ok_or_else(not_found)?;
    if !is_directory_url {
        // Relative links in a listing need the slash.
        let location =
            format!("{}/{}", uri.path(), uri.query().map_or(String::new(), |query| format!("?{query}")));
        return Ok((StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, location)]).into_response());
    }
    Ok(listing.response(&headers))
}

impl Gateway {
    fn request(
        &self,
        id: FileId,
        announced_as: FileId,
        file: NewFile,
        claimed_size: u64,
        accepted_sizes: std::ops::RangeInclusive<u64>,
    ) -> DownloadRequest {
        let (destination, providers) = (Destination::Library, Arc::clone(&self.providers));
        DownloadRequest { id, file, claimed_size, accepted_sizes, destination, announced_as, providers }
    }

    /// Replies with the content of a file, or the requested ranges of it.
    async fn content(
        &self,
        file: &Served<'_>,
        request: DownloadRequest,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        if let Some(response) = file.unchanged(headers) {
            return Ok(response);
        }
        let first = range::likely_start(headers, request.claimed_size);
        let reader = FileReader::open(&self.downloader, request, first).await.map_err(failed)?;
        Ok(file.response(reader, headers))
    }
}

/// Converts the error of a download.
#[allow(clippy::needless_pass_by_value)]
fn failed(error: Arc<DownloadError>) -> Problem {
    let problem = Problem::from(Failure::from(&*error));
    if problem.status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::warn!(%error, "request failed");
    }
    problem
}
