//! The members of the cluster from the settings, and the certificates of their connections.

use std::io::Error;
use std::path::Path;
use std::time::Duration;

use enjambre_core::storage::database_file::check_secret_file;
use enjambre_core::{Place, StorageError};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::settings::EtcdSettings;

/// The interval of HTTP/2 pings during requests. Members close connections with more than one ping in 5 seconds.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Returns the members. Reads the certificates. Blocks.
pub(crate) fn endpoints(settings: &EtcdSettings, place: &Place) -> Result<Vec<Endpoint>, StorageError> {
    if settings.endpoints.is_empty() {
        return Err(StorageError::backend(
            "use the list endpoints",
            "it is empty; add a member of the cluster",
        ));
    }
    let is_encrypted = settings.endpoints.iter().any(|url| url.starts_with("https://"));
    let tls = if is_encrypted { Some(tls_config(settings, place)?) } else { None };
    settings.endpoints.iter().map(|url| endpoint(settings, tls.clone(), url)).collect()
}

fn endpoint(
    settings: &EtcdSettings,
    tls: Option<ClientTlsConfig>,
    url: &str,
) -> Result<Endpoint, StorageError> {
    if url.contains('@') {
        let cause = "remove the user and the password; the settings user and password_file contain them";
        return Err(StorageError::backend("use a URL in endpoints", cause));
    }
    let action = || format!("use the endpoint {url:?}");
    let is_valid = |endpoint: &Endpoint| {
        let uri = endpoint.uri();
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.port().is_some() && uri.path() == "/"
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).ok().filter(is_valid).ok_or_else(|| {
        StorageError::backend(action(), "write it as http://HOST:PORT or https://HOST:PORT")
    })?;
    let endpoint = endpoint
        .connect_timeout(settings.connect_timeout)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    match tls {
        Some(tls) => endpoint.tls_config(tls).map_err(|error| StorageError::backend(action(), error)),
        None => Ok(endpoint),
    }
}

fn tls_config(settings: &EtcdSettings, place: &Place) -> Result<ClientTlsConfig, StorageError> {
    let read = |name: &str, file: &Path, is_secret| {
        let path = place.input_file(file);
        let checked = if is_secret { check_secret_file(&path) } else { Ok(()) };
        let text = checked.and_then(|()| std::fs::read_to_string(&path));
        // The client ignores other content.
        let text = text.and_then(|text| match text.contains("-----BEGIN ") {
            true => Ok(text),
            false => Err(Error::other("it contains no certificates or keys in PEM format")),
        });
        text.map_err(|error| StorageError::backend(format!("read {name} {}", path.display()), error))
    };
    let tls = match &settings.ca {
        Some(ca) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca", ca, false)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    match (&settings.cert, &settings.key) {
        (Some(cert), Some(key)) => {
            Ok(tls.identity(Identity::from_pem(read("cert", cert, false)?, read("key", key, true)?)))
        }
        (None, None) => Ok(tls),
        _ => Err(StorageError::backend("use the certificate", "set both cert and key, or none of them")),
    }
}

#[cfg(test)]
mod tests {
    use enjambre_core::Tenancy;

    use super::*;

    #[test]
    fn endpoints_need_scheme_and_port_and_contain_no_password() {
        let check = |url: &str| {
            let settings = EtcdSettings { endpoints: vec![url.to_owned()], ..EtcdSettings::default() };
            endpoints(&settings, &Place::new("/nonexistent", Tenancy::Shared)).map(drop)
        };
        check("http://localhost:2379").unwrap();
        check("http://[::1]:2379/").unwrap();
        for url in
            ["", "localhost", "localhost:2379", "http://localhost", "unix:/run/etcd", "http://a:1/path"]
        {
            let error = check(url).unwrap_err();
            assert!(error.to_string().contains(&format!("{url:?}")), "{error}");
        }
        let error = check("http://user:hunter2@localhost:2379").unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(
            endpoints(
                &EtcdSettings { endpoints: vec![], ..EtcdSettings::default() },
                &Place::new("/", Tenancy::Shared)
            )
            .is_err()
        );
    }

    #[test]
    fn certificate_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(folder.path(), Tenancy::Shared);
        let settings =
            EtcdSettings { endpoints: vec!["https://db:2379".to_owned()], ..EtcdSettings::default() };
        let refused = |settings: EtcdSettings, why: &str| {
            let error = endpoints(&settings, &place).unwrap_err();
            assert!(format!("{error} {error:?}").contains(why), "{error} {error:?}");
        };
        refused(EtcdSettings { ca: Some("missing.pem".into()), ..settings.clone() }, "read ca ");
        std::fs::write(folder.path().join("empty.pem"), "nothing").unwrap();
        refused(EtcdSettings { ca: Some("empty.pem".into()), ..settings.clone() }, "no certificates");
        refused(EtcdSettings { cert: Some("empty.pem".into()), ..settings }, "both cert and key");
    }
}
