//! Merging of configuration layers, with the origin of every value.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use enjambre_core::Endpoint;
use enjambre_core::protocol::message::MAX_ENDPOINTS;
use serde::Deserialize;
use toml::Table;

use super::effective::{self, DEFAULT, Effective};
use super::error::{ConfigError, problem};
use super::keys::{self, STORAGE};
use super::layer::{Layer, SET_ORIGIN, without_origin};
use super::secret::shown;
use super::sections::{AdmissionMode, Config, NodeKind};
use super::value::ListenAddress;
use crate::logging;

/// The environment variable with the path of the configuration file.
pub(crate) const ENV_FILE: &str = "ENJAMBRE_CONFIG";
/// The name of the configuration file in the user's configuration directory.
pub(crate) const FILE_NAME: &str = "enjambre.toml";

/// The configuration sources of the command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<PathBuf>,
    /// The arguments of `--set`. Later ones take precedence.
    pub(crate) set: Vec<String>,
}

/// A configuration with the origin of every value.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) kind: NodeKind,
    pub(crate) file: Option<PathBuf>,
    values: BTreeMap<String, Effective>,
    base: PathBuf,
}

impl Sources {
    /// Reads the configuration file, the environment and the arguments.
    ///
    /// Without `kind`, the configuration is that of a tracker if a layer contains a section `[tracker]`, and of a peer
    /// otherwise. `backends` are the names of the storage backends.
    pub(crate) fn load(&self, kind: Option<NodeKind>, backends: &[&str]) -> Result<Loaded, ConfigError> {
        let file = self.file.clone().or_else(search);
        let mut layers = Vec::from_iter(file.as_deref().map(Layer::file).transpose()?);
        layers.extend(self.above_file(backends)?);
        if let (Some(path), Some(kind)) = (&file, kind) {
            let (own, other, configured) = match kind {
                NodeKind::Tracker => ("tracker", "peer", NodeKind::Peer),
                NodeKind::Peer => ("peer", "tracker", NodeKind::Tracker),
            };
            let has = |layer: &Layer, section: &str| layer.table.contains_key(section);
            if has(&layers[0], other) && !layers.iter().any(|layer| has(layer, own)) {
                return Err(ConfigError::OtherKind { path: path.clone(), configured });
            }
        }
        Loaded::from_layers(layers, file, kind, backends)
    }

    /// Like [`Sources::load`] for a peer, with `text` as the contents of the file, which need not exist.
    pub(crate) fn load_text(&self, text: &str, backends: &[&str]) -> Result<Loaded, ConfigError> {
        let file = self.file.clone().unwrap_or_else(|| FILE_NAME.into());
        let mut layers = vec![Layer::text(&file, text)?];
        layers.extend(self.above_file(backends)?);
        Loaded::from_layers(layers, Some(file), Some(NodeKind::Peer), backends)
    }

    /// Returns the layers with precedence over the file.
    fn above_file(&self, backends: &[&str]) -> Result<Vec<Layer>, ConfigError> {
        // Variables that are not UTF-8 cannot set a key.
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let variables: Vec<_> = variables.collect();
        for (name, _) in &variables {
            keys::check_variable(name, &known_keys(NodeKind::Peer), backends)?;
        }
        let mut layers = Layer::environment(variables)?;
        for argument in &self.set {
            layers.push(Layer::set(argument)?);
        }
        Ok(layers)
    }
}

/// Returns the path for a new configuration: the named file, or the default file of the user. Returns `None` if the user has
/// no configuration directory.
pub(crate) fn new_file(sources: &Sources) -> Option<PathBuf> {
    sources.file.clone().or_else(named_file).or_else(user_file)
}

fn named_file() -> Option<PathBuf> {
    std::env::var_os(ENV_FILE).filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// Returns the configuration file of the user.
pub(crate) fn user_file() -> Option<PathBuf> {
    Some(user_folder("XDG_CONFIG_HOME", ".config")?.join(FILE_NAME))
}

/// Returns the data directory of the user's peer.
pub(crate) fn user_data_dir() -> Option<PathBuf> {
    user_folder("XDG_DATA_HOME", ".local/share")
}

/// Returns the directory `enjambre` in the base directory of a variable, which is `default` in the home directory if the
/// variable is not set.
fn user_folder(variable: &str, default: &str) -> Option<PathBuf> {
    let base = std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| std::env::home_dir().map(|home| home.join(default)))?;
    Some(base.join("enjambre"))
}

