//! The fuzz targets of this crate: what strangers send and what a damaged disk gives back, by name. Each is beside the
//! decoders that it is about. See `tests/fuzz/README.md`.

use enjambre_fuzz::Target;
use enjambre_fuzz::form::Form;
use enjambre_fuzz::items::Layout;

use crate::{catalogue, download, library, model, protocol, swarm};

/// A byte for a space, a byte for the length of a key, the key and a value.
const RECORD: Layout = Layout { before: 1, lengths: &[1], rest: true };
/// The same with a byte for the length of the value, again and again.
const ENTRIES: Layout = Layout { before: 1, lengths: &[1, 1], rest: false };
/// Two bytes for the length of a header, the header and a payload.
const MESSAGE: Layout = Layout { before: 0, lengths: &[2], rest: true };

/// All targets.
const TARGETS: &[Target] = &[
    Target::new("cbor-head", Form::Bytes, protocol::fuzz::head),
    Target::new("request", Form::Cbor, protocol::fuzz::request),
    Target::new("reply", Form::Cbor, protocol::fuzz::reply),
    Target::new("name", Form::Text, model::fuzz::name),
    Target::new("endpoint", Form::Text, model::fuzz::endpoint),
    Target::new("collection", Form::Cbor, model::fuzz::collection),
    Target::new("manifest", Form::Bytes, model::fuzz::manifest),
    Target::new("bitmap", Form::Bytes, model::fuzz::bitmap),
    Target::new("pattern", Form::Text, catalogue::fuzz::pattern),
    Target::new("catalogue-records", Form::Items(RECORD), catalogue::fuzz::records),
    Target::new("catalogue-mark", Form::Cbor, catalogue::fuzz::mark),
    Target::new("catalogue-old", Form::Items(ENTRIES), catalogue::fuzz::old),
    Target::new("remembered", Form::Bytes, catalogue::fuzz::remembered),
    Target::new("library-records", Form::Items(RECORD), library::fuzz::records),
    Target::new("library-mark", Form::Bytes, library::fuzz::mark),
    Target::new("provider", Form::Items(MESSAGE), download::fuzz::provider),
    Target::new("invitation", Form::Bytes, swarm::fuzz::invitation),
    Target::new("membership", Form::Bytes, swarm::fuzz::membership),
    Target::new("revocations", Form::Bytes, swarm::fuzz::revocations),
];

#[test]
fn no_target_fails() {
    enjambre_fuzz::run(TARGETS);
}
