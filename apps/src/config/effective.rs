//! The effective values of a configuration by key, with their origins.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;

use toml::{Table, Value};

use super::layer::without_origin;
use super::secret::{redacted, shown};

/// The origin of default values.
pub(super) const DEFAULT: &str = "default";

/// An effective value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Effective {
    pub(crate) value: Value,
    /// The layer that contains the value.
    pub(crate) origin: String,
}

/// Formats the configuration as TOML, with the origin of each value in a comment.
pub(super) fn show(values: &BTreeMap<String, Effective>) -> String {
    let mut sections: BTreeMap<&str, Vec<(&str, &Effective)>> = BTreeMap::new();
    for (key, effective) in values {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        sections.entry(section).or_default().push((name, effective));
    }
    let mut text = String::new();
    for (section, entries) in sections {
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(text, "{gap}[{section}]");
        let lines: Vec<_> = entries
            .iter()
            .map(|(name, found)| (format!("{name} = {}", shown(name, &found.value)), &found.origin))
            .collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max().unwrap_or(0).min(60);
        for (line, origin) in lines {
            let _ = writeln!(text, "{line:width$}  # {}", origin.replace(char::is_control, " "));
        }
    }
    text
}

/// Returns the values as JSON, with passwords redacted.
pub(super) fn without_passwords(values: &BTreeMap<String, Effective>) -> BTreeMap<String, serde_json::Value> {
    let json = |value| serde_json::to_value(value).expect("the values of TOML are values of JSON");
    values.iter().map(|(key, found)| (key.clone(), json(redacted(key, &found.value)))).collect()
}

/// Adds a merged value, or the values in a table.
pub(super) fn flatten(key: &str, value: &config::Value, into: &mut BTreeMap<String, Effective>) {
    if let config::ValueKind::Table(table) = &value.kind {
        for (name, value) in table {
            flatten(&format!("{key}.{}", quoted_key(name)), value, into);
        }
    } else {
        let origin = value.origin().unwrap_or(DEFAULT).to_owned();
        into.insert(key.to_owned(), Effective { value: without_origin(value), origin });
    }
}

/// Adds the values of a table that no layer contains. The value of a layer may have another form than that of the table, for
/// example `"30s"` and `{ secs = 30 }`.
pub(super) fn add_defaults(key: &str, settings: Table, into: &mut BTreeMap<String, Effective>) {
    for (name, value) in settings {
        let key = format!("{key}.{}", quoted_key(&name));
        match value {
            Value::Table(inner) if !into.contains_key(&key) => add_defaults(&key, inner, into),
            value if !into.keys().any(|known| is_below(known, &key)) => {
                let default = || Effective { value, origin: DEFAULT.to_owned() };
                into.entry(key).or_insert_with(default);
            }
            _ => {}
        }
    }
}

/// Whether a key is in the table of another one.
fn is_below(key: &str, table: &str) -> bool {
    key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))
}

/// Quotes a TOML key if necessary. Dots are escaped, because the caller splits keys at dots.
fn quoted_key(name: &str) -> Cow<'_, str> {
    if !name.is_empty() && name.chars().all(|char| char.is_ascii_alphanumeric() || "_-".contains(char)) {
        return name.into();
    }
    let mut quoted = String::from('"');
    for char in name.chars() {
        if char.is_control() || "\"\\.".contains(char) {
            let _ = write!(quoted, "\\u{:04X}", u32::from(char));
        } else {
            quoted.push(char);
        }
    }
    quoted.push('"');
    quoted.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_not_added_beside_a_value_in_another_form() {
        let given = |key: &str| (key.to_owned(), Effective { value: 1.into(), origin: "file".to_owned() });
        let mut values = BTreeMap::from(["x.rate.mib", "x.sizes", "x.timeout"].map(given));
        let settings = "rate = \"1 MiB/s\"\nsize = 2\ntimeout = { secs = 30 }\nother = { limit = 3 }";
        add_defaults("x", settings.parse().unwrap(), &mut values);
        let expected = ["x.other.limit", "x.rate.mib", "x.size", "x.sizes", "x.timeout"];
        assert_eq!(Vec::from_iter(values.keys()), expected);
    }
}
