//! Redaction of passwords in displayed configuration values and error messages.

use toml::Value;

/// Formats the value of a key as TOML, with passwords redacted.
pub(crate) fn shown(key: &str, value: &Value) -> String {
    redacted(key, value).to_string()
}

/// Returns the value of a key with passwords redacted.
pub(crate) fn redacted(key: &str, value: &Value) -> Value {
    let name = key.rsplit('.').next().unwrap_or(key).to_lowercase();
    // The name can be quoted.
    let name = name.trim_end_matches('"');
    if name.ends_with("password") || name.ends_with("secret") {
        return "***".into();
    }
    match value {
        Value::String(text) => without_password(text).into(),
        Value::Array(values) => values.iter().map(|value| redacted(key, value)).collect::<Vec<_>>().into(),
        // An inline table in a list, or a table in the place of a single value.
        Value::Table(table) => {
            Value::Table(table.iter().map(|(key, value)| (key.clone(), redacted(key, value))).collect())
        }
        other => other.clone(),
    }
}

/// Redacts a password before the last `@` of a URL. A connection string with a `password` parameter is redacted completely.
fn without_password(text: &str) -> String {
    if text.to_lowercase().contains("password") && text.contains('=') {
        return "***".to_owned();
    }
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let Some((credentials, host)) = rest.rsplit_once('@') else { return text.to_owned() };
    match credentials.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:***@{host}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passwords_are_redacted() {
        for (key, value) in [
            ("storage.postgres.url", "postgresql://u:hunter2@db:5432/x"),
            ("storage.postgres.url", "postgresql://u:hun@ter2@db,other/x"),
            ("storage.postgres.url", "postgresql://u@db/x?password=hunter2"),
            ("storage.postgres.url", "host=db Password='hunter2'"),
            ("storage.postgres.password", "hunter2"),
        ] {
            let shown = shown(key, &Value::String(value.to_owned()));
            assert!(!shown.contains("ter2"), "{shown}");
        }
        let table: Value = "a = { password = \"hunter2\", list = [\"x://u:hunter2@y\"] }"
            .parse::<toml::Table>()
            .unwrap()
            .into();
        assert!(!shown("storage", &table).contains("hunter2"));
        for (key, value) in [
            ("storage.postgres.url", "postgresql://u@db:5432/x"),
            ("storage.postgres.password_file", "secrets/password"),
            ("transport.listen", "tcp://127.0.0.1:7700"),
        ] {
            assert_eq!(shown(key, &Value::String(value.to_owned())), format!("\"{value}\""));
        }
    }
}
