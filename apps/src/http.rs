//! The HTTP listener of a node: the gateway, the API, the dashboard, health checks and metrics.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use axum::Router;
use axum::http::StatusCode;
use enjambre_control::{Failure, ResultContext};
use enjambre_core::storage::database_file::{check_free_space, check_secret_file};
use enjambre_core::storage::inspect::with_causes;
use enjambre_core::{Storage, runtime};
use enjambre_http::Problem;
use enjambre_http::access::AccessRules;
use enjambre_http::gateway::{self, Catalogue, Gateway};
use enjambre_http::health::{self, Check, Health};
use enjambre_http::metrics::{self, Sources};
use enjambre_http::server::Server;
use enjambre_swarm::library::library::Library;
use enjambre_swarm::tracker_client::presence::{Presence, TrackerState};
use enjambre_swarm::tracker_client::trackers::Trackers;
use futures::TryFutureExt;
use rand::Rng;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::access::write_file;
use crate::config::error::ConfigError;
use crate::config::load::Loaded;
use crate::find::{Found, find};

/// The name of the token file in the data directory.
const TOKEN: &str = "http-token";
/// Number of random bytes in a created token.
const TOKEN_BYTES: usize = 24;

/// How long the result of a readiness check is used: a check syncs the databases.
const CHECK_VALIDITY: Duration = Duration::from_secs(2);
/// Maximum duration of a check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);
/// Free bytes below which a node is not ready.
const MIN_FREE: u64 = 64 * 1024 * 1024;

/// Finds files for the gateway.
pub(crate) struct Finder {
    pub(crate) library: Arc<Library>,
    pub(crate) trackers: Arc<Trackers>,
    /// Whether only files of the library are found, as at a tracker, whose quota applies to pinned files.
    pub(crate) only_stored: bool,
}

#[async_trait]
impl Catalogue for Finder {
    async fn find(&self, query: &str) -> Result<gateway::Found, Problem> {
        match find(&self.library, &self.trackers, query).await {
            Ok(Found { id, .. }) if self.only_stored && self.library.entry(&id).is_none() => {
                Err(Problem::new(
                    StatusCode::NOT_FOUND,
                    "this tracker does not store the file; pin it, or use a peer",
                ))
            }
            Ok(Found { id, name, kind, size, .. }) => Ok(gateway::Found { id, name, kind, size }),
            Err(error) => {
                let mut problem = Problem::from(Failure::from(error));
                if problem.status == StatusCode::INTERNAL_SERVER_ERROR {
                    // A tracker failed.
                    problem.status = StatusCode::BAD_GATEWAY;
                }
                Err(problem)
            }
        }
    }
}

/// Checks whether a node can serve requests.
pub(crate) struct Readiness {
    data_dir: PathBuf,
    storages: Vec<Arc<dyn Storage>>,
    /// `None` for trackers.
    presence: Option<Arc<Presence>>,
    latest: tokio::sync::Mutex<Option<(Instant, Vec<Check>)>>,
}

#[async_trait]
impl Health for Readiness {
    async fn check(&self) -> Vec<Check> {
        // Locked during the check on purpose: other requests wait for the same result.
        let mut latest = self.latest.lock().await;
        if let Some((time, checks)) = &*latest
            && time.elapsed() < CHECK_VALIDITY
        {
            return checks.clone();
        }
        let mut checks = vec![
            Check { name: "storage", problem: self.storage_problem().await },
            Check { name: "disk", problem: self.disk_problem().await },
        ];
        if let Some(presence) = &self.presence {
            let states = presence.status();
            let reason =
                |state: TrackerState| state.last_error.unwrap_or_else(|| "not connected yet".to_owned());
            let problem = match states.iter().any(|state| state.connected) {
                true => None,
                false => {
                    Some(states.into_iter().map(reason).next().unwrap_or_else(|| "no tracker".to_owned()))
                }
            };
            checks.push(Check { name: "tracker", problem });
        }
        *latest = Some((Instant::now(), checks.clone()));
        checks
    }
}

impl Readiness {
    /// Checks these databases, the disk of the data directory, and for a peer its trackers.
    pub(crate) fn new(
        data_dir: &Path,
        storages: Vec<Arc<dyn Storage>>,
        presence: Option<Arc<Presence>>,
    ) -> Self {
        Self { data_dir: data_dir.to_owned(), storages, presence, latest: tokio::sync::Mutex::default() }
    }

    /// Syncs the databases, which writes to them.
    async fn storage_problem(&self) -> Option<String> {
        for storage in &self.storages {
            let check = async { storage.sync().await.map_err(|error| with_causes(&error)) };
            if let Some(problem) = problem(check).await {
                return Some(problem);
            }
        }
        None
    }

    async fn disk_problem(&self) -> Option<String> {
        let path = self.data_dir.clone();
        let check = crate::blocking(move || Ok(check_free_space(&path, MIN_FREE)?));
        problem(check.map_err(|failure: Failure| failure.message)).await
    }
}

/// Waits for a check. Returns why it failed.
async fn problem(check: impl Future<Output = Result<(), String>>) -> Option<String> {
    let too_late = |_| Err(format!("no reply within {} s", CHECK_TIMEOUT.as_secs()));
    timeout(CHECK_TIMEOUT, check).await.unwrap_or_else(too_late).err()
}

