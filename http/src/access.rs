//! Who may send requests.
//!
//! On loopback, every user of the machine may. A web page of another origin may not, although it can make the browser of
//! such a user send requests: the `Host` header must name this server (DNS rebinding), and headers by which browsers tell
//! the origin of a request must not name another one (cross-site request forgery). Beyond loopback, requests need a token.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::dashboard::is_dashboard;
use crate::problem::Problem;
use crate::server::Client;

const HEALTH_PATHS: [&str; 2] = ["/healthz", "/readyz"];

/// Whether a path needs no token. The files of the dashboard contain no data.
fn is_public(path: &str) -> bool {
    HEALTH_PATHS.contains(&path) || is_dashboard(path)
}

/// Who sends an allowed request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller {
    /// Whether the caller is on this machine or has the token.
    pub(crate) is_trusted: bool,
}

/// Who may send requests.
#[derive(Debug)]
pub struct AccessRules {
    /// The hash of the token: its comparison takes the same time for all values.
    token: blake3::Hash,
    /// Host names that clients may use, in addition to IP addresses and `localhost`.
    hosts: HashSet<String>,
}

impl AccessRules {
    /// Creates rules. Host names are compared without case.
    pub fn new(token: &str, hosts: impl IntoIterator<Item = String>) -> Self {
        let hosts = hosts.into_iter().map(|host| host.to_ascii_lowercase()).collect();
        Self { token: blake3::hash(token.as_bytes()), hosts }
    }

    fn check(&self, request: &Request, client: Client) -> Result<Caller, Refusal> {
        let headers = request.headers();
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(Ok(host)), None) = (hosts.next().map(HeaderValue::to_str), hosts.next()) else {
            return Err(Refusal::InvalidHost);
        };
        let name = host_name(host);
        if name.is_empty() {
            return Err(Refusal::InvalidHost);
        }
        if !self.is_own(&name) {
            return Err(Refusal::Host(name));
        }
        if is_cross_site(request.method(), headers, host, client.encrypted) {
            return Err(Refusal::Origin);
        }
        let is_public = client.is_local || is_public(request.uri().path());
        // A wrong token is refused on loopback, too.
        match headers.get(header::AUTHORIZATION) {
            Some(value) if self.is_token(value) => Ok(Caller { is_trusted: true }),
            None if is_public => Ok(Caller { is_trusted: client.is_local }),
            _ => Err(Refusal::Token),
        }
    }

    /// Whether a host name is of this server. An IP address cannot be rebound.
    fn is_own(&self, name: &str) -> bool {
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        address.parse::<IpAddr>().is_ok() || name == "localhost" || self.hosts.contains(name)
    }

    /// Whether an `Authorization` header has the token: as a bearer token, or as the password of any user.
    fn is_token(&self, value: &HeaderValue) -> bool {
        let Some((scheme, value)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else {
            return false;
        };
        let token = if scheme.eq_ignore_ascii_case("bearer") {
            Some(value.trim().to_owned())
        } else if scheme.eq_ignore_ascii_case("basic") {
            let decoded = STANDARD.decode(value.trim()).ok().and_then(|text| String::from_utf8(text).ok());
            decoded.and_then(|text| Some(text.split_once(':')?.1.to_owned()))
        } else {
            None
        };
        token.is_some_and(|token| blake3::hash(token.as_bytes()) == self.token)
    }
}

/// Returns the name in a `Host` header, without the port.
fn host_name(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.to_ascii_lowercase()
}

/// Whether a browser sends this request for a page of another origin. Following a link is not forbidden.
fn is_cross_site(method: &Method, headers: &HeaderMap, host: &str, encrypted: bool) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(origin) = headers.get(header::ORIGIN) {
        let has_scheme =
            |scheme| origin.as_bytes().eq_ignore_ascii_case(format!("{scheme}://{host}").as_bytes());
        // A proxy in front of an unencrypted listener may encrypt.
        if !has_scheme("https") && (encrypted || !has_scheme("http")) {
            return true;
        }
    }
    let is_link = matches!(*method, Method::GET | Method::HEAD)
        && text("sec-fetch-mode") == Some("navigate")
        && text("sec-fetch-dest") == Some("document");
    matches!(text("sec-fetch-site"), Some("cross-site" | "same-site")) && !is_link
}

