//! Detection of unknown keys, with a suggestion of the most similar known key.

use toml::{Table, Value};

use super::error::ConfigError;
use super::layer::{ENV_PREFIX, Layer};
use super::secret::shown;

/// The section with one table per storage backend, beside `backend` and `layers`.
pub(super) const STORAGE: &str = "storage";

/// Rejects a layer with a key that is not in `known`. The tables of the storage `backends` are not checked.
pub(crate) fn check(layer: &Layer, known: &Table, backends: &[&str]) -> Result<(), ConfigError> {
    let mut all = Vec::new();
    collect("", known, &mut all);
    all.extend(backends.iter().map(|backend| format!("{STORAGE}.{backend}")));
    Checker { layer, all, backends }.table("", &layer.table, known)
}

/// Rejects a variable such as `ENJAMBRE_PEER_DATA_DIR`, which sets nothing, because single underscores do not separate the
/// parts of a key.
pub(crate) fn check_variable(name: &str, known: &Table, backends: &[&str]) -> Result<(), ConfigError> {
    let prefix = ENV_PREFIX.trim_end_matches('_');
    let Some(rest) = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('_')) else { return Ok(()) };
    // The name of a variable with a password can be chosen freely.
    if rest.starts_with('_') || rest.ends_with("PASSWORD") {
        return Ok(());
    }
    let squeezed = |text: &str| text.to_lowercase().replace(['_', '.'], "");
    let rest = squeezed(rest);
    let mut keys = Vec::new();
    collect("", known, &mut keys);
    let backend = backends.iter().map(|name| format!("{STORAGE}.{name}"));
    let backend = backend.filter(|key| rest.starts_with(&squeezed(key))).map(|key| format!("{key}.KEY"));
    let Some(key) = keys.into_iter().filter(|key| squeezed(key) == rest).chain(backend).next() else {
        return Ok(());
    };
    let expected = key.to_uppercase().replace('.', "__");
    let origin = format!("environment variable {name}");
    let problem =
        format!("it has no effect; the parts are separated by two underscores: {ENV_PREFIX}{expected}");
    Err(ConfigError::Assignment { origin, problem })
}

fn collect(path: &str, table: &Table, into: &mut Vec<String>) {
    for (key, value) in table {
        let key = join(path, key);
        if let Value::Table(inner) = value {
            collect(&key, inner, into);
        }
        into.push(key);
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

struct Checker<'a> {
    layer: &'a Layer,
    all: Vec<String>,
    backends: &'a [&'a str],
}

impl Checker<'_> {
    fn table(&self, path: &str, table: &Table, known: &Table) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = join(path, name);
            let is_backend = path == STORAGE && self.backends.contains(&name.as_str());
            match (known.get(name), value) {
                _ if is_backend && value.is_table() => {}
                (Some(Value::Table(known)), Value::Table(inner)) => self.table(&key, inner, known)?,
                (Some(Value::Table(_)), _) => return Err(self.no_section(key, value)),
                _ if is_backend => return Err(self.no_section(key, value)),
                (Some(_), _) => {}
                (None, _) => {
                    let nearest = self.nearest(&key);
                    return Err(ConfigError::UnknownKey { key, origin: self.layer.origin.clone(), nearest });
                }
            }
        }
        Ok(())
    }

    fn no_section(&self, key: String, value: &Value) -> ConfigError {
        let problem = format!("`{key}` is a section; write it as [{key}]");
        let value = shown(&key, value);
        ConfigError::Value { key, value, origin: self.layer.origin.clone(), problem }
    }

    /// Returns the keys with the same name in other sections; without any, the most similar known key, unless none is similar.
    fn nearest(&self, key: &str) -> Option<String> {
        let name = last(key);
        let same_name: Vec<&str> =
            self.all.iter().map(String::as_str).filter(|known| last(known) == name).collect();
        if !same_name.is_empty() {
            return Some(same_name.join("` or `"));
        }
        let distance = |known: &str| {
            let by_name = strsim::damerau_levenshtein(name, last(known));
            let sections = strsim::damerau_levenshtein(key, known);
            (by_name.min(sections), sections)
        };
        let nearest = self.all.iter().map(String::as_str).min_by_key(|known| distance(known))?;
        // At most every third character differs.
        (distance(nearest).0 * 3 <= name.len()).then(|| nearest.to_owned())
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::sections::{Config, NodeKind};

    fn nearest(argument: &str) -> Option<String> {
        let known = Table::try_from(Config::defaults(NodeKind::Peer)).unwrap();
        match check(&Layer::set(argument).unwrap(), &known, &["sqlite", "sled"]) {
            Ok(()) => None,
            Err(ConfigError::UnknownKey { nearest, .. }) => nearest,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn unknown_key_gets_nearest_known_key() {
        for (argument, expected) in [
            ("transport.lissten=1", "transport.listen"),
            ("trasport.listen=1", "transport"),
            ("peer.listen=1", "http.listen` or `transport.listen"),
            ("storage.sqllite={}", "storage.sqlite"),
            ("tracker.store.quotta=1", "tracker.store.quota"),
            ("storge={}", "storage"),
            ("provider_timeot=1", "download.provider_timeout"),
            ("storage.layers.retrys=3", "storage.layers.retries"),
            ("storage.layer={}", "storage.layers"),
        ] {
            assert_eq!(nearest(argument).as_deref(), Some(expected), "{argument}");
        }
    }

    #[test]
    fn variable_with_single_underscores_is_rejected() {
        let known = Table::try_from(Config::defaults(NodeKind::Peer)).unwrap();
        let check = |name| check_variable(name, &known, &["sqlite"]);
        for (name, expected) in [
            ("ENJAMBRE_PEER_DATA_DIR", "ENJAMBRE__PEER__DATA_DIR"),
            ("ENJAMBRE_PEER__DATA_DIR", "ENJAMBRE__PEER__DATA_DIR"),
            ("ENJAMBRE_TRANSPORT_LIMITS_IN_FLIGHT", "ENJAMBRE__TRANSPORT__LIMITS__IN_FLIGHT"),
            ("ENJAMBRE_STORAGE_SQLITE_PATH", "ENJAMBRE__STORAGE__SQLITE__KEY"),
        ] {
            let text = check(name).unwrap_err().to_string();
            assert!(text.contains(name) && text.contains(expected), "{text}");
        }
        for name in
            ["ENJAMBRE_CONFIG", "ENJAMBRE__PEER__DATA_DIR", "ENJAMBRE_DB_PASSWORD", "ENJAMBRE_SEED", "PEER"]
        {
            assert!(check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn known_keys_and_backend_tables_are_accepted() {
        for argument in
            ["transport.allow_plaintext=true", "storage.sled.anything=1", "tracker.store={enabled=true}"]
        {
            assert_eq!(nearest(argument), None, "{argument}");
        }
    }
}
