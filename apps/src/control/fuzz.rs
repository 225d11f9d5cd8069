//! Fuzz target: lines of the control protocol.

use enjambre_control::{Command, Event};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::message::Envelope;

/// Parses a value and checks that it round-trips through a single line.
fn parse<T: Serialize + DeserializeOwned>(text: &str) -> Option<T> {
    let parsed = serde_json::from_str::<T>(text).ok()?;
    let line = serde_json::to_string(&parsed).expect("a parsed value serializes");
    assert!(!line.contains('\n'));
    let again = serde_json::from_str::<T>(&line).expect("the line was just serialized");
    let (written, again) = (serde_json::to_value(&parsed), serde_json::to_value(&again));
    let (written, again) = (written.expect("the value serializes"), again.expect("the value serializes"));
    assert!(equal(&written, &again), "{written} and {again}");
    Some(parsed)
}

/// Compares two values. Floating-point numbers may differ in their last digits.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| equal(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let same = |(key, one): (&String, &Value)| other.get(key).is_some_and(|other| equal(one, other));
            one.len() == other.len() && one.iter().all(same)
        }
        (Value::Number(one), Value::Number(other)) if one.is_f64() && other.is_f64() => {
            let (one, other) = (one.as_f64().unwrap_or(f64::NAN), other.as_f64().unwrap_or(f64::NAN));
            (one - other).abs() <= one.abs() * 1e-12
        }
        _ => one == other,
    }
}

/// Parses a command or an event.
pub(crate) fn messages(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let command = parse::<Envelope>(text);
    parse::<Event>(text);
    if let Some(Envelope { command: Command::Get { queries, .. }, .. }) = command {
        assert!(queries.iter().map(String::len).sum::<usize>() <= text.len());
    }
}
