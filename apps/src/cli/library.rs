//! `enjambre library`

use enjambre_control::{Command, Event, Failure, LibraryLine};

use super::context::Context;
use super::output::{name, size};
use super::runner;

pub(super) async fn run(context: Context<'_>, json: bool) -> Result<(), Failure> {
    runner::print(&context, Command::Library, |stdout, event| match event {
        Event::File(file) if json => stdout.json(&file),
        Event::File(file) => stdout.line(&line(&file)),
        _ => {}
    })
    .await
}

fn line(file: &LibraryLine) -> String {
    let state = match (file.withdrawn, file.available_pieces, file.pieces) {
        (Some(reason), ..) => reason.to_string(),
        (None, available, pieces) if available == pieces => "complete".to_owned(),
        (None, available, pieces) => {
            format!("{} %", 100 * u64::from(available) / u64::from(pieces.max(1)))
        }
    };
    let place = match &file.path {
        Some(path) => path.display().to_string(),
        None => file.content.clone(),
    };
    let names: Vec<String> = file.names.iter().map(|one| name(one.as_str(), file.kind)).collect();
    let names = names.join(", ");
    format!("{}  {:>10}  {state:>10}  {names}  ({place})", &file.id.to_string()[..16], size(file.size))
}
