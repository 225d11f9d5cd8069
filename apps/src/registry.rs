//! The storage backends and transports of a program, by name. The only file that names concrete plug-ins.
//!
//! There is no global registry: the value is made in `main` and handed down. A backend is a function that opens a
//! storage from settings of its own type, which are read from its table in the configuration.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use enjambre_core::model::endpoint::Endpoint;
use enjambre_core::model::identity::KeyPair;
use enjambre_core::storage::layers::metrics::MeteredStorage;
use enjambre_core::storage::layers::patience::{Patience, PatientStorage};
use enjambre_core::storage::layers::prefix::PrefixedStorage;
use enjambre_core::storage::memory::{Disk, Memory};
use enjambre_core::storage::{Role, Storage, copy};
use enjambre_core::transport::Transport;
use enjambre_core::transport::dialer::Dialer;
use enjambre_storage_postgres::{PostgresSettings, Tenancy};
use enjambre_storage_sled::SledSettings;
use enjambre_storage_sqlite::SqliteSettings;
use enjambre_transport::Shared;
use enjambre_transport::settings::{InvalidSetting, TransportSettings};
use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use toml::Table;

use crate::config::error::ConfigError;
use crate::config::load::Loaded;
use crate::config::sections::{LayersSection, NodeKind, TransportLimits};
use crate::failure::{Failure, Status};
use crate::scratch::Scratch;

/// What a storage is opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The folder that relative paths begin at. It exists.
    pub data_dir: PathBuf,
    /// Whose storage it is.
    pub kind: NodeKind,
    /// Whether it belongs to the copies that a tracker keeps. Their data folder is one of their own.
    pub store: bool,
    /// What it will hold. Storages of one place that differ only in this must not share a database.
    pub role: Role,
    /// Set where the storage is tried out and removed afterwards: then `data_dir` is a fresh folder, and what lies on a
    /// server is kept apart by the name of this.
    pub scratch: Option<Scratch>,
}

impl Place {
    /// A place that is tried out and removed afterwards.
    pub fn scratch(scratch: Scratch, kind: NodeKind, role: Role) -> Self {
        Self { data_dir: scratch.data_dir(), kind, store: false, role, scratch: Some(scratch) }
    }

    /// The path of a database: as configured, relative to the data folder, or named after what it is for. That of a
    /// scratch lies in a folder beside it.
    pub fn database(&self, configured: Option<&Path>, extension: &str) -> PathBuf {
        let path = configured.map_or_else(
            || match self.kind {
                NodeKind::Tracker => PathBuf::from("catalogue").with_extension(extension),
                NodeKind::Peer => PathBuf::from("library").with_extension(extension),
            },
            Path::to_owned,
        );
        if let Some(scratch) = &self.scratch {
            return scratch.database(&scratch.home().join(path));
        }
        let name = path.file_name().filter(|_| self.store && path.is_absolute());
        // The copies that a tracker keeps never share a database with its catalogue.
        match name {
            Some(name) => path.with_file_name("store").join(name),
            None => self.data_dir.join(path),
        }
    }
}

/// Why a storage or transport was not made.
pub type PluginError = Box<dyn std::error::Error + Send + Sync>;

type Opened = Result<Arc<dyn Storage>, PluginError>;
type Open = dyn Fn(Table, Place) -> Result<BoxFuture<'static, Opened>, toml::de::Error> + Send + Sync;
type Remove = dyn Fn(Table, Place) -> Result<BoxFuture<'static, Result<(), PluginError>>, toml::de::Error>
    + Send
    + Sync;
type Check = dyn Fn(Table) -> Result<(), toml::de::Error> + Send + Sync;
type Made = Vec<Arc<dyn Transport>>;
type Make = dyn Fn(TransportParts<'_>) -> Result<Made, MakeError> + Send + Sync;

/// What a transport is made of.
#[derive(Debug, Clone, Copy)]
pub struct TransportParts<'a> {
    /// `[transport.limits]`
    pub limits: &'a TransportLimits,
    /// The key of the node, by which others know it.
    pub key: &'a KeyPair,
}

/// Why the limits of a transport are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MakeError {
    /// The key in `[transport.limits]`.
    pub key: String,
    /// What is wrong with its value.
    pub problem: String,
}

