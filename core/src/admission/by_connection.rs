//! Something that is known of each open connection, in memory that is bounded by how many the transport lets be open.
//!
//! What is known of those that have ended is dropped when there is twice as much as the last time. Of one that is open nothing
//! is dropped: it may have to be closed when its remote is thrown out.

use std::collections::BTreeMap;

use crate::transport::{ConnectionHandle, ConnectionId, PeerInfo};

/// With fewer connections than this nobody looks which of them have ended.
const FEW: usize = 256;

/// A value for each connection.
#[derive(Debug)]
pub struct ByConnection<T> {
    entries: BTreeMap<ConnectionId, (ConnectionHandle, T)>,
    /// With so many it is looked which have ended.
    many: usize,
}

impl<T> Default for ByConnection<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), many: FEW }
    }
}

impl<T> ByConnection<T> {
    /// What is known of a connection.
    pub fn get(&self, connection: ConnectionId) -> Option<&T> {
        self.entries.get(&connection).map(|(_, value)| value)
    }

    /// From now on this is known of it.
    pub fn insert(&mut self, over: &PeerInfo, value: T) {
        if self.entries.len() >= self.many {
            self.entries.retain(|_, (handle, _)| !handle.is_closed());
            self.many = FEW.max(2 * self.entries.len());
        }
        self.entries.insert(over.connection, (over.handle.clone(), value));
    }

    /// Keeps what is known of those connections of which this holds.
    pub fn retain(&mut self, mut stays: impl FnMut(&ConnectionHandle, &T) -> bool) {
        self.entries.retain(|_, (handle, value)| stays(handle, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_have_ended_are_forgotten_and_open_ones_never() {
        let mut known = ByConnection::default();
        let over = |number| PeerInfo {
            connection: ConnectionId(number),
            handle: ConnectionHandle::default(),
            address: None,
            identity: None,
        };
        let open: Vec<PeerInfo> = (0..FEW as u64).map(over).collect();
        open.iter().for_each(|connection| known.insert(connection, 0));
        for number in 1000..20_000 {
            let connection = over(number);
            known.insert(&connection, number);
            connection.handle.close();
        }
        assert!(known.entries.len() <= 2 * (FEW + 1), "{} are remembered", known.entries.len());
        assert!(open.iter().all(|connection| known.get(connection.connection) == Some(&0)));
        known.retain(|handle, value| *value == 0 && !handle.is_closed());
        assert_eq!(known.entries.len(), open.len());
    }
}
