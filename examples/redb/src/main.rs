//! The program `enjambre` with one more storage backend: `[storage] backend = "redb"`.

use std::process::ExitCode;

use enjambre::App;
use enjambre::registry::Place;
use enjambre_redb::RedbSettings;

fn main() -> ExitCode {
    let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    app.register_storage("redb", |settings: RedbSettings, place: Place| async move {
        let path = place.database(settings.path.as_deref(), "redb");
        Ok(enjambre_redb::open(settings, &path, place.role).await?)
    });
    app.main()
}
