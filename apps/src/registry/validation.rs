//! Validation of a configuration against the registered plug-ins.

use enjambre_control::{Failure, Status};
use enjambre_core::{Endpoint, KeyPair, Place, Role};

use super::builtin::OPTIONAL_BACKENDS;
use super::erased::Scheme;
use super::{PluginError, Registry, Security, invalid_table};
use crate::config::error::{ConfigError, problem};
use crate::config::load::{Loaded, Sources};
use crate::config::sections::NodeKind;

impl Registry {
    /// Loads and validates a configuration. See [`Sources::load`].
    pub(crate) fn load(&self, sources: &Sources, kind: Option<NodeKind>) -> Result<Loaded, ConfigError> {
        let mut loaded = sources.load(kind, &self.table_names())?;
        self.check(&loaded)?;
        let section = &loaded.config.storage;
        let backend = section.backend.clone();
        if let Some(Ok(settings)) =
            self.storages.get(&backend).map(|known| (known.complete)(section.table(&backend)))
        {
            loaded.add_backend_defaults(&backend, settings);
        }
        Ok(loaded)
    }

    /// Checks backend, backend tables and endpoints, and that no plaintext endpoint is exposed unintentionally.
    pub(crate) fn check(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        let backend = &loaded.config.storage.backend;
        if !self.storages.contains_key(backend) {
            return Err(loaded.invalid("storage.backend", self.unknown_backend(backend)));
        }
        self.check_tables(loaded)?;
        self.check_schemes(loaded)?;
        self.check_trackers(loaded)?;
        self.check_exposure(loaded)?;
        if loaded.is_invite_only() {
            self.check_invite_only(loaded)?;
        }
        // The result does not depend on the key.
        self.dialer(loaded, &KeyPair::generate()).map(drop)
    }

    /// Checks the files that the settings of the storage backend name. An error is one of the configuration.
    pub(crate) async fn check_files(&self, loaded: &Loaded, place: Place, role: Role) -> Result<(), Failure> {
        let section = &loaded.config.storage;
        let Some(check) = &self.backend(loaded)?.check_files else { return Ok(()) };
        let checking = check(section.table(&section.backend), place, role)
            .map_err(|error| invalid_table(&section.backend, &error))?;
        let invalid = |error: PluginError| {
            Failure::from_error(Status::Usage, &*error)
                .context(format!("invalid section [storage.{}]", section.backend))
        };
        checking.await.map_err(invalid)
    }

    /// The allowed tables in `[storage]`. A table of a backend that this build does not include is ignored.
    pub(crate) fn table_names(&self) -> Vec<&str> {
        let mut names = self.backends();
        names.extend(OPTIONAL_BACKENDS.iter().map(|(name, _)| *name));
        names
    }

    pub(super) fn unknown_backend(&self, name: &str) -> String {
        if OPTIONAL_BACKENDS.iter().any(|(optional, included)| *optional == name && !included) {
            return format!(
                "storage backend {name:?} is not included in this build; rebuild with --features {name}"
            );
        }
        let known = self.backends().join(", ");
        format!("unknown storage backend {name:?}; available backends: {known}")
    }

    fn check_tables(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        for (name, table) in &loaded.config.storage.tables {
            let Some(backend) = self.storages.get(name) else { continue };
            (backend.complete)(table.clone()).map_err(|error| {
                let text = error.to_string();
                let inner = text
                    .lines()
                    .find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'))
                    .or_else(|| unknown_field(error.message()));
                let key = match inner {
                    Some(inner) => format!("storage.{name}.{inner}"),
                    None => format!("storage.{name}"),
                };
                loaded.invalid(&key, problem(&error))
            })?;
        }
        Ok(())
    }

    fn check_schemes(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        for (key, endpoints) in endpoints_of(loaded) {
            if let Some(endpoint) = endpoints.iter().find(|endpoint| self.scheme(endpoint.scheme()).is_none())
            {
                let known = self.schemes().join("://, ");
                let problem = format!("unknown scheme in {endpoint}; available schemes: {known}://");
                return Err(loaded.invalid(key, problem));
            }
        }
        Ok(())
    }

    fn check_trackers(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        for endpoint in &loaded.config.peer.trackers {
            let scheme = endpoint.scheme();
            let problem = match (self.is_authenticated(endpoint), endpoint.id()) {
                (true, None) => format!(
                    "{endpoint} does not contain the id of the tracker; write {scheme}://ID@HOST:PORT, as printed by the \
                     tracker"
                ),
                (false, Some(_)) => format!(
                    "{endpoint} contains an id, but {scheme}:// does not authenticate the tracker; remove the id, or use \
                     an encrypted endpoint"
                ),
                _ => continue,
            };
            return Err(loaded.invalid("peer.trackers", problem));
        }
        Ok(())
    }

    /// Rejects plaintext endpoints beyond loopback without `transport.allow_plaintext`.
    fn check_exposure(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        let transport = &loaded.config.transport;
        let is_exposed = |endpoint: &&Endpoint| !self.is_authenticated(endpoint) && !endpoint.is_loopback();
        let (Some(endpoint), false) = (transport.listen.iter().find(is_exposed), transport.allow_plaintext)
        else {
            return Ok(());
        };
        let is_secure = |(_, scheme): &&(String, Scheme)| scheme.security == Security::Authenticated;
        let secure = self.transports.iter().filter(is_secure);
        let secure: Vec<_> = secure.map(|(name, _)| format!("{name}://")).collect();
        let problem = format!(
            "{endpoint} is neither encrypted nor authenticated, and other machines can reach it; use {} instead, listen \
             on 127.0.0.1, or set transport.allow_plaintext = true to accept the risk",
            secure.join(" or ")
        );
        Err(loaded.invalid("transport.listen", problem))
    }

    /// Rejects plaintext endpoints in an invite-only swarm.
    fn check_invite_only(&self, loaded: &Loaded) -> Result<(), ConfigError> {
        for (key, endpoints) in endpoints_of(loaded) {
            if key == "peer.trackers" && loaded.kind != NodeKind::Peer {
                continue;
            }
            if let Some(endpoint) = endpoints.iter().find(|endpoint| !self.is_authenticated(endpoint)) {
                let problem = format!(
                    "the swarm is invite-only, and {endpoint} does not authenticate peers; use {}s:// instead, also on \
                     loopback",
                    endpoint.scheme()
                );
                return Err(loaded.invalid(key, problem));
            }
        }
        Ok(())
    }
}

fn endpoints_of(loaded: &Loaded) -> [(&'static str, &[Endpoint]); 3] {
    let (transport, peer) = (&loaded.config.transport, &loaded.config.peer);
    [
        ("transport.listen", &transport.listen),
        ("transport.advertise", &transport.advertise),
        ("peer.trackers", &peer.trackers),
    ]
}

/// Returns the unknown field in an error message of serde, which has no structured form.
fn unknown_field(message: &str) -> Option<&str> {
    message.strip_prefix("unknown field `")?.split('`').next()
}
