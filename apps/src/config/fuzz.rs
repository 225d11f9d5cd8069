//! Fuzz targets of the configuration parser.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use toml::Table;

use super::layer::Layer;
use super::load::Loaded;
use super::value::{Rate, Size, Span, Timeout};

const BACKENDS: [&str; 4] = ["memory", "sqlite", "sled", "postgres"];

fn value<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().expect("the text was produced by `to_string`"), value);
    }
}

/// Parses single values.
pub(crate) fn values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    value::<Span>(text);
    value::<Size>(text);
    value::<Rate>(text);
    value::<Timeout>(text);
}

/// Parses a file. The output of `config show` for a valid file is valid and has the same values.
pub(crate) fn file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(layer) = Layer::text("file".as_ref(), text) else { return };
    check_round_trip(vec![layer]);
}

/// Parses arguments of `--set`, one per line.
pub(crate) fn set(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let layers: Result<Vec<_>, _> = text.lines().map(Layer::set).collect();
    match layers {
        Ok(layers) => check_round_trip(layers),
        Err(error) => assert_single_line(&error),
    }
}

fn assert_single_line(error: &impl Display) {
    assert!(!error.to_string().contains('\n'), "{error}");
}

fn check_round_trip(layers: Vec<Layer>) {
    let loaded = match Loaded::from_layers(layers, None, None, &BACKENDS) {
        Ok(loaded) => loaded,
        Err(error) => return assert_single_line(&error),
    };
    let shown = loaded.show();
    let table: Table = shown.parse().unwrap_or_else(|error| panic!("{error} in {shown}"));
    let layer = Layer { origin: "shown".to_owned(), table };
    let again = Loaded::from_layers(vec![layer], None, Some(loaded.kind), &BACKENDS)
        .expect("the shown configuration is valid");
    // Passwords are replaced by `***`.
    if !shown.contains("***") {
        assert_eq!(settings(&again), settings(&loaded));
    }
}

/// All values, without empty tables.
fn settings(loaded: &Loaded) -> Vec<String> {
    loaded.values().iter().map(|(key, found)| format!("{key} = {:?}", found.value)).collect()
}