enum Refusal {
    /// The `Host` header is missing, repeated, or names no host (RFC 9112, section 3.2).
    InvalidHost,
    /// The unknown name in the `Host` header.
    Host(String),
    Origin,
    Token,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::InvalidHost => {
                Problem::new(StatusCode::BAD_REQUEST, "the request has no valid Host header").into_response()
            }
            Self::Host(name) => {
                let text = format!(
                    "unknown host name {name:?}; if this node has this name, add it to the setting \
                     http.allowed_hosts"
                );
                Problem::new(StatusCode::MISDIRECTED_REQUEST, text).into_response()
            }
            Self::Origin => {
                Problem::new(StatusCode::FORBIDDEN, "request from a page of another origin").into_response()
            }
            Self::Token => {
                let mut response =
                    Problem::new(StatusCode::UNAUTHORIZED, "missing or wrong token").into_response();
                let challenge = HeaderValue::from_static("Basic realm=\"enjambre\", charset=\"UTF-8\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
                response
            }
        }
    }
}

/// Refuses requests that the rules do not allow.
pub(crate) async fn check(
    State(rules): State<Arc<AccessRules>>,
    ConnectInfo(client): ConnectInfo<Client>,
    mut request: Request,
    next: Next,
) -> Response {
    match rules.check(&request, client) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(client: Client, path: &str, headers: &[(&str, &str)]) -> u16 {
        let rules = AccessRules::new("secret", ["Files.Example".to_owned()]);
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        match rules.check(&request, client) {
            Ok(_) => 200,
            Err(refusal) => refusal.into_response().status().as_u16(),
        }
    }

    const REMOTE: Client = Client { is_local: false, encrypted: true };
    const LOCAL: Client = Client { is_local: true, encrypted: false };
    const HOST: (&str, &str) = ("host", "files.example:7780");

    #[test]
    fn token_is_required_beyond_loopback_for_data() {
        let with = |value: &str| status(REMOTE, "/files/x", &[HOST, ("authorization", value)]);
        assert_eq!(status(REMOTE, "/files/x", &[HOST]), 401);
        assert_eq!(status(REMOTE, "/", &[HOST]), 200);
        assert_eq!(status(REMOTE, "/dashboard/style.css", &[HOST]), 200);
        assert_eq!(status(REMOTE, "/api/v1/status", &[HOST]), 401);
        assert_eq!(status(REMOTE, "/healthz", &[HOST]), 200);
        assert_eq!(status(LOCAL, "/files/x", &[HOST]), 200);
        assert_eq!(with("Bearer secret"), 200);
        assert_eq!(with("bearer secret"), 200);
        assert_eq!(with(&format!("Basic {}", STANDARD.encode("anyone:secret"))), 200);
        for wrong in ["Bearer secret2", "Bearer", "Bearer ", "Basic secret", "Basic OnNlY3JldA", "secret"] {
            assert_eq!(with(wrong), 401, "{wrong}");
        }
    }

    #[test]
    fn host_must_name_this_server() {
        for host in
            ["files.example", "FILES.EXAMPLE:1", "localhost", "127.0.0.1:80", "[::1]:80", "[::1]", "10.1.2.3"]
        {
            assert_eq!(status(LOCAL, "/", &[("host", host)]), 200, "{host}");
        }
        for host in [
            "attacker.example",
            "files.example.attacker.example",
            "localhost.attacker.example:80",
            "127.0.0.1.example",
        ] {
            assert_eq!(status(LOCAL, "/", &[("host", host)]), 421, "{host}");
        }
    }

    #[test]
    fn request_without_one_valid_host_is_malformed() {
        let host = |value| ("host", value);
        for hosts in [&[][..], &[host("")], &[host(":80")], &[host("größe")], &[host("localhost"); 2]] {
            assert_eq!(status(LOCAL, "/", hosts), 400, "{hosts:?}");
        }
    }

    #[tokio::test]
    async fn refused_host_and_setting_are_named() {
        let response = Refusal::Host(host_name("Peer.example:7780")).into_response();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("\"peer.example\"") && detail.contains("http.allowed_hosts"), "{detail}");
    }

    #[test]
    fn origin_must_be_this_server() {
        let with = |client, origin: &str| status(client, "/healthz", &[HOST, ("origin", origin)]);
        assert_eq!(with(REMOTE, "https://files.example:7780"), 200);
        assert_eq!(with(REMOTE, "http://files.example:7780"), 403, "another scheme");
        assert_eq!(with(LOCAL, "https://files.example:7780"), 200, "a proxy encrypts");
        assert_eq!(with(LOCAL, "http://files.example"), 403, "another port");
        assert_eq!(with(LOCAL, "null"), 403, "a sandboxed page");
    }
}
