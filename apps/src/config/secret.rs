//! Keeps passwords out of what is shown of a configuration, also where they do not belong and are refused.

use toml::Value;

/// What stands in the place of something secret.
const HIDDEN: &str = "\"***\"";

/// The value of a key as TOML, without passwords.
pub fn shown(key: &str, value: &Value) -> String {
    let name = key.rsplit('.').next().unwrap_or(key).to_lowercase();
    // A name may be quoted.
    let name = name.trim_end_matches('"');
    if name.ends_with("password") || name.ends_with("secret") {
        return HIDDEN.to_owned();
    }
    hide(value).to_string()
}

fn hide(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(without_password(text)),
        Value::Array(values) => Value::Array(values.iter().map(hide).collect()),
        // `shown` sees tables only where they stand for one value.
        Value::Table(table) => Value::Table(
            table
                .iter()
                .map(|(key, value)| {
                    let secret = shown(key, value) == HIDDEN;
                    (key.clone(), if secret { Value::String("***".to_owned()) } else { hide(value) })
                })
                .collect(),
        ),
        other => other.clone(),
    }
}

/// A URL may have a password before its last `@`; in the other form of connection strings, and among the parameters of
/// a URL, it has a name.
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
    fn passwords_are_hidden_wherever_they_stand_and_nothing_else_is() {
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
