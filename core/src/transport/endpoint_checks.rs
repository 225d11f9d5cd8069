//! Validation of endpoints, the same for all transports.

use super::error::TransportError;
use super::interface::Transport;
use crate::model::endpoint::Endpoint;

/// Checks that the transport can listen at the endpoint.
pub fn check_bind(transport: &dyn Transport, endpoint: &Endpoint) -> Result<(), TransportError> {
    check_scheme(transport, endpoint)?;
    if endpoint.id().is_none() || endpoint.id() == transport.identity() {
        return Ok(());
    }
    Err(invalid(endpoint, "a node listens under its own id; omit the id".to_owned()))
}

/// Checks that the transport can connect to the endpoint.
pub fn check_connect(transport: &dyn Transport, endpoint: &Endpoint) -> Result<(), TransportError> {
    check_scheme(transport, endpoint)?;
    let scheme = transport.scheme();
    let problem = match (transport.identity().is_some(), endpoint.id()) {
        (true, None) => format!("the id of the node is missing; use {scheme}://ID@HOST:PORT"),
        (false, Some(_)) => format!("{scheme}:// does not authenticate; omit the id, or use {scheme}s://"),
        _ if endpoint.port() == 0 => "port 0 is valid for listening only".to_owned(),
        _ if endpoint.is_unspecified() => {
            "the host is the unspecified address; use a specific address".to_owned()
        }
        _ => return Ok(()),
    };
    Err(invalid(endpoint, problem))
}

fn check_scheme(transport: &dyn Transport, endpoint: &Endpoint) -> Result<(), TransportError> {
    let scheme = transport.scheme();
    if endpoint.scheme() == scheme {
        return Ok(());
    }
    Err(invalid(endpoint, format!("this transport serves {scheme}:// only")))
}

fn invalid(endpoint: &Endpoint, problem: String) -> TransportError {
    TransportError::InvalidEndpoint { endpoint: endpoint.clone(), problem }
}
