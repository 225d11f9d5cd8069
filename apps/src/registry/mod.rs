//! The storage backends and transports of a program, by name.
//!
//! There is no global registry: `main` creates the value and passes it on. A backend is a function that opens a storage
//! from settings of its own type, which are read from its table in the configuration. `builtin` names the built-in
//! plug-ins, `erased` stores plug-ins independent of their types, `validation` checks a configuration against the
//! registered plug-ins.

mod builtin;
mod erased;
pub(crate) mod locations;
mod validation;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use enjambre_control::{Failure, ResultContext};
use enjambre_core::storage::layers::observe::ObservedStorage;
use enjambre_core::storage::layers::retry::{Retry, RetryStorage};
use enjambre_core::{Dialer, Endpoint, KeyPair, Place, Role, Storage, Transport};
use enjambre_swarm::record_copy;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::error::{ConfigError, problem};
use crate::config::load::Loaded;
use crate::config::sections::LayersSection;
use erased::{Backend, Scheme, Transports, complete, erase};
pub use erased::{InvalidLimit, PluginError, Security, TransportParts};

/// The settings of a backend without settings.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Storage backends and transports by name.
#[derive(Default)]
pub(crate) struct Registry {
    storages: BTreeMap<String, Backend>,
    /// In the order of preference.
    transports: Vec<(String, Scheme)>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("storages", &self.backends())
            .field("transports", &self.schemes())
            .finish()
    }
}

impl Registry {
    /// Raises the limit of open files. To be called once, before listening: each connection uses a file descriptor.
    pub(crate) fn prepare_process(&self) {
        enjambre_transport::open_files::raise_open_file_limit();
    }

    /// Registers a storage backend. See [`crate::App::register_storage`].
    pub(crate) fn register_storage<S, F, Fut>(&mut self, name: impl Into<String>, open: F)
    where
        S: DeserializeOwned + Serialize,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn Storage>, PluginError>> + Send + 'static,
    {
        let name = name.into();
        assert!(
            !["backend", "layers"].contains(&name.as_str()),
            "a storage backend cannot be named {name:?}: storage.{name} is a common setting of all backends"
        );
        let backend = Backend {
            open: erase(open),
            complete: complete::<S>,
            check_files: None,
            is_volatile: false,
            remove_scratch: None,
            compact: None,
        };
        self.storages.insert(name, backend);
    }

