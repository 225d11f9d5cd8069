//! Schemas of enumerations that other crates define.

use enjambre_core::FileKind;
use enjambre_core::model::membership::Rights;
use enjambre_swarm::download::queue::Stage;
use enjambre_swarm::download::view::SourceState;
use enjambre_swarm::library::entry::WithdrawReason;
use serde::Serialize;
use utoipa::openapi::Object;
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};

pub(crate) fn file_kind() -> Object {
    one_of(Type::String.into(), &[FileKind::File, FileKind::Executable, FileKind::Collection])
}

pub(crate) fn rights() -> Object {
    one_of(Type::String.into(), &[Rights::ReadOnly, Rights::Full])
}

pub(crate) fn withdraw_reason() -> Object {
    use WithdrawReason::{Changed, Missing, Unreadable};
    one_of(Type::String.into(), &[Missing, Changed, Unreadable])
}

pub(crate) fn optional_withdraw_reason() -> Object {
    use WithdrawReason::{Changed, Missing, Unreadable};
    one_of(
        SchemaType::from_iter([Type::String, Type::Null]),
        &[Some(Missing), Some(Changed), Some(Unreadable), None],
    )
}

pub(crate) fn stage() -> Object {
    use Stage::{Active, Complete, DiskFull, Failed, Paused, Queued, Searching};
    one_of(Type::String.into(), &[Queued, Searching, Active, Paused, DiskFull, Complete, Failed])
}

pub(crate) fn source_state() -> Object {
    use SourceState::{Active, BackedOff, Banned, Busy, Connecting, Idle};
    one_of(Type::String.into(), &[Active, Busy, Connecting, BackedOff, Idle, Banned])
}

fn one_of<T: Serialize>(schema_type: SchemaType, values: &[T]) -> Object {
    let values = values.iter().map(|value| serde_json::to_value(value).expect("the value serializes"));
    ObjectBuilder::new().schema_type(schema_type).enum_values(Some(values)).build()
}