/// A running HTTP listener.
#[derive(Debug)]
pub(crate) struct HttpServer {
    pub(crate) urls: Vec<String>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Starts the listener of a node with this data directory. Returns `None` if `http.listen` is empty.
    pub(crate) async fn start(
        loaded: &Loaded,
        data_dir: &Path,
        gateway: Option<Gateway>,
        health: Arc<dyn Health>,
        sources: Sources,
        api: Router,
    ) -> Result<Option<Self>, Failure> {
        let settings = &loaded.config.http;
        if settings.listen.is_empty() {
            return Ok(None);
        }
        let copy = loaded.clone();
        let Files { token, tls } = crate::blocking(move || Ok(Files::read(&copy)?)).await?;
        let token = match token {
            Some(token) => token,
            None => load_or_create_token(data_dir).await?,
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let listen: Vec<_> = settings.listen.iter().map(|address| address.get()).collect();
        let server = Server::bind(&listen, tls, Arc::clone(&sources.http)).await;
        let server = server.map_err(|(address, error)| {
            Failure::failed(format!("cannot listen on {address} for HTTP: {error}; change http.listen"))
        })?;
        let urls = server.addresses().into_iter().map(|address| format!("{scheme}://{address}/")).collect();
        let rules = Arc::new(AccessRules::new(&token, settings.allowed_hosts.iter().cloned()));
        let routes = health::routes(health)
            .merge(metrics::routes(sources))
            .merge(api)
            .merge(gateway.map(gateway::routes).unwrap_or_default())
            .fallback(async || Problem::new(StatusCode::NOT_FOUND, "this node has nothing at this path"));
        let stop = CancellationToken::new();
        let task = runtime::spawn(server.serve(routes, rules, stop.clone()));
        Ok(Some(Self { urls, stop, task }))
    }

    /// Stops listening, with `grace` for running requests.
    pub(crate) async fn stop(mut self, grace: Duration) {
        self.stop.cancel();
        if timeout(grace, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// The content of the files that the section `[http]` names.
pub(crate) struct Files {
    /// `None` if the token is in the data directory.
    token: Option<String>,
    tls: Option<Arc<ServerConfig>>,
}

impl Files {
    /// Reads and checks the files. Blocks.
    pub(crate) fn read(loaded: &Loaded) -> Result<Self, ConfigError> {
        let http = &loaded.config.http;
        if http.listen.is_empty() {
            return Ok(Self { token: None, tls: None });
        }
        let token = loaded
            .http_token_file()
            .map(|path| read_token(&path).inspect(|_| warn_if_accessible("http.token_file", &path)));
        let token = token.transpose().map_err(|problem| loaded.invalid("http.token_file", problem))?;
        let tls = if http.tls.cert.as_os_str().is_empty() { None } else { Some(tls_config(loaded)?.into()) };
        Ok(Self { token, tls })
    }
}

/// Logs a warning if other users can read or write the file of a setting. This is not an error, because container runtimes
/// mount secrets read-only, often with mode 0444. Blocks.
fn warn_if_accessible(setting: &str, path: &Path) {
    if let Err(error) = check_secret_file(path) {
        tracing::warn!(setting, path = %path.display(), %error, "secret file is not private");
    }
}

/// Reads a token. Returns the problem if there is none. Blocks.
fn read_token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| format!("cannot read the HTTP token in {}: {error}", path.display()))?;
    match text.trim() {
        "" => Err(format!("{} contains no HTTP token; write one to it", path.display())),
        token => Ok(token.to_owned()),
    }
}

/// Reads the token of the data directory, or creates it at the first start.
async fn load_or_create_token(data_dir: &Path) -> Result<String, Failure> {
    let path = data_dir.join(TOKEN);
    if tokio::fs::try_exists(&path).await? {
        return crate::blocking(move || read_token(&path).map_err(Failure::failed)).await;
    }
    let mut bytes = [0; TOKEN_BYTES];
    rand::rng().fill_bytes(&mut bytes);
    let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (folder, text) = (data_dir.to_owned(), format!("{token}\n"));
    let written = crate::blocking(move || Ok(write_file(&folder, TOKEN, text.as_bytes())?)).await;
    written.context(format!("cannot write {}", path.display()))?;
    tracing::info!(path = %path.display(), "HTTP token created");
    Ok(token)
}

/// Reads the certificate chain and the key. Blocks.
fn tls_config(loaded: &Loaded) -> Result<ServerConfig, ConfigError> {
    let (cert, key) = loaded.http_tls_files();
    let invalid_cert = |error: &dyn Display| loaded.invalid("http.tls.cert", error.to_string());
    let invalid_key = |error: &dyn Display| loaded.invalid("http.tls.key", error.to_string());
    let chain = CertificateDer::pem_file_iter(&cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| invalid_cert(&error))?;
    if chain.is_empty() {
        return Err(invalid_cert(&"the file contains no certificate"));
    }
    let secret = PrivateKeyDer::from_pem_file(&key).map_err(|error| invalid_key(&error))?;
    warn_if_accessible("http.tls.key", &key);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| invalid_cert(&error))?.with_no_client_auth();
    builder.with_single_cert(chain, secret).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => invalid_key(&"the key does not belong to the certificate"),
        error => invalid_cert(&error),
    })
}
