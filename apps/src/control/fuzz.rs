//! Fuzz target: lines as they come over the control socket.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::message::{Command, Envelope, Event};

/// What was read is read again from what it is written as, which is one line.
fn read<T: Serialize + DeserializeOwned>(text: &str) -> Option<T> {
    let read = serde_json::from_str::<T>(text).ok()?;
    let line = serde_json::to_string(&read).expect("it was read from text");
    assert!(!line.contains('\n'));
    let again = serde_json::from_str::<T>(&line).expect("it was just written");
    let (written, again) = (serde_json::to_value(&read), serde_json::to_value(&again));
    let (written, again) = (written.expect("it can be written"), again.expect("it can be written"));
    assert!(alike(&written, &again), "{written} and {again}");
    Some(read)
}

/// Whether they are the same, but for the last digits of fractions, which are not read to the bit.
fn alike(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| alike(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(key, one): (&String, &Value)| other.get(key).is_some_and(|other| alike(one, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (Value::Number(one), Value::Number(other)) if one.is_f64() && other.is_f64() => {
            let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
            (one - other).abs() <= one.abs() * 1e-12
        }
        _ => one == other,
    }
}

/// A command or an event.
pub(crate) fn messages(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let command = read::<Envelope>(text);
    read::<Event>(text);
    if let Some(Envelope { command: Command::Get { query, .. }, .. }) = command {
        assert!(query.len() <= text.len());
    }
}