/// Returns the configuration file of a command without `--config`. The current directory is not searched: its files may come
/// from other users.
fn search() -> Option<PathBuf> {
    named_file().or_else(|| user_file().filter(|file| file.is_file()))
}

impl Loaded {
    pub(super) fn from_layers(
        layers: Vec<Layer>,
        file: Option<PathBuf>,
        kind: Option<NodeKind>,
        backends: &[&str],
    ) -> Result<Self, ConfigError> {
        let kind = kind.unwrap_or_else(|| {
            let tracker = layers.iter().any(|layer| layer.table.contains_key("tracker"));
            if tracker { NodeKind::Tracker } else { NodeKind::Peer }
        });
        let known = known_keys(kind);
        let mut builder =
            config::Config::builder().add_source(Layer { origin: DEFAULT.to_owned(), table: known.clone() });
        for layer in layers {
            keys::check(&layer, &known, backends)?;
            builder = builder.add_source(layer);
        }
        let merged =
            builder.build().and_then(|merged| config::Source::collect(&merged)).map_err(|error| {
                ConfigError::Assignment { origin: "configuration".to_owned(), problem: error.to_string() }
            })?;
        let mut values = BTreeMap::new();
        let mut table = Table::new();
        for (key, value) in &merged {
            effective::flatten(key, value, &mut values);
            table.insert(key.clone(), without_origin(value));
        }
        let config = Config::deserialize(table).map_err(|error| describe(&error, &values))?;
        let folder = file.as_deref().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        // If the current directory is unknown, the path stays relative.
        let base = std::path::absolute(if folder.as_os_str().is_empty() { Path::new(".") } else { &folder })
            .unwrap_or(folder);
        let loaded = Self { config, kind, file, values, base };
        loaded.validate()?;
        Ok(loaded)
    }

    pub(crate) fn data_dir(&self, kind: NodeKind) -> PathBuf {
        self.base.join(match kind {
            NodeKind::Tracker => &self.config.tracker.data_dir,
            NodeKind::Peer => &self.config.peer.data_dir,
        })
    }

    /// Returns the file with the token of HTTP clients if the configuration names it.
    #[cfg(feature = "http")]
    pub(crate) fn http_token_file(&self) -> Option<PathBuf> {
        let path = &self.config.http.token_file;
        (!path.as_os_str().is_empty()).then(|| self.base.join(path))
    }

    /// Returns the files with the certificate chain and the key of HTTP.
    #[cfg(feature = "http")]
    pub(crate) fn http_tls_files(&self) -> (PathBuf, PathBuf) {
        let tls = &self.config.http.tls;
        (self.base.join(&tls.cert), self.base.join(&tls.key))
    }

    pub(crate) const fn group_access(&self, kind: NodeKind) -> bool {
        match kind {
            NodeKind::Tracker => self.config.tracker.group_access,
            NodeKind::Peer => self.config.peer.group_access,
        }
    }

    pub(crate) fn is_invite_only(&self) -> bool {
        match self.kind {
            NodeKind::Tracker => self.config.swarm.admission == AdmissionMode::Invite,
            NodeKind::Peer => self.config.swarm.authority.get().is_some(),
        }
    }

    #[cfg(test)]
    pub(crate) fn values(&self) -> &BTreeMap<String, Effective> {
        &self.values
    }

    /// Returns whether a value comes from the environment or from `--set`.
    pub(crate) fn is_above_file(&self, key: &str) -> bool {
        let file = self.file.as_ref().map(|file| file.display().to_string());
        let is_above = |found: &Effective| found.origin != DEFAULT && Some(&found.origin) != file.as_ref();
        self.values.get(key).is_some_and(is_above)
    }

    /// Returns the effective values by key, as TOML.
    pub(crate) fn effective(&self) -> BTreeMap<String, String> {
        self.values.iter().map(|(key, found)| (key.clone(), found.value.to_string())).collect()
    }

    /// Returns the effective values by key, with passwords redacted.
    pub(crate) fn without_passwords(&self) -> BTreeMap<String, serde_json::Value> {
        effective::without_passwords(&self.values)
    }

