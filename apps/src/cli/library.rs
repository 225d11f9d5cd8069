//! `enjambre library`

use clap::Args;
use enjambre_core::model::record::FileKind;

use super::context::Context;
use super::output::{Stdout, plain, size};
use super::runner;
use crate::control::message::{Command, Event, LibraryLine};
use crate::failure::Failure;
use crate::peer::Reach;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(context: Context<'_>, Arguments { json }: Arguments) -> Result<(), Failure> {
    let mut stdout = Stdout::default();
    let mut show = |event| match event {
        Event::File(file) if json => stdout.json(&file),
        Event::File(file) => stdout.line(&line(&file)),
        _ => {}
    };
    runner::run(&context, Command::Library, Reach::Offline, &mut show).await?;
    stdout.finish()
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
