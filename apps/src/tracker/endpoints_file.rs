//! The file with the listen endpoints of a tracker, including the ports that the system chose.

use std::path::Path;

use enjambre_core::Endpoint;

use crate::access::write_file;

const FILE_NAME: &str = "endpoints";

/// Writes the endpoints of a running tracker. An error is logged only.
pub(super) async fn write(data_dir: &Path, endpoints: &[Endpoint]) {
    let lines: String = endpoints.iter().map(|endpoint| format!("{endpoint}\n")).collect();
    let folder = data_dir.to_owned();
    let written = crate::blocking(move || Ok(write_file(&folder, FILE_NAME, lines.as_bytes())?)).await;
    if let Err(error) = written {
        tracing::warn!(%error, "endpoints file write failed, `enjambre status` may not find this tracker");
    }
}

/// Returns the configured listen endpoints. If one of them has port 0, returns the endpoints that the running tracker has
/// written.
pub(crate) async fn effective(listen: &[Endpoint], data_dir: &Path) -> Vec<Endpoint> {
    if listen.iter().any(|endpoint| endpoint.port() == 0) {
        let text = tokio::fs::read_to_string(data_dir.join(FILE_NAME)).await.unwrap_or_default();
        let written: Vec<Endpoint> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if !written.is_empty() {
            return written;
        }
    }
    listen.to_vec()
}

/// Replaces the wildcard address of a listener of this machine by loopback.
pub(crate) fn dialable(listen: &Endpoint) -> Endpoint {
    if listen.is_unspecified() { listen.with_address([127, 0, 0, 1].into()) } else { listen.clone() }
}
