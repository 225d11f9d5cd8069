//! Uploads: `PUT /files/NAME`, and `POST /files` with the files of an HTML form.
//!
//! The node hashes and stores the content while it arrives. It checks the free space before it accepts content, and the
//! content waits for the disk. An upload that ends early leaves nothing behind.

use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, BodyDataStream};
use axum::extract::multipart::Field;
use axum::extract::{self, FromRequest, Multipart, Path, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use enjambre_control::{Command, Event, Execute, Published, run_locally};
use enjambre_core::Name;
use enjambre_core::model::name::MAX_NAME;
use enjambre_core::storage::inspect::with_causes;
use futures::{Stream, StreamExt};
use percent_encoding::utf8_percent_encode;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::sync::{SemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;

use super::content::{contains_etag, etag};
use super::{ESCAPED, State};
use crate::problem::Problem;
use crate::timed_body::Stalled;

/// Maximum number of concurrent uploads.
pub(super) const MAX_UPLOADS: usize = 16;
/// Size of the parts in which the node receives content. Three of them are in memory for each upload.
const PART: usize = 256 * 1024;
/// Maximum number of bytes of a form between the contents of its files.
const MAX_FORM_TEXT: usize = 64 * 1024;
/// Time for which the rest of a refused upload is received.
const LINGER: Duration = Duration::from_secs(5);

/// The published files of a form.
#[derive(Serialize)]
struct PublishedFiles {
    published: Vec<Published>,
}

/// Publishes the body under the name in the URL.
pub(super) async fn put(
    extract::State(state): extract::State<Arc<State>>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let content = Upload::new(headers, body);
    let (node, _slot) = begin(&state)?;
    let name = parse(&name)?;
    if headers.contains_key(header::CONTENT_RANGE) {
        // RFC 9110, section 14.4.
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "an upload cannot be continued; send the whole file",
        ));
    }
    check_precondition(&state, &name, headers).await?;
    let published = publish(node, name, length(headers), content).await?;
    let location = format!("/files/{}", utf8_percent_encode(published.name.as_str(), ESCAPED));
    let fields = [(header::LOCATION, location), (header::ETAG, etag(&published.id))];
    Ok((StatusCode::CREATED, fields, Json(published)).into_response())
}

/// Publishes the files of a form, each under its file name or the value of a preceding field `name`.
pub(super) async fn post(
    extract::State(state): extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let content = Upload::new(&parts.headers, body);
    let (node, _slot) = begin(&state)?;
    let size = length(&parts.headers);
    // The parser reads the names and header fields of a form into memory.
    let text = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&text);
    let limited = content.map(move |bytes| {
        let bytes = bytes?;
        match seen.fetch_add(bytes.len(), Ordering::Relaxed) {
            0..MAX_FORM_TEXT => Ok(bytes),
            _ => Err(axum::Error::new(io::Error::other("a field of the form is too long"))),
        }
    });
    let form = Multipart::from_request(Request::from_parts(parts, Body::from_stream(limited)), &()).await;
    let mut form = form.map_err(|refused| Problem::new(refused.status(), refused.body_text()))?;
    let (mut name, mut published) = (None, Vec::new());
    while let Some(field) = form.next_field().await.map_err(|error| after(&published, broken(&error)))? {
        text.store(0, Ordering::Relaxed);
        let Some(file_name) = field.file_name() else {
            if field.name() == Some("name") {
                name = Some(read_name(field).await?);
            }
            continue;
        };
        let name = name.take().unwrap_or_else(|| file_name.to_owned());
        let content = field.inspect(|_| text.store(0, Ordering::Relaxed));
        match async { publish(node, parse(&name)?, size, content).await }.await {
            Ok(file) => published.push(file),
            Err(problem) => return Err(after(&published, problem)),
        }
    }
    if published.is_empty() {
        return Err(Problem::new(StatusCode::BAD_REQUEST, "the form contains no file"));
    }
    Ok((StatusCode::CREATED, Json(PublishedFiles { published })).into_response())
}

/// Returns the node that publishes, and a slot to hold during the upload.
fn begin(state: &State) -> Result<(&dyn Execute, SemaphorePermit<'_>), Problem> {
    let Some(node) = &state.gateway.publisher else {
        let text =
            "a tracker does not publish files; upload to a peer, which can pin the file at this tracker";
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    };
    let slot = state.uploads.try_acquire().map_err(|_| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{MAX_UPLOADS} uploads are running; try again later"),
        )
    })?;
    Ok((&**node, slot))
}