    /// Adds the defaults of the settings of a storage backend, which no layer contains.
    pub(crate) fn add_backend_defaults(&mut self, backend: &str, settings: Table) {
        effective::add_defaults(&format!("{STORAGE}.{backend}"), settings, &mut self.values);
    }

    /// Returns the values of `--set` that a running node must have for a command to run in it. The others apply to the
    /// process of the command.
    pub(crate) fn required_of_node(&self) -> BTreeMap<String, String> {
        let own = |key: &str| ["log.level", "peer.data_dir", "tracker.data_dir"].contains(&key);
        let required =
            self.values.iter().filter(|(key, found)| found.origin.starts_with(SET_ORIGIN) && !own(key));
        required.map(|(key, found)| (key.clone(), found.value.to_string())).collect()
    }

    /// Creates the error for an invalid value.
    pub(crate) fn invalid(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        invalid(&self.values, key, problem.into())
    }

    /// Formats the configuration as TOML, with the origin of each value in a comment.
    pub(crate) fn show(&self) -> String {
        effective::show(&self.values)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let swarm = &self.config.swarm;
        if self.kind == NodeKind::Peer
            && swarm.admission == AdmissionMode::Invite
            && swarm.authority.get().is_none()
        {
            let problem = "this setting applies to trackers only; a peer of an invite-only swarm sets swarm.authority, \
                           which `enjambre join` writes";
            return Err(self.invalid("swarm.admission", problem));
        }
        for (key, found) in &self.values {
            if found.value.as_str().is_some_and(|text| text == "~" || text.starts_with("~/")) {
                return Err(
                    self.invalid(key, "`~` is not replaced by the home directory; write the whole path")
                );
            }
        }
        let Config { tracker, peer, transport, http, log, .. } = &self.config;
        for (key, path) in [("tracker.data_dir", &tracker.data_dir), ("peer.data_dir", &peer.data_dir)] {
            if path.as_os_str().is_empty() {
                return Err(self.invalid(key, "expected the path of a directory"));
            }
        }
        for (key, endpoints) in
            [("transport.advertise", &transport.advertise), ("peer.trackers", &peer.trackers)]
        {
            let unusable = |endpoint: &&Endpoint| endpoint.port() == 0 || endpoint.is_unspecified();
            if let Some(endpoint) = endpoints.iter().find(unusable) {
                let problem = format!("{endpoint} cannot be dialed; specify a host and a port");
                return Err(self.invalid(key, problem));
            }
        }
        for (key, endpoints) in
            [("transport.advertise", &transport.advertise), ("transport.listen", &transport.listen)]
        {
            if endpoints.len() > MAX_ENDPOINTS {
                let problem = format!("too many endpoints; at most {MAX_ENDPOINTS} are allowed");
                return Err(self.invalid(key, problem));
            }
        }
        if self.kind == NodeKind::Tracker && transport.listen.is_empty() {
            return Err(self.invalid("transport.listen", "a tracker requires at least one endpoint"));
        }
        let mut fixed = transport.listen.iter().filter(|endpoint| endpoint.port() != 0);
        if let Some(twice) =
            fixed.find(|one| transport.listen.iter().filter(|other| other == one).count() > 1)
        {
            return Err(self.invalid("transport.listen", format!("{twice} is listed twice")));
        }
        let is_exposed = |address: &&ListenAddress| !address.get().ip().to_canonical().is_loopback();
        if let Some(address) = http.listen.iter().find(is_exposed).filter(|_| !http.allow_plaintext)
            && http.tls.cert.as_os_str().is_empty()
        {
            let problem = format!(
                "other machines can reach {address}, and HTTP is not encrypted; set http.tls.cert and http.tls.key, listen on \
                 127.0.0.1, or set http.allow_plaintext = true to accept the risk"
            );
            return Err(self.invalid("http.listen", problem));
        }
        if http.tls.cert.as_os_str().is_empty() != http.tls.key.as_os_str().is_empty() {
            return Err(self.invalid("http.tls", "a certificate needs a key: set both cert and key"));
        }
        if cfg!(not(feature = "http")) && !http.listen.is_empty() {
            return Err(self.invalid("http.listen", "this program was built without the feature `http`"));
        }
        if tracker.lease.get().as_millis() < 100 {
            return Err(self.invalid("tracker.lease", "the minimum is 100ms"));
        }
        if let Some((key, problem)) = logging::invalid(log) {
            return Err(self.invalid(key, problem));
        }
        Ok(())
    }
}

