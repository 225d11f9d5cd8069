//! The program `enjambre` with an additional transport: `pipe://NAME:PORT`.

use std::process::ExitCode;
use std::sync::Arc;

use enjambre::App;
use enjambre::registry::Security;
use enjambre_core::MessageLimits;
use enjambre_pipe::Pipe;

fn main() -> ExitCode {
    let directory = std::env::var_os("ENJAMBRE_PIPES").unwrap_or_else(|| "/tmp/enjambre-pipes".into());
    let mut app = App::named(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    app.register_transport("pipe", Security::Plaintext, move |parts| {
        let limits = MessageLimits {
            header: parts.limits.header.as_usize(),
            payload: parts.limits.payload.as_usize(),
            in_flight: parts.limits.in_flight,
        };
        Ok(Arc::new(Pipe::new(&directory, limits)))
    });
    app.main()
}
