//! Fuzz target: lines as they come over the control socket.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::message::{Command, Envelope, Event};

/// What was read is read again from what it is written as, which is one line.
fn read<T: Serialize + DeserializeOwned + Debug>(text: &str) -> Option<T> {
    let read = serde_json::from_str::<T>(text).ok()?;
    let line = serde_json::to_string(&read).expect("it was read from text");
    assert!(!line.contains('\n'));
    let again = serde_json::from_str::<T>(&line).expect("it was just written");
    assert_eq!(format!("{again:?}"), format!("{read:?}"));
    Some(read)
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
