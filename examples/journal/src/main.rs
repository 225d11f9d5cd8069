//! The program `enjambre` with the journal: `[storage] backend = "journal"`.

use std::process::ExitCode;

use enjambre::App;
use enjambre::registry::Place;
use enjambre_journal::JournalSettings;

fn main() -> ExitCode {
    let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    app.register_storage("journal", |settings: JournalSettings, place: Place| async move {
        let path = place.database(settings.path.as_deref(), "journal");
        Ok(enjambre_journal::open(&path, place.role).await?)
    });
    app.main()
}