impl From<InvalidSetting> for MakeError {
    fn from(error: InvalidSetting) -> Self {
        Self { key: error.key.to_owned(), problem: error.problem }
    }
}

/// Whether a transport encrypts and authenticates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Neither. On anything but loopback it must be asked for.
    Plain,
    /// Both.
    Authenticated,
}

struct Backend {
    open: Box<Open>,
    check: Box<Check>,
    /// Removes what lies elsewhere than in the folders of a scratch.
    remove_scratch: Option<Box<Remove>>,
}

struct Scheme {
    security: Security,
    /// The same for all transports that are made together.
    make: Arc<Make>,
}

/// Storage backends and transports by name.
#[derive(Default)]
pub struct Registry {
    storages: BTreeMap<String, Backend>,
    /// Those that are preferred first.
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
    /// What Enjambre brings along.
    pub fn stock() -> Self {
        let mut registry = Self::default();
        register_memory(&mut registry);
        registry.register_storage("sqlite", |mut table: Sqlite, place: Place| async move {
            table.path = Some(place.database(table.path.as_deref(), "db"));
            Ok(enjambre_storage_sqlite::open(&table.into(), &place.data_dir, place.role).await?)
        });
        registry.register_storage("sled", |mut table: Sled, place: Place| async move {
            table.path = Some(place.database(table.path.as_deref(), "sled"));
            Ok(enjambre_storage_sled::open(&table.into(), &place.data_dir, place.role).await?)
        });
        registry.register_storage("postgres", |settings: PostgresSettings, place: Place| async move {
            let (settings, tenancy) = on_server(settings, &place);
            Ok(enjambre_storage_postgres::open(&settings, &place.data_dir, place.role, tenancy).await?)
        });
        registry.remove_scratch_with("postgres", |settings: PostgresSettings, place: Place| async move {
            let (settings, tenancy) = on_server(settings, &place);
            Ok(enjambre_storage_postgres::remove(&settings, &place.data_dir, place.role, tenancy).await?)
        });
        // Of two that are as safe the first costs less.
        let schemes = [
            ("tcps", Security::Authenticated),
            ("zmqs", Security::Authenticated),
            ("tcp", Security::Plain),
            ("zmq", Security::Plain),
        ];
        registry.register_transports(&schemes, |TransportParts { limits, key }| {
            let shared = Shared::new(transport_settings(limits))?;
            let [tcps, zmqs] = shared.secure(key);
            Ok(vec![tcps, zmqs, shared.tcp(), shared.zmq()])
        });
        registry
    }

    /// To be called once, before listening: every connection costs file descriptors.
    pub fn prepare_process(&self) {
        enjambre_transport::open_files::raise_open_file_limit();
    }

    /// Adds a storage backend, or takes the place of the one with the same name. `S` is read from the table
    /// `[storage.NAME]`; it should refuse unknown fields. The name is of letters, digits, `_` and `-`.
    ///
    /// # Panics
    /// If the name is `backend` or `layers`: these keys of `[storage]` mean something else.
    pub fn register_storage<S, F, Fut>(&mut self, name: impl Into<String>, open: F)
    where
        S: DeserializeOwned,
        F: Fn(S, Place) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Opened> + Send + 'static,
    {
        let backend = Backend {
            open: Box::new(move |table, place| Ok(open(S::deserialize(table)?, place).boxed())),
            check: Box::new(|table| S::deserialize(table).map(drop)),
            remove_scratch: None,
        };
        let name = name.into();
        assert!(
            !["backend", "layers"].contains(&name.as_str()),
            "a storage backend cannot be named {name:?}, because storage.{name} is a setting of every backend; \
             register it under another name"
        );
        self.storages.insert(name, backend);
    }

