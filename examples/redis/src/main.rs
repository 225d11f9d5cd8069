//! The program `enjambre` with an additional storage backend: `[storage] backend = "redis"`.

use std::process::ExitCode;

use enjambre::App;
use enjambre_core::{Place, Role};
use enjambre_redis::{RedisSettings, open, remove};

fn main() -> ExitCode {
    let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    app.register_storage("redis", |settings: RedisSettings, place: Place, role: Role| async move {
        Ok(open(&settings, &place, role).await?)
    });
    app.remove_scratch_with("redis", |settings: RedisSettings, place: Place, role: Role| async move {
        Ok(remove(&settings, &place, role).await?)
    });
    app.main()
}
