//! Fuzz targets: configurations as people write them.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use toml::Table;

use super::layer::Layer;
use super::load::Loaded;
use super::value::{Deadline, Rate, SharedPrefix, Size, Span};

const BACKENDS: [&str; 4] = ["memory", "sqlite", "sled", "postgres"];

fn value<T: FromStr<Err: Debug> + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().expect("it was just written"), value);
    }
}

/// The texts of single values.
pub(crate) fn values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    value::<Span>(text);
    value::<Size>(text);
    value::<Rate>(text);
    value::<Deadline>(text);
    value::<SharedPrefix>(text);
}

/// A whole file. What is shown of one that is good is good, too, and says the same.
pub(crate) fn file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(layer) = Layer::text("file".as_ref(), text) else { return };
    loaded(vec![layer]);
}

/// Arguments of `--set`, each on a line.
pub(crate) fn set(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let layers: Result<Vec<_>, _> = text.lines().map(Layer::set).collect();
    match layers {
        Ok(layers) => loaded(layers),
        Err(error) => one_line(&error),
    }
}

fn one_line(error: &impl Display) {
    // Of the whole message only the value may be long.
    assert!(!error.to_string().contains('\n'), "{error}");
}

fn loaded(layers: Vec<Layer>) {
    let loaded = match Loaded::from_layers(layers, None, None, &BACKENDS) {
        Ok(loaded) => loaded,
        Err(error) => return one_line(&error),
    };
    let shown = loaded.show();
    let table: Table = shown.parse().unwrap_or_else(|error| panic!("{error} in {shown}"));
    let layer = Layer { origin: "shown".to_owned(), table };
    let again = Loaded::from_layers(vec![layer], None, Some(loaded.kind), &BACKENDS).expect("it was good");
    // Passwords are not shown.
    if !shown.contains("***") {
        assert_eq!(settings(&again), settings(&loaded));
    }
}

/// Every value. A table without any says nothing, so it need not be shown.
fn settings(loaded: &Loaded) -> Vec<String> {
    loaded.values().iter().map(|(key, found)| format!("{key} = {:?}", found.value)).collect()
}
