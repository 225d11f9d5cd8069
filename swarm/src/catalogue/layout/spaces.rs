//! The spaces of a catalogue.

use enjambre_core::Space;

macro_rules! spaces {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Space = Space::new($text);)*

        /// All spaces of a catalogue.
        pub const SPACES: &[Space] = &[$($name),*];
    };
}

spaces! {
    /// Facts about the database itself.
    META = "meta";
    /// Versions of names.
    VERSIONS = "versions";
    /// Files by id.
    FILES = "files";
    /// The versions of names that a file is.
    FILE_NAMES = "file_names";
    /// Claims by file.
    PROVIDERS = "providers";
    /// Claims by peer.
    OFFERS = "offers";
    /// A value per peer that changes whenever claims of the peer are deleted.
    CLEARED = "cleared";
    /// Peer numbers by peer id.
    PEERS = "peers";
    /// Leases of peers.
    LEASES = "leases";
    /// Peer numbers by session.
    SESSIONS = "sessions";
    /// Pins: files of which the tracker stores a replica, each for the peer that pinned it.
    PINS = "pins";
    /// The totals of the pins of each peer.
    PINNERS = "pinners";
    /// The secret key of the swarm's authority.
    AUTHORITY = "authority";
    /// Unused invitations.
    INVITATIONS = "invitations";
    /// Members of an invite-only swarm.
    MEMBERS = "members";
    /// Recent revocations.
    REVOKED = "revoked";
    /// Names that only one peer may publish.
    RESERVATIONS = "reservations";
    /// The totals of the pins of each file.
    PINNED = "pinned";
}
