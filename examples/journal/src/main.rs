//! The program `enjambre` with an additional storage backend: `[storage] backend = "journal"`.

use std::process::ExitCode;

use enjambre::App;
use enjambre_core::{Place, Role};
use enjambre_journal::{JournalSettings, open};

fn main() -> ExitCode {
    let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    app.register_storage("journal", |settings: JournalSettings, place: Place, role: Role| async move {
        Ok(open(&settings, &place, role).await?)
    });
    app.main()
}
