//! A layer of the configuration: a table of values with a common origin.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use config::{Map, Source, ValueKind};
use toml::{Table, Value};

use super::error::ConfigError;
use crate::access::{others_can_write, own_uid, user_name};

/// The prefix of environment variables that set configuration keys.
pub(crate) const ENV_PREFIX: &str = "ENJAMBRE__";

/// Reads a configuration file. Rejects a file of another user, because it decides which secrets are sent where.
fn read(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let found = file.metadata()?;
    let denied = |text| Err(Error::new(ErrorKind::PermissionDenied, text));
    // Pipes and `/dev/null` have no content that others can prepare.
    if found.is_file() {
        if found.uid() != 0 && found.uid() != own_uid() {
            return denied(format!("the file belongs to user {}; use a copy of it", user_name(found.uid())));
        }
        if others_can_write(&found) {
            return denied("other users can write the file; check it, then run chmod go-w".to_owned());
        }
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The start of the origin of values of `--set`.
pub(crate) const SET_ORIGIN: &str = "--set ";

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    /// A readable origin: `default`, a path, an environment variable, or `--set`.
    pub(crate) origin: String,
    pub(crate) table: Table,
}

impl Layer {
    pub(crate) fn file(path: &Path) -> Result<Self, ConfigError> {
        let text = read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::text(path, &text)
    }

    /// Parses TOML text. `path` is its origin.
    pub(crate) fn text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
            let problem = error.message().replace('\n', "; ");
            ConfigError::Syntax { path: path.to_owned(), line, problem }
        })?;
        Ok(Self { origin: path.display().to_string(), table })
    }

    /// Returns one layer for each variable that starts with [`ENV_PREFIX`], ordered by name.
    pub(crate) fn environment(
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Vec<Self>, ConfigError> {
        let mut found: Vec<_> =
            variables.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
        found.sort();
        let layers = found.into_iter().map(|(name, value)| {
            let key = name[ENV_PREFIX.len()..].to_lowercase().replace("__", ".");
            Self::assignment(format!("environment variable {name}"), &key, &value)
        });
        layers.collect()
    }

    /// Parses an argument `KEY=VALUE` of `--set`.
    pub(crate) fn set(argument: &str) -> Result<Self, ConfigError> {
        let Some((key, value)) = argument.split_once('=') else {
            let (origin, problem) = (format!("--set {argument}"), "expected KEY=VALUE".to_owned());
            return Err(ConfigError::Assignment { origin, problem });
        };
        Self::assignment(format!("{SET_ORIGIN}{}", key.trim()), key.trim(), value)
    }

    fn assignment(origin: String, key: &str, value: &str) -> Result<Self, ConfigError> {
        let parts: Vec<_> = key.split('.').collect();
        let plain = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if !parts.iter().all(plain) {
            let problem = format!("invalid key {key:?}; expected a key such as section.name");
            return Err(ConfigError::Assignment { origin, problem });
        }
        let value = match parse_value(value) {
            Ok(value) => value,
            Err(problem) => return Err(ConfigError::Assignment { origin, problem }),
        };
        let nest = |value, part: &&str| Value::Table(Table::from_iter([((*part).to_owned(), value)]));
        let value = parts[1..].iter().rev().fold(value, nest);
        Ok(Self { origin, table: Table::from_iter([(parts[0].to_owned(), value)]) })
    }
}

/// Parses a TOML value. Other text is a string, unless it starts like a list, a table or a quoted string.
fn parse_value(text: &str) -> Result<Value, String> {
    let text = text.trim();
    match format!("value = {text}").parse::<Table>() {
        // A newline in the text could add keys.
        Ok(mut table) if table.len() == 1 => {
            Ok(table.remove("value").expect("the table has the key `value`"))
        }
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("invalid TOML value {text}: {}", error.message().replace('\n', "; ")))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, config::Value>, config::ConfigError> {
        Ok(with_origin(&self.origin, &self.table))
    }
}

fn with_origin(origin: &String, table: &Table) -> Map<String, config::Value> {
    fn convert(origin: &String, value: &Value) -> config::Value {
        let kind = match value {
            Value::String(text) => ValueKind::String(text.clone()),
            Value::Integer(number) => ValueKind::I64(*number),
            Value::Float(number) => ValueKind::Float(*number),
            Value::Boolean(truth) => ValueKind::Boolean(*truth),
            Value::Datetime(time) => ValueKind::String(time.to_string()),
            Value::Array(items) => ValueKind::Array(items.iter().map(|item| convert(origin, item)).collect()),
            Value::Table(table) => ValueKind::Table(with_origin(origin, table)),
        };
        config::Value::new(Some(origin), kind)
    }
    table.iter().map(|(key, value)| (key.clone(), convert(origin, value))).collect()
}

/// Converts a merged value to TOML.
pub(super) fn without_origin(value: &config::Value) -> Value {
    match &value.kind {
        ValueKind::Boolean(truth) => (*truth).into(),
        ValueKind::I64(number) => (*number).into(),
        ValueKind::Float(number) => (*number).into(),
        ValueKind::Array(items) => items.iter().map(without_origin).collect::<Vec<_>>().into(),
        ValueKind::Table(table) => {
            Value::Table(table.iter().map(|(key, value)| (key.clone(), without_origin(value))).collect())
        }
        // No layer contains the other kinds.
        text => text.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        parse_value(text).unwrap()
    }

    #[test]
    fn bare_word_is_parsed_as_string() {
        assert_eq!(value("true"), Value::Boolean(true));
        assert_eq!(value("7"), Value::Integer(7));
        assert_eq!(value("[\"a\"]"), Value::Array(vec!["a".into()]));
        for text in ["sled", "30s", "50MB/s", "zmq://127.0.0.1:0", "/a path", "", "1\nother = 2"] {
            assert_eq!(value(text), Value::String(text.to_owned()), "{text:?}");
        }
        assert_eq!(value("\"true\""), Value::String("true".into()));
        assert!(parse_value("[zmq://a:1]").unwrap_err().contains("[zmq://a:1]"));
    }

    #[test]
    fn assignment_without_valid_key_is_rejected() {
        for argument in ["", "key", "=1", "a..b=1", ".a=1", "a[4000000000]=1", "a b=1"] {
            assert!(Layer::set(argument).is_err(), "{argument:?}");
        }
        assert_eq!(Layer::set("a.b=x=y").unwrap().table["a"]["b"].as_str(), Some("x=y"));
    }
}