    /// For a registered backend that keeps data elsewhere than in files, at the paths of [`Place::database`] or below the
    /// data folder: how to remove what lies at a place with a [`Place::scratch`], if there is something.
    ///
    /// # Panics
    /// If no backend with this name was registered before.
    pub fn remove_scratch_with<S, F, Fut>(&mut self, name: &str, remove: F)
    where
        S: DeserializeOwned,
        F: Fn(S, Place) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), PluginError>> + Send + 'static,
    {
        let Some(backend) = self.storages.get_mut(name) else {
            panic!(
                "there is no storage backend {name:?}; register it before saying how its scratch is removed"
            );
        };
        backend.remove_scratch =
            Some(Box::new(move |table, place| Ok(remove(S::deserialize(table)?, place).boxed())));
    }

    /// Adds the transport of a scheme, or takes the place of the one with the same scheme. Of a node that listens with
    /// several transports, the one is dialled that was added first.
    pub fn register_transport<F>(&mut self, scheme: impl Into<String>, security: Security, make: F)
    where
        F: Fn(TransportParts<'_>) -> Result<Arc<dyn Transport>, MakeError> + Send + Sync + 'static,
    {
        let scheme: String = scheme.into();
        self.register_transports(&[(&scheme, security)], move |parts| Ok(vec![make(parts)?]));
    }

    /// Adds transports that are made together, because they share their limits.
    fn register_transports<F>(&mut self, schemes: &[(&str, Security)], make: F)
    where
        F: Fn(TransportParts<'_>) -> Result<Made, MakeError> + Send + Sync + 'static,
    {
        let make: Arc<Make> = Arc::new(make);
        for &(name, security) in schemes {
            let scheme = Scheme { security, make: Arc::clone(&make) };
            match self.transports.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => *known = scheme,
                None => self.transports.push((name.to_owned(), scheme)),
            }
        }
    }

    /// The names of the storage backends.
    pub fn backends(&self) -> Vec<&str> {
        self.storages.keys().map(String::as_str).collect()
    }

    /// The schemes of the transports, those that are preferred first.
    pub fn schemes(&self) -> Vec<&str> {
        self.transports.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn scheme(&self, name: &str) -> Option<&Scheme> {
        self.transports.iter().find(|(known, _)| known == name).map(|(_, scheme)| scheme)
    }

    /// Checks what only the plug-ins know: names, tables, schemes, and that nothing is open by accident.
    pub fn check(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        let config = &loaded.config;
        let backend = &config.storage.backend;
        if !self.storages.contains_key(backend) {
            let problem =
                format!("there is no such storage backend; there are: {}", self.backends().join(", "));
            return Err(loaded.refuse("storage.backend", problem));
        }
        for (name, table) in &config.storage.tables {
            if let Some(known) = self.storages.get(name) {
                (known.check)(table.clone()).map_err(|error| {
                    let text = error.to_string();
                    let inner = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
                    let key = match inner {
                        Some(inner) => format!("storage.{name}.{inner}"),
                        None => unknown_field(error.message()).map_or_else(
                            || format!("storage.{name}"),
                            |field| format!("storage.{name}.{field}"),
                        ),
                    };
                    loaded.refuse(&key, error.message().replace('\n', "; "))
                })?;
            }
        }
        let transport = &config.transport;
        let all = [
            ("transport.listen", &transport.listen),
            ("transport.advertise", &transport.advertise),
            ("peer.trackers", &config.peer.trackers),
        ];
        for (key, endpoints) in all {
            for endpoint in endpoints {
                if self.scheme(endpoint.scheme()).is_none() {
                    let known = self.schemes().join("://, ");
                    let problem = format!("{endpoint} has a scheme that is not known; there are: {known}://");
                    return Err(loaded.refuse(key, problem));
                }
            }
        }
        let plain = |scheme: &str| self.scheme(scheme).is_some_and(|known| known.security == Security::Plain);
        for endpoint in &config.peer.trackers {
            let problem = match (plain(endpoint.scheme()), endpoint.id()) {
                (false, None) => format!(
                    "{endpoint} does not say which node must answer there; write {}://ID@HOST:PORT, as the tracker prints it",
                    endpoint.scheme()
                ),
                (true, Some(_)) => format!(
                    "{endpoint} has an id, which nobody proves over {}://; leave it out, or use an encrypted endpoint",
                    endpoint.scheme()
                ),
                _ => continue,
            };
            return Err(loaded.refuse("peer.trackers", problem));
        }
        let exposed =
            transport.listen.iter().find(|endpoint| plain(endpoint.scheme()) && !endpoint.is_loopback());
        if let (Some(endpoint), false) = (exposed, transport.open) {
            let secure =
                self.transports.iter().filter(|(_, known)| known.security == Security::Authenticated);
            let secure = secure.map(|(name, _)| format!("{name}://")).collect::<Vec<_>>().join(" or ");
            let problem = format!(
                "{endpoint} is neither encrypted nor authenticated and can be reached from other machines; \
                 listen at {secure} instead, set transport.open = true if that is meant, or listen on 127.0.0.1"
            );
            return Err(loaded.refuse("transport.listen", problem));
        }
        if loaded.is_by_invitation() {
            let trackers: &[_] = if loaded.kind == NodeKind::Peer { &config.peer.trackers } else { &[] };
            for (key, endpoints) in [
                ("transport.listen", &transport.listen[..]),
                ("transport.advertise", &transport.advertise),
                ("peer.trackers", trackers),
            ] {
                if let Some(endpoint) = endpoints.iter().find(|endpoint| plain(endpoint.scheme())) {
                    let problem = format!(
                        "this swarm is by invitation, and over {endpoint} nobody proves who they are; \
                         use {}s:// in its place, also on loopback",
                        endpoint.scheme()
                    );
                    return Err(loaded.refuse(key, problem));
                }
            }
        }
        // Any key will do to see whether they can be made.
        self.transports(loaded, &KeyPair::generate()).map(drop)
    }

    fn backend(&self, loaded: &Loaded) -> Result<&Backend, Failure> {
        let name = &loaded.config.storage.backend;
        self.storages.get(name).ok_or_else(|| {
            let known = self.backends().join(", ");
            Failure::usage(format!("there is no storage backend {name:?}; there are: {known}"))
        })
    }

    /// Removes what the storages left at a place with a scratch. They are closed.
    pub async fn remove_scratch(&self, loaded: &Loaded, place: Place) -> Result<(), Failure> {
        let Some(scratch) = place.scratch.clone() else { return Ok(()) };
        let section = &loaded.config.storage;
        let backend = self.backend(loaded)?;
        let mut outcome = Ok(());
        if let Some(remove) = &backend.remove_scratch {
            let removal = remove(section.table(&section.backend), place)
                .map_err(|error| Failure::usage(format!("[storage.{}]: {error}", section.backend)))?;
            outcome = removal.await.map_err(|error| {
                Failure::from_error(Status::Failed, &*error).context(format!(
                    "{} in the {} storage cannot be removed",
                    scratch.name(),
                    section.backend
                ))
            });
        }
        crate::blocking(move || scratch.remove()).await.and(outcome)
    }

    /// Opens a storage of the configured backend. Refuses one that is the target of an unfinished copy.
    pub async fn open_storage(&self, loaded: &Loaded, place: Place) -> Result<Arc<dyn Storage>, Failure> {
        let storage = self.open_unfinished(loaded, place).await?;
        let failure = match copy::mark::find(&*storage).await {
            Ok(None) => return Ok(storage),
            Ok(Some(_)) => Failure::failed(
                "the database holds only a part of a copy that was not finished; run the same \
                 `enjambre storage copy` again to finish it, or begin anew with --force",
            ),
            Err(error) => Failure::from_error(Status::Failed, &error),
        };
        // It is not used, so nothing is lost where that fails too.
        let _ = storage.close().await;
        Err(failure.context(format!("the {} storage cannot be used", loaded.config.storage.backend)))
    }

    /// As [`Self::open_storage`], also where it is the target of an unfinished copy.
    pub async fn open_unfinished(&self, loaded: &Loaded, place: Place) -> Result<Arc<dyn Storage>, Failure> {
        self.try_open_storage(loaded, place).await?.map_err(|error| {
            Failure::from_error(Status::Failed, &*error)
                .context(format!("the {} storage cannot be opened", loaded.config.storage.backend))
        })
    }

    /// The same, with the backend's own error where it is the one that fails.
    pub(crate) async fn try_open_storage(&self, loaded: &Loaded, place: Place) -> Result<Opened, Failure> {
        let section = &loaded.config.storage;
        let backend = self.backend(loaded)?;
        let (data_dir, role, scratch) = (place.data_dir.clone(), place.role, place.scratch.clone());
        let opening = (backend.open)(section.table(&section.backend), place)
            .map_err(|error| Failure::usage(format!("[storage.{}]: {error}", section.backend)))?;
        match scratch {
            Some(scratch) => crate::blocking(move || scratch.create()).await?,
            None => tokio::fs::create_dir_all(&data_dir).await?,
        }
        Ok(opening.await.map(|opened| wrap(opened, &section.layers, role)))
    }

    /// Whether those at both ends of a connection to such an endpoint know each other.
    pub fn is_authenticated(&self, endpoint: &Endpoint) -> bool {
        self.scheme(endpoint.scheme()).is_some_and(|known| known.security == Security::Authenticated)
    }

    /// A dialer over all transports, for the node that has this key.
    pub fn dialer(&self, loaded: &Loaded, key: &KeyPair) -> Result<Arc<Dialer>, ConfigError> {
        Ok(Arc::new(Dialer::new(self.transports(loaded, key)?)))
    }

    fn transports(&self, loaded: &Loaded, key: &KeyPair) -> Result<Made, ConfigError> {
        self.make_transports(TransportParts { limits: &loaded.config.transport.limits, key })
            .map_err(|error| loaded.refuse(&format!("transport.limits.{}", error.key), error.problem))
    }

    /// One transport for each scheme, in their order.
    fn make_transports(&self, parts: TransportParts<'_>) -> Result<Made, MakeError> {
        let mut families: Vec<(&Arc<Make>, Made)> = Vec::new();
        let mut transports = Vec::new();
        for (name, Scheme { make, .. }) in &self.transports {
            if !families.iter().any(|(known, _)| Arc::ptr_eq(known, make)) {
                families.push((make, make(parts)?));
            }
            let family = families.iter().filter(|(known, _)| Arc::ptr_eq(known, make));
            transports.extend(family.flat_map(|(_, made)| made).find(|made| made.scheme() == name).cloned());
        }
        Ok(transports)
    }
}

/// Its data goes with the storage; that of a scratch outlives its storages, so that they can be opened again.
fn register_memory(registry: &mut Registry) {
    type Disks = Arc<Mutex<BTreeMap<(String, bool), Disk>>>;
    let disks = Disks::default();
    let key = |scratch: &Scratch, role| (scratch.name().to_owned(), role == Role::Content);
    let kept = Arc::clone(&disks);
    registry.register_storage("memory", move |NoSettings {}, place: Place| {
        let storage = match &place.scratch {
            Some(scratch) => kept.lock().entry(key(scratch, place.role)).or_default().open(),
            None => Memory::new(),
        };
        async { Ok(Arc::new(storage) as Arc<dyn Storage>) }
    });
    registry.remove_scratch_with("memory", move |NoSettings {}, place: Place| {
        if let Some(scratch) = &place.scratch {
            disks.lock().remove(&key(scratch, place.role));
        }
        async { Ok(()) }
    });
}

/// Where on the server a place is, and who else uses it. A scratch has a schema of its own.
fn on_server(mut settings: PostgresSettings, place: &Place) -> (PostgresSettings, Tenancy) {
    if let Some(scratch) = &place.scratch {
        settings.schema = Some(scratch.name().to_owned());
        // These are read from where they are.
        for path in [&mut settings.password_file, &mut settings.ca].into_iter().flatten() {
            *path = scratch.home().join(&*path);
        }
    }
    let tenancy = match place.kind {
        NodeKind::Tracker if place.store => Tenancy::PerFolder,
        NodeKind::Tracker => Tenancy::Shared,
        NodeKind::Peer => Tenancy::Single,
    };
    (settings, tenancy)
}

/// Puts the layers around a storage that are asked for. What is measured is what callers meet, repeats included.
fn wrap(mut storage: Arc<dyn Storage>, layers: &LayersSection, role: Role) -> Arc<dyn Storage> {
    if let Some(prefix) = layers.prefix.get() {
        storage = Arc::new(PrefixedStorage::new(storage, prefix.clone()));
    }
    let patience = Patience { timeout: layers.timeout.get(), retries: layers.retries };
    if patience != Patience::default() {
        storage = Arc::new(PatientStorage::new(storage, patience));
    }
    if layers.metrics {
        let name = match role {
            Role::Records => "database of records",
            Role::Content => "database of content",
        };
        storage = Arc::new(MeteredStorage::new(storage, name));
    }
    storage
}

/// serde names an unknown field only in its text.
fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}

