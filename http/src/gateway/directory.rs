//! Listings of directories, as HTML or JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use enjambre_core::{Collection, FileId, MemberPath};
use percent_encoding::utf8_percent_encode;
use serde::Serialize;

use super::{ESCAPED, Found};

/// The files and subdirectories of one directory.
#[derive(Serialize)]
pub(super) struct Listing<'a> {
    name: &'a str,
    /// The id of the published directory.
    id: FileId,
    /// The path below the published directory.
    path: &'a str,
    entries: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    name: &'a str,
    #[serde(flatten)]
    kind: Kind,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Kind {
    File { size: u64, id: FileId },
    Directory { size: u64, files: u64 },
}

impl<'a> Listing<'a> {
    /// Lists a directory of a collection. Returns `None` if it does not exist.
    pub(super) fn new(found: &'a Found, list: &'a Collection, path: Option<&'a MemberPath>) -> Option<Self> {
        fn below<'p>(member: &'p MemberPath, path: Option<&MemberPath>) -> Option<&'p str> {
            path.map_or(Some(member.as_str()), |path| member.relative_to(path))
        }
        let mut entries: BTreeMap<&str, Kind> = BTreeMap::new();
        for member in list.members() {
            let Some(relative) = below(&member.path, path) else { continue };
            match relative.split_once('/') {
                None => {
                    entries.insert(relative, Kind::File { size: member.size, id: member.id });
                }
                Some((directory, _)) => {
                    let entry = entries.entry(directory).or_insert(Kind::Directory { size: 0, files: 0 });
                    if let Kind::Directory { size, files } = entry {
                        *size = size.saturating_add(member.size);
                        *files += 1;
                    }
                }
            }
        }
        let mut exists = path.is_none() || !entries.is_empty();
        for directory in list.directories() {
            exists |= Some(directory) == path;
            let Some(relative) = below(directory, path) else { continue };
            let name = relative.split_once('/').map_or(relative, |(first, _)| first);
            entries.entry(name).or_insert(Kind::Directory { size: 0, files: 0 });
            exists = true;
        }
        let entries = entries.into_iter().map(|(name, kind)| Entry { name, kind }).collect();
        let path = path.map_or("", MemberPath::as_str);
        exists.then_some(Self { name: found.name.as_str(), id: found.id, path, entries })
    }

    /// Replies with HTML to clients that prefer it, otherwise with JSON.
    pub(super) fn response(&self, headers: &HeaderMap) -> Response {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
        let body = match accept.contains("application/json") && !accept.contains("text/html") {
            true => Json(self).into_response(),
            false => Html(self.html()).into_response(),
        };
        let fixed = [
            (header::CACHE_CONTROL, "private, no-cache"),
            (
                header::CONTENT_SECURITY_POLICY,
                "sandbox allow-downloads; default-src 'none'; frame-ancestors 'none'",
            ),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::VARY, "accept"),
        ];
        (fixed, body).into_response()
    }

    fn html(&self) -> String {
        let mut title = escape(self.name);
        if !self.path.is_empty() {
            let _ = write!(title, "/{}", escape(self.path));
        }
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"color-scheme\" content=\"light dark\">\
             <meta name=\"viewport\" content=\"width=device-width\"><title>{title}</title></head>\n\
             <body><h1><bdi>{title}</bdi></h1>\n<table>\n<tr><th align=\"left\">Name</th><th align=\"right\">Bytes</th></tr>\n"
        );
        if !self.path.is_empty() {
            html.push_str("<tr><td><a href=\"../\">../</a></td><td></td></tr>\n");
        }
        for Entry { name, kind } in &self.entries {
            let (slash, size) = match kind {
                Kind::File { size, .. } => ("", size),
                Kind::Directory { size, .. } => ("/", size),
            };
            let (url, name) = (utf8_percent_encode(name, ESCAPED), escape(name));
            let _ = writeln!(
                html,
                "<tr><td><a href=\"./{url}{slash}\"><bdi>{name}</bdi>{slash}</a></td><td align=\"right\">{size}</td></tr>"
            );
        }
        html.push_str("</table>\n</body></html>\n");
        html
    }
}

/// Escapes text for HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
