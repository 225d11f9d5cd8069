//! A layer of the configuration: a table of values with a common origin.

use std::path::Path;

use config::{ConfigError as SourceError, Map, Source, Value, ValueKind};
use toml::Table;

use super::error::ConfigError;

/// The prefix of environment variables that set configuration keys.
pub const ENV_PREFIX: &str = "ENJAMBRE__";

/// Values with a common origin.
#[derive(Debug, Clone)]
pub struct Layer {
    /// A readable origin: `default`, a path, an environment variable, or `--set`.
    pub origin: String,
    /// The values.
    pub table: Table,
}

impl Layer {
    /// Reads a TOML file.
    pub fn file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::text(path, &text)
    }

    /// Parses TOML text. `path` is its origin.
    pub fn text(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
            let problem = error.message().replace('\n', "; ");
            ConfigError::Syntax { path: path.to_owned(), line, problem }
        })?;
        Ok(Self { origin: path.display().to_string(), table })
    }

    /// Returns one layer for each variable that starts with [`ENV_PREFIX`], ordered by name.
    pub fn environment(
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
    pub fn set(argument: &str) -> Result<Self, ConfigError> {
        let Some((key, value)) = argument.split_once('=') else {
            return Err(ConfigError::Assignment {
                origin: format!("--set {argument}"),
                problem: "expected KEY=VALUE".to_owned(),
            });
        };
        Self::assignment(format!("--set {}", key.trim()), key.trim(), value)
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
        let mut value = match parse_value(value) {
            Ok(value) => value,
            Err(problem) => return Err(ConfigError::Assignment { origin, problem }),
        };
        for part in parts[1..].iter().rev() {
            value = toml::Value::Table(Table::from_iter([((*part).to_owned(), value)]));
        }
        Ok(Self { origin, table: Table::from_iter([(parts[0].to_owned(), value)]) })
    }
}

/// Parses a TOML value. Other text is a string, unless it starts like a list, a table or a quoted string.
fn parse_value(text: &str) -> Result<toml::Value, String> {
    let text = text.trim();
    match format!("value = {text}").parse::<Table>() {
        // A newline in the text could add keys.
        Ok(mut table) if table.len() == 1 => {
            Ok(table.remove("value").expect("the table has the key `value`"))
        }
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
            Err(format!("invalid TOML value {text}: {}", error.message().replace('\n', "; ")))
        }
        _ => Ok(toml::Value::String(text.to_owned())),
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, SourceError> {
        Ok(map(&self.origin, &self.table))
    }
}

fn map(origin: &String, table: &Table) -> Map<String, Value> {
    table.iter().map(|(key, value)| (key.clone(), with_origin(origin, value))).collect()
}

fn with_origin(origin: &String, value: &toml::Value) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text.clone()),
        toml::Value::Integer(number) => ValueKind::I64(*number),
        toml::Value::Float(number) => ValueKind::Float(*number),
        toml::Value::Boolean(truth) => ValueKind::Boolean(*truth),
        toml::Value::Datetime(time) => ValueKind::String(time.to_string()),
        toml::Value::Array(items) => {
            ValueKind::Array(items.iter().map(|item| with_origin(origin, item)).collect())
        }
        toml::Value::Table(table) => ValueKind::Table(map(origin, table)),
    };
    Value::new(Some(origin), kind)
}

/// Converts a merged value to TOML.
pub(super) fn without_origin(value: &Value) -> toml::Value {
    match &value.kind {
        ValueKind::Nil => toml::Value::String(String::new()),
        ValueKind::Boolean(truth) => toml::Value::Boolean(*truth),
        ValueKind::I64(number) => toml::Value::Integer(*number),
        ValueKind::Float(number) => toml::Value::Float(*number),
        ValueKind::String(text) => toml::Value::String(text.clone()),
        ValueKind::Array(items) => toml::Value::Array(items.iter().map(without_origin).collect()),
        ValueKind::Table(table) => toml::Value::Table(
            table.iter().map(|(key, value)| (key.clone(), without_origin(value))).collect(),
        ),
        // No layer contains these.
        other @ (ValueKind::I128(_) | ValueKind::U64(_) | ValueKind::U128(_)) => {
            toml::Value::String(other.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> toml::Value {
        parse_value(text).unwrap()
    }

    #[test]
    fn bare_word_is_parsed_as_string() {
        assert_eq!(value("true"), toml::Value::Boolean(true));
        assert_eq!(value("7"), toml::Value::Integer(7));
        assert_eq!(value("[\"a\"]"), toml::Value::Array(vec!["a".into()]));
        for text in ["sled", "30s", "50MB/s", "zmq://127.0.0.1:0", "/a path", "", "1\nother = 2"] {
            assert_eq!(value(text), toml::Value::String(text.to_owned()), "{text:?}");
        }
        assert_eq!(value("\"true\""), toml::Value::String("true".into()));
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
