use std::sync::atomic::{AtomicUsize, Ordering};

use enjambre_core::Memory;
use enjambre_transport::Shared;

use super::*;
use crate::config::sections::TransportLimits;

#[test]
fn related_transports_are_created_once_and_replaceable() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let mut registry = Registry::default();
    let plain = ["tcp", "zmq"].map(|scheme| (scheme, Security::Plaintext));
    registry.register_transports(&plain, move |parts| {
        counted.fetch_add(1, Ordering::Relaxed);
        let shared = Shared::new(builtin::transport_settings(parts.limits))?;
        Ok(vec![shared.zmq(), shared.tcp()])
    });
    let (limits, key) = (TransportLimits::default(), KeyPair::generate());
    let parts = TransportParts { limits: &limits, key: &key };
    let schemes = |registry: &Registry| {
        let created = registry.create_transports(parts).unwrap();
        created.iter().map(|transport| transport.scheme()).collect::<Vec<_>>()
    };
    assert_eq!((schemes(&registry), calls.load(Ordering::Relaxed)), (vec!["tcp", "zmq"], 1));
    let own = Shared::new(builtin::transport_settings(&limits)).unwrap().zmq();
    let same: Arc<dyn Transport> = own;
    let registered = Arc::clone(&same);
    registry.register_transport("zmq", Security::Plaintext, move |_| Ok(Arc::clone(&registered)));
    assert_eq!(schemes(&registry), ["tcp", "zmq"]);
    assert!(Arc::ptr_eq(&registry.create_transports(parts).unwrap()[1], &same));
}

fn register(name: &str) {
    Registry::default().register_storage(name, |NoSettings {}, _, _| async {
        Ok(Arc::new(Memory::new()) as Arc<dyn Storage>)
    });
}

#[test]
#[should_panic(expected = "a storage backend cannot be named \"layers\"")]
fn backend_name_layers_is_rejected() {
    register("layers");
}

#[test]
#[should_panic(expected = "a storage backend cannot be named \"backend\"")]
fn backend_name_backend_is_rejected() {
    register("backend");
}

#[test]
#[should_panic(expected = "storage backend \"mine\" is not registered")]
fn scratch_removal_requires_a_registered_backend() {
    Registry::default().remove_scratch_with("mine", |NoSettings {}, _, _| async { Ok(()) });
}

fn load(registry: &Registry, text: &str) -> Result<Loaded, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("test.toml");
    std::fs::write(&file, text).unwrap();
    let sources = crate::config::load::Sources { file: Some(file), set: Vec::new() };
    registry.load(&sources, None).map_err(|error| error.to_string())
}

#[test]
fn setting_that_toml_cannot_represent_is_valid() {
    #[derive(serde::Deserialize, serde::Serialize)]
    #[serde(default, deny_unknown_fields)]
    struct Unlimited {
        color: String,
        limit: u64,
    }
    impl Default for Unlimited {
        fn default() -> Self {
            Self { color: "red".to_owned(), limit: u64::MAX }
        }
    }
    let mut registry = Registry::with_builtins();
    registry.register_storage("mine", |_: Unlimited, _, _| async {
        Ok(Arc::new(Memory::new()) as Arc<dyn Storage>)
    });
    let text = "[storage]\nbackend = \"mine\"\n[storage.mine]\n";
    let shown = load(&registry, &format!("{text}color = \"blue\"")).unwrap().show();
    assert!(shown.contains("color = \"blue\"") && !shown.contains("limit = 1844"), "{shown}");
    let shown = load(&registry, &format!("{text}limit = 5")).unwrap().show();
    assert!(shown.contains("color = \"red\"") && shown.contains("limit = 5"), "{shown}");
    assert!(load(&registry, &format!("{text}limits = 5")).is_err());
}

#[cfg(feature = "postgres")]
#[test]
fn password_in_postgres_settings_is_rejected_and_redacted() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/tracker-postgres.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let registry = Registry::with_builtins();
    load(&registry, &text).unwrap();
    for (from, to) in [
        ("enjambre@localhost", "enjambre:hunter2@localhost"),
        ("connections = 8", "password = \"hunter2\""),
        ("localhost:5432/enjambre", "localhost/enjambre?password=hunter2"),
    ] {
        assert!(text.contains(from));
        let error = load(&registry, &text.replace(from, to)).unwrap_err();
        assert!(error.contains("password_env") && error.contains("password_file"), "{error}");
        assert!(error.contains("storage.postgres") && !error.contains("hunter2"), "{error}");
    }
}
