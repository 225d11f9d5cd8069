//! A map from accepted connections to values, in memory bounded by the number of open connections.
//!
//! Entries of closed connections are removed when the map has doubled since the last removal. Entries of open connections
//! are never removed, because such a connection may have to be closed when its remote is revoked.

use std::collections::BTreeMap;

use enjambre_core::{ConnectionHandle, ConnectionId, PeerInfo};

/// The size below which closed connections are not removed.
const MIN_THRESHOLD: usize = 256;

/// A value for each connection.
#[derive(Debug)]
pub struct PerConnection<T> {
    entries: BTreeMap<ConnectionId, (ConnectionHandle, T)>,
    /// The size at which closed connections are removed.
    threshold: usize,
}

impl<T> Default for PerConnection<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), threshold: MIN_THRESHOLD }
    }
}

impl<T> PerConnection<T> {
    /// Returns the value of a connection.
    pub fn get(&self, connection: ConnectionId) -> Option<&T> {
        self.entries.get(&connection).map(|(_, value)| value)
    }

    /// Sets the value of the connection of `peer`.
    pub fn insert(&mut self, peer: &PeerInfo, value: T) {
        if self.entries.len() >= self.threshold {
            self.entries.retain(|_, (handle, _)| !handle.is_closed());
            self.threshold = MIN_THRESHOLD.max(2 * self.entries.len());
        }
        self.entries.insert(peer.connection, (peer.handle.clone(), value));
    }

    /// Removes the values for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&ConnectionHandle, &T) -> bool) {
        self.entries.retain(|_, (handle, value)| keep(handle, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_closed_connections_are_removed() {
        let mut map = PerConnection::default();
        let peer = |number| PeerInfo {
            connection: ConnectionId(number),
            handle: ConnectionHandle::default(),
            address: None,
            identity: None,
        };
        let open: Vec<PeerInfo> = (0..MIN_THRESHOLD as u64).map(peer).collect();
        open.iter().for_each(|peer| map.insert(peer, 0));
        for number in 1000..20_000 {
            let peer = peer(number);
            map.insert(&peer, number);
            peer.handle.close();
        }
        assert!(map.entries.len() <= 2 * (MIN_THRESHOLD + 1), "{} entries", map.entries.len());
        assert!(open.iter().all(|peer| map.get(peer.connection) == Some(&0)));
        map.retain(|handle, value| *value == 0 && !handle.is_closed());
        assert_eq!(map.entries.len(), open.len());
    }
}
