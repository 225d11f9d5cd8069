//! `enjambre pins`

use enjambre_control::{Command, Event, Failure, PinLine};

use super::context::Context;
use super::output::{date, size};
use super::runner;

pub(super) async fn run(context: Context<'_>, json: bool) -> Result<(), Failure> {
    runner::print_at_either(&context, Command::Pins, |stdout, event| match event {
        Event::Pin(pin) if json => stdout.json(&pin),
        Event::Pin(pin) => stdout.line(&line(&pin)),
        _ => {}
    })
    .await
}

fn line(pin: &PinLine) -> String {
    let id = &pin.id.to_string()[..16];
    let state = if pin.complete { "complete" } else { "incomplete" };
    let date = date(pin.pinned_ms);
    let name = pin.name.as_ref().map_or("(not in the catalogue)", |name| name.as_str());
    format!("{id}  {:>10}  {state:<10}  {date}  by {}  {name}", size(pin.reserved), pin.peer.short())
}
