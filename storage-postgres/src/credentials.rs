//! The password and the certificates of connections.

use std::path::Path;
use std::sync::Arc;

use enjambre_core::storage::database_file::check_secret_file;
use enjambre_core::{Place, StorageError};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::settings::PostgresSettings;

/// The environment variable of libpq.
const PGPASSWORD: &str = "PGPASSWORD";

/// Returns the password from the source in the settings. Blocks.
pub(crate) fn password(settings: &PostgresSettings, place: &Place) -> Result<Option<String>, StorageError> {
    match (&settings.password_env, &settings.password_file) {
        (Some(_), Some(_)) => Err(StorageError::backend(
            "read the password",
            "both password_env and password_file are set; remove one of them",
        )),
        (Some(name), None) => std::env::var(name).map(Some).map_err(|_| {
            let cause = format!("the environment variable {name} from password_env is not set");
            StorageError::backend("read the password", cause)
        }),
        (None, Some(file)) => read_password(&place.input_file(file)).map(Some),
        (None, None) => Ok(std::env::var(PGPASSWORD).ok()),
    }
}

fn read_password(path: &Path) -> Result<String, StorageError> {
    let action = || format!("read password_file {}", path.display());
    let read = check_secret_file(path).and_then(|()| std::fs::read_to_string(path));
    let text = read.map_err(|error| StorageError::backend(action(), error))?;
    let password = text.strip_suffix('\n').map_or(&text[..], |line| line.strip_suffix('\r').unwrap_or(line));
    if password.is_empty() {
        return Err(StorageError::backend(action(), "the file is empty"));
    }
    Ok(password.to_owned())
}

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