/// Returns the defaults, which contain every key except those of the storage backends.
fn known_keys(kind: NodeKind) -> Table {
    Table::try_from(Config::defaults(kind)).expect("the defaults serialize to TOML")
}

/// Converts an error of `toml`, which names the key on the last line of its message.
fn describe(error: &toml::de::Error, values: &BTreeMap<String, Effective>) -> ConfigError {
    let text = error.to_string();
    let key = text.lines().rev().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`')).unwrap_or("");
    let problem = match values.get(key) {
        Some(found) if error.message().ends_with("expected a sequence") => {
            format!("expected a list such as [{}]", shown(key, &found.value))
        }
        _ => problem(error),
    };
    invalid(values, key, problem)
}

fn invalid(values: &BTreeMap<String, Effective>, key: &str, problem: String) -> ConfigError {
    let (value, origin) = match values.get(key) {
        Some(found) => (shown(key, &found.value), found.origin.clone()),
        None => ("{..}".to_owned(), "the configuration".to_owned()),
    };
    ConfigError::Value { key: key.to_owned(), value, origin, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::value::Span;

    const BACKENDS: [&str; 3] = ["memory", "sqlite", "sled"];

    fn file(text: &str) -> Layer {
        Layer { origin: "test.toml".into(), table: text.parse().unwrap() }
    }

    fn load(layers: Vec<Layer>) -> Result<Loaded, ConfigError> {
        Loaded::from_layers(layers, Some("/etc/enjambre/test.toml".into()), None, &BACKENDS)
    }

    fn env(name: &str, value: &str) -> Layer {
        Layer::environment([(name.to_owned(), value.to_owned())]).unwrap().remove(0)
    }

    #[test]
    fn later_layer_overrides_earlier_layer() {
        let loaded = load(vec![
            file(
                "[peer]\ndata_dir = \"d\"\n[download]\nprovider_timeout = \"1s\"\n[log]\nlevel = \"warn\"\n[storage.sqlite]\npath=\"a\"",
            ),
            env("ENJAMBRE__DOWNLOAD__PROVIDER_TIMEOUT", "2s"),
            env("ENJAMBRE__LOG__LEVEL", "debug"),
            Layer::set("log.level=trace").unwrap(),
            Layer::set("storage.sqlite.other=7").unwrap(),
        ])
        .unwrap();
        assert_eq!(loaded.config.download.provider_timeout, Span::seconds(2));
        assert_eq!(loaded.config.log.level, "trace");
        assert_eq!(loaded.data_dir(NodeKind::Peer), Path::new("/etc/enjambre/d"));
        let table = loaded.config.storage.table("sqlite");
        assert_eq!((table["path"].as_str(), table["other"].as_integer()), (Some("a"), Some(7)));
        let origin = |key: &str| loaded.values()[key].origin.clone();
        assert_eq!(origin("peer.data_dir"), "test.toml");
        assert_eq!(
            origin("download.provider_timeout"),
            "environment variable ENJAMBRE__DOWNLOAD__PROVIDER_TIMEOUT"
        );
        assert_eq!(origin("log.level"), "--set log.level");
        assert_eq!(origin("transport.allow_plaintext"), "default");
        let shown: Table = loaded.show().parse().unwrap();
        assert_eq!(shown["log"]["level"].as_str(), Some("trace"));
        assert!(loaded.show().contains("# test.toml"));
    }

    #[test]
    fn unusual_names_are_shown_quoted() {
        let text = "[storage.sled]\na = 1\n\"a.b\" = 2\n\"\" = 3\n\"c d\\n\\\"\" = 4\n\"the password\" = \"hunter2\"";
        let shown = load(vec![file(text)]).unwrap().show();
        assert!(!shown.contains("hunter2"), "{shown}");
        let again = load(vec![file(&shown)]).unwrap();
        let expected = file(&text.replace("hunter2", "***")).table["storage"]["sled"].clone();
        assert_eq!(again.config.storage.table("sled"), *expected.as_table().unwrap());
    }

    #[test]
    fn defaults_depend_on_node_kind() {
        let port = |loaded: Loaded| loaded.config.transport.listen[0].port();
        assert_eq!(port(load(vec![]).unwrap()), 7711);
        assert_eq!(port(load(vec![file("[tracker]\nlease = \"1s\"")]).unwrap()), 7700);
    }

    #[test]
    fn invalid_value_error_names_key_and_origin() {
        for (layer, key, value) in [
            (file("[tracker]\nlease = \"soon\""), "tracker.lease", "\"soon\""),
            (file("[tracker]\nlease = \"1ms\""), "tracker.lease", "\"1ms\""),
            (file("[transport]\nlisten = [\"zmq:/x\"]"), "transport.listen", "zmq:/x"),
            (file("[tracker]\n[transport]\nlisten = []"), "transport.listen", "at least one endpoint"),
            (
                file("[transport]\nlisten = [\"tcp://a:1\", \"tcp://a:1\"]"),
                "transport.listen",
                "listed twice",
            ),
            (file("[transport.limits]\nin_flight = -1"), "transport.limits.in_flight", "-1"),
            (file("[library]\ncontent = \"cloud\""), "library.content", "\"cloud\""),
            (file("[peer]\ntrackers = [\"zmq://0.0.0.0:1\"]"), "peer.trackers", "zmq://0.0.0.0:1"),
            (file("[peer]\ntrackers = \"zmq://a:1\""), "peer.trackers", "a list such as [\"zmq://a:1\"]"),
            (file("[http]\nlisten = \"127.0.0.1:1\""), "http.listen", "a list such as [\"127.0.0.1:1\"]"),
            (file("[http]\nlisten = [\"localhost:1\"]"), "http.listen", "an IP address with a port such as"),
            (file("[log]\nlevel = \"x=loud\""), "log.level", "\"x=loud\""),
            (file("[log]\nlevel = \"warning\""), "log.level", "\"warning\""),
            (file("[peer]\ndata_dir = \"~/peer\""), "peer.data_dir", "\"~/peer\""),
            (file("[peer]\ndata_dir = \"\""), "peer.data_dir", "\"\""),
            (file("[tracker]\ndata_dir = \"\""), "tracker.data_dir", "\"\""),
            (file("[storage.sqlite]\npath = \"~/x.db\""), "storage.sqlite.path", "\"~/x.db\""),
            (file("[tracker]\nretention = \"30M\""), "tracker.retention", "5min"),
            (file("[limits]\nupload = \"10Mb/s\""), "limits.upload", "in bytes"),
            (file("[swarm]\nadmission = \"some\""), "swarm.admission", "\"some\""),
            (file("[swarm]\nauthority = \"abc\""), "swarm.authority", "\"abc\""),
            (file("log = 3"), "log", "3"),
            (file("[storage]\nsqlite = 3"), "storage.sqlite", "3"),
            (file("[storage]\nlayers = 3"), "storage.layers", "3"),
            (file("[storage.layers]\ntimeout = \"soon\""), "storage.layers.timeout", "\"soon\""),
            (file("[storage.layers]\nretries = -1"), "storage.layers.retries", "-1"),
        ] {
            let text = load(vec![layer]).unwrap_err().to_string();
            assert!(text.contains(&format!("`{key}`")) && text.contains(value), "{text}");
            assert!(text.contains("test.toml") && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn unknown_key_error_names_file_and_suggestion() {
        let text = load(vec![file("[transport]\nlissten = []")]).unwrap_err().to_string();
        assert!(
            text.contains("`transport.lissten` in test.toml") && text.contains("`transport.listen`"),
            "{text}"
        );
    }

    #[test]
    fn shipped_files_contain_the_defaults() {
        for (name, kind) in [("tracker.toml", NodeKind::Tracker), ("peer.toml", NodeKind::Peer)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name);
            let layer = Layer::file(&path).unwrap();
            let loaded = Loaded::from_layers(vec![layer], Some(path), None, &BACKENDS).unwrap();
            let mut expected = Config::defaults(kind);
            expected.storage.tables = loaded.config.storage.tables.clone();
            assert_eq!(loaded.config, expected, "{name}");
        }
    }

    #[test]
    fn invalid_toml_error_names_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broken.toml");
        std::fs::write(&path, "[peer]\n\ndata_dir = = 1\n").unwrap();
        let text = Layer::file(&path).unwrap_err().to_string();
        assert!(text.contains("broken.toml:3"), "{text}");
    }
}
