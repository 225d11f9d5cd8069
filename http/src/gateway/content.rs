//! The response with the content of a file.

use std::io;
use std::ops::Range;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use enjambre_core::{FileId, runtime};
use enjambre_swarm::download::reader::FileReader;
use futures::{FutureExt, stream};
use percent_encoding::utf8_percent_encode;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

use super::ESCAPED;
use super::range::{Requested, requested};
use crate::problem::Problem;

/// Parts of the content that are read before the client has received the previous one.
const READ_AHEAD: usize = 1;
/// Separates the parts of a response with several ranges. The content is not searched for it: every part has a length.
const BOUNDARY: &str = "enjambre-3d6b6a416f9b5c28a1e0";

/// For content of strangers: no script, no access to this origin, not in pages of others.
const SANDBOX: &str =
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'";
/// The same for media, which contain no scripts. A sandboxed player could not fetch the content again.
const MEDIA: &str =
    "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'";

/// A file to serve.
pub(super) struct Served<'a> {
    pub(super) id: FileId,
    pub(super) name: &'a str,
    /// Whether the URL always has the same content.
    pub(super) immutable: bool,
}

/// A part of a body.
enum Part {
    Text(String),
    Content(Range<u64>),
}

/// The strong entity tag: content with another hash has another one.
pub(super) fn etag(id: &FileId) -> String {
    format!("\"{id}\"")
}

/// Whether the entity tags in the fields with this name contain the given one, which exists only if the file does. `None`
/// if there is no such field.
pub(super) fn contains_etag(headers: &HeaderMap, name: HeaderName, etag: Option<&str>) -> Option<bool> {
    // RFC 9110, section 13.1.
    let weak = name == header::IF_NONE_MATCH;
    let mut values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).peekable();
    values.peek()?;
    let mut tags = values.flat_map(|value| value.split(',')).map(str::trim);
    let Some(etag) = etag else { return Some(false) };
    Some(tags.any(|tag| {
        tag == "*" || tag == etag || weak && tag.strip_prefix("W/").is_some_and(|tag| tag == etag)
    }))
}

impl Served<'_> {
    fn etag(&self) -> String {
        etag(&self.id)
    }

    /// Returns the response if the condition of the request does not hold, RFC 9110, section 13.
    pub(super) fn unchanged(&self, headers: &HeaderMap) -> Option<Response> {
        let etag = self.etag();
        let contains = |name| contains_etag(headers, name, Some(&etag));
        if contains(header::IF_MATCH) == Some(false) {
            let text = format!("the entity tag of the content is {etag}");
            return Some(Problem::new(StatusCode::PRECONDITION_FAILED, text).into_response());
        }
        let is_unchanged = contains(header::IF_NONE_MATCH) == Some(true);
        is_unchanged.then(|| (StatusCode::NOT_MODIFIED, self.caching()).into_response())
    }

    fn caching(&self) -> [(HeaderName, String); 2] {
        let control =
            if self.immutable { "private, max-age=31536000, immutable" } else { "private, no-cache" };
        [(header::ETAG, self.etag()), (header::CACHE_CONTROL, control.to_owned())]
    }

    /// Replies with the content or the requested ranges of it.
    pub(super) fn response(&self, reader: FileReader, headers: &HeaderMap) -> Response {
        let size = reader.size();
        let kind = mime_guess::from_path(self.name).first_or_octet_stream().to_string();
        let is_media = ["video/", "audio/", "image/"].iter().any(|media| kind.starts_with(media))
            && !kind.starts_with("image/svg");
        let (status, kind, content_range, parts) = match requested(headers, &self.etag(), size) {
            Requested::Unsatisfiable => {
                let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
                let text = format!("the range is not in the content, which has {size} bytes");
                return (range, Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, text)).into_response();
            }
            Requested::Whole => (StatusCode::OK, kind, None, vec![Part::Content(0..size)]),
            Requested::Ranges(ranges) => match <[Range<u64>; 1]>::try_from(ranges) {
                Ok([range]) => {
                    let text = content_range(&range, size);
                    (StatusCode::PARTIAL_CONTENT, kind, Some(text), vec![Part::Content(range)])
                }
                Err(ranges) => {
                    let parts = multipart(ranges, &kind, size);
                    let kind = format!("multipart/byteranges; boundary={BOUNDARY}");
                    (StatusCode::PARTIAL_CONTENT, kind, None, parts)
                }
            },
        };
        let length: u64 = parts.iter().map(Part::len).sum();
        let name = utf8_percent_encode(self.name, ESCAPED);
        let fixed = [
            (header::ACCEPT_RANGES, "bytes"),
            (header::CONTENT_SECURITY_POLICY, if is_media { MEDIA } else { SANDBOX }),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        let described = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_LENGTH, length.to_string()),
            (header::CONTENT_DISPOSITION, format!("inline; filename*=UTF-8''{name}")),
        ];
        let mut response = (status, fixed, described, self.caching(), body(reader, parts)).into_response();
        if let Some(range) = content_range.and_then(|range| HeaderValue::try_from(range).ok()) {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
        response
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Content(range) => range.end - range.start,
        }
    }
}

fn content_range(range: &Range<u64>, size: u64) -> String {
    format!("bytes {}-{}/{size}", range.start, range.end - 1)
}

fn multipart(ranges: Vec<Range<u64>>, kind: &str, size: u64) -> Vec<Part> {
    let mut parts = Vec::new();
    for range in ranges {
        let range_text = content_range(&range, size);
        let head = format!("\r\n--{BOUNDARY}\r\nContent-Type: {kind}\r\nContent-Range: {range_text}\r\n\r\n");
        parts.extend([Part::Text(head), Part::Content(range)]);
    }
    parts.push(Part::Text(format!("\r\n--{BOUNDARY}--\r\n")));
    parts
}

/// Reads the parts while the client receives them, from the time when the body is polled. An error ends the body before
/// its announced length, so that the connection is closed.
fn body(reader: FileReader, parts: Vec<Part>) -> Body {
    let span = Span::current();
    let start = async move {
        let (sender, mut receiver) = mpsc::channel(READ_AHEAD);
        let sending = async move {
            let closed = sender.clone();
            tokio::select! {
                biased;
                () = closed.closed() => {}
                () = send_parts(reader, parts, &sender) => {}
            }
        };
        runtime::spawn(sending.instrument(span));
        stream::poll_fn(move |context| receiver.poll_recv(context))
    };
    Body::from_stream(start.flatten_stream())
}

/// Sends the parts until one cannot be read.
async fn send_parts(mut reader: FileReader, parts: Vec<Part>, sender: &mpsc::Sender<io::Result<Bytes>>) {
    for part in parts {
        let mut range = match part {
            Part::Content(range) => range,
            Part::Text(text) => {
                let _ = sender.send(Ok(text.into())).await;
                continue;
            }
        };
        while !range.is_empty() {
            let read = reader.read(range.start).await.map(|mut content| {
                content.truncate(usize::try_from(range.end - range.start).unwrap_or(usize::MAX));
                content
            });
            let is_error = read.is_err();
            let read = read.map_err(|error| {
                tracing::warn!(%error, "download for an HTTP client failed");
                io::Error::other(error.to_string())
            });
            range.start += read.as_ref().map_or(0, |content| content.len() as u64);
            // An error means that the client is gone, which the caller notices.
            let _ = sender.send(read).await;
            if is_error {
                return;
            }
        }
    }
}