    /// Registers a function that removes a scratch place. See [`crate::App::remove_scratch_with`].
    pub(crate) fn remove_scratch_with<S, F, Fut>(&mut self, name: &str, remove: F)
    where
        S: DeserializeOwned,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), PluginError>> + Send + 'static,
    {
        let Some(backend) = self.storages.get_mut(name) else {
            panic!("storage backend {name:?} is not registered; call register_storage first");
        };
        backend.remove_scratch = Some(erase(remove));
    }

    /// Registers a function that checks the files that the settings of a backend name.
    fn check_files_with<S, F, Fut>(&mut self, name: &str, check: F)
    where
        S: DeserializeOwned,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), PluginError>> + Send + 'static,
    {
        if let Some(backend) = self.storages.get_mut(name) {
            backend.check_files = Some(erase(check));
        }
    }

    /// Registers a function that returns the unused space of a closed database to the file system, and the number of its
    /// bytes.
    fn compact_with<S, F, Fut>(&mut self, name: &str, compact: F)
    where
        S: DeserializeOwned,
        F: Fn(S, Place, Role) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<u64, PluginError>> + Send + 'static,
    {
        if let Some(backend) = self.storages.get_mut(name) {
            backend.compact = Some(erase(compact));
        }
    }

    /// Returns the unused space of a closed database to the file system, and the number of its bytes. `None` if the backend
    /// cannot do this.
    pub(crate) async fn compact(
        &self,
        loaded: &Loaded,
        place: Place,
        role: Role,
    ) -> Result<Option<u64>, Failure> {
        let section = &loaded.config.storage;
        let Some(compact) = &self.backend(loaded)?.compact else { return Ok(None) };
        let compaction = compact(section.table(&section.backend), place, role)
            .map_err(|error| invalid_table(&section.backend, &error))?;
        compaction.await.context("cannot compact the database").map(Some)
    }

    /// Registers the transport of a scheme. See [`crate::App::register_transport`].
    pub(crate) fn register_transport<F>(&mut self, scheme: impl Into<String>, security: Security, create: F)
    where
        F: Fn(TransportParts<'_>) -> Result<Arc<dyn Transport>, InvalidLimit> + Send + Sync + 'static,
    {
        let scheme: String = scheme.into();
        self.register_transports(&[(&scheme, security)], move |parts| Ok(vec![create(parts)?]));
    }

    /// Registers transports that are created together because they share their limits.
    fn register_transports<F>(&mut self, schemes: &[(&str, Security)], create: F)
    where
        F: Fn(TransportParts<'_>) -> Result<Transports, InvalidLimit> + Send + Sync + 'static,
    {
        let create: Arc<erased::CreateTransports> = Arc::new(create);
        for &(name, security) in schemes {
            let scheme = Scheme { security, create: Arc::clone(&create) };
            match self.transports.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = scheme,
                None => self.transports.push((name.to_owned(), scheme)),
            }
        }
    }

    /// Returns the names of the registered storage backends.
    pub(crate) fn backends(&self) -> Vec<&str> {
        self.storages.keys().map(String::as_str).collect()
    }

    /// Returns the schemes of the registered transports, in the order of preference.
    pub(crate) fn schemes(&self) -> Vec<&str> {
        self.transports.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn scheme(&self, name: &str) -> Option<&Scheme> {
        self.transports.iter().find(|(known, _)| known == name).map(|(_, scheme)| scheme)
    }

    /// Returns whether the configured backend loses its data when the process ends.
    pub(crate) fn is_volatile(&self, loaded: &Loaded) -> bool {
        self.storages.get(&loaded.config.storage.backend).is_some_and(|backend| backend.is_volatile)
    }

    fn backend(&self, loaded: &Loaded) -> Result<&Backend, Failure> {
        let name = &loaded.config.storage.backend;
        self.storages.get(name).ok_or_else(|| Failure::usage(self.unknown_backend(name)))
    }

    /// Removes the data of a scratch place. Its storages must be closed.
    pub(crate) async fn remove_scratch(
        &self,
        loaded: &Loaded,
        place: Place,
        role: Role,
    ) -> Result<(), Failure> {
        let Some(scratch) = place.scratch.clone() else { return Ok(()) };
        let section = &loaded.config.storage;
        let mut outcome = Ok(());
        if let Some(remove) = &self.backend(loaded)?.remove_scratch {
            let removal = remove(section.table(&section.backend), place, role)
                .map_err(|error| invalid_table(&section.backend, &error))?;
            let action = format!("cannot remove {} from the {} storage", scratch.name(), section.backend);
            outcome = removal.await.context(action);
        }
        let removed = crate::blocking(move || scratch.remove().context("cannot remove scratch directory"));
        removed.await.and(outcome)
    }

    /// Opens a storage of the configured backend. Rejects the target of an incomplete copy.
    pub(crate) async fn open_storage(
        &self,
        loaded: &Loaded,
        place: Place,
        role: Role,
    ) -> Result<Arc<dyn Storage>, Failure> {
        let storage = self.open_incomplete(loaded, place, role).await?;
        let failure = match record_copy::mark::find(&*storage).await {
            Ok(None) => return Ok(storage),
            Ok(Some(_)) => Failure::failed(
                "the database contains an incomplete copy; run the same `enjambre storage copy` command again to resume \
                 it, or with --force to restart it",
            ),
            Err(error) => Failure::from(error),
        };
        // The storage was not written, so an error of `close` does not matter.
        let _ = storage.close().await;
        Err(failure.context(format!("cannot use the {} storage", loaded.config.storage.backend)))
    }

    /// Like [`Self::open_storage`], but accepts the target of an incomplete copy.
    pub(crate) async fn open_incomplete(
        &self,
        loaded: &Loaded,
        place: Place,
        role: Role,
    ) -> Result<Arc<dyn Storage>, Failure> {
        self.check_files(loaded, place.clone(), role).await?;
        let opened = self.try_open_storage(loaded, place, role).await?;
        opened.context(format!("cannot open the {} storage", loaded.config.storage.backend))
    }

    /// Like [`Self::open_incomplete`], but without [`Self::check_files`], and returns an error of the backend unchanged.
    pub(crate) async fn try_open_storage(
        &self,
        loaded: &Loaded,
        place: Place,
        role: Role,
    ) -> Result<Result<Arc<dyn Storage>, PluginError>, Failure> {
        let section = &loaded.config.storage;
        let (data_dir, scratch) = (place.data_dir.clone(), place.scratch.clone());
        let opening = (self.backend(loaded)?.open)(section.table(&section.backend), place, role)
            .map_err(|error| invalid_table(&section.backend, &error))?;
        match scratch {
            Some(scratch) => {
                let action = format!("cannot create scratch directory {}", scratch.data_dir().display());
                crate::blocking(move || scratch.create().context(action)).await?;
            }
            None => tokio::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data_dir).await?,
        }
        Ok(opening.await.map(|storage| wrap(storage, &section.layers, role)))
    }

    /// Returns whether the transport of an endpoint authenticates both sides of a connection.
    pub(crate) fn is_authenticated(&self, endpoint: &Endpoint) -> bool {
        self.scheme(endpoint.scheme()).is_some_and(|known| known.security == Security::Authenticated)
    }

    /// Creates a dialer over all transports, for the node with this key.
    pub(crate) fn dialer(&self, loaded: &Loaded, key: &KeyPair) -> Result<Arc<Dialer>, ConfigError> {
        let parts = TransportParts { limits: &loaded.config.transport.limits, key };
        let transports = self
            .create_transports(parts)
            .map_err(|error| loaded.invalid(&format!("transport.limits.{}", error.key), error.problem))?;
        Ok(Arc::new(Dialer::new(transports)))
    }

    /// Creates the transport of each scheme, in the order of preference.
    fn create_transports(&self, parts: TransportParts<'_>) -> Result<Transports, InvalidLimit> {
        let mut families: Vec<(&Arc<erased::CreateTransports>, Transports)> = Vec::new();
        let mut transports = Vec::new();
        for (name, Scheme { create, .. }) in &self.transports {
            if !families.iter().any(|(known, _)| Arc::ptr_eq(known, create)) {
                families.push((create, create(parts)?));
            }
            let family = families.iter().filter(|(known, _)| Arc::ptr_eq(known, create));
            let transport =
                family.flat_map(|(_, created)| created).find(|transport| transport.scheme() == name);
            transports.extend(transport.cloned());
        }
        Ok(transports)
    }
}

fn invalid_table(backend: &str, error: &toml::de::Error) -> Failure {
    Failure::usage(format!("invalid section [storage.{backend}]: {}", problem(error)))
}

/// Wraps a storage in the layers. The metrics include retries.
fn wrap(mut storage: Arc<dyn Storage>, layers: &LayersSection, role: Role) -> Arc<dyn Storage> {
    let retry = Retry { timeout: layers.timeout.get(), retries: layers.retries };
    if retry != Retry::default() {
        storage = Arc::new(RetryStorage::new(storage, retry));
    }
    Arc::new(ObservedStorage::new(storage, role.name()))
}

#[cfg(test)]
mod tests;
