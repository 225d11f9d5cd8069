//! The certificates of connections.

use std::sync::Arc;

use enjambre_core::{Place, StorageError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::settings::PostgresSettings;

/// Returns the TLS configuration. Blocks.
pub(crate) fn tls_config(
    settings: &PostgresSettings,
    place: &Place,
    encrypted: bool,
) -> Result<ClientConfig, StorageError> {
    let mut roots = RootCertStore::empty();
    if let Some(ca) = &settings.ca {
        let path = place.input_file(ca);
        let action = || format!("read ca {}", path.display());
        let certificates = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| StorageError::backend(action(), error.to_string()))?;
        if certificates.is_empty() {
            return Err(StorageError::backend(action(), "the file contains no certificates"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| StorageError::backend(action(), error))?;
        }
    } else if encrypted {
        // Unsupported certificates in the store of the system are skipped.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StorageError::backend("set up TLS", error))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
