//! Settings of a seeder.

/// Limits of a [`Seeder`](super::Seeder).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeederSettings {
    /// Maximum number of connections with pending piece requests. Connections from one address occupy at most half of the
    /// slots that others leave free. Further connections get the reply `busy`.
    pub slots: usize,
    /// Maximum number of pieces in preparation for one connection.
    pub per_connection: usize,
}

impl Default for SeederSettings {
    fn default() -> Self {
        Self { slots: 256, per_connection: 3 }
    }
}
