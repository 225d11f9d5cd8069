//! Detection of unknown keys, with a suggestion of the most similar known key.

use toml::{Table, Value};

use super::error::ConfigError;
use super::layer::Layer;
use super::secret::shown;

/// The section with one table per storage backend, beside `backend` and `layers`.
const STORAGE: &str = "storage";

/// Rejects a layer with a key that is not in `known`. The tables of the storage `backends` are not checked.
pub(crate) fn check(layer: &Layer, known: &Table, backends: &[&str]) -> Result<(), ConfigError> {
    let mut all = Vec::new();
    collect("", known, &mut all);
    all.extend(backends.iter().map(|backend| format!("{STORAGE}.{backend}")));
    Checker { layer, all, backends }.table("", &layer.table, known)
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
                    let nearest = self.nearest(&key).map(str::to_owned);
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

    /// Returns the most similar known key, unless none is similar. The same name in another section takes precedence over a
    /// similar spelling.
    fn nearest(&self, key: &str) -> Option<&str> {
        let name = last(key);
        let distance = |known: &str| {
            let by_name = strsim::damerau_levenshtein(name, last(known));
            let sections = strsim::damerau_levenshtein(key, known);
            (by_name.min(sections), sections)
        };
        let nearest = self.all.iter().map(String::as_str).min_by_key(|known| distance(known))?;
        // At most every third character differs.
        (distance(nearest).0 * 3 <= name.len()).then_some(nearest)
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
            ("peer.listen=1", "transport.listen"),
            ("storage.sqllite={}", "storage.sqlite"),
            ("tracker.store.quotta=1", "tracker.store.quota"),
            ("storge={}", "storage"),
            ("provider_timeot=1", "download.provider_timeout"),
            ("storage.layers.metrix=true", "storage.layers.metrics"),
            ("storage.layer={}", "storage.layers"),
        ] {
            assert_eq!(nearest(argument).as_deref(), Some(expected), "{argument}");
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