fn parse(name: &str) -> Result<Name, Problem> {
    name.parse().map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Checks `If-Match` and `If-None-Match`. Another peer may publish the name afterwards.
async fn check_precondition(state: &State, name: &Name, headers: &HeaderMap) -> Result<(), Problem> {
    if !headers.contains_key(header::IF_MATCH) && !headers.contains_key(header::IF_NONE_MATCH) {
        return Ok(());
    }
    let current = match state.gateway.catalogue.find(name.as_str()).await {
        Ok(found) => Some(etag(&found.id)),
        Err(problem) if problem.status == StatusCode::NOT_FOUND => None,
        Err(problem) => return Err(problem),
    };
    if contains_etag(headers, header::IF_MATCH, current.as_deref()) == Some(false)
        || contains_etag(headers, header::IF_NONE_MATCH, current.as_deref()) == Some(true)
    {
        let text = match current {
            Some(id) => format!("{name} exists already, with the entity tag {id}"),
            None => format!("{name} does not exist"),
        };
        return Err(Problem::new(StatusCode::PRECONDITION_FAILED, text));
    }
    Ok(())
}

/// Publishes content. Reads it when the node has checked the size and is ready to receive it.
async fn publish<E: Error + 'static>(
    node: &dyn Execute,
    name: Name,
    size: Option<u64>,
    content: impl Stream<Item = Result<Bytes, E>> + Send,
) -> Result<Published, Problem> {
    let (sender, input) = mpsc::channel(1);
    let (ready, accepted) = oneshot::channel();
    let (mut ready, mut published) = (Some(ready), None);
    let mut show = |event| {
        if let Some(ready) = ready.take() {
            let _ = ready.send(());
        }
        if let Event::Published(file) = event {
            published = Some(file);
        }
    };
    let command = Command::PublishInput { name, size, pin: false };
    let running = run_locally(node, command, input, &mut show);
    let sending = async {
        match accepted.await {
            Ok(()) => send(content, sender).await,
            Err(_) => Ok(()),
        }
    };
    tokio::select! {
        biased;
        result = running => result?,
        Err(problem) = sending => return Err(problem),
    }
    published.ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the file was not published"))
}

/// Sends the content to the node in large parts. An empty part is its end.
async fn send<E: Error + 'static>(
    content: impl Stream<Item = Result<Bytes, E>>,
    node: mpsc::Sender<io::Result<Vec<u8>>>,
) -> Result<(), Problem> {
    let mut content = pin!(content);
    let mut part = Vec::new();
    while let Some(bytes) = content.next().await {
        part.extend_from_slice(&bytes.map_err(|error| broken(&error))?);
        if part.len() >= PART {
            // An error means that the command has failed, which the caller notices.
            let _ = node.send(Ok(std::mem::replace(&mut part, Vec::with_capacity(PART)))).await;
        }
    }
    if !part.is_empty() {
        let _ = node.send(Ok(part)).await;
    }
    let _ = node.send(Ok(Vec::new())).await;
    Ok(())
}

/// Reads the value of a field.
async fn read_name(mut field: Field<'_>) -> Result<String, Problem> {
    let mut name = Vec::new();
    while let Some(bytes) = field.chunk().await.map_err(|error| broken(&error))? {
        name.extend_from_slice(&bytes);
        if name.len() > MAX_NAME {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                format!("the name is longer than {MAX_NAME} bytes"),
            ));
        }
    }
    String::from_utf8(name).map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the name is not UTF-8"))
}

/// The problem of a body that cannot be read.
fn broken(error: &(dyn Error + 'static)) -> Problem {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    match causes.any(|cause| cause.is::<Stalled>()) {
        true => Problem::new(StatusCode::REQUEST_TIMEOUT, "the upload made no progress"),
        false => {
            Problem::new(StatusCode::BAD_REQUEST, format!("cannot read the upload: {}", with_causes(error)))
        }
    }
}

/// Adds the files of the same form that were published before.
fn after(published: &[Published], mut problem: Problem) -> Problem {
    for (at, file) in published.iter().enumerate() {
        problem.detail.push_str(if at == 0 { "; published before: " } else { ", " });
        problem.detail.push_str(file.name.as_str());
    }
    problem
}

/// The body of an upload. If it is refused, the rest is received for a while: a client that sends would not see the response,
/// because the connection is reset.
struct Upload {
    /// `None` at its end.
    body: Option<BodyDataStream>,
    /// Whether the client waits for the permission to send.
    asks: bool,
}

impl Upload {
    fn new(headers: &HeaderMap, body: Body) -> Self {
        Self { body: Some(body.into_data_stream()), asks: headers.contains_key(header::EXPECT) }
    }
}

impl Stream for Upload {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = std::task::ready!(body.poll_next_unpin(context));
        if !matches!(next, Some(Ok(_))) {
            self.body = None;
        }
        // From now on the client sends.
        self.asks = false;
        Poll::Ready(next)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|_| !self.asks) else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(LINGER, async move { while let Some(Ok(_)) = body.next().await {} }));
        }
    }
}
