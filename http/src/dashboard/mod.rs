//! The dashboard: one page per role at `/`, and its static files below `/dashboard/`.
//!
//! The files contain no data, so they need no token; all data comes from the API. There is no build step: the files are
//! embedded as they are in `http/dashboard/`.

use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::problem::Problem;

/// The page of a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Downloads and the library of a peer.
    Peer,
    /// The catalogue and the peers of a tracker.
    Tracker,
}

/// Scripts, styles and data come from this server only, and no other page can show this one in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// An embedded file.
struct StaticFile {
    name: &'static str,
    content_type: &'static str,
    content: &'static str,
    /// The hash of the content, in quotes.
    etag: HeaderValue,
}

/// Embeds files.
macro_rules! embed {
    ($($name:literal: $content_type:literal),* $(,)?) => {
        vec![$(StaticFile::new($name, $content_type, include_str!(concat!("../../dashboard/", $name)))),*]
    };
}

static FILES: LazyLock<Vec<StaticFile>> = LazyLock::new(|| {
    embed! {
        "peer.html": "text/html; charset=utf-8",
        "tracker.html": "text/html; charset=utf-8",
        "style.css": "text/css; charset=utf-8",
        "icon.svg": "image/svg+xml",
        "members.js": "text/javascript; charset=utf-8",
        "api.js": "text/javascript; charset=utf-8",
        "canvas.js": "text/javascript; charset=utf-8",
        "dom.js": "text/javascript; charset=utf-8",
        "downloads.js": "text/javascript; charset=utf-8",
        "file.js": "text/javascript; charset=utf-8",
        "format.js": "text/javascript; charset=utf-8",
        "language.js": "text/javascript; charset=utf-8",
        "library.js": "text/javascript; charset=utf-8",
        "peer.js": "text/javascript; charset=utf-8",
        "qr.js": "text/javascript; charset=utf-8",
        "rows.js": "text/javascript; charset=utf-8",
        "shell.js": "text/javascript; charset=utf-8",
        "tracker.js": "text/javascript; charset=utf-8",
    }
});

impl StaticFile {
    fn new(name: &'static str, content_type: &'static str, content: &'static str) -> Self {
        let hash = blake3::hash(content.as_bytes()).to_hex();
        let etag = HeaderValue::try_from(format!("\"{}\"", &hash[..32])).expect("digits are a valid header");
        Self { name, content_type, content, etag }
    }

    fn response(&self, headers: &HeaderMap) -> Response {
        let known = headers.get(header::IF_NONE_MATCH).is_some_and(|known| known == self.etag);
        let mut response = match known {
            true => StatusCode::NOT_MODIFIED.into_response(),
            false => self.content.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        for (name, value) in [
            (header::CONTENT_TYPE, self.content_type),
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

/// The routes of the dashboard.
pub fn routes(page: Page) -> Router {
    let name = match page {
        Page::Peer => "peer.html",
        Page::Tracker => "tracker.html",
    };
    Router::new()
        .route("/", get(move |headers| async move { serve(name, &headers) }))
        .route("/dashboard/{name}", get(async |Path(name): Path<String>, headers| serve(&name, &headers)))
}

/// Whether a path is of the dashboard.
pub(crate) fn is_dashboard(path: &str) -> bool {
    path == "/" || path.starts_with("/dashboard/")
}

fn serve(name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let file = FILES.iter().find(|file| file.name == name);
    file.map(|file| file.response(headers))
        .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "the dashboard has no such file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_take_at_most_150_kb() {
        let total: usize = FILES.iter().map(|file| file.content.len()).sum();
        assert!(total <= 150_000, "{total} bytes");
    }

    #[test]
    fn files_have_no_inline_code() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/dashboard");
        for file in std::fs::read_dir(folder).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            let file = FILES.iter().find(|file| file.name == name);
            let content = file.unwrap_or_else(|| panic!("{name} is not embedded")).content;
            // The policy would block them.
            for inline in ["<style", " style=\"", " onclick", "javascript:", "innerHTML", "<script>", "//cdn"]
            {
                assert!(!content.contains(inline), "{name} contains {inline}");
            }
        }
    }

    #[test]
    fn known_file_is_not_sent_again() {
        let first = serve("style.css", &HeaderMap::new()).unwrap();
        assert_eq!(first.status(), StatusCode::OK);
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, first.headers()[header::ETAG].clone());
        let second = serve("style.css", &headers).unwrap();
        assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
        assert_eq!(second.headers()[header::CONTENT_SECURITY_POLICY], POLICY);
        assert!(serve("../Cargo.toml", &headers).is_err());
    }
}
