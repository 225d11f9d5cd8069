//! Which formats of a catalogue there were, and how an old one is brought forward.
//!
//! A catalogue that a step has begun to change is marked as [`MOVING`], which neither an older program nor a newer one
//! takes for a catalogue.

mod one;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use super::layout::{self, FORMAT, FormatRecord, META};
use crate::format::{Format, Mark, Step};
use crate::storage::error::StorageError;
use one::FromOne;

/// What a database with a catalogue holds, by its format record.
pub(super) const CATALOGUE: &str = "catalogue";
/// What it holds while a step is under way.
const MOVING: &str = "catalogue under migration";

/// The last one leads to [`FORMAT`].
const STEPS: &[&dyn Step] = &[&FromOne { page: 2000 }];

/// The formats of a catalogue.
pub(super) fn formats() -> Format<'static> {
    with_steps(STEPS)
}

fn with_steps<'a>(steps: &'a [&'a dyn Step]) -> Format<'a> {
    let key = layout::meta_key("format");
    Format { what: CATALOGUE, space: META, key, newest: FORMAT, steps, read, write }
}

/// Reads the format record.
pub(super) fn read(bytes: &[u8]) -> Result<Mark, StorageError> {
    let FormatRecord { v: format, what, note } = layout::decode(META, bytes)?;
    match (&*what, &note) {
        (CATALOGUE, _) => Ok(Mark { format, note: None }),
        (MOVING, Some(_)) => Ok(Mark { format, note }),
        _ => {
            let what: String = what.chars().take(40).collect();
            Err(StorageError::corrupt(format!("the database holds a {what:?} and not a catalogue")))
        }
    }
}

fn write(Mark { format, note }: &Mark) -> Bytes {
    let what = if note.is_some() { MOVING } else { CATALOGUE };
    layout::encode(&FormatRecord { v: *format, what: what.to_owned(), note: note.clone() })
}
