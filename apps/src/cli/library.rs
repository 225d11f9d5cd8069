//! `enjambre library`

use enjambre_core::FileKind;

use super::context::Context;
use super::output::{plain, size};
use super::runner;
use crate::control::message::{Command, Event, LibraryLine};
use crate::failure::Failure;

pub(super) async fn run(context: Context<'_>, json: bool) -> Result<(), Failure> {
    runner::print(&context, Command::Library, |stdout, event| match event {
        Event::File(file) if json => stdout.json(&file),
        Event::File(file) => stdout.line(&line(&file)),
        _ => {}
    })
    .await
}

fn line(file: &LibraryLine) -> String {
    let mark = if file.kind == FileKind::Collection { "/" } else { "" };
    let state = match (file.withdrawn, file.available_pieces, file.pieces) {
        (true, ..) => "changed on disk".to_owned(),
        (false, available, pieces) if available == pieces => "complete".to_owned(),
        (false, available, pieces) => {
            format!("{:.0} %", 100.0 * f64::from(available) / f64::from(pieces.max(1)))
        }
    };
    let place = match &file.path {
        Some(path) => plain(&path.display().to_string()),
        None => file.content.clone(),
    };
    let name = format!("{}{mark}", file.name);
    format!("{}  {:>10}  {state:>10}  {name}  ({place})", &file.id.to_string()[..16], size(file.size))
}
