//! The built-in plug-ins. This is the only file that names concrete plug-ins.

use std::collections::BTreeMap;
use std::sync::Arc;

use enjambre_core::storage::memory::Disk;
use enjambre_core::{Memory, Place, Role, Scratch, Storage};
use enjambre_transport::Shared;
use enjambre_transport::settings::TransportSettings;
use parking_lot::Mutex;

use super::{NoSettings, Registry, Security, TransportParts};
use crate::config::sections::TransportLimits;

/// The optional backends, and whether this build includes them. Each is a Cargo feature of the same name.
pub(super) const OPTIONAL_BACKENDS: [(&str, bool); 4] = [
    ("sqlite", cfg!(feature = "sqlite")),
    ("sled", cfg!(feature = "sled")),
    ("postgres", cfg!(feature = "postgres")),
    ("etcd", cfg!(feature = "etcd")),
];

impl Registry {
    pub(crate) fn with_builtins() -> Self {
        let mut registry = Self::default();
        register_memory(&mut registry);
        register_databases(&mut registry);
        register_transports(&mut registry);
        registry
    }
}

#[cfg_attr(
    not(any(feature = "sqlite", feature = "sled", feature = "postgres", feature = "etcd")),
    expect(unused_variables, reason = "no database is included in this build")
)]
fn register_databases(registry: &mut Registry) {
    #[cfg(feature = "sqlite")]
    registry.register_storage("sqlite", |settings, place: Place, role| async move {
        Ok(enjambre_storage_sqlite::open(&settings, &place, role).await?)
    });
    #[cfg(feature = "sqlite")]
    registry.compact_with("sqlite", |settings, place: Place, role| async move {
        let compact = move || enjambre_storage_sqlite::compact(&settings, &place, role);
        Ok(enjambre_core::runtime::spawn_blocking(compact).await??)
    });
    #[cfg(feature = "sled")]
    registry.register_storage("sled", |settings, place: Place, role| async move {
        Ok(enjambre_storage_sled::open(&settings, &place, role).await?)
    });
    #[cfg(feature = "postgres")]
    {
        registry.register_storage("postgres", |settings, place: Place, role| async move {
            Ok(enjambre_storage_postgres::open(&settings, &place, role).await?)
        });
        registry.check_files_with("postgres", |settings, place: Place, _| async move {
            let check = move || enjambre_storage_postgres::check(&settings, &place);
            Ok(enjambre_core::runtime::spawn_blocking(check).await??)
        });
        registry.remove_scratch_with("postgres", |settings, place: Place, role| async move {
            Ok(enjambre_storage_postgres::remove(&settings, &place, role).await?)
        });
    }
    #[cfg(feature = "etcd")]
    {
        registry.register_storage("etcd", |settings, place: Place, role| async move {
            Ok(enjambre_storage_etcd::open(&settings, &place, role).await?)
        });
        registry.check_files_with("etcd", |settings, place: Place, _| async move {
            let check = move || enjambre_storage_etcd::check(&settings, &place);
            Ok(enjambre_core::runtime::spawn_blocking(check).await??)
        });
        registry.remove_scratch_with("etcd", |settings, place: Place, role| async move {
            Ok(enjambre_storage_etcd::remove(&settings, &place, role).await?)
        });
    }
}

/// Registers the memory backend. Its data is lost when the storage is closed, except in a scratch place, which can be
/// reopened.
fn register_memory(registry: &mut Registry) {
    type Disks = Arc<Mutex<BTreeMap<(String, bool), Disk>>>;
    let disks = Disks::default();
    let key = |scratch: &Scratch, role| (scratch.name().to_owned(), role == Role::Content);
    let opened = Arc::clone(&disks);
    registry.register_storage("memory", move |NoSettings {}, place: Place, role| {
        let storage = match &place.scratch {
            Some(scratch) => opened.lock().entry(key(scratch, role)).or_default().open(),
            None => Memory::new(),
        };
        async { Ok(Arc::new(storage) as Arc<dyn Storage>) }
    });
    if let Some(memory) = registry.storages.get_mut("memory") {
        memory.is_volatile = true;
    }
    registry.remove_scratch_with("memory", move |NoSettings {}, place: Place, role| {
        if let Some(scratch) = &place.scratch {
            disks.lock().remove(&key(scratch, role));
        }
        async { Ok(()) }
    });
}

fn register_transports(registry: &mut Registry) {
    // In the order of preference: authenticated before plaintext, then by cost.
    let schemes = [
        ("tcps", Security::Authenticated),
        ("zmqs", Security::Authenticated),
        ("tcp", Security::Plaintext),
        ("zmq", Security::Plaintext),
    ];
    registry.register_transports(&schemes, |TransportParts { limits, key }| {
        let shared = Shared::new(transport_settings(limits))?;
        let [tcps, zmqs] = shared.secure(key);
        Ok(vec![tcps, zmqs, shared.tcp(), shared.zmq()])
    });
}

pub(super) fn transport_settings(limits: &TransportLimits) -> TransportSettings {
    TransportSettings {
        header: limits.header.as_usize(),
        payload: limits.payload.as_usize(),
        in_flight: limits.in_flight,
        queued_per_connection: limits.queued_per_connection.as_usize(),
        queued_total: limits.queued_total.as_usize(),
        connections: limits.connections,
        connections_per_address: limits.connections_per_address,
        handshake_timeout: limits.handshake_timeout.get(),
        idle_timeout: limits.idle_timeout.get(),
        stall_timeout: limits.stall_timeout.get(),
        ..TransportSettings::default()
    }
}