/// For a backend that has nothing to set.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident, $settings:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct $name {
            /// Where none is given it depends on the place.
            path: Option<PathBuf>,
            cache_mib: u32,
            readers: usize,
        }

        impl Default for $name {
            fn default() -> Self {
                let $settings { cache_mib, readers, .. } = $settings::default();
                Self { path: None, cache_mib, readers }
            }
        }

        impl From<$name> for $settings {
            fn from(table: $name) -> Self {
                let $name { path, cache_mib, readers } = table;
                Self { path: path.unwrap_or_default(), cache_mib, readers }
            }
        }
    };
}

table! {
    /// `[storage.sqlite]`
    Sqlite, SqliteSettings
}
table! {
    /// `[storage.sled]`
    Sled, SledSettings
}

fn transport_settings(limits: &TransportLimits) -> TransportSettings {
    TransportSettings {
        header: limits.header.as_usize(),
        payload: limits.payload.as_usize(),
        in_flight: limits.in_flight,
        queued_per_connection: limits.queued_per_connection.as_usize(),
        queued_in_all: limits.queued_in_all.as_usize(),
        connections: limits.connections,
        connections_per_address: limits.connections_per_address,
        handshake: limits.handshake.get(),
        idle: limits.idle.get(),
        stalled: limits.stalled.get(),
        ..TransportSettings::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::Sources;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn transports_that_belong_together_are_made_once_and_each_can_be_replaced() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&made);
        let mut registry = Registry::default();
        let plain = ["tcp", "zmq"].map(|scheme| (scheme, Security::Plain));
        registry.register_transports(&plain, move |parts| {
            counted.fetch_add(1, Ordering::Relaxed);
            let shared = Shared::new(transport_settings(parts.limits))?;
            Ok(vec![shared.zmq(), shared.tcp()])
        });
        let (limits, key) = (TransportLimits::default(), KeyPair::generate());
        let parts = TransportParts { limits: &limits, key: &key };
        let schemes = |registry: &Registry| {
            let made = registry.make_transports(parts).unwrap();
            made.iter().map(|transport| transport.scheme()).collect::<Vec<_>>()
        };
        assert_eq!((schemes(&registry), made.load(Ordering::Relaxed)), (vec!["tcp", "zmq"], 1));
        let own = enjambre_transport::zmq(transport_settings(&limits)).unwrap();
        let same: Arc<dyn Transport> = own;
        let registered = Arc::clone(&same);
        registry.register_transport("zmq", Security::Plain, move |_| Ok(Arc::clone(&registered)));
        assert_eq!(schemes(&registry), ["tcp", "zmq"]);
        assert!(Arc::ptr_eq(&registry.make_transports(parts).unwrap()[1], &same));
    }

    fn register(name: &str) {
        Registry::default().register_storage(name, |NoSettings {}, _| async {
            Ok(Arc::new(Memory::new()) as Arc<dyn Storage>)
        });
    }

    #[test]
    #[should_panic(expected = "a storage backend cannot be named \"layers\"")]
    fn no_backend_is_named_like_the_layers() {
        register("layers");
    }

    #[test]
    #[should_panic(expected = "a storage backend cannot be named \"backend\"")]
    fn no_backend_is_named_like_the_setting_that_names_it() {
        register("backend");
    }

    #[test]
    #[should_panic(expected = "there is no storage backend \"mine\"")]
    fn a_scratch_is_removed_for_a_backend_that_is_registered() {
        Registry::default().remove_scratch_with("mine", |NoSettings {}, _| async { Ok(()) });
    }

    fn check(text: &str) -> Result<(), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.toml");
        std::fs::write(&file, text).unwrap();
        let registry = Registry::stock();
        let sources = Sources { file: Some(file), set: Vec::new() };
        let loaded = sources.load(None, &registry.backends()).map_err(|error| error.to_string())?;
        registry.check(&loaded).map_err(|error| error.to_string())?;
        Ok(())
    }

    #[test]
    fn the_shipped_file_for_postgres_passes_and_a_password_in_it_is_refused_and_not_shown() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tracker-postgres.toml");
        let text = std::fs::read_to_string(file).unwrap();
        check(&text).unwrap();
        for (from, to) in [
            ("enjambre@localhost", "enjambre:hunter2@localhost"),
            ("connections = 8", "password = \"hunter2\""),
            ("localhost:5432/enjambre", "localhost/enjambre?password=hunter2"),
        ] {
            assert!(text.contains(from));
            let error = check(&text.replace(from, to)).unwrap_err();
            assert!(error.contains("password_env") && error.contains("password_file"), "{error}");
            assert!(error.contains("storage.postgres") && !error.contains("hunter2"), "{error}");
        }
    }
}
